"""Notebooks executed by the snapshot engine: each a process of its own, nothing stale, nothing shared that shows, nothing left behind"""
import gc, json, os, secrets, signal, subprocess, sys, threading, time
from pathlib import Path

import papermill as pm
import psutil
import pytest
from nbclient.exceptions import DeadKernelError

from mlops_nb.owner import owner
from mlops_nb.snapshot import Memory
from scratch import code, notebook, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='forks are for Linux')
mark = 'MLOPS_SNAPSHOT_MARK' # environment variable that every process of a calling program inherits
params = code('lr = 0', tags=['parameters'])
fork_only = "'mlops_nb.root' in open('/proc/self/cmdline').read()" # true in a fork, false in a fresh kernel
stuck = f'import threading\nif {fork_only}:\n  l = threading.Lock(); l.acquire(); l.acquire()\nprint("went on")'
leaves = '''import os, subprocess
left = [subprocess.Popen(['sleep', '{}'], start_new_session=o) for o in (False, True)]
if not os.fork():
    os.setsid()
    if not os.fork(): os.execvp('sleep', ['sleep', '{}'])
    os._exit(0)'''


def run(*cells, values=None, name='nb', engine='snapshot', **kw):
    "Execute a notebook of these cells in this folder"
    os.environ.pop('PYTEST_CURRENT_TEST', None) # ipykernel looks at it, and then leaves out what children print
    Path(f'{name}.ipynb').write_text(json.dumps(notebook(*cells)))
    return pm.execute_notebook(f'{name}.ipynb', f'{name}.out.ipynb', values or {}, engine_name=engine, progress_bar=False, **kw)


def texts(nb):
    "What each code cell printed"
    return [''.join(''.join(o.get('text', '')) for o in c['outputs']) for c in nb['cells'] if c['cell_type']=='code']


def said(*cells, **kw): return texts(run(*cells, **kw))[-1].strip()
def study(*cells, lr=1, **kw): return run(*cells, values=dict(lr=lr), share=True, differ=['lr'], **kw)
def about(nb): return nb.metadata.get('mlops_nb', {})
def root(): return [o.proc.pid for o in owner.handles.values()][-1]
def outputs(nb): return [(c.source, c.execution_count, c.outputs) for c in nb.cells if c.cell_type=='code']


def program(source, **env):
    "Start a program that executes notebooks, in a session of its own; with the mark of its processes"
    value, start = secrets.token_hex(8), f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_snapshot import *\n'
    env = {k: v for k,v in os.environ.items() if k!='PYTEST_CURRENT_TEST'} | env | {mark: value}
    return subprocess.Popen([sys.executable, '-c', start+source], env=env, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT), value


def answer(source, **env):
    "The last line that such a program prints, read as JSON"
    p,value = program(source, **env)
    out = p.communicate(timeout=60)[0]
    assert p.returncode==0 and not gone(value), out
    return json.loads(out.splitlines()[-1])


def living(value):
    "The living processes with this mark, or with this word in their command"
    found = []
    for p in psutil.process_iter():
        try:
            if p.status()!='zombie' and (p.environ().get(mark)==value or value in p.cmdline()): found.append(p)
        except psutil.Error: pass
    return found


def gone(value, seconds=5):
    "Wait until none of these lives; those that are left are killed, and told"
    end = time.monotonic()+seconds
    while (left := living(value)) and time.monotonic() < end: time.sleep(.05)
    told = [o.cmdline() for o in left if o.is_running()]
    for o in left: o.kill()
    return told


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    "Each test has a working folder of its own"
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope='module', autouse=True)
def roots():
    "No root outlives these tests"
    yield
    owner.close()


# --- a process of its own

def test_no_execution_sees_what_another_changed(folder):
    look = 'import json, math, os, tqdm, yaml\nprint(os.getpid(), [hasattr(o, "mine") for o in (json, tqdm, yaml)], os.environ.get("MINE"), os.getcwd(), math.pi, tqdm.tqdm.__name__, "extra" in sys.path)'
    change = 'json.mine = tqdm.mine = yaml.mine = 1\nos.environ["MINE"] = "1"\nos.chdir("/")\nmath.pi = 3\ntqdm.tqdm = int\nsys.path.append("extra")'
    found = [texts(run('import sys', look, change))[1].split(None, 1) for _ in range(4)]
    assert len({pid for pid,_ in found})==4 and {o for _,o in found}=={f'[False, False, False] None {folder} 3.141592653589793 tqdm False\n'}


