"""What goes into a run: its pictures, checked, and the picture that it starts from.

Contract: images are float32 RGB in [0, 1], ``[H, W, 3]``.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nst_jax.config import INITS, Config
from nst_jax.errors import InputError
from nst_jax.layers import check_multiple, check_sides, check_squares
from nst_jax.types import Array, Variables


def as_picture(picture: ArrayLike) -> Array:
    """A picture as an array of float32 or wider; integers stay, to be refused.

    >>> as_picture(jnp.zeros((2, 2, 3), jnp.float16)).dtype
    dtype('float32')
    """
    array = jnp.asarray(picture)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def check_pictures(
    content: Any, styles: Sequence[Any], *, config: Config, init: Any = None
) -> None:
    """Check the pictures against each other and against the layers of ``config``.

    Raises:
      InputError: with what is wrong and what was expected.
    """
    check_picture("content picture", content)
    if init is not None:
        check_initial(init, shape=content.shape)
    if config.loss.style_layers and not styles:
        raise InputError("no style picture: expected at least one")
    check_shape(content.shape[0], content.shape[1], config=config)
    for style in styles:
        check_style(style, config=config)


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
      InputError: where ``config.init`` is none of the three.
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
