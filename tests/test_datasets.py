"Reading Fashion-MNIST: sources, faults, and the two kinds of loaders"
import gzip, pickle, time, pytest, numpy as np, torch
import miniai.datasets as m
from miniai.core import *
from miniai.datasets import *
from conftest import FULL, idx_bytes

IMAGES,LABELS = 'train-images-idx3-ubyte.gz','train-labels-idx1-ubyte.gz'

def refuses(folder, *words, exc=ValueError, f=fashion_arrays):
    with pytest.raises(exc) as e: f(folder)
    for w in words: assert w in str(e.value), f'{w!r} is not in: {e.value}'

def test_sound_folder(idx_folder):
    a = fashion_arrays(idx_folder)
    assert a['train'][0].shape==(40,28,28) and a['test'][1].shape==(20,)
    t = fashion_tensors(idx_folder, device='cpu')['train']
    assert t[0].shape==(40,1,28,28) and t[0].dtype==torch.uint8 and t[1].dtype==torch.int64
    dd = fashion_mnist(idx_folder)
    assert dd['train'].features['label'].names==class_names
    assert (np.stack([np.asarray(o) for o in dd['test']['image']])==a['test'][0]).all()

def test_truncated_gz(idx_folder):
    f = idx_folder/IMAGES
    f.write_bytes(f.read_bytes()[:-200])
    refuses(idx_folder, str(f), 'truncated', 'fresh download')

