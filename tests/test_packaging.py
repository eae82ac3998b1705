"What is built, what is installed, and that the files which say the same thing agree"
import ast, pydoc, importlib, importlib.util, json, os, re, shutil, subprocess, sys
import tarfile, tomllib, zipfile, pytest
from collections import Counter
from configparser import ConfigParser
from operator import attrgetter
from pathlib import Path

ROOT = Path(__file__).parent.parent
ini = ConfigParser(delimiters=['='])
ini.read(ROOT/'settings.ini')
cfg = ini['DEFAULT']

def run(*args, cwd=ROOT, stderr=subprocess.PIPE, **env):
    res = subprocess.run([str(a) for a in args], cwd=cwd, env=os.environ | env, check=True,
                         stdout=subprocess.PIPE, stderr=stderr, text=True)
    return res.stdout

def tracked(): return [f for f in run('git', 'ls-files').splitlines() if (ROOT/f).exists()]

@pytest.fixture(scope='session')
def checkout(tmp_path_factory):
    "A clean copy of the tracked files, so that building leaves nothing in this one"
    d = tmp_path_factory.mktemp('checkout')
    for f in tracked():
        (d/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/f, d/f)
    return d

@pytest.fixture(scope='session')
def built(checkout, tmp_path_factory):
    "An sdist, a wheel built from that sdist, and what building them printed"
    out = tmp_path_factory.mktemp('dist')
    code = f'from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})'
    said = run(sys.executable, '-c', code, cwd=checkout, stderr=subprocess.STDOUT)
    sdist = next(out.glob('*.tar.gz'))
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    args = '-v', '--no-deps', '--no-build-isolation', '-w', out, sdist
    said += run(*pip, 'wheel', *args, stderr=subprocess.STDOUT)
    return sdist, next(out.glob('*.whl')), said

def test_metadata_agrees():
    toml = tomllib.loads((ROOT/'pyproject.toml').read_text())
    assert set(toml)=={'build-system','tool'} and set(toml['tool'])=={'nbdev','ruff'}
    nbdev = toml['tool']['nbdev']
    for k in 'lib_path','nbs_path','tst_flags': assert nbdev[k]==cfg[k]
    for k in 'recursive','put_version_in_init': assert nbdev[k]==cfg.getboolean(k)
    import miniai
    assert miniai.__version__==cfg['version']
    assert cfg['version'] in (ROOT/'CHANGELOG.md').read_text()
    assert (ROOT/'miniai/__init__.py').read_text().strip()==f'__version__ = "{cfg["version"]}"'

def test_building_prints_no_warning(built):
    warned = [l for l in built[2].splitlines() if re.search('warn|deprecat', l, re.I)]
    ours = 'byte-compiling is disabled'  # PYTHONDONTWRITEBYTECODE
    assert not [l for l in warned if ours not in l]

def test_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[1]).namelist()
    pkg = sorted(n for n in names if not n.startswith('miniai_lesson-'))
    assert pkg==sorted(f for f in tracked() if f.startswith('miniai/'))
    assert len([n for n in pkg if n.startswith('miniai/sample/')])==5

def test_wheel_metadata(built):
    z = zipfile.ZipFile(built[1])
    meta = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    assert f"Requires-Python: >={cfg['min_python']}" in meta
    for r in cfg['requirements'].split(): assert f'Requires-Dist: {r}\n' in meta
    for extra in 'dev','accel','docs':
        assert f'Provides-Extra: {extra}\n' in meta
        for r in cfg[f'{extra}_requirements'].split():
            name = re.split('[<>=]', r)[0]
            assert re.search(rf'Requires-Dist: {name}\b.*; extra == "{extra}"', meta), r
    assert f"Name: {cfg['lib_name']}\n" in meta and cfg['lib_name']!='miniai'  # another project's
    assert ('Project-URL: Source' in meta)==bool(cfg['git_url'])
    entry = z.read(next(n for n in z.namelist() if n.endswith('entry_points.txt'))).decode()
    assert 'miniai-train = miniai.recipes:main' in entry

def test_sdist_can_build_again(built):
    names = [n.split('/',1)[-1] for n in tarfile.open(built[0]).getnames()]
    files = 'settings.ini setup.py pyproject.toml LICENSE README.md miniai/sample/LICENSE'.split()
    assert not {*files}-{*names}

