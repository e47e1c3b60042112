"""What the engine must equal: one backward pass per record, clipped, added in double precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sfumato.privacy.gradients.contributions import Places
from sfumato.privacy.gradients.engine import ClippedGradients, Clipping
from sfumato.privacy.gradients.layers import rule_of
from sfumato.privacy.gradients.tape import Layer, Reading


def summed(engine: ClippedGradients, losses: Callable[[], Tensor], present: Tensor) -> dict[str, Tensor]:
    """The engine's sum over one chunk."""
    engine.reset()
    engine.add(losses, present, room=True)
    return {name: value.clone() for name, value in engine.shaped(engine.total).items()}


def loop(
    model: nn.Module, losses: Callable[[slice], Tensor], records: int, rows: int, clipping: Clipping
) -> dict[str, Tensor]:
    """The definition."""
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters() if p.requires_grad}
    for record in range(records):
        model.zero_grad()
        losses(slice(record * rows, (record + 1) * rows)).mean().backward()
        grads = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
        norm = torch.sqrt(sum(g.square().sum() for g in grads.values()))  # type: ignore[arg-type]
        for name, gradient in grads.items():
            total[name] += gradient * clipping.weights(norm)
    model.zero_grad()
    return total


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Relative, in Euclidean norm."""
    difference = math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in other))
    return difference / norm_of(other)


def norm_of(vectors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(vector.square().sum()) for vector in vectors.values()))


def place(module: nn.Module) -> tuple[Layer, Places]:
    """A layer by itself, with its parameters one after the other."""
    trained = tuple(key for key, value in module.named_parameters(recurse=False) if value.requires_grad)
    slices, start = {}, 0
    for key in trained:
        slices[key] = slice(start, start + module.get_parameter(key).numel())
        start = slices[key].stop
    return Layer("layer", module, trained), Places(slices)


def gradients(module: nn.Module, reading: Reading, rows: int) -> dict[str, Tensor]:
    """Every record's gradient, `(R, *shape)`: autograd in double precision, record by record."""
    exact = _double(module).requires_grad_()
    found: dict[str, list[Tensor]] = {key: [] for key, _ in exact.named_parameters(recurse=False)}
    for record in range(len(reading.activation) // rows):
        part = slice(record * rows, (record + 1) * rows)
        x, g = reading.activation[part], reading.gradient[part].double()
        exact.zero_grad()
        (exact(x.double() if x.is_floating_point() else x) * g).sum().backward()
        for key, parameter in exact.named_parameters(recurse=False):
            assert parameter.grad is not None
            found[key].append(parameter.grad)
    return {key: torch.stack(values) for key, values in found.items()}


def restored(module: nn.Module, places: Places, vector: Tensor) -> dict[str, Tensor]:
    """A vector in the engine's order as the parameters of one layer."""
    return {key: rule_of(module).restore(module, key, vector[at]) for key, at in places.slices.items()}


def _double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()
