"""Libraries in forks: after their import, and after their use, a fork computes the same or is refused; none hangs"""
import importlib.util, json, os, signal, subprocess, sys, tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='forks are for Linux')
root = Path(__file__).resolve().parents[1]
data = 'import numpy as np; r = np.random.RandomState(0); X = r.rand(3000, 8); y = (X[:, 0]>.5)*1'

# name: (import, work that ends in `res`); the import decides whether the case is skipped
cases = {
    'numpy': ('numpy as np', 'a = np.arange(640000.).reshape(800, 800) % 7; res = float((a @ a).sum())'),
    'scipy': ('scipy.linalg, numpy as np', 'a = np.arange(90000.).reshape(300, 300) % 7 + 9*np.eye(300); res = float(scipy.linalg.inv(a).sum())'),
    'pandas': ('pandas as pd', 'd = pd.DataFrame({"a": range(200000)}); d["b"] = d.a % 5; d["c"] = d.eval("a*2+b"); res = d.groupby("b").c.sum().tolist()'),
    'pyarrow': ('pyarrow as pa, pyarrow.parquet as pq, pyarrow.dataset as ds, tempfile', '''
with tempfile.TemporaryDirectory() as d:
    t = pa.table({'a': list(range(200000)), 'b': [o % 7 for o in range(200000)]})
    pq.write_table(t, d+'/x.parquet', row_group_size=10000)
    u = ds.dataset(d+'/x.parquet').to_table(use_threads=True)
    res = sorted(u.group_by('b').aggregate([('a', 'sum')])['a_sum'].to_pylist()), pq.read_table(d+'/x.parquet').num_rows'''),
    'boosting': ('sklearn.ensemble', data+'; res = sklearn.ensemble.HistGradientBoostingClassifier(max_iter=10, random_state=0).fit(X, y).predict(X).tolist()'),
    'forest-threads': ('sklearn.ensemble', data+'; res = sklearn.ensemble.RandomForestClassifier(10, n_jobs=2, random_state=0).fit(X, y).predict(X).tolist()'),
    'loky': ('joblib', 'res = joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-o) for o in range(4))'),
    'logistic': ('sklearn.linear_model', data+'; res = sklearn.linear_model.LogisticRegression().fit(X, y).predict(X).tolist()'),
    'matplotlib': ('matplotlib; matplotlib.use("agg"); import matplotlib.pyplot as plt, io',
        'f, a = plt.subplots(); a.plot([1, 2]); b = io.BytesIO(); f.savefig(b); plt.close(f); res = len(b.getvalue())'),
    'polars': ('polars as pl', 'res = pl.LazyFrame({"a": range(200000)}).with_columns(b=pl.col("a") % 7).group_by("b").agg(pl.col("a").sum()).sort("b").collect()["a"].to_list()'),
    'duckdb': ('duckdb', 'res = duckdb.connect().sql("select i%7 a, sum(i) from range(2000000) t(i) group by 1 order by 1").fetchall()'),
    'duckdb-global': ('duckdb', 'res = duckdb.sql("select i%7 a, sum(i) from range(2000000) t(i) group by 1 order by 1").fetchall()'),
    'xgboost': ('xgboost', data+'; res = xgboost.XGBClassifier(n_estimators=5, n_jobs=2).fit(X, y).predict(X).tolist()'),
    'lightgbm': ('lightgbm', data+'; res = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=2, verbose=-1).fit(X, y).predict(X).tolist()'),
    'statsmodels': ('statsmodels.api as sm', data+'; res = sm.OLS(X[:, 0], X[:, 1:]).fit().params.round(9).tolist()'),
    'torch': ('torch', '''
a = torch.arange(360000.).reshape(600, 600) % 7; w = torch.ones(4, 3, 3, 3, requires_grad=True)
l = torch.nn.functional.conv2d(torch.ones(8, 3, 64, 64), w).sum(); l.backward(); res = [float((a @ a).sum()), float(l), float(w.grad.sum())]'''),
    'torch-workers': ('torch, torch.utils.data as td', '''
class Squares(td.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return torch.ones(50, 50) * i @ torch.ones(50, 50)
res = [float(o.sum()) for o in td.DataLoader(Squares(), 4, num_workers=2)]'''),
    'grpc': ('grpc, tempfile, concurrent.futures as cf', '''
with tempfile.TemporaryDirectory() as d:
    s = grpc.server(cf.ThreadPoolExecutor(2))
    h = grpc.unary_unary_rpc_method_handler(lambda q, c: q[::-1])
    s.add_generic_rpc_handlers([grpc.method_handlers_generic_handler('t', {'r': h})]); s.add_insecure_port(f'unix:{d}/s'); s.start()
    with grpc.insecure_channel(f'unix:{d}/s') as c: res = c.unary_unary('/t/r')(b'abc', timeout=15).decode()
    s.stop(None).wait()'''),
    'plotly': ('plotly.express as px', 'res = len(px.line(x=[1, 2], y=[3, 4]).to_json())'),
    'asyncio': ('asyncio', 'res = asyncio.run(asyncio.wait_for(asyncio.sleep(.01, 3), 5))'),
    'sqlite': ('sqlite3', 'c = sqlite3.connect(":memory:"); res = c.execute("select 1+1").fetchone()[0]; c.close()'),
    'pool': ('multiprocessing as mp', 'with mp.get_context("fork").Pool(2) as p: res = p.map(abs, [-1, -2])'),
    'futures': ('concurrent.futures as cf', 'with cf.ThreadPoolExecutor(2) as p: res = list(p.map(abs, [-1, -2]))'),
}

