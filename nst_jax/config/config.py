"""Settings of a run as frozen, keyword-only dataclasses. Standard library only.

``Config`` is what a person sets, nested by concern: the objective (``LossConfig``), the optimiser
(``LBFGS``, ``LBFGSLineSearch`` or ``Adam``), the sizes on the way (``Pyramid``), the start
(``Initial``) and how it is computed (``ExecutionConfig``). Each checks itself. Records, presets'
listings and the command line name every setting flat: ``to_flat``, ``from_flat``, and in short
``Config.of`` and ``config.but``.
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
    check_positive,
    check_words,
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
    """L-BFGS with a fixed step, as Torch's.

    Attributes:
      learning_rate: The step's length. Default: 1.
      memory_size: Pairs that are remembered. Default: 100.
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
    """L-BFGS that searches the length of each step.

    Attributes:
      memory_size: Pairs that are remembered. Default: 10.
    """

    name: ClassVar[Literal["lbfgs-linesearch"]] = "lbfgs-linesearch"
    clip: ClassVar[Literal[False]] = False
    memory_size: int | None = None

    def __post_init__(self) -> None:
        if self.memory_size is not None:
            check_count("memory_size", self.memory_size)


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015).

    Attributes:
      learning_rate: Step size for pixels in [0, pixel_range]. Default: 10/255 of the range.
      beta1, beta2: Decay of the first and second moment.
      epsilon: What is added to the second moment's root.
      clip: Keep pixels in [0, 1] after each step.
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
    """The scales on the way to the result's size.

    Attributes:
      min_size: Longer side of the coarsest scale, at least. The run goes from there to the wanted
        size, each scale starting from the result of the one before; for one image, not for batch
        and sweep. Default: the wanted size alone.
      scale_factor: Ratio of the sizes of neighbouring scales.
      scale_steps: Steps of the scales before the last, the coarsest first; the last number holds
        for the rest. Default: the same as steps for each.
    """

    min_size: int | None = None
    scale_factor: float = 2**0.5
    scale_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.scale_steps, list):  # as JSON has it
            set_fields(self, scale_steps=tuple(self.scale_steps))
        if self.min_size is not None:
            check_count("min_size", self.min_size, most=LARGEST_SIZE)
        if not 1.05 <= self.scale_factor <= FLOAT32_MAX:  # each scale is compiled for itself
            raise InputError(
                f"scale_factor is {self.scale_factor}: expected a finite number from 1.05 on"
            )
        if not isinstance(self.scale_steps, tuple) or not all(map(is_count, self.scale_steps)):
            raise InputError(
                f"scale_steps is {self.scale_steps}: expected whole numbers, 1 or more, at most "
                f"{LARGEST_COUNT}"
            )
        for name in ("scale_factor", "scale_steps"):
            if self.min_size is None and getattr(self, name) != getattr(Pyramid, name):
                raise InputError(
                    f"{name} has no meaning for one scale: name its coarsest by min_size"
                )


