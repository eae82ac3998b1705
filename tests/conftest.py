import gzip, struct, pytest, numpy as np, torch
from pathlib import Path
from torch import nn
from miniai.core import set_seed
from miniai.datasets import DataLoaders

FULL = Path('/usr/share/datasets/fashion-mnist')

def pytest_configure(config): config.addinivalue_line('markers', 'full: needs the full Fashion-MNIST in the system folder')

def pytest_collection_modifyitems(items):
    if FULL.is_dir(): return
    for o in items:
        if 'full' in o.keywords: o.add_marker(pytest.mark.skip(reason=f'{FULL} is not there'))

def idx_bytes(a, ndim=None): return struct.pack(f'>BBBB{a.ndim}I', 0, 0, 8, ndim or a.ndim, *a.shape) + a.tobytes()

@pytest.fixture
def idx_folder(tmp_path):
    "A folder with a sound, tiny data set: 40 training and 20 test images"
    rng = np.random.default_rng(0)
    d = tmp_path/'data'
    d.mkdir()
    for stem,n in ('train',40), ('t10k',20):
        x,y = rng.integers(0, 256, (n,28,28), dtype=np.uint8), np.arange(n, dtype=np.uint8)%10
        (d/f'{stem}-images-idx3-ubyte.gz').write_bytes(gzip.compress(idx_bytes(x)))
        (d/f'{stem}-labels-idx1-ubyte.gz').write_bytes(gzip.compress(idx_bytes(y)))
    return d

def toy_dls(bs=8, n=32, seed=0):
    x,y = torch.arange(n*4).reshape(n,4).float()/(n*4), torch.arange(n)%3
    return DataLoaders.from_tensors({'train': (x,y), 'valid': (x[:n//2],y[:n//2])}, bs, seed=seed)

def toy_model(seed=0):
    "Small, but with all there is to restore: weights, batch norm, dropout, a non-persistent buffer, a frozen norm"
    set_seed(seed)
    m = nn.Sequential(nn.Linear(4,6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(.3), nn.Linear(6,6), nn.BatchNorm1d(6), nn.Linear(6,3))
    m.register_buffer('scratch', torch.zeros(2), persistent=False)
    m[5].eval()
    return m
