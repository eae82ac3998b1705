"The Learner's contract"
import copy, gc, os, subprocess, sys, weakref, pytest, numpy as np, torch, matplotlib.pyplot as plt
import torch.nn.functional as F
from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from torch import nn, optim
from torch.utils._python_dispatch import TorchDispatchMode
from miniai.core import *
from miniai.datasets import *
from miniai.learner import *
from miniai.sgd import BatchSchedCB, EpochSchedCB
from conftest import At, Log, Raises, X, Y, toy, toy_dls, toy_model

def test_data_flow():
    log = Log()
    toy().fit(1, cbs=[log, SingleBatchCB()])
    steps = ['predict','after_predict','get_loss','after_loss','backward','after_backward',
             'step','after_step','zero_grad']
    after = [s for s in steps if s.startswith('after')]  # TrainLearner has the steps themselves built in
    assert log.seen==['before_fit','before_epoch','before_batch',*after,
                      'after_batch','cleanup_batch','cleanup_epoch','cleanup_fit']
    log = Log()
    toy(Learner, cbs=TrainCB()).fit(1, valid=False, cbs=[log, SingleBatchCB()])
    assert log.seen[3:12]==steps

def test_validation_takes_no_step():
    log = Log()
    toy().fit(1, train=False, cbs=log)
    assert log.seen.count('before_batch')==2
    assert not {'backward','after_backward','after_step','zero_grad'} & set(log.seen)

def test_order():
    calls = []
    class A(Callback):
        def __init__(self, nm, order): self.nm,self.order = nm,order
        def before_batch(self, learn): calls.append(self.nm)
    toy(cbs=[A('third',5), A('first',-1), A('second',0)]).fit(1, valid=False, cbs=[A('fourth',5), SingleBatchCB()])
    assert calls==['first','second','third','fourth']

def test_freed_without_the_collector():
    sched = partial(optim.lr_scheduler.OneCycleLR, max_lr=.1, total_steps=8)
    learn = toy(cbs=[DeviceCB('cpu'), MetricsCB(Accuracy()), ProgressCB(mode='lines'), BatchSchedCB(sched)])
    learn.fit(2)
    learn.lr_find(show=False)
    with pytest.raises(ZeroDivisionError): learn.fit(1, cbs=Raises('after_batch', ZeroDivisionError()))
    gc.collect()
    gc.disable()
    try:
        ref = weakref.ref(learn)
        del learn
        assert ref() is None
    finally: gc.enable()

@pytest.mark.parametrize('exc', [ZeroDivisionError(), KeyboardInterrupt(), CancelFitException(),
                                 CancelEpochException(), CancelBatchException()])
def test_fit_callbacks_are_gone_whatever_happened(exc):
    mine,extra = [MetricsCB()],[Log(), Raises('after_batch', exc)]
    learn = toy(cbs=mine)
    own = learn.cbs
    learn.logger = rows = lambda row: None
    try: learn.fit(1, cbs=extra)
    except (ZeroDivisionError, KeyboardInterrupt): pass
    assert learn.cbs is own and own==mine and len(mine)==1 and len(extra)==2 and learn.logger is rows
    learn.fit(1)

def test_callers_list_is_not_aliased():
    mine = [MetricsCB()]
    learn = toy(cbs=mine)
    learn.cbs.append(Log())
    assert len(mine)==1

def test_single_callback_and_none():
    assert len(toy(cbs=MetricsCB()).cbs)==1 and toy().cbs==[]

@pytest.mark.parametrize('what, exc', [
    ('fit',CancelFitException()), ('epoch',CancelEpochException()), ('batch',CancelBatchException())])
def test_cancel_skips_after_and_runs_cleanup(what, exc):
    log = Log()
    toy().fit(1, valid=False, cbs=[log, Raises('after_predict', exc)])
    assert f'after_{what}' not in log.seen
    assert log.seen.count(f'cleanup_{what}')==log.seen.count(f'before_{what}')>0
    outer = {'fit': [], 'epoch': ['fit'], 'batch': ['fit','epoch']}[what]
    assert all(f'after_{o}' in log.seen for o in outer)

def test_every_cleanup_gets_its_turn():
    log,broken = Log(),Raises('cleanup_fit', ZeroDivisionError(), order=-5)
    with pytest.raises(ZeroDivisionError): toy().fit(1, cbs=[broken, log])
    assert log.seen[-1]=='cleanup_fit'

