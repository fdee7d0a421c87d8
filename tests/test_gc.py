"What nobody needs is removed, and nothing else, whatever is killed"
import os, signal, time

import pytest

from mlops_nb.content import Artifact
from mlops_nb.core import Stopped
from mlops_nb.garbage import Policy, gc, protectors
from mlops_nb.plan import Workspace
from mlops_nb.store import open_store
from scratch import Project

many_files = 200 # of a stage whose output takes a while to remove


def write(project, many=False):
    "A stage whose output is told by a parameter, and one below it"
    project.stage('01_make', 'made: Out = "data/made"\nn: int = 0', f'import os\nos.makedirs(made)\nfor i in range({many_files if many else 2}): open(f"{{made}}/{{i}}", "w").write(f"{{n}} {{i}}")')
    project.stage('02_use', 'made: In = "data/made"\nused: Out = "data/used.txt"', 'import os\nopen(used, "w").write(open(f"{made}/0").read())\nrecord(n=len(os.listdir(made)))\nprint("hello")')


def run(project, n): return project.ok('-p', f'n={n}').json['run']


def collect(project, *args, code=0, **env):
    done = project.cli('gc', '--json', *args, **env)
    assert done.code == code, done
    return done.json


def artifacts(rows, *keys):
    "The artifacts of stage runs"
    keys = keys or ('executed', 'code', 'outputs')
    found = [a for o in rows for k in keys if o[k] for a in (o[k].values() if k == 'outputs' else [o[k]])]
    return {Artifact(**{k: a[k] for k in ('digest', 'name', 'size', 'kind')}) for a in found}


def whole(project, run_id):
    "Is all that a run stored in the store?"
    with project.ledger as ledger: own = artifacts(ledger.stage_runs(run_id))
    return project.store.has_many(own) == own


def test_the_newest_runs_stay_whole(project):
    write(project)
    ids = [run(project, n) for n in range(4)]
    told = collect(project, '--keep', '2')
    assert not told['removed'] and [o['run'] for o in told['runs']] == ids[:2] and told['kinds'].keys() == {'notebook', 'output'}
    assert all(whole(project, o) for o in ids), 'a dry run removes nothing'

    plain = project.cli('gc', '--keep', '2').out
    assert 'mlops-nb gc --keep 2 --yes' in plain and ids[0] in plain and ids[3] not in plain
    done = collect(project, '--keep', '2', '--yes')
    assert done['removed'] and (done['artifacts'], done['bytes']) == (told['artifacts'], told['bytes'])
    gone = artifacts(project.rows(run_id=ids[0]), 'executed', 'outputs')
    assert project.store.has_many(gone) == set() and all(whole(project, o) for o in ids[2:])
    assert not (project.state/'runs'/ids[0]).exists() and (project.state/'runs'/ids[3]).exists()
    assert not list((project.store.root/'tmp').iterdir()) and collect(project, '--keep', '2', '--yes')['artifacts'] == 0

    shown = project.cli('show', ids[0])
    assert shown.code == 0 and 'collected on 20' in shown.out and 'collected' not in project.cli('show', ids[3]).out
    log = project.cli('logs', ids[0])
    assert log.code == 0 and 'collected on 20' in log.out and 'hello' in project.cli('logs', ids[3]).out
    difference = project.cli('diff', ids[0], ids[3])
    assert difference.code == 0 and '0 → 3' in difference.out

    assert set(project.ok('-p', 'n=3').statuses.values()) == {'cached'}, 'what was up to date is so'
    assert project.ok('-p', 'n=0').statuses['01_make'] == 'completed', 'what was collected is made again'
    assert project.store.has_many(gone) >= artifacts(project.rows(run_id=ids[0]), 'outputs')


def test_what_is_pinned_or_needed_by_others_stays(project):
    write(project)
    ids = [run(project, n) for n in range(3)]
    assert collect(project, '--pin', ids[0])['runs'] == [dict(run=ids[0], status='pinned')]
    ws = Workspace(project.settings)
    needed = {a.digest for a in artifacts(project.rows(run_id=ids[1]), 'outputs')}
    protectors['model'] = lambda ws: needed
    try: g = gc(ws, Policy(keep=1), yes=True)
    finally: del protectors['model']
    assert g.kept[ids[0]] == 'pinned' and whole(project, ids[0]) and whole(project, ids[2])
    outputs,notebooks = (artifacts(project.rows(run_id=ids[1]), o) for o in ('outputs', 'executed'))
    assert project.store.has_many(outputs) == outputs and not project.store.has_many(notebooks)

    collect(project, '--unpin', ids[0])
    assert collect(project, '--keep', '1', '--older-than', '1h', '--yes')['artifacts'] == 0
    assert {o['run'] for o in collect(project, '--keep', '1', '--yes')['runs']} == set(ids[:2])
    assert whole(project, ids[2]) and not project.store.has_many(outputs)
    for args,what in ((('--older-than', 'soon'), 'is no duration'), (('--trials', 'some'), 'best, all or none'), (('--pin', 'nothing'), "there is no run 'nothing'")):
        done = project.cli('gc', *args)
        assert done.code == 2 and what in done.err, done


