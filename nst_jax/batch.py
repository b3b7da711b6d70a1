"""Many pictures at once: one style for all, one for each, or every content with every style.

Contract: images are float32 RGB in [0, 1]; a batch is ``[B, H, W, 3]``, of one size.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from nst_jax.choices import Choice
from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.inputs import as_picture
from nst_jax.lane_plans import Lane
from nst_jax.lanes import check_lanes, stylize_lanes
from nst_jax.loop import Progress
from nst_jax.objective import as_sequence
from nst_jax.pairing import Pairing, pair
from nst_jax.parallel import Mesh, replicate
from nst_jax.problem import Problem, make_problem
from nst_jax.rows import divides_rows
from nst_jax.transfer import Result
from nst_jax.types import Array, Moments, Variables


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
    mesh: Mesh | None = None,
    together: bool | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
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
      inits: an initial picture for each, or None, in place of ``config.init``.
      mesh: devices over which the pictures are spread, see ``parallel.make_mesh``. They need not
        divide the number of pictures. One of ``rows.rows_mesh`` divides each picture by rows, and
        with ``lanes`` above 1 the pictures among so many parts of the devices.
      together: in place of the rule above; pictures divided by rows always are.
      callback: as in ``stylize``; what it sees has a leading axis.

    Returns:
      A ``Result`` of L pictures: ``image`` is ``[L, H, W, 3]``, ``loss`` ``[L]``, ``status`` a
      tuple, the leaves of ``history`` are ``[steps, L]``, and there is no ``state``. A picture
      whose loss is not finite does not change the others; it goes on from its best picture when
      they have ended, as in ``stylize``, and one that diverges for good repeats its last numbers;
      ``lanes.each_result`` takes the result apart.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    started = time.perf_counter()
    try:
        contents = as_picture(contents)
    except (TypeError, ValueError):  # of a list of several sizes
        raise InputError(
            "the content pictures are no array: expected [batch, height, width, 3], of one size"
        ) from None
    if contents.ndim != 4 or not len(contents):
        raise InputError(
            f"the content pictures have shape {contents.shape}: expected [batch, height, width, 3]"
        )
    pictures = as_sequence(styles)
    if blend is not None and pairing != "all":
        raise InputError("blend is for pairing 'all', where styles are mixed: leave it out")
    pairs = pair(len(contents), len(pictures), pairing=pairing)
    configs = [config] * len(pairs) if isinstance(config, Config) else list(config)
    for what, given in (("configs", configs), ("keys", keys), ("initial pictures", inits)):
        if given is not None and len(given) != len(pairs):
            raise InputError(f"{len(given)} {what} for {len(pairs)} pictures: expected one each")
    check_lanes(configs, mesh=mesh, together=together)
    make = problem_maker(variables, config=configs[0], blend=blend, mesh=mesh)
    problems: dict[Any, Problem] = {}
    lanes = []
    for index, (content, chosen) in enumerate(pairs):
        made = make(contents[content], {style: pictures[style] for style in chosen})
        if pairing == "grid":  # a content's features are there once
            first = problems.setdefault(content, made)
            shared = {name: getattr(first.targets, name) for name in ("content", "picture")}
            made = made._replace(targets=made.targets._replace(**shared))
        lanes.append(
            Lane(
                problem=made,
                config=configs[index],
                key=None if keys is None else keys[index],
                init=None if inits is None else inits[index],
            )
        )
    return stylize_lanes(
        lanes,
        shape=(len(contents), len(pictures)) if pairing == "grid" else None,
        mesh=mesh,
        together=together,
        started=started,
        callback=callback,
        with_pictures=True,
    )


def problem_maker(
    variables: Variables,
    *,
    config: Config,
    blend: Any = None,
    mesh: Mesh | None = None,
    keep: int | None = None,
    known: Mapping[tuple[int, ...], Choice] | None = None,
) -> Callable[[Any, dict[Any, Any]], Problem]:
    """A function that makes problems which share kernels and, of equal styles, Gram matrices.

    It takes a content and the styles by names of the caller's; styles that were seen under their
    names are not computed again, unless their colours are to follow the content's.

    Args:
      variables, config, blend: as for ``stylize_batch``.
      mesh: devices that each get the kernels; one of ``rows.rows_mesh`` divides pictures, too.
      keep: how many Gram matrices to keep at most, the oldest are given up; None for all.
      known: how pictures of some shapes are computed, where that is not to be found out.
    """
    kernels: Variables | None = None
    seen: dict[tuple[Any, ...], dict[str, Moments]] = {}
    choices = dict(known or {})  # found out once for a size, and the same for all
    follow = follows_content(config)

    def make(content: Any, styles: dict[Any, Any]) -> Problem:
        nonlocal kernels
        names = tuple(styles)
        problem = make_problem(
            variables,
            content,
            list(styles.values()),
            config=config,
            blend=blend,
            kernels=kernels,
            moments=None if follow else seen.get(names),
            choice=choices.get(jnp.shape(content)),
            mesh=mesh if divides_rows(mesh) else None,
        )
        choices[problem.shape] = problem.choice
        kernels = replicate(problem.variables, mesh)
        if not follow and names not in seen:
            if len(seen) == keep:
                del seen[next(iter(seen))]
            seen[names] = problem.targets.style
        return problem._replace(variables=kernels)

    return make


def follows_content(config: Config) -> bool:
    """Whether the styles get the content's colours or contrast: then no two contents share them."""
    return config.loss.color == "luminance" or config.loss.color.startswith("match-")
