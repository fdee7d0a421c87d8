"""Studies under fire: workers killed at any moment, stopped, started at once, notebooks that misbehave, requests that can't be"""
import json, os, random, re, signal, subprocess, sys, tempfile, threading, time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil, pytest

from mlops_nb.contract import report
from mlops_nb.core import ConfigError, MlopsError
from mlops_nb.plan import Workspace
from mlops_nb.study import about, counted, load_study, open_storage, pruners, samplers, study_names
from mlops_nb.tune import Search, find_target, plan_study, tune
from scratch import Project, until
from test_ledger_postgres import server # noqa: F401 (a fixture)


space = '#| tune\nfrom optuna.distributions import *\nspace = dict(x=FloatDistribution(-4, 4), depth=IntDistribution(1, 3))'
slow = 'import os, time\nopen(f"{os.environ[\'PIDS\']}/{os.getpid()}", "w").close()\ntime.sleep(.1)'


def put_stage(project, *cells, params='x: float = 1\ndepth: int = 2', tune=space, name='01_fit'):
    "A stage to tune, whose best value is known"
    project.stage(name, params, *([tune] if tune else []), *(cells or ['record(loss=(x-2)**2 + depth/10)']))


def study_of(project, name='demo-fit'): return load_study(open_storage(project.settings.studies), name)


def sound(project, name='demo-fit', trials=None):
    "What must be true of a study at rest, whatever happened; its counted trials"
    study = study_of(project, name)
    found = study.get_trials()
    assert {o.state.name for o in found} <= {'COMPLETE','PRUNED','FAIL'}, Counter(o.state.name for o in found)
    retries = Counter(o.user_attrs['retry_of'] for o in found if 'retry_of' in o.user_attrs)
    for o in found:
        due = o.user_attrs.get('lost') == 'stopped' or (o.user_attrs.get('lost') == 'killed' and 'retry_of' not in o.user_attrs)
        assert retries[o.number] == due, (o.number, o.state, o.user_attrs, retries[o.number])
    for n in retries:
        again = next(o for o in found if o.user_attrs.get('retry_of') == n)
        assert found[n].params.items() <= again.params.items(), (found[n], again)
    with project.ledger as ledger:
        assert not ledger.runs(limit=10_000, status='running', study=name), ledger.runs(status='running', study=name)
        for o in found:
            if o.state.name != 'COMPLETE' or 'warm_start' in o.user_attrs: continue
            run = ledger.run(o.user_attrs['run'])
            [row] = [r for r in ledger.stage_runs(run['id']) if r['stage'] == '01_fit']
            assert run['status'] == 'completed' and row['status'] in ('completed','cached') and (project.root/row['notebook_path']).exists(), (o, run, row)
            assert row['params']['x'] == o.params['x'], (o, row)
    if trials is not None: assert counted(study) == trials, (counted(study), Counter(o.state.name for o in found))
    return found


def notebooks(pids):
    "The processes that execute notebooks now"
    for o in pids.iterdir():
        with suppress(psutil.Error):
            p = psutil.Process(int(o.name))
            if p.status() != 'zombie': yield p
            else: o.unlink(missing_ok=True)


def kill_below(pid, kind, pids, rng):
    "Kill what executes a notebook, or any process below `pid`; False if there was none for a while"
    end = time.monotonic() + 3
    while time.monotonic() < end:
        below = psutil.Process(pid).children(recursive=True)
        if kind == 'notebook': below = [o for o in notebooks(pids) if o in below]
        if below: return not rng.choice(below).kill()
    return False


def soak(project, pids, trials, seed, every=(1, 3), workers=4, most=10**6, url=None, args=()):
    "Let several processes work on one study while somebody kills them; how often who was killed"
    rng,killed = random.Random(seed),Counter()
    def begin(): return project.start('tune', 'demo/fit', '--metric', 'loss', '--trials', str(trials), '--jobs', '1', *args, PIDS=str(pids))
    crew = [begin() for _ in range(workers)]
    def over(): return any(o.poll() is not None for o in crew)
    while not over():
        end = time.monotonic() + rng.uniform(*every)
        while time.monotonic() < end and not over(): time.sleep(.02)
        if over() or killed.total() >= most: break
        p = rng.choice(crew)
        kind = rng.choice(['tune','notebook','worker'])
        if kind == 'tune':
            p.kill()
            crew[crew.index(p)] = begin()
            p.communicate()
        else:
            with suppress(psutil.Error): killed[kind] += kill_below(p.pid, kind, pids, rng)
            continue
        killed[kind] += 1
    for p in crew:
        done = project.wait(p, 120)
        assert done.code == 0, done
        assert 'Traceback' not in done.err, done
    return killed


# --- killed

@pytest.fixture
def pids(tmp_path):
    "Where notebooks leave the ids of their processes"
    (tmp_path/'pids').mkdir()
    return tmp_path/'pids'


