"Gradients of GeneralRelu, LSUV that leaves no other trace, and transforms that keep a batch's structure"
import shutil, sys, pytest, torch, torch.nn.functional as F
from collections import namedtuple
from itertools import product
from torch import nn
from miniai.activations import *
from miniai.init import *
from miniai.learner import *
from conftest import toy_dls, toy_model

COMBINATIONS = list(product((None,.1,0.), (None,.4,0.), (None,1.,.3)))
def points(): return torch.arange(-2.95, 3, .1, dtype=torch.double, requires_grad=True)  # no kink among them

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
    assert torch.allclose(y, torch.tensor(vals, dtype=y.dtype)) and torch.allclose(x.grad, torch.tensor(slopes, dtype=y.dtype))
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

@pytest.mark.skipif(not shutil.which('g++') or sys.platform!='linux', reason='inductor needs a C++ compiler')
def test_compiled_by_inductor(): same_compiled((.1,.4,1.), 'inductor')

# LSUV

def net(): return nn.Sequential(conv(1, 4, act=act_gr), conv(4, 4, act=act_gr, norm=nn.BatchNorm2d), nn.Dropout(), nn.Flatten(), nn.Linear(4*16, 3))
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
    assert [m0,m2]==pytest.approx([0,0], abs=1.1e-3) and [s0,s1,s2]==pytest.approx([1]*3, abs=1.1e-3)

def test_lsuv_with_pairs(xb):
    m = net()
    lsuv_init(m, xb, [(m[0][1], m[0][0])])
    assert measured(m, [m[0][1]], xb)[0]==pytest.approx((0,1), abs=1.1e-2)

def test_lsuv_in_the_order_of_the_data(xb):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.last,self.first,self.unused = nn.Linear(8,8),nn.Linear(256,8),nn.Linear(2,2)
        def forward(self, x): return self.last(self.first(x.flatten(1)))
    m = Turned()
    unused = m.unused.weight.clone()
    lsuv_init(m, xb)
    assert [s for _,s in measured(m, [m.first, m.last], xb)]==pytest.approx([1,1], abs=1.1e-2) and torch.equal(m.unused.weight, unused)

def trace(m, weights=False):
    b = lambda t: None if t is None else t.detach().clone().numpy().tobytes()
    return dict(modes=[o.training for o in m.modules()], buffers=[b(t) for t in m.buffers()], grads=[b(p.grad) for p in m.parameters()], requires=[p.requires_grad for p in m.parameters()],
                ids=[id(p) for p in m.parameters()], hooks=n_hooks(m), rng=torch.get_rng_state().tolist(), enabled=torch.is_grad_enabled(), values=weights and [b(p) for p in m.parameters()])

def prepared():
    m = net()
    m[1][1].eval()
    m[4].weight.grad = torch.ones_like(m[4].weight)
    m[0][0].weight.requires_grad_(False)
    return m

def test_lsuv_leaves_only_weights(xb):
    m = prepared()
    before,norm = trace(m),m[1][1].weight.clone()
    lsuv_init(m, xb)
    assert trace(m)==before and torch.equal(m[1][1].weight, norm)

class Breaks(nn.Module):
    def __init__(self, exc, after): super().__init__(); self.exc,self.n = exc,after
    def forward(self, x):
        self.n -= 1
        if self.n<0: raise self.exc
        return x

@pytest.mark.parametrize('exc', [ZeroDivisionError, KeyboardInterrupt])
def test_lsuv_an_error_on_the_way_leaves_nothing(xb, exc):
    m = prepared()
    m[2] = Breaks(exc, 3)
    before = trace(m, True)
    with pytest.raises(exc): lsuv_init(m, xb)
    assert trace(m, True)==before

@pytest.mark.parametrize('make, msg', [
    (lambda m: dict(pairs=[(m[0][1], m[3])]), r'Flatten\(.*has no weights to scale: pairs are'),
    (lambda m: dict(pairs=[(nn.ReLU(), m[0][0])]), r'ReLU\(\) took no part when the model was called'),
    (lambda m: dict(tol=1e-9, max_iter=1), 'after 1 changes to Conv2d.*allow a larger tol'),
    (lambda m: dict(xb=torch.full((4,1,16,16), float('nan'))), 'mean nan and deviation nan, which no scale makes 1'),
    (lambda m: dict(xb=torch.full((4,1,16,16), float('inf'))), 'which no scale makes 1'),
    (lambda m: dict(xb=torch.zeros(4,1,16,16)), 'deviation 0, which no scale makes 1: look for inputs')])
def test_lsuv_errors(xb, make, msg):
    m = prepared().apply(init_weights)
    before = trace(m, True)
    with pytest.raises(ValueError, match=msg): lsuv_init(m, **{'xb': xb, **make(m)})
    assert trace(m, True)==before

def test_lsuv_without_layers(xb):
    with pytest.raises(ValueError, match='No convolution or linear layer took part, among Flatten, ReLU, Sequential'): lsuv_init(nn.Sequential(nn.ReLU(), nn.Flatten()), xb)

def test_lsuv_of_a_plain_relu_fails_clearly(xb):
    m = nn.Sequential(conv(1,4), conv(4,4))
    with pytest.raises(ValueError, match='ReLU'): lsuv_init(m, xb, [(o[1],o[0]) for o in m])

# BatchTransformCB

def fit_with(tfm, batch=None, **kw):
    learn = TrainLearner(toy_model(), toy_dls(), F.cross_entropy)
    if batch is not None: learn.dls.train = [batch]
    learn.fit(1, valid=batch is None, cbs=BatchTransformCB(tfm, **kw))
    return learn

x,y = torch.randn(4,4),torch.tensor([0,1,2,0])
Pair = namedtuple('Pair', 'x y')

@pytest.mark.parametrize('tfm', [lambda b: (b[0]*2, b[1]), lambda b: [b[0], b[1]], lambda b: Pair(*b), lambda b: b, Normalize(.5, .2)])
def test_transforms_that_keep_the_structure(tfm): fit_with(tfm)

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
    ((x,y), lambda b: b[0], r'<lambda> turned a batch, tuple with items 0, 1, into Tensor: .*for example \(x, \*b\[1:\]\)'), ((x,y), lambda b: None, 'into NoneType'),
    ((x,y), lambda b: b[:1], 'tuple with items 0, 1, into tuple with items 0:'), ((x,y), lambda b: {'x': b[0], 'y': b[1]}, 'into dict with items'),
    ((x,y), lambda b: torch.stack([b[0], b[0]]), 'into Tensor'), ({'x': x, 'y': y}, lambda b: {'x': b['x']}, 'dict with items .*into dict with items x:'),
    ({'x': x, 'y': y}, loses_y, 'loses_y turned .*into dict with items x:'), ({'x': x, 'y': y}, lambda b: (b['x'], b['y']), 'into tuple'), (x, lambda b: (b,b), 'a batch, Tensor, into tuple')])
def test_transforms_that_change_the_structure(batch, tfm, msg):
    with pytest.raises(TypeError, match=msg) as e: fit_with(tfm, batch)
    assert 'Raised in callback BatchTransformCB, event before_batch.' in e.value.__notes__

@pytest.mark.parametrize('on_train, on_val, n', [(True,True,6),(True,False,4),(False,True,2),(False,False,0)])
def test_passes(on_train, on_val, n):
    seen = []
    def tfm(b):
        seen.append(1)
        return b
    fit_with(tfm, on_train=on_train, on_val=on_val)
    assert len(seen)==n
