"The challenge: a network that pools, Muon, alternating flips, views, CutMix; the playground"
import copy, json, pytest, torch, torch.nn.functional as F
from functools import partial
from torch import nn
from miniai.augment import RandErase, flip_views, tfm_batch
from miniai.challenge import (AltFlipCB, CutMixCB, Muon, cutmix, orthogonalize, play, play_board,
                              play_learner, pool_block, poolnet, shift_views)
from miniai.core import set_seed
from miniai.datasets import DataLoaders, fashion_tensors
from miniai.init import BatchTransformCB
from miniai.learner import Accuracy, Callback, MetricsCB, TrainLearner
from conftest import EVENTS, Raises

def images(shape=(64,1,28,28), seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

def image_dls(n=24, bs=5):
    x,y = images((n,1,28,28)),torch.arange(n)%3
    return DataLoaders.from_tensors({'train': (x,y), 'valid': (x,y)}, bs, seed=0)

def image_learner(cbs=None, dls=None, n_classes=3, loss=F.cross_entropy):
    set_seed(0)
    model = nn.Sequential(nn.Conv2d(1,4,3,stride=4), nn.BatchNorm2d(4), nn.Flatten(),
                          nn.Dropout(.2), nn.Linear(4*49,n_classes))
    return TrainLearner(model, dls or image_dls(), loss, .1, cbs=cbs)

class See(Callback):
    "Keeps the inputs and targets of every batch when `event` happens"
    order = 500
    def __init__(self, event):
        setattr(self, event, self.see)
        self.seen = []
    def see(self, learn): self.seen.append((learn.training, learn.epoch, *learn.batch))

# ---- the network that pools

def test_a_block_that_pools():
    block = pool_block(3, 8)
    assert block(images((2,3,28,28))).shape==(2,8,14,14)
    assert block(images((2,3,7,5))).shape==(2,8,3,2)
    assert pool_block(3, 8, stride=1)(images((2,3,7,7))).shape==(2,8,7,7)

@pytest.mark.parametrize('size', [28, 20])
def test_poolnet_takes_images_of_any_size(size):
    model = poolnet(nfs=(4,8,16,32))
    out = model(images((3,1,size,size)))
    assert out.shape==(3,10)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())

# ---- Muon

@pytest.mark.parametrize('shape', [(8,18), (18,8), (16,144), (64,64)])
def test_orthogonalize(shape):
    "Singular values near 1, in the directions that the gradient has, at any scale"
    gen = torch.Generator().manual_seed(0)
    u,s,vt = torch.linalg.svd(torch.randn(shape, generator=gen), full_matrices=False)
    g = u*s.clamp_min(.1*s.max())@vt
    o = orthogonalize(g)
    core = u.T@o@vt.T
    assert o.shape==g.shape and o.dtype==g.dtype
    assert .6<core.diagonal().min() and core.diagonal().max()<1.25
    assert (core-core.diagonal().diag()).abs().max()<.05  # bfloat16
    torch.testing.assert_close(orthogonalize(1e4*g), o, rtol=0, atol=.05)
    assert torch.equal(orthogonalize(torch.zeros(shape)), torch.zeros(shape))

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_muon_steps_by_its_definition(dtype):
    gen = torch.Generator().manual_seed(0)
    conv = nn.Parameter(torch.randn((4,3,3,3), generator=gen))
    bias = nn.Parameter(torch.randn((4,), generator=gen))
    w,b,avgs = conv.detach().clone(),bias.detach().clone(),[0,0]
    opt = Muon([conv,bias], lr=.1, momentum=.6, dtype=dtype)
    for _ in range(3):
        grads = [torch.randn(p.shape, generator=gen) for p in (conv,bias)]
        conv.grad,bias.grad = grads
        opt.step()
        avgs = [.6*a+g for a,g in zip(avgs, grads)]
        dw,db = (g+.6*a for g,a in zip(grads, avgs))  # Nesterov's
        w = w*2/w.norm() - .1*orthogonalize(dw.flatten(1), dtype).view(4,3,3,3)
        b = b-.1*db
        torch.testing.assert_close(conv.data, w)
        torch.testing.assert_close(bias.data, b)

