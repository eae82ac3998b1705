"Every name of the library: `from miniai.all import *`, or `import miniai.all as mi`"
from .core import *
from .datasets import *
from .learner import *
from .activations import *
from .init import *
from .sgd import *
from .resnet import *
from .augment import *
from .checkpoint import *
from .accel import *
from .recipes import *
