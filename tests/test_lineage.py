"""`mlops-nb lineage` over real runs: what made a file, from what, and what was made from it; and the events that it sends"""
import json, shutil, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

from scratch import Project

spec = Path(__file__).parent/'openlineage'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "Data from outside, three stages, a fourth that fails; run, run again with another parameter, run from the cache, run for several values"
    p = Project(tmp_path_factory.mktemp('lineage')/'project')
    (p.root/'raw').mkdir()
    (p.root/'raw'/'flights.csv').write_text('dep,late\n' + ''.join(f'{i},{i%3}\n' for i in range(50)))
    p.stage('01_clean', 'flights: In = "../../../raw/flights.csv"\nclean: Out = "data/clean.parquet"\nlowest: int = 0',
        'import pandas as pd\ndf = pd.read_csv(flights)\ndf[df.late >= lowest].to_parquet(clean)')
    p.stage('02_train', 'clean: In = "data/clean.parquet"\nmodel: Out = "data/model.json"\nrate: float = 0.1',
        'import json, pandas as pd\nfrom pathlib import Path\nPath(model).write_text(json.dumps(dict(mean=pd.read_parquet(clean).late.mean(), rate=rate)))\nrecord(rate=rate)')
    p.stage('03_judge', 'model: In = "data/model.json"\nclean: In = "data/clean.parquet"\nverdict: Out = "data/verdict.txt"',
        'from pathlib import Path\nPath(verdict).write_text("fine: " + Path(model).read_text())')
    p.stage('04_publish', 'verdict: In = "data/verdict.txt"\nsite: Out = "data/site"\nstrict: bool = True',
        'if strict: raise ValueError("not good enough")')
    assert p.run().code == 1
    assert p.run('-p', 'rate=0.2').code == 1
    assert p.run().statuses['02_train'] == 'cached'
    assert p.run('--each', 'rate=0.3,0.4').code == 1
    assert p.ok('-p', 'rate=0.4', '--only', 'train').statuses == {'02_train': 'cached'}
    yield p
    p.put_away()


def ask(project, *args): return project.cli('lineage', *args, '--json').json
def stage_runs(doc): return [o for o in doc['nodes'] if o['kind'] == 'stage_run']
def names(doc): return {o['name'] for o in doc['nodes'] if o['kind'] == 'artifact'}


def test_a_model_goes_back_to_the_data(project):
    doc = ask(project, 'nbs/pipelines/demo/data/model.json')
    assert doc['made_by']['stage'] == '02_train' and doc['made_by']['params'] == {'rate': .4}
    assert names(doc) == {'flights.csv', 'clean.parquet', 'model.json', 'verdict.txt'}
    assert [(o['path'], o['state']) for o in doc['sources']] == [(str(project.root/'raw/flights.csv'), 'same')]
    by_stage = {o['stage']: o for o in stage_runs(doc)}
    assert set(by_stage) == {'01_clean', '02_train', '03_judge', '04_publish'} and by_stage['04_publish']['status'] == 'failed'
    assert 'not good enough' in by_stage['04_publish']['error']
    assert by_stage['01_clean']['run_id'] == project.ledger.runs()[-1]['id'] # the first run did it; the later ones took it from the cache
    ids = {o['id'] for o in doc['nodes']}
    assert len(ids) == len(doc['nodes']) and all(o['from'] in ids and o['to'] in ids for o in doc['edges'])


def test_each_way_to_name_it_means_the_same(project):
    oldest = project.ledger.runs()[-1]['id']
    doc = ask(project, f'{oldest}:train.model')
    digest = doc['artifact']['digest']
    assert doc['made_by']['params'] == {'rate': .1}
    assert ask(project, digest)['edges'] == ask(project, digest[:8])['edges'] == doc['edges']
    newest = ask(project, 'train.model')
    assert newest['artifact'] == ask(project, 'demo/02_train.model')['artifact'] == ask(project, 'nbs/pipelines/demo/data/model.json')['artifact']
    assert newest['made_by']['params'] == {'rate': .4}
    cached = next(o for o in project.rows(stage='02_train', status='cached'))
    assert ask(project, f"{cached['run_id']}:train.model")['made_by']['id'] == cached['source']


def test_data_goes_ahead_to_all_that_was_made_from_it(project):
    doc = ask(project, 'raw/flights.csv', '--most', '0')
    assert doc['made_by'] is None and len([o for o in stage_runs(doc) if o['stage'] == '02_train']) == 4
    few = ask(project, 'raw/flights.csv', '--most', '1')
    assert len([o for o in stage_runs(few) if o['stage'] == '02_train']) == 1
    assert next(o for o in few['nodes'] if o.get('name') == 'clean.parquet')['unread'] == 6 # 3 of train, 3 of judge
    text = project.cli('lineage', 'raw/flights.csv').out
    assert 'no run made it' in text and 'used by' in text and 'demo/01_clean' in text


