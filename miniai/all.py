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