def test_the_cache_of_today_stays(project):
    write(project)
    run(project, 1)
    assert collect(project, '--keep', '0', '--yes')['runs'] == []
    assert set(project.ok('-p', 'n=1').statuses.values()) == {'cached'}


def test_a_run_that_goes_on_stops_it(project):
    write(project)
    run(project, 1)
    project.stage('03_wait', 'used: In = "data/used.txt"\nend: Out = "data/end"', 'import os, time\nwhile not os.path.exists("go"): time.sleep(.05)', 'open(end, "w").write("x")')
    p = project.start('run', 'demo', '--json')
    with project.ledger as ledger: project.until(lambda: ledger.runs(status='running') and any(o['status'] == 'running' and o['stage'] == '03_wait' for o in ledger.stage_runs(ledger.run()['id'])))
    assert 'goes on' in collect(project, '--keep', '0', '--yes', code=1)['error']['what']
    (project.folder/'go').write_text('')
    assert project.wait(p).code == 0


def test_a_run_waits_for_a_collector_and_it_makes_way(project, monkeypatch):
    write(project)
    ids = [run(project, n) for n in range(3)]
    ws = Workspace(project.settings)
    before = ws.ledger.runs()
    started = []

    def begin(done, all):
        "After the first portion a run begins; it waits for us, and we make way"
        started.append(project.start('run', 'demo', '-p', 'n=0', '--json'))
        project.until(lambda: len(ws.ledger.runs()) > len(before))
    monkeypatch.setattr('mlops_nb.garbage.portions', lambda losses: ([o] for o in losses))
    g = gc(ws, Policy(keep=1), True, begin)
    monkeypatch.undo()
    assert g.stopped and not g.removed and len(started) == 1
    done = project.wait(started[0])
    assert done.code == 0 and done.statuses['01_make'] == 'completed' and ws.ledger.collector() is None
    gc(ws, Policy(keep=1), True)
    assert whole(project, done.json['run']) and not whole(project, ids[1])


def test_killed_it_leaves_whole_objects_and_carries_on(project):
    write(project, many=True)
    ids = [run(project, n) for n in range(6)]
    kept = artifacts(project.rows(run_id=ids[-1]))
    for wait in (.0, .01, .03, .06):
        p = project.start('gc', '--keep', '1', '--yes')
        project.until(lambda: p.poll() is not None or list((project.store.root/'tmp').glob('*')) or not project.store.home(artifacts(project.rows(run_id=ids[0]), 'outputs').pop().digest).exists())
        time.sleep(wait)
        os.killpg(p.pid, signal.SIGKILL)
        p.communicate()
        store = project.store
        for a in artifacts(project.rows()): assert not store.home(a.digest).exists() or store.verify(a)
        assert store.has_many(kept) == kept
    assert collect(project, '--keep', '1', '--yes')['removed'] and not project.store.has_many(artifacts(project.rows()) - kept)
    with project.ledger as ledger:
        assert ledger.claims() == [] and len({o['run_id'] for o in ledger.events('collected')}) == len(ledger.events('collected')) == 5
    old = time.time()-120
    for o in (project.store.root/'tmp').iterdir(): os.utime(o, (old, old)) # boxes of the killed ones count as litter after a minute
    assert run(project, 9) and not list((project.store.root/'tmp').iterdir())


def test_stopped_it_says_so_and_carries_on(project, monkeypatch):
    write(project)
    ids = [run(project, n) for n in range(3)]
    monkeypatch.setattr('mlops_nb.garbage.portions', lambda losses: ([o] for o in losses))
    ws = Workspace(project.settings)

    def stop(done, all): raise KeyboardInterrupt
    with pytest.raises(Stopped, match='collecting was stopped'): gc(ws, Policy(keep=1), True, stop)
    assert ws.ledger.claims() == [] and ws.ledger.collected(ids[0]) and not ws.ledger.collected(ids[1]) and whole(project, ids[1])
    assert [o['run'] for o in collect(project, '--keep', '1', '--yes')['runs']] == ids[1:2]


def test_orphans_go_when_they_are_old(project):
    write(project)
    run(project, 1)
    (project.root/'x').write_text('of no run')
    orphan = project.store.put(project.root/'x')
    assert 'orphan' not in collect(project, '--yes')['kinds'] and project.store.has(orphan)
    old = time.time()-2*86400
    os.utime(project.store.home(orphan.digest), (old, old))
    assert collect(project, '--yes')['kinds'] == dict(orphan=dict(artifacts=1, bytes=9)) and not project.store.has(orphan)


def test_leftovers_only_when_asked(project):
    (project.state/'replaced').mkdir(parents=True)
    (project.state/'replaced'/'x').write_text('mine')
    assert collect(project, '--yes')['files'] == [] and collect(project, '--leftovers', '1h')['files'] == []
    assert len(collect(project, '--leftovers', '0', '--yes')['files']) == 1 and not list((project.state/'replaced').iterdir())


