"""Labels of a registered model, and alerts that are told once: to real servers, by processes that are killed, by two at a time"""
import json, os, re, signal, subprocess, sys, textwrap, threading, time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mlops_nb import alert
from mlops_nb.alert import alerts, raise_alert, tell_alerts, untold
from mlops_nb.columns import Columns
from mlops_nb.plan import Workspace
from mlops_nb.predlog import PredictionLog
from scratch import Project


class Hook(BaseHTTPRequestHandler):
    "Notes what it is sent, and answers as it is told to"
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        self.server.got.append((self.path, dict(self.headers), json.loads(body)))
        self.server.answer(self)
    def do_GET(self): self.server.got.append((self.path, {}, None)); self.send_error(500)
    def log_message(self, *args): pass


def status(code, **headers):
    def answer(o):
        o.send_response(code)
        for k, v in headers.items(): o.send_header(k, v)
        o.send_header('Content-Length', '0')
        o.end_headers()
    return answer


@contextmanager
def hook(answer=status(204)):
    "A server that is told of alerts"
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hook)
    server.daemon_threads, server.got, server.answer, server.done = True, [], answer, threading.Event()
    server.url = f'http://127.0.0.1:{server.server_address[1]}/hook'
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.05))
    thread.start()
    try: yield server
    finally:
        server.done.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def ws(tmp_path):
    o = Workspace(SimpleNamespace(ledger=str(tmp_path/'ledger.db'), state=tmp_path, alert_file=str(tmp_path/'alerts.jsonl'), alert_webhook=''))
    yield o
    o.ledger.close()


def drifted(ws, what): return raise_alert(ws, model='flights', version=3, kind='drift', what=what, start='2013-07-01', end='2013-07-02', data=dict(psi=.3, why='PSI 0.3'))
def lines(ws): return [json.loads(o) for o in open(ws.settings.alert_file)]


def test_a_webhook_hears_each_alert_once(ws, capfd):
    with hook() as server:
        ws.settings.alert_webhook = server.url.replace('//', '//ada:s3cret%21@') + '?token=s3cret'
        first, second = drifted(ws, 'distance'), drifted(ws, 'carrier')
        assert tell_alerts(ws)['webhook'] == dict(told=2, problem='') and tell_alerts(ws) == {}
        assert [o['id'] for _, _, o in server.got] == [first['id'], second['id']] == [h['Idempotency-Key'] for _, h, _ in server.got]
        path, head, said = server.got[0]
        assert path == '/hook?token=s3cret' and head['Authorization'] == 'Basic YWRhOnMzY3JldCE=' and head['Content-Type'] == 'application/json'
        assert said['data'] == dict(psi=.3, why='PSI 0.3') and said['text'] == 'drift of flights version 3: distance, 2013-07-01 to 2013-07-02: PSI 0.3'
        assert [o['id'] for o in lines(ws)] == [first['id'], second['id']] == [json.loads(o)['id'] for o in capfd.readouterr().err.splitlines()]
    assert 's3cret' not in json.dumps(alerts(ws)) and all(all(o['told'].values()) for o in alerts(ws))


@pytest.mark.parametrize('code', [500, 503, 429, 404, 301, 302, 307])
def test_what_a_webhook_does_not_take_is_told_again(ws, code):
    with hook() as other, hook(status(code, Location=other.url)) as server:
        ws.settings.alert_webhook = server.url
        o, more = drifted(ws, 'distance'), drifted(ws, 'carrier')
        told = tell_alerts(ws)
        assert told['webhook']['told'] == 0 and f'answered {code}' in told['webhook']['problem'] and server.url not in told['webhook']['problem']
        assert [h['Idempotency-Key'] for _, h, _ in server.got] == [o['id']] and not other.got # a redirection isn't followed; the second would fare no better
        assert told['file'] == told['log'] == dict(told=2, problem='')
        server.answer = status(200)
        assert tell_alerts(ws) == dict(webhook=dict(told=2, problem=''))
        assert [h['Idempotency-Key'] for _, h, _ in server.got] == [o['id'], o['id'], more['id']]


@pytest.mark.parametrize('code', [400, 413, 422])
def test_what_a_webhook_will_never_take_holds_up_nothing(ws, code):
    def picky(o): status(code if o.server.got[-1][2]['what'] == 'distance' else 200)(o)
    with hook(picky) as server:
        ws.settings.alert_webhook = server.url
        drifted(ws, 'distance'), drifted(ws, 'carrier')
        told = tell_alerts(ws)['webhook']
        assert told['told'] == 1 and f'answered {code}' in told['problem']
        assert tell_alerts(ws) == {} and len(server.got) == 2 and 'refused' in alerts(ws)[0]['told']['webhook'] and 'refused' not in alerts(ws)[1]['told']['webhook']


