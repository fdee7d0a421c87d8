"""MLflow is told of each run exactly once: in a database, by a server, by one that asks who we are; whatever is killed, and whenever"""
import json, os, random, signal, subprocess, sys, urllib.error, urllib.request
from collections import Counter
from contextlib import contextmanager, suppress

import pytest

pytest.importorskip('flask_wtf') # of mlops_nb[ui]
from mlflow_server import MlflowServer
from mlops_nb.core import MlopsError
from mlops_nb.forward import counts, track
from mlops_nb.outbox import backlog, forwarding, last_status, nudge, target_of
from mlops_nb.tracker import talking_to
from scratch import Project, until
from test_ledger_postgres import server as postgres # noqa: F401 (a fixture)

secret = 'hunter2-of-the-server'


def put_mlflow(project, url, more=''):
    (project.root/'settings.ini').write_text(f'[DEFAULT]\nmlflow = {url}\n{more}\n')
    project.state.mkdir(exist_ok=True)
    return project


@pytest.fixture
def project(tmp_path):
    "A project that tells a database of its own"
    p = put_mlflow(Project(tmp_path/'project'), 'sqlite:///.mlops/mlflow.db')
    yield p
    p.put_away()


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    s = MlflowServer(tmp_path_factory.mktemp('server')).start()
    yield s
    s.kill()


def put_runs(project, n, points=4, pipeline='demo'):
    "Runs in the ledger as `mlops-nb run` writes them: one with two stages each"
    with project.ledger as ledger:
        for i in range(n):
            run = ledger.start_run(pipeline, params={'fit.depth': i}, command='mlops-nb run demo')
            ledger.end_stage(ledger.start_stage(run, '01_data', notebook='nbs/01_data.ipynb'), 'completed', metrics=dict(rows=i), seconds=.1)
            read = dict(data=dict(digest=f'{i:064x}', name='data.csv', size=1, kind='file', path='data/data.csv'))
            ledger.end_stage(ledger.start_stage(run, '02_fit', params=dict(depth=i, note='x'*7000), inputs=read), 'completed' if i % 5 else 'failed', metrics=dict(loss=.5, nan=float('nan')),
                steps=dict(loss=[[j, 1/(j+1)] for j in range(points)]), error=None if i % 5 else dict(ename='ValueError', evalue='no rows'))
            ledger.end_run(run, 'completed' if i % 5 else 'failed')


def client_of(settings):
    from mlflow import MlflowClient
    return MlflowClient(os.environ['MLFLOW_TRACKING_URI'])


def runs_in(settings, name='demo'):
    "All runs of an experiment in MLflow, also deleted ones"
    client,token,found = client_of(settings), None, []
    experiment = client.get_experiment_by_name(name)
    while experiment:
        page = client.search_runs([experiment.experiment_id], run_view_type=3, max_results=500, page_token=token, order_by=['attributes.start_time ASC'])
        found += page
        if not (token := page.token): break
    return found


def told(project, own=0):
    "{ledger id: MLflow run}; everything is there once. `own`: how many runs notebooks made besides; they are nested"
    with project.ledger as ledger: here = {o['id'] for o in ledger.runs(limit=10_000, study=None)}
    with talking_to(project.settings): found = [o for o in runs_in(project.settings) if o.data.tags.get('mlops_nb.run') in here | {None}] # tests share a server
    ours,others = [o for o in found if 'mlops_nb.id' in o.data.tags], [o for o in found if 'mlops_nb.id' not in o.data.tags]
    ids = Counter(o.data.tags['mlops_nb.id'] for o in ours)
    assert set(ids.values()) <= {1}, ids
    assert len(others) == own and {o.data.tags.get('mlflow.parentRunId') for o in others} <= {o.info.run_id for o in ours}, others
    return {o.data.tags['mlops_nb.id']: o for o in ours}


