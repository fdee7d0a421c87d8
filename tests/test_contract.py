"""The contract of stage notebooks: the same in JupyterLab, under papermill and in a run; never a wrong hit; no secret anywhere"""
import asyncio, json, os, random, shutil, signal, subprocess, sys, textwrap, urllib.request, zipfile
from datetime import date
from pathlib import Path

import nbformat, pytest

from mlops_nb.code import CodeIndex, definitions
from mlops_nb.contract import record_mime
from mlops_nb.notebook import Notebook, make_notebook
from mlops_nb.parameters import Text
from mlops_nb.plan import Workspace, plan
from mlops_nb.run import run
from scratch import Project, code, notebook

here = {k: v for k, v in os.environ.items() if not k.startswith('MLOPS')} # what JupyterLab knows: nothing of ours


def bytes_below(folder):
    "{relative path: bytes}"
    return {str(o.relative_to(folder)): o.read_bytes() for o in sorted(Path(folder).rglob('*')) if o.is_file()}


def metrics(nb): return {k: v for c in nb['cells'] for o in c.get('outputs', []) for k, v in o.get('data', {}).get(record_mime, {}).items()}


# -- one notebook, four ways ---------------------------------------------------------------------------------------------------------------------

prepare = ('raw: In = "raw"                # a folder of texts\nwords: Out = "data/words"     # a folder too\nlimit: int = 3\nshare: float = 1\nday: date = date(2013, 7, 4)\n'
           'mode: Literal["lower", "upper"] = "lower"\nskip: list[str] = ["of"]\nnote: Optional[str] = None\napi_token: Secret = ""',
           'import os\nfrom pathlib import Path\nos.makedirs(words)\nfor f in sorted(Path(raw).iterdir()):\n'
           '    ws = [getattr(w, mode)() for w in f.read_text().split() if w not in skip][:limit]\n    (Path(words)/f.name).write_text(f"{share} {day} {note} {ws}")',
           'from helper import count\nrecord(files=len(os.listdir(words)), n=count(words))\nfor i in range(3): report(i/2, step=i)')
summarize = ('words: In = "data/words"\nsummary: Out = "data/summary.txt"', 'import os\nfrom pathlib import Path\n'
             'Path(summary).write_text("\\n".join(o.read_text() for o in sorted(Path(words).iterdir())))\nrecord(size=os.path.getsize(summary))')


def write_texts(project):
    "A pipeline of two stages, with a module beside it"
    for k, v in dict(a='Notes of a stage', b='Many Words of One Text more').items():
        (project.folder/'raw').mkdir(exist_ok=True)
        (project.folder/'raw'/f'{k}.txt').write_text(v)
    (project.folder/'helper.py').write_text('import os\ndef count(folder): return len(os.listdir(folder))*10')
    first, *rest = prepare
    cells = ['from datetime import date\nfrom typing import Literal, Optional\nfrom mlops_nb import In, Out, Secret, record, report', code(first, tags=['parameters']), *rest]
    (project.folder/'01_prepare.ipynb').write_text(json.dumps(notebook(*cells)))
    project.stage('02_summarize', *summarize)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    "A project in which the pipeline has run; its folder as it then was, and the metrics"
    project = Project(tmp_path_factory.mktemp('texts')/'project')
    write_texts(project)
    said = project.ok().json
    yield project, bytes_below(project.data), said['metrics']
    project.put_away()


def fresh(project, dest):
    "A copy of the notebooks and what they read, where nothing has run"
    shutil.copytree(project.folder, dest, ignore=shutil.ignore_patterns('data', '__pycache__'))
    return Path(dest)


def test_the_run(texts):
    _, found, numbers = texts
    assert sorted(found) == ['summary.txt', 'words/a.txt', 'words/b.txt'] and found['words/a.txt'] == b"1 2013-07-04 None ['notes', 'a', 'stage']"
    assert numbers == dict(files=2, n=20, size=numbers['size'])


def test_in_a_kernel_of_JupyterLab(texts, tmp_path):
    "A kernel in the notebook's folder, which knows nothing of a run"
    from nbclient import NotebookClient
    project, expected, numbers = texts
    folder, said = fresh(project, tmp_path/'p'), {}
    os.makedirs(folder/'data')
    for o in sorted(folder.glob('*.ipynb')):
        nb = nbformat.read(o, 4)
        NotebookClient(nb, resources=dict(metadata=dict(path=str(folder)))).execute(env=here)
        said |= metrics(nb)
    assert bytes_below(folder/'data') == expected and said == numbers


def test_under_plain_papermill(texts, tmp_path):
    "The command, with paths of its own for what it writes"
    project, expected, numbers = texts
    folder, said = fresh(project, tmp_path/'p'), {}
    words, summary = tmp_path/'out'/'words', tmp_path/'out'/'summary.txt'
    for o, args in (('01_prepare', ['-p', 'words', words]), ('02_summarize', ['-p', 'words', words, '-p', 'summary', summary])):
        subprocess.run([sys.executable, '-m', 'papermill', folder/f'{o}.ipynb', tmp_path/f'{o}.ipynb', '--cwd', folder, '--no-progress-bar', *args], check=True, env=here, capture_output=True)
        said |= metrics(json.loads((tmp_path/f'{o}.ipynb').read_text()))
    assert bytes_below(tmp_path/'out') == expected and said == numbers


