"Written by tools/stubs.py; do not edit"
from contextlib import contextmanager
from typing import Any
from .augment import flip_views
from .resnet import Summary
from collections.abc import Callable
from pathlib import Path
from typing import Any
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

def run_cbs(cbs, method_nm, learn=None) -> None:
    'Call `method_nm` of each callback that has it, by `order`; a cleanup in reverse'

def sort_cbs(cbs) -> list:
    ...

class with_cbs():
    "Decorator for a method: run the callbacks' `before_`, `after_` and `cleanup_` events around it"
    nm: Any
    def __init__(self, nm) -> None:
        'def __init__(self, nm): # `fit`, `epoch` or `batch`'
    def __call__(self, f):
        ...

class Learner():
    'Train `model` on `dls`, and call the callbacks along the way'
    model: torch.nn.Module
    dls: Any
    loss_func: Callable
    lr: float | list
    cbs: Any
    opt_func: Callable
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
    def __init__(self, model: torch.nn.Module, dls, loss_func: Callable=F.mse_loss, lr: float | list=0.1, cbs=None, opt_func: Callable=torch.optim.SGD, n_inp: int=1) -> None:
        "dls, # `DataLoaders`, or anything with a `train` and a `valid` loader\nloss_func:Callable=F.mse_loss, # Called with predictions and targets, returns one number\nlr:float|list=.1, # A list has a rate for each parameter group\ncbs=None, # A callback or several\nopt_func:Callable=torch.optim.SGD, # Called with the parameters and `lr`\nn_inp:int=1 # How many items of a batch are the model's inputs"
    def fit(self, n_epochs: int=1, train: bool=True, valid: bool=True, cbs=None, lr: float | list | None=None) -> None:
        "Train and validate for `n_epochs` epochs\n\ntrain:bool=True, # False only evaluates: model and random states don't change\ncbs=None, # More callbacks, for this fit alone\nlr:float|list|None=None # A learning rate for this fit alone"
    def one_epoch(self, training) -> None:
        'Make one pass over the training or the validation data'
    def add_cb(self, cb) -> None:
        'Add a callback for the rest of a fit'
    def callback(self, method_nm) -> None:
        ...
    def predict(self) -> None:
        ...
    def get_loss(self) -> None:
        ...
    def backward(self) -> None:
        ...
    def step(self) -> None:
        ...
    def zero_grad(self) -> None:
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
    def show_image_batch(self, max_n=16, cbs=None, title='A batch, as the model sees it', *, nrows=None, ncols=None, titles=None, imsize=1.6, figsize=None) -> None:
        'Show images of the first training batch as they reach the model\n\ncbs=None, # More callbacks'
    def capture_preds(self, cbs=None, inps=False, dl=None) -> tuple:
        'Predict all batches of a loader; a dry run\n\ncbs=None, # More callbacks\ninps=False, # Return the inputs, too?\ndl=None, # A loader; None takes the one for validation\n)->tuple: # Predictions, targets and, with `inps`, the inputs'
    def tta(self, views=flip_views, probs=True, cbs=None, dl=None) -> tuple:
        'Average the predictions over `views`; a dry run\n\nviews=flip_views, # As `TTACB` takes them\nprobs=True, # Return mean probabilities? Otherwise mean scores\ncbs=None, # More callbacks\ndl=None, # A loader; None takes the one for validation\n)->tuple: # Predictions and targets'
    def get_preds(self, data=None, cbs=None):
        'Predict `data` without targets; a dry run\n\ndata=None, # A loader, images (n,c,h,w), an image or a picture; None takes the validation data\ncbs=None, # More callbacks, such as `TTACB`\n): # Predictions, without targets'
    def classify(self, data) -> tuple | list:
        'Predict what an image shows\n\ndata, # A path, PIL image, array (h,w,c) of bytes or tensor (c,h,w); a list or batch of them\n)->tuple|list: # Name and probability of the likeliest class; for several images a list of these'
    def export(self, path: str | Path, dynamic=()) -> None:
        'Save model and validation transforms as a standalone program, for batches of any size\n\npath:str|Path, # A .pt2 file for `load_classifier` and `torch.export.load`, or .onnx\ndynamic=(), # Dimensions that may vary besides 0, the batch: (1,) is the length of a text'
    def summary(self, depth=1) -> Summary:
        'Show shapes, parameters and MACs of the modules for one validation batch; a dry run\n\ndepth=1, # Levels of modules to show\n)->Summary: # A table in Markdown'
    @property
    def pg(self):
        "The optimizer's first parameter group"
    def fit_one_cycle(self, n_epochs: int, lr: float | list | None=None, cbs=None, total_steps: int | None=None, *, pct_start=0.3, anneal_strategy='cos', cycle_momentum=True, base_momentum=0.85, max_momentum=0.95, div_factor=25.0, final_div_factor=10000.0):
        'Fit with a `OneCycle` that peaks at the learning rate\n\nlr:float|list|None=None, # As `fit` takes it; each parameter group peaks at its own rate\ntotal_steps:int|None=None, # Training batches of all epochs, for a loader without a length\n**kwargs # Passed on to `OneCycle`'
    def show_training_loop(self, cbs=None) -> None:
        'Print the events of a fit, nested, with the callbacks that listen to each, in order'
    def lr_find(self, max_epochs: int | None=None, show: bool=True, *, gamma=1.3, max_mult=3, start_lr=1e-05, end_lr=10.0) -> LRFind:
        'Try learning rates and show their losses, in a dry run\n\nmax_epochs:int|None=None, # None takes as many as needed\nshow:bool=True, # Draw the curve?'

