"""Sums of clipped per-record gradients.

The one place where a gradient of a private record exists. For each chunk of records it instantiates every record's
gradient, measures its norm, scales it into the ball of radius `clip_norm`, and adds it to a double-precision sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.errors import InternalError, UserError
from sfumato.privacy.gradients.layers import RULES, Workspace
from sfumato.privacy.gradients.tape import Reading, taped, trained_layers

_UNIT = 2.0**-24  # unit roundoff of float32
_BLOCK = 64  # coordinates whose squares are added in float32
_GROUP = 4  # records whose contributions are added in float32
_NORM_ERROR = 1.01 * (_BLOCK + 2) * _UNIT
_ERROR_PER_RECORD = 2 * 1.01 * (_GROUP + 1) * _UNIT
_GAMMA = 0.01


def rounding_slack(expected_batch: float) -> float:
    """The eta of a sum of about `expected_batch` records: one record moves it by at most `clip_norm (1 + eta)`.

    Contributions of `_GROUP` records are added in float32, their sums in float64. In a group, a sum of products w g is
    off by at most 5 units of roundoff of sum |w g| (Higham 2002, lemma 3.1), so a sum of m records is off by at most
    5 m 2^-24 `clip_norm`, and the sums of two neighbouring data sets differ by twice that more than exact ones. Batches
    vary; beyond ten standard deviations above `expected_batch` the engine adds in float64, where the error is nil.
    """
    return _ERROR_PER_RECORD * (expected_batch + 10 * math.sqrt(expected_batch) + 10)


class Clipping(NamedTuple):
    """How a record's gradient g is scaled into the ball of radius `clip_norm`.

    `flat` is `g min(1, C / |g|)` (Abadi et al. 2016); `automatic` is `g C / (|g| + 0.01)` (Bu et al. 2023, "Automatic
    clipping", eq. 4.1), which needs no tuning of C under an optimiser that ignores scale.
    """

    clip_norm: float
    kind: Literal["flat", "automatic"] = "automatic"

    def weights(self, norms: Tensor) -> Tensor:
        """Factors for norms `(R,)`, float64: each factor times its norm is at most `clip_norm`."""
        if self.kind == "flat":
            return self.clip_norm / norms.clamp(min=self.clip_norm)
        return self.clip_norm / (norms + _GAMMA)


class ClippedGradients:
    """Adds up clipped per-record gradients of one model, chunk by chunk.

    Guarantee:
        Adding or removing one record changes `total` by at most `clip_norm (1 + slack)` in Euclidean norm. A record's
        norm is measured on exactly the rounded values that are summed, and raised by its own rounding error. A record
        whose loss or gradient is not finite adds zero and leaves every other record's share as it was, bit for bit.

    Does not cover:
        Losses in which rows of different records meet: the structural checks of `trained_layers` and the tests guard
        against the usual causes, not against every function. Bits of another record's gradient that depend on its
        place in a chunk: chunks have one constant shape, which makes them equal on the kernels that were tested.
    """

    def __init__(
        self,
        model: nn.Module,
        clipping: Clipping,
        *,
        rows: int,
        slack: float = 0.0,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        """
        Args:
            model: any module whose trained layers have rules; switched to `eval` by the caller if it has dropout.
            clipping: radius and kind.
            rows: rows of the batch that belong to one record; its loss is their mean.
            slack: what rounding may add to a record's share, relative; decides how many records are added in float32
                (see `rounding_slack`). 0 adds all in float64.
            precision: `bf16` runs forward and backward under autocast; norms and sums stay in float32 and float64.
        """
        if not clipping.clip_norm > 0 or rows < 1:
            raise UserError(f"clip_norm must be positive and rows at least 1; got {clipping.clip_norm} and {rows}.")
        if torch.get_float32_matmul_precision() != "highest":
            raise UserError("Private training needs torch.set_float32_matmul_precision('highest'), PyTorch's default.")
        self.model, self.clipping, self.rows, self.precision = model, clipping, rows, precision
        self.layers = trained_layers(model)
        self._single = int(slack / _ERROR_PER_RECORD)
        self._places: dict[str, slice] = {}
        for name, parameter, _, _ in self._parameters():
            start = max((place.stop for place in self._places.values()), default=0)
            self._places[name] = slice(start, start + parameter.numel())
        self._length = start + parameter.numel()
        self.device = parameter.device
        self._workspace = Workspace()
        self._gradients = torch.zeros(0)
        self.reset()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter, nn.Module, str]]:
        """(full name, parameter, module, its name there) of all that trains, in a fixed order."""
        for name, module, trained in self.layers:
            for key in trained:
                yield f"{name}.{key}" if name else key, module.get_parameter(key), module, key

    def reset(self) -> None:
        """Starts a new sum at zero; `total` is float64 `(parameters,)`, in the engine's own order."""
        self.total = torch.zeros(self._length, dtype=torch.float64, device=self.device)
        self._added = 0

    def add(self, losses: Callable[[], Tensor], present: Tensor) -> None:
        """Adds the clipped gradients of one chunk of records.

        Args:
            losses: runs the model and returns one loss per row, `(R rows,)`; row r belongs to record `r // rows`.
            present: `(R,)` booleans; records that merely fill the chunk to its constant shape are False.
        """
        with taped(self.model, self.layers) as readings:
            with torch.autocast(present.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext():
                rows = losses()
            if rows.shape != (len(present) * self.rows,):
                raise InternalError(f"the loss has shape {tuple(rows.shape)}, one value per row was expected")
            torch.autograd.backward((rows.float() / self.rows).sum())  # the gradient of the mean over a record's rows
        gradients = self._instantiate(readings, len(present))
        norms = gradients.view(len(gradients), -1, _BLOCK).norm(dim=2).double().norm(dim=1)[: len(present)]
        usable = present & rows.detach().view(-1, self.rows).isfinite().all(1) & norms.isfinite()
        if not bool(usable.all()):  # zero times NaN is NaN: unusable rows are replaced, not weighted
            gradients[: len(present)][~usable] = 0
            norms = torch.where(usable, norms, 0.0)
        weights = torch.zeros(len(gradients), dtype=torch.float64, device=self.device)
        weights[: len(present)] = self.clipping.weights(norms * (1 + _NORM_ERROR)) * (1 - 2 * _UNIT)
        self._added += len(present)
        if self._added <= self._single:
            groups = weights.float().view(-1, 1, _GROUP) @ gradients.view(-1, _GROUP, gradients.shape[1])
            self.total += groups.sum((0, 1), dtype=torch.float64)[: self._length]
        else:
            self.total += (weights @ gradients.double())[: self._length]

    def _instantiate(self, readings: dict[str, Reading], records: int) -> Tensor:
        """Every record's gradient, float32: a row each, padded with zeros to whole groups and blocks."""
        shape = (-(-records // _GROUP) * _GROUP, -(-self._length // _BLOCK) * _BLOCK)
        if self._gradients.shape != shape:
            self._gradients = torch.zeros(shape, device=self.device)
        for name, module, trained in self.layers:
            if name not in readings:
                raise UserError(f"Layer '{name}' took no part in the loss; freeze it or use it.")
            activation, gradient = readings[name]
            rule = RULES[type(module)].gradients
            found = rule(module, activation.to(gradient.dtype), gradient, self.rows, self._workspace)
            for key in trained:
                self._gradients[:records, self._places[f"{name}.{key}" if name else key]] = found[key]
        return self._gradients

    def shaped(self, vector: Tensor) -> dict[str, Tensor]:
        """Splits a vector like `total` into the parameters it belongs to, by name and in their shapes."""
        return {
            name: RULES[type(module)].restore(module, key, vector[self._places[name]])
            for name, _, module, key in self._parameters()
        }
