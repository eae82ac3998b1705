"A trained model at work: predictions without targets, what is confused, and programs"
import io
import json
import random
import subprocess
import sys
import warnings
import zipfile
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from importlib.util import find_spec
from pathlib import Path
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchvision.transforms.functional import pil_to_tensor
from miniai.accel import MixedPrecision, fast_layers
from miniai.augment import *
from miniai.core import *
from miniai.datasets import DataLoaders, TensorLoader, image_tensors
from miniai.init import BatchTransformCB
from miniai.learner import *
from miniai.predict import *
from conftest import At, Meddles, Raises, check, learner

def images(shape=(64,1,28,28), seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

def color_learner(c=3, hw=(9,14), cbs=None, vocab=('cat','dog','cow')):
    "Wants normalized images, which only its callback makes; no norm or dropout"
    set_seed(0)
    x,y = torch.rand(24,c,*hw),torch.arange(24)%3
    dls = DataLoaders.from_tensors({'train': (x,y), 'valid': (x,y)}, 5, seed=0, vocab=list(vocab))
    norm = BatchTransformCB(lambda b: ((b[0]-.4)*3,b[1]))  # the lesson's kind: it reads the targets
    model = nn.Sequential(nn.Conv2d(c,4,3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    model(x[:1])
    return TrainLearner(model.to(memory_format=torch.channels_last), dls, cbs=[norm, *(cbs or [])],
                        loss_func=lambda preds,y: 1/0)  # must not be asked

def want(learn, x): return learn.model.eval()((x-.4)*3).detach()

# Predictions without targets

@pytest.mark.parametrize('kind', [
    'default','loader','pairs','inputs','batch','bytes','one','files'])
def test_get_preds_of_anything_without_a_loss(kind):
    learn,x = color_learner(),images((13,3,9,14), seed=1)
    byte = (x*255).round().to(torch.uint8)
    data = {'default': None, 'loader': TensorLoader(x, torch.zeros(13), 4),
            'pairs': DataLoader(TensorDataset(x, torch.arange(13)), 4),
            'inputs': DataLoader(TensorDataset(x), 4), 'batch': x, 'bytes': byte, 'one': x[0],
            'files': [(x[:4],['a.png']*4), (x[4:],['b.png']*9)]}[kind]
    if kind=='inputs': learn.cbs[0].tfm = lambda b: ((b[0]-.4)*3,)
    ims = {'default': learn.dls.valid.x, 'bytes': byte/255, 'one': x[:1]}.get(kind, x)
    expected = want(learn, ims)
    learn.model.train()
    learn.opt = learn.opt_func(learn.model.parameters(), .1)
    dls = learn.dls
    def kept():
        modes = [m.training for m in learn.model.modules()]
        return random.getstate(), torch.get_rng_state().tolist(), modes
    before = kept()
    assert torch.allclose(learn.get_preds(data), expected, atol=1e-5)
    assert before==kept() and learn.dls is dls

@pytest.mark.parametrize('event', ['before_fit', 'before_batch', 'after_predict', 'cleanup_fit'])
@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_get_preds_changes_nothing(event, exc):
    learn = learner()
    dls,x = learn.dls,torch.rand(5,4)
    def fails():
        with pytest.raises(exc): learn.get_preds(x, [Meddles(), Raises(event, exc())])
    check(learn, lambda: learn.get_preds(x, Meddles()))
    check(learn, fails)
    check(learn, learn.get_preds)
    assert learn.dls is dls

def test_get_preds_inside_a_fit():
    seen = []
    predicts = At('after_batch', lambda learn: seen.append(learn.get_preds(torch.ones(3,4))))
    a,b = (learner(0) for _ in range(2))
    set_seed(1)
    a.fit(1)
    set_seed(1)
    b.fit(1, cbs=predicts)
    assert len(seen)==6
    for t,u in zip(a.model.state_dict().values(), b.model.state_dict().values()):
        assert torch.equal(t, u)

def test_get_preds_with_views():
    learn,x = color_learner(),images((7,3,9,14))
    plain,flipped = want(learn, x),want(learn, x.flip(-1))
    means = learn.get_preds(x, TTACB([lambda x: x, RandFlip(1)], probs=False))
    assert torch.allclose(means, (plain+flipped)/2, atol=1e-5)
    probs = learn.get_preds(x, TTACB([RandFlip(1)])).exp()
    assert torch.allclose(probs, flipped.softmax(1), atol=1e-5)

def test_a_transform_in_place_does_not_change_the_images():
    learn,x = color_learner(),images((4,3,9,14))
    def halve(b): return b[0].mul_(.5), *b[1:]
    learn.cbs = [BatchTransformCB(halve)]
    before = x.clone()
    a,b = learn.get_preds(x),learn.get_preds(x)
    assert torch.equal(x, before) and torch.equal(a, b)

# One image

@pytest.mark.parametrize('c, mode', [
    (1,'L'), (1,'RGB'), (1,'1'), (1,'P'), (3,'RGB'), (3,'L'), (3,'RGBA'), (4,'RGB')])
def test_classify_a_pil_image_of_any_kind(c, mode, tmp_path):
    learn = color_learner(c)
    im = Image.fromarray((images((50,40,3))*255).byte().numpy()).convert(mode)
    im.save(tmp_path/'im.png')
    im = Image.open(tmp_path/'im.png')
    cut = ImageOps.fit(im.convert({1: 'L', 3: 'RGB', 4: 'RGBA'}[c]), (14,9))
    p = want(learn, pil_to_tensor(cut)[None]/255).softmax(1)[0]
    before = torch.get_rng_state()
    name,prob = learn.classify(im)
    assert name==['cat','dog','cow'][p.argmax()] and prob==pytest.approx(p.max().item(), abs=1e-5)
    assert torch.equal(torch.get_rng_state(), before)
    assert learn.get_preds(im).shape==(1,3)

class Rows(Dataset):
    "Counts the images that are read"
    n_read = 0
    def __len__(self): return 40
    def __getitem__(self, i):
        self.n_read += 1
        return torch.rand(3,9,14), i%3

class Stream(IterableDataset):
    def __iter__(self): return ((torch.rand(3,9,14), 0) for _ in range(40))

def collate(rows): return dict(image=torch.stack([x for x,_ in rows]), label=torch.zeros(len(rows)))

@pytest.mark.parametrize('dl', [
    DataLoader(Rows(), 20), DataLoader(Rows(), 20, collate_fn=collate), DataLoader(Stream(), 20),
    [(torch.rand(20,3,9,14), torch.zeros(20))]])
def test_classify_a_pil_image_with_any_loader(dl):
    learn = color_learner()
    learn.cbs,learn.dls = [],DataLoaders(None, dl, vocab=['cat','dog','cow'])
    im = Image.new('RGB', (50,40), (90,120,30))
    p = learn.model.eval()(pil_to_tensor(ImageOps.fit(im, (14,9)))[None]/255).softmax(1)
    assert learn.classify(im)[1]==pytest.approx(p.max().item(), abs=1e-5)

def test_classify_reads_one_image_of_the_loader():
    learn,rows = color_learner(),Rows()
    learn.dls = DataLoaders(None, DataLoader(rows, 20))
    for _ in range(3): learn.classify(Image.new('RGB', (50,40)))
    assert rows.n_read==1
    learn.dls.valid = DataLoader(rows, 10)
    learn.classify(Image.new('RGB', (50,40)))
    assert rows.n_read==2
    learn.opt = object()  # as a fit makes a new one, after which the images may have another size
    learn.classify(Image.new('RGB', (50,40)))
    assert rows.n_read==3

def test_classify_tensors_and_without_names():
    learn,x = color_learner(vocab=[]),images((3,9,14))
    i = want(learn, x[None]).argmax().item()
    assert learn.classify(x)[0]==f'class {i}'

class Uncopied(nn.Parameter):
    "A parameter that must not be copied"
    def detach(self): raise AssertionError('a copy of the weights')
    def __deepcopy__(self, memo): raise AssertionError('a copy of the weights')

def test_classify_copies_no_weights():
    learn = color_learner()
    learn.model.append(nn.Linear(3,3))
    learn.model[-1].weight = Uncopied(torch.rand(3,3))
    assert learn.classify(images((3,9,14))) and learn.classify(Image.new('RGB', (50,40)))
    with pytest.raises(AssertionError, match='a copy of the weights'): learn.lr_find(show=False)

def as_array(im): return np.array(im)
def as_batch(im): return torch.stack([pil_to_tensor(im)]*2)
WAYS = {'path': lambda im: 'im.png', 'Path': lambda im: Path('im.png'), 'PIL': lambda im: im,
        'array': as_array, 'bytes': pil_to_tensor, 'floats': lambda im: pil_to_tensor(im)/255,
        'batch': as_batch, 'arrays': lambda im: as_batch(im).numpy().transpose(0,2,3,1),
        'list': lambda im: [pil_to_tensor(im)/255, 'im.png', im, as_array(im), pil_to_tensor(im)]}

@pytest.mark.parametrize('c', [1,3])
@pytest.mark.parametrize('way', WAYS)
def test_classify_anything(way, c, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = color_learner(c)
    im = Image.fromarray((images((9,14,3))*255).byte().numpy()).convert('L' if c==1 else 'RGB')
    im.save('im.png')
    name,p = learn.classify(pil_to_tensor(im))
    learn.export('m.pt2')
    for o in learn,load_classifier('m.pt2'):
        answer = o.classify(WAYS[way](im))
        if way in ('batch','arrays','list'):
            assert len(answer)==(5 if way=='list' else 2)
        else: answer = [answer]
        for nm,prob in answer: assert nm==name and prob==pytest.approx(p, abs=1e-5)

def test_classify_a_batch_gives_each_its_answer():
    learn,x = color_learner(),images((7,3,9,14))
    p,i = want(learn, x).softmax(1).max(1)
    answers = learn.classify(x)
    assert [nm for nm,_ in answers]==[learn.dls.vocab[j] for j in i]
    assert np.allclose([q for _,q in answers], p, atol=1e-5)
    assert learn.classify(list(x))==answers

def refused(match, f, *args):
    with pytest.raises(ValueError, match=match): f(*args)

def test_classify_wants_loaders_of_pixels(tmp_path):
    learn,im = color_learner(),Image.new('RGB', (5,5))
    learn.dls.valid.x = learn.dls.valid.x*2-1
    refused(r'must be .*from 0 to 1 .*got .*-\d.* pass a tensor', learn.classify, im)
    learn.export(tmp_path/'m.pt2')
    clf = load_classifier(tmp_path/'m.pt2')
    refused('size and mode must be known .*pass a tensor', clf.classify, im)
    x = learn.dls.valid.x[0]
    assert clf.classify(x)[0]==learn.classify(x)[0]

def test_classify_without_a_valid_loader():
    learn,x = color_learner(),images((3,9,14))
    answer = learn.classify(x)
    learn.dls = DataLoaders(learn.dls.train, vocab=learn.dls.vocab)
    assert learn.classify(x)==answer==learn.classify([x])[0]
    refused('dls.valid must be a loader.*got None; pass', learn.classify, Image.new('RGB', (5,5)))
    refused('dls.valid must be a loader.*got None; pass', learn.export, 'm.pt2')

@pytest.mark.parametrize('im', [
    np.zeros((9,14,3)), Image.new('I;16', (14,9)), Image.new('F', (14,9)), None, {'a': 1}])
def test_classify_wants_pictures_of_eight_bits(im):
    refused('(?s)A picture must be .*8-bit.*got .*; pass', color_learner().classify, im)

def test_classify_wants_a_file_of_a_picture(tmp_path):
    learn = color_learner()
    with pytest.raises(FileNotFoundError, match='none.png'): learn.classify(tmp_path/'none.png')
    (tmp_path/'text.png').write_text('text')
    with pytest.raises(OSError, match='text.png'): learn.classify(str(tmp_path/'text.png'))

@pytest.mark.parametrize('n', [1,None])
def test_classify_wants_classes(n):
    learn = color_learner(1)
    learn.model.append(nn.Linear(3,1) if n else nn.Unflatten(1, (3,1,1)))
    refused(r'two or more scores.*got shape \(1,.*use get_preds', learn.classify, images((1,9,14)))

def test_get_preds_of_a_path(tmp_path):
    learn = color_learner()
    im = Image.new('RGB', (14,9), (90,120,30))
    im.save(tmp_path/'im.png')
    x = pil_to_tensor(im)
    for o in tmp_path/'im.png',str(tmp_path/'im.png'),np.array(im):
        assert torch.allclose(learn.get_preds(o), learn.get_preds(x))

def test_a_picture_leaves_the_random_state_alone():
    learn = color_learner()
    learn.dls.valid = DataLoader(Rows(), 20)  # it draws a seed whenever it starts
    before = torch.get_rng_state()
    learn.classify(Image.new('RGB', (5,5)))
    assert torch.equal(torch.get_rng_state(), before)

# A classifier without a learner

def test_a_classifier_from_weights(tmp_path):
    learn,x = color_learner(),images((3,9,14))
    learn.cbs = []
    about = dict(vocab=learn.dls.vocab, size=(9,14), mode='RGB')
    torch.save(about|dict(weights=learn.model.state_dict()), tmp_path/'m.pt')
    about = torch.load(tmp_path/'m.pt', weights_only=True)
    model = color_learner().model
    model.load_state_dict(about.pop('weights'))
    refused('model must be in evaluation mode.*pass model.eval', Classifier, model)
    clf = Classifier(model.eval(), **about)
    im = Image.new('RGB', (50,40), (90,120,30))
    for o in x,im: assert clf.classify(o)==learn.classify(o)
    assert Classifier(model).classify(x)[0].startswith('class ')
    refused('size and mode must be known', Classifier(model).classify, im)
    assert Classifier(lambda x: x.mean((2,3)), size=8, mode='RGB').classify(im)[0]=='class 1'

APPLIES = '''
import sys
from miniai.predict import load_classifier
clf = load_classifier(sys.argv[1])
print(*clf.classify(sys.argv[2]), sep='|')
'''

def test_a_program_is_used_in_three_lines(tmp_path):
    learn = color_learner()
    learn.export(tmp_path/'m.pt2')
    Image.new('RGB', (50,40), (90,120,30)).save(tmp_path/'im.png')
    cmd = [sys.executable, '-c', APPLIES, tmp_path/'m.pt2', tmp_path/'im.png']
    out = subprocess.run(cmd, check=True, cwd=tmp_path, capture_output=True, text=True)
    name,p = learn.classify(tmp_path/'im.png')
    assert not out.stderr
    assert out.stdout.split('|')[0]==name and float(out.stdout.split('|')[1])==pytest.approx(p)

def test_a_program_that_miniai_did_not_write(tmp_path):
    learn,x = color_learner(),images((2,3,9,14))
    model = learn.model.to(memory_format=torch.contiguous_format).eval()
    torch.export.save(torch.export.export(model, (x,)), tmp_path/'m.pt2')
    clf = load_classifier(tmp_path/'m.pt2')
    assert [nm[:6] for nm,_ in clf.classify(x)]==['class ']*2

def test_a_photo_is_turned_upright():
    x = torch.zeros(16,1,8,8)
    x[::2,:,:4] = 1  # the upper half
    x[1::2,:,:,:4] = 1  # the left half
    xy = x,torch.arange(16)%2
    dls = DataLoaders.from_tensors({'train': xy, 'valid': xy}, 8)
    set_seed(0)
    learn = TrainLearner(nn.Sequential(nn.Flatten(), nn.Linear(64,2)), dls, F.cross_entropy, .5)
    learn.logger = lambda row: None
    learn.fit(20)
    im = Image.fromarray((x[0,0]*255).byte().numpy()).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    buf = io.BytesIO()
    im.save(buf, 'png', exif=exif)
    assert learn.classify(Image.open(buf))[0]=='class 0'

# Mistakes and confusion

class Named(nn.Module):
    "Takes its input by the name that it has in the batch"
    def __init__(self, c, n_classes):
        super().__init__()
        self.lin = nn.Linear(c*64, n_classes)
    def forward(self, pixels): return self.lin(pixels.flatten(1))

def any_learner(n_classes=3, kind='tuple', c=1, vocab=None, n=24):
    "Images in [-1,1] from a loader of torch; the model is wrong about each of them"
    set_seed(0)
    x,model = torch.rand(n,c,8,8)*2-1,Named(c, n_classes)
    y = (model(x).argmax(1)+1)%n_classes
    rows = TensorDataset(x, y) if kind=='tuple' else [dict(pixels=a, target=b) for a,b in zip(x, y)]
    train,valid = (DataLoader(rows, 5, shuffle=True) for _ in range(2))
    dls = DataLoaders(train, valid, vocab=vocab)
    return TrainLearner(model, dls, lambda preds,target: F.cross_entropy(preds, target))

@pytest.mark.parametrize('kind', ['tuple','dict'])
@pytest.mark.parametrize('c', [1,3])
@pytest.mark.parametrize('vocab', [None, ['cat','dog','cow']])
def test_mistakes_of_any_data(kind, c, vocab):
    learn = any_learner(3, kind, c, vocab)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        plot_mistakes(learn, 6)
        fig = plt.gcf()
        fig.canvas.draw()
    titles = [ax.get_title() for ax in fig.axes]
    plt.close(fig)
    def name(i): return vocab[i] if vocab else f'class {i}'
    preds,y = learn.capture_preds()
    if kind=='dict': y = y['target']
    p,pred = preds.softmax(1).max(1)
    worst = p.argsort(descending=True)[:6].tolist()
    assert titles==[f'{name(y[i])}\nmodel: {name(pred[i])}, {p[i]:.0%}' for i in worst]

def test_mistakes_where_there_are_none():
    learn = any_learner()
    learn.dls.valid = [(x, learn.model(x).argmax(1)) for x,_ in learn.dls.valid]
    before = plt.get_fignums()
    plot_mistakes(learn)
    assert plt.get_fignums()==before

def test_a_table_of_mistakes():
    learn = any_learner(vocab=['cat','dog','cow'])
    learn.dls.valid = DataLoader(learn.dls.valid.dataset, 5)
    preds,y = learn.capture_preds()
    p,pred = preds.softmax(1).max(1)
    m = mistakes(learn)
    assert sorted(m.index)==[*range(24)] and m.probability.is_monotonic_decreasing
    assert list(m)==['label','prediction','probability']
    for i,label,prediction,probability in m.itertuples():
        assert [label,prediction]==[learn.dls.vocab[t[i]] for t in (y,pred)]
        assert probability==pytest.approx(p[i].item())
    assert mistakes(learn, 3).equals(m[:3])

def test_any_loader_in_place_of_the_one_for_validation():
    learn = counted_learner()
    other = [(torch.eye(4)*5, torch.tensor([0,1,2,2]))]
    assert confusion(learn, other).to_numpy().tolist()==[
        [1,0,0,0],[0,1,0,0],[0,0,1,1],[0,0,0,0]]
    assert class_report(learn, dl=other)['count'].tolist()==[1,1,2,0]
    plot_confusion(learn, dl=other)
    fig = plt.gcf()
    assert len(fig.axes[0].texts)==4
    m = mistakes(learn, dl=other)
    assert [*m.itertuples(name=None)]==[(3,'class 2','class 3',pytest.approx(m.probability[3]))]
    plt.close(fig)
    learn = any_learner()
    x,_ = learn.dls.valid.dataset.tensors
    plot_mistakes(learn, dl=[(x[:2],(learn.model(x[:2]).argmax(1)+1)%3)])
    fig = plt.gcf()
    assert len(fig.axes)==2
    plt.close(fig)

def test_mistakes_lead_to_their_files(tmp_path):
    from datasets import load_dataset
    class One(nn.Module):
        "Says dog of each image"
        def forward(self, x): return torch.tensor([[0,1.]]).expand(len(x), 2)
    folder = tmp_path/'pets'
    for nm in 'cat','dog':
        (folder/nm).mkdir(parents=True)
        for i in range(3): Image.new('RGB', (8,8), (i*50,90,10)).save(folder/nm/f'{i}.png')
    cats = {str(folder/'cat'/f'{i}.png') for i in range(3)}
    dd = load_dataset('imagefolder', data_dir=str(folder), cache_dir=str(tmp_path/'cache'))
    splits = {'valid': dd['train'].shuffle(1)}
    for dls in DataLoaders.from_dd(splits, 4),DataLoaders.from_tensors(image_tensors(splits), 4):
        m = mistakes(TrainLearner(One(), dls, F.cross_entropy))
        assert {splits['valid'][i]['image'].filename for i in m.index}==cats
        assert {*m.label}=={'cat'} and {*m.prediction}=={'dog'}

def counted_learner(vocab=None):
    "Says class 1 where the label is 2, and never says 3, a class without images"
    y = torch.tensor([0,0,0,1,2,2])
    scores = F.one_hot(torch.tensor([0,0,1,1,1,2]), 4).float()*5
    dls = DataLoaders(None, DataLoader(TensorDataset(scores, y), 4), vocab=vocab)
    return TrainLearner(nn.Identity(), dls, F.cross_entropy)

@pytest.mark.parametrize('vocab', [None, list('abcd')])
def test_confusion_and_report(vocab):
    learn = counted_learner(vocab)
    names = vocab or [f'class {i}' for i in range(4)]
    n = confusion(learn)
    assert n.to_numpy().tolist()==[[2,1,0,0],[0,1,0,0],[0,1,1,0],[0,0,0,0]]
    assert list(n.index)==list(n.columns)==names
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        r = class_report(learn)
        plot_confusion(learn)
        fig = plt.gcf()
        fig.canvas.draw()
    assert r['count'].tolist()==[3,1,2,0] and list(r.index)==names
    assert np.allclose(r.precision, [1,1/3,1,np.nan], equal_nan=True)
    assert np.allclose(r.recall, [2/3,1,1/2,np.nan], equal_nan=True)
    ax, = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()]==names
    assert [t.get_text() for t in ax.get_xticklabels()]==names
    assert sorted((*t.get_position(),t.get_text()) for t in ax.texts)==[
        (0,0,'2'),(1,0,'1'),(1,1,'1'),(1,2,'1'),(2,2,'1')]
    plt.close(fig)

def test_report_agrees_with_torchmetrics():
    tm = pytest.importorskip('torchmetrics.functional.classification')
    learn = any_learner(5)
    learn.dls.valid = [(x, (y+i)%5) for i,(x,y) in enumerate(learn.dls.valid)]
    n,r = confusion(learn),class_report(learn)
    preds,y = learn.capture_preds()
    kw = dict(num_classes=5, average='none')
    assert (n.to_numpy()==tm.multiclass_confusion_matrix(preds, y, 5).numpy()).all()
    assert np.allclose(r.recall.fillna(0), tm.multiclass_recall(preds, y, **kw))
    assert np.allclose(r.precision.fillna(0), tm.multiclass_precision(preds, y, **kw))

def test_confusion_with_labels_of_eight_bits():
    x,y = torch.rand(64,4),(torch.arange(64)%32).byte()
    dls = DataLoaders.from_tensors({'train': (x,y), 'valid': (x,y)}, 16)
    learn = TrainLearner(nn.Linear(4,32), dls, lambda p,y: F.cross_entropy(p, y.long()))
    assert (confusion(learn).sum(axis=1)==2).all()

# Programs

LOADS = '''
import json, sys, torch
about = {'miniai.json': ''}
f = torch.export.load(sys.argv[1], extra_files=about).module()
x,want = torch.load(sys.argv[2])
for n in 1,2,len(x): torch.testing.assert_close(f(x[:n]), want[:n])
assert not f(x).requires_grad
assert json.loads(about['miniai.json'])==dict(
    vocab=['cat','dog','cow'], size=[9,14], mode='RGB', resize='crop', scale=[0,1])
assert not any(m.startswith('miniai') for m in sys.modules)
'''

def test_an_export_runs_without_miniai(tmp_path):
    in_training = BatchTransformCB(lambda b: (b[0]*0,*b[1:]), on_val=False)
    learn,x = color_learner(cbs=[in_training]),images((7,3,9,14))
    learn.opt = learn.opt_func(learn.model.parameters(), .1)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.export(tmp_path/'m.pt2')
    assert torch.equal(torch.get_rng_state(), before)
    weight = learn.model[0].weight
    assert learn.model.training and weight.requires_grad
    assert weight.is_contiguous(memory_format=torch.channels_last)
    torch.save((x, learn.get_preds(x)), tmp_path/'x.pt')
    cmd = [sys.executable, '-I', '-c', LOADS, tmp_path/'m.pt2', tmp_path/'x.pt']
    subprocess.run(cmd, check=True, cwd=tmp_path)

@pytest.mark.parametrize('make', [wide, model4])
def test_export_of_the_lessons_models_as_recipes_train_them(make, tmp_path):
    set_seed(0)
    x = images((5,1,28,28))
    dls = DataLoaders.from_tensors({'valid': (x[:1],torch.zeros(1).long())}, 3)
    model = fast_layers(make().to(memory_format=torch.channels_last))
    cbs = [DeviceCB('cpu'), MixedPrecision(torch.float32)]
    learn = TrainLearner(model, dls, F.cross_entropy, cbs=cbs)
    learn.export(str(tmp_path/'m.pt2'))
    f = torch.export.load(tmp_path/'m.pt2').module()
    torch.testing.assert_close(f(x), learn.get_preds(x), rtol=1e-4, atol=1e-5)

def test_export_of_a_model_with_two_inputs(tmp_path):
    class Sum(nn.Module):
        def forward(self, a, b): return {'s': a+b, 'd': a-b}
    rows = TensorDataset(torch.rand(6,4), torch.rand(6,4), torch.arange(6))
    dls = DataLoaders(None, DataLoader(rows, 3))
    TrainLearner(Sum(), dls, lambda p,y: p['s'].mean(), n_inp=2).export(tmp_path/'m.pt2')
    a,b = torch.rand(2,9,4)
    res = torch.export.load(tmp_path/'m.pt2').module()(a, b)
    assert torch.equal(res['s'], a+b) and torch.equal(res['d'], a-b)

def test_export_of_nested_inputs(tmp_path):
    class Sum(nn.Module):
        def forward(self, ab): return ab[0]+ab[1]
    x = torch.rand(6,3)
    dls = DataLoaders(None, [((x,2*x), torch.zeros(6))])
    TrainLearner(Sum(), dls, F.mse_loss).export(tmp_path/'m.pt2')
    f = torch.export.load(tmp_path/'m.pt2').module()
    assert torch.allclose(f((x,2*x)), 3*x)

def test_an_export_holds_no_images(tmp_path):
    x,y = images((500,3,9,14)),torch.arange(500)%3
    learn = color_learner()
    learn.dls.valid = [(x[:250],y[:250]), (x[250:],y[250:])]  # views of all images
    learn.export(tmp_path/'m.pt2')
    assert (tmp_path/'m.pt2').stat().st_size<100_000
    with zipfile.ZipFile(tmp_path/'m.pt2') as z: content = b''.join(map(z.read, z.namelist()))
    for i in 0,1,249,250: assert x[i,0,0].numpy().tobytes() not in content

class Words(nn.Module):
    "A text model of any length"
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(50,8)
        self.lin = nn.Linear(8,3)
    def forward(self, ids, mask): return self.lin((self.emb(ids)*mask[...,None]).mean(1))

def text_learner(as_dict):
    set_seed(0)
    ids = torch.randint(50, (6,7))
    mask = torch.ones(6,7)
    y = torch.arange(6)%3
    batch = dict(ids=ids, mask=mask, label=y) if as_dict else (ids,mask,y)
    def halve(b):  # it reads the targets
        if as_dict: return b|dict(mask=b['mask']/2, label=b['label'].float())
        return b[0], b[1]/2, b[2].float()
    def loss(preds, label): return F.cross_entropy(preds, label.long())
    dls = DataLoaders(None, [batch], vocab=['cat','dog','cow'])
    return TrainLearner(Words(), dls, loss, cbs=BatchTransformCB(halve), n_inp=2)

@pytest.mark.parametrize('as_dict', [False,True])
def test_export_of_a_text_of_any_length(as_dict, tmp_path):
    learn = text_learner(as_dict)
    learn.export(tmp_path/'m.pt2', dynamic=[1])
    about = {'miniai.json': ''}
    f = torch.export.load(tmp_path/'m.pt2', extra_files=about).module()
    assert json.loads(about['miniai.json'])=={'vocab': ['cat','dog','cow']}
    for n,length in (1,1),(2,7),(5,30):
        ids,mask = torch.randint(50, (n,length)),torch.ones(n,length)
        assert torch.allclose(f(ids, mask), learn.model(ids, mask/2), atol=1e-6)
    learn.export(tmp_path/'m.pt2')
    f = torch.export.load(tmp_path/'m.pt2').module()
    with pytest.raises(AssertionError, match='Guard failed'): f(ids, mask)

def test_export_of_images_of_any_size(tmp_path):
    learn = color_learner()
    learn.model = nn.Sequential(nn.Conv2d(3,3,3), GlobalAvgPool())
    learn.export(tmp_path/'m.pt2', dynamic=(2,3))
    f,x = torch.export.load(tmp_path/'m.pt2').module(),images((4,3,30,20))
    assert torch.allclose(f(x), want(learn, x), atol=1e-5)

def test_export_takes_transforms_in_their_order(tmp_path):
    add = BatchTransformCB(lambda b: (b[0]+1, *b[1:]))
    double = BatchTransformCB(lambda b: (b[0]*2, *b[1:]))
    add.order = double.order+1
    learn = color_learner(cbs=[add, double])
    learn.export(tmp_path/'m.pt2')
    x = learn.dls.valid.x[:4]
    f = torch.export.load(tmp_path/'m.pt2').module()
    assert torch.allclose(f(x), learn.get_preds(x), atol=1e-5)

def test_export_to_onnx(tmp_path):
    learn,x = color_learner(),images((7,3,9,14))
    if not all(map(find_spec, ('onnx','onnxscript'))):
        with pytest.raises(ImportError, match='onnx'): learn.export(tmp_path/'m.onnx')
        return
    learn.export(tmp_path/'m.onnx')
    assert [p.name for p in tmp_path.iterdir()]==['m.onnx']
    ort = pytest.importorskip('onnxruntime')
    s = ort.InferenceSession(tmp_path/'m.onnx')
    for n in 1,7:
        res, = s.run(None, {s.get_inputs()[0].name: x[:n].numpy()})
        assert np.allclose(res, learn.get_preds(x[:n]), atol=1e-5)
