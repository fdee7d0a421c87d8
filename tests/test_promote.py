"""Gates and promotions: a worse model is refused, two promotions at once, a kill in the middle, back again"""
import os, secrets, subprocess, sys

import pandas as pd
import pytest

pytest.importorskip('mlflow')
from mlops_nb.promote import history, holder, package_path, workplace
from mlops_nb.registry import answering, register_run
from mlops_nb.report import outside_requests
from mlflow_server import MlflowServer, plain_mlflow
from scratch import Project, mark

gates = '''#| gate Better than the naive forecast
record(gain=0.1*quality)
assert quality > 0, f"{quality=} is no better than nothing"''', '''#| gate Small
size_mb = 3
assert size_mb < 9
f"{size_mb} MB"''', '''#| gate Sane
assert quality != 13, nonsense'''


@pytest.mark.parametrize('engine', ['snapshot', 'papermill'])
def test_a_gate_that_refuses_ends_nothing(tmp_path, engine):
    p = Project(tmp_path/'p', settings=f'[DEFAULT]\nengine = {engine}\n')
    p.stage('01_evaluate', 'quality: int = 1\ndone: Out = "data/done.txt"', *gates, 'open(done, "w").write("to the end"); record(last=1)')
    assert [o['ok'] for o in p.did().json['gates']] == [True]*3
    done = p.did('-p', 'quality=-1')
    assert done.statuses == {'01_evaluate': 'completed'} and (p.data/'done.txt').read_text() == 'to the end'
    bad, small, sane = p.rows()[-1]['gates']
    assert (bad['name'], bad['ok'], bad['text'], bad['rule'], bad['figures'], bad['cell']) == ('Better than the naive forecast', False, 'quality=-1 is no better than nothing', 'quality > 0', {'gain': -.1}, 3)
    assert small['ok'] and small['value'] == "'3 MB'" and sane['ok']
    assert p.rows()[-1]['metrics'] == {'gain': -.1, 'last': 1}
    assert [o['ok'] for o in p.did('-p', 'quality=13').json['gates']] == [True, True, False] and 'NameError' in p.rows()[-1]['gates'][2]['text']
    again = p.did('-p', 'quality=-1')
    assert again.statuses == {'01_evaluate': 'cached'} and again.json['gates'] == done.json['gates']
    said = p.cli('run', 'demo', '-p', 'quality=-1').text
    assert 'REFUSES  Better than the naive forecast: quality=-1' in said and 'holds  Small' in p.cli('show').text
    assert p.quiet(60) == []


def test_what_stands_above_a_gate_may_not_fail(tmp_path):
    p = Project(tmp_path/'p')
    p.stage('01_evaluate', 'quality: int = 1', 'assert quality > 1, "no gate"', gates[0])
    assert p.run().code == 1
    row, = p.rows()
    assert row['status'] == 'failed' and [(o['ok'], o['text']) for o in row['gates']] == [(False, 'the notebook ended before it')]


library = '''import numpy as np

def predict(model, rows):
    return model.predict(rows[['x']])
'''
train = '''import numpy as np, pandas as pd
from sklearn.linear_model import LinearRegression
from mlops_nb.package import save_model
x = np.linspace(0, 1, 200)
rows = pd.DataFrame(dict(x=x, kind=np.where(x > .5, 'big', 'small')))
fitted = LinearRegression().fit(rows[['x']], 2*x + bias)
p = save_model(model, fitted, 'judging:predict', rows.head(3)[['x']], reference=rows.assign(y=2*x), outcome='y', purpose='Doubles a <b>number</b>.', limits='Nothing but doubling.')
record(bias=bias)'''
compare = ['''from mlops_nb.gate import load_champion, paired_bootstrap
from mlops_nb.package import load_package
rows = load_package(model).reference
def losses(p): return (p.predict(rows) - rows.y)**2
mine, best = losses(load_package(model)), load_champion(champion)''', '''#| gate Better than nothing
record(mse=mine.mean())
assert mine.mean() < most, f"{mine.mean():.3g} is no better than {most}"''', '''#| gate Not worse than the champion
gain = paired_bootstrap(losses(best), mine) if best else None
assert gain is None or gain.high >= 0, f"the loss grew by {-gain.mean:.3g}"
gain''']


