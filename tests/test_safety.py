"Errors that say where, warnings for silent mistakes, and what restores a model"
import signal, threading, warnings, pytest, torch, torch.nn.functional as F
from torch import nn, optim
from miniai.core import to_device
from miniai.datasets import DataLoaders
from miniai.learner import *
from miniai.safety import *
from conftest import At, EVENTS, Raises, toy, toy_dls, toy_model

def notes(learn, exc=Exception, **kwargs):
    with pytest.raises(exc) as e: learn.fit(1, **kwargs)
    return '\n'.join(e.value.__notes__)

# Errors

STEPS = 'predict','get_loss','backward','step','zero_grad'

@pytest.mark.parametrize('event', [e for e in EVENTS if e not in STEPS])
@pytest.mark.parametrize('exc', [ZeroDivisionError('x'), KeyboardInterrupt()])
def test_errors_name_callback_and_event(event, exc):
    exc.__notes__ = []
    said = notes(toy(), type(exc), cbs=Raises(event, exc))
    assert f'Raised in callback Raises, event {event}.' in said

@pytest.mark.parametrize('event', ['before_batch','after_loss','after_batch'])
def test_errors_in_a_batch_name_it(event):
    said = notes(toy(), cbs=Raises(event, ZeroDivisionError(), at=2))
    assert 'In training epoch 1, batch 2: batch (8, 4) float32 on cpu, (8,) int64 on cpu' in said
    assert 'loss_func' not in said

def test_an_error_in_a_cleanup_keeps_the_first():
    cbs = [Raises('after_batch', ValueError('first')), Raises('cleanup_batch', OSError('second'))]
    with pytest.raises(OSError) as e: toy().fit(1, cbs=cbs)
    assert isinstance(e.value.__context__, ValueError)
    cbs = [Raises('cleanup_fit', OSError('last'), order=1), Raises('cleanup_fit', KeyError(), order=2)]
    with pytest.raises(OSError) as e: toy().fit(1, cbs=cbs)
    assert isinstance(e.value.__context__, KeyError)

@pytest.mark.parametrize('exc', [CancelFitException, CancelEpochException, CancelBatchException])
def test_a_cancel_in_a_cleanup_is_an_error(exc):
    with pytest.raises(RuntimeError, match=f'must not raise {exc.__name__}; raise it in after_batch'):
        toy().fit(1, cbs=Raises('cleanup_batch', exc()))

def test_model_and_batch_on_different_devices():
    learn = toy()
    learn.model.to('meta')
    said = notes(learn)
    assert 'The model is on meta but the batch on cpu; pass DeviceCB() in cbs.' in said
    assert 'batch (8, 4) float32 on cpu' in said
    learn = toy(cbs=DeviceCB('cpu'))
    learn.fit(1, cbs=At('before_batch', lambda l: setattr(l, 'batch', to_device(l.batch, 'cpu'))))

def test_loss_func_that_does_not_fit():
    learn = toy()
    learn.loss_func = F.mse_loss
    assert 'Targets of mse_loss must be floats of shape (8, 3)' in notes(learn)
    assert 'predictions (8, 3) float32' in notes(learn)
    learn.loss_func = None
    assert 'loss_func None does not fit' in notes(learn, TypeError)
    learn.loss_func = lambda p,y: F.cross_entropy(p, y, reduction='none')
    assert 'one number' in notes(learn)

def test_your_own_loss_is_not_blamed_on_loss_func():
    class Own(TrainLearner):
        def get_loss(self): raise ValueError('mine')
    learn = Own(toy_model(), toy_dls(), F.cross_entropy)
    assert 'loss_func' not in notes(learn, ValueError)

X,Y = torch.rand(8,1,6,6),torch.arange(8)%3
def flat(): return nn.Sequential(nn.Conv2d(1,2,3), nn.Flatten(), nn.Linear(32,3))
def frozen(): return flat().requires_grad_(False)
def normed(): return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36))

@pytest.mark.parametrize('model, x, y, hint', [
    (flat, (X*255).byte(), Y, 'got torch.uint8'), (flat, X.double(), Y, 'got torch.float64'),
    (flat, X.permute(0,2,3,1), Y, 'channels-last'),
    (flat, X, Y+1, 'Labels must be from 0 to 2 for 3 outputs, got 1 to 3'),
    (flat, X, Y.float(), 'class numbers of shape (8,) and dtype int64'),
    (frozen, X, Y, 'All parameters are frozen'), (normed, X[:1], Y[:1], 'drop_last=True')])
def test_remedies(model, x, y, hint):
    learn = TrainLearner(model(), DataLoaders([(x,y)], [(x,y)]), F.cross_entropy)
    assert hint in notes(learn)

def test_classes_for_objects():
    with pytest.raises(TypeError, match=r'MetricsCB is a class; pass an object, MetricsCB\(\)'):
        toy(cbs=MetricsCB)
    with pytest.raises(TypeError, match='CrossEntropyLoss is a class; pass an object'):
        TrainLearner(flat(), None, nn.CrossEntropyLoss)

