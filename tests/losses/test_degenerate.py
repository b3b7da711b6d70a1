"""Objectives of all losses at once on images in which there is nothing to compare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nst_jax.config import Config
from nst_jax.config.factors import CONTENT_LOSSES, STYLE_LOSSES
from nst_jax.losses import loss_weights, make_loss

pytestmark = pytest.mark.sampled

SIDE = 16  # one position in relu5_1
NOISE = np.random.default_rng(0).uniform(size=(SIDE, SIDE, 3))
IMAGES = {
    "noise": NOISE,
    "black": np.zeros((SIDE, SIDE, 3)),
    "white": np.ones((SIDE, SIDE, 3)),
    "grey": np.full((SIDE, SIDE, 3), 0.4),
    "nearly black": 1e-4 * NOISE,
    "half": NOISE * (np.arange(SIDE) < SIDE // 2)[:, None],
}
STRUCTURES = {
    "float32": dict(tv_form="isotropic", tv_order=1.0),
    "bfloat16": dict(precision="bfloat16", convolution="direct", tv_form="nine-point", tv_order=2),
    "two styles": dict(style_mixing="sum", tv_form="anisotropic", tv_order=1, padding="circular"),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_loss_and_gradient_are_finite(variables, structure):
    """Each image against each as the style, with itself or that style as the content."""
    config = Config.of(
        content_losses=list(CONTENT_LOSSES),
        style_losses=list(STYLE_LOSSES),
        **STRUCTURES[structure],
    )
    loss = make_loss(config.loss)

    @jax.jit
    def evaluate(variables, image, content, style):
        styles = [style, content] if structure == "two styles" else [style]
        targets = loss.targets(variables, content, styles, weights=loss_weights(config))
        return jax.value_and_grad(
            lambda image: loss.head(loss.statistics(variables, image, targets), targets),
            has_aux=True,
        )(image)

    images = {name: jnp.asarray(x, jnp.float32) for name, x in IMAGES.items()}
    for name, image in images.items():
        for style_name, style in images.items():
            for content in (image, style):
                (_, terms), gradient = evaluate(variables, image, content, style)
                where = f"{name} in the style of {style_name}"
                assert np.isfinite(jax.tree.leaves(terms)).all(), where
                assert np.isfinite(gradient).all(), where
                if content is image:
                    assert terms.content < 1e-4, where