def test_lr_of_one_fit():
    rates = []
    class See(Callback):
        def before_fit(self, learn): rates.append(learn.opt.param_groups[0]['lr'])
    learn = toy(cbs=See())
    learn.fit(1, lr=.5)
    learn.fit(1, lr=0.)
    learn.fit(1)
    assert rates==[.5,0.,.1] and learn.lr==.1

@pytest.mark.parametrize('train, valid, passes', [
    (True,True,[True,False]*2), (True,False,[True]*2), (False,True,[False]*2)])
def test_train_and_valid_flags(train, valid, passes):
    seen = []
    class See(Callback):
        def before_epoch(self, learn): seen.append((learn.training, torch.is_grad_enabled()))
    toy(cbs=See()).fit(2, train=train, valid=valid)
    assert seen==[(p,p) for p in passes]

def test_fresh_optimizer_for_training_kept_by_evaluation():
    learn = toy()
    learn.fit(1)
    first = learn.opt
    learn.fit(1, train=False)
    assert learn.opt is first
    learn.fit(1)
    assert learn.opt is not first

def test_both_learners_train_alike():
    a,b = toy(),toy(Learner, cbs=TrainCB())
    for l in (a,b):
        set_seed(0)
        l.fit(2)
    assert all(torch.equal(p,q) for p,q in zip(a.model.parameters(), b.model.parameters()))

def test_momentum_learner():
    learn = toy(MomentumLearner, mom=.5)
    grads = []
    class See(Callback):
        def after_backward(self, learn): grads.append(learn.model[0].weight.grad.clone())
        def after_batch(self, learn):
            if learn.training: grads.append(learn.model[0].weight.grad.clone())
    learn.fit(1, valid=False, cbs=[See(), SingleBatchCB()])
    assert torch.equal(grads[1], grads[0]*.5)

def test_same_seed_same_losses_with_and_without_watching():
    def losses(cbs):
        set_seed(3)
        learn,seen = toy(),[]
        class See(Callback):
            def after_loss(self, learn): seen.append(learn.loss.item())
        learn.fit(3, cbs=[See(), *cbs])
        return seen
    assert losses([])==losses([MetricsCB(Accuracy()), ProgressCB(mode='lines'), DeviceCB('cpu')])

# Metrics

def test_metrics_are_right():
    learn = toy(cbs=MetricsCB(Accuracy()))
    learn.fit(1)
    row = learn.metrics.history[-1]
    xs,ys = learn.dls.valid.x,learn.dls.valid.y
    with torch.no_grad(): preds = learn.model.eval()(xs)
    assert row['valid_accuracy']==(preds.argmax(1)==ys).float().mean().item()
    assert row['valid_loss']==pytest.approx(F.cross_entropy(preds, ys).item(), rel=1e-5)
    assert list(row)==['epoch','train_loss','train_accuracy','train_seconds',
                       'valid_loss','valid_accuracy','valid_seconds']

def test_loss_is_weighted_by_batch_size():
    learn = toy(cbs=MetricsCB())
    learn.dls = toy_dls(bs=5, n=32)
    learn.fit(1, train=False)
    with torch.no_grad(): want = F.cross_entropy(learn.model.eval()(learn.dls.valid.x), learn.dls.valid.y).item()
    assert learn.metrics.history[-1]['valid_loss']==pytest.approx(want, rel=1e-5)

def test_torchmetrics_work():
    tm = pytest.importorskip('torchmetrics.classification')
    learn = toy(cbs=MetricsCB(Accuracy(), theirs=tm.MulticlassAccuracy(3, average='micro')))
    learn.fit(2)
    for row in learn.metrics.history: assert row['valid_accuracy']==pytest.approx(row['valid_theirs'])

def test_what_is_no_metric():
    class NoUpdate:
        def compute(self): pass
        def reset(self): pass
    for o in 'accuracy',NoUpdate(),{}:
        with pytest.raises(TypeError, match='must have update, compute and reset, or be a function'): MetricsCB(o)
    with pytest.raises(TypeError, match='Accuracy is a class; pass an object'): MetricsCB(Accuracy)

