"""Build the site in build/site: the notebooks in reading order, the results, a page per module

    make docs

The pages are staged in build/docs for Sphinx, where any warning is an error. Nothing is executed
and nothing is fetched."""
import ast
import re
import shutil
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
import nbformat
import pandas as pd
from nbformat.v4 import new_markdown_cell

root = Path(__file__).parent.parent
src = root/'build'/'docs'
out = root/'build'/'site'
notebooks = sorted((root/'nbs').glob('[0-9]*.ipynb'))
lesson = '09 10 11 12 13 14'.split()

# ---- the notebooks

def is_hidden(cell):
    "Is this a cell for nbdev or for Colab alone?"
    lines = [l for l in cell.source.splitlines() if l and not l.startswith('#|')]
    return cell.id=='open-in' or cell.cell_type=='code' and not lines

def clean(cell):
    "Remove directives of nbdev and badges"
    lines = cell.source.splitlines()
    if cell.cell_type=='code': lines = [l for l in lines if not l.startswith('#|')]
    else: lines = [l for l in lines if not l.startswith('[![Open in')]
    cell.source = '\n'.join(lines)
    tags = cell.metadata.get('tags', [])
    if 'hide' in tags: cell.metadata['tags'] = ['remove-input']

def read_notebook(path):
    nb = nbformat.read(path, 4)
    nb.cells = [c for c in nb.cells if not is_hidden(c)]
    for c in nb.cells: clean(c)
    nb.metadata['kernelspec'] = dict(name='python3', display_name='Python 3', language='python')
    return nb

# ---- the reference

def slug(heading):
    "The anchor that MyST gives to a heading, as GitHub does"
    text = re.sub(r'[`*$]|\]\(.*?\)', '', heading.strip()).replace('[', '')
    return re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-')

def sections(path):
    "Names that a notebook exports, each with a link to the heading above it"
    found = {}
    seen = {}
    link = ''
    for c in nbformat.read(path, 4).cells:
        if c.cell_type=='markdown':
            for heading in re.findall(r'^#{1,4} (.+)$', c.source, re.M):
                anchor = slug(heading)
                n = seen.get(anchor, 0)
                seen[anchor] = n+1
                if n: anchor = f'{anchor}-{n}'
                link = f'[{heading}](../{path.stem}.ipynb#{anchor})'
        elif '#| export' in c.source:
            for node in ast.parse(c.source).body:
                for nm in names(node): found[nm] = link
    return found

def names(node):
    "What a statement defines"
    if isinstance(node, (ast.FunctionDef,ast.ClassDef)): return [node.name]
    if not isinstance(node, ast.Assign): return []
    return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]

def is_patch(node):
    return any('patch' in ast.unparse(d) for d in getattr(node, 'decorator_list', []))

def header(node, lines):
    "The lines of a definition up to its docstring"
    return lines[node.lineno-1:node.body[0].lineno-1] or lines[node.lineno-1:node.lineno]

def method_lines(node, lines):
    "The signatures of a class's own public methods"
    found = []
    for f in node.body:
        if not isinstance(f, ast.FunctionDef): continue
        public = f.name=='__init__' or f.name[0]!='_'
        is_event = re.match('before_|after_|cleanup_', f.name)
        if not public or is_event or f.name in ('state_dict','load_state_dict'): continue
        doc = ast.get_docstring(f)
        found += header(f, lines)
        if doc: found.append(f'        "{doc}"')
    return found

def code_of(node, lines):
    if isinstance(node, ast.FunctionDef): return header(node, lines)
    if isinstance(node, ast.Assign): return lines[node.lineno-1:node.end_lineno]
    is_tuple = 'NamedTuple' in lines[node.lineno-1]
    if is_tuple: return lines[node.lineno-1:node.end_lineno]
    return lines[node.lineno-1:node.lineno] + method_lines(node, lines)

def entry(node, lines, link):
    "A heading, the signature as written, the docstring, and where it is explained"
    nm = names(node)[0]
    title = f'Learner.{nm}' if is_patch(node) else nm
    doc = '' if isinstance(node, ast.Assign) else ast.get_docstring(node) or ''
    code = textwrap.dedent('\n'.join(code_of(node, lines)))
    return f'## {title}\n\n{doc}\n\n```python\n{code}\n```\n\nExplained in {link}.\n'

