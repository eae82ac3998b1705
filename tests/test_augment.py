"Augmentation, captured predictions, TTA and ensembles: what a notebook cannot show well"
import random, subprocess, sys, warnings
import matplotlib.pyplot as plt, numpy as np, pytest, torch, torch.nn.functional as F
from functools import partial
from importlib.util import find_spec
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, TensorDataset
from miniai.augment import *
from miniai.augment import _box_mask
from miniai.core import *
from miniai.datasets import DataLoaders, TensorLoader
from miniai.init import BatchTransformCB
from miniai.learner import *
from conftest import EVENTS, Meddles, Raises, check, learner, toy_dls

TFMS = {'crop': RandCrop(2), 'flip': RandFlip(), 'erase': RandErase(), 'copy': RandCopy()}
TFMS |= {f'{nm} each': type(t)(*([2] if nm=='crop' else []), per_image=True) for nm,t in TFMS.items()}
TFMS |= {'cutmix': lambda x: cutmix(x)[0], 'cutmix each': lambda x: cutmix(x, per_image=True)[0]}
SHAPES = [(5,1,28,28), (1,3,9,14), (7,2,1,1)]

def images(shape=(64,1,28,28), seed=0): return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
def same_for_all(x): return all(torch.equal(x[0], o) for o in x)

# Transforms of images

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('nm', TFMS)
def test_shape_dtype_range_and_the_callers_tensor(nm, shape, dtype):
    x = images(shape).to(dtype)
    kept = x.clone()
    for _ in range(5):
        y = TFMS[nm](x)
        assert y.shape==x.shape and y.dtype==x.dtype and y.device==x.device and y.data_ptr()!=x.data_ptr()
        assert torch.equal(x, kept)
        assert y.min()>=x.min() and y.max()<=x.max()

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('nm', TFMS)
def test_on_a_gpu(nm):
    x = images().cuda()
    assert TFMS[nm](x).device==x.device

@pytest.mark.parametrize('nm', TFMS)
def test_same_seed_same_batch(nm):
    x = images()
    def run(seed):
        set_seed(seed)
        return torch.stack([TFMS[nm](x) for _ in range(4)])
    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))

@pytest.mark.parametrize('nm', ['crop', 'flip', 'erase', 'copy', 'cutmix'])
def test_one_draw_for_the_batch_or_one_for_each_image(nm):
    "Equal images stay equal, unless each has its own draw; erasing makes new noise for each image, so places count"
    x = images((1,1,28,28)) if nm!='cutmix' else torch.arange(64.)[:,None,None,None]
    x = x.expand(64,1,28,28)
    where = lambda y: y!=x if nm in ('erase','cutmix') else y
    all_same = lambda nm: [same_for_all(where(TFMS[nm](x))) for _ in range(8)]
    set_seed(0)
    if nm=='cutmix': assert all(len({o.sum().item() for o in where(TFMS[nm](x)) if o.any()})<=1 for _ in range(8))
    else: assert all(all_same(nm))
    assert not any(all_same(nm+' each'))

@pytest.mark.parametrize('nm', TFMS)
def test_strided_input(nm):
    x = images((8,3,28,28)).to(memory_format=torch.channels_last)
    set_seed(0)
    a = TFMS[nm](x)
    set_seed(0)
    assert torch.allclose(a, TFMS[nm](x.contiguous()), atol=1e-5)

