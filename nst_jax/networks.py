"""The two trained VGG-19 in use, and how to tell which one some weights are.

"caffe" is the original of Simonyan and Zisserman (2015), which Keras, MatConvNet and Gatys
distribute too; it takes BGR in 0-255 minus a mean. "torchvision" was trained anew and takes RGB
with the mean and deviation of ImageNet. Their arrays look alike, and the same network is stored
for RGB or for BGR; a wrong pairing of weights and preprocessing gives pictures that are only a
little worse, so it is settled by the first filter.
"""

from typing import NamedTuple

import numpy as np

from nst_jax.canonical import Preprocessing
from nst_jax.weight_forms import CAFFE_MEAN

PREPROCESSING = {
    "caffe": Preprocessing(
        kind="caffe",
        mean=(CAFFE_MEAN[0] / 255, CAFFE_MEAN[1] / 255, CAFFE_MEAN[2] / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
    ),
    "torchvision": Preprocessing(
        kind="torchvision", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
}

# (licence, attribution) of each network; what it asks for is passed on with every converted file.
CREDITS = {
    "caffe": (
        "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        "VGG-19 by Karen Simonyan and Andrew Zisserman, Visual Geometry Group, University of "
        "Oxford, https://www.robots.ox.ac.uk/~vgg/research/very_deep/. Changed: layout of the "
        "arrays, fully connected layers left out.",
    ),
    "torchvision": (
        "BSD-3-Clause, https://github.com/pytorch/vision/blob/main/LICENSE",
        "VGG-19 of torchvision (IMAGENET1K_V1), copyright Soumith Chintala 2016 and "
        "contributors. Changed: layout of the arrays, fully connected layers left out.",
    ),
}

# The first filter of conv1_1 as [channel (R, G, B), row, column]. One filter and not a statistic
# of all: it tells networks, channel orders and transpositions apart by at least 0.05 in some
# entry, and it is all that is printed of torchvision's network without its file. The tolerance
# leaves room for weights that were rounded to 16 bits.
FIRST_FILTER = {
    "caffe": (
        (
            (0.39417, 0.37740, -0.04595),
            (0.26713, 0.09986, -0.34101),
            (-0.07574, -0.28034, -0.41602),
        ),
        (
            (0.46418, 0.41811, -0.04807),
            (0.30511, 0.10385, -0.37314),
            (-0.07647, -0.31071, -0.46454),
        ),
        (
            (0.34120, 0.33999, -0.04484),
            (0.23216, 0.08978, -0.30331),
            (-0.07261, -0.24668, -0.33683),
        ),
    ),
    "torchvision": (
        ((-0.05347, -0.04926, -0.06794), (0.01531, 0.04507, 0.00214), (0.03623, 0.02000, 0.01986)),
        ((0.01702, 0.05540, -0.00623), (0.14165, 0.22705, 0.13758), (0.12000, 0.20030, 0.09211)),
        ((-0.04489, 0.01268, -0.01450), (0.05974, 0.13955, 0.05410), (-0.00096, 0.05830, -0.02966)),
    ),
}
_TOLERANCE = 2e-3


class Layout(NamedTuple):
    """What kernels as stored are: of which network, whether for BGR, whether [width, height]."""

    network: str
    bgr: bool
    transposed: bool = False


def recognise(kernel: np.ndarray) -> Layout | None:
    """Which known network a first kernel belongs to, and in which layout it is stored.

    Args:
      kernel: conv1_1's kernel [3, 3, 3, out] as it is in the file.

    Returns:
      None for a network that is not known.
    """
    first = kernel[..., 0].transpose(2, 0, 1)
    for network, target in FIRST_FILTER.items():
        for bgr in (False, True):
            for transposed in (False, True):
                candidate = first[::-1] if bgr else first
                candidate = candidate.swapaxes(1, 2) if transposed else candidate
                if np.allclose(candidate, target, rtol=0, atol=_TOLERANCE):
                    return Layout(network, bgr, transposed)
    return None
