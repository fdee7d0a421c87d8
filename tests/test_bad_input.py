"""Each wrong request is one clear error, raised before anything starts; what is merely strange works"""
import json, os, shutil, subprocess, sys
from pathlib import Path

import nbformat, pytest

from mlops_nb.core import ConfigError, MlopsError, NotebookError, ParameterError, PipelineError
from mlops_nb.config import load_settings
from mlops_nb.run import run
from scratch import code, notebook

imports = 'from mlops_nb import In, Out, Secret, record, report'
made = 'n: int = 1\nout: Out = "data/a.txt"', 'open(out, "w").write(str(n))\nrecord(n=n)'
used = 'a: In = "data/a.txt"\nb: Out = "data/b.txt"', 'open(b, "w").write(open(a).read()*2)'


def write(project, **stages):
    "Write notebooks: (params, *cells), bytes, or a whole notebook"
    for name, o in stages.items():
        if isinstance(o, tuple): project.stage(name, *o)
        else: (project.folder/f'{name}.ipynb').write_bytes(o if isinstance(o, bytes) else json.dumps(o).encode())


def go(project, **kwargs): return run(load_settings(project.root), project.pipeline, **kwargs)


def raw(text, **top): return json.dumps({'cells': text, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5} | top).encode()


def kernel(name, **more): return notebook(imports, code(made[0], tags=['parameters']), made[1], kernelspec=dict(name=name, display_name=name) | more)


def runs_of(project):
    "The statuses of all runs that the ledger has"
    if not (project.state/'ledger.db').exists(): return []
    with project.ledger as ledger: return [o['status'] for o in ledger.runs(limit=1000)]