def test_plain_install_works_outside_the_checkout(built, tmp_path):
    target = tmp_path/'site'
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', target, built[1])
    code = ('import miniai.learner, miniai.recipes; from miniai.datasets import *; '
            'print(miniai.learner.__file__, len(fashion_arrays(sample=True)["train"][0]))')
    out = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(target))
    assert out.split()==[str(target/'miniai/learner.py'), '4000']
    out = run(target/'bin/miniai-train', '--help', cwd=tmp_path, PYTHONPATH=str(target))
    assert 'usage: miniai-train' in out

def test_modules_are_what_the_notebooks_export(checkout):
    code = 'from nbdev.doclinks import nbdev_export; nbdev_export()'
    run(sys.executable, '-c', code, cwd=checkout)
    for f in (ROOT/'miniai').glob('*.py'):
        assert f.read_text()==(checkout/'miniai'/f.name).read_text(), f'{f.name}: run nbdev-export'

# What an editor sees, which runs nothing

@pytest.mark.parametrize('f, comment', [
    ('Learner.fit', 'cbs=None, # More callbacks, for this fit alone'), ('resnet', 'ni=1, # Input channels'),
    ('MetricsCB.__init__', '**named # Named by you'), ('DataLoaders.from_dd', 'sampler=None, # Order of'),
    ('no_trace', 'train=True # Does anything'), ('Learner.export', 'dynamic=(), # Dimensions')])
def test_help_shows_the_comments_beside_parameters(f, comment):
    import miniai.all as mi
    text = pydoc.render_doc(attrgetter(f)(mi), renderer=pydoc.plaintext)
    assert text.count(comment)==1

def test_the_stub_is_what_the_script_writes(tmp_path):
    run(sys.executable, ROOT/'tools/stubs.py', tmp_path/'learner.pyi')
    text = (tmp_path/'learner.pyi').read_text()
    assert (ROOT/'miniai/learner.pyi').read_text()==text, 'run: make export'

def in_editor(line):
    import jedi
    code = f'from miniai.all import *\nlearn = TrainLearner(None, None)\n{line}'
    return jedi.Script(code, project=jedi.Project(ROOT), environment=jedi.InterpreterEnvironment())

def completed(line): return {o.name for o in in_editor(line).complete()}

def test_an_editor_completes_the_learner():
    methods = 'fit','lr_find','classify','fit_one_cycle','summary','add_cb'
    fields = 'model','dls','epoch','metrics','history','pg'
    assert not {*methods, *fields}-completed('learn.')
    assert not {'valley','plot'}-completed('learn.lr_find().')

@pytest.mark.parametrize('call, names', [
    ('learn.fit', 'n_epochs train valid cbs lr'), ('learn.lr_find', 'max_epochs show gamma start_lr'),
    ('learn.fit_one_cycle', 'n_epochs lr pct_start'), ('MomentumLearner', 'model dls mom loss_func')])
def test_an_editor_shows_parameters(call, names):
    shown, = in_editor(f'{call}(').get_signatures()
    assert not {*names.split()}-{p.name for p in shown.params}

def test_an_editor_finds_every_name():
    found = completed('x = ')
    for m in ORDER: assert not {*importlib.import_module(f'miniai.{m}').__all__}-found, m

# The house: one notebook for each module, which imports from those before it

def cells(nb, kind='code'):
    return [c for c in json.loads(nb.read_text())['cells'] if c['cell_type']==kind]
def source(cells): return '\n'.join(''.join(c['source']) for c in cells)

NBS = sorted((ROOT/'nbs').glob('*.ipynb'))
ORDER = {m.group(1): i for i,nb in enumerate(NBS)  # module to the place of its notebook
         if (m := re.search(r'^#\| ?default_exp (\w+)', source(cells(nb)), re.M))}
TEXTS = {m: (ROOT/f'miniai/{m}.py').read_text() for m in ORDER}
TREES = {m: ast.parse(s) for m,s in TEXTS.items()}

