"""What a model is asked is counted once, whoever is killed; what has changed is told once; and a page and a table say it"""
import json, random, signal, subprocess, sys, time
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest

pytest.importorskip('mlflow')
from mlops_nb.columns import Columns
from mlops_nb.core import StoreError
from mlops_nb.labels import add_labels
from mlops_nb.monitor import look, monitor_facts
from mlops_nb.plan import Workspace
from mlops_nb.predlog import PredictionLog
from mlops_nb.windows import new_parts, update, windows
from scratch import Project

serve = 'def predict(model, rows):\n    if (rows.x > 1e6).any(): raise ValueError("too far")\n    return model.predict_proba(rows.assign(double=rows.x*2)[["x","double","word"]])[:,1]\n'
train = '''
import numpy as np, pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from mlops_nb.package import save_model
rng = np.random.default_rng(0)
rows = pd.DataFrame(dict(x=rng.normal(size=3000), word=rng.choice(["a", "b", "c"], 3000), at=pd.Timestamp("2020-01-01")))
rows["yes"] = rng.random(3000) < 1/(1 + np.exp(-2*rows.x))
seen = rows.assign(double=rows.x*2)
model = make_pipeline(make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["word"]), remainder="passthrough"), LogisticRegression()).fit(seen[["x","double","word"]], seen.yes)
save_model(package, model, "serve:predict", rows[["x","word","at"]].head(), reference=rows, outcome="yes")
'''
start = datetime(2020, 3, 1, tzinfo=timezone.utc).timestamp()
now = datetime(2020, 6, 1, tzinfo=timezone.utc)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    p = Project(tmp_path_factory.mktemp('monitor')/'project', '[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\n')
    (p.folder/'serve.py').write_text(serve)
    p.stage('01_train', 'package: "Model" = "data/model"', train)
    p.ok()
    yield p
    p.put_away()


@pytest.fixture
def project(made, tmp_path):
    p = made.copied_to(tmp_path/'project')
    yield p
    p.put_away()


def asked(project, days, shift=0., words='abc', per=500, parts=1, size=16 << 20, first=0):
    "Log some days, with what the package says; the rows"
    from mlops_nb.package import load_package
    package, rng = load_package(project.data/'model'), np.random.default_rng(first)
    frames = []
    for _ in range(parts):
        with PredictionLog(project.state/'predictions'/'demo', package.about['columns'], output=package.about['output'], size=size, turn=False) as log:
            for day in days:
                df = pd.DataFrame(dict(x=rng.normal(shift, 1, per), word=rng.choice(list(words), per), at=pd.Timestamp('2020-02-01') + pd.Timedelta(days=day)))
                said = package.predict(df)
                keys = [f'{first}-{len(frames)}-{i}' for i in range(per)]
                log.add(f'{first}-{len(frames)}', '1', 'champion', start + 86400*day, .5, Columns(dict(x=df.x.to_numpy(), word=df.word.to_numpy(object), at=df['at'].to_numpy('M8[us]'))), said, keys)
                frames.append(df.assign(said=said, key=keys, day=day))
    return pd.concat(frames, ignore_index=True)


def test_a_look_tells_what_has_changed_and_tells_it_once(project):
    asked(project, range(10))
    asked(project, range(10, 12), shift=1., words='abcz', first=1)
    o = look(project.settings, 'demo', now)
    assert o.rows == 6000 and len(o.windows) == 12
    found = {(a['start'][:10], a['what']): sorted(a['data']['columns']) for a in o.alerts}
    assert found == {(f'2020-03-{d}', what): names for d in (11, 12) for what, names in (('rows', ['double', 'word', 'x']), ('prediction', ['prediction']))}
    assert 'zzz' not in str(o.alerts) and 'new words: z' in o.alerts[0]['data']['why']
    again = look(project.settings, 'demo', now)
    assert (again.rows, again.windows, again.alerts) == (0, [], [])
    assert all(o.differing == 0 and o.compared == 500 for o in windows(Workspace(project.settings), 'demo').values())