def test_each_stage_can_be_opened_alone(texts, tmp_path):
    "After a run the inputs of every stage are at their default paths, and may be overwritten"
    from nbclient import NotebookClient
    project, expected, _ = texts
    shutil.copytree(project.folder, tmp_path/'p')
    (tmp_path/'p'/'data'/'summary.txt').write_text('old')
    NotebookClient(nbformat.read(tmp_path/'p'/'02_summarize.ipynb', 4), resources=dict(metadata=dict(path=str(tmp_path/'p')))).execute(env=here)
    assert bytes_below(tmp_path/'p'/'data') == expected


async def execute_through(url, token, path, cells):
    "Start a kernel of a Jupyter server for the notebook at `path`, as JupyterLab does, and execute `cells` in it; what they displayed"
    from tornado.httpclient import HTTPRequest
    from tornado.websocket import websocket_connect
    def ask(method, where, data=None):
        req = urllib.request.Request(f'{url}/api/{where}', method=method, data=data and json.dumps(data).encode(), headers=dict(Authorization=f'token {token}'))
        with urllib.request.urlopen(req) as f: return json.loads(f.read() or 'null')
    session = ask('POST', 'sessions', dict(path=path, name='', type='notebook', kernel=dict(name='python3')))
    kernel = session['kernel']['id']
    socket = await websocket_connect(HTTPRequest(f"{url.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels", headers=dict(Authorization=f'token {token}')))
    found = {}
    for i, source in enumerate(cells):
        head = dict(msg_id=f'm{i}', msg_type='execute_request', username='', session='s', version='5.3')
        content = dict(code=source, silent=False, store_history=True, user_expressions={}, allow_stdin=False, stop_on_error=True)
        await socket.write_message(json.dumps(dict(header=head, parent_header={}, metadata={}, content=content, channel='shell', buffers=[])))
        while True:
            msg = json.loads(await asyncio.wait_for(socket.read_message(), 60))
            if msg['parent_header'].get('msg_id') != head['msg_id']: continue
            assert msg['msg_type'] != 'error', msg['content']
            if msg['msg_type'] == 'display_data': found |= msg['content']['data'].get(record_mime, {})
            if msg['msg_type'] == 'status' and msg['content']['execution_state'] == 'idle': break
    socket.close()
    ask('DELETE', f"sessions/{session['id']}")
    return found


def test_in_a_Jupyter_server(texts, tmp_path):
    "The server that JupyterLab talks to, through its own interface"
    pytest.importorskip('jupyter_server')
    import socket
    project, expected, numbers = texts
    folder, said = fresh(project, tmp_path/'p'), {}
    os.makedirs(folder/'data')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    private = {k: str(tmp_path/k) for k in ('JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_DATA_DIR', 'IPYTHONDIR')}
    log = open(tmp_path/'server.log', 'w')
    server = subprocess.Popen([sys.executable, '-m', 'jupyter_server', '--no-browser', '--ServerApp.ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', '--allow-root',
        '--IdentityProvider.token=a-token-for-a-test', f'--ServerApp.root_dir={tmp_path}'], env=here | private, stdout=log, stderr=log)
    try:
        def up():
            assert server.poll() is None, (tmp_path/'server.log').read_text()
            try: return urllib.request.urlopen(f'http://127.0.0.1:{port}/api').status == 200
            except OSError: return False
        project.until(up)
        for o in sorted(folder.glob('*.ipynb')):
            cells = [c['source'] for c in nbformat.read(o, 4).cells if c['cell_type'] == 'code']
            said |= asyncio.run(execute_through(f'http://127.0.0.1:{port}', 'a-token-for-a-test', f'p/{o.name}', cells))
    finally:
        server.terminate()
        server.wait(20)
        log.close()
    assert bytes_below(folder/'data') == expected and said == numbers


# -- parameters ----------------------------------------------------------------------------------------------------------------------------------

def test_values_are_the_same_however_they_come(texts):
    "From the command line, from JSON and from Python: one fingerprint, and one text in the output"
    project, _, _ = texts
    typed = dict(limit='2', share='0.5', day='2014-01-31', mode='upper', skip='of,Many', note='two words')
    first = project.ok(*(f for k, v in typed.items() for f in ('-p', f'{k}={v}')))
    assert first.statuses == {'01_prepare': 'completed', '02_summarize': 'completed'}
    assert (project.data/'words'/'b.txt').read_text() == "0.5 2014-01-31 two words ['WORDS', 'ONE']"
    real = dict(limit=2, share=.5, day=date(2014, 1, 31), mode='upper', skip=('of', 'Many'), note='two words')
    (project.root/'p.json').write_text(json.dumps(real | dict(day='2014-01-31')))
    assert set(project.ok('--params', 'p.json').statuses.values()) == {'cached'}
    assert [o.causes for o in plan(project.settings, 'demo', real)] == [[], []]
    assert {o.status for o in plan(project.settings, 'demo', {k: Text(v) for k, v in typed.items()} | {'prepare.limit': 2})} == {'cached'}
    assert [o.causes[0] for o in plan(project.settings, 'demo', real | dict(limit=1))] == ['parameter limit 2 → 1', 'input data/words is made by 01_prepare, which runs']


def test_a_default_that_is_given_is_the_default(texts):
    "What the notebook says anyway is not injected: `share: float = 1` stays 1, as in JupyterLab"
    project, expected, _ = texts
    done = project.ok('-p', 'share=1', '-p', 'limit=3', '--force')
    assert set(done.statuses.values()) == {'completed'} and bytes_below(project.data) == expected


# -- inputs from outside -------------------------------------------------------------------------------------------------------------------------

