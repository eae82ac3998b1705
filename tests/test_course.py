"The contract with the course's own notebooks: the names they use and how, and the calls of 13 and 14 in their order"
import ast, importlib, inspect, re, pytest, matplotlib, torch, torch.nn.functional as F, fastcore.all as fc
import torchvision.transforms.functional as TF
from functools import partial
from pathlib import Path
from torch import distributions, nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms
import miniai.all as mi
from miniai.all import *

matplotlib.use('Agg')
import matplotlib.pyplot as plt

# Where each name lives, and the arguments of the course's calls
NAMES = {
    'core': {
        'show_image': 'im, ax, figsize=s, title=t, noframe=True, cmap=c',
        'show_images': 'ims, nrows=1, ncols=2, titles=t, imsize=1',
        'get_grid': 'n, nrows=2, ncols=2, title=t, figsize=s',
        'subplots': '2, 2, figsize=s, imsize=3, suptitle=t, sharex=True',
        'clean_mem': '', 'to_device': 'x, device=d', 'to_cpu': 'x', 'set_seed': '42, deterministic=False', 'def_device': None},
    'datasets': {
        'inplace': 'f', 'collate_dict': 'ds', 'collate_device': 'b', 'get_dls': 'ds, ds, bs=8, collate_fn=f',
        'DataLoaders': 'dl, dl', 'DataLoaders.from_dd': 'dd, 8, as_tuple=True, num_workers=4'},
    'learner': {
        **dict.fromkeys(('CancelFitException','CancelEpochException','CancelBatchException')), 'Callback': '',
        'run_cbs': 'cbs, nm, learn', 'with_cbs': 'nm', 'Learner': 'm, dls, loss_func=f, lr=.1, cbs=c, opt_func=o',
        'Learner.fit': 'self, 5, train=False, valid=True, cbs=c, lr=.1',
        'TrainLearner': 'm, dls, f, lr=.1, cbs=c, opt_func=o',
        'MomentumLearner': 'm, dls, f, lr=.1, cbs=c, opt_func=o, mom=.9', 'TrainCB': 'n_inp=2', 'DeviceCB': 'device=d',
        'SingleBatchCB': '', 'MetricsCB': 'm, accuracy=m', 'ProgressCB': 'plot=True',
        'LRFinderCB': 'gamma=1.3, max_mult=3',
        'Learner.lr_find': 'self, gamma=1.1, max_mult=3, start_lr=1e-5, max_epochs=10'},
    'activations': {
        'Hook': 'm, f', 'Hooks': 'ms, f', 'HooksCallback': 'f, mod_filter=f, on_train=True, on_valid=False, mods=ms',
        'ActivationStats': 'mod_filter', **dict.fromkeys(('ActivationStats.color_dim','ActivationStats.dead_chart',
                                                          'ActivationStats.plot_stats'), 'self, figsize=s')},
    'init': {
        'GeneralRelu': 'leak=.1, sub=.4, maxv=6.', 'act_gr': '', 'init_weights': 'm, leaky=.1',
        'lsuv_init': 'model, m, m_in, xb', 'conv': '1, 8, ks=3, stride=1, act=a, norm=n, bias=True',
        'BatchTransformCB': 'f, on_train=True, on_val=False'},
    'sgd': {
        'BaseSchedCB': 'sched', 'BatchSchedCB': 'sched', 'EpochSchedCB': 'sched', 'HasLearnCB': '',
        'RecorderCB': 'lr=f, mom=f', 'RecorderCB.plot': 'self'},
    'resnet': {'ResBlock': '1, 8, stride=2, ks=3, act=a, norm=n', 'get_model': 'a, nfs, norm=n', 'Learner.summary': 'self'},
    'augment': {
        'tfm_batch': 'b, tfm_x=f, tfm_y=f', 'GlobalAvgPool': '', 'CapturePreds': '',
        'Learner.capture_preds': 'self, cbs=c, inps=True',
        'Learner.show_image_batch': 'self, max_n=9, cbs=c, imsize=1.5', 'rand_erase': 'x, pct=.2, max_num=4',
        'RandErase': 'pct=.2, max_num=4', 'rand_copy': 'x, pct=.2, max_num=4', 'RandCopy': 'pct=.2, max_num=4'},
    'accel': {'MixedPrecision': '', 'AccelerateCB': 'n_inp=1, mixed_precision=p'}}