def test_an_event_without_the_learner():
    class NoLearn(Callback):
        def before_fit(self): pass
    assert 'def before_fit(self, learn)' in notes(toy(cbs=NoLearn()), TypeError)

@pytest.mark.parametrize('kw', [dict(train=.01), dict(valid='no')])
def test_a_rate_in_the_place_of_a_switch(kw):
    with pytest.raises(TypeError, match='must be True or False, got .*; did you mean lr='):
        toy().fit(3, **kw)

def test_a_training_inside_its_own_fit():
    with pytest.raises(RuntimeError, match='must not train inside its own fit'):
        toy().fit(1, cbs=At('after_epoch', lambda learn: learn.fit(1)))

# Warnings

@pytest.mark.parametrize('nm, near', [
    ('before_bacth','before_batch'), ('after_pred','after_predict'),
    ('before_backwards','after_backward')])
def test_misspelled_events(nm, near):
    cb = type('Typo', (Callback,), {nm: lambda self, learn: None})()
    with pytest.warns(UserWarning, match=f'Typo.{nm} is never called: .* did you mean {near}'):
        toy(cbs=cb).fit(1)

def test_steps_that_the_learner_has_itself():
    class Steps(Callback):
        def step(self, learn): pass
    said = 'Steps.step is never called, since TrainLearner has its own step'
    with pytest.warns(UserWarning, match=said): toy(cbs=Steps()).fit(1)

def test_swapped_loaders():
    learn = toy()
    learn.dls = DataLoaders(learn.dls.valid, learn.dls.train)
    with pytest.warns(UserWarning, match='are they swapped'): learn.fit(1)

def test_logits_in_nll_loss():
    learn = toy()
    learn.loss_func = F.nll_loss
    with pytest.warns(UserWarning, match='nll_loss expects log-probabilities'): learn.fit(1)

def test_log_likelihoods_beside_another_output():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)
        def forward(self, x): return F.log_softmax(self.body(x), 1), self.body(x).square().mean()
    class Sums(TrainLearner):
        def get_loss(self): self.loss = self.loss_func(self.preds[0], *self.yb)+self.preds[1]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Sums(Two(), toy_dls(), F.nll_loss).fit(1)

@pytest.mark.parametrize('v', ['nan','inf'])
def test_a_loss_that_is_not_finite(v):
    class Bad(Callback):
        def after_loss(self, learn):
            if learn.iter>=2: learn.loss = learn.loss*float(v)
    with pytest.warns(UserWarning, match=f'The training loss is {v} in epoch 1, batch 2'):
        toy(cbs=Bad()).fit(1)

def test_no_warning_without_a_mistake():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        toy(cbs=[MetricsCB(Accuracy()), ProgressCB(mode='lines')]).fit(2)

# Restoring

def test_weights_come_back_in_place_and_by_name():
    model = toy_model()
    before = {k: v.clone() for k,v in model.state_dict().items()}
    tensors = {k: v for k,v in model.named_parameters()}
    with pytest.raises(ZeroDivisionError):
        with restoring(keep_weights(model)):
            with torch.no_grad():
                for p in model.parameters(): p.fill_(7)
            model[1].running_mean = torch.ones(6)  # another tensor under the same name
            model.scratch.add_(1)
            1/0
    for k,v in model.state_dict().items(): assert torch.equal(v, before[k]), k
    assert not model.scratch.any()
    assert all(p is tensors[k] for k,p in model.named_parameters())

def test_modes_gradients_and_optimizers_come_back():
    model = toy_model()
    opt = optim.AdamW(model.parameters())
    model(torch.rand(8,4)).sum().backward()
    opt.step()
    grads = [p.grad.clone() for p in model.parameters()]
    steps = [s['step'].item() for s in opt.state.values()]
    with restoring(keep_modes(model), keep_grads(model), keep_optimizer(opt)):
        model.eval()
        opt.zero_grad()
        model(torch.rand(8,4)).sum().backward()
        opt.step()
        opt.param_groups[0]['lr'] = 7
        opt.zero_grad()
    assert model.training and not model[5].training
    assert all(torch.equal(p.grad, g) for p,g in zip(model.parameters(), grads))
    assert [s['step'].item() for s in opt.state.values()]==steps
    assert opt.param_groups[0]['lr']==1e-3

def test_every_restore_gets_its_turn():
    done = []
    def fails(): raise OSError('disk')
    with pytest.raises(OSError, match='disk'):
        with restoring(lambda: done.append(1), fails, lambda: done.append(2)): pass
    assert sorted(done)==[1,2]

def test_ctrl_c_waits_for_the_restoring():
    done = []
    def slow():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with restoring(lambda: done.append(2), slow): pass
    assert done==[1,2] and signal.getsignal(signal.SIGINT) is handler

def test_restoring_in_another_thread():
    done = []
    def work():
        with restoring(lambda: done.append(1)): pass
    t = threading.Thread(target=work)
    t.start()
    t.join()
    assert done==[1]

def test_a_lazy_model_is_refused():
    with pytest.raises(ValueError, match=r'must have seen a batch; call model\(xb\) first'):
        keep_weights(nn.LazyLinear(3))
