"""Speed, measured: what a training loop costs, how fast each way of loading is, and how long the lesson's models take

    make bench                            all of it, about half an hour on two cores; or one part:
    python benchmarks/bench.py loops      a step of six libraries against a bare loop, at about 0.4, 1 and 10 ms a step, by
                                          the processor's clock, in twenty short rounds
    python benchmarks/bench.py loading    images per second of each way of loading
    python benchmarks/bench.py models     seconds of six recipes, the lesson's way and ours, on a GPU if there is one
    python benchmarks/bench.py imports    seconds and memory of an import
    python benchmarks/bench.py classify   one image by learn.classify, against the model alone
    python benchmarks/bench.py targets    the fastest way to .917, .922, .927 and .942, from results/

Contestants take turns in one run; the tables give medians, and the middle half of what was measured. Libraries that are
not installed are left out, by name. Each part prints its table and writes it to benchmarks/results as JSON, with the
machine it ran on; `loops` draws a chart as well. Leave the machine alone meanwhile: nothing else should run."""
import contextlib, importlib.metadata, io, json, os, platform, statistics, subprocess, sys, time, warnings
from datetime import date
from pathlib import Path
import numpy as np, pandas as pd, torch, torch.nn.functional as F
from torch import nn, optim
import classify as classify_one, overhead
from miniai import accel, recipes
from miniai.accel import keep_freed_memory
from miniai.core import def_device
from miniai.datasets import DataLoaders, fashion_mnist, fashion_tensors, tensor_images
from miniai.learner import Accuracy, DeviceCB, MetricsCB, ProgressCB, TrainLearner

here = Path(__file__).parent
out = here/'results'

def quietly(f, *args):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): return f(*args)

def spread(vals):
    low,mid,high = statistics.quantiles(vals, n=4)
    return round(mid, 4), f'{low:.4g} to {high:.4g}'

def save(name, rows, **more):
    df = pd.DataFrame(rows)
    print(df.to_string(index=False), flush=True)
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    models = [l.split(':')[1].strip() for l in lines if l.startswith('model name')]
    cpu = next(iter(models), platform.processor())
    about = dict(date=date.today().isoformat(), torch=torch.__version__, device=def_device, cpu=cpu,
                 threads=torch.get_num_threads(), **more)
    if def_device=='cuda': about['gpu'] = torch.cuda.get_device_name()
    out.mkdir(exist_ok=True)
    (out/f'{name}.json').write_text(json.dumps({'about': about, 'rows': rows}, indent=1)+'\n')
    return df

# ---- loops: each trains `model` for one epoch on the list `batches`, measuring loss and accuracy, showing progress

def bare(model, batches): return overhead.bare(model, batches)[0]

def miniai(model, batches):
    cbs = [DeviceCB('cpu'), MetricsCB(Accuracy()), ProgressCB(mode='terminal')]
    learn = TrainLearner(model, DataLoaders(batches), F.cross_entropy, .01, cbs)
    learn.fit(1, valid=False)
    return learn.history[-1]['train_loss']

def fastai(model, batches):
    from fastai.basics import DataLoaders as FastLoaders, Learner, SGD
    class Loader(list):
        device,n = torch.device('cpu'),sum(len(y) for _,y in batches)
        def to(self, device): return self
    learn = Learner(FastLoaders(Loader(batches), Loader(batches[:1]), device='cpu'), model, F.cross_entropy,
                    opt_func=SGD, lr=.01)
    learn.fit(1)
    return float(learn.recorder.log[1])

