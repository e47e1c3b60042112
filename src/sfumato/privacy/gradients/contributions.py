"""What one layer adds to a sum of clipped gradients: its share of every record's squared norm, then the weighted sum.

The two are asked for one after the other, because a record's weight depends on all layers. Three ways lead there:

- `Instantiated` forms every record's gradient, measures it and adds it; where that is large it is discarded in between
  and formed again.
- `Ghost` measures without forming it: |G|^2 = <A A^T, B B^T> for activations A and output gradients B (Goodfellow 2015;
  Li et al. 2022), and adds (w B)^T A as one product. In double precision, and raised above its rounding: inputs that
  cancel are clipped too much, never too little.
- `CompiledLinear` does either in compiled code (`kernels.py`).

`choose` takes the cheapest by the layer's shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sfumato.privacy.gradients.layers import FALLBACK, Workspace, by_record, patches_of, rule_of
from sfumato.privacy.gradients.tape import Layer, Reading

KEEP = 2**28
"""Bytes of instantiated gradients, of all layers together, that a worker keeps from measuring to adding."""

_FLOOR = 2.0**-14
"""Least norm of a ghost, as a part of S, the sum over positions of |a| |g|.

Rounding of a squared norm is below (d + p + T^2 + 8) 2^-53 S^2 (Higham 2002, eq. 3.13), hence below (2^-14 S)^2 for
any T of use. Rounding of the product that is added is below T 2^-53 w S, and w S is at most 2^14 `clip_norm`: 1e-9 of
it for T = 512. Where positions do not cancel, S is a few times the norm, and the floor raises it by less than 1e-6.
"""


class Contribution(Protocol):
    """One layer's part in a chunk of R records."""

    def squares(self) -> Tensor:
        """Squared norm of each record's gradient in this layer, `(R,)` float64; NaN or infinite where it is broken."""

    overwrites: bool
    """Whether `add` can write over what is in its part of `total` instead of adding to it."""

    def add(self, weights: Tensor, total: Tensor, overwrite: bool) -> None:
        """Adds the gradients times `weights` `(R,)` float64 to `total` float64; a record of weight 0 is not read."""


class Places(NamedTuple):
    """Where the parameters of a layer lie in a record's gradient, by name."""

    slices: Mapping[str, slice]

    @property
    def whole(self) -> slice:
        """All of them; they are neighbours."""
        return slice(min(s.start for s in self.slices.values()), max(s.stop for s in self.slices.values()))


def places_of(layers: Iterable[Layer]) -> dict[str, Places]:
    """One layer after the other, by name."""
    found, start = {}, 0
    for name, module, trained in layers:
        slices = {}
        for key in trained:
            slices[key] = slice(start, start + module.get_parameter(key).numel())
            start = slices[key].stop
        found[name] = Places(slices)
    return found


class Formed(NamedTuple):
    """Gradients of one parameter: its place in a record's gradient, and float32 `(R, n)` values of their own."""

    place: slice
    values: Tensor


class Instantiated:
    """Every record's gradient in one layer, formed for the whole chunk."""

    overwrites = False

    def __init__(self, layer: Layer, reading: Reading, rows: int, places: Places, workspace: Workspace) -> None:
        self._layer, self._reading, self._rows = layer, reading, rows
        self._places, self._workspace = places, workspace
        self._held: list[Formed] | None = None

    def _form(self) -> list[Formed]:
        """Gradients of the layer's parameters, together with their places."""
        _, module, trained = self._layer
        activation, gradient = self._reading
        if activation.is_floating_point():
            activation = activation.to(gradient.dtype)
        found = rule_of(module).gradients(module, activation, gradient, self._rows, self._workspace)
        return [Formed(self._places.slices[key], found[key].float().contiguous()) for key in trained]

    def squares(self) -> Tensor:
        formed = self._form()
        size = sum(values.numel() * 4 for _, values in formed)
        if self._workspace.kept + size <= KEEP:
            self._workspace.kept += size
            self._held = formed
        return torch.stack([_squares(values) for _, values in formed]).sum(0)

    def add(self, weights: Tensor, total: Tensor, overwrite: bool = False) -> None:
        kept = weights > 0
        for place, values in self._form() if self._held is None else self._held:
            if not bool(kept.all()):  # zero times NaN is NaN: such rows are replaced, not weighted
                values[~kept] = 0
            few = _few(values)
            for part, factors in zip(torch.split(values, few), torch.split(weights, few), strict=True):
                total[place] += factors @ part.double()


