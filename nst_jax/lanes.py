"""Several runs of one structure in one compiled program, each with numbers and noise of its own.

The step is vmapped and the loop stays outside, so that all lanes take each step together; pictures,
features and Gram matrices to compare with are there once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nst_jax.config import Config
from nst_jax.errors import InputError
from nst_jax.loop import Progress, iterate
from nst_jax.objective import loss_weights
from nst_jax.problem import Problem
from nst_jax.transfer import Result
from nst_jax.types import Array, Info, LossWeights, Solver, State, Targets, Variables

# What may differ between the lanes of one program: numbers, and what only the start depends on.
LANE_NUMBERS: dict[str, Any] = {
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
    """A config without what may differ between lanes: equal for those of one program.

    >>> structure(Config(style_weight=1.0)) == structure(Config(style_weight=2.0))
    True
    >>> structure(Config(steps=1)) == structure(Config(steps=2))
    False
    """
    plain = {
        name: tuple((layer, 1.0) for layer, _ in getattr(config, name))
        for name in ("content_layers", "style_layers")
    }
    return replace(config, **LANE_NUMBERS, **plain)


@lru_cache(maxsize=64)
def lanes_solver(solver: Solver) -> Solver:
    """A solver of states with a leading axis; of equal solvers it is the same object.

    The lanes share everything that they compare with, but not the factors of the terms.
    """

    def over_lanes(function: Callable[..., Any], leading: Any, targets: Targets) -> Any:
        def of_lane(leaves: Any, weights: LossWeights) -> Any:
            return function(leaves, targets._replace(weights=weights))

        return jax.vmap(of_lane)(leading, targets.weights)

    def init(images: Array, variables: Variables, targets: Targets) -> State:
        return over_lanes(lambda image, t: solver.init(image, variables, t), images, targets)

    def step(states: State, variables: Variables, targets: Targets) -> tuple[State, Info]:
        return over_lanes(lambda state, t: solver.step(state, variables, t), states, targets)

    return Solver(init=init, step=step)


def stylize_lanes(
    problem: Problem,
    configs: Sequence[Config],
    *,
    keys: Sequence[Array],
    inits: Sequence[Any] | None = None,
    started: float | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
) -> list[Result]:
    """Run lanes that differ in numbers: factors of terms and layers, learning rate, noise.

    Args:
      problem: of a config of the lanes' structure, see ``problem.make_problem``.
      configs: settings of the lanes, with equal ``steps``.
      keys: PRNG key of each lane's noise.
      inits: initial picture of each lane in place of its config's, or None.
      started: ``time.perf_counter()`` when the work began.
      callback: as in ``transfer.stylize``; what it sees has a leading axis, and its pictures are
        as they are optimised, see ``Problem.finish``.

    Returns:
      A ``Result`` for each lane, as ``transfer.stylize`` gives it alone; a lane that diverges does
      not change its neighbours.

    Raises:
      InputError: where the configs differ in more than numbers, or an initial picture does not fit.
    """
    if len({structure(config) for config in configs}) > 1:
        raise InputError("the lanes' configs differ in structure: expected other numbers only")
    inits = [None] * len(configs) if inits is None else inits
    states = [problem.start(*lane) for lane in zip(configs, keys, inits, strict=True)]
    dtype = states[0].image.dtype
    weights = jax.tree.map(
        lambda *numbers: jnp.asarray(numbers, dtype), *(loss_weights(config) for config in configs)
    )
    run = iterate(
        lanes_solver(problem.solver),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
        problem.variables,
        problem.targets._replace(weights=weights),
        steps=configs[0].steps,
        started=started,
        callback=callback,
    )

    def result(lane: int) -> Result:
        state = jax.tree.map(lambda leaf: leaf[lane], run.state)
        history: Info = jax.tree.map(lambda numbers: numbers[:, lane], run.history)
        status = run.status
        if state.frozen:
            finite = np.isfinite(history.loss) & np.isfinite(history.grad_norm)
            first = int(np.argmin(finite)) + 1  # the rest repeats it
            history = jax.tree.map(lambda numbers: numbers[:first], history)
            status = "diverged"
        return Result(
            image=problem.finish(state.best_image),
            loss=float(state.best_loss),
            state=state,
            history=history,
            status=status,
            timing=run.timing,
        )

    return [result(lane) for lane in range(len(configs))]
