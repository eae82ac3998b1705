"The lesson's models, and the summary, a dry run"
import math, shutil, pytest, numpy as np, torch, torch.nn.functional as F
from functools import partial
from torch import nn, optim
from torch.nn.modules import module as nn_module
from torch.utils.flop_counter import FlopCounterMode
from miniai.core import *
from miniai.datasets import *
from miniai.init import *
from miniai.learner import *
from miniai.augment import GlobalAvgPool, model2, model3, model4, wide
from miniai.resnet import *
from miniai.sgd import BatchSchedCB
from conftest import EVENTS, At, Raises, check, learner as toy_learner, toy_dls

MODELS = dict(base=base_model, conv=conv_model, resnet=resnet, wide=wide,
              model2=model2, model3=model3, model4=model4)
each_model = pytest.mark.parametrize('name', MODELS)
X = torch.randn(4,1,28,28, generator=torch.Generator().manual_seed(0))

def images(n=8, bs=4, **splits):
    xy = X.repeat(n//4,1,1,1),torch.arange(n)%10
    return DataLoaders.from_tensors({'train': xy, 'valid': xy, **splits}, bs, seed=0)

def made(name, **kwargs):
    set_seed(0)
    return MODELS[name](**kwargs).apply(partial(init_weights, leaky=.1))

def n_hooks(model):
    own = sum(len(h) for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks))
    everywhere = [v for k,v in vars(nn_module).items() if k.startswith('_global')]
    return own + sum(len(v) for v in everywhere if hasattr(v, '__len__'))

# models

@pytest.mark.parametrize('name, params, biases', [
    ('resnet',1_228_908,1008), ('model2',4_907_588,2016),
    ('model3',1_231_428,992), ('model4',1_224_948,976)])
def test_sizes_are_the_lessons_less_useless_biases(name, params, biases):
    m = made(name)
    assert biases==sum(o.num_features for o in m.modules() if isinstance(o, nn.BatchNorm2d))
    assert sum(p.numel() for p in m.parameters())==params-biases

@each_model
def test_trains_a_step(name):
    m = made(name)
    F.cross_entropy(m(X), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())

@each_model
def test_compiles_whole(name):
    m = made(name).eval()
    c = torch.compile(m, backend='aot_eager', fullgraph=True)
    with torch.no_grad(): assert torch.allclose(c(X), m(X), atol=1e-5)

@pytest.mark.skipif(not shutil.which('g++'), reason='inductor needs a C++ compiler')
def test_compiles_with_inductor():
    m = get_model(nfs=(4,), pool=GlobalAvgPool).eval()
    with torch.no_grad(): assert torch.allclose(torch.compile(m)(X), m(X), atol=1e-5)

@each_model
def test_exports(name):
    m = made(name).eval()
    dims = ({0: torch.export.Dim('batch', min=1, max=64)},)
    e = torch.export.export(m, (X,), dynamic_shapes=dims)
    with torch.no_grad(): assert torch.allclose(e.module()(X[:2]), m(X[:2]), atol=1e-5)

@each_model
def test_channels_last_and_bfloat16(name):
    m = made(name).eval()
    with torch.no_grad():
        want = m(X)
        last = m.to(memory_format=torch.channels_last)(X.to(memory_format=torch.channels_last))
        assert torch.allclose(last, want, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16): half = m(X)
        assert half.dtype==torch.bfloat16 or name not in ('base','conv')
        assert (half.float()-want).abs().max()<.1*want.abs().max()
        m.bfloat16()
        assert m(X.bfloat16()).dtype==torch.bfloat16
    m.train()(X.bfloat16()).float().sum().backward()

def test_keys():
    keys = set(made('model4').state_dict()) | set(made('resnet').state_dict())
    assert {'stem.0.weight','stem.convs.conv1.0.weight','block1.convs.conv2.1.running_mean',
            'block5.idconv.0.weight','linear.weight','norm.bias'} <= keys
    before_norms = [k for k in keys if '.conv1.0.' in k or '.conv2.0.' in k or 'linear' in k]
    assert before_norms and not any('bias' in k for k in before_norms)

@pytest.mark.parametrize('size', [28, 17, (33,64), (1,32)])
@pytest.mark.parametrize('pool', [nn.Flatten,GlobalAvgPool])
def test_any_size(size, pool):
    h,w = (size,size) if isinstance(size, int) else size
    m = get_model(nfs=(4,8,8,16), ni=3, n_out=5, size=size, ks=5, extra=8, pool=pool, drop=.1)
    assert m(torch.randn(2,3,h,w)).shape==(2,5)
    if pool is GlobalAvgPool: assert m(torch.randn(2,3,h+5,w+3)).shape==(2,5)