def silent(o): o.server.done.wait()
def dripping(o):
    try:
        o.wfile.write(b'HTTP/1.1 200 OK\r\n')
        for i in range(100_000):
            o.wfile.write(b'X-%d: 0\r\n' % (i % 50) if i % 50 else b'X')
            if o.server.done.wait(.05): break
    except OSError: pass
def hanging_up(o): o.connection.close()
def babbling(o): o.wfile.write(b'hello\n')


@pytest.mark.parametrize('answer', [silent, dripping, hanging_up, babbling])
def test_a_webhook_that_does_not_answer_is_not_waited_for(ws, answer, monkeypatch):
    monkeypatch.setattr(alert, 'patience', .5)
    with hook(answer) as server:
        ws.settings.alert_webhook = server.url + '/s3cret'
        drifted(ws, 'distance'), drifted(ws, 'carrier')
        told = tell_alerts(ws)
        assert told['log']['told'] == told['file']['told'] == 2 and told['webhook']['told'] == 0
        assert "can't be reached" in told['webhook']['problem'] and 's3cret' not in told['webhook']['problem'] and len(server.got) == 1
        server.answer = status(200)
        monkeypatch.setattr(alert, 'patience', 10.)
        assert tell_alerts(ws)['webhook'] == dict(told=2, problem='')


script = '''
    import os, sys
    from pathlib import Path
    from types import SimpleNamespace
    from mlops_nb.alert import raise_alert, tell_alerts
    from mlops_nb.plan import Workspace
    root, ledger, url, first, n, goes_on = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6] == 'goes on'
    ws = Workspace(SimpleNamespace(ledger=ledger, state=root, alert_file=str(root/'alerts.jsonl'), alert_webhook=url))
    i = first
    while goes_on or i < first+n:
        raise_alert(ws, model='flights', kind='drift', what=f'column {i}', data=dict(why='x'*3000))
        os.write(1, b'.')
        tell_alerts(ws)
        i += 1
'''


