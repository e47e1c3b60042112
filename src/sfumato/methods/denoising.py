"""A class-conditional diffusion model on Haar bands, as private training and its public warm-up see it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.hardware import Hardware
from sfumato.nets.diffusion import Denoiser, sample
from sfumato.nets.unet import UNet, UNetShape
from sfumato.nets.wavelet import haar, inverse_haar
from sfumato.privacy.records import Rows

DATA_STD = 0.5
"""EDM's sigma_data: pictures in [-1, 1] less their class mean, in scaled Haar bands. A public constant."""

_LEVEL_MEAN, _LEVEL_SPREAD = -1.2, 1.2
_LOW_SCALE, _DETAIL_SCALE = 0.5, 1.0


def to_bands(pictures: Tensor) -> Tensor:
    """`(N, C, H, W)` in [-1, 1] to scaled bands `(N, 4 C, H/2, W/2)`; LL becomes the mean of its block."""
    bands = haar(pictures)
    channels = pictures.shape[1]
    return torch.cat((bands[:, :channels] * _LOW_SCALE, bands[:, channels:] * _DETAIL_SCALE), dim=1)


def from_bands(bands: Tensor) -> Tensor:
    """Inverse of `to_bands`."""
    channels = bands.shape[1] // 4
    return inverse_haar(torch.cat((bands[:, :channels] / _LOW_SCALE, bands[:, channels:] / _DETAIL_SCALE), dim=1))


