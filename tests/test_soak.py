"""Thousands of executions by one process: no process is left, no file stays open, no memory is lost, nothing hangs

MLOPS_SOAK is the number of executions. The file is also the program of the processes that do them: `python test_soak.py N` prints what it saw."""
import faulthandler, gc, json, os, secrets, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='forks are for Linux')
mark, patience = 'MLOPS_SOAK_MARK', 120 # seconds that one execution may take
clients = 2
body = 'import numpy as np\ndata = np.arange(1000.)\nprint("made")'
fits = 'print("score", n, float(data.sum()*lr))'
draw = 'import matplotlib.pyplot as plt\nfig,ax = plt.subplots(figsize=(1, 1))\nax.plot([0, n]);'
leave = 'import subprocess\nleft = [subprocess.Popen(["sleep", "600"], start_new_session=o) for o in (False, True)]'
fail = 'print("before", n)\n1/0'
died = 'import os, signal, sys\nprint("bye")\nsys.stdout.flush()\nos.kill(os.getpid(), signal.SIGKILL)'


def made(folder, name, *sources, **tags):
    "The path of a notebook; its second cell holds the parameters"
    from scratch import code, notebook
    cells = [sources[0], code('n = 0\nlr = .1', tags=['parameters']), *[code(o, **tags) for o in sources[1:]]]
    path = Path(folder)/f'{name}.ipynb'
    path.write_text(json.dumps(notebook(*cells)))
    return str(path)


def kind_of(i):
    "What the i-th execution is"
    if i%200==150: return 'died'
    if i%100==75: return 'leaves'
    if i%50==40: return 'fails'
    if i%50==20: return 'once' # a study of which there is but one execution
    if i%25==10: return 'draws'
    return ('study', 'prints', 'numpy', 'other study', 'prints', 'numpy')[i%6]


class Soak:
    "Executes notebooks in a folder, and looks at what they leave"
    def __init__(self, folder):
        self.folder, self.out, self.counts, self.rungs = folder, str(Path(folder)/'out.ipynb'), Counter(), Counter()
        self.books = dict(prints=made(folder, 'prints', 'import json', 'print("value", n)'), numpy=made(folder, 'numpy', body, fits),
            draws=made(folder, 'draws', 'import json', draw), leaves=made(folder, 'leaves', 'import json', leave),
            fails=made(folder, 'fails', 'import json', fail), died=made(folder, 'died', 'import json', died),
            study=made(folder, 'study', body, fits), **{'other study': made(folder, 'other', body+'\ndata += 1', fits)})

    def execute(self, kind, i):
        "Do one, and see that it did what it should"
        import papermill as pm
        from nbclient.exceptions import DeadKernelError
        path = made(self.folder, 'once', f'{body}\ndata += {i}', fits) if kind=='once' else self.books[kind]
        extra = dict(share=True, differ=['lr']) if kind=='study' else dict(share=True) if kind in ('other study', 'once') else {}
        if kind=='fails': extra['allow_errors'] = True
        params = dict(lr=i/8) if 'share' in extra else dict(n=i)
        faulthandler.dump_traceback_later(patience, exit=True)
        error = ''
        try: nb = pm.execute_notebook(path, self.out, params, engine_name='snapshot', progress_bar=False, **extra)
        except (pm.PapermillExecutionError, DeadKernelError) as e: nb,error = json.loads(Path(self.out).read_text()),type(e).__name__
        faulthandler.cancel_dump_traceback_later()
        self.check(kind, i, nb, error)

    def check(self, kind, i, nb, error):
        "Is the executed notebook as it should be?"
        said = ''.join(''.join(o.get('text', '')) for c in nb['cells'] for o in c.get('outputs', ()))
        wanted = dict(prints=f'value {i}\n', numpy=f'made\nscore {i} {499500*.1}\n', study=f'made\nscore 0 {499500*i/8}\n', fails=f'before {i}\n', died='bye\n',
                      once=f'made\nscore 0 {(499500+1000*i)*i/8}\n', draws='', leaves='', **{'other study': f'made\nscore 0 {500500*i/8}\n'})[kind]
        assert said==wanted and error==dict(fails='PapermillExecutionError', died='DeadKernelError').get(kind, ''), (kind, i, said, error)
        self.counts[kind] += 1
        self.rungs[f"{kind}: {nb['metadata'].get('mlops_nb', {}).get('rung', '')}"] += 1

    def settle(self):
        "Bring the warm processes into the same state, and wait until nothing else is there"
        for kind in ('prints', 'numpy', 'study', 'other study', 'draws')*2: self.execute(kind, 8)
        gc.collect()
        end, last = time.monotonic()+20, None
        while time.monotonic() < end and (now := sorted((o.pid, o.status()) for o in tree())) != last: last = now; time.sleep(.3)

    def look(self):
        "What is there now"
        self.settle()
        found = [o for o in (seen(p) for p in tree()) if o]
        strangers = [o['name'] for o in found if not o['name'].startswith('python')] + [o['name'] for o in found if o['state']=='zombie']
        return dict(me=len(os.listdir('/proc/self/fd')), my_mb=pss(os.getpid()), files=sorted(o['files'] for o in found), mb=sum(o['mb'] for o in found),
                    processes=len(found), strangers=strangers, adopted=[p.cmdline() for p in living(os.environ[mark]) if p.pid!=os.getpid() and p not in tree()])


