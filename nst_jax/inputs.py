"""What goes into a run: its pictures, checked, and the picture that it starts from.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``. ``check_inputs`` is the one border: what
it returns is trusted by all that follows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from nst_jax.config import INITS, Config
from nst_jax.errors import InputError
from nst_jax.layers import check_multiple, check_sides, check_squares
from nst_jax.mask_checks import check_guidance
from nst_jax.rows import check_rows, divides_rows
from nst_jax.types import Array, Guidance, Variables, as_sequence


class Inputs(NamedTuple):
    """Pictures and masks of a run, checked; of NumPy or on the device.

    Attributes:
      content: the content picture, ``[H, W, 3]``.
      styles: the style pictures, ``[h, w, 3]`` each.
      guidance: which style holds where, see ``mask_checks.check_guidance``.
      init: the initial picture in place of the config's, ``[H, W, 3]``, or None.
    """

    content: Any
    styles: list[Any]
    guidance: Guidance = Guidance()
    init: Any = None


def check_inputs(
    content: ArrayLike,
    styles: ArrayLike | Sequence[ArrayLike],
    *,
    config: Config,
    guidance: Guidance = Guidance(),
    init: ArrayLike | None = None,
    mesh: Mesh | None = None,
    layers: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Inputs:
    """Check all that a run is given, once, before anything is computed.

    Args:
      content: ``[H, W, 3]`` in [0, 1].
      styles: one picture or a sequence, ``[h, w, 3]`` each.
      config: settings.
      guidance: which style holds where.
      init: initial picture, if any.
      mesh: devices of the run, if any; one of ``rows.rows_mesh`` has to divide the picture.
      layers: taps of an objective of one's own, which ``mesh`` has to divide in place of the
        config's.
      names: what to call the regions in errors in place of their numbers.

    Returns:
      The ``Inputs``.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    picture = as_picture(content)
    pictures = [as_picture(style) for style in as_sequence(styles)]
    init = None if init is None else as_picture(init)
    check_picture("content picture", picture)
    if init is not None:
        check_initial(init, shape=picture.shape)
    if config.loss.style_layers and not pictures:
        raise InputError("no style picture: expected at least one")
    check_shape(picture.shape[0], picture.shape[1], config=config)
    for style in pictures:
        check_style(style, config=config)
    guidance = check_guidance(picture, pictures, guidance, config=config.loss, names=names)
    if mesh is not None and divides_rows(mesh):
        check_rows(picture.shape[0], picture.shape[1], mesh=mesh, config=config, layers=layers)
    return Inputs(picture, pictures, guidance, init)


def as_picture(picture: ArrayLike) -> Any:
    """A picture as an array of float32 or wider; integers stay, to be refused.

    Arrays of NumPy stay on the host.

    >>> as_picture(jnp.zeros((2, 2, 3), jnp.float16)).dtype
    dtype('float32')
    """
    array: Any = picture if isinstance(picture, np.ndarray) else jnp.asarray(picture)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(array.dtype, jnp.float32))
    return array if array.dtype == dtype else array.astype(dtype)


def check_shape(height: int, width: int, *, config: Config) -> None:
    """Check the size of a result for the layers of ``config``.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    names = config.loss
    what = "content picture" if names.content_names else "picture"  # may be a mere canvas
    check_sides(height, width, names.layers, what=what, padding=names.padding)
    check_squares(height, width, names.laplacians, what=what)
    if names.padding == "circular":
        check_multiple(height, width, names.aligned_layers)


def check_style(style: Any, *, config: Config) -> None:
    """Check a style picture by itself.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    check_picture("style picture", style)
    if config.loss.style_layers:
        check_sides(
            style.shape[0],
            style.shape[1],
            config.loss.style_names,
            what="style picture",
            padding=config.loss.padding,
        )


def check_initial(init: Any, *, shape: tuple[int, ...]) -> None:
    """Check an initial picture for a result of a shape.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    check_picture("initial picture", init)
    if init.shape != shape:
        raise InputError(
            f"the initial picture has shape {init.shape}: expected the content's {shape}"
        )


def check_picture(what: str, picture: Any) -> None:
    """Check that an array is a picture.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise InputError(f"the {what} has shape {picture.shape}: expected [height, width, 3]")
    if not jnp.issubdtype(picture.dtype, jnp.floating):
        raise InputError(
            f"the {what} has numbers of type {picture.dtype}: expected floats in [0, 1]; divide "
            "by 255"
        )
    # An unclipped result may be the next run's input, so a little outside is right.
    if not jnp.isfinite(picture).all():
        raise InputError(f"the {what} has NaN or infinite values: expected [0, 1]")
    if picture.size and max(-picture.min(), picture.max() - 1) > 1.5:
        raise InputError(
            f"the {what} has values from {float(picture.min()):.4g} to {float(picture.max()):.4g}: "
            "expected [0, 1]"
        )


def initial_image(content: Array, variables: Variables, *, config: Config, key: Array) -> Array:
    """The picture that the optimisation starts from.

    noise = mean + noise_scale * N(0, 1)  or  mean + noise_scale * U(-1, 1)
    blend = noise_ratio * noise + (1 - noise_ratio) * content

    with the network's mean colour, so that the blend is the course version's, which mixes
    mean-subtracted pictures.

    Args:
      content: ``[H, W, 3]`` in [0, 1].
      variables: the network's variables, for its mean colour.
      config: ``init``, ``noise``, ``noise_scale`` and ``noise_ratio`` are read.
      key: PRNG key.

    Returns:
      ``[H, W, 3]``, not clipped.

    Raises:
      InputError: where ``config.initial.init`` is none of the three.
    """
    if config.initial.init not in INITS:
        raise InputError(
            f"init is {config.initial.init!r}: expected content, noise or blend, or that file's "
            "picture as stylize(..., init=picture)"
        )
    if config.initial.init == "content":
        return content
    if config.initial.noise == "normal":
        noise = jax.random.normal(key, content.shape, content.dtype)
    else:
        noise = jax.random.uniform(key, content.shape, content.dtype, -1, 1)
    mean = variables["preprocessing"]["mean"].astype(content.dtype)
    noise = mean[None, None] + config.initial.noise_scale * noise
    ratio = 1.0 if config.initial.init == "noise" else config.initial.noise_ratio
    return ratio * noise + (1 - ratio) * content