@pytest.mark.parametrize('kw', [{}, dict(share=True)], ids=['warm', 'shared'])
def test_each_execution_draws_its_own_numbers(kw):
    draw = 'import random, numpy, uuid, tempfile\ndef f(): return random.random(), numpy.random.rand(), numpy.random.default_rng().random(), uuid.uuid4().hex, tempfile.mktemp()'
    found = [said(draw, params, 'print(lr, *f())', values=dict(lr=i), **kw).split()[1:] for i in range(4)]
    assert all(len(set(o))==4 for o in zip(*found)), found


def test_two_threads_execute_at_once():
    found = {}
    def go(i): found[i] = said('import time', params, f'time.sleep(.5); print({i}, lr)', values=dict(lr=i*10), name=f'nb{i}')
    threads = [threading.Thread(target=go, args=(i,)) for i in range(4)]
    for o in threads: o.start()
    for o in threads: o.join(30)
    assert found=={i: f'{i} {i*10}' for i in range(4)}


# --- nothing is stale

def write(path, text):
    "Write a file, with its folder"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize('kw', [{}, dict(share=True, differ=['lr'])], ids=['warm', 'shared'])
@pytest.mark.parametrize('where', ['mine.py', 'mine/__init__.py', 'mine/part.py', 'lib/mine.py', '../mine/__init__.py'])
def test_changed_project_code_is_used(folder, monkeypatch, where, kw):
    at, imports = folder/'nbs'/where, 'from mine import part as mine' if 'part' in where else 'import mine'
    (folder/'nbs').mkdir()
    monkeypatch.chdir(folder/'nbs')
    if 'lib' in where: monkeypatch.setenv('PYTHONPATH', str(at.parent))
    if where.startswith('..'): (folder/'pyproject.toml').write_text('[project]\nname = "mine"'); imports = 'import sys; sys.path.insert(0, "..")\nimport mine'
    found = []
    for i in (1, 22, 333):
        write(at, f'import tqdm\nvalue = {i}')
        found.append(said(imports, params, 'print(mine.value)', 'print(lr, mine.value)', values=dict(lr=i), **kw))
    assert found==['1 1', '22 22', '333 333']


def test_a_changed_file_of_data_is_read(folder):
    found = []
    for i in (1, 22, 333):
        (folder/'data.txt').write_text(str(i))
        found.append(said('from pathlib import Path\ntext = Path("data.txt").read_text()', params, 'print(lr, text)', values=dict(lr=i), share=True, differ=['lr']))
    assert found==['1 1', '22 22', '333 333']


@pytest.mark.parametrize('name,cell', [('tqdm', 'import tqdm as m'), ('yaml', 'import json, yaml as m'),
    ('certifi', 'import requests\nimport certifi as m')], ids=['tqdm', 'yaml', 'certifi'])
def test_a_file_beside_the_notebook_hides_a_package_in_its_folder_only(folder, monkeypatch, name, cell):
    (folder/'here').mkdir(), (folder/'there').mkdir()
    (folder/'here'/f'{name}.py').write_text('def where(): return ""')
    found = []
    for o in ('here', 'there', 'here', 'there'):
        monkeypatch.chdir(folder/o)
        found.append(Path(said(cell, 'print(m.__file__)')).is_relative_to(folder))
    assert found==[True, False, True, False]


# --- packages that aren't imported beforehand

packages = dict(prints='print("hello from here")', raises='raise ImportError("not today")', starts='import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()',
    opens='held = open(__file__)', child='import subprocess\nheld = subprocess.Popen(["sleep", "60"])', exits='raise SystemExit(3)', warns='import warnings\nwarnings.warn("beware")', quiet='value = 5')
why = dict(prints='said', raises='raised ImportError', starts='thread', opens='is open', child='child process', exits='raised SystemExit', warns='said')