def put_url(project, kind, request):
    "Let the studies be kept in a journal, in SQLite or in PostgreSQL"
    url = dict(journal='.mlops/studies.log', sqlite='sqlite:///.mlops/studies.db').get(kind) or request.getfixturevalue('server').make(f'a{project.mark}')
    (project.root/'settings.ini').write_text(f'[DEFAULT]\nstudies = {url}\n')


@pytest.mark.parametrize('kind,trials,most', [('journal',16,6), ('sqlite',6,3), ('postgres',6,3)])
def test_workers_are_killed_again_and_again(project, pids, request, kind, trials, most):
    put_url(project, kind, request)
    put_stage(project, slow, 'record(loss=(x-2)**2 + depth/10)')
    soak(project, pids, trials, seed=1, every=(.3, 1.5), workers=4 if kind == 'journal' else 3, most=most)
    sound(project, trials=trials)
    assert project.quiet() == []


held = 'import os, time\nopen(f"{os.environ[\'PIDS\']}/{os.getpid()}", "w").close()\nwhile os.path.exists("hold"): time.sleep(.02)' # as long as the test wants


def begin_held(project, pids, trials=4, jobs=2, *args):
    "A study whose first trials wait for us"
    (project.folder/'hold').touch()
    p = project.start('tune', 'demo/fit', '--metric', 'loss', '--trials', str(trials), '--jobs', str(jobs), *args, PIDS=str(pids))
    project.until(lambda: p.poll() is not None or len(list(notebooks(pids))) == jobs)
    assert p.poll() is None, project.wait(p)
    return p


@pytest.mark.parametrize('who', ['notebook','nursery','tune'])
def test_a_killed_trial_is_tried_once_more(project, pids, who):
    put_stage(project, held, 'record(loss=(x-2)**2 + depth/10)')
    p = begin_held(project, pids, 2, 1)
    if who == 'notebook': next(notebooks(pids)).kill()
    if who == 'nursery': psutil.Process(p.pid).children()[0].kill()
    if who == 'tune': p.kill()
    (project.folder/'hold').unlink()
    done = project.wait(p)
    if who == 'tune':
        assert project.quiet() == [] # nothing goes on without it
        done = project.cli('tune', 'demo/fit', '--metric', 'loss', '--trials', '2', '--jobs', '1', PIDS=str(pids))
        assert 'trial 0 was left by a process that was killed' in done.err, done
    assert done.code == 0, done
    found = sound(project, trials=2)
    assert [(o.state.name, o.user_attrs.get('lost'), o.user_attrs.get('retry_of')) for o in found] == [('FAIL','killed',None), ('COMPLETE',None,0), ('COMPLETE',None,None)]
    assert found[0].params == found[1].params


def test_who_is_killed_each_time_is_tried_twice(project):
    put_stage(project, 'import os\nif x < 0: os._exit(3)', 'record(loss=x)')
    r = tune(project.settings, 'demo/fit', 'loss', trials=3, jobs=1, first=[dict(x=-1, depth=1)])
    assert [(o['state'], 'exited with status 3' in o['reason']) for o in r.trials if o['params']['x'] == -1] == [('FAIL',True)]*2
    sound(project, trials=3)
    with pytest.raises(MlopsError, match='failed: cell 4: Exited'): tune(project.settings, 'demo/fit', 'loss', trials=3, jobs=1, first=[dict(x=-1, depth=1)], study='strict', fail_fast=True)


@pytest.mark.parametrize('signals', [[signal.SIGTERM], [signal.SIGINT]*4], ids=['term','impatient'])
def test_a_stopped_study_is_carried_on(project, pids, signals):
    put_stage(project, held, 'record(loss=(x-2)**2 + depth/10)')
    p = begin_held(project, pids)
    for o in signals:
        p.send_signal(o)
        time.sleep(.05)
    done = project.wait(p)
    assert done.code in (130, -signal.SIGINT) and (len(signals) > 1 or done.code == 130) # the last may come when Python is about to end, which a shell calls 130 too
    assert 'Traceback' not in done.text and 'the same command carries on' in done.err, done
    assert project.quiet() == []
    found = study_of(project).get_trials()
    assert Counter((o.state.name, o.user_attrs.get('reason')) for o in found) == {('FAIL','the study was stopped'): 2, ('WAITING',None): 2}
    with project.ledger as ledger: assert {o['status'] for o in ledger.runs(study='demo-fit')} == {'stopped'}
    (project.folder/'hold').unlink()
    done = project.cli('tune', 'demo/fit', '--metric', 'loss', '--trials', '4', '--jobs', '2', PIDS=str(pids))
    assert done.code == 0, done
    assert Counter(o.state.name for o in sound(project, trials=4)) == dict(FAIL=2, COMPLETE=4)


