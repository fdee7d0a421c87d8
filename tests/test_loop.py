"""The loop: what a model is asked is watched, an alert fires a run, and the run leads back to the alert"""
from datetime import datetime, timedelta, timezone

from mlops_nb.alert import alerts
from mlops_nb.fire import firing_of_run
from mlops_nb.plan import Workspace
from mlops_nb.watch import watch_once
from test_monitor import asked, made, train # noqa: F401


def test_drift_of_what_is_asked_starts_a_run(made, tmp_path):
    p = made.copied_to(tmp_path/'p')
    with open(p.root/'settings.ini', 'a') as f: f.write('\n[trigger:retrain]\non = drift\nmodel = demo\ncolumns = x\nrun = demo\nparams = day={day}\ncooldown = 30d\n')
    p.stage('01_train', 'package: "Model" = "data/model"\nday: str = ""', train)
    now = datetime(2020, 3, 20, tzinfo=timezone.utc)
    asked(p, range(10))
    assert watch_once(p.settings, now) == []
    asked(p, range(10, 12), shift=1., first=1)
    first, last = watch_once(p.settings, now + timedelta(1))
    assert (first['status'], last['status'], last['params']) == ('skipped', 'completed', {'day': '2020-03-12'})
    assert watch_once(p.settings, now + timedelta(2)) == []
    asked(p, [12], shift=1., first=2)
    assert watch_once(p.settings, now + timedelta(2)) == [] # it cools down
    late, = watch_once(p.settings, now + timedelta(31)) # and nothing is lost
    assert (late['status'], late['params']) == ('completed', {'day': '2020-03-13'})
    # from the run back to the alerts, and what they say
    ws = Workspace(p.settings)
    back = firing_of_run(ws, ws.ledger.run(last['run_id']))
    told = [o for o in alerts(ws, 'demo') if o['id'] in back['data']['alerts']]
    said = p.inside('show', last['run_id'], '--json').json['firing']
    assert said['id'] == last['id'] and said['alerts'] == back['data']['alerts'] and f"triggers{last['id']}" in ''.join(p.inside('show', last['run_id']).out.split())
    assert back['id'] == last['id'] and told and {o['start'][:10] for o in told} == {'2020-03-12'} and 'x' in told[0]['data']['columns']
    ws.ledger.close()