def test_packages_that_act_when_they_are_imported(folder):
    for k,v in packages.items(): write(folder/'site-packages'/f'{k}_pkg.py', v)
    source = '''names = %r
print(json.dumps({k: [(texts(nb)[-1], about(nb).get('rung'), about(nb).get('why', '')) for _ in range(2) for nb in [run(
    'import tqdm, quiet_pkg', f'try: import {k}_pkg\\nexcept BaseException as e: print(e)', f'try: import {k}_pkg\\nexcept BaseException as e: print(e)\\nprint(quiet_pkg.value)')]] for k in names}))'''
    for k,looks in answer(source % list(packages), PYTHONPATH=str(folder/'site-packages')).items():
        for text,rung,reason in looks: assert text.endswith('5\n') and rung=='warm' and (f'{k}_pkg' in reason and why[k] in reason if k in why else not reason), (k, text, rung, reason)


def test_what_a_module_prints_when_it_is_imported_is_in_its_cell(folder):
    found = [run('import this', 'print(this.c)') for _ in range(2)]
    for o in found: assert 'The Zen of Python' in texts(o)[0] and "'The Zen of Python" in about(o)['why'] and about(o)['rung']=='warm'


# --- environments

def test_an_environment_has_a_root_of_its_own(monkeypatch):
    cells = ['import os, matplotlib, numpy, threadpoolctl', 'print(os.environ.get("MINE"), matplotlib.get_backend(), [o["num_threads"] for o in threadpoolctl.threadpool_info()][:1])']
    monkeypatch.setenv('OPENBLAS_NUM_THREADS', '2')
    found, roots = [], []
    for mine,backend,n in ((None, 'agg', '2'), ('1', 'agg', '2'), ('1', 'svg', '1'), (None, 'agg', '2')):
        monkeypatch.setenv('MINE', mine) if mine else monkeypatch.delenv('MINE', raising=False)
        monkeypatch.setenv('MPLBACKEND', backend)
        monkeypatch.setenv('OPENBLAS_NUM_THREADS', n)
        for _ in range(2): found.append(said(*cells)); roots.append(root())
    assert found[::2]==found[1::2]==['None agg [2]', '1 agg [2]', '1 svg [1]', 'None agg [2]']
    assert roots[::2]==roots[1::2] and len(set(roots[:6]))==3 and roots[0]==roots[-1]


# --- ends

busy = f'''nb = [{leaves.format(600, 601)!r}, 'open("ready", "w").close()\\nimport time\\ntime.sleep(600)']
study('import numpy', params, 'print(lr)')
'''
ends = dict(ends=f'run({leaves.format(600, 601)!r})', raises=f'run({leaves.format(600, 601)!r})\n1/0', exits=f'run({leaves.format(600, 601)!r})\nos._exit(0)',
    fails=f'run({leaves.format(600, 601)!r}, "1/0")', interrupt=busy+'run(*nb)', term=busy+'run(*nb)', kill=busy+'run(*nb)', thread=busy+'threading.Thread(target=run, args=nb).start()\nuntil(lambda: Path("ready").exists())\nos._exit(0)')
signals = dict(interrupt=signal.SIGINT, term=signal.SIGTERM, kill=signal.SIGKILL)


def test_a_program_that_ends_leaves_nothing(folder):
    started = {}
    for k,v in ends.items():
        (folder/k).mkdir()
        started[k] = program(f'import os; os.chdir({str(folder/k)!r})\n{v}')
    for k,number in signals.items():
        p,value = started[k]
        until(lambda: (folder/k/'ready').exists() or p.poll() is not None)
        until(lambda: len([o for o in living(value) if o.name()=='sleep'])==3 or p.poll() is not None)
        assert len(living(value)) > 5, k
        os.killpg(p.pid, number)
        start = time.monotonic()
        p.wait(20)
        assert time.monotonic()-start < 5, k
    ended = {k: (p.communicate(timeout=40)[0][-300:], p.returncode) for k,(p,_) in started.items()}
    end = time.monotonic()+4
    told = {k: (*ended[k], gone(value, end-time.monotonic())) for k,(_,value) in started.items()}
    assert not [(k, o) for k,o in told.items() if o[2]], told
    assert {k: o[1] for k,o in told.items()}==dict(ends=0, raises=1, exits=0, fails=1, interrupt=told['interrupt'][1], term=-15, kill=-9, thread=0), told
    assert told['interrupt'][1] and 'KeyboardInterrupt' in told['interrupt'][0] and 'ZeroDivisionError' in told['fails'][0]


