"Stores under stress: several processes at once, killed writers, a full disk, no right to write, a real S3 protocol"
import multiprocessing, os, signal, subprocess, sys, textwrap, time
from pathlib import Path

import pytest
from mlops_nb.core import StoreError, digest_path
from mlops_nb.store import DigestCache, LocalStore, artifact_of, check_store, open_store

spawn = multiprocessing.get_context('spawn')


def put_many(root, src, barrier, queue, move):
    "Put the same files as everybody else, at the same moment"
    store = LocalStore(root)
    paths = sorted(Path(src).iterdir())
    barrier.wait()
    queue.put([store.put(p, move=move) for p in paths])


@pytest.mark.parametrize('move', [False, True])
def test_the_same_put_by_many_processes_at_once(tmp_path, move):
    srcs = [tmp_path/f'src{i}' for i in range(4)]
    for src in srcs:
        for i in range(25):
            (src/f'd{i}').mkdir(parents=True)
            (src/f'd{i}'/'x').write_text(f'{i}')
            (src/f'{i}.csv').write_text(f'{i}'*1000)
    barrier, queue = spawn.Barrier(4), spawn.Queue()
    ps = [spawn.Process(target=put_many, args=(tmp_path/'store', src, barrier, queue, move)) for src in srcs]
    for p in ps: p.start()
    got = [queue.get(timeout=60) for _ in ps]
    for p in ps: p.join(60)
    assert [p.exitcode for p in ps] == [0]*4
    assert got[0] == got[1] == got[2] == got[3] and len(got[0]) == 50
    store = LocalStore(tmp_path/'store')
    for a in got[0]: assert store.verify(a)
    assert os.listdir(tmp_path/'store'/'tmp') == [] and not (tmp_path/'store'/'damaged').exists()


def put_and_publish_for_ever(root, n):
    "New content, moved in and published to one place, again and again"
    store, out = LocalStore(root/'store'), root/'out'
    while n := n+1:
        (out/'sub').mkdir(parents=True)
        for i in range(5): (out/'sub'/f'{i}').write_bytes(f'{n} {i} '.encode()*20_000)
        store.publish(store.put(out, move=True), root/'data'/'published')


def test_a_writer_killed_at_any_moment_leaves_only_whole_things(tmp_path):
    seen = set()
    for n in range(12):
        subprocess.run(['rm', '-rf', tmp_path/'out'], check=True)
        p = multiprocessing.get_context('fork').Process(target=put_and_publish_for_ever, args=(tmp_path, n*10**6))
        p.start(); time.sleep(0.05 + n*0.013); p.kill(); p.join()
        store = LocalStore(tmp_path/'store')
        for o in store.root.glob('objects/*/*'):
            a = artifact_of(o/'out')
            assert a.digest == o.name and store.verify(a)
            seen.add(a.digest)
        if (tmp_path/'data'/'published').exists(): assert digest_path(tmp_path/'data'/'published') in seen
    litter = [o for d in (store.root/'tmp', tmp_path/'data') for o in d.glob('*.box.tmp')] + list((tmp_path/'data').glob('.*.box.tmp'))
    for o in litter: os.utime(o, (0, 0))
    store.sweep()
    store.publish(store.put(tmp_path/'data'/'published'), tmp_path/'data'/'published')
    (tmp_path/'x').write_text('x')
    store.publish(store.put(tmp_path/'x'), tmp_path/'data'/'published')
    assert os.listdir(tmp_path/'data') == ['published'] and os.listdir(store.root/'tmp') == [] and seen


def publish_again(root, src, barrier, queue):
    "Publish changing folders to one place, as often as the others do"
    store, trouble = LocalStore(root), []
    arts = [store.put(o) for o in sorted(Path(src).iterdir())]
    barrier.wait()
    for a in arts*25:
        try: store.publish(a, Path(root)/'published')
        except StoreError as e: trouble.append(str(e))
    queue.put(trouble)


def test_many_processes_publish_to_one_place(tmp_path):
    for i in range(4):
        (tmp_path/'src'/f'd{i}').mkdir(parents=True)
        (tmp_path/'src'/f'd{i}'/'x').write_text(f'{i}')
    barrier, queue = spawn.Barrier(3), spawn.Queue()
    ps = [spawn.Process(target=publish_again, args=(tmp_path/'store', tmp_path/'src', barrier, queue)) for _ in range(3)]
    for p in ps: p.start()
    assert [queue.get(timeout=60) for _ in ps] == [[]]*3
    for p in ps: p.join(60)
    assert (tmp_path/'store'/'published'/'x').read_text() in '0123' and not list((tmp_path/'store').glob('.*'))