refused = { # name: (stages, arguments of run, error, a part of what it says, a part of where or remedy)
    'unknown parameter': (dict(a=made), dict(params=dict(m=1)), ParameterError, 'unknown parameter m', 'known: n, out'),
    'misspelled parameter': (dict(a=('window: int = 1',)), dict(params=dict(windwo=1)), ParameterError, 'unknown parameter windwo', 'did you mean window?'),
    'unknown parameter of a stage': (dict(a=made), dict(params={'a.m': 1}), ParameterError, 'unknown parameter m', 'a.ipynb'),
    'parameter of an unknown stage': (dict(a=made), dict(params={'z.n': 1}), PipelineError, 'no stage z', 'known: a'),
    'keyword as a parameter': (dict(a=made), dict(params={'class': 1}), ParameterError, 'unknown parameter class', 'known: n'),
    'wrong type': (dict(a=made), dict(params=dict(n='x')), ParameterError, "n must be int, not str 'x'", 'a.ipynb, cell 2'),
    'bool for int': (dict(a=made), dict(params=dict(n=True)), ParameterError, 'n must be int, not bool', 'cell 2'),
    'NaN for int': (dict(a=made), dict(params=dict(n=float('nan'))), ParameterError, 'n must be int, not float nan', 'cell 2'),
    'a number of 5000 digits': (dict(a=made), dict(params=dict(n=10**5000)), ParameterError, 'thousands of digits', 'cell 2'),
    'wrong literal': (dict(a=('m: Literal["x","y"] = "x"',)), dict(params=dict(m='z')), ParameterError, "m must be one of 'x', 'y', not 'z'", 'cell 2'),
    'wrong element': (dict(a=('m: list[int] = [1]',)), dict(params=dict(m=[1, 'z'])), ParameterError, "m must be list of int, not str 'z'", 'cell 2'),
    'no date': (dict(a=('d: date = "2013-01-01"',)), dict(params=dict(d='2013-02-30')), ParameterError, 'd must be date', 'written 2013-07-04'),
    'default of another type': (dict(a=('n: int = "7"',)), {}, NotebookError, 'its default is str', 'cell 2'),
    'annotation of no kind': (dict(a=('df: pd.DataFrame = None',)), {}, NotebookError, 'no type of a parameter', 'use int, float'),
    'declared twice': (dict(a=('n: int = 1\nn: str = "x"',)), {}, NotebookError, 'declared twice', 'another name'),
    'two parameters cells': (dict(a=notebook(code('n: int = 1', tags=['parameters']), code('m: int = 1', tags=['parameters']))), {}, NotebookError, 'second cell is tagged parameters', 'one cell'),
    'syntax error in parameters': (dict(a=('n: int = = 2',)), {}, NotebookError, 'not Python', 'correct its syntax'),
    'missing required value': (dict(a=('n: int',)), {}, ParameterError, 'n has no value', '-p n='),
    'missing required secret': (dict(a=('nobody_sets_this: Secret',)), {}, None, 'secret nobody_sets_this has no value', 'NOBODY_SETS_THIS'),
    'no parameters cell at all': (dict(a=notebook('x = 1')), dict(params=dict(n=1)), ParameterError, 'no notebook of demo has a parameters cell', 'tag a cell'),
    'In in a cell without the tag': (dict(a=notebook(imports, 'x: In = "a.txt"')), {}, NotebookError, "isn't tagged parameters", 'Cell Tags'),
    'path that is an expression': (dict(a=('x: In = Path("a")',)), {}, NotebookError, 'is an expression', 'plain string'),
    'In without a path': (dict(a=('x: In = ""',)), {}, NotebookError, 'x: In has no path', 'default path'),
    'Out to a URL': (dict(a=('x: Out = "s3://b/x"',)), {}, NotebookError, 'must be one local file or folder', 'local path'),
    'Out to a pattern': (dict(a=('x: Out = "data/*.txt"',)), {}, NotebookError, 'must be one local file or folder', 'local path'),
    'secret in the notebook': (dict(a=('t: Secret = "hunter22"',)), {}, NotebookError, 'secret t has a value in the notebook', '[secrets]'),
    'In with no producer and no file': (dict(b=used), {}, PipelineError, "isn't there, and no stage makes it", 'put it there'),
    'misspelled In': (dict(a=made, b=('a: In = "data/aa.txt"\nb: Out = "data/b.txt"',)), {}, PipelineError, "isn't there", 'b.ipynb, cell 2'),
    'pattern that nothing matches': (dict(b=('a: In = "raw/*.csv"',)), {}, PipelineError, "isn't there", 'cell 2'),
    'In from a URL of nothing': (dict(b=('a: In = "memory://no/such.csv"',)), {}, PipelineError, "isn't there", 'cell 2'),
    'In from an unknown kind of URL': (dict(b=('a: In = "abc://x/y"',)), {}, PipelineError, "can't be read", 'scheme'),
    'two producers': (dict(a=made, b=made), {}, PipelineError, 'data/a.txt is written twice: by a and by b', 'another path'),
    'two producers, spelled differently': (dict(a=made, b=('out: Out = "../demo/data/./a.txt"',)), {}, PipelineError, 'is written twice', 'another path'),
    'a cycle': (dict(a=('x: In = "x"\ny: Out = "y"',), b=('y: In = "y"\nx: Out = "x"',)), {}, PipelineError, 'wait for each other', 'read something else'),
    'a cycle of one': (dict(a=('x: In = "x"\ny: Out = "x"',)), {}, PipelineError, 'wait for each other', 'read something else'),
    'In inside an Out': (dict(a=('out: Out = "data"',), b=('x: In = "data/x.txt"',)), {}, PipelineError, 'a part of what a writes', 'exactly the path'),
    'Out inside an Out': (dict(a=('out: Out = "data"',), b=('x: Out = "data/x.txt"',)), {}, PipelineError, 'inside a folder that a writes', 'another path'),
    'In around an Out': (dict(a=made, b=('x: In = "data"',)), {}, PipelineError, 'holds what a writes', 'exactly the path'),
    'zero bytes': (dict(a=b''), {}, NotebookError, "JSON doesn't parse", 'restore it'),
    'half a notebook': (dict(a=b'{"cells": ['), {}, NotebookError, "JSON doesn't parse", 'restore it'),
    'no text': (dict(a=b'\xff\xfe\x00'), {}, NotebookError, "JSON doesn't parse", 'restore it'),
    'JSON a thousand deep': (dict(a=b'['*100_000), {}, NotebookError, "JSON doesn't parse", 'restore it'),
    'JSON of something else': (dict(a=b'[]'), {}, NotebookError, 'no list of cells', 'save it'),
    'no cells': (dict(a=raw(None)), {}, NotebookError, 'no list of cells', 'save it'),
    'a cell that is a number': (dict(a=raw([1])), {}, NotebookError, 'cell 1 is no cell', 'save it'),
    'source that is a number': (dict(a=raw([dict(cell_type='code', source=5, metadata={}, outputs=[])])), {}, NotebookError, 'cell 1 is no cell', 'save it'),
    'metadata that is nothing': (dict(a=raw([], metadata=None)), {}, NotebookError, "metadata can't be read", 'save it'),
    'cell without metadata': (dict(a=raw([dict(cell_type='code', source='1', metadata=None, outputs=[])])), {}, NotebookError, 'cell 1 is no cell', 'save it'),
    'tags that are text': (dict(a=raw([dict(cell_type='code', source='1', metadata=dict(tags='parameters'), outputs=[])])), {}, NotebookError, 'cell 1 is no cell', 'save it'),
    'a format of the future': (dict(a=raw([], nbformat=5)), {}, NotebookError, 'nbformat is 5', 'nbformat 4'),
    'a format that is text': (dict(a=raw([], nbformat='4')), {}, NotebookError, "nbformat is '4'", 'nbformat 4'),
    'R': (dict(a=kernel('ir', language='R')), {}, NotebookError, "kernel is ir (r)", 'choose a Python kernel'),
    'a kernel that is not here': (dict(a=kernel('julia-1.9')), {}, NotebookError, 'kernel julia-1.9 is not installed', 'choose the kernel python3'),
    'no notebooks': ({}, {}, PipelineError, 'has no notebooks', 'put stage notebooks'),
    '--only of nobody': (dict(a=made), dict(only=['z']), PipelineError, 'no stage z', 'known: a'),
    '--only of what must wait': (dict(a=made, b=used), dict(only=['b']), PipelineError, 'a would have to run first', '--only'),
    '--only of two at once': ({'01_a': made, '02_a': used}, dict(only=['a']), PipelineError, '2 stages called a', 'one of 01_a, 02_a'),
    '--each of nothing': (dict(a=made), dict(each=dict(n='')), ParameterError, 'no values', 'n=1..12'),
    '--each of an unknown one': (dict(a=made), dict(each=dict(m='1,2')), ParameterError, 'unknown parameter m', 'known'),
    '--each of a wrong type': (dict(a=made), dict(each=dict(n='1,x')), ParameterError, "must be int, not 'x'", 'n=1..12'),
    '--each of a number': (dict(a=made), dict(each=dict(n=5)), ParameterError, 'each n must be int', 'n=1..12'),
    '--each backwards': (dict(a=made), dict(each=dict(n='5..1')), ParameterError, 'which is empty', 'n=1..12'),
    '--each of a billion': (dict(a=made), dict(each=dict(n='1..1000000000')), ParameterError, 'more than 100,000 values', 'n=1..12'),
    '--each of a million pairs': (dict(a=('n: int = 1\nm: int = 1',)), dict(each=dict(n='1..9999', m='1..999')), ParameterError, 'runs are too many', 'at once'),
    '--each of a secret': (dict(a=('t: Secret = ""',)), dict(each=dict(t='aaaa,bbbb')), ParameterError, "secret, and can't be mapped", 'once for each'),
    'no jobs': (dict(a=made), dict(jobs=0), ParameterError, '0 jobs', '1 or more'),
    'fewer than no jobs': (dict(a=made), dict(jobs=-1), ParameterError, '-1 jobs', '1 or more'),
}