def test_a_window_that_goes_on_is_left_alone(project):
    asked(project, [0], shift=3.)
    assert not look(project.settings, 'demo', datetime(2020, 3, 1, 23, tzinfo=timezone.utc)).windows
    assert look(project.settings, 'demo', datetime(2020, 3, 2, tzinfo=timezone.utc)).alerts


def test_labels_that_come_late_show_that_it_is_worse(project):
    rows = asked(project, range(4), per=2000)
    assert not look(project.settings, 'demo', now).alerts
    rng = np.random.default_rng(1)
    yes = rng.random(len(rows)) < np.where(rows.day < 2, 1/(1 + np.exp(-2*rows.x)), .5) # from the third day on it's a coin
    add_labels(project.settings, 'demo', pd.DataFrame(dict(key=rows.key, yes=yes))[rows.day < 2])
    first = look(project.settings, 'demo', now)
    assert len(first.known) == 2 and not first.alerts
    add_labels(project.settings, 'demo', pd.DataFrame(dict(key=rows.key, yes=yes))[rows.day >= 2])
    later = look(project.settings, 'demo', now)
    assert [(a['kind'], a['start'][:10], a['data']['labelled']) for a in later.alerts] == [('performance', '2020-03-03', '2020-03-04'), ('performance', '2020-03-04', '2020-03-04')]
    facts = monitor_facts(project.settings, 'demo', now=now)
    auc = [w['quality']['auc'] for w in facts['windows']]
    assert min(auc[:2]) > .75 and max(auc[2:]) < .56 and json.loads(json.dumps(facts)) == facts


def missed(project, days, *counts):
    "Log requests that got no prediction: (version, status, how many)"
    with PredictionLog(project.state/'predictions'/'demo', [dict(name='x', type='double')], turn=False) as log:
        for day in days:
            for version, status, n in counts:
                for _ in range(n): log.miss(version, status, start + 86400*day)


def test_errors_are_told_once(project):
    asked(project, range(8), per=100)
    missed(project, range(7), ('1', 500, 9), ('1', 422, 1000))
    assert not look(project.settings, 'demo', now).alerts, 'nine are few, and who asks wrongly is no error'
    missed(project, [7], ('1', 504, 20), ('1', 400, 3), ('', 503, 12), ('9', 500, 99)) # there is no version 9
    o = look(project.settings, 'demo', now)
    assert {(a['kind'], a['what'], a['version'], a['start'][:10], a['data']['failed']) for a in o.alerts} == {('errors', 'requests', '', '2020-03-08', 12)}, 'of version 1 much fails always'
    missed(project, [8], ('1', 500, 500))
    o = look(project.settings, 'demo', now)
    assert [(a['version'], a['data']['failed']) for a in o.alerts] == [('1', 500)] and o.rows == 0 and not o.blind, 'nobody was answered that day'
    assert not look(project.settings, 'demo', now).alerts
    facts = monitor_facts(project.settings, 'demo', now=now)
    assert {(w['start'][8:10], w['version']): (w['traffic']['errors'], w['traffic']['refused']) for w in facts['windows'][6:]} == {('07', '1'): (9, 1000), ('08', ''): (12, 0), ('08', '1'): (20, 3), ('09', '1'): (500, 0)}
    done = project.cli('monitor', 'demo')
    assert done.code == 0 and 'errors' in done.out and 'The page' in done.out, done


