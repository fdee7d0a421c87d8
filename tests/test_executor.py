"Whatever is killed, whenever: the executor says so, and nothing of it is left"
import gc, json, os, signal, subprocess, sys
from pathlib import Path

import nbformat, psutil, pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill.engines import Engine, papermill_engines

from mlops_nb.core import ConfigError, NotebookError, new_id
from mlops_nb.engine import execute, find_marked, metrics_of
from mlops_nb.executor import LocalExecutor, prefix, sweep_orphans
from scratch import until

linux = pytest.mark.skipif(sys.platform!='linux', reason='asks Linux to end children with their parent')


@pytest.fixture
def tmp(tmp_path):
    "A short path for sockets, and a check that nothing stays in it"
    import tempfile
    with tempfile.TemporaryDirectory(prefix='mx-', dir='/tmp') as d: yield d


def prepare(folder, *sources, **job):
    "A job whose notebook has these cells"
    os.environ.pop('PYTEST_CURRENT_TEST', None) # ipykernel looks at it, and then leaves out what children print
    id = job.pop('id', None) or new_id()
    nbformat.write(new_notebook(cells=[new_code_cell(o) for o in sources]), f'{folder}/{id}.ipynb')
    return dict(id=id, notebook=f'{folder}/{id}.ipynb', output=f'{folder}/out/{id}.ipynb', seed=1) | job


def results(ex):
    res = {}
    while ex.running: res |= {id: data for kind,id,data in ex.wait(60) if kind=='done'}
    return res


def until_cell(ex, ids, cell):
    "Wait until each of these stage runs started its cell"
    ids = set(ids)
    while ids:
        heard = ex.wait(60)
        assert heard, 'nothing happened for a minute'
        for kind,id,data in heard:
            assert kind=='cell', data
            if data['cell']==cell and data['state']=='start': ids.discard(id)


def run(tmp, *sources, **job):
    "Run one stage; its result and its executed notebook"
    job = prepare(tmp, *sources, **job)
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        result = results(ex)[job['id']]
    assert not find_marked([job['id']])
    assert not [o for o in os.listdir(tmp) if o.startswith(prefix)]
    return result, nbformat.read(job['output'], 4)


engines = pytest.mark.parametrize('engine', ['snapshot', 'papermill'])
tell = 'import os\nopen("pid", "w").write(str(os.getpid()))' # a cell that tells who executes it


def processes(ex, folder):
    "The worker that was forked first, and the process that executes its notebook"
    workers = [o for o in psutil.Process(ex.crew.nest.proc.pid).children() if 'mlops_nb.worker' in ' '.join(o.cmdline())]
    return min(workers, key=lambda o: o.create_time()), psutil.Process(int(Path(folder, 'pid').read_text()))


def gone(*processes): return not any(o.is_running() and o.status()!='zombie' for o in processes)


# ## Killed

@engines
def test_the_kernel_is_killed(tmp, engine):
    job = prepare(tmp, tell, 'import time; time.sleep(1000)', engine=engine)
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        until_cell(ex, [job['id']], 2)
        processes(ex, tmp)[1].kill()
        error = results(ex)[job['id']]['error']
    assert (error['kind'], error['signal'], error['cell']) == ('killed', 9, 2)
    assert nbformat.read(job['output'], 4).cells[1].outputs[0].evalue=='the kernel was killed by SIGKILL'


@engines
def test_the_worker_is_killed(tmp, engine):
    job = prepare(tmp, tell + '\nprint("before")', 'import subprocess; subprocess.run(["setsid", "sleep", "1000"])', engine=engine)
    other = prepare(tmp, 'import time; time.sleep(2); print("fine")', engine=engine)
    with LocalExecutor(2, tmp) as ex:
        ex.submit(job), ex.submit(other)
        until_cell(ex, [job['id']], 2)
        until(lambda: 'sleep' in [psutil.Process(o).name() for o in find_marked([job['id']])])
        worker,kernel = processes(ex, tmp)
        worker.kill()
        done = results(ex)
        assert not find_marked([job['id']])
        until(lambda: gone(worker, kernel), 3)
    error = done[job['id']]['error']
    assert (error['kind'], error['signal']) == ('killed', 9) and 'the worker' in error['evalue']
    assert done[other['id']]['status']=='completed'
    assert 'before' in nbformat.read(job['output'], 4).cells[0].outputs[0].text # what was done is on the disk