def test_parts():
    m = get_model(nfs=(4,8), stem=conv, drop=.2, act=nn.ReLU, norm=nn.InstanceNorm2d,
                  block=partial(ResBlock))
    kinds = [type(o) for o in m.modules()]
    assert nn.BatchNorm2d not in kinds and GeneralRelu not in kinds
    assert m.drop.p==.2 and isinstance(m.stem, nn.Sequential)
    assert 'drop' not in dict(resnet().named_children())
    b = ResBlock(4, 4, act=None, norm=None)
    x = torch.randn(1,4,5,5)
    assert torch.equal(b(x), b.convs(x)+x) and b.convs.conv1[0].bias is not None

def test_the_shortcut_is_the_lessons_conv():
    "With the weights that a bare 1×1 convolution would draw"
    set_seed(42)
    b = ResBlock(4, 8)
    set_seed(42)
    convs = conv(4, 8, 3, 1, act_gr, nn.BatchNorm2d),conv(8, 8, 3, 1, None, nn.BatchNorm2d)
    bare = nn.Conv2d(4, 8, 1)
    assert torch.equal(b.idconv[0].weight, bare.weight) and torch.equal(b.idconv[0].bias, bare.bias)
    assert len(b.idconv)==1 and torch.equal(b.convs.conv2[0].weight, convs[1][0].weight)

def test_the_courses_order_of_arguments():
    m = get_model(nn.ReLU, (4,8), nn.InstanceNorm2d)
    assert m(X).shape==(4,10) and {type(o) for o in m.modules()}>={nn.ReLU, nn.InstanceNorm2d}

def test_stem_takes_the_large_kernel_alone():
    m = made('wide')
    assert m.stem.convs.conv2[0].kernel_size==(5,5) and m.block1.convs.conv1[0].kernel_size==(3,3)

def test_zero_norm_starts_as_identity_path():
    b = ResBlock(4, 8, stride=2, zero_norm=True).apply(init_weights)
    x = torch.randn(2,4,7,7)
    assert torch.equal(b(x), b.act(b.idconv(b.pool(x))))
    F.mse_loss(b(x), torch.randn(2,8,4,4)).backward()
    assert b.convs.conv2[1].weight.grad.abs().min()>0

@pytest.mark.parametrize('stride', [1,2,3])
@pytest.mark.parametrize('size', [1,6,7,8])
def test_both_paths_of_a_block_have_the_same_size(stride, size):
    assert ResBlock(4, 8, stride)(torch.randn(2,4,size,size)).shape[2]==math.ceil(size/stride)

@pytest.mark.parametrize('f, msg', [
    (lambda: ResBlock(4, 8, ks=2), 'ks .* 2'),
    (lambda: get_model(ks=4), 'ks .* 4'),
    (lambda: get_model(size=1), 'nfs must hold at most 1 widths for an input of size 1,'),
    (lambda: get_model(size=16), 'nfs must hold at most 5 widths for an input of size 16,.* got 6'),
    (lambda: wide(size=8, pool=GlobalAvgPool), 'at most 4 widths for an input of size 8')])
def test_bad_arguments(f, msg):
    with pytest.raises(ValueError, match=msg): f()

# summary

@each_model
def test_true_multiplications(name):
    m = made(name)
    s = TrainLearner(m, images(), F.cross_entropy).summary()
    with FlopCounterMode(display=False) as f: m(X)
    assert s.macs==f.get_total_flops()/2/4==sum(r.macs for r in s.rows)
    assert s.params==sum(p.numel() for p in m.parameters())==sum(r.params for r in s.rows)
    assert s.rows[0].input=='4×1×28×28' and s.rows[-1].output.startswith('4×10')

def meddles(learn):
    "Draws random numbers, and changes a mode"
    torch.rand(1)
    list(learn.model.children())[0].train()

@each_model
@pytest.mark.parametrize('dry_run', ['summary','lr_find'])
def test_every_model_of_the_lesson_is_left_as_it_was(name, dry_run):
    m = made(name)
    sched = BatchSchedCB(partial(optim.lr_scheduler.OneCycleLR, max_lr=.01, total_steps=1))
    norm = BatchTransformCB(lambda b: (Normalize(.3,.3)(b[0]), *b[1:]))
    meddler = At('after_predict', meddles)
    cbs = [DeviceCB('cpu'), norm, sched, MetricsCB(Accuracy()), meddler]
    learn = TrainLearner(m, images(4), F.cross_entropy, .01, cbs, optim.AdamW)
    learn.logger = lambda row: None
    learn.fit(1)
    m[0].eval()
    m[-1].register_buffer('scratch', torch.ones(1), persistent=False)
    next(m.parameters()).grad = torch.ones_like(next(m.parameters()))
    f = learn.summary if dry_run=='summary' else partial(learn.lr_find, gamma=3, show=False)
    check(learn, f)
    assert n_hooks(m)==0
    learn.cbs.append(Raises('before_batch', ZeroDivisionError(), order=200))
    def fails():
        with pytest.raises(ZeroDivisionError): f()
    check(learn, fails)
    assert n_hooks(m)==0