def remember(db, paths, barrier, queue):
    "Open one new cache together with others, learn, and write it down"
    barrier.wait()
    cache = DigestCache(db)
    cache.many(paths)
    cache.flush()
    queue.put(cache.trouble)


def test_a_new_digest_cache_is_opened_by_many_processes_at_once(tmp_path):
    paths = [tmp_path/f'{i}.csv' for i in range(50)]
    for p in paths: p.write_text(p.name)
    time.sleep(2.1) # until then they are racy, and not remembered
    barrier, queue = spawn.Barrier(4), spawn.Queue()
    ps = [spawn.Process(target=remember, args=(tmp_path/'cache'/'digests.db', paths, barrier, queue)) for _ in range(4)]
    for p in ps: p.start()
    assert [queue.get(timeout=60) for _ in ps] == ['']*4
    for p in ps: p.join(60)
    cache = DigestCache(tmp_path/'cache'/'digests.db')
    assert cache.many(paths) == {p: digest_path(p) for p in paths} and cache.hashed == 0
    assert not list((tmp_path/'cache').glob('.*'))


def test_a_killed_writer_leaves_nothing_visible_and_its_box_is_swept(tmp_path):
    code = f'''
        import os, shutil, signal
        from mlops_nb import store as s
        src = {str(tmp_path/'src')!r}
        copy = s.copy_tree
        def copy_and_die(a, b): copy(a, b); os.kill(os.getpid(), signal.SIGKILL)
        s.copy_tree = copy_and_die
        s.LocalStore({str(tmp_path/'store')!r}).put(src)
    '''
    (tmp_path/'src').mkdir()
    (tmp_path/'src'/'x').write_text('x')
    assert subprocess.run([sys.executable, '-c', textwrap.dedent(code)]).returncode == -signal.SIGKILL
    store = LocalStore(tmp_path/'store')
    a = artifact_of(tmp_path/'src')
    assert not store.has(a)
    box, = (tmp_path/'store'/'tmp').iterdir()
    assert store.sweep() == 0 # too young to be sure
    os.utime(box, (0, 0))
    assert store.sweep() == 1 and not box.exists()
    assert store.put(tmp_path/'src') == a and store.verify(a)


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 2 MB"
    disk = tmp_path/'disk'
    disk.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', disk], capture_output=True, text=True)
    if done.returncode: pytest.skip(f'no right to mount: {done.stderr.strip()}')
    yield disk
    subprocess.run(['umount', disk], check=True)


@pytest.mark.parametrize('move', [False, True])
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path, small_disk, move):
    store = LocalStore(small_disk/'store')
    small, big = tmp_path/'small', tmp_path/'big'
    small.write_bytes(os.urandom(100_000))
    big.mkdir()
    for i in range(4): (big/f'{i}').write_bytes(os.urandom(1_000_000))
    a, wanted = store.put(small), artifact_of(big)
    with pytest.raises(StoreError, match='No space left on device') as e: store.put(big, move=move)
    assert 'MB are free' in e.value.remedy and not store.has(wanted)
    assert os.listdir(small_disk/'store'/'tmp') == [] and artifact_of(big) == wanted
    assert store.verify(a)
    b = store.put(small, 'again')
    roomy = LocalStore(tmp_path/'roomy')
    stored = roomy.put(big)
    with pytest.raises(StoreError, match='No space left on device'): roomy.publish(stored, small_disk/'out')
    assert os.listdir(small_disk) == ['store'] and store.verify(b)


def test_a_full_disk_under_the_cache_of_a_remote_store(tmp_path, small_disk):
    big = tmp_path/'big'
    big.write_bytes(os.urandom(4_000_000))
    a = open_store('memory://full', tmp_path/'cache').put(big)
    store = open_store('memory://full', small_disk/'cache')
    with pytest.raises(StoreError, match='No space left on device'): store.path(a)
    assert store.has(a) and os.listdir(small_disk/'cache'/'tmp') == []


