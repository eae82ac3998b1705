"Every name of the library: `from miniai.all import *`, or `import miniai.all as mi`"
from .core import *
from .datasets import *
from .safety import *
from .learner import *
from .activations import *
from .init import *
from .sgd import *
from .resnet import *
from .augment import *
from .predict import *
from .checkpoint import *
from .accel import *
from .challenge import *
from .recipes import *

def _show_comments(names):
    "Add the comments beside parameters to the docstrings, where `help` shows them"
    import inspect, linecache
    found = []
    for o in names: found += vars(o).values() if isinstance(o, type) else [o]
    found = [getattr(f, '__func__', f) for f in found]  # of a classmethod
    for f in {f for f in found if inspect.isfunction(f)}:
        code = inspect.unwrap(f).__code__
        first = code.co_firstlineno
        body = min((n for *_,n in code.co_lines() if n and n>first), default=first)
        lines = linecache.getlines(code.co_filename)[first-1:body-1]
        comments = [line.strip() for line in lines if ' # ' in line]
        f.__doc__ = '\n\n'.join(filter(None, [f.__doc__, '\n'.join(comments)])) or None

_show_comments([o for o in globals().values() if getattr(o, '__module__', '').startswith('miniai')])
