"A run that is killed at any moment and started again ends bit for bit as one that was left alone"
import random, subprocess, sys, threading, time, pytest, torch, torch.nn.functional as F
from functools import partial
from torch import optim
from miniai.core import *
from miniai.datasets import *
from miniai.learner import *
from miniai.checkpoint import *
from miniai.augment import *
from miniai.core import *
from miniai.learner import *
from miniai.recipes import *
from miniai.sgd import *
from conftest import toy_dls, toy_model
from test_learner import EVENTS, Raises

scheds = {'ours': lambda: BatchSchedCB(partial(OneCycle, max_lr=.1, total_steps=4*4)),
          'torch': lambda: BatchSchedCB(partial(optim.lr_scheduler.OneCycleLR, max_lr=.1, total_steps=4*4)),
          'epochs': lambda: EpochSchedCB(partial(CosineAnnealing, total_steps=4))}

def learner(path, sched='ours', opt=optim.AdamW, cbs=()):
    set_seed(1)
    return TrainLearner(toy_model(), toy_dls(), F.cross_entropy, .1, cbs=[MetricsCB(Accuracy()), scheds[sched](), *([CheckpointCB(path)] if path else []), *cbs], opt_func=opt)

def outcome(learn):
    rows = [{k: v for k,v in r.items() if 'seconds' not in k} for r in learn.metrics.history]
    return rows, [t.numpy().tobytes() for t in learn.model.state_dict().values()], learn.opt.param_groups[0]['lr'], torch.rand(1).item(), random.random()

@pytest.mark.parametrize('sched', scheds)
@pytest.mark.parametrize('opt', [optim.AdamW, partial(optim.SGD, momentum=.9)], ids=['AdamW','SGD'])
def test_resumed_is_uninterrupted(tmp_path, sched, opt):
    whole = learner(None, sched, opt)
    whole.fit(4)
    want = outcome(whole)
    for at in range(0, 24, 5):  # 6 batches an epoch
        f = tmp_path/f'{at}.pt'
        with pytest.raises(KeyboardInterrupt): learner(f, sched, opt).fit(4, cbs=Raises('after_batch', KeyboardInterrupt(), at=at-1 if at else 0))
        torch.rand(3)
        again = learner(f, sched, opt)
        again.fit(4)
        assert outcome(again)==want, at

@pytest.mark.parametrize('event', ['before_fit','before_epoch','before_batch','after_loss','after_batch','cleanup_batch','after_epoch','cleanup_epoch','after_fit','cleanup_fit'])
def test_fault_in_any_event(tmp_path, event):
    whole = learner(None)
    whole.fit(4)
    want = outcome(whole)
    with pytest.raises(ZeroDivisionError): learner(tmp_path/'c.pt').fit(4, cbs=Raises(event, ZeroDivisionError(), at=0 if 'fit' in event else 3))
    again = learner(tmp_path/'c.pt')
    again.fit(4)
    assert outcome(again)==want

def test_file_is_safe_and_whole(tmp_path):
    learn = learner(tmp_path/'c.pt')
    learn.fit(4)
    state = torch.load(tmp_path/'c.pt', weights_only=True)
    assert state['epoch']==4 and len(state['callbacks'])==2
    assert [f.name for f in tmp_path.iterdir()]==['c.pt']

def test_looking_neither_saves_nor_loads(tmp_path):
    learn = learner(tmp_path/'c.pt')
    learn.fit(1, train=False)
    learn.lr_find(show=False)
    assert not list(tmp_path.iterdir())

def test_a_finished_file_trains_no_more(tmp_path):
    learner(tmp_path/'c.pt').fit(4)
    learn = learner(tmp_path/'c.pt')
    learn.fit(4, cbs=Raises('before_batch', ZeroDivisionError()))
    assert len(learn.metrics.history)==4

@pytest.mark.parametrize('other, msg', [
    (lambda f: learner(f).fit(5), 'saved by a fit with n_epochs 4, this one has 5: use another path'),
    (lambda f: learner(f, cbs=[MetricsCB()]).fit(4), "with callbacks .*use another path"),
    (lambda f: (f.write_bytes(f.read_bytes()[:500]), learner(f).fit(4)), 'cannot be loaded safely .*delete it')], ids=['epochs','callbacks','damaged'])
def test_files_that_do_not_fit(tmp_path, other, msg):
    f = tmp_path/'c.pt'
    learner(f).fit(4)
    with pytest.raises(ValueError, match=msg): other(f)

def test_killed_at_random(tmp_path):
    "The command itself, killed by SIGKILL at random moments until it is through"
    args = [sys.executable, '-u', '-m', 'miniai.recipes', '--recipe', 'base', '--epochs', '8', '--batch-size', '128', '--data', 'sample', '--seed', '3']
    def run(out, limit):
        with subprocess.Popen([*args, '--out', tmp_path/out], stdout=subprocess.PIPE, text=True) as p:
            lines = [p.stdout.readline()]  # what it runs on: the training begins
            start = time.perf_counter()
            timer = threading.Timer(limit, p.kill)
            timer.start()
            lines += p.stdout.readlines()
            timer.cancel()
        return p.returncode, ''.join(lines), time.perf_counter()-start
    rc,text,seconds = run('whole', 300)
    assert rc==0 and 'Going on' not in text
    rng,kills = random.Random(0),0
    for i in range(30):
        rc,text,_ = run('killed', seconds*rng.uniform(.05,.6) if i<8 else 300)
        if rc==0: break
        kills += 1
    assert rc==0 and kills>=2
    a,b = (torch.load(next((tmp_path/o).rglob('model.pt')), weights_only=True) for o in ('whole','killed'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not list((tmp_path/'killed').rglob('checkpoint.pt'))