def sound(project, n, points=4):
    "What MLflow must have of `put_runs`, whatever happened: each run, param and point exactly once"
    found,settings = told(project), project.settings
    assert len(found) == 3*n, len(found)
    with project.ledger as ledger, talking_to(settings):
        client = client_of(settings)
        assert backlog(ledger, target_of(settings.mlflow)) == 0
        assert set(counts(ledger, target_of(settings.mlflow))) == {'done'}
        for row in ledger.runs(limit=10_000):
            run = found[row['id']]
            i = row['params']['fit.depth']
            assert run.info.status == ('FINISHED' if i % 5 else 'FAILED') and run.data.params == {'fit.depth': str(i)}, run
            for s in ledger.stage_runs(row['id']):
                stage = found[s['id']]
                assert stage.data.tags['mlflow.parentRunId'] == run.info.run_id and stage.info.end_time >= stage.info.start_time
                if s['stage'] != '02_fit': continue
                assert stage.data.params['depth'] == str(i) and stage.data.params['note'].endswith('(cut: 7,000 characters)')
                assert [o.dataset.digest for o in stage.inputs.dataset_inputs] == [f'{i:036x}'[:36] if i == 0 else f'{i:064x}'[:36]]
                history = [(o.step, o.value) for o in client.get_metric_history(stage.info.run_id, 'loss')]
                assert sorted(history) == sorted([(j, 1/(j+1)) for j in range(points)] + [(points-1, .5)]), history
                assert stage.data.metrics['loss'] == .5 and stage.data.metrics['nan'] != stage.data.metrics['nan']


# --- what is told

fit = """
with mlflow.start_run(run_name="mine"):
    mlflow.log_metric("own", 5)
    mlflow.log_param("C", C)
with mlflow.start_run(): mlflow.log_metric("second", 1)"""
auto = """
mlflow.sklearn.autolog(log_models=False)
from sklearn.linear_model import LogisticRegression
LogisticRegression(C=3).fit([[0],[1],[2],[3]], [0,0,1,1])"""


def test_a_run_is_told_by_itself(project):
    project.stage('01_data', 'rows: Out = "data/rows.csv"\ntoken: Secret = ""', 'assert token\nopen(rows, "w").write("a,b")', 'record(n=2)')
    project.stage('02_fit', 'rows: In = "data/rows.csv"\nC: float = 1.0', 'import mlflow', fit, 'for i in range(3): report(1/(i+1), i, "loss")', 'record(acc=.9, own=7)')
    project.stage('03_fail', 'rows: In = "data/rows.csv"', '1/0')
    project.stage('04_auto', 'x: int = 1', 'import mlflow', auto, 'record(a=x)')
    done = project.run('-p', f'token={secret}')
    assert done.code == 1, done
    assert project.quiet(60) == [] # the process that tells ends by itself
    found = told(project, own=1)
    assert last_status(project.state)['error'] == ''
    [run] = [o for o in found.values() if 'mlflow.parentRunId' not in o.data.tags]
    stages = {o.data.tags.get('mlops_nb.stage'): o for o in found.values() if o is not run}
    assert run.info.status == 'FAILED' and run.data.metrics == dict(n=2, acc=.9, own=7, a=1)
    assert {k: o.info.status for k,o in stages.items()} == {'01_data': 'FINISHED', '02_fit': 'FINISHED', '03_fail': 'FAILED', '04_auto': 'FINISHED'}
    assert 'ZeroDivisionError' in stages['03_fail'].data.tags['mlops_nb.error'] and '03_fail' in run.data.tags['mlflow.note.content']
    assert {o.data.tags['mlflow.parentRunId'] for o in stages.values()} == {run.info.run_id}
    mine,auto_ = stages['02_fit'],stages['04_auto']
    assert mine.info.run_name == 'mine' and mine.data.params == dict(C='1.0') and mine.data.metrics['own'] == 5 and mine.data.metrics['loss'] == 1/3 and mine.data.metrics['acc'] == .9
    assert [o.dataset.name for o in mine.inputs.dataset_inputs] == ['rows.csv']
    assert auto_.data.params['C'] == '3' and auto_.data.params['x'] == '1' and auto_.data.metrics['training_accuracy_score'] == 1
    assert not [o for o in project.state.rglob('*') if o.is_file() and secret.encode() in o.read_bytes()]
    assert not (project.root/'mlruns').exists() and not (project.folder/'mlruns').exists()


