"""Triggers: an event fires its run once, whatever is killed, however many watch"""
import json, os, random, secrets, signal, subprocess, sys, urllib.error, urllib.request
from collections import Counter
from datetime import datetime, timedelta, timezone

import pytest

from mlops_nb.alert import raise_alert
from mlops_nb.fire import at_trigger, fire, firing_of_run, firings, new_firing, write_firing
from mlops_nb.plan import Workspace
from mlops_nb.process import as_owner, this_process
from mlops_nb.trigger import Event, find_trigger
from mlops_nb.watch import watch_once
from scratch import Project, mark

triggers = '''[DEFAULT]
mlflow = none
{more}
[trigger:files]
on = data
data = drop/*.txt
settle = 0
run = demo
params = files={{files}}
[trigger:call]
on = demand
run = demo
'''
first = 'files: str = ""\nx: Out = "data/x.txt"', 'import time; time.sleep(.2); open(x, "w").write(files)'
second = 'x: In = "data/x.txt"\ny: Out = "data/y.txt"\nn: int = 0', 'import time; time.sleep(.2); open(y, "w").write(open(x).read()*n); record(n=n)'


def watched(tmp_path, more=''):
    "A project with two triggers"
    p = Project(tmp_path/'p', triggers.format(more=more))
    p.stage('01_first', *first)
    p.stage('02_second', *second)
    (p.root/'drop').mkdir()
    return p


@pytest.fixture
def put_away():
    "Projects whose processes are ended"
    found = []
    yield found.append
    for p in found: p.put_away()


def drop(p, name):
    "A file comes, at once"
    (p.root/f'drop/.{name}').write_text(name)
    os.rename(p.root/f'drop/.{name}', p.root/f'drop/{name}.txt')


def completed(p):
    "{firing: how many completed runs}, and all firings"
    ws = Workspace(p.settings)
    runs = [o for o in ws.ledger.runs(limit=10**6) if o['status'] == 'completed']
    rows = firings(ws)
    found = Counter(firing_of_run(ws, o)['id'] for o in runs)
    ws.ledger.close()
    return found, rows


def each_once(p):
    "Each firing has one completed run, which it names, and no other run is left open"
    found, rows = completed(p)
    assert {o['status'] for o in rows} == {'completed'}, rows
    assert dict(found) == {o['id']: 1 for o in rows}
    with p.ledger as ledger:
        for o in rows: assert ledger.run(o['run_id'])['status'] == 'completed'
        assert {o['status'] for o in ledger.runs(limit=10**6)} <= {'completed', 'stopped'}
    return rows


def test_a_watcher_is_killed_again_and_again_while_events_come(tmp_path, put_away):
    p, chance = watched(tmp_path), random.Random(7)
    put_away(p)
    for i in range(10):
        w = p.start('watch', '--every', '0.1s')
        drop(p, f'f{i}')
        fire(p.settings, 'call', dict(n=i), f'c{i}')
        w.poll() is None and w.stdout.readline() # it watches
        try: w.wait(chance.uniform(.1, 2))
        except subprocess.TimeoutExpired: pass
        assert w.poll() is None
        w.send_signal(signal.SIGKILL)
        w.communicate()
    last = p.cli('watch', '--once')
    assert last.code == 0, last
    rows = each_once(p)
    assert {o['event'] for o in rows if o['trigger'] == 'call'} == {f'call:c{i}' for i in range(10)}
    assert {f for o in rows if o['trigger'] == 'files' for f in o['data']['files'].split(',')} == {f'drop/f{i}.txt' for i in range(10)}
    assert p.cli('watch', '--once').out == 'Nothing fired, and nothing waited.\n'
    assert p.quiet(60) == []


@pytest.mark.parametrize('kind', ['sqlite', 'postgres'])
def test_two_watch_one_ledger(tmp_path, put_away, kind, request):
    more = '' if kind == 'sqlite' else f"ledger = {request.getfixturevalue('postgres_server').make(f'of_{secrets.token_hex(4)}')}"
    p = watched(tmp_path, more)
    put_away(p)
    both = [p.start('watch', '--every', '0.1s', '--json') for _ in range(2)]
    for i in range(6):
        fire(p.settings, 'call', dict(n=i), f'c{i}')
        drop(p, f'f{i}')
        p.until(lambda: len(completed(p)[0]) > i)
    seen = {f'drop/f{i}.txt' for i in range(6)}
    def done():
        rows = completed(p)[1]
        return {o['status'] for o in rows} == {'completed'} and {f for o in rows for f in (o['data'].get('files') or '').split(',') if f} == seen
    p.until(done, 120)
    for o in both: o.send_signal(signal.SIGTERM)
    ends = [p.wait(o) for o in both]
    assert [o.code for o in ends] == [0, 0], ends
    rows, told = each_once(p), [json.loads(x) for o in ends for x in o.out.splitlines()]
    assert {o['event'] for o in rows if o['trigger'] == 'call'} == {f'call:c{i}' for i in range(6)}
    assert Counter(o['firing'] for o in told if o['what'] == 'completed') == {o['id']: 1 for o in rows}
    assert p.quiet(60) == []


