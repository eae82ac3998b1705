"""Give each notebook its badges for Colab and Kaggle, and a cell that installs miniai there, from settings.ini

    python tools/open_in.py"""
import json
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).parent.parent

def address():
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']['git_url'],ini['DEFAULT']['branch']

def badges(name):
    url,branch = address()
    path = f"{url.removeprefix('https://')}/blob/{branch}/nbs/{name}"
    colab = path.replace('github.com', 'github')
    return ('[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]'
            f'(https://colab.research.google.com/{colab}) '
            '[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]'
            f'(https://kaggle.com/kernels/welcome?src=https://{path})')

def install():
    return ('from importlib.util import find_spec\n'
            "if not find_spec('miniai'):  # on Colab and Kaggle\n"
            f"    get_ipython().system('pip install -q git+{address()[0]}')")

def main():
    for f in sorted((root/'nbs').glob('*.ipynb')):
        nb = json.loads(f.read_text(encoding='utf-8'))
        cells = nb['cells']
        lines = [l for l in ''.join(cells[0]['source']).split('\n') if not l.startswith('[![Open in')]
        i = next(i for i,l in enumerate(lines) if l.startswith('> '))
        lines[i+1:i+1] = ['', badges(f.name)]
        cells[0]['source'] = '\n'.join(lines).splitlines(True)
        if cells[1]['id']!='open-in':
            meta = {'tags': ['hide']} if f.stem=='index' else {}
            cell = dict(cell_type='code', execution_count=None, id='open-in', metadata=meta, outputs=[], source=[])
            cells.insert(1, cell)
        cells[1]['source'] = install().splitlines(True)
        f.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)+'\n', encoding='utf-8')

if __name__=='__main__': main()
