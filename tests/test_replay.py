"""Two months of the year of flights, lived through with real processes: a poisoned month is refused, a worthless champion is taken back, and who is killed or stopped on the way changes nothing"""
import signal
from types import SimpleNamespace

import pandas as pd, pytest

from mlops_nb.config import load_settings
from mlops_nb.fire import firings
from mlops_nb.plan import Workspace
from mlops_nb.promote import audit
from scratch import Project, until

months = 'replay', 'flights', '--short', '--to-month', '4', '--forced', '3', '--json'


def of(p, name):
    "A year of a project: its folder, and what fired"
    root = p.state/'replay'/name
    def fired():
        if not (root/'.mlops'/'ledger.db').exists(): return []
        ws = Workspace(load_settings(root))
        try: return firings(ws)
        finally: ws.ledger.close()
    return SimpleNamespace(root=root, fired=fired)


@pytest.fixture(scope='module')
def years(tmp_path_factory):
    "The same months twice at once: undisturbed; and with watchers killed, and the replay stopped in the midst of a firing and begun again"
    p = Project(tmp_path_factory.mktemp('years')/'project')
    calm, rough = of(p, 'flights-2013-short-to4-forced3'), of(p, 'flights-2013-short-to4-kills5-forced3')
    try:
        one, other = p.start(*months), p.start(*months, '--kills', '5')
        until(lambda: other.poll() is not None or any(o['trigger'] == 'moved' and o['status'] == 'running' for o in rough.fired()), 1800)
        other.send_signal(signal.SIGINT)
        rough.stopped = p.wait(other)
        rough.done = p.cli(*months, '--kills', '5', timeout=1800)
        calm.done = p.wait(one, 1800)
        yield p, calm, rough
    finally: p.put_away()


def story(o):
    "What came of a year, without the names of runs and firings"
    return [m | dict(fired=[(f['trigger'], f['status'], f['why'], f['outcome']) for f in m['fired']]) for m in o['months']], {k: v for k, v in o.items() if k not in ('months', 'page', 'kills')}


def test_who_is_killed_or_stopped_changes_nothing(years):
    p, calm, rough = years
    assert rough.stopped.code == 130, rough.stopped
    assert calm.done.code == rough.done.code == 0, (calm.done, rough.done)
    assert calm.done.json['kills'] == 0 and rough.done.json['kills'] == 5
    assert story(rough.done.json) == story(calm.done.json)


def test_the_loop_closes(years):
    p, calm, rough = years
    o, world, fired = rough.done.json, load_settings(rough.root), rough.fired()

    # the outcomes of March came in hours first: refused, and nothing learned; a day later they came in minutes
    assert [f['status'] for f in fired if f['trigger'] == 'new-labels'] == ['failed', 'completed']
    assert 'late' in [f for f in fired if f['trigger'] == 'new-labels'][0]['data']['outcome']['text']
    [labels] = (rough.root/'.mlops'/'labels'/'flights').glob('*.parquet')
    assert .2 < pd.read_parquet(labels).label.mean() < .25

    # the version that somebody forced in was worth nothing, was taken back as soon as that was known, and the next one passed its gates
    steps = [(a['what'], a.get('from'), a['to'], bool(a.get('override'))) for a in audit(world, 'flights')]
    assert steps == [('promoted', None, 1, True), ('promoted', 1, 2, True), ('rolled_back', 2, 1, False), ('promoted', 1, 3, False)]
    assert [f['status'] for f in fired if f['trigger'] == 'setback'] == ['completed']
    march, april = o['months']
    assert march['champion'] == april['champion'] == 2 and march['continuous'] < .6 < march['frozen'] and o['rollbacks'] == 1

    # each event has fired once, and what was to be trained was trained once
    assert o['retrainings']['continuous'] == 1 and len({f['id'] for f in fired}) == len(fired)
    assert [f['status'] for f in fired if f['trigger'] == 'moved'] == ['skipped', 'completed']


def test_the_page_is_there_and_the_same_command_has_nothing_to_do(years):
    p, calm, rough = years
    assert (p.state/'replay'/f'{rough.root.name}.html').is_file() and p.quiet(60) == []
    again = p.cli(*months, '--kills', '5')
    assert again.json['months'] == rough.done.json['months']
