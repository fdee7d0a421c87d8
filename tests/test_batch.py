"""Files of any size and kind are scored by a stage run: what goes in is known, memory stays bounded, refused rows are named, and what is stopped leaves nothing half"""
import json, signal, subprocess, sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

pytest.importorskip('mlflow')
from mlops_nb.batch import predict as predict_rows, score
from mlops_nb.core import MlopsError
from mlops_nb.package import load_package
from mlops_nb.plan import Workspace
from mlops_nb.registry import Registry
from mlops_nb.validate import BadData
from scratch import Project

serve = '''
import pandera.pandas as pa
class Rows(pa.DataFrameModel):
    x: float = pa.Field(ge=0)
    word: str = pa.Field(isin=["a", 'ä;"b"', "b"], nullable=True)
'''
serve += 'def predict(model, rows, shift): return model.predict(rows[["x"]]) + shift["by"].iloc[0] + rows["n"].to_numpy()\n'
train = '''
import pandas as pd
from sklearn.linear_model import LinearRegression
from mlops_nb.package import save_model
rows = pd.DataFrame(dict(x=[1., 2., 3.], n=[1, 2, 3], word=["a", "b", None], when=pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"])))
model = LinearRegression().fit(rows[["x"]], [slope*1., slope*2., slope*3.])
save_model(package, model, "serve:predict", rows, schema="serve:Rows", tables=dict(shift=pd.DataFrame(dict(by=[.5]))))
'''


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    p = Project(tmp_path_factory.mktemp('batch')/'project', '[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\n')
    (p.folder/'serve.py').write_text(serve)
    p.stage('01_train', 'slope: float = 2.0\npackage: "Model" = "data/line"', train)
    p.ok()
    yield p
    p.put_away()


def table(n, first=0):
    "Rows that the model takes, with columns that it doesn't know"
    i = np.arange(first, first+n)
    words = np.array(['a', 'ä;"b"', None], object)[i % 3]
    return pd.DataFrame(dict(id=[f'{o:07}' for o in i], x=i/7, n=i, word=words, when=pd.Timestamp('2020-01-01') + pd.to_timedelta(i, 's').astype('timedelta64[us]')))


def truth(p, rows):
    ws = Workspace(p.settings)
    version = Registry(ws).version('demo', 1)
    return load_package(Registry(ws).package_path(version), version.digest).predict(rows).tolist()


def predict(p, *args, **kwargs): return p.cli('predict', *args, '--json', **kwargs)
def read(path): return pd.read_parquet(path) if str(path).endswith('parquet') else pa.ipc.open_file(path).read_all().to_pandas() if str(path).endswith('arrow') else pd.read_csv(path, dtype=dict(id=str))


@pytest.fixture(scope='module')
def package(project):
    r = Registry(Workspace(project.settings))
    return r.package_path(r.version('demo', 1))


def test_a_run_keeps_the_record(project, tmp_path):
    table(3).to_parquet(tmp_path/'rows.parquet')
    io = '--input', str(tmp_path/'rows.parquet'), '--output', str(tmp_path/'scored.parquet')
    done = predict(project, 'demo', *io)
    assert done.code == 2 and 'demo has no champion' in done.text and 'mlops-nb promote demo' in done.text, done
    done = predict(project, 'dem', *io)
    assert done.code == 2 and "no model 'dem' is registered" in done.text, done
    assert not (tmp_path/'scored.parquet').exists()
    assert project.cli('promote', 'demo', '--override', '--reason', 'it has no gates').code == 0
    done = predict(project, 'demo', *io)
    assert done.code == 0 and read(tmp_path/'scored.parquet').prediction.tolist() == truth(project, table(3)), done
    assert not list(tmp_path.glob('*refused*')), 'nothing was refused, so nothing says so'
    (tmp_path/'scored.parquet').unlink()
    done = predict(project, 'demo', *io)
    assert done.statuses == {'predict': 'cached'} and done.json['stages'][0]['metrics'] == dict(rows=3, refused_rows=0) and (tmp_path/'scored.parquet').exists()
    row = project.rows(stage='predict', status='completed')[-1]
    assert row['inputs']['model']['path'] == 'models:/demo@champion' and row['inputs']['model']['digest'] == Registry(Workspace(project.settings)).version('demo', 1).digest
    assert row['metrics'] == dict(rows=3, refused_rows=0) and row['executed'] and row['code'] and set(row['outputs']) == {'scored', 'refused'}
    assert 'models:/demo@champion' in json.dumps(project.cli('lineage', str(tmp_path/'scored.parquet'), '--json').json)
    again = project.cli('reproduce', row['run_id'], '--json')
    assert again.code == 0 and again.json['verdict'] == 'identical', again


