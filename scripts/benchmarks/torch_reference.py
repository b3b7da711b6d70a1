"""A plain PyTorch implementation of the same network and objective.

It is an independent reference for tests and benchmarks; the package never imports it. It uses the
fastest fair settings: channels-last memory, targets without gradients, frozen parameters. Pixels
are RGB in [0, 255], ``[1, 3, H, W]``.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

CONVS = "11 12 21 22 31 32 33 34 41 42 43 44 51 52 53 54".split()


def to_torch(image: np.ndarray, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Convert ``[H, W, 3]`` in [0, 1] to ``[1, 3, H, W]`` in [0, 255]."""
    tensor = torch.tensor(np.asarray(image), dtype=dtype).permute(2, 0, 1)[None] * 255
    return tensor.contiguous()


class Vgg:
    """Features of VGG-19, from variables of nst_jax with Caffe's preprocessing."""

    def __init__(
        self,
        variables,
        *,
        pooling: str = "max",
        padding: str = "zero",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ):
        self.pooling, self.padding = pooling, padding
        mean, std = (np.array(variables["preprocessing"][key]) * 255 for key in ("mean", "std"))
        self.mean = torch.tensor(mean, dtype=dtype, device=device)[None, :, None, None]
        self.std = torch.tensor(std, dtype=dtype, device=device)[None, :, None, None]
        self.layers = []
        for name in CONVS:
            layer = variables["params"][f"conv{name[0]}_{name[1]}"]
            kernel = torch.tensor(np.array(layer["kernel"]), dtype=dtype).permute(3, 2, 0, 1)
            kernel = kernel.to(device).contiguous(memory_format=torch.channels_last)
            bias = torch.tensor(np.array(layer["bias"]), dtype=dtype, device=device)
            self.layers.append((name, kernel, bias))

    def __call__(self, pixels: torch.Tensor, taps: Sequence[str]) -> dict[str, torch.Tensor]:
        # L-BFGS of PyTorch needs contiguous parameters; its convolutions are faster channels-last.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        x, found = (pixels - self.mean) / self.std, {}
        for (block, index), kernel, bias in ((tuple(n), k, b) for n, k, b in self.layers):
            if index == "1" and block != "1":
                x = self.pool(x)
            x = self.conv(x, kernel, bias, first=block + index == "11")
            found[f"conv{block}_{index}"] = x
            x = F.relu(x)
            found[f"relu{block}_{index}"] = x
            if all(tap in found for tap in taps):
                break
        return {tap: found[tap] for tap in taps}

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        if self.pooling == "max":
            return F.max_pool2d(x, 2)
        if self.pooling == "l2":
            return 0.78 * F.lp_pool2d(x, 2, 2)
        return (2 if self.pooling == "average-scaled" else 1) * F.avg_pool2d(x, 2)

    def conv(
        self, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, *, first: bool
    ) -> torch.Tensor:
        mode = self.padding
        if mode == "replicate-input":
            mode = "replicate" if first else "zero"
        if mode == "zero":
            return F.conv2d(x, kernel, bias, padding=1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), kernel, bias)


def gram(features: torch.Tensor) -> torch.Tensor:
    """Sum of the outer products of features, ``[1, C, h, w]`` to ``[C, C]``."""
    flat = features[0].flatten(1)
    return flat @ flat.T


class NeuralStyle:
    """The objective of neural-style-pt: 5 content, 100 style, 1e-3 absolute total variation."""

    content_layers = ("relu4_2",)
    style_layers = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

    def __init__(self, vgg: Vgg, content: torch.Tensor, style: torch.Tensor):
        self.vgg = vgg
        self.taps = tuple(sorted(self.content_layers + self.style_layers))
        with torch.no_grad():
            self.content = vgg(content, self.content_layers)
            self.style = {
                name: gram(tap) / tap.numel() for name, tap in vgg(style, self.style_layers).items()
            }

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        taps = self.vgg(pixels, self.taps)
        loss = 1e-3 * (
            (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().sum()
            + (pixels[:, :, :, 1:] - pixels[:, :, :, :-1]).abs().sum()
        )
        for name in self.content_layers:
            loss = loss + 5 * F.mse_loss(taps[name], self.content[name])
        for name in self.style_layers:
            loss = loss + 100 * F.mse_loss(gram(taps[name]) / taps[name].numel(), self.style[name])
        return loss
