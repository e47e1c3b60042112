"""The public stage of Spectral, from public images alone: a tokenizer, an autoregressive model, and means of detail.

The autoregressive model knows all scales where it is to draw detail too, else only the coarsest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sfumato._files import write_atomic
from sfumato.hardware import Hardware
from sfumato.methods.denoising import Schedule
from sfumato.methods.examples import Examples
from sfumato.methods.spectral_settings import Image, SpectralConfig
from sfumato.methods.superresolution import SuperResolver, lessons
from sfumato.nets.autoregressive import Condition, ScaleGPT
from sfumato.nets.tokenizer import ScaleError, Tokenizer, k_means

Progress = Callable[[str, int, int], None]

HELD_OUT, MOST_HELD_OUT = 10, 500
"""Every so many public images is kept from the training, up to a number, to report errors on."""

ENCODED = 256  # images tokenised at once
_VERSION = "3"  # of the recipe, in the name of what is cached


@dataclass(frozen=True)
class PublicModel:
    """What public images taught; float32, in eval mode, on the processor.

    Attributes:
        tokenizer: images to tokens and back.
        network: of the tokens of all scales or of the coarsest; conditioned on nothing, or on texts.
        resolver: makes images from coarse ones; None where something else does.
        examples: of what images are made of; None where they are made otherwise.
    """

    tokenizer: Tokenizer
    network: ScaleGPT
    resolver: SuperResolver | None
    examples: Examples | None = None

    def state(self) -> dict[str, Tensor]:
        """Tensors to save."""
        state = {
            f"{part}.{name}": value.detach().cpu().contiguous()
            for part, module in self._parts()
            for name, value in module.state_dict().items()
        }
        if self.examples is not None:
            state |= {"examples.pictures": self.examples.pictures, "examples.tokens": self.examples.tokens}
        return state

    def _parts(self) -> list[tuple[str, nn.Module]]:
        parts: list[tuple[str, nn.Module]] = [("tokenizer", self.tokenizer), ("network", self.network)]
        return parts if self.resolver is None else [*parts, ("resolver", self.resolver)]

    @classmethod
    def of(cls, config: SpectralConfig, image: Image, condition: Condition, state: dict[str, Tensor]) -> PublicModel:
        """Restores what `state` gave (KeyError or RuntimeError where it does not fit)."""
        made = new_model(config, image, condition, seed=0)
        for part, module in made._parts():
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        if config.detail == "examples":
            made = replace(made, examples=Examples(state["examples.pictures"], state["examples.tokens"]))
        return made

    def errors(self, pixels: NDArray[np.uint8]) -> list[ScaleError]:
        """Reconstruction error by scale, on images that the training did not see."""
        held_out = pixels[::HELD_OUT][:MOST_HELD_OUT]
        return self.tokenizer.errors(torch.from_numpy(held_out))


def new_model(config: SpectralConfig, image: Image, condition: Condition, seed: int) -> PublicModel:
    """An untrained one, frozen."""
    shape = config.shape(image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = Tokenizer(shape)
        scales = shape.scales if config.detail == "tokens" else 1
        network = ScaleGPT(config.vocabulary, scales, shape.tokens, config.transformer(), condition)
        resolver = SuperResolver(image, config.superresolution) if config.detail == "diffusion" else None
    for module in (tokenizer, network, resolver):
        if module is not None:
            module.eval().requires_grad_(False)
    return PublicModel(tokenizer, network, resolver)


def public_model(
    config: SpectralConfig,
    image: Image,
    read: Callable[[], tuple[NDArray[np.uint8], Tensor | None]],
    condition: Condition,
    *,
    seed: int,
    hardware: Hardware,
    files: tuple[Path, ...] = (),
    progress: Progress = lambda *_: None,
) -> PublicModel:
    """The model of a public set: read from the first of `files` that has it, else trained; then in all of them.

    Args:
        config: settings.
        image: `(C, H, W)`.
        read: gives the public pictures, uint8 `(N, C, H, W)`, and what each is told as its condition, `(N, size)`, or
            None; called only where something is to be learnt.
        condition: "none" or "text".
        seed: public.
        hardware: where to train.
        files: the run's own copy, and one that further runs on the same public set find.
        progress: told (stage, steps done, steps in all).
    """
    found = next(
        (model for file in files if (model := load_public_model(config, image, condition, file)) is not None), None
    )
    if found is None:
        pixels, vectors = read()
        found = _learnt(config, image, pixels, vectors, condition, seed, hardware, progress)
    for file in files:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(file, save(found.state()), 0o600)
    return found


def cache_name(config: SpectralConfig, condition: Condition, facts: Any, seed: int) -> str:
    """File name of a public model in a cache, from everything that decides it."""
    parts = {"levels", "patch", "vocabulary", "width", "layers", "heads", "tokenizer", "pretraining"}
    if config.own_detail:
        parts.add("detail")
    settings: dict[str, Any] = config.model_dump(mode="json", include=parts)
    if config.detail == "examples":
        settings["examples"] = config.examples.count
    if config.detail == "diffusion":
        settings["superresolution"] = config.superresolution.model_dump(mode="json", exclude={"levels"})
    text = json.dumps([_VERSION, settings, condition, facts, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32] + ".safetensors"


def load_public_model(config: SpectralConfig, image: Image, condition: Condition, file: Path) -> PublicModel | None:
    """The model in a file, or None where there is no such file or it does not fit."""
    try:
        return PublicModel.of(config, image, condition, load_file(file))
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None


def _learnt(
    config: SpectralConfig,
    image: Image,
    pixels: NDArray[np.uint8],
    vectors: Tensor | None,
    condition: Condition,
    seed: int,
    hardware: Hardware,
    progress: Progress,
) -> PublicModel:
    made, generator = new_model(config, image, condition, seed), torch.Generator().manual_seed(seed)
    shown = np.flatnonzero(seen_in_training(len(pixels)))
    pictures = torch.from_numpy(pixels[shown])
    for scale in make_codebooks(config, made.tokenizer, pictures, generator):
        progress("codebooks of public images", scale, made.tokenizer.shape.scales)
    for step in train_decoder(config, made.tokenizer, pictures, generator, hardware):
        progress("decoder of public images", step, config.decoder_steps)
    tokens = encoded(made.tokenizer, pictures, made.network.scales)
    told = None if vectors is None else vectors[torch.from_numpy(shown)]
    batches = _token_batches(config, made.network, tokens, told, generator)
    settings = config.pretraining
    for step in train_openly(made.network, batches, settings.steps, settings.rate, hardware):
        progress("pretraining on public tokens", step, settings.steps)
    if config.detail == "examples":
        few = Examples.among(pictures, tokens, config.examples.count, generator)
        made = replace(made, examples=few)
    if made.resolver is not None:
        for step in _train_resolver(config, made.resolver, made.tokenizer, pictures, tokens, generator, hardware):
            progress("super-resolution of public images", step, config.superresolution.steps)
    return made


def _train_resolver(
    config: SpectralConfig,
    resolver: SuperResolver,
    tokenizer: Tokenizer,
    pictures: Tensor,
    tokens: Tensor,
    generator: torch.Generator,
    hardware: Hardware,
) -> Iterator[int]:
    """Yields steps; `tokens` are the coarse ones of the pictures."""
    settings = config.superresolution
    coarse = torch.cat([tokenizer.decode(part).cpu() for part in torch.split(tokens, ENCODED)])
    losses = lessons(settings, resolver, pictures, coarse, generator, hardware)
    yield from _minimised(resolver, losses, settings.steps, settings.rate, hardware)


def seen_in_training(count: int) -> NDArray[np.bool_]:
    """Which of so many public images are trained on; the others are held out."""
    seen = np.ones(count, dtype=np.bool_)
    if count >= 2 * HELD_OUT:
        seen[np.arange(0, count, HELD_OUT)[:MOST_HELD_OUT]] = False
    return seen


def make_codebooks(
    config: SpectralConfig, tokenizer: Tokenizer, pictures: Tensor, generator: torch.Generator
) -> Iterator[int]:
    """A codebook for each scale, by k-means on patches; yields how many are made."""
    settings, shape = config.tokenizer, tokenizer.shape
    few = torch.randperm(len(pictures), generator=generator)[: max(1, settings.patches // shape.tokens)]
    for scale, patches in enumerate(tokenizer.patches(pictures[few])):
        points = patches.flatten(0, 1)
        spread = float((points - points.mean(0)).square().mean().sqrt())
        codes = k_means(points, shape.vocabulary, settings.rounds, generator)
        tokenizer.set_codebook(scale, codes, max(spread, 1e-3))
        yield scale + 1


def train_decoder(
    config: SpectralConfig, tokenizer: Tokenizer, pictures: Tensor, generator: torch.Generator, hardware: Hardware
) -> Iterator[int]:
    """The tokenizer's decoder, where it is used, by squared error; yields steps."""
    settings = config.tokenizer

    def losses() -> Iterator[Callable[[nn.Module], Tensor]]:
        while True:
            chosen = pictures[torch.randint(len(pictures), (settings.batch,), generator=generator)]
            yield lambda model, chosen=chosen: model.losses(chosen.to(hardware.device))  # type: ignore[misc]

    yield from _minimised(tokenizer, losses(), config.decoder_steps, settings.rate, hardware)


