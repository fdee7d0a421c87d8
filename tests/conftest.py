"""Fixtures that several files of tests share"""
import os, signal

import pytest

from postgres_server import postgres
from scratch import Project

# A test run in the background inherits ignored signals, and would hand them on to the runs that it stops
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
for o in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(o) == signal.SIG_IGN: signal.signal(o, signal.SIG_DFL)

os.environ['MLOPS_MLFLOW'] = 'none' # MLflow is told of the runs of those tests alone that are about it


first = ['test_replay', 'test_tutorials', 'test_flights', 'test_site', 'test_serve', 'test_tune', 'test_conformance'] # files that take long


def pytest_collection_modifyitems(items):
    "Long files come first, so that workers who share the tests end together"
    items.sort(key=lambda o: first.index(o.path.stem) if o.path.stem in first else len(first))


@pytest.fixture
def project(tmp_path):
    "An empty scratch project; nothing of it outlives the test"
    p = Project(tmp_path/'project')
    yield p
    p.put_away()


@pytest.fixture(scope='session')
def postgres_server():
    "One PostgreSQL for all; each test makes databases of its own in it"
    with postgres() as server: yield server