@pytest.mark.parametrize('last', ['print(1)', '1/0', 'os._exit(1)'])
def test_what_a_cell_leaves_ends_with_its_execution(last):
    word = f'600.{secrets.randbelow(10**9)}'
    try: run('import numpy', leaves.format(word, word), last)
    except (pm.PapermillExecutionError, DeadKernelError): pass
    assert not gone(word, 3)


# --- snapshots

plain = 'import numpy as np\ndef double(x): return 2*x'
whole = ['import mine, random, numpy as np\nnp.random.seed(0); random.seed(1)\nmine.double(2)\ndata = {"a": [1, 2]}\ndef f(x): return x+data["a"][0]\nprint("made")\nnp.arange(3)', params,
    'other = np.random.rand(2)\nprint("shared", other, flush=True)\nother', 'data["a"].append(lr); mine.mine = lr; np.extra = 1\nprint(data, f(lr), np.random.rand(), random.random())\nlr',
    'print(In[0:3], In[4:], _i, _ii, _, __, Out, _i2, _oh is Out)', 'print(mine.mine, data, __name__, sorted(o for o in globals() if o[0]!="_"), get_ipython().execution_count)']


def started(nb): return [o.metadata.mlops_nb.start_time for o in nb.cells if o.metadata.get('mlops_nb', {}).get('shared')]


def test_snapshots_give_what_executions_alone_give(folder):
    write(folder/'mine.py', plain)
    shared = [study(*whole, lr=i) for i in (1, 2.5, -3)]
    assert started(shared[0]) and started(shared[0])==started(shared[1])==started(shared[2]) # executed once
    alone = [run(*whole, values=dict(lr=i)) for i in (1, 2.5, -3)]
    fresh = run(*whole, values=dict(lr=-3), engine=None)
    assert [about(o)['rung'] for o in shared]==['snapshot']*3 and [about(o)['rung'] for o in alone]==['warm']*3
    for a,b in zip(shared, alone): assert outputs(a)==outputs(b)
    assert outputs(shared[-1])==outputs(fresh)


def test_the_injected_cell_in_the_history():
    cells = [params, 'x = 1', 'print(lr, [In[2], _i2, _iii, _ii])']
    assert outputs(study(*cells, lr=5))==outputs(run(*cells, values=dict(lr=5)))


def test_shared_cells_are_marked(folder):
    write(folder/'mine.py', plain)
    nb = study(whole[0], 'x = 3', params, 'print(lr)')
    n, flags = about(nb)['shared_cells'], [o.metadata.get('mlops_nb', {}) for o in nb.cells]
    assert n==4 and [o.get('shared') for o in flags]==[True]*4+[None] and 'mentions lr' in about(nb)['why']
    assert all(o['start_time'] <= o['end_time'] for o in flags[:n]) and [o.execution_count for o in nb.cells]==[1, 2, 3, 4, 5]


def test_a_study_without_a_hint_finds_out_what_differs():
    cells = ['import math\nx = 1', code('lr, n = 0, 0', tags=['parameters']), 'y = n+1', 'print(lr, y)']
    found = [run(*cells, values=dict(lr=i, n=5), share=True) for i in range(4)]
    assert [texts(o)[-1] for o in found]==[f'{i} 6\n' for i in range(4)] and [about(o).get('shared_cells') for o in found]==[3, 4, 4, 4]
    other = run(*cells, values=dict(lr=1, n=7), share=True)
    assert texts(other)[-1]=='1 8\n' and about(other)['shared_cells']==3


# --- where the shared cells end

left = dict(thread=('import threading, time\ndef f(): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()', 'thread'), file=('def f(): return open(__file__)', 'file_pkg.py is open'),
    sqlite=('import sqlite3\ndef f(): c = sqlite3.connect("base.db"); c.execute("create table if not exists t(x)"); return c', 'base.db is open'),
    task=('import asyncio\ndef f(): return asyncio.get_event_loop().create_task(asyncio.sleep(60))', 'asyncio'), folder=('import tempfile\ndef f(): return tempfile.TemporaryDirectory()', 'tidied up'),
    child=('import subprocess\ndef f(): return subprocess.Popen(["sleep", "60"])', 'child process'), socket=('import socket\ndef f(): return socket.socket()', 'socket'),
    pipe=('import os\ndef f(): return os.pipe()', 'pipe'), timer=('import signal\ndef f(): signal.setitimer(signal.ITIMER_REAL, 1000)', 'timer'), atexit=('import atexit\ndef f(): atexit.register(int)', 'atexit'),
    memory=('import mmap\ndef f(): return mmap.mmap(-1, 4096)', 'memory'), pool=('from concurrent.futures import ThreadPoolExecutor\ndef f(): e = ThreadPoolExecutor(1); e.submit(int).result(); return e', 'thread'))


