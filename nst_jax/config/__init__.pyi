from .config import LBFGS as LBFGS
from .config import Adam as Adam
from .config import Config as Config
from .config import ExecutionConfig as ExecutionConfig
from .config import Initial as Initial
from .config import LBFGSLineSearch as LBFGSLineSearch
from .config import Pyramid as Pyramid
from .config import from_flat as from_flat
from .config import to_flat as to_flat
from .factors import as_layers as as_layers
from .layers import CHANNELS as CHANNELS
from .layers import CONVS as CONVS
from .layers import TAPS as TAPS
from .layers import block_of as block_of
from .layers import deepest as deepest
from .layers import reach as reach
from .layers import stride as stride
from .loss import Evaluation as Evaluation
from .loss import LossConfig as LossConfig
from .presets import DEFAULT_PRESET as DEFAULT_PRESET
from .presets import PRESETS as PRESETS
from .presets import Preset as Preset
from .presets import get_preset as get_preset

__all__ = [
    "Adam",
    "CHANNELS",
    "CONVS",
    "Config",
    "DEFAULT_PRESET",
    "Evaluation",
    "ExecutionConfig",
    "Initial",
    "LBFGS",
    "LBFGSLineSearch",
    "LossConfig",
    "PRESETS",
    "Preset",
    "Pyramid",
    "TAPS",
    "as_layers",
    "block_of",
    "deepest",
    "from_flat",
    "get_preset",
    "reach",
    "stride",
    "to_flat",
]