@pytest.mark.parametrize('event', EVENTS)
@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.filterwarnings('ignore:.*is never called')
def test_faults(event, exc):
    learn = toy_learner()
    learn.cbs.append(Raises(event, exc()))
    happens = 'before_fit','before_epoch','before_batch','cleanup','after_predict'
    fires = event.startswith(happens)
    def f():
        if not fires: return learn.summary()
        with pytest.raises(exc): learn.summary()
    check(learn, f)
    assert n_hooks(learn.model)==0
    learn.cbs.pop()
    check(learn, learn.summary)

def test_model_that_raises():
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4,3)
        def forward(self, x): raise ArithmeticError(self.lin(x).shape)
    learn = TrainLearner(Bad(), toy_dls(), F.cross_entropy)
    with pytest.raises(ArithmeticError): learn.summary()
    assert n_hooks(learn.model)==0 and learn.model.training

def test_takes_one_batch_in_eval_mode_and_no_step():
    seen = []
    class See(Callback):
        def after_predict(self, learn):
            seen.append((learn.training, torch.is_grad_enabled(), learn.opt))
        def after_loss(self, learn): seen.append('loss')
    class Records(See): skip_dry_run = True
    learn = TrainLearner(made('base'), images(8, 4), F.cross_entropy, cbs=[See(), Records()])
    learn.summary()
    assert seen==[(False,False,None)]

def test_other_callbacks_do_their_work():
    class Predicts(Callback):
        def predict(self, learn): learn.preds = learn.model(learn.batch[0])
    dls = DataLoaders.from_tensors({'valid': (torch.zeros(4,1,8,8),torch.zeros(4))}, 4)
    pad = BatchTransformCB(lambda b: (F.pad(b[0], (10,)*4),b[1]))
    s = Learner(made('conv'), DataLoaders(None, dls.valid), cbs=[pad, Predicts()]).summary()
    assert s.rows[0].input=='4×1×28×28'
    with pytest.raises(RuntimeError, match='predict must set learn.preds'): Learner(made('conv'), dls).summary()

def test_loaders():
    m = made('base')
    for dls in None, DataLoaders(images().train):
        with pytest.raises(ValueError, match='dls must have a valid loader'):
            TrainLearner(m, dls, F.cross_entropy).summary()
    learn = TrainLearner(m, images(valid=(X[:0],torch.arange(0))), F.cross_entropy)
    with pytest.raises(ValueError, match='gave no batch'): check(learn, learn.summary)