def test_every_kind_of_file_says_the_same(project, package, tmp_path):
    rows = table(1000)
    said = truth(project, rows)
    (tmp_path/'parts'/'_spark').mkdir(parents=True)
    rows.to_parquet(tmp_path/'rows.parquet', row_group_size=100)
    rows.to_csv(tmp_path/'rows.csv', index=False)
    rows.to_csv(tmp_path/'rows.csv.gz', index=False, quoting=1)
    with pa.ipc.new_file(tmp_path/'rows.arrow', pa.Schema.from_pandas(rows, preserve_index=False)) as f: f.write_table(pa.Table.from_pandas(rows, preserve_index=False), 300)
    for i in range(4): rows[i*250:(i+1)*250].to_csv(tmp_path/'parts'/f'part-{i}.csv', index=False)
    (tmp_path/'parts'/'_SUCCESS').touch()
    for source, to in [('rows.parquet', 'a.arrow'), ('rows.csv', 'b.parquet'), ('rows.csv.gz', 'f.parquet'), ('rows.arrow', 'c.csv'), ('parts', 'd.csv'), ('parts/*.csv', 'e.parquet')]:
        assert score(package, tmp_path/source, tmp_path/to, tmp_path/'aside.csv', batch=90) == dict(rows=1000, refused_rows=0)
        out = read(tmp_path/to)
        assert out.columns.tolist() == [*rows.columns, 'prediction'] and out.prediction.tolist() == said and out.id.tolist() == rows.id.tolist(), (source, to)
        assert out.word.fillna('').tolist() == rows.word.fillna('').tolist()
    assert read(tmp_path/'b.parquet').dtypes.astype(str).to_dict() == rows.dtypes.astype(str).to_dict() | dict(prediction='float64')


def test_rows_that_are_refused_are_named_or_set_aside(project, package, tmp_path):
    rows = table(200).astype(dict(x=object, n=object))
    rows.loc[[120, 150], 'x'] = 'much', None
    rows.loc[151, 'n'] = 2.5
    rows.loc[[160, 161], ['x', 'word']] = [[-1, 'a'], [1, 'z']]
    rows.to_csv(tmp_path/'rows.csv', index=False)
    done = project.cli('predict', 'demo/1', '--input', str(tmp_path/'rows.csv'), '--output', str(tmp_path/'out'/'scored.csv'), '--batch', '100')
    assert done.code == 1 and 'rows.csv, row 120' in done.text and "x 'much' is no double" in done.text and 'row 151' in done.text, done
    assert not (tmp_path/'out').exists() or not list((tmp_path/'out').iterdir())
    to = tmp_path/'scored.csv', tmp_path/'aside.csv'
    assert score(package, tmp_path/'rows.csv', *to, keep='id', on_failure='quarantine', batch=100) == dict(rows=195, refused_rows=5)
    out, aside = map(read, to)
    good = table(200).drop([120, 150, 151, 160, 161])
    assert out.columns.tolist() == ['id', 'prediction'] and out.id.tolist() == good.id.tolist() and out.prediction.tolist() == truth(project, good)
    assert aside.row.tolist() == [120, 150, 151, 160, 161] and aside.id.tolist() == ['0000120', '0000150', '0000151', '0000160', '0000161'] and aside.x[0] == 'much'
    assert aside.failed.tolist()[:3] == ["x 'much' is no double", 'x is missing, and the model needs it', "n '2.5' is no long"]
    assert aside.failed[3].startswith('x ') and aside.failed[4].startswith('word '), aside.failed.tolist()
    rows.assign(x='much').to_csv(tmp_path/'rows.csv', index=False)
    with pytest.raises(BadData, match='200 of 200 rows are refused'): score(package, tmp_path/'rows.csv', *to, on_failure='quarantine')


