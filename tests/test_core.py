"Pictures, nested batches, seeds, random states"
import io, random, subprocess, sys
import pytest, matplotlib.pyplot as plt, numpy as np, torch
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler
from miniai.core import *
from miniai.datasets import DataLoaders

@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

def run(code, env=None):
    cmd = [sys.executable, '-c', code]
    return subprocess.run(cmd, env=env, capture_output=True, text=True, check=True).stdout

@pytest.mark.parametrize('module', ['core','learner'])
def test_import_is_light(module):
    "Neither pictures nor data are imported before they are needed"
    heavy = 'matplotlib.pyplot', 'torchvision', 'datasets', 'IPython', 'pandas'
    assert run(f'import sys, miniai.{module}\nprint([o for o in {heavy} if o in sys.modules])').strip()=='[]'

# Pictures

@pytest.mark.parametrize('shape, drawn', [
    ((5,6),(5,6)), ((1,5,6),(5,6)), ((5,6,1),(5,6)), ((3,5,6),(5,6,3)), ((4,5,6),(5,6,4)), ((5,6,3),(5,6,3))])
@pytest.mark.parametrize('kind', [torch.rand, np.random.rand, lambda *s: torch.rand(*s, requires_grad=True).bfloat16()])
def test_show_image_finds_the_channels(shape, drawn, kind):
    assert show_image(kind(*shape)).images[0].get_array().shape==drawn

def test_show_image_options():
    ax = show_image(torch.rand(4,4), title='T', figsize=(1,2), noframe=False, vmax=3)
    assert ax.get_title()=='T' and ax.axison and ax.figure.get_size_inches().tolist()==[1,2]
    assert ax.images[0].get_cmap().name=='gray' and ax.images[0].norm.vmax==3
    assert show_image(torch.rand(4,4), cmap='viridis').images[0].get_cmap().name=='viridis'

@pytest.mark.parametrize('wanted, drawn', [('viridis','gray'), ('gray_r','gray_r'), ('magma','magma')])
def test_images_are_gray_unless_another_map_is_set(wanted, drawn):
    "viridis is matplotlib's default, which nobody chose"
    with plt.rc_context({'image.cmap': wanted}): ax = show_image(torch.rand(4,4))
    assert ax.images[0].get_cmap().name==drawn

def test_subplots_gives_an_array():
    three = ({},(1,),[3,3]), (dict(nrows=2, ncols=3, imsize=2),(2,3),[6,4]), (dict(ncols=2, figsize=(5,1)),(2,),[5,1])
    for kw,shape,size in three:
        fig,axs = subplots(suptitle='S', **kw)
        assert axs.shape==shape and fig.get_size_inches().tolist()==size and fig.get_suptitle()=='S'
    assert subplots(2, 2, sharex=True, squeeze=False, layout='tight')[1].shape==(2,2)

@pytest.mark.parametrize('n, kw, shape', [
    (7,{},(2,4)), (7,{'nrows':2},(2,4)), (7,{'ncols':3},(3,3)), (1,{},(1,1)), (6,{'nrows':3,'ncols':3},(3,3))])
def test_get_grid(n, kw, shape):
    fig,axs = get_grid(n, title='T', imsize=1, **kw)
    assert axs.shape==(n,) and len(fig.axes)==shape[0]*shape[1] and fig.get_size_inches().tolist()==[shape[1],shape[0]]
    assert [o.axison for o in fig.axes]==[True]*n+[False]*(len(fig.axes)-n)
    assert fig.get_suptitle()=='T'

def test_grid_refuses():
    with pytest.raises(ValueError, match='must be at least 3, got 1×2'): get_grid(3, 1, 2)
    with pytest.raises(ValueError, match='at least one'): get_grid(0)
    with pytest.raises(ValueError, match='shorter'): show_images(torch.rand(3,1,4,4), titles='ab')

def test_show_images():
    show_images(torch.rand(3,1,4,4), nrows=1, titles=range(3), title='T', figsize=(6,1), vmax=2)
    fig = plt.gcf()
    assert [o.get_title() for o in fig.axes]==['0','1','2'] and fig.get_suptitle()=='T'
    assert fig.get_size_inches().tolist()==[6,1] and all(o.images[0].norm.vmax==2 for o in fig.axes)

CELLS = {
    "from miniai.all import *; import torch; x = torch.rand(2,1,4,4); show_images(x)": 1,
    "for _ in range(2): show_images(x)\nprint('done')": 2,
    "show_images(x);": 1,
    "show_image(x[0])": 1,
    "rec = RecorderCB(); rec.recs = {'lr': [1,2]}; rec.plot()": 1}

def run_notebook(cells, **kwargs):
    "The outputs of each cell"
    nbformat,nbclient = pytest.importorskip('nbformat'),pytest.importorskip('nbclient')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in cells])
    nbclient.NotebookClient(nb, timeout=120, kernel_name='python3', **kwargs).execute()
    return [cell.outputs for cell in nb.cells]

