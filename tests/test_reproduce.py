"""Runs that are made again from what was recorded: in repositories that moved on, under other users, after kills"""
import json, os, shutil, signal, subprocess

import pytest
from scratch import until

raw = 'raw: In = "raw.csv"\ntable: Out = "data/table.parquet"\nfactor: float = 1.0'
read = 'import pandas as pd\nfrom shop.prices import price', 'df = pd.read_csv(raw)\ndf["price"] = df.x.map(price)*factor\ndf.to_parquet(table)\nrecord(rows=len(df))'
total = 'table: In = "data/table.parquet"\nout: Out = "data/total.json"', 'import pandas as pd, json', 'found = float(pd.read_parquet(table).price.sum())', \
    'for i in range(3): report(found*i, i, "total")\njson.dump(found, open(out, "w"))\nrecord(total=found)'


@pytest.fixture
def shop(project):
    "A project with a library, raw data and two stages, in a repository"
    (project.root/'shop').mkdir()
    write(project, 'shop/__init__.py', '')
    write(project, 'shop/prices.py', 'def price(x): return x*1.2\n')
    write(project, 'nbs/pipelines/demo/raw.csv', 'x\n1\n2\n3\n')
    write(project, '.gitignore', '.mlops\ndata\n')
    project.stage('01_read', raw, *read)
    project.stage('02_total', total[0], *total[1:])
    git(project, 'init', '-q', '.')
    commit(project, 'first')
    return project


def write(project, path, text): (project.root/path).write_text(text)
def git(project, *args): return subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args], cwd=project.root, check=True, capture_output=True, text=True).stdout


def commit(project, message):
    git(project, 'add', '-A')
    git(project, 'commit', '-qm', message)


def shopping(project, *args, **env): return project.cli(*args, PYTHONPATH=str(project.root), **env)


def ok(project, *args, **env):
    done = shopping(project, 'run', 'demo', '--json', *args, **env)
    assert done.code == 0, done
    return done.json


def again(project, *args, code=0, **env):
    done = shopping(project, 'reproduce', *args, '--json', **env)
    assert done.code == code, done
    return done.json


def test_a_run_from_ten_commits_ago(shop):
    "Code, notebooks, data and parameters have all moved on since"
    first = ok(shop, '-p', 'factor=2.0')
    for i in range(10):
        write(shop, 'shop/prices.py', f'def price(x): return x*{i}\n')
        write(shop, 'nbs/pipelines/demo/raw.csv', f'x\n{i}\n')
        if i == 4: shop.stage('02_total', total[0], 'open(out, "w").write("[]")')
        if i == 6: (shop.folder/'01_read.ipynb').unlink(); (shop.folder/'02_total.ipynb').unlink(); shop.stage('01_else', 'out: Out = "data/e.txt"', 'open(out, "w").write("e")')
        if i in (2, 8): ok(shop)
        commit(shop, f'change {i}')
    assert len(git(shop, 'log', '--oneline').splitlines()) == 11
    there = {o.name: o.stat().st_mtime_ns for o in shop.data.iterdir()}
    r = again(shop, first['run'], '--twice', USER='zoe', LOGNAME='zoe', PYTHONHASHSEED='77')
    assert (r['verdict'], r['first'], r['environment']) == ('identical', None, [])
    assert {o['stage']: o['verdict'] for o in r['stages']} == {'01_read': 'identical', '02_total': 'identical'}
    assert {(p['kind'], p['name']) for p in r['stages'][1]['parts']} == {('output', 'out'), ('metric', 'total'), ('reported', 'total')}
    assert {o.name: o.stat().st_mtime_ns for o in shop.data.iterdir()} == there, 'nothing of the project is touched'
    assert not shop.quiet()
    with shop.ledger as ledger: assert ledger.events('reproduced')[-1]['run_id'] == first['run'] and len(ledger.runs()) == 3


