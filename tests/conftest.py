"Helpers that several test files share"
import gzip, random, struct, pytest, numpy as np, torch, torch.nn.functional as F
from functools import partial
from pathlib import Path
from torch import nn, optim
from miniai.core import set_seed
from miniai.datasets import DataLoaders
from miniai.learner import Accuracy, Callback, MetricsCB, ProgressCB, TrainLearner
from miniai.sgd import BatchSchedCB

FULL = Path('/usr/share/datasets/fashion-mnist')

def pytest_configure(config):
    config.addinivalue_line('markers', 'full: needs the full Fashion-MNIST in the system folder')

def pytest_collection_modifyitems(items):
    if FULL.is_dir(): return
    for o in items:
        if 'full' in o.keywords: o.add_marker(pytest.mark.skip(reason=f'{FULL} is not there'))

def idx_bytes(a, ndim=None): return struct.pack(f'>BBBB{a.ndim}I', 0, 0, 8, ndim or a.ndim, *a.shape) + a.tobytes()

@pytest.fixture
def idx_folder(tmp_path):
    "A folder with a sound, tiny data set: 40 training and 20 test images"
    rng = np.random.default_rng(0)
    d = tmp_path/'data'
    d.mkdir()
    for stem,n in ('train',40), ('t10k',20):
        x,y = rng.integers(0, 256, (n,28,28), dtype=np.uint8), np.arange(n, dtype=np.uint8)%10
        (d/f'{stem}-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx_bytes(x)))
        (d/f'{stem}-labels-idx1-ubyte.gz').write_bytes(gzip.compress(idx_bytes(y)))
    return d

def toy_dls(bs=8, n=32, seed=0):
    x,y = torch.arange(n*4).reshape(n,4).float()/(n*4), torch.arange(n)%3
    return DataLoaders.from_tensors({'train': (x,y), 'valid': (x[:n//2],y[:n//2])}, bs, seed=seed)

def toy_model(seed=0):
    "Small, but with all there is to restore: weights, batch norm, dropout, a non-persistent buffer, a frozen norm"
    set_seed(seed)
    m = nn.Sequential(nn.Linear(4,6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(.3),
                      nn.Linear(6,6), nn.BatchNorm1d(6), nn.Linear(6,3))
    m.register_buffer('scratch', torch.zeros(2), persistent=False)
    m[5].eval()
    return m

X,Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)),torch.arange(16)%3

EVENTS = [f'{when}_{what}' for what in ('fit','epoch','batch') for when in ('before','after','cleanup')] + [
    'predict','after_predict','get_loss','after_loss','backward','after_backward','step','after_step','zero_grad']

class Log(Callback):
    "Writes down every event"
    def __init__(self): self.seen = []
    def __getattr__(self, k):
        if k in EVENTS: return lambda learn: self.seen.append(k)
        raise AttributeError(k)

class Raises(Callback):
    "Raises `exc` at `event`, after letting it pass `at` times"
    def __init__(self, event, exc, at=0, order=0): self.event,self.exc,self.at,self.order,self.n = event,exc,at,order,0
    def __getattr__(self, k):
        if k!=self.__dict__.get('event'): raise AttributeError(k)
        return self._raise
    def _raise(self, learn):
        self.n += 1
        if self.n>self.at: raise self.exc

def toy(cls=TrainLearner, cbs=None, **kwargs):
    return cls(toy_model(), toy_dls(), F.cross_entropy, lr=.1, cbs=cbs, **kwargs)

def two_groups(params, lr):
    params = list(params)
    return optim.AdamW([{'params': params[:2], 'lr': lr/10}, {'params': params[2:]}], lr)

def learner(train=1, opt_func=two_groups):
    "A learner that has trained, with gradients on some parameters, a frozen norm and a user's own schedule"
    sched = partial(optim.lr_scheduler.OneCycleLR, max_lr=.1, total_steps=4*max(train,1), cycle_momentum=False)
    learn = toy(cbs=[MetricsCB(Accuracy()), ProgressCB(mode='lines'), BatchSchedCB(sched)], opt_func=opt_func)
    if train: learn.fit(train)
    learn.model[5].eval()
    learn.model[0].weight.requires_grad_(False)
    learn.model[4].weight.grad = torch.ones_like(learn.model[4].weight)
    return learn

def state(learn):
    "All that has to stay, as plain comparable bytes"
    b = lambda t: None if t is None else (t.dtype, t.detach().clone().numpy().tobytes())
    m,o = learn.model,learn.opt
    return dict(
        ids=[id(t) for t in [*m.parameters(), *m.buffers()]], values=[b(t) for t in [*m.parameters(), *m.buffers()]],
        grads=[b(p.grad) for p in m.parameters()], requires=[p.requires_grad for p in m.parameters()],
        modes=[o.training for o in m.modules()], opt=id(o),
        groups=o and [{k: v for k,v in g.items() if k!='params'} for g in o.param_groups],
        group_params=o and [[id(p) for p in g['params']] for g in o.param_groups],
        opt_state=o and {id(p): {k: b(v) for k,v in s.items()} for p,s in o.state.items()},
        torch=torch.get_rng_state().tolist(), numpy=str(np.random.get_state()), python=random.getstate(),
        order=learn.dls.train.sampler.generator.get_state().tolist(),
        cbs=[id(c) for c in learn.cbs], logger=id(learn.logger),
        history=[dict(r) for r in learn.metrics.history] if learn.metrics else None)

class Meddles(Callback):
    "A careless callback: draws random numbers, changes modes, gradients; with `trains` weights too"
    order = 50
    def __init__(self, trains=False): self.trains = trains
    def after_batch(self, learn):
        random.random(), np.random.rand(), torch.rand(1)
        learn.model[3].train()
        for p in learn.model.parameters(): p.grad = torch.zeros_like(p)
        if self.trains:
            learn.model[5].train()
            with torch.no_grad():
                for p in learn.model.parameters(): p.add_(1e-3)
            learn.model.scratch.add_(1)
            learn.opt.state.clear()
            for g in learn.opt.param_groups: g |= {'weight_decay': .5, 'new': 1}

class At(Callback):
    "Calls `f(learn)` at `event`"
    def __init__(self, event, f, order=0): self.event,self.f,self.order = event,f,order
    def __getattr__(self, k):
        if k!=self.__dict__.get('event'): raise AttributeError(k)
        return self.f

def check(learn, f, skip=()):
    "`f()` leaves `state(learn)` as it was, whether or not it raises"
    before = state(learn)
    try: f()
    finally:
        after = state(learn)
        for k in before:
            if k not in skip: assert before[k]==after[k], k