@dataclass(frozen=True)
class Schedule:
    """Learning rate of a training of known length: linear warm-up, then a cosine fall to `final` of its peak."""

    peak: float
    steps: int
    warm_up: int = 10
    final: float = 0.05

    def __call__(self, step: int) -> float:
        """Rate at `step`, counted from 1."""
        if step <= self.warm_up:
            return self.peak * step / self.warm_up
        progress = min(1.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        return self.peak * (self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2)


def row_losses(model: UNet, pictures: Tensor, labels: Tensor, guides: Tensor, normal: Tensor, spread: Tensor) -> Tensor:
    """EDM's loss of each row `(N,)`: the network denoises what differs from the guide, and sees the guide.

    Args:
        model: the network.
        pictures: `(N, C, H, W)` in [-1, 1].
        labels: `(N,)`, -1 for "no label".
        guides: scaled bands `(N, 4 C, h, w)`.
        normal: standard normal draws, the noise, `(N, 4 C, h, w)`.
        spread: standard normal draws, the noise levels, `(N,)`.
    """
    level = torch.exp(_LEVEL_MEAN + _LEVEL_SPREAD * spread)
    labels = labels if model.shape.classes else torch.zeros_like(labels)
    return Denoiser(model, DATA_STD).loss(to_bands(pictures) - guides, normal, level, labels, guides)


def train_openly(
    model: UNet,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    steps: int,
    rate: float,
    generator: torch.Generator,
    hardware: Hardware,
) -> Iterator[int]:
    """Ordinary training, without privacy, on public or released pictures; yields steps, from 1.

    Args:
        model: the network.
        batches: pictures, labels and guides, as for `row_losses`; at least `steps`.
        steps: of Adam.
        rate: its peak.
        generator: of the noise.
        hardware: where to compute.
    """
    device, precision = hardware
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = Schedule(rate, steps, final=0.1)
    for step, (pictures, labels, guides) in zip(range(1, steps + 1), batches, strict=False):
        normal = torch.randn(guides.shape, generator=generator)
        spread = torch.randn(len(guides), generator=generator)
        inputs = [value.to(device) for value in (pictures, labels, guides, normal, spread)]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = row_losses(model, *inputs).mean()
        optimizer.param_groups[0]["lr"] = schedule(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield step


class DenoisingLearner:
    """Trains a `UNet` to denoise pictures around their class means; a `Learner` of private training.

    The network sees the class mean as a guide and predicts what differs from it, so an untrained network already draws
    the mean.
    """

    def __init__(
        self,
        shape: UNetShape,
        guides: Tensor,
        schedule: Schedule,
        *,
        rows: int,
        average: float,
        seed: int,
        hardware: Hardware,
    ) -> None:
        """
        Args:
            shape: of the network.
            guides: class means as scaled bands, `(classes or 1, 4 C, h, w)`.
            schedule: learning rate.
            rows: noise draws per record and step.
            average: decay of the exponential moving average of the weights.
            seed: of the public initialisation.
            hardware: where to compute.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = UNet(shape)
        self.model.to(hardware.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.guides = guides.to(hardware.device, memory_format=torch.channels_last)
        self.schedule, self.rows, self.average, self.hardware = schedule, rows, average, hardware
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=schedule.peak, betas=(0.9, 0.99))
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # zero gradients: creates the moments without moving the weights

    def _row_losses(self, model: UNet, pictures: Tensor, labels: Tensor, normal: Tensor, spread: Tensor) -> Tensor:
        return row_losses(model, pictures, labels, self.guides[labels.clamp(min=0)], normal, spread)

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        """EDM's loss of each row; noise and noise level are the record's own draws."""
        pictures = rows.images.float() / 127.5 - 1
        bands = self.guides.shape[1:]
        normal = rows.draws.normal("noise", self.rows, *bands).flatten(0, 1).to(pictures.device)
        spread = rows.draws.normal("level", self.rows).flatten().to(pictures.device)
        assert isinstance(model, UNet)
        return self._row_losses(model, pictures, rows.labels, normal, spread)

    def update(self, gradient: Mapping[str, Tensor], step: int) -> None:
        """One step of Adam, one step of the average."""
        for name, parameter in self.model.named_parameters():
            parameter.grad = gradient[name].clone(memory_format=torch.preserve_format)
        self._advance(step)

    def _advance(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(step)
        self.optimizer.step()
        decay = min(self.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)

    def warm_up(
        self, pictures: Tensor, labels: Tensor, *, batch: int, rate: float, generator: torch.Generator
    ) -> Iterator[int]:
        """Ordinary training on released or public pictures `(N, C, H, W)` in [-1, 1], once through; yields steps.

        The moving average restarts at the end, and the optimiser's moments are dropped.
        """
        order = torch.randperm(len(pictures), generator=generator)
        steps = len(order) // batch

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for part in torch.split(order[: steps * batch], batch):
                yield pictures[part], labels[part], self.guides[labels[part].clamp(min=0)]

        yield from train_openly(
            self.model, batches(), steps=steps, rate=rate, generator=generator, hardware=self.hardware
        )
        self.averaged.load_state_dict(self.model.state_dict())

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over weights that public training made; the moving average starts with them."""
        self.model.load_state_dict(weights)
        self.averaged.load_state_dict(weights)

    def state(self) -> dict[str, Tensor]:
        """Weights, average and Adam's moments, by name."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        state |= {f"average.{name}": value for name, value in self.averaged.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                state[f"adam.{name}.{key}"] = value
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.averaged.load_state_dict(part("average."))
        for name, parameter in self.model.named_parameters():
            for key, value in part(f"adam.{name}.").items():
                self.optimizer.state[parameter][key].copy_(value)


@torch.inference_mode()
def draw_pictures(
    network: UNet, guides: Tensor, labels: Tensor, generator: torch.Generator, *, steps: int, hardware: Hardware
) -> Tensor:
    """Samples pictures `(N, C, H, W)` in [-1, 1] for labels `(N,)`."""
    device, precision = hardware
    labels = (labels if network.shape.classes else torch.zeros_like(labels)).to(device)
    guide = guides[labels]
    start = torch.randn(guide.shape, generator=generator).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        bands = sample(Denoiser(network, DATA_STD), start, labels, guide, steps=steps)
    return from_bands(bands.float() + guide).clamp(-1, 1)
