"""A model as a service: real processes, real clients, signals, and a log that misses nothing"""
import http.client, json, os, re, signal, socket, ssl, subprocess, sys, threading, time
from pathlib import Path

import pytest

for o in ('mlflow', 'fastapi', 'uvicorn', 'onnxruntime', 'prometheus_client'): pytest.importorskip(o)
from mlops_nb.plan import Workspace
from mlops_nb.predlog import read_log
from mlops_nb.promote import bring_in_step, history, holder, move, promote, workplace
from mlops_nb.registry import Registry
from scratch import Project, until

token = 'open-sesame-1'
library = '''import os, time
import numpy as np

def predict(model, rows):
    "A line; one that is steep can't go far"
    if round(model.coef_[0]) == 3 and os.environ.get("LINES_FAIL"): raise ValueError("not here")
    if round(model.coef_[0]) == 3 and os.environ.get("LINES_KILL"): os._exit(7)
    if model.coef_[0] > 8 and (np.asarray(rows["x"]) > 100).any(): raise ValueError("too far")
    return model.predict(rows[["x"]])

def slowly(model, rows):
    "A line that takes its time, and wants a DataFrame"
    time.sleep(float(rows.x.apply(lambda o: o/10).max()))
    return model.predict(rows[["x"]])

def two(model, rows):
    return rows.assign(low=rows.x - 1, high=rows.x + 1)[["low", "high"]]
'''
making = '''
import numpy as np, pandas as pd
from sklearn.linear_model import LinearRegression
from mlops_nb.package import save_model
rows = pd.DataFrame(dict(x=[1., 2., 3., 4.], n=[1, 2, 3, 4], note=["a", None, "ü", "d"], day=pd.to_datetime(["2013-07-04 12:00"]*4), good=[True, False, True, False]))
def make(dest, slope, function="predict", **more): return save_model(dest, LinearRegression().fit(rows[["x"]], rows.x*slope), "lines:" + function, rows, name="line", purpose="A <b>line</b>.", **more)
'''


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A project with four versions, the first of which is champion; the steep one fails where x > 100"
    p = Project(tmp_path_factory.mktemp('serve')/'project', '[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\n')
    (p.folder/'lines.py').write_text(library)
    p.stage('01_train', 'from mlops_nb import Model\nslope: float = 2.0\npackage: Model = "data/line"', making + 'make(package, slope)')
    for o in (1, 2, 3, 9): p.ok('-p', f'slope={o}')
    promote(p.settings, 'line', 1, override=True, reason='a test')
    yield p
    p.put_away()


@pytest.fixture(scope='module')
def packages(project):
    "Packages in folders"
    script = making + 'make("../../../../slow", 2., "slowly"); make("../../../../two", 2., "two"); make("../../../../line", 2.)'
    subprocess.run([sys.executable, '-c', script], cwd=project.folder, check=True)
    return project.root.parent


class Server:
    "A running `mlops-nb serve`"
    def __init__(self, project, *args, ready=True, settings='', env={}):
        self.project, self.out, self.err = project, [], []
        self.p = project.start('serve', *args, '--port', '0', **{'MLOPS_TOKEN': token, **env})
        self.threads = [threading.Thread(target=self.listen, args=o) for o in ((self.p.stdout, self.out), (self.p.stderr, self.err))]
        for o in self.threads: o.start()
        if ready:
            until(lambda: 'Ctrl-C' in self.text or self.p.poll() is not None, 120)
            assert self.p.poll() is None, self.text
            self.scheme, self.port = re.search(r'answers at (https?)://\S*:(\d+)', self.text).groups()
            self.port = int(self.port)
    def listen(self, pipe, lines):
        for o in pipe: lines.append(o)
    @property
    def text(self): return ''.join(self.err)
    @property
    def url(self): return f'{self.scheme}://127.0.0.1:{self.port}'
    def __enter__(self): return self
    def __exit__(self, *exc): self.stop()
    def stop(self, how=signal.SIGTERM, timeout=60):
        "End it; its exit code"
        if self.p.poll() is None: self.p.send_signal(how)
        code = self.p.wait(timeout)
        for o in self.threads: o.join(10)
        return code
    def connect(self, **kw):
        if self.scheme == 'https': return http.client.HTTPSConnection('127.0.0.1', self.port, timeout=60, context=ssl._create_unverified_context())
        return http.client.HTTPConnection('127.0.0.1', self.port, timeout=60, **kw)
    def ask(self, method, path, body=None, conn=None, **headers):
        "(status, headers, body) of an answer; JSON as what it is"
        c = conn or self.connect()
        headers = {'Authorization': f'Bearer {token}', 'Content-Type': 'application/json'} | {k.replace('_', '-'): v for k, v in headers.items()}
        c.request(method, path, body if isinstance(body, (bytes, str, type(None))) else json.dumps(body), {k: v for k, v in headers.items() if v})
        r = c.getresponse()
        data = r.read()
        if not conn: c.close()
        return r.status, {k.lower(): v for k, v in r.getheaders()}, json.loads(data) if r.getheader('content-type', '').startswith('application/json') else data
    def workers(self): return [o for o in self.project.processes() if o.is_running() and o.status() != 'zombie' and o.ppid() == self.p.pid]