def start(*args): return subprocess.Popen([sys.executable, '-c', textwrap.dedent(script), *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def test_sigkill_while_telling_loses_nothing_and_doubles_no_line(ws, tmp_path):
    rng = np.random.default_rng(0)
    with hook() as server:
        for i in range(8):
            p = start(tmp_path, ws.settings.ledger, server.url, 1000*i, 0, 'goes on')
            p.stdout.read(int(rng.integers(1, 8)))
            time.sleep(rng.random()*.02) # somewhere in the telling; nothing is proven by it
            os.killpg(p.pid, signal.SIGKILL)
            p.communicate()
        with open(ws.settings.alert_file, 'ab') as f: f.write(b'{"id": "half a li') # what a power failure leaves
        ws.settings.alert_webhook = server.url
        drifted(ws, 'distance')
        assert tell_alerts(ws)['webhook']['problem'] == '' and tell_alerts(ws) == {} == {o['id']: 0 for o in untold(ws)}
        raised = {o['id'] for o in alerts(ws)}
        assert len(raised) >= 8 and Counter(o['id'] for o in lines(ws)) == Counter(raised)
        heard = Counter(h['Idempotency-Key'] for _, h, _ in server.got)
        assert heard.keys() == raised and sum(heard.values()) <= len(raised) + 8 # once more for each who was killed in between


@pytest.mark.parametrize('kind', ['sqlite', 'postgres'])
def test_several_who_tell_at_once_tell_once(tmp_path, kind, request):
    ledger = str(tmp_path/'ledger.db') if kind == 'sqlite' else request.getfixturevalue('postgres_server').make('alerts')
    ws = Workspace(SimpleNamespace(ledger=ledger, state=tmp_path, alert_file=str(tmp_path/'alerts.jsonl'), alert_webhook=''))
    with ws.ledger, hook() as server:
        some = [start(tmp_path, ledger, server.url, i, 20, 'ends') for i in (0, 0, 10)] # they also find the same things
        said = [o.communicate()[1].decode().splitlines() for o in some]
        assert [o.returncode for o in some] == [0]*3, said
        ws.settings.alert_webhook = server.url
        tell_alerts(ws)
        ids = Counter(o['id'] for o in alerts(ws))
        assert len(ids) == 30 and Counter(o['id'] for o in lines(ws)) == Counter(h['Idempotency-Key'] for _, h, _ in server.got) == ids
        assert max(Counter(json.loads(o)['id'] for part in said for o in part).values()) == 1
        times = [o['time'] for o in alerts(ws)]
        assert len({*times}) == 30


train = '''
import numpy as np, pandas as pd
from sklearn.linear_model import LogisticRegression
from mlops_nb.package import save_model
rng = np.random.default_rng(0)
rows = pd.DataFrame(dict(x=rng.normal(size=400), scheduled=pd.Timestamp('2013-07-01') + pd.to_timedelta(np.arange(400), 'h').astype('timedelta64[us]')))
rows['late'] = rng.random(400) < 1/(1+np.exp(-rows.x))
save_model(package, LogisticRegression().fit(rows[['x']], rows.late), 'lines:predict', rows[['x','scheduled']].head(3), name='delay', reference=rows, outcome='late')
'''


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A project with a registered model that nobody has promoted, and a log"
    for o in ('mlflow', 'sklearn'): pytest.importorskip(o)
    p = Project(tmp_path_factory.mktemp('labels')/'project', '[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\nmonitor_time = scheduled\n')
    (p.folder/'lines.py').write_text('def predict(model, rows): return model.predict_proba(rows[["x"]])[:,1]\n')
    p.stage('01_train', 'from mlops_nb import Model\npackage: Model = "data/line"', train)
    p.ok()
    fields = [dict(name='x', type='double'), dict(name='scheduled', type='datetime')]
    rng = np.random.default_rng(1)
    x = rng.normal(size=300)
    with PredictionLog(p.state/'predictions'/'delay', fields, output=[dict(name='', type='double')]) as log:
        for i in range(3): log.add(f'r{i}', 1, 'champion', 1372932000, .2, Columns(dict(x=x[i::3], scheduled=np.full(100, np.datetime64(f'2013-07-0{i+4}T12:00', 'us'))), 100), 1/(1+np.exp(-x[i::3])), [f'{i}/{j}' for j in range(100)])
    yield p
    p.put_away()


def test_labels_are_told_on_the_command_line(project, tmp_path):
    from mlops_nb.quality import labelled, qualities, reference_quality
    from mlops_nb.registry import Registry
    registry = Registry(Workspace(project.settings))
    assert reference_quality(registry.package_path(registry.version('delay'))).figures()['n'] == 400
    keys = [f'{i}/{j}' for i in range(2) for j in range(100)]
    pd.DataFrame(dict(key=[*keys, 'nobody'], late=np.arange(201) % 2 == 0)).to_csv(tmp_path/'labels.csv', index=False)
    done = project.inside('labels', 'delay', '--input', str(tmp_path/'labels.csv'), '--json')
    assert done.code == 0 and {k: done.json[k] for k in ('outcome', 'keys', 'answered', 'unknown', 'new')} == dict(outcome='late', keys=201, answered=200, unknown=1, new=True), done
    again = project.inside('labels', 'delay', '--input', str(tmp_path/'labels.csv'))
    assert again.code == 0 and 'told before' in again.out
    listed = project.inside('labels', 'delay', '--json').json
    assert [o['rows'] for o in listed['files']] == [201] and '201' in project.inside('labels', 'delay').out
    assert len(labelled(project.settings, 'delay')) == 200
    assert {k: q.n for k, q in qualities(project.settings, 'delay').items()} == {('1', f'2013-07-0{i}T00:00:00+00:00'): 100 for i in (4, 5)}


@pytest.mark.parametrize('text, said', [('key,lat\na,1\n', 'late or label'), ('late\n1\n', 'no column key'), ('key,late\na,1\n,0\n', 'the key is missing in 1 of 2 rows'), ('key,late\na,maybe\n', "late is neither yes or no nor a number in 1 of 1 rows, e.g. in row 0: 'maybe'"),
    ('key,late\na,3\n', 'yes or no, and something else'), ('key,late,time\na,1,soon\n', 'time is no time'), ('key,late,x\na,1,2\n', 'no column x'), ('key,late\n', 'there are no labels'), ('', "can't be read")])
def test_labels_that_cannot_be_are_refused_in_one_message(project, tmp_path, text, said):
    (tmp_path/'labels.csv').write_text(text)
    done = project.inside('labels', 'delay', '--input', str(tmp_path/'labels.csv'))
    assert done.code in (1, 2) and said in done.err and 'Traceback' not in done.err and 'labels.csv' in done.err, done


def test_labels_of_no_model(project, tmp_path):
    (tmp_path/'labels.csv').write_text('key,late\na,1\n')
    for name in ('dely', '../delay'):
        done = project.inside('labels', name, '--input', str(tmp_path/'labels.csv'))
        assert done.code == 2 and 'delay' in done.err and not (project.state/'labels'/name).exists(), done
    assert project.inside('labels', 'delay', '--input', str(tmp_path/'none.csv')).code == 2


def test_alerts_are_listed(project):
    ws = Workspace(project.settings)
    raise_alert(ws, model='delay', version=1, kind='performance', what='auc', start='2013-07-04T00:00:00+00:00', end='2013-07-05T00:00:00+00:00', data=dict(why='AUC [bold]0.6[/] is worse'))
    raise_alert(ws, model='other', kind='drift', what='x')
    found = project.inside('alerts', 'delay', '--json').json['alerts']
    assert [(o['kind'], o['what'], o['told']) for o in found] == [('performance', 'auc', dict(log=None))]
    assert [o['what'] for o in project.inside('alerts', '--kind', 'drift', '--json').json['alerts']] == ['x']
    assert 'AUC [bold]0.6[/] is worse' in ' '.join(project.inside('alerts').out.split()) and 'not yet' in project.inside('alerts').out
    done = project.inside('alerts', '--kind', 'drifts')
    assert done.code == 2 and 'did you mean drift?' in done.err
    assert project.inside('alerts', 'nobody').code == 0


def facts(name):
    "Facts of a monitor that has little to tell"
    bare = dict(model='a_b <i>$x$', version='3', since='2013-07-01T00:00:00+00:00', until='2013-07-02T00:00:00+00:00', windows=[], reference={}, worst=[], alerts=[])
    drift = dict(kind='word', n=9, psi=None, js=None, missing=0., new=['<b>'], lost=['<script>']*6, verdict='drift', why='50% are words that it never had: <script>')
    one = dict(start='2013-07-01T13:00:00+00:00', end='2013-07-01T14:00:00+00:00', rows=3, version='3', drift={'x|y': drift, 'when': dict(kind='time', n=9, missing=float('nan'), verdict='ok', why=''), 'z': drift | dict(kind='number', psi=float('nan'))},
        prediction=drift | dict(psi=.1), quality=None, traffic=None, skew=dict(compared=9, differing=2))
    number = dict(kind='number', main='rmse', n=9, odd=0, rmse=2., mae=1., bias=.1, low=1.5, high=2.5, r2=.5, happened=3., foretold=3.1)
    return dict(bare=bare, one=bare | dict(windows=[one]), numbers=bare | dict(windows=[one | dict(quality=number, traffic=dict(requests=1, errors=0, p50_ms=None, p99_ms=None))], reference=dict(quality=number)),
        empty=bare | dict(windows=[one | dict(drift={}, prediction=None, rows=0, quality=number | dict(n=0, rmse=None, low=None, high=None, mae=None, bias=None, r2=None))]))[name]


@pytest.mark.parametrize('name', ['', 'bare', 'one', 'numbers', 'empty'])
def test_any_monitor_can_be_told(project, tmp_path, name):
    for o in ('matplotlib', 'nbconvert'): pytest.importorskip(o)
    from mlops_nb.engine import execute
    from mlops_nb.notebook import inject, read_notebook, write_notebook
    from mlops_nb.parameters import injected_source
    from mlops_nb.report import outside_requests, page_of, report_notebook
    if name: (tmp_path/'facts.json').write_text(json.dumps(facts(name)))
    write_notebook(tmp_path/'monitor.ipynb', inject(read_notebook(report_notebook(project.settings, 'monitor.ipynb')), injected_source(dict(facts=str(tmp_path/'facts.json') if name else ''), ())))
    res = execute(dict(id='20130701-000000-00000000', notebook=str(tmp_path/'monitor.ipynb'), output=str(tmp_path/'executed.ipynb'), cwd=str(tmp_path), seed=0, engine='snapshot', memory=str(tmp_path/'rungs')))
    assert not res['error'], res['error']
    raw = json.loads((tmp_path/'executed.ipynb').read_text())
    said = page_of(raw, 'monitor')
    assert outside_requests(said) == [] and '<script' not in said and '<i>' not in said and 'Traceback' not in said and 'In short' in said
    assert ('How good it was' in said) == (name in ('', 'numbers')) and said.count('<img') >= dict(one=0, bare=0, empty=0).get(name, 2)
    assert not [o for c in raw['cells'] for o in c.get('outputs', []) if o.get('name') == 'stderr']
