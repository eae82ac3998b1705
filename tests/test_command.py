"miniai-train, as somebody types it"
import csv, json, os, subprocess, sys, pytest, torch
from pathlib import Path
from miniai.checkpoint import *
from miniai.augment import *
from miniai.core import *
from miniai.learner import *
from miniai.recipes import *
from conftest import FULL

KEYS = 'recipe model seed epochs accuracy tta_accuracy loss train_accuracy seconds device threads torch date commit'.split()
FILES = ['history.png','log.csv','mistakes.png','model.pt','result.json']

def cmd(*args, **env):
    full = {k: v for k,v in {**os.environ, **env}.items() if v is not None}
    return subprocess.run([sys.executable, '-m', 'miniai.recipes', *map(str, args)], capture_output=True, text=True, env=full)

def fails(*args, words, **env):
    res = cmd(*args, **env)
    assert res.returncode!=0 and 'Traceback' not in res.stderr, res.stderr
    for w in words: assert w in res.stderr, res.stderr

def test_a_run_on_the_sample(tmp_path):
    res = cmd('--epochs', 2, '--data', 'sample', '--out', tmp_path, '--seed', 3, '--threads', 1)
    assert res.returncode==0, res.stderr
    first,*_,last = res.stdout.splitlines()
    assert first=='conv, 2 epochs on cpu, 1 threads: Fashion-MNIST, the small sample that ships with miniai; 4,000 images to train, 1,000 to validate'
    assert 'the lesson' not in last and 'on the sample' in last
    run = tmp_path/'conv-2ep-seed3-sample'
    assert sorted(f.name for f in run.iterdir())==FILES and str(run) in last
    r = json.loads((run/'result.json').read_text())
    assert list(r)==[*KEYS,'images'] and r['images']==4000 and f"{r['accuracy']:.4f}" in last
    rows = list(csv.DictReader((run/'log.csv').open()))
    assert len(rows)==2 and round(float(rows[-1]['valid_accuracy']),5)==r['accuracy']
    m = models['conv']()
    m.load_state_dict(torch.load(run/'model.pt', weights_only=True))
    for f in 'history.png','mistakes.png': assert (run/f).read_bytes()[:4]==b'\x89PNG'

def test_the_same_again(tmp_path):
    runs = [train_or_load('base', epochs=1, data='sample', out=tmp_path/o, seed=5) for o in 'ab']
    assert runs[0].result['loss']==runs[1].result['loss']
    states = [torch.load(tmp_path/o/'base-1ep-seed5-sample/model.pt', weights_only=True) for o in 'ab']
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])

def test_held_out_images_are_not_the_test_set(tmp_path):
    res = train_or_load('base', epochs=1, data='sample', out=tmp_path, valid=500).result
    assert res['valid']==500 and res['images']==3500 and (tmp_path/'base-1ep-seed42-valid500-sample').is_dir()

@pytest.mark.full
def test_full_data_is_found_and_compared(tmp_path):
    res = cmd('--recipe', 'base', '--out', tmp_path, '--epochs', 1, MINIAI_DATA=None)
    assert '60,000 images to train, 10,000 to validate' in res.stdout, res.stderr
    r = json.loads((tmp_path/'base-1ep-seed42/result.json').read_text())
    assert r['accuracy']>.7 and list(r)==KEYS

def test_auto_without_full_data_says_so(tmp_path, monkeypatch, capsys):
    import miniai.datasets as d
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    monkeypatch.setattr(d, '_system', tmp_path/'nothing')
    monkeypatch.setattr(d, '_hub', 'miniai/no-such-data-set')
    train_or_load('base', epochs=1, out=tmp_path)
    out = capsys.readouterr().out
    assert out.startswith('No full Fashion-MNIST was found, so this trains on the small sample') and 'the lesson' not in out
    with pytest.raises(FileNotFoundError, match='nowhere to be found'): train_or_load('base', epochs=1, out=tmp_path, data='full')

def test_a_folder_that_is_not_there_is_never_replaced_by_the_sample(tmp_path):
    fails('--data', '/nowhere', '--out', tmp_path, words=['/nowhere','not a folder'])
    fails('--out', tmp_path, words=['/nowhere','$MINIAI_DATA'], MINIAI_DATA='/nowhere')

def test_unknown_recipe_and_option(tmp_path):
    fails('--recipe', 'resnet999', '--out', tmp_path, words=["There is no recipe 'resnet999': choose from base, conv"])
    fails('--recepi', 'conv', words=['--recepi','--recipe'])
    fails('--epochs', 'five', words=['five'])