def test_a_function_is_averaged_over_the_items():
    def error(preds, targs): return (preds.argmax(1)!=targs).float().mean()
    learn = toy(cbs=MetricsCB(Accuracy(), error, half=lambda p,y: .5))
    learn.dls = toy_dls(bs=5, n=32)
    learn.fit(1)
    row = learn.history[0]
    assert row['valid_error']==pytest.approx(1-row['valid_accuracy']) and row['train_half']==.5

def test_metrics_that_compute_several_numbers():
    tm = pytest.importorskip('torchmetrics')
    classes = tm.classification.MulticlassAccuracy(3, average=None)
    both = tm.MetricCollection([tm.classification.MulticlassAccuracy(3), tm.classification.MulticlassF1Score(3)])
    learn = toy(cbs=MetricsCB(both, recall=classes))
    learn.fit(2)
    row = learn.history[-1]
    assert all(isinstance(v, (int,float)) for v in row.values())
    assert {f'valid_recall_{i}' for i in range(3)} | {'train_MulticlassF1Score'} <= {*row}
    plot_history(learn.history)
    assert 'Recall_2' in [ax.get_title() for ax in plt.gcf().axes]

def test_a_metrics_callback_of_two_learners():
    cbs = [MetricsCB()]
    toy(cbs=cbs).fit(2)
    learn = toy(cbs=cbs)
    learn.fit(1)
    learn.fit(1)
    assert [r['epoch'] for r in learn.history]==[1,2]

def test_two_metrics_callbacks_of_one_learner():
    one,two = MetricsCB(),MetricsCB()
    learn = toy(cbs=[one,two])
    for _ in range(2): learn.fit(1)
    learn.fit(1, cbs=MetricsCB())
    for cb in one,two: assert [r['epoch'] for r in cb.history]==[1,2,3]

def test_two_columns_of_one_name():
    tm = pytest.importorskip('torchmetrics')
    def both(): return tm.MetricCollection([tm.classification.MulticlassAccuracy(3)])
    with pytest.raises(ValueError, match='must have different names, got .*MulticlassAccuracy.* twice'):
        toy(cbs=MetricsCB(a=both(), b=both())).fit(1)
    with pytest.raises(ValueError, match='must return one number for a batch, got .8,. float32'):
        toy(cbs=MetricsCB(lambda p,y: p[:,0])).fit(1)

def test_two_metrics_of_one_name():
    with pytest.raises(ValueError, match='Two metrics are called accuracy'): MetricsCB(Accuracy(), Accuracy())

# Bad arguments

@pytest.mark.parametrize('n', [-1, 1.5, '3'])
def test_n_epochs(n):
    with pytest.raises(ValueError, match=f'n_epochs must be a whole number of at least 0, got {n!r}'): toy().fit(n)

def test_no_epochs_is_a_quiet_no_op(capsys):
    log = Log()
    learn = toy(cbs=[MetricsCB(), ProgressCB()])
    learn.fit(0, cbs=log)
    assert log.seen==[] and learn.opt is None and capsys.readouterr().out==''

def test_empty_loader():
    learn = toy()
    learn.dls.train = TensorLoader(torch.zeros(3,4), torch.zeros(3).long(), 8, drop_last=True)
    with pytest.raises(ValueError, match='The training loader gave no batch; is it empty, or does drop_last'): learn.fit(1)
    learn = toy()
    learn.dls.valid = []
    with pytest.raises(ValueError, match='The validation loader gave no batch'): learn.fit(1)
    learn.dls.valid = None
    with pytest.raises(ValueError, match='dls must have a valid loader, .* or valid=False'): learn.fit(1)

def test_nobody_predicts():
    with pytest.raises(RuntimeError, match='pass TrainCB'): toy(Learner).fit(1)

# Kinds of batches

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3)
    def forward(self, pixels, scale=None): return self.lin(pixels if scale is None else pixels*scale)

class Two(Named):
    def forward(self, xs): return self.lin(xs[0]+xs[1])

@pytest.mark.parametrize('batch, n_inp, model, loss', [
    ((X,Y), 1, Named, F.cross_entropy),
    ([X,X,Y], 2, Named, F.cross_entropy),
    ((X,Y,torch.rand(16)), 1, Named, lambda p,y,w: (F.cross_entropy(p,y,reduction='none')*w).mean()),
    ({'pixels': X, 'target': Y}, 1, Named, lambda preds,target: F.cross_entropy(preds, target)),
    ({'pixels': X, 'scale': X, 'target': Y}, 2, Named, F.cross_entropy),
    (((X,X),Y), 1, Two, F.cross_entropy),
    (X, 1, Named, lambda p: p.pow(2).mean())],
    ids=['pair','two inputs','weights','dict','dict two','nested','lone tensor'])
