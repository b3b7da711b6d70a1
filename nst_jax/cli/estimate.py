"""The command ``estimate``: how much memory a run needs."""

import jax
import jax.numpy as jnp

from nst_jax.cli.checks import check_size, obtain_weights
from nst_jax.cli.options import Estimate
from nst_jax.cli.planning import as_input_error
from nst_jax.errors import InputError
from nst_jax.images.read import image_shape
from nst_jax.system.memory import free_bytes, in_gib, process_memory
from nst_jax.transfer.plan import Task, execution_in_words
from nst_jax.transfer.planner import choose
from nst_jax.transfer.problem import check_run, check_shape
from nst_jax.transfer.pyramid import make_scales
from nst_jax.types import Guidance


def estimate(options: Estimate) -> int:
    """Run ``nst-jax estimate``; see ``options.Estimate``.

    Returns:
      The exit code.

    Raises:
      InputError: for bad input, and if no execution plan fits, with the largest size that does.
    """
    config = options.run.config
    check_size(options.size)
    if not 0 <= options.styled_regions <= 100:
        raise InputError(f"styled_regions is {options.styled_regions}: expected 0 to 100")
    if options.memory is not None and not 0 < options.memory < 1e6:
        raise InputError(f"memory is {options.memory}: expected GiB, above 0 and under a million")
    height, width = image_shape(options.content, size=options.size)
    check_shape(height, width, config=config)
    scales = make_scales((height, width), config=config)
    weights = obtain_weights(options.run.weights, model=options.run.model)
    check_run(weights.variables, config=config)

    image = jax.ShapeDtypeStruct((height, width, 3), jnp.float32)
    guidance = Guidance()
    if options.styled_regions:
        shape = (options.styled_regions, height, width)
        guidance = Guidance(content_masks=jax.ShapeDtypeStruct(shape, jnp.float32))
    device = jax.local_devices()[0]
    process = process_memory()
    free = free_bytes(device)
    if options.memory is not None:
        free = max(0, int(options.memory * 2**30) - process)
    task = Task(weights.variables, image, [image], config, guidance)
    try:
        plan = choose(task, free=free)
    except jax.errors.JaxRuntimeError as error:
        raise as_input_error(error, width=width, height=height) from None
    if plan is None:
        raise InputError(f"XLA does not report the memory of programs on {device.platform}")

    needs = plan.needs
    parts = {
        "program": process,
        "network": needs.network,
        "content and style": needs.targets,
        "image and optimiser": needs.state,
        "activations": needs.scratch,
    }
    print(f"{width}x{height} px with {weights.info.name} on {device.device_kind}")
    for name, size in (parts | {"total": sum(parts.values())}).items():
        print(f"  {name:<22}{in_gib(size):>10}")
    available = "unknown" if free is None else in_gib(free + process)
    print(f"  {'available':<22}{available:>10}")
    if plan.whole is not None:
        print(f"the whole image at once would need {in_gib(plan.whole + process)}")
    print(f"execution plan: {execution_in_words(plan.execution_plan)}")
    if len(scales) > 1:
        listed = ", ".join(f"{s.shape[1]}x{s.shape[0]} ({s.steps} steps)" for s in scales)
        print(f"scales: {listed}; the figures are those of the last one")
    return 0