def test_what_a_server_fails_at_is_in_its_window(project):
    for o in ('fastapi', 'uvicorn', 'prometheus_client'): pytest.importorskip(o)
    from mlops_nb.promote import promote
    from test_serve import Server
    promote(project.settings, 'demo', 1, override=True, reason='a test')
    with Server(project, 'demo', '--workers', '2') as s:
        def ask(x): return s.ask('POST', '/predict', dict(x=x, word='a', at='2020-02-01T00:00:00Z'))[0]
        assert [ask(o) for o in [0.]*20 + [1e7]*12 + ['much']*3] == [200]*20 + [500]*12 + [422]*3
        assert s.ask('POST', '/predict', b'', Authorization='')[0] == 401
    later = datetime.now(timezone.utc) + timedelta(days=32)
    [a] = [a for a in look(project.settings, 'demo', later, 'month').alerts if a['kind'] == 'errors']
    assert (a['version'], a['data']['failed'], a['data']['requests'], a['data']['refused']) == ('1', 12, 32, 4) and '12 of 32 requests failed' in a['data']['why']
    assert not look(project.settings, 'demo', later, 'month').alerts
    assert [(w.requests, w.failed, w.refused) for w in windows(Workspace(project.settings), 'demo', 'month').values()] == [(20, 12, 4)]


def test_what_another_code_answers_is_skew(project):
    asked(project, [0])
    path = next((project.state/'predictions'/'demo').glob('day=*/*.parquet'))
    import pyarrow.parquet as pq
    t = pq.read_table(path)
    pq.write_table(t.set_column(t.schema.get_field_index('prediction'), 'prediction', [np.asarray(t['prediction'])*.9]), path)
    assert ['skew'] == [a['kind'] for a in look(project.settings, 'demo', now).alerts if a['kind'] == 'skew']


def test_private_fields_are_passed_over(project):
    (project.root/'settings.ini').write_text((project.root/'settings.ini').read_text() + 'private = word\n')
    from mlops_nb.package import load_package
    about = load_package(project.data/'model').about
    with PredictionLog(project.state/'predictions'/'demo', about['columns'], ['word'], about['output'], turn=False) as log:
        log.add('r', '1', 'champion', start, .5, Columns(dict(x=np.random.default_rng(0).normal(size=500), word=np.array(['a']*500, object), at=np.array(['2020-02-01']*500, 'M8[us]'))), np.full(500, .5), None)
    look(project.settings, 'demo', now)
    facts = monitor_facts(project.settings, 'demo', now=now)
    assert set(facts['windows'][0]['drift']) == {'x'} and facts['windows'][0]['skew']['compared'] == 0


script = 'from mlops_nb import windows\nfrom mlops_nb.config import load_settings\nfrom mlops_nb.plan import Workspace\nwindows.most_files = 7\nprint("go", flush=True)\nprint(windows.update(Workspace(load_settings()), "demo"))'