def test_sources(project):
    "A file, a folder, a pattern and URLs: each is hashed, each can be read, and a change of each is named"
    for k in ('one.txt', 'folder/x.txt', 'many/m1.csv', 'many/m2.csv', 'url.txt'):
        (project.folder/k).parent.mkdir(exist_ok=True)
        (project.folder/k).write_text(k)
    def pack(text):
        with zipfile.ZipFile(project.root/'z.zip', 'w') as z: z.writestr('in.txt', text)
    pack('zipped')
    ins = dict(one='one.txt', folder='folder', many='many/*.csv', url=f'file://{project.folder}/url.txt', packed=f'zip://in.txt::{project.root}/z.zip')
    project.stage('read', '\n'.join(f'{k}: In = "{v}"' for k, v in ins.items()) + '\nout: Out = "out.txt"',
        'import glob, os\nfiles = [one, *sorted(glob.glob(folder + "/*")), *sorted(glob.glob(many)), url, packed]\nopen(out, "w").write(" ".join(open(f).read() for f in files))')
    assert project.ok().statuses == {'read': 'completed'}
    assert (project.folder/'out.txt').read_text() == 'one.txt folder/x.txt many/m1.csv many/m2.csv url.txt zipped'
    assert [o.causes for o in plan(project.settings, 'demo')] == [[]]
    changes = dict(one=lambda: (project.folder/'one.txt').write_text('ONE.txt'), folder=lambda: (project.folder/'folder'/'y.txt').write_text(''), many=lambda: (project.folder/'many'/'m2.csv').unlink(),
                   url=lambda: (project.folder/'url.txt').write_text('other'), packed=lambda: pack('packed again'))
    for i, (k, change) in enumerate(changes.items()):
        change()
        assert len(plan(project.settings, 'demo')[0].causes) == i + 1, k
    causes = plan(project.settings, 'demo')[0].causes
    assert causes == [f'input {ins[k]} changed' for k in sorted(ins)]
    project.ok()
    assert (project.folder/'out.txt').read_text() == 'ONE.txt folder/x.txt  many/m1.csv other packed again'


# -- the same again ------------------------------------------------------------------------------------------------------------------------------

def test_two_forced_runs_give_the_same_bytes(project):
    "Random numbers of Python and NumPy, the order of a set and the hash of a text; also in processes that the notebook starts"
    project.stage('a', 'out: Out = "a.txt"', 'import random, subprocess, sys\nimport numpy as np\nfrom numpy.random import rand', 'words = {str(i) for i in range(50)}\n'
        'child = subprocess.run([sys.executable, "-c", "print(hash(\'x\'))"], capture_output=True, text=True).stdout\n'
        'open(out, "w").write(str([random.random(), list(np.random.rand(3)), rand(), list(words), hash("text"), child]))')
    project.stage('b', 'a: In = "a.txt"\nb: Out = "b"', 'import os, random\nos.makedirs(b)\nfor i in range(3): open(f"{b}/{random.randrange(10**6)}", "w").write(open(a).read())')
    digests = []
    for _ in range(2):
        assert set(project.ok('--force').statuses.values()) == {'completed'}
        digests.append([o['outputs'] for o in project.rows()[-2:]])
    assert digests[0] == digests[1] and 'digest' in str(digests)


# -- a hit is never wrong ------------------------------------------------------------------------------------------------------------------------

def test_plan_names_what_changed(project, monkeypatch):
    "Cell, imported code, parameter, input, seed, environment: each is a miss, and is said"
    library = project.root/'lib'/'site-packages'
    (library/'thing-1.0.dist-info').mkdir(parents=True)
    (project.folder/'helper.py').write_text('def f(): return 1\ndef unused(): return 1')
    (project.folder/'in.txt').write_text('1')
    stage = 'src: In = "in.txt"\nn: int = 1\nout: Out = "out.txt"', 'import helper', 'open(out, "w").write(f"{helper.f()} {open(src).read()} {n}")'
    project.stage('a', *stage)
    def causes(*args):
        done = project.cli('plan', 'demo', '--json', *args, PYTHONPATH=str(library))
        assert done.code == 0, done
        return done.json['stages'][0]['causes']
    assert causes() == ['it has not run yet']
    assert project.run(PYTHONPATH=str(library)).code == 0 and causes() == []
    assert causes('-p', 'n=2') == ['parameter n 1 → 2']
    (project.folder/'helper.py').write_text('# a comment\ndef f(): return 1\ndef unused(): return 2')
    assert causes() == []
    (project.folder/'helper.py').write_text('def f(): return 2')
    assert causes() == ['function helper.f changed']
    (project.folder/'helper.py').write_text('def f(): return 1')
    (project.folder/'in.txt').write_text('2')
    assert causes() == ['input in.txt changed']
    (project.folder/'in.txt').write_text('1')
    project.stage('a', *stage[:-1], stage[-1].replace('{n}', '{n+1}'))
    assert causes() == ['cell 4 changed']
    project.stage('a', *stage)
    (project.root/'settings.ini').write_text('[DEFAULT]\nseed = 5')
    assert causes() == ['seed 0 → 5']
    (project.root/'settings.ini').write_text('')
    (library/'thing-1.0.dist-info').rename(library/'thing-1.1.dist-info')
    assert causes() == ['thing 1.0 → 1.1']
    (library/'thing-1.1.dist-info').rename(library/'thing-1.0.dist-info')
    assert causes() == []