@pytest.mark.parametrize('kind', ['journal','postgres'])
def test_two_processes_begin_at_once(project, request, kind):
    put_url(project, kind, request)
    project.stage('00_data', 'rows: Out = "data/rows.txt"', 'import time\ntime.sleep(.3)\nopen(rows, "w").write("1")')
    put_stage(project, 'import time\ntime.sleep(.1)\nopen(rows).read()', 'record(loss=x)', params='rows: In = "data/rows.txt"\nx: float = 1\ndepth: int = 2')
    both = [project.start('tune', 'demo/fit', '--metric', 'loss', '--trials', '5', '--jobs', '1', '--enqueue', 'x=0.5 depth=1', '--sampler', 'random') for _ in range(2)]
    for done in map(project.wait, both): assert done.code == 0, done
    found = sound(project, trials=5)
    assert study_names(open_storage(project.settings.studies)) == ['demo-fit'] and len(found) == 5
    assert len({str(o.params) for o in found}) == 5 # nobody tries what the other has tried
    assert Counter(o['status'] for o in project.rows(stage='00_data')) in ({'completed': 1}, {'completed': 1, 'cached': 1})


at_line = '''
import os, sys, mlops_nb.study
n, number, made = int(sys.argv.pop(1)), int(sys.argv.pop(1)), mlops_nb.study.make_journal
lines = iter(range(1, 1000))
def make_journal(path):
    journal = made(path)
    append = type(journal).append_logs
    def append_logs(self, logs):
        if next(lines) == n: os.kill(os.getpid(), number)
        append(self, logs)
    type(journal).append_logs = append_logs
    return journal
mlops_nb.study.make_journal = make_journal
from mlops_nb.cli import main
main()'''


@pytest.mark.parametrize('n,number', [(3, signal.SIGKILL), (9, signal.SIGKILL), (9, signal.SIGINT), (15, signal.SIGINT)])
def test_the_end_comes_at_a_line_of_the_journal(project, n, number):
    put_stage(project)
    ask = ['tune', 'demo/fit', '--metric', 'loss', '--trials', '2', '--jobs', '1', '--enqueue', 'x=0 depth=1']
    done = subprocess.run([sys.executable, '-c', at_line, str(n), str(int(number)), *ask], cwd=project.root, capture_output=True, text=True, start_new_session=True)
    assert done.returncode == (-9 if number == signal.SIGKILL else 130) and 'Traceback' not in done.stderr, done
    if number == signal.SIGINT and 'demo-fit' in study_names(open_storage(project.settings.studies)):
        assert all(o.state.name != 'RUNNING' and o.user_attrs.get('reason') in (None, 'the study was stopped') for o in study_of(project).trials)
    assert project.cli(*ask).code == 0
    assert Counter(o.params['x'] for o in sound(project, trials=2) if o.state.name == 'COMPLETE') == {0: 1, 1: 1}


def test_a_line_that_was_half_written(project):
    put_stage(project)
    tune(project.settings, 'demo/fit', 'loss', trials=2, jobs=1)
    with open(project.settings.studies, 'ab') as f: f.write(b'{"op_code":6,"worker_id":"a","tri')
    assert len(tune(project.settings, 'demo/fit', 'loss', trials=3, jobs=1).trials) == 3
    sound(project, trials=3)


def test_the_studies_vanish_meanwhile(project):
    put_stage(project)
    before = psutil.Process().children() # of tests that executed notebooks in this process
    def listener(kind, t, data=None):
        if kind == 'end': Path(project.settings.studies).unlink()
    with pytest.raises(ConfigError, match="the studies can't be read or written"): tune(project.settings, 'demo/fit', 'loss', trials=3, jobs=1, listener=listener)
    assert not set(psutil.Process().children()) - set(before)
    tune(project.settings, 'demo/fit', 'loss', trials=2, jobs=1)
    sound(project, trials=2)


# --- notebooks that misbehave

@pytest.mark.parametrize('engine', ['papermill','snapshot'])
def test_ends_of_a_trial(project, engine):
    (project.root/'settings.ini').write_text(f'[DEFAULT]\nengine = {engine}\n')
    put_stage(project, 'for i in range(3): report((x-2)**2, i)', 'import os\nif depth == 2: 1/0\nif depth == 3: os._exit(3)', 'record(loss=(x-2)**2)', 'print("the", "end")')
    first = [dict(x=1.5, depth=1), dict(x=1.75, depth=2), dict(x=2., depth=3), dict(x=-4., depth=1)]
    r = tune(project.settings, 'demo/fit', 'loss', trials=5, jobs=1, first=first, search=Search(pruner_options=dict(n_startup_trials=1)))
    ends = sorted((o['params']['x'], o['state']) for o in r.trials)
    assert ends == [(-4.,'PRUNED'), (1.,'PRUNED'), (1.5,'COMPLETE'), (1.75,'FAIL'), (2.,'FAIL'), (2.,'FAIL')] # the last is tried twice
    assert [o['reason'] for o in r.trials if o['params']['x'] == 1.75] == ['cell 5: ZeroDivisionError: division by zero']
    pruned = next(o for o in r.trials if o['state'] == 'PRUNED')
    [row] = Workspace(project.settings).ledger.stage_runs(pruned['run'])
    assert row['status'] == 'pruned' and 'the end' not in (project.root/row['notebook_path']).read_text()
    sound(project, trials=5)


