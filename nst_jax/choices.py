"""How a run is computed: whole, with activations computed twice, or in tiles."""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from nst_jax.config import Adam, Config, Evaluation
from nst_jax.config_checks import LARGEST_COUNT
from nst_jax.layers import TAPS
from nst_jax.lbfgs import MEMORY_DTYPES
from nst_jax.objective import make_loss, of_luminance
from nst_jax.optimizers import make_optimizer
from nst_jax.types import Loss


class ExecutionPlan(NamedTuple):
    """How a run is computed.

    Attributes:
      tile: longest side of a tile, or 0 for the whole picture.
      remat: whether the whole picture's activations are computed twice, block by block.
      recompute_content: whether the content's features are computed again at every step.
      memory_size: pairs that L-BFGS remembers; None for the optimiser's own default.
      memory_dtype: their type, see ``lbfgs``.
    """

    tile: int = 0
    remat: bool = False
    recompute_content: bool = False
    memory_size: int | None = None
    memory_dtype: str | None = None


class Execution(NamedTuple):
    """On what and how a run is computed; each is chosen by itself where it is left out.

    Attributes:
      plan: how the last scale is computed, of a ``MemoryPlan``; by default as
        ``config.execution`` and the free memory have it.
      free: bytes of memory that plans are made for; by default measured at the start.
      mesh: several devices. For one picture: a mesh of ``rows.rows_mesh`` divides it by rows, with
        1 / n of the memory on each; with any other, of ``parallel.make_mesh``, each device has
        the whole picture and computes its share of the tiles. For a batch: its pictures are
        spread over the devices, their number need not divide; one of ``rows.rows_mesh`` divides
        each picture by rows, and with ``lanes`` above 1 the pictures among so many parts of the
        devices.
      together: of a batch, whether all pictures take each step together; by default not on CPUs,
        but always where they are divided by rows.
    """

    plan: ExecutionPlan | None = None
    free: int | None = None
    mesh: Mesh | None = None
    together: bool | None = None


def check_choice(choice: ExecutionPlan) -> None:
    """Check a way to compute that was read from a file.

    Raises:
      ValueError: for one that is none.
    """
    if not 0 <= choice.tile <= LARGEST_COUNT:
        raise ValueError(f"tile is {choice.tile}: expected 0 to {LARGEST_COUNT}")
    if choice.memory_size is not None and not 1 <= choice.memory_size <= LARGEST_COUNT:
        raise ValueError(f"memory_size is {choice.memory_size}: expected 1 to {LARGEST_COUNT}")
    if choice.memory_dtype not in MEMORY_DTYPES:
        known = ", ".join(map(str, MEMORY_DTYPES))
        raise ValueError(f"memory_dtype is {choice.memory_dtype!r}: expected one of {known}")


def evaluation(config: Config, choice: ExecutionPlan) -> Evaluation:
    """How the objective of a config is computed in a chosen way."""
    return Evaluation(
        tile=choice.tile,
        remat=choice.remat,
        recompute_content=choice.recompute_content,
        precision=config.execution.precision,
    )


def config_loss(config: Config, choice: ExecutionPlan, *, mesh: Mesh | None = None) -> Loss:
    """The objective of a config, computed in a chosen way, by devices of a mesh if any."""
    loss = make_loss(config.loss, evaluation=evaluation(config, choice), mesh=mesh)
    return of_luminance(loss) if config.loss.color == "luminance" else loss


def make_config_optimizer(config: Config, choice: ExecutionPlan = ExecutionPlan()) -> Any:
    """The optimiser of a config with the chosen memory."""
    optimizer, own = config.optimizer, {}
    if isinstance(optimizer, Adam):
        own = {"betas": (optimizer.beta1, optimizer.beta2), "epsilon": optimizer.epsilon}
    else:
        own = {"memory_size": choice.memory_size or optimizer.memory_size}
    return make_optimizer(
        optimizer.name,
        pixel_range=config.loss.pixel_range,
        preconditioner=config.preconditioner,
        memory_dtype=choice.memory_dtype,
        **own,
    )


def kernel_options(
    config: Config, *, by_rows: bool = False, any_layer: bool = False
) -> dict[str, Any]:
    """How a config prepares the network's kernels, see ``convolution.prepare_kernels``.

    Args:
      config: the settings.
      by_rows: whether pictures are divided by rows among devices, see ``rows``.
      any_layer: for an objective of one's own, which may ask for any layer, in any precision.
    """
    convolution, narrow = config.execution.convolution, config.execution.precision == "bfloat16"
    if convolution == "auto":  # accelerators' libraries choose for themselves
        plain = narrow or by_rows or jax.default_backend() != "cpu"
        convolution = "direct" if plain else "winograd"
    return {
        "convolution": convolution,
        "layers": TAPS if any_layer else config.loss.layers,
        "dtype": "bfloat16" if narrow and not any_layer else None,
    }


def choice_in_words(choice: ExecutionPlan) -> str:
    """How a run is computed, in words.

    >>> choice_in_words(ExecutionPlan(tile=512, memory_size=10, memory_dtype="bfloat16"))
    'tiles of 512 px, L-BFGS remembers 10 pairs in bfloat16'
    """
    words = ["the whole picture", "activations computed twice"] if choice.remat else []
    words = words or [f"tiles of {choice.tile} px" if choice.tile else "the whole picture"]
    if choice.recompute_content:
        words.append("content features computed again")
    if choice.memory_size is not None:
        kind = f" in {choice.memory_dtype}" if choice.memory_dtype else ""
        words.append(f"L-BFGS remembers {choice.memory_size} pairs{kind}")
    return ", ".join(words)
