"""Each tutorial, executed as a newcomer would: in a copy of this project, from top to bottom"""
import json, os, shutil
from pathlib import Path

import papermill
import pytest

root = Path(__file__).resolve().parents[1]
tutorials = sorted((root/'nbs'/'tutorials').glob('*.ipynb'))
quick = {'04_tune': dict(trials=5)}


@pytest.fixture
def clone(tmp_path):
    "What of this project a tutorial works on, without anything that was ever run"
    for o in ('pyproject.toml', 'settings.ini'): shutil.copyfile(root/o, tmp_path/o)
    shutil.copytree(root/'nbs'/'pipelines', tmp_path/'nbs'/'pipelines', ignore=shutil.ignore_patterns('data', '.*'))
    shutil.copytree(root/'nbs'/'tutorials', tmp_path/'nbs'/'tutorials', ignore=shutil.ignore_patterns('_work', '.*'))
    return tmp_path


@pytest.mark.parametrize('path', tutorials, ids=lambda o: o.stem)
def test_a_tutorial_runs_from_nothing(path, clone):
    home = clone/'nbs'/'tutorials'
    done = home/'executed.ipynb'
    papermill.execute_notebook(home/path.name, done, quick.get(path.stem, {}), cwd=home, engine_name='snapshot', progress_bar=False)
    cells = [o for o in json.loads(done.read_text())['cells'] if o['cell_type'] == 'code']
    assert not [o for c in cells for o in c['outputs'] if o['output_type'] == 'error']
    assert not [o['text'] for c in cells for o in c['outputs'] if o.get('name') == 'stderr']
