"""The starter pipeline, whole, on a scratch copy of this project"""
import json, shutil
from pathlib import Path

import papermill, pytest

from mlops_nb.contract import record_mime

root = Path(__file__).resolve().parents[1]


@pytest.fixture
def stages(tmp_path):
    "The stage notebooks, in a folder of their own and without data"
    return shutil.copytree(root/'nbs'/'pipelines'/'starter', tmp_path/'starter', ignore=shutil.ignore_patterns('data', '.*'))


def figures(nb):
    "What an executed notebook recorded"
    return {k: v for c in nb.cells for o in c.get('outputs', []) for k, v in o.get('data', {}).get(record_mime, {}).items()}


def test_stages_run_under_plain_papermill(stages, monkeypatch):
    done = {o.stem: figures(papermill.execute_notebook(o, None, cwd=stages, progress_bar=False)) for o in sorted(stages.glob('*.ipynb'))}
    assert done['02_prepare']['train_rows'] + done['02_prepare']['test_rows'] == done['01_ingest']['rows']
    assert 40 < done['04_evaluate']['rmse'] < done['04_evaluate']['baseline_rmse']