@pytest.mark.parametrize('args, words', [
    (['--epochs',0], ['epochs is 0, it has to be 1 or more']), (['--batch-size',0], ['batch_size is 0']), (['--threads',-1], ['threads is -1']),
    (['--lr',-.1], ['lr is -0.1']), (['--seed',-1], ['seed is -1']), (['--device','gpu'], ["device 'gpu' cannot be used here", 'choose cpu']),
    (['--valid',4000], ['Cannot hold out 4000 of 4000'])], ids=lambda a: str(a[0]))
def test_bad_numbers(tmp_path, args, words): fails(*args, '--data', 'sample', '--out', tmp_path, words=words)

def test_out_folder_that_cannot_be_written(tmp_path):
    f = tmp_path/'a file'
    f.write_text('')
    fails('--data', 'sample', '--out', f, words=[f'The out folder {f} cannot be written', 'choose another'])

@pytest.mark.parametrize('broken', ['model.pt','log.csv','history.png','mistakes.png','result.json'])
def test_nothing_half_written_under_its_final_name(tmp_path, monkeypatch, broken):
    import miniai.recipes as r
    replace = os.replace
    def failing(src, dst):
        if Path(dst).name==broken: raise OSError(28, 'No space left on device')
        replace(src, dst)
    monkeypatch.setattr(r.os, 'replace', failing)
    with pytest.raises(OSError, match='No space'): train_or_load('base', epochs=1, data='sample', out=tmp_path)
    left = [f.name for f in (tmp_path/'base-1ep-seed42-sample').iterdir()]
    assert broken not in left and set(left)<={*FILES,'checkpoint.pt'} and 'result.json' not in left
    monkeypatch.undo()
    train_or_load('base', epochs=1, data='sample', out=tmp_path)
    assert sorted(f.name for f in (tmp_path/'base-1ep-seed42-sample').iterdir())==FILES

def test_help_names_every_option():
    out = cmd('--help').stdout
    for o in 'recipe epochs lr batch model seed device data valid threads out'.split(): assert f'--{o}' in out

def test_another_model(tmp_path):
    res = cmd('--recipe', 'aug20', '--model', 'base', '--epochs', 1, '--data', 'sample', '--out', tmp_path)
    assert res.stdout.startswith('aug20 with base, 1 epochs on cpu'), res.stderr
    r = json.loads((tmp_path/'aug20-base-1ep-seed42-sample/result.json').read_text())
    assert (r['recipe'],r['model'])==('aug20','base') and r['tta_accuracy'] is not None
    assert type(load_model(tmp_path/'aug20-base-1ep-seed42-sample')) is type(models['base']())
    fails('--model', 'resnet999', '--out', tmp_path, words=["There is no model 'resnet999': choose from base, conv"])

def test_ensemble(tmp_path):
    args = '--recipe', 'copy25x2', '--model', 'base', '--epochs', 1, '--data', 'sample', '--seed', 7, '--out', tmp_path
    res = cmd(*args)
    assert res.returncode==0 and 'both together: validation accuracy' in res.stdout.splitlines()[-1], res.stderr
    one,two,both = (json.loads((tmp_path/f'{nm}-base-1ep-seed{seed}-sample/result.json').read_text()) for nm,seed in (('copy25',7),('copy25',8),('copy25x2',7)))
    assert list(both)==list(one) and (both['recipe'],both['seed'])==('copy25x2',7)
    assert both['seconds']==round(one['seconds']+two['seconds'], 1) and one['loss']!=two['loss']
    assert both['loss']<max(one['loss'], two['loss'])  # of a mean of probabilities, never above the mean of the losses
    again = cmd(*args)
    assert again.stdout.count('finished already')==2 and again.stdout.splitlines()[-1]==res.stdout.splitlines()[-1]
    with pytest.raises(ValueError, match='conv is no ensemble: train_or_load opens it'): load_ensemble('conv', out=tmp_path)

def test_another_model_is_no_other_run_and_is_told_with_the_lesson():
    from miniai.recipes import _lesson
    line = dict(recipe='aug20', model='wide', epochs=20)
    assert _lesson(line)=='0.940' and _lesson({**line, 'model': 'model4'})=='0.940 with wide'
    assert _lesson({**line, 'epochs': 3})==_lesson({**line, 'lr': .1})==_lesson({**line, 'recipe': 'mine'})==''
