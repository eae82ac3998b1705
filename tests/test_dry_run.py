"A dry run changes nothing: on success, on errors and on Ctrl-C, in every event"
import copy, linecache, signal, sys, pytest, numpy as np, torch, torch.nn.functional as F
from functools import partial
from torch import nn, optim
from miniai.activations import HooksCallback
from miniai.augment import *
from miniai.learner import *
from miniai.resnet import *
from miniai.sgd import HasLearnCB
from conftest import EVENTS, At, Meddles, Raises, check, learner, state, toy, toy_dls

def evaluate_with(learn, cbs): learn.fit(1, train=False, cbs=cbs)

def lr_find_with(learn, cbs):
    learn.cbs += cbs
    try: learn.lr_find(show=False)
    finally: del learn.cbs[len(learn.cbs)-len(cbs):]

dry_runs = {'evaluation': evaluate_with, 'lr_find': lr_find_with}

@pytest.mark.parametrize('dry_run', dry_runs)
@pytest.mark.parametrize('trained', [0,1])
@pytest.mark.parametrize('meddle', [False,True])
def test_success(dry_run, trained, meddle):
    learn = learner(trained)
    skip = ('history',) if dry_run=='evaluation' else ()
    check(learn, lambda: dry_runs[dry_run](learn, [Meddles(dry_run=='lr_find')] if meddle else []), skip)
    check(learn, lambda: dry_runs[dry_run](learn, []), skip)

@pytest.mark.parametrize('dry_run', dry_runs)
@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_faults(dry_run, event, exc):
    learn = learner()
    cb = Raises(event, exc(), at=1 if 'fit' not in event else 0)
    silent = ('after_backward','after_step','after_epoch','before_epoch','cleanup_epoch')
    fires = not (event in ('predict','get_loss','backward','step','zero_grad') or dry_run=='evaluation' and event in silent
                 or dry_run=='lr_find' and event=='after_fit')  # a cancelled fit skips it
    if event in ('after_epoch','before_epoch','cleanup_epoch') and dry_run=='evaluation': cb.at,fires = 0,True
    def f():
        if not fires: return dry_runs[dry_run](learn, [cb])
        with pytest.raises(exc): dry_runs[dry_run](learn, [Meddles(dry_run=='lr_find'), cb])
    check(learn, f, ('history',))
    check(learn, lambda: dry_runs[dry_run](learn, []), ('history',))

@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_a_training_that_failed_can_be_repeated(event, exc):
    learn = learner(0)
    own,logger = list(learn.cbs),learn.logger
    try: learn.fit(1, cbs=Raises(event, exc()))
    except (ZeroDivisionError, KeyboardInterrupt): pass
    assert learn.cbs==own and learn.logger is logger and not learn.dry_run and torch.is_grad_enabled()
    assert learn.cbs[1].mbar is None
    learn.fit(1)

def test_records_are_left_out():
    "A user's schedule and metrics neither disturb the finder nor notice it"
    learn = learner()
    rows,sched = len(learn.metrics.history),learn.cbs[2].schedo
    steps = sched.last_epoch
    found = learn.lr_find(show=False)
    assert len(learn.metrics.history)==rows and learn.cbs[2].schedo is sched and sched.last_epoch==steps
    ratios = np.array(found.lrs[1:])/found.lrs[:-1]
    assert np.allclose(ratios, 1.3)

def test_same_with_and_without_a_users_callbacks():
    a,b = learner(),learner()
    b.cbs = []
    assert a.lr_find(show=False).losses==b.lr_find(show=False).losses

def test_training_goes_on_as_without_a_dry_run():
    def run(dry):
        learn = learner(1)
        if dry:
            learn.lr_find(show=False)
            learn.fit(1, train=False)
        learn.fit(1)
        return [p.detach().clone() for p in learn.model.parameters()]
    assert all(torch.equal(a,b) for a,b in zip(run(False), run(True)))