def test_the_nursery_is_killed_and_the_next_job_finds_another(tmp):
    job = prepare(tmp, 'import subprocess; subprocess.run(["sleep", "1000"])')
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        until_cell(ex, [job['id']], 1)
        ex.crew.nest.proc.kill()
        assert results(ex)[job['id']]['error']['kind']=='killed'
        assert not find_marked([job['id']])
        again = ex.submit(prepare(tmp, 'x = 1'))
        assert results(ex)[again]['status']=='completed'


runner = '''
import sys, json
from mlops_nb.executor import LocalExecutor
with LocalExecutor(2, sys.argv[1]) as ex:
    for o in json.loads(sys.argv[2]): ex.submit(o)
    while ex.running:
        for kind,id,data in ex.wait(): print(kind, id, data.get('cell'), flush=True)
'''


def start_runner(tmp, *jobs):
    "A runner in a process (and process group) of its own, once every job is in its first cell"
    p = subprocess.Popen([sys.executable, '-c', runner, tmp, json.dumps(jobs)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         start_new_session=True)
    for _ in jobs: assert p.stdout.readline().startswith('cell')
    return p


@linux
@engines
def test_the_runner_is_killed(tmp, engine):
    jobs = [prepare(tmp, 'import os\nos.system("setsid sleep 1000 & sleep 1000")', engine=engine), prepare(tmp, '!sleep 1000', engine=engine)]
    p = start_runner(tmp, *jobs)
    nursery = psutil.Process(p.pid).children()
    ids = [o['id'] for o in jobs]
    until(lambda: [psutil.Process(o).name() for o in find_marked(ids)].count('sleep')==3)
    everyone = nursery + nursery[0].children(recursive=True)
    p.kill()
    p.wait()
    until(lambda: gone(*everyone), 3)
    assert not find_marked(ids)
    until(lambda: not [o for o in os.listdir(tmp) if o.startswith(prefix)], 3)


@linux
@engines
def test_runner_and_nursery_are_killed_and_the_next_one_sweeps(tmp, engine):
    job = prepare(tmp, 'import subprocess; subprocess.run(["setsid", "sleep", "1000"])', engine=engine)
    p = start_runner(tmp, job)
    nursery = psutil.Process(p.pid).children()[0]
    until(lambda: 'sleep' in [psutil.Process(o).name() for o in find_marked([job['id']])])
    everyone = nursery.children(recursive=True)
    nursery.suspend() # so that it can't do anything about it
    p.kill(), nursery.kill()
    p.wait()
    until(lambda: gone(*(o for o in everyone if o.is_running() and o.name()!='sleep')))
    assert sweep_orphans([job['id']], tmp) <= 1 # a warm process may have been in time to end it
    assert not find_marked([job['id']]) and not [o for o in os.listdir(tmp) if o.startswith(prefix)]


@linux
def test_ctrl_c_reaches_the_runner_alone(tmp):
    job = prepare(tmp, 'import time; time.sleep(1000)')
    p = start_runner(tmp, job)
    os.killpg(p.pid, signal.SIGINT)
    _,err = p.communicate(timeout=30)
    assert p.returncode==-signal.SIGINT and err.count('Traceback')==1 and err.endswith('KeyboardInterrupt\n') # the runner's own KeyboardInterrupt
    assert not find_marked([job['id']])
    assert not [o for o in os.listdir(tmp) if o.startswith(prefix)]


@engines
def test_stop_while_two_run(tmp, engine):
    jobs = [prepare(tmp, 'import os\nos.system("setsid sleep 1000 & sleep 1000")', engine=engine) for _ in range(3)]
    ex = LocalExecutor(2, tmp)
    ids = [ex.submit(o) for o in jobs]
    until_cell(ex, ids[:2], 1)
    until(lambda: [psutil.Process(o).name() for o in find_marked(ids)].count('sleep')==4)
    nursery = ex.crew.nest.proc
    everyone = psutil.Process(nursery.pid).children(recursive=True)
    ex.stop()
    assert gone(*everyone)
    assert not find_marked(ids) and nursery.returncode is not None and not ex.running
    assert not [o for o in os.listdir(tmp) if o.startswith(prefix)]
    ex.stop() # again, harmlessly
    assert ex.wait()==[]


def open_files():
    "What this process has open now: the numbers and what they stand for"
    res = set()
    for o in os.listdir('/proc/self/fd'):
        try: res.add((o, os.readlink(f'/proc/self/fd/{o}')))
        except FileNotFoundError: pass # the listing's own
    return res


@linux
@engines
def test_nothing_stays_open_or_undead(tmp, engine):
    me = psutil.Process()
    gc.collect() # what earlier tests left to the collector would close in the middle of this one
    before,children = open_files(),len(me.children())
    for _ in range(2):
        with LocalExecutor(2, tmp) as ex:
            for _ in range(3): ex.submit(prepare(tmp, 'x = 1', engine=engine))
            results(ex)
            assert [o.name() for o in me.children()[children:]] # the nursery, and nothing undead below it
            assert not ex.crew.nest.proc.poll()
            until(lambda: [' '.join(o.cmdline()).count('mlops_nb.root') for o in psutil.Process(ex.crew.nest.proc.pid).children()]==[1]*(engine=='snapshot'), 3)
    gc.collect()
    assert (open_files() - before, len(me.children()))==(set(), children)


def test_what_a_finished_stage_left_running_ends_with_it(tmp):
    started = 'import subprocess\np = subprocess.Popen(["env", "-i", "setsid", "sleep", "1000"])\nprint(p.pid)'
    result,nb = run(tmp, started)
    assert result['status']=='completed'
    pid = int(nb.cells[0].outputs[0].text)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).name()!='sleep'