def registered(tmp_path, settings='', gates=compare):
    "A project whose run makes a model, and gates that judge it"
    here = '' if 'mlflow' in settings else 'mlflow = sqlite:///.mlops/mlflow.db\n'
    p = Project(tmp_path/'p', settings=f'[DEFAULT]\n{here}{settings}\n')
    (p.folder/'judging.py').write_text(library)
    (p.folder/'raw.txt').write_text('numbers')
    p.stage('01_train', 'from mlops_nb import Model\nraw: In = "raw.txt"\nbias: float = 0.5\nmodel: Model = "data/model"', train)
    p.stage('02_evaluate', 'model: In = "data/model"\nchampion: In = "models:/demo@champion"\nmost: float = 0.9\ndone: Out = "data/done.txt"', *gates, 'open(done, "w").write("done")')
    return p


def versions_of(p, *biases):
    "Run with each bias; the numbers of the versions that came of it"
    return [o['models'][0]['version'] for o in p.did('--each', f"bias={','.join(map(str, biases))}").json['runs']]


def version_of(p, bias):
    "The number of the version that a bias gives"
    return versions_of(p, bias)[0]


def champion_of(p):
    "Who is champion: for the ledger, and for the registry"
    ws, registry = workplace(p.settings)
    row = holder(ws, 'demo')
    return row and row['version'], registry.alias('demo', 'champion')


def script(p, body):
    "A process that promotes, with something done to it on the way"
    head = 'import os, signal, sys, time\nfrom pathlib import Path\nfrom mlops_nb import promote as p\nfrom mlops_nb.config import load_settings\nsettings = load_settings(".")\ndef die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)\n'
    return subprocess.Popen([sys.executable, '-c', head+body], cwd=p.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, mark: p.mark})


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with MlflowServer(tmp_path_factory.mktemp('mlflow')) as s: yield s


@pytest.fixture
def target(request, tmp_path):
    "The settings for a registry: a file, a server, or PostgreSQL, which then keeps the ledger too"
    if request.param == 'sqlite': return ''
    if request.param == 'server': return f"mlflow = {request.getfixturevalue('server').url}"
    url = request.getfixturevalue('postgres_server').make(f'of_{secrets.token_hex(4)}')
    return f'ledger = {url}\nmlflow = {url}'


def on(*targets): return pytest.mark.parametrize('target', targets, indirect=True)


