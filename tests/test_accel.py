"Half precision, accumulation, clipping, averages, and several processes"
import json, os, subprocess, sys, warnings, pytest, torch, torch.nn.functional as F
from copy import deepcopy
from torch import nn, optim
from conftest import EVENTS, Raises, toy, toy_dls, toy_model
from miniai.accel import AccumCB, AccelerateCB, ClipCB, EMACB, MixedPrecision, amp_dtype
from miniai.activations import ActivationStats
from miniai.augment import *
from miniai.checkpoint import CheckpointCB
from miniai.core import set_seed
from miniai.datasets import DataLoaders
from miniai.learner import (Accuracy, Callback, CancelBatchException, CancelEpochException, CancelFitException, Learner, Mean,
                            MetricsCB, MomentumLearner, ProgressCB, TrainCB, TrainLearner)

BF16,FP16 = torch.bfloat16,torch.float16
KINDS = {'TrainLearner': (TrainLearner, []), 'TrainCB': (Learner, [TrainCB]), 'MomentumLearner': (MomentumLearner, [])}
kinds = pytest.mark.parametrize('kind', KINDS)

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
    return cls(model, toy_dls(bs, n), F.cross_entropy, lr, [*(o() for o in more), MetricsCB(Accuracy()), *cbs], **kwargs)

def fit(learn, n=2, **kwargs):
    learn.logger = lambda row: None
    learn.fit(n, **kwargs)
    return learn

def losses(learn): return [r[k] for r in learn.history for k in ('train_loss','valid_loss')]
def weights(learn): return [p.detach().clone() for p in learn.model.state_dict().values()]
def same(a, b): return all(map(torch.equal, a, b))

class See(Callback):
    "Keeps `f(learn)` at each `event`"
    def __init__(self, event, f, order=500): self.seen,self.order = [],order; setattr(self, event, lambda l: self.seen.append(f(l)))

# ---- amp_dtype

@pytest.mark.parametrize('caps,want', [({}, None), ({'avx512_f': True, 'avx512_bf16': False}, None), ({'avx512_bf16': True}, BF16),
                                       ({'amx_bf16': True}, BF16), ({'bf16': True}, BF16)])
def test_half_precision_where_the_processor_has_it(monkeypatch, caps, want):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: caps, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    assert amp_dtype('cpu') is want and amp_dtype('mps') is None

def test_half_precision_of_gpus(monkeypatch):
    for has,want in (True,BF16),(False,FP16):
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: has and not including_emulation)
        assert amp_dtype('cuda:1') is want

def test_an_older_torch_is_not_guessed_at(monkeypatch):
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    assert amp_dtype('cpu') is None

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
    assert set(forward)=={dtype} and set(loss)=={(True,torch.float32)} and learn.loss.dtype==torch.float32
    assert {nm: set(cb.seen) for nm,cb in at.items()}=={
        'before_batch': {True}, 'after_predict': {True}, 'after_backward': {False}, 'after_batch': {False}}
    assert {t.dtype for t in weights(learn)}=={torch.float32}
    assert losses(learn)==pytest.approx(losses(fit(make(kind))), rel=.02)

def test_the_row_is_the_mean_of_float32_losses():
    seen = See('after_batch', lambda l: (l.loss.item(), len(l.batch[0]), l.training))
    learn = fit(make(cbs=[MixedPrecision(dtype=BF16), seen], bs=7), 1)
    for training,nm in (True,'train'),(False,'valid'):
        pairs = [(v,n) for v,n,t in seen.seen if t==training]
        assert learn.history[0][f'{nm}_loss']==pytest.approx(sum(v*n for v,n in pairs)/sum(n for _,n in pairs), rel=1e-6)

@pytest.mark.parametrize('event', [o for o in EVENTS if o not in ('predict','get_loss','backward','step','zero_grad')])
@pytest.mark.parametrize('exc', [CancelBatchException, CancelEpochException, CancelFitException, ZeroDivisionError])
@pytest.mark.parametrize('order', [-50,50])
def test_autocast_ends_with_the_batch(event, exc, order):
    learn = make(cbs=[MixedPrecision(dtype=BF16), Raises(event, exc(), at=1, order=order)])
    try: fit(learn)
    except (ZeroDivisionError, CancelBatchException, CancelEpochException, CancelFitException): pass
    assert not torch.is_autocast_enabled('cpu') and learn.model[0].weight.dtype==torch.float32

@kinds
def test_without_half_precision_nothing_changes(kind, monkeypatch):
    want = weights(fit(make(kind)))
    assert same(want, weights(fit(make(kind, [MixedPrecision(dtype=torch.float32)]))))
    monkeypatch.setattr(torch.cpu, 'get_capabilities', dict, raising=False)
    assert same(want, weights(fit(make(kind, [MixedPrecision()]))))

def test_the_default_asks_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'bf16': True}, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: True)
    seen = See('after_predict', lambda l: torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None)
    fit(make(cbs=[MixedPrecision(), seen]), 1)
    assert set(seen.seen)=={BF16}

def test_an_overflow_leaves_out_the_step():
    class Spoil(Callback):
        order = MixedPrecision.order-1
        def after_backward(self, learn):
            if learn.iter==3: learn.model[0].weight.grad[0] = torch.inf
    w,scale = (See('after_batch', f) for f in (weights, lambda l: l.scaler.get_scale()))
    fit(make(cbs=[MixedPrecision(dtype=FP16), Spoil(), w, scale], opt_func=optim.AdamW), 1, valid=False)
    assert [not same(*o) for o in zip(w.seen, w.seen[1:])]==[True,True,False,True,True,True,True]
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

