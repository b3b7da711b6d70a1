from .records import load_position as load_position
from .records import save_position as save_position

__all__ = [
    "load_position",
    "save_position",
]
