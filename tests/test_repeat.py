"Exact repeat: the same seed on the same machine gives the same losses, bit for bit"
import os, subprocess, sys, pytest, torch.nn.functional as F
from torch import nn
from miniai.core import *
from miniai.datasets import *
from miniai.learner import *

class Losses(Callback):
    def __init__(self): self.seen = []
    def after_loss(self, learn): self.seen.append(learn.loss.item().hex())

def losses(workers=0, cbs=(), seed=7):
    "Two epochs on 512 images, read the lesson's way"
    dd = fashion_mnist(sample=True)
    sizes = zip(dd.items(), (512,128))
    dd = {k: d.select(range(n)).with_transform(tensor_images) for (k,d),n in sizes}
    dls = DataLoaders.from_dd(dd, 64, num_workers=workers, seed=seed)
    set_seed(seed)
    layers = nn.Flatten(), nn.Linear(784,32), nn.ReLU(), nn.Dropout(.2), nn.Linear(32,10)
    model = nn.Sequential(*layers)
    log = Losses()
    TrainLearner(model, dls, F.cross_entropy, lr=.2, cbs=[DeviceCB('cpu'), log, *cbs]).fit(2)
    return log.seen

@pytest.fixture(scope='module')
def plain(): return losses()

def test_other_seeds_differ(plain):
    assert len(plain)==2*(8+2) and len(set(plain))==len(plain)
    for seed in 8,9:
        other = losses(seed=seed)
        assert len(other)==len(plain) and not set(other) & set(plain)

def test_again(plain): assert losses()==plain
def test_two_workers(plain): assert losses(workers=2)==plain
def test_metrics_and_progress(plain):
    assert losses(cbs=[MetricsCB(Accuracy()), ProgressCB(mode='lines', every=0)])==plain

CODE = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_repeat import *
cbs = [MetricsCB(Accuracy()), ProgressCB(plot=True, every=0)]
print('|'+' '.join(losses(cbs=cbs))+'|')
"""

def test_in_a_script(plain):
    res = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, check=True)
    assert res.stdout.split('|')[1].split()==plain

def test_in_a_notebook(plain):
    nbformat,nbclient = pytest.importorskip('nbformat'),pytest.importorskip('nbclient')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3').execute()
    outs = nb.cells[0].outputs
    text = ''.join(o.text for o in outs if o.output_type=='stream')
    assert text.split('|')[1].split()==plain
    data = [o.get('data', {}) for o in outs]
    assert any('image/png' in d for d in data)
    assert any('<table' in d.get('text/html', '') for d in data)
