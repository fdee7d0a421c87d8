"""Data contracts in a pipeline: a poisoned month is stopped, failing rows are kept, files are larger than the memory"""
import json, os, shutil, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest

from scratch import Project, code

flights = Path(__file__).resolve().parents[1]/'nbs'/'pipelines'/'flights'
poisons = { # name: (what is done to June, what is said of it)
    'celsius': ("weather_df.loc[weather_df.month == 6, 'temp'] = (weather_df.temp - 32)/1.8", 'temp lies in 30 to 90: 1 of 2'),
    'kilometres': ("flights_df.loc[june, 'distance'] = (flights_df.distance*1.609).astype(int)", 'distance lies in 600 to 1100: 1 of 2'),
    'delays swapped': ("flights_df.loc[june, ['dep_delay','arr_delay']] = flights_df.loc[june, ['arr_delay','dep_delay']].to_numpy()", 'a flight that has arrived had left'),
    'times swapped': ('''t = flights_df.scheduled.dt
arrive = t.tz_localize(None).dt.floor('D').dt.tz_localize(tz, ambiguous=True) + pd.to_timedelta(flights_df.sched_arr_time//100*60 + flights_df.sched_arr_time%100, unit='min')
flights_df = flights_df.assign(scheduled=flights_df.scheduled.mask(june, arrive), sched_arr_time=flights_df.sched_arr_time.mask(june, t.hour*100 + t.minute))''', 'by the clocks on the two walls'),
    'twice': ('flights_df = pd.concat([flights_df, flights_df[june]], ignore_index=True)', 'scheduled + carrier + flight + origin is unique'),
    'hours': ("flights_df.loc[june, ['dep_delay','arr_delay']] /= 60", 'late lies in 0.05 to 0.6: 1 of 2'),
    'metres a second': ("weather_df.loc[weather_df.month == 6, 'wind_speed'] *= .447", 'wind lies in 6 to 15: 1 of 2'),
    'rain and wind swapped': ("weather_df.loc[weather_df.month == 6, ['precip','wind_speed']] = weather_df.loc[weather_df.month == 6, ['wind_speed','precip']].to_numpy()", 'precip is at most 5'),
    'in the wrong month': ("flights_df.loc[june & (flights_df.scheduled.dt.day == 1), 'month'] = 5", 'its month is that of its departure'),
    'half': ('flights_df = flights_df[~june | (flights_df.scheduled.dt.day <= 15)]', 'silent_days is at most 0: 1 of 2 are not (50.00%, allowed 0.00%): 15 at month 6'),
    'new airline': ("flights_df.loc[june & (flights_df.carrier == 'HA'), 'carrier'] = 'ZZ'", 'carrier is among 9E, AA')}


def poisonable(project):
    "A copy of the flights whose first stage has a parameter `poison`"
    for f in flights.glob('*.ipynb'): shutil.copyfile(f, project.folder/f.name)
    path = project.folder/'01_ingest.ipynb'
    nb = json.loads(path.read_text('utf-8'))
    def at(text): return next(i for i, o in enumerate(nb['cells']) if o['cell_type'] == 'code' and text in ''.join(o['source']))
    writes = at('df.to_parquet(path')
    dosed = ''.join(f"if poison == {k!r}:\n" + ''.join(f'    {o}\n' for o in v.splitlines()) for k, (v, _) in poisons.items())
    nb['cells'].insert(writes, code(f'june = flights_df.month == 6\n{dosed}'))
    nb['cells'][at('months: list[int]')]['source'] += ['\npoison: str = ""']
    path.write_text(json.dumps(nb))


