"The ledger in SQLite: what every ledger must do, and what can happen to a file"
import os, sqlite3, subprocess, sys, time
from contextlib import closing
from pathlib import Path
import pytest
from ledger_checks import check_fresh, check_upgrade_killed, check_upgraded, checks, python
from mlops_nb.core import LedgerError
from mlops_nb.ledger import open_ledger

@pytest.fixture(scope='module')
def url(tmp_path_factory): return f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"

@pytest.fixture
def led(url):
    with open_ledger(url) as led: yield led

@pytest.mark.parametrize('check', checks, ids=lambda o: o.__name__)
def test_check(check, led, url): check(led, url)

def test_integrity(led, url):
    with closing(sqlite3.connect(url[10:])) as c: assert c.execute('pragma integrity_check').fetchall()==[('ok',)]

@pytest.mark.parametrize('i', range(3))
def test_fresh(tmp_path, i):
    check_fresh(f'sqlite:///{tmp_path}/deep/folder/ledger.db')
    assert not [o for o in os.listdir(tmp_path/'deep'/'folder') if o.endswith('.tmp')]

@pytest.mark.parametrize('check', (check_upgraded, check_upgrade_killed), ids=lambda o: o.__name__)
def test_older(tmp_path, check): check(f'sqlite:///{tmp_path}/ledger.db')

def test_killed_while_making(tmp_path):
    "A process killed while it makes the database leaves none, or a whole one"
    code = '''
import sys, sqlalchemy, sqlalchemy.dialects.sqlite
from mlops_nb.ledger import open_ledger
print("go", flush=True)
open_ledger(sys.argv[1])
print("made", flush=True)
'''
    for i in range(12):
        p = python(code, tmp_path/f'{i}.db')
        p.stdout.readline()
        time.sleep(i*0.01) # another moment each time
        p.kill(); p.communicate()
        with open_ledger(tmp_path/f'{i}.db') as led:
            led.start_run('after')
            assert len(led.runs())==1

def test_stale_log(tmp_path):
    "The log that a deleted database left behind doesn't get into the new one"
    file = tmp_path/'l.db'
    code = 'import os, sys; from mlops_nb.ledger import open_ledger; l = open_ledger(sys.argv[1]); l.start_run("old"); os.kill(os.getpid(), 9)'
    python(code, file).communicate()
    assert Path(f'{file}-wal').stat().st_size > 0
    file.unlink()
    with open_ledger(file) as led:
        led.start_run('new')
        assert [o['pipeline'] for o in led.runs()]==['new']
    with closing(sqlite3.connect(file)) as c: assert c.execute('pragma integrity_check').fetchall()==[('ok',)]

def test_damaged(tmp_path):
    "A damaged page is one clear error"
    file = tmp_path/'l.db'
    with open_ledger(file) as led:
        for i in range(50): led.start_run('p', params={'x': 'y'*500})
    data = bytearray(file.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    file.write_bytes(data)
    with pytest.raises(LedgerError) as e:
        with open_ledger(file) as led: led.runs()
    assert 'move it aside' in e.value.remedy and str(file) in e.value.where

def test_readonly(tmp_path):
    "A ledger that may only be read says so when it is written"
    file = tmp_path/'l.db'
    open_ledger(file).close()
    code = '''
import os, sys; from pathlib import Path
from mlops_nb.core import LedgerError; from mlops_nb.ledger import open_ledger
open_ledger(Path(sys.argv[1]).with_name('warm.db')).start_run('p') # all is imported while we may still read Python's folders
for o,mode in ((sys.argv[1], 0o444), (Path(sys.argv[1]).parent, 0o555)): os.chmod(o, mode)
if os.getuid()==0: os.setgid(65534); os.setuid(65534)
try: open_ledger(sys.argv[1]).start_run('p')
except LedgerError as e: print(e.what, '|', e.remedy)
'''
    for o in tmp_path.parents:
        if 'pytest-of-' in str(o): o.chmod(0o755)
    try: out = python(code, file).communicate()[0]
    finally: tmp_path.chmod(0o755)
    assert 'check who may write' in out

def test_full_disk(tmp_path):
    "A full disk is one clear error, and what was written before is there"
    mount = ['mount','-t','tmpfs','-o','size=1m','tmpfs',str(tmp_path)]
    if os.getuid() or subprocess.run(mount).returncode: pytest.skip('mounting a small tmpfs needs root')
    try:
        with open_ledger(tmp_path/'l.db') as led:
            ids = []
            with pytest.raises(LedgerError) as e:
                for i in range(1000): ids.append(led.start_run('p', params={'x': 'y'*5000}))
            assert 'full' in e.value.what and 'make room' in e.value.remedy
            assert {o['id'] for o in led.runs(limit=2000)} == set(ids)
    finally: subprocess.run(['umount', str(tmp_path)], check=True)

def test_no_driver(tmp_path):
    "Without psycopg the message says what to install"
    code = '''
import sys; sys.modules['psycopg'] = None # what Python itself does for a module that may not be imported
from mlops_nb.core import LedgerError; from mlops_nb.ledger import open_ledger
try: open_ledger('postgresql://me:hush@localhost/db')
except LedgerError as e: print(e)
'''
    out = python(code).communicate()[0]
    assert 'pip install "mlops_nb[postgres]"' in out and 'hush' not in out

def test_lazy():
    "Importing the ledger doesn't import SQLAlchemy"
    code = '''
import sys, mlops_nb.ledger
print(sorted(o for o in sys.modules if o.split(".")[0] in ("sqlalchemy","psutil","fastcore","psycopg")))
'''
    out = python(code).communicate()[0]
    assert out=='[]\n'

def test_hidden_process():
    "A process of somebody else under a /proc that hides it isn't taken for dead"
    if os.getuid(): pytest.skip('hiding processes needs root')
    code = '''
import os, sys
from mlops_nb.process import alive, born, this_process
from mlops_nb.core import now
os.setgid(65534); os.setuid(65534)
me, other = this_process(), int(sys.argv[1])
print([born(other), alive(me | dict(pid=other, started='5'), now().isoformat()), alive(me), born(2**22+1)])
'''
    hidden = ['unshare','-m','sh','-c','mount -t proc -o hidepid=2 proc /proc && exec "$@"','-']
    run = subprocess.run([*hidden, sys.executable, '-c', code, str(os.getpid())], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if 'unshare' in run.stderr or 'mount' in run.stderr: pytest.skip('this machine has no mount namespaces')
    assert run.stdout=="['', True, True, None]\n", run.stderr
