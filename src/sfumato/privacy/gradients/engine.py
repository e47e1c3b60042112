"""Sums of clipped per-record gradients.

The one place where a gradient of a private record exists. For each chunk of records it instantiates every record's
gradient, measures its norm, scales it into the ball of radius `clip_norm`, and adds it to a double-precision sum.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.errors import InternalError, UserError
from sfumato.privacy.gradients.layers import RULES
from sfumato.privacy.gradients.tape import Reading, taped, trained_layers

ROUNDING_SLACK = 1e-6
"""The eta of this engine: a record moves the computed sum by at most `clip_norm (1 + eta)`.

Norms and weighted sums are formed in double precision from the very values that are added. With n parameters the
computed norm is off by at most n 2^-53 relative, the weight by 2^-52, and a sum of m records by m 2^-53 of the sum of
their norms, m clip_norm; for n = 10^8 and m = 10^4 that is 1.2e-8 + 2.2e-16 + 1.1e-8 < 1e-7.
"""

_GAMMA = 0.01


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
        Adding or removing one record changes `total` by at most `clip_norm (1 + ROUNDING_SLACK)` in Euclidean norm. The
        norm of a record is measured on exactly the rounded values that are summed. A record whose loss, activations or
        gradients are not finite adds zero and leaves every other record's share as it was.

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
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        """
        Args:
            model: any module whose trained layers have rules; switched to `eval` by the caller if it has dropout.
            clipping: radius and kind.
            rows: rows of the batch that belong to one record; its loss is their mean.
            precision: `bf16` runs forward and backward under autocast; norms and sums stay in double precision.
        """
        if not clipping.clip_norm > 0 or rows < 1:
            raise UserError(f"clip_norm must be positive and rows at least 1; got {clipping.clip_norm} and {rows}.")
        self.model, self.clipping, self.rows, self.precision = model, clipping, rows, precision
        self.layers = trained_layers(model)
        self.total: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Starts a new sum at zero."""
        self.total = {
            f"{name}.{key}" if name else key: torch.zeros(
                module.get_parameter(key).numel(), dtype=torch.float64, device=module.get_parameter(key).device
            )
            for name, module, trained in self.layers
            for key in trained
        }

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
            (rows.float() / self.rows).sum().backward()  # the gradient of the mean over a record's rows
        usable = present & rows.detach().view(-1, self.rows).isfinite().all(1)
        gradients = self._instantiate(readings)
        norms = torch.stack([gradient.norm(dim=1) for gradient in gradients.values()]).norm(dim=0)
        usable &= norms.isfinite()
        weights = torch.where(usable, self.clipping.weights(torch.where(usable, norms, 1.0)), 0.0)
        for name, gradient in gradients.items():
            if not bool(usable.all()):  # zero times NaN is NaN: unusable rows are replaced, not weighted
                gradient = torch.where(usable[:, None], gradient, 0.0)
            self.total[name] += weights @ gradient

    def _instantiate(self, readings: dict[str, Reading]) -> dict[str, Tensor]:
        """Per-record gradients `(R, n)` of every trained parameter: rounded as the backward pass ran, then float64."""
        gradients: dict[str, Tensor] = {}
        for name, module, trained in self.layers:
            if name not in readings:
                raise UserError(f"Layer '{name}' took no part in the loss; freeze it or use it.")
            activation, gradient = readings[name]
            found = RULES[type(module)].gradients(module, activation.to(gradient.dtype), gradient, self.rows)
            gradients |= {f"{name}.{key}" if name else key: found[key].double() for key in trained}
        return gradients

    def shaped(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Puts flat sums like `total` into the shapes of the parameters they belong to."""
        shaped: dict[str, Tensor] = {}
        for name, module, trained in self.layers:
            for key in trained:
                full = f"{name}.{key}" if name else key
                shaped[full] = RULES[type(module)].restore(module, key, vectors[full])
        return shaped
