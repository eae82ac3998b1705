"Looks inside a fit, faults in the middle of looks, and mistakes that used to be met with silence"
import copy, linecache, signal, sys, warnings, pytest, torch, torch.nn.functional as F
from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from torch import nn, optim
from miniai.augment import *
from miniai.core import random_state
from miniai.datasets import DataLoaders, TensorLoader
from miniai.learner import *
from miniai.resnet import *
from conftest import EVENTS, Raises, learner, state, toy, toy_dls, toy_model

LOOKS = dict(capture=lambda l: l.capture_preds(), tta=lambda l: l.tta([lambda x: x]),
             evaluation=lambda l: l.fit(1, train=False), summary=lambda l: l.summary(),
             lr_find=lambda l: l.lr_find(show=False, gamma=3), show=lambda l: None)
HOOKS = [f'{when}_{what}' for what in ('fit','epoch','batch') for when in ('before','after','cleanup')]

class Looks(Callback):
    "Takes a look in one event of a fit"
    def __init__(self, event, look): self.event,self.look,self.n = event,look,0
    def __getattr__(self, k):
        if k!=self.__dict__.get('event'): raise AttributeError(k)
        return self._look
    def _look(self, learn):
        self.n += 1
        before = {k: v for k,v in vars(learn).items() if k not in ('_active','_listening')}
        LOOKS[self.look](learn)
        after = {k: vars(learn).get(k) for k in before}
        for k in before: assert before[k] is after[k] or before[k]==after[k], k

def trained(cb, epochs=3):
    learn = toy(cbs=[MetricsCB(Accuracy()), *([cb] if cb else [])])
    learn.fit(epochs)
    return learn

@pytest.mark.parametrize('look', [k for k in LOOKS if k!='show'])
@pytest.mark.parametrize('event', HOOKS)
def test_a_look_inside_a_fit_changes_nothing_of_it(look, event):
    cb = Looks(event, look)
    plain,looked = trained(None),trained(cb)
    numbers = [[{k: v for k,v in r.items() if 'seconds' not in k} for r in l.history] for l in (plain,looked)]
    assert cb.n and numbers[0]==numbers[1]
    for a,b in zip(plain.model.state_dict().values(), looked.model.state_dict().values()): assert torch.equal(a, b)
    assert not looked.dry_run and not looked._busy

def test_lr_find_inside_no_trace_is_isolated():
    learn = learner()
    before = state(learn)['values']
    with no_trace(learn):
        learn.lr_find(show=False)
        assert state(learn)['values']==before

def interrupted_at(learn, f, n, again):
    """Ctrl-C at the n-th line that `f` runs in miniai, and again some lines later; the number of lines it ran. Not at a
    bare `with` or `try`, between whose last line and its exit Python itself handles no signal, but a trace does"""
    count = 0
    def trace(frame, event, arg):
        nonlocal count
        if 'miniai' not in frame.f_code.co_filename: return
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).split()
        if event=='line' and line[0] not in ('with','try:'):
            count += 1
            if count in (n, n+again): signal.raise_signal(signal.SIGINT)
        return trace
    old = sys.gettrace()
    sys.settrace(trace)
    try: f()
    except KeyboardInterrupt: pass
    finally: sys.settrace(old)
    return count