@pytest.mark.parametrize('change,said', [
    (lambda p, d: d.drop(columns='x').to_parquet(p), 'no column x'), (lambda p, d: d.assign(x='a').to_parquet(p), 'the column x must hold double'),
    (lambda p, d: d.assign(prediction=1).to_parquet(p), 'a column prediction already'), (lambda p, d: p.write_bytes(b'PAR1 and nothing'), "rows.parquet can't be read"), (lambda p, d: d[:0].to_parquet(p), 'there are no rows')])
def test_a_wrong_table_is_one_clear_error(package, tmp_path, change, said):
    change(tmp_path/'rows.parquet', table(10))
    with pytest.raises(MlopsError, match=said): score(package, tmp_path/'rows.parquet', tmp_path/'a.csv', tmp_path/'b.csv')


def test_places_that_cannot_be_are_refused(project, tmp_path):
    (tmp_path/'in').mkdir()
    table(5).to_csv(tmp_path/'in'/'rows.csv', index=False)
    for source, to, said in [('in', 'in/scored.csv', 'a part of the rows'), ('in/*.csv', 'in/scored.csv', 'a part of the rows'), ('in/rows.csv', 'in/rows.csv', 'a part of the rows'), ('none.csv', 'a.csv', 'there are no rows'),
                             ('in', 'a.xlsx', 'no table that can be streamed')]:
        with pytest.raises(MlopsError, match=said): predict_rows(project.settings, 'demo/1', str(tmp_path/source), str(tmp_path/to))


alone = """
import resource, sys, time
from mlops_nb.batch import score
told = score(*sys.argv[1:5], batch=20_000)
print(told['rows'], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10)
"""


@pytest.mark.parametrize('kind', ['parquet', 'csv'])
def test_memory_does_not_grow_with_the_file(package, tmp_path, kind):
    def part(i): return pa.Table.from_pandas(table(25_000, i*25_000).assign(more='x'*100 + pd.Series(range(25_000)).astype(str)), preserve_index=False)
    def peak(n):
        path = tmp_path/f'{n}.{kind}'
        with (pq.ParquetWriter(path, part(0).schema, compression='none', use_dictionary=False) if kind == 'parquet' else pa.csv.CSVWriter(path, part(0).schema)) as w:
            for i in range(n): w.write_table(part(i))
        done = subprocess.run([sys.executable, '-c', alone, package, path, tmp_path/'scored.parquet', tmp_path/'aside.parquet'], text=True, capture_output=True, timeout=500)
        assert done.returncode == 0, done.stderr
        rows, most = done.stdout.split()
        assert int(rows) == n*25_000
        return float(most), path.stat().st_size/2**20
    small, size = peak(8)
    large, bigger = peak(48)
    print(f'{kind}: {size:.0f} MB {small:.0f} MB, {bigger:.0f} MB {large:.0f} MB')
    assert bigger > 120 and large - small < (bigger-size)/2, (small, size, large, bigger)


def test_who_stops_it_finds_nothing_half(project, tmp_path):
    pd.concat([table(200_000)]*2).to_csv(tmp_path/'rows.csv', index=False)
    io = 'predict', 'demo/1', '--input', str(tmp_path/'rows.csv'), '--output', str(tmp_path/'scored.parquet'), '--batch', '1000', '--json'
    before = len(project.rows(stage='predict'))
    p = project.start(*io)
    project.until(lambda: any(o.stat().st_size > 10_000 for o in project.state.glob('tmp/*/out/scored/scored.parquet')), 120)
    p.send_signal(signal.SIGINT)
    done = project.wait(p)
    assert done.code == 130 and 'the same command carries on' in done.text, done
    assert sorted(o.name for o in tmp_path.iterdir()) == ['rows.csv'] and not list(project.state.glob('tmp/*')) and not project.quiet(90)
    assert [o['status'] for o in project.rows(stage='predict')[before:]] == ['stopped']
    done = project.cli(*io, timeout=400)
    assert done.code == 0 and done.json['stages'][0]['metrics']['rows'] == 400_000, done
