"""Set the repository's address everywhere, or remove it

    make publish REPO=https://github.com/you/miniai
    make publish REPO=

With an address, settings.ini has it, and each notebook has badges that open it in Colab and Kaggle
and a cell that installs miniai there. Without one there are neither, so that no link is dead."""
import re
import sys
from pathlib import Path
import nbformat

root = Path(__file__).parent.parent
branch = 'main'

def badges(url, name):
    path = f"{url.removeprefix('https://')}/blob/{branch}/nbs/{name}"
    colab = path.replace('github.com', 'github')
    return ('[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]'
            f'(https://colab.research.google.com/{colab}) '
            '[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]'
            f'(https://kaggle.com/kernels/welcome?src=https://{path})')

def install(url):
    return ('from importlib.util import find_spec\n'
            "if not find_spec('miniai'):  # on Colab and Kaggle\n"
            f"    get_ipython().system('pip install -q git+{url}')")

def set_badges(cell, url, name):
    "Put badges below the line that starts with >, in place of older ones"
    lines = [l for l in cell.source.split('\n') if not l.startswith('[![Open in')]
    i = next(i for i,l in enumerate(lines) if l.startswith('> '))
    rest = '\n'.join(lines[i+1:]).strip('\n')
    parts = ['\n'.join(lines[:i+1]), badges(url, name) if url else '', rest]
    cell.source = '\n\n'.join(p for p in parts if p)

def set_cell(nb, url, is_index):
    "Put the cell that installs miniai second, or remove it"
    old = [c for c in nb.cells if c.id=='open-in']
    nb.cells = [c for c in nb.cells if c.id!='open-in']
    if not url: return
    cell = old[0] if old else nbformat.v4.new_code_cell(id='open-in')
    cell.source = install(url)
    if is_index: cell.metadata['tags'] = ['hide']
    nb.cells.insert(1, cell)

def renumber(nb):
    "Number the executed cells from 1, in their order"
    ran = [c for c in nb.cells if c.cell_type=='code' and c.execution_count]
    for i,c in enumerate(ran, 1):
        c.execution_count = i
        for o in c.outputs:
            if 'execution_count' in o: o['execution_count'] = i

def set_notebook(path, url):
    nb = nbformat.read(path, 4)
    set_badges(nb.cells[0], url, path.name)
    set_cell(nb, url, path.stem=='index')
    renumber(nb)
    nbformat.write(nb, path)

def set_settings(path, url):
    text = path.read_text(encoding='utf-8')
    text = re.sub('^git_url =.*$', f'git_url = {url}'.strip(), text, flags=re.M)
    path.write_text(text, encoding='utf-8')

def main(url):
    url = url.rstrip('/').removesuffix('.git')
    if url and not re.fullmatch(r'https://github\.com/[\w-]+/[\w.-]+', url):
        sys.exit(f'REPO must be https://github.com/OWNER/NAME or empty, got {url}.')
    set_settings(root/'settings.ini', url)
    for path in sorted((root/'nbs').glob('*.ipynb')): set_notebook(path, url)

if __name__=='__main__': main(sys.argv[1] if len(sys.argv)>1 else '')