@pytest.mark.parametrize('look', ['evaluation','lr_find','capture','summary'])
def test_ctrl_c_twice_leaves_no_trace(look):
    learn = learner()
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, (MetricsCB,ProgressCB))]
    total = interrupted_at(learn, lambda: LOOKS[look](learn), -1, 0)
    handler,before = signal.getsignal(signal.SIGINT),state(learn)
    for n in range(1, total, max(1, total//60)):
        for again in 1,2,3,5,9,17,40,90:
            interrupted_at(learn, lambda: LOOKS[look](learn), n, again)
            after = state(learn)
            assert not [k for k in before if before[k]!=after[k]], (n, again)
            assert not learn.dry_run and signal.getsignal(signal.SIGINT) is handler, (n, again)

def test_each_part_is_restored_and_what_could_not_be_is_said():
    learn,weights = toy(),toy_model().state_dict()
    class Stuck(Callback):
        def after_batch(self, learn):
            with torch.no_grad():
                for p in learn.model.parameters(): p.add_(1)
            learn.model.register_buffer('bad', None)
    bad = torch.zeros(1).expand(6)
    learn.model.register_buffer('wide', bad)
    learn.fit(1, train=False, cbs=Stuck())
    for k,v in weights.items(): assert torch.equal(learn.model.state_dict()[k], v), k
    class Grows(Callback):
        def after_batch(self, learn): learn.dls.train.sampler = None
    learn = toy()
    with pytest.raises(RuntimeError, match='This look left a trace, it could not restore: random states'):
        learn.fit(1, train=False, cbs=Grows())

def test_lazy_modules_and_precision():
    learn = toy()
    learn.model = nn.Sequential(nn.LazyLinear(3))
    for look in (lambda: learn.lr_find(show=False)), (lambda: None):
        with no_trace(learn): look()
        assert type(learn.model[0]) is nn.LazyLinear and learn.model[0].has_uninitialized_params()
    learn.fit(1)
    assert learn.model[0].weight.shape==(3,4)
    class Halves(Callback):
        def after_epoch(self, learn): learn.model.bfloat16()
    w = learn.model[0].weight
    learn.fit(1, train=False, cbs=Halves())
    assert learn.model[0].weight is w and w.dtype==torch.float32

def test_swapped_loaders_come_back():
    learn,dls = toy(),None
    class Swaps(Callback):
        def after_epoch(self, learn): learn.dls.train = learn.dls = None
    dls,train = learn.dls,learn.dls.train
    learn.fit(1, train=False, cbs=Swaps())
    assert learn.dls is dls and dls.train is train

# Errors

def test_an_error_in_a_cleanup_keeps_the_first():
    with pytest.raises(OSError) as e:
        toy().fit(1, cbs=[Raises('after_batch', ValueError('first')), Raises('cleanup_batch', OSError('second'))])
    assert isinstance(e.value.__context__, ValueError)
    with pytest.raises(OSError) as e:
        toy().fit(1, cbs=[Raises('cleanup_fit', OSError('last'), order=1),
                          Raises('cleanup_fit', KeyError('first'), order=2)])
    assert isinstance(e.value.__context__, KeyError)

@pytest.mark.parametrize('exc', [CancelFitException, CancelEpochException, CancelBatchException])
def test_a_cancel_in_a_cleanup_hides_no_error(exc):
    for cbs in ([Raises('after_batch', ValueError('real')), Raises('cleanup_batch', exc())],
                [Raises('cleanup_batch', ValueError('real'), order=2), Raises('cleanup_batch', exc(), order=1)]):
        with pytest.raises(ValueError, match='real'): toy().fit(1, cbs=cbs)

def test_cleanups_run_in_reverse():
    seen = []
    class A(Callback):
        def __init__(self, order): self.order = order
        def before_epoch(self, learn): seen.append(self.order)
        def cleanup_epoch(self, learn): seen.append(-self.order)
    toy().fit(1, valid=False, cbs=[A(1), A(2), A(3)])
    assert seen==[1,2,3,-3,-2,-1]

# Numbers

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_losses_are_averaged_in_double(dtype):
    m,vals = Mean(),torch.rand(500)*1000
    for v in vals: m.update(v.to(dtype), 1000)
    assert float(m.compute())==pytest.approx(vals.to(dtype).double().mean().item(), rel=1e-9)

def test_accuracy_counts_beyond_float32():
    m = Accuracy()
    m.sums,m.n = [(torch.tensor(2**24), 1)],2**24
    m.update(torch.tensor([[0.,1.]]), torch.tensor([1]))
    assert m.total==2**24+1

@pytest.mark.parametrize('preds, targ', [((4,1),(4,1)), ((4,3),(4,3)), ((4,),(4,)), ((4,1),(4,)), ((4,3),(4,1))])
def test_accuracy_refuses_other_shapes(preds, targ):
    with pytest.raises(ValueError, match=r'Accuracy compares scores of shape .* but got '):
        Accuracy().update(torch.zeros(preds), torch.zeros(targ).long())
    with pytest.raises(ValueError, match='float32'): Accuracy().update(torch.zeros(4,3), torch.zeros(4))

# Sound trainings

def test_a_fits_own_metrics_and_progress_later():
    learn = toy(cbs=ProgressCB(mode='lines'))
    learn.fit(1, cbs=MetricsCB())
    learn.fit(1)

def test_last_batch_cancelled_and_loaders_without_a_length():
    class Cancels(Callback):
        def before_batch(self, learn):
            if learn.iter==3: raise CancelBatchException()
    toy(cbs=[MetricsCB(), ProgressCB(mode='lines', every=0)]).fit(1, cbs=Cancels())
    batches = list(toy_dls().train)
    class Stream:
        def __iter__(self): return iter(batches)
    learn = toy(cbs=[MetricsCB(), ProgressCB(mode='lines', every=0)])
    learn.dls = DataLoaders(Stream(), Stream())
    learn.fit(1)
    assert len(learn.lr_find(show=False).lrs)>10

class Own:
    def __init__(self, params, lr): self.params,self.lr = list(params),lr
    def step(self):
        with torch.no_grad():
            for p in self.params: p -= self.lr*p.grad
    def zero_grad(self):
        for p in self.params: p.grad = None

Pair = namedtuple('Pair', 'train valid')
@dataclass(slots=True)
class Slots:
    train:object
    valid:object

@pytest.mark.parametrize('kind', [Pair, Slots])
def test_own_optimizer_and_kinds_of_dls(kind):
    dls = toy_dls()
    learn = TrainLearner(toy_model(), kind(dls.train, dls.valid), F.cross_entropy, .1, opt_func=Own, cbs=MetricsCB())
    learn.fit(2)
    learn.fit(1, train=False)
    learn.capture_preds()
    assert len(learn.history)==3 and learn.summary().params

def test_numpy_numbers_deepcopy_and_epochs_that_count_on():
    import numpy as np
    learn = toy(cbs=MetricsCB())
    learn.fit(np.int64(2))
    other = copy.deepcopy(learn)
    other.fit(1)
    assert [r['epoch'] for r in other.history]==[1,2,3] and len(learn.history)==2

# Mistakes with a remedy

X,Y = torch.rand(8,1,6,6),torch.arange(8)%3
def flat(): return nn.Sequential(nn.Conv2d(1,2,3), nn.Flatten(), nn.Linear(32,3))
def frozen():
    m = flat()
    for p in m.parameters(): p.requires_grad_(False)
    return m

@pytest.mark.parametrize('model, x, y, loss, hint', [
    (flat, (X*255).byte(), Y, F.cross_entropy, 'The inputs are torch.uint8'),
    (flat, X.double(), Y, F.cross_entropy, 'torch.float64'),
    (flat, X.permute(0,2,3,1), Y, F.cross_entropy, 'channels-last'),
    (flat, X, Y+1, F.cross_entropy, 'Labels run from 1 to 3'),
    (flat, X, Y.float(), F.cross_entropy, 'class numbers of dtype int64'),
    (frozen, X, Y, F.cross_entropy, 'All parameters are frozen'),
    (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36)), X[:1], Y[:1], F.cross_entropy, 'drop_last=True')])
