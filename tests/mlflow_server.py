"""MLflow's own server on a free port of this machine, which can be killed and started again; and plain MLflow in a process that has nothing of ours"""
import json, os, signal, socket, subprocess, sys, urllib.request
from contextlib import suppress
from pathlib import Path

from scratch import until

calm = dict(MLFLOW_DISABLE_TELEMETRY='true', DO_NOT_TRACK='true', MLFLOW_SERVER_ENABLE_JOB_EXECUTION='false', MLFLOW_LOGGING_LEVEL='ERROR')


class MlflowServer:
    "`with MlflowServer(folder) as server`: its database and its files are in `folder`"
    def __init__(self, folder, *args, **env):
        with socket.create_server(('127.0.0.1', 0)) as s: self.port = s.getsockname()[1]
        self.folder, self.args, self.env, self.proc = Path(folder), args, env, None
        self.folder.mkdir(exist_ok=True)

    @property
    def url(self): return f'http://127.0.0.1:{self.port}'
    def __enter__(self): return self.start()
    def __exit__(self, *_): self.kill()

    def start(self):
        "Start it, and wait until it answers"
        command = [sys.executable, '-m', 'mlflow', 'server', '--host', '127.0.0.1', '--port', str(self.port), '--workers', '1', '--backend-store-uri', f'sqlite:///{self.folder}/server.db',
                   '--artifacts-destination', str(self.folder/'files'), *self.args]
        with open(self.folder/'server.log', 'ab') as log:
            self.proc = subprocess.Popen(command, cwd=self.folder, env={**os.environ, **calm, **self.env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        until(self.answers, 120)
        return self

    def answers(self):
        assert self.proc.poll() is None, (self.folder/'server.log').read_text()
        with suppress(OSError): return urllib.request.urlopen(f'{self.url}/health', timeout=5).status == 200

    def kill(self):
        with suppress(ProcessLookupError): os.killpg(self.proc.pid, signal.SIGKILL)
        self.proc.wait()


foreign = '''
import json, sys
class Never:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mlops_nb","pandera","serve","features","checks","judging"): raise ModuleNotFoundError(f"{name} is not here")
sys.meta_path.insert(0, Never())
import mlflow, pandas as pd
m = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(list(m.predict(pd.DataFrame(json.loads(sys.argv[2]))))))
'''


def plain_mlflow(folder, uri, rows, tracking):
    "What plain MLflow foretells in a process that has nothing of ours, and knows only where MLflow is"
    env = {k: v for k, v in os.environ.items() if not k.startswith(('MLFLOW', 'MLOPS', 'PYTHON'))}
    folder.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, '-c', foreign, uri, rows.to_json(orient='records')], cwd=folder, text=True, capture_output=True, timeout=120,
                          env=env | dict(MLFLOW_TRACKING_URI=tracking, MLFLOW_DISABLE_TELEMETRY='true'))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
