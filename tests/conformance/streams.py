"""Text: from Python, from C and from other processes"""
from . import case, code, err

case('print', "print('a')\nprint('b', end='')\nprint()\nprint(1, 2, sep='-')", "import sys\nsys.stdout.write('no end')", "sys.stderr.write('err\\n'); None",
    "print('out')\nprint('err', file=sys.stderr)\nprint('out again')", "print('10%\\r20%\\r30%')\nprint('abc\\b\\bx')\nprint('tab\\tend\\x07')",
    "print('žluť 漢字 🎉 \\u200d \\x00 \\x7f é́')", "print('\\x1b[31mred\\x1b[0m')\nprint(b'\\x1b[31m\\xff')", "print('x'*1_000_000)", "print()", "print('')\nprint('', end='')",
    "print('\\n'*5, end='')", "for i in range(2000): print(i)", "import time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(.15)",
    "print('to stdout', file=sys.__stdout__ and sys.stdout)\nsys.stdout.writelines(['a\\n', 'b\\n'])\nsys.stdout.flush()")
case('stream_attributes', "import sys, io", "print(sys.stdout.encoding, sys.stderr.encoding, sys.stdout.errors, sys.stdout.isatty(), sys.stderr.isatty())",
    "print(sys.stdout.writable(), sys.stdout.readable(), sys.stdout.seekable(), sys.stdout.closed, sys.stdout.name, sys.stderr.name)",
    "print(type(sys.stdout.fileno()), sys.stdout.fileno() > 2)", "print(isinstance(sys.stdout, io.TextIOBase), isinstance(sys.stdout, io.IOBase))",
    "print(type(sys.stdout).__name__, type(sys.stdout).__module__)", "print(hasattr(sys.stdout, 'buffer'), hasattr(sys.stdout, 'line_buffering'), hasattr(sys.stdout, 'reconfigure'), hasattr(sys.stdout, 'mode'))",
    err("sys.stdout.buffer.write(b'bytes')"), err("sys.stdout.write(b'bytes')"), err("sys.stdout.write(1)"), err("sys.stdout.read()"), err("sys.stdout.reconfigure(encoding='latin-1')"),
    "sys.stdin.isatty(), type(sys.stdin).__name__", err("sys.stdin.fileno()"), "sys.stdin.read()", "sys.stdin.readline()", "list(sys.stdin)",
    "sys.__stdin__ is sys.stdin, sys.__stdout__ is sys.stdout, sys.__stderr__ is sys.stderr", "sys.__stdout__.fileno(), sys.__stderr__.fileno(), sys.__stdout__.encoding, sys.__stdout__.errors",
    "import os\nos.isatty(0), os.isatty(1), os.isatty(2)")
case('stdout_fileno', "import sys, os, subprocess", "subprocess.run(['echo', 'by the file of sys.stdout'], stdout=sys.stdout).returncode", "import time; time.sleep(.3)",
    "os.write(sys.stdout.fileno(), b'by its number\\n')", "time.sleep(.3)", "subprocess.run('echo both; echo both >&2', shell=True, stdout=sys.stdout, stderr=sys.stdout).returncode", "time.sleep(.3)",
    "print('by __stdout__', file=sys.__stdout__, flush=True)", "time.sleep(.3)", "print('by __stderr__', file=sys.__stderr__, flush=True)", "time.sleep(.3)")
case('surrogate', "print('\\ud800')", "print('after')", differs='the default engine shows an error of its own instead of the text')
case('big_output', "for i in range(200): print('x'*100_000)", "import os\nfor i in range(100): assert os.write(1, b'y'*10_000) == 10_000\nimport time; time.sleep(1)", "print('end')")
case('descriptors', "import os, subprocess, sys, time, ctypes", "os.write(1, b'os.write\\n'); time.sleep(.4)", "os.write(2, b'os.write\\n'); time.sleep(.4)",
    "subprocess.run(['echo', 'subprocess']); time.sleep(.4)", "subprocess.run('echo err >&2', shell=True); time.sleep(.4)", "os.system('echo os.system; exit 3'), time.sleep(.4)",
    "libc = ctypes.CDLL(None)\nlibc.printf(b'printf\\n')\nlibc.fflush(None); time.sleep(.4)",
    "print('one', flush=True); time.sleep(.3)\nos.write(1, b'two\\n'); time.sleep(.3)\nprint('three', flush=True); time.sleep(.3)\nsubprocess.run(['echo', 'four']); time.sleep(.3)\nprint('five')",
    "print(subprocess.run(['echo', 'kept'], capture_output=True, text=True).stdout)\nprint(subprocess.check_output('cat; echo end', shell=True, text=True, stdin=subprocess.DEVNULL))\nprint(os.popen('echo popen').read())",
    "os.write(1, b'\\xff\\xfe not utf-8\\n'); time.sleep(.4)",
    "p = subprocess.Popen('echo bg 1; sleep .3; echo bg 2', shell=True)\np.wait(); time.sleep(.4)",
    "from IPython.display import display\nprint('a'); display(1); print('b'); sys.stderr.write('c\\n'); display(2)",
    "subprocess.run(['cat'], input=b'x\\n'); time.sleep(.4)", "subprocess.run(['cat']).returncode",
    "sorted(os.listdir('/proc/self/fd'))[:3]", "subprocess.run('ls /proc/self/fd | head -n 3', shell=True); time.sleep(.4)")
