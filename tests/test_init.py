"GeneralRelu, LSUV that changes nothing but weights, Normalize, and transforms of batches"
import io, shutil, subprocess, sys
import pytest, numpy as np, torch, torch.nn.functional as F
from collections import namedtuple
from itertools import product
from torch import nn
from types import SimpleNamespace
from miniai.activations import Hooks
from miniai.init import (BatchTransformCB, GeneralRelu, Normalize, act_gr, conv, init_weights,
                         lsuv_init)
from miniai.learner import Callback, TrainLearner
from conftest import toy_dls, toy_model

def test_import_is_light():
    "No pyplot before the first picture"
    code = "import sys, miniai.init; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip()=='False'

COMBINATIONS = list(product((None,.1,0.), (None,.4,0.), (None,1.,.3)))
def points(): # no kink among them
    return torch.arange(-2.95, 3, .1, dtype=torch.double, requires_grad=True)

def expected(x, leak, sub, maxv):
    "Value and slope by the definition, one number at a time"
    y,dy = (x,1.) if x>0 else ((leak or 0.)*x, leak or 0.)
    y -= sub or 0.
    return (y,dy) if maxv is None or y<maxv else (maxv,0.)

@pytest.mark.parametrize('leak, sub, maxv', COMBINATIONS)
def test_general_relu(leak, sub, maxv):
    x,f = points(),GeneralRelu(leak, sub, maxv)
    kept = x.detach().clone()
    y = f(x)
    y.sum().backward()
    vals,slopes = zip(*(expected(o, leak, sub, maxv) for o in x.tolist()))
    assert torch.allclose(y, torch.tensor(vals).to(y))
    assert torch.allclose(x.grad, torch.tensor(slopes).to(y))
    assert torch.equal(x, kept)
    assert torch.autograd.gradcheck(f, points()) and torch.autograd.gradgradcheck(f, points())

def same_compiled(c, backend):
    torch._dynamo.reset()
    outs = []
    for f in GeneralRelu(*c), torch.compile(GeneralRelu(*c), backend=backend, fullgraph=True):
        x = points()
        y = f(x)
        y.square().sum().backward()
        outs.append((y.detach(), x.grad))
    (y,g),(yc,gc) = outs
    assert torch.allclose(y, yc) and torch.allclose(g, gc)

@pytest.mark.parametrize('c', list(product((None,.1), (None,.4), (None,1.))))
def test_compiled(c): same_compiled(c, 'aot_eager')

HAS_COMPILER = shutil.which('g++') and sys.platform=='linux'
@pytest.mark.skipif(not HAS_COMPILER, reason='inductor needs a C++ compiler')
def test_compiled_by_inductor(): same_compiled((.1,.4,1.), 'inductor')

# LSUV

def net():
    torch.manual_seed(0)
    convs = conv(1, 4, act=act_gr), conv(4, 4, act=act_gr, norm=nn.BatchNorm2d)
    return nn.Sequential(*convs, nn.Dropout(), nn.Flatten(), nn.Linear(4*16, 3))
@pytest.fixture
def xb(): return torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
def n_hooks(m): return sum(len(o._forward_hooks) for o in m.modules())

def measured(model, ms, xb):
    def f(hook, mod, inp, outp): hook.stats = outp.mean().item(), outp.std().item()
    model.eval()
    with torch.no_grad(), Hooks(ms, f) as hooks: model(xb)
    return [h.stats for h in hooks]

def test_lsuv(xb):
    m = net()
    lsuv_init(m, xb, tol=1e-3)
    (m0,s0),(_,s1),(m2,s2) = measured(m, [m[0][0], m[1][0], m[4]], xb)
    assert [m0,m2]==pytest.approx([0,0], abs=1.1e-3)
    assert [s0,s1,s2]==pytest.approx([1]*3, abs=1.1e-3)

def test_lsuv_with_pairs(xb):
    m = net()
    lsuv_init(m, xb, [(m[0][1], m[0][0])])
    assert measured(m, [m[0][1]], xb)[0]==pytest.approx((0,1), abs=1.1e-2)

def test_lsuv_as_the_course_calls_it(xb):
    "lsuv_init(model, module to measure, layer to change, batch)"
    m = net()
    for ms in zip((m[0][1], m[1][2]), (m[0][0], m[1][0])):
        if ms[1].bias is not None: lsuv_init(m, *ms, xb)
    assert measured(m, [m[0][1]], xb)[0]==pytest.approx((0,1), abs=1.1e-3)

def test_lsuv_in_the_order_of_the_data(xb):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.last,self.first,self.unused = nn.Linear(8,8),nn.Linear(256,8),nn.Linear(2,2)
        def forward(self, x): return self.last(self.first(x.flatten(1)))
    m = Turned()
    unused = m.unused.weight.clone()
    lsuv_init(m, xb)
    stds = [s for _,s in measured(m, [m.first, m.last], xb)]
    assert stds==pytest.approx([1,1], abs=1.1e-2)
    assert torch.equal(m.unused.weight, unused)

