"""A stuck process is found, and one that merely waits never is."""
import os, signal, subprocess, sys, textwrap, time
import pytest

pytestmark = pytest.mark.skipif(not os.path.exists('/proc/self/syscall'), reason='needs /proc of Linux')
from mlops_nb.stall import Stall, stuck

PATIENCE = 1.
START = 'import multiprocessing, os, select, signal, socket, subprocess, sys, threading, time, queue, asyncio, fcntl\nmp = multiprocessing.get_context("fork")\n'
LOCKED = 'l = threading.Lock(); l.acquire()\ndef f(x): l.acquire()\n'
STUCK = dict(
    fork_lock=LOCKED+'if os.fork(): os.wait()\nelse: f(0)',
    deadlock='a,b = threading.Lock(),threading.Lock()\ndef g(p, q):\n  with p:\n    time.sleep(.2)\n    with q: pass\n'
        't = [threading.Thread(target=g, args=o) for o in ((a,b), (b,a))]\n[o.start() for o in t]; [o.join() for o in t]',
    join=LOCKED+'p = mp.Process(target=f, args=(0,)); p.start(); p.join()',
    run='subprocess.run([sys.executable, "-c", "import threading; threading.Event().wait()"])',
    pool=LOCKED+'mp.Pool(2).map(f, range(4))',
    executor=LOCKED+'from concurrent.futures import ProcessPoolExecutor as P\nlist(P(2, mp_context=mp).map(f, range(4)))',
    killed_worker='def g(x):\n  if x==1: time.sleep(.3); os.kill(os.getpid(), 9)\nmp.Pool(2).map(g, range(4), 1)',
    shared_lock='l = mp.Lock(); l.acquire(); l.acquire()',
    full_pipe='subprocess.Popen([sys.executable, "-c", "print(9*200000*\'x\')"], stdout=subprocess.PIPE).wait()',
    own_pipe='os.read(os.pipe()[0], 1)',
    openmp='os.environ["OMP_NUM_THREADS"] = "2"\nimport numpy as np\nfrom sklearn.ensemble import HistGradientBoostingRegressor as H\n'
        'x = np.random.rand(500, 3); H(max_iter=2).fit(x, x[:,0])\nif os.fork(): os.wait()\nelse: H(max_iter=2).fit(x, x[:,0])')
BUSY = 'threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n'
WAITING = dict(
    sleep='time.sleep(60)', event='threading.Event().wait(60)', condition='c = threading.Condition()\nwith c: c.wait(60)', queue='queue.Queue().get(timeout=60)',
    producer='q = queue.Queue(); threading.Thread(target=lambda: (time.sleep(60), q.put(1))).start(); q.get()',
    receiver='a,b = socket.socketpair(); q = queue.Queue(); threading.Thread(target=lambda: q.put(a.recv(1))).start(); q.get()',
    accept='s = socket.create_server(("127.0.0.1", 0)); s.accept()', select='select.select([0], [], [], 60)', asyncio='asyncio.run(asyncio.sleep(60))',
    run='subprocess.run(["sleep", "60"])', piped='subprocess.run(["sleep", "60"], capture_output=True)', waitpid='p = os.fork()\nif p: os.waitpid(p, 0)\nelse: time.sleep(60)',
    input='sys.stdin.read()', pool='mp.Pool(2).map(time.sleep, [60]*4)',
    flock='f = open(sys.executable); p = os.fork()\nif p: time.sleep(.5)\ng = open(sys.executable)\nfcntl.flock(g, fcntl.LOCK_EX)\ntime.sleep(60)',
    threads='from concurrent.futures import ThreadPoolExecutor as T\nT(2).submit(time.sleep, 60).result()',
    loky='import joblib\njoblib.Parallel(2)(joblib.delayed(time.sleep)(60) for i in range(2))',
    busy='while True: pass', alarm='signal.signal(signal.SIGALRM, lambda *_: sys.exit()); signal.alarm(60); threading.Event().wait()',
    signalled='signal.signal(signal.SIGUSR1, lambda *_: sys.exit()); threading.Event().wait()',
    child_signals='signal.signal(signal.SIGCHLD, lambda *_: sys.exit()); subprocess.Popen(["sleep", "60"]); threading.Event().wait()',
    one_thread_sleeps=BUSY+'threading.Event().wait()', pause='signal.pause()', select_none='select.select([], [], [])')

@pytest.fixture
def start():
    started = []
    def go(code, **kw):
        p = subprocess.Popen([sys.executable, '-c', START+code], start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kw)
        started.append(p)
        return p
    yield go
    for p in started:
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        p.wait()

def test_stuck_processes_are_found(start):
    looks = {k: Stall(start(v).pid, PATIENCE) for k,v in STUCK.items()}
    until,left = time.monotonic()+40, set(looks)
    while left and time.monotonic() < until:
        left = {o for o in left if not looks[o].look()}
        time.sleep(.1)
    assert not left

def test_waiting_processes_are_not(start):
    processes = {k: start(v) for k,v in WAITING.items()}
    stopped = start(LOCKED+'f(0)')
    while not stuck(stopped.pid): time.sleep(.05)
    os.kill(stopped.pid, signal.SIGSTOP)
    processes['stopped'] = stopped
    looks = {k: Stall(p.pid, PATIENCE) for k,p in processes.items()}
    until = time.monotonic()+12
    while time.monotonic() < until:
        for k,o in looks.items(): assert not o.look(), k
        time.sleep(.1)
    assert not [k for k,p in processes.items() if p.poll() is not None]

def test_a_semaphore_that_an_outsider_may_raise(start):
    import multiprocessing
    event = multiprocessing.get_context('fork').Event()
    pid = os.fork()
    if not pid: event.wait(); os._exit(0)
    stall,until = Stall(pid, .5),time.monotonic()+3
    while time.monotonic() < until: assert not stall.look(); time.sleep(.1)
    event.set()
    assert os.waitpid(pid, 0)[1]==0
