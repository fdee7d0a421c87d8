"""All is documented, and what the documentation shows is so: commands, options, settings, symbols, command lines, links"""
import ast, json, re, shlex, shutil
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

from mlops_nb.cli import app
from mlops_nb.config import known_keys, known_variables, load_settings
from mlops_nb.reference import command_pages, grouped, leaves, names, settings_page, tree_of, undocumented
from mlops_nb.trigger import key_says, kinds, triggers_of
from scratch import Project

root = Path(__file__).resolve().parents[1]
nbs = root/'nbs'
reference = command_pages(app) | settings_page()
shown = [root/'README.md', nbs/'index.ipynb', *sorted(o for d in ('tutorials','howto','explain') for o in (nbs/d).glob('*') if o.suffix in ('.md','.ipynb'))]
prose = [*shown, *sorted(o for d in ('api','benchmarks','pipelines','reports','replay','predict') for o in (nbs/d).rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts and 'data' not in o.parts)]


@cache
def cells(path):
    "(markdown texts, code texts) of a page"
    if path.suffix == '.md': return [path.read_text('utf-8')], []
    found = [(o['cell_type'], ''.join(o['source'])) for o in json.loads(path.read_text('utf-8'))['cells']]
    return [s for k, s in found if k == 'markdown'], [s for k, s in found if k == 'code']


# What there is

def test_nothing_is_without_a_word():
    assert undocumented(app) == []


def test_each_command_and_option_is_in_the_reference():
    page = reference['reference/commands.md']
    for words, command in leaves(tree_of(app)):
        [text] = re.findall(rf'(?ms)^## mlops-nb {" ".join(words)}$(.*?)(?=^```{{raw}}|\Z)', page)
        assert command.help.strip().split('\n')[0] in text
        for p in command.params: assert p.hidden or f' {names(p)} ' in text.replace(r'\|', '|'), (words, p.name)


def test_each_command_has_its_group():
    assert '' not in grouped(leaves(tree_of(app)))


def test_each_setting_is_in_the_reference():
    page = reference['reference/settings.md']
    for k in (*known_keys, *known_variables, *key_says, *(k for o in kinds.values() for k in o)): assert f'| `{k}` |' in page, k
    assert '### More' not in page


def test_each_variable_of_ours_is_known():
    "What the library reads from the environment is either for people, and told, or between its own processes"
    own = {'MLOPS_STAGE_RUN', 'MLOPS_SEED', 'MLOPS_SECRETS', 'MLOPS_WORKER', 'MLOPS_TUNE', 'MLOPS_NB', 'MLOPS_INSIDE'}
    read = {v for o in (root/'mlops_nb').glob('*.py') for v in re.findall(r'\bMLOPS_[A-Z_]+\b', o.read_text('utf-8'))}
    assert read - own <= set(known_variables)


# Symbols

@cache
def source_of(module): return (root/'mlops_nb'/f'{module}.py').read_text('utf-8')


modules = sorted(o.stem for o in (root/'mlops_nb').glob('*.py') if '\n__all__ = ' in o.read_text('utf-8'))


