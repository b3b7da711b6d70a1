"""What a batch reads and writes: images from files, folders, lists and patterns; outputs' names.

Standard library only. No image is opened here.
"""

import glob
import os
import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

from nst_jax.errors import InputError
from nst_jax.system.files import check_free
from nst_jax.system.streams import STANDARD
from nst_jax.transfer.pairing import Pairing, pair

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2"),
)

_T = TypeVar("_T")


class Source(NamedTuple):
    """An image file of the command line.

    Attributes:
      path: the file.
      searched: whether a folder or a pattern led to it, which may find other files another time.
    """

    path: Path
    searched: bool


class Item(NamedTuple):
    """One image to make.

    Attributes:
      content: the content image's file.
      styles: places of its styles in the list of style files.
      output: the file to write.
    """

    content: Path
    styles: tuple[int, ...]
    output: Path


def expand(arguments: Sequence[Path], *, what: str) -> list[Source]:
    """The files that arguments stand for, in the arguments' order.

    An argument is a file; a folder, for its images (by suffix, sorted by name, neither hidden
    ones nor those of folders within); a ``.txt`` file in UTF-8 with a file on each line, relative
    to the list's folder, where blank lines and those that begin with ``#`` do not count; or, where
    nothing has that name, a pattern with ``*``, ``?``, ``[`` or ``**`` for its files, sorted,
    without hidden ones.

    Args:
      arguments: paths as they were given.
      what: the images' role for messages, such as "content".

    Raises:
      InputError: for arguments without any file, and files that do not exist.
    """
    if not arguments:
        hint = ", before --style" if what == "content" else ""
        raise InputError(f"there is no {what} image: name files, folders, lists or patterns{hint}")
    return [source for path in arguments for source in _expand_one(Path(path), what=what)]


def _expand_one(path: Path, *, what: str) -> list[Source]:
    if path == STANDARD:
        raise InputError(f"- stands for one image: expected files, folders or lists as {what}")
    if os.path.isdir(path):
        return [Source(file, searched=True) for file in _in_folder(path, what=what)]
    if os.path.exists(path):
        files = _in_list(path, what=what) if path.suffix.lower() == ".txt" else [path]
        return [Source(file, searched=False) for file in files]
    if any(character in str(path) for character in "*?["):
        return [Source(file, searched=True) for file in _matching(path, what=what)]
    raise InputError(
        f"{path} does not exist: expected a {what} image, a folder, a .txt list or a pattern"
    )


def _in_folder(folder: Path, *, what: str) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None
    files = [folder / name for name in names if not name.startswith(".")]
    files = [
        file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(file)
    ]
    if not files:
        raise InputError(
            f"the folder {folder} holds no {what} image: expected files with a suffix of "
            f"{' '.join(IMAGE_SUFFIXES)}"
        )
    return files