@on('sqlite', 'server', 'postgres')
def test_promote_refuse_roll_back_and_audit(tmp_path, target):
    p = registered(tmp_path, target)
    do = p.inside if target else p.cli
    one, two, three, bad = versions_of(p, .5, .1, .3, .8)
    said = do('promote', 'demo', '--version', str(one), '--json')
    assert said.code == 0, said
    assert said.json['status'] == 'promoted' and champion_of(p) == (one, one)
    worse = do('promote', 'demo', '--version', str(three), '--json') # better than the first
    assert worse.json['status'] == 'promoted' and champion_of(p) == (three, three)
    refused = do('promote', 'demo')
    assert refused.code == 1 and f'REFUSES  Not worse than the champion: the loss grew by' in refused.out and 'was refused; champion is version 3' in refused.out
    assert champion_of(p) == (three, three)
    assert do('promote', 'demo', '--version', str(two), '--json').json['status'] == 'promoted' and champion_of(p) == (two, two)
    assert do('promote', 'demo', '--version', str(two), '--json').json['status'] == 'unchanged'
    assert do('rollback', 'demo', '--reason', 'pagers', '--json').json['champion'] == three and champion_of(p) == (three, three)
    assert do('rollback', 'demo', '--json').json['champion'] == one
    end = do('rollback', 'demo')
    assert end.code == 2 and 'is the first champion' in end.err
    assert 'override needs a reason' in do('promote', 'demo', '--override').err
    over = do('promote', 'demo', '--version', str(bad), '--override', '--reason', 'the boss [says] so')
    assert over.code == 0 and 'though the gates were overridden' in over.out and champion_of(p) == (bad, bad)
    told = do('audit', 'demo', '--json').json['history']
    assert [(o['what'], o['from'], o['to']) for o in told] == [('promoted', None, one), ('promoted', one, three), ('refused', three, bad), ('promoted', three, two), ('rolled_back', two, three),
        ('rolled_back', three, one), ('promoted', one, bad)]
    assert told[2]['gates'][1]['text'].startswith('the loss grew') and told[2]['evidence_run'] and told[2]['inputs']['02_evaluate']['champion'] == told[1]['digest'] and told[4]['reason'] == 'pagers'
    assert told[6]['override'] and told[6]['reason'] == 'the boss [says] so' and all(o['who'] and o['host'] and o['time'] for o in told)
    text = do('audit', 'demo').out
    assert 'OVERRIDE: the boss [says] so' in text and 'Not worse than the champion' in text
    assert "has no version 99" in do('promote', 'demo', '--version', '99').err and "no model 'nobody'" in do('promote', 'nobody').err
    assert do('models', '--json').json['models'][0]['champion'] == bad
    said = plain_mlflow(tmp_path/'elsewhere', 'models:/demo@champion', pd.DataFrame(dict(x=[1., 2.])), p.settings.mlflow)
    assert said == list(workplace(p.settings)[1].load('demo@champion').predict(pd.DataFrame(dict(x=[1., 2.])))) and round(said[0], 6) == 2.8
    assert not any('hush' in (p.root/o).read_text(errors='ignore') for o in p.state.rglob('*') if o.is_file()), 'the password of a database is in no file'
    lineage = p.rows(stage='02_evaluate')[-1]['inputs']['champion']
    assert lineage['path'] == 'models:/demo@champion' and lineage['kind'] == 'source'
    assert p.quiet(60) == []


def test_the_gates_judge_what_the_run_has_made(tmp_path):
    p = registered(tmp_path)
    one, = versions_of(p, .5)
    source = (p.folder/'01_train.ipynb').read_text()
    (p.folder/'01_train.ipynb').write_text(source.replace('2*x + bias', '2*x + 100*bias')) # what training would make today
    (p.folder/'raw.txt').unlink() # and it couldn't
    (p.data/'done.txt').write_text('mine')
    assert p.inside('promote', 'demo', '--json').json['status'] == 'promoted'
    assert (p.data/'done.txt').read_text() == 'mine' and [o['status'] for o in p.rows(stage='01_train')] == ['completed'] # neither trained nor published
    (p.folder/'02_evaluate.ipynb').write_text((p.folder/'02_evaluate.ipynb').read_text().replace('< most', '< 0.001')) # but the policy is that of today
    (p.folder/'raw.txt').write_text('numbers')
    versions_of(p, .2)
    two = p.inside('promote', 'demo', '--json').json
    assert [o['ok'] for o in two['judgement']['gates']] == [False, False]
    (p.folder/'02_evaluate.ipynb').write_text((p.folder/'02_evaluate.ipynb').read_text().replace('#| gate', '# gate'))
    none = p.inside('promote', 'demo')
    assert none.code == 2 and 'has no gates' in none.err and champion_of(p) == (one, one)