class Load:
    "Clients that ask all the time, each over one connection; what they were answered"
    def __init__(self, server, clients=4, x=4.):
        self.server, self.x, self.answers, self.losses, self.over = server, x, [], [], threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(i,)) for i in range(clients)]
    def client(self, i):
        conn, n = None, 0
        while not self.over.is_set():
            n += 1
            try:
                conn = conn or self.server.connect()
                t = time.perf_counter()
                status, headers, said = self.server.ask('POST', '/predict', dict(row, x=self.x), conn, X_Request_Id=f'{i}-{n}', X_Label_Key=f'k{i}')
                self.answers.append((f'{i}-{n}', status, said.get('version'), said.get('prediction'), time.perf_counter()-t))
                if headers.get('connection') == 'close': conn = conn.close()
            except (OSError, http.client.HTTPException) as e:
                self.losses.append(f'{type(e).__name__}: {e}')
                conn = conn.close() if conn else None
                time.sleep(.05)
    def __enter__(self):
        for o in self.threads: o.start()
        return self
    def __exit__(self, *exc):
        self.over.set()
        for o in self.threads: o.join(30)
    def more(self, n=50):
        "Wait for more answers"
        have = len(self.answers)
        until(lambda: len(self.answers) >= have + n, 60)


row = dict(x=4., n=1, note='a', day='2013-07-04T12:00:00Z', good=True)


def champion(project, number):
    "Make a version champion, without asking anybody"
    ws = Workspace(project.settings)
    now = holder(ws, 'line')
    if now['version'] != number: assert move(ws, 'line', now, number, vars(Registry(ws).version('line', number).artifact), 'promoted', gates=[])


@pytest.fixture(scope='module')
def server(packages, tmp_path_factory):
    "One that needs no project"
    p = Project(tmp_path_factory.mktemp('apart')/'project')
    with Server(p, '--package', str(packages/'line')) as s: yield s
    assert p.quiet() == []


def test_what_is_said_at_the_start(server):
    assert 'It is asked in columns, by ONNX; 1 worker.' in server.text and token not in server.text and 'Bearer $MLOPS_TOKEN' in server.text
    curl = re.search(r'--json \'(.*)\' http', server.text)[1]
    status, headers, said = server.ask('POST', '/predict', curl)
    assert status == 200 and abs(said['prediction'] - 2) < 1e-5 and headers['x-request-id'] == said['request_id'] and headers['x-model-version'] == said['version']
    lines = until(lambda: [json.loads(o) for o in server.out if 'predict' in o], 10)
    assert lines[0]['status'] == 200 and lines[0]['rows'] == 1 and lines[0]['request_id'] == said['request_id'] and token not in ''.join(server.out)


