"""Executions that share their first cells: nothing that may differ is shared, nothing shared is stale, and who waits for them waits no longer than must be"""
import http.server, json, os, sys, threading, time
from pathlib import Path

import psutil
import pytest
from nbclient.exceptions import CellTimeoutError

from scratch import code, until
from test_snapshot import about, answer, folder, params, root, roots, run, said, study, texts, write # noqa: F401 (fixtures among them)

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='forks are for Linux')


# --- each execution has its own

def test_each_execution_has_the_environment_of_its_own(monkeypatch):
    found = []
    for i in (1, 2, 3):
        monkeypatch.setenv('MLOPS_STAGE_RUN', f'run{i}')
        found.append(study('import math\nx = 1', params, 'import os\nprint(lr, os.environ["MLOPS_STAGE_RUN"])', lr=i))
    assert [texts(o)[-1] for o in found]==[f'{i} run{i}\n' for i in (1, 2, 3)] and {about(o)['rung'] for o in found}=={'snapshot'}


def test_what_shared_cells_put_into_the_environment_stays(folder):
    write(folder/'site-packages'/'sets_pkg.py', 'import os\ndef f(): os.environ["SET_BY"] = "shared"')
    source = '''print(json.dumps([texts(study('import sets_pkg\\nsets_pkg.f()', params, 'import os\\nprint(os.environ["SET_BY"])', lr=i))[-1] for i in (1, 2)]))'''
    assert answer(source, PYTHONPATH=str(folder/'site-packages'))==['shared\n']*2


def test_a_parameter_that_is_left_out_has_its_default():
    cells = ['import math\nx = 1', code('a, b = 0, 0', tags=['parameters']), 'y = 2', 'print(a, b)']
    given = [dict(a=1, b=2), dict(a=1), dict(a=1, b=2), {}, dict(b=3), dict(a=1, b=2)]
    assert [texts(run(*cells, values=o, share=True))[-1] for o in given]==[f"{o.get('a', 0)} {o.get('b', 0)}\n" for o in given]


@pytest.mark.parametrize('cell,shared', [('import numpy as np\nx = np.random.default_rng(42).random()', True), ('import numpy as np\nsplit_seed = 7\nx = np.random.rand()', False),
    ('import random\nrandom.seed(1)\nx = random.random()', True), ('import numpy as np, random\nrandom.seed(1)\nx = np.random.rand()', False)])
def test_numbers_without_a_seed_are_not_shared(cell, shared):
    found = [study(cell, params, 'print(x)', lr=i) for i in (1, 2)]
    assert len({texts(o)[-1] for o in found})==(1 if shared else 2) and [about(o).get('shared_cells', 0) > 1 for o in found]==[shared]*2, [about(o) for o in found]


def test_a_generator_that_a_package_made_without_a_seed(folder):
    write(folder/'site-packages'/'drawing_pkg.py', 'import random\nfree, fixed = random.Random(), random.Random(1)')
    source = "print(json.dumps([said('import drawing_pkg as d', 'print(d.free.random(), d.fixed.random())').split() for _ in range(3)]))"
    free, fixed = zip(*answer(source, PYTHONPATH=str(folder/'site-packages')))
    assert len(set(free))==3 and len(set(fixed))==1


def test_a_tag_of_cells_that_are_skipped():
    cells = ['import math\nx = 1', code('x = 2', tags=['mine']), params, 'print(x, lr)']
    for i in (1, 2): assert texts(study(*cells, lr=i, skip_cells_with_tag='mine'))[-1]==f'1 {i}\n'


# --- nothing is stale

def grown(folder, read, make, show='print(len(table))', first='import pandas as pd, pyarrow.parquet as pq\nfrom pathlib import Path\nyear = 2013\nroot = Path(".")'):
    "What is seen while a file grows"
    import pandas as pd
    found = []
    for i in (10, 20, 30):
        make(pd.DataFrame(dict(a=range(i))))
        found.append(texts(study(first, f'table = {read}', params, show, lr=i))[-1])
    return found


@pytest.mark.parametrize('read', ['pd.read_parquet("flights_2013.parquet")', 'pd.read_parquet(f"flights_{year}.parquet")', 'pq.read_table(root/"flights_2013.parquet")', 'pd.concat([pd.read_parquet(o) for o in root.glob("*.parquet")])',
    'pd.read_parquet("flights_2013.parquet")\n%matplotlib inline', 'pd.read_csv(f"flights_{year}.csv")', 'pd.read_csv(next(root.glob("*.csv")))'])
def test_a_file_that_grows_is_read_again(folder, read):
    def make(table): table.to_parquet('flights_2013.parquet'), table.to_csv('flights_2013.csv', index=False)
    assert grown(folder, read, make)==['10\n', '20\n', '30\n']


def test_one_of_many_files_that_changes(folder):
    for i in range(300): write(folder/'part'/f'{i}.txt', '')
    def make(table): table.to_parquet('part/d.parquet')
    assert grown(folder, 'pd.read_parquet(root/"part"/"d.parquet")', make)==['10\n', '20\n', '30\n']


