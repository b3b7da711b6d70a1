from .checkpoint import load_position as load_position
from .checkpoint import save_position as save_position
from .config import PRESETS as PRESETS
from .config import Config as Config
from .config import LossConfig as LossConfig
from .config import get_preset as get_preset
from .errors import InputError as InputError
from .images import load_image as load_image
from .images import save_image as save_image
from .losses import make_loss as make_loss
from .models import VGG19 as VGG19
from .models import features as features
from .models import prepare_kernels as prepare_kernels
from .optim import make_optimizer as make_optimizer
from .optim import make_solver as make_solver
from .optim import run as run
from .system import set_threads as set_threads
from .transfer import Callback as Callback
from .transfer import Custom as Custom
from .transfer import Execution as Execution
from .transfer import Progress as Progress
from .transfer import Result as Result
from .transfer import make_mesh as make_mesh
from .transfer import stylize as stylize
from .transfer import stylize_batch as stylize_batch
from .types import Guidance as Guidance
from .types import Loss as Loss
from .weights import find_weights as find_weights
from .weights import load_weights as load_weights
from .weights import save_weights as save_weights

__version__: str

__all__ = [
    "Callback",
    "Config",
    "Custom",
    "Execution",
    "Guidance",
    "InputError",
    "Loss",
    "LossConfig",
    "PRESETS",
    "Progress",
    "Result",
    "VGG19",
    "features",
    "find_weights",
    "get_preset",
    "load_image",
    "load_position",
    "load_weights",
    "make_loss",
    "make_mesh",
    "make_optimizer",
    "make_solver",
    "prepare_kernels",
    "run",
    "save_image",
    "save_position",
    "save_weights",
    "set_threads",
    "stylize",
    "stylize_batch",
]