def imports(tree):
    "miniai's modules that a module imports, wherever in it, and the names it takes from each"
    for o in ast.walk(tree):
        if isinstance(o, ast.Import):
            yield from ((a.name[7:], []) for a in o.names if a.name.startswith('miniai.'))
        elif isinstance(o, ast.ImportFrom) and (o.level or o.module.split('.')[0]=='miniai'):
            names = [a.name for a in o.names]
            mod = (o.module or '').removeprefix('miniai').strip('.')
            yield from [(mod, names)] if mod else ((nm, []) for nm in names)

def functions(tree): return [o for o in ast.walk(tree) if isinstance(o, ast.FunctionDef)]

def test_one_notebook_for_each_module():
    assert {f.stem for f in (ROOT/'miniai').glob('*.py')}=={*ORDER, 'all', '__init__', '_modidx'}

@pytest.mark.parametrize('mod', ORDER)
def test_imports_are_by_name_and_from_lower_numbers(mod):
    for used,names in imports(TREES[mod]):
        assert ORDER[used]<ORDER[mod], f'{mod} imports {used}, which comes later'
        assert '*' not in names, f'{mod} imports * from {used}'
        private = [nm for nm in names if nm.startswith('_')]
        assert not private, f'{mod} imports {private} from {used}'

def test_all_gathers_every_name():
    "In the order of the notebooks, and no module redefines what another one has"
    import miniai.all
    assert [*imports(ast.parse((ROOT/'miniai/all.py').read_text()))]==[(m, ['*']) for m in ORDER]
    mods = {m: importlib.import_module(f'miniai.{m}') for m in ORDER}
    names = Counter(nm for m in mods.values() for nm in m.__all__)
    assert not [nm for nm,n in names.items() if n>1]
    for m in mods.values():
        for nm in m.__all__: assert getattr(miniai.all, nm) is getattr(m, nm), nm
    scope = {}
    exec('from miniai.all import *', scope)
    assert {nm for nm in scope if not nm.startswith('__')}==set(names)

def test_all_brings_nothing_over_your_own_names():
    "A patched method is no name of its own: `from miniai.all import *` must not set `fit` to None"
    scope = {}
    exec('from miniai.all import *', scope)
    assert not [nm for nm,o in scope.items() if o is None]
    for m,tree in TREES.items():
        names = {*importlib.import_module(f'miniai.{m}').__all__}
        for f in functions(tree):
            patched = any('patch' in ast.unparse(d) for d in f.decorator_list)
            assert not (patched and f.name in names), f'{m}.{f.name}'

@pytest.mark.parametrize('mod', ORDER)
def test_a_comment_belongs_to_one_parameter(mod):
    "fastcore's docments go by line: parameters that share a line get each other's comments"
    lines = TEXTS[mod].split('\n')
    for f in functions(TREES[mod]):
        params = {}
        for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs):
            params.setdefault(a.end_lineno, []).append(a.arg)
        for i,names in params.items():
            code,_,comment = lines[i-1].partition('#')
            ends = code.rstrip().endswith(':')  # a comment after it is on the whole function
            assert not comment or len(names)==1 or ends, f'{f.name}: {", ".join(names)}'

@pytest.mark.parametrize('nb', NBS, ids=lambda f: f.stem)
def test_no_line_of_code_is_longer_than_100_characters(nb):
    assert not [l for l in source(cells(nb)).split('\n') if len(l)>100]

# The Makefile, with a pip that installs nothing

PIP = """
import os, sys
from pathlib import Path
with open('log', 'a') as f: f.write(' '.join(sys.argv[1:])+'\\n')
if Path('die').exists(): os.kill(os.getppid(), 9)
if Path('fail').exists(): sys.exit(1)
"""

@pytest.fixture
def made(tmp_path):
    "A folder with the Makefile; a call makes a target, and gives the exit code and pip's arguments"
    for f in 'Makefile','settings.ini','setup.py','pyproject.toml': shutil.copy(ROOT/f, tmp_path)
    (tmp_path/'pip.py').write_text(PIP)
    def make(target='.venv/.dev'):
        (tmp_path/'log').write_text('')
        args = ['make', f'PYTHON={sys.executable}', 'PIP=pip.py', target]
        around = 'MAKE','MFLAGS'  # variables of a make that runs this
        env = {k: v for k,v in os.environ.items() if not k.startswith(around)}
        code = subprocess.run(args, cwd=tmp_path, env=env, capture_output=True).returncode
        return code, (tmp_path/'log').read_text().splitlines()
    return make

