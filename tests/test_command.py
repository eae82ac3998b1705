"miniai-train, as you type it, and what it leaves behind"
import csv, gzip, json, os, shutil, subprocess, sys, pytest, torch
import fastcore.all as fc, matplotlib.pyplot as plt, numpy as np, pandas as pd
from pathlib import Path
import miniai.accel, miniai.datasets, miniai.recipes
from miniai.accel import amp_dtype
from miniai.augment import flip_views
from miniai.challenge import shift_views
from miniai.checkpoint import digest, load_safely
from miniai.datasets import fashion_tensors, pixel_stats
from miniai.init import Normalize
from miniai.learner import ProgressCB
from miniai.recipes import get_recipe, load_model, load_results, main, models
from miniai.recipes import recipe_learner, recipes, results_table, train_or_load, training_macs

KEYS = ('recipe model seed epochs accuracy tta_accuracy loss train_accuracy seconds '
        'device threads amp torch date commit parameters macs data').split()
FILES = ['history.png','log.csv','mistakes.png','model.pt','preds.npz','result.json']
HALF = {torch.bfloat16: 'bf16', None: 'no'}[amp_dtype('cpu')]  # what --amp auto is here

def cmd(*args, **env):
    "The command in a process of its own"
    full = {k: v for k,v in {**os.environ, **env}.items() if v is not None}
    args = [sys.executable, '-m', 'miniai.recipes', *map(str, args)]
    return subprocess.run(args, capture_output=True, text=True, env=full)

def fails(*words, **kwargs):
    "The command in this process ends with one line that has these words, and a status other than 0"
    with pytest.raises(SystemExit) as e: main(**kwargs)
    said = e.value.code
    assert isinstance(said, str) and said.startswith('miniai-train: ') and '\n' not in said
    for w in words: assert w in said, said

@pytest.fixture
def quick(tmp_path, idx_folder, monkeypatch):
    "Arguments of a run that takes no time: 40 images, and empty pictures"
    for nm in 'plot_history','plot_mistakes':
        monkeypatch.setattr(miniai.recipes, nm, lambda *args: plt.figure(figsize=(.5,.5)))
    return dict(recipe='base', epochs=2, batch_size=8, data=str(idx_folder), device='cpu',
                out=str(tmp_path/'out'))

def run_of(out):
    "The one run in a folder"
    run, = Path(out).iterdir()
    return run

# ---- in a process of its own

def test_a_run_on_the_sample(tmp_path):
    options = '--epochs 1 --data sample --seed 3 --valid 500 --batch-size 512'
    res = cmd(*options.split(), '--out', tmp_path)
    assert res.returncode==0, res.stderr
    first,second,*_,last = res.stdout.splitlines()
    assert 'sample' in first
    assert '3,500 images to train on, 500 to validate on' in first
    run = run_of(tmp_path)
    assert run.name.startswith('conv-1ep-seed3-')
    assert second==f'Training {run.name}.'
    assert 'the lesson' not in last
    assert sorted(f.name for f in run.iterdir())==FILES and str(run) in last
    r = json.loads((run/'result.json').read_text())
    assert list(r)==[*KEYS,'batch_size','valid','images'] and (r['valid'],r['images'])==(500,3500)
    assert f"{r['accuracy']:.4f}" in last and r['amp']==HALF
    rows = list(csv.DictReader((run/'log.csv').open()))
    assert len(rows)==1 and round(float(rows[-1]['valid_accuracy']),5)==r['accuracy']
    for f in 'history.png','mistakes.png': assert (run/f).read_bytes()[:4]==b'\x89PNG'

