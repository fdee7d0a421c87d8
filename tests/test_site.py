"""The site of a new project, and of this one, in a real browser"""
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

for o in ('sphinx', 'furo', 'myst_nb'): pytest.importorskip(o, reason='what makes the site is not installed: pip install "mlops_nb[docs]"')
from mlops_nb.site import dead_ends

root = Path(__file__).resolve().parents[1]
env = {k: v for k, v in os.environ.items() if not k.startswith('MLOPS_')} | dict(MLOPS_MLFLOW='none', PYTHONPATH=os.pathsep.join(filter(None, ['.', str(root), os.environ.get('PYTHONPATH')])), COLUMNS='120')


def cli(folder, *args, code=0, **more):
    "What `mlops-nb ARGS` prints"
    done = subprocess.run([sys.executable, '-m', 'mlops_nb.cli', *args], cwd=folder, env=env | more, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


lacking = """import importlib.abc, sys
class Lacking(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ('pandera', 'mlflow', 'optuna', 'fastapi', 'skops', 'onnxruntime', 'skl2onnx', 'alembic', 'matplotlib'): raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Lacking())
"""


@pytest.fixture(scope='module')
def town(tmp_path_factory):
    "A project as `mlops-nb new` makes it, whose pipeline has run, with a page of Markdown; and its site"
    folder = tmp_path_factory.mktemp('site')/'town'
    cli(folder.parent, 'new', 'town', '--library', str(root))
    (folder/'nbs'/'howto').mkdir()
    (folder/'nbs'/'howto'/'pay.md').write_text('# Pay\n\n> How to pay\n\nA table that is wider than a phone:\n\n|' + '|'.join(f' column {i} ' for i in range(20)) + '|\n' + '|---'*20 + '|\n' + '| value '*20 + '|\n\nSee [the stage](../pipelines/starter/03_train.ipynb).\n')
    cli(folder, 'run', 'starter', '--json')
    return folder, Path(json.loads(cli(folder, 'docs', '--json'))['page']).parent


@pytest.fixture(scope='module')
def browser():
    "Chromium, which is the system's"
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install "mlops_nb[clients]"')
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not program: pytest.skip('there is no Chromium: apt-get install chromium')
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=program, args=['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync'])
        yield b
        b.close()


@pytest.fixture
def look(browser, town):
    "Opens a page of the site from its folder; what it asked the network for, and what went wrong on it, has to be nothing"
    contexts, wrong = [], []
    def look(page, width=1200, scheme='light'):
        context = browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.on('request', lambda r: r.url.startswith(('file:', 'data:')) or wrong.append(r.url))
        tab.on('pageerror', lambda e: wrong.append(str(e)))
        tab.on('console', lambda m: m.type == 'error' and wrong.append(m.text))
        tab.goto(f'file://{town[1]}/{page}')
        return tab
    yield look
    for o in contexts: o.close()
    assert not wrong


def test_what_it_has(town):
    folder, site = town
    pages = {o.relative_to(site).as_posix() for o in site.rglob('*.html')}
    assert pages >= {'index.html', 'howto/pay.html', 'pipelines/starter/03_train.html', 'pipelines/starter/index.html', 'runs/index.html', 'reference/commands.html', 'reference/settings.html', 'changelog.html'}
    assert not dead_ends(site)
    train = (site/'pipelines/starter/03_train.html').read_text()
    assert 'Outputs of run <a href="../../runs/' in train and str(folder) not in train, 'which run, and no path of this machine'
    assert 'pipelines/starter/03_train.html.md' in (site/'llms.txt').read_text() and (site/'pipelines/starter/03_train.html.md').is_file()