def test_tuned_mapped_cached_and_fresh_kernels(shop):
    ok(shop)
    write(shop, 'shop/prices.py', 'def price(x): return x*1.3\n')
    runs = json.loads(shopping(shop, 'run', 'demo', '--each', 'factor=1.5,2.5', '--json').out)['runs']
    for o in runs: assert again(shop, o['run'])['verdict'] == 'identical'
    cached = ok(shop, '-p', 'factor=1.5')
    assert {o['status'] for o in cached['stages']} == {'cached'}
    assert again(shop, cached['run'], '--stage', 'total')['stages'][0]['stage'] == '02_total'
    shop.root.joinpath('settings.ini').write_text('[DEFAULT]\nengine = papermill\nseed = 5\n')
    fresh = ok(shop)
    shop.root.joinpath('settings.ini').write_text('[DEFAULT]\n')
    assert again(shop, fresh['run'], '--twice')['verdict'] == 'identical'


def test_a_stage_taken_from_the_cache_is_made_from_its_older_code(shop):
    "Two stages of one run that need two versions of one file"
    write(shop, 'shop/prices.py', 'def price(x): return x*1.2\ndef unused(): return 1\n')
    ok(shop)
    shop.stage('02_total', total[0], 'from shop.prices import unused', *total[1:-1], total[-1].replace('found)', 'found+unused())'))
    write(shop, 'shop/prices.py', 'def price(x): return x*1.2\ndef unused(): return 2\n')
    r = ok(shop)
    assert {o['stage']: o['status'] for o in r['stages']} == {'01_read': 'cached', '02_total': 'completed'}
    assert again(shop, r['run'])['verdict'] == 'identical'


def test_what_differs_is_named(shop):
    shop.stage('01_read', raw, 'import time', read[0], read[1].replace('*factor', '*factor+time.time()%1000'))
    r = ok(shop)
    found = again(shop, r['run'], '--twice', code=1)
    assert found['verdict'] == 'differs' and found['first']['stage'] == '01_read' and found['first']['part'] == 'output table' and 'column price: 3 of 3 values' in found['first']['what']
    assert {o['stage']: o['verdict'] for o in found['stages']} == {'01_read': 'differs', '02_total': 'identical'}, 'each is judged by the inputs that were recorded'
    [leak] = found['stages'][0]['leaks']
    assert (leak['part'], leak['cause']) == ('output table', 'clock or chance') and 'cell 5 reads the clock (time.time)' in leak['cells']
    shutil.rmtree(found['folder'])


def test_a_set_that_leaks_is_named(shop):
    shop.stage('03_set', 'out: Out = "data/set.txt"', 'open(out, "w").write(" ".join({"ape", "bear", "cat", "dog", "eel", "fox"}))')
    found = again(shop, ok(shop)['run'], '--twice')
    [leak] = [o for s in found['stages'] for o in s['leaks']]
    assert found['verdict'] == 'identical' and (leak['part'], leak['cause'], leak['cells']) == ('output out', 'order of a set', ['cell 3 makes a set'])
    shutil.rmtree(found['folder'])


def test_names_users_and_failures(shop):
    "Inputs of the same content keep their names; what depends on the user is told, also where it just fails"
    for o in 'one', 'two': write(shop, f'nbs/pipelines/demo/{o}.csv', 'same')
    shop.stage('03_names', 'a: In = "one.csv"\nb: In = "two.csv"\nout: Out = "data/names.txt"', 'import os\nopen(out, "w").write(os.path.basename(a)+os.path.basename(b))')
    shop.stage('04_user', 'out: Out = "data/user.txt"', 'import os\nopen(out, "w").write(os.environ["USER"])')
    shop.stage('05_fails', 'out: Out = "data/fails.txt"', 'import os\nassert os.environ["USER"] == "zoe"\nopen(out, "w").write("1")')
    found = again(shop, ok(shop, USER='zoe')['run'], '--twice', USER='zoe')
    assert found['verdict'] == 'identical'
    assert {s['stage']: [(o['part'], o['cause']) for o in s['leaks']] for s in found['stages'] if s['leaks']} == {'04_user': [('output out', 'user name')], '05_fails': [('stage status', 'user name')]}
    shutil.rmtree(found['folder'])