class _Draws(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return RandErase(per_image=True)(torch.linspace(0, 1, 784).view(1,1,28,28))[0]

def test_on_workers():
    run = lambda: torch.cat(list(DataLoader(_Draws(), 4, num_workers=2, generator=torch.Generator().manual_seed(3))))
    a = run()
    assert torch.equal(a, run()) and not same_for_all(a)

def test_crop_shifts_by_every_amount_and_repeats_the_edge():
    x = torch.arange(28.)[None,None,None].expand(2000,1,28,28)
    set_seed(0)
    y = RandCrop(2, per_image=True)(x)
    assert {tuple(o) for o in y[:,0,0].tolist()}=={tuple(min(max(i+d, 0), 27) for i in range(28)) for d in range(-2,3)}
    y = RandCrop(2, per_image=True)(x.mT)
    assert torch.equal(y, y[...,:1].expand_as(y))
    assert {o.item() for o in y[:,0,5,0]}=={3.,4.,5.,6.,7.}

def test_crop_to_another_size():
    x = images((16,2,28,20))
    assert RandCrop(0, size=(28,20), per_image=True)(x).equal(x)
    y = RandCrop(0, size=(7,5), per_image=True)(x)
    windows = x.unfold(2,7,1).unfold(3,5,1).flatten(2,3)
    assert y.shape==(16,2,7,5) and all((windows[i]==y[i,:,None]).flatten(2).all(2).all(0).any() for i in range(16))
    assert RandCrop(3, size=(34,26))(x).shape==(16,2,34,26)

def test_flip():
    x = images()
    assert RandFlip(1)(x).equal(x.flip(-1)) and RandFlip(0, per_image=True)(x).equal(x)
    set_seed(0)
    y = RandFlip(.25, per_image=True)(images((4000,1,2,2)))
    fraction = (y==images((4000,1,2,2)).flip(-1)).flatten(1).all(1).float().mean()
    assert abs(fraction-.25)<.03

@pytest.mark.parametrize('per_image', [False,True])
def test_number_and_size_of_patches(per_image):
    set_seed(0)
    x = torch.linspace(-1, 1, 784).view(1,1,28,28).expand(50,-1,-1,-1)
    fractions = torch.cat([(rand_erase(x, .25, 1, per_image)!=x).float().mean((1,2,3)) for _ in range(40)])
    got = set((fractions*784).round().int().tolist())
    assert got<={0,*range(45,50)} and 0 in got and 49 in got  # noise may hit the old value
    assert .35<(fractions>0).float().mean()<.65
    assert rand_erase(x, .5, 0).equal(x) and rand_copy(x, .5, 0, per_image).equal(x)
    whole = rand_copy(x, 1., 3, per_image)
    assert whole.equal(x)

def test_patches_reach_every_place():
    hit = torch.zeros(28,28)
    set_seed(0)
    x = torch.zeros(500,1,28,28)
    x[0,0,0,0] = 1.
    for _ in range(10): hit += (rand_erase(x, .2, 4, per_image=True)!=x).float().sum((0,1))
    assert hit.min()>0

def test_erase_keeps_mean_and_deviation_roughly():
    x = torch.randn(500,1,28,28)*.7+.3
    set_seed(0)
    y = rand_erase(x, .3, 4, per_image=True)
    assert abs(y.mean()-x.mean())<.01 and abs(y.std()-x.std())<.01
    assert (y!=x).float().mean()>.05

@pytest.mark.parametrize('per_image', [False,True])
def test_copy_takes_rectangles_of_the_same_image(per_image):
    "The values say where they came from: inside a patch source and place differ by one shift"
    x = torch.arange(2*784.).view(2,1,28,28).repeat(20,1,1,1)
    set_seed(0)
    y = rand_copy(x, .25, 1, per_image)
    for a,b in zip(x,y):
        moved = (a!=b)[0]
        if moved.any():
            assert len((b-a)[0][moved].unique())==1
            r,c = moved.nonzero().T
            assert r.max()-r.min()<7 and c.max()-c.min()<7 and moved.sum()==(r.max()-r.min()+1)*(c.max()-c.min()+1)
        assert b.min()>=a.min() and b.max()<=a.max()

@pytest.mark.parametrize('per_image', [False,True])
@pytest.mark.parametrize('alpha', [.2, 1., 5.])
@pytest.mark.parametrize('hw', [(28,28), (9,14), (1,1)])
def test_areas_of_cutmix_match_its_lambdas(per_image, alpha, hw):
    x = torch.arange(50.)[:,None,None,None].expand(-1,2,*hw)
    set_seed(0)
    for _ in range(10):
        y,idx,lam = cutmix(x, alpha, per_image)
        own,other = (y==x).float().mean((1,2,3)),(y==x[idx]).float().mean((1,2,3))
        assert torch.allclose(own, lam, atol=1e-6) and torch.allclose(other, 1-lam, atol=1e-6)
        assert sorted(idx.tolist())==list(range(50)) and lam.shape==(50,) and lam.min()>=0 and lam.max()<=1

@pytest.mark.parametrize('n', [2,3,7])
def test_cutmix_never_pairs_an_image_with_itself(n):
    set_seed(0)
    idx = torch.stack([cutmix(images((n,1,4,4)), per_image=bool(i%2))[1] for i in range(100)])
    assert (idx!=torch.arange(n)).all()
    assert all(len(partners.unique())==n-1 for partners in idx.T)
    x = images((1,1,4,4))
    assert torch.equal(cutmix(x)[0], x)  # there is no other one

def test_cutmix_fractions_follow_the_beta_distribution():
    set_seed(0)
    lam = cutmix(torch.rand(20_000,1,28,28), per_image=True)[2]
    assert abs(lam.mean()-.5)<.01 and abs(lam.std()-12**-.5)<.01
    assert cutmix(torch.rand(20_000,1,28,28), 100., per_image=True)[2].std()<.05

def test_box_mask():
    m = _box_mask(torch.zeros(1,1,5,6), torch.tensor([[1]]), torch.tensor([[2]]), 2, 3)
    assert m.shape==(1,1,5,6) and m.nonzero()[:,2:].tolist()==[[r,c] for r in (1,2) for c in (2,3,4)]

BAD = {
    'Cannot crop 31×28 out of 28×28 with padding 1': lambda x: RandCrop(1, size=(31,28))(x),
    'padding -1': lambda x: RandCrop(-1)(x), 'Cannot crop 0×4': lambda x: RandCrop(0, size=(0,4))(x),
    'p is 1.5': lambda x: RandFlip(1.5)}
for a in 0,-1:
    BAD |= {f'alpha is {a}:cutmix': lambda x,a=a: cutmix(x, a), f'alpha is {a}:callback': lambda x,a=a: CutMixCB(a)}
for c in RandErase,RandCopy:
    for p in 0,-.1,1.01,float('nan'):
        BAD |= {f'pct is {p}:{c.__name__}': lambda x,c=c,p=p: c(p), f'pct is {p}:{c.f}': lambda x,c=c,p=p: c.f(x, p)}
    for n in -1,1.5:
        nm = f'max_num is {n}'
        BAD |= {f'{nm}:{c.__name__}': lambda x,c=c,n=n: c(.2, n), f'{nm}:{c.f}': lambda x,c=c,n=n: c.f(x, .2, n)}

@pytest.mark.parametrize('msg, f', [(k.split(':')[0], f) for k,f in BAD.items()])
def test_bad_arguments(msg, f):
    with pytest.raises(ValueError, match=msg): f(images())

@pytest.mark.parametrize('nm', TFMS)
def test_bad_images(nm):
    with pytest.raises(TypeError, match='have to be floats, got torch.int64'): TFMS[nm](images().long())
    with pytest.raises(ValueError, match=r'of shape \(n,c,h,w\), got \(1, 28, 28\)'): TFMS[nm](images()[0])

def test_a_transform_says_what_it_does():
    "These texts are part of a run's identity"
    assert [str(TFMS[nm]) for nm in ('crop','flip','erase','copy each')]==[
        'RandCrop(padding=2, size=None, per_image=False)', 'RandFlip(p=0.5, per_image=False)',
        'RandErase(pct=0.2, max_num=4, per_image=False)', 'RandCopy(pct=0.2, max_num=4, per_image=True)']

@pytest.mark.parametrize('b', [(1,2,3), [1,2,3], {'a': 1, 'b': 2, 'c': 3}], ids=['tuple','list','dict'])
def test_tfm_batch_keeps_the_kind_of_batch(b):
    res = tfm_batch(b, lambda x: x*10, lambda y: -y)
    assert res==({'a': 10, 'b': -2, 'c': -3} if isinstance(b, dict) else (10,-2,-3))
    assert torch.equal(tfm_batch(torch.ones(2,3), lambda x: x+1), torch.full((2,3), 2.))

# Callbacks that augment

def image_dls(n=24, bs=5, n_valid=None):
    x,y = images((n,1,28,28)),torch.arange(n)%3
    return DataLoaders.from_tensors({'train': (x,y), 'valid': (x[:n_valid],y[:n_valid])}, bs, seed=0)

def image_learner(cbs=None, dls=None, n_classes=3, loss=F.cross_entropy, seed=0):
    set_seed(seed)
    model = nn.Sequential(nn.Conv2d(1,4,3,stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(.2),
                          nn.Linear(4*49,n_classes))
    return TrainLearner(model, dls or image_dls(), loss, .1, cbs=cbs)

class See(Callback):
    "Keeps the inputs and targets of every batch when `event` happens"
    order = 500
    def __init__(self, event): setattr(self, event, self.see); self.seen = []
    def see(self, learn): self.seen.append((learn.training, getattr(learn, 'epoch', 0), *learn.batch))

@pytest.mark.parametrize('before', [None, lambda x: (x-.2)/.3])
@pytest.mark.parametrize('n_epochs', [2,4])
def test_alternating_flip_shows_both_sides_in_two_epochs(before, n_epochs):
    see,cbs = See('before_batch'),[AltFlipCB(seed=4)]
    if before: cbs.append(BatchTransformCB(partial(tfm_batch, tfm_x=before)))
    learn = image_learner([*cbs, see])
    learn.fit(n_epochs)
    key = lambda x: x.numpy().tobytes()
    x = learn.dls.train.x if before is None else before(learn.dls.train.x)
    sides = {key(o): (i,s) for s,xs in enumerate((x, x.flip(-1))) for i,o in enumerate(xs)}
    shown = [{} for _ in range(n_epochs)]
    for training,epoch,xb,yb in see.seen:
        if training: shown[epoch] |= dict(sides[key(o)] for o in xb)
        else: assert all(sides[key(o)][1]==0 for o in xb)
    for a,b in zip(shown, shown[1:]): assert all(a[i]!=b[i] for i in range(24))
    assert len(set(shown[0].values()))==2

def test_alternating_flips_seed_chooses_the_half():
    x = images((2000,1,28,28))
    halves = torch.stack([AltFlipCB(s).half(x) for s in range(4)]).float()
    assert ((halves.mean(1)-.5).abs()<.05).all() and (torch.corrcoef(halves)-torch.eye(4)).abs().max()<.1

def test_alternating_flips_half_does_not_follow_the_class():
    from miniai.datasets import fashion_tensors
    x,y = fashion_tensors(sample=True, device='cpu')['train']
    half = AltFlipCB().half(x.float()/255).float()
    assert all(.4<half[y==c].mean()<.6 for c in range(10))

class Asked:
    "Cross-entropy that keeps the targets it is asked for"
    def __init__(self): self.seen = []
    def __call__(self, preds, y):
        self.seen.append(y)
        return F.cross_entropy(preds, y)

def test_cutmix_only_trains_on_soft_targets_and_leaves_the_labels():
    loss,events = Asked(),[See(o) for o in ('after_predict','after_loss','after_batch')]
    learn = image_learner([CutMixCB(per_image=True), MetricsCB(Accuracy()), *events], loss=loss)
    x = learn.dls.train.x.clone()
    learn.fit(2)
    assert torch.equal(learn.dls.train.x, x)
    soft = [y for y in loss.seen if y.is_floating_point()]
    assert len(soft)==10 and len(loss.seen)==10*2+10  # five batches in an epoch, each also with its labels
    assert all(y.shape[1]==3 and torch.allclose(y.sum(1), torch.ones(len(y))) for y in soft)
    for see in events:
        for training,_,xb,yb in see.seen:
            assert yb.dtype==torch.int64
            if not training: assert all((o==x).flatten(1).all(1).any() for o in xb)

def test_the_gradients_of_cutmix_are_those_of_soft_targets():
    a = image_learner([CutMixCB(per_image=True)])
    grads = lambda m: [p.grad.clone() for p in m.parameters()]
    class Compares(Callback):
        def after_backward(self, learn):
            got,loss = grads(learn.model),learn.loss.item()
            y = F.one_hot(learn.batch[1], 3)
            idx,lam = learn.mix
            soft = lam[:,None]*y+(1-lam[:,None])*y[idx]
            learn.model.zero_grad()
            learn.model[3].eval()
            (new := F.cross_entropy(learn.model(learn.batch[0]), soft)).backward()
            assert loss==pytest.approx(new.item(), rel=1e-4)
            for o,n in zip(got, grads(learn.model)): torch.testing.assert_close(o, n, rtol=1e-3, atol=1e-5)
            self.ran = True
    a.model[3].p = 0.
    a.fit(1, cbs=(c := Compares()))
    assert c.ran

@pytest.mark.parametrize('one_hot', [False,True])
def test_soft_targets_are_the_fractions_of_pixels(one_hot):
    "Image i is all i, and its class is i: the fractions of the values in an image are its target"
    x,y = torch.arange(6.)[:,None,None,None].expand(6,1,28,28),torch.arange(6)
    see,loss = See('after_predict'),Asked()
    dls = DataLoaders.from_tensors({'train': (x, F.one_hot(y).float() if one_hot else y)}, 6, seed=0)
    learn = image_learner([CutMixCB(per_image=True), see], dls, n_classes=6, loss=loss)
    learn.fit(3, valid=False)
    for (_,_,xb,_),yb in zip(see.seen, loss.seen[1::2], strict=True):
        fractions = torch.stack([(xb==i).float().mean((1,2,3)) for i in range(6)], 1)
        assert torch.allclose(yb, fractions, atol=1e-6)

@pytest.mark.parametrize('event', EVENTS)
def test_cutmix_leaves_labels_after_errors(event):
    learn = image_learner([CutMixCB(), Raises(event, ZeroDivisionError())])
    try: learn.fit(1)
    except ZeroDivisionError: pass
    assert learn.batch is None or learn.yb[0].dtype==torch.int64
    learn.cbs.pop()
    learn.fit(1)

def test_cutmix_leaves_labels_where_the_loss_fails():
    learn = image_learner([CutMixCB()], loss=F.nll_loss)
    with pytest.raises(RuntimeError): learn.fit(1)
    assert learn.yb[0].dtype==torch.int64

# Looking

VIEWS = [lambda x: x, lambda x: x*.9]
def drops(x): return x[:-1]
LOOKS = {'capture_preds': lambda l,cbs: l.capture_preds(cbs),
         'capture_preds, other loader': lambda l,cbs: l.capture_preds(cbs, dl=toy_dls(seed=9).train),
         'tta': lambda l,cbs: l.tta(VIEWS, cbs=[*cbs, MCDropoutCB()]),
         'ensemble': lambda l,cbs: ensemble([l, l], VIEWS)}

@pytest.mark.parametrize('look', LOOKS)
@pytest.mark.parametrize('trained', [0,1])
def test_no_trace(look, trained):
    learn = learner(trained)
    dls,valid = learn.dls,learn.dls.valid
    for cbs in ([], [Meddles()]): check(learn, lambda: LOOKS[look](learn, cbs))
    assert learn.dls is dls and dls.valid is valid

@pytest.mark.parametrize('look', ['capture_preds', 'capture_preds, other loader', 'tta'])
@pytest.mark.parametrize('event', ['before_fit', 'before_batch', 'after_predict', 'after_loss', 'after_batch',
                                   'cleanup_batch', 'after_epoch', 'cleanup_fit'])
@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_no_trace_of_errors(look, event, exc):
    learn = learner()
    dls,valid = learn.dls,learn.dls.valid
    at = int(any(o in event for o in ('batch','predict','loss')))
    def f():
        with pytest.raises(exc): LOOKS[look](learn, [Meddles(), Raises(event, exc(), at=at)])
    check(learn, f)
    assert learn.dls is dls and dls.valid is valid
    check(learn, lambda: LOOKS[look](learn, []))

@pytest.fixture
def shown(monkeypatch):
    "What `show_images` was asked to show"
    import miniai.augment as m
    shown,show = [],m.show_images
    def see(ims, **kwargs):
        shown.append((ims.clone(), kwargs))
        return show(ims, **kwargs)
    monkeypatch.setattr(m, 'show_images', see)
    yield shown
    plt.close('all')

def test_show_image_batch(shown):
    steps = See('after_predict')
    rnd = BatchTransformCB(partial(tfm_batch, tfm_x=RandErase(per_image=True)), on_val=False)
    learn = image_learner([rnd, MetricsCB(Accuracy()), steps])
    check(learn, lambda: learn.show_image_batch(4, nrows=2))
    check(learn, lambda: learn.show_image_batch(max_n=4))
    (a,kw),(b,_) = shown
    assert a.shape==(4,1,28,28) and kw['nrows']==2 and kw['title']
    assert not torch.equal(a, b) and ((a==b).float().mean()>.5)  # the same images, other patches
    assert not steps.seen and learn.xb[0].shape==(5,1,28,28)
    learn.cbs.insert(0, Raises('before_batch', KeyboardInterrupt()))
    def interrupted():
        with pytest.raises(KeyboardInterrupt): learn.show_image_batch()
    check(learn, interrupted)

DRAWS = dict(python=random.random, numpy=np.random.rand, torch=lambda: torch.rand(1).item())
@pytest.mark.parametrize('draw', DRAWS)
def test_show_image_batch_draws_afresh(shown, draw):
    learn = image_learner([BatchTransformCB(lambda b: (b[0]*0+DRAWS[draw](), *b[1:]))])
    for _ in range(2): check(learn, learn.show_image_batch)
    (a,_),(b,_) = shown
    assert not torch.equal(a, b)

def test_show_image_batch_inside_a_fit_shows_training_images(shown):
    class Shows(Callback):
        def after_epoch(self, learn): learn.show_image_batch(4)
    a,b = (image_learner(MetricsCB(Accuracy())) for _ in range(2))
    set_seed(1)
    a.fit(2)
    set_seed(1)
    b.fit(2, cbs=Shows())
    assert len(shown)==4 and all(len(ims)==4 for ims,_ in shown)
    assert all(map(torch.equal, a.model.state_dict().values(), b.model.state_dict().values()))

def test_show_image_batch_without_training_data(shown):
    x = images((6,1,28,28))
    learn = image_learner(dls=DataLoaders(None, DataLoader(TensorDataset(x, torch.arange(6)%3), 3)))
    learn.show_image_batch()
    assert torch.equal(shown[0][0], x[:3])

# Any data: with class names or without, tuples or dicts, loaders of any kind, gray or in color

class Named(nn.Module):
    "Takes its input by the name that it has in the batch"
    def __init__(self, c, n_classes):
        super().__init__()
        self.lin = nn.Linear(c*64, n_classes)
    def forward(self, pixels): return self.lin(pixels.flatten(1))

def any_learner(n_classes=3, kind='tuple', c=1, vocab=None, n=24):
    "Images in [-1,1] from a loader of torch; no validation image gets the class that the model says"
    set_seed(0)
    x,model = torch.rand(n,c,8,8)*2-1,Named(c, n_classes)
    y = (model(x).argmax(1)+1)%n_classes
    rows = TensorDataset(x, y) if kind=='tuple' else [dict(pixels=a, target=b) for a,b in zip(x, y)]
    dls = DataLoaders(DataLoader(rows, 5, shuffle=True), DataLoader(rows, 5, shuffle=True), vocab=vocab)
    return TrainLearner(model, dls, lambda preds,target: F.cross_entropy(preds, target))

@pytest.mark.parametrize('kind', ['tuple','dict'])
@pytest.mark.parametrize('c', [1,3])
@pytest.mark.parametrize('n_classes, vocab', [(3,None), (12,None), (3,['cat','dog','cow']), (12,['cat','dog','cow'])])
def test_pictures_of_any_data(shown, kind, c, n_classes, vocab):
    learn = any_learner(n_classes, kind, c, vocab)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig = plot_mistakes(learn, 6)
        fig.canvas.draw()
        learn.show_image_batch(4).canvas.draw()
    titles = [ax.get_title() for ax in fig.axes]
    name = lambda i: vocab[i] if vocab and i<len(vocab) else f'class {i}'
    preds,y,x = learn.capture_preds(inps=True)
    if kind=='dict': y,x = y['target'],x['pixels']
    p,pred = preds.softmax(1).max(1)
    worst = p.argsort(descending=True)[:6].tolist()
    assert titles==[f'{name(y[i])}\nmodel: {name(pred[i])}, {p[i]:.0%}' for i in worst]
    for ims,_ in shown: assert c==1 or (ims.min()>=0 and ims.max()<=1)

def test_pictures_of_mistakes_where_there_are_none_or_no_labels():
    learn = any_learner()
    learn.dls.valid = [(x, learn.model(x).argmax(1)) for x,_ in learn.dls.valid]
    assert plot_mistakes(learn) is None
    learn.dls.valid,learn.loss_func = [x for x,_ in learn.dls.valid],lambda preds,*y: preds.sum()
    with pytest.raises(ValueError, match=r'labels \(n,\), not \(24, 3\) and None'): plot_mistakes(learn)

@pytest.mark.parametrize('kind', ['tuple','dict'])
def test_mixing_and_views_of_any_data(kind):
    learn = any_learner(12, kind)
    learn.fit(2, cbs=[AltFlipCB(), CutMixCB(per_image=True), MetricsCB(Accuracy())])
    probs,targs = learn.tta()
    assert probs.shape==(24,12) and torch.allclose(probs.sum(1), torch.ones(24))
    both,_ = ensemble([learn, any_learner(12, kind)], dl=list(learn.dls.valid)) if kind=='tuple' else (probs,0)
    assert both.shape==(24,12)

def test_views_of_masks_come_with_an_inverse():
    x,flip = images((4,2,6,6)),lambda t: t.flip(-1)
    learn = TrainLearner(nn.Conv2d(2,3,1), DataLoaders.from_tensors({'valid': (x,x[:,:1])}, 3), lambda p,y: p.mean())
    plain,_ = learn.capture_preds()
    assert torch.allclose(learn.tta([lambda t: t, (flip,flip)])[0], plain.softmax(1), atol=1e-6)
    assert torch.allclose(learn.tta([(flip,flip)], probs=False)[0], plain, atol=1e-6)
    assert not torch.allclose(learn.tta([lambda t: t, flip], probs=False)[0], plain, atol=1e-3)

def test_tta_of_several_outputs():
    class Two(nn.Module):
        def forward(self, x): return {'a': x.flatten(1), 'b': (-x.flatten(1),)}
    x = images((5,1,2,2))
    learn = TrainLearner(Two(), DataLoaders(None, [(x,torch.zeros(5))]), lambda preds,y: preds['a'].sum())
    preds,_ = learn.tta([lambda x: x, lambda x: x*3], probs=False)
    assert torch.allclose(preds['a'], 2*x.flatten(1)) and torch.allclose(preds['b'][0], -2*x.flatten(1))
    probs,_ = learn.tta()
    tree_map(lambda t: torch.testing.assert_close(t.sum(1), torch.ones(5)), probs)

class Sums(nn.Module):
    "Scores that a view changes in a known way: the sum of an image, and zero"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
    def forward(self, x): return torch.stack([self.w*x.flatten(1).sum(1), torch.zeros(len(x))], 1)

def sums_learner(n=23, bs=5, shuffle=False):
    x,y = images((n,1,4,4)),torch.arange(n)
    dl = TensorLoader(x, y, bs, shuffle=shuffle, seed=3)
    return TrainLearner(Sums(), DataLoaders(dl, dl), lambda p,y: p.sum()), x, y

@pytest.mark.parametrize('shuffle', [False,True])
def test_tta_of_an_equivariant_model_is_the_expected_mean(shuffle):
    learn,x,_ = sums_learner(shuffle=shuffle)
    views,factors = [lambda x: x, lambda x: x*2, lambda x: x*-1, lambda x: x.flip(-1)*3],torch.tensor([1,2,-1,3.])
    preds,targs = learn.tta(views, probs=False)
    s = x.flatten(1).sum(1)
    assert torch.allclose(preds[:,0], s[targs]*factors.mean()) and (preds[:,1]==0).all()
    probs,targs2 = learn.tta(views)
    want = torch.sigmoid(s[targs,None]*factors).mean(1)
    assert torch.allclose(probs[:,0], want, atol=1e-6) and torch.allclose(probs.sum(1), torch.ones(23))
    assert torch.equal(targs, targs2) and sorted(targs.tolist())==list(range(23))
    assert (targs.tolist()!=list(range(23)))==shuffle

def test_tta_of_an_invariant_model_changes_nothing():
    learn,*_ = sums_learner()
    assert torch.allclose(learn.tta(probs=False)[0], learn.capture_preds()[0])

def test_random_views_differ_within_a_pass_and_repeat_from_call_to_call():
    learn,*_ = sums_learner(n=4, bs=4)
    seen = []
    def noisy(x):
        seen.append(torch.rand(1).item())
        return x+seen[-1]
    a = learn.tta([noisy]*5, probs=False)[0]
    assert len(set(seen))==5
    assert torch.equal(a, learn.tta([noisy]*5, probs=False)[0])

@pytest.mark.parametrize('shuffle', [False,True])
def test_capture_keeps_rows_with_their_targets(shuffle):
    learn,x,y = sums_learner(shuffle=shuffle)
    preds,targs,inps = learn.capture_preds(inps=True)
    assert len(preds)==23 and torch.allclose(preds[:,0], x[targs].flatten(1).sum(1)) and torch.equal(inps, x[targs])
    own = list(learn.dls.valid)
    assert torch.equal(targs, torch.cat([b[1] for b in own])), 'the order that the loader would have given'

def test_capture_with_inputs_keeps_the_plain_ones():
    learn,x,_ = sums_learner()
    *_,inps = learn.capture_preds(TTACB([lambda x: x*2, lambda x: x*3]), inps=True)
    assert torch.equal(inps, x)

def test_capture_other_structures():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4,3)
        def forward(self, a, b=0): return {'s': self.l(a), 't': (self.l(a), a+b)}
    n = 7
    loss = lambda p,*ys,**kw: p['s'].mean()
    dl = DataLoader(TensorDataset(torch.rand(n,4), torch.rand(n,4), torch.arange(n), -torch.arange(n)), 3)
    p,(t,u),(a,b) = TrainLearner(Two(), DataLoaders(dl, dl), loss, n_inp=2).capture_preds(inps=True)
    assert p['s'].shape==(n,3) and torch.allclose(p['t'][1], a+b) and torch.equal(t, -u) and t.tolist()==list(range(n))
    rows = [{'a': torch.rand(4), 'y': torch.tensor(i)} for i in range(n)]
    p,t = TrainLearner(Two(), DataLoaders(None, DataLoader(rows, 3)), loss).capture_preds()
    assert t['y'].tolist()==list(range(n))
    p,t = TrainLearner(Two(), DataLoaders(None, DataLoader(torch.rand(n,4), 3)), loss).capture_preds()
    assert t==() and p['s'].shape==(n,3)

def test_capture_in_a_training_keeps_the_last_pass():
    cp,learn = CapturePreds(),learner(2)
    learn.cbs = []
    learn.fit(2, cbs=cp)
    assert len(cp.all_preds)==len(cp.all_targs)==16
    learn.fit(1, train=False, cbs=[cp, SingleBatchCB()])
    assert len(cp.all_preds)==8

def test_metrics_and_progress_sit_out_unless_passed():
    learn = learner()
    n = len(learn.metrics.history)
    own = MetricsCB(Accuracy())
    preds,targs = learn.capture_preds(cbs=own)
    assert len(learn.cbs[0].history)==n
    assert own.history[0]['valid_accuracy']==(preds.argmax(1)==targs).float().mean().item()

def test_metrics_see_the_averaged_predictions():
    learn = learner()
    views,own = [lambda x: x, lambda x: x+1.],MetricsCB(Accuracy())
    probs,targs = learn.tta(views, cbs=own)
    assert own.history[0]['valid_accuracy']==pytest.approx((probs.argmax(1)==targs).float().mean().item())
    assert own.history[0]['valid_loss']==pytest.approx(F.nll_loss(probs.log(), targs).item(), rel=1e-4)

def test_tta_leaves_training_passes_alone():
    a,b = (learner(0) for _ in range(2))
    set_seed(1)
    a.fit(1, valid=False)
    set_seed(1)
    b.fit(1, valid=False, cbs=TTACB([drops]))
    assert all(map(torch.equal, a.model.state_dict().values(), b.model.state_dict().values()))

def test_test_time_dropout():
    learn = learner()
    views = [lambda x: x]
    off,on = learn.tta(views)[0],learn.tta(views, cbs=MCDropoutCB())[0]
    assert torch.equal(off, learn.tta(views)[0]) and not torch.allclose(off, on)
    modes = []
    class Modes(Callback):
        def before_batch(self, learn):
            modes.append([m.training for m in learn.model if isinstance(m, (nn.Dropout, nn.BatchNorm1d))])
    learn.capture_preds([MCDropoutCB(), Modes()])
    assert all(m==[False,True,False] for m in modes)

@pytest.mark.parametrize('views, msg', [
    ([drops], 'made 7 rows of 8'), ([lambda x: x, drops], 'made 7 rows of 8'),
    ([lambda x: torch.cat([x,x])], 'made 16 rows of 8'), ([], 'views is empty')])
def test_bad_views(views, msg):
    learn = learner()
    def f():
        with pytest.raises(ValueError, match=msg): learn.tta(views)
    check(learn, f)

# Ensembles

@pytest.mark.parametrize('probs', [True,False])
def test_ensemble_is_the_mean(probs):
    ls = [image_learner(seed=s) for s in range(3)]
    preds,targs = ensemble(ls, probs=probs)
    want = torch.stack([l.tta([lambda x: x], probs)[0] for l in ls]).mean(0)
    assert torch.allclose(preds, want) and torch.equal(targs, ls[0].dls.valid.y)
    flipped,_ = ensemble(ls, (RandFlip(1),), probs)
    assert not torch.allclose(flipped, preds)

def test_ensemble_keeps_rows_together_where_loaders_shuffle():
    (a,x,_),(b,*_) = (sums_learner(shuffle=True) for _ in range(2))
    b.dls = DataLoaders(None, TensorLoader(x, torch.arange(23), 4, shuffle=True, seed=77))
    preds,targs = ensemble([a, b], probs=False)
    assert torch.allclose(preds[:,0], x[targs].flatten(1).sum(1)) and sorted(targs.tolist())==list(range(23))

def test_ensemble_with_a_loader_of_torch():
    ds = TensorDataset(images((12,1,28,28)), torch.arange(12)%3)
    dl = DataLoader(ds, 5, shuffle=True)
    preds,targs = ensemble([image_learner(seed=s) for s in range(2)], dl=dl)
    assert preds.shape==(12,3) and targs.bincount().tolist()==[4,4,4]

def test_bad_ensembles():
    with pytest.raises(ValueError, match='at least one learner, got none'): ensemble([])
    with pytest.raises(ValueError, match='different classes'): ensemble([image_learner(), image_learner(n_classes=4)])
    class Moves:
        n = 0
        def __iter__(self):
            Moves.n += 1
            yield images((3,1,28,28)), torch.full((3,), Moves.n%3)
    two = [image_learner(), image_learner()]
    with pytest.raises(ValueError, match='other rows the second time'): ensemble(two, dl=Moves())

# Predictions without targets, what is confused, and programs

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

@pytest.mark.parametrize('kind', ['default','loader','pairs','inputs','batch','bytes','one','files'])
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
    loss_func,dls = learn.loss_func,learn.dls
    before = [random.getstate(), torch.get_rng_state().tolist(), [m.training for m in learn.model.modules()]]
    assert torch.allclose(learn.get_preds(data), expected, atol=1e-5)
    assert before==[random.getstate(), torch.get_rng_state().tolist(), [m.training for m in learn.model.modules()]]
    assert learn.loss_func is loss_func and learn.dls is dls

@pytest.mark.parametrize('event', ['before_fit', 'before_batch', 'after_predict', 'cleanup_fit'])
@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_get_preds_leaves_no_trace(event, exc):
    learn = learner()
    loss_func,dls = learn.loss_func,learn.dls
    x = torch.rand(5,4)
    def fails():
        with pytest.raises(exc): learn.get_preds(x, [Meddles(), Raises(event, exc())])
    for f in (lambda: learn.get_preds(x, Meddles()), fails, learn.get_preds):
        check(learn, f)
        assert learn.loss_func is loss_func and learn.dls is dls

def test_get_preds_inside_a_fit():
    seen = []
    class Predicts(Callback):
        def after_batch(self, learn): seen.append(learn.get_preds(torch.ones(3,4)))
    a,b = (learner(0) for _ in range(2))
    for l,cbs in ((a,None),(b,Predicts())):
        set_seed(1)
        l.fit(1, cbs=cbs)
    assert len(seen)==6 and all(map(torch.equal, a.model.state_dict().values(), b.model.state_dict().values()))

def test_get_preds_with_views():
    learn,x = color_learner(),images((7,3,9,14))
    both = torch.stack([want(learn, o) for o in (x, x.flip(-1))])
    assert torch.allclose(learn.get_preds(x, TTACB([lambda x: x, RandFlip(1)], probs=False)), both.mean(0), atol=1e-5)
    assert torch.allclose(learn.get_preds(x, TTACB([RandFlip(1)])).exp(), both[1].softmax(1), atol=1e-5)

@pytest.mark.parametrize('c, mode', [(1,'L'), (1,'RGB'), (1,'1'), (1,'P'), (3,'RGB'), (3,'L'), (3,'RGBA'), (4,'RGB')])
def test_classify_a_pil_image_of_any_kind(c, mode, tmp_path):
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor
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

def test_classify_tensors_and_without_names():
    learn,x = color_learner(vocab=['cat']),images((3,9,14))
    i = want(learn, x[None]).argmax().item()
    assert learn.classify(x)[0]==['cat','class 1','class 2'][i]

def test_classify_wants_loaders_of_pixels():
    from PIL import Image
    learn = color_learner()
    learn.dls.valid.x = learn.dls.valid.x*2-1
    with pytest.raises(ValueError, match=r'images in dls.valid run from -\d.* pass a tensor'):
        learn.classify(Image.new('RGB', (5,5)))

def counted_learner(vocab=None):
    "Says class 1 where the label is 2, and never says 3, a class without images"
    y = torch.tensor([0,0,0,1,2,2])
    scores = F.one_hot(torch.tensor([0,0,1,1,1,2]), 4).float()*5
    dls = DataLoaders(None, DataLoader(TensorDataset(scores, y), 4), vocab=vocab)
    return TrainLearner(nn.Identity(), dls, F.cross_entropy)

@pytest.mark.parametrize('vocab', [None, list('abcd'), list('ab'), list('abcdef')])
def test_confusion_and_report(vocab):
    learn = counted_learner(vocab)
    names = [*(vocab or [])[:4], *(f'class {i}' for i in range(len(vocab or []), 4))]
    n = confusion(learn)
    assert n.to_numpy().tolist()==[[2,1,0,0],[0,1,0,0],[0,1,1,0],[0,0,0,0]]
    assert list(n.index)==list(n.columns)==names
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        r = class_report(learn)
        fig = plot_confusion(learn)
        fig.canvas.draw()
    assert r['count'].tolist()==[3,1,2,0] and list(r.index)==names
    assert np.allclose(r.precision, [1,1/3,1,np.nan], equal_nan=True)
    assert np.allclose(r.recall, [2/3,1,1/2,np.nan], equal_nan=True)
    ax, = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()]==[t.get_text() for t in ax.get_xticklabels()]==names
    assert sorted((*t.get_position(),t.get_text()) for t in ax.texts)==[
        (0,0,'2'),(1,0,'1'),(1,1,'1'),(1,2,'1'),(2,2,'1')]
    plt.close(fig)

