"Schedules against PyTorch's own, through interruptions and in fits; recorded values"
import gc, inspect, io, json, math, weakref
import numpy as np, pytest, torch, torch.nn.functional as F
from fastcore import test as ft
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from torch import nn, optim
from torch.optim import lr_scheduler
from miniai.datasets import DataLoaders
from miniai.learner import Callback, CancelBatchException, CancelEpochException, TrainLearner
from miniai.sgd import (BaseSchedCB, BatchSchedCB, CosineAnnealing, EpochSchedCB, HasLearnCB,
                        OneCycle, RecorderCB, TrainOnlyCB, group_lr, group_mom, grouped_opt,
                        momentum_key)
from conftest import At, Raises, check, learner as kept_learner, toy_dls, toy_model

def two_groups(opt_func=optim.SGD, **kw):
    a,b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    return opt_func([{'params': [a], 'lr': .02}, {'params': [b]}], lr=.3, **kw)

def momentum(group): return group['betas'][0] if 'betas' in group else group.get('momentum')
def read(opt): return [(float(g['lr']), momentum(g)) for g in opt.param_groups]

def trace(make, opt, n):
    "What the groups hold before each of n steps and after the last"
    sched,res = make(opt),[read(opt)]
    for _ in range(n):
        opt.step()
        sched.step()
        res.append(read(opt))
    return res

def check_same(ours, theirs):
    assert len(ours)==len(theirs)
    for t,(a,b) in enumerate(zip(ours, theirs)):
        for g,h in zip(a, b, strict=True):
            for v,w in zip(g, h, strict=True): assert v==w or abs(v-w)<1e-9, (t,a,b)

WITH_MOM = optim.SGD, optim.RMSprop, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax
WITHOUT = optim.Adagrad, optim.Adadelta, optim.Rprop, optim.ASGD

# equal to PyTorch's

@pytest.mark.parametrize('opt_func', WITH_MOM+WITHOUT)
@pytest.mark.parametrize('n', [1,2,3,10,257])
@pytest.mark.parametrize('eta_min', [0.,1e-3,.1])
def test_cosine_equals_torch(opt_func, n, eta_min):
    ours = partial(CosineAnnealing, total_steps=n, eta_min=eta_min)
    theirs = partial(lr_scheduler.CosineAnnealingLR, T_max=n, eta_min=eta_min)
    check_same(trace(ours, two_groups(opt_func), n), trace(theirs, two_groups(opt_func), n))

def check_onecycle(opt_func, **kw):
    def run(f): return trace(partial(f, **kw), two_groups(opt_func), kw['total_steps'])
    ours = run(OneCycle)
    check_same(ours, run(lr_scheduler.OneCycleLR))
    return ours

@pytest.mark.parametrize('opt_func', [optim.SGD, optim.AdamW])
@pytest.mark.parametrize('anneal', ['cos','linear'])
@pytest.mark.parametrize('max_lr', [.1, [.05,.7]])
def test_onecycle_equals_torch(opt_func, anneal, max_lr):
    moms = (.85,.95), (.5,.9)
    settings = product((7,10,61), (.25,.3,.5,.9), (25.,2.), (1e4,10.), moms)
    for n,pct,div,final,(base,high) in settings:
        check_onecycle(opt_func, max_lr=max_lr, total_steps=n, pct_start=pct,
                       anneal_strategy=anneal, div_factor=div, final_div_factor=final,
                       base_momentum=base, max_momentum=high)

@pytest.mark.parametrize('opt_func', WITH_MOM)
@pytest.mark.parametrize('anneal', ['cos','linear'])
def test_onecycle_equals_torch_for_all_optimizers(opt_func, anneal):
    rows = check_onecycle(opt_func, max_lr=[.05,.7], total_steps=1000, anneal_strategy=anneal)
    assert max(rows[:1000])==rows[299]==[(.05,.85),(.7,.85)]

@pytest.mark.parametrize('opt_func', WITH_MOM+WITHOUT)
def test_onecycle_leaves_momentum_alone(opt_func):
    before = [m for _,m in read(two_groups(opt_func))]
    ours = check_onecycle(opt_func, max_lr=.1, total_steps=20, cycle_momentum=False)
    assert all([m for _,m in row]==before for row in ours)

def test_other_betas_stay():
    opt = two_groups(optim.AdamW, betas=(.9,.97))
    OneCycle(opt, .1, 10).step()
    assert [g['betas'][1:] for g in opt.param_groups]==[(.97,)]*2

