"""The starter pipeline, whole, on a scratch copy of this project"""
import json, shutil, subprocess, sys
from pathlib import Path

import papermill, pytest

from mlops_nb.contract import record_mime

root = Path(__file__).resolve().parents[1]
stages = ['01_ingest', '02_prepare', '03_train', '04_evaluate']


@pytest.fixture
def project(tmp_path):
    "A project with this one's settings and its starter pipeline, where nothing has run"
    for f in ('pyproject.toml', 'settings.ini'): shutil.copyfile(root/f, tmp_path/f)
    shutil.copytree(root/'nbs'/'pipelines'/'starter', tmp_path/'nbs'/'pipelines'/'starter', ignore=shutil.ignore_patterns('data', '.*'))
    return tmp_path


def run(project, *args):
    "What `mlops-nb run starter --json` says"
    res = subprocess.run([sys.executable, '-m', 'mlops_nb.cli', 'run', 'starter', '--json', *args], cwd=project, capture_output=True, text=True)
    assert not res.returncode, res.stdout + res.stderr
    return json.loads(res.stdout)


def test_it_runs_then_is_cached_then_runs_what_changed(project):
    first = run(project)
    assert {o['stage']: o['status'] for o in first['stages']} == dict.fromkeys(stages, 'completed')
    assert 40 < first['metrics']['rmse'] < first['metrics']['baseline_rmse']
    assert (project/'nbs/pipelines/starter/data/predictions.parquet').is_file()
    again = run(project)
    assert {o['stage']: o['status'] for o in again['stages']} == dict.fromkeys(stages, 'cached') and again['metrics'] == first['metrics']
    other = run(project, '-p', 'alpha=1000')
    assert [o['status'] for o in sorted(other['stages'], key=lambda o: o['stage'])] == ['cached', 'cached', 'completed', 'completed']
    assert other['metrics']['rmse'] != first['metrics']['rmse']


def test_stages_run_under_plain_papermill(project):
    folder,res = project/'nbs'/'pipelines'/'starter', {}
    for o in stages:
        nb = papermill.execute_notebook(folder/f'{o}.ipynb', None, cwd=folder, progress_bar=False)
        for out in (out for c in nb.cells for out in c.get('outputs', [])): res |= out.get('data', {}).get(record_mime, {})
    assert res['train_rows'] + res['test_rows'] == res['rows'] and 40 < res['rmse'] < res['baseline_rmse']