def test_kinds_of_batches(batch, n_inp, model, loss):
    metrics = [] if isinstance(batch, torch.Tensor) or len(batch)>2 and n_inp==1 else [Accuracy()]
    cbs = [DeviceCB('cpu'), MetricsCB(*metrics)]
    learn = TrainLearner(model(), DataLoaders([batch]*3, [batch]), loss, lr=.1, cbs=cbs, n_inp=n_inp)
    learn.fit(5)
    h = learn.metrics.history
    assert h[-1]['valid_loss']<h[0]['valid_loss']

class TwoOutputs(nn.Module):
    def __init__(self, named):
        super().__init__()
        self.a,self.b,self.named = nn.Linear(4,3),nn.Linear(4,2),named
    def forward(self, x):
        a,b = self.a(x),self.b(x)
        return {'second': b, 'first': a} if self.named else (a,b)

def two_losses(preds, *targs, **named):
    if named: return sum(F.cross_entropy(preds[k], t) for k,t in named.items())
    if len(targs)==1: targs = targs[0]
    return sum(map(F.cross_entropy, preds, targs))

def pick_of_tuple(i): return lambda preds,*targs: (preds[i], targs[i])
def pick_nested(i): return lambda preds,targs: (preds[i], targs[i])
def pick_named(i): return lambda preds,*targs: (preds[['first','second'][i]], targs[i])

@pytest.mark.parametrize('batch, pick', [
    ((X,Y,Y%2), pick_of_tuple), ((X,(Y,Y%2)), pick_nested),
    ({'x': X, 'first': Y, 'second': Y%2}, pick_named)], ids=['tuple','nested','dict'])
def test_a_metric_for_each_output(batch, pick):
    metrics = MetricsCB(first=(Accuracy(), pick(0)), second=(Accuracy(), pick(1)))
    learn = TrainLearner(TwoOutputs(isinstance(batch, dict)), DataLoaders([batch], [batch]), two_losses,
                         cbs=[DeviceCB('cpu'), metrics])
    learn.fit(2)
    row = learn.metrics.history[-1]
    pairs = (learn.model.a,Y),(learn.model.b,Y%2)
    with torch.no_grad(): want = [(f(X).argmax(1)==y).float().mean().item() for f,y in pairs]
    assert [row['valid_first'], row['valid_second']]==want

@pytest.mark.parametrize('named', [False,True])
def test_each_metric_gets_what_the_loss_gets(named):
    def error(preds, *targs): return preds['first' if named else 0].argmax(1).ne(targs[0]).float().mean()
    batch = {'x': X, 'first': Y, 'second': Y%2} if named else (X,Y,Y%2)
    learn = TrainLearner(TwoOutputs(named), DataLoaders([batch], [batch]), two_losses, cbs=MetricsCB(error))
    learn.fit(1)
    assert 0<=learn.history[0]['valid_error']<=1
    learn.cbs = [MetricsCB(Accuracy())]
    with pytest.raises(Exception) as e: learn.fit(1)
    assert 'The metric accuracy got' in e.value.__notes__[0] and 'lambda preds, *targs' in e.value.__notes__[0]

# Progress

def test_plain_lines(capsys):
    toy(cbs=[MetricsCB(Accuracy()), ProgressCB()]).fit(3)
    out,err = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines)==3 and err=='' and lines[0].startswith('epoch 1  train loss')
    assert 'valid loss' in lines[2] and lines[2].endswith(' s')

def test_terminal():
    "In a real pseudo-terminal: a bar that is gone at the end, and one line for each epoch"
    pty = pytest.importorskip('pty')
    code = ('import fcntl, struct, sys, termios; sys.path.insert(0, sys.argv[1])\n'
            'fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))\nfrom test_learner import *\n'
            'toy(cbs=[MetricsCB(Accuracy()), ProgressCB(every=0)]).fit(2)')
    out = []
    pty.spawn([sys.executable, '-c', code, os.path.dirname(__file__)],
              lambda fd: out.append(os.read(fd, 4096)) or out[-1])
    text = b''.join(out).decode()
    assert 'epoch 2/2, training, loss' in text and text.count('valid loss')==2

