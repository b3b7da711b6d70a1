"""The commands ``stylize``, ``texture`` and ``reconstruct``: check and read inputs, then run."""

import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from nst_jax.checkpoint.store import Saved
from nst_jax.cli.checks import check_outputs, check_room, check_size, load_init
from nst_jax.cli.options import (
    REFUSED,
    Reconstruct,
    RegionOptions,
    RunOptions,
    StyleOptions,
    Stylize,
    Texture,
)
from nst_jax.cli.outputs import Job
from nst_jax.cli.parsing import Call, input_files
from nst_jax.cli.planning import make_spread_mesh
from nst_jax.cli.regions import check_region_options, load_style, load_style_inputs, region_names
from nst_jax.cli.run import execute
from nst_jax.config.config import Config, to_flat
from nst_jax.config.factors import parse_layers
from nst_jax.config.presets import get_preset
from nst_jax.errors import InputError
from nst_jax.images.read import image_shape, load_rgba
from nst_jax.transfer.problem import check_inputs
from nst_jax.transfer.pyramid import make_scales
from nst_jax.types import Guidance

# Options that are not listed among a record's settings: they are recorded elsewhere, or have no
# effect on the result.
UNRECORDED = ("config", "max_megapixels", "overwrite", "seed", "threads", "weights") + (
    "checkpoint",
    "checkpoint_every",
)

LARGE_SIZE = 8192  # pixels; for larger sizes the memory is checked before an image is read


def run_stylize(options: Stylize, call: Call, *, resumed: Saved | None = None) -> int:
    """Run ``nst-jax stylize``; see ``options.Stylize``.

    Args:
      options: the command's options.
      call: the command line from which they were parsed, for checkpoints.
      resumed: the checkpoint from which the run continues, if any. The options then name the
        copies of the input files in the checkpoint's folder.

    Returns:
      The exit code.

    Raises:
      InputError: for bad input, before anything is written; at the end, for outputs that cannot
        be written.
    """
    started = time.perf_counter()
    run, watch, config, size = options.run, options.watch, options.run.config, options.size
    check_size(size)
    check_region_options(options.regions, options.styles, config=config)
    mesh = make_spread_mesh(options.spread, config=config)
    if size > LARGE_SIZE:
        check_room(image_shape(options.content, size=size))
    files = input_files(options)
    steps = steps_of(options.content, size=size, config=config, mesh=mesh)
    check_outputs(options.output, run, watch, options.image, inputs=files, steps=steps)
    content = load_rgba(options.content, size=size)
    shape = content.rgb.shape[:2]
    given = load_style_inputs(
        options.regions, options.styles, config=config, shape=shape, size=size
    )
    inputs = check_inputs(
        content.rgb,
        given.styles,
        config=config,
        guidance=given.guidance,
        init=load_init(config, shape=content.rgb.shape),
        mesh=mesh,
        names=region_names(given.regions),
    )
    job = Job(
        output=options.output,
        inputs=inputs,
        config=config,
        alpha=content.alpha,
        run=run,
        watch=watch,
        image=options.image,
        settings=flat_settings(options, masks=given.regions),
        files=files,
        call=call,
        mesh=mesh,
    )
    return execute(job, started=started, resumed=resumed)


