"Hooks never leak and are quiet in dry runs; statistics are right and never wait for the device"
import copy, gc, inspect, weakref
import pytest, matplotlib, torch, torch.nn.functional as F, fastcore.all as fc
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from miniai.activations import ActivationStats, Hook, Hooks, HooksCallback
from miniai.learner import (Callback, CancelBatchException, CancelEpochException,
                            CancelFitException, SingleBatchCB, TrainLearner, no_trace)
from conftest import EVENTS, At, Raises, toy_dls, toy_model

matplotlib.use('Agg')
import matplotlib.pyplot as plt

ENDS = (CancelFitException, CancelEpochException, CancelBatchException, ZeroDivisionError,
        KeyboardInterrupt)
def n_hooks(m): return sum(len(o._forward_hooks) for o in m.modules())
def count(hook, mod, inp, outp): hook.n = getattr(hook, 'n', 0)+1
def learner(*cbs):
    return TrainLearner(toy_model(), toy_dls(), F.cross_entropy, .1, cbs=list(cbs))

class Sees(Callback):
    "How many hooks are on while batches run"
    order = -5
    def before_fit(self, learn): self.n = 0
    def before_batch(self, learn): self.n = max(self.n, n_hooks(learn.model))

# Hook and Hooks

@pytest.fixture(autouse=True)
def no_collector():
    "What goes away here goes without the garbage collector"
    gc.disable()
    yield
    gc.enable()

def test_hook_ends_with_its_object():
    m = nn.Linear(2,2)
    h = Hook(m, count)
    m(torch.zeros(1,2))
    assert (h.n,n_hooks(m))==(1,1)
    del h
    assert n_hooks(m)==0

def test_removed_twice_and_after_its_module():
    m = nn.Linear(2,2)
    h = Hook(m, count)
    h.remove()
    h.remove()
    h = Hook(m, count)
    del m
    h.remove()

@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt, CancelFitException])
@pytest.mark.parametrize('make', [lambda m,f: Hook(m[0], f), Hooks])
def test_context_manager(make, exc):
    m = toy_model()
    with pytest.raises(exc):
        with make(m, count):
            assert n_hooks(m)
            raise exc
    assert n_hooks(m)==0

def test_an_error_in_the_function_passes_through_and_the_hooks_go():
    m = toy_model()
    def bad(hook, *args): raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), Hooks(m, bad): m(torch.zeros(2,4))
    assert n_hooks(m)==0

def test_hooks_is_a_list():
    m = toy_model()
    hs = Hooks(m, count)
    assert len(hs)==n_hooks(m)==7 and hs[-1] in list(hs)
    held = hs[0]
    del hs[0]
    assert len(hs)==n_hooks(m)==6
    hs.pop()
    assert n_hooks(m)==5
    last = hs[0]
    del hs
    assert n_hooks(m)==0, (held, last)

def test_returned_value_replaces_the_output():
    m = nn.Linear(2,2)
    with Hook(m, lambda hook, mod, inp, outp: outp*0): assert (m(torch.ones(1,2))==0).all()
    assert (m(torch.ones(1,2))!=0).any()

def test_copy_of_a_hooked_model_is_not_watched_after_the_hook_went():
    m = nn.Linear(2,2)
    h = Hook(m, count)
    twin = copy.deepcopy(m)
    h.remove()
    twin(torch.zeros(1,2))
    assert not hasattr(h, 'n')

# The callback, and every way in which a fit can end

def fits():
    def failing(l, **kw):
        with pytest.raises(ValueError): l.fit(**kw)
    return {'train': lambda l: l.fit(2), 'no valid': lambda l: l.fit(valid=False),
            'no epochs': lambda l: l.fit(0), 'evaluation': lambda l: l.fit(train=False),
            'single batch': lambda l: l.fit(cbs=SingleBatchCB()),
            'lr_find': lambda l: l.lr_find(show=False),
            'bad epochs': lambda l: failing(l, n_epochs=-1)}

