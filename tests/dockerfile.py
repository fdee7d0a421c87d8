"""Do what a Dockerfile says, without Docker: a fresh virtual environment is the base image, a folder is its root.

`python tests/dockerfile.py CONTEXT FOLDER` does all of it, with packages from the index; tests give the packages that are installed already."""
import json, os, re, shlex, shutil, subprocess, sys, venv
from pathlib import Path


def instructions(text):
    "[(instruction, the rest)] of a Dockerfile"
    lines = re.sub(r'\\\n', ' ', re.sub(r'(?m)^#.*\n', '', text)).splitlines()
    return [(o.split(None, 1)[0], o.split(None, 1)[1]) for o in lines if o.strip()]


class Image:
    "What came of a Dockerfile"
    def __init__(self, context, folder, site=None):
        self.context, self.root, self.site = Path(context), Path(folder), site # site: a folder of packages that needn't be installed
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(('MLOPS', 'MLFLOW', 'PYTHON', 'VIRTUAL'))}
        self.work, self.cmd, self.health, self.user = self.root, [], [], ''
        venv.create(self.root/'venv', with_pip=True)
        self.env['PATH'] = f"{self.root/'venv'/'bin'}{os.pathsep}{self.env['PATH']}"
        if site: next((self.root/'venv'/'lib').glob('python*/site-packages')).joinpath('installed.pth').write_text(f'{site}\n')
        for name, rest in instructions((self.context/'Dockerfile').read_text()): getattr(self, f'do_{name.lower()}', self.nothing)(rest)

    def nothing(self, rest): pass
    def do_env(self, rest): self.env |= dict(o.split('=', 1) for o in shlex.split(rest))
    def do_workdir(self, rest):
        self.work = self.root/rest.lstrip('/')
        self.work.mkdir(parents=True, exist_ok=True)
    def do_copy(self, rest):
        *sources, dest = rest.split()
        for o in sources:
            if (self.context/o).is_dir(): shutil.copytree(self.context/o, self.work/dest, dirs_exist_ok=True)
            else: shutil.copy(self.context/o, self.work/dest)
    def do_run(self, rest):
        parts = [o for o in rest.split(' && ') if not o.startswith(('useradd', 'chown', 'apt-get'))] # the machine's users and packages stay as they are
        if self.site: parts = [o for o in parts if '-r requirements.txt' not in o]
        for o in parts: subprocess.run(['sh', '-ec', o], cwd=self.work, env=self.env, check=True)
    def do_user(self, rest): self.user = rest
    def do_healthcheck(self, rest): self.health = json.loads(rest.partition('CMD ')[2])
    def do_cmd(self, rest): self.cmd = json.loads(rest)
    def start(self, port, **env):
        "What the container would do"
        return subprocess.Popen(self.at(self.cmd, port), cwd=self.work, env=self.env | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    def well(self, port): return subprocess.run(self.at(self.health, port), cwd=self.work, env=self.env, capture_output=True).returncode == 0
    def at(self, command, port): return [shutil.which(command[0], path=self.env['PATH']), *(o.replace('8080', str(port)) for o in command[1:])]



if __name__ == '__main__':
    image = Image(*sys.argv[1:3])
    p = image.start(18080, MLOPS_TOKEN='open-sesame', PYTHONUNBUFFERED='1')
    try:
        for o in p.stdout:
            print(o, end='', flush=True)
            if 'Try it' in o: break
        print('HEALTHCHECK', image.well(18080))
        ask = re.search(r"--json '(.*)' http", (image.context/'README.md').read_text())[1]
        for path in ('/predict', ): print(subprocess.run(['curl', '-sS', '-i', '-H', 'Authorization: Bearer open-sesame', '--json', ask, f'http://127.0.0.1:18080{path}'], capture_output=True, text=True).stdout)
    finally:
        p.terminate()
        print(p.wait(30), p.stdout.read())
