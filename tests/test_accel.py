"Memory, half precision, accumulation, clipping, averages, and several processes"
import copy, json, os, platform, re, subprocess, sys, warnings, pytest, torch, torch.nn.functional as F
from contextlib import redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path
from torch import nn, optim
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
import miniai.accel
from conftest import EVENTS, At, Raises, toy, toy_dls, toy_model
from miniai.accel import *
from miniai.activations import ActivationStats
from miniai.augment import * # which adds capture_preds and tta to Learner
from miniai.challenge import MCDropoutCB
from miniai.checkpoint import CheckpointCB
from miniai.core import set_seed
from miniai.datasets import DataLoaders
from miniai.learner import *

BF16,FP16 = torch.bfloat16,torch.float16
KINDS = {'TrainLearner': (TrainLearner, []), 'TrainCB': (Learner, [TrainCB]),
         'MomentumLearner': (MomentumLearner, [])}
kinds = pytest.mark.parametrize('kind', KINDS)
ENDS = CancelBatchException,CancelEpochException,CancelFitException,ZeroDivisionError
STEPS = 'predict','get_loss','backward','step','zero_grad'
events = pytest.mark.parametrize('event', [o for o in EVENTS if o not in STEPS])

@pytest.fixture(autouse=True)
def strict():
    "Nothing here warns, and nothing leaves autocast on"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield
    assert not torch.is_autocast_enabled('cpu')

def make(kind='TrainLearner', cbs=(), bs=4, n=32, lr=.05, model=None, **kwargs):
    "A learner on the CPU whose model looks at each item alone"
    cls,more = KINDS[kind]
    set_seed(0)
    model = model or nn.Sequential(nn.Linear(4,8), nn.ReLU(), nn.Linear(8,3))
    cbs = [*(o() for o in more), MetricsCB(Accuracy()), *cbs]
    return cls(model, toy_dls(bs, n), F.cross_entropy, lr, cbs, **kwargs)

def fit(learn, n=2, **kwargs):
    learn.logger = lambda row: None
    learn.fit(n, **kwargs)
    return learn

def losses(learn): return [r[k] for r in learn.history for k in ('train_loss','valid_loss')]
def weights(learn): return [p.detach().clone() for p in learn.model.state_dict().values()]
def same(a, b): return all(map(torch.equal, a, b))

class See(At):
    "Keeps `f(learn)` at each `event`"
    def __init__(self, event, f, order=500):
        self.seen = []
        super().__init__(event, lambda learn: self.seen.append(f(learn)), order)

# ---- memory

memory_code = '''
import resource, torch
from miniai.accel import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10): torch.ones(12_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt-before
faults()
before = faults()
keep_freed_memory()
faults()
print(before, faults())'''

@pytest.mark.skipif(platform.libc_ver()[0]!='glibc', reason='an allocator of glibc')
def test_freed_memory_stays():
    "In a process of its own, as it cannot be undone; huge pages make few faults of many"
    env = {k: v for k,v in os.environ.items() if not k.startswith(('MALLOC_','GLIBC_'))}
    cmd = [sys.executable, '-c', memory_code]
    res = subprocess.run(cmd, env=env, capture_output=True, text=True, check=True)
    first,after = map(int, res.stdout.split())
    assert first>=10 and after<=first/10

@pytest.mark.parametrize('system', ['darwin','win32'])
def test_elsewhere_nothing_happens(monkeypatch, system):
    monkeypatch.setattr(sys, 'platform', system)
    monkeypatch.delattr('ctypes.CDLL')
    keep_freed_memory()

# ---- fast_layers

@pytest.mark.parametrize('nm', ['base','conv','resnet','wide','model2','model4'])
def test_fast_layers_compute_the_same(nm):
    from miniai.recipes import models
    set_seed(0)
    plain = models[nm]().double().to(memory_format=torch.channels_last)
    fast = fast_layers(copy.deepcopy(plain))
    assert {type(m) for m in fast.modules()} & {PatchConv2d,NarrowNorm2d}
    x,y = torch.rand(8,1,28,28, dtype=torch.double),torch.arange(8)
    for m in plain,fast: F.cross_entropy(m(x), y).backward()
    for (k,p),q in zip(plain.named_parameters(), fast.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-9), k
    fast.load_state_dict(plain.state_dict())
    assert torch.allclose(plain.eval()(x), fast.eval()(x))
    assert torch.allclose(copy.deepcopy(fast)(x), fast(x))

@pytest.mark.parametrize('ks,stride,pad,size,bias', [
    (3,1,1,(4,4),True), (3,2,1,(2,2),False), (1,1,0,(3,2),True),
    (1,2,0,(1,1),True), ((1,3),(2,1),(0,1),(4,3),True), (5,1,2,(4,1),False), (3,2,1,(3,3),True)])
