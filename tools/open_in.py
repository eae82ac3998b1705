"""Give each notebook its badges for Colab and Kaggle, and a cell that installs miniai there

    python tools/open_in.py

The address is that in settings.ini."""
import json
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).parent.parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
url = ini['DEFAULT']['git_url']
branch = ini['DEFAULT']['branch']

def badges(name):
    path = f"{url.removeprefix('https://')}/blob/{branch}/nbs/{name}"
    colab = path.replace('github.com', 'github')
    return ('[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]'
            f'(https://colab.research.google.com/{colab}) '
            '[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]'
            f'(https://kaggle.com/kernels/welcome?src=https://{path})')

def install():
    return ('from importlib.util import find_spec\n'
            "if not find_spec('miniai'):  # on Colab and Kaggle\n"
            f"    get_ipython().system('pip install -q git+{url}')")

def put_badges(cell, name):
    "Badges below the line that starts with >, in place of older ones"
    lines = ''.join(cell['source']).split('\n')
    lines = [l for l in lines if not l.startswith('[![Open in')]
    i = next(i for i,l in enumerate(lines) if l.startswith('> '))
    while lines[i+1:i+2]==['']: del lines[i+1]
    lines[i+1:i+1] = ['', badges(name), '']
    cell['source'] = '\n'.join(lines).splitlines(True)

def main():
    for f in sorted((root/'nbs').glob('*.ipynb')):
        nb = json.loads(f.read_text(encoding='utf-8'))
        cells = nb['cells']
        put_badges(cells[0], f.name)
        if cells[1]['id']!='open-in':
            cell = dict(cell_type='code', execution_count=None, id='open-in', outputs=[])
            cell['metadata'] = {'tags': ['hide']} if f.stem=='index' else {}
            cells.insert(1, cell)
        cells[1]['source'] = install().splitlines(True)
        text = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)
        f.write_text(text+'\n', encoding='utf-8')

if __name__=='__main__': main()
