"""Load a pickle of PyTorch tensors without PyTorch, and without running anything in it.

A pickle is a program. Here it may use only the instructions and the few names that a dictionary
of tensors needs, and it builds descriptions instead of tensors: which elements of which storage.
Each description is checked as it is made; ``torch_file.py`` reads the bytes.

Source: ``torch/serialization.py`` and ``torch/_utils.py`` of PyTorch.
"""

import io
import math
import pickle
import pickletools
import warnings
from collections import OrderedDict
from typing import IO, Any, NamedTuple

from nst_jax.errors import InputError

DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_REBUILD_TENSOR = ("_rebuild_tensor", "_rebuild_tensor_v2")  # the first is from before 0.4

# A state of VGG-19 takes about a thousand. The limit also bounds how deep values are nested,
# since Python hashes nested tuples by recursion in C.
_MAX_OPCODES = 20_000
# What may be used a second time, by the instruction that made it. Not a tuple: of forty that each
# hold the one before twice, the hash would take days.
_SHARED = frozenset(
    """BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_DICT EMPTY_LIST GLOBAL
    STACK_GLOBAL BINPERSID REDUCE""".split()
)
_OPCODES = frozenset(
    """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_TUPLE
    TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS BINGET LONG_BINGET BINPUT
    LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD""".split()
)


class Storage(NamedTuple):
    """A run of ``length`` elements from ``start`` in the storage ``key`` of ``total`` elements."""

    key: str
    dtype: str
    total: int
    start: int
    length: int


class Tensor(NamedTuple):
    """A strided view of a storage, known to lie inside it. Offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load_pickle(file: IO[bytes]) -> tuple[Any, dict[str, str]]:
    """Load the one pickle that starts at the file's position, and stop behind it.

    Args:
      file: a binary file that can seek.

    Returns:
      What the pickle holds, with `Tensor` for tensors, and the dtype of each storage by key.

    Raises:
      InputError: where it needs an instruction or a name beyond a dictionary of tensors, or
        describes a tensor outside its storage.
      Exception: many others where it is damaged; see `damaged_is_input_error`.
    """
    start = file.tell()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange escapes in text, which is refused anyway
        _check_instructions(file)
    length = file.tell() - start
    file.seek(start)
    unpickler = _Unpickler(io.BytesIO(file.read(length)))
    unpickler.dtypes = {}
    return unpickler.load(), unpickler.dtypes


def _check_instructions(file: IO[bytes]) -> None:
    """Go through one pickle without executing it, and stop behind it."""
    before, memo = "", {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "GLOBAL":  # refused by name here, before instructions that go with it
            _find(*str(argument).split(" ", 1))
        if opcode.name not in _OPCODES:
            raise InputError(
                f"the PyTorch file uses the pickle instruction {opcode.name}, which no "
                "dictionary of tensors needs: it was not executed; save model.state_dict()"
            )
        # The unpickler allocates a table up to the largest index.
        huge_index = opcode.name == "LONG_BINPUT" and int(argument or 0) > _MAX_OPCODES
        if number >= _MAX_OPCODES or huge_index:
            raise InputError(
                f"the pickle in the PyTorch file has more than {_MAX_OPCODES} instructions, too "
                "many for a VGG-19: save model.state_dict() alone"
            )
        if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = before in _SHARED
        if opcode.name in ("BINGET", "LONG_BINGET") and not memo.get(argument):
            raise InputError(
                "the pickle in the PyTorch file uses a tuple twice, or nothing, which no "
                "dictionary of tensors needs: save model.state_dict()"
            )
        before = opcode.name


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries and descriptions of tensors, and refuses every other name."""

    dtypes: dict[str, str]

    def find_class(self, module: str, name: str, /) -> Any:
        return _find(module, name)

    def persistent_load(self, pid: Any, /) -> Storage:
        kind, storage_type, key, _, total, *view = pid
        if kind != "storage" or storage_type not in DTYPES or not isinstance(key, str):
            raise InputError("the PyTorch file has a malformed storage: get the file again")
        # Legacy files add None or (key of the view, start, count).
        start, length = view[0][1:3] if view and view[0] else (0, total)
        _check_counts(total, start, length)
        if start + length > total:
            raise InputError(f"a view of storage {key!r} in the PyTorch file lies outside it")
        storage = Storage(key, DTYPES[storage_type], total, start, length)
        if self.dtypes.setdefault(key, storage.dtype) != storage.dtype:
            raise InputError(f"storage {key!r} in the PyTorch file has two types")
        return storage


def _find(module: str, name: str) -> Any:
    # A pickle may set attributes of what it gets here: hence constants, and new functions.
    if module == "collections" and name == "OrderedDict":
        return OrderedDict
    if module == "torch" and name in DTYPES:
        return name
    if module == "torch._utils" and name in _REBUILD_TENSOR:
        return lambda *arguments: _tensor(*arguments)
    if module == "torch._utils" and name == "_rebuild_parameter":
        return lambda data, *_: _parameter(data)
    raise InputError(
        f"the PyTorch file asks for {module}.{name}, which no dictionary of tensors needs: it "
        "was not executed; save model.state_dict()"
    )


def _parameter(data: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise InputError("the PyTorch file has a malformed parameter: get the file again")
    return data


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    shape, strides = tuple(shape), tuple(strides)
    _check_counts(offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise InputError("the PyTorch file has a malformed tensor: get the file again")
    elements = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # The bound on the last element alone would let a stride of 0 make an array of any size.
    if elements > storage.length or (elements and last >= storage.length):
        raise InputError(
            f"a tensor of shape {shape} and strides {strides} in the PyTorch file lies outside "
            f"its storage of {storage.length} elements: get the file again"
        )
    return Tensor(storage, offset, shape, strides)


def _check_counts(*values: Any) -> None:
    if not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise InputError(
            "the PyTorch file has a negative or absurd size, stride or offset: get the file again"
        )
