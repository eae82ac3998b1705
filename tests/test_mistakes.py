"Mistakes that newcomers make, and what they are told: the error with its notes, or the warning"
import tempfile, warnings, pytest, torch, torch.nn.functional as F
from functools import partial
from PIL import Image
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR
from datasets import ClassLabel, Dataset, Features, Image as ImageFeature
from miniai.all import *
from conftest import toy, toy_dls, toy_model

X,Y = torch.rand(8,1,6,6),torch.arange(8)%3
COLUMN = torch.rand(8,1)

def fit(x=X, y=Y, loss=F.cross_entropy, n_out=3, cls=TrainLearner, model=None, **kw):
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(36, n_out))
    batch = (x, *y) if isinstance(y, tuple) else (x, y)
    cls(model, DataLoaders([batch], [batch]), loss, **kw).fit(1)

def cb(**methods): return type('Mine', (Callback,), methods)()
def event(nm): return cb(**{nm: lambda self, learn: None})

class NoLearn(Callback):
    def before_fit(self): pass

class TwoInputs(nn.Module):
    def __init__(self, optional=False):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        self.forward = self.maybe if optional else self.both
    def both(self, x, scale): return self.body(x*scale)
    def maybe(self, x, scale=1): return self.body(x*scale)

class Returns(TrainLearner):
    def get_loss(self): return self.loss_func(self.preds, *self.yb)

class Penalty(TrainLearner):
    def get_loss(self): self.loss = self.loss_func(self.preds, *self.yb) + self.model[1].weight**2

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(36, 1)
    def forward(self, x): return self.attn(x.flatten(1))

class Auxiliary(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(36,3))
    def forward(self, x):
        F.smooth_l1_loss(super().forward(x), x)

class Listed(nn.Linear):
    def __init__(self): super().__init__(35, 3)
    def forward(self, xs): return super().forward(xs[0].flatten(1))

class Functional(nn.Linear):
    def __init__(self): super().__init__(36, 3)
    def forward(self, x): return F.linear(x.flatten(1), self.weight) + x.flatten(1)@self.weight.T

class Scripted(nn.Linear):
    def __init__(self): super().__init__(36, 3)
    def forward(self, x, scale): return (x*scale).flatten(1)

class Typo(nn.Linear):
    def forward(self, x): raise TypeError('no such type')

class Matrix(Metric):
    def update(self, preds, targs): pass
    def compute(self): return torch.zeros(3, 3)

opt = optim.SGD(nn.Linear(1,1).parameters(), .1)

def pictures(n_out=3):
    return TrainLearner(nn.Sequential(nn.Flatten(), nn.Linear(36, n_out)), DataLoaders(None, [(X,Y)]), F.cross_entropy)

def flow():
    learn = toy(opt_func=optim.AdamW)
    learn.dls.train = iter(())
    return learn

def torch_file():
    with tempfile.TemporaryDirectory() as d:
        torch.save({'a': 1}, f'{d}/a.pt')
        load_safely(f'{d}/a.pt')

def folders(**classes):
    "A split for each keyword, of one picture for each of its classes"
    im = Image.new('L', (6,6))
    splits = {}
    for k,names in classes.items():
        features = Features(image=ImageFeature(), label=ClassLabel(names=names))
        d = {'image': [im]*len(names), 'label': list(range(len(names)))}
        splits[k] = Dataset.from_dict(d, features=features)
    return splits

def binary():
    learn = TrainLearner(nn.Flatten(), DataLoaders(None, [(X,Y)]), F.binary_cross_entropy_with_logits)
    learn.classify(X)

def in_place_of(cb): return lambda: toy(cbs=cb)