def encoded(tokenizer: Tokenizer, pictures: Tensor, scales: int | None = None) -> Tensor:
    """Tokens of many pictures, int64 `(N, tokens)`."""
    return torch.cat([tokenizer.encode(part, scales) for part in torch.split(pictures, ENCODED)])


def _token_batches(
    config: SpectralConfig, network: ScaleGPT, tokens: Tensor, told: Tensor | None, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens of all scales that the network knows or of the coarse one, and conditions, some of them hidden."""
    settings = config.pretraining
    while True:
        chosen = torch.randint(len(tokens), (settings.batch,), generator=generator)
        coarse = float(torch.rand((), generator=generator)) < settings.coarse_share
        condition = network.condition.nothing(len(chosen))
        if told is not None:
            hidden = torch.rand(len(chosen), generator=generator) < settings.label_dropout
            condition = torch.where(hidden[:, None], condition, told[chosen])
        yield tokens[chosen, : network.tokens if coarse else network.length], condition


def train_openly(
    network: ScaleGPT, batches: Iterable[tuple[Tensor, Tensor]], steps: int, rate: float, hardware: Hardware
) -> Iterator[int]:
    """Ordinary training, without privacy, on tokens of public or released pictures; yields steps, from 1.

    Args:
        network: frozen before and after.
        batches: tokens `(B, T)` and conditions; at least `steps`.
        steps: of Adam.
        rate: its peak.
        hardware: where to compute.
    """

    def losses() -> Iterator[Callable[[nn.Module], Tensor]]:
        for batch in batches:
            tokens, condition = (value.to(hardware.device) for value in batch)
            yield lambda model, tokens=tokens, condition=condition: model.losses(tokens, condition)  # type: ignore[misc]

    yield from _minimised(network, losses(), steps, rate, hardware)


def _minimised(
    model: nn.Module,
    losses: Iterable[Callable[[nn.Module], Tensor]],
    steps: int,
    rate: float,
    hardware: Hardware,
) -> Iterator[int]:
    """AdamW; leaves the model where it was, frozen."""
    if not steps:
        return
    device, precision = hardware
    model.to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = Schedule(rate, steps, warm_up=min(20, max(1, steps // 10)), final=0.05)
    for step, loss in zip(range(1, steps + 1), losses, strict=False):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(model).mean()
        optimizer.param_groups[0]["lr"] = schedule(step)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step == steps:
            model.to("cpu").requires_grad_(False)
        yield step
