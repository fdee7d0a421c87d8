"""An answered prediction is in the log, once, whoever is killed and whenever"""
import json, os, shutil, signal, subprocess, sys, textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mlops_nb.columns import Columns
from mlops_nb.predlog import PredictionLog, left_behind, new_segment, read_folder, take_over, turn
from scratch import until

fields = [dict(name='carrier', type='string'), dict(name='distance', type='long'), dict(name='at', type='datetime')]
prelude = f'''
    import os, sys, time
    import numpy as np
    from mlops_nb.columns import Columns
    from mlops_nb.predlog import PredictionLog, take_over
    fields = {fields!r}
    def rows(n): return Columns(dict(carrier=np.array(['AA']*n, object), distance=np.arange(n), at=np.array(['2013-07-04T13:00']*n, 'M8[us]')), n)
'''
worker = prelude + '''
    log = PredictionLog(sys.argv[1], fields, size=int(sys.argv[2]), turn=sys.argv[3] == 'turn', sync=float(sys.argv[4]))
    i = 0
    while True:
        n = 400 if i % 50 == 49 else 1 # now and then one whose line takes several pages
        log.add(f'{os.getpid()}-{i}', 7, 'champion', time.time(), .2, rows(n), np.linspace(0, 1, n))
        os.write(1, f'{os.getpid()}-{i} {n}\\n'.encode()) # the answer
        i += 1
'''


def start(source, *args, **kwargs):
    "Start Python with a source, as the leader of a session"
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(source), *map(str, args)], stdout=subprocess.PIPE, start_new_session=True, **kwargs)


def answers_until_killed(p, least):
    "{request: rows} that a worker answered until it was killed with all its children, after `least` answers"
    lines = [p.stdout.readline() for _ in range(least)]
    os.killpg(p.pid, signal.SIGKILL)
    lines += p.stdout.readlines()
    p.wait()
    p.stdout.close()
    return {a: int(n) for a, n in (o.decode().split() for o in lines if o.endswith(b'\n'))}


def assert_holds(folder, answered):
    "Each answer is there once, with each of its rows; at most one request of a worker wasn't answered any more"
    df = read_folder(folder)
    assert not df.duplicated(['request', 'row']).any()
    found = Counter(df.request)
    assert {k: found[k] for k in answered} == answered
    assert len(found.keys() - answered.keys()) <= len({k.partition('-')[0] for k in answered})
    return df


def counted(folder):
    "What got no prediction, by version: [failed, refused]"
    found = {}
    for path in Path(folder).glob('_missed/day=*/*.json'):
        for o in json.loads(path.read_text()): found[o['version']] = [a + b for a, b in zip(found.get(o['version'], [0, 0]), (o['failed'], o['refused']))]
    return found


@pytest.mark.parametrize('size, turns, sync', [(16 << 20, 'no', 0), (20_000, 'no', 0), (200_000, 'turn', 0), (100_000, 'turn', .01)])
def test_sigkill_loses_no_answer(tmp_path, size, turns, sync):
    answered = {}
    for i in range(3): answered |= answers_until_killed(start(worker, tmp_path, size, turns, sync), 700 + 100*i)
    assert_holds(tmp_path, answered)
    take_over(tmp_path)
    df = assert_holds(tmp_path, answered)
    assert not list(tmp_path.glob('open/*')) and not [o for o in tmp_path.glob('day=*/*') if o.name.startswith('.')]
    assert (df[df.row == 399].distance == 399).all() and (df['at'] == np.datetime64('2013-07-04T13:00')).all()


def test_workers_side_by_side(tmp_path):
    "Two write, both have segments turned, one is killed and the next takes over what it left"
    a, b = (start(worker, tmp_path, 50_000, 'turn', 0) for _ in range(2))
    answered = answers_until_killed(a, 500)
    c = start(worker, tmp_path, 50_000, 'turn', 0)
    answered |= answers_until_killed(c, 500)
    answered |= answers_until_killed(b, 500)
    assert_holds(tmp_path, answered)
    with PredictionLog(tmp_path, fields) as log: until(lambda: not left_behind(tmp_path)) # its thread has them turned
    assert_holds(tmp_path, answered)
    assert not list(tmp_path.glob('open/*'))