class Gives(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f
    def forward(self, *args, **kwargs): return self.f(*args, **kwargs)

class Odd(nn.Module):
    "Text to scores, by way of all that a summary might stumble over"
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(20,6)
        self.conv = nn.Conv1d(6,6,3,padding=1)
        self.lstm = nn.LSTM(6,6,batch_first=True)
        self.twice = nn.Linear(6,6)
        self.alias = self.twice
        self.head = nn.Linear(6,20,bias=False)
        self.head.weight = self.emb.weight
        self.own = nn.Parameter(torch.zeros(5))
        self.never = nn.Linear(3,3)
        self.nothing,self.text = Gives(lambda *a: None),Gives(lambda *a: 'words')
        self.nested = Gives(lambda d, scale: {
            'a': (d['x'], [d['x'][0]]), 'b': d['x'].sum()*scale, 'c': None})
    def forward(self, x):
        e = self.emb(x)
        h = self.conv(e.transpose(1,2)).transpose(1,2)
        h = self.lstm(h)[0]
        h = self.alias(self.twice(h[:,:,None]))[:,:,0]
        self.nothing(h), self.text()
        d = self.nested({'x': h}, scale=torch.tensor(2.))
        return self.head(d['a'][0][:,0]), d

def odd_learner():
    x = torch.arange(12).reshape(4,3)
    dls = DataLoaders.from_tensors({'train': (x,x), 'valid': (x,x)}, 2)
    return TrainLearner(Odd(), dls, F.cross_entropy)

def test_odd_modules():
    s = odd_learner().summary()
    rows = {r.name: r for r in s.rows}
    assert list(rows)==['emb','conv','lstm','twice','head','never','nothing','text','nested']
    assert rows['emb'][2:]==('2×3','2×3×6',120,0)
    assert rows['conv'][2:]==('2×6×3','2×6×3',6*6*3+6,3*6*6*3)
    assert rows['lstm'].output=='2×3×6, 1×2×6, 1×2×6'
    assert rows['twice'][2:]==('2×3×1×6','2×3×1×6',42,2*3*36)
    assert rows['head'][2:]==('2×6','2×20',120,120)
    assert rows['never'][2:]==('–','–',12,0)
    assert rows['nothing'][2:4]==('2×3×6','–') and rows['text'].input=='–'
    assert rows['nested'][2:4]==('2×3×6, scalar', '2×3×6, 3×6, scalar')
    assert s.params==sum(r.params for r in s.rows)+5-120, 'emb and head share their weights'

def test_a_module_of_two_parents():
    lin = nn.Linear(4,4)
    a,b = nn.Sequential(lin),nn.Sequential(lin, nn.Linear(4,3))
    s = TrainLearner(nn.Sequential(a, b), toy_dls(), F.cross_entropy).summary(2)
    assert [(r.name,r.params,r.macs) for r in s.rows]==[
        ('0',20,16), ('0.0',20,32), ('1',35,28), ('1.1',15,12)]
    assert (s.params,s.macs)==(35,44)

def test_a_model_whose_parts_are_called_alone():
    class Predicts(Callback):
        def predict(self, learn): learn.preds = learn.model[1](learn.model[0](learn.batch[0]))
    s = Learner(nn.Sequential(nn.Linear(4,6), nn.Linear(6,3)), toy_dls(), cbs=Predicts()).summary()
    assert [r.macs for r in s.rows]==[24,18] and s.macs==42

@pytest.mark.parametrize('kind', [dict, tuple])
def test_dict_and_tuple_batches(kind):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4,3)
        def forward(self, x, y): return self.lin(x)+y
    x,y = torch.zeros(6,4),torch.zeros(6,1)
    batch = {'x': x, 'y': y, 'z': y} if kind is dict else (x,y,y)
    s = TrainLearner(Two(), DataLoaders(None, [batch]), F.mse_loss, n_inp=2).summary(0)
    assert s.rows==[('model','Two','6×4, 6×1','6×3',15,12)]

def test_numpy_integers_as_sizes():
    m = get_model(nfs=np.array([4,8]), ni=np.int64(1), size=np.int64(28), extra=np.int32(8))
    assert m(X).shape==(4,10)

def test_depth():
    learn = TrainLearner(made('resnet'), images(), F.cross_entropy)
    s0,s1,s2,s9 = (learn.summary(d) for d in (0,1,2,9))
    whole, = s0.rows
    assert (whole.name,whole.kind,whole.params,whole.macs)==('model','Sequential',s1.params,s1.macs)
    assert [r.name for r in s2.rows if r.name.count('.')==0]==[r.name for r in s1.rows]
    assert len(s9.rows)==len(list(learn.model.modules()))-1
    for s in s0,s1,s2,s9: assert (s.params,s.macs)==(s1.params,s1.macs)
    leaves = [r for r in s9.rows if not any(o.name.startswith(r.name+'.') for o in s9.rows)]
    assert sum(r.macs for r in leaves)==s9.macs and sum(r.params for r in leaves)==s9.params
    s = TrainLearner(nn.Linear(4,3), toy_dls(), F.cross_entropy).summary()
    assert s.rows[0][1:]==('Linear','8×4','8×3',15,12)

def test_looks():
    s = TrainLearner(made('base'), images(), F.cross_entropy).summary()
    head,rule,*lines = str(s).splitlines()
    assert s._repr_markdown_()==str(s) and len(lines)==len(s.rows)+1
    cells = [cell.strip() for cell in lines[-1].split('|')]
    assert cells==['','total','','','',f'{s.params:,}',f'{s.macs:,}','']
    assert len({len(l) for l in (head,*lines)})==1 and len({l.count('|') for l in (rule,*lines)})==1

def test_compiled_and_frozen_models():
    m = made('base').requires_grad_(False)
    want = TrainLearner(m, images(), F.cross_entropy).summary().rows
    learn = TrainLearner(c := torch.compile(m, backend='eager'), images(), F.cross_entropy)
    for _ in range(2):
        assert learn.summary().rows==want and learn.model is c and n_hooks(m)==0
        c(X)
    m[0].compile(backend='eager')
    m.compile(backend='eager')
    assert TrainLearner(m, images(), F.cross_entropy).summary().rows==want

def test_timm():
    timm = pytest.importorskip('timm')
    m = timm.create_model('resnet18d', in_chans=1, num_classes=10)
    s = TrainLearner(m, images(), F.cross_entropy).summary()
    with FlopCounterMode(display=False) as f: m(X)
    assert (s.params,s.macs)==(11_200_298, f.get_total_flops()//8)
