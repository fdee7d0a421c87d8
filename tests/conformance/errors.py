"""Errors, exits and ends of a kernel"""
from . import case, code, err, md

after = "open('after.txt', 'w').write('x')"
case('error', "x = 1", "def f(): return g()\ndef g(): return 1/0", "print('before')\nf()", md('# text'), after, raises='PapermillExecutionError')
case('error_syntax', "print('never'", after, raises='PapermillExecutionError')
case('error_import', "import broken", after, raises='PapermillExecutionError', files={'broken.py': "x = 1\n\ndef f():\n    return undefined\n\nf()\n"})
case('errors_many', *map(err, ["1/0", "print('out'); undefined", "raise ValueError", "raise ValueError('with\\nlines')", "raise ValueError('a', 1)", "raise MemoryError('no room')",
    "try: 1/0\nexcept ZeroDivisionError as e: raise KeyError('k') from e", "try: 1/0\nexcept ZeroDivisionError: raise KeyError('k')", "try: 1/0\nexcept ZeroDivisionError: raise KeyError('k') from None",
    "raise ExceptionGroup('several', [ValueError(1), ExceptionGroup('inner', [TypeError('t')])])", "class Bad(Exception):\n    def __str__(self): raise RuntimeError('no str')\nraise Bad('x')", "class Bad2(Exception):\n    def __repr__(self): 1/0\nraise Bad2('x')",
    "e = ValueError('noted'); e.add_note('a note'); raise e", "assert 1 == 2, 'unequal'", "assert False", "import no_such_module", "from os import no_such_name", "open('no-such-file')", "{}['k']", "[][0]", "None.x", "int('x')", "'a' + 1",
    "raise StopIteration(3)", "raise GeneratorExit", "raise BaseException('base')", "class C(BaseException): pass\nraise C('own')", "for i in range(3):\n    if i == 1: raise ValueError(i)", "eval('1 +')", "exec('1/0')", "exec(compile('x = 1\\n1/0', 'made.py', 'exec'))",
    "(lambda: 1/0)()", "[1/0 for _ in range(3)]", "class K:\n    x = 1/0", "class P:\n    @property\n    def p(self): return self.q\nP().p", "x = 'a'*5000\nraise ValueError(x)", "raise ValueError('žluť 🎉 \\x1b[31m <b>html</b>')",
    "def long():\n    a = 1\n    b = 2\n    c = 3\n    d = 4\n    e = 5\n    f = 6\n    1/0\n    g = 7\nlong()", "with open('made.txt', 'w') as f: f.write('x'); 1/0", "import json; json.loads('{')", "import subprocess; subprocess.run(['false'], check=True)",
    "subprocess.run(['no-such-program'])", "raise TimeoutError", "raise NotImplementedError('todo')", "import decimal; decimal.Decimal('x')", "del nothing", "raise 1", "raise SyntaxError('made')", "raise IndentationError('made', ('f.py', 1, 2, 'text'))", "raise OSError(2, 'No', 'f.txt')",
    "_ = yield_ = 0\nraise UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'bad')"]), "print('reached')", "def f(n): return f(n+1)\ntry: f(0)\nexcept RecursionError as e: print(type(e), e)")
case('errors_syntax', *map(err, ["x = ", "if True:\nprint(1)", "  x = 1\n y = 2", "def f(:\n    pass", "return 1", "yield 1", "x = 'unclosed", "print 1", "break", "1 = x", "f(**{'a': 1}, *[1], b=", "await = 1", "from __future__ import nothing", "\x00", "for", "f'{x!}'",
    "lambda x: (yield)", "nonlocal x", "async def f():\n    return 1\nawait f", "print(1)\nx = 08", "%no_such_magic", "%%no_such_magic\nx", "!(", "%%time\nx =", "?", "??", "class A\n  pass", "'\\N{no such name}'", "{1: 2, 3}", "import a.b as c.d", "a b c"]),
    "async def g(): return 2\nawait g()", "print('reached')")