def trace(m, weights=False):
    def raw(t): return None if t is None else t.detach().clone().numpy().tobytes()
    ps = list(m.parameters())
    return dict(modes=[o.training for o in m.modules()], buffers=[raw(t) for t in m.buffers()],
                ids=[id(p) for p in ps], grads=[(raw(p.grad),p.requires_grad) for p in ps],
                values=weights and [raw(p) for p in ps], hooks=n_hooks(m),
                rng=torch.get_rng_state().tolist(), enabled=torch.is_grad_enabled())

def prepared():
    m = net()
    m[1][1].eval()
    m[4].weight.grad = torch.ones_like(m[4].weight)
    m[0][0].weight.requires_grad_(False)
    return m

def test_lsuv_changes_only_weights(xb):
    m = prepared()
    before,norm = trace(m),m[1][1].weight.clone()
    lsuv_init(m, xb)
    assert trace(m)==before and torch.equal(m[1][1].weight, norm)

class Breaks(nn.Module):
    def __init__(self, exc, after):
        super().__init__()
        self.exc,self.n = exc,after
    def forward(self, x):
        self.n -= 1
        if self.n<0: raise self.exc
        return x

@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_lsuv_an_error_on_the_way_changes_nothing(xb, exc):
    m = prepared()
    m[2] = Breaks(exc, 3)
    before = trace(m, True)
    with pytest.raises(exc): lsuv_init(m, xb)
    assert trace(m, True)==before

def full(v): return torch.full((4,1,16,16), v)
@pytest.mark.parametrize('make, msg', [
    (lambda m: dict(pairs=[(nn.ReLU(), m[0][0])]), r'must take part in model\(xb\), got ReLU\(\)'),
    (lambda m: dict(tol=1e-9, max_iter=1), 'Conv2d.* after 1 changes: raise tol'),
    (lambda m: dict(xb=full(float('nan'))), 'mean nan and standard deviation nan, so no scaling'),
    (lambda m: dict(xb=full(float('inf'))), 'so no scaling works'),
    (lambda m: dict(xb=full(0.)), 'deviation 0, so .* is something before it constant')])
def test_lsuv_errors(xb, make, msg):
    m = prepared().apply(init_weights)
    before = trace(m, True)
    with pytest.raises(ValueError, match=msg): lsuv_init(m, **{'xb': xb, **make(m)})
    assert trace(m, True)==before

def test_lsuv_of_a_plain_relu_fails_clearly_and_changes_nothing(xb):
    m = nn.Sequential(conv(1,4), conv(4,4))
    before = trace(m, True)
    with pytest.raises(ValueError, match='ReLU'): lsuv_init(m, xb, [(o[1],o[0]) for o in m])
    assert trace(m, True)==before

# conv and init_weights

def test_conv_parts():
    layers = conv(1, 8, norm=nn.BatchNorm2d, act=act_gr)
    assert [type(o) for o in layers]==[nn.Conv2d, nn.BatchNorm2d, GeneralRelu]
    assert [type(o) for o in conv(1, 8, act=None)]==[nn.Conv2d]
    def has_bias(**kw): return conv(1, 8, **kw)[0].bias is not None
    assert has_bias() and has_bias(norm=nn.BatchNorm2d, bias=True)
    assert not has_bias(norm=nn.BatchNorm2d) and not has_bias(bias=False)
    assert conv(1, 8, ks=5, stride=1)(torch.zeros(2,1,7,9)).shape==(2,8,7,9)
    with pytest.raises(ValueError, match='ks must be odd, got 4; pass 3 or 5'): conv(1, 8, ks=4)

@pytest.mark.parametrize('leaky', [0.,.1,1.])
def test_init_weights(leaky):
    m = nn.Sequential(conv(16, 64, ks=5), nn.BatchNorm2d(64), nn.Linear(500, 200, bias=False))
    m.apply(lambda o: init_weights(o, leaky))
    for o,n in (m[0][0],400),(m[2],500):
        assert o.weight.std().item()==pytest.approx((2/n/(1+leaky**2))**.5, rel=.03)
    assert not m[0][0].bias.any() and (m[1].weight==1).all()

# Normalize

MEAN,STD = 0.2860405969887955, 0.3530242445149223

@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('shape', [(2,1,28,28),(3,3,5,7),(1,28,28),(4,1,1,1),(64,3,32,32)])
def test_normalize_is_bit_identical_to_python_numbers(shape, memory_format):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    if len(shape)==4: x = x.to(memory_format=memory_format)
    assert torch.equal(Normalize(MEAN, STD)(x), (x-MEAN)/STD)
    xd = x.double()
    assert torch.allclose(Normalize(MEAN, STD)(xd), (xd-MEAN)/STD, atol=1e-6)

@pytest.mark.parametrize('kind', [list, tuple, np.array, torch.tensor])
def test_normalize_per_channel(kind):
    x,mean,std = torch.rand(4,3,8,8),[.1,.2,.3],[.5,1.,2.]
    y = Normalize(kind(mean), kind(std))(x)
    for c in range(3): assert torch.equal(y[:,c], (x[:,c]-mean[c])/std[c])