def test_a_file_or_a_module_that_comes_later(folder):
    cells = ['import json\nfrom pathlib import Path\np = Path("override.json")\nx = json.loads(p.read_text()) if p.exists() else 0', 'try: from my_local import v\nexcept ImportError: v = 0', params, 'print(x, v)']
    found = [texts(study(*cells, lr=1))[-1]]
    write(folder/'override.json', '5')
    found.append(texts(study(*cells, lr=2))[-1])
    write(folder/'my_local.py', 'v = 7')
    assert [*found, texts(study(*cells, lr=3))[-1]]==['0 0\n', '5 0\n', '5 7\n']


class Counting(http.server.BaseHTTPRequestHandler):
    "Says how often it was asked"
    asked = 0
    def do_GET(self):
        Counting.asked += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'a\n{Counting.asked}\n'.encode())
    def log_message(self, *args): pass


def test_the_network_is_asked_by_each_execution():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = [study('import pandas as pd\nx = 1', f'table = pd.read_csv("http://127.0.0.1:{server.server_port}/a.csv")', params, 'print(table.a[0])', lr=i) for i in (1, 2, 3)]
        server.shutdown()
    assert [texts(o)[-1] for o in found]==['1\n', '2\n', '3\n'] and [about(o)['shared_cells'] for o in found]==[1]*3 and Counting.asked==3


# --- who waits

def test_shared_cells_that_take_long_are_waited_for():
    found = [study('import time\ntime.sleep(4)', params, 'print(lr)', lr=i, start_timeout=1) for i in (1, 2)]
    assert [about(o).get('shared_cells') for o in found]==[3, 3], [about(o) for o in found]


def busy(processes):
    "Does one of them compute?"
    try: return sum(o.cpu_percent(.3) for o in processes) > 50
    except psutil.Error: return True # it has just ended


def warm():
    "The living processes below the root"
    return [o for o in psutil.Process(root()).children(recursive=True) if not dead(o)]


def dead(process):
    try: return process.status()=='zombie'
    except psutil.Error: return True


def test_shared_cells_that_take_too_long_end():
    with pytest.raises(CellTimeoutError): study('import time\nx = 1', 'while True: pass', params, 'print(lr)', execution_timeout=2)
    until(lambda: not busy(warm()), 10)
    nb = json.loads(Path('nb.out.ipynb').read_text())
    how = nb['metadata']['mlops_nb']
    assert how['shared_cells']==1 and 'cell 2 took too long' in how['why']


def test_a_snapshot_that_nobody_waits_for_is_not_made():
    source = '''from mlops_nb.snapshot import Fork
nb = notebook('n = 0\\nwhile True: n += 1', params, 'print(lr)')
from nbformat import from_dict
from mlops_nb.snapshot import request_of
fork = Fork(owner, request_of(from_dict(nb), True, ['lr']))
from test_study import busy, warm
until(lambda: busy(warm()))
fork.close()
until(lambda: not busy(warm()))
print(1)'''
    assert answer(source)==1


def test_packages_of_notebooks_that_come_are_imported_meanwhile():
    from mlops_nb.owner import owner
    said('print(1)')
    before = {o.pid for o in warm()} # some of them may be about to end
    owner.root(dict(os.environ)).coming([[['wave', []], ['zipapp', []]]])
    until(lambda: {o.pid for o in warm()} - before)
    assert about(run('import wave, zipapp', 'print(1)'))['rung']=='warm' and len({o.pid for o in warm()} - before) <= 2


def test_a_thread_that_goes_on_does_not_keep_the_caller():
    start = time.monotonic()
    run('import threading, time\ndef f():\n  for _ in range(60): print("tick", flush=True); time.sleep(.5)\nthreading.Thread(target=f).start()')
    assert time.monotonic()-start < 20


def test_many_studies_and_many_imports_leave_a_bounded_number_of_processes():
    names = 'abc ast bisect calendar cmd colorsys copy csv decimal difflib dis fractions getopt glob gzip heapq'.split()
    for o in names: run(f'import {o}', 'print(1)')
    for o in names[:8]: run(f'import {o}\nx = 1', params, 'print(lr)', values=dict(lr=1), share=True)
    until(lambda: len(warm()) <= 12+4+4, 10) # each snapshot has a fork ready


# --- where modules are found

def test_a_relative_path_of_modules(folder, monkeypatch):
    write(folder/'src'/'beside_me.py', 'value = 5')
    monkeypatch.setenv('PYTHONPATH', 'src')
    for kw in ({}, dict(share=True)): assert said('import math', params, 'import beside_me\nprint(beside_me.value)', **kw)=='5'


def test_a_bar_of_tqdm_is_shared():
    found = [study('from tqdm import tqdm\nx = 0\nfor i in tqdm(range(3), mininterval=0): x += i', params, 'for i in tqdm(range(2)): pass\nprint(x, lr)', lr=i) for i in (1, 2)]
    assert [f'3 {i}\n' in texts(o)[-1] for i,o in enumerate(found, 1)]==[True]*2 and [about(o)['shared_cells'] for o in found]==[3]*2


def test_a_warning_for_whoever_imports(folder):
    write(folder/'site-packages'/'old_pkg.py', 'import warnings\nwarnings.warn("old_pkg is old", DeprecationWarning, stacklevel=2)')
    assert 'old_pkg is old' in answer("print(json.dumps(texts(run('import old_pkg', '1'))[0]))", PYTHONPATH=str(folder/'site-packages'))