case('shell', "!echo hello", "!echo error >&2", "x = !echo one; echo two\nx", "x.n, x.s, x.l, type(x).__name__", "y = 3\n!echo {y} $y $HOME_NOT_THERE {y+1}", "!exit 3\n_exit_code", "!!echo listed",
    "!printf 'no newline'", "!cat no-such-file", "!echo $((1+2)) | tr 3 4", "for i in range(3):\n    !echo {i}", "!python -c 'print(5); import sys; print(sys.stdout.isatty())'", "!pwd", "!test -t 1 && echo tty || echo no tty",
    "get_ipython().system('echo system')", "get_ipython().getoutput('echo getoutput')", "!for i in 1 2 3; do echo $i; sleep .1; done", "!echo 'žluť'", "!kill -9 $$\nprint(_exit_code)")
case('redirects', "import contextlib, io, sys", "with contextlib.redirect_stdout(io.StringIO()) as f: print('kept')\nf.getvalue()", "with contextlib.redirect_stderr(sys.stdout): print('moved', file=sys.stderr)",
    "old = sys.stdout\nsys.stdout = io.StringIO()\nprint('lost')\ntext = sys.stdout.getvalue()\nsys.stdout = old\ntext", "class Tee:\n    def write(self, s): old.write(s.upper()); return len(s)\n    def flush(self): old.flush()\nsys.stdout = Tee()\nprint('loud')",
    "sys.stdout = old", "print('as before')", "from IPython.utils.capture import capture_output\nwith capture_output() as c:\n    print('in'); print('err', file=sys.stderr); display(5)\nc.stdout, c.stderr, c.outputs",
    "c.show()", "import os\nr, w = os.pipe()\nkeep = os.dup(1)\nos.dup2(w, 1)\nos.system('echo into a pipe')\nos.dup2(keep, 1)\nos.close(w)\nprint(os.read(r, 100))", "import time\nos.system('echo back'); time.sleep(.4)")
case('split_character', "import os, time", "os.write(1, 'žluť'.encode()[:1]); time.sleep(.3); os.write(1, 'žluť'.encode()[1:]); time.sleep(.4)", differs='the default engine breaks a character that comes in two pieces')
case('replaced_stdout', "import sys\nold = sys.stdout\nclass Tee:\n    def write(self, s): old.write(s.upper()); return len(s)\n    def flush(self): old.flush()\nsys.stdout = Tee()\nprint('loud')", "print('still loud')", differs='the default engine loses what a replaced sys.stdout passes on in later cells')
case('logging', "import logging, sys, warnings", "logging.warning('root %s', 1)", "logging.info('not shown')", "log = logging.getLogger('mine')\nlog.error('mine')\nlog.debug('no')", "logging.getLogger().handlers, logging.getLogger().level, logging.root.manager.disable",
    "logging.basicConfig(level=logging.INFO, format='%(levelname)s:%(name)s:%(message)s', force=True, stream=sys.stdout)\nlog.info('now shown')", "try: 1/0\nexcept ZeroDivisionError: log.exception('with traceback')",
    "sorted(logging.root.manager.loggerDict.keys() & {'papermill', 'nbclient', 'mlops_nb', 'distributed', 'tornado.access'})", "warnings.warn('first')", "for i in range(3): warnings.warn('once in a loop')", "warnings.warn('again')\nwarnings.warn('again', DeprecationWarning)",
    "def f(): warnings.warn('in f', FutureWarning, stacklevel=2)\nf()\nf()", "f()", "warnings.filters[:8]", "with warnings.catch_warnings(record=True) as w:\n    warnings.simplefilter('always')\n    warnings.warn('kept')\nstr(w[0].message), w[0].category",
    "warnings.simplefilter('ignore')\nwarnings.warn('silent')", err("warnings.simplefilter('error')\nwarnings.warn('raised')"), "warnings.resetwarnings()", "import helper", "sys.warnoptions", files={'helper.py': "import warnings\nwarnings.warn('in a module')\nwarnings.warn('old', DeprecationWarning)\n"})
case('threads', "import threading, time, sys, queue", "def f(i): print('thread', i)\nts = [threading.Thread(target=f, args=(i,)) for i in range(3)]\nfor t in ts: t.start(); t.join()",
    "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as ex: print(list(ex.map(lambda x: x*x, range(5))))", "def late():\n    time.sleep(.5); print('late'); print('late err', file=sys.stderr)\nt = threading.Thread(target=late); t.start()\nprint('started')",
    "t.join(); time.sleep(.3); print('joined')", "def bad(): 1/0\nt = threading.Thread(target=bad, name='bad thread'); t.start(); t.join()", "def ex(): sys.exit(3)\nt = threading.Thread(target=ex); t.start(); t.join()\nprint('alive')",
    "threading.current_thread() is threading.main_thread(), threading.current_thread().name", "def kb(): raise KeyboardInterrupt\nt = threading.Thread(target=kb, name='kb'); t.start(); t.join()",
    "t = threading.Timer(.1, lambda: print('timer')); t.start(); t.join()", "loc = threading.local(); loc.x = 1", "loc.x", "daemon = threading.Thread(target=time.sleep, args=(1000,), daemon=True); daemon.start()",
    "def shows():\n    display('from a thread')\nt = threading.Thread(target=shows); t.start(); t.join()", "q = queue.Queue()\ndef work():\n    while (o := q.get()) is not None: print('got', o); q.task_done()\nw = threading.Thread(target=work); w.start()",
    "q.put(1); q.join(); time.sleep(.3)", "q.put(2); q.join(); time.sleep(.3); print('here')", "q.put(None); w.join()", "threading.excepthook = lambda a: print('hook', a.exc_type)\nt = threading.Thread(target=bad); t.start(); t.join()")
