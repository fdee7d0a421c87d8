"""The runner under fire: killed at any moment, started twice, stopped, starved of disk and memory, its store spoilt"""
import json, os, random, re, shutil, signal, subprocess, sys, threading, time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil, pytest

from mlops_nb.core import Stopped, digest_path
from mlops_nb.plan import artifacts
from mlops_nb.run import run
from scratch import Done, Project, mark


held = 'import os, time\nif os.path.exists("hold"): open("hold", "w").write(str(os.getpid()))\nwhile os.path.exists("hold"): time.sleep(.02)' # a cell that takes as long as the test wants
left_failed = {'01_make': 'completed', '02_right': 'completed', '02_left': 'failed', '03_join': 'skipped'} # {stage: status}


def put_pipeline(project):
    "Four stages: one makes rows, two work on them at the same time (one makes a folder), one joins what they made"
    extra = '\nextra: int = 0'
    project.stage('01_make', 'n: int = 1\nrows: Out = "data/rows.txt"', 'open(rows, "w").write(f"{n}\\n"*20_000)')
    project.stage('02_left', 'rows: In = "data/rows.txt"\nleft: Out = "data/left"' + extra, held,
        'os.makedirs(left)\nfor i in range(1, 6): open(f"{left}/{i}", "w").write(open(rows).read()*i)')
    project.stage('02_right', 'rows: In = "data/rows.txt"\nright: Out = "data/right.txt"' + extra,
        'open(right, "w").write(open(rows).read() + "0\\n")')
    project.stage('03_join', 'left: In = "data/left"\nright: In = "data/right.txt"\nanswer: Out = "data/answer.json"' + extra,
        'import json\ntotal = sum(int(o) for i in range(1, 6) for o in open(f"{left}/{i}")) + sum(map(int, open(right)))',
        'json.dump(total, open(answer, "w"))\nrecord(total=total)')
    return project


stages = ['01_make', '02_left', '02_right', '03_join']


def answer(n): return n*20_000*16


def right_outputs(project, n=1):
    "Are the published outputs those of `n`, and whole?"
    rows = f'{n}\n'*20_000
    assert (project.data/'rows.txt').read_text() == rows and (project.data/'right.txt').read_text() == rows + '0\n'
    assert {o.name: o.read_text() for o in (project.data/'left').iterdir()} == {str(i): rows*i for i in range(1, 6)}
    assert json.loads((project.data/'answer.json').read_text()) == answer(n)


def visible(folder): return sorted(o.name for o in folder.iterdir() if not o.name.startswith('.')) if folder.is_dir() else []


def whole(project):
    "Is everything that can be seen whole? The store's objects are what their names say, and what is published was stored"
    stored = {}
    for home in project.state.glob('store/objects/*/*'):
        content, = (o for o in home.iterdir() if not o.is_symlink())
        assert digest_path(content) == home.name, f'{content} is half-written'
        stored[home.name] = content
    assert set(visible(project.data)) <= {'rows.txt', 'left', 'right.txt', 'answer.json'}
    for o in visible(project.data): assert digest_path(project.data/o) in stored, f'{o} is half-published'
    with project.ledger as ledger:
        for r in ledger.runs(limit=1000):
            for s in ledger.stage_runs(r['id']):
                if s['status'] != 'completed': continue
                assert {a.digest for a in artifacts(s).values()} <= stored.keys(), f'{s["stage"]} is completed, but not stored'
    return stored


def nothing_left(project):
    "No process, no claim, no temporary file, no open row"
    assert project.quiet() == []
    assert [*(project.state/'tmp').glob('*'), *(project.state/'store'/'tmp').glob('*'), *project.data.glob('.*')] == []
    with project.ledger as ledger:
        assert ledger.claims() == [] and ledger.runs(status='running') == []
    assert project.rows(status='running') == []


def once_each(project):
    "Was every piece of work completed exactly once?"
    done = Counter(o['fingerprint'] for o in project.rows(status='completed'))
    assert set(done.values()) <= {1}, [(o['stage'], o['params'], o['run_id']) for o in project.rows(status='completed') if done[o['fingerprint']] > 1]