def test_no_way_around_the_gates(tmp_path):
    p = registered(tmp_path)
    assert versions_of(p, .95) == [1]
    refused = p.cli('promote', 'demo', PYTHONOPTIMIZE='1') # Python leaves out asserts
    assert refused.code == 1 and 'REFUSES  Better than nothing: 0.902 is no better than 0.9' in refused.out
    assert p.ok('-p', 'bias=0.96', PYTHONOPTIMIZE='1').json['gates'][0]['ok'] is False
    ws, registry = workplace(p.settings)
    registry.set_alias('demo', 'champion', 1) # by hand
    again = p.cli('promote', 'demo', '--version', '1')
    assert again.code == 1 and 'its alias was taken away' in again.out and champion_of(p) == (None, None)
    with answering(p.settings): strange = registry.client.create_model_version('demo', source='file:///nowhere').version
    registry.set_alias('demo', 'champion', int(strange)) # a version of somebody else
    assert versions_of(p, .5) == [4]
    good = p.cli('promote', 'demo', '--version', '4')
    assert good.code == 0 and "wasn't even registered by a project" in good.out and champion_of(p) == (4, 4)
    assert [(o['what'], o['to']) for o in p.cli('audit', 'demo', '--json').json['history']] == [('refused', 1), ('repaired', None), ('refused', 1), ('repaired', None), ('promoted', 4)]
    assert '1 → –' not in p.cli('audit', 'demo').out


def test_gates_that_look_at_another_package_say_nothing_of_this_one(tmp_path):
    p = registered(tmp_path)
    second = "\nsave_model(other, LinearRegression().fit(rows[['x']], 100*x), 'judging:predict', rows.head(3)[['x']], name='other')"
    p.stage('01_train', 'from mlops_nb import Model\nbias: float = 0.5\nmodel: Model = "data/model"\nother: Model = "data/other"', train + second)
    assert {o['name'] for o in p.ok().json['models']} == {'demo', 'other'}
    other = p.cli('promote', 'other')
    assert other.code == 1 and 'no gate has looked at the package: read it in 02_evaluate, as an In' in other.out
    assert p.cli('promote', 'demo').code == 0


def test_a_version_of_a_partial_run_is_judged_once_the_whole_run_is_known(tmp_path):
    p = registered(tmp_path)
    p.stage('00_first', 'first: Out = "data/first.txt"', 'open(first, "w").write("x")')
    p.stage('02_evaluate', 'first: In = "data/first.txt"\nmodel: In = "data/model"\nchampion: In = "models:/demo@champion"\nmost: float = 0.9\ndone: Out = "data/done.txt"', *compare, 'open(done, "w").write("done")')
    assert p.ok('--only', '01_train').json['models'][0]['new']
    alone = p.cli('promote', 'demo')
    assert alone.code == 2 and 'nothing that 00_first made is known' in alone.err and 'run the whole pipeline' in alone.err
    assert p.ok().json['models'] == [dict(name='demo', version=1, new=False)]
    assert p.cli('promote', 'demo').code == 0 and champion_of(p) == (1, 1)
    assert p.cli('audit', 'demo', '--json').json['history'][-1]['inputs']['02_evaluate']['first']
    v = workplace(p.settings)[1].version('demo')
    assert {'bias', 'mse'} <= v.metrics.keys() and f'run.{p.rows()[0]["run_id"]}' in v.tags and v.run != p.rows()[0]['run_id'] # it is told what the whole run knows


def test_a_champion_is_read_only_if_it_is_what_was_registered(tmp_path):
    p = registered(tmp_path)
    versions_of(p, .5)
    assert p.cli('promote', 'demo').code == 0
    ws, registry = workplace(p.settings)
    about = next(o for o in (p.state/'store'/'objects').rglob('about.json') if not o.parent.is_symlink())
    told = about.read_text()
    about.chmod(0o644)
    about.write_text(told.replace('Doubles', 'Trebles')) # its size is what it was
    about.chmod(0o444)
    found = package_path(ws, 'demo', 'champion')
    assert (found/'about.json').read_text() == told and list((p.state/'store'/'damaged').iterdir())


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "A project with two versions, the second one better; copied by those who go on with it"
    p = registered(tmp_path_factory.mktemp('pair'))
    assert versions_of(p, .5, .1) == [1, 2] and p.quiet(60) == []
    return p