CALLS = [pytest.param(mod, nm, call, id=nm) for mod,names in NAMES.items() for nm,call in names.items()]

def found(mod, nm):
    for part in nm.split('.'): mod = getattr(mod, part)
    return mod

@pytest.mark.parametrize('mod, nm, call', CALLS)
def test_name(mod, nm, call):
    "Each can be imported from its room and from miniai.all, and takes the course's arguments"
    o = found(importlib.import_module(f'miniai.{mod}'), nm)
    assert o is found(mi, nm) or inspect.ismethod(o)
    if call is None: return
    args = ast.parse(f'f({call})', mode='eval').body
    inspect.signature(o).bind(*args.args, **{k.arg: k.value for k in args.keywords})

# What the notebooks define before they train, on a handful of images

class MulticlassAccuracy:
    "As torcheval has it: positional update, compute, reset, to"
    def __init__(self): self.reset()
    def reset(self): self.right,self.n = torch.tensor(0.),0
    def update(self, input, target): self.right,self.n = self.right+(input.argmax(1)==target).sum(),self.n+len(target)
    def compute(self): return self.right/self.n
    def to(self, device): return self

xl,yl = 'image','label'
xmean,xstd = .28,.35

@inplace
def transformi(b): b[xl] = [(TF.to_tensor(o)-xmean)/xstd for o in b[xl]]

act = partial(GeneralRelu, leak=.1, sub=.4)
iw = partial(init_weights, leaky=.1)
norm = nn.BatchNorm2d

@pytest.fixture(scope='module')
def tds():
    dd = fashion_mnist(sample=True)
    for k in dd: dd[k] = dd[k].select(range(40))
    return dd.with_transform(transformi)

@pytest.fixture
def dls(tds):
    yield DataLoaders.from_dd(tds, 16, num_workers=0)
    plt.close('all')

@pytest.fixture
def cbs():
    metrics = MetricsCB(accuracy=MulticlassAccuracy())
    return [DeviceCB('cpu'), metrics, ProgressCB(plot=True), ActivationStats(fc.risinstance(GeneralRelu))]

def plain(nfs=(4,8,16,16,16)):
    convs = [conv(i, o, act=act, norm=norm) for i,o in zip(nfs, nfs[1:])]
    return nn.Sequential(conv(1, nfs[0], stride=1, act=act, norm=norm), *convs,
                         conv(nfs[-1], 10, act=None, norm=norm, bias=True), nn.Flatten()).to('cpu')

def residual(nfs=(4,8,8,16,16,16), ks=3, head=nn.Flatten, stem=ResBlock):
    blocks = [ResBlock(i, o, act=act, norm=norm, stride=2) for i,o in zip(nfs, nfs[1:])]
    first = stem(1, nfs[0], ks=ks, stride=1, act=act, norm=norm)
    return nn.Sequential(first, *blocks, head(), nn.Linear(nfs[-1], 10, bias=False), nn.BatchNorm1d(10))

def one_cycle(dls, lr, epochs=1): return partial(lr_scheduler.OneCycleLR, max_lr=lr, total_steps=epochs*len(dls.train))

def trained(model, dls, cbs, *more, lr=1e-2, epochs=1):
    xtra = [BatchSchedCB(one_cycle(dls, lr, epochs)), *more]
    learn = TrainLearner(model.apply(iw), dls, F.cross_entropy, lr=lr, cbs=cbs+xtra, opt_func=optim.AdamW)
    learn.fit(epochs)
    return learn

# 13

def test_resnet_notebook(dls, cbs, capsys):
    for model in plain(), residual():
        learn = trained(model, dls, cbs, epochs=2)
        row = learn.metrics.history[-1]
        assert row['epoch'] in (2,4) and 0<=row['valid_accuracy']<=1
        cbs[-1].color_dim()
        cbs[-1].plot_stats()
    out = capsys.readouterr().out
    assert out.count('valid loss')==out.count('accuracy')/2==4, 'ProgressCB(plot=True) prints lines in a script'

    seen = []
    def print_shape(hook, mod, inp, outp): seen.append((type(mod).__name__, inp[0].shape, outp.shape))
    model = residual()
    learn = TrainLearner(model, dls, F.cross_entropy, cbs=[DeviceCB('cpu'), SingleBatchCB()])
    with Hooks(model, print_shape) as hooks: learn.fit(1, train=False)
    assert len(hooks)==9 and [nm for nm,*_ in seen]==['ResBlock']*6+['Flatten','Linear','BatchNorm1d']
    assert [o.shape for o in model[0].parameters()][0]==(4,1,3,3)

    s = TrainLearner(residual(), dls, F.cross_entropy, cbs=DeviceCB('cpu')).summary()
    assert s.params==sum(p.numel() for p in residual().parameters()) and str(s) and s._repr_markdown_()
    MomentumLearner(residual().apply(iw), dls, F.cross_entropy, cbs=DeviceCB('cpu')).lr_find(start_lr=1e-3, gamma=2)