def pruning(project, *cells, first=(dict(x=2., depth=1), dict(x=-4., depth=1)), **kwargs):
    "Two trials, of which the second is hopeless"
    put_stage(project, *cells, 'record(loss=(x-2)**2)')
    return tune(project.settings, 'demo/fit', 'loss', trials=len(first), jobs=1, first=first, search=Search(pruner_options=dict(n_startup_trials=1)), **kwargs).trials[:len(first)]


def test_who_prints_50_mb(project): assert pruning(project, 'print("y"*50_000_000)', first=[dict(x=2., depth=1)])[0]['state'] == 'COMPLETE'


def test_two_thousand_reports(project):
    assert pruning(project, 'for i in range(2000): report((x-2)**2, i)', first=[dict(x=2., depth=1)])[0]['state'] == 'COMPLETE'
    assert len(study_of(project).trials[0].intermediate_values) == 2000


def test_reports_of_a_thread_and_of_a_process(project):
    process = '[sys.executable, "-c", f"from mlops_nb import report\\nfor i in range(4, 8): report({(x-2)**2}, i)"]'
    cells = ['import subprocess, sys, threading', 't = threading.Thread(target=lambda: [report((x-2)**2, i) for i in range(4)])\nt.start()\nt.join()',
             f'done = subprocess.run({process}, capture_output=True, text=True)\nprint(done.stderr)\nrecord(pruned="Pruned at step 4" in done.stderr)']
    a, b = pruning(project, *cells)
    assert (a['state'], b['state']) == ('COMPLETE','COMPLETE') # the notebook itself was never told to end
    a, b, _ = study_of(project).trials
    assert (len(a.intermediate_values), list(b.intermediate_values), a.user_attrs['metrics']['pruned'], b.user_attrs['metrics']['pruned']) == (8, [0,4], False, True)


def test_odd_reports(project):
    odd = 'for v in (float("nan"), float("inf"), -float("inf"), 10**400): report(v, 1)\nreport(1., -1)\nreport(1., 2**40)\nreport(7., 3)\nreport(8., 3)\nreport(9., 4, name="other")\nreport(9., 5, name="n"*20_000)'
    pruning(project, odd, first=[dict(x=2., depth=1)])
    assert study_of(project).trials[0].intermediate_values == {3: 7.}


@pytest.mark.parametrize('value,reason', [('float("nan")','loss is not a number'), ('10**400','beyond what a float can hold'), ('"a"','TypeError: loss must be one number')])
def test_what_is_no_value(project, value, reason):
    put_stage(project, f'record(loss={value})')
    r = tune(project.settings, 'demo/fit', 'loss', trials=1, jobs=1)
    assert (r.trials[0]['state'], r.best) == ('FAIL',[]) and reason in r.trials[0]['reason']


def test_infinities_are_values(project):
    put_stage(project, 'record(loss=float("inf") if x < 0 else x)')
    done = project.cli('tune', 'demo/fit', '--metric', 'loss', '--trials', '2', '--enqueue', 'x=-1 depth=1', '--until', 'loss<=1', '--json')
    assert done.code == 0 and json.loads(done.out, parse_constant=pytest.fail)['best']['values'] == dict(loss=1), done
    json.loads(project.cli('studies', '--json').out, parse_constant=pytest.fail)


def test_reports_outside_of_a_study(project):
    put_stage(project, 'for i in range(3): report(i, i)')
    assert project.ok().statuses == {'01_fit': 'completed'}


@pytest.mark.parametrize('kind', ['gone','deaf','killed'])
def test_a_referee_that_dies_keeps_nobody_waiting(monkeypatch, kind):
    with tempfile.TemporaryDirectory() as d:
        judge = 'import sys, time\nfrom mlops_nb.referee import Referee\nwith Referee(sys.argv[1], lambda told: print("heard", flush=True) or time.sleep(1000)): time.sleep(1000)'
        p = subprocess.Popen([sys.executable, '-c', judge, d], stdout=subprocess.PIPE, text=True)
        until(lambda: os.path.exists(f'{d}/referee'))
        monkeypatch.setenv('MLOPS_TUNE', f'{d}/referee')
        told = threading.Thread(target=report, args=(1., 0), daemon=True)
        if kind == 'gone': os.unlink(f'{d}/referee')
        if kind == 'deaf':
            p.kill()
            p.wait()
        told.start()
        if kind == 'killed':
            assert p.stdout.readline() == 'heard\n' and told.is_alive()
            p.kill()
        told.join(20)
        assert not told.is_alive()
        p.kill()
        p.communicate()


# --- what a study may be asked for