def test_token(server):
    assert [server.ask('POST', '/predict', row, Authorization=o)[0] for o in (None, 'Bearer x', f'Bearer {token}x', f'bearer {token}', f'Basic {token}')] == [401, 401, 401, 200, 401]
    assert server.ask('POST', '/predict', row, Authorization=None)[1]['www-authenticate'] == 'Bearer'
    open_to_all = '/health', '/ready', '/v2/health/live', '/v2/health/ready'
    for o in ('/health', '/ready', '/v2/health/live', '/v2/health/ready', '/', '/docs', '/openapi.json', '/metrics', '/v2', '/v2/models/line', '/v2/models/line/ready', '/nothing'):
        assert server.ask('GET', o, Authorization=None)[0] == (200 if o in open_to_all else 401), o
        assert server.ask('GET', o)[0] == (404 if o == '/nothing' else 200), o
    status, headers, _ = server.ask('GET', f'/?token={token}', Authorization=None)
    cookie = headers['set-cookie'].partition(';')[0]
    assert status == 303 and headers['location'] == '/' and 'HttpOnly' in headers['set-cookie']
    page = server.ask('GET', '/', Authorization=None, Cookie=cookie)[2].decode()
    assert '&lt;b&gt;line' in page and 'http' not in re.sub(r'<script>.*</script>', '', page)
    assert [server.ask('POST', '/predict', row, Authorization=None, Cookie=cookie, Sec_Fetch_Site=o)[0] for o in ('same-origin', 'same-site', 'cross-site')] == [200, 401, 401]


bad = {
    'no JSON': (b'{"x": 4', 400), 'not UTF-8': (b'{"x": "\xff"}', 400), 'a number': (b'4', 400), 'nothing': (b'', 400), 'no rows': (b'[]', 422), 'rows are no list': (dict(rows=4), 400), 'deep': (b'['*100_000, 400),
    'text for a number': (dict(row, x='4'), 422), 'true for a number': (dict(row, x=True), 422), 'a list for a number': (dict(row, x=[4]), 422), 'half a whole number': (dict(row, n=1.5), 422), 'too large a number': (dict(row, n=2**70), 422),
    'a number for text': (dict(row, note=4), 422), 'no time': (dict(row, day='soon'), 422), 'text for a boolean': (dict(row, good='yes'), 422), 'a missing field': ({k: v for k, v in row.items() if k != 'n'}, 422),
    'null where there must be a value': (dict(row, x=None), 422), 'an unknown field': (dict(row, X=4), 422), 'NaN': (json.dumps(dict(row, x=float('nan'))), 400), 'infinity': (json.dumps(dict(row, x=float('inf'))), 400), 'beyond a float': (b'{"x": 1e999}', (400, 422)),
    'one bad row of two': ([row, dict(row, x='4')], 422), 'a row that is none': ([row, 4], 422), 'keys for other rows': (dict(rows=[row], keys=['a', 'b']), 422)}


@pytest.mark.parametrize('what', bad)
def test_a_bad_request(server, what):
    body, status = bad[what]
    got, headers, said = server.ask('POST', '/predict', body)
    assert got in (status if isinstance(status, tuple) else (status,)) and said['error'] and said['request_id'], said
    if got == 422 and said['errors']: assert {'row', 'field', 'reason'} <= said['errors'][0].keys()
    if what == 'one bad row of two': assert said['errors'][0]['row'] == 1 and said['errors'][0]['field'] == 'x'
    if what == 'an unknown field': assert said['errors'][0]['field'] == 'X' and 'is no field of this model' in said['error']


def test_other_bad_requests(server):
    import gzip
    assert server.ask('POST', '/predict', b'x', Content_Type='text/plain')[0] == 415
    assert server.ask('POST', '/predict', b'PAR1 not', Content_Type='application/vnd.apache.parquet')[0] == 400
    assert server.ask('POST', '/predict', row, Accept='image/png')[0] == 406
    assert server.ask('POST', '/predict', b'x'*(33*2**20))[0] == 413
    assert server.ask('POST', '/predict', gzip.compress(b' '*(33*2**20)), Content_Encoding='gzip')[0] == 413
    assert server.ask('POST', '/predict', gzip.compress(json.dumps(row).encode()), Content_Encoding='gzip')[0] == 200
    assert server.ask('POST', '/predict', b'x', Content_Encoding='gzip')[0] == 400
    assert server.ask('GET', '/predict')[0] == 405 and server.ask('GET', '/predict')[1]['allow'] == 'POST'
    assert server.ask('POST', '/v2/models/line/versions/9/infer', {})[0] == 404
    with socket.create_connection(('127.0.0.1', server.port)) as s:
        s.sendall(b'\x16\x03\x01 this is no HTTP\r\n\r\n')
        assert s.recv(1000)[:12] == b'HTTP/1.1 400'
    assert server.ask('POST', '/predict', row)[0] == 200 and not [o for o in server.out if '"status":5' in o]


