"""What the Learner costs: TrainLearner with DeviceCB, MetricsCB(Accuracy()) and ProgressCB against a bare loop of the same arithmetic

    python benchmarks/overhead.py

Steps of about 0.3, 1 and 10 ms, both loops in turn, nine times. The number that counts is the ratio of a round's two times; the table gives its median and its middle half.
On Linux the allocator is told to keep its memory, for both loops: giving it back and fetching it again at every step costs more than the Learner, and by chance."""
import ctypes, io, statistics, sys, time, torch, torch.nn.functional as F
from contextlib import redirect_stdout
from torch import nn, optim
from miniai.datasets import DataLoaders, set_seed
from miniai.learner import *

ROUNDS,SECONDS = 9,2.

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
    start = time.perf_counter()
    res = f(model, dl)
    return time.perf_counter()-start, res

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
    q = statistics.quantiles(ratios, n=4)
    print(f'| {statistics.median(steps):.2f} | {statistics.median(ratios):.3f} | {q[0]:.3f} to {q[2]:.3f} |', flush=True)

if __name__=='__main__':
    torch.set_num_threads(1)
    if sys.platform=='linux':
        libc = ctypes.CDLL(None)
        for option in -1,-3: libc.mallopt(option, 2**31-1)  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    print('| step of the bare loop, ms | Learner / bare, median of 9 | middle half |\n|---|---|---|')
    for nh,bs in (64,64),(256,128),(512,448): measure(nh, bs)