def test_a_poisoned_month_is_stopped_before_training(tmp_path):
    project = Project(tmp_path/'project', pipeline='flights')
    poisonable(project)
    done = project.run('-p', 'months=5,6', '-p', 'test_month=6', '-p', 'train_window=1', '--each', f"poison={','.join(poisons)}", timeout=300)
    assert done.code == 1, done
    with project.ledger as ledger: found = {ledger.run(o['run'])['params']['ingest.poison']: ledger.stage_runs(o['run']) for o in done.json['runs']}
    assert found.keys() == poisons.keys()
    for name, (_, text) in poisons.items():
        rows = {o['stage']: o for o in found[name]}
        assert [rows[o]['status'] for o in sorted(rows)] == ['completed', 'failed'] + ['skipped']*(len(rows)-2) and len(rows) > 4, name
        error = rows['02_validate']['error']
        assert error['ename'] == 'BadData' and text in error['evalue'] and len(error['evalue']) < 4000, (name, error['evalue'])
    assert not project.quiet()
    project.put_away()


def checked(project, schema, then='validate(df, S, keep=failing).to_parquet(good)', make='df = pd.DataFrame(dict(x=range(n)))'):
    "A pipeline: make a table of n rows, hold it to `schema`, count"
    project.stage('01_make', 'n: int = 10\ntable: Out = "data/table.parquet"', 'import pandas as pd', make, 'df.to_parquet(table)')
    project.stage('02_check', 'table: In = "data/table.parquet"\ngood: Out = "data/good.parquet"\nfailing: Out = "data/failing.parquet"',
        'import pandas as pd\nimport pandera.pandas as pa\nfrom mlops_nb.validate import expect, expect_table, validate', f'S = {schema}', 'df = pd.read_parquet(table)', then)
    project.stage('03_count', 'good: In = "data/good.parquet"\ncount: Out = "data/count.txt"', 'import pandas as pd', 'n = len(pd.read_parquet(good))\nopen(count, "w").write(str(n))\nrecord(n=n)')


small = 'pa.DataFrameSchema(dict(x=pa.Column(int, pa.Check.lt(8))), name="S")'


def test_failing_rows_of_a_stopped_stage_are_kept_and_told_once(project):
    checked(project, small)
    done = project.cli('run', 'demo')
    assert done.code == 1 and done.out.count('x is less than 8: 2 of 10 are not (20.00%, allowed 0.00%): 8 at row 8, 9 at row 9') == 1, done
    row = project.rows(stage='02_check')[0]
    [kept] = (project.state/'runs'/row['run_id']).glob('02_check.*.parquet')
    assert pd.read_parquet(kept).x.tolist() == [8, 9] and str(kept.relative_to(project.root)) in done.out
    assert (row['metrics']['failed_checks'], row['outputs'], project.rows(stage='03_count')[0]['status']) == (1, {}, 'skipped')
    report = [v for c in json.loads((kept.parent/'02_check.ipynb').read_text())['cells'] for o in c.get('outputs', []) for k, v in o.get('data', {}).items() if 'validation' in k]
    assert [o['ok'] for o in report] == [False] and report[0]['failing_rows'] == 2
    assert not list((project.state/'tmp').iterdir())


def test_failing_rows_with_a_secret_are_not_kept(project):
    project.stage('01_check', 'token: Secret = ""\nfailing: Out = "data/failing.parquet"', 'import pandas as pd\nimport pandera.pandas as pa\nfrom mlops_nb.validate import validate',
        f'S = {small}', 'validate(pd.DataFrame(dict(x=[9], y=[token])), S, keep=failing)')
    assert project.cli('run', 'demo', TOKEN='hunter2hunter2').code == 1
    row = project.rows(stage='01_check')[0]
    assert row['error']['ename'] == 'BadData' and [o.name for o in (project.state/'runs'/row['run_id']).iterdir()] == ['01_check.ipynb']
    assert not [o for o in project.root.rglob('*') if o.is_file() and b'hunter2hunter2' in o.read_bytes()]


def test_good_rows_go_on_from_a_quarantine(project):
    checked(project, small, 'validate(df, S, "quarantine", keep=failing).to_parquet(good)')
    found = project.ok().json['metrics']
    assert (found['n'], found['quarantined_share'], found['failed_checks']) == (8, .2, 1)
    row = project.rows(stage='02_check')[0]
    assert pd.read_parquet(project.data/'failing.parquet').x.tolist() == [8, 9] and 'failing' in row['outputs']