@pytest.mark.parametrize('how', fits())
def test_success(how):
    cb,sees = HooksCallback(count, on_valid=True),Sees()
    learn = learner(cb, sees)
    fits()[how](learn)
    assert n_hooks(learn.model)==0
    if 'epochs' not in how: assert sees.n==(0 if how=='lr_find' else 8)

@pytest.mark.filterwarnings('ignore:.*is never called, since TrainLearner has its own')
@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('exc', ENDS)
@pytest.mark.parametrize('order', [-10, 10])
def test_every_end(event, exc, order):
    cb = HooksCallback(count, on_valid=True)
    learn,stop = learner(cb),Raises(event, exc())
    stop.order = order
    try: learn.fit(2, cbs=stop)
    except (exc, RuntimeError): pass  # a Cancel in a cleanup is a RuntimeError
    assert n_hooks(learn.model)==0
    learn.fit(1)
    assert n_hooks(learn.model)==0 and cb.hooks[0].n==6

@pytest.mark.parametrize('exc', ENDS)
def test_ended_by_its_own_function(exc):
    def f(*args): raise exc
    learn = learner(HooksCallback(f, fc.risinstance(nn.ReLU)))
    try: learn.fit(1)
    except exc: pass
    assert n_hooks(learn.model)==0

@pytest.mark.parametrize('make', [lambda: HooksCallback(count), ActivationStats])
def test_no_cycles(make):
    "Model, callback and learner are freed when the last name goes"
    cb = make()
    learn = learner(cb)
    learn.fit(1)
    refs = [weakref.ref(o) for o in (learn, learn.model, cb, cb.hooks[0])]
    del learn, cb
    assert [r() for r in refs]==[None]*4

@pytest.mark.parametrize('on_train, on_valid, n', [(True,False,4),(False,True,2),(True,True,6)])
def test_passes(on_train, on_valid, n):
    cb = HooksCallback(count, fc.risinstance(nn.ReLU), on_train, on_valid)
    learner(cb).fit(1)
    assert [h.n for h in cb.hooks]==[n]

def test_a_dry_run_keeps_what_was_gathered():
    cb = HooksCallback(count, fc.risinstance(nn.ReLU))
    learn = learner(cb)
    learn.fit(1)
    hooks = cb.hooks
    learn.lr_find(show=False)
    learn.fit(1, train=False)
    assert cb.hooks is hooks and hooks[0].n==4

@pytest.mark.parametrize('on_valid, n', [(False,12),(True,18)])
@pytest.mark.parametrize('event', ['after_batch','after_epoch','before_epoch'])
@pytest.mark.parametrize('run', [lambda l: l.fit(1, train=False), lambda l: l.lr_find(show=False)])
def test_a_dry_run_inside_a_fit_neither_adds_nor_ends(on_valid, n, event, run):
    cb = HooksCallback(count, fc.risinstance(nn.ReLU), on_valid=on_valid)
    learn = learner(cb, At(event, run))
    learn.fit(1)
    learn.fit(3)
    assert [h.n for h in cb.hooks]==[n] and n_hooks(learn.model)==0

def test_a_dry_run_inside_an_evaluation():
    cb = HooksCallback(count, fc.risinstance(nn.ReLU), on_train=False, on_valid=True)
    learn = learner(cb, At('after_batch', lambda l: l.fit(1, train=False)))
    learn.fit(1, train=False)
    assert [h.n for h in cb.hooks]==[2]

def test_hooks_are_quiet_while_a_dry_run_calls_the_model_itself():
    def call_model(learn):
        with no_trace(learn): learn.model(learn.batch[0])
    cb = HooksCallback(count, fc.risinstance(nn.ReLU))
    learner(cb, At('after_step', call_model)).fit(1)
    assert [h.n for h in cb.hooks]==[4]

