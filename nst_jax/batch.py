"""Many pictures at once: one style for all, one for each, or every content with every style.

Contract: images are float32 RGB in [0, 1]; a batch is ``[B, H, W, 3]``, of one size.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from jax.typing import ArrayLike

from nst_jax.choices import Execution, ExecutionPlan
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.inputs import Inputs, as_picture, check_initial, check_inputs, check_picture
from nst_jax.lane_plans import Element
from nst_jax.lane_solver import OF_CONTENT
from nst_jax.lanes import check_batch, run_batch
from nst_jax.loop import Callback, Progress
from nst_jax.pairing import Pairing, pair
from nst_jax.parallel import replicate
from nst_jax.problem import Problem, check_run, make_problem
from nst_jax.rows import divides_rows
from nst_jax.transfer import Result
from nst_jax.types import Array, Guidance, Moments, Variables, as_sequence


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
    """Stylize many content pictures in one compiled program.

    On accelerators all pictures take each step together (``vmap`` of the step; with line search one
    after another). On CPUs each goes through the program of ``stylize``, with its very result:
    there ``vmap`` gains little or loses, and L-BFGS magnifies its other rounding. All pictures are
    in memory at once; ``nst-jax batch`` makes smaller batches of many.

    Args:
      variables: VGG-19's variables, from ``load_weights``.
      contents: ``[B, H, W, 3]`` in [0, 1].
      styles: one picture or a sequence of S, ``[h, w, 3]`` each, of any sizes. What is computed of
        a style serves all pictures that have it.
      config: settings of all pictures, or a sequence of such that differ in numbers only: factors
        of terms and layers, learning rate, noise.
      pairing: ``"all"``: each content has all styles, mixed by ``blend``. ``"pairs"``: content i
        has style i. ``"grid"``: every content with every style alone, L = B S pictures: the first
        content with each style, then the second.
      blend: factors of the styles for ``"all"``, as in ``stylize``.
      keys: a PRNG key for the noise of each picture; by default all have that of ``stylize``.
      inits: an initial picture for each, or None, in place of ``config.initial.init``.
      execution: devices over which the pictures are spread, and ``together`` in place of the rule
        above.
      callback: as in ``stylize``; what it sees has a leading axis.

    Returns:
      A ``Result`` of L pictures: ``image`` is ``[L, H, W, 3]``, ``loss`` ``[L]``, ``status`` a
      tuple, the leaves of ``history`` are ``[steps, L]``, and there is no ``state``. A picture
      whose loss is not finite does not change the others: its status is ``"diverged"``, it keeps
      the best picture before that and repeats its last numbers. Run once more by ``stylize`` it
      goes on from there with smaller steps. ``lanes.each_result`` takes the result apart.

    Raises:
      InputError: with what is wrong and what was expected.

    Example:
      ``stylize_batch(weights.variables, contents, styles, pairing="grid").image``
    """
    started = time.perf_counter()
    pictures = _as_pictures(contents)
    own = [as_picture(style) for style in as_sequence(styles)]
    if blend is not None and pairing != "all":
        raise InputError("blend is for pairing 'all', where styles are mixed: leave it out")
    pairs = pair(len(pictures), len(own), pairing=pairing)
    configs = [config] * len(pairs) if isinstance(config, Config) else list(config)
    for what, given in (("configs", configs), ("keys", keys), ("initial pictures", inits)):
        if given is not None and len(given) != len(pairs):
            raise InputError(f"{len(given)} {what} for {len(pairs)} pictures: expected one each")
    check_batch(configs, execution=execution)
    check_run(variables, config=configs[0], execution=execution)
    guidance, mesh = Guidance(blend=blend), execution.mesh
    every = check_inputs(pictures[0], own, config=configs[0], guidance=guidance, mesh=mesh)
    for content in pictures[1:]:
        check_picture("content picture", content)
    given = [None] * len(pairs) if inits is None else inits
    starts = [None if init is None else as_picture(init) for init in given]
    for init in starts:
        if init is not None:
            check_initial(init, shape=pictures.shape[1:])
    make = problem_maker(variables, config=configs[0], execution=execution)
    known: dict[int, Problem] = {}
    elements = []
    for index, (content, chosen) in enumerate(pairs):
        given = [every.styles[style] for style in chosen]
        made = make(Inputs(pictures[content], given, every.guidance), chosen)
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
        with_pictures=True,
    )


def _as_pictures(contents: ArrayLike) -> Any:
    """The contents of a batch as an array ``[B, H, W, 3]``."""
    try:
        pictures = as_picture(contents)
    except (TypeError, ValueError):  # of a list of several sizes
        raise InputError(
            "the content pictures are no array: expected [batch, height, width, 3], of one size"
        ) from None
    if pictures.ndim != 4 or not len(pictures):
        raise InputError(
            f"the content pictures have shape {pictures.shape}: expected [batch, height, width, 3]"
        )
    return pictures


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
      execution: devices that each get the kernels; a mesh that divides rows divides pictures, too.
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
        plans[problem.shape] = problem.choice
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
