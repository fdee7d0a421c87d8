"""The report of a study and the dashboard of studies, over a study of real runs"""
import json, re, signal, subprocess, sys, urllib.error, urllib.request
from html import unescape
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from mlops_nb.report import outside_requests, report_notebook, study_report
from mlops_nb.study import load_study, open_storage
from mlops_nb.tune import Search, tune
from scratch import Project, code, notebook

tuned = '''#| tune
from optuna.distributions import *
space = dict(x=FloatDistribution(-4, 4), depth=IntDistribution(1, 3), kind=CategoricalDistribution(['<b>', 'plain']))'''
fit = '''if x < -3.5: raise ValueError('x is <script>alert(1)</script>')
loss = (x-2)**2 + depth/10
for i in range(4): report(loss + 1/(1+i), i)
record(loss=loss, size_mb=depth)'''


@pytest.fixture(scope='module')
def studied(tmp_path_factory):
    "A project with a study of real runs, called as no file can be"
    p = Project(tmp_path_factory.mktemp('studied')/'project')
    p.stage('01_fit', 'x: float = -2.0\ndepth: int = 2\nkind: str = "plain"', tuned, fit)
    tune(p.settings, 'demo/fit', 'loss', trials=14, jobs=2, study='churn/v2 <i>', constraints=['size_mb<=2'], first=[dict(x=-3.9, depth=1, kind='plain')], search=Search('random', pruner_options=dict(n_startup_trials=3)))
    yield p
    p.put_away()


def pictures(nb):
    return sum('image/png' in o.get('data', {}) for c in json.loads(nb.read_text())['cells'] for o in c.get('outputs', []))


def test_a_report_is_a_notebook_and_a_page_that_loads_nothing(studied):
    nb, html = study_report(studied.settings, 'churn/v2 <i>')
    assert {nb.parent, html.parent} == {studied.state/'reports'/'studies'} and nb.stem == html.stem and re.fullmatch(r'[\w-]+', nb.stem)
    said = html.read_text()
    assert outside_requests(said) == [] and not re.search(r'(src|href)\s*=\s*["\']?https?://', said) and '<script' not in said
    assert 'x is &lt;script&gt;' in said and '<i>' not in said and 'class="input' not in said
    for o in ('In short', 'Progress', 'What matters', 'Parameters together', 'Bounds', 'Given up early', 'What it cost', 'What failed', 'The best trials'): assert f'>{o}<' in said, o
    assert "mlops-nb run demo --trial 'churn/v2 <i>/BEST'" in unescape(said)
    assert pictures(nb) == said.count('<img') >= 7 and 'Traceback' not in nb.read_text()
    assert load_study(open_storage(studied.settings.studies), 'churn/v2 <i>').best_trial.user_attrs['run'] in said
    assert {o.name for o in nb.parent.iterdir()} == {nb.name, html.name}


def choice(t): # conditional, categorical with None, log, int
    kind = t.suggest_categorical('kind', ['a', None, True, 3])
    return t.suggest_float('rate', 1e-5, 1, log=True) + (t.suggest_int('depth', 1, 9, step=2) if kind == 'a' else 0)
def fails(t):
    t.suggest_float('x', 0, 1)
    raise ValueError
def two(t):
    t.set_constraint('size<=1', t.suggest_float('x', 0, 1)-.5)
    return t.params['x'], 1-t.params['x'] + t.suggest_int('n', 1, 3)
def infinite(t): return float('inf') if t.number % 2 else t.suggest_float('x', 0, 1)
def constant(t): return 1.
def same(t): return 0*t.suggest_float('x', 0, 1)
def in_steps(t):
    import optuna
    for i in (0, 10, 100):
        t.report(t.suggest_float('x', 0, 1) if i != 10 else float('nan'), i)
        if t.number > 3 and i == 10: raise optuna.TrialPruned
    return t.params['x']


@pytest.mark.parametrize('name,objective,trials,goals', [('none', choice, 0, 1), ('one', choice, 1, 1), ('two', choice, 2, 1), ('many', choice, 500, 1), ('failed', fails, 3, 1), ('goals', two, 30, 2), ('goals0', two, 0, 2),
    ('infinite', infinite, 12, 1), ('constant', constant, 5, 1), ('same', same, 20, 1), ('steps', in_steps, 20, 1)])
def test_any_study_can_be_told(project, name, objective, trials, goals):
    import optuna
    s = optuna.create_study(storage=open_storage(project.settings.studies), study_name=name, directions=['minimize']*goals, sampler=optuna.samplers.RandomSampler(seed=1))
    s.optimize(objective, trials, catch=ValueError)
    nb, html = study_report(project.settings, name)
    said = html.read_text()
    assert 'Traceback' not in said and 'Warning' not in said and outside_requests(said) == []
    assert ('The best trials' in said) == (name not in ('none', 'failed', 'goals0')) and ('What is traded for what' in said) == (name == 'goals')
    assert not [o for c in json.loads(nb.read_text())['cells'] for o in c.get('outputs', []) if o.get('name') == 'stderr']