def test_hooks_of_a_dry_run_of_its_own():
    cb = HooksCallback(count, fc.risinstance(nn.ReLU), on_valid=True)
    def watch(learn):
        with no_trace(learn, train=False) as dry: dry.fit(1, train=False, cbs=cb)
    learn = learner(At('after_epoch', watch))
    learn.fit(1)
    assert [h.n for h in cb.hooks]==[2] and n_hooks(learn.model)==0

def test_watching_changes_nothing():
    def run(*cbs):
        learn = learner(*cbs)
        learn.fit(2)
        return list(learn.model.parameters())
    assert all(torch.equal(a,b) for a,b in zip(run(), run(ActivationStats(on_valid=True))))

def test_which_modules():
    cb = HooksCallback(count, fc.risinstance(nn.Linear))
    learner(cb).fit(1)
    assert cb.names==['0 Linear','4 Linear','6 Linear']
    learn = learner()
    cb = HooksCallback(count, mods=[learn.model[2], learn.model[6]])
    learn.fit(1, cbs=cb)
    assert cb.names==['2 ReLU','6 Linear'] and n_hooks(learn.model)==0

def test_a_filter_that_matches_nothing_warns():
    "As in the course, the fit goes on"
    cb = HooksCallback(count, fc.risinstance(nn.ReLU))
    learn = learner(cb)
    learn.fit(1)
    cb.mod_filter = lambda m: False
    with pytest.warns(UserWarning, match='HooksCallback: mod_filter must match .*'): learn.fit(2)
    assert (list(cb.hooks),cb.names,n_hooks(learn.model),learn.epoch)==([],[],0,1)

def test_modules_of_another_model():
    learn = learner(HooksCallback(count, mods=[nn.ReLU()]))
    with pytest.raises(KeyError, match='ReLU'): learn.fit(1)
    assert n_hooks(learn.model)==0

# ActivationStats

def stats_of(acts, **kw):
    cb = ActivationStats(**kw)
    with Hook(nn.Identity(), cb.hookfunc) as h: cb.hookfunc(h, nn.Identity(), None, acts)
    return h.stats[0]

