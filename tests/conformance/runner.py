"""A process that executes notebooks of the catalog one after the other, as a user's program would

Papermill changes the working directory of its process, so each of several executions at a time needs a process. Orders come as lines of
JSON by standard input, and each is answered with a line by standard output; what papermill and the kernels write to the terminal is caught.
Where first cells are shared, a notebook is executed twice in the same folder, and what is seen is the second execution.
"""
import contextlib, json, logging, os, sys, time, traceback
from pathlib import Path


class Keep(logging.Handler):
    "Keeps what is logged"
    def __init__(self):
        super().__init__()
        self.records = []
    def emit(self, record): self.records.append([record.levelname, record.getMessage()])


def content(path):
    "A file that was left behind, as something to compare"
    try: text = path.read_bytes().decode('utf-8', 'surrogatepass')
    except UnicodeDecodeError: return repr(path.read_bytes())
    if path.suffix == '.ipynb':
        try: return json.loads(text)
        except ValueError: pass
    return text


def execute(c, engine, folder, parameters, env, **options):
    "Execute one case in its folder, again if papermill's kernel died before it was asked anything: two that start at once may choose one port"
    seen = execute_once(c, engine, folder, parameters, env, **options)
    if 'kernel_info' not in seen.get('traceback', ''): return seen
    prepare(c, folder)
    with contextlib.suppress(OSError): os.ftruncate(2, 0) # what was said of that, at the terminal
    return execute_once(c, engine, folder, parameters, env, **options)


def execute_once(c, engine, folder, parameters, env, **options):
    "Execute one case in its folder; what there is to see afterwards"
    import papermill as pm
    log, opened, seen = logging.getLogger('papermill'), {o: open(folder/f'{o}.txt', 'w') for o in c.takes}, {}
    keep, before = Keep(), dict(os.environ)
    log.setLevel(logging.INFO)
    log.addHandler(keep)
    os.environ.update(env)
    source, target = folder/c.input, folder/c.output if c.output else None
    kwargs = dict(progress_bar=False, cwd=folder) | c.kwargs | options
    try:
        nb = pm.execute_notebook(source, target, parameters, engine_name=engine, **opened, **kwargs)
        if c.again: nb = pm.execute_notebook(target, folder/'again.ipynb', c.again, engine_name=engine, **kwargs)
        seen['returned'] = json.loads(json.dumps(nb))
    except BaseException as e:
        seen['error'] = [[o.__name__ for o in type(e).__mro__], str(e)]
        seen['traceback'] = traceback.format_exc()
    finally:
        log.removeHandler(keep)
        for o in opened.values(): o.close()
        os.environ.clear()
        os.environ.update(before)
    seen['log'] = keep.records
    seen['files'] = {str(o.relative_to(folder)): content(o) for o in sorted(folder.rglob('*')) if o.is_file() and '__pycache__' not in o.parts}
    return seen


def prepare(c, folder):
    "The notebook and the files beside it, and nothing else; a file that is as it should be is left alone"
    from conformance import document
    wanted = {folder/k: v.encode() for k, v in {**c.files, c.input: document(c)}.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for o in sorted(folder.rglob('*'), reverse=True):
        if o.is_dir() and not o.is_symlink(): any(o in w.parents for w in wanted) or o.rmdir()
        elif o not in wanted or o.read_bytes() != wanted[o]: o.unlink()
    for o, text in wanted.items():
        o.parent.mkdir(parents=True, exist_ok=True)
        if not o.exists(): o.write_bytes(text)


def look(c, order, folder, parameters, env, **options):
    "Execute one case in a new folder, or in one made anew; what there is to see in its folder and at the terminal"
    prepare(c, folder)
    terminal = folder.with_suffix('.terminal')
    fd = os.open(terminal, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    for o in (1, 2): os.dup2(fd, o)
    os.close(fd)
    start = time.monotonic()
    seen = execute(c, order['engine'], folder, parameters, env, **options)
    sys.stdout.flush()
    sys.stderr.flush()
    return seen | dict(took=time.monotonic() - start, terminal=terminal.read_text(errors='replace'))


def shared(seen, c):
    "Did cells come from a snapshot, or can't it be told?"
    nb = seen['files'].get(c.output)
    return not isinstance(nb, dict) or 'shared_cells' in nb['metadata'].get('mlops_nb', {'shared_cells': 0})


def main():
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), 'w')
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from conformance import load
    catalog = load()
    os.environ.pop('PYTHONPATH') # it was for this module, not for notebooks
    for line in orders:
        order = json.loads(line)
        c, folder = catalog[order['name']], Path(order['folder'])
        if order['share'] and not c.fresh:
            seen = before = look(c, order, folder, c.first or c.parameters, c.env_first or c.env, share=True)
            if c.first or c.env_first or shared(before, c):
                seen = look(c, order, folder, c.parameters, c.env, share=True)
                seen |= dict(before=before['files'].get(c.output), took=before['took'] + seen['took'])
        else: seen = look(c, order, folder, c.parameters, c.env)
        folder.with_suffix('.json').write_text(json.dumps(seen))
        answers.write('done\n')
        answers.flush()


if __name__ == '__main__': main()
