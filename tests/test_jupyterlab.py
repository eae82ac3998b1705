"""Notebooks in a real JupyterLab, in Chromium: Run All, progress in place, the stop button.
One notebook by default; with MINIAI_LAB=all every one of them, and with MINIAI_SHOTS=folder a
picture of each page."""
import json, os, re, shutil, socket, subprocess, sys, time, pytest
from pathlib import Path
from urllib.request import urlopen
import nbformat

api = pytest.importorskip('playwright.sync_api')
browsers = 'chromium', 'chromium-browser', 'google-chrome'
chromium = next(filter(None, map(shutil.which, browsers)), None)
pytestmark = pytest.mark.skipif(not chromium, reason='no Chromium')
ROOT = Path(__file__).parent.parent
names = ['16_checkpoint']
if os.getenv('MINIAI_LAB')=='all': names = sorted(f.stem for f in (ROOT/'nbs').glob('*.ipynb'))

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab on a copy of the notebooks: its address and folder"
    work = tmp_path_factory.mktemp('lab')
    shutil.copytree(ROOT/'nbs', work/'nbs', ignore=shutil.ignore_patterns('.*'))
    (work/'results').symlink_to(ROOT/'results')
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    env = os.environ | {'PYTHONPATH': str(ROOT), 'JUPYTERLAB_WORKSPACES_DIR': str(work/'spaces')}
    env |= {f'JUPYTER_{k}_DIR': str(work/k) for k in ('CONFIG','RUNTIME')}
    env['IPYTHONDIR'] = str(work/'ipython')
    args = ('--no-browser --allow-root --IdentityProvider.token= --ServerApp.port_retries=0 '
            '--MappingKernelManager.cull_idle_timeout=30 '
            '--MappingKernelManager.cull_interval=10').split()
    args += [f'--port={port}', f'--ServerApp.root_dir={work}']
    cmd = [sys.executable, '-m', 'jupyterlab', *args]
    with open(work/'log', 'w') as log, \
         subprocess.Popen(cmd, env=env, stdout=log, stderr=log) as server:
        url = f'http://localhost:{port}'
        for _ in range(120):
            try: urlopen(f'{url}/api')
            except OSError: time.sleep(.5)
            else: break
        yield url,work/'nbs'
        server.terminate()

@pytest.fixture
def page(lab):
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield browser.new_page(viewport={'width': 1280, 'height': 1000})
        browser.close()

def open_notebook(page, lab, name):
    page.goto(f'{lab[0]}/lab/tree/nbs/{name}.ipynb?reset')
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=60_000)
    page.get_by_text('| Idle').wait_for(timeout=60_000)
    page.locator('.jp-Notebook .jp-Cell').first.click()

def run(page, start, n=1):
    "Do `start`, again where that came too early and was lost, until `n` cells run or have run"
    began = page.locator('.jp-InputArea-prompt').filter(has_text=re.compile(r'\[[*\d]+\]'))
    for _ in range(6):
        start()
        try: return began.nth(n-1).wait_for(timeout=10_000)
        except api.TimeoutError: pass
    raise AssertionError('no cell runs')

def run_all(page):
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()

IDLE = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'

def saved(page, lab, name, done, timeout):
    "The cells of code in the notebook's file, saved when the kernel is idle and `done` with them"
    end = time.time()+timeout
    while time.time()<end:
        page.wait_for_timeout(1000)
        if not page.locator(IDLE).count(): continue
        page.keyboard.press('Control+s')
        page.wait_for_timeout(1000)
        nb = json.loads((lab[1]/f'{name}.ipynb').read_text())
        cells = [c for c in nb['cells'] if c['cell_type']=='code']
        if done(cells): return cells
    raise AssertionError(f'{name} is not done after {timeout} s')

def forget(path):
    "Take the outputs out of a notebook's file"
    nb = nbformat.read(path, 4)
    for c in nb.cells:
        if c.cell_type=='code': c.outputs,c.execution_count = [],None
    nbformat.write(nb, path)

@pytest.mark.parametrize('name', names)
def test_run_all(page, lab, name):
    forget(lab[1]/f'{name}.ipynb')
    open_notebook(page, lab, name)
    run(page, lambda: run_all(page))
    ran = lambda cells: all(c['execution_count'] for c in cells if ''.join(c['source']).strip())
    start = time.time()
    cells = saved(page, lab, name, ran, 600)
    print(f'{name}: {time.time()-start:.0f} s')
    for c in cells:
        outs = c['outputs']
        bad = [o for o in outs if o['output_type']=='error' or o.get('name')=='stderr']
        assert not bad, (c['id'], outs)
        html = [''.join(o.get('data', {}).get('text/html', '')) for o in outs]
        assert ''.join(html).count('<progress')<=1, c['id']
    pictures = page.locator('.jp-OutputArea img')
    for i in range(pictures.count()): assert pictures.nth(i).evaluate('o => o.naturalWidth')>0
    shots = os.getenv('MINIAI_SHOTS')
    if shots: page.screenshot(path=Path(shots)/f'{name}.png')

FIT = '''from miniai.all import *
dls = DataLoaders.from_tensors(fashion_tensors(sample=True), 64)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
cbs = [DeviceCB(), MetricsCB(Accuracy()), ProgressCB()]
learn = MomentumLearner(model, dls, F.cross_entropy, lr=.001, cbs=cbs)
learn.fit(500)'''

def test_the_stop_button_leaves_a_learner_that_goes_on(page, lab):
    again = "learn.fit(1)\nprint('accuracy', learn.history[-1]['valid_accuracy'])"
    imports = 'import torch.nn.functional as F\nfrom torch import nn\n'
    cells = [nbformat.v4.new_code_cell(o) for o in (imports+FIT, again)]
    kernel = {'kernelspec': {'name': 'python3', 'display_name': 'python3'}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), lab[1]/'stop.ipynb')
    open_notebook(page, lab, 'stop')
    run(page, lambda: page.keyboard.press('Shift+Enter'))
    bar = page.locator('.jp-OutputArea progress')
    bar.wait_for(timeout=60_000)
    was = bar.get_attribute('value')
    grows = "was => document.querySelector('.jp-OutputArea progress').getAttribute('value')>was"
    page.wait_for_function(grows, arg=was)
    page.locator('[data-command="notebook:interrupt-kernel"]').first.click()
    def failed(cells): return any(o['output_type']=='error' for o in cells[0]['outputs'])
    first,_ = saved(page, lab, 'stop', failed, 60)
    error, = (o for o in first['outputs'] if o['output_type']=='error')
    assert error['ename']=='KeyboardInterrupt'
    run(page, lambda: page.keyboard.press('Shift+Enter'), 2)
    _,second,*_ = saved(page, lab, 'stop', lambda cells: cells[1]['execution_count'], 60)
    assert any('accuracy' in ''.join(o.get('text', '')) for o in second['outputs'])