# ## Ends by itself

def test_os_exit(tmp):
    result,nb = run(tmp, 'import os; os._exit(3)', 'never = 1')
    error = result['error']
    assert (error['kind'], error['exitcode'], error['signal'], error['cell']) == ('killed', 3, None, 1)
    assert 'status 3' in nb.cells[0].outputs[0].evalue
    assert nb.cells[1].execution_count is None and nb.cells[1].metadata.papermill.status=='pending'


def test_native_crash(tmp):
    error = run(tmp, 'import ctypes; ctypes.string_at(0)')[0]['error']
    assert error['signal']==signal.SIGSEGV and 'Segmentation fault' in error['traceback']


def test_sys_exit(tmp):
    assert run(tmp, 'import sys; sys.exit()', '1/0')[0]['status']=='completed' # papermill's rule: the rest is left out
    error = run(tmp, 'import sys; sys.exit(3)')[0]['error']
    assert (error['kind'], error['ename'], error['evalue'])==('exception','SystemExit','3')


def test_cell_timeout(tmp):
    result,nb = run(tmp, 'x = 1', 'import time\ntry: time.sleep(1000)\nfinally: open("ended", "w").close()', timeout=1)
    assert (result['error']['kind'], result['error']['cell'])==('timeout',2)
    assert Path(tmp, 'ended').exists()
    assert 'took too long' in json.dumps(nb)


def test_a_kernel_that_never_answers(tmp):
    slow = Path(tmp)/'sitecustomize.py'
    slow.write_text('import os, time\nif "MLOPS_WORKER" in os.environ: time.sleep(1000)')
    job = prepare(tmp, 'x = 1', start_timeout=1, env=dict(PYTHONPATH=tmp), engine='papermill')
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        error = results(ex)[job['id']]['error']
    assert error['kind']=='timeout' and 'did not answer within 1 s' in error['evalue']
    assert not find_marked([job['id']])