def test_a_watch_that_is_ended_gives_its_firing_back(tmp_path, put_away):
    p = watched(tmp_path)
    put_away(p)
    p.stage('02_second', second[0], 'import time, pathlib\npathlib.Path("begun").write_text("")\nwhile n and not pathlib.Path("go").exists(): time.sleep(.02)\nopen(y, "w").write("y")')
    w = p.start('watch', '--every', '0.1s')
    fire(p.settings, 'call', dict(n=1), 'slow')
    p.until(lambda: (p.folder/'begun').exists())
    w.send_signal(signal.SIGTERM)
    end = p.wait(w)
    assert end.code == 0 and 'stopped; the next watch takes it up' in end.out and end.out.endswith('Ended.\n') and end.err == '', end
    row, = completed(p)[1]
    assert (row['status'], row['owner']) == ('waiting', None)
    (p.folder/'go').write_text('')
    assert p.cli('watch', '--once').code == 0
    row, = each_once(p)
    assert row['attempts'] == 2 and p.rows()[-2]['status'] == 'cached' # the first stage had finished
    assert p.quiet(60) == []


def test_calls_over_http(tmp_path, put_away):
    p = watched(tmp_path)
    put_away(p)
    token = 'a token of nobody'.replace(' ', '-')
    w = p.start('watch', '--every', '0.2s', '--port', '0', MLOPS_TOKEN=token)
    url = w.stdout.readline().split()[-1]

    def ask(path, body=None, auth=f'Bearer {token}'):
        req = urllib.request.Request(url+path, body, {'Authorization': auth} if auth else {})
        try:
            with urllib.request.urlopen(req) as r: return r.status, json.load(r)
        except urllib.error.HTTPError as e:
            with e: return e.code, json.load(e)
    assert ask('/health', auth='') == (200, dict(status='lives'))
    for auth in ('', 'Bearer wrong', f'Basic {token}'): assert ask('/fire/call', b'{}', auth)[0] == 401
    status, told = ask('/fire/call', b'{"params": {"n": 3}, "id": "three"}')
    assert status == 202 and ask('/fire/call', b'{"params": {"n": 3}, "id": "three"}')[1]['firing'] == told['firing']
    assert [ask(o, b'{}')[0] for o in ('/fire/cal', '/fire/call/')] == [404, 404]
    assert ask('/fire/call', b'{"params": {"m": 3}}')[0] == 422 and ask('/fire/call', b'{"params": {"n": 4}, "id": "three"}')[0] == 409
    p.until(lambda: [o['status'] for o in completed(p)[1]] == ['completed'])
    last = next(o for o in ask('/triggers')[1]['triggers'] if o['name'] == 'call')['last']
    assert (last['firing'], last['outcome']) == (told['firing'], 'demo has run')
    w.send_signal(signal.SIGINT)
    end = p.wait(w)
    assert end.code == 0 and token not in end.text, end
    each_once(p)
    assert p.rows()[-1]['metrics'] == {'n': 3} and token.encode() not in (p.state/'ledger.db').read_bytes()


def test_an_address_for_others_needs_a_chosen_token(tmp_path):
    p = watched(tmp_path)
    done = p.inside('watch', '--port', '0', '--host', '0.0.0.0')
    assert done.code == 2 and 'set MLOPS_TOKEN' in done.err


def test_what_was_missed_while_nobody_watched(tmp_path):
    now = datetime.now(timezone.utc)
    one = now - timedelta(minutes=30)
    section = '[trigger:{name}]\non = schedule\nschedule = {one:%M} * * * *\nrun = demo\nmissed = {name}\n'
    p = Project(tmp_path/'p', '[DEFAULT]\nmlflow = none\n' + ''.join(section.format(name=o, one=one) for o in ('once', 'all', 'skip')))
    p.stage('01_first', *first)
    assert watch_once(p.settings, now - timedelta(hours=3)) == []
    assert p.inside('watch', '--once').code == 0
    told = {o['name']: p.inside('triggers', o['name'], '--json').json['firings'] for o in p.inside('triggers', '--json').json['triggers']}
    assert {k: [o['status'] for o in v] for k, v in told.items()} == dict(once=['completed'], all=['completed']*3, skip=['missed'])
    assert told['once'][0]['data']['missed'] == 2 and '2 earlier ones were missed' in told['once'][0]['why'] and 'missed = skip' in told['skip'][0]['why']
    assert p.inside('watch', '--once').out == 'Nothing fired, and nothing waited.\n'