case('errors_modules', err("import helper\nhelper.f(0)"), err("import mistake"), err("from package import sub\nsub.g()"), err("import helper\nhelper.h()"), "helper.__file__, sub.__name__", err("import package.missing"), err("helper.later()"),
    files={'helper.py': "def f(x):\n    y = 1\n    return y/x\n\ndef h():\n    try: f(0)\n    except ZeroDivisionError as e: raise ValueError('helper') from e\n\ndef later():\n    def inner():\n        raise KeyError('inner')\n    return [inner() for _ in range(2)]\n",
        'mistake.py': "def f(:\n    pass\n", 'package/__init__.py': '', 'package/sub.py': "from .deep import d\ndef g(): return d(1)\n", 'package/deep.py': "def d(n):\n    return d(n-1) if n else {}['k']\n"})
case('errors_hooks', "import sys, traceback", "sys.excepthook = lambda *a: print('excepthook', a[0])", err("1/0"), "sys.displayhook.__class__.__name__", "old = sys.displayhook\nsys.displayhook = lambda o: print('shown', o)", "5", "sys.displayhook = old", "6",
    "ip = get_ipython()\ndef handler(self, etype, value, tb, tb_offset=None):\n    print('custom', etype.__name__, value)\n    return ['custom traceback']\nip.set_custom_exc((ZeroDivisionError,), handler)", err("1/0"), err("[][1]"), "ip.set_custom_exc((), None)",
    err("1/0"), "traceback.print_exc()", "try: 1/0\nexcept Exception: traceback.print_exc()", "try: 1/0\nexcept Exception: traceback.print_exc(file=sys.stdout)", "print(traceback.format_exc())", "sys.last_type, sys.last_value", "import inspect\ndef src(a):\n    return a\nprint(inspect.getsource(src))",
    err("ip.showtraceback()"), err("try: 1/0\nexcept Exception: ip.showtraceback()"), err("try: 1/0\nexcept Exception: get_ipython().showtraceback(running_compiled_code=True)"), err("%xmode Plain\n1/0"), err("1/0"), "%xmode Verbose", err("x = 1\nx/0"), "%xmode Minimal", err("1/0"), "%xmode Context", err("%tb"), err("%tb"), err("raise SystemExit('tagged')"),
    "%xmode Context", "%colors nocolor", err("1/0"), "%colors linux", "class O:\n    def __repr__(self): raise ValueError('no repr')", err("O()"), err("[O()]"), "class H:\n    def _repr_html_(self): raise ValueError('no html')\n    def __repr__(self): return 'H'", err("H()"),
    "class I:\n    def _ipython_display_(self): raise ValueError('no display')\n    def __repr__(self): return 'I'", err("I()"), err("display(I(), H())"), err("display(O())"), "import faulthandler; faulthandler.is_enabled()", "sys.tracebacklimit = 1", err("f = lambda: 1/0\nf()"), "del sys.tracebacklimit",
    "sys.unraisablehook.__name__", "class D:\n    def __del__(self): 1/0\nd = D()\ndel d")
# SystemExit and KeyboardInterrupt
for name, source, raises in [('0', 'import sys\nsys.exit(0)', None), ('1', 'import sys\nsys.exit(1)', 'PapermillExecutionError'), ('text', "import sys\nsys.exit('text')", 'PapermillExecutionError'), ('none', 'import sys\nsys.exit()', None),
        ('raised', 'def f(): raise SystemExit(2)\nf()', 'PapermillExecutionError')]:
    case(f'system_exit_{name}', "import atexit\natexit.register(lambda: open('atexit.txt', 'w').write('ended'))\nprint('first')", f"print('before')\n{source}\nprint('after')", after, md('text'), after, raises=raises)