@pytest.mark.parametrize('event', [o for o in EVENTS if o not in ('predict','get_loss','backward','step','zero_grad')])
@pytest.mark.parametrize('cb', [lambda: MixedPrecision(dtype=FP16), lambda: EMACB(.5), lambda: AccumCB(3)])
def test_a_look_inside_a_fit_changes_nothing(event, cb):
    def look(learn): return learn.fit(1, train=False), learn.capture_preds(), learn.lr_find(max_epochs=5, show=False)
    class Look(See):
        def __init__(self, order): super().__init__(event, look, order)
    want = fit(make(cbs=[cb()]))
    for order in -50,500:
        learn = fit(make(cbs=[cb(), Look(order)]))
        assert same(weights(want), weights(learn)) and losses(want)==losses(learn)

# ---- AccumCB

OPTS = {'SGD': optim.SGD, 'momentum': lambda p,lr: optim.SGD(p, lr, momentum=.9, weight_decay=.1), 'AdamW': optim.AdamW}

@kinds
@pytest.mark.parametrize('opt', OPTS)
@pytest.mark.parametrize('n', [32,30]) # 8 batches of 4 in groups of 3, all of them full or not
def test_accumulating_is_a_larger_batch(kind, opt, n):
    small,large = make(kind, [AccumCB(3)], n=n, opt_func=OPTS[opt]),make(kind, bs=12, n=n, opt_func=OPTS[opt])
    for o in small,large: fit(o, 3)
    for a,b in zip(weights(small), weights(large)): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert [r['valid_loss'] for r in small.history]==pytest.approx([r['valid_loss'] for r in large.history], rel=1e-5)

def test_groups_go_on_where_a_loader_has_no_length():
    class NoLen:
        def __init__(self, dl): self.dl = dl
        def __iter__(self): return iter(self.dl)
    learn,steps = make(cbs=[AccumCB(3)]),[]
    learn.dls = DataLoaders(NoLen(learn.dls.train), learn.dls.valid)
    fit(learn, 3, cbs=See('after_step', lambda l: steps.append(l.model[0].weight.grad is not None)))
    assert [i for i,o in enumerate(steps) if o]==[2,5,8,11,14,17,20,23]

def test_one_batch_at_a_time_changes_nothing():
    assert losses(fit(make(cbs=[AccumCB(1)])))==pytest.approx(losses(fit(make())), rel=1e-6)

def test_accumulating_with_the_others():
    "One clipped step, one averaged set of weights for each group, in half precision too"
    clip,ema,norms = ClipCB(.01),EMACB(.5),[]
    steps = See('after_step', lambda l: ema.ema.n_averaged.item())
    fit(make(cbs=[AccumCB(4), clip, ema, steps]), 1)
    assert steps.seen==[0,0,0,1,1,1,1,2]
    a,b = (make(cbs=[MixedPrecision(dtype=FP16), *o], bs=bs) for o,bs in (([AccumCB(4)],2), ([],8)))
    assert losses(fit(a))==pytest.approx(losses(fit(b)), rel=5e-3)

# ---- ClipCB

def test_clipping():
    clip = ClipCB(.05)
    before,after = (See('after_backward', lambda l: [p.grad.clone() for p in l.model.parameters()], o) for o in (-1,500))
    learn = fit(make(cbs=[clip, before, after]), 1)
    for a,b in zip(before.seen, after.seen):
        norm = torch.cat([o.flatten() for o in a]).norm()
        assert norm>.05 and torch.cat([o.flatten() for o in b]).norm()==pytest.approx(.05, rel=1e-4)
        for o,p in zip(a, b): torch.testing.assert_close(o*.05/norm, p, rtol=1e-4, atol=1e-7)
    assert clip.norm==pytest.approx(norm, rel=1e-5)
    assert same(weights(fit(make(cbs=[ClipCB(1e6)]), 1)), weights(fit(make(), 1))) and len(learn.history)==1

# ---- EMACB

@pytest.mark.parametrize('kind', ['TrainLearner','TrainCB'])
def test_averaged_weights(kind):
    seen = See('after_step', weights)
    learn = fit(make(kind, [EMACB(.7), seen], model=toy_model()))
    avg = [o.clone() for o in seen.seen[0]]
    for now in seen.seen[1:]: avg = [a.lerp(w, .3) if a.is_floating_point() else a for a,w in zip(avg, now)]
    for a,w in zip(avg, weights(learn)):
        if a.is_floating_point(): torch.testing.assert_close(a, w)
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

def test_averages_with_hooks():
    stats = [ActivationStats(lambda m: isinstance(m, nn.Linear)) for _ in range(2)]
    fit(make(cbs=[stats[0]]))
    fit(make(cbs=[stats[1], EMACB()]))
    assert [len(o.stats[0][0]) for o in stats]==[len(stats[0].stats[0][0])]*2

class StopAt(Callback):
    def after_epoch(self, learn):
        if learn.epoch==2 and learn.training: raise KeyboardInterrupt

@pytest.mark.parametrize('cbs', [lambda: [EMACB(.7)], lambda: [AccumCB(3), ClipCB(.1)], lambda: [MixedPrecision(dtype=BF16)]])
def test_resuming(tmp_path, cbs):
    want = fit(make(cbs=[*cbs(), CheckpointCB(tmp_path/'a')]), 4)
    with pytest.raises(KeyboardInterrupt): fit(make(cbs=[*cbs(), CheckpointCB(tmp_path/'b')]), 4, cbs=StopAt())
    learn = fit(make(cbs=[*cbs(), CheckpointCB(tmp_path/'b')]), 4)
    assert same(weights(want), weights(learn)) and losses(want)==losses(learn)
