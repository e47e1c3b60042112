"""Images as scale-wise tokens: the same number for each scale of a Haar transform, coarse to fine.

After the Spectral Image Tokenizer (Esteves et al. 2024, arXiv 2412.09607): patches grow with the scale, so finer bands
are compressed more; the decoder is a transformer in which a token sees its own scale and coarser ones, so the first
scales decode by themselves to a small image. Unlike there, each scale has a codebook of its own, and a token is simply
the code nearest to its patch. That makes tokenising exact: Haar coefficients of whole numbers are exact in floating
point, codes lie on the same grid, so are their products in double precision, and a token depends on nothing but its
patch, whatever else is in the batch and whatever the processor does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfumato.nets.transformer import Block, TransformerShape, initialise, positions, stream
from sfumato.nets.wavelet import haar_approximation, haar_scales, inverse_haar_scales

_CACHED, _CACHED_ELSEWHERE = 2**17, 2**26
"""Distances that are formed at once on a processor, which stay in a core's cache, and on a GPU: half a gigabyte."""


_ATTENDED = 2**22  # pairs of positions that attention sees at once where errors are measured


class TokenizerShape(NamedTuple):
    """The public constants of a tokenizer.

    Attributes:
        image: `(C, H, W)`; H and W are multiples of `patch 2^levels`.
        levels: of the Haar transform; there is one scale more.
        patch: side of a patch of the coarsest scale, in its pixels.
        vocabulary: codes of each scale.
        decoder: its `positions` is not looked at.
    """

    image: tuple[int, int, int]
    levels: int
    patch: int
    vocabulary: int
    decoder: TransformerShape

    @property
    def scales(self) -> int:
        """Number of scales."""
        return self.levels + 1

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of every scale, down and across."""
        side = self.patch << self.levels
        return self.image[1] // side, self.image[2] // side

    @property
    def tokens(self) -> int:
        """Tokens of every scale."""
        return math.prod(self.grid)

    def side(self, scale: int) -> int:
        """Of a patch, in coefficients."""
        return self.patch << max(0, scale - 1)

    def numbers(self, scale: int) -> int:
        """Coefficients of a patch, all channels and bands."""
        return self.image[0] * (3 if scale else 1) * self.side(scale) ** 2

    def small(self, scales: int) -> tuple[int, int, int]:
        """`(C, H, W)` of what the first so many scales decode to."""
        left = self.scales - scales
        return self.image[0], self.image[1] >> left, self.image[2] >> left


class ScaleError(NamedTuple):
    """How well the first scales are kept.

    Attributes:
        height, width: of the image that they decode to.
        rmse: root of the mean squared error against the true thumbnail of that size, in grey levels of 255.
        lost: share of the energy of this scale's coefficients (variance, for the coarsest) that is lost.
    """

    height: int
    width: int
    rmse: float
    lost: float


class Tokenizer(nn.Module):
    """Images to tokens and back.

    Args:
        shape: public constants.
    """

    def __init__(self, shape: TokenizerShape) -> None:
        super().__init__()
        self.shape = shape
        width, scales = shape.decoder.width, shape.scales
        for scale in range(scales):
            self.register_buffer(f"codes{scale}", torch.zeros(shape.vocabulary, shape.numbers(scale)))
        self.register_buffer("spread", torch.ones(scales))
        self.inlets = nn.ModuleList(nn.Linear(shape.numbers(scale), width) for scale in range(scales))
        self.places = nn.Embedding(scales * shape.tokens, width)
        self.blocks = nn.ModuleList(Block(width, shape.decoder.heads, False) for _ in range(shape.decoder.layers))
        self.norm = nn.LayerNorm(width)
        self.outlets = nn.ModuleList(nn.Linear(width, shape.numbers(scale)) for scale in range(scales))
        initialise(self, max(1, shape.decoder.layers))
        for outlet in self.outlets:
            nn.init.zeros_(outlet.weight)  # type: ignore[arg-type]  # an untrained decoder gives the codes themselves

    def codebook(self, scale: int) -> Tensor:
        """Codes of a scale, `(vocabulary, numbers)`, in units of its coefficients."""
        return self.get_buffer(f"codes{scale}")

    @torch.no_grad()
    def set_codebook(self, scale: int, codes: Tensor, spread: float) -> None:
        """Takes over codes, moved to the grid on which coefficients lie.

        Args:
            scale: whose.
            codes: `(vocabulary, numbers)`.
            spread: root mean square of its coefficients less the codes' mean; scales what the decoder sees and says.
        """
        grid = 2.0**self.shape.levels
        self.codebook(scale).copy_((codes * grid).round() / grid)
        self.get_buffer("spread")[scale] = spread

    def patches(self, images: Tensor, scales: int | None = None) -> list[Tensor]:
        """Patches of the first so many scales; bands of finer ones are not formed.

        Args:
            images: `(N, C, H, W)`, 0 to 255, of any kind.
            scales: by default all.

        Returns:
            float32 `(N, tokens, numbers)` a scale: orthonormal Haar coefficients, exact for whole numbers.
        """
        shape, found = self.shape, []
        finer = 0 if scales is None else shape.scales - scales
        for scale, band in enumerate(haar_scales(haar_approximation(images.float(), finer), shape.levels - finer)):
            n, channels, _, _ = band.shape
            (down, across), side = shape.grid, shape.side(scale)
            cut = band.view(n, channels, down, side, across, side).permute(0, 2, 4, 1, 3, 5)
            found.append(cut.reshape(n, shape.tokens, -1))
        return found

    def encode(self, images: Tensor, scales: int | None = None) -> Tensor:
        """Tokens of the first so many scales, int64 `(N, scales tokens)`; ties go to the lowest code.

        Exact for images of whole numbers: no token depends on anything but its own patch.
        """
        found = []
        with torch.autocast(images.device.type, enabled=False):
            for scale, patches in enumerate(self.patches(images, scales)):
                found.append(
                    _nearest(patches.flatten(0, 1).double(), self.codebook(scale).double()).view(patches.shape[:2])
                )
        return torch.cat(found, 1)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Decoded patches of as many scales as there are tokens of; `(N, k tokens)` to `(N, tokens, numbers)` each."""
        size = self.shape.tokens
        codes = [self.codebook(scale)[part] for scale, part in enumerate(torch.split(tokens, size, dim=1))]
        spread = self.get_buffer("spread")
        seen = [
            inlet(code / spread[scale]) for scale, (inlet, code) in enumerate(zip(self.inlets, codes, strict=False))
        ]
        x = torch.cat(seen, 1)
        x = stream(x + self.places(positions(x[:, :, 0])))
        scale_of = torch.arange(len(codes), device=tokens.device).repeat_interleave(size)
        hidden = scale_of[:, None] < scale_of
        for block in self.blocks:
            x = block(x, hidden)
        parts = torch.split(self.norm(x), size, dim=1)
        return [
            code + spread[scale] * outlet(part.contiguous()).float()
            for scale, (outlet, part, code) in enumerate(zip(self.outlets, parts, codes, strict=False))
        ]

    def picture(self, patches: list[Tensor]) -> Tensor:
        """The image that patches of the first scales make, `(N, C, h, w)`; in grey levels, not yet within 0 to 255."""
        shape, bands = self.shape, []
        for scale, cut in enumerate(patches):
            (down, across), side = shape.grid, shape.side(scale)
            whole = cut.view(len(cut), down, across, -1, side, side).permute(0, 3, 1, 4, 2, 5)
            bands.append(whole.reshape(len(cut), -1, down * side, across * side))
        return inverse_haar_scales(bands) / (1 << shape.scales - len(patches))

    def thumbnail(self, tokens: Tensor) -> Tensor:
        """What the codes of the coarsest scale stand for: `(N, tokens)` to float32 `(N, C, h, w)`, about 0 to 255.

        Exact, so a row depends on its own tokens alone.
        """
        return self.picture([self.codebook(0)[tokens]])

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """The image of the first k scales: `(N, k tokens)` to float32 `(N, C, h, w)`, 0 to 255."""
        image: Tensor = self.picture(self(tokens)).clamp(0, 255)
        return image

    def losses(self, images: Tensor) -> Tensor:
        """Squared error of all scales' coefficients, each in units of its spread; `(N,)`.

        The transform is orthonormal, so this is the squared error of pixels but for the weights of scales.
        """
        true = self.patches(images)
        spread = self.get_buffer("spread")
        found = zip(true, self(self.encode(images)), strict=True)
        parts = [((a - b) / spread[scale]).square().mean((1, 2)) for scale, (a, b) in enumerate(found)]
        return torch.stack(parts).mean(0)

    @torch.inference_mode()
    def errors(self, images: Tensor) -> list[ScaleError]:
        """How well images `(N, C, H, W)` are kept by the first scale, the first two, and so on."""
        size, scales = self.shape.tokens, self.shape.scales
        few = torch.split(images, max(1, _ATTENDED // (scales * size) ** 2))
        mean = torch.stack([self.patches(part, 1)[0].sum((0, 1)) for part in few]).sum(0) / (len(images) * size)
        wrong, missed, energy = torch.zeros(3, scales, dtype=torch.double)
        for part in few:
            true, tokens = self.patches(part), self.encode(part)
            for scale in range(scales):
                kept = self(tokens[:, : (scale + 1) * size])
                wrong[scale] += (self.picture(kept).clamp(0, 255) - self.picture(true[: scale + 1])).square().sum()
                missed[scale] += (true[scale] - kept[-1]).square().sum()
                energy[scale] += (true[scale] - (0 if scale else mean)).square().sum()
        found = []
        for scale in range(scales):
            channels, height, width = self.shape.small(scale + 1)
            rmse = (wrong[scale] / (len(images) * channels * height * width)).sqrt()
            lost = missed[scale] / energy[scale].clamp(min=1e-9)
            found.append(ScaleError(height, width, float(rmse), float(lost)))
        return found


def _nearest(points: Tensor, codes: Tensor) -> Tensor:
    """Places of the nearest codes, `(M,)`; of equally near ones the first."""
    halves = codes.square().sum(1) / 2
    parts = torch.split(points, max(1, (_CACHED if points.device.type == "cpu" else _CACHED_ELSEWHERE) // len(codes)))
    return torch.cat([_first_least(torch.addmm(halves, part, codes.T, alpha=-1)) for part in parts])


def _first_least(distances: Tensor) -> Tensor:
    """Column of each row's least value, the first of equal ones: `(M,)`."""
    if distances.device.type != "cpu":
        return distances.argmin(1)
    return torch.from_numpy(distances.numpy().argmin(1))  # eight times as fast as PyTorch's


@torch.no_grad()
def k_means(points: Tensor, number: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Centres of Lloyd's algorithm (1982), `(number, d)`; centres without points move to points far from theirs.

    Args:
        points: `(M, d)`, public.
        number: of centres; where there are fewer different points, some centres are equal.
        rounds: of the algorithm.
        generator: public; chooses the first centres among the points.
    """
    chosen = torch.randperm(len(points), generator=generator)[:number]
    centres = points[chosen].repeat(-(-number // len(chosen)), 1)[:number]
    for _ in range(rounds):
        nearest, far = [], []
        for part in torch.split(points, 8192):
            distance, place = (centres.square().sum(1) / 2 - part @ centres.T).min(1)
            nearest.append(place)
            far.append(distance + part.square().sum(1) / 2)
        owner, distances = torch.cat(nearest), torch.cat(far)
        sizes = torch.bincount(owner, minlength=number)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)
        empty = (sizes == 0).nonzero()[:, 0]
        farthest = distances.topk(min(len(empty), len(points))).indices
        centres[empty[: len(farthest)]] = points[farthest]
    return centres
