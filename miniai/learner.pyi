"Written by tools/stubs.py; do not edit"
from contextlib import contextmanager
from typing import Any
from .augment import flip_views
from .resnet import Summary
import torch
import torch.nn.functional as F

__all__ = ['Callback', 'CancelFitException', 'CancelEpochException', 'CancelBatchException', 'run_cbs', 'sort_cbs', 'with_cbs', 'Learner', 'TrainCB', 'TrainLearner', 'MomentumLearner', 'DeviceCB', 'SingleBatchCB', 'keep_for', 'no_trace', 'Metric', 'Accuracy', 'AvgMetric', 'format_row', 'print_row', 'MetricsCB', 'ProgressCB', 'plot_history', 'LRFinderCB', 'LRFind']

class Callback():
    'Base class of callbacks: methods named after events, each called with the learner'
    order: Any
    skip_dry_run: Any

class CancelFitException(Exception):
    'Ends the fit; `after_cancel_fit` replaces `after_fit`'

class CancelEpochException(Exception):
    'Ends a pass; `after_cancel_epoch` replaces `after_epoch`'

class CancelBatchException(Exception):
    'Ends a batch; `after_cancel_batch` replaces `after_batch`'

def run_cbs(cbs, method_nm, learn=None):
    'Call `method_nm` of each callback that has it, by `order`; a cleanup in reverse'

def sort_cbs(cbs) -> list:
    ...

class with_cbs():
    "Decorator for a method: run the callbacks' `before_`, `after_` and `cleanup_` events around it"
    nm: Any
    def __init__(self, nm):
        ...
    def __call__(self, f):
        ...

class Learner():
    'Train `model` on `dls`, and call the callbacks along the way'
    model: torch.nn.Module
    dls: Any
    loss_func: Any
    lr: Any
    cbs: Any
    opt_func: Any
    n_inp: int
    opt: Any
    batch: Any
    preds: Any
    loss: Any
    losses: Any
    metrics: Any
    logger: Any
    fitting: Any
    running: Any
    dry_run: Any
    paused: Any
    epoch: Any
    dl: Any
    iter: Any
    n_epochs: Any
    does_train: Any
    does_valid: Any
    training: Any
    xb: Any
    yb: Any
    def __init__(self, model: torch.nn.Module, dls, loss_func=F.mse_loss, lr=0.1, cbs=None, opt_func=torch.optim.SGD, n_inp: int=1):
        ...
    def fit(self, n_epochs: int=1, train: bool=True, valid: bool=True, cbs=None, lr=None):
        'Train and validate for `n_epochs` epochs'
    def one_epoch(self, training):
        'Make one pass over the training or the validation data'
    def add_cb(self, cb):
        'Add a callback for the rest of a fit'
    def callback(self, method_nm):
        ...
    def predict(self):
        ...
    def get_loss(self):
        ...
    def backward(self):
        ...
    def step(self):
        ...
    def zero_grad(self):
        ...
    @property
    def history(self) -> list:
        'The rows of `MetricsCB`, one for each epoch'
    @property
    def epoch_done(self):
        'Is this the last pass of an epoch that trains?'
    @property
    def own_steps(self) -> list:
        "Names of the steps that this learner's class does itself, without callbacks"
    def __getstate__(self):
        'Leave out what belongs to a running fit, for `copy` and `pickle`'
    def show_image_batch(self, max_n=16, cbs=None, title='A batch, as the model sees it', *, nrows=None, ncols=None, titles=None, imsize=1.6, figsize=None):
        'Show images of the first training batch as they reach the model'
    def capture_preds(self, cbs=None, inps=False, dl=None) -> tuple:
        'Predict all batches of a loader; a dry run'
    def tta(self, views=flip_views, probs=True, cbs=None, dl=None) -> tuple:
        'Average the predictions over `views`; a dry run'
    def get_preds(self, data=None, cbs=None):
        'Predict `data` without targets; a dry run'
    def classify(self, data) -> tuple:
        'Predict what an image shows'
    def export(self, path: str, dynamic=()):
        'Save model and validation transforms as a standalone program, for batches of any size'
    def summary(self, depth=1) -> Summary:
        'Show shapes, parameters and MACs of the modules for one validation batch; a dry run'
    @property
    def pg(self):
        "The optimizer's first parameter group"
    def fit_one_cycle(self, n_epochs: int, lr=None, cbs=None, total_steps=None, *, pct_start=0.3, anneal_strategy='cos', cycle_momentum=True, base_momentum=0.85, max_momentum=0.95, div_factor=25.0, final_div_factor=10000.0):
        'Fit with a `OneCycle` that peaks at the learning rate'
    def show_training_loop(self, cbs=None):
        'Print the events of a fit, nested, with the callbacks that listen to each, in order'
    def lr_find(self, max_epochs: int | None=None, show: bool=True, *, gamma=1.3, max_mult=3, start_lr=1e-05, end_lr=10.0) -> LRFind:
        'Try learning rates and show their losses, in a dry run'