case('exit', "print('x')", "exit", after, raises=None)
case('exit_called', "print('x')", "exit()\nprint('rest of the cell')", after, raises=None)
case('quit_called', "quit()", after, raises=None)
case('exit_kept', "exit(keep_kernel=True)", after)
case('system_exit_tagged', err("import sys; sys.exit(1)"), err("sys.exit(0)"), err("sys.exit()"), err("sys.exit('text')"), err("raise SystemExit([1, 2])"), err("exit = 3; exit"), after)
case('keyboard_interrupt', "print('x')", "print('y')\nraise KeyboardInterrupt", after, raises='PapermillExecutionError')
case('keyboard_interrupt_tagged', err("raise KeyboardInterrupt"), err("raise KeyboardInterrupt('text')"), "import os, signal, time", err("os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)"), err("def f():\n    signal.raise_signal(signal.SIGINT)\n    time.sleep(5)\nf()"),
    err("import _thread; _thread.interrupt_main(); time.sleep(5)"), "try:\n    signal.raise_signal(signal.SIGINT); time.sleep(5)\nexcept KeyboardInterrupt: print('caught')", err("import asyncio\nos.kill(os.getpid(), signal.SIGINT)\nawait asyncio.sleep(5)"), after)
# The kernel ends in the middle
for name, source in [('os_exit', 'import os\nos._exit(3)'), ('os_exit_0', 'import os\nos._exit(0)'), ('kill', 'import os\nos.kill(os.getpid(), 9)'), ('segfault', 'import ctypes\nctypes.string_at(0)'), ('abort', 'import os\nos.abort()')]:
    case(f'dead_{name}', "print('first')", f"print('before', flush=True)\nimport time; time.sleep(.5)\n{source}", after, raises='DeadKernelError')
case('dead_sigterm', "import os, signal, time", "time.sleep(.5)\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(3)\nprint('after')", after, raises='DeadKernelError')
case('dead_allowed', "import os, time\ntime.sleep(.5)\nos._exit(3)", after, raises='DeadKernelError', kwargs=dict(allow_errors=True))
# What papermill can be told about errors
case('allow_errors', "1/0", "print('goes on')", "import sys; sys.exit(1)", "print('and on')", raises='PapermillExecutionError', kwargs=dict(allow_errors=True))
case('allow_error_names', "1/0", "print('goes on')", "{}['k']", after, raises='PapermillExecutionError', kwargs=dict(allow_error_names=['ZeroDivisionError']))
case('force_raise_errors', err("1/0"), after, raises='PapermillExecutionError', kwargs=dict(force_raise_errors=True))
case('timeout', "print('first')", "print('before', flush=True)\nimport time; time.sleep(12)", after, raises='CellTimeoutError', kwargs=dict(execution_timeout=2))
case('timeout_interrupt', "import time", "print('before', flush=True)\ntime.sleep(12)", after, raises='PapermillExecutionError', kwargs=dict(timeout=2, interrupt_on_timeout=True))
case('timeout_error_on', "import time", "time.sleep(12)", "print('goes on')", raises='PapermillExecutionError', kwargs=dict(execution_timeout=2, interrupt_on_timeout=True, error_on_timeout=dict(ename='Late', evalue='too late', traceback=['trace'])))
case('timeout_not', "import time\ntime.sleep(.2)", "print('fine')", kwargs=dict(execution_timeout=30))
# Nobody is there to answer
case('input', err("input('name? ')"), err("import getpass; getpass.getpass()"), err("getpass.getpass('secret: ')"), err("breakpoint()"), err("import pdb; pdb.set_trace()\nx = 1"), err("from IPython.core.debugger import set_trace; set_trace()"), err("1/0"), err("%debug"), err("%debug 1+1"),
    "%pdb on", err("1/0"), "%pdb off", err("pdb.run('1+1')"), err("pdb.post_mortem()"), err("print('x', end=''); input()"), err("get_ipython().kernel.raw_input('x')"), "try: input()\nexcept Exception as e: print(type(e), e)", "print('reached')")
case('input_ends', "name = input('name? ')", after, raises='PapermillExecutionError')