# saved and loaded

MAKERS = {'cosine': partial(CosineAnnealing, total_steps=12, eta_min=1e-3),
          'onecycle': partial(OneCycle, max_lr=[.05,.7], total_steps=12),
          'linear': partial(OneCycle, max_lr=.1, total_steps=12, anneal_strategy='linear')}

def through_file(state):
    f = io.BytesIO()
    torch.save(state, f)
    f.seek(0)
    return torch.load(f, weights_only=True)

def through_json(state): return json.loads(json.dumps(state))

@pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize('opt_func', [optim.SGD, optim.AdamW])
@pytest.mark.parametrize('copy', [through_file, through_json])
@pytest.mark.parametrize('order', ['optimizer first','schedule first','schedule only'])
def test_resumed_anywhere_goes_on_the_same(make, opt_func, copy, order):
    whole = trace(make, two_groups(opt_func), 12)
    for stop in range(13):
        opt = two_groups(opt_func)
        sched = make(opt)
        for _ in range(stop): sched.step()
        opt_state = through_file(opt.state_dict())
        opt2 = two_groups(opt_func)
        if order=='optimizer first': opt2.load_state_dict(opt_state)
        sched2 = make(opt2)
        sched2.load_state_dict(copy(sched.state_dict()))
        if order=='schedule first': opt2.load_state_dict(opt_state)
        rest = [read(opt2)]
        for _ in range(stop, 12):
            sched2.step()
            rest.append(read(opt2))
        assert rest==whole[stop:]

def test_a_state_is_a_picture_of_its_moment():
    sched = MAKERS['onecycle'](two_groups())
    state = sched.state_dict()
    kept = json.dumps(state)
    for _ in range(5): sched.step()
    assert json.dumps(state)==kept!=json.dumps(sched.state_dict())

def test_optimizer_state_loaded_on_the_way():
    "The optimizer's groups are new dicts then, and the schedule still steers them"
    opt = two_groups()
    sched = MAKERS['cosine'](opt)
    whole,seen = trace(MAKERS['cosine'], two_groups(), 12),[]
    for _ in range(12):
        sched.step()
        opt.load_state_dict(opt.state_dict())
        seen.append(read(opt))
    assert seen==whole[1:]

def test_states_that_do_not_fit():
    sched,adagrad = MAKERS['onecycle'](two_groups()),two_groups(optim.Adagrad)
    one = CosineAnnealing(optim.SGD([nn.Parameter(torch.ones(1))], .1), 10)
    for state in lr_scheduler.OneCycleLR(two_groups(), .1, 10).state_dict(), {}:
        with pytest.raises(TypeError, match='argument'): sched.load_state_dict(state)
    with pytest.raises(ValueError, match='shorter'): sched.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match='Adagrad must have momentum or betas'):
        CosineAnnealing(adagrad, 12).load_state_dict(MAKERS['onecycle'](two_groups()).state_dict())

# errors

@pytest.mark.parametrize('total', [0, -3, 2.5, 10., None, '10', float('nan')])
def test_impossible_total(total):
    with pytest.raises(ValueError, match='total_steps must be a whole number of at least 1'):
        CosineAnnealing(two_groups(), total)

@pytest.mark.parametrize('n, pct', [(1,.3), (3,.3), (10,.1), (10,0.), (10,-.5), (10,1.), (10,1.5),
                                    (10,math.nan)])
def test_total_too_short_for_pct_start(n, pct):
    msg = f'all {n} steps, got .* with pct_start={pct}; pass .*more epochs or smaller batches'
    with pytest.raises(ValueError, match=msg): OneCycle(two_groups(), .1, n, pct_start=pct)

@pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)
def test_step_past_the_end(make):
    opt = two_groups()
    sched = make(opt)
    for _ in range(12): sched.step()
    before = read(opt),sched.t
    msg = f'{type(sched).__name__} must take at most 12 steps, got more; pass total_steps=epochs'
    for _ in range(2):
        with pytest.raises(ValueError, match=msg): sched.step()
    assert (read(opt),sched.t)==before

@pytest.mark.parametrize('opt_func', WITHOUT)
def test_no_momentum_to_cycle(opt_func):
    opt = two_groups(opt_func)
    before = read(opt)
    msg = f'{opt_func.__name__} must have momentum or betas .*cycle_momentum=False'
    with pytest.raises(ValueError, match=msg): OneCycle(opt, .1, 10)
    assert read(opt)==before
    OneCycle(opt, .1, 10, cycle_momentum=False).step()

