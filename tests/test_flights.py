"""The flights pipeline on two months, in a scratch copy of this project"""
import shutil
from pathlib import Path

import pytest
from scratch import Project

flights = Path(__file__).resolve().parents[1]/'nbs'/'pipelines'/'flights'
small = [o for kv in ('months=5,6', 'test_month=6', 'train_window=1', 'valid_days=10') for o in ('-p', kv)]


@pytest.fixture
def project(tmp_path):
    p = Project(tmp_path/'project', settings='[DEFAULT]\nmlflow = sqlite:///.mlops/mlflow.db\n', pipeline='flights')
    for f in flights.glob('*.ipynb'): shutil.copyfile(f, p.folder/f.name)
    yield p
    p.put_away()


def test_it_beats_the_baseline_runs_only_what_changed_and_repeats_itself(project):
    first = project.ok(*small)
    assert set(first.statuses.values()) == {'completed'} and len(first.statuses) == 6 and first.json['models'] == [dict(name='flights', version=1, new=True)]
    found = first.json['metrics']
    assert found['auc'] > found['baseline_auc'] > .5 and found['log_loss'] < found['baseline_log_loss']
    assert {o.name for o in project.data.iterdir()} >= {'flights.parquet', 'features.parquet', 'model.skops', 'metrics.json'}

    again = project.ok(*small)
    assert set(again.statuses.values()) == {'cached'} and again.json['metrics'] == found

    other = project.ok(*small, '-p', 'iterations=20').statuses
    assert other == {'01_ingest': 'cached', '02_validate': 'cached', '03_features': 'cached', '04_train': 'completed', '04a_package': 'completed', '05_evaluate': 'completed'}

    project.ok(*small, '--force')
    made = [(o['stage'], {k: v['digest'] for k, v in o['outputs'].items()}) for o in project.rows(status='completed')]
    assert dict(made[-6:]) == dict(made[:6]), 'the same fingerprint gives the same bytes'


def test_a_worse_model_is_refused_by_name_of_the_gate(project):
    [first] = project.ok(*small).json['models']
    assert project.cli('promote', 'flights', '--json', timeout=300).json['status'] == 'promoted'
    project.ok(*small, '-p', 'iterations=10', '-p', 'learning_rate=0.02') # has hardly begun to learn
    refused = project.cli('promote', 'flights', '--json', timeout=300)
    assert refused.code == 1 and refused.json['champion'] == first['version'] and refused.json['version'] == 2
    assert 'Not worse than the champion' in [o['name'] for o in refused.json['judgement']['gates'] if not o['ok']]
    assert project.quiet() == []