def test_when_a_study_ends(project):
    put_stage(project, 'import time\ntime.sleep(.2)\nrecord(loss=x, time=depth)')
    s = project.settings
    assert 0 < len(tune(s, 'demo/fit', 'loss', trials=1000, jobs=1, timeout=1.5, study='timeout').trials) < 9
    r = tune(s, 'demo/fit', 'loss', trials=9, jobs=1, until='loss<=0.5', first=[dict(x=2, depth=1), dict(x=0.25, depth=1)], study='until')
    assert r.best[0]['params']['x'] == .25 and len([o for o in r.trials if o['state'] == 'COMPLETE']) <= 3
    assert len(tune(s, 'demo/fit', 'loss', trials=9, jobs=1, until='loss<=0.5', study='until').trials) == len(r.trials)
    both = tune(s, 'demo/fit', ['loss','time'], trials=3, jobs=2, constraints=['fit.loss>=1'], first=[dict(x=2., depth=1), dict(x=1., depth=3), dict(x=0., depth=1)], study='two/of them')
    assert [o['params']['x'] for o in both.best] in ([2.,1.], [1.,2.]) and [o['feasible'] for o in both.trials if o['params']['x'] == 0] == [False]
    done = project.cli('run', '--trial', 'two/of them/BEST')
    assert done.code == 2 and all(f"two/of them/{o['number']}" in done.err for o in both.best), done
    assert project.cli('run', '--trial', f"two/of them/{both.best[0]['number']}", '--json').statuses == {'01_fit': 'cached'}
    for name in study_names(open_storage(s.studies)): assert not [o for o in study_of(project, name).trials if o.state.name == 'RUNNING']


def test_an_earlier_study(project):
    put_stage(project)
    s = project.settings
    old = tune(s, 'demo/fit', 'loss', trials=4, jobs=2, constraints=['loss<=1'], study='old')
    for n in (2, 3):
        new = tune(s, 'demo/fit', 'loss', trials=n, jobs=1, warm='old', study='new')
        taken = [o for o in study_of(project, 'new').trials if 'warm_start' in o.user_attrs]
        assert len(taken) == 4 and counted(study_of(project, 'new')) == n and len(new.trials) == 4+n
    assert [o['feasible'] for o in new.trials[:4]] == [o['feasible'] for o in old.trials]
    with pytest.raises(MlopsError, match='no finished trial within this space'): tune(s, 'demo/fit', 'loss', params=dict(depth=1), warm='old', study='other')
    assert study_names(open_storage(s.studies)) == ['old','new']


stepped = '#| tune\nfrom optuna.distributions import *\nspace = dict(x=FloatDistribution(.1, .3, step=.1), depth=CategoricalDistribution([1, 2]))'


def test_a_grid_is_exhausted(project):
    sampler = 'grid'
    put_stage(project, 'import os\nif depth == 2 and x > .2: os._exit(1)', 'record(loss=x)', tune=stepped)
    r = tune(project.settings, 'demo/fit', 'loss', trials=100, jobs=2, search=Search(sampler), first=[dict(x=.2, depth=1)])
    tried = Counter((o['params']['x'], o['params']['depth']) for o in r.trials)
    assert tried == {(x, d): 1 + ((x, d) == (.3, 2)) for x in (.1,.2,.3) for d in (1,2)}
    assert len(tune(project.settings, 'demo/fit', 'loss', trials=100, search=Search(sampler)).trials) == 7
    put_stage(project, 'import os\nif depth == 2 and x > .2: os._exit(1)', 'record(loss=x)', tune=stepped.replace('.3,', '.4,'))
    assert len(tune(project.settings, 'demo/fit', 'loss', trials=100, search=Search(sampler)).trials) in (9, 10)
    sound(project)


@pytest.mark.parametrize('kind,name', [('sampler', o) for o in samplers] + [('pruner', o) for o in pruners])
def test_who_searches_and_who_prunes(project, kind, name):
    put_stage(project, tune=stepped)
    options = dict(percentile=dict(percentile='25'), threshold=dict(upper='3'), patient=dict(patience='2')).get(name, {})
    search, t = Search(**{kind: name, f'{kind}_options': options}), plan_study(project.settings, *find_target(project.settings, 'demo/fit'), 'loss')
    try: search.rehearse(t)
    except ConfigError as e: assert (lib := e.remedy.removeprefix('pip install ')) in ('torch','cmaes') and lib in e.what and f'the {kind} {name} needs' in e.what


# --- what can't be is said before the first trial

head = '#| tune\nfrom optuna.distributions import *\n'
typed = 'from typing import Literal, Optional\nfrom datetime import date\n'


def cell(source, params=None, **kwargs): return dict(put=dict(tune=head + source, **({'params': typed + params} if params else {})), **kwargs)
def searched(**kwargs): return dict(search=Search(**kwargs))