@on('sqlite', 'postgres')
def test_of_two_at_once_one_wins(tmp_path, target, pair):
    p = registered(tmp_path, target) if target else pair.copied_to(tmp_path/'p')
    first, second = versions_of(p, .5, .1) if target else (1, 2)
    meet = 'settle = p.settle\ndef wait(*args):\n    Path(f"at{sys.argv[0]}{os.getpid()}.here").touch()\n    while len(list(Path(".").glob("at*.here"))) < 2: time.sleep(.01)\n    return settle(*args)\np.settle = wait\n'
    both = [script(p, meet + f'print(p.promote(settings, "demo", {o}).status)') for o in (first, second)]
    said = sorted(o.communicate(timeout=120)[0].strip() for o in both)
    assert said == ['overtaken', 'promoted']
    told = p.cli('audit', 'demo', '--json').json['history']
    assert sorted(o['what'] for o in told) == ['overtaken', 'promoted']
    winner = next(o['to'] for o in told if o['what'] == 'promoted')
    assert champion_of(p) == (winner, winner) and p.quiet(60) == []


def promoted(pair, root, version=1):
    "A copy of a project with two versions, one of them champion"
    p = pair.copied_to(root)
    assert p.inside('promote', 'demo', '--version', str(version)).code == 0 and champion_of(p) == (version, version)
    return p


def test_a_registry_made_anew_has_no_champion_by_its_number(tmp_path, pair):
    p = promoted(pair, tmp_path/'p')
    first, second = (workplace(p.settings)[1].version('demo', o) for o in (1, 2))
    (p.root/'settings.ini').write_text((p.root/'settings.ini').read_text().replace('mlflow.db', 'new.db'))
    assert p.inside('register', second.run, '--json').json['models'] == [dict(name='demo', version=1, new=True)] # another package with the champion's number
    lost = p.inside('promote', 'demo')
    assert lost.code == 2 and "isn't in this registry" in lost.err and f'mlops-nb register {first.run}' in lost.err, lost
    assert p.inside('rollback', 'demo').code == 2 and champion_of(p) == (1, None)
    listed = p.inside('models', '--json')
    assert listed.code == 0 and listed.json['models'][0]['champion'] is None and "isn't in this registry" in listed.err
    assert p.inside('register', first.run, '--json').json['models'][0]['version'] == 2
    assert p.inside('models', '--json').json['models'][0]['champion'] == 2 and champion_of(p) == (2, 2)
    assert holder(workplace(p.settings)[0], 'demo')['package']['digest'] == first.digest
    assert p.inside('promote', 'demo', '--version', '2', '--json').json['status'] == 'unchanged'
    assert p.inside('promote', 'demo', '--version', '1', '--json').json['status'] == 'promoted' and champion_of(p) == (1, 1)
    assert p.inside('rollback', 'demo', '--json').json['champion'] == 2 and champion_of(p) == (2, 2)


def test_a_champion_by_hand_passes_no_gate(tmp_path, pair):
    p = pair.copied_to(tmp_path/'p')
    ws, registry = workplace(p.settings)
    registry.set_alias('demo', 'champion', 2)
    listed = p.inside('models')
    assert 'nobody has promoted it' in listed.err and champion_of(p) == (None, 2) # a listing takes nothing away
    said = p.inside('promote', 'demo', '--version', '1')
    assert said.code == 0 and 'its alias was taken away' in said.out and champion_of(p) == (1, 1)
    assert [o['kind'] for o in history(ws, 'demo')] == ['repaired', 'promoted']


def test_a_model_has_one_ledger(tmp_path, pair):
    p = promoted(pair, tmp_path/'p')
    moved = p.copied_to(tmp_path/'moved') # the same ledger, wherever it is
    other = p.copied_to(tmp_path/'other')
    for o in other.state.glob('ledger.db*'): o.unlink()
    for o in (moved, other): (o.root/'settings.ini').write_text((p.root/'settings.ini').read_text().replace('sqlite:///.mlops', f'sqlite:///{p.state}'))
    for args in (('promote', 'demo', '--version', '2', '--override', '--reason', 'mine'), ('rollback', 'demo')):
        done = other.inside(*args)
        assert done.code == 2 and 'another ledger' in done.err and str(p.state/'ledger.db') in done.err and 'ledger = ' in done.err, done
    assert champion_of(p) == (1, 1) and other.inside('models', '--json').json['models'][0]['champion'] == 1
    assert moved.inside('promote', 'demo', '--version', '2').code == 0