def test_tables_in_and_out(server):
    pa = pytest.importorskip('pyarrow')
    csv = b'x,n,note,day,good\n4,1,a,2013-07-04T12:00:00Z,true\n5.5,2,,2013-07-04T12:00:00Z,false\n'
    status, _, said = server.ask('POST', '/predict', csv, Content_Type='text/csv')
    assert status == 200 and [round(o, 3) for o in said['predictions']] == [8, 11]
    stream = 'application/vnd.apache.arrow.stream'
    t = pa.csv.read_csv(pa.BufferReader(csv)) if hasattr(pa, 'csv') else __import__('pyarrow.csv').csv.read_csv(pa.BufferReader(csv))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, t.schema) as f: f.write_table(t)
    status, headers, body = server.ask('POST', '/predict', sink.getvalue().to_pybytes(), Content_Type=stream, Accept=stream)
    assert status == 200 and headers['content-type'] == stream
    assert [round(o, 3) for o in pa.ipc.open_stream(body).read_all()['prediction'].to_pylist()] == [8, 11]
    status, _, said = server.ask('POST', '/predict', dict(rows=[row]*5000))
    assert status == 200 and len(said['predictions']) == 5000, 'many rows go another way'


def test_triton_client(server, packages, project):
    t = pytest.importorskip('tritonclient.http')
    import numpy as np
    me = dict(Authorization=f'Bearer {token}')
    c = t.InferenceServerClient(f'127.0.0.1:{server.port}')
    assert c.is_server_live() and c.is_server_ready() and c.is_model_ready('line', headers=dict(me))
    told = c.get_model_metadata('line', headers=dict(me))
    assert {o['name']: o['datatype'] for o in told['inputs']} == dict(x='FP64', n='INT64', note='BYTES', day='BYTES', good='BOOL') and told['outputs'][0]['name'] == 'prediction'
    values = dict(x=np.array([4., 5.5]), n=np.array([1, 2]), note=np.array(['a', 'ürk'], object), day=np.array(['2013-07-04T12:00:00Z']*2, object), good=np.array([True, False]))
    for binary in (True, False):
        ins = [t.InferInput(o['name'], [2], o['datatype']) for o in told['inputs']]
        for o in ins: o.set_data_from_numpy(values[o.name()], binary_data=binary)
        for outs in (None, [t.InferRequestedOutput('prediction', binary_data=binary)]):
            r = c.infer('line', ins, outputs=outs, request_id='mine', headers=dict(me))
            assert r.as_numpy('prediction').round(3).tolist() == [8, 11] and r.get_response()['id'] == 'mine' and r.get_response()['model_version'] == told['versions'][0]
    assert c.infer('line', ins, model_version=told['versions'][0], headers=dict(me), request_compression_algorithm='gzip').as_numpy('prediction').shape == (2,)
    with pytest.raises(t.InferenceServerException if hasattr(t, 'InferenceServerException') else Exception, match='422'): c.infer('line', [o for o in ins if o.name() != 'x'] + [t.InferInput('not', [2], 'BYTES').set_data_from_numpy(values['note'])], headers=dict(me))
    with Server(project, '--package', str(packages/'two')) as s: # a model of two outputs
        c = t.InferenceServerClient(f'127.0.0.1:{s.port}')
        for o in ins: o.set_data_from_numpy(values[o.name()])
        r = c.infer('line', ins, headers=dict(me))
        assert r.as_numpy('low').tolist() == [3, 4.5] and r.as_numpy('high').tolist() == [5, 6.5]
        assert s.ask('POST', '/predict', row)[2]['prediction'] == dict(low=3, high=5)


def test_fuzzed(server):
    pytest.importorskip('schemathesis')
    checks = 'not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance,ignored_auth,unsupported_method'
    cmd = [sys.executable, '-m', 'schemathesis.cli', 'run', f'{server.url}/openapi.json', '-H', f'Authorization: Bearer {token}', '--checks', checks, '--max-examples', '15', '--seed', '1', '--no-color', '--generation-database', 'none',
        '--suppress-health-check', 'all', '--phases', 'examples,coverage,fuzzing']
    done = subprocess.run(cmd, capture_output=True, text=True, timeout=300, cwd=server.project.root)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert not [o for o in server.out if '"status":5' in o]


