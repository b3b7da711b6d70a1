"""Input images of a batch (from files, folders, lists and patterns) and names of its outputs.

Uses only the standard library; no image is opened here.
"""

import glob
import os
import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

from nst_jax.errors import InputError
from nst_jax.system.files import check_output_path
from nst_jax.system.streams import STANDARD
from nst_jax.transfer.pairing import Pairing, pair

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2"),
)

_T = TypeVar("_T")


class Source(NamedTuple):
    """An input image file.

    Attributes:
      path: the file.
      searched: whether it was found in a folder or by a pattern, and not named directly.
    """

    path: Path
    searched: bool


class Item(NamedTuple):
    """One output image of a batch.

    Attributes:
      content: the content image's file.
      styles: indices of its styles in the list of style files.
      output: the file to write.
    """

    content: Path
    styles: tuple[int, ...]
    output: Path


def expand(arguments: Sequence[Path], *, what: str) -> list[Source]:
    """Expand command line arguments into image files, in the order of the arguments.

    An argument may be:

    - a file;
    - a folder: its images, recognised by suffix and sorted by name, without hidden files and
      subfolders;
    - a ``.txt`` file in UTF-8 that lists one file a line, relative to the list's folder; blank
      lines and lines that start with ``#`` are ignored;
    - if no such path exists, a pattern with ``*``, ``?``, ``[`` or ``**``: the matching files,
      sorted, without hidden files.

    Args:
      arguments: paths as given on the command line.
      what: role of the images in messages, such as "content".

    Raises:
      InputError: if an argument yields no file, or a file does not exist.
    """
    if not arguments:
        hint = ", before --style" if what == "content" else ""
        raise InputError(f"no {what} image: expected files, folders, lists or patterns{hint}")
    return [source for path in arguments for source in _expand_one(Path(path), what=what)]


def _expand_one(path: Path, *, what: str) -> list[Source]:
    if path == STANDARD:
        raise InputError(f"- is a single image: expected files, folders or lists for {what}")
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
            f"the folder {folder} contains no {what} image: expected files with one of the "
            f"suffixes {' '.join(IMAGE_SUFFIXES)}"
        )
    return files


def _in_list(path: Path, *, what: str) -> list[Path]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the list {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # never in a file name, but in Latin text encoded as UTF-16
        raise InputError(f"the list {path} is not UTF-8 text: save it in that encoding")
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
        raise InputError(f"the list {path} names no {what} image: expected one file per line")
    return files


def _matching(pattern: Path, *, what: str) -> list[Path]:
    # Brackets in an existing folder's name are literal, as in "photos [2020]/*.jpg".
    folder = next((parent for parent in pattern.parents if os.path.isdir(parent)), Path())
    rest = str(pattern.relative_to(folder))
    found = {folder / name for name in glob.glob(rest, root_dir=folder, recursive=True)}
    files = sorted((file for file in found if os.path.isfile(file)), key=lambda file: file.parts)
    if not files:
        raise InputError(
            f"no file matches {pattern}: expected {what} images; check the pattern and the folder "
            "it is relative to"
        )
    return files


def plan_items(
    contents: Sequence[Source], styles: Sequence[Source], *, pairing: Pairing, folder: Path
) -> list[Item]:
    """List the output images and name their files.

    Args:
      contents, styles: the input images.
      pairing: "all" gives every content a mix of all styles; "pairs" gives the n-th content the
        n-th style; "grid" gives every content every style, one content after another.
      folder: output folder; it need not exist.

    Returns:
      An ``Item`` for each output, named after its content and styles: ``content__style.png`` or
      ``content__style+style.png``.

    Raises:
      InputError: if lists to pair have unequal lengths; if two outputs have the same name; if the
        file system rejects a name; if an output is an input; or if an input was found by searching
        ``folder``, because the next search would find the outputs there.
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
    """Check that a second run will not take outputs for inputs."""
    real = os.path.realpath(folder)
    for path, searched in sources:
        if searched and os.path.realpath(path.parent) == real:
            raise InputError(
                f"{path} was found in the output folder, and a second run would also find the "
                "results there: choose another --output-dir, or name the files"
            )


def _check_names(items: Sequence[Item], styles: Sequence[Path], *, mixed: bool) -> None:
    """Check that no two outputs have names that some file system does not distinguish."""
    seen: dict[str, str] = {}
    for content, places, output in items:
        source = str(content) if mixed else f"{content} with {styles[places[0]]}"
        # macOS normalises Unicode in names; macOS and Windows ignore case.
        key = unicodedata.normalize("NFC", output.name).casefold()
        other, seen[key] = seen.get(key), source
        if other == source:
            raise InputError(f"{source} is given twice: name each file once")
        if other is not None:
            raise InputError(
                f"{other} and {source} would both be written to {output.name}: rename one of the "
                "files, or run the command twice with different --output-dir"
            )


def _check_outputs(items: Sequence[Item], inputs: Sequence[Path]) -> None:
    """Check that the outputs have valid names and are not inputs."""
    input_paths = {os.path.realpath(path) for path in inputs}
    for item in items:
        if os.path.realpath(item.output) in input_paths:
            raise InputError(f"{item.output} is an input: choose another --output-dir")
        if os.path.isdir(item.output.parent):
            check_output_path(item.output, overwrite=True)
            continue
        # The output folder does not exist yet: its nearest parent limits the length of names.
        parent = next((path for path in item.output.parents if os.path.isdir(path)), Path())
        try:
            (parent / item.output.name).lstat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(f"cannot write {item.output}: {error.strerror}") from None


def process_share(
    items: Sequence[_T], weights: Sequence[float], *, index: int, count: int
) -> list[_T]:
    """Return the part of a list that one of several processes works on.

    The parts are contiguous and together form the list. No part exceeds ``sum(weights) / count +
    max(weights)``; with fewer items than processes some parts are empty.

    Args:
      items: the whole list, the same in each process.
      weights: work of each item, 0 or more.
      index, count: index of this process, from 0, and number of processes.

    >>> [process_share("abcde", [1, 1, 4, 1, 1], index=index, count=2) for index in (0, 1)]
    [['a', 'b'], ['c', 'd', 'e']]
    """
    if not 0 <= index < count:
        raise ValueError(f"index is {index}: expected 0 to {count - 1}")
    if not any(weights):
        weights = [1] * len(items)
    total = sum(weights)
    # Laid end to end, the items span [0, total]. Each goes to the part that contains its midpoint.
    # Midpoints are doubled so that integer weights are handled exactly.
    midpoints = [2 * end - weight for end, weight in zip(accumulate(weights), weights, strict=True)]
    parts = [min(int(point * count // (2 * total)), count - 1) for point in midpoints]
    return [item for item, part in zip(items, parts, strict=True) if part == index]
