from .canonical import Weights as Weights
from .canonical import WeightsInfo as WeightsInfo
from .convert import convert_file as convert_file
from .load import find_weights as find_weights
from .load import list_weights as list_weights
from .load import load_weights as load_weights
from .load import save_weights as save_weights
from .normalize import normalize_weights as normalize_weights
from .verify import verify_weights as verify_weights

__all__ = [
    "Weights",
    "WeightsInfo",
    "convert_file",
    "find_weights",
    "list_weights",
    "load_weights",
    "normalize_weights",
    "save_weights",
    "verify_weights",
]