def test_report_agrees_with_torchmetrics():
    tm = pytest.importorskip('torchmetrics.functional.classification')
    learn = image_learner(n_classes=5, seed=1)
    n,r = confusion(learn),class_report(learn)
    preds,y = learn.capture_preds()
    kw = dict(num_classes=5, average='none')
    assert (n.to_numpy()==tm.multiclass_confusion_matrix(preds, y, 5).numpy()).all()
    assert np.allclose(r.recall.fillna(0), tm.multiclass_recall(preds, y, **kw))
    assert np.allclose(r.precision.fillna(0), tm.multiclass_precision(preds, y, **kw))

@pytest.mark.parametrize('f', [confusion, class_report, plot_confusion])
def test_confusion_needs_classes(f):
    learn = TrainLearner(nn.Linear(4,1), toy_dls(), lambda p,*y: p.mean())
    learn.dls.valid = [torch.rand(3,4)]
    with pytest.raises(ValueError, match=r'labels \(n,\), not \(3, 1\) and None'): f(learn)

LOADS = '''
import sys, torch
names = {'vocab.txt': ''}
f = torch.export.load(sys.argv[1], extra_files=names).module()
x,want = torch.load(sys.argv[2])
for n in 1,2,len(x): torch.testing.assert_close(f(x[:n]), want[:n])
assert not f(x).requires_grad
assert names['vocab.txt'].split('\\n')==['cat','dog','cow']
assert not any(m.startswith('miniai') for m in sys.modules)
'''

