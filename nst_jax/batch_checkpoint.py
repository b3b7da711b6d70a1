"""A batch to and from its checkpoints: its options, and where the pictures stand that are made."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from nst_jax import checkpoint
from nst_jax.annotations import check_type
from nst_jax.batch_options import Batch
from nst_jax.checkpoint_folder import begin_folder
from nst_jax.checkpoint_records import (
    absolute,
    common_record,
    foreign_is_input_error,
    position_record,
    restore_config,
    restore_position,
    saved_weights,
    try_to_save,
)
from nst_jax.config import to_flat
from nst_jax.options import RunOptions, StyleOptions
from nst_jax.packing import as_tuples, pack, unpack
from nst_jax.position import Position
from nst_jax.weights import Weights


class Composition(NamedTuple):
    """Pictures that are made together, and where they stand.

    Attributes:
      jobs: their fingerprints, in their order; none before the first are made.
      width: how many there may be, see ``lanes.stylize_lanes``.
      position: where they stand.
    """

    jobs: tuple[str, ...]
    width: int
    position: Position | None


Save = Callable[[Composition], bool]


def batch_saver(options: Batch, *, weights: Weights, resumed: bool) -> Save:
    """A function that saves where a batch stands, see ``checkpoint_records.try_to_save``.

    Args:
      options: the command's; they name the folder.
      weights: the network.
      resumed: whether the folder holds checkpoints of this batch already.

    Raises:
      InputError: where the folder cannot be written.
    """
    folder = options.checkpoint
    assert folder is not None
    digest = checkpoint.inputs_digest(folder) if resumed else begin_folder(folder, {})
    own = replace(
        options,
        contents=_absolute(options.contents),
        output_dir=absolute(options.output_dir),
        styles=replace(options.styles, style=_absolute(options.styles.style)),
    )
    run = asdict(own.run) | {"config": to_flat(own.run.config)}
    plain = asdict(own) | {"checkpoint": None, "processes": None, "run": run}
    record = common_record(weights) | {"kind": "batch", "options": pack(plain, {}, name="options")}

    def save(composition: Composition) -> bool:
        arrays: dict[str, Any] = {}
        position = position_record(composition.position, arrays)
        standing = {"jobs": composition.jobs, "width": composition.width, "position": position}
        return try_to_save(folder, record | standing, arrays, digest=digest)

    return save


def restore_batch(
    saved: checkpoint.Saved, folder: Path, *, weights: Path | None
) -> tuple[Batch, Composition]:
    """What ``batch_saver`` has saved.

    Args:
      saved: a checkpoint of its.
      folder: where it is now.
      weights: the network's file, if anyone names it.

    Raises:
      InputError: for a record that it does not write.
    """
    path = saved_weights(saved, weights)
    with foreign_is_input_error(saved):
        plain = unpack(saved.record["options"], {})
        run = plain.pop("run")
        config = restore_config(run["config"])
        styles = {name: as_tuples(value) for name, value in plain.pop("styles").items()}
        del plain["processes"]
        options = Batch(
            **plain
            | {
                "contents": as_tuples(plain["contents"]),
                "checkpoint": folder,
                "styles": StyleOptions(**styles),
                "run": RunOptions(**run | {"config": config, "weights": path}),
            }
        )
        position = restore_position(saved.record["position"], saved.arrays)
        composition = Composition(tuple(saved.record["jobs"]), saved.record["width"], position)
        check_type(options, Batch, name="options")
        check_type(composition, Composition, name="composition")
        if composition.jobs and composition.width < 1:
            raise ValueError(f"width is {composition.width}: expected 1 or more")
        return options, composition


def _absolute(paths: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(map(absolute, paths))