def test_one_snapshot_around_several_passes():
    "Inside no_trace the passes differ (dropout, shuffling go on), outside nothing has moved"
    learn,seen = learner(),[]
    class Draw(Callback):
        def after_batch(self, learn): seen.append(torch.rand(1).item())
    with no_trace(learn, train=False) as dry:
        for _ in range(3): dry.fit(1, train=False, cbs=Draw())
    assert len(set(seen))==len(seen)
    seen.clear()
    for _ in range(2): learn.fit(1, train=False, cbs=Draw())
    assert seen[:len(seen)//2]==seen[len(seen)//2:]

def test_optimizers_with_odd_state():
    for f in (partial(optim.SGD, momentum=.9), optim.Adagrad, partial(optim.AdamW, amsgrad=True), optim.RMSprop):
        learn = learner(1, opt_func=f)
        check(learn, lambda: lr_find_with(learn, [Meddles(trains=True)]))

# lr_find itself

def test_number_of_groups_keeps_their_ratio():
    seen = []
    class See(Callback):
        def after_step(self, learn): seen.append([g['lr'] for g in learn.opt.param_groups])
    lr_find_with(learner(), [See()])
    assert all(b/a==pytest.approx(10) for a,b in seen) and seen[0][1]==pytest.approx(1e-5)

def test_one_batch_of_data():
    learn = learner()
    learn.dls = toy_dls(bs=32, n=32)
    found = learn.lr_find(show=False)
    assert len(found.lrs)>40 and 1e-5<found.steep<10 and 1e-5<found.valley<10

@pytest.mark.parametrize('max_mult', [1.5, 3])
def test_stops_at_the_first_loss_above_max_mult(max_mult):
    learn = TrainLearner(nn.Linear(4,3), toy_dls(), F.cross_entropy)
    losses = learn.lr_find(end_lr=1e6, max_mult=max_mult, show=False).losses
    over = [losses[i]>max_mult*min(losses[:i+1]) for i in range(len(losses))]
    assert over[-1] and not any(over[:-1])

def test_stops_when_the_loss_explodes_or_is_nan():
    def loss(p, y): return F.cross_entropy(p, y)*(1 if p.abs().max()<50 else float('nan'))
    learn = TrainLearner(nn.Linear(4,3), toy_dls(), loss, opt_func=optim.SGD)
    found = learn.lr_find(end_lr=1e6, show=False)
    assert found.lrs[-1]<1e6 and np.isfinite(found.losses).all()

def test_too_few_losses():
    learn = TrainLearner(nn.Linear(4,3), toy_dls(), lambda p,y: p.sum()*float('nan'))
    with pytest.raises(ValueError, match='needs 5 finite losses, got 0; lower start_lr'): learn.lr_find(show=False)
    with pytest.raises(ValueError, match='got 4; .*allow more epochs'): learner().lr_find(max_epochs=1, show=False)

@pytest.mark.parametrize('kw, msg', [
    (dict(gamma=1.), 'gamma must be above 1, .* got 1.0, '), (dict(start_lr=2, end_lr=1), '0 < start_lr < end_lr, got 1.3, 2 and 1')])
def test_bad_arguments(kw, msg):
    learn = learner()
    with pytest.raises(ValueError, match=msg): check(learn, lambda: learn.lr_find(**kw))

def test_plot_and_result():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    plt.close('all')
    found = learner().lr_find()
    ax = found.plot()
    assert ax.get_xscale()=='log' and ax.get_xlabel() and ax.get_ylabel() and ax.get_title()
    assert len(plt.get_fignums())==2
    plt.close('all')
    assert len(found.lrs)==len(found.losses) and repr(found).startswith('LRFind(valley=')

# Inside a fit

def rows(learn): return [{k: v for k,v in r.items() if 'seconds' not in k} for r in learn.history]
def weights(learn): return [t.detach().clone() for t in learn.model.state_dict().values()]
def equal(a, b): return all(torch.equal(x, y) for x,y in zip(a, b, strict=True))

inside = dict(capture=lambda l: l.capture_preds(), tta=lambda l: l.tta([lambda x: x]),
              evaluation=lambda l: l.fit(1, train=False), summary=lambda l: l.summary(),
              lr_find=lambda l: l.lr_find(show=False, gamma=3))
HOOKS = [f'{when}_{what}' for what in ('fit','epoch','batch') for when in ('before','after','cleanup')]

def trained(*cbs, epochs=2):
    learn = toy(cbs=[MetricsCB(Accuracy()), *cbs])
    learn.fit(epochs)
    return learn

@pytest.fixture(scope='module')
def plain(): return trained()

@pytest.mark.parametrize('dry_run', inside)
@pytest.mark.parametrize('event', HOOKS)
def test_a_dry_run_inside_a_fit_changes_nothing_of_it(plain, dry_run, event):
    n = []
    def f(learn):
        before = dict(vars(learn))
        inside[dry_run](learn)
        n.append(1)
        assert {k: v is vars(learn)[k] for k,v in before.items()}==dict.fromkeys(before, True)
    looked = trained(At(event, f))
    assert n and rows(plain)==rows(looked) and equal(weights(plain), weights(looked))
    assert not looked.dry_run and not looked.fitting and not looked.paused

@pytest.mark.parametrize('dry_run', [
    lambda l: l.capture_preds(), lambda l: l.lr_find(max_epochs=40, show=False)])
def test_a_dry_run_of_a_learner_whose_callback_starts_one(dry_run):
    learn = toy(cbs=At('after_epoch', dry_run))
    preds,targs = learn.capture_preds()
    assert len(preds)==len(targs)==16 and len(learn.lr_find(show=False).lrs)>20

def test_dry_runs_within_dry_runs():
    learn = learner()
    before = state(learn)['values']
    with no_trace(learn) as dry:
        dry.lr_find(show=False)
        assert state(learn)['values']==before
        dry.fit(1)
        dry.capture_preds()
        assert dry.model is learn.model and dry.opt is not learn.opt
    assert state(learn)['values']==before

def test_hooks_of_a_fit_are_quiet_in_a_dry_run():
    seen,learn = [],toy()
    def f(l):
        with no_trace(l): l.model(l.batch[0])
        l.capture_preds()
    learn.fit(1, cbs=[HooksCallback(lambda *o: seen.append(1), nn.ReLU), At('after_step', f)])
    assert len(seen)==len(learn.dls.train)

def test_the_learner_of_has_learn_is_the_innermost():
    has,seen = HasLearnCB(),[]
    def f(l):
        if not l.dry_run: l.capture_preds()
    learn = toy()
    cbs = [has, At('after_batch', f, 50), At('after_predict', lambda l: seen.append(has.learn is l))]
    learn.fit(1, cbs=cbs)
    assert all(seen) and len(seen)>len(learn.dls.train) and has.learn is None

def test_a_copy_made_inside_a_fit_is_in_no_fit():
    kept = []
    learn = toy(cbs=[MetricsCB(), At('after_fit', lambda l: kept.append(copy.deepcopy(l)))])
    learn.fit(1)
    kept[0].fit(2)
    assert [r['epoch'] for r in kept[0].history]==[1,2,3]

def test_a_second_optimizer_takes_no_steps():
    learn = toy()
    learn.opt_d = optim.AdamW(learn.model.parameters())
    step = At('after_step', lambda l: l.opt_d.step())
    step.opt = optim.SGD(learn.model.parameters(), .1, momentum=.9)
    learn.cbs.append(step)
    learn.fit(1)
    steps = [s['step'].item() for s in learn.opt_d.state.values()]
    learn.lr_find(show=False)
    assert [s['step'].item() for s in learn.opt_d.state.values()]==steps

def test_an_evaluation_copies_no_weights(monkeypatch):
    monkeypatch.setattr('miniai.learner.keep_weights', lambda model: 1/0)
    learn = learner()
    learn.fit(1, train=False)
    learn.capture_preds()
    learn.tta([lambda x: x])
    learn.summary()
    with pytest.raises(ZeroDivisionError): learn.lr_find()

# Ctrl-C at any line

def interrupted_at(f, n):
    "Ctrl-C at the n-th line that `f` runs in miniai; returns how many lines it ran"
    count = 0
    def trace(frame, event, arg):
        nonlocal count
        if 'miniai' not in frame.f_code.co_filename: return
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).split()
        if event=='line' and line[0] not in ('with','try:'):  # Python handles no signal there
            count += 1
            if count==n: signal.raise_signal(signal.SIGINT)
        return trace
    old = sys.gettrace()
    sys.settrace(trace)
    try: f()
    except KeyboardInterrupt: pass
    finally: sys.settrace(old)
    return count

@pytest.mark.parametrize('dry_run', ['evaluation','lr_find','capture','summary'])
def test_ctrl_c(dry_run):
    learn = learner()
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, (MetricsCB,ProgressCB))]
    def f(): inside[dry_run](learn)
    total = interrupted_at(f, -1)
    handler,before = signal.getsignal(signal.SIGINT),state(learn)
    for n in [*range(1, total, max(1, total//60)), *range(max(1, total-40), total+1)]:
        interrupted_at(f, n)
        after = state(learn)
        assert not [k for k in before if before[k]!=after[k]], n
        assert not (learn.dry_run or learn.paused or learn.fitting), n
        assert signal.getsignal(signal.SIGINT) is handler, n