def test_the_number_of_rows_is_compared_with_earlier_runs(project):
    checked(project, 'pa.DataFrameSchema(dict(x=pa.Column(int)), name="S", metadata=expect_table(like_before=(.5, 2)))')
    for n in (100, 120): assert project.ok('-p', f'n={n}').json['metrics']['rows_S'] == n
    done = project.run('-p', 'n=40')
    assert done.code == 1 and 'times as many rows as in earlier runs: 40; 110 is usual' in project.rows(status='failed')[0]['error']['evalue'], done


huge = '''
import contextlib, io, resource, sys
from mlops_nb.pieces import validate_file
from mlops_nb.validate import expect, pa
class S(pa.DataFrameModel):
    key: int = pa.Field(unique=True)
    word: str = pa.Field(isin=['alpha','beta'])
    x: float = pa.Field(ge=0, le=1, metadata=expect(median=(.4, .6)))
    text: str
def mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(1024 if sys.platform == 'linux' else 2**20)
before,folder = mb(),sys.argv[1]
with contextlib.redirect_stdout(io.StringIO()) as told: r = validate_file(f'{folder}/huge.csv', S, f'{folder}/good.parquet', f'{folder}/failing.parquet', 'quarantine', rows=50_000)
print(r.rows, r.aside, len(told.getvalue()) < 5000, mb()-before)
'''


def test_a_file_larger_than_what_memory_it_may_take(tmp_path):
    n, text = 1_500_000, 'some text that makes it longer and that nobody reads' # the last row has the key of the first
    with open(tmp_path/'huge.csv', 'w') as f:
        f.write('key,word,x,text\n')
        f.writelines(f"{i % (n-1)},{'gamma' if i % 10_000 == 7 else 'beta' if i % 2 else 'alpha'},{i/n:.6f},{text}\n" for i in range(n))
    size = os.path.getsize(tmp_path/'huge.csv')/2**20
    out = subprocess.run([sys.executable, '-c', huge, tmp_path], capture_output=True, text=True)
    assert not out.returncode, out.stderr
    rows, aside, small, mb = out.stdout.split()
    assert (int(rows), int(aside), small) == (n, 151, 'True') and size > 100
    assert float(mb) < 240, f'{mb} MB for a file of {size:.0f} MB; as a table it takes more than twice its size'
    failing = pd.read_parquet(tmp_path/'failing.parquet')
    assert failing.row_number.tolist()[:2] == [7, 10_007] and failing.iloc[-1][['row_number','key','failed']].tolist() == [n-1, 0, 'key is unique']
    assert len(pd.read_parquet(tmp_path/'good.parquet', columns=['key'])) == n-151


def test_a_schema_is_drafted_on_the_command_line(project):
    pd.DataFrame(dict(bird=['robin', 'wren']*6, seen=range(12))).to_csv(project.root/'birds.csv', index=False)
    found = project.cli('schema', 'infer', 'birds.csv', '--json').json
    assert (found['name'], found['key'], [o['column'] for o in found['columns']]) == ('Birds', ['seen'], ['bird', 'seen'])
    assert project.cli('schema', 'infer', 'birds.csv').out.strip() == found['source']
    wrong = project.cli('schema', 'infer', 'brids.csv', '--json')
    assert wrong.code == 2 and "can't be read" in wrong.json['error']['what']


def test_without_pandera_it_says_what_to_install(project):
    cmd = "import sys; sys.modules['pandera'] = None; sys.argv = ['mlops-nb', 'schema', 'infer', 'x.csv']\nfrom mlops_nb.cli import main\nmain()"
    out = subprocess.run([sys.executable, '-c', cmd], capture_output=True, text=True, cwd=project.root)
    assert out.returncode == 2 and 'pip install "mlops_nb[validate]"' in out.stderr and 'pandera, which is not installed' in out.stderr
