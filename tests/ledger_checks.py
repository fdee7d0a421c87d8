"What any ledger must do, whatever database it is kept in; each check takes an open ledger and its URL"
import os, subprocess, sys, uuid
from concurrent.futures import ThreadPoolExecutor
import pytest
from mlops_nb.core import LedgerError
from mlops_nb.database import open_database
from mlops_nb.ledger import open_ledger
from mlops_nb.process import this_process
from mlops_nb.records import cached_row
from mlops_nb.tables import NoSuchRun, run_columns, stage_columns, tables, version

def new_fp(): return uuid.uuid4().hex*2
def art(name, **kw): return dict(digest=uuid.uuid4().hex*2, name=name, size=3, kind='file', **kw)

def python(code, *args, **kw):
    "Start `code` in a new process, its output in a pipe"
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **kw)

def results(procs):
    "What the processes print, once all have ended well"
    outs = [p.communicate(timeout=120)[0] for p in procs]
    assert [p.returncode for p in procs] == [0]*len(procs)
    return outs

def check_runs(led, url):
    a = led.start_run('checks', params={'month': 1, 'who': 'Zoë \U0001f426', 'nul': 'a\0b'}, each={'k': [1,2]}, git_dirty=True)
    b = led.start_run('checks')
    assert list(led.run(a)) == list(run_columns)
    row = led.run(a)
    assert row['params'] == {'month': 1, 'who': 'Zoë \U0001f426', 'nul': 'a\0b'} and row['git_dirty'] is True
    assert row['status']=='running' and row['ended'] is None
    assert row['owner'] == this_process() and row['pid']==os.getpid()
    led.end_run(a, 'failed', error={'what': 'no bird'})
    assert led.run(a)['error']=={'what': 'no bird'} and led.run(a)['ended'] >= row['started']
    with pytest.raises(LedgerError, match="finished doesn't change"): led.end_run(a, 'completed')
    assert [o['id'] for o in led.runs(pipeline='checks', status='failed')] == [a]
    assert led.run('last')['id']==b and led.run(a[:-2])['id']==led.run(a[-6:])['id']==a
    with pytest.raises(NoSuchRun): led.run("x' or 1=1")
    led.end_run(b, 'stopped')

def check_stages(led, url):
    run,fp,x,y,nb = led.start_run('stages'),new_fp(),art('x.csv', path='data/x.csv'),art('y.csv', path='data/y.csv'),art('1.ipynb')
    sid = led.start_stage(run, '01', fingerprint=fp, components={'seed': 0}, params={'a': None})
    assert led.hit(fp) is None and led.lasts('stages')=={}
    led.end_stage(sid, 'completed', inputs={'x': x}, outputs={'y': y}, executed=nb, metrics={'auc': 0.75, 'n': 2**40}, seconds=1.25, peak_mb=10)
    row = led.stage_run(sid)
    assert list(row)==list(stage_columns) and row['metrics']=={'auc': 0.75, 'n': 2**40} and row['seconds']==1.25 and row['params']=={'a': None}
    with pytest.raises(LedgerError, match='is completed'): led.end_stage(sid, 'failed')
    assert led.hit(fp)==led.hits([fp, new_fp()])[fp]=={k: v for k,v in row.items() if k!='components'}
    assert {(o['direction'], o['param'], o['name'], o['path']) for o in led.edges(stage_run_id=sid)} == {
        ('in','x','x.csv','data/x.csv'), ('out','y','y.csv','data/y.csv'), ('out','(notebook)','1.ipynb',None)}
    assert led.artifact(y['digest'][:12])['name']=='y.csv' and {x['digest'], y['digest'], nb['digest']} <= led.digests()
    cached = led.add_cached(run, '01', led.hit(fp), components={'seed': 0})
    assert led.hit(fp)['id']==sid and led.last('stages','01')['id']==led.lasts('stages')['01']['id']==cached
    again = led.start_stage(run, '01', fingerprint=fp)
    led.end_stage(again, 'failed')
    assert led.hit(fp)['id']==sid and led.last('stages','01')['id']==cached
    open_ = led.start_stage(run, '02')
    led.end_run(run, 'completed')
    assert led.stage_run(open_)['status']=='stopped' and led.counts([run])=={run: dict(completed=1, cached=1, failed=1, stopped=1)}