def test_too_much_too_long_and_drained(packages, project):
    (project.root/'settings.ini').write_text('[DEFAULT]\ncards = no\nmlflow = sqlite:///.mlops/mlflow.db\nserve_queue = 2\nserve_timeout = 8\n')
    try: s = Server(project, '--package', str(packages/'slow'))
    finally: (project.root/'settings.ini').write_text('[DEFAULT]\ncards = no\nmlflow = sqlite:///.mlops/mlflow.db\n')
    with s:
        found = {}
        def ask(k, x): found[k] = s.ask('POST', '/predict', dict(row, x=x))
        def busy(): return any(' 2' in o for o in s.ask('GET', '/metrics')[2].decode().splitlines() if o.startswith('mlops_nb_pending'))
        assert 'with a DataFrame' in s.text
        two = [threading.Thread(target=ask, args=o) for o in (('a', 20.), ('b', 21.))]
        for o in two: o.start()
        until(busy, 20)
        ask('c', 10.)
        assert found['c'][0] == 503 and found['c'][1]['retry-after'] == '1'
        for o in two: o.join()
        assert [found[o][0] for o in 'ab'] == [200, 200]
        ask('d', 200.)
        assert found['d'][0] == 504
        with socket.create_connection(('127.0.0.1', s.port)) as half: # a body that never comes
            half.sendall(f'POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{'.encode())
            half.settimeout(30)
            assert half.recv(1000)[:12] == b'HTTP/1.1 408'
        for head in (b'', b'GET /health HT', b'GET /health HTTP/1.1\r\nX: ' + b'a'*2**18): # one that never comes, or never ends
            with socket.create_connection(('127.0.0.1', s.port)) as half:
                half.settimeout(60)
                try: half.sendall(head)
                except OSError: continue # it has been closed already
                try: assert half.recv(1000) == b''
                except ConnectionResetError: pass
    with Server(project, '--package', str(packages/'slow')) as s: # it ends while it answers
        last = threading.Thread(target=ask, args=('e', 25.))
        last.start()
        until(lambda: ' 1.0' in next(o for o in s.ask('GET', '/metrics')[2].decode().splitlines() if o.startswith('mlops_nb_pending')), 20)
        assert s.stop() == 0 and last.join(30) is None and found['e'][0] == 200 and found['e'][1]['connection'] == 'close'
        assert 'Ended. ' in s.text
    assert project.quiet() == []


