"""Per-record gradients of each kind of layer, formed for a chunk of records and summed over the rows of each.

A record owns `rows` consecutive rows of the batch (noise draws, or several images of one person). They are laid side by
side before the product, so the rows of a record cost no further gradient memory, and the result is exactly the gradient
of the sum of their losses.

Every product runs record by record (a batched matrix product), so a record that holds NaN or infinity spoils its own
gradient and no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Workspace:
    """Scratch memory that is kept between chunks: fresh pages cost as much as the copies that fill them."""

    def __init__(self) -> None:
        self.kept = 0  # bytes of gradients that wait to be added
        self._held: dict[tuple[object, ...], Tensor] = {}

    def like(self, view: Tensor, dtype: torch.dtype | None = None, use: str = "") -> Tensor:
        """A contiguous tensor of the shape of `view`, with anything in it; the same one every time for one use."""
        key = (use, *view.shape, dtype or view.dtype, view.device)
        if key not in self._held:
            self._held[key] = torch.empty(view.shape, dtype=dtype or view.dtype, device=view.device)
        return self._held[key]

    def double(self, x: Tensor, use: str) -> Tensor:
        """A copy of `x` in double precision, which the next one for the same use overwrites."""
        return self.like(x, torch.float64, use).copy_(x)


class Rule(NamedTuple):
    """How one kind of layer turns what book-keeping kept into gradients.

    Attributes:
        gradients: `(module, activation, output_gradient, rows, workspace)` to a dictionary from parameter name to
            per-record gradients `(R, n)`, in whatever order of coordinates is cheapest.
        restore: `(module, name, vector)` puts a sum of such rows, `(n,)`, into the parameter's own shape.
        obstacle: what a module of this kind may not have, or None where it is supported.
    """

    gradients: Callable[[Any, Tensor, Tensor, int, Workspace], dict[str, Tensor]]
    restore: Callable[[Any, str, Tensor], Tensor]
    obstacle: Callable[[Any], str | None] = lambda module: None


def by_record(x: Tensor, rows: int) -> Tensor:
    """`(R rows, ..., d)` to `(R, positions, d)`: all positions of all rows of a record, one after the other."""
    return x.reshape(len(x) // rows, -1, x.shape[-1])


def _linear(module: nn.Linear, activation: Tensor, gradient: Tensor, rows: int, _: Workspace) -> dict[str, Tensor]:
    """`G_i = sum over positions of g a^T` for inputs `(R rows, ..., d)` and output gradients `(R rows, ..., p)`."""
    a, g = by_record(activation, rows), by_record(gradient, rows)
    return {"weight": (g.transpose(1, 2) @ a).flatten(1), "bias": g.sum(1)}


def _convolution(
    module: nn.Conv2d, activation: Tensor, gradient: Tensor, rows: int, workspace: Workspace
) -> dict[str, Tensor]:
    """A convolution is a linear layer on patches: inputs `(R rows, C, H, W)`, output gradients `(R rows, P, h, w)`."""
    records, groups, size = len(activation) // rows, module.groups, module.kernel_size[0] * module.kernel_size[1]
    patches = patches_of(activation, module, workspace)
    g = by_record(gradient.permute(0, 2, 3, 1), rows)
    if groups == 1:
        weight = g.transpose(1, 2) @ patches.reshape(records, -1, size * module.in_channels)
    else:
        patches = patches.reshape(records, -1, size, groups, module.in_channels // groups)
        weight = torch.einsum("rngp,rnkgc->rgpkc", g.view(*g.shape[:2], groups, -1), patches)
    return {"weight": weight.flatten(1), "bias": g.sum(1)}


def patches_of(x: Tensor, module: nn.Conv2d, workspace: Workspace) -> Tensor:
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


def _convolution_obstacle(module: nn.Conv2d) -> str | None:
    if module.dilation != (1, 1):
        return "dilation"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return "padding other than a fixed number of zeros"
    return None


def _restore(module: nn.Module, name: str, vector: Tensor) -> Tensor:
    return vector.view_as(module.get_parameter(name))


def _restore_convolution(module: nn.Conv2d, name: str, vector: Tensor) -> Tensor:
    if name == "bias":
        return vector
    patch_order = (module.out_channels, *module.kernel_size, module.in_channels // module.groups)
    return vector.view(patch_order).permute(0, 3, 1, 2)


def _embedding(
    module: nn.Embedding, activation: Tensor, gradient: Tensor, rows: int, _: Workspace
) -> dict[str, Tensor]:
    """Output gradients of equal tokens add up: tokens `(R rows, ...)`, output gradients `(R rows, ..., d)`."""
    g = by_record(gradient, rows).float()
    tokens = activation.reshape(len(g), -1)
    weight = g.new_zeros(len(g), module.num_embeddings, module.embedding_dim)
    weight.scatter_add_(1, tokens[:, :, None].expand_as(g), g)
    return {"weight": weight.flatten(1)}


def _embedding_obstacle(module: nn.Embedding) -> str | None:
    if module.padding_idx is not None or module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return "a padding index, a norm limit, frequency scaling or sparse gradients"
    return None


def _layer_norm(
    module: nn.LayerNorm, activation: Tensor, gradient: Tensor, rows: int, _: Workspace
) -> dict[str, Tensor]:
    """Scale: sum of g times the normalised input; shift: sum of g. The norm may span several dimensions."""
    shape = module.normalized_shape
    size = module.weight.numel()
    g = by_record(gradient.float().reshape(len(gradient), -1, size), rows)
    normal = by_record(F.layer_norm(activation.float(), shape, eps=module.eps).reshape(len(gradient), -1, size), rows)
    return {"weight": (g * normal).sum(1), "bias": g.sum(1)}


def _rms_norm(module: nn.RMSNorm, activation: Tensor, gradient: Tensor, rows: int, _: Workspace) -> dict[str, Tensor]:
    size = module.weight.numel()
    g = by_record(gradient.float().reshape(len(gradient), -1, size), rows)
    normal = F.rms_norm(activation.float(), list(module.normalized_shape), eps=module.eps)
    return {"weight": (g * by_record(normal.reshape(len(gradient), -1, size), rows)).sum(1)}


def _group_norm(
    module: nn.GroupNorm, activation: Tensor, gradient: Tensor, rows: int, _: Workspace
) -> dict[str, Tensor]:
    normal = F.group_norm(activation.float(), module.num_groups, eps=module.eps)
    g, normal = (x.float().reshape(len(x) // rows, rows, x.shape[1], -1) for x in (gradient, normal))
    return {"weight": (g * normal).sum((1, 3)), "bias": g.sum((1, 3))}


def _functional(module: nn.Module, activation: Tensor, gradient: Tensor, rows: int, _: Workspace) -> dict[str, Tensor]:
    """Any module of one input: differentiates it by its parameters record by record, with `torch.func`."""
    trained = {key: value.detach() for key, value in module.named_parameters(recurse=False)}
    if activation.is_floating_point():  # autocast is over
        activation = activation.to(next(iter(trained.values())).dtype)

    def product(parameters: dict[str, Tensor], x: Tensor, g: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(module, parameters, (x,))
        return (output.float() * g.float()).sum()

    parts = (x.reshape(len(x) // rows, rows, *x.shape[1:]) for x in (activation, gradient))
    with torch.enable_grad():
        found = torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0))(trained, *parts)
    return {key: value.reshape(len(value), -1) for key, value in found.items()}


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(_linear, _restore),
    nn.Conv2d: Rule(_convolution, _restore_convolution, _convolution_obstacle),
    nn.Embedding: Rule(_embedding, _restore, _embedding_obstacle),
    nn.LayerNorm: Rule(_layer_norm, _restore),
    nn.RMSNorm: Rule(_rms_norm, _restore),
    nn.GroupNorm: Rule(_group_norm, _restore),
}
FALLBACK = Rule(_functional, _restore)
"""For every other kind of layer: slower, and for modules that map one tensor to one tensor only."""


def rule_of(module: nn.Module) -> Rule:
    """The rule of a layer; `FALLBACK` where there is none."""
    return RULES.get(type(module), FALLBACK)