def test_again_gives_the_same_and_wrong_changes_nothing(town, tmp_path):
    folder, site = town
    def files(): return {o.relative_to(site).as_posix(): o.read_bytes() for o in site.rglob('*') if o.suffix in ('.html', '.md', '.txt') and o.stem not in ('genindex', 'search')}
    before = files()
    bare = tmp_path/'sitecustomize.py' # a new project has no other extras
    bare.write_text(lacking)
    cli(folder, 'docs', PYTHONPATH=f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}")
    assert files() == before
    wrong = folder/'nbs'/'howto'/'wrong.md'
    wrong.write_text('# Wrong\n\n[nowhere](nowhere.md)\n')
    assert "the site isn't whole" in (said := cli(folder, 'docs', code=1)) and 'howto/wrong.md:3' in said
    wrong.unlink()
    assert files() == before
    assert 'is no site' in cli(folder, 'docs', '--out', 'nbs', code=2) and (folder/'nbs'/'index.ipynb').exists()


def test_from_page_to_page(look):
    tab = look('index.html')
    tab.click('.sidebar-tree >> text=Pay')
    assert tab.url.endswith('/howto/pay.html')
    tab.click('article >> text=the stage')
    assert tab.url.endswith('/pipelines/starter/03_train.html') and tab.locator('h1').inner_text().startswith('Train')
    tab.click('.related-pages .next-page')
    assert tab.url.endswith('/pipelines/starter/04_evaluate.html')
    tab.click('.related-pages .prev-page')
    assert tab.url.endswith('/pipelines/starter/03_train.html')
    tab.wait_for_load_state()
    tab.keyboard.press('ArrowRight')
    tab.wait_for_url('**/04_evaluate.html')
    lab = tab.locator('a.lab')
    assert lab.get_attribute('href').endswith('/lab/tree/nbs/pipelines/starter/04_evaluate.ipynb')


@pytest.mark.parametrize('page', ['index.html', 'pipelines/starter/index.html'])
def test_the_graph_leads_to_its_stages(look, page):
    tab = look(page)
    tab.locator('svg.flow a', has_text='02_prepare').first.click()
    tab.wait_for_url('**/pipelines/starter/02_prepare.html')


def test_search_needs_no_server(look):
    tab = look('index.html')
    tab.keyboard.press('/')
    tab.keyboard.type('baseline')
    tab.keyboard.press('Enter')
    tab.wait_for_url('**/search.html?q=baseline*')
    found = tab.locator('ul.search a', has_text='Evaluate').first
    found.wait_for()
    found.click()
    tab.wait_for_url('**/04_evaluate.html*')


def test_dark_and_light(look):
    def paper(tab): return sum(map(int, re.findall(r'\d+', tab.evaluate('getComputedStyle(document.body).backgroundColor'))[:3]))
    dark, light = look('howto/pay.html', scheme='dark'), look('howto/pay.html')
    assert paper(dark) < 150 and paper(light) > 700
    light.locator('.theme-toggle:visible').first.click() # from `auto` to the other one
    assert paper(light) < 150
    light.reload()
    assert paper(light) < 150, 'it is remembered'


@pytest.mark.parametrize('page', ['index.html', 'howto/pay.html', 'pipelines/starter/index.html', 'pipelines/starter/04_evaluate.html', 'runs/index.html', 'reference/commands.html'])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_on_a_phone_and_for_everyone(look, page, scheme):
    "The page itself doesn't scroll sideways, and axe finds no serious fault"
    axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason='axe is not installed: pip install "mlops_nb[clients]"')
    tab = look(page, width=390, scheme=scheme)
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390
    faults = [o for o in axe.Axe().run(tab, options=dict(preload=False)).response['violations'] if o['impact'] in ('serious', 'critical')]
    assert not [(o['id'], [n['html'][:200] for n in o['nodes'][:3]]) for o in faults]


def test_code_can_be_copied(look):
    tab = look('index.html')
    assert tab.locator('button.copybtn').count() >= 2


def test_this_project(tmp_path):
    "Each link and each name of this project's own pages leads somewhere; Sphinx warns of nothing"
    page = Path(json.loads(cli(root, 'docs', '--json', '--out', str(tmp_path/'site')))['page'])
    assert len(list(page.parent.glob('api/*.html'))) > 80
    assert 'id="save_model"' in (page.parent/'api/14_package.html').read_text()
    assert re.search(r'href="../api/14_package.html#save[_-]model"', (page.parent/'howto/own-model.html').read_text()), 'a name in prose is a link to it'
