"A training that is stopped at any moment and started again ends with the bits of one left alone"
import os, pickle, random, subprocess, sys, pytest, numpy as np, pandas as pd
import torch, torch.nn.functional as F
from functools import partial
from pathlib import Path
from torch import optim
import miniai.augment  # noqa: F401, it adds capture_preds
from miniai.accel import EMACB
from miniai.checkpoint import *
from miniai.core import set_seed
from miniai.learner import Accuracy, Callback, CancelEpochException, MetricsCB, MomentumLearner, TrainLearner
from miniai.sgd import BatchSchedCB, CosineAnnealing, EpochSchedCB, OneCycle
from conftest import At, Raises, toy, toy_dls, toy_model

torch_cycle = partial(optim.lr_scheduler.OneCycleLR, max_lr=.1, total_steps=4*4)
scheds = {'ours': lambda: BatchSchedCB(partial(OneCycle, max_lr=.1, total_steps=4*4)),
          'torch': lambda: BatchSchedCB(torch_cycle),
          'longer': lambda: BatchSchedCB(partial(OneCycle, max_lr=.1, total_steps=5*4)),
          'steps': lambda: EpochSchedCB(partial(optim.lr_scheduler.StepLR, step_size=2)),
          'epochs': lambda: EpochSchedCB(partial(CosineAnnealing, total_steps=4))}

def learner(path, sched='ours', opt=optim.AdamW, cbs=(), cls=TrainLearner, **kwargs):
    set_seed(1)
    ckpt = [CheckpointCB(path, **kwargs)] if path else []
    return cls(toy_model(), toy_dls(), F.cross_entropy, .1, opt_func=opt,
               cbs=[MetricsCB(Accuracy()), scheds[sched](), *ckpt, *cbs])

def outcome(learn):
    rows = [{k: v for k,v in r.items() if 'seconds' not in k} for r in learn.metrics.history]
    bits = lambda ts: [None if t is None else t.numpy().tobytes() for t in ts]
    grads = [p.grad for p in learn.model.parameters()]
    return (rows, bits(learn.model.state_dict().values()), bits(grads),
            learn.opt.param_groups[0]['lr'], torch.rand(1).item(), random.random())

def whole(**kwargs):
    learn = learner(None, **kwargs)
    learn.fit(4)
    return outcome(learn)

@pytest.fixture(scope='module')
def want(): return whole()

def stop(path, event, at=0, exc=KeyboardInterrupt, order=0, **kwargs):
    "A fit that is stopped by an exception"
    with pytest.raises(exc): learner(path, **kwargs).fit(4, cbs=Raises(event, exc(), at, order))

def check_resumes(path, want, **kwargs):
    torch.rand(3)
    again = learner(path, **kwargs)
    again.fit(4)
    assert outcome(again)==want

@pytest.mark.parametrize('sched', scheds)
@pytest.mark.parametrize('opt', [optim.AdamW, partial(optim.SGD, momentum=.9)], ids=['AdamW','SGD'])
def test_resumed_is_uninterrupted(tmp_path, sched, opt):
    kw = dict(sched=sched, opt=opt)
    want = whole(**kw)
    for at in range(0, 24, 5):  # 6 batches an epoch
        stop(tmp_path/f'{at}.pt', 'after_batch', at=at-1 if at else 0, **kw)
        check_resumes(tmp_path/f'{at}.pt', want, **kw)

def test_kept_gradients_are_part_of_it(tmp_path):
    kw = dict(cls=partial(MomentumLearner, mom=.7), opt=optim.SGD)
    want = whole(**kw)
    assert any(want[2])
    stop(tmp_path/'c.pt', 'before_epoch', at=4, **kw)
    check_resumes(tmp_path/'c.pt', want, **kw)

# ---- faults: at every event, and at sampled lines

EVENTS = ('before_fit after_fit cleanup_fit before_epoch after_epoch cleanup_epoch '
          'before_batch after_predict after_loss after_backward after_step after_batch '
          'cleanup_batch').split()

