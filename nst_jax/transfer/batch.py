"""Many images at once: one style for all, one for each, or every content with every style.

The elements of a batch have one structure; their images, of one size, and their numbers differ.
They advance together, by ``vmap``, which keeps an accelerator busy; or apart, each by the very
program of a run alone, which on CPUs is as fast and gives the same bits. What they have in common
is computed once: kernels, a content's features, a style's Gram matrices.

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
from nst_jax.transfer.batch_programs import OF_CONTENT, Element, apart, together
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
    with_images: bool = False,
) -> Result:
    """Run elements that differ in images of one size, or in numbers: factors, rates, noise.

    Args:
      elements: their configs have equal ``steps``, and have passed ``check_batch``.
      execution: ``mesh`` and ``together`` are read. Where the mesh divides images by rows, the
        elements' problems are of it.
      width: elements to fill up to where they are together, so that a smaller last batch has the
        program of the others.
      distinct: fields of the targets that get a leading axis although all elements may share them,
        for the same reason.
      started: ``time.perf_counter()`` when the work began.
      callback: as in ``single.stylize``; what it sees has a leading axis.
      with_images: whether the callback looks at ``Progress.image``, which else is None.

    Returns:
      A ``Result`` whose ``image``, ``loss``, ``status`` and ``recoveries`` have an entry for each
      element, as have the leaves of ``history`` on their second axis. ``state`` is None: L-BFGS's
      may be larger than all else.

      An element whose loss or gradient is not finite does not change its neighbours. It keeps its
      best image, repeats its last numbers and has the status ``"diverged"``; there are no
      recoveries. Run it once more by ``single.stylize``, which goes on from the best image.
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
        return told.call(_seen(progress, elements, with_images=with_images))

    last: Info | None = None

    def take(state: State, **options: Any) -> tuple[State, Info]:
        nonlocal last
        state, info = program.take(state, **options)
        info = _repeat_ends(jax.device_get(info), before=last)
        if options["num_steps"]:
            last = jax.tree.map(lambda x: x[-1], info)
        return state, info

    # What is still being computed would count as the first chunk's scratch memory.
    jax.block_until_ready([(one.problem.variables, one.problem.targets) for one in elements])
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


def _seen(progress: Progress, elements: Sequence[Element], *, with_images: bool) -> Progress:
    """What the callback of a batch sees."""
    info = jax.tree.map(lambda x: x[: len(elements)], progress.info)
    image: Any = _finished(progress.image, elements) if with_images else None
    return progress._replace(info=info, image=image)


def _finished(field: Any, elements: Sequence[Element]) -> Array:
    """The images to be shown, ``[B, H, W, 3]``, from a field of a state."""
    images = _entries(field, elements[0].problem.shape)[: len(elements)]
    pairs = zip(elements, images, strict=True)
    return jnp.stack([element.problem.finish(jnp.asarray(image)) for element, image in pairs])


def check_single(config: Config) -> None:
    """Refuse settings of runs that take one image at a time.

    Raises:
      InputError: for ``min_size`` and ``averaging``.
    """
    for name in ("min_size", "averaging"):
        if to_flat(config)[name]:
            raise InputError(f"{name} is for stylize, one image at a time: leave it out")