def test_a_patch_convolution_and_its_gradients(ks, stride, pad, size, bias):
    set_seed(0)
    conv = nn.Conv2d(3, 5, ks, stride, pad, bias=bias).double()
    fast = fast_layers(nn.Sequential(copy.deepcopy(conv)))[0]
    assert type(fast) is PatchConv2d
    x = torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)
    assert torch.allclose(fast(x), conv(x)) and torch.autograd.gradcheck(fast, x)
    fast(x).square().sum().backward()
    conv(x).square().sum().backward()
    for p,q in zip(conv.parameters(), fast.parameters()): assert torch.allclose(p.grad, q.grad)

def test_second_derivatives_of_the_fast_convolution():
    layer = PatchConv2d(2, 2, 3, padding=1).double()
    x = torch.rand(1,2,4,4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, x)

def test_fast_layers_leave_alone_what_they_cannot_do():
    class Own(nn.Conv2d): pass
    odd = nn.Sequential(
        nn.Conv2d(4,4,3,groups=2), nn.Conv2d(4,4,3,dilation=2), Own(4,4,3),
        nn.Conv2d(4,4,3,padding='same'), nn.Conv2d(4,4,3,padding=1,padding_mode='reflect'),
        nn.Conv1d(4,4,3), nn.BatchNorm2d(16), nn.BatchNorm1d(4))
    kinds = [type(m) for m in odd]
    assert [type(m) for m in fast_layers(odd)]==kinds

def test_fast_layers_in_half_precision():
    set_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1)
    fast,x = fast_layers(nn.Sequential(copy.deepcopy(conv)))[0],torch.randn(8,16,4,4)
    with torch.autocast('cpu', BF16): outs = conv(x),fast(x)
    assert outs[1].dtype==BF16 and torch.allclose(*outs, atol=.05)
    for o in outs: o.float().square().sum().backward()
    assert fast.weight.grad.dtype==torch.float32
    close = .02*conv.weight.grad.abs().max().item()
    assert torch.allclose(conv.weight.grad, fast.weight.grad, atol=close)

# ---- amp_dtype

@pytest.mark.parametrize('gain,want', [(.6, None), (1.4, None), (1.5, BF16), (4., BF16)])
def test_half_precision_where_it_is_much_faster(monkeypatch, gain, want):
    monkeypatch.setattr(miniai.accel, 'bf16_gain', lambda: gain)
    assert amp_dtype('cpu') is want and amp_dtype('mps') is None

def test_the_gain_is_measured_once_and_draws_no_numbers():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    gain = bf16_gain()
    assert gain>0 and gain==bf16_gain()
    assert torch.equal(torch.get_rng_state(), state)

def test_half_precision_of_gpus(monkeypatch):
    for has,want in (True,BF16),(False,FP16):
        def query(including_emulation): return has and not including_emulation
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', query)
        assert amp_dtype('cuda:1') is want

# ---- MixedPrecision

@kinds
@pytest.mark.parametrize('dtype', [BF16,FP16])
def test_what_is_half_and_what_is_not(kind, dtype):
    on = lambda *_: torch.is_autocast_enabled('cpu')
    at = {nm: See(nm, on) for nm in ('before_batch','after_predict','after_backward','after_batch')}
    forward,loss = [],[]
    learn = make(kind, [MixedPrecision(dtype=dtype), *at.values()])
    learn.model[0].register_forward_hook(lambda m,inp,out: forward.append(out.dtype))
    def loss_func(preds, y):
        loss.append((on(), preds.dtype))
        return F.cross_entropy(preds, y)
    learn.loss_func = loss_func
    fit(learn)
    assert set(forward)=={dtype} and set(loss)=={(True,torch.float32)}
    assert learn.loss.dtype==torch.float32
    for nm in 'before_batch','after_predict': assert set(at[nm].seen)=={True}
    for nm in 'after_backward','after_batch': assert set(at[nm].seen)=={False}
    assert {t.dtype for t in weights(learn)}=={torch.float32}
    assert losses(learn)==pytest.approx(losses(fit(make(kind))), rel=.02)

def test_the_row_is_the_mean_of_float32_losses():
    seen = See('after_batch', lambda l: (l.loss.item(), len(l.batch[0]), l.training))
    learn = fit(make(cbs=[MixedPrecision(dtype=BF16), seen], bs=7), 1)
    for training,nm in (True,'train'),(False,'valid'):
        pairs = [(v,n) for v,n,t in seen.seen if t==training]
        want = sum(v*n for v,n in pairs)/sum(n for _,n in pairs)
        assert learn.history[0][f'{nm}_loss']==pytest.approx(want, rel=1e-6)