def test_the_tree_tells_who_and_when_and_from_what(project):
    text = project.cli('lineage', 'train.model').out
    for o in ('model.json', 'made by demo/02_train', 'rate=0.4', 'just now', 'clean.parquet', 'made by demo/01_clean', 'flights.csv', 'from ', 'unchanged', 'used by', 'demo/03_judge', 'failed'): assert o in text, (o, text)


def test_the_picture_is_one(project, tmp_path):
    assert project.cli('lineage', 'train.model', '--svg', str(tmp_path/'a.svg')).code == 0
    tree = ElementTree.parse(tmp_path/'a.svg').getroot()
    texts = {o.text for o in tree.iter('{http://www.w3.org/2000/svg}text')}
    assert texts >= {'model.json', 'demo/02_train', 'flights.csv'} and [o.name for o in tmp_path.iterdir()] == ['a.svg']


@pytest.mark.parametrize('ref, said', [('trian.model', 'did you mean train.model?'), ('train.modle', 'did you mean model?'), ('last:trian.model', 'did you mean train?'), ('deadbeef', 'there is no artifact'),
    ('pyproject.toml', 'no run has made or read'), ('nowhere/at.all', 'there is no artifact'), ('nbs', 'no run has made or read'), ('publish.site', 'there is no artifact')])
def test_a_wrong_name_is_one_clear_error(project, ref, said):
    done = project.cli('lineage', ref)
    assert done.code == 2 and said in done.err and 'Traceback' not in done.err and not done.out, done


def test_a_file_that_changed_says_what_was_there(project):
    raw,model = project.root/'raw'/'flights.csv', project.data/'model.json'
    before = raw.read_text(), model.read_text()
    try:
        raw.write_text(before[0] + '99,1\n')
        model.unlink()
        model.write_text('{}')
        done = project.cli('lineage', 'raw/flights.csv')
        assert done.code == 2 and 'it has changed since' in done.err
        digest = done.err.split('mlops-nb lineage ')[1].split()[0]
        assert ask(project, digest)['artifact']['name'] == 'flights.csv'
        assert 'mlops-nb lineage demo/train.model' in project.cli('lineage', str(model)).err
        assert ask(project, 'train.model')['sources'][0]['state'] == 'changed'
        raw.unlink()
        assert ask(project, 'train.model')['sources'][0]['state'] == 'gone'
        assert ask(project, str(raw))['artifact']['digest'].startswith(digest)
    finally:
        raw.write_text(before[0])
        model.unlink()
        model.write_text(before[1])


# OpenLineage

@pytest.fixture(scope='module')
def validate():
    "A function that finds what is wrong with an event, down to its facets"
    docs = [json.loads(o.read_text()) for o in spec.glob('*.json')]
    registry = Registry().with_resources((o['$id'], Resource.from_contents(o)) for o in docs)
    def check(ref, o): Draft202012Validator({'$ref': ref}, registry=registry, format_checker=FormatChecker()).validate(o)
    def validate(event):
        check(event['schemaURL'], event)
        found = [event['run'], event['job'], *event['inputs'], *event['outputs']]
        facets = [f for o in found for k in ('facets', 'inputFacets', 'outputFacets') for f in o.get(k, {}).values()]
        for f in facets: check(f['_schemaURL'], f)
        return len(facets)
    return validate


def test_the_events_are_valid(project, validate, tmp_path):
    done = project.cli('lineage', 'train.model', '--openlineage', str(tmp_path/'events.jsonl'))
    assert done.code == 0 and done.out.startswith('8 events')
    events = [json.loads(o) for o in (tmp_path/'events.jsonl').read_text().splitlines()]
    assert all(validate(o) > 6 for o in events)
    assert [(o['job']['name'], o['eventType']) for o in events if o['eventType'] != 'START'] == [(f'demo.{s}', e) for s,e in
        (('01_clean', 'COMPLETE'), ('02_train', 'COMPLETE'), ('03_judge', 'COMPLETE'), ('04_publish', 'FAIL'))]
    clean,train,judge,publish = [o for o in events if o['eventType'] != 'START']
    assert clean['outputs'][0]['name'] in {o['name'] for o in train['inputs']} & {o['name'] for o in judge['inputs']}
    assert [o['name'] for o in clean['outputs'][0]['facets']['schema']['fields']] == ['dep', 'late'] == [o['name'] for o in clean['inputs'][0]['facets']['schema']['fields']]
    assert clean['job']['namespace'] == 'scratch' and train['run']['facets']['executionParameters']['parameters'][0] == dict(key='rate', name='rate', value='0.4')
    assert 'not good enough' in publish['run']['facets']['errorMessage']['message']