def run_texture(options: Texture, call: Call, *, resumed: Saved | None = None) -> int:
    """Run ``nst-jax texture``; see ``options.Texture``, and ``run_stylize`` for the arguments."""
    started = time.perf_counter()
    run, watch, config = options.run, options.watch, options.run.config
    if not options.style:
        raise InputError("no style image: expected nst-jax texture FILE")
    if options.tileable:
        config = config.but(padding="circular")
    refuse_changes(
        run,
        REFUSED["texture"],
        default=get_preset(run.preset).config.but(
            content_layers=(), content_losses=Config().loss.content_losses
        ),
        reason="a texture has no content image",
    )
    if config.initial.init in ("content", "blend"):
        raise InputError(
            f"init {config.initial.init} has no effect for a texture: expected noise or FILE"
        )
    styles = StyleOptions(style=options.style, style_blend=options.style_blend)
    check_region_options(RegionOptions(), styles, config=config)
    if len(options.size) not in (1, 2):
        raise InputError(
            f"size has {len(options.size)} numbers: expected --size N or --size WIDTH HEIGHT"
        )
    width, height = options.size[0], options.size[-1]
    style_size = max(width, height) if options.style_size is None else options.style_size
    for side in (width, height, style_size):
        check_size(side)
    shape = (height, width, 3)
    check_room(shape[:2])
    steps = sum(scale.steps for scale in make_scales(shape, config=config))
    files = input_files(options)
    check_outputs(options.output, run, watch, options.image, inputs=files, steps=steps)
    inputs = check_inputs(
        np.full(shape, 0.5, np.float32),  # in place of a content image; only its size matters
        [load_style(path, size=style_size) for path in options.style],
        config=config,
        guidance=Guidance(blend=options.style_blend or None),
        init=load_init(config, shape=shape),
    )
    job = Job(
        output=options.output,
        inputs=inputs,
        config=config,
        alpha=None,
        run=run,
        watch=watch,
        image=options.image,
        settings=flat_settings(options),
        files=files,
        call=call,
    )
    return execute(job, started=started, resumed=resumed)


def run_reconstruct(options: Reconstruct, call: Call, *, resumed: Saved | None = None) -> int:
    """Run ``nst-jax reconstruct``; see ``options.Reconstruct`` and ``run_stylize``."""
    started = time.perf_counter()
    run, watch = options.run, options.watch
    check_size(options.size)
    refuse_changes(
        run,
        REFUSED["reconstruct"],
        default=get_preset(run.preset).config.but(style_layers=()),
        reason="a reconstruction has no style, and --layer names its layers",
    )
    config = run.config.but(content_layers=parse_layers(",".join(options.layer)))
    if config.initial.init in ("content", "blend"):
        raise InputError(
            f"init {config.initial.init} has no effect for a reconstruction: expected noise or FILE"
        )
    steps = steps_of(options.content, size=options.size, config=config)
    files = input_files(options)
    check_outputs(options.output, run, watch, options.image, inputs=files, steps=steps)
    if options.size > LARGE_SIZE:
        check_room(image_shape(options.content, size=options.size))
    content = load_rgba(options.content, size=options.size)
    init = load_init(config, shape=content.rgb.shape)
    job = Job(
        output=options.output,
        inputs=check_inputs(content.rgb, [], config=config, init=init),
        config=config,
        alpha=content.alpha,
        run=run,
        watch=watch,
        image=options.image,
        settings=flat_settings(options),
        files=files,
        call=call,
    )
    return execute(job, started=started, resumed=resumed)


def refuse_changes(
    run: RunOptions, names: tuple[str, ...], *, default: Config, reason: str
) -> None:
    """Refuse changes of settings that have no effect in a command.

    Args:
      run: the command's options.
      names: flat names of the settings.
      default: the values that they must have.
      reason: why they have no effect, for the message.

    Raises:
      InputError: if one of them differs from the default.
    """
    for name in names:
        if to_flat(run.config)[name] != to_flat(default)[name]:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} has no effect here because {reason}: leave it out")


def steps_of(content: Path, *, size: int, config: Config, mesh: Mesh | None = None) -> int:
    """The number of steps over all scales.

    Raises:
      InputError: for an image that cannot be read, and for invalid scales.
    """
    if config.pyramid.min_size is None:
        return config.steps
    shape = image_shape(content, size=size)
    return sum(scale.steps for scale in make_scales(shape, config=config, mesh=mesh))


def flat_settings(options: Any, *, masks: Sequence[Any] = ()) -> dict[str, Any]:
    """A command's options without nesting, as the record lists them, and its regions if any."""
    flat: dict[str, Any] = {"masks": list(masks)} if masks else {}
    for field in fields(options):
        value = getattr(options, field.name)
        nested = field.name in ("styles", "regions", "run", "watch", "image")
        flat |= asdict(value) if nested else {field.name: value}
    return {key: value for key, value in flat.items() if key not in UNRECORDED}