@pytest.mark.parametrize('name', refused)
def test_refused(project, name):
    "One error, with what, where and a remedy; nothing has started"
    stages, kwargs, cls, what, more = refused[name]
    write(project, **stages)
    if cls is None: # it is known only when the stage is about to start
        result = go(project, **kwargs)[0]
        assert result.status == 'failed' and what in result.failures[0].error['what'] and more in result.failures[0].error['remedy']
        assert runs_of(project) == ['failed']
        return
    with pytest.raises(cls) as info: go(project, **kwargs)
    e = info.value
    assert type(e) is cls and e.exit_code == 2 and what in e.what and more in str(e) and e.where, str(e)
    assert len(str(e)) < 1500 and str(project.folder) in str(e) or 'demo' in e.where or e.where.startswith(('each', 'jobs'))
    assert not runs_of(project) and not (project.state/'tmp').exists()


failing = { # name: (parameters cell, cells, a part of the error, a part of the remedy)
    'Out not written': ('out: Out = "data/x.txt"', ['1'], 'did not write its Out out', 'write to the path in the variable out'),
    'Out written by name': ('out: Out = "x.txt"', ['open("x.txt", "w").write("1")'], 'did not write its Out out', 'by name'),
    'Out that is a broken table': ('out: Out = "x.parquet"', ['open(out, "w").write("no")'], "isn't a readable .parquet", 'cell that writes it'),
    'Out that is half a JSON': ('out: Out = "x.json"', ['open(out, "w").write("{")'], "isn't a readable .json", 'cell that writes it'),
    'Out that is a link to nothing': ('out: Out = "x.txt"', ['import os\nos.symlink("/no/such", out)'], 'link to nothing', 'cell that writes it'),
    'Out that is a pipe': ('out: Out = "x.txt"', ['import os\nos.mkfifo(out)'], 'neither a file nor a folder', 'cell that writes it'),
    'Out that is a folder with a broken table': ('out: Out = "x"', ['import os\nos.mkdir(out)\nopen(out+"/y.parquet", "w").write("no")'], "isn't a readable .parquet", 'cell that writes it'),
    'Out that is a folder, where a file was declared': ('out: Out = "x.json"', ['import os\nos.mkdir(out)'], 'is a folder', 'cell that writes it'),
    'Out where a file stands in the way': ('out: Out = "settings.txt/x.txt"', ['open(out, "w").write("1")'], "can't be", ''),
    'secret in an Out': ('out: Out = "x.txt"\ntoken: Secret = ""', ['open(out, "w").write(token)'], 'contains the secret token', "don't write it"),
    'a secret of three letters': ('pin: Secret = ""', ['1'], 'too few', 'use 4 or more'),
}