@pytest.mark.parametrize('module', modules)
def test_each_exported_symbol_is_documented(module):
    """A function or a class has a docstring; a value stands in a cell that says what it is, in a comment or in the prose above it.
    (Methods are told with their class. Many are properties of a line, whose name says all.)"""
    tree = ast.parse(source_of(module))
    exported = next(ast.literal_eval(o.value) for o in tree.body if isinstance(o, ast.Assign) and getattr(o.targets[0], 'id', '') == '__all__')
    inner = [x for o in tree.body if isinstance(o, (ast.If, ast.Try)) for x in o.body]
    defs = {o.name: o for o in [*inner, *tree.body] if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    assert [o for o in exported if o in defs and not ast.get_docstring(defs[o])] == []
    [nb] = [o for o in (nbs/'api').glob('*.ipynb') if re.search(rf'^#\| default_exp {module}$', '\n'.join(cells(o)[1]), re.M)]
    assert '> ' in cells(nb)[0][0], 'a room says in a sentence what it is for'
    kinds = [(o['cell_type'], ''.join(o['source'])) for o in json.loads(nb.read_text('utf-8'))['cells']]
    theirs = {x.asname or x.name for o in tree.body if isinstance(o, ast.ImportFrom) for x in o.names}
    for name in (o for o in exported if o not in defs and o not in theirs):
        [(i, text), *_] = [(i, s) for i, (k, s) in enumerate(kinds) if k == 'code' and '#| export' in s and re.search(rf'^[^#\n]*\b{re.escape(name)}\b[^=\n(]*=', s, re.M)]
        assert '# ' in re.sub(r'^#\|.*', '', text, flags=re.M) or '"' in text or any(k == 'markdown' for k, _ in kinds[max(0, i-2):i]), f'{nb.name}: {name}'


# Command lines

programs = r'(?:\$ )?!?(?:\.venv/bin/)?mlops-nb\b'


def without_brackets(text):
    "A line of help: what may be left out is there"
    return re.sub(r'[\[\]]', ' ', text) if re.search(r'\[-|\[[A-Z]+\]', text) else text


def words_of(line):
    "What follows `mlops-nb`, as a shell would split it; what is piped, redirected or said beside it isn't of it"
    line = re.sub(r'\{[^{}]*\}', 'X', line) if line.startswith('!') else line
    lexer = shlex.shlex(without_brackets(re.sub(rf'^\s*{programs}', '', line)), posix=True, punctuation_chars='|;&>')
    lexer.whitespace_split, lexer.commenters = True, '#'
    found = []
    for o in lexer:
        if set(o) <= set('|;&>'): break
        found.append(o)
    return found


def lines_of(text):
    "The command lines in fenced blocks of a page, or of a code cell"
    text = re.sub(r'\\\n\s*', ' ', text)
    for line in text.split('\n'):
        if m := re.match(rf'^(?:[*/\d ]+ cd \S+ && |echo .*\| )?({programs}.*)$', line.strip()): yield m[1]


def commands_of(path):
    "(command line, does it say all that is needed?)"
    texts, codes = cells(path)
    for text in texts:
        blocks = re.findall(r'(?ms)^ *(?:```|~~~)[^\n]*\n(.*?)^ *(?:```|~~~)', text)
        for o in blocks: yield from ((line, True) for line in lines_of(o))
        plain = re.sub(r'(?ms)^ *(?:```|~~~)[^\n]*\n(.*?)^ *(?:```|~~~)', '', text)
        for row in plain.split('\n'):
            spans = re.findall(r'(?<!`)`([^`\n]+)`(?!`)', row)
            yield from ((o, False) for o in spans if re.match(programs, o) and o != 'mlops-nb')
            first = row.split('|')[1] if row.startswith('| `mlops-nb') else ''
            yield from ((f'mlops-nb {o}', False) for o in re.findall(r'`([^`]+)`', first) if o.split()[0] in get_command(app).commands)
    for o in codes: yield from ((line, True) for line in lines_of(o) if line.startswith('!'))


def refusal(words, whole=True):
    "Why the command line is refused; '' if it isn't. Nothing is executed"
    words = ['1' if o == 'N' else o for o in words]
    if '…' in words: return min((refusal([x for o in words if (x := o.replace('…', put))], whole) for put in ('', 'X')), key=len) # it stands for a value, or for more
    try:
        command, name, ctx = get_command(app), 'mlops-nb', None
        while True:
            ctx = command.make_context(name, words, parent=ctx)
            if not hasattr(command, 'commands'): return ''
            words = [*ctx._protected_args, *ctx.args] if hasattr(ctx, '_protected_args') else ctx.args
            name, command, words = command.resolve_command(ctx, words)
    except Exception as e:
        if type(e).__name__ == 'Exit' or not whole and type(e).__name__ in ('MissingParameter', 'NoArgsIsHelpError'): return ''
        return f'{type(e).__name__}: {e}'


@pytest.mark.parametrize('line, said', [
    ('mlops-nb run flights -p a=1 --each month=1..12', ''),
    ('$ .venv/bin/mlops-nb plan PIPELINE [-p k=v] --json | jq .  # which', ''),
    ('mlops-nb schema infer FILE', ''),
    ('mlops-nb run flights --jobs many', 'BadParameter'),
    ('mlops-nb run flights --eech a=1', 'NoSuchOption'),
    ('mlops-nb fly', 'No such command'),
    ('mlops-nb predict flights', 'MissingParameter')])
def test_a_wrong_command_line_is_found(line, said):
    assert said in refusal(words_of(line)) and bool(said) == bool(refusal(words_of(line)))


@pytest.mark.parametrize('path', [o for o in prose if any(commands_of(o))], ids=lambda o: o.relative_to(root).as_posix())
def test_each_command_line_that_is_shown_is_one(path):
    wrong = {line: why for line, whole in commands_of(path) if (why := refusal(words_of(line), whole))}
    assert not wrong, '\n'.join(f'{k}\n    {v}' for k, v in wrong.items())


def test_the_pages_show_command_lines():
    assert sum(1 for o in shown for _ in commands_of(o)) > 100


def test_each_command_that_a_message_names_is_one():
    "`→ mlops-nb promote …` in an error names a command that there is"
    known = get_command(app).commands
    for o in (root/'mlops_nb').glob('*.py'):
        for name in re.findall(r'mlops-nb ([a-z]+)', o.read_text('utf-8')): assert name in known, f'{o.name}: mlops-nb {name}'


# Links

living = re.compile(r'(runs|models|studies|lineage|year)/|pipelines/\w+/index\.md$|changelog')


def slugs(text):
    "The anchors that the headings of a page have"
    return {re.sub(r'[^\w\- ]', '', o.lower()).strip().replace(' ', '-') for o in re.findall(r'(?m)^#+ (.+)$', text)}


def broken(path):
    "The links of a page that lead nowhere"
    for text in cells(path)[0]:
        text = re.sub(r'(?ms)^ *(?:```|~~~)[^\n]*\n(.*?)^ *(?:```|~~~)|`[^`\n]*`', '', text)
        for link in re.findall(r'\]\(<?([^)\s>]+)>?\)', text):
            if re.match(r'[a-z]+:', link): continue
            to, _, anchor = link.partition('#')
            dest = (path.parent/to).resolve() if to else path
            name = dest.relative_to(nbs).as_posix() if dest.is_relative_to(nbs) else ''
            if name in reference: ok = not anchor or anchor in slugs(reference[name])
            elif living.match(name): ok = True
            else: ok = dest.exists() and (not anchor or anchor in slugs('\n'.join(cells(dest)[0])) or re.search(rf'\b(def|class) {anchor}\b|^{anchor}\s*=', '\n'.join(cells(dest)[1]), re.M))
            if not ok: yield link


@pytest.mark.parametrize('path', prose, ids=lambda o: o.relative_to(root).as_posix())
def test_each_link_leads_somewhere(path):
    assert list(broken(path)) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path/'x.md').write_text('[a](y.md) [b](#none) [c](https://example.com) `[d](z.md)`')
    assert list(broken(tmp_path/'x.md')) == ['y.md', '#none']