def test_muon_goes_on_where_its_state_was_saved():
    conv = nn.Conv2d(2, 4, 3)
    def steps(model, opt, seed, n=2):
        gen = torch.Generator().manual_seed(seed)
        for _ in range(n):
            for p in model.parameters(): p.grad = torch.randn(p.shape, generator=gen)
            opt.step()
    opt = Muon(conv.parameters())
    steps(conv, opt, 0)
    again = copy.deepcopy(conv)
    other = Muon(again.parameters())
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    steps(conv, opt, 1)
    steps(again, other, 1)
    for p,q in zip(conv.parameters(), again.parameters()): assert torch.equal(p, q)

def test_muon_and_parameters_without_a_gradient_or_a_scale():
    conv = nn.Conv2d(1, 4, 3)
    nn.init.zeros_(conv.weight)
    rest = nn.Parameter(torch.ones(2))
    opt = Muon([*conv.parameters(), rest])
    conv(torch.rand(2,1,5,5)).sum().backward()
    opt.step()
    assert conv.weight.isfinite().all() and rest.tolist()==[1,1]

# ---- alternating flips

@pytest.mark.parametrize('before', [None, lambda x: (x-.2)/.3])
@pytest.mark.parametrize('n_epochs', [2,4])
def test_alternating_flip_shows_both_sides_in_two_epochs(before, n_epochs):
    see,cbs = See('before_batch'),[AltFlipCB(seed=4)]
    if before: cbs.append(BatchTransformCB(partial(tfm_batch, tfm_x=before)))
    learn = image_learner([*cbs, see])
    learn.fit(n_epochs)
    def key(x): return x.numpy().tobytes()
    x = learn.dls.train.x if before is None else before(learn.dls.train.x)
    sides = {key(o): (i,False) for i,o in enumerate(x)}
    sides |= {key(o): (i,True) for i,o in enumerate(x.flip(-1))}
    shown = [{} for _ in range(n_epochs)]
    for training,epoch,xb,yb in see.seen:
        if training: shown[epoch] |= dict(sides[key(o)] for o in xb)
        else: assert not any(sides[key(o)][1] for o in xb)
    for a,b in zip(shown, shown[1:]): assert all(a[i]!=b[i] for i in range(24))
    assert len(set(shown[0].values()))==2

def test_alternating_flips_seed_chooses_the_half():
    x = images((2000,1,28,28))
    halves = torch.stack([AltFlipCB(s).half(x) for s in range(4)]).float()
    assert ((halves.mean(1)-.5).abs()<.05).all()
    assert (torch.corrcoef(halves)-torch.eye(4)).abs().max()<.1

def test_alternating_flips_half_does_not_follow_the_class():
    x,y = fashion_tensors(sample=True, device='cpu')['train']
    half = AltFlipCB().half(x.float()/255).float()
    assert all(.4<half[y==c].mean()<.6 for c in range(10))

# ---- more views

def test_shifted_views_move_by_a_pixel_and_repeat_the_edge():
    x = torch.arange(12.).view(1,1,3,4)
    up = torch.tensor([[5.,6,7,7],[9,10,11,11],[9,10,11,11]])
    down = torch.tensor([[0.,0,1,2],[0,0,1,2],[4,4,5,6]])
    views = [view(x)[0,0] for view in shift_views]
    assert len(views)==6 and shift_views[:2]==flip_views
    assert torch.equal(views[2], up) and torch.equal(views[4], down)
    flipped = x.flip(-1)
    assert torch.equal(views[3], shift_views[2](flipped)[0,0])
    assert torch.equal(views[5], shift_views[4](flipped)[0,0])

# ---- CutMix

MIX = [False,True]

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', [(5,1,28,28), (1,3,9,14), (7,2,1,1)])
@pytest.mark.parametrize('per_image', MIX)
def test_cutmix_keeps_shape_dtype_range_and_the_callers_tensor(per_image, shape, dtype):
    x = images(shape).to(dtype)
    kept = x.clone()
    for _ in range(5):
        y,_,_ = cutmix(x, per_image=per_image)
        assert y.shape==x.shape and y.dtype==x.dtype and y.data_ptr()!=x.data_ptr()
        assert y.min()>=x.min() and y.max()<=x.max()
        assert torch.equal(x, kept)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('per_image', MIX)
