"""What two executions of a notebook are compared by: all there is to see, without what can't be equal"""
import json, re
from datetime import datetime
from hashlib import sha256

rules = [ # each with the reason why it can't be equal
    (r'/tmp/ipykernel_\d+/', '/tmp/ipykernel_PID/'), # ipykernel names the files of cells after its process; the number of the cell stays
    (r'\b0x[0-9a-f]{6,}\b|(?<=object at )[0-9a-f]{12}\b', '0xADDRESS'), # where an object lies
    (r'(CPU times: user|sys:|total:|Wall time:) [\d.e+]+ [nuµμm]?s', r'\1 TIME'), # %time
    (r'[\d.e+]+ [nuµμm]?s ± [\d.e+]+ [nuµμm]?s per loop', 'TIME ± TIME per loop'), # %timeit
    (r"\bname='Task-\d+'", "name='Task-N'"), # asyncio counts the tasks of a process, a kernel's own among them
]
ids = re.compile(r'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])')


def when(text):
    "A point in time"
    return datetime.fromisoformat(text.replace('Z', '+00:00'))


def span(d, what):
    "Times of papermill: they must be there and make sense; what is left of them is whether they are"
    start, end, duration = (d.get(o) for o in ('start_time', 'end_time', 'duration'))
    if start and end:
        assert when(start) <= when(end), what
        assert abs((when(end) - when(start)).total_seconds() - duration) < 1e-3, what
    return d | {o: d[o] is not None for o in ('start_time', 'end_time', 'duration') if o in d}


class Normal:
    "Makes executions by one engine in one folder comparable"
    def __init__(self, folder, hide=(), loose=False):
        self.folder, self.loose, self.known = str(folder), loose, {}
        self.rules = [(re.compile(a), b) for a, b in (*rules, *hide)]

    def text(self, s):
        "Text without what can't be equal; an id is named by the order in which ids are seen"
        s = s.replace(self.folder, '/FOLDER')
        for a, b in self.rules: s = a.sub(b, s)
        return ids.sub(lambda m: f'ID{self.known.setdefault(m[0], len(self.known))}', s)

    def value(self, o):
        "Anything"
        if isinstance(o, str): return self.text(o)
        if isinstance(o, list): return [self.value(x) for x in o]
        if isinstance(o, dict): return {self.text(k): self.value(o[k]) for k in sorted(o)}
        return o

    def outputs(self, outputs):
        "Outputs, in which text is one piece for each stream until another output comes: where it is cut is chance, and so is the order of the streams"
        def joined(streams): return [dict(output_type='stream', name=o, text=self.text(streams[o])) for o in sorted(streams)]
        res, streams = [], {}
        for o in outputs:
            if o['output_type'] == 'stream': streams[o['name']] = streams.get(o['name'], '') + ''.join(o['text'])
            else:
                if not self.loose:
                    res += joined(streams)
                    streams = {}
                res.append(self.value({k: ''.join(v) if k == 'text' else v for k, v in o.items()}))
        return res + joined(streams)

    def cell(self, c):
        "A cell; an id that papermill made is any"
        meta = dict(c['metadata'])
        meta.pop('mlops_nb', None)
        if 'papermill' in meta: meta['papermill'] = span(meta['papermill'], c)
        if 'execution' in meta:
            times = {k: when(v) for k, v in meta['execution'].items() if isinstance(v, str)}
            if 'iopub.status.busy' in times and 'iopub.status.idle' in times: assert times['iopub.status.busy'] <= times['iopub.status.idle'], c
            meta['execution'] = {k: 'TIME' if k in times else v for k, v in meta['execution'].items()}
        res = {k: v for k, v in c.items() if k not in ('outputs', 'metadata', 'id')} | dict(metadata=self.value(meta), source=self.text(''.join(c['source'])))
        if 'id' in c: res['id'] = c['id'] if re.fullmatch(r'cell-\d+', c['id']) else 'NEW'
        if 'outputs' in c: res['outputs'] = self.outputs(c['outputs'])
        return res

    def widgets(self, state):
        "Widget models, in the order in which outputs and then models refer to them, because they are written in the order of their ids"
        res, done = {}, set()
        while todo := [o for o in self.known if o in state and o not in done]:
            for o in todo:
                done.add(o)
                res[self.text(o)] = self.value(state[o])
        rest = [o for o in state if o not in done]
        return res | {'others': sorted(json.dumps(Normal(self.folder).value(state[o]), sort_keys=True) for o in rest)}

    def notebook(self, nb):
        "A whole notebook"
        meta = {k: v for k, v in nb['metadata'].items() if k not in ('widgets', 'mlops_nb')}
        if 'papermill' in meta: meta['papermill'] = span(meta['papermill'], 'notebook')
        res = {k: v for k, v in nb.items() if k not in ('cells', 'metadata')} | dict(cells=[self.cell(o) for o in nb['cells']], metadata=self.value(meta))
        for kind, o in nb['metadata'].get('widgets', {}).items(): res.setdefault('widgets', {})[kind] = {**self.value({k: v for k, v in o.items() if k != 'state'}), 'state': self.widgets(o['state'])}
        return res

    def terminal(self, text):
        "What the caller's terminal shows, line by line: a progress bar as its last state, without speed, time, and its length, which depends on these"
        text = re.sub(r'\[IPKernelApp\].*\n', '', text) # a kernel process that speaks of itself
        lines = [o.split('\r')[-1] for o in text.split('\n')]
        return [self.text(re.sub(r'█+', '█', re.sub(r'\[\d\d:\d\d<[^\]]*\] *', '[TIME]', o))) for o in lines if o]


def normal(seen, folder, **options):
    "What is compared of an execution"
    new = lambda: Normal(folder, **options) # each document has its own numbers of ids
    res = {o: new().value(seen[o]) for o in ('error', 'log') if o in seen}
    res['files'] = {k: new().notebook(v) if k.endswith('.ipynb') and isinstance(v, dict) and 'cells' in v and 'nbformat' in v else new().value(v) for k, v in seen['files'].items()}
    if 'returned' in seen: res['returned'] = new().notebook(seen['returned'])
    return res | dict(terminal=new().terminal(seen['terminal']))


def lines(o, at=''):
    "Anything as lines of text, each with its place, for a diff"
    if isinstance(o, dict):
        for k, v in o.items(): yield from lines(v, f'{at}.{k}' if at else str(k))
        if not o: yield f'{at}: {{}}'
    elif isinstance(o, list):
        for i, v in enumerate(o): yield from lines(v, f'{at}[{i}]')
        if not o: yield f'{at}: []'
    elif isinstance(o, str):
        for x in o[:100_000].split('\n'): yield from (f'{at}: {x[i:i+300]!r}' for i in range(0, len(x) or 1, 300))
        if len(o) > 100_000: yield f'{at}: and {len(o)-100_000} characters, {sha256(o.encode("utf-8", "surrogatepass")).hexdigest()}'
    else: yield f'{at}: {o!r}'