# name of a global generator: (import, what it draws)
draws = {
    'random': ('random', 'res = random.random()'),
    'numpy.random': ('numpy', 'res = numpy.random.rand()'),
    'torch.default_generator': ('torch', 'res = float(torch.rand(1, dtype=torch.float64))'),
}

driver = '''
import json, os, signal, sys, time
from mlops_nb.fork import calm, forget_exit_handlers, look, reseed, threads, unsafe_threads, watch, why_not
setup, work, force, patience = json.loads(sys.stdin.read())
watch(); before, out = look(), {}

def start():
    r, w = os.pipe()
    if pid := os.fork(): os.close(w); return pid, r
    os.close(r); signal.alarm(patience); forget_exit_handlers(); reseed()
    try:
        ns = dict(globals()); exec(work, ns); os.write(w, json.dumps(ns['res']).encode()[:60000])
    finally: os.close(w); sys.exit()

def end(pid, r):
    with os.fdopen(r, 'rb') as f: got = f.read()
    code = os.waitpid(pid, 0)[1]
    return f'status {code} after {got[:20]}' if code else json.loads(got) if got else 'error'

def forks(): return [*(end(*start()) for _ in range(3 if force else 0)), *[end(*o) for o in [start(), start()]]]

exec('import ' + setup)
out['import_threads'] = len(threads()); calm(); out['calm_threads'] = len(threads()); out['import_reason'] = why_not(before)
if force or not out['import_reason']: out['import'] = forks()
ns = dict(globals()); exec(work, ns); out['expected'] = json.loads(json.dumps(ns['res'])); work_ns = ns
out['used_threads'] = len(threads()); out['used_reason'] = why_not(before); out['used_calm'] = len(threads())
if force or not out['used_reason']:
    out['used'] = forks(); ns = dict(globals()); exec(work, ns); out['again'] = json.loads(json.dumps(ns['res']))
signal.alarm(patience); print('\\n' + json.dumps(out), flush=True)
'''


def run(name, force=False, patience=25):
    "What the driver says about case `name`; `force`: fork even where `why_not` says no"
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
        p = subprocess.Popen([sys.executable, '-c', driver], stdin=subprocess.PIPE, stdout=out, stderr=err, text=True, start_new_session=True,
            env=os.environ | dict(PYTHONPATH=str(root), PYTHONWARNINGS='ignore', OMP_NUM_THREADS='2'))
        try: p.communicate(json.dumps([*(cases | draws)[name], force, patience]), timeout=240)
        finally:
            try: os.killpg(p.pid, signal.SIGKILL)
            except ProcessLookupError: pass
        out.seek(0); err.seek(0)
        lines = out.read().strip().splitlines()
        assert lines and lines[-1].startswith('{'), err.read()[-3000:]
        return json.loads(lines[-1]) | dict(code=p.wait())


@pytest.mark.parametrize('name', cases)
def test_a_fork_computes_the_same_or_is_refused(name):
    top = cases[name][0].replace(',', ' ').replace(';', ' ').split()[0].split('.')[0]
    if not importlib.util.find_spec(top): pytest.skip(f'{top} is not installed')
    res = run(name)
    assert res['import_reason'] or all(o==res['expected'] for o in res['import']), res['import']
    assert res['used_reason'] or all(o==res['expected'] for o in [*res['used'], res['again']]), res['used']
    assert not (name in ours and (res['import_reason'] or res['used_reason'])), res


@pytest.mark.parametrize('name', draws)
def test_forks_draw_their_own_numbers(name):
    top = draws[name][0]
    if not importlib.util.find_spec(top): pytest.skip(f'{top} is not installed')
    res = run(name)
    if res['import_reason']: pytest.skip(f'it is not forked: {res["import_reason"]}')
    found = [*res['import'], *res.get('used', ()), res['expected']]
    assert len({*found})==len(found), found


# what must be forkable before and after its use, or nothing is won
ours = ['numpy', 'scipy', 'pandas', 'pyarrow', 'boosting', 'forest-threads', 'logistic', 'matplotlib', 'asyncio', 'sqlite', 'futures']