bad = [ # words of the error, what is asked for
    ('no pipeline nope', dict(target='nope')), ('no stage nope', dict(target='demo/nope')), ('has no notebooks', dict(target='')), ('has no notebooks', dict(target='../x')),
    ("doesn't say whether more", dict(metric='lss')), ('needs a metric', dict(metric=[])), ('recorded by no stage', dict(metric='a b', direction='max')), ('named twice', dict(metric=['loss','loss'])),
    ("'up' is no direction", dict(direction='up')), ('1 metrics and 2 directions', dict(direction=['max','min'])), ('0 trials', dict(trials=0)), ('-1 jobs', dict(jobs=-1)),
    ('a timeout of 0', dict(timeout=0.)), ('a timeout of nan', dict(timeout=float('nan'))),
    ('no sampler tpr', searched(sampler='tpr')), ('has no grid', searched(sampler='grid')), ('has no grid', searched(sampler='bruteforce')),
    ('combinations', cell('space = dict(x=FloatDistribution(0, 1, step=1e-6))', **searched(sampler='grid'))), ('has no option foo', searched(sampler_options=dict(foo=1))),
    ("can't go on: TypeError", searched(sampler_options=dict(n_startup_trials='many'))), ("can't go on", searched(sampler_options=dict(n_ei_candidates='-3'))), ("can't be made", searched(sampler='random', sampler_options=dict(seed='abc'))),
    ('no pruner medan', searched(pruner='medan')), ("can't be made", searched(pruner='threshold')), ("can't be made", searched(pruner_options=dict(n_startup_trials='many'))), ('patience', searched(pruner='patient')),
    ("can't be pruned", dict(metric=['loss','time'], put=dict(record='record(loss=x, time=1)'), **searched(pruner='median'))), ("can't search for several", dict(metric=['loss','time'], put=dict(record='record(loss=x, time=1)'), **searched(sampler='cmaes'))),
    ('the space has no xx', dict(first=[dict(xx=1)])), ('outside of the space', dict(first=[dict(x=99)])), ("x can't be 'abc'", dict(first=[dict(x='abc')])), ('outside of the space', dict(first=[dict(x='nan')])), ('outside of the space', dict(first=[dict(depth=2.5)])),
    ('no study nobody', dict(warm='nobody')), ('is no bound', dict(constraints=['loss=5'])), ('los is recorded by no stage', dict(constraints=['los<=5'])), ('is no bound', dict(until='loss')), ('los is recorded by no stage', dict(until='los<=1')),
    ('is no name', dict(study=' ')), ('is no name', dict(study='a\nb')), ('is no name', dict(study='x'*201)), ('is no name', dict(study='a/')),
    ('nothing to search', dict(params=dict(x=1, depth=1))), ('unknown parameter', dict(params=dict(xx=1))),
    ('ZeroDivisionError', cell('1/0')), ('uses data', cell('space = dict(x=FloatDistribution(0, data.max()))')), ('SystemExit', cell('raise SystemExit')), ('no tune cell', dict(put=dict(tune=''))),
    ('space is empty', cell('space = {}')), ('no dict called space', cell('space = [1]')), ('no distribution', cell('space = dict(x=(0, 1))')), ('no distribution', cell('space = dict(x=FloatDistribution)')), ('names 1', cell('space = {1: FloatDistribution(0, 1)}')),
    ('not plain Python', cell('space = dict(')), ('not plain Python', cell('!ls\nspace = {}')), ("can't be made", cell('space = dict(x=FloatDistribution(1, 0))')), ('finite', cell('space = dict(x=FloatDistribution(0, float("inf")))')),
    ("can't be made", cell('space = dict(x=FloatDistribution(0, 1, log=True))')), ('must be int', cell('space = dict(depth=FloatDistribution(1, 3))')), ('NoneType', cell('space = dict(depth=CategoricalDistribution([1, None]))')),
    ('bool True', cell('space = dict(depth=CategoricalDistribution([True]))')), ('must be bool', cell('space = dict(b=IntDistribution(0, 1))', 'b: bool = False')), ('the space has 2', cell('space = dict(b=IntDistribution(1, 5))', 'b: Literal[1, 5] = 1')),
    ('must be date', cell('space = dict(b=IntDistribution(1, 5))', 'b: date = date(2013, 1, 1)')), ('dates as text', cell('import datetime\nspace = dict(b=CategoricalDistribution([datetime.date(2013, 1, 1)]))', 'b: date = date(2013, 1, 1)')),
    ('is a list', cell('space = dict(b=CategoricalDistribution([[1]]))', 'b: list[int] = [1]')), ('is a secret', cell('space = dict(b=CategoricalDistribution(["u"]))', 'b: Secret = ""')), ('is a path', cell('space = dict(b=CategoricalDistribution(["u"]))', 'b: In = "pyproject.toml"'))]


@pytest.mark.filterwarnings('ignore:Choices for a categorical')
@pytest.mark.parametrize('words,asked', bad, ids=range(len(bad)))
def test_what_cannot_be(project, words, asked):
    asked = dict(target='demo/fit', metric='loss') | asked
    put = dict(record='record(loss=x)') | asked.pop('put', {})
    put_stage(project, put.pop('record'), **put)
    with pytest.raises(MlopsError) as e: tune(project.settings, asked.pop('target'), asked.pop('metric'), **asked)
    assert words in f'{e.value.what} {e.value.remedy}' and e.value.remedy and e.value.exit_code == 2, e.value
    assert study_names(open_storage(project.settings.studies)) == []
    with Workspace(project.settings).ledger as ledger: assert ledger.runs() == []