def test_progress_without_metrics_and_unknown_mode():
    toy(cbs=ProgressCB(mode='lines')).fit(1)
    with pytest.raises(ValueError, match="mode must be one of .'notebook', 'terminal', 'lines'. or None, got 'fancy'"):
        ProgressCB(mode='fancy')

def test_interrupted_training_shows_what_it_has(capsys):
    with pytest.raises(KeyboardInterrupt):
        toy(cbs=[MetricsCB(), ProgressCB()]).fit(3, cbs=Raises('after_batch', KeyboardInterrupt(), at=10))
    assert capsys.readouterr().out.count('epoch')==2

class Syncs(TorchDispatchMode):
    "Counts what makes the CPU wait for a device: a number read (`item`, `float`, `bool`), and copies between devices"
    def __init__(self):
        super().__init__()
        self.n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += any(o in func.name() for o in ('_local_scalar_dense','_to_copy','aten::nonzero'))
        return func(*args, **(kwargs or {}))

@pytest.mark.parametrize('watch', [False,True])
def test_no_sync_a_batch(watch):
    "DeviceCB, MetricsCB and ProgressCB read numbers once an epoch, however many batches it has"
    class Reads(Callback):
        def after_batch(self, learn): learn.loss.item()
    def syncs(n):
        cbs = [DeviceCB('cpu'), MetricsCB(Accuracy()), ProgressCB(mode='lines', every=60)]
        if watch: cbs.append(Reads())
        model = nn.Sequential(nn.Linear(4,6), nn.ReLU(), nn.Linear(6,3))
        learn = TrainLearner(model, toy_dls(bs=4, n=n), F.cross_entropy, cbs=cbs)
        with Syncs() as s: learn.fit(1)
        return s.n
    assert (syncs(400)-syncs(40)==135)==watch and (syncs(400)==syncs(40))!=watch

def test_import_is_light():
    code = ('import sys, miniai.learner\n'
            'assert not {"torchvision","datasets","torchmetrics","IPython"} & set(sys.modules), set(sys.modules)')
    subprocess.run([sys.executable, '-c', code], check=True)

# Schedulers

@pytest.mark.parametrize('cls, steps', [(BatchSchedCB, 8), (EpochSchedCB, 2)])
def test_schedulers_step(cls, steps):
    cb = cls(partial(optim.lr_scheduler.StepLR, step_size=1, gamma=.5))
    learn = toy()
    learn.fit(2, cbs=cb)
    assert learn.opt.param_groups[0]['lr']==pytest.approx(.1*.5**steps)
    learn.fit(1, train=False, cbs=cb)

# Events and numbers

def test_cleanups_run_in_reverse():
    seen = []
    class A(Callback):
        def __init__(self, order): self.order = order
        def before_epoch(self, learn): seen.append(self.order)
        def cleanup_epoch(self, learn): seen.append(-self.order)
    toy().fit(1, valid=False, cbs=[A(1), A(2), A(3)])
    assert seen==[1,2,3,-3,-2,-1]

@pytest.mark.parametrize('valid', [True,False])
def test_the_last_pass_of_an_epoch(valid):
    seen = []
    learn = toy(cbs=At('after_epoch', lambda l: seen.append((l.training, l.epoch_done))))
    learn.fit(2, valid=valid)
    assert seen==([(True,False),(False,True)] if valid else [(True,True)])*2
    seen.clear()
    learn.fit(1, train=False)
    assert seen==[(False,False)]

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_losses_are_averaged_in_double(dtype):
    m,vals = Metric(),torch.rand(500)*1000
    for v in vals: m.update(v.to(dtype), 1000)
    assert float(m.compute())==pytest.approx(vals.to(dtype).double().mean().item(), rel=1e-9)

def test_accuracy_counts_beyond_float32():
    m = Accuracy()
    m.add(torch.tensor(2**24), 1, 2**24)
    m.update(torch.tensor([[0.,1.]]), torch.tensor([1]))
    assert m.total==2**24+1

def test_a_mean_over_processes():
    a,b = Metric(),Metric()
    a.update(torch.tensor(1.), 2)
    b.update(torch.tensor(4.), 1)
    a.sync(lambda nums: [float(x)+float(y) for x,y in zip(nums, [b.total, b.n])])
    assert a.compute()==2

