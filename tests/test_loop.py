"""The loop: what a model is asked is watched, an alert fires a run, and the run leads back to the alert"""
import os, signal, subprocess, sys
from copy import copy
from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd

from mlops_nb.alert import alerts
from mlops_nb.fire import firing_of_run, firings
from mlops_nb.plan import Workspace
from mlops_nb.watch import watch_once
from scratch import mark
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


loop = '''
[trigger:labels]
on = data
data = drop/*.parquet
settle = 0
run = tell
params = labels={file}
[trigger:setback]
on = performance
model = demo
rollback = true
[trigger:moved]
on = drift
model = demo
run = demo
params = seed={month}
promote = true
cooldown = 30d
[trigger:worse]
on = performance
model = demo
run = demo
params = seed=7
promote = true
cooldown = 30d
'''
script = '''
import os, signal, sys
import {module} as m
from datetime import datetime, timezone
from mlops_nb.config import load_settings
from mlops_nb.watch import watch_once
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
m.{name} = die
watch_once(load_settings('.'), datetime(2020, 3, 11, 6, tzinfo=timezone.utc))
'''


def looping(p):
    "Ten days: the last two are about other rows, and by the outcomes that have just come the answers of the later ones are worthless"
    from mlops_nb.promote import promote
    with open(p.root/'settings.ini', 'a') as f: f.write(loop)
    p.stage('01_train', 'package: "Model" = "data/model"\nseed: int = 0', train.replace('default_rng(0)', 'default_rng(seed)'))
    p.stage('02_judge', 'package: In = "data/model"\ndone: Out = "data/done.txt"', '#| gate Good enough\nassert True', 'open(done, "w").write("done")')
    q = copy(p)
    q.pipeline = 'tell'
    q.folder.mkdir()
    q.stage('01_tell', 'labels: In = "data/labels.parquet"\ntold: Out = "data/told.txt"', 'import pandas as pd\nfrom mlops_nb.labels import tell_labels\nopen(told, "w").write(str(tell_labels("demo", pd.read_parquet(labels))["keys"]))')
    promote(p.settings, 'demo', 1, override=True, reason='there is no other')
    rows = asked(p, range(8), per=1000)
    asked(p, range(8, 10), per=1000, shift=1., first=1)
    yes = np.random.default_rng(1).random(len(rows)) < np.where(rows.day < 5, 1/(1 + np.exp(-2*rows.x)), .5)
    (p.root/'drop').mkdir()
    pd.DataFrame(dict(key=rows.key, yes=yes)).to_parquet(p.root/'drop/labels.parquet')


def came(p):
    "What fired, was alarming and became champion"
    from mlops_nb.promote import audit
    ws = Workspace(p.settings)
    fired = sorted((o['trigger'], o['status'], o['why'], o['data'].get('outcome', {}).get('text', '')) for o in firings(ws))
    told = sorted((o['kind'], o['version'], o['what'], o['start']) for o in alerts(ws, 'demo'))
    ws.ledger.close()
    return fired, told, [(a['what'], a.get('from'), a['to']) for a in audit(p.settings, 'demo')]


def test_a_look_is_the_same_whoever_is_killed_in_it(made, tmp_path):
    calm, once = made.copied_to(tmp_path/'calm'), ('watch', '--once', '--now', '2020-03-11T06:00')
    looping(calm)
    rough = made.copied_to(tmp_path/'rough')
    looping(rough)
    assert calm.cli(*once).code == 0
    for place in ('mlops_nb.fire.ended', 'mlops_nb.monitor._remember', 'mlops_nb.fire.promote'): # outcomes are in, and nobody has noted it; alerts are raised, and nobody remembers why; a version is there, and its gates weren't asked
        module, name = place.rsplit('.', 1)
        done = subprocess.run([sys.executable, '-c', script.format(module=module, name=name)], cwd=rough.root, capture_output=True, text=True, env={**os.environ, mark: rough.mark})
        assert done.returncode == -signal.SIGKILL, (place, done)
    assert rough.cli(*once).code == 0
    fired, told, steps = came(calm)
    assert came(rough) == (fired, told, steps)
    assert {o[0] for o in fired if o[1] == 'completed'} == {'labels', 'moved', 'worse'} and {o[0] for o in told} == {'drift', 'performance'}
    assert [o[:1] + o[2:] for o in steps] == [('promoted', 1), ('promoted', 2), ('promoted', 3)]
    assert rough.cli(*once).out == 'Nothing fired, and nothing waited.\n' and came(rough) == (fired, told, steps) and rough.quiet(60) == []