def _few(values: Tensor) -> int:
    """How many rows are made double at a time, so that they stay in a core's cache."""
    return max(1, 2**16 // values.shape[1])


def _squares(values: Tensor) -> Tensor:
    """Squared norms of rows, float64 `(R,)`."""
    return torch.cat(
        [torch.linalg.vector_norm(part.double(), dim=1).square() for part in torch.split(values, _few(values))]
    )


class Ghost:
    """A linear layer, convolution or embedding whose records' gradients are never formed."""

    overwrites = False

    def __init__(self, layer: Layer, reading: Reading, rows: int, places: Places, workspace: Workspace) -> None:
        self._module, self._reading, self._rows, self._places = layer.module, reading, rows, places
        self._workspace = workspace
        self._tokens = isinstance(layer.module, nn.Embedding)

    def _operands(self) -> tuple[Tensor, Tensor]:
        """Inputs `(R, T, d)`, or tokens `(R, T)`, and output gradients `(R, T, p)`; made anew, as they are large."""
        activation, gradient = self._reading
        double = self._workspace.double
        if self._tokens:
            tokens = activation.reshape(len(activation) // self._rows, -1)
            return tokens, double(by_record(gradient, self._rows), "output gradients")
        activation = activation.to(gradient.dtype)
        if isinstance(self._module, nn.Conv2d):
            activation = patches_of(activation, self._module, self._workspace)
            gradient = gradient.permute(0, 2, 3, 1)
        return (
            double(by_record(activation, self._rows), "inputs"),
            double(by_record(gradient, self._rows), "output gradients"),
        )

    def squares(self) -> Tensor:
        a, g = self._operands()
        sizes = g.norm(dim=2)
        found = torch.zeros(len(g), dtype=torch.float64, device=g.device)
        if "bias" in self._places.slices:
            found += g.sum(1).square().sum(1) + (_FLOOR * sizes.sum(1)).square()
        if "weight" in self._places.slices:
            alike = (a[:, :, None] == a[:, None]).double() if self._tokens else a @ a.transpose(1, 2)
            sizes = sizes if self._tokens else sizes * a.norm(dim=2)
            found += (alike * (g @ g.transpose(1, 2))).sum((1, 2)) + (_FLOOR * sizes.sum(1)).square()
        return found

    def add(self, weights: Tensor, total: Tensor, overwrite: bool = False) -> None:
        a, g = self._operands()
        g *= weights[:, None, None]
        kept = weights > 0
        if not bool(kept.all()):  # zero times NaN is NaN: such rows are replaced, not weighted
            g = torch.where(kept[:, None, None], g, 0.0)
            a = a if self._tokens else torch.where(kept[:, None, None], a, 0.0)
        if "bias" in self._places.slices:
            total[self._places.slices["bias"]] += g.sum((0, 1))
        if "weight" in self._places.slices:
            place = total[self._places.slices["weight"]]
            if self._tokens:
                place.view(-1, g.shape[-1]).index_add_(0, a.flatten(), g.flatten(0, 1))
            else:
                place.view(g.shape[-1], a.shape[-1]).addmm_(g.flatten(0, 1).T, a.flatten(0, 1))


class Choice(NamedTuple):
    """How a layer is treated, and why: multiply-adds a record for either way of measuring its gradient."""

    way: str
    ghost: int
    instantiate: int


def choose(module: nn.Module, reading: Reading, rows: int) -> Choice:
    """Ghost or instantiate, from shapes alone.

    Args:
        module: the layer.
        reading: its input and output gradient for `(R rows, ...)`.
        rows: rows a record.

    Returns:
        For T positions, input width d and output width p, Gram matrices cost T^2 (d + p) multiply-adds and
        instantiation T d p, plus about 8 for each of the d p numbers that pass through memory.
    """
    if rule_of(module) is FALLBACK or not isinstance(module, nn.Embedding | nn.Linear | nn.Conv2d):
        # Of what has no rule, a subclass of those may compute anything.
        size = sum(value.numel() for value in module.parameters(recurse=False))
        return Choice("instantiate", 0, rows * reading.gradient[0].numel() + 8 * size)
    if isinstance(module, nn.Embedding):
        positions = rows * reading.activation[0].numel()
        ghost, instantiate = positions**2 * module.embedding_dim, 8 * module.weight.numel()
    elif isinstance(module, nn.Linear):
        positions = rows * reading.activation[0].numel() // module.in_features
        ghost = positions**2 * (module.in_features + module.out_features)
        instantiate = (positions + 8) * module.weight.numel()
    else:
        positions = rows * reading.gradient[0, 0].numel()
        ghost = positions**2 * (module.weight[0].numel() + module.out_channels)
        instantiate = (positions + 8) * module.weight.numel()
        if module.groups > 1:
            return Choice("instantiate", ghost, instantiate)
    return Choice("ghost" if ghost < instantiate else "instantiate", ghost, instantiate)
