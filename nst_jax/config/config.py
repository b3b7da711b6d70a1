"""Settings of a run as frozen, keyword-only dataclasses. Standard library only.

``Config`` nests the settings by concern: the objective (``LossConfig``), the optimiser (``LBFGS``,
``LBFGSLineSearch`` or ``Adam``), the coarse-to-fine scales (``Pyramid``), the initial image
(``Initial``) and the computation (``ExecutionConfig``). Each dataclass checks its own fields.

Records, the listing of presets and the command line use flat names instead, without nesting:
``to_flat`` and ``from_flat`` convert, ``Config.of`` and ``config.but`` are shorthands.

The docstrings of the fields are the texts of ``--help``.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from nst_jax.config.checks import (
    FLOAT32_MAX,
    LARGEST_COUNT,
    LARGEST_SIZE,
    check_count,
    check_literals,
    check_positive,
    is_count,
    set_fields,
)
from nst_jax.config.factors import check_weight
from nst_jax.config.loss import Evaluation, LossConfig, Precision
from nst_jax.errors import InputError

Noise = Literal["normal", "uniform"]

Preconditioner = Literal["none", "spectral"]

Convolution = Literal["auto", "direct", "winograd"]

Tile = int | Literal["auto", "off"]

Remat = Literal["auto", "on", "off"]

INITS = ("content", "noise", "blend")


@dataclass(frozen=True, kw_only=True)
class LBFGS:
    """L-BFGS with a fixed step length, as in ``torch.optim.LBFGS``.

    Attributes:
      learning_rate: Step length. Default: 1.
      memory_size: Number of stored (s, y) pairs. Default: 100.
    """

    name: ClassVar[Literal["lbfgs"]] = "lbfgs"
    clip: ClassVar[Literal[False]] = False
    learning_rate: float | None = None
    memory_size: int | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        if self.memory_size is not None:
            check_count("memory_size", self.memory_size)


@dataclass(frozen=True, kw_only=True)
class LBFGSLineSearch:
    """L-BFGS with a line search for the length of each step.

    Attributes:
      memory_size: Number of stored (s, y) pairs. Default: 10.
    """

    name: ClassVar[Literal["lbfgs-linesearch"]] = "lbfgs-linesearch"
    clip: ClassVar[Literal[False]] = False
    memory_size: int | None = None

    def __post_init__(self) -> None:
        if self.memory_size is not None:
            check_count("memory_size", self.memory_size)


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1).

    Attributes:
      learning_rate: Step size for pixels in [0, pixel_range]. Default: 10/255 of the range.
      beta1, beta2: Decay rates of the running means of the gradient and of its square.
      epsilon: Added to the root of the mean squared gradient.
      clip: Clip pixels to [0, 1] after each step.
    """

    name: ClassVar[Literal["adam"]] = "adam"
    learning_rate: float | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: bool = False

    def __post_init__(self) -> None:
        if self.learning_rate is not None:
            check_positive("learning_rate", self.learning_rate)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 0.999999:
                raise InputError(f"adam_{name} is {getattr(self, name)}: expected 0 to 0.999999")
        check_positive("adam_epsilon", self.epsilon)


Optimizer = LBFGS | LBFGSLineSearch | Adam

OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in get_args(Optimizer)}

OptimizerName = Literal["lbfgs", "lbfgs-linesearch", "adam"]


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """The scales from coarse to fine; each starts from the result of the one before.

    Attributes:
      min_size: Start at a coarse scale, with a longer side of at least this many pixels, and
        enlarge up to the final size. Not for batch and sweep. Default: the final size only.
      scale_factor: Ratio of the sizes of successive scales.
      scale_steps: Steps at each scale before the last, coarsest first; the last number is repeated
        for the remaining scales. Default: the value of steps.
    """

    min_size: int | None = None
    scale_factor: float = 2**0.5
    scale_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.scale_steps, list):  # from JSON
            set_fields(self, scale_steps=tuple(self.scale_steps))
        if self.min_size is not None:
            check_count("min_size", self.min_size, maximum=LARGEST_SIZE)
        # At least 1.05: each scale compiles its own program, so a pyramid of very many scales
        # would spend its time on compilation.
        if not 1.05 <= self.scale_factor <= FLOAT32_MAX:
            raise InputError(
                f"scale_factor is {self.scale_factor}: expected a finite number, 1.05 or more"
            )
        if not isinstance(self.scale_steps, tuple) or not all(map(is_count, self.scale_steps)):
            raise InputError(
                f"scale_steps is {self.scale_steps}: expected whole numbers, 1 or more, at most "
                f"{LARGEST_COUNT}"
            )
        for name in ("scale_factor", "scale_steps"):
            if self.min_size is None and getattr(self, name) != getattr(Pyramid, name):
                raise InputError(
                    f"{name} has no meaning for one scale: set min_size, the coarsest scale"
                )


