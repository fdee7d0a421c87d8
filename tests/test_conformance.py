"""What a user sees after `snapshot` is what he sees after papermill's default engine

Each notebook of `conformance` is executed by all sides, each in processes of its own, at the same time; the processes of one side serve one
notebook after the other. Side a is the default engine, side b `snapshot`, and side c `snapshot` with shared cells: there each notebook is
executed twice, and the second execution counts. `CONFORMANCE_ENGINE` names another engine for side b; `default` finds out what can't be equal.
"""
import difflib, json, os, queue, secrets, select, shutil, subprocess, sys, threading, time
from concurrent.futures import Future
from itertools import combinations
from pathlib import Path

import psutil
import pytest

from conformance import load
from normal import lines, normal

engine = os.environ.get('CONFORMANCE_ENGINE', 'snapshot')
workers = {'a': 2, 'b': 1} | ({'c': 1} if engine == 'snapshot' else {}) # processes for each side
patience = 60 # seconds for one notebook
mark = 'MLOPS_CONFORMANCE'
catalog = load()


class Worker:
    "A process that executes notebooks"
    def __init__(self, side, root):
        self.mark = secrets.token_hex(8)
        env = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST_')} # ipykernel does not catch file descriptors in tests
        env |= {'PYTHONPATH': str(Path(__file__).parent), 'IPYTHONDIR': str(root/'ipython'), 'COLUMNS': '100', mark: self.mark}
        self.engine, self.share = engine if side != 'a' and engine != 'default' else None, side == 'c'
        self.process = subprocess.Popen([sys.executable, '-m', 'conformance.runner'], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def execute(self, name, folder):
        "What was seen of a notebook"
        self.process.stdin.write(json.dumps(dict(name=name, folder=str(folder), engine=self.engine, share=self.share)) + '\n')
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], patience)[0]: raise TimeoutError(f'{name} took more than {patience} s')
        if not self.process.stdout.readline(): raise EOFError(f'{name} ended the process that called papermill')
        return json.loads(folder.with_suffix('.json').read_text())

    def processes(self):
        "All that came of this process, and itself"
        found = []
        for p in psutil.process_iter():
            try:
                if p.environ().get(mark) == self.mark: found.append(p)
            except psutil.Error: pass
        return found

    def end(self, patience=5):
        "End the process as a program ends; what is still there a little later"
        self.process.stdin.close()
        end = time.monotonic() + patience
        while (left := self.processes()) and time.monotonic() < end:
            self.process.poll()
            time.sleep(.05)
        self.kill()
        return [' '.join(o) for o in self.lines(left)]

    def lines(self, processes):
        for p in processes:
            try: yield [str(p.pid), p.status(), *p.cmdline()]
            except psutil.Error: pass

    def kill(self):
        for p in self.processes():
            try: p.kill()
            except psutil.Error: pass
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def unstarted(seen):
    "Did a kernel of papermill's own not start? Those of several programs at once now and then choose the same ports"
    return 'error' in seen and 'Kernel died before replying' in seen['error'][1]


class Side:
    "One engine: the notebooks that it is to execute, and those that it has"
    def __init__(self, name, names, root):
        self.name, self.root, self.names, self.left, self.again = name, root/name, queue.SimpleQueue(), [], []
        self.root.mkdir()
        self.seen = {o: Future() for o in names}
        for o in names: self.names.put(o)
        self.threads = [threading.Thread(target=self.serve, daemon=True) for _ in range(workers[name])]
        for o in self.threads: o.start()

    def serve(self):
        worker = None
        while True:
            try: name = self.names.get_nowait()
            except queue.Empty: break
            worker = worker or Worker(self.name, self.root)
            try:
                seen = worker.execute(name, self.root/name/'here')
                if unstarted(seen): raise TimeoutError(f'{name}: its kernel did not start')
                self.seen[name].set_result(seen)
            except TimeoutError as e:
                worker.kill()
                worker = None
                again = (self.name == 'a' or catalog[name].fresh) and self.again.count(name) < 3 # papermill's own engine hangs now and then when widgets talk
                if not again: self.seen[name].set_exception(e); continue
                shutil.rmtree(self.root/name, ignore_errors=True)
                self.again.append(name)
                self.names.put(name)
            except Exception as e:
                self.seen[name].set_exception(e)
                worker.kill()
                worker = None
        if worker: self.left += worker.end()