# in fits

def body_and_head(params, lr, opt_func=optim.AdamW):
    params = list(params)
    return opt_func([{'params': params[:2], 'lr': lr/10}, {'params': params[2:]}], lr)

def learner(*cbs, opt_func=body_and_head):
    return TrainLearner(toy_model(), toy_dls(), F.cross_entropy, .1, cbs=cbs, opt_func=opt_func)

def both(**kw):
    return RecorderCB(lr0=group_lr, lr1=partial(group_lr, i=1),
                      mom0=group_mom, mom1=partial(group_mom, i=1), **kw)

OURS = CosineAnnealing,OneCycle
TORCHS = lr_scheduler.CosineAnnealingLR,lr_scheduler.OneCycleLR
PAIRS = {'batch 1cycle': (BatchSchedCB, OneCycle, dict(max_lr=[.01,.2], total_steps=12)),
         'batch cosine': (BatchSchedCB, CosineAnnealing, dict(T_max=12)),
         'epoch cosine': (EpochSchedCB, CosineAnnealing, dict(T_max=3, eta_min=.01)),
         'epoch 1cycle': (EpochSchedCB, OneCycle, dict(max_lr=.1, total_steps=3, pct_start=.5))}

@pytest.mark.parametrize('cb, ours, kw', PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize('first', [True,False])
def test_fit_equals_torch(cb, ours, kw, first):
    "The same rates at every batch and the same weights at the end, wherever the recorder stands"
    theirs = dict(zip(OURS, TORCHS))[ours]
    renamed = {{'T_max': 'total_steps'}.get(k, k): v for k,v in kw.items()}
    def run(sched):
        rec,cbs = both(),[cb(sched)]
        cbs.insert(0 if first else 1, rec)
        learn = learner(*cbs)
        learn.fit(3)
        assert len(set(rec.recs['lr1']))==(12 if cb is BatchSchedCB else 3)
        return rec.recs,[p.detach() for p in learn.model.parameters()]
    recs,weights = run(partial(ours, **renamed))
    recs2,weights2 = run(partial(theirs, **kw))
    for nm,vals in recs.items(): assert vals==pytest.approx(recs2[nm], abs=1e-9, rel=0)
    assert all(torch.allclose(a, b) for a,b in zip(weights, weights2))

@pytest.mark.parametrize('make', [CosineAnnealing, partial(OneCycle, max_lr=.1)])
def test_dry_runs_leave_the_schedule_alone(make):
    rec,cb = RecorderCB(),BatchSchedCB(partial(make, total_steps=8))
    learn = learner(cb, rec)
    learn.fit(2)
    sched,state,groups = cb.schedo,cb.schedo.state_dict(),read(learn.opt)
    recs = {k: list(v) for k,v in rec.recs.items()}
    learn.lr_find(show=False)
    learn.fit(1, train=False)
    assert cb.schedo is sched and sched.state_dict()==state and read(learn.opt)==groups
    for nm,vals in recs.items():
        assert len(vals)==len(rec.recs[nm])==8
        assert all(a is b for a,b in zip(rec.recs[nm], vals))

def test_lr_find_between_fits_changes_nothing():
    def run(find):
        rec = RecorderCB()
        learn = learner(BatchSchedCB(partial(OneCycle, max_lr=.1, total_steps=8)), rec)
        learn.fit(2)
        if find: learn.lr_find(show=False)
        learn.fit(2)
        return {k: [float(o) for o in v] for k,v in rec.recs.items()}
    assert run(True)==run(False)

@pytest.mark.parametrize('cb, total, epochs', [(BatchSchedCB,7,2), (BatchSchedCB,2,2),
                                               (EpochSchedCB,2,3)])
@pytest.mark.parametrize('make', [CosineAnnealing, partial(OneCycle, max_lr=.1, pct_start=.8)])
def test_fit_longer_than_its_schedule(cb, total, epochs, make):
    rec = RecorderCB()
    with pytest.raises(ValueError, match=f'must take at most {total} steps, got more') as e:
        learner(cb(partial(make, total_steps=total)), rec).fit(epochs)
    event = 'after_batch' if cb is BatchSchedCB else 'after_epoch'
    assert f'Raised in callback {cb.__name__}, event {event}.' in e.value.__notes__
    assert len(rec.recs['lr'])==(total+1 if cb is BatchSchedCB else 4*(total+1))

def test_validation_and_cancelled_batches_take_no_step():
    class Skip(Callback):
        def before_batch(self, learn):
            if learn.training and learn.iter==1: raise CancelBatchException()
    cb,rec = BatchSchedCB(partial(CosineAnnealing, total_steps=8)),RecorderCB()
    learner(cb, rec, Skip()).fit(2)
    assert cb.schedo.t==len(rec.recs['lr'])==6

def test_momentum_key():
    for opt_func,key in (optim.SGD,'momentum'),(optim.AdamW,'betas'),(optim.Adagrad,None):
        assert momentum_key(two_groups(opt_func))==key

@pytest.mark.parametrize('number', [np.int64, np.int32, np.uint8])
def test_numbers_from_numpy(number):
    "They serve as steps and rates, and the state stays plain"
    one = partial(OneCycle, max_lr=np.float32(.1))
    two = partial(OneCycle, max_lr=[np.float64(.1), .2])
    for make in one,two,CosineAnnealing:
        a,b = (make(two_groups(), total_steps=n) for n in (number(12), 12))
        for _ in range(5): a.step(), b.step()
        assert a.state_dict()==b.state_dict()==through_file(json.loads(json.dumps(a.state_dict())))
        assert read(a.opt)==read(b.opt)

def test_base_sched_cb_is_a_base():
    "A subclass says when to step: here after every second batch"
    class Half(BaseSchedCB):
        def after_batch(self, learn):
            if learn.training and learn.iter%2: self.schedo.step()
    cb = Half(partial(CosineAnnealing, total_steps=4))
    learner(cb).fit(2)
    assert cb.schedo.t==4 and isinstance(BatchSchedCB(CosineAnnealing), BaseSchedCB)

# the loss decides

def plateau(**kw):
    return EpochSchedCB(partial(lr_scheduler.ReduceLROnPlateau, factor=.5, patience=0, **kw))

@pytest.mark.parametrize('valid', [True,False])
def test_plateau_gets_the_loss_of_the_last_pass(valid):
    "Validation's mean loss, or training's without validation; torch gives the same rates for them"
    class Means(Callback):
        def __init__(self): self.losses = {True: [], False: []}
        def after_epoch(self, learn):
            self.losses[learn.training].append(torch.stack(learn.losses).mean().item())
    cb,rec,means = plateau(),both(),Means()
    learn = learner(cb, rec, means)
    learn.fit(8, lr=.5, valid=valid)
    opt = body_and_head([nn.Parameter(torch.ones(1)) for _ in range(3)], .5)
    sched,want = lr_scheduler.ReduceLROnPlateau(opt, factor=.5, patience=0),[]
    for loss in means.losses[not valid]:
        want.append([g['lr'] for g in opt.param_groups])
        sched.step(loss)
    got = zip(rec.recs['lr0'][::4], rec.recs['lr1'][::4])
    assert [list(o) for o in got]==want and want[-1]!=want[0]
    state = cb.state_dict()
    assert state['last_epoch']==8 and state['best']==sched.best
    learn.fit(2, train=False)
    learn.lr_find(show=False)
    assert cb.state_dict()==state

def test_plateau_with_metrics_of_its_own_mode_and_loaded():
    cb = plateau(mode='max', threshold=1.)
    learn = learner(cb)
    learn.fit(3)
    assert cb.schedo.mode=='max' and learn.opt.param_groups[1]['lr']<.1
    again = plateau()
    learn.fit(1, cbs=again)
    again.load_state_dict(cb.state_dict())
    assert again.state_dict()==cb.state_dict()

# in one line

def test_fit_one_cycle():
    "As with the callback by hand, at the learner's rate or another, with settings of OneCycle"
    for lr,kw in (None,{}), (.02,{}), (.3,dict(pct_start=.5, cycle_momentum=False, div_factor=4.)):
        rec,recs = RecorderCB(lr=group_lr, mom=group_mom),[]
        learn = learner(rec, opt_func=optim.AdamW)
        for short in True,False:
            sched = partial(OneCycle, max_lr=lr or .1, total_steps=12, **kw)
            if short: learn.fit_one_cycle(3, lr, **kw)
            else: learn.fit(3, lr=lr, cbs=BatchSchedCB(sched))
            recs.append(rec.recs)
        assert recs[0]==recs[1] and max(recs[0]['lr'])==pytest.approx(lr or .1, rel=.2)
    assert [type(cb) for cb in learn.cbs]==[RecorderCB] and learn.lr==.1

def test_fit_one_cycle_with_two_rates():
    rec,seen = both(),[]
    class See(Callback):
        def before_fit(self, learn): seen.append(1)
    learn = learner(rec)
    learn.fit_one_cycle(5, .2, See())
    assert seen and rec.recs['lr1']==pytest.approx([10*lr for lr in rec.recs['lr0']])
    assert max(rec.recs['lr1'])==.2 and rec.recs['mom0'][5]==.85

def test_fit_one_cycle_errors():
    learn = learner(opt_func=optim.Adagrad)
    with pytest.raises(ValueError, match='Adagrad must have .*cycle_momentum=False'):
        learn.fit_one_cycle(3)
    learn.fit_one_cycle(3, cycle_momentum=False)
    for n in -1,2.5:
        with pytest.raises(ValueError, match='n_epochs'): learn.fit_one_cycle(n)
    with pytest.raises(TypeError, match='pct'): learn.fit_one_cycle(3, pct=.5)
    assert 'pct_start' in inspect.signature(TrainLearner.fit_one_cycle).parameters

class Stream:
    "Endless batches, as an object without a length"
    def __iter__(self):
        while True: yield from toy_dls().train

def five_batches(learn):
    if learn.training and learn.iter==5: raise CancelEpochException()

def test_fit_one_cycle_of_a_stream():
    rec = RecorderCB(lr=group_lr)
    learn = learner(At('before_batch', five_batches), rec, opt_func=optim.AdamW)
    learn.dls = DataLoaders(Stream(), toy_dls().valid)
    with pytest.raises(ValueError, match='dls.train must have a length, got none; pass total_steps'):
        learn.fit_one_cycle(2)
    learn.fit_one_cycle(2, .1, total_steps=10)
    sched = trace(partial(OneCycle, max_lr=.1, total_steps=10), optim.AdamW([nn.Parameter(torch.ones(1))]), 9)
    assert rec.recs['lr']==[g[0][0] for g in sched]

# parts of a model

PARTS = {'a rate for each': [.01,.2], 'a tuple of numpy': tuple(np.array([.01,.2])), 'one for all': .2}
def parted(lr=.1, opt_func=optim.AdamW, cbs=None):
    model = toy_model()
    return TrainLearner(model, toy_dls(), F.cross_entropy, lr, cbs, grouped_opt(opt_func, model[4:]))

@pytest.mark.parametrize('lr', PARTS.values(), ids=PARTS)
@pytest.mark.parametrize('where', ['learner','fit'])
def test_a_group_for_each_part(lr, where):
    learn = parted(lr) if where=='learner' else parted()
    learn.fit(1, lr=None if where=='learner' else lr)
    body,head = learn.opt.param_groups
    want = lr if isinstance(lr, (list,tuple)) else [lr]*2
    assert [body['lr'],head['lr']]==list(want) and {type(g['lr']) for g in (body,head)}=={float}
    for g,part in (body,learn.model[:4]), (head,learn.model[4:]):
        assert all(p is q for p,q in zip(g['params'], part.parameters(), strict=True))

def test_three_parts():
    model = toy_model()
    opt = grouped_opt(optim.SGD, model[6], model[1])(model.parameters(), [.1,.2,.3])
    assert [(g['lr'],len(g['params'])) for g in opt.param_groups]==[(.1,6),(.2,2),(.3,2)]

def test_one_cycle_peaks_at_the_rate_of_each_part():
    rec = both()
    learn = parted(cbs=rec)
    learn.fit_one_cycle(5, lr=[.01,.2])
    assert max(rec.recs['lr0'])==.01 and max(rec.recs['lr1'])==.2
    learn.lr = [.01,.2]
    learn.lr_find(show=False)
    learn.fit(1)
    assert [g['lr'] for g in learn.opt.param_groups]==[.01,.2]

@pytest.mark.parametrize('lr', [[.1], [.1,.2,.3], ()])
def test_a_wrong_number_of_rates(lr):
    with pytest.raises(ValueError, match='lr must be one number or 2, one for each group, got'):
        parted(lr).fit(1)

def test_each_part_is_of_the_model_and_makes_a_group():
    model = toy_model()
    whole = grouped_opt(optim.SGD, model[:4], model[4:])(model.parameters(), [.1,.2])
    assert [len(g['params']) for g in whole.param_groups]==[4,6]
    each = grouped_opt(optim.SGD, *model)(model.parameters(), .1)  # some layers have no weights
    assert len(each.param_groups)==sum(1 for m in model if [*m.parameters()])
    with pytest.raises(ValueError, match='Parts must be modules of the model, without overlap'):
        grouped_opt(optim.SGD, nn.Linear(2,2))(model.parameters(), [.1,.2])

def values(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def changed(learn, before): return {k for k,v in values(learn).items() if not torch.equal(v, before[k])}

@pytest.mark.parametrize('fit', [lambda l,cb: l.fit(2, cbs=cb), lambda l,cb: l.fit(1, valid=False, cbs=cb),
                                 lambda l,cb: l.fit_one_cycle(2, cbs=cb, pct_start=.5)])
@pytest.mark.parametrize('opt_func', [partial(optim.SGD, momentum=.9), partial(optim.AdamW, weight_decay=.5)])
def test_only_a_part_trains(fit, opt_func):
    "Weights and running means of the rest stay, and each parameter learns again afterwards as before"
    learn = learner(opt_func=opt_func)
    learn.model[0].bias.requires_grad_(False)
    before,wants = values(learn),[p.requires_grad for p in learn.model.parameters()]
    seen = []
    dropout = At('after_predict', lambda l: seen.append(l.training==l.model[3].training))
    learn.cbs.append(dropout)
    fit(learn, TrainOnlyCB(learn.model[6]))
    assert changed(learn, before)=={'6.weight','6.bias'} and all(seen)
    assert [p.requires_grad for p in learn.model.parameters()]==wants
    learn.fit(1)
    assert {'0.weight','1.running_mean','5.running_mean'} <= changed(learn, before)

def test_the_norm_of_a_trained_part_goes_on():
    learn = learner(opt_func=optim.SGD)
    before = values(learn)
    learn.fit(1, cbs=TrainOnlyCB(learn.model[1], learn.model[6]))
    assert {k for k in changed(learn, before) if k[0]!='1'}=={'6.weight','6.bias'}
    assert {'1.weight','1.running_mean'} <= changed(learn, before)

def test_a_weight_that_the_trained_part_shares_learns():
    learn = learner(opt_func=optim.SGD)
    learn.model[4] = nn.Linear(6,6)
    learn.model[6] = nn.Sequential(nn.Linear(6,6), nn.Linear(6,3))
    learn.model[6][0].weight = learn.model[4].weight
    before = values(learn)
    learn.fit(1, cbs=TrainOnlyCB(learn.model[6]))
    assert {k for k in changed(learn, before) if k[0]!='6'}=={'4.weight'}

@pytest.mark.parametrize('event', ['before_fit','before_epoch','after_backward','after_fit','cleanup_fit'])
@pytest.mark.parametrize('order', [-100,100])
def test_frozen_parameters_learn_again_after_an_error(event, order):
    learn = learner(opt_func=optim.SGD)
    cb = TrainOnlyCB(learn.model[6])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError): learn.fit(1, cbs=[cb, Raises(event, ZeroDivisionError(), order=order)])
        assert all(p.requires_grad for p in learn.model.parameters())

class Variance(nn.Module):
    "A norm that keeps a running variance alone, as timm's EvoNorm does"
    def __init__(self):
        super().__init__()
        self.register_buffer('running_var', torch.ones(6))
    def forward(self, x):
        if self.training: self.running_var.lerp_(x.detach().var(0), .1)
        return x/self.running_var.sqrt()

@pytest.mark.parametrize('exc', [None, ZeroDivisionError(), KeyboardInterrupt()])
def test_norms_of_any_kind_are_frozen_and_all_modes_agree_afterwards(exc):
    learn = learner(opt_func=optim.SGD)
    learn.model[4] = nn.Sequential(nn.Linear(6,6), Variance())
    before = values(learn)
    cbs = [TrainOnlyCB(learn.model[6])] + ([Raises('after_backward', exc)] if exc else [])
    with pytest.raises(type(exc)) if exc else nullcontext(): learn.fit(1, valid=False, cbs=cbs)
    assert changed(learn, before) <= {'6.weight','6.bias'}
    assert {m.training for m in learn.model.modules()}=={True}

def test_dry_runs_of_a_part():
    "They change nothing, and inside a fit they leave the rest frozen"
    learn = kept_learner()
    learn.cbs.append(TrainOnlyCB(learn.model[6]))
    for f in partial(learn.lr_find, show=False), partial(learn.fit, 1, train=False): check(learn, f, skip=['history'])
    learn = learner(opt_func=optim.SGD)
    before,frozen = values(learn),[]
    def inside(learn):
        if learn.dry_run: return
        learn.lr_find(show=False)
        learn.fit(1, train=False)
        frozen.append(learn.model[0].weight.requires_grad)
    learn.fit(2, cbs=[TrainOnlyCB(learn.model[6]), At('after_epoch', inside)])
    assert changed(learn, before)=={'6.weight','6.bias'} and not any(frozen) and len(frozen)==4
    assert all(p.requires_grad for p in learn.model.parameters())

@pytest.mark.parametrize('parts', [[], [nn.Linear(2,2)]])
def test_no_part_of_the_model(parts):
    with pytest.raises(RuntimeError) as e: learner().fit(1, cbs=TrainOnlyCB(*parts))
    assert any('All parameters are frozen' in note for note in e.value.__notes__)

def test_a_timm_body():
    timm = pytest.importorskip('timm')
    model = timm.create_model('resnet10t', in_chans=1, num_classes=3)
    x = torch.rand(8,1,32,32)
    dls = DataLoaders.from_tensors({'train': (x,torch.arange(8)%3), 'valid': (x,torch.arange(8)%3)}, 4)
    head = model.get_classifier()
    learn = TrainLearner(model, dls, F.cross_entropy, .1, opt_func=grouped_opt(optim.SGD, head))
    before = values(learn)
    learn.fit(1, cbs=TrainOnlyCB(head))
    assert changed(learn, before)=={'fc.weight','fc.bias'}
    learn.fit_one_cycle(2, [.001,.01], pct_start=.5, cycle_momentum=False)
    assert 'bn1.running_mean' in changed(learn, before)

# the notebook's homework

def notebook(name):
    cells = json.loads((Path(__file__).parent.parent/'nbs'/name).read_text())['cells']
    return [''.join(c['source']) for c in cells]

def test_the_homework(capsys):
    "The check refuses skeletons and wrong answers, and takes solutions, the folded one as well"
    cells = notebook('12_sgd.ipynb')
    def get_mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(4,3), nn.ReLU(), nn.Linear(3,3))
    ns = dict(math=math, torch=torch, optim=optim, lr_scheduler=lr_scheduler, partial=partial,
              test_eq=ft.test_eq, get_mlp=get_mlp)
    def run(has):
        exec(next(c for c in cells if has in c), ns)
        return capsys.readouterr().out
    for has in 'def get_groups','def check','def cos_anneal': run(has)
    for has,says in (('class MyCosine','MyCosine is right up to step 0.'),
                     ('class Cosine0','Cosine0 is right up to step 1.'),
                     ('class Cosine1',"Cosine1 is right: it has PyTorch's rates"),
                     ('class MyOneCycle','MyOneCycle is wrong before the first step')):
        assert run(has).startswith(says)
    fold = next(c for c in cells if '<details>' in c and 'class MyOneCycle' in c)
    exec(fold.split('```python')[1].split('```')[0], ns)
    last = next(c for c in cells if 'class MyOneCycle' in c and 'check(' in c).splitlines()[-1]
    exec(last, ns)
    assert capsys.readouterr().out.startswith('MyOneCycle is right')
    class Broken: pass
    ns['check'](Broken)
    assert capsys.readouterr().out.startswith('Broken does not run yet. TypeError')

