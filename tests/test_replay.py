"""Two months of the year of flights, lived through with real processes: a poisoned month is refused, a worthless champion is taken back, and who is killed or stopped on the way changes nothing"""
import signal, time

import pandas as pd, pytest

from mlops_nb.config import load_settings
from mlops_nb.fire import firings
from mlops_nb.plan import Workspace
from mlops_nb.promote import audit
from scratch import Project


@pytest.fixture
def project(tmp_path):
    p = Project(tmp_path/'project')
    yield p
    p.put_away()


def test_the_loop_closes_though_its_watchers_are_killed_and_it_is_stopped(project):
    months = 'replay', 'flights', '--short', '--to-month', '4', '--forced', '3', '--kills', '5', '--json'
    world = project.state/'replay'/'flights-2013-short-to4-kills5-forced3'
    def fired():
        if not (world/'.mlops'/'ledger.db').exists(): return []
        ws = Workspace(load_settings(world))
        try: return firings(ws)
        finally: ws.ledger.close()

    # somebody stops it while a firing of the first of May is being done, and then begins it again: what was done isn't done again
    first = project.start(*months)
    while first.poll() is None and not any(o['trigger'] == 'moved' and o['status'] == 'running' for o in fired()): time.sleep(.3)
    looks = {o.name: o.stat().st_mtime for o in (world/'looks').iterdir()}
    first.send_signal(signal.SIGINT)
    stopped = project.wait(first)
    assert stopped.code == 130 and len(looks) == 3, (stopped, looks)
    done = project.cli(*months, timeout=1800)
    assert done.code == 0, done
    assert {k: (world/'looks'/k).stat().st_mtime for k in looks} == looks and len([*(world/'looks').iterdir()]) == 4

    # the outcomes of March came in hours first: refused, and nothing learned; a day later they came in minutes
    o, rows = done.json, fired()
    assert [f['status'] for f in rows if f['trigger'] == 'new-labels'] == ['failed', 'completed']
    assert 'late' in [f for f in rows if f['trigger'] == 'new-labels'][0]['data']['outcome']['text']
    [labels] = (world/'.mlops'/'labels'/'flights').glob('*.parquet')
    assert .2 < pd.read_parquet(labels).label.mean() < .25

    # the version that somebody forced in was worth nothing, was taken back as soon as that was known, and the next one passed its gates
    steps = [(a['what'], a.get('from'), a['to'], bool(a.get('override'))) for a in audit(load_settings(world), 'flights')]
    assert steps == [('promoted', None, 1, True), ('promoted', 1, 2, True), ('rolled_back', 2, 1, False), ('promoted', 1, 3, False)]
    assert [f['status'] for f in rows if f['trigger'] == 'setback'] == ['completed']
    march, april = o['months']
    assert march['champion'] == april['champion'] == 2 and march['continuous'] < .6 < march['frozen'] and o['rollbacks'] == 1

    # five watchers were killed: each event has fired once, and what was to be trained was trained once
    assert o['kills'] == 5
    assert o['retrainings']['continuous'] == 1 and len({f['id'] for f in rows}) == len(rows)
    assert [f['status'] for f in rows if f['trigger'] == 'moved'] == ['skipped', 'completed'] and [f['status'] for f in rows if f['trigger'] == 'worse'] == ['completed']

    # the page is there, the server isn't, and the same command has nothing to do
    assert (project.state/'replay'/f'{world.name}.html').is_file() and project.quiet(60) == []
    again = project.cli(*months)
    assert again.json['months'] == o['months']