def test_swaps_under_load(project):
    swaps = int(os.environ.get('MLOPS_SWAPS', 8))
    with Server(project, 'line', '--workers', '2', '--no-access-log') as s:
        with Load(s) as load:
            load.more()
            for i in range(swaps):
                number = (2, 3, 1)[i % 3]
                champion(project, number)
                want = f'version {number} of line answers'
                until(lambda: sum(want in o for o in s.err) > i//3, 60)
                load.more(20)
        assert not load.losses and {o[1] for o in load.answers} == {200}
        assert all(abs(o[3] - 4*int(o[2])) < 1e-4 for o in load.answers), 'each answer is of the version that it names'
        ms = sorted(o[4]*1000 for o in load.answers)
        print(f'{swaps} swaps, {len(ms)} answers, p50 {ms[len(ms)//2]:.2f} ms, p99 {ms[len(ms)*99//100]:.2f} ms, longest {ms[-1]:.1f} ms')
    champion(project, 1)


def test_killed_under_load(project):
    "Whoever is killed: what was answered is in the log, and another worker takes the place"
    with Server(project, 'line', '--workers', '2') as s:
        with Load(s) as load:
            load.more()
            first = s.workers()
            first[0].kill()
            until(lambda: len(s.workers()) == 2 and first[0].pid not in [o.pid for o in s.workers()], 60)
            until(lambda: 'another takes its place' in s.text, 10)
            load.more()
            for o in [*s.workers(), s.p]: os.kill(o.pid, signal.SIGKILL) # all at once
        s.p.wait(10)
    assert project.quiet(20) == []
    good = {o[0]: o for o in load.answers if o[1] == 200}
    log = read_log(Workspace(project.settings), 'line')
    log = log[log.request.isin(good.keys())].drop_duplicates('request', keep='last')
    assert len(log) == len(good) > 100, 'an answered prediction is not in the log'
    with Server(project, 'line'): pass # the next one takes over what was left
    assert {*good} <= {*read_log(Workspace(project.settings), 'line').request} and not [*(project.state/'predictions'/'line').glob('open/*.jsonl')]


def test_the_supervisor_is_killed(project):
    with Server(project, 'line') as s:
        s.p.kill()
        assert project.quiet(20) == [], 'a worker outlived it'


def test_a_version_that_cant_be_loaded(project):
    ws = Workspace(project.settings)
    with Server(project, 'line', env=dict(LINES_FAIL='1')) as s:
        champion(project, 3)
        until(lambda: "version 3 can't be loaded" in s.text, 60)
        assert s.ask('POST', '/predict', row)[2]['version'] == '1' and 'version 1 answers' in s.text
        status, _, said = s.ask('GET', '/ready')
        assert status == 200 and said['version'] == '1' and "version 3 can't be loaded" in said['problem']
        assert 'mlops_nb_ready 0.0' in s.ask('GET', '/metrics')[2].decode()
        champion(project, 2)
        until(lambda: s.ask('POST', '/predict', row)[2]['version'] == '2', 60)
        until(lambda: 'problem' not in s.ask('GET', '/ready')[2], 10)
        assert ws.ledger.events('unloadable')[-1]['data']['version'] == '3'
        assert move(ws, 'line', holder(ws, 'line'), 77, dict(digest='f'*64, name='line', size=1, kind='folder'), 'promoted', gates=[]) # nobody has its files
        until(lambda: 'no version 77' in s.ask('GET', '/ready')[2].get('problem', ''), 60)
        assert s.ask('POST', '/predict', row)[2]['version'] == '2' and "who is wanted can't be seen" in s.text
        champion(project, 1)
        until(lambda: s.ask('POST', '/predict', row)[2]['version'] == '1' and 'problem' not in s.ask('GET', '/ready')[2], 60)


def test_a_version_that_ends_whoever_loads_it(project):
    with Server(project, 'line', '--workers', '2', env=dict(LINES_KILL='1')) as s:
        champion(project, 3)
        until(lambda: "version 3 can't be loaded: whoever loads it ended with exit code 7" in s.text, 60)
        until(lambda: len(s.workers()) == 2, 60)
        assert s.ask('POST', '/predict', row)[2]['version'] == '1' and s.text.count('another takes its place') == 2
        champion(project, 2)
        until(lambda: 'version 2 of line answers' in s.text, 60)
    champion(project, 1)


def test_shadow_and_canary(project):
    registry = Registry(Workspace(project.settings))
    registry.set_alias('line', 'challenger', 2)
    with Server(project, 'line', '--shadow', 'challenger') as s:
        assert s.ask('POST', '/predict', row, X_Request_Id='both')[2]['version'] == '1'
    log = read_log(Workspace(project.settings), 'line')
    assert {(o.version, o.role): round(o.prediction, 3) for o in log[log.request == 'both'].itertuples()} == {('1', 'champion'): 4, ('2', 'shadow'): 8}
    with Server(project, 'line', '--canary', 'challenger=30%', '--workers', '2') as s:
        def ask(k, **kw): return s.ask('POST', '/predict', row, X_Label_Key=k, **kw)[2]['version']
        first = [ask(f'customer {o}') for o in range(100)]
        assert 10 < first.count('2') < 50 and first == [ask(f'customer {o}') for o in range(100)], 'the same customer, the same version'
        assert [s.ask('POST', '/predict', dict(rows=[row], keys=[f'customer {o}']))[2]['version'] for o in range(100)] == first
        promote(project.settings, 'line', 2, override=True, reason='a test') # there is no challenger any more
        until(lambda: [ask(f'customer {o}') for o in range(20)] == ['2']*20, 60)
    champion(project, 1)
    bring_in_step(registry.ws, registry, 'line')


def test_it_goes_back_by_itself(project):
    with Server(project, 'line', '--rollback-on', 'error_rate>20%') as s:
        with Load(s, x=200.) as load:
            load.more(20)
            promote(project.settings, 'line', 4, override=True, reason='a test')
            until(lambda: any(o[1] == 500 for o in load.answers), 60)
            until(lambda: 'was taken back' in s.text, 60)
            until(lambda: load.answers[-1][1:3] == (200, '1'), 60)
            load.more(20)
        event = history(workplace(project.settings)[0], 'line', 'rolled_back')[-1]['data']
        assert event['from'] == 4 and event['to'] == 1 and event['watched']['errors'] >= 10 and event['watched']['rule'] == 'error_rate>20%' and 'were errors' in event['reason']
        assert holder(workplace(project.settings)[0], 'line')['version'] == 1
        assert 'ValueError' in s.text, 'why it failed is written down'
    Registry(Workspace(project.settings)).set_alias('line', 'challenger', 4)
    with Server(project, 'line', '--canary', 'challenger=50%', '--rollback-on', 'error_rate>20%') as s:
        with Load(s, clients=8, x=200.) as load:
            until(lambda: 'is the canary no more' in s.text, 60)
            load.more(20)
        assert {o[1:3] for o in load.answers} == {(200, '1')}, 'the champion answers what the canary can not'


def test_tls(project, packages, tmp_path):
    cert = tmp_path/'cert.pem'
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', str(cert), '-out', str(tmp_path/'c'), '-days', '2', '-subj', '/CN=localhost'], check=True, capture_output=True)
    cert.write_text(cert.read_text() + (tmp_path/'c').read_text())
    (project.root/'settings.ini').write_text(f'[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\nserve_cert = {cert}\npredictions = none\n')
    try:
        with Server(project, '--package', str(packages/'line')) as s:
            assert s.scheme == 'https' and s.ask('POST', '/predict', row)[0] == 200 and 'curl -k' in s.text and 'not logged' in s.text
        cert.write_text('none')
        assert "the certificate can't be used" in project.cli('serve', 'line').err
    finally: (project.root/'settings.ini').write_text('[DEFAULT]\ncards = no\nmlflow = sqlite:///.mlops/mlflow.db\n')


def test_what_is_refused(project, packages):
    def said(*args, code=2, **env):
        done = project.cli('serve', *args, **env)
        assert done.code == code, done
        return done.err
    assert 'must be one that you chose' in said('line', '--host', '0.0.0.0', MLOPS_TOKEN='')
    assert "can't be a token" in said('line', MLOPS_TOKEN='short')
    assert 'no model' in said('lime') and 'no version 77' in said('line/77') and 'is no split' in said('line', '--canary', 'challenger') and 'is no rule' in said('line', '--rollback-on', 'x')
    assert 'to be named' in said() and 'to be named' in said('line', '--package', 'x') and 'is alone' in said('--package', str(packages/'line'), '--shadow', '1') and 'no model package' in said('--package', '/nowhere')
    with socket.create_server(('127.0.0.1', 0)) as taken: assert 'is in use' in said('line', '--port', str(taken.getsockname()[1]))
    with Server(project, '--package', str(packages/'line'), '--host', '0.0.0.0') as s: assert s.ask('GET', '/health')[0] == 200 and 'not encrypted' in s.text
    with Server(project, 'line/2', env=dict(MLOPS_TOKEN='')) as s: # nobody said a token: one is made up, and shown once
        shown = re.findall(r'token=(\S+)', s.text)
        assert len(shown) == 1 and s.ask('POST', '/predict', row)[0] == 401
        assert s.ask('POST', '/predict', row, Authorization=f'Bearer {shown[0]}')[2]['version'] == '2'
        assert shown[0] not in ' '.join(' '.join(o.cmdline() + [*o.environ().values()]) for o in project.processes())
        assert s.stop(signal.SIGINT) == 0
    assert project.quiet() == [] and not [o for o in project.state.rglob('*') if o.suffix in ('.tmp', '.sock', '.pid')]


def test_flights(tmp_path):
    "The example's own package, where it was made: what is served is what the package says"
    path = Path(__file__).resolve().parents[1]/'nbs'/'pipelines'/'flights'/'data'/'flights_model'
    if not (path/'about.json').exists(): pytest.skip('make demo was not run')
    from mlops_nb.deployment import example_rows
    from mlops_nb.package import load_package
    package, p = load_package(path), Project(tmp_path/'project')
    rows, said = example_rows(package), package.predict(package.example.head(3))
    with Server(p, '--package', str(path)) as s:
        assert 'in columns, by ONNX' in s.text
        assert s.ask('POST', '/predict', rows)[2]['predictions'] == pytest.approx(list(said), abs=1e-5)
        status, _, told = s.ask('POST', '/predict', dict(rows[0], carrier='ZZ'))
        assert status == 422 and told['errors'][0]['field'] == 'carrier', 'the contract of the data holds for requests'
    assert p.quiet() == []