@events
@pytest.mark.parametrize('exc', ENDS)
@pytest.mark.parametrize('order', [-50,50])
def test_autocast_ends_with_the_batch(event, exc, order):
    learn = make(cbs=[MixedPrecision(dtype=BF16), Raises(event, exc(), at=1, order=order)])
    try: fit(learn)
    except (*ENDS, RuntimeError): pass  # the last for a Cancel exception in a cleanup
    assert not torch.is_autocast_enabled('cpu') and learn.model[0].weight.dtype==torch.float32

@kinds
def test_without_half_precision_nothing_changes(kind, monkeypatch):
    want = weights(fit(make(kind)))
    assert same(want, weights(fit(make(kind, [MixedPrecision(dtype=torch.float32)]))))
    monkeypatch.setattr(miniai.accel, 'bf16_gain', lambda: .5)
    assert same(want, weights(fit(make(kind, [MixedPrecision()]))))

def test_the_default_asks_the_processor(monkeypatch):
    monkeypatch.setattr(miniai.accel, 'bf16_gain', lambda: 4.)
    def dtype(learn): return torch.is_autocast_enabled('cpu'), torch.get_autocast_dtype('cpu')
    seen = See('after_predict', dtype)
    fit(make(cbs=[MixedPrecision(), seen]), 1)
    assert set(seen.seen)=={(True,BF16)}

class Spoil(Callback):
    "An overflow in the fourth batch of each epoch"
    order = MixedPrecision.order-1
    def after_backward(self, learn):
        if learn.iter==3: learn.model[0].weight.grad[0] = torch.inf

def test_an_overflow_leaves_out_the_step():
    w,scale = (See('after_batch', f) for f in (weights, lambda l: l.scaler.get_scale()))
    learn = make(cbs=[MixedPrecision(dtype=FP16), Spoil(), w, scale], opt_func=optim.AdamW)
    fit(learn, 1, valid=False)
    assert [not same(*o) for o in zip(w.seen, w.seen[1:])]==[True]*2 + [False] + [True]*4
    assert scale.seen==[2.**16]*3 + [2.**15]*5

def test_small_gradients_survive_in_float16():
    def grads(*cbs):
        seen = See('after_backward', lambda l: l.model[0].weight.grad.clone())
        learn = make(cbs=[*cbs, seen])
        learn.loss_func = lambda p,y: F.cross_entropy(p, y)*1e-6
        fit(learn, 1, valid=False)
        return seen.seen[0]
    want = grads()
    assert 0<want.abs().max()<1e-6
    torch.testing.assert_close(grads(MixedPrecision(dtype=FP16)), want, rtol=.02, atol=1e-9)

def test_predictions_run_in_it():
    on = []
    learn = make(cbs=[MixedPrecision(dtype=BF16)])
    learn.model.register_forward_hook(lambda *_: on.append(torch.is_autocast_enabled('cpu')))
    learn.capture_preds()
    preds,_ = learn.tta(views=[lambda x: x, lambda x: x.flip(0).flip(0)])
    learn.lr_find(show=False)
    fit(learn, 1, train=False)
    assert on and all(on) and preds.dtype==torch.float32

@events
def test_a_dry_run_inside_a_fit_changes_nothing(event):
    def cbs(): return [MixedPrecision(dtype=FP16), EMACB(.5), AccumCB(3)]
    def dry_run(learn):
        learn.fit(1, train=False)
        learn.capture_preds()
        # between forward and backward, autograd needs the weights untouched
        if event not in ('after_predict','after_loss'): learn.lr_find(show=False)
    want = fit(make(cbs=cbs()))
    for order in -50,500:
        learn = fit(make(cbs=[*cbs(), See(event, dry_run, order)]))
        assert same(weights(want), weights(learn)) and losses(want)==losses(learn)
    copy.deepcopy(learn).fit(1)

def test_half_precision_by_name():
    for nm,dtype in dict(no=torch.float32, bf16=BF16, fp16=FP16).items():
        a,b = (fit(make(cbs=[MixedPrecision(o)])) for o in (nm,dtype))
        assert same(weights(a), weights(b)) and losses(a)==losses(b)

@pytest.mark.parametrize('dtype', ['half', torch.float64, True])
def test_half_precision_that_there_is_not(dtype):
    with pytest.raises(ValueError, match='dtype must be one of'): MixedPrecision(dtype)