def test_an_export_runs_without_miniai(tmp_path):
    learn,x = color_learner(cbs=[BatchTransformCB(lambda b: (b[0]*0,*b[1:]), on_val=False)]),images((7,3,9,14))
    learn.opt = learn.opt_func(learn.model.parameters(), .1)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.export(tmp_path/'m.pt2')
    assert torch.equal(torch.get_rng_state(), before)
    assert learn.model.training and learn.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert learn.model[0].weight.requires_grad
    torch.save((x, learn.get_preds(x)), tmp_path/'x.pt')
    subprocess.run([sys.executable, '-I', '-c', LOADS, tmp_path/'m.pt2', tmp_path/'x.pt'], check=True, cwd=tmp_path)

@pytest.mark.parametrize('make', ['wide','model4'])
def test_export_of_the_lessons_models_as_recipes_train_them(make, tmp_path):
    from miniai.accel import MixedPrecision, fast_layers
    from miniai.recipes import models
    set_seed(0)
    x = images((5,1,28,28))
    dls = DataLoaders.from_tensors({'valid': (x[:1],torch.zeros(1).long())}, 3)
    model = fast_layers(models[make]().to(memory_format=torch.channels_last))
    learn = TrainLearner(model, dls, F.cross_entropy, cbs=[DeviceCB(), MixedPrecision(torch.float32)])
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

def test_export_to_onnx(tmp_path):
    learn,x = color_learner(),images((7,3,9,14))
    if not all(map(find_spec, ('onnx','onnxscript'))):
        with pytest.raises(ImportError, match='pip install onnx onnxscript'): learn.export(tmp_path/'m.onnx')
        return
    learn.export(tmp_path/'m.onnx')
    assert [p.name for p in tmp_path.iterdir()]==['m.onnx']
    ort = pytest.importorskip('onnxruntime')
    s = ort.InferenceSession(tmp_path/'m.onnx')
    for n in 1,7:
        res, = s.run(None, {s.get_inputs()[0].name: x[:n].numpy()})
        assert np.allclose(res, learn.get_preds(x[:n]), atol=1e-5)