def check_newest_hit(led, url):
    run,fp = led.start_run('forced'),new_fp()
    ids = [led.start_stage(run, '01', fingerprint=fp) for _ in range(3)]
    for i in (2,0,1): led.end_stage(ids[i], 'completed', metrics={'i': i})
    assert led.hit(fp)['metrics']=={'i': 1}
    led.end_run(run, 'completed')

def check_thousand(led, url):
    run,fps = led.start_run('thousand'),[new_fp() for _ in range(1000)]
    x = art('x')
    led.add_stages(run, [dict(stage=f's{i}', fingerprint=o, status='completed', outputs={'x': x}, inputs={'i': art('i')}) for i,o in enumerate(fps)])
    hits = led.hits(fps)
    assert set(hits)==set(fps)
    second = led.start_run('thousand')
    ids = led.add_stages(second, [cached_row(f's{i}', hits[o]) for i,o in enumerate(fps)])
    assert len(set(ids))==1000 and [o['id'] for o in led.lasts('thousand').values() if o['run_id']!=second]==[]
    assert len(led.edges(x['digest']))==2000 and len(led.stage_runs(second))==1000
    for o in (run,second): led.end_run(o, 'completed')

def check_all_or_nothing(led, url):
    run = led.start_run('whole')
    sid = led.start_stage(run, '01')
    before = led.digests()
    with pytest.raises(RuntimeError):
        with led.db.write() as c:
            c.execute(led.t.artifacts.insert(), art('half'))
            raise RuntimeError('killed')
    rows = [dict(stage='02', status='completed', outputs={'y': art('y')}), dict(stage='03', status='completed', nonsense=1)]
    with pytest.raises(LedgerError): led.add_stages(run, rows)
    assert led.digests()==before and [o['id'] for o in led.stage_runs(run)]==[sid]
    led.end_run(run, 'completed')

def check_events(led, url):
    n = led.event('checked', run_id='r1', psi=0.3)
    m = led.event('checked', stage_run_id='s1')
    assert n < m and [(o['id'], o['data']) for o in led.events(kind='checked', after=n-1)] == [(n, {'psi': 0.3}), (m, {})]
    assert [o['id'] for o in led.events(run_id='r1')]==[n]
    led.keep_environment('e1', {'pandas': '3'}); led.keep_environment('e1', {'pandas': '3'})
    assert led.environment('e1')=={'pandas': '3'} and led.environment('e2')=={}

_claimer = '''
import sys
from mlops_nb.ledger import open_ledger
led = open_ledger(sys.argv[1])
print('ready', flush=True); sys.stdin.readline()
print(sum(led.claim(f'{sys.argv[2]}{i}') for i in range(50)), flush=True)
sys.stdin.readline()
'''
def check_one_claimer_wins(led, url):
    "Each of 50 fingerprints that 3 processes claim at once is won by exactly one, while all live"
    base = new_fp()
    procs = [python(_claimer, url, base) for _ in range(3)]
    for p in procs: assert p.stdout.readline()=='ready\n'
    for p in procs: p.stdin.write('\n'); p.stdin.flush()
    assert sum(int(p.stdout.readline()) for p in procs)==50
    held = [o for o in led.claims() if o['fingerprint'].startswith(base)]
    assert len(held)==50 and {o['owner']['pid'] for o in held} <= {p.pid for p in procs}
    results(procs)