def test_remedies(model, x, y, loss, hint):
    learn = TrainLearner(model(), DataLoaders([(x,y)], [(x,y)]), loss)
    with pytest.raises(Exception) as e: learn.fit(1)
    assert hint in '\n'.join(e.value.__notes__)

def test_classes_for_objects_and_tuples_for_loaders():
    with pytest.raises(TypeError, match=r'MetricsCB is a class: pass an object, MetricsCB\(\)'): toy(cbs=MetricsCB)
    with pytest.raises(TypeError, match='CrossEntropyLoss is a class: pass an object'):
        TrainLearner(flat(), None, nn.CrossEntropyLoss)
    with pytest.raises(ValueError, match='dls, a tuple, has no train loader: pass DataLoaders'):
        TrainLearner(toy_model(), tuple(vars(toy_dls()).values()), F.cross_entropy).fit(1)
    class NoLearn(Callback):
        def before_fit(self): pass
    with pytest.raises(TypeError) as e: toy(cbs=NoLearn()).fit(1)
    assert 'def before_fit(self, learn)' in '\n'.join(e.value.__notes__)

@pytest.mark.parametrize('nm, near', [
    ('before_bacth','before_batch'), ('after_pred','after_predict'), ('before_backwards','before_batch')])
def test_misspelled_events(nm, near):
    cb = type('Typo', (Callback,), {nm: lambda self, learn: None})()
    with pytest.warns(UserWarning, match=f'Typo.{nm} is never called'): toy(cbs=cb).fit(1)