def test_shared_cells_end_before_what_a_fork_cannot_have(folder):
    for k,(source,_) in left.items(): write(folder/'site-packages'/f'{k}_pkg.py', source) # a package isn't read, so only its execution tells
    source = '''names = %r
print(json.dumps({k: [(texts(nb)[-1], about(nb).get('shared_cells'), about(nb)['why']) for i in (1, 2) for nb in [
    study(f'import {k}_pkg as p\\nx = [1]', 'held = p.f()', params, 'print(lr, x)', lr=i)]] for k in names}))'''
    for k,found in answer(source % list(left), PYTHONPATH=str(folder/'site-packages')).items():
        for i,(text,n,why) in enumerate(found, 1): assert text==f'{i} [1]\n' and n==1 and 'cell 2' in why and left[k][1] in why, (k, text, n, why)


def test_shared_cells_end_in_the_first_execution_too(folder):
    write(folder/'mine.py', 'import colorsys, mmap\ndef f(): return mmap.mmap(-1, 4096)')
    assert about(study('import mine\nx = [1]', 'held = mine.f()', params, 'print(lr, x)', start_timeout=3)).get('shared_cells')==1


does = dict(clock=('import datetime\ndef f(): return datetime.datetime.now()', 'clock'), unique=('from uuid import uuid4\ndef new(): return uuid4()\ndef f(): return new()', 'unique'),
    writes=('def f():\n  with open("log", "a") as o: o.write("x")\n  return len(open("log").read())', 'writes'), environment=('import os, random\ndef f(): return os.environ.get("A"), random.SystemRandom().random()', 'environment'))


@pytest.mark.parametrize('kind', does)
@pytest.mark.parametrize('use', ['import mine\nx = mine.f()', 'from mine import f as g\nx = g()', 'from mine import *\nx = f()'], ids=['module', 'name', 'star'])
def test_what_project_code_does_is_done_by_each_execution(folder, kind, use):
    write(folder/'mine.py', does[kind][0])
    found = [study('import math\ny = [1]', use, params, 'print(lr, x)', lr=i) for i in (1, 2, 3)]
    assert len({texts(o)[-1].split(None, 1)[1] for o in found})==3 and (kind!='writes' or (folder/'log').read_text()=='xxx')
    for o in found: assert about(o)['shared_cells']==1 and 'cell 2 uses mine.f, which' in about(o)['why'] and does[kind][1] in about(o)['why'], about(o)


def test_what_a_project_module_does_when_it_is_imported_is_done_by_each_execution(folder):
    write(folder/'mine.py', 'import uuid\nvalue = uuid.uuid4()')
    write(folder/'between.py', 'from mine import value\ndef f(): return value')
    found = [study('import math', 'import between', params, 'print(between.f())', lr=i) for i in (1, 2, 3)]
    assert len({texts(o)[-1] for o in found})==3 and 'cell 2 imports between, which imports mine, which makes something unique' in about(found[-1])['why']


def test_project_code_that_becomes_doubtful_is_shared_no_more(folder):
    found = []
    for source in ('def f(): return 5', 'import uuid\ndef f(): return uuid.uuid4()'):
        write(folder/'mine.py', source)
        found += [study('import mine', 'x = mine.f()', params, 'print(x)', lr=i) for i in (1, 2)]
    assert len({texts(o)[-1] for o in found})==3 and [about(o)['shared_cells'] for o in found]==[5, 5, 1, 1]


def test_shared_cells_end_before_an_error(folder):
    write(folder/'mine.py', 'def f(): 1/0')
    for i in (1, 2):
        with pytest.raises(pm.PapermillExecutionError) as e: study('import mine\nx = [1]', 'mine.f()', params, lr=i)
        assert e.value.cell_index==1 and json.loads(Path('nb.out.ipynb').read_text())['cells'][1]['metadata']['mlops_nb']['shared']