def test_errors_of_the_command_line(capsys):
    res = cmd('--recipe', 'resnet999')
    assert res.returncode!=0
    names = ', '.join(recipes)
    assert res.stderr==f"miniai-train: recipe must be one of {names}, got 'resnet999'.\n"
    parser = fc.anno_parser(main, 'miniai-train')
    with pytest.raises(SystemExit): parser.parse_args(['--recepi', 'conv'])
    assert '--recepi' in capsys.readouterr().err
    with pytest.raises(SystemExit): parser.parse_args(['--help'])
    out = capsys.readouterr().out
    options = 'recipe epochs lr batch model seed device data valid amp out restart'
    for o in options.split(): assert f'--{o}' in out
    out = ' '.join(out.split())
    assert 'Name of a recipe' in out and '(default: conv)' in out

# ---- a run

def test_the_same_again(quick, tmp_path):
    seeds = (5,'a'), (5,'b'), (6,'c')
    runs = [train_or_load(**quick | dict(seed=seed, out=tmp_path/o)) for seed,o in seeds]
    assert runs[0].result['loss']==runs[1].result['loss']!=runs[2].result['loss']
    a,b,c = (load_safely(l.run/'model.pt')['state'] for l in runs)
    assert digest(a)==digest(b)!=digest(c)

def test_a_finished_run_is_read(quick, capsys):
    first = train_or_load(**quick)
    assert 'Training' in capsys.readouterr().out
    again = train_or_load(**quick)
    out = capsys.readouterr().out
    assert 'is finished; to train again, pass a different --out' in out and 'Training' not in out
    assert again.history==first.history and again.result==first.result
    anew = train_or_load(**quick, restart=True)
    assert 'Training' in capsys.readouterr().out and anew.result['loss']==first.result['loss']

def test_another_model(quick):
    res = train_or_load(**quick | dict(recipe='aug20', model='base')).result
    assert (res['recipe'],res['model'])==('aug20','base') and res['tta_accuracy'] is not None
    run = run_of(quick['out'])
    assert run.name.startswith('aug20-base-2ep-seed42-')
    assert type(load_model(run)[1]) is type(models['base']())

def test_a_model_takes_its_statistics_along(quick):
    learn = train_or_load(**quick, amp='no')
    model = load_model(learn.run)
    splits = fashion_tensors(quick['data'], device='cpu')
    mean,std = pixel_stats(splits['train'][0])
    assert isinstance(model[0], Normalize)
    assert torch.allclose(model[0].mean.flatten(), torch.tensor(mean))
    assert torch.allclose(model[0].std.flatten(), torch.tensor(std)) and not model.training
    assert model.vocab[0]=='T-shirt/top'
    x,y = splits['test']
    with torch.no_grad(): acc = (model(x/255).argmax(1)==y).float().mean().item()
    assert round(acc, 5)==learn.result['accuracy']

def test_auto_without_full_data_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    def tensors(path=None, **kwargs):
        if path in (None,'full'): raise FileNotFoundError('nothing anywhere')
        return fashion_tensors(path, **kwargs)
    hub = miniai.datasets.DataSource('Hugging Face hub', None)
    monkeypatch.setattr(miniai.recipes, 'fashion_tensors', tensors)
    monkeypatch.setattr(miniai.recipes, 'data_source', lambda path=None: hub)
    train_or_load('base', epochs=1, out=tmp_path)
    out = capsys.readouterr().out
    assert out.startswith('No full Fashion-MNIST was found, so this uses the small sample')
    assert 'nothing anywhere' in out and 'the lesson' not in out
    with pytest.raises(FileNotFoundError): train_or_load('base', out=tmp_path, data='full')

def test_half_precision(quick, monkeypatch, capsys):
    "The line says which, and a run is opened as what it was asked for, whatever is fast here"
    results = {}
    for gain in 4.,.5:
        monkeypatch.setattr(miniai.accel, 'bf16_gain', lambda: gain)
        for amp in 'auto','bf16','no': results[gain,amp] = train_or_load(**quick, amp=amp)
    out = capsys.readouterr().out.splitlines()
    assert sum(l.startswith('Training') for l in out)==3
    assert sum('is finished' in l for l in out)==3
    assert [l.result['amp'] for l in results.values()]==['bf16','bf16','no']*2
    auto,half,full = (results[4.,amp].result['loss'] for amp in ('auto','bf16','no'))
    assert auto==half!=full and half==pytest.approx(full, rel=.1)

