"Draw the balanced sample of Fashion-MNIST that ships inside the package."
import gzip, struct
import numpy as np
from pathlib import Path
from fastcore.script import call_parse
from miniai.datasets import fashion_arrays

def write_idx(path, a):
    "Write the uint8 array `a` as a gzipped IDX file, the same bytes at every run"
    header = struct.pack(f'>BBBB{a.ndim}I', 0, 0, 8, a.ndim, *a.shape)
    with open(path, 'wb') as f, gzip.GzipFile('', 'wb', 9, f, mtime=0) as z:
        z.write(header + a.tobytes())

def balanced(labels, per_class, rng):
    "Indices of `per_class` random items of each class, shuffled"
    idx = [rng.choice(np.flatnonzero(labels==c), per_class, replace=False) for c in range(10)]
    return rng.permutation(np.concatenate(idx))

@call_parse
def main(
    path:str, # Folder with the four full IDX .gz files
    out:str='miniai/sample', # Folder to write the sample to
    seed:int=2023 # Seed of the draw
):
    "Write 400 training and 100 test images of each class"
    rng = np.random.default_rng(seed)
    for split, stem, n in ('train','train',400), ('test','t10k',100):
        images, labels = fashion_arrays(path)[split]
        idx = balanced(labels, n, rng)
        write_idx(Path(out)/f'{stem}-images-idx3-ubyte.gz', images[idx])
        write_idx(Path(out)/f'{stem}-labels-idx1-ubyte.gz', labels[idx])