def test_a_password_of_the_storage_is_in_no_file(project):
    import mlops_nb.report as report
    url = f'sqlite:///{project.root}/studies.db?timeout=9&password=open-sesame-7'
    settings = project.settings
    settings.studies = url
    assert 'open-sesame-7' not in json.dumps(report.prepared(settings, 's')) and report.secrets_of(url)['storage'] == url
    note = project.root/'nbs'/'reports'/'study.ipynb'
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps(notebook(code('storage: str = ""\nstudy: str = ""', tags=['parameters']), 'print(storage)\nraise ValueError(storage)')))
    with pytest.raises(report.MlopsError) as e: report.execute_report(settings, 's', project.root/'s.ipynb')
    assert 'open-sesame-7' not in (project.root/'s.ipynb').read_text() + str(e.value) and '[secret storage]' in (project.root/'s.ipynb').read_text()


def test_what_is_missing_is_named_before_anything_runs(project):
    code = '''
import sys, importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == "nbconvert" else found(name, *args)
from mlops_nb.config import load_settings
from mlops_nb.core import ConfigError
from mlops_nb.report import study_report
try: study_report(load_settings(sys.argv[1]), 'x')
except ConfigError as e: print(e)
sys.modules['optuna_dashboard'] = None
from mlops_nb.dashboard import studies_ui
try: studies_ui(load_settings(sys.argv[1]))
except ConfigError as e: print(e)
'''
    said = subprocess.run([sys.executable, '-c', code, str(project.root)], capture_output=True, text=True)
    assert said.stdout.count('pip install "mlops_nb[tune]"') == 2 and 'nbconvert' in said.stdout, said


def serve(root, port=0, host=None):
    "A process that serves the dashboard, and its address"
    code = '''
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from mlops_nb.config import load_settings
from mlops_nb.dashboard import studies_ui
studies_ui(load_settings(sys.argv[1]), port=int(sys.argv[2]), tell=lambda o: print(o, flush=True), **({'host': sys.argv[3]} if sys.argv[3:] else {}))
'''
    p = subprocess.Popen([sys.executable, '-c', code, str(root), str(port), *([host] if host else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return p, p.stdout.readline().split()[-1]


def end(p, sig=signal.SIGINT):
    p.send_signal(sig)
    out, err = p.communicate(timeout=20)
    return p.returncode, err


def status(url, **headers):
    try: return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20).status
    except urllib.error.HTTPError as e: return e.code


def test_the_dashboard_is_for_whoever_has_the_token(studied):
    p, url = serve(studied.root)
    try:
        base, _, token = url.partition('/?token=')
        assert base.startswith('http://127.0.0.1:') and len(token) > 20
        for path in ('/', '/dashboard', '/api/studies', '/api/meta', '/static/bundle.js'): assert status(base + path) == 403, path
        assert status(f'{base}/api/studies?token={token[:-1]}') == 403 and status(f'{base}/api/studies', Cookie='mlops-nb=x') == 403
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        page = browser.open(url, timeout=20)
        assert page.status == 200 and token not in page.url and b'Optuna Dashboard' in page.read()
        names = [o['study_name'] for o in json.load(browser.open(f'{base}/api/studies', timeout=20))['study_summaries']]
        assert names == ['churn/v2 <i>'] and status(f'{base}/api/studies', Authorization=f'token {token}') == 200
        other = urllib.request.Request(f'{base}/api/studies/0', method='DELETE')
        with pytest.raises(urllib.error.HTTPError, match='403'): urllib.request.urlopen(other, timeout=20)
    finally: done = end(p)
    assert done == (0, '')


def test_a_port_that_is_taken_and_an_end_by_sigterm(studied):
    p, url = serve(studied.root)
    port = int(re.search(r':(\d+)/', url)[1])
    q, other = serve(studied.root, port)
    try: assert int(re.search(r':(\d+)/', other)[1]) > port
    finally: assert end(q, signal.SIGTERM) == (0, '') and end(p) == (0, '')


def test_another_address_is_used_only_where_it_is_given(studied):
    p, url = serve(studied.root, host='0.0.0.0')
    try:
        port = re.search(r':(\d+)/', url)[1]
        assert 'not encrypted' in p.stdout.readline() and status(f'http://127.0.0.1:{port}/') == 403
    finally: end(p)


def test_the_notebook_is_the_one_of_this_clone(studied):
    assert report_notebook(studied.settings) == Path(__file__).resolve().parents[1]/'nbs'/'reports'/'study.ipynb'
