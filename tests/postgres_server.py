"""A private PostgreSQL server from the system's own binaries, in a temp folder, on a Unix socket"""
import os, pwd, shutil, subprocess, tempfile
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import pytest

def binaries():
    "The folder of PostgreSQL's binaries; the newest of Debian's, else where `pg_ctl` is"
    found = sorted(glob('/usr/lib/postgresql/*/bin/pg_ctl'), key=lambda o: float(o.split('/')[4])) or [o for o in [shutil.which('pg_ctl')] if o]
    return Path(found[-1]).parent if found else None

def server_user():
    "PostgreSQL refuses to run as root: then somebody else runs it"
    if os.getuid(): return None
    names = {o.pw_name for o in pwd.getpwall()}
    return next((o for o in ('postgres','nobody') if o in names), None)

class PostgresServer:
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

@contextmanager
def postgres():
    "A server for the block; the test is skipped where there can be none"
    if not binaries(): pytest.skip('PostgreSQL is not installed: apt-get install postgresql')
    pytest.importorskip('psycopg', reason='psycopg is not installed: pip install "mlops_nb[postgres]"')
    if not os.getuid() and not server_user(): pytest.skip('PostgreSQL does not run as root, and there is neither a user postgres nor nobody')
    folder = tempfile.mkdtemp(prefix='pg') # short: a socket's path has at most 107 letters
    try:
        server = PostgresServer(folder)
        try: yield server
        finally: server.stop()
    finally: shutil.rmtree(folder)