def test_summary_as_the_course_patches_it(dls, monkeypatch):
    "Hooks over a Sequential, around a fit of a single batch with lr=1"
    def summary(self):
        rows = []
        def f(hook, mod, inp, outp):
            rows.append((type(mod).__name__, tuple(inp[0].shape), sum(p.numel() for p in mod.parameters())))
        with Hooks(self.model, f): self.fit(1, lr=1, cbs=SingleBatchCB())
        return rows
    monkeypatch.setattr(Learner, 'summary', summary)
    rows = TrainLearner(residual(), dls, F.cross_entropy, cbs=[DeviceCB('cpu')]).summary()
    assert len(rows)==9 and rows[0][:2]==('ResBlock',(16,1,28,28))

def test_timm(dls, cbs):
    timm = pytest.importorskip('timm')
    from timm.models.resnet import BasicBlock, ResNet
    for m in (ResNet(BasicBlock, [1,1,1,1], num_classes=10, in_chans=1, channels=(8,8,8,8), avg_down=True),
              timm.create_model('resnet10t', in_chans=1, num_classes=10)):
        assert len(trained(m, dls, cbs[:3]).metrics.history)

# 14

def test_augment_notebook(dls, cbs, tmp_path):
    for args in {}, dict(head=GlobalAvgPool), dict(head=GlobalAvgPool, stem=conv):
        trained(residual((4,8,8,16,16) if args else (4,8,8,16,16,16), 5, **args), dls, cbs)

    tfms = nn.Sequential(transforms.RandomCrop(28, padding=4), transforms.RandomHorizontalFlip())
    augcb = BatchTransformCB(partial(tfm_batch, tfm_x=tfms), on_val=False)
    learn = TrainLearner(residual(), dls, F.cross_entropy, cbs=[DeviceCB('cpu'), SingleBatchCB(), augcb])
    learn.fit(1)
    xb,yb = learn.batch
    show_images(xb[:16], imsize=1.5)
    assert xb.shape==(16,1,28,28) and yb.shape==(16,)

    learn = trained(residual(), dls, cbs, augcb)
    for o in learn.model, learn:
        torch.save(o, tmp_path/'data_aug.pkl')
        again = torch.load(tmp_path/'data_aug.pkl', weights_only=False)
    assert torch.equal(again.model.eval()(xb), learn.model.eval()(xb))
    again.fit(1)

    ap1,at = learn.capture_preds()
    ap2,at = learn.capture_preds(cbs=[BatchTransformCB(partial(tfm_batch, tfm_x=TF.hflip), on_val=True)])
    ap = torch.stack([ap1,ap2]).mean(0).argmax(1)
    assert ap1.shape==ap2.shape==(40,10) and not torch.equal(ap1, ap2)
    assert 0<=round((ap==at).float().mean().item(), 3)<=1

def test_erase_and_copy(dls, cbs):
    xb,_ = next(iter(dls.train))
    xbt = xb[:16]
    for f,cls in (rand_erase,RandErase), (rand_copy,RandCopy):
        show_images(f(xbt.clone(), .2, 4), imsize=1.5)
        tfms = nn.Sequential(transforms.RandomCrop(28, padding=1), transforms.RandomHorizontalFlip(), cls())
        augcb = BatchTransformCB(partial(tfm_batch, tfm_x=tfms), on_val=False)
        learn = TrainLearner(residual(), dls, F.cross_entropy, cbs=[DeviceCB('cpu'), augcb])
        learn.show_image_batch(max_n=16, imsize=1.5)
        assert len(plt.gcf().axes)==16 and tuple(plt.gcf().get_size_inches())==(6,6)
        learn.show_image_batch(max_n=9, cbs=[augcb], nrows=1)
        trained(residual(), dls, cbs, augcb)

