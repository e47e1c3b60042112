"""The public stage of Spectral, from public images alone: a tokenizer, an autoregressive model, and means of detail.

The autoregressive model knows all scales where it is to draw detail too, else only the coarsest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
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
from sfumato.methods.checkpoint import Checkpoint
from sfumato.methods.examples import Examples
from sfumato.methods.open_training import minimise
from sfumato.methods.spectral_settings import Image, SpectralConfig
from sfumato.methods.superresolution import SuperResolver, lessons
from sfumato.methods.told import Told
from sfumato.nets.autoregressive import Condition, ScaleGPT
from sfumato.nets.tokenizer import ScaleError, Tokenizer, k_means

Progress = Callable[[str, int, int], None]

HELD_OUT, MOST_HELD_OUT = 10, 500
"""Every so many public images is kept from the training, up to a number, to report errors on."""

UNFINISHED = "public-model.unfinished.safetensors"
ENCODED = 256  # images tokenised at once
_VERSION = "4"  # of the recipe, in the name of what is cached


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
    read: Callable[[], NDArray[np.uint8]],
    condition: Condition,
    *,
    heard: Callable[[], Told | None] = lambda: None,
    seed: int,
    hardware: Hardware,
    files: tuple[Path, ...] = (),
    progress: Progress = lambda *_: None,
) -> PublicModel:
    """The model of a public set: read from the first of `files` that has it, else trained; then in all of them.

    What a training that is cut off has learnt is kept beside the first of them.

    Args:
        config: settings.
        image: `(C, H, W)`.
        read: gives the public pictures, uint8 `(N, C, H, W)`; called only where something is to be learnt.
        condition: "none" or "text".
        heard: gives what they are told of, or None; called only where the model of tokens is to learn.
        seed: public.
        hardware: where to train.
        files: the run's own copy, and one that further runs on the same public set find.
        progress: told (stage, steps done, steps in all).
    """
    found, without = None, []
    for file in files:
        if (found := load_public_model(config, image, condition, file)) is not None:
            break
        without.append(file)
    unfinished = files[0].with_name(UNFINISHED) if files else None
    if found is None:
        found = _learnt(config, image, read(), heard, condition, seed, hardware, progress, unfinished)
    for file in (file for file in files if file in without or not file.exists()):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(file, save(found.state()), 0o600)
    if unfinished is not None:
        unfinished.unlink(missing_ok=True)
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
    if config.condition == "captions":  # and not names of classes
        settings["told"] = config.condition
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
    heard: Callable[[], Told | None],
    condition: Condition,
    seed: int,
    hardware: Hardware,
    progress: Progress,
    unfinished: Path | None,
) -> PublicModel:
    made, generator = new_model(config, image, condition, seed), torch.Generator().manual_seed(seed)
    tokenizer, network, resolver = made.tokenizer, made.network, made.resolver
    shown = np.flatnonzero(seen_in_training(len(pixels)))
    pictures = torch.from_numpy(pixels[shown])
    checkpoint = Checkpoint(unfinished, dict(made._parts()), generator)
    learn = partial(minimise, hardware=hardware, chunk=config.chunk, checkpoint=checkpoint)
    if checkpoint.opens(stage := "codebooks of public images"):
        for scale in make_codebooks(config, tokenizer, pictures, generator):
            progress(stage, scale, tokenizer.shape.scales)
        checkpoint.closes()
    if checkpoint.opens(stage := "decoder of public images"):
        batches = _picture_batches(config, pictures, generator)
        for step in learn(tokenizer, batches, config.decoder_steps, config.tokenizer.rate):
            progress(stage, step, config.decoder_steps)
        checkpoint.closes()
    tokens = encoded(tokenizer, pictures, network.scales, partial(progress, "tokens of public images"))
    if checkpoint.opens(stage := "pretraining on public tokens"):
        told = everything.part(torch.from_numpy(shown)) if (everything := heard()) is not None else None
        lines, settings = _token_batches(config, network, tokens, told, generator), config.pretraining
        for step in learn(network, lines, settings.steps, settings.rate):
            progress(stage, step, settings.steps)
        checkpoint.closes()
    if config.detail == "examples":
        made = replace(made, examples=Examples.among(pictures, tokens, config.examples.count, generator))
    if resolver is not None and checkpoint.opens(stage := "super-resolution of public images"):
        coarse = torch.cat([tokenizer.decode(part).cpu() for part in torch.split(tokens, ENCODED)])
        finer = config.superresolution
        for step in learn(resolver, lessons(finer, resolver, pictures, coarse, generator), finer.steps, finer.rate):
            progress(stage, step, finer.steps)
        checkpoint.closes()
    return made


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


def encoded(
    tokenizer: Tokenizer,
    pictures: Tensor,
    scales: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Tensor:
    """Tokens of many pictures, int64 `(N, tokens)`; `progress` is told (pictures done, pictures in all)."""
    found = []
    for begin in range(0, len(pictures), ENCODED):
        found.append(tokenizer.encode(pictures[begin : begin + ENCODED], scales))
        progress(min(begin + ENCODED, len(pictures)), len(pictures))
    return torch.cat(found)


def _picture_batches(config: SpectralConfig, pictures: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor]]:
    """For the decoder."""
    while True:
        yield (pictures[torch.randint(len(pictures), (config.tokenizer.batch,), generator=generator)],)


def _token_batches(
    config: SpectralConfig, network: ScaleGPT, tokens: Tensor, told: Told | None, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens of all scales that the network knows or of the coarse one, and conditions, some of them hidden."""
    settings = config.pretraining
    while True:
        chosen = torch.randint(len(tokens), (settings.batch,), generator=generator)
        coarse = float(torch.rand((), generator=generator)) < settings.coarse_share
        condition = network.condition.nothing(len(chosen))
        if told is not None:
            hidden = torch.rand(len(chosen), generator=generator) < settings.label_dropout
            condition = torch.where(hidden[:, None], condition, told.of(chosen, generator))
        yield tokens[chosen, : network.tokens if coarse else network.length], condition