def reference(path):
    "The page of a notebook's module"
    name = path.stem.partition('_')[2]
    file = root/'miniai'/f'{name}.py'
    source = file.read_text()
    lines = source.splitlines()
    tree = ast.parse(source)
    where = sections(path)
    public = set(import_module(f'miniai.{name}').__all__)
    parts = [f'# {name}\n\n{ast.get_docstring(tree)}. The notebook [{path.stem}]'
             f'(../{path.stem}.ipynb) builds this module, `miniai.{name}`.\n']
    for node in tree.body:
        nms = names(node)
        if nms and nms[0] in where and (nms[0] in public or is_patch(node)):
            parts.append(entry(node, lines, where[nms[0]]))
    return '\n'.join(parts)

# ---- the results

def markdown_table(df):
    rows = [df.columns, ['---']*len(df.columns), *df.astype(str).values]
    return '\n'.join(f"| {' | '.join(map(str, r))} |" for r in rows)

def board():
    "Our ideas of the playground, best first"
    rows = pd.read_json(root/'miniai'/'board.jsonl', lines=True)
    mean = rows.accuracy.map(lambda v: sum(v)/len(v))
    table = pd.DataFrame({
        'idea': rows.idea, 'accuracy': mean.map('{:.4f}'.format), 'seeds': rows.accuracy.map(len),
        'training': rows.training.map('{:.4f}'.format), 'epochs': rows.epochs,
        'parameters': rows.parameters.map('{:,}'.format),
        'M MACs': (rows.macs/1e6).round(1), 'seconds': rows.seconds.round()})
    return table.loc[mean.sort_values(ascending=False).index]

def results():
    from miniai.recipes import load_results, recipes, results_table
    table = results_table(load_results(root/'results'), list(recipes))
    return f"""# Results

Accuracies on the 10,000 test images after the last epoch, as means ± standard deviations over the
seeds. *M params* are millions of parameters, *M MACs* millions of multiplications for one image,
*T MACs* trillions in the whole training. [18_challenge](18_challenge.ipynb) and
[19_recipes](19_recipes.ipynb) explain them.

{markdown_table(table.rename_axis('recipe').reset_index())}

## The playground's board

Ideas trained with `play` on 3,000 images and judged by 5,000 held-out ones.

{markdown_table(board())}
"""

# ---- the site

def toctree(caption, pages):
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *pages, '```'])

def contents():
    stems = [p.stem for p in notebooks]
    main = [s for s in stems if s[:2] in lesson]
    last = [s for s in stems if s[:2]=='20']
    more = [s for s in stems if s not in main+last]
    modules = [f'api/{s[3:]}' for s in stems if s not in last]
    use = [*last, 'results', 'from-the-course']
    return '\n\n'.join([toctree('The lesson', main), toctree('More notebooks', more),
                        toctree('Use it', use), toctree('Reference', modules)])

def stage():
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree(root/'docs', src)
    shutil.copytree(root/'nbs'/'images', src/'images')
    (src/'api').mkdir()
    for path in notebooks:
        nbformat.write(read_notebook(path), src/path.name)
        if path.stem[:2]!='20': (src/'api'/f'{path.stem[3:]}.md').write_text(reference(path))
    course = src/'from-the-course.md'
    course.write_text(course.read_text().replace('](../nbs/', ']('))
    index = read_notebook(root/'nbs'/'index.ipynb')
    for c in index.cells: c.source = c.source.replace('](../docs/', '](')
    index.cells.append(new_markdown_cell(contents()))
    nbformat.write(index, src/'index.ipynb')
    (src/'results.md').write_text(results())

def build():
    shutil.rmtree(out, ignore_errors=True)
    options = '--fail-on-warning --keep-going -q -b html'.split()
    sphinx = [sys.executable, '-m', 'sphinx', *options]
    return subprocess.run([*sphinx, src, out]).returncode

if __name__=='__main__':
    stage()
    sys.exit(build())
