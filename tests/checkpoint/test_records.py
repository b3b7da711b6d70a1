"""The contents of checkpoints: positions and plans survive JSON, and invalid values are refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nst_jax.checkpoint.records import (
    MALFORMED_ERRORS,
    check_versions,
    check_weights,
    device_changes,
    frame_arrays,
    malformed_is_input_error,
    plan_record,
    position_record,
    restore_frames,
    restore_plan,
    restore_position,
)
from nst_jax.checkpoint.store import Saved
from nst_jax.errors import InputError
from nst_jax.system import device, versions
from nst_jax.transfer.types import EndedScale, ExecutionPlan, LoopMemory, MemoryPlan, Position

PLAN = ExecutionPlan(tile=16, memory_size=5, memory_dtype="bfloat16")
POSITION = Position(
    step=7,
    scale=2,
    ended=(EndedScale((10, 8), 4, ExecutionPlan()),),
    execution_plan=PLAN,
    recoveries=1,
    timing={"compile_s": 0.5, "steps_s": 1.0},
    state={"count": np.int32(3), "image": np.zeros((2, 2, 3), np.float32)},
    history={"loss": np.arange(7.0)},
    last_plan=PLAN,
    free=1000,
)
MEMORY_PLAN = MemoryPlan(PLAN, LoopMemory(1, 2, 3, 4), free=5, whole=6)


def plain(value):
    return json.loads(json.dumps(value))


def test_positions_and_plans_are_restored():
    arrays = frame_arrays([np.zeros((4, 5, 3), np.uint8)] * 2)
    record = plain(position_record(POSITION, arrays))
    found = restore_position(record, arrays)
    assert found._replace(state={}, history={}) == POSITION._replace(state={}, history={})
    for name in ("state", "history"):
        np.testing.assert_equal(getattr(found, name), getattr(POSITION, name))
    assert len(restore_frames(arrays, shape=(4, 5))) == 2 and arrays == {}
    assert restore_plan(plain(plan_record(MEMORY_PLAN))) == MEMORY_PLAN
    assert (
        restore_position(position_record(None, {}), {}) is restore_plan(plan_record(None)) is None
    )


COUNTS = (-1, -(10**400), 2**63, 10**400, True, 1.0, "1")
PLANS = [(0, -1), (0, 10**19), (1, 0), (3, -1), (3, 0), (3, 10**19), (4, "x"), (4, "float32")]


def check_invalid(restore, record, *, changes):
    """Check that each change, a path and a value, makes a record invalid."""
    for *above, key, value in changes:
        changed = plain(record)
        inside = changed
        for one in above:
            inside = inside[one]
        inside[key] = value
        with pytest.raises(MALFORMED_ERRORS):
            restore(changed)
            raise AssertionError(f"{above} {key}: {value!r:.40} was accepted")


def test_invalid_positions():
    arrays = {}
    record = position_record(POSITION, arrays)
    changes = [
        *(("execution_plan", at, value) for at, value in PLANS),
        *(("recoveries", value) for value in (-1000, 4, 10**400)),
        *(("free", value) for value in COUNTS),
        *(("step", value) for value in (0, 1, "2", None)),
        *(("timing", value) for value in (None, {}, {"steps_s": "1"})),
        ("last_plan", [-1, False, False, None, None]),
        ("ended", 0, 1, -4),
        ("ended", 0, 2, 0, -1),
        ("ended", 0, 0, [10, "18"]),
    ]
    check_invalid(lambda changed: restore_position(changed, dict(arrays)), record, changes=changes)


def test_invalid_memory_plans():
    changes = [
        *((0, at, value) for at, value in PLANS),
        *((1, at, value) for value in COUNTS for at in range(4)),
        *((at, value) for value in COUNTS for at in (2, 3)),
    ]
    check_invalid(restore_plan, plan_record(MEMORY_PLAN), changes=changes)


@pytest.mark.parametrize("frame", [np.zeros((3, 5, 3), np.uint8), np.zeros((4, 5, 3))])
def test_invalid_frames(frame):
    with pytest.raises(MALFORMED_ERRORS):
        restore_frames(frame_arrays([frame]), shape=(4, 5))


def saved(**record):
    return Saved(record, {}, {}, Path("ck/checkpoint-00000001"), ())


def test_malformed_record_is_an_input_error():
    for error in (KeyError("x"), TypeError("y"), RecursionError()):
        with pytest.raises(InputError, match="^ck/checkpoint-00000001 was not written by this"):
            with malformed_is_input_error(saved()):
                raise error


def test_other_versions_and_weights_are_refused():
    check_versions(saved(versions=versions()))
    with pytest.raises(InputError, match=r"was saved with jax 0\.1 \(here .*resume with those"):
        check_versions(saved(versions=versions() | {"jax": "0.1"}))
    info = SimpleNamespace(name="tiny", path="tiny.safetensors", sha256="ab" * 32)
    record = saved(weights=dict(vars(info)))
    check_weights(record, SimpleNamespace(info=info))
    info.sha256 = "cd" * 32
    match = r"began with the weights tiny \(tiny.safetensors, sha256 abab.*, got tiny .*sha256 cdcd"
    with pytest.raises(InputError, match=match):
        check_weights(record, SimpleNamespace(info=info))


def test_other_devices_and_threads_are_warned_of():
    here = device()
    assert device_changes(saved(device=here), divided=True) == []
    older = {name: value for name, value in here.items() if name != "threads"}
    assert device_changes(saved(device=older)) == []  # older versions saved no threads
    moved = saved(device=here | {"kind": "abacus", "count": 99})
    (line,) = device_changes(moved)
    assert line.startswith("the run started on 99 x abacus, got ")
    with pytest.raises(InputError, match="started on 99 x abacus, .*: resume on the same number"):
        device_changes(moved, divided=True)
    if "threads" in here:
        (line,) = device_changes(saved(device=here | {"threads": 77}))
        assert line.startswith("the run used 77 threads before and uses ") and "use 77 thr" in line
