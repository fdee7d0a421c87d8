"""Two months of the year of flights, lived through with real processes: a poisoned month is refused, a worthless champion is taken back, and watchers that are killed change nothing"""
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


def test_the_loop_closes_though_its_watchers_are_killed(project):
    done = project.cli('replay', 'flights', '--short', '--to-month', '4', '--forced', '3', '--kills', '5', '--json', timeout=1800)
    assert done.code == 0, done
    o, world = done.json, load_settings(project.state/'replay'/'flights-2013-short-to4-kills5-forced3')
    ws = Workspace(world)
    fired = firings(ws)

    # the outcomes of March came in hours first: refused, and nothing learned; a day later they came in minutes
    assert [f['status'] for f in fired if f['trigger'] == 'new-labels'] == ['failed', 'completed']
    assert 'late' in [f for f in fired if f['trigger'] == 'new-labels'][0]['data']['outcome']['text']
    [labels] = (project.state/'replay'/'flights-2013-short-to4-kills5-forced3'/'.mlops'/'labels'/'flights').glob('*.parquet')
    assert .2 < pd.read_parquet(labels).label.mean() < .25

    # the version that somebody forced in was worth nothing, was taken back as soon as that was known, and the next one passed its gates
    steps = [(a['what'], a.get('from'), a['to'], bool(a.get('override'))) for a in audit(world, 'flights')]
    assert steps == [('promoted', None, 1, True), ('promoted', 1, 2, True), ('rolled_back', 2, 1, False), ('promoted', 1, 3, False)]
    assert [f['status'] for f in fired if f['trigger'] == 'setback'] == ['completed']
    march, april = o['months']
    assert march['champion'] == april['champion'] == 2 and march['continuous'] < .6 < march['frozen'] and o['rollbacks'] == 1

    # five watchers were killed: each event has fired once, and what was to be trained was trained once
    assert o['kills'] == 5
    assert o['retrainings']['continuous'] == 1 and len({f['id'] for f in fired}) == len(fired)
    assert [f['status'] for f in fired if f['trigger'] == 'moved'] == ['skipped', 'completed']
    ws.ledger.close()

    # the page is there, the server isn't, and the same command has nothing to do
    assert (project.state/'replay'/'flights-2013-short-to4-kills5-forced3.html').is_file() and project.quiet(60) == []
    again = project.cli('replay', 'flights', '--short', '--to-month', '4', '--forced', '3', '--kills', '5', '--json')
    assert again.json['months'] == o['months']