def test_a_dry_run_and_the_listings(tmp_path):
    p = watched(tmp_path)
    drop(p, 'a')
    said = p.inside('watch', '--dry-run').out
    assert 'would run: 1 new or changed file: drop/a.txt' in said
    ws = Workspace(p.settings)
    assert firings(ws) == [] and ws.ledger.state_of('files') is None
    assert p.inside('fire', 'call', '-p', 'n=2', '--id', 'mine', '--json').json['status'] == 'waiting'
    assert [o['what'] for o in p.inside('watch', '--dry-run', '--json').json['triggers']] == ['would run', 'would run']
    done = p.inside('fire', 'call', '-p', 'n=2', '--id', 'mine', '--wait')
    assert done.code == 0 and 'demo has run' in done.out
    assert 'drop/a.txt' not in p.inside('triggers', 'call').out and 'demo has run' in p.inside('triggers').out
    row = firings(ws, 'call')[0]
    assert f"firing {row['id']}" in ws.ledger.run(row['run_id'])['command']
    assert [o['data']['firing'] for o in ws.ledger.events('trigger fired')] == [row['id']]
    ws.ledger.close()


@pytest.mark.parametrize('line, said', [
    ('shedule = @daily', 'did you mean schedule?'), ('schedule = 61 * * * *', "'61' is no minute"), ('cooldown = soon', 'no span of time'), ('run = dmeo', 'did you mean demo?'),
    ('params = day={dya}', 'did you mean day?'), ('zone = Mars', 'is no time zone'), ('model = flights', 'a trigger on schedule has no model')])
def test_a_misspelt_trigger_is_refused(tmp_path, line, said):
    p = watched(tmp_path)
    keys = dict(on='schedule', schedule='@daily', run='demo')
    keys.update([line.split(' = ', 1)])
    p.root.joinpath('settings.ini').write_text('[DEFAULT]\nmlflow = none\n[trigger:x]\n' + ''.join(f'{k} = {v}\n' for k, v in keys.items()))
    for command in (['watch', '--once'], ['watch', '--dry-run'], ['triggers']):
        done = p.inside(*command)
        assert done.code == 2 and said in done.err, done
    assert said in p.inside('doctor', '--json').out


def test_one_broken_trigger_holds_up_nobody(tmp_path):
    p = watched(tmp_path, '[trigger:rows]\non = data\nquery = select max(id) from rows\ndatabase = postgresql+psycopg://me:open-sesame@127.0.0.1:1/nowhere\nrun = demo\n')
    drop(p, 'a')
    done = p.inside('watch', '--once')
    assert done.code == 1 and 'rows' in done.out and "can't be asked" in done.out and 'open-sesame' not in done.text
    assert [(o['trigger'], o['status']) for o in completed(p)[1]] == [('files', 'completed')]


library = '''import numpy as np
def predict(model, rows): return model.predict(rows[['x']])
'''
train = '''import numpy as np, pandas as pd
from sklearn.linear_model import LinearRegression
from mlops_nb.package import save_model
x = np.linspace(0, 1, 50)
rows = pd.DataFrame(dict(x=x))
fitted = LinearRegression().fit(rows, 2*x + bias)
save_model(model, fitted, 'judging:predict', rows.head(3), reference=rows.assign(y=2*x), outcome='y', purpose='Doubles.', limits='None.')
record(bias=bias)'''
compare = '''#| gate Good enough
from mlops_nb.package import load_package
p = load_package(model)
error = ((p.predict(p.reference) - p.reference.y)**2).mean()
assert error < 1, f"{error:.2f}"'''


def promoting(tmp_path):
    "A project whose trigger promotes, and one that takes back"
    pytest.importorskip('mlflow')
    p = Project(tmp_path/'p', '[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\n[trigger:retrain]\non = demand\nrun = demo\npromote = true\nbackoff = 0\n'
        '[trigger:back]\non = performance\nmodel = demo\nmetric = auc\nrollback = true\nprobation = 60d\ncooldown = 30d\n')
    (p.folder/'judging.py').write_text(library)
    p.stage('01_train', 'from mlops_nb import Model\nbias: float = 0.5\nmodel: Model = "data/model"', train)
    p.stage('02_evaluate', 'model: In = "data/model"\ndone: Out = "data/done.txt"', compare, 'open(done, "w").write("done")')
    return p