@pytest.mark.parametrize('command', ['models', 'audit demo', 'run demo', 'card demo'])
def test_what_a_killed_promotion_left_is_finished_by_whoever_comes(tmp_path, pair, command):
    p = promoted(pair, tmp_path/'p')
    assert script(p, 'p.bring_in_step = die\np.promote(settings, "demo")').wait(120) == -9 and champion_of(p) == (2, 1)
    if command == 'audit demo':
        assert 'says 1' in p.inside('doctor').out and champion_of(p) == (2, 1)
        os.rename(p.state/'mlflow.db', p.state/'elsewhere.db')
        (p.state/'mlflow.db').mkdir() # the registry can't be used
        said = p.inside('audit', 'demo')
        assert said.code == 0 and 'hasn\'t heard' in said.err, said
        os.rmdir(p.state/'mlflow.db')
        os.rename(p.state/'elsewhere.db', p.state/'mlflow.db')
    assert p.cli(*command.split()).code == 0 and champion_of(p) == (2, 2)
    assert p.quiet(60) == []


def test_the_same_champion_again_is_another_event(tmp_path, pair):
    p = promoted(pair, tmp_path/'p')
    there_and_back = """settle = p.settle
def between(*args):
    p.settle = settle
    p.promote(settings, "demo", 2, True, "why not")
    p.rollback(settings, "demo")
    return settle(*args)
p.settle = between
print(p.promote(settings, "demo").status)"""
    assert script(p, there_and_back).communicate(timeout=120)[0].strip() == 'overtaken' and champion_of(p) == (1, 1)


def test_an_overtaken_rollback_is_remembered(tmp_path, pair):
    p = promoted(promoted(pair, tmp_path/'first'), tmp_path/'p', 2)
    meanwhile = """moved = p.move
def between(*args, **told):
    p.move = moved
    p.rollback(settings, "demo")
    p.promote(settings, "demo", 2, True, "meanwhile")
    return moved(*args, **told)
p.move = between
print(p.rollback(settings, "demo", "in a hurry").status)"""
    assert script(p, meanwhile).communicate(timeout=120)[0].strip() == 'overtaken' and champion_of(p) == (2, 2)
    last = p.inside('audit', 'demo', '--json').json['history'][-1]
    assert (last['what'], last['from'], last['to'], last['reason']) == ('overtaken', 2, 1, 'in a hurry')


def test_killed_between_two_moves(tmp_path, pair):
    p = pair.copied_to(tmp_path/'p')
    late = """set_alias = p.Registry.set_alias
def late(self, name, alias, version):
    if alias == "champion":
        p.Registry.set_alias = set_alias
        p.move(self.ws, name, p.holder(self.ws, name), 2, vars(self.version(name, 2).artifact), "promoted") # somebody else, who is quick
        try: p.bring_in_step(self.ws, self, name, 0)
        except p.RegistryError as e: print(e, flush=True)
        set_alias(self, name, alias, version)
        die()
    return set_alias(self, name, alias, version)
p.Registry.set_alias = late
p.promote(settings, "demo", 1)"""
    dead = script(p, late)
    assert 'somebody else has been at it' in dead.communicate(timeout=120)[0] and dead.returncode == -9
    assert champion_of(p) == (2, 1) and holder(workplace(p.settings)[0], 'demo')['state'] == 'moving' # so everybody sees that it isn't done
    assert p.inside('audit', 'demo').code == 0 and champion_of(p) == (2, 2)


def spoil(path):
    "Change a file, and leave its size and its time as they were"
    st = path.stat()
    path.chmod(0o644)
    path.write_text(path.read_text().replace('Doubles', 'Trebles'))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def test_the_copy_that_mlflow_reads_is_mended(tmp_path):
    p = registered(tmp_path)
    version_of(p, .5)
    copy, = p.state.glob('models/*/model/about.json')
    told = copy.read_text()
    for args in (('register', 'last'), ('promote', 'demo')):
        spoil(copy)
        found = p.inside('doctor')
        assert found.code == 1 and 'demo version 1' in found.out and copy.read_text() != told
        assert p.inside(*args).code == 0 and copy.read_text() == told
    assert 'demo version 1' not in p.inside('doctor').out
    spoil(copy)
    p.inside('models')
    assert copy.read_text() != told # what says that all is well doesn't hash everything


