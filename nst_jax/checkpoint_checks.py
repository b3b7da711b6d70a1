"""What the values of a checkpoint may be, beyond their types: of files that others may have made.

Contract: the functions take what has the right types, see ``annotations``.
"""

import numpy as np

from nst_jax.choices import check_choice
from nst_jax.plan_words import Plan
from nst_jax.position import Position
from nst_jax.scale_state import RECOVERIES

LARGEST_BYTES = 2**63 - 1


def check_position(position: Position) -> None:
    """Check where a run stands.

    Raises:
      ValueError: for what no run comes to.
    """
    for choice in (position.choice, *(scale.choice for scale in position.ended)):
        check_choice(choice)
    if position.last_choice is not None:
        check_choice(position.last_choice)
    if not 0 <= position.recoveries <= RECOVERIES:
        raise ValueError(f"recoveries is {position.recoveries}: expected 0 to {RECOVERIES}")
    _check_bytes(position.free)
    rows = {len(values) for values in position.history.values()}
    counts = [np.max(position.state[name]) for name in position.state if name.startswith("count")]
    taken = [scale.steps for scale in position.ended]
    right = rows == {position.step} and counts and max(counts) == position.step - sum(taken)
    if not right or position.step < 1 or any(steps < 1 for steps in taken):
        raise ValueError("its numbers of steps contradict each other")


def check_plan(plan: Plan) -> None:
    """Check what a run will need.

    Raises:
      ValueError: for what ``memory_plan`` does not make.
    """
    check_choice(plan.choice)
    for count in (*plan.needs, plan.free, plan.whole):
        _check_bytes(count)


def _check_bytes(count: int | None) -> None:
    if count is not None and not 0 <= count <= LARGEST_BYTES:
        raise ValueError(f"{count} bytes: expected 0 to {LARGEST_BYTES}")