def test_a_notebook_shows_each_picture_once():
    outputs = run_notebook(CELLS)
    pictures = [sum('image/png' in o.get('data', {}) for o in os) for os in outputs]
    assert pictures==list(CELLS.values())

# Memory

FAILS = '''
import torch
from weakref import ref
from miniai.core import clean_mem
def fails():
    global gone
    big = torch.zeros(9)
    gone = ref(big)
    1/0
def fails_again():
    try: fails()
    finally: int('x')
'''

def test_clean_mem_frees_what_an_error_holds():
    cells = [FAILS]
    for f in 'fails','fails_again': cells += [f'{f}()', 'print(gone() is None)', 'clean_mem(); print(gone() is None)']
    outputs = run_notebook(cells, allow_errors=True)
    texts = [''.join(o.get('text', '') for o in os).strip() for os in outputs[1:]] # a line may come in two parts
    assert texts==['','False','True']*2
    clean_mem()  # without an error

# Nested batches

def test_nested_devices():
    P = namedtuple('P', 'a b')
    b = to_device({'p': P(torch.ones(1), 'x'), 'l': [torch.ones(2)]}, 'meta')
    assert isinstance(b['p'], P) and b['p'].a.device.type==b['l'][0].device.type=='meta' and b['p'].b=='x'

def test_to_cpu():
    x = torch.ones(2, requires_grad=True)
    a,(b,c,d) = to_cpu((x*2, [x.half(), x.double(), None]))
    assert not a.requires_grad and (b.dtype,c.dtype,d)==(torch.float32,torch.float64,None)

# Seeds and random states

def draws(): return random.random(), np.random.rand(), torch.rand(1).item()

def test_set_seed():
    def at(seed): return set_seed(seed) or draws()
    assert at(1)==at(1)==at(np.int64(1)) and not set(at(1)) & set(at(2))
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match='Seed must be between 0'): set_seed(seed)
    set_seed(1, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    set_seed(1)
    assert not torch.are_deterministic_algorithms_enabled()

def gen(seed): return torch.Generator().manual_seed(seed)
class Owner(Dataset):
    "A dataset with a generator of its own, which is its own business"
    def __init__(self): self.generator = gen(9)
    def __len__(self): return 6
    def __getitem__(self, i): return i
def shuffled(seed, bs=2): return BatchSampler(RandomSampler(range(6), generator=gen(seed)), bs, False)
loaders = {
    'sampler': lambda: DataLoader(Owner(), sampler=RandomSampler(range(6), generator=gen(1))),
    'batch_sampler': lambda: DataLoader(Owner(), batch_sampler=shuffled(1)),
    'loader': lambda: DataLoader(Owner(), shuffle=True, generator=gen(1))}
@dataclass(slots=True)
class DLs:
    train: object
    valid: object = None
DLTuple = namedtuple('DLTuple', 'train valid')
kinds = {'DataLoaders': DataLoaders, 'namedtuple': DLTuple, 'slots': DLs,
         'namespace': lambda t,v: SimpleNamespace(train=t, valid=v)}

def epoch(dl): return [b.tolist() for b in dl]

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('loader', loaders)
def test_generators_are_found(kind, loader):
    train,valid = loaders[loader](), DataLoader(Owner(), generator=gen(3))
    dls = kinds[kind](train, valid)
    epoch(train)
    state = random_state(dls)
    assert len(state['loaders'])==2
    first = epoch(train), valid.generator.get_state(), draws()
    epoch(valid)
    set_random_state(state, dls)
    assert epoch(train)==first[0] and torch.equal(valid.generator.get_state(), first[1]) and draws()==first[2]

@pytest.mark.parametrize('dls', [
    None, [[1],[2]], DLs(range(3), iter([])), DLTuple('ab', (x for x in [])), DLs(torch.ones(3), map(int, '1')),
    SimpleNamespace(train={1}, valid=io.StringIO())], ids=lambda o: type(o).__name__)
def test_any_iterable_will_do(dls):
    state = random_state(dls)
    assert state['loaders']==[]
    set_random_state(state, dls)

def test_state_can_be_saved():
    dls = DataLoaders(DataLoader(range(6), generator=gen(1)))
    state = random_state(dls)
    f = io.BytesIO()
    torch.save(state, f)
    before = draws()
    f.seek(0)
    set_random_state(torch.load(f, weights_only=True), dls)
    assert draws()==before

def test_number_of_generators_differs():
    two = DataLoaders(DataLoader(range(6), generator=gen(1)), DataLoader(range(6), generator=gen(2)))
    one = DataLoaders(DataLoader(range(6), generator=gen(5)))
    state = random_state(two)
    with pytest.raises(ValueError, match='must have 2 generators, as in the state, got 1'):
        set_random_state(state, one)