# HasLearnCB

class NeedsLearner(HasLearnCB):
    def __init__(self): self.seen = []
    def after_batch(self, learn): self.note()
    def note(self): self.seen.append(self.learn.iter)

def test_has_learn():
    cb = NeedsLearner()
    learn = learner(cb)
    learn.fit(1)
    assert cb.seen==[0,1,2,3,0,1] and cb.learn is None
    learn.fit(1, train=False)
    assert cb.seen[6:]==[0,1] and cb.learn is None

def test_has_learn_makes_no_cycle():
    cb = NeedsLearner()
    learn,gone = learner(cb),[]
    class Fails(Callback):
        def after_batch(self, learn): raise ZeroDivisionError
    try: learn.fit(1, cbs=Fails())
    except ZeroDivisionError: pass
    gc.collect()
    gc.disable()
    weakref.finalize(learn, gone.append, 1)
    del learn
    gc.enable()
    assert gone and cb.learn is None

def test_has_learn_in_dry_runs_inside_a_fit():
    "The learner of the innermost fit: the copy of the dry run, and after it the learner of the fit"
    cb,dry_runs = HasLearnCB(),[]
    class Same(Callback):
        def after_predict(self, learn):
            assert cb.learn is learn
            dry_runs.append(learn.dry_run)
    class Evaluates(Callback):
        def after_batch(self, learn):
            if learn.dry_run: return
            learn.fit(1, train=False)
            assert cb.learn is learn
    learner(cb, Same(), Evaluates()).fit(1)
    assert dry_runs.count(False)==6 and dry_runs.count(True)==12 and cb.learn is None

