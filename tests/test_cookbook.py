"The cookbook's answers as scripts of one's own, outside the checkout"
import json, os, subprocess, sys, pytest
from pathlib import Path

ROOT = Path(__file__).parent.parent
nb = json.loads((ROOT/'nbs/20_cookbook.ipynb').read_text())
cells = {c['id']: ''.join(c['source']) for c in nb['cells']}

def run(script, folder, *args):
    env = os.environ | {'PYTHONPATH': str(ROOT), 'MPLBACKEND': 'agg', 'HF_HOME': str(folder/'hf')}
    (folder/'script.py').write_text(script)
    cmd = [sys.executable, *args, 'script.py']
    out = subprocess.run(cmd, cwd=folder, env=env, capture_output=True, text=True)
    assert out.returncode==0, out.stderr
    return out

RUNTIME_ONLY = '''
import importlib.machinery, sys
dev = 'nbdev', 'jupyterlab', 'ipykernel', 'pytest', 'torchmetrics', 'timm', 'accelerate', 'sklearn'
class Finder(importlib.machinery.PathFinder):
    "Finds nothing of the development tools"
    @classmethod
    def find_spec(cls, name, *args):
        if name.split('.')[0] not in dev: return super().find_spec(name, *args)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
'''

def test_own_pictures_from_a_folder_to_a_prediction(tmp_path):
    "From PNGs to the class of one more PNG and pictures of mistakes, with run-time packages alone"
    answer = '\n'.join(cells[i] for i in ('c19a0002','c19a0004','c19a0011','c19a0013','c19a0015'))
    end = '''
assert not {*dev} & {*sys.modules}
total = confusion(learn).to_numpy().sum()
accuracy = learn.history[-1]['valid_accuracy']
print(*learn.classify(Image.open(work/'new.png')), accuracy, total, work, sep='|')
'''
    out = run(RUNTIME_ONLY+answer+end, tmp_path)
    assert not out.stderr
    *epochs,learned,loaded,last = out.stdout.splitlines()
    name,p,accuracy,total,work = last.split('|')
    assert len(epochs)==4 and total=='240' and learned==loaded and learned.startswith('Ankle boot, ')
    assert name=='Ankle boot' and .5<float(p)<=1 and float(accuracy)>.85
    assert (Path(work)/'mistakes.png').read_bytes().startswith(b'\x89PNG')

def test_several_devices(tmp_path):
    "The script that the cookbook writes, in one process"
    pytest.importorskip('accelerate')
    exec(cells['c19a00a1'], {'work': tmp_path})
    out = run((tmp_path/'train.py').read_text(), tmp_path)
    assert out.stdout.startswith('epoch 1') and 'valid loss' in out.stdout