uses = dict(direct=('print(lr)', 'lr'), function=('def f(): return lr\nprint(f())', 'lr'), globals=('print(globals()["l"+"r"])', 'globals'), locals=('print(locals()["l"+"r"])', 'locals'),
    vars=('print(vars()["l"+"r"])', 'vars'), exec=('exec("print(l"+"r)")', 'exec'), eval=('print(eval("l"+"r"))', 'eval'), main=('import __main__ as m\nprint(getattr(m, "l"+"r"))', '__main__'),
    modules=('import sys\nprint(sys.modules["__ma"+"in__"].__dict__["l"+"r"])', '__dict__'), shell=('print(get_ipython().user_ns["l"+"r"])', 'user_ns'), run=('%run -i other.py', '%run'), load=('%load other.py', '%load'),
    bang=('!echo $lr', '!'), lambda_=('f = lambda: lr\nprint(f())', 'lr'), text=('import pandas as pd\nprint(pd.DataFrame(dict(a=[5])).eval("a*0+@lr")[0])', 'lr'), kind=('class A:\n  x = lr\nprint(A.x)', 'lr'),
    walrus=('print(f"{lr}")', 'lr'), nfkc=('print(ｌr)', 'lr'), history=('print(In[-2].split()[-1])', 'In'), get=('import builtins\nprint(getattr(builtins, "ev"+"al")("l"+"r"))', 'reaches into the namespace'),
    frame=('import sys\nprint(sys._getframe().f_globals["l"+"r"])', 'f_globals'), env=('import os\nprint(os.environ["HOME"])', 'environ'), clock=('import time\nprint(time.time())', 'time'),
    helper=('import mine\nprint(mine.peek())', 'mine'), prun=('time lr', ''), timeit=('%%time\nprint(lr)', '%'))


@pytest.mark.parametrize('kind', uses)
def test_shared_cells_end_before_a_use_of_what_differs(folder, kind):
    source, reason = uses[kind]
    write(folder/'other.py', 'print(lr)')
    write(folder/'mine.py', 'import __main__\ndef peek(): return __main__.lr')
    for i in (1, 2, 3):
        nb = study('import math\nx = [1]', params, 'y = 5', source, 'print(x, y, lr)', lr=i)
        assert texts(nb)[-1]==f'[1] 5 {i}\n' and about(nb)['shared_cells']==4, about(nb)
        assert str(i) in texts(nb)[-2] or kind in ('load', 'history', 'prun', 'env', 'clock'), texts(nb)
        assert 'cell 4' in about(nb)['why'] and reason in about(nb)['why'], about(nb)


# --- stuck

@pytest.fixture
def impatient(monkeypatch):
    "A proof that a fork is stuck takes 2 s, not 10"
    import functools, mlops_nb.snapshot as s, mlops_nb.stall as m
    monkeypatch.setattr(m, 'Stall', functools.partial(m.Stall, patience=2.))
    monkeypatch.setattr(s.Client, 'silence', 1.)


def test_a_stuck_fork_is_executed_afresh_and_remembered(folder, impatient):
    cells, mine = ['import numpy\nprint("before")', params, stuck], Memory(folder/'memory')
    first = run(*cells, values=dict(lr=1), memory=mine)
    assert texts(first)[-1]=='went on\n' and about(first)['rung']=='fresh' and 'cell 4 got stuck' in about(first)['why'] and 'from the cell, line 3' in about(first)['why'], about(first)
    forked = []
    again = run(*cells, values=dict(lr=2), memory=Memory(folder/'memory'), started=forked.append)
    assert texts(again)[-1]=='went on\n' and about(again)==about(first) and not forked
    assert [texts(o)[0] for o in (first, again)]==['before\n']*2 and not about(run(cells[0], params, 'print(lr)', memory=mine)).get('why')


def test_a_snapshot_that_gets_stuck_is_not_made_again(folder, impatient):
    write(folder/'mine.py', f'import queue\ndef f():\n  if {fork_only}: queue.Queue().get()')
    run('import mine, math')
    nb = study('import mine, math\nx = 1', 'mine.f()', params, 'print(lr)', memory=Memory())
    assert texts(nb)[-1]=='1\n' and about(nb)['rung']=='fresh' and 'cell 2 got stuck' in about(nb)['why'], about(nb)


