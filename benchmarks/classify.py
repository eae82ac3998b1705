"""What `learn.classify` of one image costs, against the model alone: milliseconds and memory

    python benchmarks/classify.py

The model is timm's resnet50, or miniai's `wide` where timm is not installed. It has taken a step
of AdamW, so there are gradients and the optimizer's state, which nothing should copy. The ways
take turns; the table gives medians. The extra memory of a call is its peak above what was held
before, read from /proc, or from CUDA on a GPU. Leave the machine alone meanwhile."""
import ctypes
import statistics
import time
from functools import partial
from pathlib import Path
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import optim
from miniai.all import DataLoaders, DeviceCB, TrainLearner, def_device, set_seed, wide

SIZE,N_IMAGES,N_CLASSES = 224,64,10

def make_model():
    try: import timm
    except ImportError:
        return 'wide', partial(wide, ni=3, n_out=N_CLASSES, size=SIZE)
    return 'resnet50', partial(timm.create_model, 'resnet50', num_classes=N_CLASSES)

def make_learner(model):
    "A learner that has taken a step of AdamW, with a validation set of bytes"
    x = torch.randint(256, (N_IMAGES,3,SIZE,SIZE), dtype=torch.uint8)
    y = torch.arange(N_IMAGES)%N_CLASSES
    dls = DataLoaders.from_tensors({'train': (x[:8],y[:8]), 'valid': (x,y)}, 4, seed=0)
    learn = TrainLearner(model, dls, F.cross_entropy, 1e-4, DeviceCB(), optim.AdamW)
    learn.logger = lambda row: None
    learn.fit(1, valid=False)
    return learn

@torch.no_grad()
def predict(model, x): return model(x.to(def_device).float()[None]/255).softmax(1).cpu()

def milliseconds(f):
    start = time.perf_counter()
    f()
    return 1000*(time.perf_counter()-start)

def kilobytes(key):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(l.split()[1]) for l in lines if l.startswith(key))

def extra_megabytes(f):
    "Peak of the memory while `f` runs, above what was held before; None where it cannot be read"
    if def_device=='cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        f()
        return (torch.cuda.max_memory_allocated()-before)/2**20
    if not Path('/proc/self/clear_refs').exists(): return
    ctypes.CDLL(None).malloc_trim(0)  # hand back what earlier calls have freed
    before = kilobytes('VmRSS:')
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts again from here
    f()
    return (kilobytes('VmHWM:')-before)/1024

def measure(rounds=15)->list:
    "A row for each way to predict one image"
    set_seed(0)
    name,make = make_model()
    learn = make_learner(make())
    model = learn.model.eval()
    im = torch.randint(256, (3,SIZE,SIZE), dtype=torch.uint8)
    pil = Image.fromarray(im.permute(1,2,0).numpy())
    ways = {'model alone': partial(predict, model, im),
            'classify a tensor': partial(learn.classify, im),
            'classify a PIL image': partial(learn.classify, pil)}
    times = {way: [] for way in ways}
    for i in range(rounds+2):
        for way,f in ways.items():
            ms = milliseconds(f)
            if i>1: times[way].append(ms)
    alone = statistics.median(times['model alone'])
    rows = []
    for way,f in ways.items():
        ms = statistics.median(times[way])
        mb = extra_megabytes(f)
        rows.append({'model': name, 'way': way, 'milliseconds': round(ms, 1),
                     'times the model': round(ms/alone, 2),
                     'extra MB': None if mb is None else round(mb)})
    return rows

if __name__=='__main__': print(pd.DataFrame(measure()).to_string(index=False))
