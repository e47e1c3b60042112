"""Layers as the compiled kernels want them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.privacy.gradients import kernels
from sfumato.privacy.gradients.contributions import Places, choose
from sfumato.privacy.gradients.kernels import Convolution
from sfumato.privacy.gradients.layers import by_record
from sfumato.privacy.gradients.tape import Layer, Reading


def as_convolution(layer: Layer, reading: Reading, places: Places) -> Convolution:
    """A convolution, or a linear layer as a 1x1 convolution on one line; without copies where it can be."""
    module, (activation, gradient) = layer.module, reading
    if activation.dtype not in (torch.float32, gradient.dtype):
        activation = activation.to(gradient.dtype)
    weight_at, bias_at = (places.slices[key].start if key in places.slices else -1 for key in ("weight", "bias"))
    if isinstance(module, nn.Conv2d):
        activation, gradient = (x.permute(0, 2, 3, 1).contiguous() for x in (activation, gradient))
        padding = tuple(int(size) for size in module.padding)
        options: tuple[tuple[int, ...], ...] = (module.kernel_size, module.stride, padding)
        return Convolution(activation, gradient, weight_at, bias_at, *options)  # type: ignore[arg-type]
    return Convolution(_line(activation), _line(gradient), weight_at, bias_at)


class CompiledLinear:
    """A linear layer of a large network: measured without a gradient in memory, added tile by tile."""

    overwrites = True

    def __init__(
        self,
        layer: Layer,
        reading: Reading,
        rows: int,
        places: Places,
        scratch: kernels.Scratch,
        level: int,
        grouped: bool,
        room: bool,
    ) -> None:
        self._scratch, self._level, self._grouped, self._room = scratch, level, grouped, room
        activation, gradient = reading
        if activation.dtype not in (torch.float32, gradient.dtype):
            activation = activation.to(gradient.dtype)
        weight_at, bias_at = (places.slices[key].start if key in places.slices else -1 for key in ("weight", "bias"))
        self._linear = kernels.Linear(
            by_record(activation, rows).contiguous(), by_record(gradient, rows).contiguous(), weight_at, bias_at
        )
        choice = choose(layer.module, reading, rows)
        self._gram = choice.ghost < 2 * choice.instantiate  # Gram matrices are symmetric: about half is formed

    def squares(self) -> Tensor:
        return self._linear.squares(self._gram, self._scratch, self._level)

    def add(self, weights: Tensor, total: Tensor, overwrite: bool = False) -> None:
        self._linear.add(weights, total, self._scratch, self._level, self._grouped, self._room, overwrite)


class CompiledNorm:
    """A layer norm over the last dimension; its gradients are small, so they are kept until they are added."""

    overwrites = False

    def __init__(self, layer: Layer, reading: Reading, rows: int, places: Places, level: int) -> None:
        assert isinstance(layer.module, nn.LayerNorm)
        self._place, self._level = places.whole, level
        kind = torch.bfloat16 if all(value.dtype == torch.bfloat16 for value in reading) else torch.float32
        x, gradient = (by_record(value.to(kind), rows).contiguous() for value in reading)
        self._formed, self._squares = kernels.norm_gradients(x, gradient, layer.module.eps, level)

    @staticmethod
    def fits(layer: Layer) -> bool:
        """Whether a layer is of this kind."""
        module = layer.module
        if not isinstance(module, nn.LayerNorm) or len(layer.trained) != 2:
            return False
        return len(module.normalized_shape) == 1 and module.normalized_shape[0] % 8 == 0

    def squares(self) -> Tensor:
        return self._squares

    def add(self, weights: Tensor, total: Tensor, overwrite: bool = False) -> None:
        kernels.rows_add(self._formed, weights, total[self._place], self._level)


class CompiledEmbedding:
    """An embedding: gradients of equal tokens of a record are added up where they are, not over a vocabulary."""

    overwrites = False

    def __init__(self, reading: Reading, rows: int, places: Places, level: int) -> None:
        self._place, self._level = places.whole, level
        self._tokens = reading.activation.reshape(len(reading.activation) // rows, -1).long().contiguous()
        self._gradient = by_record(reading.gradient, rows).float().contiguous()

    def squares(self) -> Tensor:
        return kernels.embedding_squares(self._tokens, self._gradient, self._level)

    def add(self, weights: Tensor, total: Tensor, overwrite: bool = False) -> None:
        kernels.embedding_add(self._tokens, self._gradient, weights, total[self._place], self._level)


def _line(x: Tensor) -> Tensor:
    """`(N, ..., d)` to `(N, 1, positions, d)`."""
    return x.reshape(len(x), 1, -1, x.shape[-1]).contiguous()