def test_a_class_that_comes_with_a_pickle(project):
    "The stage that loads an object runs again when a class of it changes, though its own code never names that class"
    (project.folder/'models.py').write_text('class Model:\n    def predict(self): return 1')
    project.stage('01_fit', 'model: Out = "model.pkl"', 'import pickle\nfrom models import Model\npickle.dump(Model(), open(model, "wb"))')
    project.stage('02_use', 'model: In = "model.pkl"\nout: Out = "out.txt"', 'import pickle\nopen(out, "w").write(str(pickle.load(open(model, "rb")).predict()))')
    project.ok()
    (project.folder/'models.py').write_text('class Model:\n    def predict(self): return 2')
    assert project.ok().statuses == {'01_fit': 'completed', '02_use': 'completed'} and (project.folder/'out.txt').read_text() == '2'


executor = '''
import json, os, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.history_manager.enabled = False
for folder, root, source, log in json.load(sys.stdin):
    if pid := os.fork():
        os.waitpid(pid, 0)
        continue
    fd = os.open(log, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    os.dup2(fd, 1), os.dup2(fd, 2)
    os.chdir(folder)
    sys.path[:0], sys.dont_write_bytecode, sys.stdout = ['', root], True, os.fdopen(1, 'w')
    shell.colors = 'NoColor'
    shell.run_cell(source)
    sys.stdout.flush()
    os._exit(0)
'''


def outputs_of(jobs, tmp):
    "What each (folder, root, source) prints in a fresh interpreter that has only imported IPython"
    jobs = [(str(f), str(r), s, f'{tmp}/log-{i}.txt') for i, (f, r, s) in enumerate(jobs)]
    subprocess.run([sys.executable, '-c', executor], input=json.dumps(jobs), text=True, check=True, capture_output=True, env=here | dict(IPYTHONDIR=str(tmp), PYTHONHASHSEED='0'))
    return [Path(o[-1]).read_text() for o in jobs]


