"""The loss of every preset against an independent implementation, in NumPy and float64.

The implementations follow the code of each tool, with its own preprocessing, Gram matrices, sums
and total variation; only the kernels come from the package. The network has few channels but full
depth, and all channels where a formula depends on their number.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import smooth_image

from nst_jax.config import CHANNELS, PRESETS
from nst_jax.losses import loss_weights, make_loss
from nst_jax.models import init_variables

pytestmark = pytest.mark.sampled

CONVS = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 4, 4, 4), start=1) for i in range(1, n + 1)]
FIVE = [f"relu{block}_1" for block in range(1, 6)]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
BGR_MEAN = (103.939, 116.779, 123.68)


# The network as the tools run it: layer name -> features, [channels, height, width].


def caffe_input(image):
    """BGR from 0 to 255, less the mean."""
    return image[..., ::-1] * 255 - np.array(BGR_MEAN)


def torchvision_input(image):
    return (image - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])


def network(variables, image, *, torchvision=False, pooling="max", edge=False):
    """Features before and after each ReLU; for BGR input the first kernel is flipped to BGR."""
    x = torchvision_input(image) if torchvision else caffe_input(image)
    taps = {}
    for name in CONVS:
        kernel, bias = (np.float64(variables["params"][name][key]) for key in ("kernel", "bias"))
        if name == "conv1_1" and not torchvision:
            kernel = kernel[:, :, ::-1]
        if name.endswith("_1") and name != "conv1_1":
            height, width = (side // 2 * 2 for side in x.shape[:2])
            corners = [x[i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
            x = (np.max if pooling == "max" else np.mean)(corners, axis=0)
        mode = "edge" if edge and name == "conv1_1" else "constant"
        padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode=mode)
        height, width = x.shape[:2]
        shifted = [
            padded[i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
        ]
        taps[name] = np.sum(shifted, axis=0) + bias
        x = np.maximum(taps[name], 0)
        taps[name.replace("conv", "relu")] = x
    return {name: tap.transpose(2, 0, 1) for name, tap in taps.items()}


def flat(features):
    return features.reshape(len(features), -1)


def mse(a, b):
    return np.mean((a - b) ** 2)


def gram(features):
    """F F^T."""
    return flat(features) @ flat(features).T


def gram_hw(features):
    return gram(features) / flat(features).shape[1]


def gram_chw(features):
    return gram(features) / features.size


# Each formula takes the features of image, content and style, and the image. It returns the
# content, style and total variation terms.


def neural_style(x, c, s, image):
    z = 255 * image
    content = 5 * mse(x["relu4_2"], c["relu4_2"])
    style = sum(100 * mse(gram_chw(x[n]), gram_chw(s[n])) for n in FIVE)
    rows, columns = np.abs(z[1:] - z[:-1]), np.abs(z[:, 1:] - z[:, :-1])
    return content, style, 1e-3 * (columns.sum() + rows.sum())


def neural_style_lua(x, c, s, image):
    z = 255 * image
    content = mse(x["relu4_2"], c["relu4_2"])
    style = sum(300 * mse(gram_chw(x[n]), gram_chw(s[n])) for n in FIVE)
    rows, columns = z[1:] - z[:-1], z[:, 1:] - z[:, :-1]
    return content, style, 3e-3 * 0.5 * ((columns**2).sum() + (rows**2).sum())


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def style_transfer_pytorch(x, c, s, image):
    def moments(features):
        mean = features.mean(axis=(1, 2))
        second = np.einsum("chw,dhw->cd", features, features) / features[0].size
        return mean, second - np.outer(mean, mean) + 1e-4 * np.eye(len(mean))

    def distance(features, target):
        (mean, covariance), (mean_to, covariance_to) = moments(features), moments(target)
        half = root(covariance_to)
        crossed = root(half @ covariance @ half)
        return mse(mean, mean_to) + np.diag(covariance_to + covariance - 2 * crossed).mean()

    weights = np.array([256, 64, 16, 4, 1]) / 341
    style = sum(w * distance(x[n], s[n]) for n, w in zip(FIVE, weights, strict=True))
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[1:-1, 2:] - padded[1:-1, 1:-1]
    along = padded[2:, 1:-1] - padded[1:-1, 1:-1]
    falling, rising = padded[1:, 1:] - padded[:-1, :-1], padded[1:, :-1] - padded[:-1, 1:]
    squares = [np.mean(d**2) for d in (across, along, falling, rising)]
    tv = 2 * (squares[0] / 3 + squares[1] / 3 + squares[2] / 12 + squares[3] / 12)
    return 0.015 * mse(x["relu4_2"], c["relu4_2"]), style, 2.0 * tv


def prism(x, c, s, image):
    given = dict.fromkeys(FIVE, 1)
    weights = {name: weight / sum(given.values()) for name, weight in given.items()}
    style = sum(weights[n] * mse(gram_chw(x[n]), gram_chw(s[n])) for n in FIVE)
    return mse(x["relu4_2"], c["relu4_2"]), 1000 * style, 0.0


def pystiche(x, c, s, image):
    style = np.mean([mse(gram_hw(x[n]), gram_hw(s[n])) for n in FIVE])
    return mse(x["relu4_2"], c["relu4_2"]), 1e3 * style, 0.0


def gatys(x, c, s, image):
    weights = [1e3 / n**2 for n in (64, 128, 256, 512, 512)]
    style = sum(w * mse(gram_hw(x[n]), gram_hw(s[n])) for n, w in zip(FIVE, weights, strict=True))
    return mse(x["relu4_2"], c["relu4_2"]), style, 0.0


def gatys_2017(x, c, s, image):
    weight = 1e9 / len(FIVE)
    style = sum(weight * mse(gram_hw(x[n]), gram_hw(s[n])) for n in FIVE)
    return 1e6 * mse(x["relu4_2"], c["relu4_2"]), style, 0.0


def spst(x, c, s, image):
    def statistics(features):
        g, mean = gram_hw(features), features.mean(axis=(1, 2))
        return g, mean, np.sqrt(np.diag(g) - mean**2)

    style = 0.0
    for name in FIVE:
        n = len(x[name])
        gram_weight = 1e3 / n**2
        moment_weight = gram_weight * n**2 * 1000 / 100
        weights = gram_weight, moment_weight, moment_weight
        pairs = zip(weights, statistics(x[name]), statistics(s[name]), strict=True)
        style += sum(w * np.sum((a - b) ** 2) / a.size for w, a, b in pairs)
    return mse(x["relu4_2"], c["relu4_2"]), style, 0.0


def course(x, c, s, image, layers=((0.2, name) for name in FIVE)):
    channels, height, width = x["relu4_2"].shape
    content = ((x["relu4_2"] - c["relu4_2"]) ** 2).sum() / (4 * height * width * channels)
    style = 0.0
    for proportion, name in layers:
        channels, height, width = x[name].shape
        # All images of the course have one size. Scale the Gram matrix of a style of another size
        # as if the style were tiled to the size of the image.
        tiled = gram(s[name]) * (height * width / flat(s[name]).shape[1])
        difference = ((tiled - gram(x[name])) ** 2).sum()
        style += proportion * difference / (4 * channels**2 * (height * width) ** 2)
    return 10 * content, 40 * style, 0.0


def course_single(x, c, s, image):
    return course(x, c, s, image, layers=[(1.0, "relu3_1")])


def pytorch_tutorial(x, c, s, image):
    convs = CONVS[:5]
    style = sum(mse(gram_chw(x[n]), gram_chw(s[n])) for n in convs)
    return mse(x[convs[3]], c[convs[3]]), 1e6 * style, 0.0


def tf_tutorial(x, c, s, image):
    def gram_tf(features):
        maps = features.transpose(1, 2, 0)
        return np.einsum("ijc,ijd->cd", maps, maps) / (maps.shape[0] * maps.shape[1])

    style = sum(mse(gram_tf(x[n]), gram_tf(s[n])) for n in FIVE)
    rows, columns = image[1:] - image[:-1], image[:, 1:] - image[:, :-1]
    tv = np.abs(columns).sum() + np.abs(rows).sum()
    return 1e4 * mse(x["relu5_2"], c["relu5_2"]), 1e-2 / 5 * style, 30 * tv


def keras_tutorial(x, c, s, image):
    height, width, _ = image.shape
    z = caffe_input(image)
    content = ((x["relu5_2"] - c["relu5_2"]) ** 2).sum()
    style = sum(
        ((gram(s[n]) - gram(x[n])) ** 2).sum() / (4 * 3**2 * (height * width) ** 2) for n in FIVE
    )
    a = (z[: height - 1, : width - 1] - z[1:, : width - 1]) ** 2
    b = (z[: height - 1, : width - 1] - z[: height - 1, 1:]) ** 2
    return 2.5e-8 * content, 1e-6 / 5 * style, 1e-6 * np.power(a + b, 1.25).sum()


def wasserstein(x, c, s, image):
    content, style, _ = style_transfer_pytorch(x, c, s, image)
    z = 255 * image
    differences = np.abs(np.diff(z, axis=0)).sum() + np.abs(np.diff(z, axis=1)).sum()
    return 0.007 / 0.015 * content, style, 10 * differences / z.size


fast = neural_style

FORMULAS = {name: globals()[name.replace("-", "_")] for name in PRESETS}
OPTIONS = {
    "style-transfer-pytorch": dict(edge=True),
    "course": dict(pooling="average"),
    "course-single": dict(pooling="average"),
}


@pytest.fixture(scope="module")
def wide_variables():
    return init_variables(jax.random.key(3), channels=CHANNELS)


def value_and_terms(config, variables, image, content, style):
    loss = make_loss(config.loss)

    @jax.jit
    def value(variables, image, content, style):
        targets = loss.targets(variables, content, [style], weights=loss_weights(config))
        return loss.head(loss.statistics(variables, image, targets), targets)

    return value(variables, image, content, style)


@pytest.mark.parametrize("name", PRESETS)
def test_loss_is_that_of_the_tool(x64, variables, request, name):
    preset = PRESETS[name]
    torchvision = preset.weights == "torchvision"
    shapes = [(36, 52), (36, 52), (40, 33)]
    if name == "keras-tutorial":  # sums depend on the channels; strides must divide the sides
        variables, shapes = request.getfixturevalue("wide_variables"), [(16, 32)] * 3
    images = [np.float64(smooth_image(*s, seed=i)) for i, s in enumerate(shapes, start=5)]
    maps = [
        network(variables, image, torchvision=torchvision, **OPTIONS.get(name, {}))
        for image in images
    ]
    expected = np.array(FORMULAS[name](*maps, images[0]))
    if name == "keras-tutorial":  # the preset's content weight is for the sum over 600x400 pixels
        expected[0] *= (25 * 37) / (1 * 2)
    caffe = {"mean": np.array(BGR_MEAN[::-1]) / 255, "std": np.full(3, 1 / 255)}
    normalization = IMAGENET if torchvision else caffe
    tree = {"params": variables["params"], "preprocessing": normalization}
    tree = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float64), tree, is_leaf=lambda x: isinstance(x, tuple)
    )
    value, terms = value_and_terms(preset.config, tree, *images)
    np.testing.assert_allclose(terms, expected, rtol=1e-6)
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-6)
    assert min(expected[:2]) > 0 and (expected[2] > 0) == (preset.config.loss.tv_weight > 0)