# --- SIGKILL

def progress(project, known):
    "How many stages are done of the run that comes after these"
    time.sleep(.03)
    with project.ledger as ledger:
        new = [o['id'] for o in ledger.runs(limit=3) if o['id'] not in known]
        return sum(s['status'] == 'completed' for o in new for s in ledger.stage_runs(o))


def kill_and_resume(project, n, done, wait):
    "Kill the runner of `n`, `wait` s after so many of its stages are done, look at what it left, and run the same command again"
    with project.ledger as ledger: runs = {o['id'] for o in ledger.runs(limit=1000)}
    p = project.start('run', 'demo', '--json', '-p', f'n={n}')
    project.until(lambda: p.poll() is not None or not done or progress(project, runs) >= done)
    time.sleep(wait)
    p.kill()
    killed = project.wait(p)
    assert killed.code in (-signal.SIGKILL, 0), killed
    assert project.quiet() == [], 'children outlive the runner'
    before = []
    if (project.state/'ledger.db').exists():
        whole(project)
        before = [o for o in project.rows(status='completed') if o['params'].get('n', n) == n]
        known = {o['id'] for o in project.rows()}
    else: known = set()
    again = project.ok('-p', f'n={n}')
    right_outputs(project, n)
    whole(project)
    done = {o['fingerprint'] for o in before}
    new = [o for o in project.rows() if o['id'] not in known]
    assert not [o['stage'] for o in new if o['status'] == 'completed' and o['fingerprint'] in done], 'a finished stage ran again'
    assert {o['stage'] for o in new} == set(stages) and {o['status'] for o in new} <= {'completed', 'cached'}
    with project.ledger as ledger: assert ledger.claims() == [] and ledger.runs(status='running') == []
    return killed.code != 0, len(again.json['stages']) - sum(o['status'] == 'completed' for o in new)


def kills(project, n, seed):
    "`n` kills, at random moments: from the start of a run on, and from the end of each stage but the last"
    put_pipeline(project)
    start = time.monotonic()
    project.ok()
    duration, chance, found, value = .9*(time.monotonic()-start), random.Random(seed), [], 1
    for i in chance.sample(range(n), n):
        wait = (duration if i%4 == 0 else .2)*chance.random()
        while True:
            value += 1
            killed, kept = kill_and_resume(project, value, i%4, wait)
            if killed: break
            wait *= .7 # it was done before
        found.append(kept)
    once_each(project)
    # the next run removes temporary folders that nobody holds, once they are a minute old
    for o in (*project.data.glob('.*.tmp'), *(project.state/'store'/'tmp').glob('*.tmp')): os.utime(o, (0, 0))
    project.ok('--force')
    nothing_left(project)
    return found


def test_the_runner_is_killed_at_50_random_moments(tmp_path):
    projects = [Project(tmp_path/f'{i}') for i in range(2)]
    try:
        with ThreadPoolExecutor(2) as pool: found = [o for os in pool.map(kills, projects, [25, 25], [1, 2]) for o in os]
    finally:
        for o in projects: o.put_away()
    assert len(found) == 50 and {0, 1, 3} <= set(found), 'the moments are not spread over the run'


# --- several at once

@pytest.mark.parametrize('many', [2, 3])
def test_runs_that_start_together_do_each_stage_once(project, many):
    put_pipeline(project)
    started = [project.start('run', 'demo', '--json') for _ in range(many)]
    for p in started:
        done = project.wait(p)
        assert done.code == 0 and set(done.statuses.values()) <= {'completed', 'cached'} and done.json['metrics'] == {'total': answer(1)}, done
    assert Counter(o['stage'] for o in project.rows(status='completed')) == Counter(stages)
    assert len(project.rows(status='cached')) == 4*(many-1)
    right_outputs(project)
    nothing_left(project)