beside = 'nbs/pipelines/demo/'
dependences = { # what: (files, source of the cell, (file, old text, new text))
    'relative import': ({'pk/__init__.py': '', 'pk/a.py': 'from .b import f\ndef g(): return f()', 'pk/b.py': 'def f(): return 1'}, 'from pk.a import g\nprint(g())', ('pk/b.py', '1', '2')),
    'relative import of a module': ({'pk/__init__.py': '', 'pk/a.py': 'from . import b\ndef g(): return b.f()', 'pk/b.py': 'def f(): return 1'}, 'from pk.a import g\nprint(g())', ('pk/b.py', '1', '2')),
    'relative import from above': ({'pk/__init__.py': '', 'pk/s/__init__.py': '', 'pk/s/a.py': 'from ..b import f', 'pk/b.py': 'def f(): return 1'}, 'from pk.s.a import f\nprint(f())', ('pk/b.py', '1', '2')),
    'another name': ({'m.py': 'def y(): return 1'}, 'from m import y as z\nprint(z())', ('m.py', '1', '2')),
    'a module by another name': ({'a/__init__.py': '', 'a/b.py': 'def f(): return 1'}, 'import a.b as c\nprint(c.f())', ('a/b.py', '1', '2')),
    'attributes of attributes': ({'pk/__init__.py': '', 'pk/s.py': 'class C:\n    def f(self): return 1\nc = C()'}, 'import pk.s\nprint(pk.s.c.f())', ('pk/s.py', '1', '2')),
    'module of a package': ({'pk/__init__.py': 'from . import s', 'pk/s.py': 'def f(): return 1'}, 'import pk\nprint(pk.s.f())', ('pk/s.py', '1', '2')),
    'module that another one loads': ({'pk/__init__.py': '', 'pk/s.py': 'def f(): return 1', 'o.py': 'import pk.s'}, 'import pk, o\nprint(pk.s.f())', ('pk/s.py', '1', '2')),
    'module by another variable': ({'m.py': 'import n\nq = n', 'n.py': 'def f(): return 1'}, 'import m\nprint(m.q.f())', ('n.py', '1', '2')),
    'module that is passed on': ({'n.py': 'def f(): return 1'}, 'import n\ndef h(x): return x.f()\nprint(h(n))', ('n.py', '1', '2')),
    'package without __init__': ({'ns/a.py': 'def f(): return 1'}, 'import ns.a\nprint(ns.a.f())', ('ns/a.py', '1', '2')),
    'import under a condition': ({'m.py': 'try: from n import f\nexcept ImportError: f = None', 'n.py': 'def f(): return 1'}, 'from m import f\nprint(f())', ('n.py', '1', '2')),
    'import in a function': ({'m.py': 'def f():\n    from n import g\n    return g()', 'n.py': 'def g(): return 1'}, 'from m import f\nprint(f())', ('n.py', '1', '2')),
    'import in a function, for what it does': ({'m.py': 'def f():\n    import n\n    import os\n    return os.environ["ZZ"]', 'n.py': 'import os\nos.environ["ZZ"] = "1"'}, 'from m import f\nprint(f())', ('n.py', '"1"', '"2"')),
    'import of a module of a package, for what it does': ({'pk/__init__.py': '', 'pk/n.py': 'import os\nos.environ["ZZ"] = "1"'}, 'from pk import n\nimport os\nprint(os.environ["ZZ"])', ('pk/n.py', '"1"', '"2"')),
    'type checking only': ({'m.py': 'from typing import TYPE_CHECKING\nif TYPE_CHECKING: from n import T\ndef f() -> "T": return 1', 'n.py': 'class T: pass'}, 'from m import f\nprint(f())', ('m.py', '1', '2')),
    'star with __all__': ({'a/__init__.py': 'from .b import *\nfrom .c import *', 'a/b.py': '__all__ = ["f"]\ndef f(): return g()\ndef g(): return 1', 'a/c.py': 'def h(): return 5'}, 'from a import f\nprint(f())', ('a/b.py', '1', '2')),
    'star in the notebook': ({'a.py': 'def f(): return 1'}, 'from a import *\nprint(f())', ('a.py', '1', '2')),
    'lazy __getattr__': ({'a/__init__.py': 'M = {"f": "b"}\ndef __getattr__(n):\n    from importlib import import_module\n    return getattr(import_module("."+M[n], __name__), n)', 'a/b.py': 'def f(): return 1'}, 'from a import f\nprint(f())', ('a/b.py', '1', '2')),
    'import by name': ({'n.py': 'def f(): return 1'}, 'from importlib import import_module as im\nprint(im("n").f())', ('n.py', '1', '2')),
    'import by a name that is passed on': ({'m.py': 'import importlib\ndef g(s): return importlib.import_module(s).f()', 'n.py': 'def f(): return 1'}, 'from m import g\nprint(g("n"))', ('n.py', '1', '2')),
    '__import__': ({'n.py': 'def f(): return 1'}, 'print(__import__("n").f())', ('n.py', '1', '2')),
    'module of sys.modules': ({'m.py': 'def f(): return 1', 'n.py': 'import sys\nimport m as _\ndef g(k): return getattr(sys.modules["m"], k)()'}, 'import n\nprint(n.g("f"))', ('m.py', '1', '2')),
    'folder added to sys.path': ({'lib2/n.py': 'def f(): return 1'}, 'import sys\nsys.path.insert(0, "../../../lib2")\nimport n\nprint(n.f())', ('lib2/n.py', '1', '2')),
    'folder added by a helper': ({'m.py': 'import sys, os\nsys.path.insert(0, os.path.join(os.path.dirname(__file__), "lib2"))\nimport n\ndef f(): return n.f()', 'lib2/n.py': 'def f(): return 1'}, 'import m\nprint(m.f())', ('lib2/n.py', '1', '2')),
    'decorator that registers': ({'reg.py': 'R = {}\ndef reg(f):\n    R[f.__name__] = f\n    return f', 'plug.py': 'from reg import reg\n@reg\ndef f(): return 1'}, 'import plug\nfrom reg import R\nprint(R["f"]())', ('plug.py', '1', '2')),
    'decorator of an object': ({'reg.py': 'class App:\n    def __init__(self): self.r = {}\n    def route(self, n): return lambda f: self.r.update({n: f})\napp = App()', 'plug.py': 'import reg\n@reg.app.route("x")\ndef f(): return 1'}, 'import plug\nfrom reg import app\nprint(app.r["x"]())', ('plug.py', 'return 1', 'return 2')),
    'singledispatch': ({'reg.py': 'import functools\n@functools.singledispatch\ndef show(x): return 0', 'plug.py': 'from reg import show\n@show.register(int)\ndef _(x): return 1'}, 'import plug\nfrom reg import show\nprint(show(3))', ('plug.py', 'return 1', 'return 2')),
    "a list's append as a decorator": ({'plug.py': 'R = []\n@R.append\ndef f(): return 1'}, 'import plug\nprint(plug.R[0]())', ('plug.py', 'return 1', 'return 2')),
    'decorator that changes': ({'d.py': 'def dec(f): return lambda: f()+1', 'm.py': 'from d import dec\n@dec\ndef f(): return 1'}, 'from m import f\nprint(f())', ('d.py', '+1', '+2')),
    'base class elsewhere': ({'b.py': 'class B:\n    def f(self): return 1', 's.py': 'import b\nclass S(b.B): pass'}, 'from s import S\nprint(S().f())', ('b.py', '1', '2')),
    'counted subclasses': ({'b.py': 'class B: pass\ndef found(): return [c.v for c in B.__subclasses__()]', 's.py': 'from b import B\nclass S(B): v = 1'}, 'import s, b\nprint(b.found())', ('s.py', '1', '2')),
    '__init_subclass__ of a grandparent': ({'b.py': 'R = []\nclass B:\n    def __init_subclass__(c, **k): R.append(c.v)', 'c.py': 'from b import B\nclass C(B): v = 0', 'd.py': 'from c import C\nclass D(C): v = 1'}, 'import d\nfrom b import R\nprint(R)', ('d.py', 'v = 1', 'v = 2')),
    'metaclass': ({'b.py': 'class M(type):\n    def __new__(c, n, b, d): d["v"] = 1; return super().__new__(c, n, b, d)', 'm.py': 'from b import M\nclass A(metaclass=M): pass'}, 'from m import A\nprint(A.v)', ('b.py', '= 1', '= 2')),
    '__set_name__': ({'b.py': 'R = []\nclass F:\n    def __init__(s, k): s.k = k\n    def __set_name__(s, o, n): R.append(s.k)', 'c.py': 'from b import F\nclass C:\n    x = F(1)'}, 'import c\nfrom b import R\nprint(R)', ('c.py', 'F(1)', 'F(2)')),
    'body of a class': ({'b.py': 'R = []', 'c.py': 'from b import R\nclass C:\n    R.append(1)'}, 'import c\nfrom b import R\nprint(R)', ('c.py', '(1)', '(2)')),
    'default that acts': ({'b.py': 'R = []', 'c.py': 'from b import R\ndef f(x=R.append(1)): pass'}, 'import c\nfrom b import R\nprint(R)', ('c.py', '(1)', '(2)')),
    'constant changed by another module': ({'c.py': 'X = 1', 'd.py': 'import c\nc.X = 2', 'u.py': 'import c\ndef f(): return c.X'}, 'import d, u\nprint(u.f())', ('d.py', '2', '3')),
    'setattr by another module': ({'c.py': 'X = 1', 'd.py': 'import c\n_ = setattr(c, "X", 2)'}, 'import d, c\nprint(c.X)', ('d.py', ', 2', ', 3')),
    'dict updated by another module': ({'c.py': 'X = {"a": 1}', 'd.py': 'from c import X\n_ = X.update(a=2)'}, 'import d, c\nprint(c.X)', ('d.py', '2', '3')),
    'function replaced by a third module': ({'m.py': 'def f(): return 1', 'p.py': 'import m\ndef g(): return 2\nm.f = g'}, 'import p, m\nprint(m.f())', ('p.py', '2', '3')),
    'method added by another module': ({'m.py': 'class A: pass', 'n.py': 'from m import A\ndef _f(self): return 1\nA.f = _f'}, 'import n\nfrom m import A\nprint(A().f())', ('n.py', '1', '2')),
    'fastcore patch': ({'m.py': 'class A: pass', 'n.py': 'from fastcore.basics import patch\nfrom m import A\n@patch\ndef f(self:A): return 1'}, 'import n\nfrom m import A\nprint(A().f())', ('n.py', '1', '2')),
    'fastcore patch of two': ({'m.py': 'from fastcore.basics import patch\nclass A: pass\nclass B: pass\n@patch\ndef f(self:(A, B)): return 1'}, 'from m import A\nprint(A().f())', ('m.py', 'return 1', 'return 2')),
    'fastcore patch_to': ({'m.py': 'from fastcore.basics import patch_to\nclass A: pass\n@patch_to(A)\ndef f(self): return 1'}, 'from m import A\nprint(A().f())', ('m.py', 'return 1', 'return 2')),
    'attribute of a function': ({'m.py': 'def f(): return f.k', 'n.py': 'import m\nm.f.k = 1'}, 'import n\nfrom m import f\nprint(f())', ('n.py', '= 1', '= 2')),
    'default argument': ({'m.py': 'K = 1\ndef f(x=K): return x'}, 'from m import f\nprint(f())', ('m.py', 'K = 1', 'K = 2')),
    'closure': ({'m.py': 'def mk(n):\n    def g(): return n+h()\n    return g\ndef h(): return 1\nf = mk(3)'}, 'from m import f\nprint(f())', ('m.py', 'return 1', 'return 2')),
    'field of a dataclass': ({'m.py': 'from dataclasses import dataclass\nD = 1\n@dataclass\nclass C:\n    a:int = D'}, 'from m import C\nprint(C())', ('m.py', 'D = 1', 'D = 2')),
    'method by method': ({'m.py': 'class A:\n    def go(self): return self._h()\n    def _h(self): return K\nK = 1'}, 'from m import A\nprint(A().go())', ('m.py', 'K = 1', 'K = 2')),
    'function passed by name': ({'m.py': 'def f(): return 1\ndef ap(g): return g()'}, 'from m import f, ap\nprint(ap(f))', ('m.py', '1', '2')),
    'function in a dict': ({'m.py': 'D = {"a": lambda: g()}\ndef g(): return 1'}, 'from m import D\nprint(D["a"]())', ('m.py', 'return 1', 'return 2')),
    'getattr': ({'m.py': 'def f(): return 1', 'n.py': 'import m\ndef g(k): return getattr(m, k)()'}, 'import n\nprint(n.g("f"))', ('m.py', '1', '2')),
    'globals()': ({'m.py': 'def f(): return 1\ndef g(s): return globals()[s]()'}, 'from m import g\nprint(g("f"))', ('m.py', '1', '2')),
    'eval': ({'m.py': 'def f(): return 1\ndef g(s): return eval(s)'}, 'from m import g\nprint(g("f()"))', ('m.py', '1', '2')),
    '__dict__': ({'m.py': 'X = 1'}, 'import m\nprint(m.__dict__["X"])', ('m.py', '1', '2')),
    'docstring of a module': ({'m.py': '"1"\ndef f(): pass'}, 'import m\nprint(m.__doc__)', ('m.py', '1', '2')),
    'walrus': ({'m.py': 'Y = [(Z:=1)]\ndef f(): return Z'}, 'from m import f\nprint(f())', ('m.py', '1', '2')),
    'global': ({'m.py': 'def mk():\n    global X\n    X = 1\ndef f(): return X', 'n.py': 'import m\nm.mk()'}, 'import n\nfrom m import f\nprint(f())', ('m.py', 'X = 1', 'X = 2')),
    'a loop': ({'m.py': 'fs = {}\nfor k in (1, 2): fs[k] = k\ndef f(): return fs'}, 'from m import f\nprint(f())', ('m.py', '(1, 2)', '(1, 3)')),
    'with, match and except': ({'m.py': 'import contextlib\nwith contextlib.nullcontext(1) as v: pass\nmatch v:\n    case int(w): pass\ntry: 1/0\nexcept ZeroDivisionError: u = w\ndef f(): return u'}, 'from m import f\nprint(f())', ('m.py', 'nullcontext(1)', 'nullcontext(2)')),
    'defined twice': ({'m.py': 'def f(): return 1\ng = f\ndef f(): return 2'}, 'from m import g\nprint(g())', ('m.py', 'return 1', 'return 7')),
    'what importing a package does': ({'pk/__init__.py': 'import os\nos.environ["ZZ"] = "1"', 'pk/a.py': 'def f(): return 0'}, 'import os\nfrom pk.a import f\nprint(os.environ["ZZ"])', ('pk/__init__.py', '"1"', '"2"')),
    'module beside the notebook': ({beside+'hlp.py': 'def f(): return 1'}, 'from hlp import f\nprint(f())', (beside+'hlp.py', '1', '2')),
    'query beside a module': ({beside+'hlp.py': 'from pathlib import Path\ndef f(): return (Path(__file__).parent/"q.sql").read_text()', beside+'q.sql': '1'}, 'from hlp import f\nprint(f())', (beside+'q.sql', '1', '2')),
    'data of a package': ({'pk/__init__.py': '', 'pk/h.py': 'from importlib.resources import files\ndef f(): return (files("pk")/"units"/"u.json").read_text()', 'pk/units/u.json': '1'}, 'from pk.h import f\nprint(f())', ('pk/units/u.json', '1', '2')),
    '%run': ({beside+'x.py': 'from y import a', beside+'y.py': 'a = 1'}, '%run x.py\nprint(a)', (beside+'y.py', '1', '2')),
    'exec of a file': ({beside+'x.py': 'a = 1'}, 'exec(open("x.py").read())\nprint(a)', (beside+'x.py', '1', '2')),
    'script on a shell line': ({beside+'x.py': 'from y import a\nprint(a)', beside+'y.py': 'a = 1'}, f'!{sys.executable} x.py', (beside+'y.py', '1', '2')),
    'python -m': ({beside+'n.py': 'print(1)'}, 'import subprocess, sys\nprint(subprocess.run([sys.executable, "-m", "n"], capture_output=True).stdout)', (beside+'n.py', '1', '2')),
}


