"""Packages become versions once, wherever MLflow is and whoever is killed; a foreign process foretells the same; what was tampered with isn't loaded"""
import json, os, random, signal, subprocess, sys

import pandas as pd
import pytest

pytest.importorskip('mlflow')
from mlops_nb.core import DamagedError, ModelError, StoreError
from mlops_nb.package import load_package
from mlops_nb.plan import Workspace
from mlops_nb.registry import Registry, answering, needed, register_run
from mlflow_server import MlflowServer, foreign, plain_mlflow
from scratch import Project

serve = '''
from features import made
def predict(model, rows, shift): return model.predict(made(rows, shift))
'''
features = '''
def made(rows, shift): return rows[["x"]]*{factor} + shift["by"].iloc[0]
'''
checks = '''
import pandera.pandas as pa
class Line(pa.DataFrameModel):
    x: float = pa.Field(ge=0, le=100)
    note: str = pa.Field(nullable=True)
    y: float
    @pa.dataframe_check(error="only small numbers have notes")
    def noted(cls, df): return df.note.isna() | (df.x < 50)
'''
train = '''
import pandas as pd
from checks import Line
from sklearn.linear_model import LinearRegression
from mlops_nb import Model
from mlops_nb.package import save_model
from features import made
rows = pd.DataFrame(dict(x=[1., 2., 3.], note=["a", "b", None]))
shift = pd.DataFrame(dict(by=[.5]))
model = LinearRegression().fit(made(rows, shift), [slope*1., slope*2., slope*3.])
save_model(package, model, "serve:predict", rows, tables=dict(shift=shift), reference=rows.assign(y=[1., 2., 3.]), outcome="y", purpose="A line.", schema=Line)
record(slope=slope)
'''
evaluate = 'from pathlib import Path\nassert (Path(package)/"MLmodel").exists()\nPath(told).write_text(str(fine))\nassert fine'
rows = pd.DataFrame(dict(x=[4., 5.5], note=['c', None]))


def make(root, mlflow):
    "A project whose second stage trains a line, and whose third looks at it"
    p = Project(root, f'[DEFAULT]\nmlflow = {mlflow}\n')
    (p.folder/'serve.py').write_text(serve)
    (p.folder/'checks.py').write_text(checks)
    (p.folder/'features.py').write_text(features.format(factor=1))
    p.stage('01_train', 'slope: float = 2.0\npackage: "Model" = "data/line"', train)
    p.stage('02_evaluate', 'package: In = "data/line"\nfine: bool = True\ntold: Out = "data/told.txt"', evaluate)
    return p


@pytest.fixture
def project(tmp_path):
    p = make(tmp_path/'project', 'sqlite:///.mlops/mlflow.db')
    yield p
    p.put_away()


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with MlflowServer(tmp_path_factory.mktemp('mlflow')) as s: yield s


def check_life(p, tracking, elsewhere):
    "A run registers, a cached one doesn't, a changed one does; each version foretells what its package does, here and elsewhere"
    first = p.ok()
    assert first.json['models'] == [dict(name='demo', version=1, new=True)]
    assert p.did().json['models'] == [dict(name='demo', version=1, new=False)]
    assert p.did('-p', 'slope=3').json['models'] == [dict(name='demo', version=2, new=True)]
    ws = Workspace(p.settings)
    r = Registry(ws)
    one, two = r.version('demo', 1), r.version('demo')
    with answering(p.settings):
        for k in ('run', 'digest', 'name'): r.client.set_model_version_tag('demo', '1', k, 'of somebody else')
    one = r.version('demo', 1)
    assert one.as_json()['name'] == 'demo' and one.run == first.json['run'] and one.metrics == dict(slope=2.) and two.metrics == dict(slope=3.)
    assert one.digest == p.rows(stage='01_train')[0]['outputs']['package']['digest']
    with answering(p.settings): r.client.set_registered_model_alias('demo', 'champion', '1')
    mine = [list(r.load(o).predict(rows)) for o in ('demo@champion', 'demo/2')]
    assert [round(o) for o in mine[0]] == [8, 11] and [round(o) for o in mine[1]] == [12, 16]
    assert [plain_mlflow(elsewhere, o, rows, tracking) for o in ('models:/demo@champion', 'models:/demo/2')] == mine
    assert r.load('demo/2').check([dict(x=-1., note=None), dict(x=60, note='a'), dict(x=4)]) == [(0, 'x', 'must be at least 0, not -1.0'), (1, '', 'the contract says: only small numbers have notes'), (2, 'note', 'is missing')]
    assert {one.digest, two.digest} <= needed(ws)
    listed = p.inside('models', '--json').json['models']
    assert [(o['name'], o['versions'], o['champion']) for o in listed] == [('demo', 2, 1)]
    assert [o['version'] for o in p.inside('models', 'demo', '--json').json['versions']] == [2, 1] and '2013' not in p.inside('models', 'demo').err
    assert p.inside('models', 'dem').code == 2 and "no model 'dem' is registered" in p.inside('models', 'dem').err
    return ws, r