def test_two_forced_runs_do_their_work_one_after_the_other(project):
    put_pipeline(project)
    for p in [project.start('run', 'demo', '--json', '--force') for _ in range(2)]: assert project.wait(p).code == 0
    rows = project.rows(status='completed')
    assert Counter(o['stage'] for o in rows) == Counter(stages*2)
    for a, b in (sorted((o for o in rows if o['stage'] == name), key=lambda o: o['started']) for name in stages): assert a['ended'] <= b['started']
    right_outputs(project)
    nothing_left(project)


@pytest.mark.parametrize('force', [False, True])
def test_mapped_runs_share_what_they_have_in_common(project, force):
    put_pipeline(project)
    if force: project.ok()
    before = {o['id'] for o in project.rows()}
    done = project.run('--each', 'left.extra=1..3', *['--force']*force)
    assert done.code == 0 and [o['metrics'] for o in done.json['runs']] == [{'total': answer(1)}]*3, done
    new = Counter(o['stage'] for o in project.rows(status='completed') if o['id'] not in before)
    assert new == {'01_make': 1, '02_left': 3, '02_right': 1, '03_join': 1}
    nothing_left(project)


# --- stopping

def held_run(project, *args):
    "A run that stands in `02_left`, where everything else that can be done is done"
    put_pipeline(project)
    (project.folder/'hold').touch()
    p = project.start('run', 'demo', *args)
    def done(): return (project.state/'ledger.db').exists() and {o['stage'] for o in project.rows(status='completed')}
    project.until(lambda: p.poll() is not None or done() == {'01_make', '02_right'})
    project.until(lambda: in_kernel(project))
    return p


def in_kernel(project):
    "The process that holds `02_left`, once it is at work"
    pid = (project.folder/'hold').read_text()
    return psutil.Process(int(pid)) if pid else None


def crew(project):
    "The nursery, and the worker that is at work: it is where its notebook is executed"
    found = [o for o in project.processes() if 'mlops_nb.worker' in ' '.join(o.cmdline())]
    nursery, = (o for o in found if o.ppid() not in [p.pid for p in found])
    worker, = (o for o in found if o.ppid() == nursery.pid and o.cwd() == str(project.folder))
    return nursery, worker


def stopped_and_resumed(project, done):
    "Did it stop cleanly, and does the same command carry on?"
    assert done.code == 130 and 'Traceback' not in done.text and 'stopped' in done.text and '→' in done.text, done
    nothing_left(project)
    with project.ledger as ledger: assert ledger.run('last')['status'] == 'stopped'
    assert {o['stage']: o['status'] for o in project.rows()} == {'01_make': 'completed', '02_right': 'completed', '02_left': 'stopped'}
    (project.folder/'hold').unlink()
    assert project.ok().statuses == {'01_make': 'cached', '02_left': 'completed', '02_right': 'cached', '03_join': 'completed'}
    right_outputs(project)
    nothing_left(project)


@pytest.mark.parametrize('how', ['ctrl-c', 'ctrl-c twice', 'SIGTERM', 'SIGHUP'])
def test_a_stopped_run_leaves_nothing_and_resumes(project, how):
    p = held_run(project)
    if how.startswith('SIG'): p.send_signal(getattr(signal, how))
    else: os.killpg(p.pid, signal.SIGINT)
    if how.endswith('twice'): time.sleep(.05); os.killpg(p.pid, signal.SIGINT)
    stopped_and_resumed(project, project.wait(p, 15))


def test_ctrl_c_in_a_terminal(project):
    put_pipeline(project)
    (project.folder/'hold').touch()
    ours, theirs = os.openpty()
    code = '''
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, '-m', 'mlops_nb.cli', 'run', 'demo'])
'''
    p = subprocess.Popen([sys.executable, '-c', code], cwd=project.root, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, 'TERM': 'xterm', mark: project.mark})
    os.close(theirs)
    said = []
    def listen():
        with suppress(OSError):
            while text := os.read(ours, 10_000): said.append(text)
    thread = threading.Thread(target=listen)
    thread.start()
    project.until(lambda: in_kernel(project) and {o['stage'] for o in project.rows(status='completed')} == {'01_make', '02_right'})
    os.write(ours, b'\x03')
    p.wait(15)
    thread.join(5)
    os.close(ours)
    stopped_and_resumed(project, Done(p.returncode, b''.join(said).decode(), ''))


