from .masks import load_labels as load_labels
from .masks import load_mask as load_mask
from .read import load_image as load_image
from .read import resize_to as resize_to
from .sheets import contact_sheet as contact_sheet
from .write import read_texts as read_texts
from .write import save_image as save_image
from .write import to_uint8 as to_uint8

__all__ = [
    "contact_sheet",
    "load_image",
    "load_labels",
    "load_mask",
    "read_texts",
    "resize_to",
    "save_image",
    "to_uint8",
]