def test_damaged_gz(idx_folder):
    f = idx_folder/IMAGES
    b = bytearray(f.read_bytes())
    b[len(b)//2:len(b)//2+50] = bytes(50)
    f.write_bytes(b)
    refuses(idx_folder, str(f), '.gz')

def test_not_a_gz(idx_folder):
    (idx_folder/IMAGES).write_bytes(b'<html>404 not found</html>')
    refuses(idx_folder, IMAGES, 'not a sound .gz')

def test_empty_file(idx_folder):
    (idx_folder/IMAGES).write_bytes(b'')
    refuses(idx_folder, IMAGES, 'magic' )

@pytest.mark.parametrize('payload, words', [
    (b'\0\0\x0d\x03'+bytes(100), ['magic number is 0x00000d03', 'expected 0x00000803']),
    (b'\0\0\x08\x03'+bytes(5), ['header stops after 9 of 16']),
    (idx_bytes(np.zeros((40,28,28), np.uint8))[:-10], ['40×28×28 = 31360', 'holds 31350']),
    (idx_bytes(np.zeros((40,28,28), np.uint8))+b'123', ['holds 31363'])], ids=['magic','header','short','long'])
def test_payload(idx_folder, payload, words):
    (idx_folder/IMAGES).write_bytes(gzip.compress(payload))
    refuses(idx_folder, IMAGES, *words)

def test_label_out_of_range(idx_folder):
    y = np.zeros(40, np.uint8)
    y[3] = 10
    (idx_folder/LABELS).write_bytes(gzip.compress(idx_bytes(y)))
    refuses(idx_folder, LABELS, 'label 10 is out of range', '0 to 9')

def test_counts_differ(idx_folder):
    (idx_folder/LABELS).write_bytes(gzip.compress(idx_bytes(np.zeros(39, np.uint8))))
    refuses(idx_folder, '40 images', '39 labels')

def test_missing_file_and_folder(idx_folder, monkeypatch):
    (idx_folder/LABELS).unlink()
    refuses(idx_folder, LABELS, 'missing', 'MINIAI_DATA', exc=FileNotFoundError)
    refuses('/nowhere', '/nowhere', 'the path given', 'dataset-fashion-mnist', exc=FileNotFoundError)
    monkeypatch.setenv('MINIAI_DATA', '/nowhere/else')
    refuses(None, '/nowhere/else', '$MINIAI_DATA', exc=FileNotFoundError)

@pytest.mark.parametrize('f', [fashion_arrays, fashion_mnist])
@pytest.mark.parametrize('offline', ['0','1'])
def test_no_data_anywhere(monkeypatch, tmp_path, f, offline):
    "Every place is named and the answer comes soon, though the hub's client would retry for 23 s"
    import datasets, huggingface_hub
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    monkeypatch.setattr(m, '_system', tmp_path/'nothing')
    monkeypatch.setattr(m, '_hub', 'miniai/no-such-data-set')
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', offline=='1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', offline=='1')
    def unreachable(*args, **kwargs): raise ConnectionError('no route')
    monkeypatch.setattr(huggingface_hub.get_session(), 'head', unreachable)
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    refuses(None, '$MINIAI_DATA (not set)', str(tmp_path/'nothing'), 'miniai/no-such-data-set', 'fashion_mnist(sample=True)', exc=FileNotFoundError, f=f)
    assert not waits
    assert datasets.config.HF_HUB_OFFLINE==huggingface_hub.constants.HF_HUB_OFFLINE==(offline=='1')

def test_hub(monkeypatch, tmp_path):
    import datasets, huggingface_hub
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    monkeypatch.setattr(m, '_system', tmp_path/'nothing')
    sample = fashion_mnist(sample=True)
    monkeypatch.setattr(datasets, 'load_dataset', lambda nm: sample)
    monkeypatch.setattr(huggingface_hub.get_session(), 'head', lambda *args, **kwargs: None)
    assert data_source().name=='Hugging Face hub'
    assert fashion_mnist() is sample
    assert all((a==b).all() for a,b in zip(fashion_arrays()['test'], fashion_arrays(sample=True)['test']))

def test_sources_in_order(monkeypatch, idx_folder):
    monkeypatch.setenv('MINIAI_DATA', 'sample')
    assert data_source().name=='sample' and data_source(idx_folder).folder==idx_folder and data_source('full').name!='sample'
    monkeypatch.setenv('MINIAI_DATA', str(idx_folder))
    assert data_source().folder==data_source('full').folder==idx_folder
    assert data_source(sample=True).name=='sample'

def test_sample_is_balanced_and_small():
    a = fashion_arrays(sample=True)
    assert [np.bincount(y).tolist() for _,y in a.values()]==[[400]*10, [100]*10]
    assert sum(f.stat().st_size for f in data_source(sample=True).folder.iterdir()) < 3e6

@pytest.mark.full
def test_full():
    a = fashion_arrays(FULL)
    assert [len(x) for x,_ in a.values()]==[60_000,10_000]
    assert pixel_stats(a['train'][0])==pytest.approx((.2860,.3530), abs=1e-4)

def rows(n): return [{'image': torch.full((1,2,2), float(i)), 'label': i} for i in range(n)]

@pytest.mark.parametrize('drop_last', [False, True])
def test_both_ways_give_the_same(drop_last):
    dd = fashion_mnist(sample=True).with_transform(tensor_images)
    kw = dict(batch_size=300, seed=5, drop_last=drop_last)
    slow,fast = DataLoaders.from_dd(dd, **kw),DataLoaders.from_tensors(fashion_tensors(sample=True, device='cpu'), **kw)
    first = [y for _,y in fast.train]
    assert len(first)==len(slow.train)==len(fast.train)==(13 if drop_last else 14) and sum(map(len, first))==(3900 if drop_last else 4000)
    next(iter(slow.train))
    for (xs,ys),(xf,yf) in zip(slow.train, fast.train, strict=True): assert torch.equal(xs,xf) and torch.equal(ys,yf)
    assert not all(torch.equal(a,b) for a,b in zip(first, (y for _,y in fast.train)))

@pytest.mark.parametrize('context', ['fork','spawn'])
def test_workers_are_honoured(context):
    dls = DataLoaders.from_dd({'train': rows(40), 'test': rows(10)}, 8, num_workers=2, seed=1, multiprocessing_context=context)
    assert dls.train.num_workers==2
    alone = DataLoaders.from_dd({'train': rows(40), 'test': rows(10)}, 8, seed=1)
    for a,b in zip(dls.train, alone.train, strict=True): assert torch.equal(a[0],b[0]) and torch.equal(a[1],b[1])

def test_splits_by_name():
    dls = DataLoaders.from_dd({'test': rows(3), 'validation': rows(2), 'train': rows(5)}, 1)
    assert [len(o) for o in (dls.train,dls.valid,dls.test)]==[5,2,3]
    dls = DataLoaders.from_dd({'test': rows(3), 'train': rows(5)}, 1)
    assert (len(dls.valid), dls.test)==(3,None)
    with pytest.raises(ValueError, match='one to three splits, got 4'): DataLoaders.from_dd({k: rows(1) for k in 'abcd'}, 1)

def test_picklable():
    x,y = pickle.loads(pickle.dumps(CollateDict('image','label')))(rows(3))
    assert x.shape==(3,1,2,2) and y.tolist()==[0,1,2]

def test_seed_governs_the_order():
    def order():
        set_seed(3)
        return torch.cat([y for _,y in DataLoaders.from_tensors({'train': (torch.zeros(50,1), torch.arange(50))}, 7).train])
    assert torch.equal(order(), order())

def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    for dls in DataLoaders.from_dd({'train': rows(9)}, 2, seed=0), DataLoaders.from_tensors({'train': (torch.zeros(9,1), torch.zeros(9))}, 2, seed=0): list(dls.train)
    assert torch.equal(state, torch.get_rng_state())

@pytest.mark.parametrize('bs', [0, -1, 2.5, None])
def test_batch_size(bs):
    for f in (lambda: DataLoaders.from_dd({'train': rows(4)}, bs), lambda: DataLoaders.from_tensors({'train': (torch.zeros(4,1), torch.zeros(4))}, bs)):
        with pytest.raises(ValueError, match=f'batch_size is {bs}, it has to be a whole number of at least 1'): f()

def test_small_faults():
    splits = fashion_tensors(sample=True, device='cpu')
    for n in (0, 4000):
        with pytest.raises(ValueError, match=f'Cannot hold out {n} of 4000'): hold_out(splits, n)
    with pytest.raises(ValueError, match='3 inputs but 2 targets'): TensorLoader(torch.zeros(3,1), torch.zeros(2), 1)
    with pytest.raises(ValueError, match='seed is -1'): set_seed(-1)
    with pytest.raises(TypeError, match='float'): pixel_stats(torch.zeros(3))
    with pytest.raises(ValueError, match='show_images'): show_image(torch.zeros(2,1,3,3))
    with pytest.raises(ValueError, match='do not fit on 1×2'): get_grid(3, 1, 2)

def test_hold_out_splits_without_overlap():
    x = torch.arange(100).reshape(100,1)
    s = hold_out({'train': (x,x[:,0]), 'test': (x,x)}, 30)
    assert sorted(torch.cat([s['train'][1], s['valid'][1]]).tolist())==list(range(100)) and len(s['valid'][0])==30

def test_nested_devices():
    from collections import namedtuple
    P = namedtuple('P', 'a b')
    b = to_device({'p': P(torch.ones(1), 'x'), 'l': [torch.ones(2)]}, 'meta')
    assert isinstance(b['p'], P) and b['p'].a.device.type==b['l'][0].device.type=='meta' and b['p'].b=='x'