MISTAKES = {
    # the data
    'bytes for pixels': (lambda: fit((X*255).byte()), 'pass x.to(torch.float32), or x.float()/255 for bytes'),
    'double pixels': (lambda: fit(X.double()), 'Inputs must be torch.float32 like the model, got torch.float64'),
    'half precision in the model alone': (
        lambda: fit(model=nn.Sequential(nn.Flatten(), nn.Linear(36,3)).half()), 'pass x.to(torch.float16)'),
    'numpy arrays': (lambda: fit(X.numpy()), 'Inputs must be tensors, got ndarray; pass torch.as_tensor(x)'),
    'columns of lists': (lambda: fit(x=[*X.flatten(1).T.double()], model=nn.Linear(36,3)), "dd.with_format('torch')"),
    'channels last': (lambda: fit(X.permute(0,2,3,1), model=nn.Sequential(nn.Conv2d(1,3,6), nn.Flatten())),
                      'pass x.permute(0,3,1,2)'),
    'labels from 1': (lambda: fit(y=Y+1), 'Labels must be from 0 to 2 for 3 outputs, got 1 to 3'),
    'float labels': (lambda: fit(y=Y.float()), 'pass y.long()'),
    'int32 labels': (lambda: fit(y=Y.int()), 'pass y.long()'),
    'labels in a column': (lambda: fit(y=Y[:,None]), 'of shape (8,) and dtype int64, got (8, 1) int64 on cpu; pass y.long(), y[:,0] for a column'),
    'one-hot labels': (lambda: fit(y=F.one_hot(Y)), 'y.argmax(1) for one-hot labels'),
    'a row of targets for a column of scores': (
        lambda: fit(y=Y.float(), loss=F.binary_cross_entropy_with_logits, n_out=1),
        'must be floats of shape (8, 1), got (8,) float32 on cpu; pass y.float(), y[:,None].float()'),
    'whole numbers for a binary loss': (
        lambda: fit(y=F.one_hot(Y), loss=nn.BCEWithLogitsLoss()), 'must be floats of shape (8, 3), got (8, 3) int64 on cpu; pass y.float()'),
    'one score for cross_entropy': (lambda: fit(y=COLUMN, n_out=1), 'cross_entropy of one score is always 0'),
    'double pixels in a forward of your own': (lambda: fit(X.double(), model=Functional()), 'pass x.to(torch.float32)'),
    'a list of labels': (lambda: fit(y=Y.tolist()), 'Targets must be tensors, got list; pass torch.as_tensor(y)'),
    'labels from 1 among two targets': (
        lambda: fit(y=(Y+1,Y), loss=lambda p,y,z: F.cross_entropy(p, y)), 'Labels must be from 0 to 2'),
    'labels from 1 for a margin': (
        lambda: fit(y=Y+1, loss=nn.MultiMarginLoss()), 'loss_func multi_margin_loss does not fit'),
    'the name of a loss': (lambda: fit(loss='cross_entropy'), "loss_func 'cross_entropy' does not fit"),
    'scores in the last dimension': (
        lambda: fit(y=torch.zeros(8,6).long(), model=nn.Sequential(nn.Flatten(1,2), nn.Linear(6,3))),
        'For predictions (8, 6, 3), labels must be class numbers of shape (8, 3)'),
    'labels for two binary scores': (
        lambda: fit(y=Y, loss=F.binary_cross_entropy_with_logits, n_out=2), 'must be floats of shape (8, 2), got (8,)'),
    'labels from 1 in a loss of your own': (
        lambda: fit(y=Y+1, loss=lambda p,y: F.cross_entropy(p, y)*2), 'Labels must be from 0 to 2'),
    'a batch of one before batch norm': (
        lambda: fit(X[:1], Y[:1], model=nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36))), 'drop_last=True'),
    'an empty loader': (lambda: TrainLearner(toy_model(), DataLoaders([], []), F.cross_entropy).fit(1),
                        'The training loader gave no batch'),
    'no validation data': (lambda: TrainLearner(toy_model(), DataLoaders(toy_dls().train), F.cross_entropy).fit(1),
                           'dls must have a valid loader'),
    'a tuple of loaders': (lambda: TrainLearner(toy_model(), (toy_dls().train, None), F.cross_entropy).fit(1),
                           'pass DataLoaders(train, valid)'),
    # model and loss
    'two inputs': (lambda: fit(y=(X,Y), model=TwoInputs()), 'pass n_inp=2'),
    'two inputs of a scripted model': (lambda: fit(y=(X,Y), model=torch.jit.script(Scripted())), 'missing value for argument'),
    'two inputs, one optional': (lambda: fit(y=(X,Y), model=TwoInputs(True)), 'pass n_inp=2'),
    'a model elsewhere': (lambda: fit(model=nn.Sequential(nn.Flatten(), nn.Linear(36,3)).to('meta')),
                          'pass DeviceCB() in cbs'),
    'all is frozen': (lambda: fit(model=nn.Sequential(nn.Flatten(), nn.Linear(36,3)).requires_grad_(False)),
                      'All parameters are frozen'),
    'get_loss that returns the loss': (lambda: fit(cls=Returns), 'get_loss must set learn.loss, got None'),
    'a penalty for each weight': (lambda: fit(cls=Penalty), 'The loss must be a tensor with one number'),
    'a loss for each item': (lambda: fit(loss=partial(F.cross_entropy, reduction='none')), 'one number'),
    'a class of losses': (lambda: fit(loss=nn.CrossEntropyLoss), 'pass an object, CrossEntropyLoss()'),
    'logits for BCELoss': (lambda: fit(y=torch.rand(8,3), loss=nn.BCELoss()), 'pass BCEWithLogitsLoss()'),
    'the wrong loss': (lambda: fit(loss=F.mse_loss, y=torch.randn(5,1)), 'Targets of mse_loss must be floats of shape (8, 3), got (5, 1)'),
    # the learner
    'no training step': (lambda: fit(cls=Learner), 'pass TrainCB() in cbs, or use TrainLearner'),
    'an optimizer for opt_func': (lambda: toy(opt_func=opt), 'opt_func must be a function of parameters and lr'),
    'a rate in the place of train': (lambda: toy().fit(1, .1), 'did you mean lr=0.1?'),
    'a rate of 1 in the place of train': (lambda: toy().fit(1, 1), 'did you mean lr=1?'),
    'callbacks in the place of lr': (
        lambda: TrainLearner(toy_model(), toy_dls(), F.cross_entropy, [MetricsCB()]).fit(1), 'lr is [<miniai'),
    'half an epoch': (lambda: toy().fit(.5), 'n_epochs must be a whole number'),
    'a part that was replaced': (
        lambda: toy(opt_func=grouped_opt(optim.AdamW, nn.Linear(2,2))).fit(1), 'Parts must be modules of the model'),
    'a schedule that is too long': (
        lambda: toy(opt_func=optim.AdamW).fit_one_cycle(1, total_steps=70), 'steps, so it did not reach its end'),
    'a direction in words': (
        lambda: toy(cbs=[MetricsCB(mae=lambda p,y: p.mean()), SaveBestCB('valid_mae', 'min')]).fit(1),
        "lower must be True or False for valid_mae, got 'min'"),
    'a list of rates for one group': (lambda: toy(opt_func=optim.AdamW).fit(1, lr=[.1,.2]), 'pass opt_func=grouped_opt(...)'),
    'a part of another model': (lambda: fit(cbs=TrainOnlyCB(nn.Linear(2,2))), 'pass modules of the model to TrainOnlyCB'),
    'a stream without a length': (lambda: flow().fit_one_cycle(1), 'pass total_steps=...'),
    'a file that is not there': (lambda: pictures().classify('no.png'), 'no.png'),
    'a picture without a validation loader': (
        lambda: TrainLearner(toy_model(), None, F.cross_entropy).classify(Image.new('L', (6,6))), 'pass DataLoaders('),
    'splits loaded one by one': (
        lambda: image_tensors(folders(train=['x','y','z'], valid=['y','z'])), "same classes in the same order"),
    'several labels': (binary, 'use get_preds(data).sigmoid()'),
    'names for fewer classes': (
        lambda: Classifier(nn.Flatten().eval(), ['a','b']).classify(X), 'a name for each of the 36 scores, got 2'),
    'pixels up to 255 for a classifier': (
        lambda: Classifier(nn.Flatten().eval(), size=6, mode='L').classify(X*255), 'pass x/255'),
    'a negative dimension': (lambda: pictures().export('no.pt2', dynamic=(-1,)), 'dynamic must be a whole number'),
    'one number is no class': (lambda: pictures(n_out=1).classify(X[0]), 'two or more scores'),
    'an ordinary file of torch': (lambda: torch_file(), 'torch.load(path, weights_only=True)'),
    'a precision misspelled': (lambda: MixedPrecision('half'), 'dtype must be one of'),
    'a metric with no direction': (
        lambda: toy(cbs=[MetricsCB(mae=lambda p,y: p.mean()), SaveBestCB('valid_mae')]).fit(1), 'pass lower=True for an error'),
    'no metrics to watch': (lambda: toy(cbs=SaveBestCB()).fit(1), 'pass MetricsCB() in cbs'),
    'no such column': (lambda: toy(cbs=[MetricsCB(), SaveBestCB('valid_acc')]).fit(1), 'must be a column of the history'),
    'an unknown way to resize': (lambda: image_pixels(Image.new('L', (6,6)), 4, resize='stretch'), "'crop', 'squish' or 'pad'"),
    'the history before a fit': (lambda: toy().history, 'pass MetricsCB() in cbs, and fit'),
    'no history to plot': (lambda: plot_history([]), 'The history is empty'),
    'a training in its own fit': (lambda: toy(cbs=cb(after_epoch=lambda self, learn: learn.fit(1))).fit(1),
                                  'must not train inside its own fit'),
    # callbacks
    'a class of callbacks': (in_place_of(MetricsCB), 'pass an object, MetricsCB()'),
    'a transform for a callback': (in_place_of(RandFlip()), 'pass BatchTransformCB(f) for a function f'),
    'a scheduler for a callback': (in_place_of(OneCycleLR(opt, .1, 8)), 'BatchSchedCB(f) for one that makes a scheduler'),
    'a function for a callback': (in_place_of(lambda learn: print(learn)), 'A callback must derive from Callback'),
    'a scheduler for BatchSchedCB': (lambda: BatchSchedCB(OneCycleLR(opt, .1, 8)), 'sched must be a function'),
    'an event without the learner': (lambda: toy(cbs=NoLearn()).fit(1), 'Events are called with the learner'),
    'a transform of images for batches': (lambda: fit(cbs=BatchTransformCB(RandFlip())),
                                          'partial(tfm_batch, tfm_x=f) gives f the images alone'),
    'a class of transforms': (lambda: BatchTransformCB(RandFlip), 'pass an object, RandFlip()'),
    'a misspelled event': (lambda: toy(cbs=event('after_bacth')).fit(1), 'did you mean after_batch?'),
    "Lightning's event": (lambda: toy(cbs=event('on_train_epoch_end')).fit(1), 'did you mean after_epoch?'),
    "Keras's event": (lambda: toy(cbs=event('on_epoch_begin')).fit(1), 'did you mean before_epoch?'),
    'swapped loaders': (lambda: TrainLearner(toy_model(), DataLoaders(toy_dls().valid, toy_dls().train),
                                             F.cross_entropy).fit(1), 'are they swapped?'),
    'logits for nll_loss': (lambda: fit(loss=F.nll_loss), 'pass cross_entropy for logits'),
    'a rate much too high': (lambda: fit(X*1e30, lr=1e30), 'lower the learning rate'),
    # metrics
    'the name of a metric': (lambda: MetricsCB('accuracy'), 'A metric must have update, compute and reset'),
    'two metrics of one name': (lambda: MetricsCB(Accuracy(), Accuracy()), 'pass them by name'),
    'a metric called loss': (lambda: MetricsCB(loss=Accuracy()), 'Two metrics are called loss'),
    'a metric that returns a matrix': (
        lambda: fit(cbs=MetricsCB(counts=Matrix())), 'The metric counts must compute numbers, got (3, 3) float32'),
    'a metric of one target that gets two': (
        lambda: fit(y=(Y,Y), loss=lambda p,y,z: F.cross_entropy(p, y), cbs=MetricsCB(Accuracy())), 'lambda preds, *targs:'),
    'accuracy of numbers': (lambda: fit(y=COLUMN, loss=F.mse_loss, n_out=1, cbs=MetricsCB(Accuracy())),
                            'Accuracy must get scores of shape'),
}