def test_ctrl_c_at_any_moment(project):
    put_pipeline(project)
    start = time.monotonic()
    project.ok()
    duration, chance = time.monotonic()-start, random.Random(3)
    for i in range(8):
        p = project.start('run', 'demo', '--json', '-p', f'n={i+2}')
        time.sleep(duration*(i + chance.random())/8)
        os.killpg(p.pid, signal.SIGINT)
        done = project.wait(p, 15)
        assert done.code in (0, 130, -signal.SIGINT), done # the last: before the first line of ours
        assert done.code == -signal.SIGINT or 'Traceback' not in done.text, done
        nothing_left(project)
        whole(project)
    project.ok('-p', 'n=9')
    right_outputs(project, 9)
    once_each(project)


# --- killed stages

def only_left_failed(project, done, *words):
    "One clear error of `02_left`; the others went on; the next run repeats only what is missing"
    assert done.code == 1 and all(o in done.text for o in words), done
    assert 'Traceback' not in done.text and len(re.findall('02_left failed(?: in cell|:)', done.text)) == 1, done
    assert project.quiet() == []
    assert {o['stage']: o['status'] for o in project.rows()} == left_failed
    (project.folder/'hold').unlink(missing_ok=True)
    assert project.ok().statuses == {'01_make': 'cached', '02_left': 'completed', '02_right': 'cached', '03_join': 'completed'}
    right_outputs(project)
    nothing_left(project)


@pytest.mark.parametrize('whom', ['kernel', 'worker', 'nursery'])
def test_a_process_of_a_stage_is_killed(project, whom):
    p = held_run(project)
    nursery, worker = crew(project)
    dict(kernel=in_kernel(project), worker=worker, nursery=nursery)[whom].kill()
    only_left_failed(project, project.wait(p, 30), 'SIGKILL', '→')


def only_if_held(project, source):
    "Let `02_left` do this in its third cell, as long as there is a file `hold`"
    (project.folder/'hold').touch()
    project.stage('02_left', 'rows: In = "data/rows.txt"\nleft: Out = "data/left"',
        'import os\nif os.path.exists("hold"): exec(' + repr(source) + ')',
        'os.makedirs(left)\nfor i in range(1, 6): open(f"{left}/{i}", "w").write(open(rows).read()*i)')


def test_a_stage_kills_itself(project):
    put_pipeline(project)
    only_if_held(project, 'os.kill(os.getpid(), 9)')
    only_left_failed(project, project.cli('run', 'demo'), 'SIGKILL', 'in cell 3', '→')


def test_a_stage_without_memory_left(project):
    put_pipeline(project)
    only_if_held(project, 'import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\nbytearray(2**31)')
    done = project.cli('run', 'demo')
    assert done.code == 1 and done.text.count('02_left failed in cell 3') == 1 and 'MemoryError' in done.text, done
    assert project.rows(stage='02_left')[0]['status'] == 'failed' and project.rows(stage='02_right')[0]['status'] == 'completed'
    nothing_left(project)


@pytest.fixture
def little_memory():
    "The file that takes processes into a control group with 400 MB of memory"
    v1 = Path('/sys/fs/cgroup/memory/memory.limit_in_bytes').exists()
    group = Path('/sys/fs/cgroup', 'memory' if v1 else '', f'mlops-test-{os.getpid()}')
    try:
        group.mkdir()
        (group/('memory.limit_in_bytes' if v1 else 'memory.max')).write_text(str(400*2**20))
    except OSError as e: pytest.skip(f'no right to make a control group: {e}')
    yield group/'cgroup.procs'
    for _ in range(100):
        with suppress(OSError): group.rmdir(); break
        time.sleep(.05)