def test_has_learn_after_an_error_in_a_dry_run():
    cb = HasLearnCB()
    class Evaluates(Callback):
        def after_batch(self, learn):
            if learn.dry_run: return
            with pytest.raises(ZeroDivisionError): learn.fit(1, train=False, cbs=Fails())
            assert cb.learn is learn
    class Fails(Callback):
        def after_predict(self, learn): raise ZeroDivisionError
    learner(cb, Evaluates()).fit(1)
    assert cb.learn is None

# RecorderCB

@pytest.mark.parametrize('opt_func, names', [
    (optim.SGD, ['lr','mom','loss']), (optim.AdamW, ['lr','mom','loss']),
    (optim.Adagrad, ['lr','loss'])])
def test_recorder_defaults(opt_func, names):
    rec = RecorderCB()
    learn = learner(rec, opt_func=opt_func)
    learn.fit(2)
    assert list(rec.recs)==names and {len(v) for v in rec.recs.values()}=={8}
    learn.fit(1)
    assert {len(v) for v in rec.recs.values()}=={4}

def test_recorder_does_not_sync(monkeypatch):
    "It turns no tensor into a number during a fit; what it keeps is out of the graph"
    rec = RecorderCB(loss=lambda learn: learn.loss, norm=lambda learn: learn.model[0].weight.norm())
    def syncs(*cbs):
        learn,seen = learner(*cbs, opt_func=optim.SGD),[]
        def counted(f): return lambda *args: seen.append(1) or f(*args)
        with monkeypatch.context() as m:
            for nm in 'item','tolist','cpu','numpy','__float__','__bool__':
                m.setattr(torch.Tensor, nm, counted(getattr(torch.Tensor, nm)))
            learn.fit(1)
        return len(seen)
    assert syncs(rec)==syncs()
    for vals in rec.recs.values():
        assert all(isinstance(v, torch.Tensor) and v.grad_fn is None for v in vals)