def test_predictions_are_kept(quick):
    for recipe,files in ('base',['preds','targs']), ('aug20',['preds','targs','tta']):
        learn = train_or_load(**quick | dict(recipe=recipe, model='base'))
        with np.load(learn.run/'preds.npz') as f: saved = dict(f)
        assert list(saved)==files and saved['targs'].tolist()==learn.dls.valid.y.tolist()
        assert saved['preds'].sum(1)==pytest.approx(1, abs=.01)
        for nm,key in zip(files[:1]+files[2:], ('accuracy','tta_accuracy')):
            accuracy = (saved[nm].argmax(1)==saved['targs']).mean()
            assert accuracy==pytest.approx(learn.result[key], abs=.051)  # 1 of 20

@pytest.mark.parametrize('amp, dtype', [('no',torch.float32), ('bf16',torch.bfloat16)])
def test_muon_computes_in_the_precision_that_was_asked_for(amp, dtype):
    r = get_recipe('fast942', amp=amp)
    learn = recipe_learner(r, fashion_tensors(sample=True), 'cpu')
    opt = learn.opt_func(learn.model.parameters(), .1)
    assert opt.param_groups[0]['dtype']==dtype

@pytest.mark.parametrize('recipe,views', [
    ('record5',flip_views), ('record20',shift_views), ('aug20',flip_views)])
def test_views_are_of_a_kind_that_training_had(quick, recipe, views):
    learn = train_or_load(**quick | dict(recipe=recipe, model='base', batch_size=2))
    with np.load(learn.run/'preds.npz') as f: tta = torch.tensor(f['tta']).float()
    far = {v: (learn.tta(v)[0]-tta).abs().max().item() for v in (flip_views,shift_views)}
    assert far[views]<.002<max(far.values())

def test_ensemble(quick, capsys):
    args = quick | dict(recipe='copy25x2', model='base', seed=7)
    main(**args)
    *_,started,row,last = capsys.readouterr().out.splitlines()
    assert started.startswith('Training copy25x2-base-2ep-seed7') and 'valid loss' in row
    assert 'with TTA; weights' in last
    run = lambda nm,seed: next(Path(quick['out']).glob(f'{nm}-base-2ep-seed{seed}-*'))
    runs = [run(*o) for o in (('copy25',7),('copy25',8),('copy25x2',7))]
    one,two,both = (json.loads((o/'result.json').read_text()) for o in runs)
    assert list(both)==list(one) and (both['recipe'],both['seed'])==('copy25x2',7)
    assert both['seconds']==round(one['seconds']+two['seconds'], 1) and one['loss']!=two['loss']
    mean = (one['train_accuracy']+two['train_accuracy'])/2
    assert both['train_accuracy']==pytest.approx(mean, abs=1e-5)
    assert both['loss']<max(one['loss'], two['loss'])  # convex: never above the mean of the losses
    a,b,ab = (np.load(o/'preds.npz') for o in runs)
    for k in 'preds','tta': assert (a[k].astype(float)+b[k])/2==pytest.approx(ab[k], abs=.01)
    a,b,ab = map(load_model, runs)
    x = torch.rand(3,1,28,28)
    with torch.no_grad(): mean,preds = (a(x).softmax(1)+b(x).softmax(1))/2, ab(x).softmax(1)
    torch.testing.assert_close(mean, preds)
    shutil.rmtree(runs[2])
    main(**args)
    again = capsys.readouterr().out
    assert again.count('is finished')==2 and again.splitlines()[-1]==last
    main(**args)
    again = capsys.readouterr().out
    assert 'Training' not in again and again.splitlines()[-1]==last
    assert round(train_or_load(**args).history[-1]['train_seconds'], 1)==both['seconds']

