"""Notebooks, each of which must look alike after papermill's default engine and after `snapshot`

A case is a name, cells, and what papermill is told. Cells that do not disturb each other share a notebook, because the default engine
needs a second for each; what ends a notebook stands alone.
"""
import importlib, json, pkgutil
from dataclasses import dataclass, field

cases = {}


@dataclass
class Case:
    "A notebook and the way to execute it"
    name: str
    cells: tuple
    raises: str|None = None # name of the exception that the caller of papermill gets
    parameters: dict|None = None
    again: dict|None = None # parameters of a second execution, of the first one's output
    first: dict|None = None # parameters of the execution before, when the first cells are shared; default: the same
    env_first: dict|None = None # environment of the caller during the execution before; default: the same
    shares: int = 0 # how many of the first cells are shared, at least
    kwargs: dict = field(default_factory=dict) # of papermill.execute_notebook
    files: dict = field(default_factory=dict) # what lies beside the notebook: name → text
    env: dict = field(default_factory=dict) # environment of the caller during this execution
    text: str|None = None # the file itself, instead of cells
    metadata: dict|None = None # of the notebook, instead of a Python 3 kernelspec
    minor: int = 5 # nbformat 4.minor
    input: str = 'nb.ipynb'
    output: str|None = 'out.ipynb'
    loose: bool = False # the default engine keeps no order between text and other outputs here
    hide: tuple = () # (regex, replacement) of what can't be equal in this notebook
    needs: tuple = () # modules without which there is nothing to test
    differs: str = '' # why this notebook need not look alike; it is still compared, and told
    fresh: str = '' # why `snapshot` leaves this notebook to papermill's own engine
    takes: tuple = () # open files that papermill gets: 'stdout_file', 'stderr_file'


def case(name, *cells, **options):
    "Add a notebook to the catalog"
    assert name not in cases, name
    cases[name] = Case(name, cells, **options)


def code(source, *tags, **metadata): return dict(cell_type='code', source=source, metadata=(dict(tags=list(tags)) if tags else {}) | metadata)
def err(source): return code(source, 'raises-exception')
def md(source): return dict(cell_type='markdown', source=source, metadata={})
def raw(source): return dict(cell_type='raw', source=source, metadata={})


def document(c):
    "The notebook file of a case"
    if c.text is not None: return c.text
    cells = []
    for i, o in enumerate(c.cells):
        o = dict(code(o) if isinstance(o, str) else o)
        if o['cell_type'] == 'code': o = dict(outputs=[], execution_count=None) | o
        cells.append(o | (dict(id=f'cell-{i}') if c.minor >= 5 else {}))
    metadata = dict(kernelspec=dict(display_name='Python 3', language='python', name='python3')) if c.metadata is None else c.metadata
    return json.dumps(dict(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=c.minor), ensure_ascii=False)


def load():
    "The whole catalog"
    for o in pkgutil.iter_modules(__path__):
        if o.name != 'runner': importlib.import_module(f'{__name__}.{o.name}')
    return cases