@pytest.mark.parametrize('gains', [(4.,.5), (.5,4.)])
def test_a_fit_that_goes_on_keeps_its_precision(tmp_path, monkeypatch, gains):
    "And evaluates in it afterwards, whatever a later process finds fast"
    def learner(path): return make(cbs=[MixedPrecision(), CheckpointCB(path)])
    def set_gain(gain): monkeypatch.setattr(miniai.accel, 'bf16_gain', lambda: gain)
    set_gain(gains[0])
    whole = fit(learner(tmp_path/'whole.pt'))
    preds,_ = whole.capture_preds()
    stopped = learner(tmp_path/'stopped.pt')
    with pytest.raises(ZeroDivisionError):
        fit(stopped, cbs=[Raises('before_epoch', ZeroDivisionError(), at=2)])
    set_gain(gains[1])
    resumed = fit(learner(tmp_path/'stopped.pt'))
    assert same(weights(whole), weights(resumed))
    assert torch.equal(resumed.capture_preds()[0], preds)
    other = fit(learner(tmp_path/'other.pt'))
    assert not same(weights(whole), weights(other))

def test_the_scaler_goes_on(tmp_path):
    def make_fp16(f): return make(cbs=[MixedPrecision(FP16), CheckpointCB(tmp_path/f), Spoil()])
    whole = fit(make_fp16('a'), 4)
    with pytest.raises(KeyboardInterrupt): fit(make_fp16('b'), 4, cbs=StopAt())
    resumed = fit(make_fp16('b'), 4)
    assert same(weights(whole), weights(resumed)) and losses(whole)==losses(resumed)
    assert whole.scaler.get_scale()==resumed.scaler.get_scale()==2.**12

# ---- AccumCB

def momentum(params, lr): return optim.SGD(params, lr, momentum=.9, weight_decay=.1)
OPTS = {'SGD': optim.SGD, 'momentum': momentum, 'AdamW': optim.AdamW}