def dying(p, where):
    "A watcher that is killed at a certain place"
    head = f'import os, signal\nimport {where.rpartition(".")[0]} as m\nfrom mlops_nb.config import load_settings\nfrom mlops_nb.watch import watch_once\n'
    body = f'def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)\nm.{where.rpartition(".")[2]} = die\nwatch_once(load_settings("."))'
    done = subprocess.run([sys.executable, '-c', head+body], cwd=p.root, capture_output=True, text=True, env={**os.environ, mark: p.mark})
    assert done.returncode == -signal.SIGKILL, done


def outcome(p, id):
    "What came of a call"
    ws = Workspace(p.settings)
    row = next(o for o in firings(ws) if o['event'] == f'call:{id}')
    ws.ledger.close()
    return row['status'], (row['data'].get('outcome') or {}).get('status')


def judgements(p):
    "How often each kind of thing was said of the champion, and how many runs asked gates"
    from mlops_nb.promote import history
    ws = Workspace(p.settings)
    found = Counter(o['kind'] for o in history(ws, 'demo'))
    ws.ledger.close()
    return found


def test_promote_or_keep_and_back(tmp_path):
    from mlops_nb.promote import holder, promote
    p = promoting(tmp_path)
    def call(id, bias): fire(p.settings, 'retrain', dict(bias=bias), id)
    call('good', .5)
    watch_once(p.settings)
    assert outcome(p, 'good') == ('completed', 'promoted') and judgements(p) == dict(promoted=1)
    call('bad', 3)
    watch_once(p.settings)
    assert outcome(p, 'bad') == ('completed', 'refused') and judgements(p) == dict(promoted=1, refused=1)
    call('same', .5)
    watch_once(p.settings)
    assert outcome(p, 'same') == ('completed', 'unchanged')
    # killed between the run and its promotion, then after the move and before the registry hears of it
    call('better', .1)
    dying(p, 'mlops_nb.fire.promote')
    dying(p, 'mlops_nb.promote.bring_in_step')
    assert outcome(p, 'better') == ('running', None)
    watch_once(p.settings)
    assert outcome(p, 'better') == ('completed', 'promoted') and judgements(p) == dict(promoted=2, refused=1)
    ws = Workspace(p.settings)
    h = holder(ws, 'demo')
    assert h['state'] == 'in step'
    # a bad one is forced in, and does worse
    assert promote(p.settings, 'demo', 2, override=True, reason='we know better').status == 'promoted'
    told, now = {}, datetime.now(timezone.utc)
    t = find_trigger(p.settings, 'back')
    with at_trigger(ws, 'back') as (c, _): write_firing(c, ws, new_firing(t, Event('alerts:before', now, {}, 'before'), 'completed', 'before', now)) # a way back knows no cooldown
    for id, version in (('old', h['version']), ('new', 2)):
        told[raise_alert(ws, model='demo', version=version, kind='performance', what='auc', start=f'2013-0{version}-01', end=f'2013-0{version+1}-01')['id']] = id
        watch_once(p.settings)
    back = [o for o in firings(ws, 'back') if o['event'] != 'alerts:before']
    assert {told[o['data']['alerts'][0]]: o['status'] for o in back} == dict(old='skipped', new='completed'), back
    assert holder(ws, 'demo')['version'] == h['version'] and judgements(p)['rolled_back'] == 1
    event, = ws.ledger.events('rolled_back')
    assert event['data']['firing'] in event['data']['reason'] and [told[o] for o in event['data']['alerts']] == ['new']
    # where the gates have spoken in the same firing, that is no rollback: killed after its run, it says what it had said
    from mlops_nb.fire import ruling
    ws.ledger.event('refused', name='demo', why='refused', reason=f"auc (trigger back, firing {back[0]['id']})", **{'from': 2, 'to': 3})
    assert ruling(ws, 'demo', back[0], back=True) is None and ruling(ws, 'demo', back[0], back=False)['kind'] == 'refused'
    assert ruling(ws, 'demo', dict(id=event['data']['firing']), back=True)['kind'] == 'rolled_back' and ruling(ws, 'demo', dict(id=event['data']['firing']), back=False) is None
    # it was written down, and then the watcher was killed: nothing is taken back twice
    f = ws.ledger.t.firings
    with ws.ledger.db.write() as c: c.execute(f.update().where(f.c.id == event['data']['firing']).values(status='running', owner=as_owner(this_process()) | dict(started='1')))
    watch_once(p.settings)
    assert judgements(p)['rolled_back'] == 1 and {o['status'] for o in firings(ws, 'back')} == {'skipped', 'completed'}
    ws.ledger.close()
    assert p.quiet(60) == []
