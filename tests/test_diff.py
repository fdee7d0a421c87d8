"What differs between two runs, as the command line tells it"


import pytest

from mlops_nb.diff import diff_runs
from mlops_nb.plan import Workspace
from mlops_nb.store import remove
from scratch import code

text = dict(cell_type='markdown', id='text', metadata={})
ingest = ['raw: In = "data/raw.csv"\nclean: Out = "data/clean.csv"', 'import pandas as pd', 'df = pd.read_csv(raw)', 'df.to_csv(clean, index=False)\nrecord(rows=len(df))']


def write(project, late=30, factor=1, prose='Train.', rows=3, *more):
    "The two stages, their module and their data"
    (project.folder/'prep.py').write_text(f'def late(x):\n    return [o for o in x if o > {late}]\n\ndef unused(): return {late}\n')
    project.data.mkdir(exist_ok=True)
    (project.data/'raw.csv').write_text('delay\n' + ''.join(f'{10*i}\n' for i in range(rows)))
    project.stage('01_ingest', *ingest)
    project.stage('02_train', 'clean: In = "data/clean.csv"\nmodel: Out = "data/model.json"\nleaves: int = 31', dict(text, source=prose),
        'import json\nimport pandas as pd\nfrom prep import late', *more, code(f'n = len(late(list(pd.read_csv(clean).delay)))*{factor}'),
        'json.dump(dict(n=n, leaves=leaves), open(model, "w"))\nrecord(n=n)')


def diff(project, *args):
    done = project.cli('diff', '--json', *args)
    assert done.code == 0, done
    return done.json, {o['stage']: o for o in done.json['stages']}


def test_two_runs(project):
    write(project)
    project.ok()
    project.ok()
    done = project.cli('diff')
    assert 'identical: same parameters, code, data, environment; same outputs' in done.out and len(done.out.splitlines()) == 3

    project.ok('-p', 'leaves=63')
    found,stages = diff(project)
    train = stages['02_train']
    assert not stages['01_ingest']['differs'] and not found['identical']
    assert train['params'] == [dict(name='leaves', how='changed', old=31, new=63)] and not train['cells'] and not train['definitions'] and not train['inputs']
    assert [o['name'] for o in train['outputs']] == ['model'] and not train['metrics']

    write(project, 5, 2, 'Another text.', 5, 'assert leaves > 1')
    project.ok('-p', 'leaves=63')
    found,stages = diff(project)
    ingest,train = stages['01_ingest'], stages['02_train']
    raw = ingest['inputs'][0]
    assert (raw['old']['rows'], raw['new']['rows'], raw['new']['path'], raw['made_by']) == (3, 5, 'nbs/pipelines/demo/data/raw.csv', '')
    assert ingest['metrics'] == [dict(name='rows', how='changed', old=3, new=5, difference=2, percent=pytest.approx(66.67, abs=.01))]
    assert train['inputs'][0]['made_by'] == '01_ingest' and not train['params']
    assert [o['how'] for o in train['cells']] == ['added', 'changed'] and '+assert leaves > 1' in train['cells'][0]['diff'] and train['prose']
    assert [(o['name'], o['how']) for o in train['definitions']] == [('function prep.late', 'changed')]
    assert '-    return [o for o in x if o > 30]\n+    return [o for o in x if o > 5]' in train['definitions'][0]['diff']

    plain = project.cli('diff', COLUMNS='80').out
    assert plain.index('What was different') < plain.index('+n = ') < plain.index('What came of it') < plain.index('66.7 %')
    assert all(len(o) <= 80 for o in plain.splitlines()) and '\x1b' not in plain and '--prose' in plain
    assert '+Another text.' in project.cli('diff', '--prose', '--stage', 'train').out
    assert list(diff(project, 'last~3', 'last', '--stage', 'ingest')[1]) == ['01_ingest']

    first,last = project.rows(stage='02_train')[0], project.rows(stage='02_train')[-1]
    assert list(diff(project, first['id'], last['id'])[1]) == ['02_train']
    assert list(diff(project, first['id'], 'last')[1]) == ['02_train']


def test_a_failure_and_an_end(project):
    write(project)
    project.ok()
    write(project, 30, 1, 'Train.', 3, 'raise ValueError("too few")')
    project.run()
    stages = diff(project)[1]
    assert stages['02_train']['status'] == ['completed', 'failed'] and stages['02_train']['error'] == ['', 'ValueError: too few']
    assert 'completed → failed' in project.cli('diff').out

    project.stage('03_more', 'model: In = "data/model.json"\nmore: Out = "data/more"', 'open(more, "w").write("x")')
    write(project)
    project.ok()
    assert diff(project)[1]['03_more']['only'] == 'b' and 'only in B' in project.cli('diff').out


def test_chance_is_said_to_be_chance(project):
    project.stage('01_roll', 'dice: Out = "data/dice"', 'import os\nopen(dice, "wb").write(os.urandom(8))')
    project.ok()
    project.ok('--force')
    assert 'left to chance' in project.cli('diff').out


def test_without_the_notebooks_the_fingerprint_tells(project):
    write(project)
    project.ok()
    write(project, factor=3)
    project.ok()
    for o in project.rows(): remove(project.store.home(o['code']['digest']))
    train = diff(project)[1]['02_train']
    assert train['code_note'] == 'cell 5 changed (the notebooks are not in the store)' and not train['cells']
    found = diff_runs(Workspace(project.settings))
    assert 'cell 5 changed' in repr(found) and '**02' in found._repr_markdown_()


def test_what_can_not_be_compared(project):
    write(project)
    project.ok()
    assert 'there is no run of demo before' in project.cli('diff').err
    for args,what in ((('last~7', 'last'), "there is no run 'last~7'"), (('nothing', 'last'), "there is no run 'nothing'"), (('study/1', 'last'), 'there is no study study'),
                      (('last', 'last', '--stage', 'trian'), 'did you mean train?')):
        done = project.cli('diff', *args)
        assert done.code == 2 and what in done.err, done
    assert project.cli('diff', 'last~7', 'last', '--json').json['error']['kind'] == 'NoSuchRun'


def test_trials(project):
    project.stage('01_try', 'score: Out = "data/score"\nx: float = 1.0', '#| tune\nfrom optuna.distributions import FloatDistribution\nspace = dict(x=FloatDistribution(0, 1))',
        'open(score, "w").write(str(x))\nrecord(value=x)')
    done = project.cli('tune', 'demo/01_try', '--metric', 'value', '--direction', 'maximize', '--trials', '3', '--json', '--sampler', 'random')
    assert done.code == 0, done
    study = project.cli('studies', '--json').json['studies'][0]
    name = study.get('study') or study['name']
    found,stages = diff(project, f'{name}/0', f'{name}/BEST')
    assert (found['a']['trial'], found['b']['study']) == (0, name) and list(stages) == ['01_try']
    assert found['identical'] or stages['01_try']['params'][0]['name'] == 'x'