@pytest.fixture(scope='module')
def failures(tmp_path_factory):
    "All the failing stages in one pipeline: {name: error}"
    from scratch import Project
    project = Project(tmp_path_factory.mktemp('failing')/'project')
    (project.folder/'settings.txt').write_text('a file')
    names = {f'{i:02}_f': k for i, k in enumerate(failing)}
    for i, k in names.items(): # each writes in a folder of its own, unless it says otherwise
        params, cells = failing[k][:2]
        project.stage(i, params.replace('"x', f'"{i}_x'), *[o.replace('"x.txt"', f'"{i}_x.txt"') for o in cells])
    os.environ |= dict(TOKEN='a-long-token', PIN='123')
    try: result = run(load_settings(project.root), 'demo')[0]
    finally: del os.environ['TOKEN'], os.environ['PIN']
    yield project, {names[o.stage]: o for o in result.stages}
    project.put_away()


@pytest.mark.parametrize('name', failing)
def test_failed(failures, name):
    "The work fails with one clear error; the run has ended; the others went on"
    project, found = failures
    _, _, what, remedy = failing[name]
    e = found[name].error
    assert found[name].status == 'failed' and what in e.get('what', e['evalue']) and remedy in e['remedy'], e
    assert 'Traceback' not in e['evalue'] and len(runs_of(project)) == 1 and runs_of(project) == ['failed']
    assert not list((project.state/'tmp').glob('*'))


def v3():
    cells = [nbformat.v3.new_code_cell('x = 1')]
    return nbformat.writes(nbformat.v3.new_notebook(worksheets=[nbformat.v3.new_worksheet(cells=cells)]), version=3).encode()


strange = { # name of the stage: notebook, or (parameters, *cells)
    'empty': notebook(),
    'only prose': notebook(dict(cell_type='markdown', id='a', metadata={}, source='# Hello')),
    'old format': v3(),
    'magic in parameters': ('n: int = 2\n%time x = 1\nout: Out = "m.txt"', 'open(out, "w").write(str(n))'),
    'computed default': ('import os\nn: int = len("abc")\nm: int = n*2\nout: Out = "c.txt"', 'open(out, "w").write(str((n, m)))'),
    'shell and magics': ('out: Out = "s.txt"', '%%bash\necho from bash', '!echo from a shell', '%run helper.py', 'open(out, "w").write(helped)'),
    'stale injected cell': notebook(imports, code('k: int = 1\nout: Out = "i.txt"', tags=['parameters']), code('k = 99', tags=['injected-parameters']), 'open(out, "w").write(str(k))'),
    'ünï cödé ⚡ "quoted" it\'s': ('out: Out = "dätä dir/ünï \' file.txt"', 'print("👩‍🔬 \\udc80")\nopen(out, "w").write("☃")'),
    'very long output': ('out: Out = "l.txt"', 'for _ in range(20): print("x"*1_000_000)\nopen(out, "w").write("1")'),
    'input folder with a slash': ('src: In = "raw/"\nout: Out = "f/"', 'import shutil\nshutil.copytree(src, out)'),
    'reads that folder': ('f: In = "f"\nout: Out = "ff.txt"', 'import os\nopen(out, "w").write(str(sorted(os.listdir(f))))'),
    'not a number': ('x: float = 1.0\nout: Out = "nan.txt"', 'open(out, "w").write(str(x))\nrecord(x=x)'),
}