@pytest.mark.parametrize('url,words', [('nosql://x/y','opened'), ('sqlite:////proc/nope/x.db','opened'), ('/proc/nope/s.log','opened'), ('sqlite://','in memory'), ('nbs','read or written'), ('pyproject.toml','no journal'),
    ('mysql://me:hush@h/db','MySQLdb|opened'), ('postgresql://me:hush@127.0.0.1:1/db','psycopg|opened'), ('postgresql://me:hu sh@h:port/db','opened')])
def test_a_place_for_studies_that_cannot_be(project, url, words):
    (project.root/'settings.ini').write_text(f'[DEFAULT]\nstudies = {url}\n')
    put_stage(project)
    before = (project.root/'pyproject.toml').read_text()
    with pytest.raises(ConfigError, match=words) as e: tune(project.settings, 'demo/fit', 'loss', trials=1)
    assert e.value.exit_code == 2 and 'hush' not in str(e.value) and (project.root/'pyproject.toml').read_text() == before


@pytest.mark.parametrize('text', ['hello\n', '{}\nhello\n{}\n', '{}\n', '{"op_code":99}\n', '\0'*100], ids=range(5))
def test_a_journal_that_is_none(project, text):
    put_stage(project)
    project.state.mkdir()
    (project.state/'studies.log').write_text(text)
    with pytest.raises(ConfigError): tune(project.settings, 'demo/fit', 'loss', trials=1)
    assert (project.state/'studies.log').read_text() == text


def test_a_study_of_somebody_else(project):
    put_stage(project)
    import optuna
    storage = open_storage(project.settings.studies)
    optuna.create_study(storage=storage, study_name='demo-fit').optimize(lambda t: t.suggest_float('x', 0, 1), 2)
    optuna.create_study(storage=storage, study_name='empty', direction='maximize')
    for name in ('demo-fit','empty'):
        with pytest.raises(MlopsError, match="wasn't begun by mlops-nb"): tune(project.settings, 'demo/fit', 'loss', trials=1, study=name)
        assert about(study_of(project, name)) == {}
    assert tune(project.settings, 'demo/fit', 'loss', trials=1).study == 'demo-fit-2'
    assert len(study_of(project).trials) == 2
    assert all(project.cli(*o).code == 0 for o in (['studies'], ['study','demo-fit']))


def test_a_folder_that_is_read_only(project):
    put_stage(project)
    project.state.mkdir()
    done = subprocess.run(['mount','-t','tmpfs','-o','ro','tmpfs',project.state], capture_output=True)
    if done.returncode: pytest.skip('no right to mount')
    try: done = project.cli('tune', 'demo/fit', '--metric', 'loss')
    finally: subprocess.run(['umount','-l',project.state], check=True)
    assert done.code in (1, 2) and 'Traceback' not in done.text and re.search('[Rr]ead-?only', done.text) and '→' in done.text, done


def test_a_tune_cell_that_prints_or_takes_long(project):
    put_stage(project, tune=head + 'print("hello")\nspace = dict(x=FloatDistribution(0, 1))')
    assert project.cli('tune', 'demo/fit', '--metric', 'loss', '--trials', '1', '--json').json['study'] == 'demo-fit'
    put_stage(project, tune=head + 'import time\nopen("here", "w").close()\nwhile True: time.sleep(.1)')
    p = project.start('tune', 'demo/fit', '--metric', 'loss')
    project.until(lambda: (project.root/'here').exists())
    p.send_signal(signal.SIGINT)
    assert project.wait(p).code == 130


# --- the notebook is another by now

def test_the_space_changes(project):
    s = project.settings
    def go(x='FloatDistribution(0, 1)', more='', n=0, study=None, cells=(), params='x: float = 1\ndepth: int = 2', **kwargs):
        put_stage(project, *cells, tune=head + f'space = dict(x={x}{more})', params=params)
        found = study_of(project).trials if n else []
        r = tune(s, 'demo/fit', 'loss', trials=len(found)+n or 2, jobs=1, study=study, **kwargs)
        return r.study, [o['params'] for o in r.trials[len(found):]]
    assert go()[0] == 'demo-fit'
    name, new = go('FloatDistribution(-9, 9)', n=1, first=[dict(x=-8.)])
    assert (name, new) == ('demo-fit', [dict(x=-8.)])
    study_of(project).enqueue_trial(dict(x=-7.)) # and the space is narrowed before it is tried
    name, new = go('FloatDistribution(0, .5)', n=3)
    assert name == 'demo-fit' and new and all(0 <= o['x'] <= .5 for o in new)
    assert [(o.state.name, o.user_attrs.get('reason')) for o in study_of(project).trials if o.params.get('x') is None] == [('FAIL','x outside of the space')]
    name, new = go(more=', depth=IntDistribution(1, 3)', n=2, study='demo-fit')
    assert name == 'demo-fit' and new[-1].keys() == {'x','depth'} and about(study_of(project))['addresses'] == dict(x='fit.x', depth='fit.depth')
    assert go(more=', depth=IntDistribution(1, 3)')[0] == 'demo-fit-2' # where it isn't named: what was fixed is searched now, so a trial is another thing
    assert go(n=1, study='demo-fit')[1][-1].keys() == {'x'}
    with pytest.raises(MlopsError, match='the space of x is another'): go('FloatDistribution(.1, 1, log=True)', n=1, study='demo-fit')
    with pytest.raises(MlopsError, match='the space of x is another'): go('CategoricalDistribution([1., 2.])', n=1, study='demo-fit')
    assert go(cells=['record(loss=x+1)'])[0] == 'demo-fit-3' # the notebook has changed
    told = []
    assert go(cells=['record(loss=x+1)'], n=1, study='demo-fit', listener=lambda kind, t, data=None: told.append(kind))[0] == 'demo-fit' and 'changed' in told
    assert study_names(open_storage(s.studies)) == ['demo-fit','demo-fit-2','demo-fit-3']


