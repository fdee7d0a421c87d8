"""A notebook of the library imports only lower-numbered ones, and no stage"""
import ast, json, re, shutil
from pathlib import Path

import pytest

nbs = Path(__file__).resolve().parents[1]/'nbs'
library = 'mlops_nb'


def code_cells(nb):
    return [''.join(o['source']) for o in json.loads(nb.read_text('utf-8'))['cells'] if o['cell_type'] == 'code']


def module_of(nb):
    "The module that a notebook exports to, or None"
    return next((m[1] for o in code_cells(nb) if (m := re.search(r'^#\|\s*default_exp:?\s+(\S+)', o, re.M))), None)


def imports_of(nb):
    "The modules of the library that a notebook's exported cells import, wherever in them: `mlops_nb.core`, or names of `mlops_nb`"
    for src in code_cells(nb):
        if not re.match(r'(\s*#.*\n)*#\|\s*export', src): continue
        for node in ast.walk(ast.parse(src)):
            if isinstance(node, ast.Import): yield from (o.name for o in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module
                yield from (f'{node.module}.{o.name}' for o in node.names)


def violations(nbs):
    "[(notebook, module)]: what is imported from above, or from a stage"
    rooms = {module_of(o): o.name.split('_')[0] for o in (nbs/'api').glob('*.ipynb')}
    stages = {m.split('.')[0] for o in (nbs/'pipelines').rglob('*.ipynb') if (m := module_of(o))}
    res = []
    for nb in sorted((nbs/'api').glob('*.ipynb')):
        number = nb.name.split('_')[0]
        mine = {o.split('.')[1] for o in imports_of(nb) if o.startswith(library + '.')}
        res += [(nb.name, o) for o in sorted(mine) if o in stages or o in rooms and rooms[o] >= number]
    return res


def test_each_notebook_stands_on_lower_ones():
    assert not violations(nbs)


def test_the_rooms_are_numbered_once():
    numbers = [o.name.split('_')[0] for o in (nbs/'api').glob('*.ipynb')]
    assert len(numbers) == len(set(numbers)) and all(re.fullmatch(r'\d\d[a-z]?', o) for o in numbers)


@pytest.mark.parametrize('code, module', [
    ('from mlops_nb.config import find_root', 'config'),
    ('def late():\n    from mlops_nb import config', 'config'),
    ('import mlops_nb.config as c', 'config'),
    ('from mlops_nb.core import short', 'core'),
    ('def f():\n    from mlops_nb.starter.prepare import features', 'starter')])
def test_a_wrong_import_is_found(tmp_path, code, module):
    shutil.copytree(nbs, tmp_path/'nbs', ignore=shutil.ignore_patterns('data', '.*'))
    nb = tmp_path/'nbs'/'api'/'00_core.ipynb'
    raw = json.loads(nb.read_text())
    raw['cells'].append(dict(cell_type='code', id='wrong', metadata={}, outputs=[], execution_count=None, source=f'#| export\n{code}'))
    nb.write_text(json.dumps(raw))
    assert violations(tmp_path/'nbs') == [('00_core.ipynb', module)]


def test_a_lesson_may_import_what_it_likes(tmp_path):
    shutil.copytree(nbs, tmp_path/'nbs', ignore=shutil.ignore_patterns('data', '.*'))
    nb = tmp_path/'nbs'/'api'/'00_core.ipynb'
    raw = json.loads(nb.read_text())
    lesson = dict(cell_type='code', id='fine', metadata={}, outputs=[], execution_count=None, source='from mlops_nb.config import find_root')
    raw['cells'].append(lesson)
    nb.write_text(json.dumps(raw))
    assert not violations(tmp_path/'nbs')
