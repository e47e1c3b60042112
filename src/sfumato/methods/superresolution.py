"""Super-resolution by diffusion: detail for coarse images, learnt from public ones.

A small U-Net sees a coarse image, enlarged, and diffuses what an image differs from it by (after Saharia et al. 2021,
"Image super-resolution via iterative refinement", arXiv 2104.07636). The coarse image is decoded from tokens when it
learns as when it draws, so it also restores what the tokens lost. All of an image is drawn at once; drawn token by
token, detail falls apart into the tokens' patches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.hardware import Hardware
from sfumato.methods.denoising import Image, from_bands, to_bands
from sfumato.methods.spectral_settings import SuperResolutionConfig
from sfumato.nets.diffusion import Denoiser, Sampler, sample, training_levels
from sfumato.nets.unet import UNet, UNetShape

_DATA_STD = 0.5  # that what is diffused is brought to, as EDM's constants expect
_LOWEST, _HIGHEST = 0.02, 20.0
_MEASURED = 2_000  # pictures whose detail is measured for its spread


class SuperResolver(nn.Module):
    """Makes images from coarse ones; rows never meet.

    Args:
        image: `(C, H, W)` of what it makes; H and W are multiples of 4.
        config: its size.
    """

    def __init__(self, image: Image, config: SuperResolutionConfig) -> None:
        super().__init__()
        self.image, bands = image, 4 * image[0]
        self.network = UNet(UNetShape(bands, bands, 0, config.width, config.blocks))
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("spread", torch.ones(()))

    def guide(self, coarse: Tensor) -> Tensor:
        """Coarse images `(N, C, h, w)`, 0 to 255, enlarged (bicubic), as Haar bands `(N, 4 C, H/2, W/2)`."""
        return to_bands(F.interpolate(coarse.float(), self.image[1:], mode="bicubic", align_corners=False) / 127.5 - 1)

    @torch.no_grad()
    def measure(self, pictures: Tensor, coarse: Tensor) -> None:
        """Learns how much public pictures `(N, C, H, W)`, 0 to 255, differ from their coarse images enlarged."""
        difference = to_bands(pictures.float() / 127.5 - 1) - self.guide(coarse)
        self.get_buffer("spread").copy_(difference.square().mean().sqrt().clamp(min=1e-3))

    def losses(self, pictures: Tensor, coarse: Tensor, normal: Tensor, level: Tensor) -> Tensor:
        """EDM's loss of each row, `(N,)`.

        Args:
            pictures: `(N, C, H, W)`, 0 to 255.
            coarse: `(N, C, h, w)`, 0 to 255.
            normal: standard normal draws, the noise, `(N, 4 C, H/2, W/2)`.
            level: noise levels, `(N,)`.
        """
        guide = self.guide(coarse)
        clean = (to_bands(pictures.float() / 127.5 - 1) - guide) * (_DATA_STD / self.get_buffer("spread"))
        return Denoiser(self.network, _DATA_STD).loss(clean, normal, level, None, guide)

    @torch.inference_mode()
    def draw(self, coarse: Tensor, generator: torch.Generator, hardware: Hardware, levels: int) -> Tensor:
        """Images `(N, C, H, W)`, 0 to 255, for coarse ones `(N, C, h, w)`; on `hardware`, where the network is too.

        Args:
            coarse: 0 to 255.
            generator: public, on the processor.
            hardware: where to compute.
            levels: noise levels visited; the network is called `2 levels - 1` times.
        """
        device, precision = hardware
        guide = self.guide(coarse.to(device))
        start = torch.randn(guide.shape, generator=generator).to(device)
        sampler = Sampler(steps=levels, lowest=_LOWEST, highest=_HIGHEST)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            drawn = sample(Denoiser(self.network, _DATA_STD), start, None, guide, sampler, generator)
        bands = drawn.float() * (self.get_buffer("spread") / _DATA_STD) + guide
        return (from_bands(bands).clamp(-1, 1) + 1) * 127.5


def lessons(
    config: SuperResolutionConfig,
    resolver: SuperResolver,
    pictures: Tensor,
    coarse: Tensor,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, ...]]:
    """Batches without end, as `SuperResolver.losses` takes them; measures the spread first.

    Args:
        config: settings.
        resolver: what learns.
        pictures: public, uint8 `(N, C, H, W)`.
        coarse: what is left of them, `(N, C, h, w)`, 0 to 255.
        generator: public.
    """
    resolver.measure(pictures[:_MEASURED], coarse[:_MEASURED])
    channels, height, width = resolver.image
    while True:
        chosen = torch.randint(len(pictures), (config.batch,), generator=generator)
        normal = torch.randn(config.batch, 4 * channels, height // 2, width // 2, generator=generator)
        level = training_levels(torch.randn(config.batch, generator=generator))
        yield pictures[chosen], coarse[chosen], normal, level