@pytest.mark.parametrize('exc', [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize('order', [-2000, 0, 2000])
@pytest.mark.parametrize('event', EVENTS)
def test_fault_at_any_event(tmp_path, want, event, order, exc):
    for at in [0] if event.endswith('_fit') else [0, 3, 4]:
        f = tmp_path/f'{at}.pt'
        stop(f, event, at, exc, order)
        check_resumes(f, want)

@pytest.mark.parametrize('cls, event', [
    (MetricsCB,'cleanup_epoch'), (MetricsCB,'after_epoch'), (BatchSchedCB,'after_batch')])
def test_fault_inside_a_callback_of_ours(tmp_path, want, monkeypatch, cls, event):
    "A row of results is neither lost nor there twice"
    if not hasattr(cls, event): pytest.skip(f'{cls.__name__} has no {event}')
    fault = Raises(event, KeyboardInterrupt(), at=3)
    plain = getattr(cls, event)
    def faulty(self, learn):
        getattr(fault, event)(learn)
        plain(self, learn)
    monkeypatch.setattr(cls, event, faulty)
    with pytest.raises(KeyboardInterrupt): learner(tmp_path/'c.pt').fit(4)
    monkeypatch.undo()
    check_resumes(tmp_path/'c.pt', want)

class AtLine:
    "Raises KeyboardInterrupt in front of the n-th line that runs in the package"
    package = f'{os.sep}miniai{os.sep}'
    def __init__(self, n):
        self.n = n
        self.seen = 0
    def trace(self, frame, event, arg):
        if self.package not in frame.f_code.co_filename: return None
        if event=='line':
            self.seen += 1
            if self.seen==self.n: raise KeyboardInterrupt
        return self.trace
    def __enter__(self):
        self.old = sys.gettrace()
        sys.settrace(self.trace)
        return self
    def __exit__(self, *args): sys.settrace(self.old)

def test_interrupt_at_sampled_lines(tmp_path, want):
    "A first and a resumed training are interrupted at a line each, and the third goes on"
    learn = learner(tmp_path/'all.pt')
    with AtLine(0) as tr: learn.fit(4)
    rng,stopped = random.Random(0),0
    for i in range(60):
        f = tmp_path/f'{i}.pt'
        for last in tr.seen, tr.seen//3:
            with AtLine(rng.randint(1, last)):
                try: learner(f).fit(4)
                except KeyboardInterrupt: stopped += 1
        check_resumes(f, want)
    assert stopped>80 and not list(tmp_path.glob('.part*'))

DRIVER = '''
import os, random, signal, sys, time
from pathlib import Path
import miniai.recipes as r
r.plot_history = r.plot_mistakes = lambda *args: None  # slow, and not what is tested
kwargs = dict(recipe='base', epochs=12, batch_size=4, seed=3, device='cpu')
def run(out):
    "The command in a process of its own, which has everything imported"
    pid = os.fork()
    if pid: return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        r.main(data=sys.argv[1], out=out, **kwargs)
    except BaseException as e:
        print(repr(e), file=sys.stderr)
        os._exit(1)
    os._exit(0)
start = time.perf_counter()
assert os.waitpid(run(sys.argv[2]+'/whole'), 0)[1]==0
an_epoch,killed = (time.perf_counter()-start)/12,Path(sys.argv[2])/'killed'
def saved():
    "When the last checkpoint was written"
    try: return max((f.stat().st_mtime_ns for f in killed.glob('*/checkpoint.pt')), default=0)
    except FileNotFoundError: return 0
rng,kills = random.Random(0),0
for i in range(30):
    pid,last,epochs,end = run(str(killed)),saved(),rng.randrange(4),None
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if (now := saved())!=last: epochs,last = epochs-1,now
        if epochs<=0 and end is None: end = time.perf_counter()+an_epoch*rng.random()
        if i<6 and end and time.perf_counter()>end: break
        time.sleep(.002)
    if done[0] and done[1]==0: break
    assert not done[0], done
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
print(done[1], kills)
'''

def test_killed_at_random(tmp_path, idx_folder):
    "The command, killed by SIGKILL at random moments until it is through"
    cmd = [sys.executable, '-c', DRIVER, str(idx_folder), str(tmp_path)]
    res = subprocess.run(cmd, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    rc,kills = map(int, res.stdout.split())
    assert rc==0 and kills>=2
    whole,killed = (next((tmp_path/o).iterdir()) for o in ('whole','killed'))
    a,b = (load_safely(o/'model.pt')['state'] for o in (whole,killed))
    assert all(torch.equal(a[k], b[k]) for k in a)
    names = [sorted(f.name for f in o.glob('[!.]*')) for o in (whole,killed)]
    assert names[0]==names[1] and 'checkpoint.pt' not in names[0]

# ---- what is in the file, and who may go on from it

def test_file_is_safe_and_whole(tmp_path):
    learner(tmp_path/'c.pt').fit(4)
    state = torch.load(tmp_path/'c.pt', weights_only=True)
    assert state['epoch']==4 and len(state['parts'])==4  # model, optimizer and two callbacks
    assert [f.name for f in tmp_path.iterdir()]==['c.pt']

def test_dry_runs_neither_save_nor_load(tmp_path):
    learn = learner(tmp_path/'c.pt')
    learn.fit(1, train=False)
    learn.lr_find(show=False)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('event', ['before_fit','before_epoch','after_epoch','cleanup_epoch'])
def test_a_dry_run_in_between_does_not_disturb_it(tmp_path, want, event):
    stop(tmp_path/'c.pt', 'before_batch', at=13)
    again = learner(tmp_path/'c.pt')
    again.fit(4, cbs=At(event, lambda learn: learn.capture_preds()))
    assert outcome(again)==want

def test_a_second_fit_says_what_it_does(tmp_path, capsys):
    learn = learner(tmp_path/'c.pt')
    learn.fit(4)
    assert 'c.pt' not in capsys.readouterr().out
    before = outcome(learn)[:2]
    for l in learn, learner(tmp_path/'c.pt'):
        l.fit(4, cbs=Raises('before_batch', ZeroDivisionError()))
        said = capsys.readouterr().out
        assert 'c.pt: 4 of 4 epochs are done; use a different path to start again' in said
        assert outcome(l)[:2]==before
    again = learner(tmp_path/'c.pt', restart=True)
    again.fit(4)
    assert outcome(again)[:2]==before and 'c.pt' not in capsys.readouterr().out

def test_going_on_is_said(tmp_path, capsys):
    stop(tmp_path/'c.pt', 'before_batch', at=8)
    learner(tmp_path/'c.pt').fit(4)
    assert 'c.pt: 1 of 4 epochs are done' in capsys.readouterr().out

@pytest.mark.parametrize('fit, msg', [
    (lambda f: learner(f, data='a', sched='longer').fit(5),
     r'BatchSchedCB total_steps 16 \(now 20\), .*; change that back, or use a different path'),
    (lambda f: learner(f, data='a', cbs=[MetricsCB()]).fit(4), 'with parts .*a different path'),
    (lambda f: learner(f, data='a').fit(4, lr=.2), r'with lr \[0\.1\] \(now \[0\.2\]\)'),
    (lambda f: learner(f, data='a', opt=optim.SGD).fit(4), r'momentum None \(now \[0\]\)'),
    (lambda f: learner(f, data='a', opt=partial(optim.AdamW, weight_decay=.1)).fit(4),
     r'weight_decay \[0\.01\] \(now \[0\.1'),
    (lambda f: learner(f, data='b').fit(4), r'with data a \(now b\)'),
    (lambda f: learner(f, data='a', max_lr=2).fit(4), r'with max_lr None \(now 2\)')],
    ids='epochs callbacks rate optimizer decay data own'.split())
def test_a_different_training_does_not_go_on(tmp_path, fit, msg):
    f = tmp_path/'c.pt'
    learner(f, data='a').fit(4)
    saved = f.read_bytes()
    with pytest.raises(ValueError, match=msg) as e: fit(f)
    assert f.read_bytes()==saved and 'restart' not in str(e.value)

def test_a_digest_sees_every_change_of_the_data():
    x,y = torch.arange(6.),torch.arange(6)
    splits = {'train': (x,y)}
    assert digest(splits)==digest({'train': (x.clone(),y.clone())})
    others = (x.flip(0),y), (x,y.flip(0)), (x.double(),y), (x.view(2,3),y), (x,), (x[:5],y[:5])
    digests = {digest({'train': o}) for o in others}
    assert len(digests)==len(others) and digest(splits) not in digests

def test_callbacks_without_a_state_may_differ(tmp_path, want):
    stop(tmp_path/'c.pt', 'before_batch', at=8)
    check_resumes(tmp_path/'c.pt', want, cbs=[Callback(), At('before_fit', print, order=-9)])

class Counts(Callback):
    def __init__(self, start): self.n = start
    def state_dict(self): return {'n': self.n}
    def load_state_dict(self, state): self.n = state['n']

class Tallies(Counts): "Another class with the same state"

def test_callbacks_with_a_state_go_by_their_class(tmp_path):
    "In which order they stand is no part of a training"
    f = tmp_path/'c.pt'
    cbs = lambda *ns: [Counts(ns[0]), Tallies(ns[1]), Counts(ns[2])]
    want = whole(cbs=cbs(1,2,3))
    stop(f, 'before_batch', at=8, cbs=cbs(1,2,3))
    one,other,two = cbs(0,0,0)
    check_resumes(f, want, cbs=[other, one, two])
    assert [cb.n for cb in (one,other,two)]==[1,2,3]

# ---- more epochs, or fewer

def fit_epochs(n, f=None, sched='steps'):
    learn = learner(f, sched)
    learn.fit(n)
    return outcome(learn)

@pytest.mark.parametrize('sched', ['steps','longer'])
def test_a_training_grows(tmp_path, sched):
    "Where its schedule allows it, bit for bit, as often as you like"
    f = tmp_path/'c.pt'
    want = fit_epochs(5, sched=sched)
    for n in 2,4: fit_epochs(n, f, sched)
    assert fit_epochs(5, f, sched)==want

def test_a_training_with_more_epochs_than_asked_for_is_loaded(tmp_path, capsys):
    f = tmp_path/'c.pt'
    want = fit_epochs(3, f)
    saved = f.read_bytes()
    assert fit_epochs(2, f)==want and f.read_bytes()==saved
    assert 'c.pt: 3 of 2 epochs are done' in capsys.readouterr().out

@pytest.mark.parametrize('length', [
    lambda n: BatchSchedCB(partial(optim.lr_scheduler.CosineAnnealingLR, T_max=n)),
    lambda n: BatchSchedCB(partial(optim.lr_scheduler.LinearLR, total_iters=n)),
    lambda n: BatchSchedCB(partial(OneCycle, max_lr=.1, total_steps=n))])
def test_a_schedule_of_a_different_length_does_not_grow(tmp_path, length):
    f = tmp_path/'c.pt'
    toy(cbs=[length(8), CheckpointCB(f)]).fit(2)
    saved = f.read_bytes()
    for n in 1,3:
        with pytest.raises(ValueError, match=r'8 \(now .*; change that back, or use a diff'):
            toy(cbs=[length(4*n), CheckpointCB(f)]).fit(n)
    assert f.read_bytes()==saved

@pytest.mark.parametrize('state, word', [
    (np.arange(3),'numpy'), (np.float64(1),'numpy'), (Path('x'),'pathlib'), (Counts(1),'Counts')])
def test_what_cannot_be_loaded_is_not_saved(tmp_path, state, word):
    with pytest.raises(TypeError, match=f'c.pt cannot hold .*{word}.*only numbers, strings'):
        learner(tmp_path/'c.pt', cbs=[Counts(state)]).fit(4)
    assert not list(tmp_path.iterdir())

def test_scalars_of_numpy_in_a_checkpointed_fit(tmp_path):
    class Numpy(Accuracy):
        def compute(self): return np.float32(super().compute())
    f = tmp_path/'c.pt'
    toy(cbs=[MetricsCB(Numpy()), CheckpointCB(f)]).fit(2, lr=np.float64(.1))
    assert load_safely(f)['epoch']==2

# ---- damaged, hostile and unwritable files

def test_any_flipped_bit_and_any_cut_is_found(tmp_path):
    f = tmp_path/'m.pt'
    save_safely({'a': torch.arange(20.), 'b': ['x', (1,2.)]}, f)
    whole,rng = f.read_bytes(),random.Random(0)
    msg = 'm.pt cannot be loaded safely: it is damaged, or save_safely did not write it'
    for i in range(300):
        b = bytearray(whole)
        b[rng.randrange(len(b))] ^= 1<<rng.randrange(8)
        f.write_bytes(b)
        with pytest.raises(ValueError, match=msg): load_safely(f)
    for n in 0,1,33,34,len(whole)//2,len(whole)-1:
        f.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=msg): load_safely(f)
    f.write_bytes(whole)
    assert load_safely(f)['b']==['x',(1,2.)]

class Hostile:
    def __reduce__(self): return os.mkdir, ('hostile-was-here',)

def test_foreign_and_hostile_files(tmp_path, monkeypatch):
    import miniai.checkpoint as c
    monkeypatch.chdir(tmp_path)
    torch.save({'weight': torch.ones(1)}, 'foreign.pt')
    remedy = r'foreign.pt cannot be .* torch\.load\(path, weights_only=True\)'
    with pytest.raises(ValueError, match=remedy): load_safely('foreign.pt')
    monkeypatch.setattr(c, 'get_unsafe_globals_in_checkpoint', lambda f: [])
    save_safely({'weight': Hostile()}, 'hostile.pt')
    with pytest.raises(pickle.UnpicklingError, match='Weights only'): load_safely('hostile.pt')
    assert not Path('hostile-was-here').exists()
    with pytest.raises(FileNotFoundError, match='nothing.pt'): load_safely('nothing.pt')

def test_atomic_is_all_or_nothing(tmp_path):
    f = tmp_path/'new folder'/'f.txt'
    with pytest.raises(ZeroDivisionError):
        with atomic(f) as t: t.write_text('half'); 1/0
    assert not list(f.parent.iterdir())
    with atomic(f) as t: t.write_text('whole')
    assert [o.name for o in f.parent.iterdir()]==['f.txt'] and f.read_text()=='whole'

def test_a_planted_link_is_not_followed(tmp_path):
    victim,f = tmp_path/'victim',tmp_path/'f.txt'
    victim.write_text('precious')
    f.symlink_to(victim)
    with atomic(f) as t: t.write_text('new')
    assert victim.read_text()=='precious' and f.read_text()=='new' and not f.is_symlink()

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_costs_one_epoch_at_most(tmp_path, want, monkeypatch):
    f = tmp_path/'c.pt'
    stop(f, 'before_batch', at=14)
    kept,write = f.read_bytes(),Path.write_bytes
    def full(self, data):
        write(self, data[:100])
        write(Path('/dev/full'), data)
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match='No space left on device'):
        learner(f).fit(4)
    assert f.read_bytes()==kept and [o.name for o in tmp_path.iterdir()]==['c.pt']
    monkeypatch.undo()
    check_resumes(f, want)

def test_a_folder_that_vanished_is_made_again(tmp_path, want):
    class Vanish(Callback):
        def before_batch(self, learn):
            if learn.epoch!=2 or not d.exists(): return
            (d/'c.pt').unlink()
            d.rmdir()
    d = tmp_path/'d'
    learn = learner(d/'c.pt', cbs=[Vanish()])
    learn.fit(4)
    assert outcome(learn)==want and load_safely(d/'c.pt')['epoch']==4

# ---- the best epoch, and early stopping

class Plays(Callback):
    "Writes `vals` into the history, one an epoch; the weights are the epoch's number"
    order = MetricsCB.order+.5
    def __init__(self, vals, col='valid_loss', kind=False):
        self.vals = vals
        self.col = col
        self.kind = kind
    def after_epoch(self, learn):
        if not learn.does_train or learn.training!=self.kind: return
        learn.history[-1][self.col] = self.vals[learn.epoch]
        with torch.no_grad(): learn.model[0].weight.fill_(learn.epoch+1)

def played(vals, *cbs, col='valid_loss', ckpt=None, **kwargs):
    learn = learner(ckpt, cbs=[Plays(vals, col), *cbs])
    learn.fit(len(vals), **kwargs)
    return learn, learn.model[0].weight[0,0].item(), len(learn.history)

nan = float('nan')

@pytest.mark.parametrize('vals, best', [
    ([3.,1.,2.,4.], 2), ([3.,2.,1.], 3), ([1.,1.,1.], 1), ([1.,2.,nan], 1), ([nan,2.,3.], 2),
    ([nan,nan], 1)])
def test_the_best_epoch_is_loaded_at_the_end(vals, best):
    assert played(vals, SaveBestCB())[1:]==(best, len(vals))
    assert played([1-o for o in vals], SaveBestCB('valid_accuracy'), col='valid_accuracy')[1]==best
    assert played(vals, SaveBestCB('valid_error_rate'), col='valid_error_rate')[1]==best

@pytest.mark.parametrize('vals, patience, n', [
    ([3.,1.,2.,4.,5.], 2, 4), ([3.,4.,.5,5.], 2, 4), ([1.,1.,1.], 1, 2), ([3.,2.,1.], 1, 3),
    ([nan,nan,nan,nan], 3, 4)])
def test_early_stopping(capsys, vals, patience, n):
    assert played(vals, EarlyStopCB(patience=patience))[2]==n
    assert ('Stopped: valid_loss' in capsys.readouterr().out)==(n<len(vals))
    stop = EarlyStopCB('valid_accuracy', patience)
    assert played([-o for o in vals], stop, col='valid_accuracy')[2]==n

def test_each_fit_has_its_own_best_epoch():
    "Evaluations and dry runs change neither the weights nor what is known"
    play,best,stop = Plays([1.,2.]),SaveBestCB(),EarlyStopCB(patience=1)
    learn = learner(None, cbs=[play, best, stop])
    learn.fit(2)
    play.vals = [4.,3.,5.,6.]
    learn.fit(4)
    assert (learn.model[0].weight==2).all() and len(learn.history)==5
    with torch.no_grad(): learn.model[0].weight.fill_(9)
    learn.fit(1, train=False)
    learn.lr_find(show=False)
    learn.capture_preds()
    assert (learn.model[0].weight==9).all()

def test_best_of_the_training_loss_without_validation():
    learn = learner(None, cbs=[Plays([1.,.5,2.], 'train_loss', True), SaveBestCB('train_loss')])
    learn.fit(3, valid=False)
    assert (learn.model[0].weight==2).all()

def test_an_averaged_model_is_kept_as_it_was_measured():
    class Chooses(Plays):
        def after_epoch(self, learn): learn.history[-1]['valid_error'] = abs(learn.epoch-1)
    learn = learner(None, cbs=[Chooses([]), SaveBestCB('valid_error'), EMACB(.7)])
    learn.fit(4)
    learn.fit(1, train=False)
    *losses,again = [r['valid_loss'] for r in learn.history]
    assert again==pytest.approx(losses[1], rel=1e-6) and abs(losses[3]-again)>1e-4

def test_stopped_fits_keep_the_best_epoch(tmp_path):
    "A stopped training goes on with the best epoch it had, and an early end is met again"
    vals = [3.,1.,2.,4.,5.]
    cbs = lambda: (SaveBestCB(), EarlyStopCB(patience=2))
    want = played(vals, *cbs())
    for at in range(0, 24, 3):
        f = tmp_path/f'{at}.pt'
        stop = Raises('before_batch', KeyboardInterrupt(), at)
        with pytest.raises(KeyboardInterrupt): played(vals, *cbs(), stop, ckpt=f)
        for _ in range(2):
            learn,*again = played(vals, *cbs(), ckpt=f)
            assert again==[2., 4] and outcome(learn)[:2]==outcome(want[0])[:2]

@pytest.mark.parametrize('lower, best', [(False,1), (True,3)])
@pytest.mark.parametrize('col', ['valid_mse','valid_error','valid_accuracy'])
def test_the_caller_says_what_is_better(col, lower, best):
    vals = [3.,2.,1.]
    assert played(vals, SaveBestCB(col, lower=lower), col=col)[1]==best
    stop = EarlyStopCB(col, patience=1, lower=lower)
    assert played(vals, stop, col=col)[2]==(3 if lower else 2)

class Score(Accuracy):
    "A metric that may say, as those of torchmetrics do, what is better"
    def __init__(self, higher_is_better):
        super().__init__()
        self.higher_is_better = higher_is_better
    def update(self, preds, targs): pass

@pytest.mark.parametrize('higher, nm, best', [
    (False,'mae',3), (True,'mae',1), (True,'error',1), (False,'acc',3), (None,'error',3),
    (None,'acc',1)])
def test_the_metric_says_what_is_better(higher, nm, best):
    "A word in its name is asked only where the metric says nothing"
    col = f'valid_{nm}'
    def fitted(cb):
        learn = toy(cbs=[MetricsCB(**{nm: Score(higher)}), Plays([3.,2.,1.], col), cb])
        learn.fit(3)
        return learn
    assert (fitted(SaveBestCB(col)).model[0].weight==best).all()
    assert len(fitted(EarlyStopCB(col, patience=1)).history)==(3 if best==3 else 2)

class Scores(dict):
    "A collection, as torchmetrics has it; each column goes by its own metric"
    def update(self, preds, targs): pass
    def reset(self): pass
    def compute(self): return dict(mae=1., f1=torch.tensor([1.,2.]))

@pytest.mark.parametrize('col, best', [('valid_mae',3), ('valid_f1_1',1)])
def test_a_metric_of_a_collection_says_what_is_better(col, best):
    metrics = MetricsCB(all=Scores(mae=Score(False), f1=Score(True)))
    learn = toy(cbs=[metrics, Plays([3.,2.,1.], col), SaveBestCB(col)])
    learn.fit(3)
    assert (learn.model[0].weight==best).all()

@pytest.mark.parametrize('nm', ['inaccuracy','accumulated_cost','glossiness'])
def test_only_whole_words_say_what_is_better(nm):
    with pytest.raises(ValueError, match=f'for valid_{nm}, got None'):
        toy(cbs=[MetricsCB(**{nm: Score(None)}), SaveBestCB(f'valid_{nm}')]).fit(1)

watchers = pytest.mark.parametrize('cb', [SaveBestCB, EarlyStopCB])

@watchers
def test_what_nobody_can_know_is_refused_before_the_training(cb):
    cbs = [MetricsCB(mae=Score(None)), cb('valid_mae')]
    never = Raises('before_batch', ZeroDivisionError())
    with pytest.raises(ValueError, match='lower must be .* for valid_mae.*pass lower=True'):
        toy(cbs=cbs).fit(1, cbs=never)
    with pytest.raises(ValueError, match=r'pass MetricsCB\(\) in cbs'):
        toy(cbs=cb()).fit(1, cbs=never)
    toy(cbs=cbs).fit(1, train=False)

@watchers
def test_a_column_that_is_not_there_is_named(cb):
    with pytest.raises(ValueError, match='val_loss must be a column .*train_loss.*valid_loss'):
        toy(cbs=[MetricsCB(), cb('val_loss')]).fit(2)

@pytest.mark.parametrize('cb', [SaveBestCB, EMACB])
def test_a_fit_that_did_not_begin_puts_nothing_back(cb):
    learn = toy(cbs=[MetricsCB(), cb()])
    learn.fit(2)
    with torch.no_grad():
        for p in learn.model.parameters(): p.fill_(.5)
    fault = Raises('before_fit', ZeroDivisionError(), order=-5000)
    with pytest.raises(ZeroDivisionError): learn.fit(1, cbs=fault)
    assert all((p==.5).all() for p in learn.model.parameters())

# ---- the log

class Scalars(list):
    "Stands for TensorBoard's `SummaryWriter`"
    def add_scalar(self, *args): self.append(args)

def test_log_goes_where_it_should(tmp_path):
    to,f = Scalars(),tmp_path/'logs/log.csv'
    cbs = [MetricsCB(Accuracy()), LogCB(to), LogCB(f)]
    learn = TrainLearner(toy_model(), toy_dls(), F.cross_entropy, cbs=cbs)
    learn.fit(2)
    learn.capture_preds()
    learn.fit(1, valid=False)
    learn.fit(1, train=False)
    rows = learn.history[:3]
    assert to==[(k, v, i) for i,r in enumerate(rows, 1) for k,v in r.items()]
    saved = pd.read_csv(f)
    assert [*saved.epoch]==[1,2,3]
    assert np.allclose(saved.train_loss, [r['train_loss'] for r in rows])
    assert saved.valid_loss.isna().tolist()==[False,False,True]

def test_the_metrics_of_an_earlier_fit_are_not_watched():
    learn = toy()
    learn.fit(1, cbs=MetricsCB())
    with pytest.raises(ValueError, match=r'pass MetricsCB\(\) in cbs'): learn.fit(1, cbs=SaveBestCB())

def test_a_log_of_passes_that_were_cancelled(tmp_path):
    def stop(learn):
        if learn.iter==1: raise CancelEpochException()
    learn = toy(cbs=[MetricsCB(), LogCB(tmp_path/'log.csv'), At('after_batch', stop, order=5)])
    learn.fit(2, valid=False)
    assert len((tmp_path/'log.csv').read_text().splitlines())==3
