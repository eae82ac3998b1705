"Looking never changes: on success, on errors and on Ctrl-C, in every event"
import copy, random, pytest, numpy as np, torch, torch.nn.functional as F
from functools import partial
from torch import nn, optim
from miniai.learner import *
from miniai.sgd import BatchSchedCB
from conftest import EVENTS, Meddles, Raises, check, learner, toy_dls

def looks(): return {'evaluation': lambda l,cbs: l.fit(1, train=False, cbs=cbs), 'lr_find': lr_find_with}

def lr_find_with(learn, cbs):
    learn.cbs += cbs
    try: learn.lr_find(show=False)
    finally: del learn.cbs[len(learn.cbs)-len(cbs):]

@pytest.mark.parametrize('look', looks())
@pytest.mark.parametrize('trained', [0,1])
@pytest.mark.parametrize('meddle', [False,True])
def test_success(look, trained, meddle):
    learn = learner(trained)
    skip = ('history',) if look=='evaluation' else ()
    check(learn, lambda: looks()[look](learn, [Meddles()] if meddle else []), skip)
    check(learn, lambda: looks()[look](learn, []), skip)

@pytest.mark.parametrize('look', looks())
@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_faults(look, event, exc):
    learn = learner()
    cb = Raises(event, exc(), at=1 if 'fit' not in event else 0)
    silent = ('after_backward','after_step','after_epoch','before_epoch','cleanup_epoch')
    fires = not (event in ('predict','get_loss','backward','step','zero_grad') or look=='evaluation' and event in silent
                 or look=='lr_find' and event=='after_fit')  # a cancelled fit skips it
    if event in ('after_epoch','before_epoch','cleanup_epoch') and look=='evaluation': cb.at,fires = 0,True
    def f():
        if not fires: return looks()[look](learn, [cb])
        with pytest.raises(exc): looks()[look](learn, [Meddles(), cb])
    check(learn, f, ('history',))
    check(learn, lambda: looks()[look](learn, []), ('history',))

@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_a_training_that_failed_can_be_repeated(event, exc):
    learn = learner(0)
    own,logger = list(learn.cbs),learn.logger
    try: learn.fit(1, cbs=Raises(event, exc()))
    except (ZeroDivisionError, KeyboardInterrupt): pass
    assert learn.cbs==own and learn.logger is logger and not learn.dry_run and torch.is_grad_enabled()
    assert learn.cbs[1].view is None
    learn.fit(1)

def test_sat_out():
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

def test_training_goes_on_as_if_nobody_had_looked():
    def run(look):
        learn = learner(1)
        if look:
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
    with no_trace(learn):
        for _ in range(3): learn.fit(1, train=False, cbs=Draw())
    assert len(set(seen))==len(seen)
    seen.clear()
    for _ in range(2): learn.fit(1, train=False, cbs=Draw())
    assert seen[:len(seen)//2]==seen[len(seen)//2:]

def test_optimizers_with_odd_state():
    for f in (partial(optim.SGD, momentum=.9), optim.Adagrad, partial(optim.AdamW, amsgrad=True), optim.RMSprop):
        learn = learner(1, opt_func=f)
        check(learn, lambda: looks()['lr_find'](learn, [Meddles()]))

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

def test_stops_when_the_loss_explodes_or_is_nan():
    def loss(p, y): return F.cross_entropy(p, y)*(1 if p.abs().max()<50 else float('nan'))
    learn = TrainLearner(nn.Linear(4,3), toy_dls(), loss, opt_func=optim.SGD)
    found = learn.lr_find(end_lr=1e6, show=False)
    assert found.lrs[-1]<1e6 and np.isfinite(found.losses).all()

def test_too_few_losses():
    learn = TrainLearner(nn.Linear(4,3), toy_dls(), lambda p,y: p.sum()*float('nan'))
    with pytest.raises(ValueError, match='got 0 finite losses, it needs 5: lower start_lr'): learn.lr_find(show=False)
    with pytest.raises(ValueError, match='got 4 .*allow more epochs'): learner().lr_find(max_epochs=1, show=False)

@pytest.mark.parametrize('kw, msg', [
    (dict(gamma=1.), 'gamma above 1 .* got 1.0, '), (dict(start_lr=2, end_lr=1), '0 < start_lr < end_lr')])
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