_work = '''
import sys
from mlops_nb.ledger import open_ledger
led = open_ledger(sys.argv[1])
run = led.start_run(sys.argv[3]); sid = led.start_stage(run, '01', fingerprint=sys.argv[2])
print(run, sid, led.claim(sys.argv[2]), flush=True)
sys.stdin.readline()
'''
def check_killed(led, url):
    "What a SIGKILLed process held is free at once, even while it is a zombie; its run is stopped by exactly one recoverer"
    fp = new_fp()
    p = python(_work, url, fp, 'killed')
    run,sid,claimed = p.stdout.readline().split()
    assert claimed=='True' and not led.claim(fp) and run not in [o['id'] for o in led.recover()]
    p.kill()
    os.waitid(os.P_PID, p.pid, os.WEXITED | os.WNOWAIT) # dead, and not yet reaped
    with ThreadPoolExecutor(4) as pool: taken = list(pool.map(lambda _: led.claim(fp), range(4)))
    assert sorted(taken)==[False]*3 + [True]
    with ThreadPoolExecutor(4) as pool: found = [o for os_ in pool.map(lambda _: led.recover(), range(4)) for o in os_ if o['id']==run]
    assert [[s['id'] for s in o['stage_runs']] for o in found]==[[sid]]
    assert led.run(run)['status']==led.stage_run(sid)['status']=='stopped' and str(p.pid) in led.run(run)['error']['evalue']
    with pytest.raises(LedgerError, match="is stopped"): led.end_stage(sid, 'completed')
    assert [o['owner'] for o in led.claims() if o['fingerprint']==fp]==[this_process()]
    led.release(fp)
    p.communicate()

_writer = '''
import sys
from mlops_nb.ledger import open_ledger
led = open_ledger(sys.argv[1])
run = led.start_run('writers')
for i in range(int(sys.argv[2])):
    sid = led.start_stage(run, f's{i}', fingerprint=f'{sys.argv[3]}{i}')
    led.end_stage(sid, 'completed', outputs={k: dict(digest=f'{k}{i}', name=k, size=1, kind='file') for k in ('zz','aa','mm')})
    led.beat()
led.end_run(run, 'completed')
print(run)
'''
def check_writers(led, url, n=40):
    "4 processes that write the same artifacts at once lose nothing and do not fail"
    fp = new_fp()
    runs = [o.strip() for o in results([python(_writer, url, n, fp) for _ in range(4)])]
    assert led.counts(runs)=={o: {'completed': n} for o in runs}
    assert len(led.edges(digest='zz0'))==4 and len(led.hits(f'{fp}{i}' for i in range(n)))==n

def check_threads(led, url):
    "Threads share a ledger"
    run = led.start_run('threads')
    def work(i): led.end_stage(led.start_stage(run, f's{i}'), 'completed', outputs={'o': art('o')})
    with ThreadPoolExecutor(8) as pool: list(pool.map(work, range(40)))
    assert led.counts([run])[run]=={'completed': 40}
    led.end_run(run, 'completed')

_endless = '''
import sys
from mlops_nb.ledger import open_ledger
led = open_ledger(sys.argv[1]); run = led.start_run('endless')
for i in range(10**9):
    sid = led.start_stage(run, f's{i}'); led.end_stage(sid, 'completed', outputs={'o': dict(digest=sid, name='o', size=1, kind='file')})
    print(sid, flush=True)
'''
def check_sigkill_loses_nothing(led, url):
    "Whatever was written when a process is killed is there, with its artifacts, and nothing half"
    for n in (1, 7, 40):
        p = python(_endless, url)
        told = [p.stdout.readline().strip() for _ in range(n)]
        p.kill()
        told += p.communicate()[0].split('\n')[:-1]
        run = led.stage_run(told[0])['run_id']
        done = {o['id'] for o in led.stage_runs(run) if o['status']=='completed'}
        assert set(told) <= done and len(done) <= len(told)+1 and done <= led.digests()
        assert [o['id'] for o in led.recover() if o['id']==run]==[run]

def check_fork(led, url):
    "A forked child uses the ledger without harm to its parent"
    run = led.start_run('fork')
    pid = os.fork()
    if not pid:
        code = 1
        try: led.event('child', run_id=run); led.start_stage(run, 'child'); code = 0
        finally: os._exit(code)
    for _ in range(20): led.event('parent', run_id=run)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==0
    assert sorted(o['kind'] for o in led.events(run_id=run))==['child'] + ['parent']*20
    led.end_run(run, 'completed')