def test_equal_in_values(shop):
    "Another way to write the same table"
    r = ok(shop)
    with shop.ledger as ledger: row = next(o for o in ledger.stage_runs(r['run']) if o['stage'] == '01_read')
    import pandas as pd
    path = shop.store.path(type('A', (), row['outputs']['table'])())
    other = shop.root/'table.parquet'
    pd.read_parquet(path).to_parquet(other, compression='gzip')
    digest = shop.store.put(other).digest
    with shop.ledger as ledger, ledger.db.write() as c:
        t = ledger.t.stage_runs
        c.execute(t.update().where(t.c.id == row['id']).values(outputs={'table': row['outputs']['table'] | dict(digest=digest)}))
    found = again(shop, r['run'])
    assert (found['verdict'], found['first']['what']) == ('equal', 'output table: only how it is written')
    shutil.rmtree(found['folder'])


def test_secrets_come_from_now(shop):
    shop.stage('03_ask', 'token: Secret = ""\nout: Out = "data/ask.txt"', 'open(out, "w").write(str(len(token)))')
    r = ok(shop, TOKEN='hunter22')
    assert again(shop, r['run'], TOKEN='hunter33')['verdict'] == 'identical'
    done = shopping(shop, 'reproduce', r['run'], '--json', TOKEN='hunter4')
    assert done.code == 1 and 'hunter4' not in done.text
    shutil.rmtree(done.json['folder'])


def test_refusals(shop):
    assert 'no run' in shopping(shop, 'reproduce', 'nonsense').text
    shop.stage('02_total', total[0], '1/0')
    failed = shopping(shop, 'run', 'demo', '--json').json
    assert {o['stage']: o['verdict'] for o in again(shop, failed['run'])['stages']} == {'01_read': 'identical'}
    done = shopping(shop, 'reproduce', failed['run'], '--stage', '02_total')
    assert done.code == 2 and 'completed no stage 02_total' in done.err
    full = shop.root/'full'
    full.mkdir(); (full/'x').write_text('')
    done = shopping(shop, 'reproduce', failed['run'], '--folder', str(full))
    assert done.code == 2 and "isn't empty" in done.err
    shutil.rmtree(shop.state/'store'/'objects', onerror=lambda f, p, _: (os.chmod(os.path.dirname(p), 0o700), f(p)))
    done = shopping(shop, 'reproduce', failed['run'])
    assert done.code and 'no longer in the store' in done.err and 'Traceback' not in done.text


def test_interrupted(shop, tmp_path):
    "Ctrl-C leaves no process and no folder"
    ok(shop)
    shop.stage('03_slow', 'out: Out = "data/slow.txt"', 'import time, os\nslow = os.environ.get("SLOW")\nopen(out, "w").write("1")\nif slow: time.sleep(100)')
    ok(shop)
    tmp = tmp_path/'tmp'
    tmp.mkdir()
    p = shop.start('reproduce', 'last', PYTHONPATH=str(shop.root), SLOW='1', TMPDIR=str(tmp))
    until(lambda: [o for o in tmp.glob('mlops-again-*/try1/project1/.mlops/tmp/*/out/out/slow.txt')] or p.poll() is not None, 60)
    os.killpg(p.pid, signal.SIGINT)
    done = shop.wait(p)
    assert done.code == 130 and not shop.quiet() and not list(tmp.glob('mlops-again-*'))


def test_flights_tuned_and_untuned(shop):
    "Every stage of the example gives the same bytes: in another folder, under another user and another hash seed"
    from test_flights import flights, small
    folder = shop.root/'nbs'/'pipelines'/'flights'
    folder.mkdir()
    for f in flights.glob('*.ipynb'): shutil.copyfile(f, folder/f.name)
    def run(*args):
        done = shop.cli('run', 'flights', '--json', *small, *args)
        assert done.code == 0, done
        return done.json['run']
    untuned = run('-p', 'iterations=40', '-p', 'learning_rate=0.1', '-p', 'leaves=31', '-p', 'min_leaf=20')
    tuned = run('-p', 'iterations=40')
    for o in (untuned, tuned):
        r = again(shop, o, '--twice', USER='zoe', LOGNAME='zoe')
        assert (r['verdict'], len(r['stages']), [s for s in r['stages'] if s['leaks']]) == ('identical', 6, []), r