def _in_list(path: Path, *, what: str) -> list[Path]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the list {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # in no file's name, but in UTF-16's Latin letters
        raise InputError(f"the list {path} is no text in UTF-8: save it in that encoding")
    files = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        file = path.parent / line
        if os.path.isdir(file) or not os.path.exists(file):
            wrong = "is a directory" if os.path.isdir(file) else "does not exist"
            raise InputError(
                f"the list {path}, line {number}: {file} {wrong}: expected a {what} image, "
                "relative to the list's folder"
            )
        files.append(file)
    if not files:
        raise InputError(f"the list {path} names no {what} image: expected one file a line")
    return files


def _matching(pattern: Path, *, what: str) -> list[Path]:
    # Folders that exist are meant as they are called: "photos [2020]/*.jpg".
    folder = next((above for above in pattern.parents if os.path.isdir(above)), Path())
    rest = str(pattern.relative_to(folder))
    found = {folder / name for name in glob.glob(rest, root_dir=folder, recursive=True)}
    files = sorted((file for file in found if os.path.isfile(file)), key=lambda file: file.parts)
    if not files:
        raise InputError(
            f"no file matches {pattern}: expected {what} images; see to the pattern and the "
            "folder it is relative to"
        )
    return files


def plan(
    contents: Sequence[Source], styles: Sequence[Source], *, pairing: Pairing, folder: Path
) -> list[Item]:
    """The images to make and their names.

    Args:
      contents, styles: the images to read.
      pairing: "all" mixes all styles in each content; "pairs" gives each content the style at its
        place; "grid" makes each content in each style, the contents one after another.
      folder: where the outputs go; it need not exist yet.

    Returns:
      An ``Item`` for each image, named by its content's and its styles' names:
      ``content__style.png``, ``content__style+style.png``.

    Raises:
      InputError: for pairs of unequal lists; outputs with the same name, names that the file system
        refuses or that are an input's; and images that a search found in ``folder``, where it
        would find the results another time.
    """
    folder = Path(folder)
    _check_searched([*contents, *styles], folder=folder)
    items = []
    for index, places in pair(len(contents), len(styles), pairing=pairing):
        content = contents[index]
        name = f"{content.path.stem}__{'+'.join(styles[place].path.stem for place in places)}.png"
        items.append(Item(content.path, places, folder / name))
    _check_names(items, [style.path for style in styles], mixed=pairing == "all")
    _check_outputs(items, [source.path for source in (*contents, *styles)])
    return items


def _check_searched(sources: Sequence[Source], *, folder: Path) -> None:
    """Check that a second run will not take results for inputs."""
    real = os.path.realpath(folder)
    for path, searched in sources:
        if searched and os.path.realpath(path.parent) == real:
            raise InputError(
                f"{path} was found in the output folder, where the next search would find the "
                "results too: choose another --output-dir, or name the files"
            )


def _check_names(items: Sequence[Item], styles: Sequence[Path], *, mixed: bool) -> None:
    """Check that no two outputs have a name that some file system takes for the same."""
    seen: dict[str, str] = {}
    for content, places, output in items:
        source = str(content) if mixed else f"{content} with {styles[places[0]]}"
        key = unicodedata.normalize("NFC", output.name).casefold()
        other, seen[key] = seen.get(key), source
        if other == source:
            raise InputError(f"{source} is asked for twice: name each file once")
        if other is not None:
            raise InputError(
                f"{other} and {source} would both be written to {output.name}: rename one of the "
                "files, or make them in two calls with different --output-dir"
            )


def _check_outputs(items: Sequence[Item], inputs: Sequence[Path]) -> None:
    """Check that the outputs' names are possible and no inputs."""
    read = {os.path.realpath(path) for path in inputs}
    for item in items:
        if os.path.realpath(item.output) in read:
            raise InputError(f"{item.output} is an input: choose another --output-dir")
        if os.path.isdir(item.output.parent):
            check_free(item.output, overwrite=True)
            continue
        # For a folder that is yet to be made, the nearest one says how long names may be.
        above = next((path for path in item.output.parents if os.path.isdir(path)), Path())
        try:
            (above / item.output.name).lstat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(f"cannot write {item.output}: {error.strerror}") from None


def share_of(items: Sequence[_T], weights: Sequence[float], *, index: int, count: int) -> list[_T]:
    """The part of a list that one of several processes takes.

    The parts are contiguous and join to the list. None is heavier than an even share and the
    heaviest item together; with fewer items than processes some are empty.

    Args:
      items: the whole list, the same in each process.
      weights: how much work each item is, 0 or more.
      index, count: which process of how many, from 0.

    >>> [share_of("abcde", [1, 1, 4, 1, 1], index=index, count=2) for index in (0, 1)]
    [['a', 'b'], ['c', 'd', 'e']]
    """
    if not 0 <= index < count:
        raise ValueError(f"index {index} of {count}")
    if not any(weights):
        weights = [1] * len(items)
    total = sum(weights)
    # An item goes where its middle lies; whole numbers stay exact.
    middles = [2 * end - own for end, own in zip(accumulate(weights), weights, strict=True)]
    parts = [min(int(middle * count // (2 * total)), count - 1) for middle in middles]
    return [item for item, part in zip(items, parts, strict=True) if part == index]