_opener = '''
import sys
from mlops_nb.ledger import open_ledger
print('ready', flush=True); sys.stdin.readline()
led = open_ledger(sys.argv[1]); led.start_run('opened'); print('ok')
'''
def check_fresh(new_url):
    "6 processes that open a ledger that isn't there make one, and none fails"
    procs = [python(_opener, new_url) for _ in range(6)]
    for p in procs: assert p.stdout.readline()=='ready\n'
    for p in procs: p.stdin.write('\n'); p.stdin.flush()
    assert results(procs)==['ok\n']*6
    with open_ledger(new_url) as led: assert len(led.runs(pipeline='opened'))==6

added = {'rung','rung_why','shared_cells','pss_mb'} # by version 2
first = tables | dict(stage_runs=tables['stage_runs']._replace(columns={k: v for k,v in stage_columns.items() if k not in added}))

def make_first(url):
    "A ledger of version 1, with a stage run"
    db = open_database(url, first, 1)
    with db.write() as c:
        c.execute(db.tables.runs.insert(), dict(id='r1', pipeline='old', status='completed', started='2013-07-04'))
        c.execute(db.tables.stage_runs.insert(), dict(id='s1', run_id='r1', pipeline='old', stage='01', status='completed', started='2013-07-04',
            ended='2013-07-04', fingerprint='f1', engine='papermill'))
    db.close()

def state(url, tables=first, version=1):
    "The versions that a ledger has had, and which of the later columns it has"
    import sqlalchemy as sa
    db = open_database(url, tables, version)
    with db.read() as c:
        t = db.tables.stage_runs
        found = c.execute(db.tables.schema_version.select()).scalars().all(), {o['name'] for o in sa.inspect(c).get_columns(t.name, schema=t.schema)} & added
    db.close()
    return found

def check_upgraded(new_url):
    "6 processes that open a ledger of version 1 bring it up to date once; what was in it is there, and an old mlops_nb is refused"
    make_first(new_url)
    assert state(new_url)==([1], set())
    procs = [python(_opener, new_url) for _ in range(6)]
    for p in procs: assert p.stdout.readline()=='ready\n'
    for p in procs: p.stdin.write('\n'); p.stdin.flush()
    assert results(procs)==['ok\n']*6
    assert state(new_url, tables, version)==([1, version], added)
    with pytest.raises(LedgerError, match=f'has version {version}') as e: state(new_url)
    assert e.value.remedy=='upgrade mlops_nb'
    with open_ledger(new_url) as led:
        old = led.hit('f1')
        assert len(led.runs(pipeline='opened'))==6 and old['engine']=='papermill' and {old[k] for k in added}=={None}
        run = led.start_run('new')
        assert led.stage_run(led.add_cached(run, '01', old))['rung'] is None
        sid = led.start_stage(run, '02', fingerprint='f2')
        led.end_stage(sid, 'completed', rung='snapshot', rung_why='', shared_cells=5, pss_mb=61.5)
        new = led.stage_run(led.add_cached(run, '02', led.hit('f2')))
        assert [led.stage_run(sid)[k] for k in ('rung','rung_why','shared_cells','pss_mb')]==['snapshot','',5,61.5]
        assert [new[k] for k in ('rung','rung_why','shared_cells','pss_mb')]==['snapshot','',5,None] # no work, no memory

_dies = '''
import os, sys, mlops_nb.database as d
from mlops_nb.ledger import open_ledger
add,left = d.add_column,[int(sys.argv[2])]
def dies(c, column):
    add(c, column)
    left[0] -= 1
    if not left[0]: os.kill(os.getpid(), 9)
d.add_column = dies
open_ledger(sys.argv[1])
'''
def check_upgrade_killed(new_url):
    "A process killed while it brings a ledger up to date leaves the old one"
    make_first(new_url)
    for n in (1, len(added)):
        p = python(_dies, new_url, n)
        p.communicate(timeout=120)
        assert p.returncode==-9 and state(new_url)==([1], set())
    with open_ledger(new_url) as led: assert led.hit('f1')['id']=='s1'
    assert state(new_url, tables, version)==([1, version], added)

apart = {'check_fresh','check_upgraded','check_upgrade_killed'} # each wants a ledger of its own
checks = [v for k,v in list(globals().items()) if k.startswith('check_') and k not in apart]