# What is shown really works

def inis_of(path):
    "The settings that a page shows: blocks of sections"
    for text in cells(path)[0]: yield from (o for o in re.findall(r'(?ms)^ *(?:```|~~~)[^\n]*\n(.*?)^ *(?:```|~~~)', text) if re.match(r'\[(DEFAULT|secrets|trigger:\w+|prod)\]', o))


@pytest.mark.parametrize('path', [o for o in [*shown, *prose] if any(inis_of(o))], ids=lambda o: o.relative_to(root).as_posix())
def test_settings_that_are_shown_are_accepted(path, tmp_path, monkeypatch):
    for o in ('PG_PASSWORD', 'API_TOKEN', 'TIMETABLE_TOKEN', 'FLIGHTS_TOKEN', 'ALERT_URL'): monkeypatch.setenv(o, 'a-text-of-some-length')
    for i, text in enumerate(inis_of(path)):
        home = tmp_path/str(i)
        for o in ('flights', 'starter', 'arrivals'): (home/'nbs'/'pipelines'/o).mkdir(parents=True)
        for o in ('flights', 'starter', 'arrivals'): (home/'nbs'/'pipelines'/o/'01_a.ipynb').write_text('{}')
        (home/'pyproject.toml').write_text('[tool.nbdev]\nnbs_path = "nbs"\n')
        (home/'settings.ini').write_text(text)
        triggers_of(load_settings(home, 'prod' if '[prod]' in text else None))


@pytest.fixture(scope='module')
def starter(tmp_path_factory):
    "A clean copy of the starter pipeline, as somebody has it who begins"
    p = Project(tmp_path_factory.mktemp('docs')/'project', '[DEFAULT]\n[trigger:monday]\non = schedule\nschedule = 0 6 * * mon\nrun = starter\n', pipeline='starter')
    for o in (nbs/'pipelines'/'starter').glob('*.ipynb'): shutil.copy(o, p.folder)
    yield p
    p.put_away()


def test_the_commands_of_the_readme_run(starter):
    "The table of README, command by command, upon a pipeline that ran twice; those that serve, train for long or need a model have tests of their own"
    elsewhere = set('new tune study ui track register models card promote rollback audit serve predict export labels monitor replay docs'.split())
    typed = ['run starter --jobs 2', 'run starter -p alpha=100', 'run starter --each alpha=1,100', 'run starter --only train --force', 'plan starter', 'runs', 'show last', 'logs last', 'diff last~1 last', 'diff',
        'lineage train.model', 'lineage train.model --svg x.svg --openlineage x.jsonl', 'reproduce last', 'studies', 'triggers', 'fire monday', 'watch --dry-run', 'watch --once', 'triggers monday', 'alerts',
        'schema infer nbs/pipelines/starter/data/predictions.parquet', 'gc --keep 5', 'gc --pin last', 'doctor']
    for o in typed:
        done = starter.inside(*o.split())
        assert done.code == 0, (o, done)
    of_readme = {w[0] for line, _ in commands_of(root/'README.md') if (w := words_of(line))}
    assert of_readme == {o.split()[0] for o in typed} | of_readme & elsewhere, 'README names a command that is tried nowhere'


def test_listings_are_json_too(starter):
    if not starter.state.exists(): starter.did()
    for o in ('plan starter', 'runs', 'show', 'logs', 'lineage train.model', 'studies', 'triggers', 'alerts', 'gc', 'doctor'): assert starter.inside(*o.split(), '--json').json
