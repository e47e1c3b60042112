"""Book-keeping (Bu et al. 2023, arXiv 2210.00038): one backward pass that keeps activations and output gradients.

Parameters do not require gradients while the tape runs, so the backward pass computes output gradients only; what each
layer saw and what came back to it is enough to form any record's weight gradient afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.errors import PrivacyRefusal, UserError
from sfumato.privacy.gradients.layers import RULES


class Layer(NamedTuple):
    """A layer with trained parameters: its name in the model, the module, and the names of what it trains."""

    name: str
    module: nn.Module
    trained: tuple[str, ...]


class Reading(NamedTuple):
    """What one layer saw in one pass: its input, and the loss's gradient by its output."""

    activation: Tensor
    gradient: Tensor


def trained_layers(model: nn.Module) -> list[Layer]:
    """The layers of `model` that train, in a fixed order.

    Raises:
        UserError: a trained parameter sits in a kind of layer that has no rule.
        PrivacyRefusal: a parameter is shared between layers, or a module mixes records or keeps running statistics;
            then a sum of clipped per-record gradients would not have the bounded sensitivity it is priced at.
    """
    layers: list[Layer] = []
    owners: Counter[int] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            raise PrivacyRefusal(
                f"Layer '{name}' ({type(module).__name__}) normalises over the batch, so records would meet in it; "
                "use a norm over one image (GroupNorm, LayerNorm) instead."
            )
        trained = tuple(key for key, value in module.named_parameters(recurse=False) if value.requires_grad)
        if not trained:
            continue
        rule = RULES.get(type(module))
        if rule is None:
            known = ", ".join(sorted(kind.__name__ for kind in RULES))
            raise UserError(
                f"Layer '{name}' ({type(module).__name__}) has trained parameters but no per-record gradient rule; "
                f"private training knows {known}: freeze the layer or build it from these."
            )
        if obstacle := rule.obstacle(module):
            raise UserError(f"Layer '{name}' ({type(module).__name__}) has {obstacle}, which has no gradient rule.")
        owners.update(id(module.get_parameter(key)) for key in trained)
        layers.append(Layer(name, module, trained))
    if any(count > 1 for count in owners.values()):
        raise PrivacyRefusal("Two layers share a trained parameter; its per-record norm would be wrong. Untie them.")
    if not layers:
        raise UserError("The model has no trained parameter.")
    return layers


@contextmanager
def taped(model: nn.Module, layers: list[Layer]) -> Iterator[dict[str, Reading]]:
    """Runs a forward and a backward pass inside; afterwards the yielded dictionary maps layer names to readings.

    Raises:
        PrivacyRefusal: a layer ran twice in one pass (its norm would lack the cross term), or a buffer changed in
            `forward` (the model would remember records outside what is noised).
    """
    readings: dict[str, Reading] = {}
    seen: set[str] = set()
    handles = []
    parameters = [module.get_parameter(key) for _, module, trained in layers for key in trained]
    buffers = {name: (buffer, buffer._version) for name, buffer in model.named_buffers()}

    def watch(name: str, module: nn.Module) -> None:
        def after(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if name in seen:
                raise PrivacyRefusal(f"Layer '{name}' runs twice in one pass; give each use a layer of its own.")
            seen.add(name)
            activation = inputs[0].detach()
            if not output.requires_grad:  # nothing before it trains: gradients start here
                output.requires_grad_()

            def keep(gradient: Tensor) -> None:
                readings[name] = Reading(activation, gradient)

            output.register_hook(keep)  # type: ignore[no-untyped-call]

        handles.append(module.register_forward_hook(after))

    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        for name, module, _ in layers:
            watch(name, module)
        with torch.enable_grad():
            yield readings
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters:
            parameter.requires_grad_(True)
    for name, (buffer, version) in buffers.items():
        if buffer._version != version:
            raise PrivacyRefusal(f"Buffer '{name}' changed in forward; private training allows no running state.")