@kinds
@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('n', [32,30]) # 8 batches of 4 in groups of 3, all of them full or not
def test_accumulating_is_a_larger_batch(kind, opt, n):
    small = fit(make(kind, [AccumCB(3)], n=n, opt_func=OPTS[opt]), 3)
    large = fit(make(kind, bs=12, n=n, opt_func=OPTS[opt]), 3)
    for a,b in zip(weights(small), weights(large)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    a,b = ([r['valid_loss'] for r in l.history] for l in (small,large))
    assert a==pytest.approx(b, rel=1e-5)

@pytest.mark.parametrize('k', [0, 2.5])
def test_accumulation_of_a_whole_number_of_batches(k):
    with pytest.raises(ValueError, match='k must be a whole number'): AccumCB(k)

class Stream:
    "The first `n` batches of `dl`, which has a length, from a loader that has none"
    def __init__(self, dl, n=None):
        self.dl = dl
        self.n = n
    def __iter__(self): return islice(self.dl, self.n)

def fit_stream(kind, n=None, cbs=()):
    "Weights after training on a stream in groups of three, with clipping and averages"
    ema = EMACB(.5)
    cbs = [AccumCB(3), ClipCB(.05), ema, *cbs]
    learn = make(kind, cbs)
    if n!=8: learn.dls = DataLoaders(Stream(learn.dls.train, n), learn.dls.valid)
    fit(learn, 3)
    return learn.history[-1]['valid_loss'],ema.ema.n_averaged.item(),weights(learn)

@kinds
def test_the_last_group_of_a_stream(kind):
    "It makes its step as where the length is known: two full groups, and one of two batches"
    loss,n,w = fit_stream(kind)
    want_loss,want_n,want = fit_stream(kind, 8)
    assert loss==want_loss and n==want_n==9 and same(w, want)

@kinds
def test_the_last_group_of_a_pass_that_is_cancelled(kind):
    def end(learn):
        if learn.training and learn.iter==5: raise CancelEpochException
    _,n,w = fit_stream(kind, cbs=[At('before_batch', end)])
    _,want_n,want = fit_stream(kind, 5)
    assert n==want_n==6 and same(w, want)

def test_the_last_group_in_half_precision():
    ws = [fit_stream('TrainCB', n, [MixedPrecision(FP16)])[-1] for n in (None,8)]
    assert same(*ws)

def test_one_batch_at_a_time_changes_nothing():
    assert losses(fit(make(cbs=[AccumCB(1)])))==pytest.approx(losses(fit(make())), rel=1e-6)

def test_accumulating_with_the_others():
    "One clipped step, one averaged set of weights for each group, in half precision too"
    clip,ema = ClipCB(.01),EMACB(.5)
    steps = See('after_step', lambda l: ema.ema.n_averaged.item())
    fit(make(cbs=[AccumCB(4), clip, ema, steps]), 1)
    assert steps.seen==[0,0,0,1,1,1,1,2]
    a,b = (make(cbs=[MixedPrecision(dtype=FP16), *o], bs=bs) for o,bs in (([AccumCB(4)],2), ([],8)))
    assert losses(fit(a))==pytest.approx(losses(fit(b)), rel=5e-3)

# ---- ClipCB

def test_clipping():
    clip = ClipCB(.05)
    def grads(learn): return [p.grad.clone() for p in learn.model.parameters()]
    before,after = (See('after_backward', grads, o) for o in (-1,500))
    fit(make(cbs=[clip, before, after]), 1)
    for a,b in zip(before.seen, after.seen, strict=True):
        norm = torch.cat([o.flatten() for o in a]).norm()
        assert norm>.05 and torch.cat([o.flatten() for o in b]).norm()==pytest.approx(.05, rel=1e-4)
        for o,p in zip(a, b): torch.testing.assert_close(o*.05/norm, p, rtol=1e-4, atol=1e-7)
    assert clip.norm.item()==pytest.approx(norm.item(), rel=1e-5)
    assert same(weights(fit(make(cbs=[ClipCB(1e6)]), 1)), weights(fit(make(), 1)))

def test_clip_takes_the_optimizers_parameters():
    def head(params, lr): return optim.SGD([*params][-2:], lr)
    def norm(learn):
        grads = [p.grad.flatten() for p in learn.model.parameters()]
        return torch.cat(grads[-2:]).norm()
    clip = ClipCB(1e9)
    norms = See('after_backward', norm)
    fit(make(cbs=[clip, norms], opt_func=head), 1)
    assert torch.isclose(clip.norm, norms.seen[-1])

# ---- EMACB

@pytest.mark.parametrize('kind', ['TrainLearner','TrainCB'])
def test_averaged_weights(kind):
    params,bufs = (See('after_step', lambda l, f=f: [o.detach().clone() for o in f(l.model)])
                   for f in (nn.Module.parameters, nn.Module.buffers))
    learn = fit(make(kind, [EMACB(.7), params, bufs], model=toy_model()))
    avg = params.seen[0]
    for now in params.seen[1:]: avg = [a.lerp(w, .3) for a,w in zip(avg, now)]
    for a,w in zip(avg, learn.model.parameters(), strict=True):
        torch.testing.assert_close(a, w.detach())
    assert same(bufs.seen[-1], learn.model.buffers())
    plain = fit(make(kind, model=toy_model()))
    assert [r['train_loss'] for r in plain.history]==[r['train_loss'] for r in learn.history]
    assert plain.history[-1]['valid_loss']!=learn.history[-1]['valid_loss']
    last = learn.history[-1]['valid_loss']
    assert fit(learn, 1, train=False).history[-1]['valid_loss']==pytest.approx(last, rel=1e-6)

def test_averaged_weights_when_a_fit_is_ended():
    ema = EMACB(.7)
    learn = make(cbs=[ema, Raises('after_epoch', CancelFitException(), at=1, order=500)])
    model = learn.model
    fit(learn)
    assert learn.model is model and same(weights(learn), ema.ema.module.state_dict().values())

def test_dropout_in_validation_with_averaged_weights():
    seen = See('after_epoch', lambda l: l.model[3].training)
    fit(toy(cbs=[MetricsCB(), EMACB(), MCDropoutCB(), seen]), 1)
    assert seen.seen==[True, True]

def test_averages_with_hooks():
    stats = [ActivationStats(lambda m: isinstance(m, nn.Linear)) for _ in range(2)]
    fit(make(cbs=[stats[0]]))
    fit(make(cbs=[stats[1], EMACB()]))
    a,b = (o.layers() for o in stats)
    assert list(a)==list(b) and len(a)==2 and all(len(v)>=16 for v in b.values())

class StopAt(Callback):
    def after_epoch(self, learn):
        if learn.epoch==2 and learn.training: raise KeyboardInterrupt

@pytest.mark.parametrize('cbs', [
    lambda: [EMACB(.7)], lambda: [AccumCB(3), ClipCB(.1)], lambda: [MixedPrecision(dtype=BF16)]])
def test_resuming(tmp_path, cbs):
    want = fit(make(cbs=[*cbs(), CheckpointCB(tmp_path/'a')]), 4)
    with pytest.raises(KeyboardInterrupt):
        fit(make(cbs=[*cbs(), CheckpointCB(tmp_path/'b')]), 4, cbs=StopAt())
    learn = fit(make(cbs=[*cbs(), CheckpointCB(tmp_path/'b')]), 4)
    assert same(weights(want), weights(learn)) and losses(want)==losses(learn)

# ---- AccelerateCB

HEAD = """
import json, sys, torch, torch.nn.functional as F
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from torch import nn, optim
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset
from miniai.accel import *
from miniai.augment import *
from miniai.checkpoint import save_safely
from miniai.core import set_seed
from miniai.datasets import DataLoaders
from miniai.learner import *
acc = AccelerateCB()
i,n = acc.i,acc.n
x,y = torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(1)),torch.arange(100)%3
xv,yv = x[:37],y[:37]  # batches of 12, and a last one with a single item
"""

SCRIPT = HEAD+"""
from torch.distributed.fsdp import fully_shard
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
class Stream(IterableDataset):
    def __iter__(self): return iter(zip(x, y))
class Dicts(TensorDataset):
    def __getitem__(self, i): return dict(zip(('image','label'), super().__getitem__(i)))
class OnImage(nn.Sequential):
    def forward(self, image): return super().forward(image)
def tensors(n_train=96, seed=1):
    splits = {'train': (x[:n_train],y[:n_train]), 'valid': (xv,yv)}
    return DataLoaders.from_tensors(splits, 12, seed=seed)
valid = DataLoader(TensorDataset(xv,yv), 12)
def torch_dls(**kw):
    return DataLoaders(DataLoader(TensorDataset(x[:96],y[:96]), 12, shuffle=True, **kw), valid)
def dicts():
    dd = {'train': Dicts(x[:96],y[:96]), 'valid': Dicts(xv,yv)}
    return DataLoaders.from_dd(dd, 12, as_tuple=False, seed=2)
def shard(x, y, shuffle=True):
    ds = TensorDataset(x, y)
    return DataLoader(ds, 12//n, sampler=DistributedSampler(ds, n, i, shuffle, seed=5))
def shards(): return DataLoaders(shard(x[:96], y[:96]), shard(xv[:36], yv[:36], False))
def prepared():
    dls = [DataLoader(TensorDataset(*o), 12//n) for o in ((x[:96],y[:96]), (xv[:36],yv[:36]))]
    return DataLoaders(*acc.acc.prepare(*dls))
loaders = dict(tensors=tensors, shards=shards, prepared=prepared, unseeded=partial(tensors, seed=None), odd=partial(tensors, 85),
               DataLoader=torch_dls, workers=partial(torch_dls, num_workers=1), dicts=dicts,
               stream=lambda: DataLoaders(DataLoader(Stream(), 20), valid))

def make(dls='tensors', cls=TrainLearner, cbs=(), bn=False, opt_func=optim.SGD, fsdp=False):
    set_seed(3)
    layers = nn.Flatten(), nn.Linear(16,8), nn.BatchNorm1d(8) if bn else nn.ReLU(), nn.Linear(8,3)
    model,loss = nn.Sequential(*layers),F.cross_entropy
    if dls=='dicts': model,loss = OnImage(*layers),lambda p,label: F.cross_entropy(p, label)
    for m in (model[1], model[3], model) if fsdp and n>1 else (): fully_shard(m)
    if dls=='unseeded': torch.manual_seed(4+i)  # each process draws another order
    return cls(model, loaders[dls](), loss, .1, [acc, MetricsCB(Accuracy()), *cbs], opt_func)
def rows(learn): return [{k: v for k,v in r.items() if 'seconds' not in k} for r in learn.history]
def full(p): return (p.full_tensor() if hasattr(p, 'full_tensor') else p).detach().flatten()
def weights(learn): return torch.cat([full(p) for p in learn.model.state_dict().values()]).tolist()
res = {}
def run(name, *args, **kwargs):
    learn = make(*args, **kwargs)
    model = learn.model
    with redirect_stdout(StringIO()) as text: learn.fit(2)
    assert learn.model is model and learn.dl is learn.dls.valid
    res[name] = dict(rows=rows(learn), weights=weights(learn), text=text.getvalue().count('epoch'))
    return learn

class DryRuns(Callback):
    order = 500
    def after_epoch(self, learn):
        if i==0: learn.capture_preds()
    def after_step(self, learn):
        if i==0 and learn.iter==2: learn.lr_find(show=False)
for nm in loaders: run(nm, nm)
run('TrainCB', cls=Learner, cbs=[TrainCB()])
run('momentum', cls=MomentumLearner)
run('others', cbs=[ClipCB(.5), AccumCB(3), EMACB(.5), ProgressCB()], opt_func=optim.AdamW)
run('half', cbs=[MixedPrecision(dtype=torch.bfloat16)])
run('fsdp_shards', 'shards', opt_func=optim.AdamW, fsdp=True)
fsdp = run('fsdp', opt_func=optim.AdamW, fsdp=True)
before = weights(fsdp)
fsdp.lr_find(show=False)
res['split'] = before==weights(fsdp), len(fsdp.capture_preds()[0])
try: save_safely(fsdp.model.state_dict(), f'{sys.argv[1]}/{n}-{i}.pt')
except TypeError as e: res['save'] = str(e)
micro = MulticlassAccuracy(3, average='micro')
run('torchmetrics', cbs=[MetricsCB(micro, both=MetricCollection(dict(collected=micro.clone())))])
run('dry_runs', cbs=[DryRuns()])

bn = run('batchnorm', bn=True, cbs=[EMACB(.5)])
before = weights(bn)
def dry_runs():
    preds,targs = bn.capture_preds()
    return bn.lr_find(show=False).lrs, bn.summary().macs, bn.tta()[0].tolist(), targs.tolist()
if i==0: dry_runs()  # the other processes do not come along
res['together'] = dry_runs()
bn.fit(1, train=False)
res['after'] = before==weights(bn), rows(bn)[-1]['valid_loss']
json.dump(res, open(f'{sys.argv[1]}/{n}-{i}.json', 'w'))
acc.acc.end_training()
"""

def launch(folder, script, n):
    (folder/f'train{n}.py').write_text(script)
    run = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n}']
    env = os.environ | dict(ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1')
    return subprocess.Popen([*run, folder/f'train{n}.py', folder], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

def output(p):
    try: return p.communicate(timeout=240)[0]
    finally: p.terminate()  # after a hang: the launcher ends its processes

@pytest.fixture(scope='module')
def processes(tmp_path_factory):
    "What the same script wrote with one process, and with each of two"
    for nm in 'accelerate','torchmetrics': pytest.importorskip(nm)
    d = tmp_path_factory.mktemp('accel')
    for p in [launch(d, SCRIPT, n) for n in (1,2)]:
        out = output(p)
        assert p.returncode==0, out
    return [json.loads((d/f'{nm}.json').read_text()) for nm in ('1-0','2-0','2-1')]

@pytest.mark.parametrize('nm', ['tensors','unseeded','DataLoader','workers','stream','dicts',
                                'shards','prepared','TrainCB','momentum','others','fsdp',
                                'fsdp_shards','torchmetrics','dry_runs'])
def test_two_processes_train_as_one(processes, nm):
    one,*two = (o[nm] for o in processes)
    for o in two:
        for a,b in zip(one['rows'], o['rows'], strict=True): assert b==pytest.approx(a, rel=1e-5)
        assert o['weights']==pytest.approx(one['weights'], rel=1e-4, abs=1e-5)
    assert two[0]['rows']==two[1]['rows'] and two[0]['weights']==two[1]['weights']

@pytest.mark.parametrize('nm', ['odd','half','batchnorm'])
def test_two_processes_stay_together(processes, nm):
    "What cannot be equal to one process is equal in both, and close to it"
    one,a,b = (o[nm] for o in processes)
    assert a['rows']==b['rows'] and a['rows'][-1]==pytest.approx(one['rows'][-1], rel=.25)
    if nm!='batchnorm': assert a['weights']==b['weights']

def test_one_of_two_processes_speaks(processes):
    for nm in 'tensors','others': assert [o[nm]['text'] for o in processes]==[2,2,0]

def test_dry_runs_do_not_wait_for_each_other(processes):
    _,a,b = processes
    assert a['together']==b['together'] and len(a['together'][2])==37
    for o in processes:
        same,valid = o['after']
        assert same and valid==pytest.approx(o['batchnorm']['rows'][-1]['valid_loss'], rel=1e-6)

def test_dry_runs_of_a_model_that_is_split(processes):
    assert [o['split'] for o in processes]==[[True,37]]*3
    one,*two = processes
    assert 'save' not in one and all('cannot hold DTensor: only' in o['save'] for o in two)

def test_a_process_that_fails_ends_the_others(tmp_path):
    pytest.importorskip('accelerate')
    p = launch(tmp_path, HEAD+"""
class Fails(Callback):
    def after_step(self, learn):
        if i==1 and learn.iter==2: raise ValueError('one is enough')
dls = DataLoaders.from_tensors({'train': (x,y), 'valid': (xv,yv)}, 10)
model = nn.Sequential(nn.Flatten(), nn.Linear(16,3))
TrainLearner(model, dls, F.cross_entropy, cbs=[acc, Fails()]).fit(1)
""", 2)
    out = output(p)
    assert p.returncode!=0 and 'ValueError: one is enough' in out

@pytest.mark.parametrize('dls, msg', [
    ("DataLoaders([(x[i::2],y[i::2])], [(xv,yv)])", 'All processes must read the same batch'),
    ("DataLoaders([(x[:1],y[:1])], [(xv,yv)])", 'an item for each of the 2 processes, got 1')])
def test_batches_that_cannot_be_divided_are_refused(tmp_path, dls, msg):
    pytest.importorskip('accelerate')
    p = launch(tmp_path, HEAD+f"""
model = nn.Sequential(nn.Flatten(), nn.Linear(16,3))
TrainLearner(model, {dls}, F.cross_entropy, cbs=acc).fit(1)
""", 2)
    out = output(p)
    assert p.returncode!=0 and msg in out

def page_losses(folder, command, n):
    "The numbers of the rows; each of `n` processes says that it joined, and one prints the rows"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | dict(PATH=path, CUDA_VISIBLE_DEVICES='', MINIAI_DATA='sample')
    env.pop('ACCELERATE_USE_CPU', None)
    out = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)
    assert out.returncode==0, out.stderr
    joined = re.findall(r'process \d of \d', out.stdout)  # their ends of lines may come together
    assert sorted(joined)==[f'process {i+1} of {n}' for i in range(n)]
    return [float(o) for o in re.findall(r'\d\.\d{3}', out.stdout)]

@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "The cookbook's script in a folder, the commands that the page shows, and the losses of one process"
    pytest.importorskip('accelerate')
    d = tmp_path_factory.mktemp('page')
    cells = json.loads((Path(__file__).parent.parent/'nbs'/'20_cookbook.ipynb').read_text())['cells']
    code = {c['id']: ''.join(c['source']) for c in cells}
    with redirect_stdout(StringIO()) as text: exec(code['c19a00a1'], {'work': d})
    return d,text.getvalue().splitlines(),page_losses(d, 'python train.py', 1)

@pytest.mark.parametrize('launcher', ['torchrun','accelerate launch'])
def test_the_commands_of_the_cookbook(page, launcher):
    "Typed as they stand there, without a GPU: two processes have the losses of one"
    folder,commands,one = page
    command = next(o for o in commands if o.startswith(launcher))
    assert len(one)==8 and page_losses(folder, command, 2)==pytest.approx(one, abs=.002)

def test_processes_that_do_not_find_each_other(monkeypatch):
    "Where an `Accelerator` from before has joined none"
    pytest.importorskip('accelerate').PartialState()
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(RuntimeError, match='must join 2 processes .*, got 1'): AccelerateCB()

def test_one_process_needs_no_launcher(monkeypatch):
    pytest.importorskip('accelerate')
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    assert same(weights(fit(make())), weights(fit(make(cbs=[AccelerateCB()]))))

def test_a_sampler_for_processes_shuffles_each_epoch_in_its_way(monkeypatch):
    pytest.importorskip('accelerate')
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    orders = See('before_batch', lambda l: l.batch[0].tolist(), -500)
    learn = make(cbs=[AccelerateCB(), orders])
    ds = TensorDataset(torch.rand(8,4), torch.arange(8)%3)
    learn.dls = DataLoaders(DataLoader(ds, 8, sampler=DistributedSampler(ds, 1, 0)), learn.dls.valid)
    fit(learn, 2, valid=False)
    assert orders.seen[0]!=orders.seen[1] and sorted(orders.seen[0])==sorted(orders.seen[1])

def test_accelerate_in_half_precision(monkeypatch):
    pytest.importorskip('accelerate')
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    want = weights(fit(make(cbs=[MixedPrecision(BF16)])))
    assert same(want, weights(fit(make(cbs=[AccelerateCB(mixed_precision='bf16')]))))
    dry_run = At('after_step', lambda learn: learn.lr_find(show=False))
    assert same(want, weights(fit(make(cbs=[AccelerateCB(mixed_precision='bf16'), dry_run]))))
    assert not same(want, weights(fit(make())))

@pytest.mark.parametrize('cb', [
    lambda: MixedPrecision(torch.float32), lambda: MixedPrecision(torch.float32, n_inp=1)])
def test_mixed_precision_lets_a_plain_learner_step_once(cb):
    want = weights(fit(make()))
    for kind in 'TrainLearner','TrainCB': assert same(want, weights(fit(make(kind, [cb()]))))
    set_seed(0)
    model = nn.Sequential(nn.Linear(4,8), nn.ReLU(), nn.Linear(8,3))
    cbs = [MetricsCB(Accuracy()), cb()]
    learn = Learner(model, toy_dls(4, 32), F.cross_entropy, .05, cbs)
    assert same(want, weights(fit(learn))) and len(learn.cbs)==2

def test_benchmarks_still_run(tmp_path, monkeypatch, capsys):
    "The parts that use the library, in short; miniai's loop computes what the bare one does"
    monkeypatch.syspath_prepend(Path(__file__).parent.parent/'benchmarks')
    import bench
    monkeypatch.setattr(bench, 'out', tmp_path)
    bench.loading(rounds=2)
    bench.targets()
    warnings.filterwarnings('ignore', 'OneCycle took')  # it measures an epoch of five
    for way in 'lesson','ours': bench.one_model('conv', way, n=1024)
    assert {f.name for f in tmp_path.iterdir()}=={'loading.json','targets.json'}
    batches = [(torch.randn(8,100), torch.randint(10, (8,)))]*3
    (_,bare),(_,ours) = (bench.timed(f, 64, batches) for f in (bench.bare, bench.miniai))
    assert abs(bare-ours)<1e-3
