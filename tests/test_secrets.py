"""No secret anywhere: a pipeline that tries hard to tell what it knows, run by every command, and then a search for the values in everything that is left"""
import json, os, tempfile, threading
from pathlib import Path

import psutil, pytest

from scratch import Project

# each has a part that stands nowhere else; they come from the environment, by a name of settings.ini, as passwords in addresses, and typed
known = dict(API_TOKEN='hush-api-4711', MY_DB_PASSWORD='hush-db "4712"', NOBODY_USES='hush-unused-4713', LEDGER_PASSWORD='hush-ledger-4714', STORE_PASSWORD='hush-store-4715', MLFLOW_PASSWORD='hush-mlflow-4716',
    STUDIES_PASSWORD='hush-studies-4717', OPENLINEAGE_API_KEY='hush-events-4718', WHOLE_ADDRESS='mysql://me:hush-whole-4720@127.0.0.1:1/nobody')
typed = "hush-typed-4719 'x'"
traces = [o[o.index('hush-'):][:9].encode() for o in (*known.values(), typed)]

settings = '''[DEFAULT]
{more}
[wrong]
ledger = postgresql://me:${{LEDGER_PASSWORD}}@127.0.0.1:1/nobody
[wrongstore]
store = s3://key:${{STORE_PASSWORD}}@bucket/there
[wrongscheme]
store = nosuch://key:${{STORE_PASSWORD}}@bucket/there
ledger = mysql://me:${{LEDGER_PASSWORD}}@127.0.0.1:1/nobody
[wrongstudies]
studies = mysql://me:${{STUDIES_PASSWORD}}@127.0.0.1:1/nobody
mlflow = http://me:${{MLFLOW_PASSWORD}}@127.0.0.1:1
[wholeaddress]
studies = ${{WHOLE_ADDRESS}}
[secrets]
db_password = ${{MY_DB_PASSWORD}}
unused = ${{NOBODY_USES}}
'''

tell_all = ['import logging, os, subprocess, sys, warnings\nfrom mlops_nb.config import load_settings\nprint(api_token, db_password, pin)\nprint(dict(os.environ))', '%env',
    'logging.warning("%s %s", pin, dict(os.environ)); warnings.warn(db_password); print(open("/proc/self/environ").read(), file=sys.stderr)\nos.system("env"); print(subprocess.run(["env"], capture_output=True, text=True).stdout)',
    'settings = load_settings("../../..")\nprint(settings, settings.ledger, settings.store, settings.secrets["unused"], vars(settings))\nsettings.ledger',
    'record(**{pin: 1.0, "score": 1.0})\nreport(1, step=1, name=api_token)', 'dict(os.environ)']
raises = '''try: raise ValueError(os.environ["NOBODY_USES"])
except ValueError as e: raise KeyError(api_token, db_password, pin, dict(os.environ)) from e'''
parameters = 'api_token: Secret = ""\ndb_password: Secret = ""\npin: Secret = ""\nfail: bool = False\nx: float = 1.0\n'


def make(root, more):
    "The project"
    p = Project(root, settings.format(more=more))
    (p.root/'raw.txt').write_text('raw')
    p.stage('01_tell', parameters + 'raw: In = "../../../raw.txt"\ntold: Out = "data/told.txt"', *tell_all, 'open(told, "w").write("told")')
    p.stage('02_raise', parameters + 'told: In = "data/told.txt"\nend: Out = "data/end.txt"', 'import os', raises)
    p.stage('03_write', 'told: In = "data/told.txt"\nout: Out = "data/out.txt"', 'import os\nopen(out, "w").write(os.environ["NOBODY_USES"])') # it declares no secret
    p.stage('04_try', parameters + 'told: In = "data/told.txt"\ntried: Out = "data/tried.txt"', '#| tune\nfrom optuna.distributions import FloatDistribution\nspace = dict(x=FloatDistribution(0, 3))',
        *tell_all, f'import os\nif x > 2 or fail:\n    ' + raises.replace('\n', '\n    '), 'record(loss=x)\nopen(tried, "w").write(str(x))')
    return p


class Watch(threading.Thread):
    "Looks at the command lines of all processes of a project; a process that is just being started has that of its parent, which may have been typed here"
    def __init__(self, project): super().__init__(); self.project,self.seen,self.typed,self.over,self.others = project,set(),set(),threading.Event(),set(psutil.pids())
    def run(self):
        while not self.over.wait(.05):
            for p in self.project.processes(self.others): # what was there before is none of them
                try:
                    self.seen.add((p.pid, ' '.join(p.cmdline())))
                except psutil.Error: pass
    def __enter__(self): self.start(); return self
    def __exit__(self, *args): self.over.set(); self.join()


def left(root):
    "{file: what of the secrets stands in it} of everything below `root`, the database's write-ahead log too, and of temporary folders"
    folders = root, *Path(tempfile.gettempdir()).glob('mlops-*') # a folder of somebody else may go while we look, which `os.walk` doesn't mind
    files = [o for d in folders for at, _, names in os.walk(d) for n in names if (o := Path(at, n)).is_file() and not o.is_symlink()]
    def look(o):
        try: data = o.read_bytes()
        except OSError: return [] # it has gone meanwhile
        return [data[max(0, i-60):i+30] for t in traces if (i := data.find(t)) >= 0]
    return {str(o): found for o in files if (found := look(o))}