waiting = dict(sleep='import time\ntime.sleep(8)', computes='import time\nend = time.time()+8\nwhile time.time() < end: pass', process='import subprocess\nsubprocess.run(["sleep", "8"])',
    peer='import socket\ns = socket.create_connection(("127.0.0.1", port))\ns.recv(10)', queue='import queue, threading, time\nq = queue.Queue()\nthreading.Timer(8, q.put, [1]).start()\nq.get()',
    loop='import asyncio\nawait asyncio.sleep(8)', pool='import multiprocessing, time\nmultiprocessing.Pool(2).map(time.sleep, [8, 8])')


def test_who_merely_waits_is_not_disturbed(impatient):
    import socket
    found, server = {}, socket.create_server(('127.0.0.1', 0))
    def answer(): c = server.accept()[0]; time.sleep(8); c.sendall(b'here'); c.close()
    def go(k): found[k] = run(code('port = 0', tags=['parameters']), waiting[k]+'\nprint("done")', values=dict(port=server.getsockname()[1]), name=k, memory=Memory())
    threads = [threading.Thread(target=answer), *(threading.Thread(target=go, args=(k,)) for k in waiting)]
    for o in threads: o.start()
    for o in threads: o.join(60)
    server.close()
    assert {k: (about(o)['rung'], texts(o)[-1]) for k,o in found.items()}=={k: ('warm', 'done\n') for k in waiting}


# --- fresh kernels