def test_what_people_are_told_to_do_next(tmp_path, pair):
    p = pair.copied_to(tmp_path/'p')
    never = p.inside('audit', 'demo')
    assert never.code == 2 and 'never promoted' in never.err and 'mlops-nb promote demo' in never.err
    assert "no model 'nope' is registered" in p.inside('audit', 'nope').err
    assert p.inside('promote', 'demo/2').code == 0 and champion_of(p) == (2, 2)
    assert 'there was no champion to be compared with' in p.inside('audit', 'demo').out
    refused = p.inside('promote', 'models:/demo/1')
    assert refused.code == 1 and 'mlops-nb card demo/1' in refused.out and '--override --reason' in refused.out
    assert p.inside('promote', 'demo/1', '--version', '2').code == 2
    table = p.inside('audit', 'demo').out
    assert 'refused by: Not worse than the champion' in table and 'the loss grew' not in table


commit = """from sqlalchemy import event
from sqlalchemy.engine import Engine
settle = p.settle
def armed(*args):
    event.listen(Engine, "commit", die)
    return settle(*args)
p.settle = armed"""


@pytest.mark.parametrize('when, then, command', [(commit, 1, 'promote'), (commit, 1, 'rollback'), ('p.bring_in_step = die', 2, 'promote'), ('p.bring_in_step = die', 2, 'rollback'), ('p.Registry.drop_alias = die', 2, 'promote')])
def test_a_kill_in_the_middle_is_all_or_nothing(tmp_path, pair, when, then, command):
    p = pair.copied_to(tmp_path/'p')
    assert p.inside('promote', 'demo', '--version', '1').code == 0
    dead = script(p, when + '\np.promote(settings, "demo")')
    assert dead.wait(120) == -9, dead.communicate()
    ws, registry = workplace(p.settings)
    assert holder(ws, 'demo')['version'] == then == len(history(ws, 'demo', 'promoted'))
    said = p.inside(command, 'demo', '--json')
    if command == 'promote': assert said.code == 0 and champion_of(p) == (2, 2) and said.json['status'] == ('promoted' if then == 1 else 'unchanged')
    else: assert champion_of(p) == (1, 1) and said.code == (2 if then == 1 else 0)
    assert len(history(ws, 'demo', 'promoted')) == (2 if command == 'promote' else then)
    assert p.quiet(60) == []


def test_a_card_tells_what_is_known(tmp_path):
    p = registered(tmp_path, 'cards = yes')
    [made] = p.ok().json['models']
    assert '>Its gates<' in (p.root/made['card']).read_text()
    p.cli('promote', 'demo')
    done = p.cli('card', 'demo', '--json')
    assert done.code == 0, done
    page, text = (( p.root/done.json[o]).read_text() for o in ('page', 'markdown'))
    assert outside_requests(page) == [] and '<script' not in page and '<b>number' not in page and 'Traceback' not in page
    assert page.count('<h1') == 1 and 'demo, version 1</h1>' in page and text.startswith('# demo, version 1\n')
    for o in ('In short', 'How it was made', 'Its gates', 'At its word', 'For whom', 'What it leans on', 'What it takes', 'Where it comes from', 'Its history', 'Limits'): assert f'>{o}<' in page and f'## {o}' in text, o
    assert page.count('<img') == 2 and text.count('](card_files/') == 2 and 'Nothing but doubling' in text and 'Not worse than the champion' in text
    folder = p.state/'cards'/'demo'/'1'
    assert {o.name for o in folder.iterdir()} == {'card.ipynb', 'card.html', 'card.md', 'card_files'} and len(list((folder/'card_files').iterdir())) == 2
    assert p.quiet(60) == []