@pytest.mark.parametrize('shape', [(7,),(5,3),(4,3,5,6),(1,300_000)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_values(shape, dtype):
    acts = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(4).to(dtype)
    s = stats_of(acts)
    assert s.shape==(42,) and s.dtype==torch.float32
    acts = acts.float()
    assert torch.allclose(s[:2], torch.stack([acts.mean(), acts.std(correction=0)]), atol=1e-5)
    hist = torch.histc(acts.abs().clamp_max(10), 40, 0, 10)/acts.numel()
    assert torch.allclose(s[2:], hist, atol=1e-6) and s[2:].sum()==pytest.approx(1)

def test_part_of_a_large_batch():
    acts = torch.zeros(1000, 1000)
    acts[:100] = 3.
    s = stats_of(acts)
    assert s[2+12]==1 and s[0]==pytest.approx(.3)

def test_exploded():
    s = stats_of(torch.tensor([float('nan'), float('inf'), -1e30, .1]))
    assert s[2]==.25 and s[-1]==.75 and s[0].isnan()

def test_bins():
    s = stats_of(torch.tensor([.4,.6,5.]), bins=4, top=2.)
    assert s.shape==(6,) and torch.allclose(s[2:], torch.tensor([1,1,0,1.])/3)

def test_no_graph_is_kept():
    cb = ActivationStats()
    learner(cb).fit(1)
    assert not any(s.requires_grad for h in cb.hooks for s in h.stats)

class Syncs(TorchDispatchMode):
    "Counts what must wait for the device: numbers read, and sizes that depend on values"
    n = 0
    waits = '_local_scalar_dense','nonzero','unique','bincount','equal','masked_select'
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func.name().split('.')[0].removeprefix('aten::') in self.waits
        return func(*args, **(kwargs or {}))

def test_no_sync():
    def syncs(*cbs):
        learn = learner(*cbs)
        with Syncs() as s: learn.fit(1)
        return s.n
    def reads(hook, mod, inp, outp): outp.mean().item()
    assert syncs(ActivationStats(on_valid=True))==syncs()
    assert syncs(HooksCallback(reads))>syncs()

def test_a_callback_is_a_sequence_of_its_hooks():
    "It counts, iterates and indexes; as one of `cbs` it is still a single callback"
    cb = HooksCallback(count, nn.Linear)
    assert len(cb)==0 and list(cb)==[]
    learn = learner()
    for cbs in cb,[cb]:
        learn.fit(1, cbs=cbs)
        assert len(cb)==3 and [h.n for h in cb]==[4]*3 and cb[-1] is cb.hooks[2]
    learn.fit_one_cycle(1, cbs=cb, pct_start=.5)
    assert [h.n for h in cb]==[4]*3

def test_settings_are_delegated():
    "The course's call, and the settings of HooksCallback by name"
    ps = inspect.signature(ActivationStats).parameters
    assert list(ps)==['mod_filter','bins','top','on_train','on_valid','mods']
    learn = learner()
    mods = list(learn.model)[:3]
    layers = fc.risinstance((nn.Linear,nn.ReLU))
    cb = ActivationStats(layers, bins=4, on_train=False, on_valid=True, mods=mods)
    learn.fit(1, cbs=cb)
    assert {k: v.shape for k,v in cb.layers().items()}=={'0 Linear': (2,6), '2 ReLU': (2,6)}

def test_a_class_as_a_filter():
    stats = ActivationStats(nn.ReLU)
    learner(stats).fit(1)
    assert list(stats.layers())==['2 ReLU']

def inside(box, fig):
    return min(box.x0, box.y0)>=-1 and box.x1<=fig.bbox.x1+1 and box.y1<=fig.bbox.y1+1

@pytest.mark.parametrize('n', [1,2,5,7,30])
def test_layers_and_charts(n):
    "Every panel has its title, and nothing is cut off or overlaps, however many layers there are"
    plt.close('all')
    m = nn.Sequential(*(nn.Linear(4,4) for _ in range(n-1)), nn.Linear(4,3))
    cb = ActivationStats(fc.risinstance(nn.Linear))
    for f in cb.layers, cb.plot_stats, cb.color_dim, cb.dead_chart:
        with pytest.raises(RuntimeError, match='no statistics yet; fit with this callback'): f()
    TrainLearner(m, toy_dls(), F.cross_entropy, .1, cbs=cb).fit(2)
    assert list(cb.layers())==[f'{i} Linear' for i in range(n)]
    assert all(s.shape==(8,42) for s in cb.layers().values())
    for f,k in (cb.plot_stats,2), (cb.dead_chart,1), (cb.color_dim,n):
        f()
        fig = plt.gcf()
        fig.canvas.draw()
        axs = [ax for ax in fig.axes if ax.get_label()!='<colorbar>' and ax.axison]
        assert len(axs)==k and all(ax.get_title() for ax in axs)
        assert all(inside(ax.get_tightbbox(), fig) for ax in fig.axes)
        assert f==cb.color_dim or all(ax.get_xlabel() and ax.get_ylabel() for ax in axs)
        titles = [ax.title.get_window_extent() for ax in axs]
        assert not any(a.overlaps(b) for i,a in enumerate(titles) for b in titles[:i])
        f(figsize=(9,4))
        assert plt.gcf() is not fig and tuple(plt.gcf().get_size_inches())==(9,4)
        f(fig=plt.figure(layout='constrained').subfigures(1, 2)[0])
    plt.close('all')

def test_a_lone_callback():
    cb = ActivationStats()
    learn = TrainLearner(toy_model(), toy_dls(), F.cross_entropy, .1, cbs=cb)
    learn.fit(1)
    assert len(cb.layers())==8