def tree():
    "The roots of this process, and all below them"
    from mlops_nb.owner import owner
    roots = [psutil.Process(o.proc.pid) for o in list(owner.handles.values()) if o.alive()]
    return [*roots, *(c for r in roots for c in r.children(recursive=True))]


def pss(pid):
    "MB of a process's own part of the memory that is no file's"
    with open(f'/proc/{pid}/smaps_rollup') as f: return next(int(o.split()[1])/1024 for o in f if o.startswith('Pss_Anon:'))


def living(value):
    "The processes with this mark, zombies not among them"
    from scratch import marked
    return marked(mark, value, zombies=False)


def seen(p):
    "What one process has"
    try: return dict(name=p.name(), state=p.status(), files=p.num_fds(), mb=pss(p.pid))
    except (psutil.Error, OSError): return None


def soak(n):
    "Do `n` executions; what was seen after the first of them and at the end"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        s, looks, early = Soak(folder), [], max(60, n//10)
        for i,kind in enumerate((*s.books, *['once']*5), 1): s.execute(kind, -i) # now there is every warm process, and as many snapshots as there may be
        for i in range(n):
            if i==min(early, n//2): looks.append(s.look())
            s.execute(kind_of(i), i)
        looks.append(s.look())
        os.chdir('/')
    return dict(n=n, early=looks[0], late=looks[1], counts=s.counts, rungs=s.rungs, seconds=time.monotonic()-start)


@pytest.fixture(scope='module')
def soaked(tmp_path_factory):
    "What each of the processes saw, and who outlived them"
    n, started = int(os.environ.get('MLOPS_SOAK') or 300)//clients, []
    folder = tmp_path_factory.mktemp('soak')
    for i in range(clients):
        value, out, err = secrets.token_hex(8), folder/f'{i}.json', folder/f'{i}.txt'
        with open(out, 'w') as o, open(err, 'w') as e:
            env = {k: v for k,v in os.environ.items() if not k.startswith('MLOPS_')} | {mark: value}
            started.append((subprocess.Popen([sys.executable, __file__, str(n)], env=env, stdin=subprocess.DEVNULL, stdout=o, stderr=e), value, out, err))
    try: codes = [o[0].wait(600+n*2) for o in started]
    finally:
        left = []
        for p,value,*_ in started:
            if p.poll() is None: p.kill(); p.wait()
        end = time.monotonic()+5
        while time.monotonic() < end and any(living(o[1]) for o in started): time.sleep(.1)
        for _,value,*_ in started:
            for o in living(value): left.append(o.cmdline()); o.kill()
    for code,(_,_,out,err) in zip(codes, started): assert code==0, err.read_text()[-5000:]
    return [json.loads(o[2].read_text()) for o in started], left


def test_each_did_what_it_should(soaked):
    for o in soaked[0]:
        print(json.dumps(o))
        assert sum(o['counts'].values())==o['n']+33 and not [k for k in o['rungs'] if 'fresh' in k], o['rungs']
        assert o['rungs'].get('study: snapshot', 0) > .9*o['counts']['study'] and o['rungs'].get('other study: snapshot', 0) > .8*o['counts']['other study'], o['rungs']


def test_no_process_is_left(soaked):
    assert not soaked[1]
    for o in soaked[0]:
        assert not [o[k][what] for k in ('early', 'late') for what in ('strangers', 'adopted') if o[k][what]], o
        assert o['late']['processes'] <= o['early']['processes']+1


def test_no_file_stays_open(soaked):
    for o in soaked[0]: assert o['late']['me'] <= o['early']['me']+1 and max(o['late']['files']) <= max(o['early']['files'])+2, (o['early'], o['late'])


def test_no_memory_is_lost(soaked):
    for o in soaked[0]:
        early, late = o['early'], o['late']
        assert late['mb'] < early['mb']*1.1+10 and late['my_mb'] < early['my_mb']*1.1+10, (early, late)


if __name__=='__main__':
    faulthandler.enable()
    print(json.dumps(soak(int(sys.argv[1]))))