def test_an_invalid_event_would_be_noticed(project, validate, tmp_path):
    project.cli('lineage', 'train.model', '--openlineage', str(tmp_path/'events.jsonl'))
    event = json.loads((tmp_path/'events.jsonl').read_text().splitlines()[0])
    def wrong(change):
        o = json.loads(json.dumps(event))
        change(o)
        with pytest.raises(Exception): validate(o)
    wrong(lambda o: o['run'].update(runId='7'))
    wrong(lambda o: o.update(eventTime='yesterday'))
    wrong(lambda o: o['run']['facets']['parent'].pop('job'))
    wrong(lambda o: o['job']['facets']['jobType'].update(processingType=3))


class Receiver(BaseHTTPRequestHandler):
    "Takes events; refuses them from the `refuse`-th on"
    def do_POST(self):
        s = self.server
        body = self.rfile.read(int(self.headers['Content-Length']))
        code = s.code if len(s.got) >= s.refuse else 201
        if code == 201: s.got.append((self.path, self.headers['Authorization'], json.loads(body)))
        self.send_response(code)
        if code == 307: self.send_header('Location', '/elsewhere')
        self.end_headers()
        if code == 401: self.wfile.write(f"who is {self.headers['Authorization']}?".encode())
    def log_message(self, *args): pass


@pytest.fixture
def receiver():
    with HTTPServer(('127.0.0.1', 0), Receiver) as s:
        s.got,s.refuse,s.code = [], 10**6, 401
        s.url = f'http://127.0.0.1:{s.server_port}'
        t = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02))
        t.start()
        yield s
        s.shutdown()
        t.join()


def test_events_are_sent_with_the_key(project, validate, receiver):
    done = project.cli('lineage', 'train.model', '--openlineage', receiver.url, OPENLINEAGE_API_KEY='hush-key', OPENLINEAGE_NAMESPACE='team')
    assert done.code == 0 and len(receiver.got) == 8, done
    assert {(path, auth) for path,auth,_ in receiver.got} == {('/api/v1/lineage', 'Bearer hush-key')}
    for _,_,o in receiver.got: validate(o)
    assert {o['job']['namespace'] for _,_,o in receiver.got} == {'team'} and 'hush-key' not in done.text
    first = [o for _,_,o in receiver.got]
    receiver.got.clear()
    assert project.cli('lineage', 'train.model', '--openlineage', f'{receiver.url}/my/events', OPENLINEAGE_NAMESPACE='team').code == 0
    assert {(path, auth) for path,auth,_ in receiver.got} == {('/my/events', None)} and [o for _,_,o in receiver.got] == first # the same ids


@pytest.mark.parametrize('code, said', [(401, 'it answered 401 Unauthorized: who is Bearer ***?'), (307, 'it answered 307'), (500, 'it answered 500')])
def test_a_server_that_takes_no_more(project, receiver, code, said):
    receiver.refuse,receiver.code = 3, code
    done = project.cli('lineage', 'train.model', '--openlineage', receiver.url, OPENLINEAGE_API_KEY='hush-key')
    assert done.code == 1 and said in done.err and '3 of 8 were taken' in done.err and 'hush-key' not in done.text, done
    assert [o for o,_,_ in receiver.got] == ['/api/v1/lineage']*3


def test_nobody_answers(project, receiver):
    url = receiver.url
    receiver.server_close()
    done = project.cli('lineage', 'train.model', '--openlineage', url)
    assert done.code == 1 and "doesn't take the events" in done.err and 'refused' in done.err and 'Traceback' not in done.err


def test_what_cannot_be_written_is_one_clear_error(project, tmp_path):
    (tmp_path/'file').write_text('')
    for option in ('--svg', '--openlineage'):
        done = project.cli('lineage', 'train.model', option, str(tmp_path/'file'/'x'))
        assert done.code in (1, 2) and "can't be written" in done.err and 'Traceback' not in done.err, done
    done = project.cli('lineage', 'train.model', '--openlineage', 'ftp://me:hush@host/x')
    assert done.code == 1 and 'http' in done.err and 'hush' not in done.text


def test_nothing_is_left(project):
    assert not project.quiet() and not list((project.state/'tmp').glob('*')), shutil.disk_usage('/')