def test_no_wrong_hit(tmp_path):
    "Whatever changes what a notebook prints, changes what it is known by"
    jobs, before, after = [], [], []
    for i, (what, (files, source, (file, old, new))) in enumerate(dependences.items()):
        for k, v in files.items():
            for root in (tmp_path/f'{i}-before', tmp_path/f'{i}-after'):
                (root/k).parent.mkdir(parents=True, exist_ok=True)
                (root/k).write_text(v.replace(old, new, 1) if k == file and root.name.endswith('after') else v)
        assert old in files[file], what
        for root, found in ((tmp_path/f'{i}-before', before), (tmp_path/f'{i}-after', after)):
            folder = root/beside
            folder.mkdir(parents=True, exist_ok=True)
            jobs.append((folder, root, source))
            found.append(definitions(Notebook(folder/'a.ipynb', make_notebook(source)), CodeIndex([folder, root])))
    said = outputs_of(jobs, tmp_path)
    wrong = [what for i, what in enumerate(dependences) if before[i] == after[i]]
    useless = [(what, said[2*i]) for i, what in enumerate(dependences) if said[2*i] == said[2*i+1] or 'Error' in said[2*i]]
    assert not wrong
    assert not useless


def random_modules(rnd):
    "A few modules that use each other in random ways: {name: [definitions]}"
    names, ways = ['m0', 'm1', 'pk.m2', 'pk.m3'], {}
    for i, name in enumerate(names):
        body, own = [], []
        for j in range(i):
            how, x = rnd.choice(['from {m} import {x} as {a}', 'import {m} as _{a}\n{a} = _{a}.{x}', 'def {a}(*o):\n    from {m} import {x}\n    return {x}(*o)', 'import {m}\ndef {a}(*o): return {m}.{x}(*o)']), rnd.choice(ways[names[j]])
            if rnd.random() < .7: body.append(how.format(m=names[j], x=x, a=f'u{j}')); own.append(f'u{j}')
        for k in range(rnd.randint(1, 3)):
            inner = rnd.choice([f'{rnd.choice(own)}()' if own else '0', f'C{k}', '0'])
            kind = rnd.choice(['def', 'class', 'lambda', 'default', 'registered', 'dict', 'closure'])
            body += [f'C{k} = {rnd.randint(0, 99)}'] + {
                'def': [f'def f{k}(): return ({rnd.randint(0, 99)}, {inner})'],
                'class': [f'class K{k}:\n    c = {rnd.randint(0, 99)}\n    def go(self): return (self.c, {inner})', f'def f{k}(): return K{k}().go()'],
                'lambda': [f'f{k} = lambda: ({rnd.randint(0, 99)}, {inner})'],
                'default': [f'def f{k}(x={rnd.randint(0, 99)}): return (x, {inner})'],
                'registered': ['R = globals().get("R", [])' if rnd.random() < .1 else 'R = []', f'@R.append\ndef _r{k}(): return {rnd.randint(0, 99)}', f'def f{k}(): return (R[-1]() if R else None, {inner})'],
                'dict': [f'D{k} = dict(a={rnd.randint(0, 99)})', f'D{k}["b"] = {rnd.randint(0, 99)}', f'def f{k}(): return (D{k}, {inner})'],
                'closure': [f'def _mk{k}(n):\n    def g(): return (n, {inner})\n    return g', f'f{k} = _mk{k}({rnd.randint(0, 99)})']}[kind]
            own.append(f'f{k}')
        ways[name] = own
        ways[name, 'body'] = body
    return {n: ways[n, 'body'] for n in names}, {n: ways[n] for n in names}