def test_over_a_database(project, tmp_path):
    ws, r = check_life(project, project.settings.mlflow, tmp_path/'elsewhere')
    for v in r.versions('demo'): assert ws.store.verify(v.artifact), 'what MLflow leaves beside a model is not in the store'
    assert not project.quiet(60)


def test_over_a_server(server, tmp_path):
    p = make(tmp_path/'project', server.url)
    try:
        ws, r = check_life(p, server.url, tmp_path/'elsewhere')
        other = make(tmp_path/'other', server.url)
        there = Registry(Workspace(other.settings))
        assert list(there.load('demo@champion').predict(rows)) == list(r.load('demo/1').predict(rows)), 'a machine that has never seen the run'
        assert not p.quiet(60)
    finally: p.put_away()


def test_two_versions_with_their_own_features(project):
    project.did()
    (project.folder/'features.py').write_text(features.format(factor=10))
    assert project.did().json['models'] == [dict(name='demo', version=2, new=True)]
    r = Registry(Workspace(project.settings))
    one, two = r.load('demo/1'), r.load('demo/2')
    assert [round(o) for p in (one, two, one) for o in p.predict(rows)] == [8, 11]*3
    assert [round(o) for o in one.predict(rows, shift=pd.DataFrame(dict(by=[1.5])))] == [10, 13]
    assert [round(o, 1) for o in two.predict(rows, shift=pd.DataFrame(dict(by=[1.5])))] == [8.2, 11.2]


def test_nobody_answers_and_the_run_is_done_all_the_same(project):
    (project.root/'settings.ini').write_text('[DEFAULT]\nmlflow = http://ann:hunter2@127.0.0.1:9\n')
    done = project.did()
    [told] = done.json['models']
    assert 'problem' in told and told['remedy'] == f"mlops-nb register {done.json['run']}" and 'hunter2' not in done.text
    assert project.inside('register').code == 1
    (project.root/'settings.ini').write_text('[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\n')
    both = [project.start('register', done.json['run'], '--json') for _ in range(2)]
    found = [project.wait(o) for o in both]
    assert sorted(o.json['models'][0]['new'] for o in found) == [False, True], found
    assert [o.number for o in Registry(Workspace(project.settings)).versions('demo')] == [1]


def test_only_a_completed_run_and_a_real_package(project):
    assert project.run('-p', 'fine=false').code == 1
    with pytest.raises(ModelError, match='only what a completed run made'): register_run(Workspace(project.settings), 'last')
    project.stage('01_train', 'slope: float = 2.0\npackage: "Model" = "data/line"', 'import os\nos.makedirs(package)\nopen(package+"/model.txt", "w").write("a line")')
    assert project.run().code == 1
    assert 'is no model package' in project.rows(stage='01_train')[-1]['error']['what']
    assert not Registry(Workspace(project.settings)).names()


def test_killed_while_registering(project, tmp_path):
    "Whenever it is killed: the next one ends with one version"
    (project.root/'settings.ini').write_text('[DEFAULT]\nmlflow = none\n')
    run = project.did().json['run']
    (project.root/'settings.ini').write_text('[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\n')
    def looks(): return (project.state/'mlflow.db').exists()
    for i in range(4):
        p = project.start('register', run)
        if i % 2: project.until(looks)
        try: p.wait(random.uniform(0, 6))
        except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
    done = project.cli('register', run, '--json')
    assert done.code == 0, done
    r = Registry(Workspace(project.settings))
    assert [o.number for o in r.versions('demo')] == [1] and round(r.load('demo/1').predict(rows)[0]) == 8


def test_tampered(project):
    project.did()
    ws = Workspace(project.settings)
    r = Registry(ws)
    v = r.version('demo')
    path, copy = ws.store.path(v.artifact), next(project.state.glob('models/*/line'))
    def spoil(file, **how):
        st = file.stat()
        os.chmod(file, 0o644)
        file.write_bytes(bytes(reversed(file.read_bytes())))
        os.chmod(file, 0o444)
        os.utime(file, ns=(st.st_atime_ns, st.st_mtime_ns))
    spoil(path/'project'/'serve.py') # its size and its time are what they were
    with pytest.raises(DamagedError, match='should be'): load_package(path, v.digest)
    assert round(r.load('demo').predict(rows)[0]) == 8, 'the copy takes its place'
    spoil(ws.store.path(v.artifact)/'model.skops')
    spoil(copy/'model.skops')
    with pytest.raises(StoreError, match='not those that were registered'): r.load('demo')
    with answering(project.settings) as address:
        done = subprocess.run([sys.executable, '-c', foreign, 'models:/demo/1', rows.to_json(orient='records')], cwd=project.root, text=True, capture_output=True, timeout=120)
    assert done.returncode and 'model.skops changed' in done.stderr


def test_what_a_version_needs_is_not_garbage(project):
    for o in (2, 3, 4): project.did('-p', f'slope={o}')
    ws = Workspace(project.settings)
    r = Registry(ws)
    done = project.inside('gc', '--keep', '1', '--yes', '--json')
    assert done.code == 0, done
    assert [round(r.load(f'demo/{o}').predict(rows)[0]) for o in (1, 2, 3)] == [8, 12, 16]
    assert needed(ws) and all(ws.store.has(o.artifact) for o in r.versions('demo'))
