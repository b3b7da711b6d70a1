"""Library functions that take flat keywords and gather them into records.

``Guidance`` takes ``blend``, masks, ``region_weights`` and ``preserve``; ``Execution`` takes
``execution_plan``, ``free``, ``mesh`` and ``together``; ``Custom`` takes ``loss`` and
``optimizer``; ``Callback`` takes ``callback`` and ``every``.
"""

from nst_jax.transfer import Callback, Custom, Execution, batch, check_inputs, problem, single
from nst_jax.types import Guidance

GUIDANCE = Guidance._fields


def taken(given, names):
    """Remove the keywords with these names and return them."""
    return {name: given.pop(name) for name in names if name in given}


def guided(given):
    """Gather keywords of ``Guidance``, if there are any."""
    given = dict(given)
    if guidance := taken(given, GUIDANCE):
        given["guidance"] = Guidance(**guidance)
    return given


def gathered(given):
    """Gather keywords of ``stylize`` into its records."""
    given = guided(given)
    execution = taken(given, Execution._fields)
    if "execution_plan" in given:
        execution["plan"] = given.pop("execution_plan")
    if execution:
        given["execution"] = Execution(**execution)
    if custom := taken(given, Custom._fields):
        given["custom"] = Custom(**custom)
    if "every" in given:
        given["callback"] = Callback(given.get("callback") or (lambda _: None), given.pop("every"))
    return given


def stylize(variables, content, styles, **given):
    return single.stylize(variables, content, styles, **gathered(given))


def stylize_batch(variables, contents, styles, **given):
    blend = taken(given, ("blend",))
    return batch.stylize_batch(variables, contents, styles, **gathered(given), **blend)


def run_batch(elements, **given):
    return batch.run_batch(elements, **gathered(given))


def make_problem(variables, content, styles, *, config, **given):
    """Check the inputs and make the problem, as ``stylize`` does for a single scale."""
    given = gathered(given)
    guidance = taken(given, ("guidance",))
    inputs = check_inputs(content, styles, config=config, **guidance)
    settings = {name: given[name] for name in ("custom", "execution") if name in given}
    problem.check_run(variables, config=config, **settings)
    return problem.make_problem(variables, inputs, config=config, **given)