def lightning(model, batches):
    import lightning as L
    from torchmetrics.classification import MulticlassAccuracy
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model,self.acc = model,MulticlassAccuracy(10, average='micro')
        def training_step(self, batch, i):
            preds = self.model(batch[0])
            loss = F.cross_entropy(preds, batch[1])
            self.acc(preds, batch[1])
            self.log('loss', loss, on_step=False, on_epoch=True, batch_size=len(batch[1]))
            self.log('acc', self.acc, on_step=False, on_epoch=True)
            return loss
        def configure_optimizers(self): return optim.SGD(self.parameters(), .01)
    trainer = L.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False,
                        enable_model_summary=False)
    trainer.fit(Module(), torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer.callback_metrics['loss'].item()

def skorch(model, batches):
    from skorch import NeuralNetClassifier
    net = NeuralNetClassifier(model, criterion=nn.CrossEntropyLoss, optimizer=optim.SGD, lr=.01, max_epochs=1,
                              train_split=None, iterator_train=lambda ds, **kwargs: batches, classes=list(range(10)))
    net.fit(np.zeros((1,100), dtype=np.float32), np.zeros(1, dtype=np.int64))
    return net.history[-1]['train_loss']

def ignite(model, batches):
    from ignite.contrib.handlers import ProgressBar
    from ignite.engine import create_supervised_trainer
    from ignite.metrics import Accuracy as IgniteAccuracy, Average
    trainer = create_supervised_trainer(model, optim.SGD(model.parameters(), .01), nn.CrossEntropyLoss(),
                                        output_transform=lambda x, y, preds, loss: (preds, y, loss.detach()))
    IgniteAccuracy(output_transform=lambda o: o[:2]).attach(trainer, 'accuracy')
    Average(output_transform=lambda o: o[2]).attach(trainer, 'loss')
    ProgressBar().attach(trainer)
    trainer.run(batches, max_epochs=1)
    return float(trainer.state.metrics['loss'])

def keras(model, batches):
    os.environ['KERAS_BACKEND'] = 'torch'
    import keras as K
    m = K.Sequential([K.layers.TorchModuleWrapper(model)])
    m.compile(K.optimizers.SGD(.01), K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=['accuracy'])
    class Data(K.utils.PyDataset):
        def __len__(self): return len(batches)
        def __getitem__(self, i): return batches[i]
    return m.fit(Data(), epochs=1, shuffle=False).history['loss'][0]

packages = dict(bare='torch', miniai='torch', fastai='fastai', lightning='lightning', skorch='skorch',
                ignite='pytorch-ignite', keras='keras')

def timed(f, nh, batches):
    "Seconds by the processor's clock, which stands still while other processes have the core"
    model = overhead.get_model(nh)
    start = time.process_time()
    loss = quietly(f, model, batches)
    return time.process_time()-start, loss

def step_ms(f, nh, batch, n):
    """Milliseconds of a step, and the loss

    The difference of two trainings is the steps alone, without what starting and ending a fit costs."""
    short,_ = timed(f, nh, [batch]*n)
    long,loss = timed(f, nh, [batch]*(2*n))
    return (long-short)/n*1e3, loss

def contestants():
    for nm,pkg in packages.items():
        try: importlib.metadata.version(pkg)
        except importlib.metadata.PackageNotFoundError:
            print(f'{nm} is left out: {pkg} is not installed.')
            continue
        yield nm,globals()[nm]

def loops_of_size(fs, nh, bs, rounds, seconds):
    "Milliseconds of a step of each library, in rounds, and its loss"
    gen = torch.Generator().manual_seed(0)
    batch = torch.randn(bs, 100, generator=gen),torch.randint(10, (bs,), generator=gen)
    bare_seconds,_ = timed(bare, nh, [batch]*50)
    n = max(20, round(seconds*50/bare_seconds))
    times = {nm: [] for nm in fs}
    losses = {}
    for i in range(rounds+1):
        names = list(fs) if i%2 else list(fs)[::-1]
        for nm in names:
            ms,losses[nm] = step_ms(fs[nm], nh, batch, n)
            if i: times[nm].append(ms)  # the first round warms up
    for nm,loss in losses.items():
        same = nm=='fastai' or abs(loss-losses['bare'])<1e-3
        assert same, f'{nm} computes something else'
    return times

def loops(rounds=20, seconds=.15):
    torch.set_num_threads(1)
    keep_freed_memory() # handing it back at each step can cost more than a library does
    fs = dict(contestants())
    rows = []
    for nh,bs in (64,128),(256,128),(512,448):
        times = loops_of_size(fs, nh, bs, rounds, seconds)
        base = statistics.median(times['bare'])
        for nm in fs:
            ratio,middle = spread([a/b for a,b in zip(times[nm], times['bare'])])
            extra = statistics.median(times[nm])-base
            rows.append(dict(step_ms=round(base, 2), library=nm, times_bare=ratio, middle=middle,
                             extra_us=round(1e3*extra)))
            print(rows[-1], flush=True)
    versions = {nm: importlib.metadata.version(pkg) for nm,pkg in packages.items() if nm in fs}
    df = save('loops', rows, versions=versions)
    wide = df.pivot(index='library', columns='step_ms', values='times_bare').loc[list(fs)[::-1]]
    ax = wide.plot.barh(figsize=(7,4))
    ax.set(title='Time of a training step, in times of a bare loop', xlabel='times a bare loop', ylabel='')
    ax.axvline(1, color='gray', lw=1)
    ax.legend(title='bare step, ms')
    ax.figure.savefig(out/'loops.png', dpi=110, bbox_inches='tight')

# ---- loading

def loading(rounds=5):
    from miniai.augment import RandCrop, RandFlip, tfm_batch
    keep_freed_memory()
    dd = fashion_mnist()
    n,bs = min(6144, len(dd['train'])),1024
    small = dd['train'].select(range(n))
    tfm = nn.Sequential(RandCrop(1, per_image=True), RandFlip(per_image=True))
    def from_dd(workers):
        from datasets import DatasetDict
        tds = DatasetDict(train=small, test=small.select(range(bs))).with_transform(tensor_images)
        return DataLoaders.from_dd(tds, bs, num_workers=workers).train
    splits = {k: tuple(t[:n] for t in v) for k,v in fashion_tensors().items()}
    fast = DataLoaders.from_tensors(splits, bs).train
    ways = {f'with_transform, {w} workers': from_dd(w) for w in (0,2)}
    ways |= {'tensors': fast, 'tensors, crop and flip': fast}
    times = {nm: [] for nm in ways}
    for r in range(rounds+1):
        for nm,dl in ways.items():
            start = time.perf_counter()
            for b in dl:
                if 'crop' in nm: tfm_batch(b, tfm)
            if r: times[nm].append(n/(time.perf_counter()-start))
    save('loading', [dict(way=nm, images_per_second=round(statistics.median(v)), middle=spread(v)[1])
                     for nm,v in times.items()])

# ---- models: each measurement in a process of its own, for the lesson's does not keep freed memory

def lesson_learner(r, n):
    "In float32, channels first, with loader workers"
    dd = fashion_mnist()
    dd['train'] = dd['train'].select(range(n))
    dd['test'] = dd['test'].select(range(64))
    dls = DataLoaders.from_dd(dd.with_transform(tensor_images), r.batch_size, num_workers=2)
    cbs = [DeviceCB(), MetricsCB(Accuracy())]
    return TrainLearner(recipes.models[r.model](), dls, F.cross_entropy, r.lr, cbs, optim.AdamW)

def our_learner(r, n):
    keep_freed_memory()
    splits = fashion_tensors(device=def_device)
    return recipes.recipe_learner(r, {k: (x[:n],y[:n]) for k,(x,y) in splits.items()})

def one_model(name, way, n=4096):
    "Print the seconds of an epoch of 60,000 images, measured with `n` of them"
    r = recipes.get_recipe(name)
    n = int(n)
    learn = lesson_learner(r, n) if way=='lesson' else our_learner(r, n)
    learn.logger = lambda row: None
    learn.fit(1, valid=False)
    learn.fit(2, valid=False)
    seconds = min(o['train_seconds'] for o in learn.history[1:])
    print(seconds/n*60_000)

def models(rounds=3):
    where = '' if def_device=='cpu' else f'_{def_device}'
    rows = []
    for nm in 'conv','resnet','model4','wide','fast942','record5':
        n = '2048' if nm=='record5' else '4096'
        times = {'lesson': [], 'ours': []}
        for _ in range(rounds):
            for way in times:
                cmd = [sys.executable, __file__, 'one_model', nm, way, n]
                res = subprocess.run(cmd, capture_output=True, text=True, check=True)
                times[way].append(float(res.stdout.split()[-1]))
        lesson,ours = (statistics.median(o) for o in times.values())
        epochs = recipes.recipes[nm].epochs
        ratios = [round(a/b, 2) for a,b in zip(*times.values())]
        rows.append(dict(
            recipe=nm, epochs=epochs, lesson_s_an_epoch=round(lesson, 1),
            ours_s_an_epoch=round(ours, 1), lesson_s=round(epochs*lesson), ours_s=round(epochs*ours),
            times_faster=round(lesson/ours, 2), ratios=ratios))
        print(rows[-1], flush=True)
    amp = accel.amp_dtype()
    save('models'+where, rows, bf16_gain=round(accel.bf16_gain(), 2), amp=str(amp))

# ---- imports

def imports(rounds=5):
    mods = ['torch','miniai.learner','miniai.all','fastai.vision.all','lightning','skorch','ignite.engine','keras']
    times = {m: [] for m in mods}
    code = ('import time; t=time.perf_counter(); import {}; s=time.perf_counter()-t; '
            'import resource; print(s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)')
    env = os.environ | {'KERAS_BACKEND': 'torch'}
    for r in range(rounds+1):
        for m in mods:
            res = subprocess.run([sys.executable, '-c', code.format(m)], capture_output=True, text=True, env=env)
            if res.returncode: times[m] = None
            elif times[m] is not None and r: times[m].append([*map(float, res.stdout.split()[-2:])])
    for m in mods:
        if not times[m]: print(f'{m} is left out: it cannot be imported here.')
    save('imports', [dict(module=m, seconds=round(statistics.median(t for t,_ in v), 2),
                          megabytes=round(statistics.median(o for _,o in v))) for m,v in times.items() if v])

# ---- one image

def classify(): save('classify', classify_one.measure())

# ---- targets, from the measured runs

def targets():
    from miniai.recipes import load_results
    df = load_results(here.parent/'results', changed=True)
    df = df[df.valid.isna() & df.images.isna() & (df.device=='cpu')] # several runs at a time shared the GPU
    df['best'] = df[['accuracy','tta_accuracy']].astype(float).max(axis=1)
    by = df.groupby(['recipe','model','epochs','device','threads','amp'], as_index=False).agg(
        accuracy=('best','mean'), seconds=('seconds','mean'), seeds=('seed','size')).round(4)
    rows = []
    for t in .917,.922,.927,.942:
        hit = by[by.accuracy>=t].sort_values('seconds')
        if len(hit): rows.append({'target': t, **hit.iloc[0].to_dict()})
    save('targets', rows)

if __name__=='__main__':
    warnings.simplefilter('ignore')
    names = sys.argv[1:] or ['imports','classify','loops','loading','models','targets']
    if names[0]=='one_model': one_model(*names[1:])
    else:
        for nm in names:
            print(f'\n{nm}', flush=True)
            if len(names)==1: globals()[nm]()
            else: subprocess.run([sys.executable, __file__, nm], check=True)
