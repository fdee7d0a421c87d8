"""The flights pipeline on two months, in a scratch copy of this project"""
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest

from mlops_nb.columns import Columns, as_columns
from mlops_nb.flights.features import numbers, words
from mlops_nb.package import fit_rows, load_package
from mlops_nb.quick import Quick
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

    no_skew(project)

    other = project.ok(*small, '-p', 'iterations=20').statuses
    assert other == {'01_ingest': 'cached', '02_validate': 'cached', '03_features': 'cached', '04_train': 'completed', '04a_package': 'completed', '05_evaluate': 'completed'}

    project.ok(*small, '--force')
    made = [(o['stage'], {k: v['digest'] for k, v in o['outputs'].items()}) for o in project.rows(status='completed')]
    assert dict(made[-6:]) == dict(made[:6]), 'the same fingerprint gives the same bytes'


def no_skew(project):
    "A service takes held-out timetables one by one: it must make the features that training had, to the last digit, and say the same"
    june = [('month', '==', 6)]
    prepared,flown = (pd.read_parquet(project.data/f'{o}.parquet', filters=june) for o in ('features', 'completed'))
    package = load_package(project.data/'flights_model')
    raw = as_columns(fit_rows(package.about['columns'], flown[package.names]))
    ask,seen = Quick(package.loaded),[]
    says = ask.model.predict_proba
    ask.model = SimpleNamespace(predict_proba=lambda features: seen.append(features) or says(features))
    at = range(0, len(flown), 97)
    said = [float(ask(Columns({k: raw[k][i:i+1] for k in raw}))[0]) for i in at]
    for c in words+numbers: pd.testing.assert_series_equal(pd.Series(np.concatenate([o[c] for o in seen])), prepared[c].iloc[at].reset_index(drop=True), check_dtype=False, check_exact=True, check_names=False)
    assert np.abs(np.array(said) - package.predict(flown[package.names])[at]).max() < 1e-5 and len(said) > 200


def test_a_worse_model_is_refused_by_name_of_the_gate(project):
    [first] = project.ok(*small).json['models']
    assert project.cli('promote', 'flights', '--json', timeout=300).json['status'] == 'promoted'
    project.ok(*small, '-p', 'iterations=10', '-p', 'learning_rate=0.02') # has hardly begun to learn
    refused = project.cli('promote', 'flights', '--json', timeout=300)
    assert refused.code == 1 and refused.json['champion'] == first['version'] and refused.json['version'] == 2
    assert 'Not worse than the champion' in [o['name'] for o in refused.json['judgement']['gates'] if not o['ok']]
    assert project.quiet(60) == []