def test_another_kernel_is_fresh(folder, monkeypatch):
    wrapper = folder/'wrapper.py'
    wrapper.write_text('import os, runpy\nos.environ["WRAPPED"] = "yes"\nrunpy.run_module("ipykernel_launcher", run_name="__main__")')
    write(folder/'share/kernels/odd/kernel.json', json.dumps(dict(argv=[sys.executable, str(wrapper), '-f', '{connection_file}'], display_name='Odd', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(folder/'share'))
    nb = run('import os', 'print(os.environ["WRAPPED"])', kernel_name='odd')
    assert texts(nb)[-1]=='yes\n' and about(nb)['rung']=='fresh' and 'odd is another program' in about(nb)['why']


@pytest.mark.parametrize('kind', ['IPYTHONDIR', 'PYTHONSTARTUP'])
def test_a_startup_file_is_honoured(folder, monkeypatch, kind):
    write(folder/'profile_default/startup/00-mine.py', 'started = 5')
    monkeypatch.setenv(kind, str(folder if kind=='IPYTHONDIR' else folder/'profile_default/startup/00-mine.py'))
    nb = run('import os', 'print(started)')
    assert texts(nb)[-1]=='5\n' and about(nb)['rung']=='fresh' and ('00-mine.py' if kind=='IPYTHONDIR' else kind) in about(nb)['why']


# --- much output

@pytest.mark.parametrize('source', ['for i in range(100): print("x"*999_999)', 'import os\nfor i in range(100): os.write(1, b"x"*999_999+b"\\n")',
    'import subprocess, sys\nsubprocess.run([sys.executable, "-c", "for i in range(100): print(999_999*chr(120))"]);',
    'import ctypes\nc = ctypes.CDLL(None)\nfor i in range(100): c.puts(b"x"*999_999)\nc.fflush(None);', 'for i in range(200_000): print(i, "y"*30)'], ids=['print', 'write', 'process', 'libc', 'lines'])
def test_100_mb_arrive(source):
    nb = run(source)
    wanted = ''.join(f'{i} {"y"*30}\n' for i in range(200_000)) if '"y"' in source else ('x'*999_999+'\n')*100
    assert texts(nb)[-1]==wanted and Path('nb.out.ipynb').stat().st_size > len(wanted)


# --- signals in the middle of an output

alarm = '''import signal
class Time(Exception): pass
def ring(*_):
  display("rings")
  raise Time
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, .3)
try:
  while True: print("x"*50_000)
except Time: print("caught")'''


@pytest.mark.parametrize('source', ['while True: print("x"*50_000)', 'while True: display("x"*50_000)'])
def test_an_interrupt_breaks_no_message(source):
    for _ in range(3):
        with pytest.raises(pm.PapermillExecutionError) as e: run(source, timeout=1, interrupt_on_timeout=True)
        assert e.value.ename=='KeyboardInterrupt'


def test_a_handler_that_shows_something_and_raises():
    for _ in range(5):
        first, second = run(alarm, 'print("goes on")').cells
        assert any("'rings'" in o.get('data', {}).get('text/plain', '') for o in first.outputs) and first.outputs[-1].text.endswith('caught\n') and second.outputs[0].text=='goes on\n'


# --- open files

def test_no_file_stays_open():
    def count(): gc.collect(); return len(os.listdir('/proc/self/fd')), len(os.listdir(f'/proc/{root()}/fd')), len(threading.enumerate())
    def some(n):
        for i in range(n): run('import numpy', 'print(1)') if i%2 else study('import numpy', params, 'print(lr)', lr=i)
    def failing():
        for o in ('1/0', 'import os\nos._exit(1)'):
            with pytest.raises((pm.PapermillExecutionError, DeadKernelError)): run('import numpy', o)
    some(6), failing()
    before = until(lambda: count() if count()==(time.sleep(.2), count())[1] else None)
    some(30), failing()
    until(lambda: count()==before, 5)


# --- secrets

fetch = 'from mlops_nb.kernel import secret\nprint(len(secret("token")))'
look = 'import glob\nfound = []\nfor o in glob.glob("/proc/[0-9]*/environ")+glob.glob("/proc/[0-9]*/cmdline"):\n  try:\n    if b"v4"+b"lue" in open(o, "rb").read(): found.append(o)\n  except OSError: pass\nprint(found)'


@pytest.mark.parametrize('kw', [{}, dict(share=True)], ids=['warm', 'shared'])
def test_a_secret_is_in_no_environment_and_with_no_other_execution(kw):
    nb = run('import numpy', fetch, params, look, secrets=dict(token='v4'+'lue'), **kw)
    assert texts(nb)[1]=='5\n' and texts(nb)[-1]=='[]\n' and about(nb)['rung']==('snapshot' if kw else 'warm')
    for _ in range(3):
        with pytest.raises(pm.PapermillExecutionError, match='there is no secret token'): run('import numpy', fetch, params, look, **kw)


def test_a_fresh_kernel_has_the_secrets(monkeypatch, folder):
    write(folder/'start.py', '')
    monkeypatch.setenv('PYTHONSTARTUP', str(folder/'start.py'))
    assert said('import numpy', fetch, secrets=dict(token='v4'+'lue'))=='5'


# --- errors

def test_an_error_says_where():
    cells, told = ['import math\nprint("before")', params, 'x = 1\nraise ValueError(f"no {lr}")'], []
    for engine in ('snapshot', None):
        with pytest.raises(pm.PapermillExecutionError) as e: run(*cells, values=dict(lr=7), engine=engine)
        told.append({k: getattr(e.value, k) for k in ('cell_index', 'exec_count', 'source', 'ename', 'evalue')})
        assert '----> 2' in str(e.value) and 'raise ValueError(f"no {lr}")' in str(e.value)
    assert told[0]==told[1] and told[0]['evalue']=='no 7' and told[0]['cell_index']==3, told


@pytest.mark.parametrize('source', ['import os\nos._exit(3)', 'import ctypes\nctypes.string_at(0)', 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)'])
@pytest.mark.parametrize('kw', [{}, dict(share=True, differ=['lr'])], ids=['warm', 'shared'])
def test_a_dead_fork(source, kw):
    with pytest.raises(DeadKernelError) as e: run('print("before")', params, 'print(lr, flush=True)\n'+source, 'print("after")', values=dict(lr=3), **kw)
    assert e.value.__notes__==['In cell 4 of nb.ipynb: print(lr, flush=True)']
    left = json.loads(Path('nb.out.ipynb').read_text())
    assert texts(left)==['before\n', '', '', '3\n', '']
    assert said('print(1)')=='1'


def test_a_fork_of_the_calling_program():
    assert answer('''import multiprocessing
def go(q): q.put([said('import numpy', 'print(1)'), root()])
q, mine = multiprocessing.get_context('fork').Queue(), [said('import numpy', 'print(0)'), root()]
several = [multiprocessing.get_context('fork').Process(target=go, args=(q,)) for _ in range(2)]
for o in several: o.start()
found = [q.get(timeout=30) for _ in several]
for o in several: o.join(10); assert o.exitcode==0
pid = os.fork()
if not pid: sys.exit(said('print(3)')!='3')
assert os.waitpid(pid, 0)[1]==0
print(json.dumps([sorted(o[0] for o in found), len({mine[1], *(o[1] for o in found)}), said('print(2)'), root()==mine[1]]))''')==[['1', '1'], 3, '2', True]