def test_the_out_of_memory_killer(project, little_memory):
    put_pipeline(project)
    only_if_held(project, 'x = []\nwhile True: x.append(bytearray(10**7))')
    command = f'echo $$ > {little_memory}; exec {sys.executable} -m mlops_nb.cli run demo'
    res = subprocess.run(['sh', '-c', command], cwd=project.root, capture_output=True, text=True,
        env={**os.environ, 'COLUMNS': '200', mark: project.mark})
    only_left_failed(project, Done(res.returncode, res.stdout, res.stderr), 'out-of-memory killer', 'in cell 3', '→')


# --- a spoilt store

def stored(project, stage, out):
    "Where an output is stored"
    with project.ledger as ledger: artifact = artifacts(ledger.lasts('demo')[stage])[out]
    return next(o for o in project.store.home(artifact.digest).iterdir() if not o.is_symlink())


def flip(path):
    "Flip one bit of a stored artifact, and let nothing else tell of it"
    f = path if path.is_file() else sorted(path.iterdir())[2]
    before, data = f.stat(), bytearray(f.read_bytes())
    data[len(data)//2] ^= 1
    f.chmod(0o644)
    f.write_bytes(data)
    f.chmod(before.st_mode & 0o777)
    os.utime(f, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize('stage,out,args,made', [
    ('01_make', 'rows', ['-p', 'extra=1'], set(stages)), # two stages read it
    ('02_left', 'left', ['-p', 'join.extra=1'], {'02_left', '03_join'}), # a folder
    ('02_left', 'left', ['-p', 'join.extra=1', '--only', 'join'], {'02_left', '03_join'}),
    ('03_join', 'answer', [], {'03_join'})]) # read by nobody, but shown
def test_a_flipped_bit_is_noticed_and_its_maker_runs_again(project, stage, out, args, made):
    put_pipeline(project)
    project.ok()
    before = {o['id'] for o in project.rows()}
    flip(stored(project, stage, out))
    (project.data/'answer.json').unlink()
    done = project.ok(*args)
    assert {k for k, v in done.statuses.items() if v == 'completed'} == made, done
    assert [o['stage'] for o in project.rows(status='completed') if o['id'] not in before].count(stage) == 1
    with project.ledger as ledger: assert [o['data']['stage'] for o in ledger.events(kind='damaged')] == [stage]
    assert len(list((project.state/'store'/'damaged').iterdir())) == 1
    right_outputs(project)
    whole(project)
    nothing_left(project)


def test_what_is_deleted_is_made_again(project):
    put_pipeline(project)
    project.ok()
    shutil.rmtree(project.state/'store')
    assert project.ok().statuses == dict.fromkeys(stages, 'completed')
    for o in project.state.glob('ledger.db*'): o.unlink()
    assert project.ok().statuses == dict.fromkeys(stages, 'completed')
    shutil.rmtree(project.state)
    shutil.rmtree(project.data)
    assert project.ok().statuses == dict.fromkeys(stages, 'completed')
    right_outputs(project)
    whole(project)
    (project.data/'rows.txt').write_text('mine')
    shutil.rmtree(project.data/'left')
    assert project.ok().statuses == dict.fromkeys(stages, 'cached')
    right_outputs(project)


@pytest.mark.parametrize('what', ['ledger', 'store'])
def test_the_ledger_or_the_store_vanishes_during_a_run(project, what):
    p = held_run(project)
    for o in project.state.glob('ledger.db*') if what == 'ledger' else [project.state/'store']: shutil.rmtree(o) if o.is_dir() else o.unlink()
    (project.folder/'hold').unlink()
    done = project.wait(p, 30)
    assert done.code == 1 and project.quiet() == [], done
    if what == 'ledger': assert 'Traceback' not in done.text and 'the ledger is gone' in done.text and '→' in done.text, done
    else: assert '02_left failed in cell 4' in done.text and 'No such file' in done.text, done
    project.ok()
    right_outputs(project)
    whole(project)
    nothing_left(project)


# --- no room, no right

@pytest.fixture
def mount(tmp_path):
    "mount(folder, options): a small file system in memory"
    mounted = []
    def mount(folder, options):
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], capture_output=True, text=True)
        if done.returncode: pytest.skip(f'no right to mount: {done.stderr.strip()}')
        mounted.append(folder)
        return folder
    mount.remount = lambda folder, options: subprocess.run(['mount', '-o', f'remount,{options}', folder], check=True)
    yield mount
    for o in mounted[::-1]: subprocess.run(['umount', '-l', o], check=True)