class TrainCB(Callback):
    'The usual training step: predict, loss, backward, step, zero the gradients'
    n_inp: Any
    def __init__(self, n_inp=1):
        ...
    def predict(self, learn):
        ...
    def get_loss(self, learn):
        ...
    def backward(self, learn):
        ...
    def step(self, learn):
        ...
    def zero_grad(self, learn):
        ...

class TrainLearner(Learner):
    'A `Learner` with the usual training step built in'
    preds: Any
    loss: Any
    def predict(self):
        ...
    def get_loss(self):
        ...
    def backward(self):
        ...
    def step(self):
        ...
    def zero_grad(self):
        ...

class MomentumLearner(TrainLearner):
    'A `TrainLearner` that keeps the fraction `mom` of the gradients from batch to batch'
    mom: Any
    def __init__(self, model, dls, *args, mom=0.85, loss_func=F.mse_loss, lr=0.1, cbs=None, opt_func=torch.optim.SGD, n_inp: int=1):
        ...
    def zero_grad(self):
        ...

class DeviceCB(Callback):
    'Move the model and each batch to `device`, by default `def_device`'
    device: Any
    def __init__(self, device=None):
        ...
    def before_fit(self, learn):
        ...
    def before_batch(self, learn):
        ...

class SingleBatchCB(Callback):
    'End the fit after one batch'
    order: Any
    skip_dry_run: Any
    def after_batch(self, learn):
        ...

def keep_for(learn, train):
    'List functions that restore what an evaluation or a training changes'

@contextmanager
def no_trace(learn, train=True):
    'Copy the learner; at the end of the block, restore its model and the random states'

class Metric():
    'Base class of metrics; by itself a weighted mean, summed in float64 by `compute`'
    vals: Any
    weights: Any
    n: Any
    def __init__(self):
        ...
    def reset(self):
        ...
    def update(self, val, weight=1):
        ...
    def add(self, val, weight, n):
        'Keep `val*weight`, the sum of `n` items, for `compute`'
    @property
    def total(self):
        ...
    def compute(self):
        ...
    def sync(self, reduce):
        'Add up over processes; `reduce` takes a list of numbers and returns their sums'

class Accuracy(Metric):
    "Fraction of predictions whose highest score is the target's; classes in dimension 1"
    higher_is_better: Any
    def update(self, preds, target):
        ...

class AvgMetric(Metric):
    'Mean of `f(preds, targs)`, a function that returns one number for a batch'
    f: Any
    def __init__(self, f):
        ...
    def update(self, preds, *targs):
        ...

def format_row(row) -> dict:
    'Turn the names and numbers of a row of results into text'

def print_row(row):
    'Print a row of results on one line, with the seconds of both passes together'

class MetricsCB(Callback):
    'Measure the loss and `metrics` over each pass, one row of results per epoch'
    metrics: Any
    picks: Any
    loss: Any
    history: Any
    row: Any
    trained: Any
    model: Any
    start: Any
    skip_dry_run: Any
    def __init__(self, *metrics, **named):
        ...
    def state_dict(self):
        ...
    def load_state_dict(self, state):
        ...
    def before_fit(self, learn):
        ...
    def before_epoch(self, learn):
        ...
    def after_batch(self, learn):
        ...
    def after_epoch(self, learn):
        ...
    def after_cancel_epoch(self, learn):
        ...
    def cleanup_epoch(self, learn):
        ...
    def cleanup_fit(self, learn):
        ...

class ProgressCB(Callback):
    'Show the progress of a fit, the time left, and its rows of results'
    plot: Any
    mode: Any
    every: Any
    mbar: Any
    n_batches: Any
    n: Any
    shown: Any
    start: Any
    losses: Any
    valid: Any
    order: Any
    skip_dry_run: Any
    def __init__(self, plot=False, mode=None, every=0.5):
        ...
    def before_fit(self, learn):
        ...
    def log_row(self, row):
        ...
    def after_batch(self, learn):
        ...
    def after_epoch(self, learn):
        ...
    def after_cancel_epoch(self, learn):
        ...
    def cleanup_fit(self, learn):
        ...

def plot_history(history):
    'Draw all columns of `MetricsCB.history` over the epochs, on a new figure'

class LRFinderCB(Callback):
    'Multiply the learning rate by `gamma` after each batch, until the loss explodes'
    gamma: Any
    max_mult: Any
    start_lr: Any
    end_lr: Any
    lrs: Any
    losses: Any
    skip_dry_run: Any
    def __init__(self, gamma=1.3, max_mult=3, start_lr=1e-05, end_lr=10.0):
        ...
    def before_fit(self, learn):
        ...
    def after_batch(self, learn):
        ...

class LRFind():
    'The results of the learning rate finder, and its suggestions `steep` and `valley`'
    lrs: Any
    losses: Any
    smooth: Any
    steep: Any
    valley: Any
    def __init__(self, lrs, losses):
        ...
    def plot(self, ax=None):
        'Draw the curve with both suggestions marked, on `ax` or on a new figure'
    def __repr__(self):
        ...