def change_one(rnd, modules):
    "The same modules, in which one number is another one"
    import re
    spots = [(n, i, m.span()) for n, body in modules.items() for i, text in enumerate(body) for m in re.finditer(r'(?<![\w.\[-])\d+(?![\w.])', text)]
    n, i, (a, b) = rnd.choice(spots)
    return {**modules, n: [text[:a] + str(int(text[a:b]) + 100) + text[b:] if (k == i) else text for k, text in enumerate(modules[n])]}


def test_no_wrong_hit_among_random_modules(tmp_path):
    "Small random programs, in which one number changes: if that can be seen in the output, it is a miss"
    jobs, prints = [], []
    for seed in range(60):
        rnd = random.Random(seed)
        modules, names = random_modules(rnd)
        uses = [(m, rnd.choice(names[m])) for m in rnd.sample(list(modules), 3)]
        source = '\n'.join(f'import {m}\nprint({m}.{x}())' if rnd.random() < .5 else f'from {m} import {x} as x{i}\nprint(x{i}())' for i, (m, x) in enumerate(uses))
        for side, some in (('before', modules), ('after', change_one(rnd, modules))):
            root = tmp_path/f'{seed}-{side}'
            (root/'pk').mkdir(parents=True)
            (root/'pk'/'__init__.py').write_text('')
            for m, body in some.items(): (root/f'{m.replace(".", "/")}.py').write_text('\n'.join(body))
            jobs.append((root, root, source))
            prints.append(definitions(Notebook(root/'a.ipynb', make_notebook(source)), CodeIndex([root])))
    said = outputs_of(jobs, tmp_path)
    assert not [o for o in said if 'Error' in o]
    pairs = [(said[i] != said[i+1], prints[i] != prints[i+1]) for i in range(0, len(said), 2)]
    assert not [i for i, (other, miss) in enumerate(pairs) if other and not miss]
    assert sum(other for other, _ in pairs) > 15 and sum(not miss for _, miss in pairs) > 5 # it is a test, and a change that doesn't matter is mostly none