@pytest.fixture(scope='module')
def oddities(tmp_path_factory):
    "All the strange stages in one pipeline that works: (project, {stage: result})"
    from scratch import Project
    top = tmp_path_factory.mktemp('odd')
    outside = top/'outside'/'abs.txt'
    project = Project(top/"it's a \"pröject\" ☃")
    (project.folder/'raw').mkdir()
    (project.folder/'raw'/'a.txt').write_text('a')
    (project.folder/'helper.py').write_text('helped = "yes"')
    write(project, **strange, outside=(f'out: Out = "{outside}"', 'open(out, "w").write("far")'))
    result = run(load_settings(project.root), 'demo', params={'not a number.x': float('nan')}, jobs=2)[0]
    yield project, {o.stage: o for o in result.stages}, outside
    project.put_away()


@pytest.mark.parametrize('name', [*strange, 'outside'])
def test_strange_but_right(oddities, name):
    project, found, outside = oddities
    assert found[name].status in ('completed', 'cached'), found[name].error # two that say nothing are the same to the cache
    said = {'magic in parameters': ('m.txt', '2'), 'computed default': ('c.txt', '(3, 6)'), 'shell and magics': ('s.txt', 'yes'), 'stale injected cell': ('i.txt', '1'),
            'ünï cödé ⚡ "quoted" it\'s': ("dätä dir/ünï ' file.txt", '☃'), 'reads that folder': ('ff.txt', "['a.txt']"), 'not a number': ('nan.txt', 'nan'), 'outside': (outside, 'far')}
    if name in said: assert (project.folder/said[name][0]).read_text() == said[name][1]


def test_strange_is_cached_too(oddities):
    project, _, _ = oddities
    again = project.cli('run', 'demo', '--json', '-p', 'not a number.x=nan')
    assert again.code == 0 and set(again.statuses.values()) == {'cached'}, again


commands = { # name: (arguments, exit code, a part of what is said)
    'no =': (['run', 'demo', '-p', 'n'], 2, 'write n=VALUE'),
    'no name': (['run', 'demo', '-p', '=1'], 2, 'write NAME=VALUE'),
    'no jobs': (['run', 'demo', '--jobs', '0'], 2, 'jobs'),
    'jobs in words': (['run', 'demo', '--jobs', 'many'], 2, 'valid integer'),
    'another pipeline': (['run', 'dmeo'], 2, 'did you mean demo?'),
    'no pipeline': (['run'], 2, "no pipeline is named"),
    'an unknown option': (['run', 'demo', '--fast'], 2, 'No such option'),
    'an unknown command': (['rnu', 'demo'], 2, 'No such command'),
    'text for a number': (['run', 'demo', '-p', 'n=one'], 2, "n must be int, not 'one'"),
    'a newline in a name': (['run', 'demo', '-p', 'a\nb=1'], 2, 'unknown parameter a'),
    'an environment that is not': (['run', 'demo', '--env', 'porduction'], 2, 'porduction'),
    'no such run': (['show', '2099'], 2, '2099'),
    'plan of an unknown parameter': (['plan', 'demo', '-p', 'm=1'], 2, 'unknown parameter m'),
    'no JSON': (['run', 'demo', '--params', 'bad.json'], 2, 'not JSON'),
    'a JSON list': (['plan', 'demo', '--params', 'list.json'], 2, 'no JSON object'),
    'no such JSON': (['run', 'demo', '--params', 'none.json'], 2, "can't be read"),
    'a wrong value in JSON': (['run', 'demo', '--params', 'wrong.json'], 2, "n must be int, not str 'x'"),
}


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    from scratch import Project
    project = Project(tmp_path_factory.mktemp('commands')/'project')
    write(project, a=made)
    for k, v in dict(bad='{"n": ', list='[1]', wrong='{"n": "x"}', good='{"a.n": 4}').items(): (project.root/f'{k}.json').write_text(v)
    yield project
    project.put_away()


