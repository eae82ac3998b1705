"What went wrong in silence when somebody tried to break the library: each of these failed before it was mended"
import copy, io, numpy as np, pytest, torch, torch.nn.functional as F
from functools import partial
from PIL import Image
from torch import nn, optim
from miniai.all import *
from conftest import Raises, toy, toy_dls, toy_model

class At(Callback):
    "Calls `f` at `event`"
    def __init__(self, event, f, order=0): self.event,self.f,self.order = event,f,order
    def __getattr__(self, k):
        if k!=self.__dict__.get('event'): raise AttributeError(k)
        return self.f

def rows(learn): return [{k: v for k,v in r.items() if 'seconds' not in k} for r in learn.history]
def weights(learn): return [t.detach().clone() for t in learn.model.state_dict().values()]
def equal(a, b): return all(torch.equal(x, y) for x,y in zip(a, b, strict=True))

def image_dls(bs=8, n=36, size=8):
    gen = torch.Generator().manual_seed(7)
    x,y = torch.rand(n,1,size,size, generator=gen), torch.randint(0, 3, (n,), generator=gen)
    return DataLoaders.from_tensors({'train': (x,y), 'valid': (x[:n//2],y[:n//2])}, bs, seed=0)

def images(cbs=None, opt_func=optim.AdamW, loss_func=F.cross_entropy, k=3, **kwargs):
    set_seed(0)
    model = nn.Sequential(nn.Conv2d(1,4,3,padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                          nn.Flatten(), nn.Linear(16,k))
    return TrainLearner(model, image_dls(**kwargs), loss_func, .01, cbs, opt_func)

# ---- data

def test_a_transform_in_place_does_not_change_the_data():
    learn = images()
    data = {id(t): t.clone() for dl in (learn.dls.train,learn.dls.valid) for t in (dl.x,)}
    learn.cbs = [BatchTransformCB(inplace(lambda b: b[0].sub_(.5)))]
    learn.fit(2)
    for dl in (learn.dls.train,learn.dls.valid): assert torch.equal(dl.x, data[id(dl.x)])
    x = torch.rand(4,1,8,8)
    before = x.clone()
    a,b = learn.get_preds(x),learn.get_preds(x)
    assert torch.equal(x, before) and torch.equal(a, b)

def test_palette_images_keep_their_colors():
    im = Image.new('RGB', (4,4), (250,10,20))
    assert torch.equal(tensor_images({'image': [im.convert('P', palette=Image.Palette.ADAPTIVE)]})['image'][0],
                       tensor_images({'image': [im]})['image'][0])

@pytest.mark.parametrize('n', [.2, 0, 36])
def test_hold_out_wants_a_whole_number(n):
    x = torch.rand(36, 2)
    with pytest.raises(ValueError, match=f'{n}'): hold_out({'train': (x,x)}, n)

def test_a_photo_is_turned_upright_as_the_folder_was():
    x = torch.zeros(16,1,8,8)
    x[::2,:,:4],x[1::2,:,:,:4] = 1,1  # the upper half, the left half
    dls = DataLoaders.from_tensors({'train': (x, torch.arange(16)%2), 'valid': (x, torch.arange(16)%2)}, 8)
    set_seed(0)
    learn = TrainLearner(nn.Sequential(nn.Flatten(), nn.Linear(64,2)), dls, F.cross_entropy, .5)
    learn.fit(20)
    im = Image.fromarray((x[0,0]*255).byte().numpy()).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    im.save(buf := io.BytesIO(), 'png', exif=exif)
    assert learn.classify(Image.open(buf))[0]=='class 0'
    with pytest.raises(ValueError, match='The mode I;16 is not one of 8 bits'): learn.classify(Image.new('I;16', (8,8)))

# ---- looks by callbacks

@pytest.mark.parametrize('look', [lambda l: l.capture_preds(), lambda l: l.lr_find(max_epochs=40, show=False)])
def test_looks_of_a_learner_whose_callback_looks(look):
    learn = images([At('after_epoch', look)])
    preds,targs = learn.capture_preds()
    assert len(preds)==len(targs)==18
    assert len(learn.tta()[0])==18 and confusion(learn).to_numpy().sum()==18
    assert len(learn.lr_find(show=False).lrs)>20

def test_a_users_own_capture_keeps_its_rows_when_another_callback_looks():
    cp = CapturePreds()
    images([At('after_batch', lambda l: l.capture_preds())]).fit(1, train=False, cbs=cp)
    assert len(cp.all_preds)==18

@pytest.mark.parametrize('event, order, look', [
    ('after_predict', 0, lambda learn: learn.dry_run or learn.show_image_batch()),
    ('before_batch', 99, lambda learn: learn.dry_run or learn.lr_find(show=False))])
def test_a_look_amid_a_mixed_batch(event, order, look):
    plain,looked = (images([CutMixCB(), MetricsCB(), *cbs]) for cbs in ([], [At(event, look, order)]))
    for learn in (plain,looked):
        set_seed(1)
        learn.fit(2)
    assert rows(plain)==rows(looked) and equal(weights(plain), weights(looked))

def test_a_look_between_backward_and_step_in_half_precision():
    look = lambda learn: learn.dry_run or learn.lr_find(show=False)
    half = lambda: MixedPrecision(torch.bfloat16)
    plain,looked = (images([half(), MetricsCB(), *cbs]) for cbs in ([], [At('after_backward', look)]))
    for learn in (plain,looked): learn.fit(2)
    assert rows(plain)==rows(looked)
    copy.deepcopy(looked).fit(1)

def test_a_copy_made_inside_a_fit_is_in_no_fit():
    kept = []
    learn = images([MetricsCB(), At('after_fit', lambda learn: kept.append(copy.deepcopy(learn)))])
    learn.fit(1)
    n = len(kept[0].history)
    kept[0].fit(2)
    assert len(kept[0].history)==n+2 and kept[0].history[-1]['epoch']==3

def test_a_look_within_a_look():
    seen,learners = [],[]
    learn = toy()
    def look(l):
        if l.iter==0 and len(l._busy)==1: l.capture_preds()
    hooks = HooksCallback(lambda *o: seen.append(1), nn.ReLU, on_train=False, on_valid=True)
    has = HasLearnCB()
    cbs = [hooks, has, At('after_batch', look, 50), At('after_predict', lambda l: learners.append(has.learn))]
    learn.fit(1, train=False, cbs=cbs)
    n = len(learn.dls.valid)
    assert len(seen)==n and learners==[learn]*2*n and has.learn is None

def test_hooks_wait_while_a_look_calls_the_model_itself():
    seen,learn = [],toy()
    def look(l):
        with no_trace(l): l.model(l.batch[0])
    learn.fit(1, cbs=[HooksCallback(lambda *o: seen.append(1), nn.ReLU), At('after_step', look)])
    assert len(seen)==len(learn.dls.train)

# ---- predictions

def test_an_export_of_nested_inputs(tmp_path):
    class Sum(nn.Module):
        def forward(self, a, b=None): return a[0]+a[1] if isinstance(a, (tuple,list)) else a if b is None else a+b
    x = torch.rand(6,3)
    learn = TrainLearner(nn.Sequential(Sum()), DataLoaders(None, [((x,2*x), torch.zeros(6))]), F.mse_loss)
    learn.model = Sum()
    learn.export(tmp_path/'m.pt2')
    assert torch.allclose(torch.export.load(tmp_path/'m.pt2').module()(x, 2*x), 3*x)


@pytest.mark.parametrize('shape', [(3,1), (3,)])
def test_tta_of_what_are_no_classes(shape):
    learn = images(loss_func=lambda p,y: F.mse_loss(p[:,0], y.float()), k=1)
    with pytest.raises(ValueError, match='no scores of two classes or more: pass probs=False'): learn.tta()
    plain = learn.capture_preds()[0]
    assert torch.allclose(learn.tta([lambda x: x], probs=False)[0], plain)
    with pytest.raises(ValueError, match='no classes to tell apart'): learn.classify(learn.dls.valid.x[0])

def test_tta_averages_in_float32():
    learn = images([MixedPrecision(torch.bfloat16)])
    flip = RandFlip(1.)
    a,b = (learn.capture_preds(BatchTransformCB(partial(tfm_batch, tfm_x=v)))[0] for v in (flip, nn.Identity()))
    preds,_ = learn.tta([flip, nn.Identity()], probs=False)
    assert preds.dtype==torch.float32 and torch.allclose(preds, (a+b)/2, atol=1e-6)

def test_confusion_with_labels_of_eight_bits():
    x,y = torch.rand(64,4),(torch.arange(64)%32).byte()
    dls = DataLoaders.from_tensors({'train': (x,y), 'valid': (x,y)}, 16)
    learn = TrainLearner(nn.Linear(4,32), dls, lambda p,y: F.cross_entropy(p, y.long()))
    assert (confusion(learn).sum(axis=1)==2).all()

def test_export_takes_transforms_in_their_order_and_refuses_dicts(tmp_path):
    one,two = BatchTransformCB(lambda b: (b[0]+1, *b[1:])),BatchTransformCB(lambda b: (b[0]*2, *b[1:]))
    one.order = two.order+1
    learn = images([one, two])
    learn.export(tmp_path/'m.pt2')
    x = learn.dls.valid.x[:4]
    assert torch.allclose(torch.export.load(tmp_path/'m.pt2').module()(x), learn.get_preds(x), atol=1e-5)
    learn.dls.valid = [{'image': x, 'label': torch.zeros(4).long()}]
    with pytest.raises(TypeError, match='give tuples, not dicts of .*image.*label'): learn.export(tmp_path/'d.pt2')

# ---- training

def test_gradients_of_an_earlier_fit_are_gone():
    def head(params, lr): return optim.SGD([*params][-2:], lr)
    learn = toy(opt_func=head)
    learn.fit(3)
    assert any(p.grad is not None for p in [*learn.model.parameters()][:-2])
    learn.opt_func = optim.SGD
    seen = []
    look = At('before_batch', lambda l: seen.append([p.grad for p in l.model.parameters()]))
    learn.fit(1, cbs=[look, SingleBatchCB()])
    assert seen[0]==[None]*len(seen[0])

def test_clip_looks_at_the_optimizers_parameters():
    def head(params, lr): return optim.SGD([*params][-2:], lr)
    clip = ClipCB(1e9)
    learn = toy(cbs=[clip], opt_func=head)
    for _ in range(2): learn.fit(1, cbs=SingleBatchCB())
    norms = []
    def norm(learn): norms.append(sum(p.grad.norm()**2 for p in [*learn.model.parameters()][-2:])**.5)
    learn.fit(3, cbs=At('after_backward', norm))
    assert torch.isclose(clip.norm, norms[-1])

@pytest.mark.parametrize('kw', [dict(train=.01), dict(valid='no')])
def test_a_rate_in_the_place_of_a_switch(kw):
    with pytest.raises(TypeError, match='are no booleans: pass lr='): toy().fit(3, **kw)

def test_scalars_of_numpy_in_a_checkpointed_fit(tmp_path):
    class Numpy(Accuracy):
        def compute(self): return np.float32(super().compute())
    toy(cbs=[MetricsCB(Numpy()), CheckpointCB(tmp_path/'c.pt')]).fit(2, lr=np.float64(.1))
    assert (tmp_path/'c.pt').exists()

def test_lr_find_with_a_rate_that_is_a_tensor():
    lrs = toy(opt_func=lambda ps,lr: optim.Adam(ps, torch.tensor(lr))).lr_find(show=False).lrs
    assert len(set(lrs))==len(lrs) and all(isinstance(o, float) for o in lrs)

def test_muon_and_a_convolution_of_zeros():
    conv = nn.Conv2d(1, 4, 3)
    nn.init.zeros_(conv.weight)
    opt = Muon(conv.parameters())
    conv(torch.rand(2,1,5,5)).sum().backward()
    opt.step()
    assert conv.weight.isfinite().all()

@pytest.mark.parametrize('k', [0, 2.5])
def test_accumulation_of_a_whole_number_of_batches(k):
    with pytest.raises(ValueError, match='k is'): AccumCB(k)

def test_dropout_in_validation_with_averaged_weights():
    torch.manual_seed(0)
    learn = toy(cbs=[EMACB(), MCDropoutCB(), At('after_epoch', lambda l: seen.append(l.model[3].training), 99)])
    seen = []
    learn.fit(1)
    assert seen==[True, True]

def test_second_derivatives_of_the_fast_convolution():
    layer = PatchConv2d(2, 2, 3, padding=1).double()
    assert torch.autograd.gradgradcheck(layer, torch.rand(1,2,4,4, dtype=torch.double, requires_grad=True))

def test_cutmix_of_numbers():
    learn = images([CutMixCB(per_image=True)], loss_func=lambda p,y: seen.append(y) or F.mse_loss(p[:,0], y))
    learn.dls.train.y = learn.dls.train.y.float()
    learn.dls.valid.y = learn.dls.valid.y.float()
    seen = []
    learn.fit(1)
    assert all(y.ndim==1 for y in seen)

def test_some_of_the_named_outputs_are_measured():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)
        def forward(self, x): return {'scores': self.body(x), 'hidden': x}
    dls = DataLoaders(None, [(x, {'scores': y}) for x,y in toy_dls().valid])
    def loss(p, y): return F.cross_entropy(p['scores'], y['scores'])
    learn = TrainLearner(Two(), dls, loss, cbs=MetricsCB(scores=Accuracy()))
    learn.fit(1, train=False)
    assert 0<=learn.history[-1]['valid_scores']<=1

def test_the_error_of_a_loader_without_a_length():
    class Odd:
        def __iter__(self): return iter([(torch.rand(4,4),torch.zeros(4).long())])
        def __len__(self): raise ZeroDivisionError('no length')
    learn = toy(cbs=ProgressCB())
    learn.dls = DataLoaders(Odd(), Odd())
    with pytest.raises(ZeroDivisionError): learn.fit(1)

def test_log_likelihoods_beside_another_output():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)
        def forward(self, x): return F.log_softmax(self.body(x), 1), self.body(x).square().mean()
    class Sums(TrainLearner):
        def get_loss(self): self.loss = self.loss_func(self.preds[0], *self.yb)+self.preds[1]
    Sums(Two(), toy_dls(), F.nll_loss).fit(1)

# ---- what watches the history

def test_the_best_weights_stay_readable():
    best = SaveBestCB()
    toy(cbs=[MetricsCB(), best]).fit(2)
    assert best.best and best.state_dict()['best'] is best.best

@pytest.mark.parametrize('cb', [SaveBestCB, EarlyStopCB, lambda: LogCB('log.csv')])
def test_no_metrics_in_this_fit(cb):
    learn = toy()
    with pytest.raises(RuntimeError, match='There is no history: add MetricsCB'): learn.fit(2, cbs=cb())
    learn.fit(2, cbs=MetricsCB())
    with pytest.raises(RuntimeError, match='There is no history: add MetricsCB'): learn.fit(2, cbs=cb())

class Falls(Mean):
    "A metric of 3, 2, 1"
    def compute(self): return float(next(self.vals))
    def __init__(self):
        super().__init__()
        self.vals = iter([3,3,2,2,1,1])

def test_lower_can_be_better_for_any_name():
    for lower,epoch in (None,1),(True,3):
        learn = toy(cbs=[MetricsCB(mse=Falls())])
        kept = []
        class Keep(SaveBestCB):
            def after_epoch(self, learn):
                old = self.best
                super().after_epoch(learn)
                if self.best is not old: kept.append(learn.epoch+1)
        learn.fit(3, cbs=Keep('valid_mse', lower=lower))
        assert kept[-1]==epoch
    learn = toy(cbs=[MetricsCB(mse=Falls())])
    learn.fit(3, cbs=EarlyStopCB('valid_mse', patience=1, lower=True))
    assert len(learn.history)==3

@pytest.mark.parametrize('cb', [SaveBestCB, EMACB])
def test_a_fit_that_did_not_begin_puts_nothing_back(cb):
    learn = toy(cbs=[MetricsCB(), cb()])
    learn.fit(2)
    with torch.no_grad():
        for p in learn.model.parameters(): p.fill_(.5)
    with pytest.raises(ZeroDivisionError): learn.fit(1, cbs=Raises('before_fit', ZeroDivisionError(), order=-5000))
    assert all((p==.5).all() for p in learn.model.parameters())

def test_the_scaler_of_half_precision_goes_on(tmp_path):
    def make(f): return toy(cbs=[MetricsCB(), MixedPrecision(torch.float16), CheckpointCB(f)])
    class Dies(Callback):
        def before_epoch(self, learn):
            if learn.training and learn.epoch==2: raise KeyboardInterrupt
    whole = make(tmp_path/'a.pt')
    whole.fit(4)
    with pytest.raises(KeyboardInterrupt): make(tmp_path/'b.pt').fit(4, cbs=Dies())
    resumed = make(tmp_path/'b.pt')
    resumed.fit(4)
    assert rows(whole)[2:]==rows(resumed)[2:] and equal(weights(whole), weights(resumed))
    assert whole.scaler.get_scale()==resumed.scaler.get_scale()

def test_another_schedule_is_no_way_to_go_on(tmp_path):
    def make(max_lr):
        sched = BatchSchedCB(partial(OneCycle, max_lr=max_lr, total_steps=16))
        return toy(cbs=[MetricsCB(), sched, CheckpointCB(tmp_path/'c.pt')])
    with pytest.raises(ZeroDivisionError): make(.1).fit(4, cbs=Raises('before_epoch', ZeroDivisionError(), at=4))
    with pytest.raises(ValueError, match=r'from a fit with max_lr 0.1 \(now 0.2\)'): make(.2).fit(4)
    make(.1).fit(4)

def test_a_class_as_a_filter():
    stats = ActivationStats(nn.ReLU)
    toy(cbs=[stats]).fit(1)
    assert [nm.split()[-1] for nm in stats.layers()]==['ReLU']
