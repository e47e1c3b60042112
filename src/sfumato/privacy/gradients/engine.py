"""Sums of clipped per-record gradients: one forward and one backward pass, no record's gradient kept.

The one place where a gradient of a private record exists. For each chunk of records, every layer says what it adds to
each record's squared norm; the norm gives the record's weight; every layer adds its weighted gradients to a
double-precision sum (book-keeping, Bu et al. 2023, arXiv 2210.00038).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.errors import InternalError, UserError
from sfumato.privacy._touches import GROUPED_SLACK
from sfumato.privacy.gradients import kernels
from sfumato.privacy.gradients.compiled import CompiledEmbedding, CompiledLinear, CompiledNorm, as_convolution
from sfumato.privacy.gradients.contributions import Contribution, Ghost, Instantiated, Places, choose, places_of
from sfumato.privacy.gradients.layers import FALLBACK, Workspace, rule_of
from sfumato.privacy.gradients.tape import (
    Layer,
    Reading,
    fingerprints,
    refuse_changes,
    refuse_meetings,
    refuse_uses_elsewhere,
    taped,
    trained_layers,
)
from sfumato.privacy.gradients.total import Total

_RAISED = 1 + 1e-9  # covers the rounding of squares, sums and roots in double precision
_GAMMA = 0.01
_SMALL = 2**18  # parameters whose gradient and sum stay in a core's cache
_MANY = 32  # positions of a record from which on a convolution's gradient is worth writing out where they do not
_FEW = 8  # positions of a record from which on compiled linear layers pay in float32

_REST = 1e-6


def groupable(expected_batch: float) -> int:
    """Records of a step that a plan may leave room to add in groups: ten standard deviations above the expected."""
    return math.ceil(expected_batch + 10 * math.sqrt(expected_batch) + 10)


def rounding_slack(expected_batch: float, grouped: int = 0) -> float:
    """The eta of a sum of about `expected_batch` records: one record moves it by at most `clip_norm (1 + eta)`.

    Norms are measured on the values that are added, and what follows is double precision: adding m vectors of norm
    `clip_norm`, in any order and any number of parts, errs by at most m^2 2^-53 `clip_norm` (Higham 2002, eq. 4.4), and
    the sums of two neighbouring data sets differ by twice that more than exact ones. Poisson batches of more than four
    times the expected size and a thousand have a probability below e^-700. A millionth covers the rest.

    Args:
        expected_batch: records.
        grouped: leave room to add so many records of a step in groups of at most eight in float32, each record off by
            at most 8 units of roundoff; further ones are added in double precision.
    """
    return _REST + 2.0**-52 * (4 * expected_batch + 1000) ** 2 + GROUPED_SLACK * grouped


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


class LayerPlan(NamedTuple):
    """How the engine treats one layer, for `explain`.

    Attributes:
        name, kind: of the layer.
        parameters: trained ones.
        way: "ghost", "instantiate", "compiled" (instantiated record by record by compiled code), "compiled linear",
            "compiled norm", "compiled embedding" or "torch.func" (no rule of its own).
        ghost, instantiate: multiply-adds a record of measuring by either way.
    """

    name: str
    kind: str
    parameters: int
    way: str
    ghost: int
    instantiate: int


class ClippedGradients:
    """Adds up clipped per-record gradients of one model, chunk by chunk.

    Guarantee:
        Adding or removing one record changes `total` by at most `clip_norm (1 + rounding_slack(batch))` in Euclidean
        norm. A record's norm is measured on the rounded values that are summed, or is an upper bound on it. A record
        whose loss or gradient is not finite adds zero and leaves every other record's share as it was, bit for bit.

    Does not cover:
        Losses in which rows of different records meet before the first trained layer: `trained_layers` and `examine`,
        in the first pass, guard against the usual causes, not against every function; `Crew` compares losses beside
        other records as well. Bits of
        another record's gradient that depend on its place in a chunk: chunks have one constant shape, which makes them
        equal on the kernels that were tested.
    """

    def __init__(
        self,
        model: nn.Module,
        clipping: Clipping,
        *,
        rows: int,
        groups: bool = False,
        precision: Literal["fp32", "bf16"] = "fp32",
        beside: ClippedGradients | None = None,
    ) -> None:
        """
        Args:
            model: any module whose trained layers map one tensor to one tensor; switched to `eval` by the caller if it
                has dropout.
            clipping: radius and kind.
            rows: rows of the batch that belong to one record; its loss is their mean.
            groups: whether the plan left room to add records of linear layers in groups. All shares are then formed
                as groups need it, whether a record is in one or not: none may hang on how many others there are.
            precision: `bf16` runs forward and backward under autocast; norms and sums stay in wider numbers.
            beside: the engine of another copy of the model, in another thread; it examines the model for both, and two
                engines of a large network without compiled convolutions have one `total`.
        """
        if not clipping.clip_norm > 0 or rows < 1:
            raise UserError(f"clip_norm must be positive and rows at least 1; got {clipping.clip_norm} and {rows}.")
        if torch.get_float32_matmul_precision() != "highest":
            raise UserError("Private training needs torch.set_float32_matmul_precision('highest'), PyTorch's default.")
        self.model, self.clipping, self.rows, self.precision = model, clipping, rows, precision
        self.layers = trained_layers(model)
        self._length = sum(layer.module.get_parameter(key).numel() for layer in self.layers for key in layer.trained)
        self.device = next(p.device for p in model.parameters() if p.requires_grad)
        self._level = kernels.level(precision) if self.device.type == "cpu" else 0
        self._places = places_of(self.layers)
        for name, module, _ in self.layers if beside is None else ():
            if rule_of(module) is FALLBACK:
                warnings.warn(
                    f"Layer '{name}' ({type(module).__name__}) has no gradient rule of its own: it goes through "
                    "torch.func, which is slower.",
                    stacklevel=2,
                )
        self._groups = groups
        self._workspace, self._scratch = Workspace(), kernels.Scratch()
        self._examined = beside is not None
        formed = any(self._formed(layer) for layer in self.layers)
        self._beside = beside if self._length > _SMALL and not formed else None
        self.sum: Total = self._beside.sum if self._beside else Total(self._places, self._length, self.device)

    @property
    def total(self) -> Tensor:
        """What was added since `reset`, float64 `(parameters,)` in the engine's own order; the same memory always."""
        return self.sum.vector

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter, nn.Module, str, slice]]:
        """(full name, parameter, module, its name there, its place) of all that trains, in a fixed order."""
        for name, module, trained in self.layers:
            for key in trained:
                full = f"{name}.{key}" if name else key
                yield full, module.get_parameter(key), module, key, self._places[name].slices[key]

    def reset(self) -> None:
        """Starts a new sum at zero; call it for all engines of a sum before one of them adds."""
        self.sum.reset()

    def add(self, losses: Callable[[], Tensor], present: Tensor, room: bool = False) -> None:
        """Adds the clipped gradients of one chunk of records.

        Args:
            losses: runs the model and returns one loss per row, `(R rows,)`; row r belongs to record `r // rows`.
            present: `(R,)` booleans; records that merely fill the chunk to its constant shape are False.
            room: whether records of this sum so far, these included, are no more than the plan left room to group.
        """
        if not len(present):
            return
        self._workspace.kept = 0
        readings, values = self._passes(losses, len(present))
        usable = present & values.view(-1, self.rows).isfinite().all(1)
        together, apart = self._arranged(readings, room)
        squares = torch.zeros(len(present), dtype=torch.float64, device=self.device)
        for _, contribution in apart:
            squares += contribution.squares()
        clip, gamma = self.clipping.clip_norm, _GAMMA if self.clipping.kind == "automatic" else -1.0
        if together:
            weights = kernels.add_clipped(
                together,
                usable,
                self.total,
                self._scratch,
                at_level=self._level,
                rows=self.rows,
                clip_norm=clip,
                gamma=gamma,
                squares=squares,
            )
        else:
            norms = squares.sqrt() * _RAISED
            usable = usable & norms.isfinite()
            weights = torch.where(usable, self.clipping.weights(torch.where(usable, norms, 0.0)), 0.0)
        for name, contribution in reversed(apart) if self._beside else apart:  # two engines seldom meet at a layer
            with self.sum.turn(name, contribution.overwrites) as (total, overwrite):
                contribution.add(weights, total, overwrite)

    def release(self) -> None:
        """Gives back the memory that is kept from chunk to chunk."""
        self._workspace, self._scratch = Workspace(), kernels.Scratch()

    def _passes(self, losses: Callable[[], Tensor], records: int) -> tuple[dict[str, Reading], Tensor]:
        """Forward and backward; what the layers saw, and the loss of every row."""
        if not self._examined:
            self.examine(losses, records)
        with taped(self.model, self.layers, records * self.rows) as readings:
            rows = self._forward(losses, records)
            torch.autograd.backward((rows.float() / self.rows).sum())  # the gradient of the mean over a record's rows
        for name, _, _ in self.layers:
            if name not in readings:
                raise UserError(f"Layer '{name}' took no part in the loss; freeze it or use it.")
        return readings, rows.detach()

    def examine(self, losses: Callable[[], Tensor], records: int) -> None:
        """Refuses a model or loss in which records meet, that remembers them, or that uses a parameter where no rule
        sees it; `add` does it once itself, but a few records suffice.

        It needs about twice the memory of a later pass on as many records.
        """
        ends: dict[str, tuple[Tensor, Tensor]] = {}
        before = fingerprints(self.model)
        with taped(self.model, self.layers, records * self.rows, ends):
            refuse_meetings(ends, self._forward(losses, records), self.rows)
        refuse_changes(before, self.model)
        refuse_uses_elsewhere(self.layers, lambda: self._forward(losses, records))
        self._examined = True

    def _forward(self, losses: Callable[[], Tensor], records: int) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext():
            rows = losses()
        if rows.shape != (records * self.rows,):
            raise InternalError(f"the loss has shape {tuple(rows.shape)}, one value per row was expected")
        return rows

    def _arranged(
        self, readings: dict[str, Reading], room: bool
    ) -> tuple[list[kernels.Convolution], list[tuple[str, Contribution]]]:
        """The layers that compiled code forms together, record by record; and all others, by name."""
        together = []
        apart: list[tuple[str, Contribution]] = []
        for layer in self.layers:
            reading, places = readings[layer.name], self._places[layer.name]
            way = self._way(layer, reading)
            if way == "compiled":
                together.append(as_convolution(layer, reading, places))
            else:
                apart.append((layer.name, self._contribution(way, layer, reading, places, room)))
        return together, apart

    def _contribution(self, way: str, layer: Layer, reading: Reading, places: Places, room: bool) -> Contribution:
        match way:
            case "compiled linear":
                how = self._level, self._groups, room
                return CompiledLinear(layer, reading, self.rows, places, self._scratch, *how)
            case "compiled embedding":
                return CompiledEmbedding(reading, self.rows, places, self._level)
            case "compiled norm":
                return CompiledNorm(layer, reading, self.rows, places, self._level)
            case "ghost":
                return Ghost(layer, reading, self.rows, places, self._workspace)
            case _:
                return Instantiated(layer, reading, self.rows, places, self._workspace)

    def _way(self, layer: Layer, reading: Reading) -> str:
        module, way = layer.module, choose(layer.module, reading, self.rows).way
        single = self.precision == "fp32"
        if not self._level or rule_of(module) is FALLBACK:
            return way
        if not single and CompiledNorm.fits(layer):
            return "compiled norm"
        if not single and isinstance(module, nn.Embedding):
            return "compiled embedding"
        if reading.gradient.dtype != (torch.float32 if single else torch.bfloat16):
            return way
        if isinstance(module, nn.Linear):
            if single and reading.gradient[0].numel() * self.rows < _FEW * module.out_features:
                return way
            otherwise = "compiled linear" if not single or way == "ghost" else way
            return "compiled" if self._formed(layer) else otherwise
        few = self._length > _SMALL and reading.gradient[0, 0].numel() * self.rows < _MANY
        return "compiled" if self._formed(layer) and not few else way

    def _formed(self, layer: Layer) -> bool:
        """Whether compiled code can form a record's gradient of a layer whole: in the cache, convolutions anywhere."""
        module = layer.module
        if not self._level or rule_of(module) is FALLBACK or "weight" not in layer.trained:
            return False
        if isinstance(module, nn.Linear):
            return self._length <= _SMALL
        return isinstance(module, nn.Conv2d) and module.groups == 1

    def explain(self, losses: Callable[[], Tensor], records: int) -> list[LayerPlan]:
        """How each layer is treated for batches of this shape; runs one pass and adds nothing."""
        readings, _ = self._passes(losses, records)
        plans = []
        for layer in self.layers:
            name, module, _ = layer
            choice, way = choose(module, readings[name], self.rows), self._way(layer, readings[name])
            way = "torch.func" if rule_of(module) is FALLBACK else way
            parameters = self._places[name].whole.stop - self._places[name].whole.start
            plans.append(LayerPlan(name, type(module).__name__, parameters, way, choice.ghost, choice.instantiate))
        return plans

    def shaped(self, vector: Tensor) -> dict[str, Tensor]:
        """Splits a vector like `total` into the parameters it belongs to, by name and in their shapes."""
        return {
            name: rule_of(module).restore(module, key, vector[place])
            for name, _, module, key, place in self._parameters()
        }