@pytest.fixture(scope='session')
def sides(request, tmp_path_factory):
    "All sides, at work on those notebooks of the catalog that this session tests"
    wanted = [o.callspec.params for o in request.session.items if getattr(o, 'callspec', None) and o.function is test_notebook]
    wanted = [(o['name'], o['side']) for o in wanted if all(map(there, catalog[o['name']].needs))]
    root = tmp_path_factory.mktemp('conformance')
    found = {side: Side(side, list(dict.fromkeys(k for k, o in wanted if side in ('a', o))), root) for side in workers}
    yield found
    for o in found.values():
        for t in o.threads: t.join(patience)


def there(module):
    "Is this module installed?"
    from importlib.util import find_spec
    return find_spec(module) is not None


def said(lines, known):
    "What the terminal shows beyond what it shows with the default engine, whose kernel repeats there what is written to its descriptors, and tells how it ends"
    return [o for o in lines if o not in known]


def difference(a, b):
    "A diff that a person can read"
    return '\n'.join(difflib.unified_diff(list(lines(a)), list(lines(b)), 'default', engine, lineterm='', n=1))


def check(c, seen):
    "The notebook does by the default engine what the catalog means it to do: it ends as said, and cells that are not said to fail do not"
    tagged = any('raises-exception' in o['metadata'].get('tags', []) for o in c.cells if isinstance(o, dict))
    raises = [c.raises, 'PapermillExecutionError'] if tagged and not c.raises else [c.raises]
    assert (seen['error'][0][0] if 'error' in seen else None) in raises, seen.get('traceback')
    if not c.raises and c.output:
        for cell in seen['files'][c.output]['cells']:
            for o in cell.get('outputs', []):
                if o['output_type'] == 'error' and o['ename'] != 'SystemExit' and 'raises-exception' not in cell['metadata'].get('tags', []): pytest.fail(f'{cell["source"]}\n{o["ename"]}: {o["evalue"]}', pytrace=False)


def climbed(c, seen, side):
    "The notebook was executed the way that is wanted"
    nb = seen['files'].get(c.output)
    if not isinstance(nb, dict) or not (how := nb['metadata'].get('mlops_nb')): return
    assert bool(c.fresh) == (how.get('rung') == 'fresh'), f'{how}: a kernel of papermill\'s own is{"" if c.fresh else " not"} wanted here'
    if side == 'c': assert how.get('shared_cells', 0) >= c.shares, how


@pytest.mark.parametrize('side', [o for o in workers if o != 'a'])
@pytest.mark.parametrize('name', catalog)
def test_notebook(name, side, sides):
    c = catalog[name]
    for o in c.needs: pytest.importorskip(o)
    seen = {o: sides[o].seen[name].result(10*patience) for o in ('a', side)}
    check(c, seen['a'])
    if engine == 'snapshot': climbed(c, seen[side], side)
    a, b = (normal(s, sides[o].root/name/'here', hide=c.hide, loose=c.loose) for o, s in seen.items())
    a['terminal'], b['terminal'] = (o['terminal'][-1:] if 'progress_bar' in c.kwargs else said(o['terminal'], a['terminal']) for o in (a, b))
    if a != b and c.differs: pytest.xfail(c.differs)
    if a != b: pytest.fail(difference(a, b) or 'a difference that no line shows', pytrace=False)


@pytest.mark.parametrize('side', [o for o in workers if o != 'a'])
def test_chance_differs(sides, side):
    "Forks of one process do not draw the same numbers"
    seen = [sides[side].seen.get(f'chance_{o}') for o in (1, 2)]
    if None in seen: pytest.skip('its notebooks are not executed')
    seen = [o.result(10*patience) for o in seen]
    drawn = [[(c['source'], c['outputs']) for c in nb['cells']] for o in seen for nb in (o['files']['out.ipynb'], o.get('before')) if nb]
    assert not [a for one, two in combinations(drawn, 2) for a, b in zip(one, two) if a[1] and a == b]


@pytest.mark.parametrize('side', [o for o in workers if o != 'a'])
def test_nothing_is_left(sides, side):
    "Once the program that called papermill has ended, so have all its processes"
    for t in sides[side].threads: t.join(10*patience)
    assert not sides[side].left
