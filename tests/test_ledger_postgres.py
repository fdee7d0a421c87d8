"The same checks in PostgreSQL"
import pytest
from ledger_checks import check_fresh, check_upgrade_killed, check_upgraded, checks
from mlops_nb.core import LedgerError
from mlops_nb.ledger import open_ledger

@pytest.fixture(scope='module')
def server(postgres_server): return postgres_server

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