def fill(folder, leave=0):
    "Fill a disk but for `leave` bytes"
    with suppress(OSError), open(folder/'ballast', 'wb') as f:
        while True: f.write(b'0'*4096); f.flush()
    os.truncate(folder/'ballast', (folder/'ballast').stat().st_size - leave)


def one_clear_error(done, *words):
    assert done.code in (1, 2) and 'Traceback' not in done.text and '→' in done.text and all(re.search(o, done.text) for o in words), done


places = {'store': '.mlops/store', 'ledger': '.mlops', 'temporary folder': '.mlops/tmp', 'executed notebooks': '.mlops/runs',
          'default paths': 'nbs/pipelines/demo/data'}


@pytest.mark.parametrize('place', places)
@pytest.mark.parametrize('trouble', ['full', 'read-only'])
def test_a_disk_is_full_or_read_only(project, mount, place, trouble):
    project.stage('01_make', 'rows: Out = "data/rows.txt"', 'open(rows, "w").write("1\\n"*20_000)')
    disk = mount(project.root/places[place], 'size=3m')
    if trouble == 'full': fill(disk)
    else: mount.remount(disk, 'ro')
    why = 'No space left|full|unable to open' if trouble == 'full' else 'Read-only|readonly'
    one_clear_error(project.cli('run', 'demo'), re.escape(str(disk.relative_to(project.root))), why)
    assert project.quiet() == []
    if trouble == 'full': (disk/'ballast').unlink()
    else: mount.remount(disk, 'rw')
    assert project.ok().code == 0 and (project.data/'rows.txt').read_text() == '1\n'*20_000
    nothing_left(project)


@pytest.mark.parametrize('room', range(0, 240_000, 40_000))
def test_the_disk_of_all_state_is_full_at_some_point(project, mount, room):
    project.stage('01_make', 'rows: Out = "data/rows.txt"', 'open(rows, "w").write("1\\n"*200_000)')
    disk = mount(project.state, 'size=3m')
    fill(disk, room)
    one_clear_error(project.cli('run', 'demo'), str(disk.relative_to(project.root)))
    assert project.quiet() == []
    (disk/'ballast').unlink()
    assert project.ok().code == 0 and (project.data/'rows.txt').read_text() == '1\n'*200_000
    nothing_left(project)


def test_a_stage_fills_a_disk_of_its_own(project, mount):
    put_pipeline(project)
    disk = mount(project.root/'scratch', 'size=1m')
    project.stage('02_left', 'rows: In = "data/rows.txt"\nleft: Out = "data/left"', f'open("{disk}/big", "wb").write(bytes(10**7))')
    done = project.cli('run', 'demo')
    assert done.code == 1 and done.text.count('02_left failed in cell 3 of') == 1 and 'No space left on device' in done.text, done
    assert {o['stage']: o['status'] for o in project.rows()} == left_failed
    nothing_left(project)


# --- in a program that lives on

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_a_listener_that_raises_leaves_nothing_behind(project, error):
    put_pipeline(project)
    run(project.settings, 'demo', only=['make'])
    for kind in ('run', 'cached', 'start', 'cell', 'completed'):
        def listener(told, *args):
            if told == kind: raise error('enough')
        with pytest.raises(Stopped if error is KeyboardInterrupt else error): run(project.settings, 'demo', listener=listener)
        nothing_left(project)
        with project.ledger as ledger: assert ledger.run('last')['status'] == 'stopped'
    assert [o.status for o in run(project.settings, 'demo')] == ['completed']
    right_outputs(project)
    nothing_left(project)
