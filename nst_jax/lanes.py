"""A batch: several runs of one structure, of other pictures of one size or with other numbers.

Its elements advance together, by ``vmap``, which keeps an accelerator busy; or apart, each by the
very program of a run alone, which on CPUs is as fast and gives the same bits. What they have in
common is computed once: kernels, a content's features, a style's Gram matrices. Apart it is there
once, too; together a copy for each element of what is not common to all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.choices import Execution
from nst_jax.config import Config, to_flat
from nst_jax.errors import InputError
from nst_jax.lane_plans import Element, apart, together
from nst_jax.loop import Callback, Progress, as_callback, iterate
from nst_jax.parallel import flat_mesh
from nst_jax.rows import divides_rows
from nst_jax.transfer import Result
from nst_jax.types import Array, Info, State

# What may differ between the elements of one batch: numbers, and what only the start depends on.
ELEMENT_NUMBERS: dict[str, Any] = {
    "content_weight": 1.0,
    "style_weight": 1.0,
    "tv_weight": 1.0,
    "learning_rate": None,
    "init": "content",
    "noise": "normal",
    "noise_scale": 0.0,
    "noise_ratio": 0.0,
}


def structure(config: Config) -> Config:
    """A config without what may differ in a batch: equal for those of one program.

    >>> structure(Config.of(style_weight=1.0)) == structure(Config.of(style_weight=2.0))
    True
    >>> structure(Config(steps=1)) == structure(Config(steps=2))
    False
    """
    plain = {
        name: tuple((part, 1.0) for part, _ in to_flat(config)[name])
        for name in ("content_layers", "style_layers", "content_losses", "style_losses")
    }
    return config.but(**ELEMENT_NUMBERS, **plain)


def run_batch(
    elements: Sequence[Element],
    *,
    execution: Execution = Execution(),
    width: int = 1,
    distinct: tuple[str, ...] = (),
    started: float | None = None,
    callback: Callable[[Progress], bool | None] | Callback | None = None,
    with_pictures: bool = False,
) -> Result:
    """Run elements that differ in pictures of one size, or in numbers: factors, rates, noise.

    Args:
      elements: their configs have equal ``steps``, and have passed ``check_batch``.
      execution: ``mesh`` and ``together`` are read. Where the mesh divides pictures by rows, the
        elements' problems are of it.
      width: elements to fill up to where they are together, so that a smaller last batch has the
        program of the others.
      distinct: fields of the targets that get a leading axis although all elements may share them,
        for the same reason.
      started: ``time.perf_counter()`` when the work began.
      callback: as in ``transfer.stylize``; what it sees has a leading axis.
      with_pictures: whether the callback looks at ``Progress.image``, which else is None.

    Returns:
      A ``Result`` whose ``image``, ``loss``, ``status`` and ``recoveries`` have an entry for each
      element, as have the leaves of ``history`` on their second axis. ``state`` is None: L-BFGS's
      may be larger than all else.

      An element whose loss or gradient is not finite does not change its neighbours. It keeps its
      best picture, repeats its last numbers and has the status ``"diverged"``; there are no
      recoveries. Run it once more by ``transfer.stylize``, which goes on from the best picture.
    """
    mesh, told = execution.mesh, as_callback(callback)
    if not divides_rows(mesh):
        mesh = mesh and flat_mesh(mesh)
    if steps_together(execution):
        program = together(elements, mesh=mesh, width=width, distinct=distinct)
    else:
        program = apart(elements, mesh=mesh)

    def report(progress: Progress) -> bool | None:
        assert told is not None
        return told.call(_seen(progress, elements, with_pictures=with_pictures))

    last: Info | None = None

    def take(state: State, **options: Any) -> tuple[State, Info]:
        nonlocal last
        state, info = program.take(state, **options)
        info = _repeat_ends(jax.device_get(info), before=last)
        if options["num_steps"]:
            last = jax.tree.map(lambda x: x[-1], info)
        return state, info

    ended = iterate(
        take,
        program.state,
        steps=elements[0].config.steps,
        started=started,
        callback=told and Callback(report, told.every),
    )
    count = len(elements)
    losses, frozen = (
        _entries(field)[:count] for field in (ended.state.best_loss, ended.state.frozen)
    )
    return Result(
        image=_finished(ended.state.best_image, elements),
        loss=losses,
        state=None,
        history=jax.tree.map(lambda x: x[:, :count], ended.history),
        status=tuple("diverged" if one else ended.status for one in frozen),
        timing=ended.timing,
        recoveries=(0,) * count,
    )


def steps_together(execution: Execution) -> bool:
    """Whether all elements of a batch take each step together."""
    if execution.together is None:
        return divides_rows(execution.mesh) or jax.default_backend() != "cpu"
    return execution.together


def _seen(progress: Progress, elements: Sequence[Element], *, with_pictures: bool) -> Progress:
    """What the callback of a batch sees."""
    info = jax.tree.map(lambda x: x[: len(elements)], progress.info)
    image: Any = _finished(progress.image, elements) if with_pictures else None
    return progress._replace(info=info, image=image)


def _finished(field: Any, elements: Sequence[Element]) -> Array:
    """The pictures to be shown, ``[B, H, W, 3]``, from a field of a state."""
    images = _entries(field, elements[0].problem.shape)[: len(elements)]
    pairs = zip(elements, images, strict=True)
    return jnp.stack([element.problem.finish(jnp.asarray(image)) for element, image in pairs])


def check_single(config: Config) -> None:
    """Refuse settings of runs that take one picture at a time.

    Raises:
      InputError: for ``min_size`` and ``averaging``.
    """
    for name in ("min_size", "averaging"):
        if to_flat(config)[name]:
            raise InputError(f"{name} is for stylize, one picture at a time: leave it out")


def check_batch(configs: Sequence[Config], *, execution: Execution = Execution()) -> None:
    """Check that configs differ only in what the elements of a batch may differ in.

    Raises:
      InputError: where they do, and for settings that batches do not have.
    """
    for config in configs:
        check_single(config)
    if execution.together is False and divides_rows(execution.mesh):
        raise InputError(
            "pictures that are divided by rows take each step together: leave out together, or use "
            "make_mesh"
        )
    first = to_flat(structure(configs[0]))
    for number, config in enumerate(configs, start=1):
        found = to_flat(structure(config))
        other = [name for name in first if found[name] != first[name]]
        if other:
            raise InputError(
                f"config {number} differs from the first in {', '.join(other)}: expected the same "
                "but for factors of terms and layers, learning rate and noise"
            )


def each_result(result: Result) -> list[Result]:
    """The results of a batch as ``transfer.stylize`` gives them, with their own histories."""

    def of_element(index: int) -> Result:
        history = jax.tree.map(lambda x: x[:, index], result.history)
        return result._replace(
            image=result.image[index],
            loss=float(result.loss[index]),
            history=_cut(history) if result.status[index] == "diverged" else history,
            status=result.status[index],
            recoveries=result.recoveries[index],
        )

    return [of_element(index) for index in range(len(result.status))]


def _cut(history: Info) -> Info:
    """The history of an element up to where it diverged, without the repetitions."""
    finite = np.isfinite(history.loss) & np.isfinite(history.grad_norm)
    steps = int(np.flatnonzero(finite)[-1] if finite.any() else -1) + 2
    return jax.tree.map(lambda x: x[:steps], history)


def _repeat_ends(info: Info, *, before: Info | None) -> Info:
    """Diagnostics ``[steps, B]`` in which elements that have ended repeat their last numbers.

    A device whose elements have all ended leaves the rest empty, as has one by itself.

    Args:
      info: of one call; what is filled has at least one evaluation.
      before: the last row of the call before.
    """
    rows = np.arange(len(info.loss))[:, None]
    latest = np.maximum.accumulate(np.where(info.evaluations > 0, rows, -1), axis=0)
    before = jax.tree.map(lambda x: x[0], info) if before is None else before

    def of_leaf(x: np.ndarray, old: np.ndarray) -> np.ndarray:
        return np.where(latest < 0, old[None], np.take_along_axis(x, np.maximum(latest, 0), axis=0))

    return jax.tree.map(of_leaf, info, before)


def _entries(field: Any, tail: tuple[int, ...] = ()) -> np.ndarray:
    """The elements' entries of a state's field, ``[B, *tail]``, on the host."""
    parts = jax.device_get(field if isinstance(field, list) else [field])
    return np.concatenate([part.reshape(-1, *tail) for part in parts])
