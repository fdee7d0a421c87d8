"""A scratch project whose pipelines are made for one test, and the command line that runs them"""
import json, os, secrets, shutil, signal, subprocess, sys, time
from copy import copy
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import psutil

from mlops_nb.config import load_settings
from mlops_nb.ledger import open_ledger
from mlops_nb.store import open_store

mark = 'MLOPS_SCRATCH' # environment variable that every process of a scratch project inherits


def code(source, **metadata):
    "A code cell"
    return dict(cell_type='code', id=secrets.token_hex(4), metadata=metadata, source=source, outputs=[], execution_count=None)


def notebook(*cells, **metadata):
    "A notebook; cells are sources, or whole cells"
    cells = [o if isinstance(o, dict) else code(o) for o in cells]
    kernel = dict(kernelspec=dict(display_name='Python 3', language='python', name='python3'))
    return dict(cells=cells, metadata=kernel | metadata, nbformat=4, nbformat_minor=5)


def marked(name, value, zombies=True, but=()):
    "The processes whose environment has this mark; those with the ids of `but` aren't looked at"
    found = []
    for p in psutil.process_iter():
        try:
            if p.pid not in but and p.environ().get(name) == value and (zombies or p.status() != 'zombie'): found.append(p)
        except psutil.Error: pass
    return found


def until(true, seconds=30):
    "Wait for a condition; its value"
    end = time.monotonic() + seconds
    while not (res := true()):
        assert time.monotonic() < end, f'not within {seconds} s'
        time.sleep(.02)
    return res


class Done:
    "A command that has ended"
    def __init__(self, code, out, err): self.code, self.out, self.err = code, out, err
    def __repr__(self): return f'exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}'
    @property
    def text(self): return self.out + self.err
    @property
    def json(self): return json.loads(self.out)
    @property
    def statuses(self):
        "{stage: status} of a run with --json"
        return {o['stage']: o['status'] for o in self.json['stages']}


class Project:
    "A project in a folder"
    def __init__(self, root, settings='[DEFAULT]\n', pipeline='demo'):
        self.root, self.pipeline, self.mark = Path(root), pipeline, secrets.token_hex(8)
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root/'pyproject.toml').write_text('[project]\nname = "scratch"\nversion = "0"\n\n[tool.nbdev]\nnbs_path = "nbs"\n')
        if 'cards' not in settings: settings = settings.replace('[DEFAULT]\n', '[DEFAULT]\ncards = no\n', 1) # each takes some seconds
        (self.root/'settings.ini').write_text(settings)
        self.folder.mkdir(parents=True)

    def copied_to(self, root):
        "The same project in another folder, with all that it has made"
        p = copy(self)
        p.root, p.mark = Path(shutil.copytree(self.root, root)), secrets.token_hex(8)
        return p

    @property
    def folder(self): return self.root/'nbs'/'pipelines'/self.pipeline
    @property
    def data(self): return self.folder/'data'
    @property
    def state(self): return self.root/'.mlops'

    def stage(self, name, params, *cells):
        "Write a stage notebook; `params` is the source of its parameters cell"
        cells = ['from mlops_nb import In, Out, Secret, record, report', code(params, tags=['parameters']), *cells]
        (self.folder/f'{name}.ipynb').write_text(json.dumps(notebook(*cells)))

    def start(self, *args, **env):
        "Start `mlops-nb ARGS` as the leader of a session, as a terminal does"
        return subprocess.Popen([sys.executable, '-m', 'mlops_nb.cli', *args], cwd=self.root, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, 'COLUMNS': '200', **env, mark: self.mark})

    def wait(self, p, timeout=300):
        "What became of a started command"
        return Done(*(lambda out, err: (p.returncode, out, err))(*p.communicate(timeout=timeout)))

    def cli(self, *args, timeout=300, **env):
        "Do `mlops-nb ARGS`"
        return self.wait(self.start(*args, **env), timeout)

    def inside(self, *args, **env):
        "Do `mlops-nb ARGS` in this process, which has its libraries already"
        from mlops_nb.cli import main
        out, err, code = StringIO(), StringIO(), 0
        with chdir(self.root), redirect_stdout(out), redirect_stderr(err), patch.object(sys, 'argv', ['mlops-nb', *args]), patch.dict(os.environ, {'COLUMNS': '200', **env, mark: self.mark}):
            try: main()
            except SystemExit as e: code = e.code or 0
        return Done(code, out.getvalue(), err.getvalue())

    def run(self, *args, **kwargs):
        "Run the pipeline, with --json"
        return self.cli('run', self.pipeline, '--json', *args, **kwargs)

    def ok(self, *args, **kwargs):
        "Run the pipeline, which goes well"
        done = self.run(*args, **kwargs)
        assert done.code == 0, (done, [o["error"] for o in self.rows() if o["error"]])
        return done

    def did(self, *args):
        "Run the pipeline in this process; it goes well"
        done = self.inside('run', self.pipeline, '--json', *args)
        assert done.code == 0, (done, [o["error"] for o in self.rows() if o["error"]])
        return done

    @property
    def settings(self): return load_settings(self.root)
    @property
    def store(self): return open_store(self.settings.store)
    @property
    def ledger(self): return open_ledger(self.settings.ledger)

    def rows(self, **where):
        "All stage runs, the oldest first, those with these values"
        with self.ledger as ledger: rows = [o for r in ledger.runs(limit=100_000)[::-1] for o in ledger.stage_runs(r['id'])]
        return [o for o in rows if all(o[k] == v for k, v in where.items())]

    def processes(self, but=()):
        "The living processes of this project, zombies among them"
        return marked(mark, self.mark, but=but)

    def quiet(self, seconds=3):
        "Wait until no process is left; those that are left after `seconds`"
        end = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < end: time.sleep(.02)
        return [f'{o.pid} {o.status()} {o.cmdline()}' for o in left if o.is_running()]

    def until(self, true, seconds=60):
        "Wait until `true()` is"
        return until(true, seconds)

    def put_away(self):
        "End what a failed test left running"
        for p in self.processes(): p.send_signal(signal.SIGKILL)