def test_who_turns_is_killed(tmp_path):
    "Turning is killed at many moments; then it is done"
    source = tmp_path/'source'
    with PredictionLog(source, fields, every=1e9, turn=False) as log:
        for i in range(2000): log.add(f'1-{i}', 7, 'champion', 1.38e9 + 86400*(i % 3), .2, Columns(dict(carrier=np.array(['AA'], object), distance=np.array([i]), at=np.array(['2013-07-04'], 'M8[us]')), 1), np.array([.5]))
        for day in range(3): log.miss('7', 500, 1.38e9 + 86400*day)
        log.close(turns=False)
    answered = {f'1-{i}': 1 for i in range(2000)}
    for step in (1, 2, 5, 9, 12, 16): # the first file is begun, is whole, the second has its name, all have, the second count is whole, the segment goes
        folder = Path(shutil.copytree(source, tmp_path/f'{step}'))
        kill = f'''
            import os, signal, sys
            from mlops_nb import predlog
            steps = [0]
            def counted(f):
                def g(*args, **kw):
                    steps[0] += 1
                    if steps[0] == {step}: os.kill(os.getpid(), signal.SIGKILL)
                    return f(*args, **kw)
                return g
            import pyarrow.parquet as pq
            pq.write_table, os.replace, predlog.Path.unlink = counted(pq.write_table), counted(os.replace), counted(predlog.Path.unlink)
            predlog.take_over(sys.argv[1])
        '''
        p = start(kill, folder)
        p.communicate()
        assert_holds(folder, answered)
        take_over(folder)
        assert_holds(folder, answered)
        assert not list(folder.glob('open/*')) and not [o for o in folder.glob('day=*/*') if o.name.startswith('.')]
        assert len(list(folder.glob('day=*'))) == 3 and counted(folder) == {'7': [3, 0]}


missing = prelude + '''
    log = PredictionLog(sys.argv[1], fields)
    for o in (500, 503, 504, 400, 422): log.miss(7, o, time.time())
    while log._missed: time.sleep(.01) # until its thread has written them down
    print('noted', flush=True)
    time.sleep(600)
'''


def test_what_got_no_prediction_outlives_its_worker(tmp_path):
    p = start(missing, tmp_path)
    assert p.stdout.readline() == b'noted\n'
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    p.stdout.close()
    assert not counted(tmp_path) and take_over(tmp_path) == 1
    assert counted(tmp_path) == {'7': [3, 2]} and not list(tmp_path.glob('open/*')) and not len(read_folder(tmp_path))


def test_read_while_it_is_turned(tmp_path):
    "Whoever reads meanwhile sees each answer once"
    answered = answers_until_killed(start(worker, tmp_path, 5_000, 'no', 0), 1500)
    p = start('import sys\nfrom mlops_nb.predlog import take_over\ntake_over(sys.argv[1])', tmp_path)
    while p.poll() is None: assert_holds(tmp_path, answered)
    p.stdout.close()
    assert_holds(tmp_path, answered)


def test_a_segment_that_is_written_is_left_alone(tmp_path):
    path, fd = new_segment(tmp_path)
    assert not turn(path) and path.exists() and not take_over(tmp_path)
    os.close(fd)
    assert take_over(tmp_path) == 1 and not path.exists() and not turn(path)


def test_a_segment_that_was_never_begun_goes(tmp_path):
    (tmp_path/'open').mkdir()
    (tmp_path/'open'/'x.new').touch()
    take_over(tmp_path)
    assert not list(tmp_path.glob('open/*'))


full = prelude + '''
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    from mlops_nb.core import StoreError
    log = PredictionLog(sys.argv[1], fields, turn=False)
    for i in range(100):
        try: log.add(f'1-{i}', 7, 'champion', time.time(), .2, rows(1), np.array([.5]))
        except StoreError as e:
            print(f'not {e.what}')
            log.miss(7, 503, time.time())
        else: print(f'1-{i} 1')
        if i == 60: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.close(turns=False)
'''


def test_no_room(tmp_path):
    "What doesn't fit isn't answered, is taken back, and what follows is fine"
    out = start(full, tmp_path, text=True).communicate()[0].splitlines()
    answered = {o.split()[0]: 1 for o in out if not o.startswith('not ')}
    assert 0 < len(answered) < 90 and '1-99' in answered and any(o.startswith("not the prediction log can't be written") for o in out)
    df = assert_holds(tmp_path, answered)
    assert set(df.request) == set(answered)
    take_over(tmp_path)
    assert counted(tmp_path) == {'7': [100 - len(answered), 0]}, 'counts wait until there is room'


def test_an_idle_log_ends_its_segment_and_leaves_nothing(tmp_path):
    with PredictionLog(tmp_path, fields, every=.1) as log:
        log.add('1-0', 7, 'champion', 1.38e9, .2, Columns(dict(carrier=np.array(['AA'], object), distance=np.array([1]), at=np.array(['2013-07-04'], 'M8[us]'))), np.array([.5]))
        until(lambda: list(tmp_path.glob('day=*/*.parquet')) and not list(tmp_path.glob('open/*')))
    assert_holds(tmp_path, {'1-0': 1})


def test_private_values_stand_nowhere(tmp_path):
    secret = 'N338-secret'
    with PredictionLog(tmp_path, fields, private=['carrier'], turn=False) as log:
        log.add('1-0', 7, 'champion', 1.38e9, .2, Columns(dict(carrier=np.array([secret], object), distance=np.array([1]), at=np.array(['2013-07-04'], 'M8[us]'))), np.array([.5]))
        files = [o.read_bytes() for o in tmp_path.rglob('*') if o.is_file()]
    files += [o.read_bytes() for o in tmp_path.rglob('*') if o.is_file()]
    assert len(files) == 2 and not any(secret.encode() in o for o in files)
    assert read_folder(tmp_path).carrier.isna().all()