def test_ensemble_and_dropout(dls, cbs):
    learns = [trained(residual(), dls, cbs) for _ in range(2)]
    captured = []
    for learn in learns:
        cp = CapturePreds()
        learn.fit(1, train=False, cbs=cp)
        captured.append(cp)
    ap = torch.stack([cp.all_preds for cp in captured]).mean(0).argmax(1)
    assert ap.shape==captured[0].all_targs.shape==(40,)

    class Drop(nn.Module):
        def __init__(self, p=.1): super().__init__(); self.p = p
        def forward(self, x):
            if not self.training: return x
            dist = distributions.binomial.Binomial(total_count=1, probs=1-self.p)
            return x*dist.sample(x.size()).to(x.device)/(1-self.p)
    class TestTimeDropout(Callback):
        def before_epoch(self, learn):
            learn.model.apply(lambda m: m.train() if isinstance(m, (nn.Dropout,nn.Dropout2d,Drop)) else None)
    model = nn.Sequential(*list(residual())[:-2], Drop(.5), nn.Linear(16, 10), nn.BatchNorm1d(10))
    learn = trained(model, dls, cbs)
    (a,_),(b,_) = (learn.capture_preds(cbs=cbs) for cbs in (None,[TestTimeDropout()]))
    assert not torch.equal(a, b)

# Other notebooks

def test_activations_notebook(dls):
    "The callback counts and iterates as its hooks do"
    def keep_mean(hook, mod, inp, outp): hook.mean = outp.mean().item()
    hc = HooksCallback(keep_mean, mod_filter=fc.risinstance(nn.Conv2d))
    trained(plain(), dls, [DeviceCB('cpu'), hc])
    fig,axes = get_grid(len(hc), figsize=(11,5))
    for ax,h in zip(axes.flat, hc): ax.set_title(f'{h.mean:.2f}')
    assert len(hc)==len(axes)==6 and all(ax.get_title() for ax in axes)

def test_accel_sgd_notebook(dls):
    "Its `get_model` gives plain convolutions; ours takes the same call and gives residual blocks"
    learn = trained(get_model(act_gr, norm=nn.BatchNorm2d), dls, [DeviceCB('cpu')])
    assert learn.capture_preds()[0].shape==(40,10)
    clean_mem()

def test_the_shortcut_is_a_conv():
    assert isinstance(ResBlock(1, 4).idconv[0], nn.Conv2d) and ResBlock(4, 4).idconv(1)==1

def test_pictures(dls):
    "Drawing returns nothing, so a notebook shows each picture once; `image.cmap` is followed"
    with plt.rc_context({'image.cmap': 'gray_r'}):
        assert show_images(next(iter(dls.train))[0][:2]) is None
        assert {ax.images[0].get_cmap().name for ax in plt.gcf().axes}=={'gray_r'}
        assert TrainLearner(residual(), dls, F.cross_entropy).show_image_batch(2) is None

def test_captured_inputs(dls):
    learn,cp = TrainLearner(residual(), dls, F.cross_entropy, cbs=[DeviceCB('cpu')]),CapturePreds()
    learn.fit(1, train=False, cbs=[cp])
    assert cp.all_inps.shape==(40,1,28,28)


def test_patches_over_our_own(dls, monkeypatch):
    "The course's notebooks define these methods themselves, on top of ours"
    def show(self, max_n=9, cbs=None, **kwargs):
        self.fit(1, cbs=[SingleBatchCB(), *fc.L(cbs)])
        return show_images(self.batch[0][:max_n], **kwargs)
    def capture(self, cbs=None):
        kept = Captures()
        self.fit(1, train=False, cbs=[kept, *fc.L(cbs)])
        return kept.preds,kept.targs
    class Captures(Callback):
        def before_fit(self, learn): self.preds,self.targs = [],[]
        def after_batch(self, learn):
            self.preds.append(to_cpu(learn.preds))
            self.targs.append(to_cpu(learn.batch[1]))
        def after_fit(self, learn): self.preds,self.targs = torch.cat(self.preds),torch.cat(self.targs)
    for nm,f in ('show_image_batch',show), ('capture_preds',capture): monkeypatch.setattr(Learner, nm, f)
    learn = TrainLearner(residual(), dls, F.cross_entropy, cbs=[DeviceCB('cpu')])
    learn.show_image_batch(max_n=4, imsize=1.5)
    preds,targs = learn.capture_preds()
    assert preds.shape==(40,10) and targs.shape==(40,)