class TrainCB(Callback):
    'The usual training step: predict, loss, backward, step, zero the gradients'
    n_inp: Any
    def __init__(self, n_inp=1) -> None:
        'def __init__(self, n_inp=1): # How many items of a batch are inputs; the learner reads it'
    def predict(self, learn) -> None:
        ...
    def get_loss(self, learn) -> None:
        ...
    def backward(self, learn) -> None:
        ...
    def step(self, learn) -> None:
        ...
    def zero_grad(self, learn) -> None:
        ...

class TrainLearner(Learner):
    'A `Learner` with the usual training step built in'
    preds: Any
    loss: Any
    def predict(self) -> None:
        ...
    def get_loss(self) -> None:
        ...
    def backward(self) -> None:
        ...
    def step(self) -> None:
        ...
    def zero_grad(self) -> None:
        ...

class MomentumLearner(TrainLearner):
    'A `TrainLearner` that keeps the fraction `mom` of the gradients from batch to batch'
    mom: Any
    def __init__(self, model, dls, *args, mom=0.85, loss_func: Callable=F.mse_loss, lr: float | list=0.1, cbs=None, opt_func: Callable=torch.optim.SGD, n_inp: int=1) -> None:
        ...
    def zero_grad(self) -> None:
        ...

class DeviceCB(Callback):
    'Move the model and each batch to `device`, by default `def_device`'
    device: Any
    def __init__(self, device=None) -> None:
        ...
    def before_fit(self, learn) -> None:
        ...
    def before_batch(self, learn) -> None:
        ...

class SingleBatchCB(Callback):
    'End the fit after one batch'
    order: Any
    skip_dry_run: Any
    def after_batch(self, learn) -> None:
        ...

def keep_for(learn, train):
    'List functions that restore what an evaluation or a training changes'

@contextmanager
def no_trace(learn, train=True):
    'Copy the learner; at the end of the block, restore its model and the random states\n\ntrain=True # Does anything in the block train? If not, no weights are copied\n): # A copy of the learner, for a dry run'

class Metric():
    'Base class of metrics; by itself a weighted mean, summed in float64 by `compute`'
    vals: Any
    weights: Any
    n: Any
    def __init__(self) -> None:
        ...
    def reset(self) -> None:
        ...
    def update(self, val, weight=1) -> None:
        ...
    def add(self, val, weight, n) -> None:
        'Keep `val*weight`, the sum of `n` items, for `compute`'
    @property
    def total(self):
        ...
    def compute(self):
        ...
    def sync(self, reduce) -> None:
        'Add up over processes; `reduce` takes a list of numbers and returns their sums'

class Accuracy(Metric):
    "Fraction of predictions whose highest score is the target's; classes in dimension 1"
    higher_is_better: Any
    def update(self, preds, target) -> None:
        ...

class AvgMetric(Metric):
    'Mean of `f(preds, targs)`, a function that returns one number for a batch'
    f: Any
    def __init__(self, f) -> None:
        ...
    def update(self, preds, *targs) -> None:
        ...

def format_row(row) -> dict:
    'Turn the names and numbers of a row of results into text'

def print_row(row) -> None:
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
    def __init__(self, *metrics, **named) -> None:
        '*metrics, # Named after their class; with a function, a pair (metric, picks its inputs)\n**named # Named by you'
    def state_dict(self):
        ...
    def load_state_dict(self, state) -> None:
        ...
    def before_fit(self, learn) -> None:
        ...
    def before_epoch(self, learn) -> None:
        ...
    def after_batch(self, learn) -> None:
        ...
    def after_epoch(self, learn) -> None:
        ...
    def after_cancel_epoch(self, learn) -> None:
        ...
    def cleanup_epoch(self, learn) -> None:
        ...
    def cleanup_fit(self, learn) -> None:
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
    def __init__(self, plot=False, mode=None, every=0.5) -> None:
        "plot=False, # Draw the loss as it falls? In notebooks only\nmode=None, # 'notebook', 'terminal' or 'lines'; None detects it\nevery=.5 # Minimum seconds between two updates"
    def before_fit(self, learn) -> None:
        ...
    def log_row(self, row) -> None:
        ...
    def after_batch(self, learn) -> None:
        ...
    def after_epoch(self, learn) -> None:
        ...
    def after_cancel_epoch(self, learn) -> None:
        ...
    def cleanup_fit(self, learn) -> None:
        ...

def plot_history(history) -> None:
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
    def __init__(self, gamma=1.3, max_mult=3, start_lr=1e-05, end_lr=10.0) -> None:
        'max_mult=3, # End when the loss is that many times its lowest\nend_lr=10. # End at this rate'
    def before_fit(self, learn) -> None:
        ...
    def after_batch(self, learn) -> None:
        ...

class LRFind():
    'The results of the learning rate finder, and its suggestions `steep` and `valley`'
    lrs: Any
    losses: Any
    smooth: Any
    steep: Any
    valley: Any
    def __init__(self, lrs, losses) -> None:
        ...
    def plot(self, ax=None):
        'Draw the curve with both suggestions marked, on `ax` or on a new figure'
    def __repr__(self):
        ...