# -- secrets -------------------------------------------------------------------------------------------------------------------------------------

token = 'tök-S3cr3t/+"<x>\' &9'
traces = [b'S3cr3t', b'c1MzY3IzdC8r', b'UzNjcjN0'] # also in what is encoded


def leaks(project, *texts):
    "Files and texts in which a part of the token stands"
    files = [o for d in (project.root, *Path('/tmp').glob('mlops-*')) for o in Path(d).rglob('*') if o.is_file() and not o.is_symlink()]
    found = []
    for o in files:
        try: data = o.read_bytes()
        except OSError: continue # it has gone meanwhile
        if any(t in data for t in traces): found.append(str(o))
    return found + [t for t in texts if any(o in t.encode() for o in traces)]


tell_all = ['import base64, json, os, subprocess, sys, time, urllib.parse\nprint(api_token)\nprint(api_token[:9], end="", flush=True); time.sleep(.3); print(api_token[9:])\nprint(api_token, file=sys.stderr)', 'api_token',
    'from IPython.display import HTML, JSON, Markdown\ndisplay(HTML(f"<b>{api_token}</b>"), JSON({api_token: [api_token]}), Markdown(api_token))\nprint(base64.b64encode(api_token.encode()).decode(), urllib.parse.quote(api_token), json.dumps(api_token))',
    'record(**{api_token: 1.0})\nreport(1, step=1, name=api_token)', 'os.system(f"echo {api_token!r}")\nimport logging; logging.warning(api_token)', 'open(out, "w").write("done")']


def test_no_secret_anywhere(project):
    "Printed, shown, displayed, recorded, raised: from the environment, from the command line and from a file"
    project.stage('a', 'out: Out = "a.txt"\napi_token: Secret = ""\nk: int = 1', *tell_all)
    project.stage('b', 'out: Out = "b.txt"\napi_token: Secret = ""', 'raise ValueError({api_token: api_token})')
    project.stage('c', 'out: Out = "c.txt"\napi_token: Secret = ""', 'open(out, "w").write(api_token)')
    done = [project.run(API_TOKEN=token), project.cli('run', 'demo', API_TOKEN=token), project.cli('run', 'demo', '-p', f'api_token={token}', '-p', 'k=2'), project.cli('show'), project.cli('logs'), project.cli('runs', '--json'), project.cli('show', '--json'),
            project.cli('logs', '--json')]
    assert [o.code for o in done] == [1, 1, 1, 0, 0, 0, 0, 0] and done[0].statuses == dict(a='completed', b='failed', c='failed'), done
    assert not leaks(project, *(o.text for o in done))
    assert 'contains the secret api_token' in done[1].text and "api_token=***" in done[2].text and '[secret api_token]' in done[4].text
    with project.ledger as ledger: assert any('***' in o['command'] for o in ledger.runs())
    (project.root/'outside').mkdir()
    wrong = project.cli('run', 'demo', '-p', f'a.api_token={token}', '-p', 'k=x'), project.cli('run', 'demo', '--each', f'api_token={token},{token}x'), project.cli('plan', 'demo', '-p', f'api_token={token}', '-p', 'z=1')
    assert [o.code for o in wrong] == [2, 2, 2] and not leaks(project, *(o.text for o in wrong))


def test_no_secret_after_a_kill(project):
    "The runner is killed while the notebook holds the secret and has told it"
    project.stage('a', 'out: Out = "a.txt"\napi_token: Secret = ""', *tell_all, 'open("ready", "w").close()', 'time.sleep(100)')
    p = project.start('run', 'demo', '-p', f'api_token={token}')
    project.until((project.folder/'ready').exists)
    os.kill(p.pid, signal.SIGKILL)
    done = project.wait(p)
    assert not project.quiet(10)
    assert not leaks(project, done.text)
    (project.folder/'ready').unlink()
    assert [o['status'] for o in project.rows()] == ['running']