def test_values_are_given_for_a_study(project):
    put_stage(project, 'record(loss=x*k)', tune=head + 'space = dict(x=FloatDistribution(0, 1))', params='x: float = 1\nk: float = 2')
    tune(project.settings, 'demo/fit', 'loss', trials=2, jobs=1, params=dict(k=.1), study='s')
    tune(project.settings, 'demo/fit', 'loss', trials=4, jobs=1, params={'fit.k': 3}, study='s')
    for n,k in ((1, .1), (2, 3.)):
        assert project.cli('run', '--trial', f's/{n}', '--json').statuses == {'01_fit': 'cached'}
        assert project.rows()[-1]['params']['k'] == k


def test_the_run_of_a_trial_is_a_hit(project):
    params = typed + 'x: float = .1\ny: int = 1\nb: bool = True\nday: date = date(2013, 1, 1)\nmore: Optional[float] = None\nkind: Literal["it\'s", "ü"] = "ü"\nn: float = 1'
    tuned = 'space = dict(x=FloatDistribution(1e-9, 1, log=True), y=IntDistribution(1, 10**15), b=CategoricalDistribution([True, False]), day=CategoricalDistribution(["2013-07-04", "2013-01-01"]), ' \
            'more=CategoricalDistribution([None, 1/3]), kind=CategoricalDistribution(["it\'s", "ü"]), n=IntDistribution(1, 3))'
    put_stage(project, 'record(loss=x + b + day.day + (more or 0))', tune=head + tuned, params=params)
    first = [dict(x=.1+.2, y=10**15, b=False, day='2013-07-04', more=None, kind="it's", n=2), dict(x='1e-09', y='3', b='false', day='2013-01-01', more='none', kind='ü', n='1')]
    r = tune(project.settings, 'demo/fit', 'loss', trials=5, jobs=2, first=first)
    assert {o['state'] for o in r.trials} == {'COMPLETE'} and r.defaults['number'] == 2
    by_trial = {o['trial']: o for o in (dict(row, trial=r['trial']) for r in Workspace(project.settings).ledger.runs(limit=99, study='demo-fit') for row in Workspace(project.settings).ledger.stage_runs(r['id']))}
    for o in r.trials[:2]:
        done = project.cli('run', '--trial', f"demo-fit/{o['number']}", '--json')
        assert done.statuses == {'01_fit': 'cached'} and project.rows()[-1]['fingerprint'] == by_trial[o['number']]['fingerprint'], (done, o)


# --- secrets

def files_with(folder, word): return [o for o in folder.rglob('*') if o.is_file() and word.encode() in o.read_bytes()]


def test_secrets_are_nowhere(project, request):
    with suppress(pytest.skip.Exception): put_url(project, 'postgres', request) # it has a password
    params = 'x: float = 1\ndepth: int = 2\ntoken: Secret = ""'
    put_stage(project, 'print(len(token), token)', 'if depth == 2: raise ValueError(f"not with {token}")', 'assert token\nrecord(loss=x)', params=params)
    ask = ['tune', 'demo/fit', '--metric', 'loss', '--trials', '3', '--jobs', '1', '-p', "token=s3cr3t 'word", '--enqueue', 'x=1 depth=1', '--enqueue', 'x=1 depth=2']
    done = project.cli(*ask)
    assert done.code == 0, done
    found = study_of(project)
    said = done.text + str(found.user_attrs) + str(found.trials)
    assert 'not with' in said and 's3cr3t' not in said and 'hush' not in said
    assert files_with(project.root, 's3cr3t') == [] and files_with(project.state, 'hush') == []
    again = project.cli('run', '--trial', 'demo-fit/0', '-p', "token=s3cr3t 'word", '--json')
    assert again.code == 0 and files_with(project.root, 's3cr3t') == [], again
    without = project.cli('run', '--trial', 'demo-fit/1', '--json', TOKEN='an0ther')
    assert '***' not in str(about(found).get('given')) and without.code == 1 and files_with(project.root, 'an0ther') == []
