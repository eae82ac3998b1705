"""What each idea of `fast942` is worth: trainings with one idea removed, judged by held-out images

    python benchmarks/ablation.py            every change with three seeds, one line each in results/search/ablation.jsonl
    python benchmarks/ablation.py 0 2        the first of two halves of the work: start both at once, one core each

A training that has its line already is not repeated, and one that was stopped goes on after its last whole epoch.
Every training validates on 5,000 training images; nothing here reads the test images."""
import json
import sys
import time
import torch
from functools import partial
from pathlib import Path
from torch import nn
from miniai.accel import amp_dtype, keep_freed_memory
from miniai.augment import RandFlip, flip_views, tfm_batch
from miniai.checkpoint import CheckpointCB
from miniai.datasets import fashion_tensors, hold_out
from miniai.init import BatchTransformCB, conv
from miniai.recipes import get_recipe, models, recipe_learner
from miniai.resnet import ResBlock, get_model

here = Path(__file__).parent.parent
out = here/'results'/'search'/'ablation.jsonl'

def stride_block(ni, nf, stride=2, ks=3, act=nn.GELU, norm=nn.BatchNorm2d):
    "A `pool_block` whose first convolution takes the stride, in place of the max pooling"
    return nn.Sequential(
        nn.Conv2d(ni, nf, ks, stride=stride, padding=ks//2, bias=False),
        norm(nf),
        act(),
        ResBlock(nf, nf, act=act, norm=norm))

def max_pool(): return nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())

models['stridenet48'] = partial(
    get_model, nfs=(16,48,96,192), block=stride_block, stem=conv, pool=max_pool, act=nn.GELU)

adamw = dict(opt='adamw', lr=2e-2)
lesson = adamw | dict(sched='one_cycle', smoothing=0., alt_flip=False, batch_size=1024)
changes = {
    'nothing removed': {},
    'without pooling': dict(model='stridenet48'),
    'without Muon (AdamW)': adamw,
    'without label smoothing': dict(smoothing=0.),
    'without alternating flips': dict(alt_flip=False),
    'wide in place of poolnet48': dict(model='wide'),
    "poolnet48, the lesson's recipe": lesson,
    'random flips in place of alternating ones': dict(alt_flip=False)}
random_flips = partial(tfm_batch, tfm_x=RandFlip(per_image=True))

def train(change, seed, splits, **fields):
    "Train one change with one seed, and return its line"
    r = get_recipe('fast942', seed=seed, valid=5000)._replace(**changes[change] | fields)
    cbs = []
    if change.startswith('random'): cbs.append(BatchTransformCB(random_flips, on_val=False))
    learn = recipe_learner(r, splits, 'cpu', cbs)
    name = f'{change}-{seed}-{r.epochs}ep-{r.lr}'.replace(' ', '_').replace("'", '')
    checkpoint = here/'runs'/f'ablation-{name}.pt'
    checkpoint.parent.mkdir(exist_ok=True)
    s = learn.summary()
    learn.fit(r.epochs, cbs=CheckpointCB(checkpoint, change=change, **r._asdict()))
    preds,targs = learn.tta(flip_views)
    row = learn.history[-1]
    return dict(
        change=change, model=r.model, seed=seed, epochs=r.epochs, opt=r.opt, lr=r.lr,
        accuracy=round(row['valid_accuracy'], 5),
        tta_accuracy=round((preds.argmax(1)==targs).float().mean().item(), 5),
        train_accuracy=round(row['train_accuracy'], 5),
        loss=round(row['valid_loss'], 5),
        parameters=s.params, macs=s.macs,
        seconds=round(sum(o['train_seconds'] for o in learn.history), 1),
        threads=torch.get_num_threads(),
        amp=precision(),
        torch=torch.__version__, date=time.strftime('%Y-%m-%d'))

def precision(): return str(amp_dtype('cpu') or torch.float32).removeprefix('torch.')

def done():
    if not out.exists(): return set()
    lines = [json.loads(o) for o in out.read_text().splitlines()]
    return {(o['change'], o['seed'], o['epochs'], o['lr']) for o in lines if o['amp']==precision()}

def main(part=0, parts=1):
    keep_freed_memory()
    if parts>1: torch.set_num_threads(1)
    splits = hold_out(fashion_tensors(), 5000)
    rates = [('without Muon (AdamW)', 0, dict(epochs=1, lr=lr)) for lr in (5e-3,1e-2,2e-2,4e-2)]
    work = rates + [(change, seed, {}) for seed in range(3) for change in changes]
    for i,(change,seed,fields) in enumerate(work):
        r = get_recipe('fast942')._replace(**changes[change] | fields)
        if i%parts!=part or (change, seed, r.epochs, r.lr) in done(): continue
        line = train(change, seed, splits, **fields)
        print(line, flush=True)
        with out.open('a') as f: f.write(json.dumps(line)+'\n')

if __name__=='__main__': main(*map(int, sys.argv[1:]))
