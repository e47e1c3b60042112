"""Per-record weight gradients of each kind of layer: formed for a chunk of records, summed over the rows of each.

A record owns `rows` consecutive rows of the batch (noise draws, or several images of one person). They are laid side by
side before the product, so the rows of a record cost no further gradient memory, and the result is exactly the gradient
of the sum of their losses.

Every product runs record by record (a batched matrix product), so a record that holds NaN or infinity spoils its own
gradient and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Workspace:
    """Scratch memory that is kept between chunks: fresh pages cost as much as the copies that fill them."""

    def __init__(self) -> None:
        self._held: dict[tuple[object, ...], Tensor] = {}

    def like(self, view: Tensor) -> Tensor:
        """A contiguous tensor of the shape and kind of `view`, with anything in it; the same one every time."""
        key = (*view.shape, view.dtype, view.device)
        if key not in self._held:
            self._held[key] = torch.empty(view.shape, dtype=view.dtype, device=view.device)
        return self._held[key]


class Rule(NamedTuple):
    """How one kind of layer turns what book-keeping kept into gradients.

    Attributes:
        gradients: `(module, activation, output_gradient, rows, workspace)` to a dictionary from parameter name to
            per-record gradients `(R, n)`, in whatever order of coordinates is cheapest.
        restore: `(module, name, vector)` puts a sum of such rows, `(n,)`, into the parameter's own shape.
        obstacle: what a module of this kind may not have, or None where it is supported.
    """

    gradients: Callable[[nn.Module, Tensor, Tensor, int, Workspace], dict[str, Tensor]]
    restore: Callable[[nn.Module, str, Tensor], Tensor]
    obstacle: Callable[[nn.Module], str | None]


def _linear(
    module: nn.Module, activation: Tensor, gradient: Tensor, rows: int, workspace: Workspace
) -> dict[str, Tensor]:
    """`G_i = sum over tokens of g a^T` for inputs `(R rows, ..., d)` and output gradients `(R rows, ..., p)`."""
    records = len(activation) // rows
    a = activation.reshape(records, -1, activation.shape[-1])
    g = gradient.reshape(records, -1, gradient.shape[-1])
    return {"weight": (g.transpose(1, 2) @ a).flatten(1), "bias": g.sum(1)}


def _convolution(
    module: nn.Module, activation: Tensor, gradient: Tensor, rows: int, workspace: Workspace
) -> dict[str, Tensor]:
    """A convolution is a linear layer on patches: inputs `(R rows, C, H, W)`, output gradients `(R rows, P, h, w)`."""
    assert isinstance(module, nn.Conv2d)
    records = len(activation) // rows
    patches = _patches(activation, module, workspace).reshape(records, -1, module.weight[0].numel())
    g = gradient.permute(0, 2, 3, 1).reshape(records, -1, module.out_channels)
    return {"weight": (g.transpose(1, 2) @ patches).flatten(1), "bias": g.sum(1)}


def _patches(x: Tensor, module: nn.Conv2d, workspace: Workspace) -> Tensor:
    """`(N, C, H, W)` to `(N, h w, k_h k_w C)`: kernel rows are contiguous runs of channels-last memory."""
    (kernel_h, kernel_w), (step_h, step_w) = module.kernel_size, module.stride
    pad_h, pad_w = (int(size) for size in module.padding)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad_w, pad_w, pad_h, pad_h)).contiguous()
    n, height, width, channels = x.shape
    h, w = (height - kernel_h) // step_h + 1, (width - kernel_w) // step_w + 1
    by_image, by_line, by_pixel, _ = x.stride()
    view = x.as_strided(
        (n, h, w, kernel_h, kernel_w * channels), (by_image, step_h * by_line, step_w * by_pixel, by_line, 1)
    )
    return workspace.like(view).copy_(view).view(n, h * w, kernel_h * kernel_w * channels)


def _restore_linear(module: nn.Module, name: str, vector: Tensor) -> Tensor:
    return vector.view_as(module.get_parameter(name))


def _restore_convolution(module: nn.Module, name: str, vector: Tensor) -> Tensor:
    assert isinstance(module, nn.Conv2d)
    if name == "bias":
        return vector
    patch_order = (module.out_channels, *module.kernel_size, module.in_channels)
    return vector.view(patch_order).permute(0, 3, 1, 2)


def _convolution_obstacle(module: nn.Module) -> str | None:
    assert isinstance(module, nn.Conv2d)
    if module.groups != 1 or module.dilation != (1, 1):
        return "groups or dilation"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return "padding other than a fixed number of zeros"
    return None


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(_linear, _restore_linear, lambda module: None),
    nn.Conv2d: Rule(_convolution, _restore_convolution, _convolution_obstacle),
}