def test_on_a_gpu(per_image):
    x = images().cuda()
    y,idx,own = cutmix(x, per_image=per_image)
    assert y.device==idx.device==own.device==x.device
    halves = AltFlipCB().half(x)
    assert halves.device==x.device and torch.equal(halves.cpu(), AltFlipCB().half(x.cpu()))
    assert all(view(x).device==x.device for view in shift_views)

@pytest.mark.parametrize('per_image', MIX)
def test_cutmix_follows_the_seed_and_takes_any_layout(per_image):
    x = images((8,3,28,28))
    def run(seed, x):
        set_seed(seed)
        return torch.stack([cutmix(x, per_image=per_image)[0] for _ in range(4)])
    assert torch.equal(run(1, x), run(1, x)) and not torch.equal(run(1, x), run(2, x))
    assert torch.equal(run(1, x), run(1, x.to(memory_format=torch.channels_last)))

def test_one_patch_for_the_batch_or_one_for_each_image():
    x = torch.arange(64.)[:,None,None,None].expand(64,1,28,28)
    set_seed(0)
    def same(per_image):
        masks = cutmix(x, per_image=per_image)[0]!=x
        return all(torch.equal(masks[0], o) for o in masks)
    assert all(same(False) for _ in range(8)) and not any(same(True) for _ in range(8))

@pytest.mark.parametrize('per_image', MIX)
@pytest.mark.parametrize('alpha', [.2, 1., 5.])
@pytest.mark.parametrize('hw', [(28,28), (9,14), (1,1)])
def test_areas_of_cutmix_match_its_fractions(per_image, alpha, hw):
    x = torch.arange(50.)[:,None,None,None].expand(-1,2,*hw)
    set_seed(0)
    for _ in range(10):
        y,idx,lam = cutmix(x, alpha, per_image)
        own,other = (y==x).float().mean((1,2,3)),(y==x[idx]).float().mean((1,2,3))
        assert torch.allclose(own, lam, atol=1e-6) and torch.allclose(other, 1-lam, atol=1e-6)
        assert sorted(idx.tolist())==list(range(50))
        assert lam.shape==(50,) and lam.min()>=0 and lam.max()<=1

@pytest.mark.parametrize('n', [2,3,7])
def test_cutmix_never_pairs_an_image_with_itself(n):
    set_seed(0)
    x = images((n,1,4,4))
    idx = torch.stack([cutmix(x, per_image=bool(i%2))[1] for i in range(100)])
    assert (idx!=torch.arange(n)).all()
    assert all(len(partners.unique())==n-1 for partners in idx.T)
    x = images((1,1,4,4))
    assert torch.equal(cutmix(x)[0], x)  # it is alone

def test_cutmix_fractions_follow_the_beta_distribution():
    set_seed(0)
    lam = cutmix(torch.rand(20_000,1,28,28), per_image=True)[2]
    assert abs(lam.mean()-.5)<.01 and abs(lam.std()-12**-.5)<.01
    assert cutmix(torch.rand(20_000,1,28,28), 100., per_image=True)[2].std()<.05

class Asked:
    "Cross-entropy that keeps the targets it is asked for"
    def __init__(self): self.seen = []
    def __call__(self, preds, y):
        self.seen.append(y)
        return F.cross_entropy(preds, y)

def test_cutmix_only_trains_on_soft_targets_and_leaves_the_labels():
    loss,events = Asked(),[See(o) for o in ('after_predict','after_loss','after_batch')]
    cbs = [CutMixCB(per_image=True), MetricsCB(Accuracy()), *events]
    learn = image_learner(cbs, loss=loss)
    x = learn.dls.train.x.clone()
    learn.fit(2)
    assert torch.equal(learn.dls.train.x, x)
    soft = [y for y in loss.seen if y.is_floating_point()]
    assert len(soft)==10
    assert len(loss.seen)==10*2+10  # five batches in an epoch, each also with its labels
    assert all(y.shape[1]==3 and torch.allclose(y.sum(1), torch.ones(len(y))) for y in soft)
    for see in events:
        assert all(yb.dtype==torch.int64 for _,_,_,yb in see.seen)
        for training,_,xb,_ in see.seen:
            if not training: assert all((o==x).flatten(1).all(1).any() for o in xb)