def in_rows(url):
    "What stands in all tables of the database"
    import psycopg
    with psycopg.connect(url) as c:
        tables = c.execute("select table_schema, table_name from information_schema.tables where table_schema not in ('pg_catalog','information_schema')").fetchall()
        text = '\n'.join(str(r) for s,t in tables for r in c.execute(f'select * from "{s}"."{t}"').fetchall())
    return len(tables), [t for t in traces if t.decode() in text]


def do_everything(p, watch, **more):
    "Every command on the leaky pipeline, in an environment with these variables too; what it said"
    def cli(*args, code, **env):
        proc = p.start(*args, **known, **more, **env)
        watch.typed.add(proc.pid)
        done = p.wait(proc)
        return ended(done, code, args)
    def ended(done, code, args):
        assert done.code in code if isinstance(code, tuple) else done.code == code, (args, done)
        return done
    def asked(*args, code): return ended(p.inside(*args, **known, **more), code, args) # what starts no processes is done here
    said = [cli('run', 'demo', '-p', f'pin={typed}', code=1), cli('run', 'demo', '-p', f'pin={typed}', '--json', code=1), cli('run', 'demo', '-p', f'tell.pin={typed}', '--each', 'x=1,2', code=1),
        cli('tune', 'demo/04_try', '--metric', 'loss', '--trials', '3', '--jobs', '2', '-p', f'pin={typed}', code=(0, 1)),
        cli('plan', 'demo', '-p', f'pin={typed}', code=0), cli('plan', 'demo', '-p', f'pin={typed}', '--json', code=0)]
    for args in (['runs'], ['show'], ['logs'], ['doctor'], ['studies'], ['study', 'demo-try'], ['lineage', 'try.tried'], ['lineage', 'raw.txt']):
        said += [asked(*args, code=(0, 1)), asked(*args, '--json', code=(0, 1))]
    ids = [o['id'] for o in said[6+1].json['runs']]
    said += [asked(o, i, code=0) for i in ids[-2:] for o in ('show', 'logs')]
    said += [cli('study', 'demo-try', '--report', code=(0, 2)), asked('lineage', 'raw.txt', '--svg', 'lineage.svg', '--openlineage', 'events.jsonl', code=0), asked('lineage', 'raw.txt', '--openlineage', 'http://127.0.0.1:1', code=1)]
    said.append(cli('reproduce', ids[-1], '--stage', 'tell', '--folder', str(p.root/'again'), code=(0, 1, 2)))
    said += [asked('diff', ids[-2], ids[-1], '--prose', code=(0, 1)), asked('gc', code=0), cli('track', code=(0, 2))]
    for args in (['run', 'demo'], ['doctor'], ['lineage', 'raw.txt']): said += [cli(*args, '--env', env, code=(0, 1, 2)) for env in ('wrong', 'wrongstore', 'wrongscheme')]
    said += [cli(*args, '--env', 'wrongstudies', code=(0, 1, 2)) for args in (['tune', 'demo/04_try', '--metric', 'loss', '--trials', '1'], ['studies'])]
    said += [cli('run', 'demo', '-p', f'pin={typed}', '-p', 'x=no', code=2), cli('run', 'demo', '-p', f'pin={typed}', '-p', 'no=1', code=2), cli('run', 'demo', '-p', f'pon={typed}', code=2),
        cli('run', 'demo', '--params', 'given.json', code=1)]
    return said


def check(p, watch, **more):
    (p.root/'given.json').write_text(json.dumps(dict(pin=typed+'-from-file')))
    said = do_everything(p, watch, **more)
    assert not p.quiet(60) # who tells MLflow tries a server that isn't there for a while
    told = [(o.out+o.err)[max(0, i-200):i+60] for o in said for t in traces if (i := (o.out+o.err).find(t.decode())) >= 0]
    assert not told, told
    (p.root/'given.json').unlink()
    found = left(p.root)
    assert not found, found
    typed_lines = {line for pid,line in watch.seen if pid in watch.typed}
    lines = [line for pid,line in watch.seen if line not in typed_lines]
    assert lines and not [o for o in lines for t in traces if t.decode() in o], lines
    logs = ''.join(o.out for o in said)
    assert '[secret api_token]' in logs and 'pin=***' in logs # they were there to be told


def test_files(tmp_path):
    "Everything is in files, MLflow's database and artifacts too"
    p = make(tmp_path/'project', 'upload_artifacts = true')
    try:
        with Watch(p) as watch: check(p, watch, MLOPS_MLFLOW=f'sqlite:///{p.state}/mlflow.db')
        assert (p.state/'mlflow.db').exists() and list((p.state/'mlartifacts').rglob('*.ipynb'))
        with p.ledger as ledger: assert any('pin=***' in o['command'] for o in ledger.runs(study=None))
    finally: p.put_away()


def test_databases_with_passwords(postgres_server, tmp_path):
    "The ledger and the studies are in PostgreSQL, each with a password in its address"
    server = postgres_server
    for o in ('ledger', 'studies'): server.make(o)
    url = 'postgresql://me:${%s}@/%s?host=' + server.folder
    p = make(tmp_path/'project', f"ledger = {url % ('LEDGER_PASSWORD', 'ledger')}\nstudies = {(url % ('STUDIES_PASSWORD', 'studies')).replace('postgresql:', 'postgresql+psycopg:')}")
    try:
        with Watch(p) as watch: check(p, watch)
        for o in ('ledger', 'studies'):
            tables,found = in_rows(f'host={server.folder} user=me dbname={o}')
            assert tables > 5 and not found, (o, found)
    finally: p.put_away()