def test_a_study_is_told(project):
    project.stage('01_fit', 'x: float = 1', '#| tune\nfrom optuna.distributions import *\nspace = dict(x=FloatDistribution(-4, 4))', 'for i in range(3): report((x-2)**2 + i/10, i, "loss")\nrecord(loss=(x-2)**2)')
    done = project.cli('tune', 'demo/fit', '--metric', 'loss', '--trials', '50', '--jobs', '2', '--json')
    assert done.code == 0, done
    assert project.quiet(60) == []
    found = told(project)
    with project.ledger as ledger: rows = ledger.runs(limit=1000, study='demo-fit')
    assert len(rows) == 50 and len(found) == 51 # a trial of one stage is one run
    study = found['study:demo/demo-fit']
    assert study.info.status == 'FINISHED' and 'mlflow.parentRunId' not in study.data.tags
    assert {o['status'] for o in rows} == {'completed','pruned'}
    for o in rows:
        run = found[o['id']]
        assert run.data.tags['mlflow.parentRunId'] == study.info.run_id and run.info.run_name == f"trial {o['trial']}"
        assert run.info.status == dict(completed='FINISHED', pruned='KILLED')[o['status']]
        assert float(run.data.params['x']) == o['params']['fit.x'] and 'loss' in run.data.metrics


def test_a_run_that_was_killed(project):
    project.stage('01_wait', 'x: int = 1', 'import os, time\nopen("begun", "w").close()\nwhile os.path.exists("hold"): time.sleep(.05)')
    (project.folder/'hold').touch()
    p = project.start('run', 'demo')
    until((project.folder/'begun').exists)
    track(project.settings)
    assert {o.info.status for o in told(project).values()} == {'RUNNING'} # the run, and its stage if that isn't too young to be told
    p.kill()
    p.communicate()
    (project.folder/'hold').unlink()
    assert project.run().code == 0
    assert project.quiet(60) == []
    assert Counter(o.info.status for o in told(project).values()) == dict(KILLED=2, FINISHED=2)


def test_notebooks_and_plots_are_uploaded(project):
    put_mlflow(project, 'sqlite:///.mlops/mlflow.db', 'upload_artifacts = true')
    project.stage('01_plot', 'x: int = 1', 'from IPython.display import Image, display\ndisplay(Image(b"\\x89PNG\\r\\n\\x1a\\n", format="png"))')
    project.ok()
    assert project.quiet(90) == []
    [stage] = [o for o in told(project).values() if 'mlops_nb.stage' in o.data.tags]
    place = project.state/'mlartifacts'/'demo'/stage.info.run_id/'artifacts'
    assert {str(o.relative_to(place)) for o in place.rglob('*') if o.is_file()} == {'01_plot.ipynb', '01_plot.html', 'plots/cell-003-1.png'}


# --- to whom

def test_a_server(project, server):
    put_runs(put_mlflow(project, server.url), 12)
    assert track(project.settings)['left'] == 0
    sound(project, 12)
    assert track(project.settings, again=True)['sent'] == 36
    sound(project, 12)


def test_a_server_that_asks_who_we_are(project, tmp_path):
    (tmp_path/'server').mkdir()
    (tmp_path/'server'/'auth.ini').write_text(f'[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/server/auth.db\nadmin_username = admin\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n')
    server = MlflowServer(tmp_path/'server', '--app-name', 'basic-auth', MLFLOW_AUTH_ADMIN_PASSWORD=secret, MLFLOW_FLASK_SERVER_SECRET_KEY='of-the-test', MLFLOW_AUTH_CONFIG_PATH=str(tmp_path/'server'/'auth.ini')).start()
    try:
        put_runs(put_mlflow(project, server.url.replace('://', f'://admin:{secret[:-1]}@')), 2)
        with pytest.raises(MlopsError) as e: track(project.settings)
        assert secret[:-1] not in str(e.value) and 'authenticated' in str(e.value)
        done = project.cli('doctor')
        assert '2 runs wait' in done.out and secret[:-1] not in done.text
        put_mlflow(project, server.url.replace('://', '://admin:${PASSWORD}@'))
        project.stage('01_own', 'x: int = 1', 'import mlflow\nmlflow.log_metric("own", 1)', 'record(a=x)')
        assert project.run(PASSWORD=secret).code == 0
        assert project.quiet(60) == []
        os.environ['PASSWORD'] = secret
        found = told(project)
        assert len(found) == 8 # the two of before, whose password was wrong, too
        [own] = [o for o in found.values() if 'own' in o.data.metrics]
        assert own.data.tags['mlops_nb.stage'] == '01_own' and own.data.metrics['a'] == 1
        assert not [o for o in project.state.rglob('*') if o.is_file() and secret.encode() in o.read_bytes()]
        assert secret.encode() not in (server.folder/'server.db').read_bytes()
    finally:
        os.environ.pop('PASSWORD', None)
        server.kill()


# --- whatever is killed

def begin_track(project): return project.start('track', '--json')


