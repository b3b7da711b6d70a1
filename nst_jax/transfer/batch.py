"""Batches of images: one style for all, one style each, or every content with every style.

The elements of a batch differ in their images, all of one size, and in numbers: weights, learning
rates, noise. Everything else must be equal, because it shapes the compiled program. The elements
take each step together (``vmap``), which keeps an accelerator busy; or apart, each with the program
of a single run, which on CPUs is as fast and gives the same bits as single runs. What they share is
computed once: kernels, the features of a content, the Gram matrices of a style.

Contract: images are float32 RGB in [0, 1]; a batch is ``[B, H, W, 3]``, of one size.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from nst_jax.config.config import Config, to_flat
from nst_jax.errors import InputError
from nst_jax.transfer.batch_programs import CONTENT_FIELDS, Element, apart, together
from nst_jax.transfer.loop import as_callback, iterate
from nst_jax.transfer.pairing import Pairing, pair
from nst_jax.transfer.problem import Problem, check_initial, check_inputs, check_run, make_problem
from nst_jax.transfer.sharding import divides_rows, flat_mesh, replicate
from nst_jax.transfer.types import (
    Callback,
    Execution,
    ExecutionPlan,
    Inputs,
    Progress,
    Result,
)
from nst_jax.types import (
    Array,
    Guidance,
    Info,
    Moments,
    State,
    Variables,
    as_image,
    as_sequence,
    check_image,
)

# Settings that may differ between the elements of a batch, with neutral values: numbers that are
# arguments of the program, and settings of the initial image, which is made outside the program.
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
    """Remove from a config what may differ in a batch; configs of one program become equal.

    >>> structure(Config.of(style_weight=1.0)) == structure(Config.of(style_weight=2.0))
    True
    >>> structure(Config(steps=1)) == structure(Config(steps=2))
    False
    """
    # Weights of layers and losses are arguments of the program too; only the names matter.
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
    with_images: bool = False,
) -> Result:
    """Run batch elements that differ in their images, of one size, or in numbers.

    Args:
      elements: their configs have passed ``check_batch``.
      execution: uses ``mesh`` and ``together``. If the mesh divides images by rows, the elements'
        problems must have been made for it.
      width: least number of elements in a program that takes steps together. A smaller last batch
        is padded to it and so reuses the program of the others.
      distinct: fields of the targets that get a batch axis even if all elements share them, for the
        same reason.
      started: ``time.perf_counter()`` at the start of the work that counts as compilation.
      callback: as in ``single.stylize``; its ``Progress`` has a leading batch axis.
      with_images: whether to set ``Progress.image``, which is None otherwise.

    Returns:
      A ``Result`` whose ``image``, ``loss``, ``status`` and ``recoveries`` have one entry per
      element; the leaves of ``history`` have the elements on their second axis. ``state`` is None,
      because L-BFGS's could be larger than everything else.

      An element whose loss or gradient is not finite does not affect the others. It keeps its best
      image, repeats its last diagnostics and gets the status ``"diverged"``. A batch does not
      recover; ``single.stylize`` on the same element does.
    """
    mesh, checked = execution.mesh, as_callback(callback)
    if not divides_rows(mesh):
        mesh = mesh and flat_mesh(mesh)
    if steps_together(execution):
        program = together(elements, mesh=mesh, width=width, distinct=distinct)
    else:
        program = apart(elements, mesh=mesh)

    def report(progress: Progress) -> bool | None:
        assert checked is not None
        return checked.call(_visible(progress, elements, with_images=with_images))

    last: Info | None = None  # the last row of the previous call's diagnostics

    def take(state: State, **options: Any) -> tuple[State, Info]:
        nonlocal last
        state, info = program.take(state, **options)
        info = _fill_ended(jax.device_get(info), before=last)
        if options["num_steps"]:
            last = jax.tree.map(lambda x: x[-1], info)
        return state, info

    # Wait: memory of pending computations would be taken for the first chunk's scratch memory.
    jax.block_until_ready([(each.problem.variables, each.problem.targets) for each in elements])
    ended = iterate(
        take,
        program.state,
        steps=elements[0].config.steps,
        started=started,
        callback=checked and Callback(report, checked.every),
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
        status=tuple("diverged" if diverged else ended.status for diverged in frozen),
        timing=ended.timing,
        recoveries=(0,) * count,
    )


def steps_together(execution: Execution) -> bool:
    """Whether all elements of a batch take each step together, see ``Execution``."""
    if execution.together is None:
        return divides_rows(execution.mesh) or jax.default_backend() != "cpu"
    return execution.together


def _visible(progress: Progress, elements: Sequence[Element], *, with_images: bool) -> Progress:
    """Drop the padding from the progress of a batch, and finish its images."""
    info = jax.tree.map(lambda x: x[: len(elements)], progress.info)
    image: Any = _finished(progress.image, elements) if with_images else None
    return progress._replace(info=info, image=image)


def _finished(field: Any, elements: Sequence[Element]) -> Array:
    """Finish the images ``[B, H, W, 3]`` in a field of a state."""
    images = _entries(field, elements[0].problem.shape)[: len(elements)]
    pairs = zip(elements, images, strict=True)
    return jnp.stack([element.problem.finish(jnp.asarray(image)) for element, image in pairs])


def check_single(config: Config) -> None:
    """Refuse settings that only ``stylize`` supports.

    Raises:
      InputError: for ``min_size`` and ``averaging``.
    """
    for name in ("min_size", "averaging"):
        if to_flat(config)[name]:
            raise InputError(f"{name} is for stylize, one image at a time: leave it out")


def check_batch(configs: Sequence[Config], *, execution: Execution = Execution()) -> None:
    """Check that configs differ only in what may differ between the elements of a batch.

    Raises:
      InputError: if they differ in more, and for settings that batches do not support.
    """
    for config in configs:
        check_single(config)
    if execution.together is False and divides_rows(execution.mesh):
        raise InputError(
            "images divided by rows take each step together: leave out together, or use make_mesh"
        )
    first = to_flat(structure(configs[0]))
    for number, config in enumerate(configs, start=1):
        found = to_flat(structure(config))
        other = [name for name in first if found[name] != first[name]]
        if other:
            raise InputError(
                f"config {number} differs from the first in {', '.join(other)}: expected the same "
                "apart from weights of terms and layers, learning rate and noise"
            )


def each_result(result: Result) -> list[Result]:
    """Split the result of a batch into results of single images, each with its own history."""

    def of_element(index: int) -> Result:
        history = jax.tree.map(lambda x: x[:, index], result.history)
        return result._replace(
            image=result.image[index],
            loss=float(result.loss[index]),
            history=_cut_repetitions(history) if result.status[index] == "diverged" else history,
            status=result.status[index],
            recoveries=result.recoveries[index],
        )

    return [of_element(index) for index in range(len(result.status))]


def _cut_repetitions(history: Info) -> Info:
    """Cut the history of a diverged element after the step at which it diverged."""
    finite = np.isfinite(history.loss) & np.isfinite(history.grad_norm)
    # The diverging step follows the last finite one; the steps after it repeat its numbers.
    steps = int(np.flatnonzero(finite)[-1] if finite.any() else -1) + 2
    return jax.tree.map(lambda x: x[:steps], history)


def _fill_ended(info: Info, *, before: Info | None) -> Info:
    """Fill diagnostics ``[steps, B]``: elements that have ended repeat their last numbers.

    A program whose elements have all diverged ends early and leaves its other rows zero.

    Args:
      info: diagnostics of one call. Rows with at least one evaluation are filled.
      before: the last row of the previous call, or None.
    """
    # For each row and element, the latest filled row up to it, or -1 if there is none in this call.
    rows = np.arange(len(info.loss))[:, None]
    latest = np.maximum.accumulate(np.where(info.evaluations > 0, rows, -1), axis=0)
    before = jax.tree.map(lambda x: x[0], info) if before is None else before

    def of_leaf(x: np.ndarray, old: np.ndarray) -> np.ndarray:
        return np.where(latest < 0, old[None], np.take_along_axis(x, np.maximum(latest, 0), axis=0))

    return jax.tree.map(of_leaf, info, before)


def _entries(field: Any, tail: tuple[int, ...] = ()) -> np.ndarray:
    """Fetch a field of a state to the host, ``[B, *tail]``."""
    parts = jax.device_get(field if isinstance(field, list) else [field])
    return np.concatenate([part.reshape(-1, *tail) for part in parts])


def stylize_batch(
    variables: Variables,
    contents: ArrayLike,
    styles: ArrayLike | Sequence[ArrayLike],
    *,
    config: Config | Sequence[Config] = Config(),
    pairing: Pairing = "all",
    blend: Any = None,
    keys: Sequence[Array] | None = None,
    inits: Sequence[Any] | None = None,
    execution: Execution = Execution(),
    callback: Callable[[Progress], bool | None] | Callback | None = None,
) -> Result:
    """Stylize many content images of one size.

    On accelerators all images take each step together (``vmap`` of the step; line searches run one
    after another). On CPUs each image runs the program of ``stylize`` and gets the same result:
    there ``vmap`` is hardly faster or slower, and L-BFGS would magnify its different rounding. All
    images are in memory at once; ``nst-jax batch`` divides many images into smaller batches.

    Args:
      variables: VGG-19's variables, from ``load_weights``.
      contents: ``[B, H, W, 3]`` in [0, 1].
      styles: one image or a sequence of S, ``[h, w, 3]`` each, of any sizes. Images of one style
        share what is computed from it.
      config: settings of all images, or one for each. Those may differ in numbers only: weights of
        terms and layers, learning rate, noise.
      pairing: ``"all"``: each content has all styles, mixed by ``blend``. ``"pairs"``: content i
        has style i. ``"grid"``: every content with every single style, L = B S images: the first
        content with each style, then the second.
      blend: style weights for ``"all"``, as in ``Guidance``.
      keys: a PRNG key for the noise of each image; by default that of ``stylize`` for all.
      inits: for each image an initial image that replaces ``config.initial.init``, or None.
      execution: devices over which the images are spread, and ``together``, which replaces the
        rule above.
      callback: as in ``stylize``; its ``Progress`` has a leading batch axis.

    Returns:
      A ``Result`` of L images: ``image`` is ``[L, H, W, 3]``, ``loss`` ``[L]``, ``status`` a
      tuple, the leaves of ``history`` are ``[steps, L]``, and ``state`` is None. An image whose
      loss is not finite does not affect the others: its status is ``"diverged"``, it keeps its best
      image and repeats its last diagnostics. ``stylize`` on the same image would recover.
      ``each_result`` splits the result.

    Raises:
      InputError: for what is wrong, with what was expected.

    Example:
      ``stylize_batch(weights.variables, contents, styles, pairing="grid").image``
    """
    started = time.perf_counter()
    images = _as_images(contents)
    style_images = [as_image(style) for style in as_sequence(styles)]
    if blend is not None and pairing != "all":
        raise InputError("blend is for pairing 'all', where styles are mixed: leave it out")
    pairs = pair(len(images), len(style_images), pairing=pairing)
    configs = [config] * len(pairs) if isinstance(config, Config) else list(config)
    for what, values in (("configs", configs), ("keys", keys), ("initial images", inits)):
        if values is not None and len(values) != len(pairs):
            raise InputError(f"{len(values)} {what} for {len(pairs)} images: expected one each")
    check_batch(configs, execution=execution)
    check_run(variables, config=configs[0], execution=execution)
    guidance, mesh = Guidance(blend=blend), execution.mesh
    # The first content stands for all, because they have one size.
    first = check_inputs(images[0], style_images, config=configs[0], guidance=guidance, mesh=mesh)
    for content in images[1:]:
        check_image("content image", content)
    given = [None] * len(pairs) if inits is None else inits
    starts = [None if init is None else as_image(init) for init in given]
    for init in filter(lambda init: init is not None, starts):
        check_initial(init, shape=images.shape[1:])
    # Problems of the first config serve all: ``batch_programs`` takes the numbers from each
    # element's config.
    make = problem_maker(variables, config=configs[0], execution=execution)
    by_content: dict[int, Problem] = {}
    elements = []
    for index, (content, chosen) in enumerate(pairs):
        own_styles = [first.styles[style] for style in chosen]
        problem = make(Inputs(images[content], own_styles, first.guidance), chosen)
        if pairing == "grid":  # keep what is computed from a content once
            targets = by_content.setdefault(content, problem).targets
            shared = {name: getattr(targets, name) for name in CONTENT_FIELDS}
            problem = problem._replace(targets=problem.targets._replace(**shared))
        elements.append(
            Element(
                problem=problem,
                config=configs[index],
                key=None if keys is None else keys[index],
                init=starts[index],
            )
        )
    return run_batch(
        elements,
        execution=execution,
        started=started,
        callback=callback,
        with_images=True,
    )


def _as_images(contents: ArrayLike) -> Any:
    """Turn the contents of a batch into an array ``[B, H, W, 3]``."""
    try:
        images = as_image(contents)
    except (TypeError, ValueError):  # for a list of images of several sizes
        raise InputError(
            "the content images are not an array: expected [batch, height, width, 3], of one size"
        ) from None
    if images.ndim != 4 or not len(images):
        raise InputError(
            f"the content images have shape {images.shape}: expected [batch, height, width, 3]"
        )
    return images


def problem_maker(
    variables: Variables,
    *,
    config: Config,
    execution: Execution = Execution(),
    keep: int | None = None,
) -> Callable[[Inputs, Sequence[Hashable]], Problem]:
    """Make a function that makes problems which share kernels and Gram matrices.

    The function takes checked inputs and the caller's names of their styles. The Gram matrices of
    styles are computed once for each tuple of names, unless the styles take on the content's
    colours.

    Args:
      variables, config: as for ``stylize_batch``.
      execution: devices, each of which gets the kernels; a mesh that divides rows also divides the
        images.
      keep: largest number of tuples of styles whose Gram matrices are kept, the oldest are dropped
        first; None for all.
    """
    kernels: Variables | None = None
    seen: dict[tuple[Hashable, ...], dict[str, Moments]] = {}
    # One plan per size, made once: free memory changes between elements, and elements with
    # different plans would need different programs.
    plans: dict[tuple[int, ...], ExecutionPlan] = {}
    follow = follows_content(config)
    # Unless rows are divided, problems are made on one device; ``batch_programs`` spreads them.
    placed = execution._replace(mesh=execution.mesh if divides_rows(execution.mesh) else None)

    def make(inputs: Inputs, names: Sequence[Hashable]) -> Problem:
        nonlocal kernels
        styles = tuple(names)
        problem = make_problem(
            variables,
            inputs,
            config=config,
            execution=placed._replace(plan=plans.get(inputs.content.shape, placed.plan)),
            kernels=kernels,
            moments=None if follow else seen.get(styles),
        )
        plans[problem.shape] = problem.execution_plan
        # Replicated once; later problems are given these very arrays and return them.
        kernels = replicate(problem.variables, execution.mesh)
        if not follow and styles not in seen:
            if len(seen) == keep:
                del seen[next(iter(seen))]
            seen[styles] = problem.targets.style
        return problem._replace(variables=kernels)

    return make


def follows_content(config: Config) -> bool:
    """Whether styles take on the content's colours or contrast, and so depend on the content."""
    return config.loss.color == "luminance" or config.loss.color.startswith("match-")