@pytest.mark.parametrize('preds, targ', [
    ((4,1),(4,1)), ((4,3),(4,3)), ((4,),(4,)), ((4,1),(4,)), ((4,3),(4,1))])
def test_accuracy_refuses_other_shapes(preds, targ):
    with pytest.raises(ValueError, match='Accuracy must get scores of shape .*, got '):
        Accuracy().update(torch.zeros(preds), torch.zeros(targ).long())
    with pytest.raises(ValueError, match='float32'):
        Accuracy().update(torch.zeros(4,3), torch.zeros(4))

def test_history_of_validation_alone():
    learn = toy(cbs=MetricsCB(err=Accuracy()))
    learn.fit(1, train=False)
    plot_history(learn.history)
    assert [ax.get_title() for ax in plt.gcf().axes]==['Loss','Err']

# Sound trainings

def test_a_fits_own_metrics_and_progress_later():
    learn = toy(cbs=ProgressCB(mode='lines'))
    learn.fit(1, cbs=MetricsCB())
    learn.fit(1)

def test_last_batch_cancelled_and_loaders_without_a_length():
    class Cancels(Callback):
        def before_batch(self, learn):
            if learn.iter==3: raise CancelBatchException()
    cbs = [MetricsCB(), ProgressCB(mode='lines', every=0)]
    toy(cbs=cbs).fit(1, cbs=Cancels())
    batches = list(toy_dls().train)
    class Stream:
        def __iter__(self): return iter(batches)
    learn = toy(cbs=cbs)
    learn.dls = DataLoaders(Stream(), Stream())
    learn.fit(1)
    assert len(learn.lr_find(show=False).lrs)>10

def test_the_error_of_a_loader_without_a_length():
    class Odd:
        def __iter__(self): return iter([(torch.rand(4,4), torch.zeros(4).long())])
        def __len__(self): raise ZeroDivisionError('no length')
    learn = toy(cbs=ProgressCB())
    learn.dls = DataLoaders(Odd(), Odd())
    with pytest.raises(ZeroDivisionError): learn.fit(1)

class Own:
    "An optimizer that is not one of torch's"
    def __init__(self, params, lr): self.params,self.lr = list(params),lr
    def step(self):
        with torch.no_grad():
            for p in self.params: p -= self.lr*p.grad
    def zero_grad(self):
        for p in self.params: p.grad = None

@dataclass(slots=True)
class Slots:
    train:object
    valid:object

@pytest.mark.parametrize('kind', [namedtuple('Pair', 'train valid'), Slots])
def test_own_optimizer_and_kinds_of_dls(kind):
    dls = toy_dls()
    dls = kind(dls.train, dls.valid)
    learn = TrainLearner(toy_model(), dls, F.cross_entropy, .1, MetricsCB(), Own)
    learn.fit(2)
    learn.fit(1, train=False)
    assert len(learn.history)==3

def test_dls_without_loaders():
    learn = TrainLearner(toy_model(), tuple(vars(toy_dls()).values()), F.cross_entropy)
    with pytest.raises(ValueError, match='dls must have a train loader, got .*; pass DataLoaders'):
        learn.fit(1)

def test_numpy_numbers_deepcopy_and_epochs_that_count_on():
    learn = toy(cbs=MetricsCB())
    learn.fit(np.int64(2), lr=np.float64(.1))
    assert type(learn.opt.param_groups[0]['lr']) is float
    other = copy.deepcopy(learn)
    other.fit(1)
    assert [r['epoch'] for r in other.history]==[1,2,3] and len(learn.history)==2

def head(params, lr): return optim.SGD([*params][-2:], lr)

def test_gradients_of_an_earlier_fit_are_gone():
    learn = toy(opt_func=head)
    learn.fit(3)
    assert any(p.grad is not None for p in [*learn.model.parameters()][:-2])
    learn.opt_func = optim.SGD
    seen = []
    look = At('before_batch', lambda l: seen.append([p.grad for p in l.model.parameters()]))
    learn.fit(1, cbs=[look, SingleBatchCB()])
    assert seen[0]==[None]*len(seen[0])

def test_lr_find_with_a_rate_that_is_a_tensor():
    def adam(ps, lr): return optim.Adam(ps, torch.tensor(lr))
    lrs = toy(opt_func=adam).lr_find(show=False).lrs
    assert len(set(lrs))==len(lrs) and all(isinstance(o, float) for o in lrs)