def test_a_kernel_that_dies_at_once(tmp):
    Path(tmp, 'sitecustomize.py').write_text('import os\nif "MLOPS_WORKER" in os.environ: os._exit(7)')
    job = prepare(tmp, 'x = 1', env=dict(PYTHONPATH=tmp), engine='papermill')
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        error = results(ex)[job['id']]['error']
    assert (error['kind'], error['exitcode'])==('killed',7)


@linux
@pytest.mark.parametrize('does', ['import time; time.sleep(1000)', 'import os; os._exit(7)'])
def test_a_warm_process_that_is_none(tmp, does):
    Path(tmp, 'sitecustomize.py').write_text(f'import sys\nif "mlops_nb.root" in " ".join(sys.orig_argv): {does}')
    result,_ = run(tmp, 'x = 1', start_timeout=3, env=dict(PYTHONPATH=tmp), memory=f'{tmp}/rungs')
    assert (result['status'], result['rung'])==('completed','fresh') and 'fork' in result['why']
    assert not Path(tmp, 'rungs').exists() # the next one may find it well


# ## Memory

def test_a_memory_limit(tmp):
    eat = 'import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\nx = bytearray(4 * 2**30)'
    error = run(tmp, eat)[0]['error']
    assert (error['kind'], error['ename'])==('exception','MemoryError')


def memory_group(limit):
    "A control group with a memory limit that this process may use, or None"
    for base,name in ((Path('/sys/fs/cgroup/memory'),'memory.limit_in_bytes'),(Path('/sys/fs/cgroup'),'memory.max')):
        group = base/f'mlops-test-{os.getpid()}'
        try:
            group.mkdir()
            (group/name).write_text(str(limit))
            return group
        except OSError:
            if group.exists(): group.rmdir()


def test_the_out_of_memory_killer(tmp):
    group = memory_group(250 * 2**20)
    if not group: pytest.skip('control groups may not be made here')
    code = '''
import sys, json, os
open(sys.argv[2] + '/cgroup.procs', 'w').write(str(os.getpid()))
from mlops_nb.engine import execute
print(json.dumps(execute(json.loads(sys.argv[1]))))
'''
    job = prepare(tmp, 'x = 1', 'x = [bytearray(10 * 2**20) for _ in range(100)]')
    try:
        done = subprocess.run([sys.executable, '-c', code, json.dumps(job), str(group)], capture_output=True, text=True, timeout=100)
    finally: until(lambda: not (group/'cgroup.procs').read_text()) or group.rmdir()
    error = json.loads(done.stdout)['error']
    assert error['signal']==9 and 'out-of-memory killer' in error['evalue'] and 'less data' in error['remedy'] and error['cell']==2


def test_what_was_used(tmp):
    burn = 'import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass'
    result,_ = run(tmp, 'x = bytearray(300 * 2**20)', 'del x', burn)
    assert 300 <= result['peak_mb'] < 500
    assert 1 <= result['cpu_seconds'] < 5 and result['seconds'] >= 1
    small,_ = run(tmp, 'x = 1')
    assert 10 < small['peak_mb'] < 200


# ## Secrets

secret = 'q<7&"wéird p/w+%'
uses = 'from mlops_nb.kernel import secret\ntoken = secret("token")'


def nowhere(folder, value=secret, but=()):
    "Is the value in no file below `folder`, in no form that a notebook may give it?"
    import base64, html, urllib.parse
    forms = [value, html.escape(value), json.dumps(value)[1:-1], urllib.parse.quote(value), base64.b64encode(value.encode()).decode()]
    files = [o for o in Path(folder).rglob('*') if o.is_file() and not o.is_relative_to('/proc')]
    assert files
    found = [(str(o), f) for o in files for f in forms if f in o.read_text(errors='replace') or json.dumps(f)[1:-1] in o.read_text(errors='replace')]
    assert not found


