"""What the Learner costs: TrainLearner with DeviceCB, MetricsCB(Accuracy()) and ProgressCB, against a bare loop

    python benchmarks/overhead.py
    python benchmarks/overhead.py --cold

Both loops do the same arithmetic on one thread, in steps of about 0.3, 1 and 10 ms, and take turns for fifty rounds.
What counts is the ratio of the two times of a round, by the processor's own clock; the table gives its median and its
middle half. Both loops keep freed memory: returning it to the system and fetching it again at each step can cost more
than the Learner does.

On a busy machine these ratios drown in noise. `--cold` measures the Learner's own microseconds a batch: nothing is
trained, and a sweep over 3 MB, which is not counted, stands for each of predict, backward and step, since these leave
none of the Learner in the processor's cache. The same sums of loss and accuracy in a bare loop are subtracted."""
import io, statistics, sys, time, torch, torch.nn.functional as F
from contextlib import redirect_stdout
from torch import nn, optim
from miniai.accel import keep_freed_memory
from miniai.core import set_seed
from miniai.datasets import DataLoaders
from miniai.learner import Accuracy, DeviceCB, Learner, MetricsCB, ProgressCB, TrainLearner

ROUNDS,SECONDS = 50,.4

def get_model(nh):
    set_seed(0)
    return nn.Sequential(nn.Linear(100,nh), nn.ReLU(), nn.Linear(nh,nh), nn.ReLU(), nn.Linear(nh,10))

def bare(model, dl):
    opt = optim.SGD(model.parameters(), .01)
    model.train()
    total,right,n = torch.zeros(()),torch.zeros((), dtype=torch.long),0
    for x,y in dl:
        preds = model(x)
        loss = F.cross_entropy(preds, y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        total += loss.detach()*len(x)
        right += (preds.detach().argmax(1)==y).sum()
        n += len(x)
    return total.item()/n, right.item()/n

def with_learner(model, dl):
    cbs = [DeviceCB('cpu'), MetricsCB(Accuracy()), ProgressCB(mode='terminal')]
    learn = TrainLearner(model, DataLoaders(dl), F.cross_entropy, .01, cbs)
    with redirect_stdout(io.StringIO()): learn.fit(1, valid=False)
    row = learn.metrics.history[-1]
    return row['train_loss'],row['train_accuracy']

def timed(f, nh, dl):
    model = get_model(nh)
    start = time.thread_time()
    res = f(model, dl)
    return time.thread_time()-start, res

def measure(nh, bs):
    gen = torch.Generator().manual_seed(0)
    batch = torch.randn(bs, 100, generator=gen),torch.randint(10, (bs,), generator=gen)
    bare(get_model(nh), [batch]*20)
    n = max(20, round(SECONDS*20/timed(bare, nh, [batch]*20)[0]))
    ratios,steps = [],[]
    for i in range(ROUNDS):
        order = (bare,with_learner) if i%2 else (with_learner,bare)
        res = {f: timed(f, nh, [batch]*n) for f in order}
        a,b = res[bare][1],res[with_learner][1]
        assert abs(a[0]-b[0])<1e-4 and abs(a[1]-b[1])<1e-6, 'the two loops do not compute the same'
        ratios.append(res[with_learner][0]/res[bare][0])
        steps.append(res[bare][0]/n*1e3)
    low,mid,high = statistics.quantiles(ratios, n=4)
    print(f'| {statistics.median(steps):.2f} | {mid:.3f} | {low:.3f} to {high:.3f} |', flush=True)

class Cold:
    "A loader that notes the microseconds of each batch, without those of `sweep`"
    batch,junk = (torch.rand(10,8),torch.arange(10)%4),torch.rand(800_000)
    def sweep(self):
        start = time.perf_counter()
        self.junk.sum()
        self.swept += time.perf_counter()-start
    def __iter__(self):
        self.times = []
        for _ in range(60):
            self.swept = 0.
            self.sweep()
            start,self.swept = time.perf_counter(),0.
            yield self.batch
            self.times.append((time.perf_counter()-start-self.swept)*1e6)

PREDS,LOSS,dl = torch.rand(10,4),torch.tensor(.5),Cold()

class NoTraining(Learner):
    def predict(self): self.preds = dl.sweep() or (self.xb and PREDS)
    def get_loss(self): self.loss = self.yb and LOSS
    def backward(self): dl.sweep()
    def step(self): dl.sweep()
    def zero_grad(self): pass

def cold_learner(*cbs):
    learn = NoTraining(nn.Linear(8,4), DataLoaders(dl), cbs=list(cbs))
    learn.logger = lambda row: None
    with redirect_stdout(io.StringIO()): learn.fit(1, valid=False)

def cold_bare(sums):
    total,right,n = torch.zeros(()),torch.zeros((), dtype=torch.long),0
    for x,y in dl:
        for _ in range(3): dl.sweep()
        if not sums: continue
        total += LOSS.detach()*len(x)
        right += (PREDS.detach().argmax(1)==y).sum()
        n += len(x)

def measure_cold(rounds=40):
    cbs = [DeviceCB('cpu'), MetricsCB(Accuracy()), ProgressCB(mode='lines')]
    runs = {'no callbacks': (lambda: cold_bare(False), cold_learner), 'DeviceCB': (lambda: cold_bare(False),
            lambda: cold_learner(cbs[0])), 'all three': (lambda: cold_bare(True), lambda: cold_learner(*cbs))}
    res = {nm: [] for nm in runs}
    for nm,pair in list(runs.items())*rounds:
        base,ours = (f() or statistics.quantiles(dl.times)[0] for f in pair)
        res[nm].append(ours-base)
    for nm,us in res.items(): print(f'| {nm} | {statistics.quantiles(us)[0]:.1f} |', flush=True)

if __name__=='__main__':
    torch.set_num_threads(1)
    keep_freed_memory()
    if '--cold' in sys.argv:
        print('| callbacks | Learner - bare, µs a batch |\n|---|---|')
        sys.exit(measure_cold())
    print('| step of the bare loop, ms | Learner / bare, median of 50 | middle half |\n|---|---|---|')
    for nh,bs in (64,64),(256,128),(512,448): measure(nh, bs)