@pytest.mark.parametrize('name', commands)
def test_command(shared, name):
    "A wrong command says one thing, and the same as JSON"
    args, exit_code, said = commands[name]
    done = shared.cli(*args, '--json')
    assert done.code == exit_code and said in done.text and 'Traceback' not in done.text, done
    assert not runs_of(shared)


def test_settings(project):
    write(project, a=made)
    for text, said in (('[DEFAULT]\nstor = x', 'did you mean store?'), ('[DEFAULT]\njobs = many', 'jobs'), ('[DEFAULT]\njobs = 0', 'jobs'), ('jobs = 1', 'settings.ini'), ('[DEFAULT]\nstore = ${NO_SUCH_VAR}', 'NO_SUCH_VAR'),
                       ('[DEFAULT]\nengine = warp', 'warp')):
        (project.root/'settings.ini').write_text(text)
        with pytest.raises(MlopsError) as info:
            if (r := go(project)[0]).failures: raise ConfigError(r.failures[0].error['what'] if 'what' in r.failures[0].error else r.failures[0].error['evalue'])
        assert said in str(info.value) and info.value.exit_code == 2, text


def test_parameters_as_json(shared):
    "From a file and from standard input"
    done = shared.cli('plan', 'demo', '--params', 'good.json', '--json')
    assert done.code == 0, done
    with open(shared.root/'good.json') as f:
        res = subprocess.run([sys.executable, '-m', 'mlops_nb.cli', 'plan', 'demo', '--params', '-', '--json'], stdin=f, cwd=shared.root, capture_output=True, text=True)
    assert res.returncode == 0 and json.loads(res.stdout) == done.json, res.stderr


def test_where_one_stands(shared, tmp_path):
    "In a folder of the project it is found; outside of all projects, that is said"
    res = subprocess.run([sys.executable, '-m', 'mlops_nb.cli', 'plan', 'demo', '--json'], cwd=shared.folder, capture_output=True, text=True)
    assert res.returncode == 0 and json.loads(res.stdout)['stages'], res.stderr
    res = subprocess.run([sys.executable, '-m', 'mlops_nb.cli', 'run', 'demo'], cwd=tmp_path, capture_output=True, text=True)
    assert res.returncode == 2 and 'Traceback' not in res.stderr and 'not inside a project' in res.stderr, res
    assert not list(tmp_path.iterdir())


def test_a_pipeline_behind_a_link(project):
    "The folder of a pipeline, and a path in it, may be links; two names for one place are one place"
    write(project, a=made)
    real = project.root/'elsewhere'
    shutil.move(project.folder, real)
    project.folder.symlink_to(real)
    assert go(project)[0].status == 'completed' and (real/'data'/'a.txt').read_text() == '1'
    (real/'alias').symlink_to(real/'data')
    write(project, b=('out: Out = "alias/a.txt"', '1'))
    with pytest.raises(PipelineError, match='written twice'): go(project)
    write(project, b=('a: In = "alias/a.txt"\nb: Out = "data/b.txt"', used[1]))
    result = go(project)[0]
    assert result.status == 'completed' and (real/'data'/'b.txt').read_text() == '11'


def test_a_stage_that_goes_away(project):
    "A notebook that is deleted while the run goes on has been read already"
    write(project, a=made, b=('a: In = "data/a.txt"\nb: Out = "data/b.txt"', 'open(b, "w").write(open(a).read())'))
    result = go(project, listener=lambda kind, *_: kind == 'start' and (project.folder/'b.ipynb').unlink(missing_ok=True))[0]
    assert result.status == 'completed' and (project.data/'b.txt').read_text() == '1'


def test_a_value_twice(project):
    "`--each` with the same value twice does it once"
    write(project, a=made)
    results = go(project, each=dict(n='2,1..2,2'))
    assert [o.metrics['n'] for o in results] == [2, 1]
