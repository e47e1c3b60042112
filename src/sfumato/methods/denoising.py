"""A class-conditional diffusion model, as private training and its public lessons see it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sfumato.hardware import Hardware
from sfumato.methods.checkpoint import Checkpoint
from sfumato.methods.curves import Told
from sfumato.nets.ddpmpp import DDPMpp, DDPMppShape
from sfumato.nets.diffusion import Denoiser, Sampler, sample, training_levels
from sfumato.nets.unet import UNet, UNetShape
from sfumato.nets.wavelet import haar, inverse_haar
from sfumato.privacy.records import Rows

Network = UNet | DDPMpp
Shape = UNetShape | DDPMppShape
Image = tuple[int, int, int]
"""`(C, H, W)` of a picture."""

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


class View(NamedTuple):
    """How a network sees pictures.

    Attributes:
        bands: as scaled Haar bands, else as pixels.
        guided: it sees the class mean beside them and diffuses what differs from it.
        data_std: standard deviation that what it diffuses is taken to have (EDM's sigma_data), a public constant.
    """

    bands: bool
    guided: bool
    data_std: float

    @classmethod
    def of(cls, shape: Shape) -> View:
        """A U-Net sees bands, DDPM++ what published work shows it: pixels without a guide, of variance 1/3."""
        if isinstance(shape, DDPMppShape):
            return cls(bands=False, guided=False, data_std=math.sqrt(1 / 3))
        return cls(bands=True, guided=shape.guide > 0, data_std=0.5)

    def size(self, image: Image) -> Image:
        """Of an image as the network sees it."""
        channels, height, width = image
        return (4 * channels, height // 2, width // 2) if self.bands else image

    def encode(self, pictures: Tensor) -> Tensor:
        """`(N, C, H, W)` in [-1, 1] to what the network sees."""
        return to_bands(pictures) if self.bands else pictures

    def decode(self, seen: Tensor) -> Tensor:
        """Inverse of `encode`."""
        return from_bands(seen) if self.bands else seen


def network_of(shape: Shape, seed: int) -> Network:
    """A new network; its weights follow from the seed, which is public."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DDPMpp(shape) if isinstance(shape, DDPMppShape) else UNet(shape)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class Cost(NamedTuple):
    """Of one picture in training.

    Attributes:
        multiply_adds: of matrix products and convolutions in a forward pass.
        kept_bytes: what the forward pass keeps for the backward pass, in float32, weights aside.
    """

    multiply_adds: int
    kept_bytes: int


def cost_of(shape: Shape, image: Image) -> Cost:
    """Counted without computing anything."""
    with torch.device("meta"):
        network = DDPMpp(shape) if isinstance(shape, DDPMppShape) else UNet(shape)
    view = View.of(shape)
    seen = torch.empty(1, *view.size(image), device="meta")
    label = torch.zeros(1, dtype=torch.long, device="meta")
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no two have one address

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(seen, torch.empty(1, device="meta"), label, seen if view.guided else None)
    bytes_of = sum(storage.nbytes() for place, storage in kept.items() if place not in weights)
    return Cost(int(counter.get_total_flops()) // 2, bytes_of)


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


def row_losses(
    model: Network, pictures: Tensor, labels: Tensor, guides: Tensor | None, normal: Tensor, spread: Tensor
) -> Tensor:
    """EDM's loss of each row `(N,)`; with a guide the network denoises what differs from it.

    Args:
        model: the network.
        pictures: `(N, C, H, W)` in [-1, 1].
        labels: `(N,)`, -1 for "no label".
        guides: class means as the network sees pictures, `(N, c, h, w)`; None where it is not guided.
        normal: standard normal draws, the noise, `(N, c, h, w)`.
        spread: standard normal draws, the noise levels, `(N,)`.
    """
    view = View.of(model.shape)
    level = training_levels(spread)
    labels = labels if model.shape.classes else torch.zeros_like(labels)
    clean = view.encode(pictures)
    return Denoiser(model, view.data_std).loss(
        clean if guides is None else clean - guides, normal, level, labels, guides
    )


def train_openly(
    model: Network,
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    *,
    steps: int,
    rate: float,
    generator: torch.Generator,
    hardware: Hardware,
    told: Told = lambda *_: None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[int]:
    """Ordinary training, without privacy, on public or released pictures; yields steps, from 1 or where it was cut off.

    Args:
        model: the network.
        batches: pictures, labels and guides, as for `row_losses`; at least `steps`.
        steps: of Adam.
        rate: its peak.
        generator: of the noise.
        hardware: where to compute.
        told: of every loss.
        checkpoint: with this stage at work.
    """
    device, precision = hardware
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = Schedule(rate, steps, final=0.1)
    begun = checkpoint.steps_done(optimizer) if checkpoint is not None else 0
    for step, (pictures, labels, guides) in zip(range(begun + 1, steps + 1), batches, strict=False):
        size = View.of(model.shape).size((pictures.shape[1], pictures.shape[2], pictures.shape[3]))
        normal = torch.randn(len(pictures), *size, generator=generator).to(device)
        spread = torch.randn(len(pictures), generator=generator).to(device)
        guides = None if guides is None else guides.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = row_losses(model, pictures.to(device), labels.to(device), guides, normal, spread).mean()
        optimizer.param_groups[0]["lr"] = schedule(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        told(step, float(loss.detach()))
        if checkpoint is not None and step < steps:
            checkpoint.keeps(step, optimizer)
        yield step


class DenoisingLearner:
    """Trains a network to denoise pictures; a `Learner` of private training.

    A guided network sees the class mean and predicts what differs from it, so untrained it already draws the mean.
    """

    def __init__(
        self,
        shape: Shape,
        image: Image,
        guides: Tensor | None,
        schedule: Schedule,
        *,
        rows: int,
        average: float,
        seed: int,
        hardware: Hardware,
        label_dropout: float = 0.0,
    ) -> None:
        """
        Args:
            shape: of the network.
            image: of the pictures.
            guides: class means as a guided network sees them, `(classes or 1, c, h, w)`; else None.
            schedule: learning rate.
            rows: noise draws per record and step.
            average: decay of the exponential moving average of the weights.
            seed: of the public initialisation.
            hardware: where to compute.
            label_dropout: share of the rows shown without their label.
        """
        self.model = network_of(shape, seed).to(hardware.device)
        self.size = View.of(shape).size(image)
        self.guides = None
        if guides is not None:
            self.guides = guides.to(hardware.device, memory_format=torch.channels_last)
        self.schedule, self.rows, self.average, self.hardware = schedule, rows, average, hardware
        self.label_dropout = label_dropout
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=schedule.peak, betas=(0.9, 0.99))
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # zero gradients: creates the moments without moving the weights

    def guides_of(self, labels: Tensor) -> Tensor | None:
        """The guide of each row, `(N, c, h, w)`; of the only one where there are no labels."""
        return None if self.guides is None else self.guides[labels.clamp(min=0)]

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        """EDM's loss of each row; noise, noise level and dropped labels are the record's own draws."""
        pictures, labels, draws = rows.images.float() / 127.5 - 1, rows.labels, rows.draws
        normal = draws.normal("noise", self.rows, *self.size).flatten(0, 1).to(pictures.device)
        spread = draws.normal("level", self.rows).flatten().to(pictures.device)
        guides = self.guides_of(labels)
        if self.label_dropout:
            hidden = draws.uniform("label", self.rows).flatten().to(pictures.device) < self.label_dropout
            labels = torch.where(hidden, -1, labels)
        assert isinstance(model, UNet | DDPMpp)
        return row_losses(model, pictures, labels, guides, normal, spread)

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
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        steps: int,
        rate: float,
        generator: torch.Generator,
        told: Told = lambda *_: None,
    ) -> Iterator[int]:
        """Ordinary training on released or public pictures; yields steps.

        The moving average restarts at the end, and the optimiser's moments are dropped.

        Args:
            batches: pictures `(N, C, H, W)` in [-1, 1] and labels `(N,)`; `steps` of them.
            steps: how many.
            rate: peak learning rate.
            generator: of the noise.
            told: hears the losses.
        """
        guided = ((pictures, labels, self.guides_of(labels)) for pictures, labels in batches)
        yield from train_openly(
            self.model, guided, steps=steps, rate=rate, generator=generator, hardware=self.hardware, told=told
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
    network: Network,
    image: Image,
    guides: Tensor | None,
    labels: Tensor,
    generator: torch.Generator,
    sampler: Sampler,
    hardware: Hardware,
) -> Tensor:
    """Samples pictures `(N, C, H, W)` in [-1, 1] for labels `(N,)`.

    Args:
        network: trained.
        image: of the pictures.
        guides: as for `DenoisingLearner`.
        labels: `(N,)`; not used by an unconditional network.
        generator: of all randomness here, which is public.
        sampler: constants.
        hardware: where to compute.
    """
    (device, precision), view = hardware, View.of(network.shape)
    labels = (labels if network.shape.classes else torch.zeros_like(labels)).to(device)
    guide = None if guides is None else guides[labels]
    start = torch.randn(len(labels), *view.size(image), generator=generator).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        drawn = sample(Denoiser(network, view.data_std), start, labels, guide, sampler, generator)
    return view.decode(drawn.float() if guide is None else drawn.float() + guide).clamp(-1, 1)
