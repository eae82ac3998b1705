"What is built, what is installed, and that the files which say the same thing agree"
import json, os, re, shutil, subprocess, sys, tarfile, tomllib, zipfile, pytest
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
ini = ConfigParser(delimiters=['='])
ini.read(ROOT/'settings.ini')
cfg = ini['DEFAULT']

def run(*args, cwd=ROOT, **env):
    return subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, check=True).stdout

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
    "An sdist, and a wheel that was built from that sdist"
    out = tmp_path_factory.mktemp('dist')
    code = f'from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})'
    run(sys.executable, '-c', code, cwd=checkout)
    sdist = next(out.glob('*.tar.gz'))
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', out, sdist)
    return sdist, next(out.glob('*.whl'))

def test_metadata_agrees():
    toml = tomllib.loads((ROOT/'pyproject.toml').read_text())
    assert set(toml)=={'build-system','tool'} and set(toml['tool'])=={'nbdev'}
    nbdev = toml['tool']['nbdev']
    for k in 'lib_path','nbs_path','tst_flags': assert nbdev[k]==cfg[k]
    for k in 'recursive','put_version_in_init': assert nbdev[k]==cfg.getboolean(k)
    import miniai
    assert miniai.__version__==cfg['version'] and cfg['version'] in (ROOT/'CHANGELOG.md').read_text()
    assert (ROOT/'miniai/__init__.py').read_text().strip()==f'__version__ = "{cfg["version"]}"'

def test_setup_uses_no_pkg_resources(): assert 'pkg_resources' not in (ROOT/'setup.py').read_text()

def test_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[1]).namelist()
    pkg = sorted(n for n in names if not n.startswith('miniai-'))
    assert pkg==sorted(f for f in tracked() if f.startswith('miniai/'))
    assert len([n for n in pkg if n.startswith('miniai/sample/')])==5

def test_wheel_metadata(built):
    z = zipfile.ZipFile(built[1])
    meta = z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode()
    assert f"Requires-Python: >={cfg['min_python']}" in meta
    for r in cfg['requirements'].split(): assert f'Requires-Dist: {r}\n' in meta
    assert 'Provides-Extra: dev' in meta and 'Provides-Extra: accel' in meta
    assert 'miniai-train = miniai.recipes:main' in z.read(next(n for n in z.namelist() if n.endswith('entry_points.txt'))).decode()

def test_sdist_can_build_again(built):
    names = [n.split('/',1)[-1] for n in tarfile.open(built[0]).getnames()]
    for f in 'settings.ini','setup.py','pyproject.toml','LICENSE','README.md','miniai/sample/LICENSE': assert f in names

def test_plain_install_works_outside_the_checkout(built, tmp_path):
    target = tmp_path/'site'
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', target, built[1])
    code = ('import miniai.learner, miniai.recipes; from miniai.datasets import *; '
            'print(miniai.learner.__file__, len(fashion_arrays(sample=True)["train"][0]))')
    out = run(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=str(target))
    assert out.split()==[str(target/'miniai/learner.py'), '4000']
    assert 'usage: miniai-train' in run(target/'bin/miniai-train', '--help', cwd=tmp_path, PYTHONPATH=str(target))

def test_modules_are_what_the_notebooks_export(checkout):
    run(sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()', cwd=checkout)
    for f in (ROOT/'miniai').glob('*.py'): assert f.read_text()==(checkout/'miniai'/f.name).read_text(), f'{f.name}: run nbdev-export'

def test_exported_code_imports_only_from_lower_numbers():
    order = {re.search(r'default_exp (\w+)', s).group(1): nb.name for nb in sorted((ROOT/'nbs').glob('*.ipynb')) if (s := nb.read_text()).find('default_exp')>0}
    for mod,nb in order.items():
        for used in re.findall(r'^from \.(\w+) import', (ROOT/f'miniai/{mod}.py').read_text(), re.M): assert order[used]<nb, f'{mod} imports {used}'

@pytest.mark.parametrize('nb', sorted((ROOT/'nbs').glob('*.ipynb')), ids=lambda f: f.stem)
def test_notebooks_are_committed_executed(nb):
    cells = [c for c in json.loads(nb.read_text())['cells'] if c['cell_type']=='code' and ''.join(c['source']).strip()]
    counts = [c['execution_count'] for c in cells if c['execution_count']]
    assert counts==sorted(counts) and len(counts)>=len(cells)*.9, 'run: make execute'
    assert not [o for c in cells for o in c['outputs'] if o['output_type']=='error']

def test_readme_is_made_from_the_index():
    text = '\n'.join(''.join(c['source']) for c in json.loads((ROOT/'nbs/index.ipynb').read_text())['cells'] if c['cell_type']=='markdown')
    readme,text = (ROOT/'README.md').read_text(),re.sub(r'\]\((images/|\d{2}_)', r'](nbs/\1', text)
    for line in filter(None, map(str.strip, text.splitlines())): assert line in readme, f'make readme: {line}'
    assert 'make train' in readme and 'make test' in readme
    assert 'make test' in (ROOT/'.ci/run').read_text() and '.ci/run' in (ROOT/'.github/workflows/ci.yml').read_text()