def test_other_silent_mistakes():
    class Steps(Callback):
        def step(self, learn): pass
    with pytest.warns(UserWarning, match='Steps.step is never called, as TrainLearner has its own step'):
        toy(cbs=Steps()).fit(1)
    learn = toy()
    learn.dls = DataLoaders(learn.dls.valid, learn.dls.train)
    with pytest.warns(UserWarning, match='are they swapped'): learn.fit(1)
    learn = toy()
    learn.loss_func = F.nll_loss
    with pytest.warns(UserWarning, match='nll_loss takes log-probabilities'): learn.fit(1)
    class Bad(Callback):
        def after_loss(self, learn):
            if learn.iter>=2: learn.loss = learn.loss*float('nan')
    with pytest.warns(UserWarning, match='The training loss is nan in epoch 1, batch 2'): toy(cbs=Bad()).fit(1)

def test_no_warning_without_a_mistake():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        toy(cbs=[MetricsCB(Accuracy()), ProgressCB(mode='lines')]).fit(2)

# Any data

@pytest.mark.parametrize('n_classes, vocab', [(12,None), (3,['a','b','c'])])
def test_mistakes_and_mixes_for_any_data(n_classes, vocab):
    import matplotlib
    matplotlib.use('Agg')
    x,y = torch.rand(40,3,8,8),torch.arange(40)%n_classes
    dls = DataLoaders.from_tensors({'train': (x,y), 'valid': (x,y)}, 8, vocab=vocab)
    learn = TrainLearner(nn.Sequential(nn.Flatten(), nn.Linear(192,n_classes)), dls, F.cross_entropy, cbs=CutMixCB())
    learn.fit(1)
    fig = plot_mistakes(learn, 4)
    assert fig is not None and ('class' in fig.axes[0].get_title())==(vocab is None)
    for per_image in (False,True): assert not (cutmix(x, per_image=per_image)[1]==torch.arange(40)).any()

def test_history_of_validation_alone():
    import matplotlib
    matplotlib.use('Agg')
    learn = toy(cbs=MetricsCB(err=Accuracy()))
    learn.fit(1, train=False)
    assert [ax.get_title() for ax in plot_history(learn.history).axes]==['Loss','Err']

def test_dict_batches_are_shown_flipped_mixed_and_looked_at_twice():
    import matplotlib
    matplotlib.use('Agg')
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(64, 3)
        def forward(self, pixels): return self.lin(pixels.flatten(1))
    batch = {'pixels': torch.rand(6,1,8,8), 'target': torch.arange(6)%3}
    learn = TrainLearner(Named(), DataLoaders([batch], [batch]), lambda preds,target: F.cross_entropy(preds, target))
    learn.fit(1, cbs=[AltFlipCB(), CutMixCB(), MetricsCB(Accuracy())])
    preds,_ = learn.tta()
    assert preds.shape==(6,3) and torch.allclose(preds.sum(1), torch.ones(6))
    assert learn.show_image_batch(max_n=4) and plot_mistakes(learn, 2) is not None

def test_views_of_masks_come_with_their_inverse():
    x = torch.rand(4,1,6,6)
    dls = DataLoaders.from_tensors({'valid': (x,x)}, 2)
    learn = TrainLearner(nn.Conv2d(1,1,1), dls, F.mse_loss)
    flip = lambda t: t.flip(-1)
    plain = learn.capture_preds()[0]
    assert torch.allclose(learn.tta([lambda t: t, (flip,flip)], probs=False)[0], plain, atol=1e-6)
    assert not torch.allclose(learn.tta([lambda t: t, flip], probs=False)[0], plain, atol=1e-3)