def test_killed_or_two_at_once_each_row_is_counted_once(project):
    rows = asked(project, range(6), per=300, parts=12)
    for _ in range(8): missed(project, range(6), ('1', 500, 2), ('1', 422, 1), ('', 503, 1))
    rnd = random.Random(0)
    for _ in range(8):
        p = subprocess.Popen([sys.executable, '-c', script], cwd=project.root, stdout=subprocess.PIPE, text=True)
        p.stdout.readline()
        time.sleep(rnd.random()*.6) # somewhere in its work
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
    two = [subprocess.Popen([sys.executable, '-c', script], cwd=project.root, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [o.wait() for o in two] == [0, 0]
    ws = Workspace(project.settings)
    assert not new_parts(ws, 'demo') and update(ws, 'demo') == 0
    for span in ('hour', 'day', 'month'): assert sum(w.rows for w in windows(ws, 'demo', span).values()) == len(rows)
    of = {v: w for (_, v), w in windows(ws, 'demo', 'month').items()}
    assert {v: (w.failed, w.refused) for v, w in of.items()} == {'1': (96, 48), '': (48, 0)}
    whole = of['1']
    assert whole.columns['x'].n == whole.columns['double'].n == len(rows) and np.isclose(whole.columns['x'].total, rows.x.sum())
    assert whole.columns['word'].counts.sum() == len(rows)


def test_a_segment_that_goes_on_over_midnight(project):
    with PredictionLog(project.state/'predictions'/'demo', [dict(name='x', type='double')], output=[dict(name='', type='double')], turn=False) as log:
        for at in (-60, 60): log.add(f'r{at}', '1', 'champion', start + at, .5, Columns(dict(x=np.zeros(3))), np.full(3, .5))
    ws = Workspace(project.settings)
    assert update(ws, 'demo') == 6 and [w.rows for w in windows(ws, 'demo').values()] == [3, 3]


def test_the_command(project):
    empty = project.cli('monitor', 'demo')
    assert empty.code == 0 and 'Nobody has asked demo yet' in empty.text, empty
    asked(project, range(3), shift=1.)
    done = project.cli('monitor', 'demo')
    assert done.code == 0 and '2020-03-03' in done.out and 'new alerts: mlops-nb alerts demo' in done.out, done
    page = project.state/'reports'/'monitor'/'demo'/'monitor.html'
    assert str(page) in done.out.replace('\n', '') and 'demo in use, 2020-03-01' in page.read_text()
    told = project.cli('monitor', 'demo', '--json', '--window', 'month').json
    assert [w['rows'] for w in told['windows']] == [1500]
    assert [w['rows'] for w in project.cli('monitor', 'demo', '--json', '--since', '2020-03-02').json['windows']] == [500, 500]
    for args, words in ((['dem'], "no model 'dem'"), (['demo', '--window', 'week'], 'no windows of a week'), (['demo', '--since', 'soon'], 'no time')):
        bad = project.cli('monitor', *args)
        assert bad.code == 2 and words in bad.text, bad


def test_a_store_that_is_away_hides_nothing_for_good(project):
    asked(project, [0])
    ws, trouble = Workspace(project.settings), {}
    def away(version): raise StoreError("the store isn't there")
    assert update(ws, 'demo', yards=away, trouble=trouble.__setitem__) == 0 and len(trouble) == 1 and not windows(ws, 'demo')
    assert update(ws, 'demo') == 500 and not new_parts(ws, 'demo')


def test_silence_is_told(project):
    asked(project, range(8), per=1)
    path = project.state/'predictions'/'demo'
    import pyarrow as pa
    import pyarrow.parquet as pq
    for o in path.glob('day=*/*.parquet'): # a hundred requests a day
        t = pq.read_table(o)
        pq.write_table(pa.concat_tables([t.set_column(0, 'request', pa.array([f'{r}-{i}' for r in t['request'].to_pylist()])) for i in range(200)]), o)
    o = look(project.settings, 'demo', datetime(2020, 3, 11, tzinfo=timezone.utc))
    assert [(a['kind'], a['start'][:10], a['data']['requests']) for a in o.alerts if a['kind'] == 'traffic'] == [('traffic', '2020-03-09', 0), ('traffic', '2020-03-10', 0)]
    assert not [a for a in look(project.settings, 'demo', datetime(2020, 3, 11, tzinfo=timezone.utc)).alerts if a['kind'] == 'traffic']


def test_a_moment_that_nobody_means_stops_nothing(project):
    (project.root/'settings.ini').write_text((project.root/'settings.ini').read_text() + 'monitor_time = at\n')
    from mlops_nb.package import load_package
    package = load_package(project.data/'model')
    df = pd.DataFrame(dict(x=np.random.default_rng(0).normal(size=500), word='a', at=np.array(['9999-12-31'] + ['2020-02-01']*499, 'M8[us]')))
    with PredictionLog(project.state/'predictions'/'demo', package.about['columns'], output=package.about['output'], turn=False) as log:
        log.add('r', '1', 'champion', start, .5, Columns({k: df[k].to_numpy(object if k == 'word' else None) for k in df}), package.predict(df), None)
    assert look(project.settings, 'demo', now).rows == 500
    assert {s: w.rows for (s, _), w in windows(Workspace(project.settings), 'demo').items()} == {'2020-02-01': 499, '2020-03-01': 1}
