"The same checks in PostgreSQL: a private server from the system's own binaries, in a temp folder, on a Unix socket"
import os, pwd, shutil, subprocess, tempfile
from glob import glob
from pathlib import Path
import pytest
from ledger_checks import check_fresh, check_upgrade_killed, check_upgraded, checks
from mlops_nb.core import LedgerError
from mlops_nb.ledger import open_ledger

def binaries():
    "The folder of PostgreSQL's binaries; the newest of Debian's, else where `pg_ctl` is"
    found = sorted(glob('/usr/lib/postgresql/*/bin/pg_ctl'), key=lambda o: float(o.split('/')[4])) or [o for o in [shutil.which('pg_ctl')] if o]
    return Path(found[-1]).parent if found else None

def server_user():
    "PostgreSQL refuses to run as root: then somebody else runs it"
    if os.getuid(): return None
    names = {o.pw_name for o in pwd.getpwall()}
    return next((o for o in ('postgres','nobody') if o in names), None)

class Server:
    "A PostgreSQL server in `folder`, stopped and started at will"
    def __init__(self, folder):
        self.folder,self.user = folder,server_user()
        if self.user: shutil.chown(folder, self.user)
        self.ctl('initdb', '-o', '-A trust -U me --no-sync -E UTF8')
        self.start()

    def ctl(self, *args):
        env = {k: v for k,v in os.environ.items() if not k.startswith('PG')} | {'LC_ALL': 'C.UTF-8'}
        done = subprocess.run([binaries()/'pg_ctl','-D',f'{self.folder}/data','-l',f'{self.folder}/log','-w',*args], user=self.user,
            group=self.user and pwd.getpwnam(self.user).pw_gid, extra_groups=[] if self.user else None, cwd=self.folder, env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        log = Path(self.folder, 'log')
        assert done.returncode==0, f"pg_ctl {args[0]} failed: {log.read_text()[-2000:] if log.exists() else ''}"

    def start(self): self.ctl('start', '-o', f"-k {self.folder} -c listen_addresses=''")
    def stop(self): self.ctl('stop', '-m', 'immediate')
    def url(self, db='postgres', **query):
        return f"postgresql://me:hush@/{db}?" + '&'.join(f'{k}={v}' for k,v in dict(host=self.folder, **query).items())
    def make(self, db):
        import psycopg
        with psycopg.connect(host=self.folder, user='me', dbname='postgres', autocommit=True) as c: c.execute(f'create database {db}')
        return self.url(db)

@pytest.fixture(scope='module')
def server():
    if not binaries(): pytest.skip('PostgreSQL is not installed: apt-get install postgresql')
    pytest.importorskip('psycopg', reason='psycopg is not installed: pip install "mlops_nb[postgres]"')
    if not os.getuid() and not server_user(): pytest.skip('PostgreSQL does not run as root, and there is neither a user postgres nor nobody')
    folder = tempfile.mkdtemp(prefix='pg') # short: a socket's path has at most 107 letters
    try:
        server = Server(folder)
        yield server
        server.stop()
    finally: shutil.rmtree(folder)

@pytest.fixture(scope='module')
def url(server): return server.make('checks')

@pytest.fixture
def led(url):
    with open_ledger(url) as led: yield led

@pytest.mark.parametrize('check', checks, ids=lambda o: o.__name__)
def test_check(check, led, url): check(led, url)

@pytest.mark.parametrize('i', range(3))
def test_fresh(server, i): check_fresh(server.make(f'fresh{i}'))

@pytest.mark.parametrize('check', (check_upgraded, check_upgrade_killed), ids=lambda o: o.__name__)
def test_older(server, check): check(server.make(check.__name__))

def test_schemas(server):
    "Two teams share a database, and MLflow's tables don't mind"
    import psycopg
    server.make('shared')
    with psycopg.connect(host=server.folder, user='me', dbname='shared', autocommit=True) as c: c.execute('create table runs (mlflow text)')
    with open_ledger(server.url('shared')) as a, open_ledger(server.url('shared', schema='team_a')) as b:
        a.start_run('a')
        assert (len(a.runs()), len(b.runs()))==(1, 0)

def test_server_goes_and_comes(server):
    "What was written before a crash of the server is there after it, and a ledger that stayed open goes on"
    with open_ledger(server.make('crash')) as led:
        before = led.start_run('before')
        server.stop()
        try:
            with pytest.raises(LedgerError) as e: led.start_run('meanwhile')
            assert 'is the server up' in e.value.remedy and 'hush' not in str(e.value)
        finally: server.start()
        after = led.start_run('after')
        assert {o['id'] for o in led.runs()}=={before, after}

def test_unknown_database(server):
    with pytest.raises(LedgerError) as e: open_ledger(server.url('nowhere'))
    assert 'nowhere' in str(e.value) and 'hush' not in str(e.value)

def test_newer(server):
    "A ledger of a later version is refused"
    url = server.make('newer')
    with open_ledger(url) as led:
        with led.db.write() as c: c.execute(led.t.schema_version.insert(), dict(version=99))
    with pytest.raises(LedgerError, match='has version 99') as e: open_ledger(url)
    assert e.value.remedy=='upgrade mlops_nb'