@pytest.mark.parametrize('f', [
    lambda: fit(loss=lambda p,y: nothing), lambda: fit(y=COLUMN, loss=lambda p,y: p.no_such_name()),
    lambda: fit(loss=lambda p,y: F.cross_entropy(p, y)+1/0), lambda: fit(X.byte(), model=Typo(36,3)),
    lambda: fit(y=(Y,Y), model=Attention()), lambda: fit(loss=lambda p,y: nn.Sequential()[3]),
    lambda: fit(loss=lambda p,y: F.cross_entropy(p, y)+torch.einsum('ij,k->i', p, p[:2])),
    lambda: fit(y=(Y,Y), loss=lambda p,y,z: F.cross_entropy(p, y), cbs=MetricsCB(ce=F.cross_entropy)),
    lambda: fit(cbs=MetricsCB(l1=F.huber_loss)), lambda: fit(model=Auxiliary()),
    lambda: fit(x=[X], model=Listed()),
    lambda: fit(model=nn.Sequential(TwoInputs()))])
def test_what_is_not_blamed(f):
    assert not any(o in said(f) for o in ('loss_func','n_inp','Labels','Targets','Inputs must'))

def said(f):
    "The error that `f` raises with its notes, and the warnings before it"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        try: f()
        except Exception as e: return '\n'.join([str(e), *getattr(e, '__notes__', ())])
    return '\n'.join(str(w.message) for w in ws)

@pytest.mark.parametrize('name', MISTAKES)
def test_what_is_said(name):
    f,remedy = MISTAKES[name]
    assert remedy in said(f)
