"Reading Fashion-MNIST: sources, faults, and the two kinds of loaders"
import gzip, os, pickle, time, warnings
import pytest, numpy as np, torch, torch.nn.functional as F
import miniai.datasets as m
from functools import partial
from PIL import Image
from torch import nn
from torch.utils.data import SequentialSampler
from miniai.core import random_state, set_random_state, set_seed
from miniai.datasets import *
from miniai.init import BatchTransformCB
from miniai.learner import TrainLearner
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

def cut(b): return b[:-200]
def overwritten(b): return b[:len(b)//2]+bytes(50)+b[len(b)//2+50:]
def not_gz(b): return b'<html>404 not found</html>'
def empty(b): return b''
@pytest.mark.parametrize('damage, msg', [
    (cut,'truncated'), (overwritten,'.gz'), (not_gz,'not a valid .gz'),
    (empty,'truncated')])
def test_damaged_gz(idx_folder, damage, msg):
    f = idx_folder/IMAGES
    f.write_bytes(damage(f.read_bytes()))
    refuses(idx_folder, str(f), msg, 'fresh download')

@pytest.mark.parametrize('payload, words', [
    (b'\0\0\x0d\x03'+bytes(100), ['magic number is 0x00000d03', 'expected 0x00000803']),
    (b'\0\0\x08\x03'+bytes(5), ['not a valid .gz file, or truncated']),
    (idx_bytes(np.zeros((40,28,28), np.uint8))[:-10], ['[40, 28, 28]', 'has 31350 bytes']),
    (idx_bytes(np.zeros((40,28,28), np.uint8))+b'123', ['[40, 28, 28]', 'has 31363 bytes'])],
    ids=['magic','header','short','long'])
def test_payload(idx_folder, payload, words):
    (idx_folder/IMAGES).write_bytes(gzip.compress(payload))
    refuses(idx_folder, str(idx_folder/IMAGES), *words)

TEST_IMAGES = IMAGES.replace('train', 't10k')
@pytest.mark.parametrize('name, n, h, w', [
    (IMAGES,40,32,32), (IMAGES,40,28,27), (TEST_IMAGES,20,14,56)])
@pytest.mark.parametrize('f', [fashion_arrays, fashion_mnist, fashion_tensors])
def test_size_of_images(idx_folder, name, n, h, w, f):
    (idx_folder/name).write_bytes(gzip.compress(idx_bytes(np.zeros((n,h,w), np.uint8))))
    refuses(idx_folder, str(idx_folder/name), f'must hold images of 28×28, got {h}×{w}', f=f)

def fifo(f): os.mkfifo(f)
def loop(f): f.symlink_to(f)
def dangling(f): f.symlink_to('nowhere')
def socket_file(f):
    import socket
    os.chdir(f.parent) # the path of a socket must be short
    socket.socket(socket.AF_UNIX).bind(f.name)
@pytest.mark.parametrize('make', [os.mkdir, fifo, loop, dangling, socket_file])
@pytest.mark.parametrize('name', [IMAGES, LABELS])
def test_not_a_file(idx_folder, make, name, monkeypatch):
    "No hang on a pipe, and no error without the path"
    monkeypatch.chdir(idx_folder)
    f = idx_folder/name
    f.unlink()
    make(f)
    refuses(idx_folder, str(f), 'not a regular file', exc=FileNotFoundError)
    refuses(f, str(f), 'not a regular file', exc=FileNotFoundError, f=partial(load_idx, ndim=3))

def test_read_error_names_the_path(idx_folder, monkeypatch):
    def read(*args): raise OSError(5, 'Input/output error')
    monkeypatch.setattr(gzip.GzipFile, 'read', read)
    refuses(idx_folder, str(idx_folder/IMAGES), 'Input/output error')

def test_label_out_of_range(idx_folder):
    y = np.zeros(40, np.uint8)
    y[3] = 10
    (idx_folder/LABELS).write_bytes(gzip.compress(idx_bytes(y)))
    refuses(idx_folder, LABELS, 'labels must be 0 to 9, got 10')

def test_counts_differ(idx_folder):
    (idx_folder/LABELS).write_bytes(gzip.compress(idx_bytes(np.zeros(39, np.uint8))))
    refuses(idx_folder, '40 images', '39 labels', "don't belong together")

def test_missing_file_and_folder(idx_folder, monkeypatch):
    (idx_folder/LABELS).unlink()
    refuses(idx_folder, LABELS, 'missing', 'MINIAI_DATA', exc=FileNotFoundError)
    refuses('/nowhere', '/nowhere', 'dataset-fashion-mnist', exc=FileNotFoundError)
    monkeypatch.setenv('MINIAI_DATA', '/nowhere/else')
    refuses(None, '/nowhere/else', exc=FileNotFoundError)

@pytest.mark.parametrize('f', [fashion_arrays, fashion_mnist])
@pytest.mark.parametrize('offline', ['0','1'])
def test_no_data_anywhere(monkeypatch, tmp_path, f, offline):
    "Every place is named and the answer comes soon, though the hub's client would retry for 23 s"
    import datasets, huggingface_hub
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    monkeypatch.setattr(m, 'system_folder', tmp_path/'nothing')
    monkeypatch.setattr(m, 'hub_name', 'miniai/no-such-data-set')
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', offline=='1')
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', offline=='1')
    def unreachable(*args, **kwargs): raise ConnectionError('no route')
    monkeypatch.setattr(huggingface_hub.get_session(), 'head', unreachable)
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    refuses(None, '$MINIAI_DATA (not set)', str(tmp_path/'nothing'), 'miniai/no-such-data-set',
            'fashion_mnist(sample=True)', 'HF_HUB_OFFLINE=1', exc=FileNotFoundError, f=f)
    assert not waits

def test_hub(monkeypatch, tmp_path):
    import datasets, huggingface_hub
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    monkeypatch.setattr(m, 'system_folder', tmp_path/'nothing')
    sample = fashion_mnist(sample=True)
    monkeypatch.setattr(datasets, 'load_dataset', lambda nm: sample)
    monkeypatch.setattr(huggingface_hub.get_session(), 'head', lambda *args, **kw: None)
    assert data_source().name=='Hugging Face hub'
    assert fashion_mnist() is sample
    from_hub,from_files = fashion_arrays()['test'],fashion_arrays(sample=True)['test']
    for a,b in zip(from_hub, from_files): assert (a==b).all()

def test_sources_in_order(monkeypatch, idx_folder):
    monkeypatch.setenv('MINIAI_DATA', 'sample')
    assert data_source().name=='sample' and data_source('full').name!='sample'
    assert data_source(idx_folder).folder==idx_folder
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
    slow = DataLoaders.from_dd(dd, **kw)
    fast = DataLoaders.from_tensors(fashion_tensors(sample=True, device='cpu'), **kw)
    first = [y for _,y in fast.train]
    assert len(first)==len(slow.train)==len(fast.train)==(13 if drop_last else 14)
    assert sum(map(len, first))==(3900 if drop_last else 4000)
    next(iter(slow.train))
    for (xs,ys),(xf,yf) in zip(slow.train, fast.train, strict=True):
        assert torch.equal(xs,xf) and torch.equal(ys,yf)
    assert not all(torch.equal(a,b) for a,b in zip(first, (y for _,y in fast.train)))

@pytest.mark.parametrize('context', ['fork','spawn'])
def test_workers_are_honoured(context):
    dd = {'train': rows(40), 'test': rows(10)}
    dls = DataLoaders.from_dd(dd, 8, num_workers=2, seed=1, multiprocessing_context=context)
    assert dls.train.num_workers==2
    alone = DataLoaders.from_dd(dd, 8, seed=1)
    for a,b in zip(dls.train, alone.train, strict=True):
        assert torch.equal(a[0],b[0]) and torch.equal(a[1],b[1])

def split(n): return torch.zeros(n,1), torch.zeros(n)
def by_dd(sizes, **kw):
    return DataLoaders.from_dd({k: rows(n) for k,n in sizes.items()}, 1, **kw)
def by_tensors(sizes, **kw):
    return DataLoaders.from_tensors({k: split(n) for k,n in sizes.items()}, 1, **kw)
ways = {'from_dd': by_dd, 'from_tensors': by_tensors}

@pytest.mark.parametrize('way', ways)
@pytest.mark.parametrize('splits, sizes', [
    (dict(test=3, validation=2, train=5), (5,2,3)), (dict(train=5, val=2, test=3), (5,2,3)),
    (dict(train=5, dev=2, test=3), (5,2,3)),
    (dict(test=3, training=5), (5,3,None)), (dict(training=5, valid=2), (5,2,None)),
    (dict(train=5), (5,None,None)), (dict(valid=2, test=3), (None,2,3)),
    (dict(test=3), (None,3,None))])
def test_splits_by_name(way, splits, sizes):
    dls = ways[way](splits)
    assert tuple(o and len(o) for o in (dls.train,dls.valid,dls.test))==sizes
    assert type(dls.valid and dls.valid.sampler) in (type(None), SequentialSampler)
    assert dls.train is None or isinstance(dls.train.sampler, SeededSampler)

@pytest.mark.parametrize('way', ways)
def test_other_splits_are_refused(way):
    for splits,msg in [
        (dict(train=5, holdout=2), "got 'holdout'"),
        (dict(train=5, holdout=2), 'one of train, training, valid, val, validation, dev, test'),
        (dict(a=1, b=1, c=1, d=1), "got 'a'"),
        (dict(train=5, training=5, test=2), 'one train split'),
        (dict(train=5, val=2, dev=2), 'one valid split'), ({}, 'Splits must have names')]:
        with pytest.raises(ValueError, match=msg): ways[way](splits)
    with pytest.raises(ValueError, match='Splits must have names.*got'):
        DataLoaders.from_dd(rows(3), 1)

def order(dl): return torch.cat([y for _,y in dl]).tolist()

def test_own_sampler():
    dd = {'train': rows(9), 'valid': rows(4)}
    dls = DataLoaders.from_dd(dd, 2, sampler=[8,1,1,3])
    assert order(dls.train)==[8,1,1,3] and order(dls.valid)==[0,1,2,3]

def test_own_shuffle():
    dd = {'train': rows(50), 'valid': rows(4)}
    assert order(DataLoaders.from_dd(dd, 7, shuffle=False).train)==list(range(50))
    def shuffled(**kw): return order(DataLoaders.from_dd(dd, 7, seed=1, **kw).train)
    assert shuffled(shuffle=True)==shuffled()!=list(range(50))

def test_own_collate_fn():
    dd = {'train': rows(4), 'valid': [object()]*2}
    dls = DataLoaders.from_dd(dd, 2, collate_fn=len, pin_memory_device='')
    assert list(dls.train)==[2,2] and list(dls.valid)==[2]

def test_rows_that_are_tuples():
    dd = {'valid': [(torch.zeros(2), i) for i in range(3)]}
    xb,yb = next(iter(DataLoaders.from_dd(dd, 3).valid))
    assert xb.shape==(3,2) and yb.tolist()==[0,1,2]

def test_vocab():
    from datasets import ClassLabel, Dataset, Features, Value
    features = Features(image=Value('int64'), label=ClassLabel(names=['cat','dog']),
                        breed=ClassLabel(names=['a','b','c']))
    ds = Dataset.from_dict(dict(image=[1,2], label=[0,1], breed=[0,2]), features=features)
    for dd in ({'train': ds, 'test': ds}, {'val': ds}):
        assert DataLoaders.from_dd(dd, 1).vocab==['cat','dog']
    assert fashion_mnist(sample=True)['train'].features['label'].names==class_names
    assert ways['from_tensors']({'train': 2}, vocab=class_names).vocab is class_names
    assert [f({'train': 2}).vocab for f in ways.values()]==[None,None]
    assert DataLoaders(None).vocab is None

@inplace
def double(b):
    "Twice the labels"
    b['label'] = [2*o for o in b['label']]

def test_inplace():
    b = {'label': [1,2]}
    assert double(b) is b and b=={'label': [2,4]}
    assert double.__name__=='double' and double.__doc__=='Twice the labels'
    assert pickle.loads(pickle.dumps(double)) is double
    dd = fashion_mnist(sample=True).with_transform(double)
    _,y = fashion_arrays(sample=True)['test']
    assert [o['label'] for o in dd['test'].select(range(3))]==[2*o for o in y[:3]]

def test_collate_functions():
    f = pickle.loads(pickle.dumps(collate_dict(rows(3))))
    x,y = f(rows(3))
    assert x.shape==(3,1,2,2) and y.tolist()==[0,1,2]
    b = pickle.loads(pickle.dumps(partial(collate_device, device='meta')))(rows(3))
    assert b['image'].device.type==b['label'].device.type=='meta'
    assert collate_device(rows(3))['label'].tolist()==[0,1,2]

def test_get_dls():
    train,valid = get_dls(rows(50), rows(9), bs=4, collate_fn=collate_dict(rows(1)))
    assert order(train)!=sorted(order(train))==list(range(50))
    assert [len(y) for _,y in valid]==[8,1]
    assert DataLoaders(*get_dls(rows(2), rows(2), 1)).valid.batch_size==2

def test_seed_governs_the_order():
    def shuffled(seed):
        set_seed(seed)
        splits = {'train': (torch.zeros(50,1), torch.arange(50))}
        return order(DataLoaders.from_tensors(splits, 7).train)
    assert shuffled(3)==shuffled(3)!=shuffled(4)

def test_loading_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    for f in ways.values(): list(f({'train': 9}, seed=0).train)
    assert torch.equal(state, torch.get_rng_state())

@pytest.mark.parametrize('bs', [0, -1, 2.5])
def test_batch_size(bs):
    with pytest.raises(ValueError, match='batch_size should be a positive integer'):
        DataLoaders.from_dd({'train': rows(4)}, bs)
    msg = f'batch_size must be a whole number of at least 1, got {bs}'
    with pytest.raises(ValueError, match=msg): DataLoaders.from_tensors({'train': split(4)}, bs)

def test_inputs_and_targets_of_one_length():
    with pytest.raises(ValueError, match='match in length, got 3 and 2'):
        TensorLoader(torch.zeros(3,1), torch.zeros(2), 1)

@pytest.mark.parametrize('n, msg', [
    (.2,'whole number of at least 1, got 0.2'), (0,'whole number of at least 1, got 0'),
    (36,'less than the 36 training images, got 36')])
def test_hold_out_wants_a_whole_number(n, msg):
    x = torch.rand(36, 2)
    with pytest.raises(ValueError, match=f'n must be .*{msg}'): hold_out({'train': (x,x)}, n)

def test_hold_out_splits_without_overlap():
    x = torch.arange(100).reshape(100,1)
    s = hold_out({'train': (x,x[:,0]), 'test': (x,x)}, 30)
    assert sorted(torch.cat([s['train'][1], s['valid'][1]]).tolist())==list(range(100))
    assert len(s['valid'][0])==30 and s['test'][0] is x

def test_a_transform_in_place_does_not_change_the_data():
    x = torch.rand(36,1,8,8)
    splits = {'train': (x, torch.arange(36)%3), 'valid': (x, torch.arange(36)%3)}
    before = x.clone()
    cb = BatchTransformCB(inplace(lambda b: b[0].sub_(.5)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64,3))
    TrainLearner(model, DataLoaders.from_tensors(splits, 8), F.cross_entropy, cbs=cb).fit(2)
    assert torch.equal(x, before)

# Images of any kind

SIZES = {'cat': (20,30), 'dog': (31,17)} # height and width

@pytest.fixture
def folder(tmp_path):
    "A folder of PNGs in color, by class, and the `DatasetDict` that it makes"
    import datasets
    root,cache = tmp_path/'ims',str(tmp_path/'c')
    for i,(c,(h,w)) in enumerate(SIZES.items()):
        (root/c).mkdir(parents=True)
        for j in range(6): Image.new('RGB', (w,h), (250*i, 10*j, 100)).save(root/c/f'{j}.png')
    def load(): return datasets.load_dataset('imagefolder', data_dir=str(root), cache_dir=cache)
    return root, load

def hf(ims, labels=None, image='image', label='label', names=('cat','dog'), **columns):
    "A `DatasetDict` of arrays with these columns"
    from datasets import ClassLabel, Dataset, DatasetDict, Image as ImageFeature
    if labels is None: labels = [0,1]*(len(ims)//2)
    d = {image: [ImageFeature().encode_example(im) for im in ims], label: labels}
    ds = Dataset.from_dict(d | columns).cast_column(image, ImageFeature())
    if names: ds = ds.cast_column(label, ClassLabel(names=list(names)))
    return DatasetDict(train=ds)

def grays(n=4, h=8, w=6): return [np.full((h,w), 20*i, np.uint8) for i in range(n)]
def colors(n=4, h=8, w=6): return [np.full((h,w,3), [20*i,9,200], np.uint8) for i in range(n)]

def test_image_folder(folder):
    dd = folder[1]()['train'].train_test_split(4, seed=0)
    dls = DataLoaders.from_dd(dd, 4, size=16, seed=3)
    (xb,yb),(xv,_) = next(iter(dls.train)),next(iter(dls.valid))
    assert xb.shape==xv.shape==(4,3,16,16) and xb.dtype==torch.float32 and yb.dtype==torch.int64
    assert dls.vocab==['cat','dog'] and len(dls.train.dataset)==8
    assert (xb[:,0,8,8]*255).round().int().tolist()==(250*yb).tolist() and xb.max()<1
    t = image_tensors(dd, size=16, device='cpu')
    fast = DataLoaders.from_tensors(t, 4, seed=3)
    assert t['test'][0].dtype==torch.uint8 and t['test'][0].shape==(4,3,16,16)
    assert fast.vocab==['cat','dog']
    slow = DataLoaders.from_dd(dd, 4, size=16, seed=3)
    for _ in range(2):
        for a,b in zip(slow.train, fast.train, strict=True):
            assert torch.equal(a[0],b[0]) and torch.equal(a[1],b[1])

def test_sizes_and_modes(folder):
    dd = folder[1]()
    for size,mode,shape in (16,None,(3,16,16)), ((12,20),'L',(1,12,20)), ([9,5],'RGB',(3,9,5)):
        assert image_tensors(dd, size, mode, device='cpu')['train'][0].shape[1:]==shape
        xb,_ = next(iter(DataLoaders.from_dd(dd, 3, size=size, mode=mode).train))
        assert xb.shape[1:]==shape
    with pytest.raises(ValueError, match='Splits must have names'): image_tensors(dd['train'], 16)

def test_crop_squish_and_pad():
    "A wide image, bright in the middle, made square; loaders know how"
    im = np.zeros((10,30,3), np.uint8)
    im[:,10:20] = 200
    im[:,[0,-1]] = 100
    dd = hf([im]*2)
    x = {}
    for how in ('crop','squish','pad'):
        splits = image_tensors(dd, size=30, device='cpu', resize=how)
        x[how] = splits['train'][0][0]
        dls = DataLoaders.from_dd(dd, 2, size=30, resize=how)
        assert next(iter(dls.train))[0][0].equal(x[how]/255)
        assert image_pixels(Image.fromarray(im), (30,30), resize=how).equal(x[how])
        assert dls.resize==DataLoaders.from_tensors(hold_out(splits, 1), 1).resize==how
    assert (x['crop'][:,:,5:-5]==200).all()
    assert (x['squish'][:,:,[0,-1]]==100).all() and (x['squish'][:,:,15]==200).all()
    assert x['pad'][:,10:20].permute(1,2,0).equal(torch.from_numpy(im))
    assert (x['pad'][:,:10]==0).all() and (x['pad'][:,20:]==0).all()
    assert DataLoaders().resize==fashion_tensors(sample=True).resize=='crop'

@pytest.mark.parametrize('kw, msg', [
    (dict(resize='stretch'), "resize must be 'crop', 'squish' or 'pad', got 'stretch'"),
    (dict(size=0), 'size must be a whole number of at least 1, got 0'),
    (dict(size=2.5), 'size must be a whole number of at least 1, got 2.5')])
def test_how_to_resize_is_checked_before_any_file_is_read(kw, msg):
    dd = hf(colors())
    for f in (image_tensors, partial(DataLoaders.from_dd, batch_size=2)):
        with pytest.raises(ValueError, match=f'^{msg}'): f(dd, **{'size': 8} | kw)

def test_every_way_turns_a_photo_upright(tmp_path):
    "Also one with a palette; `image_pixels` makes of the file what training made of it"
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees to the right
    im = np.zeros((4,6,3), np.uint8)
    im[:,0] = 200
    f = tmp_path/'photo.png'
    Image.fromarray(im).convert('P', palette=Image.Palette.ADAPTIVE).save(f, exif=exif)
    x = image_pixels(Image.open(f))
    assert x.permute(1,2,0).equal(torch.from_numpy(np.rot90(im, -1).copy()))
    from datasets import ClassLabel, Dataset, Features, Image as ImageFeature
    features = Features(image=ImageFeature(), label=ClassLabel(names=['a']))
    dd = {'train': Dataset.from_dict(dict(image=[str(f)], label=[0]), features=features)}
    assert image_tensors(dd, device='cpu')['train'][0][0].equal(x)
    for ds in (dd['train'], dd['train'].with_transform(tensor_images)):
        assert next(iter(DataLoaders.from_dd({'train': ds}, 1).train))[0][0].equal(x/255)
    assert tensor_images({'image': [Image.open(f)]})['image'][0].equal(x/255)

@pytest.mark.parametrize('ims, mode, c', [
    (grays,None,1), (grays,'RGB',3), (colors,None,3), (colors,'L',1)])
def test_mnist_and_cifar(ims, mode, c):
    "Columns of other names, kept by `as_tuple=False`; other columns are left out"
    dd = hf(ims(), image='img', label='fine', text=list('abcd'))
    x,y = image_tensors(dd, mode=mode, device='cpu')['train']
    assert x.shape==(4,c,8,6) and y.tolist()==[0,1,0,1]
    if mode is None: assert x[2].permute(1,2,0).squeeze().equal(torch.from_numpy(ims()[2]))
    dls = DataLoaders.from_dd(dd, 4, mode=mode, as_tuple=False, shuffle=False)
    b = next(iter(dls.train))
    assert [*b]==['img','fine'] and (b['img']*255).round().byte().equal(x)

def test_fashion_both_ways():
    dd = fashion_mnist(sample=True)
    t,f = image_tensors(dd, device='cpu'), fashion_tensors(sample=True, device='cpu')
    assert [*t]==['train','test'] and t.vocab==f.vocab==class_names
    for k in t: assert t[k][0].equal(f[k][0]) and t[k][1].equal(f[k][1])
    assert DataLoaders.from_tensors(hold_out(f, 10), 5).vocab==class_names
    assert hold_out({'train': t['train']}, 10).keys()=={'train','valid'}
    raw = next(iter(DataLoaders.from_dd(dd, 50, seed=1).train))
    own = next(iter(DataLoaders.from_dd(dd.with_transform(tensor_images), 50, seed=1).train))
    assert raw[0].equal(own[0]) and raw[1].equal(own[1])

def test_workers_decode_too():
    dd = hf(colors())
    a = next(iter(DataLoaders.from_dd(dd, 4, seed=1).train))
    worker = dict(num_workers=1, multiprocessing_context='spawn')
    b = next(iter(DataLoaders.from_dd(dd, 4, seed=1, **worker).train))
    assert a[0].equal(b[0]) and a[1].equal(b[1])

def test_columns():
    "They are found by their features; where there are two of a kind, you choose"
    from datasets import ClassLabel
    dd = hf(colors(), fine=[0,1,1,0]).cast_column('fine', ClassLabel(names=['a','b']))
    for f in (image_tensors, partial(DataLoaders.from_dd, batch_size=4)):
        with pytest.raises(ValueError, match=r"one ClassLabel column, got \['label', 'fine'\]"):
            f(dd)
        with pytest.raises(ValueError, match=r"got \[\] in .*one subfolder per class"):
            f(dd.select_columns(['image']))
        with pytest.raises(ValueError, match=r"one Image column, got \[\] in"):
            f(dd.select_columns(['label']), size=3)
        assert f(dd.select_columns(['image','fine'])).vocab==['a','b']

def test_labels_of_text():
    dd = hf(colors(), names=None, labels=['cat','dog','cat','dog'])
    with pytest.raises(ValueError, match=r"got \[\] in .*dd.class_encode_column\("):
        image_tensors(dd)
    assert image_tensors(dd.class_encode_column('label')).vocab==['cat','dog']

def test_sizes_that_differ(folder):
    d,load = folder
    msg = r"\d.png must have the first image's shape \(3, 20, 30\), got \(3, 31, 17\); pass size="
    def mixed_batch(dd): return list(DataLoaders.from_dd(dd, 12, shuffle=False).train)
    for f in (image_tensors, mixed_batch):
        with pytest.raises(ValueError, match=msg): f(load())
    mixed = hf([*colors(3), *grays(1)])
    with pytest.raises(ValueError, match=r"got \(1, 8, 6\).*mode='RGB' or 'L'"):
        image_tensors(mixed)
    assert image_tensors(mixed, mode='RGB')['train'][0].shape==(4,3,8,6)

def read_lazily(dd, size): return list(DataLoaders.from_dd(dd, 3, size=size).train)
@pytest.mark.parametrize('damage', [not_gz, lambda b: b[:60], empty], ids=['html','cut','empty'])
@pytest.mark.parametrize('read', [image_tensors, read_lazily])
def test_a_file_that_is_no_image(folder, damage, read):
    d,load = folder
    f = d/'dog'/'3.png'
    f.write_bytes(damage(f.read_bytes()))
    msg = rf'cannot be used \(1\):\n{f} \(.*\nReplace them, or pass skip_broken'
    with pytest.raises(ValueError, match=msg): read(load(), size=8)

def test_all_broken_files_are_named_at_once(folder):
    "In every split, before there is a tensor; the first ten, and how many there are"
    d,load = folder
    dd = load()['train'].train_test_split(4, seed=0)
    for c in SIZES:
        for j in range(1,6): (d/c/f'{j}.png').write_bytes(b'')
    (d/'dog'/'0.png').unlink()
    with pytest.raises(ValueError, match=r'cannot be used \(11\):') as e: image_tensors(dd, 8)
    assert str(e.value).count('.png (')==10

def test_broken_files_are_left_out(folder):
    d,load = folder
    for f in ('cat/0.png','dog/3.png'): (d/f).write_bytes(b'')
    with pytest.warns(UserWarning, match=r'\(2\):\n.*0.png .*\n.*3.png .*\nThey are left out'):
        x,y = image_tensors(load(), 8, device='cpu', skip_broken=True)['train']
    assert y.tolist()==[0]*5+[1]*5 and x[:,1,0,0].tolist()==[10,20,30,40,50,0,10,20,40,50]

def test_classes_without_images(folder):
    "A folder that is empty, or whose files `load_dataset` doesn't know, and a class only in test"
    d,load = folder
    (d/'.cache').mkdir()
    dd = load()
    def check(dd, empty):
        for f in (image_tensors, lambda dd, size: DataLoaders.from_dd(dd, 4, size=size)):
            with warnings.catch_warnings(record=True) as found: f(dd, size=8)
            assert [str(o.message) for o in found]==[
                f'These classes have no training image: {o}.' for o in empty]
    check(dd, [])
    (d/'bird').mkdir()
    check(dd, [['bird']])
    check({'training': dd['train'].select(range(6)), 'test': dd['train']}, [['bird','dog']])
    check({'test': dd['train'].select(range(6))}, [])

def test_other_images(folder):
    "A missing file, 16 bits, a palette, transparency, and a picture that a camera turned"
    d,load = folder
    dd,f = load(),d/'cat'/'0.png'
    f.unlink()
    with pytest.raises(ValueError, match=rf'{f} \(.*No such file'):
        image_tensors(dd, size=8)
    Image.fromarray(np.full((20,30), 40_000, np.uint16)).save(f)
    with pytest.raises(ValueError, match=rf'{f} \(.*I;16; scale its values'):
        image_tensors(load(), size=8)
    for mode in ('P','RGBA','LA','1','CMYK'):
        im = Image.new('RGB', (30,20), (255,255,255)).convert(mode)
        exif = Image.Exif()
        exif[0x112] = 6
        im.save(f := f.with_suffix('.jpg' if mode=='CMYK' else '.png'), exif=exif)
        row = {'test': load()['train'].select([0])}
        x = image_tensors(row, device='cpu')['test'][0]
        assert x.shape==(1, 1 if mode in ('LA','1') else 3, 30, 20) and (x==255).all(), mode
        f.unlink()

def test_a_transform_of_ones_own_stays():
    dd = fashion_mnist(sample=True).with_transform(tensor_images)
    with pytest.raises(ValueError, match=r'have a transform.*with_format\(None\)'):
        DataLoaders.from_dd(dd, 8, size=14)
    def pil(rows): return [o['image'].size for o in rows]
    dd = fashion_mnist(sample=True)
    assert next(iter(DataLoaders.from_dd(dd, 2, collate_fn=pil).train))==[(28,28)]*2

def test_pixel_stats_per_channel():
    gen = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (50,3,4,5), dtype=torch.uint8, generator=gen)
    x[:,1] //= 2
    means,stds = pixel_stats(x)
    f = x.double()/255
    assert means==pytest.approx(f.mean((0,2,3)).tolist())
    assert stds==pytest.approx(f.std((0,2,3), correction=0).tolist())
    assert pixel_stats(x.numpy())==(means,stds)
    assert pixel_stats(x[:,:1])==pixel_stats(x[:,0])==pytest.approx((means[0],stds[0]))

def test_palette_images_keep_their_colors():
    im = Image.new('RGB', (4,4), (250,10,20))
    palette = im.convert('P', palette=Image.Palette.ADAPTIVE)
    a,b = tensor_images({'image': [palette, im]})['image']
    assert torch.equal(a, b)

# Streams

def streams(n_train=200, n_test=30):
    "A `DatasetDict` of the sample, and the same as streams"
    dd = fashion_mnist(sample=True)
    dd['train'] = dd['train'].select(range(n_train))
    dd['test'] = dd['test'].select(range(n_test))
    return dd, {k: ds.to_iterable_dataset() for k,ds in dd.items()}

@pytest.mark.parametrize('as_tuple', [True, False])
def test_streams_give_what_rows_give(as_tuple):
    from datasets import IterableDatasetDict
    dd,plain = streams()
    args = dict(batch_size=16, as_tuple=as_tuple, size=14, mode='RGB', shuffle=False)
    rows = DataLoaders.from_dd(dd, **args)
    for splits in (plain, IterableDatasetDict(plain)):
        dls = DataLoaders.from_dd(splits, **args)
        assert dls.vocab==class_names
        for nm in ('train','valid'):
            for a,b in zip(getattr(dls, nm), getattr(rows, nm), strict=True):
                if not as_tuple: a,b = a.values(),b.values()
                assert all(map(torch.equal, a, b))
    x,y = image_tensors(plain, device='cpu')['test']
    assert x.equal(image_tensors(dd, device='cpu')['test'][0]) and y.dtype==torch.int64

def test_a_stream_is_shuffled_again_in_each_epoch():
    dd,plain = streams()
    dl = DataLoaders.from_dd(plain, 16, seed=1).train
    a,b = order(dl),order(dl)
    assert a!=b!=dd['train']['label'][:]!=a and sorted(a)==sorted(b)==sorted(dd['train']['label'])
    again = DataLoaders.from_dd(plain, 16, seed=1).train
    assert [order(again), order(again)]==[a,b]
    assert order(DataLoaders.from_dd(plain, 16, seed=2).train)!=a

def test_a_stream_goes_on_where_it_was():
    "Its order follows the loader's generator, which a checkpoint keeps"
    dls = DataLoaders.from_dd(streams()[1], 16, seed=1)
    order(dls.train)
    state = random_state(dls)
    b,c = order(dls.train),order(dls.train)
    resumed = DataLoaders.from_dd(streams()[1], 16, seed=5)
    set_random_state(state, resumed)
    assert [order(resumed.train), order(resumed.train)]==[b,c]

def test_workers_shuffle_streams_again_too():
    def two_epochs(persistent):
        kw = dict(num_workers=1, persistent_workers=persistent, seed=1)
        dl = DataLoaders.from_dd(streams()[1], 50, **kw).train
        return order(dl),order(dl)
    a,b = two_epochs(True)
    assert a!=b and sorted(a)==sorted(b) and two_epochs(False)==(a,b)

def test_streams_of_files_and_of_ones_own_rows(folder):
    import datasets
    d,load = folder
    kw = dict(data_dir=str(d), cache_dir=str(d.parent/'c'), streaming=True)
    dd = datasets.load_dataset('imagefolder', **kw)
    dls = DataLoaders.from_dd(dd, 4, size=8, seed=1, drop_last=True)
    assert [x.shape for x,_ in dls.train]==[(4,3,8,8)]*3 and dls.vocab==['cat','dog']
    own = dd['train'].map(lambda row: {'x': float(row['label'])}, remove_columns=['image'])
    y,x = next(iter(DataLoaders.from_dd({'valid': own}, 12).valid))
    assert x.tolist()==y.tolist()==[0]*6+[1]*6
    (d/'cat'/'0.png').write_bytes(b'')
    with pytest.raises(ValueError, match='cat/0.png .*\nReplace'): list(dls.train)

def test_a_stream_trains():
    dls = DataLoaders.from_dd(streams()[1], 50, seed=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784,10))
    learn = TrainLearner(model, dls, F.cross_entropy, lr=.1)
    learn.fit(3)
    assert learn.loss<2

def test_columns_keep_their_order():
    rows = [{'x': 1., 'y': 10}, {'y': 20, 'x': 2.}]
    dls = DataLoaders.from_dd({'train': rows, 'valid': rows}, 1)
    assert [(x.item(), y.item()) for x,y in dls.valid]==[(1.,10),(2.,20)]