@dataclass(frozen=True, kw_only=True)
class Initial:
    """The image to start from.

    Attributes:
      init: Initial image: content, noise, blend (of both), or a file. A script reads the file
        itself and passes the image to stylize.
      noise: Distribution of the noise around the network's mean colour.
      noise_scale: Standard deviation (normal) or half width (uniform) of the noise, for
        pixels in [0, 1].
      noise_ratio: Share of noise in a blend.
    """

    init: str = "content"
    noise: Noise = "normal"
    noise_scale: float = 0.001 / 255
    noise_ratio: float = 0.6

    def __post_init__(self) -> None:
        check_weight("noise_scale", self.noise_scale)
        check_words(self)
        if not 0 <= self.noise_ratio <= 1:
            raise InputError(f"noise_ratio is {self.noise_ratio}: expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a run is computed.

    Attributes:
      convolution: How the network convolves: direct, or winograd with a quarter of the
        multiplications and a little more rounding; auto takes winograd on CPUs only.
      precision: Of the network: float32; tf32 with products of 10 bits, on NVIDIA GPUs only; or
        bfloat16 activations, with half of the memory. Gram matrices are summed in float32 and the
        image is kept in float32 always.
      tile: Longest side of the tiles in which the image is taken, with the same loss and gradient
        to rounding; off for the whole image; auto for tiles where the whole does not fit into the
        memory.
      remat: Compute activations twice rather than keep them: on, off, or auto where the whole
        image does not fit otherwise. Tiles always do so.
    """

    convolution: Convolution = "auto"
    precision: Precision = "float32"
    tile: Tile = "auto"
    remat: Remat = "auto"

    def __post_init__(self) -> None:
        check_words(self)
        if self.tile not in ("auto", "off") and not is_count(self.tile):
            raise InputError(
                f"tile is {self.tile!r}: expected auto, off, or a side in pixels, 1 or more, at "
                f"most {LARGEST_COUNT}"
            )
        if is_count(self.tile) and self.remat == "on":
            raise InputError(
                "remat on has no meaning with tiles, which compute all activations twice: leave "
                "one out"
            )
        if self.precision == "bfloat16" and self.convolution == "winograd":
            raise InputError(
                "convolution winograd is too coarse in bfloat16: choose direct, or another "
                "precision"
            )

    @property
    def evaluation(self) -> Evaluation:
        """How the objective is computed: of the whole image, unless told otherwise.

        What is ``"auto"`` depends on the image and the memory, see ``planner``.
        """
        tile = self.tile if isinstance(self.tile, int) else 0
        remat = self.remat == "on" and not tile
        return Evaluation(tile=tile, remat=remat, precision=self.precision)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run of the optimisation depends on but images, network and seed.

    The default is neural-style-pt's objective started from the content image.

    >>> config = Config(optimizer=Adam(learning_rate=2.0), steps=200)
    >>> config == Config.of(optimizer="adam", learning_rate=2.0, steps=200)
    True
    >>> config.but(optimizer="lbfgs", style_weight=50.0).optimizer
    LBFGS(learning_rate=None, memory_size=None)

    Attributes:
      loss: The objective.
      optimizer: What minimises it, with its own numbers.
      preconditioner: Coordinates in which the optimiser works: the pixels themselves, or (spectral)
        frequencies and colours scaled so that fewer steps are needed.
      steps: Optimisation steps; each evaluates loss and gradient once (line search: at
        least once). The result is the evaluated image of lowest loss.
      pyramid: The scales on the way to the result's size.
      averaging: Decay of a running average of the images, as 0.99 for adam, which is then the
        result in place of the one of lowest loss; 0 for none.
      initial: The image to start from.
      execution: How it is computed.
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
        check_words(self)
        check_count("steps", self.steps)
        if not 0 <= self.averaging <= 0.9999:
            raise InputError(f"averaging is {self.averaging}: expected 0 to 0.9999")

    @classmethod
    def of(cls, **flat: Any) -> "Config":
        """The default with settings by their flat names, see ``from_flat``."""
        return from_flat(flat, base=cls())

    def but(self, **flat: Any) -> "Config":
        """These settings with others by their flat names, see ``from_flat``."""
        return from_flat(flat, base=self)


_SECTIONS = {"loss": LossConfig, "pyramid": Pyramid, "initial": Initial}

_SECTIONS |= {"execution": ExecutionConfig}

# What is one optimiser's own: flat name -> field.
_OPTIMIZER_FIELDS = {
    "learning_rate": "learning_rate",
    "memory_size": "memory_size",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "epsilon",
    "clip": "clip",
}

# What stands for it where the optimiser has no such number.
_UNSET = {flat: getattr(Adam, name, None) for flat, name in _OPTIMIZER_FIELDS.items()}


def flat_types() -> dict[str, Any]:
    """Types of the settings by their flat names, in the order of ``to_flat``."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(Config).items():
        if name == "optimizer":
            own = get_type_hints(LBFGS) | get_type_hints(Adam)
            types["optimizer"] = OptimizerName
            types |= {flat: own[item] for flat, item in _OPTIMIZER_FIELDS.items()}
        else:
            types |= get_type_hints(kind) if name in _SECTIONS else {name: kind}
    return types


def to_flat(config: Config) -> dict[str, Any]:
    """Settings by their flat names, as records have them: every name, in one order.

    What the optimiser has no use for stands with its default.

    >>> to_flat(Config())["optimizer"], to_flat(Config())["adam_beta1"]
    ('lbfgs', 0.9)
    """
    flat: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "optimizer":
            own = {item.name for item in fields(value)}
            flat["optimizer"] = value.name
            for name, item in _OPTIMIZER_FIELDS.items():
                flat[name] = getattr(value, item) if item in own else _UNSET[name]
        elif is_dataclass(value):
            flat |= {item.name: getattr(value, item.name) for item in fields(value)}
        else:
            flat[field.name] = value
    return flat


def from_flat(values: Mapping[str, Any], *, base: Config = Config()) -> Config:
    """Settings by their flat names over others.

    Another optimiser does not take over the numbers of the one before, nor ``min_size=None`` those
    of the scales that fall away.

    >>> from_flat({"steps": 5, "init": "noise"}, base=Config()).initial.init
    'noise'

    Raises:
      InputError: for unknown names, for values that a setting cannot have, and for what has no
        meaning for the optimiser.
    """
    known = to_flat(base)
    for name in values:
        if name not in known:
            raise InputError(f"unknown setting {name!r}: expected one of {', '.join(known)}")
    values = dict(values)
    if values.get("color") == "keep-ycbcr":
        warnings.warn("color keep-ycbcr is the same as keep-yiq: taken as that", stacklevel=3)
        values["color"] = "keep-yiq"
    if values.get("min_size", base.pyramid.min_size) is None:
        base = replace(base, pyramid=Pyramid())
    parts: dict[str, Any] = {"optimizer": _optimizer(values, base.optimizer)}
    for section in _SECTIONS:
        old = getattr(base, section)
        given = {item.name: values[item.name] for item in fields(old) if item.name in values}
        parts[section] = replace(old, **given) if given else old
    plain = {
        name: values[name] for name in ("preconditioner", "steps", "averaging") if name in values
    }
    return replace(base, **parts, **plain)


def _optimizer(values: Mapping[str, Any], base: Optimizer) -> Optimizer:
    """The optimiser of flat settings over another."""
    name = values.get("optimizer", base.name)
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise InputError(f"optimizer is {name!r}: expected one of {', '.join(OPTIMIZERS)}")
    kind, own = OPTIMIZERS[name], {}
    for flat, item in _OPTIMIZER_FIELDS.items():
        if flat not in values:
            continue
        if item in {field.name for field in fields(kind)}:
            own[item] = values[flat]
        elif values[flat] != _UNSET[flat]:
            others = [
                other
                for other, its in OPTIMIZERS.items()
                if item in {field.name for field in fields(its)}
            ]
            raise InputError(
                f"{flat} has no meaning for {name}: leave it out, or choose {' or '.join(others)}"
            )
    return replace(base, **own) if isinstance(base, kind) else kind(**own)