def test_normalize_is_part_of_what_is_saved():
    m = nn.Sequential(Normalize(.25, .5), nn.Flatten())
    other = nn.Sequential(Normalize(0, 1), nn.Flatten())
    assert list(m.state_dict())==['0.mean','0.std'] and m[0].mean.shape==(1,1,1)
    assert not list(m.parameters())
    f = io.BytesIO()
    torch.save(m.state_dict(), f)
    f.seek(0)
    other.load_state_dict(torch.load(f, weights_only=True))
    x = torch.rand(2,1,4,4)
    assert torch.equal(other(x), m(x)) and torch.equal(m(x), ((x-.25)/.5).flatten(1))
    assert repr(m[0])=='Normalize(mean=[0.25], std=[0.5])'
    color = Normalize([.1,.2], [.3,.4])
    assert repr(color)=='Normalize(mean=[0.1, 0.2], std=[0.3, 0.4])'

def test_normalize_has_numbers_of_its_own():
    mean = torch.tensor([.5])
    norm = Normalize(mean, mean)
    norm.mean.fill_(9)
    assert mean.item()==.5

def test_normalize_goes_where_the_images_are():
    assert Normalize(.5, .5)(torch.empty(2,1,4,4, device='meta')).device.type=='meta'

@pytest.mark.parametrize('std', [0, 0., [1.,0.], -1., float('nan')])
def test_normalize_by_nothing(std):
    msg = 'std must be above 0, got .*; are all pixels the same'
    with pytest.raises(ValueError, match=msg): Normalize(0., std)

def test_normalize_can_be_traced_and_exported():
    m,x = nn.Sequential(Normalize(.25, .5), conv(1, 2)),torch.rand(2,1,8,8)
    traced,exported = torch.fx.symbolic_trace(m),torch.export.export(m, (x,)).module()
    for f in traced,exported: assert torch.allclose(f(x), m(x))

# BatchTransformCB

def fit_with(tfm, batch=None, **kw):
    learn = TrainLearner(toy_model(), toy_dls(), F.cross_entropy)
    if batch is not None: learn.dls.train = [batch]
    learn.fit(1, valid=batch is None, cbs=BatchTransformCB(tfm, **kw))
    return learn

x,y = torch.randn(4,4),torch.tensor([0,1,2,0])
Pair = namedtuple('Pair', 'x y')

@pytest.mark.parametrize('tfm', [
    lambda b: (b[0]*2, b[1]), lambda b: [b[0], b[1]], lambda b: Pair(*b), lambda b: b])
def test_transforms_that_keep_the_structure(tfm): fit_with(tfm)

def test_normalize_in_a_tuple_a_list_and_a_dict():
    norm,want = Normalize(.5, .2),(x-.5)/.2
    for batch,tfm in (((x,y), lambda b: (norm(b[0]), *b[1:])),
                      ([x,y], lambda b: [norm(b[0]), *b[1:]]),
                      ({'x': x, 'y': y}, lambda b: {**b, 'x': norm(b['x'])})):
        learn = SimpleNamespace(batch=batch, training=True)
        BatchTransformCB(tfm).before_batch(learn)
        bx,by = learn.batch.values() if isinstance(batch, dict) else learn.batch
        assert type(learn.batch) is type(batch) and torch.equal(bx, want[None]) and by is y

def test_more_items_are_welcome():
    seen = []
    class See(Callback):
        order = BatchTransformCB.order+1
        def before_batch(self, learn):
            seen.append(len(learn.batch))
            learn.batch = learn.batch[:2]
    learn = TrainLearner(toy_model(), toy_dls(), F.cross_entropy)
    learn.fit(1, cbs=[BatchTransformCB(lambda b: (*b, b[1].flip(0), .3)), See()])
    assert set(seen)=={4}

def loses_y(b):
    b.pop('y')
    return b

@pytest.mark.parametrize('batch, tfm, msg', [
    ((x,y), lambda b: b[0], r'return all 2 items of the batch, got \(4, 4\).*\(x, \*b\[1:\]\)'),
    ((x,y), lambda b: None, 'got none'), ((x,y), lambda b: b[:1], r'got \(4, 4\)'),
    ({'x': x, 'y': y}, lambda b: {'x': b['x']}, r'got \{x: [^,]*, 4\)'),
    ({'x': x, 'y': y}, loses_y, r'got \{x: [^y]*;')])
def test_transforms_that_lose_items(batch, tfm, msg):
    with pytest.raises(TypeError, match=msg) as e: fit_with(tfm, batch)
    assert 'Raised in callback BatchTransformCB, event before_batch.' in e.value.__notes__

@pytest.mark.parametrize('on_train, on_val, n', [
    (True,True,6), (True,False,4), (False,True,2), (False,False,0)])
def test_passes(on_train, on_val, n):
    seen = []
    def tfm(b):
        seen.append(1)
        return b
    fit_with(tfm, on_train=on_train, on_val=on_val)
    assert len(seen)==n
