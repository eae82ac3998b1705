"""What the Learner costs: TrainLearner with DeviceCB, MetricsCB(Accuracy()) and ProgressCB, against a bare loop

    python benchmarks/overhead.py

Both loops do the same arithmetic, in steps of about 0.3, 1 and 10 ms, and take turns for nine rounds. What counts is
the ratio of the two times of a round; the table gives its median and its middle half. Both loops keep freed memory:
returning it to the system and fetching it again at each step can cost more than the Learner does."""
import io, statistics, time, torch, torch.nn.functional as F
from contextlib import redirect_stdout
from torch import nn, optim
from miniai.core import keep_freed_memory, set_seed
from miniai.datasets import DataLoaders
from miniai.learner import Accuracy, DeviceCB, MetricsCB, ProgressCB, TrainLearner

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
    low,mid,high = statistics.quantiles(ratios, n=4)
    print(f'| {statistics.median(steps):.2f} | {mid:.3f} | {low:.3f} to {high:.3f} |', flush=True)

if __name__=='__main__':
    torch.set_num_threads(1)
    keep_freed_memory()
    print('| step of the bare loop, ms | Learner / bare, median of 9 | middle half |\n|---|---|---|')
    for nh,bs in (64,64),(256,128),(512,448): measure(nh, bs)