shows = [
    'print(token)',
    'token',
    'print(repr(token), [token], token.encode())',
    'raise ValueError(f"denied: {token}")',
    'import html; from IPython.display import HTML; HTML(f"<b>{html.escape(token)}</b>")',
    'from IPython.display import display; display({"application/json": {"a": [token]}, "text/plain": token}, raw=True)',
    'import sys; print(token[:5], end="", flush=True); import time; time.sleep(.3); print(token[5:])',
    'import os; os.system(f"echo {__import__(\'shlex\').quote(token)} >&2"); import time; time.sleep(1)',
    'import base64, urllib.parse; print(base64.b64encode(token.encode()), urllib.parse.quote(token))',
    'import os; os.write(2, token.encode()); os._exit(1)',
    'import json; json.dumps(token)',
    'from IPython.display import JSON; JSON({"id": token, "cell_type": [token], token: 1})',
    'get_ipython().display_pub.publish({"text/plain": "x"}, metadata={"id": token})',
    'from IPython import get_ipython; get_ipython().display_pub.publish({"text/plain": "x"}, metadata={"who": token})']


@pytest.mark.parametrize('shown', shows)
def test_a_secret_is_shown_and_not_written(tmp, shown):
    job = prepare(tmp, uses, shown, secrets=dict(token=secret))
    events = []
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        while ex.running: events += ex.wait()
        nowhere(tmp)
    said = json.dumps(events, ensure_ascii=False)
    assert secret not in said and 'wéird' not in said and 'w\\u00e9ird' not in said
    assert '[secret token]' in Path(job['output']).read_text() or '_exit' in shown


@engines
def test_a_secret_is_not_in_a_notebook_that_is_half_written(tmp, engine):
    job = prepare(tmp, f'{tell}\n{uses}', 'print(token)', 'import time; time.sleep(1000)', secrets=dict(token=secret), engine=engine)
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        until_cell(ex, [job['id']], 3)
        processes(ex, tmp)[0].kill()
        results(ex)
        nowhere(tmp)
    assert '[secret token]' in Path(job['output']).read_text()


def test_a_secret_is_in_no_environment(tmp):
    look = '''
import subprocess, os
env = subprocess.run(["env"], capture_output=True, text=True).stdout
own = open("/proc/self/environ").read()
print(env, own, open("/proc/%d/environ" % os.getppid()).read(), sep="\\n")
assert "q<7" not in env + own
'''
    job = prepare(tmp, uses, look, secrets=dict(token=secret))
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        assert results(ex)[job['id']]['status']=='completed'
    assert '[secret token]' not in Path(job['output']).read_text()


# ## Outputs

def test_odd_outputs(tmp):
    result,nb = run(tmp, r'print("\x00 nul", "é 日本 🎉", "\x1b[31mred\x1b[0m")', r'"\ud83d half of a pair"', 'b"\\xff\\xfe"',
                    'import os; os.write(1, b"\\xff raw"); None',
                    'import sqlite3; sqlite3.connect(":memory:").execute("select x\'00ff\', \'\u2028\'").fetchall()', 'print("x" * 3_000_000)')
    assert result['status']=='completed'
    assert 'é 日本 🎉' in nb.cells[0].outputs[0].text and len(nb.cells[5].outputs[0].text)==3_000_001


def test_no_place_for_the_output(tmp):
    job = prepare(tmp, 'x = 1', output='/dev/null/out.ipynb')
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        error = results(ex)[job['id']]['error']
    assert error['kind']=='output' and 'executed notebook' in error['evalue']


# ## At once

def test_eight_at_once_by_ipc(tmp):
    with LocalExecutor(4, tmp) as ex:
        ids = [ex.submit(prepare(tmp, 'from mlops_nb import record', f'record(i={i})')) for i in range(8)]
        assert len(ex.running)==4 and ex.free==0
        done = results(ex)
    assert [done[o]['status'] for o in ids]==['completed']*8
    assert [metrics_of(f'{tmp}/out/{o}.ipynb') for o in ids]==[dict(i=i) for i in range(8)]