@dataclass(frozen=True, kw_only=True)
class Initial:
    """The initial image.

    Attributes:
      init: Initial image: content, noise, blend (a mix of both), or an image file. In Python, read
        the file yourself and pass the image to stylize.
      noise: Distribution of the noise around the network's mean colour.
      noise_scale: Standard deviation (normal) or half width (uniform) of the noise, for
        pixels in [0, 1].
      noise_ratio: Fraction of noise in a blend, from 0 to 1.
    """

    init: str = "content"
    noise: Noise = "normal"
    noise_scale: float = 0.001 / 255
    noise_ratio: float = 0.6

    def __post_init__(self) -> None:
        check_weight("noise_scale", self.noise_scale)
        check_literals(self)
        if not 0 <= self.noise_ratio <= 1:
            raise InputError(f"noise_ratio is {self.noise_ratio}: expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a run is computed.

    Attributes:
      convolution: Algorithm of the network's convolutions: direct, or winograd with a quarter of
        the multiplications and slightly larger rounding errors. auto uses winograd on CPUs only.
      precision: Precision of the network: float32, tf32 (10-bit mantissa, NVIDIA GPUs only), or
        bfloat16 (half the memory). The image and the sums of Gram matrices are always float32.
      tile: Compute in tiles of at most this many pixels a side; loss and gradient are those of the
        whole image up to rounding. off never tiles, auto only if the whole image does not fit into
        memory.
      remat: Recompute activations in the backward pass to save memory (gradient checkpointing):
        on, off, or auto, only if the image would not fit otherwise. Tiles always do this.
    """

    convolution: Convolution = "auto"
    precision: Precision = "float32"
    tile: Tile = "auto"
    remat: Remat = "auto"

    def __post_init__(self) -> None:
        check_literals(self)
        if self.tile not in ("auto", "off") and not is_count(self.tile):
            raise InputError(
                f"tile is {self.tile!r}: expected auto, off, or a side in pixels, 1 or more, at "
                f"most {LARGEST_COUNT}"
            )
        if is_count(self.tile) and self.remat == "on":
            raise InputError(
                "remat on has no meaning with tiles, which always recompute activations: leave "
                "one out"
            )
        if self.precision == "bfloat16" and self.convolution == "winograd":
            raise InputError(
                "convolution winograd is too coarse in bfloat16: choose direct, or another "
                "precision"
            )

    @property
    def evaluation(self) -> Evaluation:
        """How the objective is computed, with ``"auto"`` taken to mean the whole image.

        ``planner`` resolves ``"auto"`` from the size of the image and the available memory.
        """
        tile = self.tile if isinstance(self.tile, int) else 0
        remat = self.remat == "on" and not tile
        return Evaluation(tile=tile, remat=remat, precision=self.precision)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of an optimisation; images, network and seed are separate arguments.

    The defaults are those of neural-style-pt, started from the content image.

    >>> config = Config(optimizer=Adam(learning_rate=2.0), steps=200)
    >>> config == Config.of(optimizer="adam", learning_rate=2.0, steps=200)
    True
    >>> config.but(optimizer="lbfgs", style_weight=50.0).optimizer
    LBFGS(learning_rate=None, memory_size=None)

    Attributes:
      loss: The objective.
      optimizer: The optimiser and its parameters.
      preconditioner: Coordinates of the optimisation: pixels (none), or frequencies and colours
        scaled such that fewer steps are needed (spectral).
      steps: Optimisation steps; each evaluates loss and gradient once (with line search: at
        least once). The result is the evaluated image of lowest loss.
      pyramid: The scales from coarse to fine.
      averaging: Return a running average of the images with this decay, for example 0.99 for adam,
        instead of the image of lowest loss; 0 turns it off.
      initial: The initial image.
      execution: How the run is computed.
    """

    loss: LossConfig = LossConfig()
    optimizer: Optimizer = LBFGS()
    preconditioner: Preconditioner = "none"
    steps: int = 1000
    pyramid: Pyramid = Pyramid()
    averaging: float = 0.0
    initial: Initial = Initial()
    execution: ExecutionConfig = ExecutionConfig()

    def __post_init__(self) -> None:
        check_literals(self)
        check_count("steps", self.steps)
        if not 0 <= self.averaging <= 0.9999:
            raise InputError(f"averaging is {self.averaging}: expected 0 to 0.9999")

    @classmethod
    def of(cls, **flat: Any) -> "Config":
        """The default settings with some replaced, by their flat names, see ``from_flat``."""
        return from_flat(flat, base=cls())

    def but(self, **flat: Any) -> "Config":
        """These settings with some replaced, by their flat names, see ``from_flat``."""
        return from_flat(flat, base=self)


# Field of Config -> nested dataclass, all but the optimiser.
_SECTIONS = {
    "loss": LossConfig,
    "pyramid": Pyramid,
    "initial": Initial,
    "execution": ExecutionConfig,
}

# Settings of the optimisers: flat name -> field of the optimiser's dataclass.
_OPTIMIZER_FIELDS = {
    "learning_rate": "learning_rate",
    "memory_size": "memory_size",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "epsilon",
    "clip": "clip",
}

# The value that to_flat reports if the optimiser has no such field.
_UNSET = {flat: getattr(Adam, name, None) for flat, name in _OPTIMIZER_FIELDS.items()}


def flat_types() -> dict[str, Any]:
    """Types of all settings by flat name, in the order of ``to_flat``."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(Config).items():
        if name == "optimizer":
            hints = get_type_hints(LBFGS) | get_type_hints(Adam)
            types["optimizer"] = OptimizerName
            types |= {flat: hints[field] for flat, field in _OPTIMIZER_FIELDS.items()}
        else:
            types |= get_type_hints(kind) if name in _SECTIONS else {name: kind}
    return types


def to_flat(config: Config) -> dict[str, Any]:
    """Convert settings to a dictionary by flat name, as in records.

    The dictionary always has all names in the same order. Settings that do not apply to the
    optimiser have their default value.

    >>> to_flat(Config())["optimizer"], to_flat(Config())["adam_beta1"]
    ('lbfgs', 0.9)
    """
    flat: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "optimizer":
            known = {item.name for item in fields(value)}
            flat["optimizer"] = value.name
            for name, item in _OPTIMIZER_FIELDS.items():
                flat[name] = getattr(value, item) if item in known else _UNSET[name]
        elif is_dataclass(value):
            flat |= {item.name: getattr(value, item.name) for item in fields(value)}
        else:
            flat[field.name] = value
    return flat


def from_flat(values: Mapping[str, Any], *, base: Config = Config()) -> Config:
    """Replace settings by their flat names.

    A new optimiser starts from its own defaults, not from the parameters of the optimiser in
    ``base``; ``min_size=None`` also resets the other settings of the scales.

    >>> from_flat({"steps": 5, "init": "noise"}, base=Config()).initial.init
    'noise'

    Args:
      values: flat name -> value.
      base: the settings to start from.

    Raises:
      InputError: for unknown names, invalid values, and settings that do not apply to the
        optimiser.
    """
    known = to_flat(base)
    for name in values:
        if name not in known:
            raise InputError(f"unknown setting {name!r}: expected one of {', '.join(known)}")
    values = dict(values)
    if values.get("color") == "keep-ycbcr":
        # Older records have this name: Y'CbCr and Y'IQ chroma span the same plane.
        warnings.warn("color keep-ycbcr is the same as keep-yiq: using that", stacklevel=3)
        values["color"] = "keep-yiq"
    if values.get("min_size", base.pyramid.min_size) is None:
        base = replace(base, pyramid=Pyramid())
    parts: dict[str, Any] = {"optimizer": _make_optimizer_settings(values, base.optimizer)}
    for section in _SECTIONS:
        old = getattr(base, section)
        given = {item.name: values[item.name] for item in fields(old) if item.name in values}
        parts[section] = replace(old, **given) if given else old
    plain = {
        name: values[name] for name in ("preconditioner", "steps", "averaging") if name in values
    }
    return replace(base, **parts, **plain)


def _make_optimizer_settings(values: Mapping[str, Any], base: Optimizer) -> Optimizer:
    """The optimiser that flat settings select and change."""
    name = values.get("optimizer", base.name)
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise InputError(f"optimizer is {name!r}: expected one of {', '.join(OPTIMIZERS)}")
    kind, given = OPTIMIZERS[name], {}
    for flat, item in _OPTIMIZER_FIELDS.items():
        if flat not in values:
            continue
        if item in {field.name for field in fields(kind)}:
            given[item] = values[flat]
        elif values[flat] != _UNSET[flat]:  # a full record has all names, so its defaults pass
            others = [
                other
                for other, cls in OPTIMIZERS.items()
                if item in {field.name for field in fields(cls)}
            ]
            raise InputError(
                f"{flat} has no meaning for {name}: leave it out, or choose {' or '.join(others)}"
            )
    return replace(base, **given) if isinstance(base, kind) else kind(**given)
