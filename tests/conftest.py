"""Fixtures that several files of tests share"""
import pytest

from scratch import Project


@pytest.fixture
def project(tmp_path):
    "An empty scratch project; nothing of it outlives the test"
    p = Project(tmp_path/'project')
    yield p
    p.put_away()
