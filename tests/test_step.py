"""What is committed is in step: the package and README.md with the notebooks, the notebooks clean, the lock with pyproject.toml"""
import runpy, shutil, subprocess, sys
from pathlib import Path

from mlops_nb.config import load_settings
from mlops_nb.notebook import read_notebook
from mlops_nb.readme import readme_text

root = Path(__file__).resolve().parents[1]
build = runpy.run_path(str(root/'setup.py'), run_name='build')
remedy = 'run `make export`, and commit the result'


def test_package_is_in_step():
    assert not {str(f): 'stale' if text is None else 'behind its notebook' for f, text in build['differences']().items()}, remedy


def test_notebooks_are_clean(tmp_path):
    files = [Path('pyproject.toml'), *build['notebooks']()]
    for f in files:
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root/f, tmp_path/f)
    subprocess.run([sys.executable, '-c', 'from nbdev.clean import nbdev_clean; nbdev_clean()'], cwd=tmp_path, check=True)
    assert not [str(f) for f in files if (tmp_path/f).read_bytes() != (root/f).read_bytes()], remedy


def test_readme_is_in_step():
    index = load_settings(root).nbs/'index.ipynb'
    if index.exists(): assert (root/'README.md').read_text('utf-8') == readme_text(read_notebook(index), index.parent.name), remedy


def test_lock_has_no_place_of_its_own():
    "A lock that names an index or somebody's folder works for somebody only"
    lines = (root/'requirements.lock').read_text('utf-8').splitlines()
    assert [o for o in lines if '==' in o] and not [o for o in lines if o.startswith('-') or '://' in o and not o.startswith('mlops-nb @ file:')]