def test_a_full_disk_under_the_digest_cache_costs_nothing_but_time(tmp_path, small_disk):
    p = tmp_path/'x'
    p.write_text('x')
    (small_disk/'ballast').write_bytes(b'0')
    with pytest.raises(OSError), open(small_disk/'ballast', 'wb') as f:
        while True: f.write(b'0'*4096); f.flush()
    time.sleep(2.1)
    cache = DigestCache(small_disk/'digests.db')
    assert cache.digest(p) == digest_path(p)
    cache.flush()
    assert cache.trouble


def as_nobody(f, *args):
    "What `f(*args)` gives when a user without rights calls it"
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        try: os.setgid(65534); os.setuid(65534); text = f(*args)
        except BaseException as e: text = f'{type(e).__name__}: {e}'
        os.write(w, str(text).encode()); os._exit(0)
    os.close(w); os.waitpid(pid, 0)
    with os.fdopen(r) as o: return o.read()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become somebody else')
def test_a_user_without_rights_reads_but_does_not_write(tmp_path):
    for o in (tmp_path, *tmp_path.parents): # pytest's folders are private
        if o.stat().st_uid == os.geteuid() and o != Path('/') and not o.stat().st_mode & 0o001: o.chmod(o.stat().st_mode | 0o005)
    (tmp_path/'src').mkdir()
    (tmp_path/'src'/'x').write_text('x')
    (tmp_path/'new').write_text('new')
    store = LocalStore(tmp_path/'store')
    a = store.put(tmp_path/'src')
    assert as_nobody(lambda: store.has(a)) == 'True'
    assert as_nobody(lambda: artifact_of(store.path(a)) == a) == 'True'
    assert as_nobody(store.put, tmp_path/'new').startswith("StoreError: the store can't be written: Permission denied")
    assert as_nobody((store.path(a)/'x').write_text, 'y').startswith('PermissionError')
    assert as_nobody((store.path(a)/'y').write_text, 'y').startswith('PermissionError')
    assert as_nobody(LocalStore(tmp_path/'src').verify, a).startswith('StoreError: src')


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become somebody else')
def test_a_user_moves_a_folder_in_and_out(tmp_path):
    home = Path(tmp_path.anchor, 'tmp', f'mlops-nb-{os.getpid()}')
    home.mkdir(); home.chmod(0o777)
    def live():
        (home/'out'/'sub').mkdir(parents=True)
        (home/'out'/'sub'/'x').write_text('x')
        store = LocalStore(home/'store')
        a = store.put(home/'out', move=True)
        store.publish(a, home/'data'); (home/'data'/'sub'/'x').write_text('y'); store.publish(a, home/'data')
        return not (home/'out').exists() and store.verify(a) and digest_path(home/'data') == a.digest and sorted(os.listdir(home))
    try: assert as_nobody(live) == "['data', 'store']"
    finally: subprocess.run(['rm', '-rf', home], check=True)


def test_store_speaks_s3(tmp_path, monkeypatch):
    pytest.importorskip('s3fs')
    server = pytest.importorskip('moto.server').ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        access = dict(AWS_ACCESS_KEY_ID='k', AWS_SECRET_ACCESS_KEY='s', AWS_DEFAULT_REGION='us-east-1')
        for k, v in dict(access, AWS_ENDPOINT_URL=f'http://127.0.0.1:{port}').items(): monkeypatch.setenv(k, v)
        store = open_store('s3://flights/store', tmp_path/'cache')
        (tmp_path/'x').write_text('x')
        with pytest.raises(StoreError, match='does not answer'): store.put(tmp_path/'x') # there is no bucket
        store.fs.mkdir('flights')
        def spoil(a):
            key = max(store.fs.find(store.home(a.digest)), key=lambda o: store.fs.info(o)['size'])
            store.fs.pipe_file(key, bytes(o ^ 1 for o in store.fs.cat_file(key)))
        assert check_store(store, tmp_path/'work', spoil)
        arts = [store.put(tmp_path/'x', f'{i}') for i in range(3)]
        assert store.has_many(arts) == set(arts)
        assert open_store('s3://flights/store', tmp_path/'other').path(arts[0]).read_text() == 'x'
    finally: server.stop()
    with pytest.raises(StoreError, match='does not answer'): store.has(arts[0])
