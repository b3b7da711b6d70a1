"""Options of the command ``batch``, from which tyro makes the command line.

Standard library and tyro only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from nst_jax.options import RunOptions, StyleOptions


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Several processes, on one machine or many, that share the work.

    Attributes:
      distributed: Be one of several processes, each of which takes its part of the pictures. SLURM,
        Open MPI, Kubernetes and Cloud TPU tell which one; elsewhere name the next three.
      coordinator: Address of process 0, HOST:PORT.
      process_count: How many processes there are.
      process_index: Which one this is, from 0.
    """

    distributed: Annotated[bool, FlagCreatePairsOff] = False
    coordinator: str | None = None
    process_count: int | None = None
    process_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Stylize many pictures.

    Writes CONTENT__STYLE.png for each, and manifest.jsonl with a line for each. Started again, it
    makes only what is missing. Several styles without --pair and --grid are mixed, as by stylize.

    Attributes:
      contents: The content pictures: files, folders, quoted patterns, and .txt files that list one
        picture a line; name them first.
      output_dir: Folder for the results; it is made where it does not exist.
      pair: Give each content the style at its place: as many styles as contents.
      grid: Make every content with every style.
      batch_size: How many pictures to compute at once, at most: auto for as many as fit into the
        memory and are of use. On CPUs each has a core at least.
      size: Longer side of the results in pixels; may enlarge.
      checkpoint: Keep this command line in a folder, so that 'nst-jax resume' can go on with the
        pictures that are missing.
      bit_depth: Bits a channel of the results.
      styles: The styles.
      run: Settings and weights.
      processes: Several processes.
    """

    contents: Positional[tuple[Path, ...]]
    output_dir: Annotated[Path, arg(aliases=["-o"])]
    pair: Annotated[bool, FlagCreatePairsOff] = False
    grid: Annotated[bool, FlagCreatePairsOff] = False
    batch_size: int | Literal["auto"] = "auto"
    size: int = 512
    checkpoint: Path | None = None
    bit_depth: Literal[8, 16] = 8
    styles: OmitArgPrefixes[StyleOptions]
    run: OmitArgPrefixes[RunOptions] = RunOptions()
    processes: OmitArgPrefixes[ProcessOptions] = ProcessOptions()