def test_recorder_takes_the_courses_getters():
    "There, a getter reads `pg`, the first parameter group"
    def _lr(cb): return cb.pg['lr']
    def _beta1(cb): return cb.pg['betas'][0]
    rec = RecorderCB(lr=_lr, mom=_beta1)
    ours = RecorderCB(lr=group_lr, mom=group_mom)
    sched = BatchSchedCB(partial(lr_scheduler.OneCycleLR, max_lr=.1, total_steps=8))
    learner(sched, rec, ours).fit(2)
    assert rec.recs==ours.recs and len(rec.recs['lr'])==8

def test_recorder_keeps_values_that_are_changed_in_place():
    rec = RecorderCB(w=lambda learn: learn.model[0].bias)
    learner(rec, opt_func=optim.SGD).fit(1)
    assert len({tuple(v.tolist()) for v in rec.recs['w']})==4

def test_recorder_plot():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    rec = RecorderCB()
    with pytest.raises(ValueError, match='Nothing is recorded yet'): rec.plot()
    learn = learner(rec, BatchSchedCB(partial(OneCycle, max_lr=.1, total_steps=8)))
    learn.fit(2)
    rec.plot()
    axs = plt.gcf().axes
    assert [ax.get_ylabel() for ax in axs]==['learning rate','momentum','loss']
    assert all(ax.get_title() and ax.get_xlabel()=='training batch' for ax in axs)
    for ax,vals in zip(axs, rec.recs.values()):
        assert ax.lines[0].get_ydata().tolist()==pytest.approx([float(v) for v in vals])
    four = both(bias=lambda learn: learn.model[0].bias)
    learn.fit(1, cbs=four)
    four.plot()
    axs = [ax for ax in plt.gcf().axes if ax.lines]
    assert [ax.get_ylabel() for ax in axs]==['lr0','lr1','mom0','mom1','bias']
    assert len(axs[-1].lines)==6
