"""Write miniai/learner.pyi, which tells editors what the Learner has, also by `@patch`

    python tools/stubs.py [file]

It holds the public part of learner.py, without bodies, with the comments beside
parameters in the docstrings. `make export` runs it."""
import ast, re, sys
from pathlib import Path
from textwrap import indent

package = Path(__file__).parent.parent/'miniai'
files = sorted(package.glob('*.py'), key=lambda f: (f.stem=='learner', f.stem))
sources = {f.stem: f.read_text(encoding='utf-8') for f in files}
trees = {nm: ast.parse(text) for nm,text in sources.items()}
named = {o.name: o for tree in trees.values() for o in tree.body if hasattr(o, 'name')}

def add_comments(tree, lines):
    "Keep with each function the lines of its parameters that have a comment"
    for f in ast.walk(tree):
        if not isinstance(f, ast.FunctionDef): continue
        head = lines[f.lineno-1:f.body[0].lineno-1]
        f.comments = [line.strip() for line in head if ' # ' in line]

for nm,tree in trees.items(): add_comments(tree, sources[nm].splitlines())

def is_public(name): return name.startswith('__') or not name.startswith('_')
def decorators(f): return ' '.join(ast.unparse(d) for d in f.decorator_list)
def functions(o): return [f for f in o.body if isinstance(f, ast.FunctionDef) and is_public(f.name)]
def find_init(cls): return next((f for f in functions(cls) if f.name=='__init__'), None)
def is_patched(f): return 'patch' in decorators(f)

def defaults(f):
    "The parameters of `f` that have a default, as text by name"
    args = f.args.args[-len(f.args.defaults):]
    pairs = [*zip(args, f.args.defaults), *zip(f.args.kwonlyargs, f.args.kw_defaults)]
    return {arg.arg: f'{ast.unparse(arg)}={ast.unparse(value)}' for arg,value in pairs if value}

def delegated(f):
    "Those of the function or class to which `f` passes its `kwargs` on"
    calls = [d for d in f.decorator_list if 'delegates(' in ast.unparse(d) and d.args]
    to = named.get(ast.unparse(calls[0].args[0])) if calls else None
    if isinstance(to, ast.ClassDef): to = find_init(to)
    return defaults(to) | delegated(to) if to else {}

def definition(head, o, lines=()):
    "`head`, the first line of the docstring, and `lines`"
    doc = (ast.get_docstring(o) or '').split('\n')[0]
    comments = '\n'.join(getattr(o, 'comments', ()))
    doc = '\n\n'.join(filter(None, [doc, comments]))
    docs = [repr(doc)] if doc else []
    return head + '\n' + indent('\n'.join([*docs, *lines] or ['...']), '    ')

def signature(f):
    own = {a.arg for a in f.args.args + f.args.kwonlyargs}
    more = [text for nm,text in delegated(f).items() if nm not in own]
    star = [] if f.args.vararg or f.args.kwonlyargs else ['*']
    args = re.sub(r'^self: \w+', 'self', ast.unparse(f.args))
    if more: args = args.replace('**kwargs', ', '.join(star + more))
    args = re.sub(r'(: [^=,]+?)(?: \| None)?=None', r'\1 | None=None', args)
    values = [o for o in ast.walk(f) if isinstance(o, (ast.Yield,ast.Return)) and o.value]
    returns = ''
    if f.returns: returns = f' -> {ast.unparse(f.returns)}'
    elif not values: returns = ' -> None'
    said = decorators(f).replace('patch(as_prop=True)', 'property')
    kept = re.findall(r'property|classmethod|staticmethod|contextmanager', said)
    head = [f'@{d}' for d in kept] + [f'def {f.name}({args}){returns}:']
    return definition('\n'.join(head), f)

def stored(name, tree):
    "The attributes of `name` that something in `tree` assigns"
    attrs = [o for o in ast.walk(tree) if isinstance(o, ast.Attribute)]
    attrs = [o for o in attrs if isinstance(o.ctx, ast.Store)]
    return [o.attr for o in attrs if ast.unparse(o.value)==name]

def fields(cls):
    "What the class and its methods assign, typed as the parameter of that name"
    names = stored('self', cls)
    if cls.name=='Learner': names += stored('learn', trees['learner'])  # by callbacks
    assigned = [n for o in cls.body if not hasattr(o, 'name') for n in ast.walk(o)]
    names += [n.id for n in assigned if isinstance(getattr(n, 'ctx', None), ast.Store)]
    init = find_init(cls)
    args = init.args.args if init else []
    types = {a.arg: ast.unparse(a.annotation) for a in args if a.annotation}
    return [f"{nm}: {types.get(nm, 'Any')}" for nm in dict.fromkeys(names) if is_public(nm)]

def outline(cls):
    "The class without bodies, with the methods that are patched onto it"
    patches = [f for tree in trees.values() for f in functions(tree) if is_patched(f)]
    mine = [f for f in patches if ast.unparse(f.args.args[0].annotation)==cls.name]
    lines = fields(cls) + [signature(f) for f in functions(cls) + mine]
    bases = ', '.join(ast.unparse(b) for b in cls.bases)
    return definition(f'class {cls.name}({bases}):', cls, lines)

def imports(text):
    "The lines that import what `text` uses, as the modules do"
    lines = {}
    for mod,tree in trees.items():
        for o in tree.body:
            start = f"from {'.'*o.level}{o.module} " if isinstance(o, ast.ImportFrom) else ''
            for a in getattr(o, 'names', []):
                lines[a.asname or a.name.split('.')[0]] = f'{start}import {ast.unparse(a)}'
            if hasattr(o, 'name'): lines[o.name] = f'from .{mod} import {o.name}'
    tree = ast.parse(text)
    used = {o.id for o in ast.walk(tree) if isinstance(o, ast.Name)}
    own = {o.name for o in tree.body if hasattr(o, 'name')}
    found = {lines[nm] for nm in used-own if nm in lines}
    return ['from contextlib import contextmanager', 'from typing import Any', *sorted(found)]

def stub():
    parts = []
    for o in trees['learner'].body:
        name = ast.unparse(o.targets[0]) if isinstance(o, ast.Assign) else getattr(o, 'name', '_')
        if not is_public(name): continue
        if isinstance(o, ast.ClassDef): parts.append(outline(o))
        elif name=='__all__': parts.append(ast.unparse(o))
        elif isinstance(o, ast.Assign): parts.append(f'{name}: Any')
        elif not is_patched(o): parts.append(signature(o))
    text = '\n\n'.join(parts)
    return '\n'.join(['"Written by tools/stubs.py; do not edit"', *imports(text), '', text, ''])

if __name__=='__main__':
    to = sys.argv[1] if len(sys.argv)>1 else package/'learner.pyi'
    Path(to).write_text(stub(), encoding='utf-8')