def test_make_installs_once_and_again_when_the_requirements_change(made, tmp_path):
    assert made()==(0, ['-e .','-e .[dev]'])
    (tmp_path/'.venv/whole').touch()
    assert made()==(0, [])
    changed = os.stat(tmp_path/'.venv/.dev').st_mtime+5
    os.utime(tmp_path/'settings.ini', (changed,changed))
    assert made()==(0, ['-e .','-e .[dev]']) and (tmp_path/'.venv/whole').exists()

@pytest.mark.parametrize('before, target, how', [
    (None,'.venv/.train','fail'), ('.venv/.train','.venv/.dev','die')])
def test_make_starts_over_where_an_installation_was_cut_short(made, tmp_path, before, target, how):
    if before: made(before)
    (tmp_path/how).touch()
    assert made(target)[0]!=0
    (tmp_path/how).unlink()
    (tmp_path/'.venv/half').touch()
    assert made()==(0, ['-e .','-e .[dev]']) and not (tmp_path/'.venv/half').exists()

def test_make_uses_a_venv_of_your_own(made, tmp_path):
    run(sys.executable, '-m', 'venv', '--without-pip', tmp_path/'.venv')
    (tmp_path/'.venv/mine').touch()
    (tmp_path/'fail').touch()
    assert made()[0]!=0
    (tmp_path/'fail').unlink()
    assert made()[0]==0 and (tmp_path/'.venv/mine').exists()

# The notebooks, and what is made from them

@pytest.mark.parametrize('nb', NBS, ids=lambda f: f.stem)
def test_notebooks_are_committed_executed(nb):
    code = [c for c in cells(nb) if source([c]).strip()]
    counts = [c['execution_count'] for c in code]
    assert None not in counts and counts==sorted(counts), 'run: make execute'
    assert not [o for c in code for o in c['outputs'] if o['output_type']=='error']

def test_readme_is_made_from_the_index():
    text = source(cells(ROOT/'nbs/index.ipynb', 'markdown'))
    text = re.sub(r'\]\((images/|\d{2}_)', r'](nbs/\1', text).replace('](../docs/', '](docs/')
    readme = (ROOT/'README.md').read_text()
    for line in filter(None, map(str.strip, text.splitlines())):
        assert line in readme, f'make readme: {line}'
    assert 'make train' in readme and 'make test' in readme
    assert 'make test' in (ROOT/'.ci/run').read_text()
    assert '.ci/run' in (ROOT/'.github/workflows/ci.yml').read_text()

@pytest.mark.parametrize('url', ['https://github.com/you/clothes', ''])
def test_publish_sets_the_address_everywhere_or_removes_it(tmp_path, url):
    for f in 'settings.ini','setup.py','README.md': shutil.copy(ROOT/f, tmp_path)
    for d in 'nbs','tools': shutil.copytree(ROOT/d, tmp_path/d)
    run(sys.executable, 'tools/publish.py', 'https://github.com/other/one.git', cwd=tmp_path)
    run(sys.executable, 'tools/publish.py', url, cwd=tmp_path)
    assert f'git_url = {url}'.strip()+'\n' in (tmp_path/'settings.ini').read_text()
    for nb in (tmp_path/'nbs').glob('*.ipynb'):
        title,first = source(cells(nb, 'markdown')[:1]),source(cells(nb)[:1])
        assert ('colab.research.google.com/github/you/clothes/blob' in title)==bool(url), nb.name
        assert (f'git+{url}' in first)==bool(url), nb.name
        assert 'other/one' not in nb.read_text()
        ours = source([c for c in cells(nb) if c['id']!='open-in'])
        was = source([c for c in cells(ROOT/'nbs'/nb.name) if c['id']!='open-in'])
        assert ours==was and (url or ours==source(cells(nb)))
    with pytest.raises(subprocess.CalledProcessError):
        run(sys.executable, 'tools/publish.py', 'github.com/you', cwd=tmp_path)

def test_no_link_leads_nowhere():
    "Links to the repository are there only if settings.ini has its address"
    url = cfg['git_url']
    for f in [*(ROOT/'nbs').glob('*.ipynb'), ROOT/'README.md']:
        assert ('colab.research.google.com' in f.read_text())==bool(url), f'make publish: {f.name}'