def noisy(b):
    "As a diffusion notebook collates: (noisy images, times), noise"
    x,t = b['image'],torch.rand(len(b['image']))
    noise = torch.randn_like(x)
    return (x+noise*t.view(-1,1,1,1), t), noise

class Denoiser(nn.Module):
    def __init__(self): super().__init__(); self.c1,self.c2 = conv(1, 4, stride=1),conv(4, 1, stride=1, act=None)
    def forward(self, inp): return self.c2(self.c1(inp[0]))*inp[1].view(-1,1,1,1)

def noisy_dls(tds, collate):
    return DataLoaders(*(DataLoader(d, 16, collate_fn=collate) for d in tds.values()))

def test_inputs_that_are_a_tuple(tds):
    dls = noisy_dls(tds, lambda rows: noisy(default_collate(rows)))
    cbs = [DeviceCB('cpu'), MetricsCB(), ProgressCB(plot=True), BatchSchedCB(one_cycle(dls, .01))]
    learn = TrainLearner(Denoiser(), dls, nn.MSELoss(), lr=.01, cbs=cbs, opt_func=partial(optim.AdamW, eps=1e-5))
    learn.fit(1)
    assert len(learn.history)==1

def test_several_inputs(tds):
    class Two(Denoiser):
        def forward(self, x, t): return super().forward((x,t))
    dls = noisy_dls(tds, lambda rows: (*(b := noisy(default_collate(rows)))[0], b[1]))
    class DDPM(TrainCB):
        def before_batch(self, learn): assert len(learn.batch)==3
    for cb in TrainCB(n_inp=2), DDPM(n_inp=2):
        learn = Learner(Two(), dls, nn.MSELoss(), lr=.01, cbs=[DeviceCB('cpu'), MetricsCB(), cb], opt_func=optim.AdamW)
        learn.fit(1)
        assert len(learn.history)==1

@pytest.mark.parametrize('make', [MixedPrecision, partial(MixedPrecision, n_inp=1),
                                  partial(AccelerateCB, n_inp=1, mixed_precision='fp16')])
def test_mixed_precision_takes_the_step(dls, make):
    learn = Learner(residual(), dls, F.cross_entropy, lr=.01, opt_func=optim.AdamW,
                    cbs=[DeviceCB('cpu'), make(), MetricsCB(), ProgressCB(plot=True)])
    learn.fit(1)
    assert len(learn.history)==1

def test_loaders(tds):
    ds = tds['train']
    f = collate_dict(ds)
    xb,yb = next(iter(DataLoaders(*get_dls(ds, tds['test'], bs=8, collate_fn=f)).train))
    assert xb.shape==(8,1,28,28) and yb.shape==(8,)
    xb,yb = next(iter(DataLoaders.from_dd(tds, 16, num_workers=2).train))
    assert xb.shape==(16,1,28,28) and yb.dtype==torch.int64
    b = collate_device([ds[0], ds[1]])
    assert b['image'].shape==(2,1,28,28) and b['image'].device.type==torch.device(def_device).type

def test_a_learner_for_features_alone(dls):
    "As the FID notebook has it: no loss, no optimizer, loaders that are lists"
    learn = TrainLearner(residual()[:-2], dls, loss_func=fc.noop, cbs=[DeviceCB('cpu')], opt_func=None)
    assert learn.capture_preds()[0].shape==(40,16)
    learn.dls = DataLoaders([], [(torch.randn(5,1,28,28), torch.tensor([0]))])
    assert learn.capture_preds()[0].float().cpu().squeeze().shape==(5,16)

def test_recorder_and_has_learn(dls):
    class Rates(HasLearnCB):
        def before_fit(self, learn):
            super().before_fit(learn)
            self.seen = []
        def after_batch(self, learn): self.seen.append(self.learn.opt.param_groups[0]['lr'])
    rec,rates = RecorderCB(lr=lambda cb: cb.pg['lr'], mom=lambda cb: cb.pg['betas'][0]),Rates()
    learn = TrainLearner(plain(), dls, F.cross_entropy, lr=.01, opt_func=optim.AdamW,
                         cbs=[DeviceCB('cpu'), BatchSchedCB(one_cycle(dls, .01, 2)), rec, rates])
    learn.fit(2)
    assert len(rec.recs['lr'])==len(rec.recs['mom'])==6 and len(rates.seen)==12
    rec.plot()