def test_two_workers_are_at_work_at_the_same_time(tmp):
    meet = 'import os, time\nopen("{0}", "w").close()\nwhile not os.path.exists("{1}"): time.sleep(0.01)'
    with LocalExecutor(2, tmp) as ex:
        for a,b in ('ab','ba'): ex.submit(prepare(tmp, meet.format(a, b), timeout=30))
        assert [o['status'] for o in results(ex).values()]==['completed']*2


# ## Engines

class Tiny(Engine):
    "Executes a notebook's cells by `exec`"
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        ns = {}
        for i,cell in enumerate(nb_man.nb.cells):
            nb_man.cell_start(cell, i)
            try: exec(cell.source, ns)
            finally: nb_man.cell_complete(cell, i)


def test_an_engine_of_somebody_else(tmp):
    papermill_engines.register('tiny', Tiny)
    events = []
    job = prepare(tmp, 'x = 20', 'open("made", "w").write(str(x + 1))', engine='tiny')
    result = execute(job, events.append)
    assert (result['status'], result['engine'])==('completed','tiny')
    assert Path(tmp, 'made').read_text()=='21' # in the notebook's folder
    assert [(o['state'], o['cell']) for o in events]==[('start',1),('end',1),('start',2),('end',2)]
    error = execute(prepare(tmp, '1/0', engine='tiny'))['error']
    assert (error['kind'], error['ename'], error['cell'])==('engine','ZeroDivisionError',1)


def test_an_engine_takes_its_secrets(tmp):
    papermill_engines.register('tiny', Tiny)
    job = prepare(tmp, uses, 'raise ValueError(token)', engine='tiny', secrets=dict(token=secret))
    error = execute(job)['error']
    assert error['evalue']=='[secret token]' and secret not in json.dumps(error, ensure_ascii=False)
    nowhere(tmp)


def test_wrong_requests(tmp):
    with pytest.raises(ConfigError) as e: execute(prepare(tmp, '1', engine='warp'))
    assert 'there is no engine warp' in str(e.value) and 'papermill' in str(e.value)
    job = prepare(tmp, '1')
    nb = nbformat.read(job['notebook'], 4)
    nb.metadata.kernelspec = dict(name='ir', display_name='R')
    nbformat.write(nb, job['notebook'])
    with pytest.raises(NotebookError, match='not installed'): execute(job)
    with LocalExecutor(1, tmp) as ex:
        ex.submit(job)
        error = results(ex)[job['id']]['error']
    assert (error['kind'], error['ename'])==('refused','NotebookError') and error['where']==job['notebook']
    Path(job['notebook']).write_text('{"cells": 3}')
    with pytest.raises(NotebookError, match='not a notebook'): execute(job)
    with pytest.raises(ConfigError): LocalExecutor(0)


# ## The same every time

def test_seeds(tmp):
    draw = 'import random, numpy as np\nprint(random.random(), np.random.rand(), hash("x"))'
    said = [run(tmp, draw, seed=s)[1].cells[0].outputs[0].text for s in (5, 5, 6)]
    assert said[0]==said[1]!=said[2]


def test_nobodys_profile(tmp):
    startup = Path(tmp)/'home/.ipython/profile_default/startup'
    startup.mkdir(parents=True)
    (startup/'00.py').write_text('mine = 1')
    result,nb = run(tmp, '"mine" in globals(), In[1][:6]', '_, Out[1]', env=dict(HOME=f'{tmp}/home'))
    assert [o.outputs[0].data['text/plain'] for o in nb.cells]==["(False, '\"mine\"')", "((False, '\"mine\"'), (False, '\"mine\"'))"]
    assert sorted(o.name for o in (Path(tmp)/'home').rglob('*') if o.is_file())==['00.py']