# What a fit leaves behind

def test_a_fit_that_ends_between_its_passes_logs_its_row():
    rows = []
    learn = toy(cbs=[MetricsCB(), At('after_epoch', lambda l: 1/0, order=5)])
    learn.logger = rows.append
    with pytest.raises(ZeroDivisionError): learn.fit(1)
    assert [list(r)[0] for r in rows]==['epoch'] and 'valid_loss' not in rows[0]

def test_a_cancelled_pass_does_not_touch_the_row_before():
    class Skip(Callback):
        order = -1
        def before_epoch(self, learn):
            if learn.training and learn.epoch==1: raise CancelEpochException()
    learn = toy(cbs=[MetricsCB(), Skip()])
    learn.fit(3)
    assert [r['epoch'] for r in learn.history]==[1,2,3]
    assert ['train_loss' in r for r in learn.history]==[True,False,True]

def test_a_missing_loader_is_found_before_the_training():
    learn = toy(cbs=[MetricsCB(), ProgressCB()])
    learn.dls.valid = None
    with pytest.raises(ValueError, match='dls must have a valid loader'): learn.fit(1)
    assert learn.opt is None

class Own2(TrainCB):
    def before_fit(self, learn): pass
    def before_batch(self, learn): pass

@pytest.mark.parametrize('cb', [TrainCB, Own2])
def test_two_inputs_of_a_callback(cb):
    seen = []
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 3)
        def forward(self, x, scale=None):
            seen.append(scale)
            return self.lin(x)
    batch = (X,X,Y)
    learn = Learner(Keeps(), DataLoaders([batch], [batch]), F.cross_entropy)
    learn.fit(1, cbs=cb(n_inp=2))
    assert all(o is X for o in seen) and cb().n_inp==1 and learn.n_inp==1
    assert Learner(Keeps(), None, cbs=cb(n_inp=2)).n_inp==2
    learn = Learner(Keeps(), DataLoaders([batch], [batch]), F.cross_entropy, n_inp=2)
    learn.fit(1, cbs=cb())

class Endless:
    def __iter__(self):
        while True: yield from toy_dls().train

def test_an_endless_stream_has_rows():
    class Bound(Callback):
        def after_batch(self, learn):
            if learn.training and learn.iter==2: raise CancelEpochException()
    learn = toy(cbs=[MetricsCB(Accuracy()), Bound()])
    learn.dls.train = Endless()
    learn.fit(2)
    assert [r['epoch'] for r in learn.history]==[1,2]
    assert all('train_accuracy' in r and 'valid_accuracy' in r for r in learn.history)

@pytest.mark.parametrize('what, exc', [
    ('fit',CancelFitException), ('epoch',CancelEpochException), ('batch',CancelBatchException)])
def test_a_cancel_has_an_event(what, exc):
    seen = []
    class Notes(Callback):
        order = 1
        def after_loss(self, learn):
            if learn.iter==1: raise exc()
    for nm in f'after_{what}',f'after_cancel_{what}',f'cleanup_{what}':
        setattr(Notes, nm, lambda self, learn, nm=nm: seen.append(nm))
    toy(cbs=Notes()).fit(1, valid=False)
    at = seen.index(f'after_cancel_{what}')
    assert seen[at+1]==f'cleanup_{what}' and seen.count(f'after_cancel_{what}')==1

def test_there_is_no_history_yet():
    for learn in toy(),toy(cbs=MetricsCB()):
        with pytest.raises(AttributeError, match=r'pass MetricsCB\(\) in cbs, and fit'): learn.history

def test_targets_that_are_no_tensors_reach_the_metric_whole():
    seen = []
    class Keeps(Metric):
        def update(self, preds, names): seen.append(names)
    names = ['a','b']*8
    dls = DataLoaders(None, [(X,names)])
    learn = TrainLearner(Named(), dls, lambda p,t: p.mean(), cbs=MetricsCB(Keeps()))
    learn.fit(1, train=False)
    assert seen==[names]

def test_after_a_step_by_hand_lr_find_has_all_callbacks():
    learn = toy(Learner, cbs=TrainCB())
    learn.batch = next(iter(learn.dls.train))
    learn.predict()
    assert len(learn.lr_find(show=False).lrs)>10