def test_two_ledgers_one_store(tmp_path):
    settings = f'[DEFAULT]\nstore = {tmp_path}/store\n'
    one,two = (Project(tmp_path/o, settings) for o in ('one', 'two'))
    for o in (one, two): write(o)
    first = [run(one, n) for n in range(3)]
    second = run(two, 0)
    assert len(one.store.users()) == 2
    refused = collect(one, '--keep', '1', '--yes', code=1)['error']
    assert 'has other users' in refused['what'] and 'two/.mlops/ledger.db' in refused['what']
    collect(one, '--keep', '1', '--shared', '--yes')
    assert whole(two, second) and whole(one, first[2]) and not whole(one, first[1])
    run(two, 2)
    run(two, 2)
    collect(two, '--keep', '1', '--shared', '--yes')
    assert whole(one, first[2]) and not artifacts(two.rows(run_id=second), 'outputs') & two.store.has_many(artifacts(two.rows(run_id=second), 'outputs'))

    on = two.ledger.start_run('demo')
    assert 'goes on' in collect(one, '--keep', '0', '--shared', '--yes', code=1)['error']['what']
    two.ledger.end_run(on, 'stopped')
    os.rename(two.state/'ledger.db', two.state/'away.db')
    lost = collect(one, '--shared', code=1)['error']
    assert 'it is gone' in lost['what'] and 'users/' in lost['remedy']
    for o in (one, two): assert not o.processes()


def test_a_remote_store(tmp_path, monkeypatch):
    monkeypatch.setenv('FSSPEC_LOCAL', '{"auto_mkdir": true}')
    from fsspec.config import conf
    monkeypatch.setitem(conf, 'local', dict(auto_mkdir=True))
    project = Project(tmp_path/'project', f'[DEFAULT]\nstore = local://{tmp_path}/far\n')
    write(project)
    ids = [run(project, n) for n in range(3)]
    far = open_store(project.settings.store, tmp_path/'elsewhere')
    gone,kept = (artifacts(project.rows(run_id=o), 'outputs', 'executed') for o in ids[1:])
    assert len(far.users()) == 1 and far.has_many(gone | kept) == gone | kept
    told = collect(project, '--keep', '1')
    done = collect(project, '--keep', '1', '--yes')
    assert (done['artifacts'], done['bytes']) == (told['artifacts'], told['bytes']) and far.has_many(gone | kept) == kept
    cache = open_store(project.state/'cache'/'store')
    assert cache.has_many(gone | kept) == kept and not {o.digest for o in gone} & far.contents().keys()
    assert project.ok('-p', 'n=1').statuses['01_make'] == 'completed' and far.has_many(gone) >= artifacts(project.rows(run_id=ids[1]), 'outputs')


def test_of_a_study_the_best_trial_stays(project):
    project.stage('01_try', 'score: Out = "data/score"\nx: float = 1.0', '#| tune\nfrom optuna.distributions import FloatDistribution\nspace = dict(x=FloatDistribution(0, 1))',
        'open(score, "w").write(str(x))\nrecord(value=x)')
    done = project.cli('tune', 'demo/01_try', '--metric', 'value', '--direction', 'maximize', '--trials', '5', '--json', '--sampler', 'random')
    assert done.code == 0, done
    with project.ledger as ledger:
        trials = ledger.runs(study=None)
        best = max(trials, key=lambda o: ledger.stage_runs(o['id'])[0]['metrics']['value'])
    assert collect(project, '--trials', 'all')['artifacts'] == 0
    collect(project, '--keep', '0', '--yes')
    newest = max(trials, key=lambda o: o['started'])
    assert {o['id'] for o in trials if whole(project, o['id'])} == {best['id'], newest['id']}
    assert project.ok('-p', f'x={best["params"]["try.x"]}').statuses == {'01_try': 'cached'}


def test_two_projects_with_studies_of_one_name(tmp_path):
    "They share the ledger and the store; neither takes the other's trials for its own"
    settings = f'[DEFAULT]\nledger = sqlite:///{tmp_path}/ledger.db\nstore = {tmp_path}/store\nmlflow = none\n'
    a,b = (Project(tmp_path/o, settings) for o in 'ab')
    try:
        for p,loss in ((a, 'x'), (b, '-x')):
            p.stage('01_try', 'x: float = 1.0\nout: Out = "data/o.txt"', '#| tune\nfrom optuna.distributions import FloatDistribution\nspace = dict(x=FloatDistribution(0, 3))',
                f'record(loss={loss})\nopen(out, "w").write("{p.root.name}" + str(x))')
            assert p.cli('tune', 'demo/01_try', '--metric', 'loss', '--trials', '5', '--jobs', '1').code == 0
        mine,yours = (p.cli('study', 'demo-try', '--json').json for p in (a, b))
        lost = {o['run'] for o in a.cli('gc', '--keep', '0', '--json').json['runs']}
        assert lost and lost <= {o['run'] for o in mine['trials']} - {mine['best']['run']}
        assert [a.cli('diff', 'demo-try/0', f'demo-try/{o["best"]["number"]}', '--json').json['b']['run'] in {t['run'] for t in mine['trials']} for o in (mine, yours)] == [True, True]
    finally:
        for p in (a, b): p.put_away()