def test_the_gradients_of_cutmix_are_those_of_soft_targets():
    learn = image_learner([CutMixCB(per_image=True)])
    def grads(m): return [p.grad.clone() for p in m.parameters()]
    class Compares(Callback):
        ran = False
        def after_backward(self, learn):
            got,loss = grads(learn.model),learn.loss.item()
            y = F.one_hot(learn.batch[1], 3)
            idx,lam = learn.mix
            soft = lam[:,None]*y+(1-lam[:,None])*y[idx]
            learn.model.zero_grad()
            learn.model[3].eval()
            new = F.cross_entropy(learn.model(learn.batch[0]), soft)
            new.backward()
            assert loss==pytest.approx(new.item(), rel=1e-4)
            for o,n in zip(got, grads(learn.model)):
                torch.testing.assert_close(o, n, rtol=1e-3, atol=1e-5)
            self.ran = True
    learn.model[3].p = 0.
    compares = Compares()
    learn.fit(1, cbs=compares)
    assert compares.ran

def test_soft_targets_are_the_fractions_of_pixels():
    "Image i is all i, and its class is i: the fractions of the values in an image are its target"
    x,y = torch.arange(6.)[:,None,None,None].expand(6,1,28,28),torch.arange(6)
    see,loss = See('after_predict'),Asked()
    dls = DataLoaders.from_tensors({'train': (x,y)}, 6, seed=0)
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

# ---- in fits