@pytest.mark.full
def test_full_data_is_found_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    main(recipe='base', out=str(tmp_path), epochs=1, device='cpu', amp='no')
    assert '60,000 images to train on, 10,000 to validate on' in capsys.readouterr().out
    run = run_of(tmp_path)
    r = json.loads((run/'result.json').read_text())
    assert r['accuracy']>.7 and list(r)==KEYS and load_model(run).vocab[1]=='Trouser'

# ---- which images judge a run

def test_the_held_out_images_are_the_same_in_every_run(quick):
    "Whatever the seed, and in every version: else recorded accuracies couldn't be compared"
    changes = {}, dict(seed=1), dict(epochs=1, batch_size=4)
    runs = [train_or_load(**quick | o, valid=16) for o in changes]
    assert {digest((l.dls.valid.x, l.dls.valid.y)) for l in runs}=={'9bb6839278078ce1'}
    assert len({tuple(np.load(l.run/'preds.npz')['targs']) for l in runs})==1
    x,_ = fashion_tensors(quick['data'], device='cpu')['train']
    both = torch.cat([runs[0].dls.train.x, runs[0].dls.valid.x])  # together, all that there are
    assert sorted(o.numpy().tobytes() for o in both)==sorted(o.numpy().tobytes() for o in x)

# ---- a run is what it was trained with

def swap_labels(folder):
    f = Path(folder)/'train-labels-idx1-ubyte.gz'
    b = gzip.decompress(f.read_bytes())
    f.write_bytes(gzip.compress(b[:8]+b[8:][::-1]))

def test_other_data_of_equal_size_is_another_run(quick, capsys):
    first = train_or_load(**quick)
    swap_labels(quick['data'])
    other = train_or_load(**quick)
    assert other.run!=first.run
    for k in 'data','loss': assert other.result[k]!=first.result[k]
    assert capsys.readouterr().out.count('Training')==2

def test_other_data_are_never_compared_with_the_lesson(quick, capsys):
    learn = train_or_load(**quick | dict(recipe='conv', epochs=5, batch_size=1024))
    assert learn.result['images']==40 and 'the lesson' not in capsys.readouterr().out
    assert list(results_table(pd.DataFrame([learn.result])).lesson)==['']

def test_an_edited_recipe_is_another_run(quick, monkeypatch):
    old = train_or_load(**quick)
    before = {f.name: f.read_bytes() for f in old.run.iterdir()}
    monkeypatch.setitem(recipes, 'base', recipes['base']._replace(lr=.05))
    new = train_or_load(**quick)
    assert new.run!=old.run and new.result['loss']!=old.result['loss']
    assert before=={f.name: f.read_bytes() for f in old.run.iterdir()}

class Dies(ProgressCB):
    def before_batch(self, learn):
        if learn.epoch==1: raise KeyboardInterrupt