def test_the_server_goes_and_comes_back(project, server):
    put_runs(put_mlflow(project, server.url), 30, points=20)
    with talking_to(project.settings):
        before = len(runs_in(project.settings))
        p = begin_track(project)
        until(lambda: p.poll() is not None or len(runs_in(project.settings)) > before + 12)
    server.kill()
    done = project.wait(p)
    assert done.code == 1 and "MLflow can't be told" in done.json['error']['what'], done
    assert project.cli('doctor').code == 1
    nudge(project.settings) # somebody is sent, finds nobody, and ends
    assert project.cli('track').code == 1
    server.start()
    with project.ledger as ledger: until(lambda: nudge(project.settings) or not backlog(ledger, target_of(project.settings.mlflow)), 90)
    until(lambda: not project.processes(), 60)
    sound(project, 30, 20)


def test_who_tells_is_killed_again_and_again(project):
    put_runs(project, 60, points=5)
    track_first = begin_track(project) # makes the database: who is killed at that leaves half of one, which is MLflow's
    until(lambda: tracked_some(project))
    track_first.kill()
    track_first.communicate()
    rng,kills = random.Random(1), 1
    while kills < 6:
        p = begin_track(project)
        with suppress(subprocess.TimeoutExpired):
            p.wait(rng.uniform(1.2, 2.5))
            break
        p.kill()
        p.communicate()
        kills += 1
    assert project.cli('track').code == 0
    sound(project, 60, 5)


def tracked_some(project):
    "Has anything been noted?"
    with project.ledger as ledger: return counts(ledger, target_of(project.settings.mlflow))


def is_busy(project):
    "Does somebody empty the outbox?"
    with forwarding(project.state) as free: return not free


def test_asked_while_a_run_goes_on(project):
    "Who tells in the background gives way to who asks, and somebody goes on after that"
    project.stage('01_wait', 'out: Out = "data/o.txt"', 'import os, time\nwhile not os.path.exists("../../../go"): time.sleep(.05)', 'record(x=1)\nopen(out, "w").write("1")')
    p = project.start('run', 'demo')
    try:
        until(lambda: is_busy(project), 60)
        done = project.cli('track', '--json')
        assert done.code == 0 and done.json['left'] == 1 and p.poll() is None, done
    finally: (project.root/'go').write_text('')
    assert project.wait(p).code == 0
    with project.ledger as ledger: until(lambda: not backlog(ledger, target_of(project.settings.mlflow)), 60)
    assert not project.quiet(60)


def test_five_are_sent_at_once(project):
    put_runs(project, 10)
    from mlops_nb.outbox import start_forwarder
    crew = [start_forwarder(project.settings) for _ in range(5)]
    assert [o.wait(60) for o in crew] == [0]*5
    sound(project, 10)


def test_two_machines_share_a_ledger(tmp_path, server, postgres):
    "Two projects stand for two machines: a lock of one says nothing to the other"
    from mlops_nb.outbox import start_forwarder
    url = postgres.make('a_track')
    both = [put_mlflow(Project(tmp_path/o), server.url, f'ledger = {url}') for o in 'ab']
    put_runs(both[0], 10)
    assert {o.wait(90) for o in [start_forwarder(o.settings) for o in both*2]} == {0}
    sound(both[0], 10)


# --- the pages

def test_the_pages_are_for_whoever_has_the_token(project):
    put_runs(project, 1)
    track(project.settings)
    p = project.start('ui', '--port', '0')
    try:
        url = p.stdout.readline().split()[-1]
        assert p.stdout.readline() == 'Ctrl-C ends it.\n'
        base,_,token = url.partition('/?token=')
        def ask(path, **headers):
            try: return urllib.request.urlopen(urllib.request.Request(base+path, headers=headers), timeout=30)
            except urllib.error.HTTPError as e: return e
        assert [ask(o).status for o in ('/', '/api/2.0/mlflow/experiments/search?max_results=9', '/?token=x')] == [403]*3
        assert ask('/', Authorization=f'token {token}').status == 200
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        page = browser.open(url)
        assert b'MLflow' in page.read() and 'token' not in page.url
        assert 'demo' in str(json.load(browser.open(f'{base}/ajax-api/2.0/mlflow/experiments/search?max_results=9')))
    finally:
        p.send_signal(signal.SIGINT)
        out,err = p.communicate(timeout=30)
    assert p.returncode == 0 and 'Traceback' not in err, err
    assert project.quiet(10) == []