def check_batch(configs: Sequence[Config], *, execution: Execution = Execution()) -> None:
    """Check that configs differ only in what the elements of a batch may differ in.

    Raises:
      InputError: where they do, and for settings that batches do not have.
    """
    for config in configs:
        check_single(config)
    if execution.together is False and divides_rows(execution.mesh):
        raise InputError(
            "images that are divided by rows take each step together: leave out together, or use "
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
    """The results of a batch as ``single.stylize`` gives them, with their own histories."""

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

    On accelerators all images take each step together (``vmap`` of the step; with line search one
    after another). On CPUs each goes through the program of ``stylize``, with its very result:
    there ``vmap`` gains little or loses, and L-BFGS magnifies its other rounding. All images are
    in memory at once; ``nst-jax batch`` makes smaller batches of many.

    Args:
      variables: VGG-19's variables, from ``load_weights``.
      contents: ``[B, H, W, 3]`` in [0, 1].
      styles: one image or a sequence of S, ``[h, w, 3]`` each, of any sizes. What is computed of
        a style serves all images that have it.
      config: settings of all images, or a sequence of such that differ in numbers only: factors
        of terms and layers, learning rate, noise.
      pairing: ``"all"``: each content has all styles, mixed by ``blend``. ``"pairs"``: content i
        has style i. ``"grid"``: every content with every style alone, L = B S images: the first
        content with each style, then the second.
      blend: factors of the styles for ``"all"``, as in ``Guidance``.
      keys: a PRNG key for the noise of each image; by default all have that of ``stylize``.
      inits: an initial image for each, or None, in place of ``config.initial.init``.
      execution: devices over which the images are spread, and ``together`` in place of the rule
        above.
      callback: as in ``stylize``; what it sees has a leading axis.

    Returns:
      A ``Result`` of L images: ``image`` is ``[L, H, W, 3]``, ``loss`` ``[L]``, ``status`` a
      tuple, the leaves of ``history`` are ``[steps, L]``, and there is no ``state``. An image
      whose loss is not finite does not change the others: its status is ``"diverged"``, it keeps
      the best image before that and repeats its last numbers. Run once more by ``stylize`` it
      goes on from there with smaller steps. ``batch.each_result`` takes the result apart.

    Raises:
      InputError: with what is wrong and what was expected.

    Example:
      ``stylize_batch(weights.variables, contents, styles, pairing="grid").image``
    """
    started = time.perf_counter()
    images = _as_images(contents)
    own = [as_image(style) for style in as_sequence(styles)]
    if blend is not None and pairing != "all":
        raise InputError("blend is for pairing 'all', where styles are mixed: leave it out")
    pairs = pair(len(images), len(own), pairing=pairing)
    configs = [config] * len(pairs) if isinstance(config, Config) else list(config)
    for what, given in (("configs", configs), ("keys", keys), ("initial images", inits)):
        if given is not None and len(given) != len(pairs):
            raise InputError(f"{len(given)} {what} for {len(pairs)} images: expected one each")
    check_batch(configs, execution=execution)
    check_run(variables, config=configs[0], execution=execution)
    guidance, mesh = Guidance(blend=blend), execution.mesh
    every = check_inputs(images[0], own, config=configs[0], guidance=guidance, mesh=mesh)
    for content in images[1:]:
        check_image("content image", content)
    given = [None] * len(pairs) if inits is None else inits
    starts = [None if init is None else as_image(init) for init in given]
    for init in starts:
        if init is not None:
            check_initial(init, shape=images.shape[1:])
    make = problem_maker(variables, config=configs[0], execution=execution)
    known: dict[int, Problem] = {}
    elements = []
    for index, (content, chosen) in enumerate(pairs):
        given = [every.styles[style] for style in chosen]
        made = make(Inputs(images[content], given, every.guidance), chosen)
        if pairing == "grid":  # what is computed of a content is there once
            targets = known.setdefault(content, made).targets
            shared = {name: getattr(targets, name) for name in OF_CONTENT}
            made = made._replace(targets=made.targets._replace(**shared))
        elements.append(
            Element(
                problem=made,
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
    """The contents of a batch as an array ``[B, H, W, 3]``."""
    try:
        images = as_image(contents)
    except (TypeError, ValueError):  # of a list of several sizes
        raise InputError(
            "the content images are no array: expected [batch, height, width, 3], of one size"
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
    """A function that makes problems which share kernels and, of equal styles, Gram matrices.

    It takes checked inputs and names of their styles, of the caller's; styles that were seen under
    their names are not computed again, unless their colours are to follow the content's.

    Args:
      variables, config: as for ``stylize_batch``.
      execution: devices that each get the kernels; a mesh that divides rows divides images, too.
      keep: how many Gram matrices to keep at most, the oldest are given up; None for all.
    """
    kernels: Variables | None = None
    seen: dict[tuple[Hashable, ...], dict[str, Moments]] = {}
    plans: dict[
        tuple[int, ...], ExecutionPlan
    ] = {}  # found out once for a size, and the same for all
    follow = follows_content(config)
    own = execution._replace(mesh=execution.mesh if divides_rows(execution.mesh) else None)

    def make(inputs: Inputs, names: Sequence[Hashable]) -> Problem:
        nonlocal kernels
        styles = tuple(names)
        problem = make_problem(
            variables,
            inputs,
            config=config,
            execution=own._replace(plan=plans.get(inputs.content.shape, own.plan)),
            kernels=kernels,
            moments=None if follow else seen.get(styles),
        )
        plans[problem.shape] = problem.execution_plan
        kernels = replicate(problem.variables, execution.mesh)
        if not follow and styles not in seen:
            if len(seen) == keep:
                del seen[next(iter(seen))]
            seen[styles] = problem.targets.style
        return problem._replace(variables=kernels)

    return make


def follows_content(config: Config) -> bool:
    """Whether the styles get the content's colours or contrast: then no two contents share them."""
    return config.loss.color == "luminance" or config.loss.color.startswith("match-")