def stop_in_epoch_2(quick, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(miniai.recipes, 'ProgressCB', Dies)
        fails('stopped', 'the same command', 'resumes after the last full epoch', **quick)
    return run_of(quick['out'])

def test_a_stopped_run_goes_on_and_an_edited_one_does_not(quick, monkeypatch, capsys):
    run = stop_in_epoch_2(quick, monkeypatch)
    assert [f.name for f in run.iterdir()]==['checkpoint.pt']
    before = (run/'checkpoint.pt').read_bytes()
    with monkeypatch.context() as m:
        m.setitem(recipes, 'base', recipes['base']._replace(lr=.05))
        main(**quick)
    assert 'epochs are done' not in capsys.readouterr().out
    assert (run/'checkpoint.pt').read_bytes()==before
    main(**quick)
    assert '1 of 2 epochs are done' in capsys.readouterr().out
    assert sorted(f.name for f in run.iterdir())==FILES

# ---- mistakes

@pytest.mark.parametrize('kwargs, words', [
    (dict(epochs=0), ['epochs', '0']), (dict(batch_size=0), ['batch_size', '0']),
    (dict(lr=-.1), ['lr must be above 0, got -0.1']), (dict(lr=float('nan')), ['got nan']),
    (dict(valid=4000), ['4000']), (dict(valid=-1), ['got -1']),
    (dict(model='resnet999'), ['model must be one of base, conv', "got 'resnet999'"]),
    (dict(recipe='resnet999'), ['recipe must be one of base, conv', "got 'resnet999'"]),
    (dict(amp='fp8'), ["amp must be one of auto, no, bf16, fp16, got 'fp8'"]),
    (dict(data='/nowhere'), ['/nowhere'])],
    ids=lambda o: next(iter(o)) if isinstance(o, dict) else '')
def test_bad_options(tmp_path, kwargs, words):
    "One line each, nothing trained, and no folder left"
    out = tmp_path/'new'/'out'
    fails(*words, **dict(data='sample', out=str(out)) | kwargs)
    assert not list(tmp_path.iterdir())

def test_a_folder_that_is_not_there_is_never_replaced_by_the_sample(tmp_path, monkeypatch):
    monkeypatch.setenv('MINIAI_DATA', '/nowhere')
    fails('/nowhere', 'MINIAI_DATA', out=str(tmp_path))

def test_out_folder_that_cannot_be_written(quick, tmp_path):
    f = tmp_path/'a file'
    f.write_text('')
    fails('Not a directory', str(f), **quick | dict(out=str(f)))

# ---- several processes

SCRIPT = """
import json, os, sys, miniai.recipes as r
from miniai.accel import AccelerateCB
from miniai.checkpoint import EarlyStopCB, SaveBestCB
from miniai.learner import Callback
r.plot_history = r.plot_mistakes = lambda *args: None
class Dies(r.ProgressCB):
    def before_batch(self, learn):
        if learn.epoch==1 and os.environ['RANK']=='1': raise ValueError('one is enough')
quick = json.loads(sys.argv[1])
"""

def launch(folder, script, quick):
    "The script in two processes; the exit status, and the lines of all"
    (folder/'script.py').write_text(SCRIPT+script)
    launcher = '-m torch.distributed.run --standalone --nproc-per-node=2'.split()
    run = [sys.executable, *launcher, folder/'script.py', json.dumps(quick)]
    p = subprocess.Popen(run, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try: return p.communicate(timeout=120)[0].splitlines(), p.returncode
    finally: p.terminate()  # after a hang: the launcher ends its processes

def test_two_processes_train_one_run(quick, tmp_path):
    "One of them dies, they go on, and end as two that were left alone; one speaks and writes"
    pytest.importorskip('accelerate')
    quick |= dict(amp='no')
    lines,rc = launch(tmp_path, "r.ProgressCB = Dies\nr.main(**quick)", quick)
    run = run_of(quick['out'])
    assert rc!=0 and lines.count('miniai-train: one is enough')==1
    assert [f.name for f in run.iterdir()]==['checkpoint.pt']
    lines,rc = launch(tmp_path, """
class Third(Callback):
    order = 1
    def after_epoch(self, learn): learn.history[-1]['valid_error'] = abs(learn.epoch-2)
cbs = [AccelerateCB(cpu=True), Third(), SaveBestCB('valid_error'),
       EarlyStopCB('valid_error', patience=2)]
recipe = r.get_recipe('base', epochs=9, batch_size=8)
learn = r.recipe_learner(recipe, r.fashion_tensors(quick['data']), 'cpu', cbs)
learn.logger = lambda row: None
learn.fit(9)
res = len(learn.history),r.digest(learn.model.state_dict())
with open(f"{quick['out']}{os.environ['RANK']}.json", 'w') as f: json.dump(res, f)
ensemble = dict(recipe='copy25x2', model='base')
for o in dict(), dict(), dict(out=quick['out']+'2'), ensemble: r.main(**quick | o)
""", quick)
    assert rc==0
    said = {'1 of 2 epochs are done': 1, 'Training': 5,
            'epoch 1 ': 3, 'epoch 2 ': 4, 'is finished': 1,
            'weights, log and pictures in': 6, 'Stopped: valid_error': 2}
    text = '\n'.join(lines)  # two processes may write on one line
    for what,n in said.items(): assert text.count(what)==n, (what, lines)
    a,b = (json.loads(Path(f"{quick['out']}{o}.json").read_text()) for o in (0,1))
    assert a==b and a[0]==5
    whole = run_of(quick['out']+'2')
    a,b = (load_safely(o/'model.pt') for o in (run,whole))
    assert digest(a['state'])==digest(b['state'])
    assert sorted(f.name for f in run.iterdir())==[f for f in FILES if not f.endswith('png')]
    one = train_or_load(**quick | dict(out=quick['out']+'1'))
    assert one.result['device']=='cpu'
    assert json.loads((whole/'result.json').read_text())['device']=='cpu x2'
    losses = one.history[0]['train_loss'],b['history'][0]['train_loss']
    assert losses[0]==pytest.approx(losses[1], rel=.05)  # each process has its own batch norm
    assert train_or_load(**quick | dict(out=whole.parent)).run==whole

# ---- damaged and unwritable files

def empty(f): f.write_bytes(b'')
def cut(f): f.write_bytes(f.read_bytes()[:-20])
def flip(f):
    b = bytearray(f.read_bytes())
    b[len(b)//2] ^= 1
    f.write_bytes(b)
def foreign(f): torch.save({'weight': torch.ones(1)}, f)
def link(f):
    f.unlink()
    f.symlink_to('/etc/passwd')
def gone(f): f.unlink()
def folder(f):
    f.unlink()
    f.mkdir()

@pytest.mark.parametrize('damage', [empty, cut, flip, foreign, link, gone, folder])
def test_a_damaged_model(quick, damage):
    train_or_load(**quick)
    run = run_of(quick['out'])
    damage(run/'model.pt')
    fails(str(run/'model.pt'), **quick)
    if damage is folder: return
    main(**quick, restart=True)
    assert (run/'model.pt').is_file() and not (run/'model.pt').is_symlink() and load_model(run)

@pytest.mark.parametrize('damage', [empty, cut, flip, foreign, link, folder])
def test_a_damaged_checkpoint(quick, damage, monkeypatch):
    f = stop_in_epoch_2(quick, monkeypatch)/'checkpoint.pt'
    damage(f)
    fails('checkpoint.pt', **quick)
    if damage is folder: return
    main(**quick, restart=True)
    assert sorted(o.name for o in f.parent.iterdir())==FILES

@pytest.mark.parametrize('broken', ['checkpoint.pt',*FILES])
def test_nothing_half_written_under_its_final_name(quick, monkeypatch, broken):
    "A full disk, met at any of the files: nothing is lost, and the same command goes on"
    replace = os.replace
    def failing(src, dst):
        if Path(dst).name==broken: raise OSError(28, 'No space left on device')
        replace(src, dst)
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', failing)
        fails('No space left on device', **quick)
    out = Path(quick['out'])
    left = [f.name for f in out.glob('*/*')]
    assert broken not in left and set(left)<={*FILES,'checkpoint.pt'} and 'result.json' not in left
    main(**quick)
    assert sorted(f.name for f in run_of(out).iterdir())==FILES

def test_planted_links_are_not_followed(quick, tmp_path, monkeypatch):
    victim = tmp_path/'victim'
    victim.write_text('precious')
    run = stop_in_epoch_2(quick, monkeypatch)
    for nm in FILES[:-1]: (run/nm).symlink_to(victim)
    main(**quick)
    assert victim.read_text()=='precious' and not any(f.is_symlink() for f in run.iterdir())
    assert sorted(f.name for f in run.iterdir())==FILES

def test_a_folder_that_vanishes_while_training(quick, monkeypatch):
    class Vanish(ProgressCB):
        def after_fit(self, learn): shutil.rmtree(quick['out'])
    monkeypatch.setattr(miniai.recipes, 'ProgressCB', Vanish)
    main(**quick)
    assert sorted(f.name for f in run_of(quick['out']).iterdir())==FILES

# ---- the commit, and the tables

def test_a_foreign_repository_is_not_ours(quick, tmp_path, monkeypatch):
    def git(*args):
        who = '-c', 'user.name=x', '-c', 'user.email=x@y'
        subprocess.run(['git', '-C', tmp_path, *who, *args], check=True, capture_output=True)
    def commit(): return train_or_load(**quick | dict(epochs=1), restart=True).result['commit']
    git('init')
    git('commit', '--allow-empty', '-m', 'foreign')
    init = tmp_path/'site/miniai/__init__.py'
    init.parent.mkdir(parents=True)
    init.write_text('')
    monkeypatch.setattr(miniai, '__file__', str(init))
    assert commit()==f'v{miniai.__version__}'
    git('add', 'site')
    git('commit', '-m', 'vendored')
    assert len(commit())==12
    init.write_text('1')
    assert commit().endswith('-dirty')

LINE = dict(recipe='aug20', model='wide', seed=0, epochs=20, accuracy=.9, tta_accuracy=.91,
            seconds=1800.4, device='cpu', amp='bf16', parameters=4_905_572, macs=36_908_544)

def test_lines_of_results_are_complete():
    "The lines that ship have all keys of today but the digest, in their order"
    for f in (Path(__file__).parent.parent/'results').glob('*.jsonl'):
        for l in f.read_text().splitlines():
            assert list(json.loads(l))[:len(KEYS)-1]==KEYS[:-1], f

def test_results(tmp_path):
    lines = LINE, LINE|dict(seed=1, accuracy=.91), LINE|dict(lr=.1)
    (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    df = load_results(tmp_path)
    assert len(df)==2 and len(load_results(tmp_path, changed=True))==3
    table = results_table(df, ['copy25x2','aug20'])
    assert list(table.index)==['aug20']
    assert list(table.columns)==['model','M params','M MACs','epochs','T MACs','accuracy','TTA',
                                 'seeds','lesson','seconds','device','amp']
    stats = '0.9050 ± 0.0071','0.9100 ± 0.0000'
    cost = '4.91','36.9',20,'132.9'
    assert list(table.loc['aug20'])==['wide',*cost,*stats,2,'0.940',1800,'cpu','bf16']
    changed = results_table(load_results(tmp_path, changed=True))
    assert list(changed.index)==['aug20','aug20'] and 'valid' not in changed
    assert list(changed.lr)==['',.1] and list(changed.lesson)==['0.940','']
    others = pd.DataFrame([LINE|dict(model='model4'), LINE|dict(recipe='mine')])
    assert list(results_table(others).lesson)==['','']
    one = results_table(pd.DataFrame([LINE|dict(tta_accuracy=None, macs=None)]))
    assert list(one.TTA)==list(one['T MACs'])==[''] and list(one.accuracy)==['0.9000 (one run)']
    assert len(results_table(load_results(tmp_path/'nothing'), list(recipes)))==0

def test_what_a_training_costs():
    "Three times the forward pass for each image of each epoch"
    runs = pd.DataFrame([LINE, LINE|dict(valid=5000), LINE|dict(images=1000)],
                        columns=[*LINE, 'valid', 'images'])
    images = 60_000,55_000,1000
    assert list(training_macs(runs))==[3*20*n*LINE['macs'] for n in images]

@pytest.mark.parametrize('change, lesson', [
    ({}, '0.940'), ({'model': 'model4'}, ''), ({'epochs': 3}, ''), ({'lr': .1}, ''),
    ({'images': 60_000}, ''), ({'valid': 5000}, ''), ({'recipe': 'mine'}, '')])
def test_what_is_compared_with_the_lesson(change, lesson):
    assert list(results_table(pd.DataFrame([LINE|change])).lesson)==[lesson]
