"Augmentation, captured predictions, TTA and ensembles: what a notebook cannot show well"
import random
import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
from functools import partial
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, TensorDataset
from miniai.accel import EMACB, MixedPrecision
from miniai.augment import *
from miniai.challenge import MCDropoutCB
from miniai.core import *
from miniai.datasets import DataLoaders, TensorLoader
from miniai.init import BatchTransformCB
from miniai.learner import *
from conftest import At, Meddles, Raises, check, learner, toy_dls
from test_predict import any_learner

TFMS = {'crop': RandCrop(2), 'flip': RandFlip(), 'erase': RandErase(), 'copy': RandCopy(),
        'crop each': RandCrop(2, per_image=True), 'flip each': RandFlip(per_image=True),
        'erase each': RandErase(per_image=True), 'copy each': RandCopy(per_image=True)}
SHAPES = [(5,1,28,28), (1,3,9,14), (7,2,5,5)]

def images(shape=(64,1,28,28), seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
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
        assert y.shape==x.shape and y.dtype==x.dtype and y.device==x.device
        assert torch.equal(x, kept) and y.data_ptr()!=x.data_ptr()
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

@pytest.mark.parametrize('nm', ['crop', 'flip', 'erase', 'copy'])
def test_one_draw_for_the_batch_or_one_for_each_image(nm):
    "Equal images stay equal, unless each has its own draw; noise differs anyway, so places count"
    x = images((1,1,28,28)).expand(64,1,28,28)
    def where(y): return y!=x if nm=='erase' else y
    def all_same(nm): return [same_for_all(where(TFMS[nm](x))) for _ in range(8)]
    set_seed(0)
    assert all(all_same(nm))
    assert not any(all_same(nm+' each'))

@pytest.mark.parametrize('nm', TFMS)
def test_strided_input(nm):
    x = images((8,3,28,28)).to(memory_format=torch.channels_last)
    set_seed(0)
    a = TFMS[nm](x)
    set_seed(0)
    assert torch.allclose(a, TFMS[nm](x.contiguous()), atol=1e-5)

class _Draws(Dataset):
    def __len__(self): return 8
    def __getitem__(self, i):
        return RandErase(per_image=True)(torch.linspace(0, 1, 784).view(1,1,28,28))[0]

def test_on_workers():
    def run():
        gen = torch.Generator().manual_seed(3)
        return torch.cat(list(DataLoader(_Draws(), 4, num_workers=2, generator=gen)))
    a = run()
    assert torch.equal(a, run()) and not same_for_all(a)

def test_crop_shifts_by_every_amount_and_repeats_the_edge():
    x = torch.arange(28.)[None,None,None].expand(2000,1,28,28)
    set_seed(0)
    y = RandCrop(2, per_image=True)(x)
    shifted = [torch.arange(28)+d for d in range(-2,3)]
    assert {tuple(o) for o in y[:,0,0].tolist()}=={tuple(o.clamp(0, 27).tolist()) for o in shifted}
    y = RandCrop(2, per_image=True)(x.mT)
    assert torch.equal(y, y[...,:1].expand_as(y))
    assert {o.item() for o in y[:,0,5,0]}=={3.,4.,5.,6.,7.}

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
    erased = [rand_erase(x, .25, 1, per_image)!=x for _ in range(40)]
    fractions = torch.cat(erased).float().mean((1,2,3))
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
            high,wide = r.max()-r.min()+1,c.max()-c.min()+1
            assert high<=7 and wide<=7 and moved.sum()==high*wide
        assert b.min()>=a.min() and b.max()<=a.max()

def test_box_mask():
    m = box_mask(torch.zeros(1,1,5,6), torch.tensor([[1]]), torch.tensor([[2]]), 2, 3)
    want = torch.zeros(1,1,5,6)
    want[...,1:3,2:5] = 1
    assert torch.equal(m.float(), want)

@pytest.mark.parametrize('pct', [0, -.1, 20, float('nan')])
@pytest.mark.parametrize('f', [rand_erase, rand_copy])
def test_patches_that_cannot_be(f, pct):
    with pytest.raises(ValueError, match=f'pct must be a fraction above 0 .* got {pct}'):
        f(images(), pct)

@pytest.mark.parametrize('nm', TFMS)
def test_one_image_is_not_a_batch(nm):
    with pytest.raises(ValueError, match='not enough values to unpack'): TFMS[nm](images()[0])

def test_a_transform_says_what_it_does():
    "These texts are part of a run's identity"
    assert [str(TFMS[nm]) for nm in ('crop','flip','erase','copy each')]==[
        'RandCrop(padding=2, per_image=False)', 'RandFlip(p=0.5, per_image=False)',
        'RandErase(pct=0.2, max_num=4, per_image=False)',
        'RandCopy(pct=0.2, max_num=4, per_image=True)']

@pytest.mark.parametrize('b', [(1,2,3), [1,2,3], {'a': 1, 'b': 2, 'c': 3}])
def test_tfm_batch_keeps_the_kind_of_batch(b):
    res = tfm_batch(b, lambda x: x*10, lambda y: -y)
    assert res==({'a': 10, 'b': -2, 'c': -3} if isinstance(b, dict) else (10,-2,-3))
    assert torch.equal(tfm_batch(torch.ones(2,3), lambda x: x+1), torch.full((2,3), 2.))

# Looking at a batch

def image_dls(n=24, bs=5, n_valid=None):
    x,y = images((n,1,28,28)),torch.arange(n)%3
    splits = {'train': (x,y), 'valid': (x[:n_valid],y[:n_valid])}
    return DataLoaders.from_tensors(splits, bs, seed=0)

def image_learner(cbs=None, dls=None, n_classes=3, loss=F.cross_entropy, seed=0):
    set_seed(seed)
    model = nn.Sequential(nn.Conv2d(1,4,3,stride=4), nn.BatchNorm2d(4), nn.Flatten(),
                          nn.Dropout(.2), nn.Linear(4*49,n_classes))
    return TrainLearner(model, dls or image_dls(), loss, .1, cbs=cbs)

VIEWS = [lambda x: x, lambda x: x*.9]
def drops(x): return x[:-1]
DRY_RUNS = {'capture_preds': lambda l,cbs: l.capture_preds(cbs),
            'other loader': lambda l,cbs: l.capture_preds(cbs, dl=toy_dls(seed=9).train),
            'tta': lambda l,cbs: l.tta(VIEWS, cbs=[*cbs, MCDropoutCB()]),
            'ensemble': lambda l,cbs: ensemble([l, l], VIEWS)}

@pytest.mark.parametrize('dry_run', DRY_RUNS)
@pytest.mark.parametrize('trained', [0,1])
def test_a_dry_run_changes_nothing(dry_run, trained):
    learn = learner(trained)
    dls,valid = learn.dls,learn.dls.valid
    for cbs in ([], [Meddles()]): check(learn, lambda: DRY_RUNS[dry_run](learn, cbs))
    assert learn.dls is dls and dls.valid is valid

@pytest.mark.parametrize('dry_run', ['capture_preds', 'other loader', 'tta'])
@pytest.mark.parametrize('event', ['before_fit', 'before_batch', 'after_predict', 'after_loss',
                                   'after_batch', 'cleanup_batch', 'after_epoch', 'cleanup_fit'])
@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_a_dry_run_that_fails_changes_nothing(dry_run, event, exc):
    learn = learner()
    dls,valid = learn.dls,learn.dls.valid
    at = int(any(o in event for o in ('batch','predict','loss')))
    def f():
        with pytest.raises(exc): DRY_RUNS[dry_run](learn, [Meddles(), Raises(event, exc(), at=at)])
    check(learn, f)
    assert learn.dls is dls and dls.valid is valid
    check(learn, lambda: DRY_RUNS[dry_run](learn, []))

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
    steps = []
    rnd = BatchTransformCB(partial(tfm_batch, tfm_x=RandErase(per_image=True)), on_val=False)
    learn = image_learner([rnd, MetricsCB(Accuracy()), At('after_predict', steps.append)])
    check(learn, lambda: learn.show_image_batch(4, nrows=2))
    check(learn, lambda: learn.show_image_batch(max_n=4))
    (a,kw),(b,_) = shown
    assert a.shape==(4,1,28,28) and kw['nrows']==2 and kw['title']
    assert not torch.equal(a, b) and ((a==b).float().mean()>.5)  # the same images, other patches
    assert not steps
    learn.cbs.insert(0, Raises('before_batch', KeyboardInterrupt()))
    def interrupted():
        with pytest.raises(KeyboardInterrupt): learn.show_image_batch()
    check(learn, interrupted)

DRAWS = dict(python=random.random, torch=lambda: torch.rand(1).item())
@pytest.mark.parametrize('draw', DRAWS)
def test_show_image_batch_draws_afresh(shown, draw):
    learn = image_learner([BatchTransformCB(lambda b: (b[0]*0+DRAWS[draw](), *b[1:]))])
    for _ in range(2): check(learn, learn.show_image_batch)
    (a,_),(b,_) = shown
    assert not torch.equal(a, b)

def test_show_image_batch_inside_a_fit_shows_training_images(shown):
    shows = At('after_epoch', lambda learn: learn.show_image_batch(4))
    a,b = (image_learner(MetricsCB(Accuracy())) for _ in range(2))
    set_seed(1)
    a.fit(2)
    set_seed(1)
    b.fit(2, cbs=shows)
    assert len(shown)==4 and all(len(ims)==4 for ims,_ in shown)
    assert all(map(torch.equal, a.model.state_dict().values(), b.model.state_dict().values()))

def test_show_image_batch_keeps_gradients_and_the_optimizer(shown):
    learn = image_learner()
    learn.fit(1)
    opt = learn.opt
    for p in learn.model.parameters(): p.grad = torch.ones_like(p)
    learn.show_image_batch(4)
    assert learn.opt is opt and all((p.grad==1).all() for p in learn.model.parameters())

# Any data: with class names or without, tuples or dicts, loaders of any kind, gray or in color

@pytest.mark.parametrize('kind', ['tuple','dict'])
@pytest.mark.parametrize('c', [1,3])
def test_a_batch_of_any_data_can_be_shown(shown, kind, c):
    any_learner(kind=kind, c=c).show_image_batch(4)
    plt.gcf().canvas.draw()
    (ims,_), = shown
    assert c==1 or (ims.min()>=0 and ims.max()<=1)

@pytest.mark.parametrize('kind', ['tuple','dict'])
def test_a_batch_is_shown_with_class_names(shown, kind):
    learn = any_learner(kind=kind, vocab=['ant','bee','cat'])
    def names(b): return [learn.dls.vocab[i] for i in ([*b.values()][1] if kind=='dict' else b[1])]
    batches = []
    learn.show_image_batch(4, cbs=At('before_batch', lambda o: batches.append(o.batch)))
    assert [ax.get_title() for ax in plt.gcf().axes]==names(batches[0])[:4]
    learn.show_image_batch(2, titles='ab')
    assert shown[-1][1]['titles']=='ab'

@pytest.mark.parametrize('targets', [
    lambda y: (y[:,None],), lambda y: (y,y), lambda y: (), lambda y: (torch.tensor(.5),)])
def test_other_targets_are_no_titles(shown, targets):
    learn = any_learner(vocab=['ant','bee','cat'])
    def change(learn): learn.batch = (learn.batch[0], *targets(learn.batch[1]))
    learn.show_image_batch(2, cbs=At('before_batch', change))
    assert shown[-1][1].get('titles') is None

def test_captured_inputs_are_there():
    "As in the course, the callback keeps them unless told not to"
    learn,cp = any_learner(),CapturePreds()
    learn.fit(1, train=False, cbs=cp)
    assert cp.all_inps.shape==(24,1,8,8)
    small = CapturePreds(inps=False)
    learn.fit(1, train=False, cbs=small)
    assert small.all_inps==()

@pytest.mark.parametrize('kind', ['tuple','dict'])
def test_views_of_any_data(kind):
    learn = any_learner(12, kind)
    probs,_ = learn.tta()
    assert probs.shape==(24,12) and torch.allclose(probs.sum(1), torch.ones(24))

def test_an_ensemble_and_a_list_of_batches():
    learn = any_learner(12)
    learn.dls.valid = list(learn.dls.valid)
    both,_ = ensemble([learn, any_learner(12)])
    assert both.shape==(24,12)

def test_tta_of_several_outputs():
    class Two(nn.Module):
        def forward(self, x): return {'a': x.flatten(1), 'b': (-x.flatten(1),)}
    x = images((5,1,2,2))
    dls = DataLoaders(None, [(x,torch.zeros(5))])
    learn = TrainLearner(Two(), dls, lambda preds,y: preds['a'].sum())
    preds,_ = learn.tta([lambda x: x, lambda x: x*3], probs=False)
    assert torch.allclose(preds['a'], 2*x.flatten(1))
    assert torch.allclose(preds['b'][0], -2*x.flatten(1))
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
    views = [lambda x: x, lambda x: x*2, lambda x: x*-1, lambda x: x.flip(-1)*3]
    factors = torch.tensor([1,2,-1,3.])
    preds,targs = learn.tta(views, probs=False)
    s = x.flatten(1).sum(1)
    assert torch.allclose(preds[:,0], s[targs]*factors.mean()) and (preds[:,1]==0).all()
    probs,targs2 = learn.tta(views)
    want = torch.sigmoid(s[targs,None]*factors).mean(1)
    assert torch.allclose(probs[:,0], want, atol=1e-6)
    assert torch.allclose(probs.sum(1), torch.ones(23))
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
    assert len(preds)==23 and torch.equal(inps, x[targs])
    assert torch.allclose(preds[:,0], x[targs].flatten(1).sum(1))
    own = list(learn.dls.valid)
    assert torch.equal(targs, torch.cat([b[1] for b in own])), 'the loader would have given others'

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
    i = torch.arange(n)
    dl = DataLoader(TensorDataset(torch.rand(n,4), torch.rand(n,4), i, -i), 3)
    p,(t,u),(a,b) = TrainLearner(Two(), DataLoaders(dl, dl), loss, n_inp=2).capture_preds(inps=True)
    assert p['s'].shape==(n,3) and torch.allclose(p['t'][1], a+b)
    assert torch.equal(t, i) and torch.equal(u, -i)
    rows = [{'a': torch.rand(4), 'y': torch.tensor(i)} for i in range(n)]
    p,t = TrainLearner(Two(), DataLoaders(None, DataLoader(rows, 3)), loss).capture_preds()
    assert t['y'].tolist()==list(range(n))
    dls = DataLoaders(None, DataLoader(torch.rand(n,4), 3))
    p,t = TrainLearner(Two(), dls, loss).capture_preds()
    assert t==() and p['s'].shape==(n,3)

def test_capture_in_a_training_keeps_the_last_pass():
    cp,learn = CapturePreds(),learner(2)
    learn.cbs = []
    learn.fit(2, cbs=cp)
    assert len(cp.all_preds)==len(cp.all_targs)==16
    learn.fit(1, train=False, cbs=[cp, SingleBatchCB()])
    assert len(cp.all_preds)==8

def test_metrics_and_progress_are_left_out_unless_passed():
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
    accuracy = (probs.argmax(1)==targs).float().mean().item()
    loss = F.nll_loss(probs.log(), targs).item()
    assert own.history[0]['valid_accuracy']==pytest.approx(accuracy)
    assert own.history[0]['valid_loss']==pytest.approx(loss, rel=1e-4)

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
    def note(learn):
        watched = [m for m in learn.model if isinstance(m, (nn.Dropout, nn.BatchNorm1d))]
        modes.append([m.training for m in watched])
    learn.capture_preds([MCDropoutCB(), At('before_batch', note)])
    assert all(m==[False,True,False] for m in modes)

def test_dropout_in_validation_with_averaged_weights():
    learn,on = learner(0),[]
    note = At('after_epoch', lambda learn: on.append(learn.model[3].training), order=99)
    learn.fit(1, cbs=[EMACB(), MCDropoutCB(), note])
    assert on==[True,True]

@pytest.mark.parametrize('views, msg', [
    ([drops], 'target batch_size'), ([lambda x: x, drops], 'tensor to be equal size')])
def test_bad_views(views, msg):
    learn = learner()
    def f():
        with pytest.raises((ValueError, RuntimeError), match=msg): learn.tta(views)
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
    assert torch.allclose(preds[:,0], x[targs].flatten(1).sum(1))
    assert sorted(targs.tolist())==list(range(23))

def test_ensemble_with_a_loader_of_torch():
    ds = TensorDataset(images((12,1,28,28)), torch.arange(12)%3)
    dls = DataLoaders(None, DataLoader(ds, 5, shuffle=True))
    preds,targs = ensemble([image_learner(seed=s, dls=dls) for s in range(2)])
    assert preds.shape==(12,3) and targs.bincount().tolist()==[4,4,4]

def test_bad_ensembles():
    class Moves:
        n = 0
        def __iter__(self):
            Moves.n += 1
            yield images((3,1,28,28)), torch.full((3,), Moves.n%3)
    two = [image_learner(dls=DataLoaders(None, Moves())) for _ in range(2)]
    with pytest.raises(ValueError, match='must give the same rows each time'):
        ensemble(two)

def test_a_capture_keeps_its_rows_when_another_callback_captures():
    cp = CapturePreds()
    captures = At('after_batch', lambda learn: learn.capture_preds())
    image_learner([captures]).fit(1, train=False, cbs=cp)
    assert len(cp.all_preds)==24

@pytest.mark.parametrize('shape', [(3,1), (3,)])
def test_tta_of_what_are_no_classes(shape):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16,1), nn.Unflatten(1, shape[1:] or (1,)))
    if len(shape)==1: model.append(nn.Flatten(0))
    dls = DataLoaders.from_tensors({'valid': (images((3,1,4,4)), torch.zeros(3))}, 3)
    learn = TrainLearner(model, dls, lambda p,y: p.mean())
    with pytest.raises(ValueError, match='scores of two or more classes.* pass probs=False'): learn.tta()
    plain,_ = learn.capture_preds()
    assert plain.shape==shape
    assert torch.allclose(learn.tta([lambda x: x], probs=False)[0], plain)

def test_tta_averages_in_float32():
    learn = image_learner([MixedPrecision(torch.bfloat16)])
    flip = RandFlip(1.)
    views = [flip, nn.Identity()]
    tfms = [BatchTransformCB(partial(tfm_batch, tfm_x=v)) for v in views]
    a,b = (learn.capture_preds(tfm)[0] for tfm in tfms)
    preds,_ = learn.tta(views, probs=False)
    assert preds.dtype==torch.float32 and torch.allclose(preds, (a+b)/2, atol=1e-6)