# docs/from-the-course.md, which says what is different

PAGE = (Path(__file__).parent.parent/'docs'/'from-the-course.md').read_text()
MOVED = [(nm, there, here) for names,there,here in re.findall(r'^\| (`.*?) \| `(\S+)` \| `(\S+)` \|$', PAGE, re.M)
         for nm in re.findall('`(.+?)`', names)]

@pytest.mark.parametrize('nm, there, here', MOVED)
def test_what_moved(nm, there, here):
    module = importlib.import_module(here)
    assert nm in module.__all__ and getattr(mi, nm) is getattr(module, nm)
    assert there!=here

def test_what_is_not_here(): assert not [nm for nm in ('fit','accuracy','report','Dataset') if hasattr(mi, nm)]

def test_what_gives_other_numbers(dls):
    assert sum(p.numel() for p in resnet().parameters())==1_227_900 and '1,227,900' in PAGE
    assert isinstance(ResBlock(1, 8).convs.conv1[1], nn.BatchNorm2d) and len(ResBlock(1, 8, norm=None).convs.conv1)==2
    assert get_model(nfs=(8,16,32,64)).stem.convs.conv1[0].weight.shape[:2]==(8,1)
    assert 'multiclass_accuracy' in MetricsCB(MulticlassAccuracy()).metrics
    assert conv(1, 8, norm=norm)[0].bias is None and conv(1, 8)[0].bias is not None
    assert any(isinstance(m, ResBlock) for m in get_model().modules())
    assert not any(isinstance(m, ResBlock) for m in conv_model().modules())
    linear = nn.Linear(3, 3).apply(init_weights)
    assert linear.bias.eq(0).all()
    x = torch.randn(8, 1, 28, 28)
    before = x.clone()
    for f in rand_erase,rand_copy: f(x, max_num=4, per_image=True)
    assert x.equal(before)
    s = TrainLearner(model2(), dls, F.cross_entropy, cbs=DeviceCB('cpu')).summary()
    assert f'{s.macs/1e6:.1f} M MACs' in PAGE

def test_progress_keeps_what_a_subclass_draws(dls):
    class Graph(ProgressCB):
        def after_batch(self, learn):
            if not hasattr(self.mbar, 'graph'): self.mbar.graph = []
            self.mbar.graph.append(learn.iter)
        def after_fit(self, learn): self.drawn = self.mbar.graph
    cb = Graph()
    TrainLearner(residual(), dls, F.cross_entropy, cbs=[DeviceCB('cpu'), MetricsCB(), cb]).fit(1)
    assert cb.drawn[0]==0

def test_the_mean_loss_of_a_pass_can_be_read_after_it(dls):
    class Reads(Callback):
        order = 10
        losses = ()
        def after_epoch(self, learn): self.losses += (learn.metrics.loss.compute().item(),)
    cb = Reads()
    learn = TrainLearner(residual(), dls, F.cross_entropy, cbs=[DeviceCB('cpu'), MetricsCB(), cb])
    learn.fit(1)
    row = learn.history[0]
    assert cb.losses==(row['train_loss'], row['valid_loss'])
    assert learn.metrics.loss.compute().item()==row['valid_loss']

def test_a_finder_of_rates_as_a_callback_waits_while_the_fit_validates(dls):
    cb = LRFinderCB()
    learn = TrainLearner(residual(), dls, F.cross_entropy, cbs=[DeviceCB('cpu'), MetricsCB()])
    learn.fit(2, cbs=cb)
    assert len(cb.lrs)==2*len(dls.train)

def test_between_two_fits(tds):
    "The page's own code: nothing of a dry run is left in the second fit"
    rows = []
    for dry in True,False:
        set_seed(1)
        dls = DataLoaders.from_dd(tds, 16)
        learn = TrainLearner(residual().apply(iw), dls, F.cross_entropy, cbs=[DeviceCB('cpu'), MetricsCB()],
                             opt_func=partial(optim.SGD, momentum=.9))
        for _ in range(2):
            if dry:
                assert learn.lr_find()
                assert learn.summary()
            learn.fit(1, lr=.02)
        rows.append([o['train_loss'] for o in learn.history])
    assert rows[0]==rows[1]