class Named(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.lin = nn.Linear(192, n_classes)
    def forward(self, pixels): return self.lin(pixels.flatten(1))

@pytest.mark.parametrize('kind', ['tuple','dict'])
def test_flips_mixes_and_views_of_any_data(kind):
    x,y = images((24,3,8,8)),torch.arange(24)%12
    batches = [(x[i:i+6], y[i:i+6]) for i in range(0, 24, 6)]
    if kind=='dict': batches = [{'pixels': x, 'target': y} for x,y in batches]
    def loss(preds, target): return F.cross_entropy(preds, target)
    learn = TrainLearner(Named(12), DataLoaders(batches, batches), loss, .1)
    learn.fit(2, cbs=[AltFlipCB(), CutMixCB(per_image=True), MetricsCB(Accuracy())])
    probs,_ = learn.tta(shift_views)
    assert probs.shape==(24,12) and torch.allclose(probs.sum(1), torch.ones(24))

class At(Callback):
    "Calls `f` at `event`, after most others"
    order = 99
    def __init__(self, event, f): setattr(self, event, f)

@pytest.mark.parametrize('event, dry_run', [
    ('after_predict', lambda learn: learn.capture_preds()),
    ('before_batch', lambda learn: learn.lr_find(show=False))])
def test_a_dry_run_amid_a_mixed_batch(event, dry_run):
    def run(*cbs):
        learn = image_learner([CutMixCB(), MetricsCB(), *cbs], image_dls(48, 16))
        learn.model[3].p = 0.
        learn.fit(2)
        losses = [(r['train_loss'],r['valid_loss']) for r in learn.history]
        return losses,[t.clone() for t in learn.model.state_dict().values()]
    losses,weights = run()
    losses2,weights2 = run(At(event, dry_run))
    assert losses==losses2
    assert all(torch.equal(a, b) for a,b in zip(weights, weights2))

# ---- the playground

tiny = partial(poolnet, nfs=(2,4,4,8))

@pytest.fixture
def ideas(tmp_path, monkeypatch):
    "The file of ideas in a folder to play in, on the sample"
    monkeypatch.setenv('MINIAI_DATA', 'sample')
    monkeypatch.chdir(tmp_path)
    return tmp_path/'play.jsonl'

def play_tiny(name, **kwargs): return play(name, **(dict(epochs=1, seeds=1, model=tiny)|kwargs))
def rows_of(file): return [json.loads(o) for o in file.read_text().splitlines()]

def test_a_first_play_adds_a_row(ideas, capsys):
    assert '✓' not in play_board().to_string()  # before any play
    board = play_tiny('one', seeds=2)
    [row] = rows_of(ideas)
    assert row['idea']=='one' and len(row['accuracy'])==2 and row['epochs']==1
    said = capsys.readouterr().out
    for i,o in enumerate(row['accuracy']): assert f'one, seed {i}: accuracy {o:.4f}' in said
    [mine] = board[board.yours=='✓'].to_dict('records')
    assert mine['idea']=='one' and mine['seeds']==2 and '±' in mine['accuracy']
    assert board.equals(play_board())

def test_a_name_played_again_replaces_its_row(ideas):
    play_tiny('one', lr=1e-9)
    play_tiny('two')
    board = play_tiny('one', lr=.01)
    mine = board[board.yours=='✓']
    assert sorted(mine.idea)==['one','two']
    last = rows_of(ideas)[-1]['accuracy'][0]
    assert mine[mine.idea=='one'].accuracy.item()==f'{last:.4f}'
    assert set(play_tiny('one', epochs=2).query('yours=="✓"').epochs)=={1,2}

def test_the_best_idea_comes_first(ideas):
    row = dict(who='you', training=.9, epochs=1, parameters=1, macs=1, seconds=1.,
               images=len(play_learner(tiny).dls.train.x))
    rows = [dict(row, idea=str(a), accuracy=a) for a in ([.5,.7], [.9], [.55], [.8,.9,.94])]
    ideas.write_text(''.join(json.dumps(o)+'\n' for o in rows))
    board = play_board()
    assert list(board.idea)==['[0.9]', '[0.8, 0.9, 0.94]', '[0.5, 0.7]', '[0.55]']
    assert list(board.index)==[1,2,3,4]

def test_the_sample_and_all_images_have_boards_apart(ideas):
    play_tiny('one')
    [row] = rows_of(ideas)
    ideas.write_text(json.dumps(dict(row, images=3000)))
    assert len(play_board())==0

def test_a_file_elsewhere(ideas, tmp_path):
    (tmp_path/'far').mkdir()
    board = play_tiny('one', file=tmp_path/'far'/'mine.jsonl')
    assert list(board.idea)==['one'] and not ideas.exists()
    assert play_board('far/mine.jsonl').equals(board) and len(play_board())==0

def test_mistakes_are_refused_before_a_training(ideas, capsys):
    with pytest.raises(TypeError, match='got a Sequential; pass its class, or lambda'):
        play_tiny('one', model=tiny())
    with pytest.raises(TypeError, match='name must be a string.*model=...'): play(tiny)
    with pytest.raises(FileNotFoundError): play_tiny('one', file='missing/play.jsonl')
    assert 'accuracy' not in capsys.readouterr().out and len(play_board())==0

def test_a_training_that_is_stopped_leaves_no_row(ideas):
    with pytest.raises(KeyboardInterrupt):
        play_tiny('one', cbs=Raises('after_batch', KeyboardInterrupt()))
    assert len(play_board())==0
    assert list(play_tiny('two').idea)==['two']

def test_a_name_of_two_lines_and_a_model_that_diverges(ideas):
    with pytest.warns(UserWarning, match='(?i)nan|finite'):
        board = play_tiny('one\ntwo', opt_func=torch.optim.SGD, lr=1e30)
    assert list(board.idea)==['one\ntwo'] and len(rows_of(ideas))==1

def test_the_playground_never_reads_test_images(ideas):
    splits = fashion_tensors(device='cpu')
    def keys(x): return {o.numpy().tobytes() for o in x.cpu()}
    dls = play_learner(tiny).dls
    train,held = keys(dls.train.x),keys(dls.valid.x)
    assert train|held <= keys(splits['train'][0]) and not train & held
    assert not (train|held) & keys(splits['test'][0])

def test_ideas_of_every_kind(ideas):
    loss = partial(F.cross_entropy, label_smoothing=.1)
    cbs = [AltFlipCB(), CutMixCB(per_image=True)]
    [row] = play_tiny('all', opt_func=Muon, lr=.1, loss_func=loss, tfm=RandErase(), cbs=cbs,
                      seeds=2).to_dict('records')
    assert row['seeds']==2

def test_a_seed_repeats_its_training(ideas):
    a,b,c = [play_tiny(o, epochs=e) for o,e in (('a',1), ('b',1), ('c',2))]
    rows = {o['idea']: o for o in rows_of(ideas)}
    assert rows['a']['accuracy']==rows['b']['accuracy']
    assert rows['a']['training']<rows['c']['training']
