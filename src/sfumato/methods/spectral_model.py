"""What a run of Spectral releases, and how it draws pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sfumato._files import write_atomic
from sfumato.errors import UserError
from sfumato.hardware import Hardware
from sfumato.methods.coarse import condition_of
from sfumato.methods.detail import Detail, DiffusedDetail, ExampleDetail, TokenDetail, UpscaledDetail, enlarged
from sfumato.methods.examples import Examples
from sfumato.methods.labelcheck import LabelCheck
from sfumato.methods.parts import Parts
from sfumato.methods.privimage_model import model_name
from sfumato.methods.spectral_settings import Image, SpectralConfig
from sfumato.methods.tokens import PublicModel, new_model
from sfumato.nets.autoregressive import Condition, ScaleGPT, generate
from sfumato.pretrained import zoo
from sfumato.pretrained.backends import open_model
from sfumato.pretrained.interfaces import Upscaler
from sfumato.pretrained.lanczos import Lanczos
from sfumato.pretrained.wall import for_released

MOST, PIECE = 400, 100
"""Pictures whose coarse tokens are drawn at once, and pictures that get detail at once, at most."""

_KEPT = 2**30  # bytes of keys and values of earlier tokens


@dataclass(frozen=True)
class SpectralModel:
    """A model of coarse tokens that private training made, and the public models that add detail.

    Attributes:
        config: settings.
        image: `(C, H, W)` of the run.
        coarse: of coarse tokens; averaged, adapters merged.
        public: tokenizer, public model of tokens, and what else detail needs.
        vectors: of the classes' names, or of prompts, `(classes, size)`; None unless the condition is text.
        check: says which class a thumbnail shows; None where there was none.
        not_private: the weights come from a run with test noise.
    """

    config: SpectralConfig
    image: Image
    coarse: ScaleGPT
    public: PublicModel
    vectors: Tensor | None
    check: LabelCheck | None
    not_private: bool

    def sample(
        self, labels: Tensor, seed: int, hardware: Hardware, batch: int | None = None, keep: Path | None = None
    ) -> Iterator[Tensor]:
        """Yields uint8 pictures `(<= PIECE, C, H, W)` for labels `(N,)` of classes or prompts; free, and any number.

        Tokens of `batch` pictures are drawn at once, by default of `at_once`.

        They are larger than the run's images where the settings say so (`enlarge`). What is drawn is kept in the folder
        `keep`, if there is one, and not drawn again when this is called again.

        Raises:
            UserError: an upscaler of the zoo has not been pulled.
        """
        generator, detail = torch.Generator().manual_seed(seed), self.detail()
        larger = upscaler(self.config.enlarge) if self.config.enlarge else None
        parts, (device, precision) = Parts(keep, generator), hardware
        network = self.coarse.to(device)

        def draw(part: Tensor) -> Tensor:
            told = condition_of(network.condition, part, self.vectors)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                return generate(network, told, generator, taste=self.config.sampler.taste())

        def drawn(part: Tensor) -> Tensor:
            return parts.next(len(part), lambda: draw(part))

        def finished(tokens: Tensor, told: Tensor) -> Tensor:
            pictures = detail.pictures(tokens, told, generator, hardware)
            return enlarged(pictures, larger) if larger else pictures

        sorter = self.check.sorter(self.public.tokenizer.thumbnail) if self.check is not None else None
        for part in torch.split(labels, batch or self.at_once):
            tokens = drawn(part) if sorter is None else sorter.fill(part, drawn)
            with_text = self.public.network.condition.kind == "text"
            told = condition_of(network.condition, part, self.vectors) if with_text else torch.full_like(part, -1)
            piece = self._piece
            for some, hint in zip(torch.split(tokens, piece), torch.split(told, piece), strict=True):
                yield parts.next(len(some), partial(finished, some, hint))

    @property
    def at_once(self) -> int:
        """Pictures whose coarse tokens are drawn together: the more, the less each costs, while memory lasts."""
        return min(MOST, _fitting(self.coarse, self.config.sampler.guidance))

    @property
    def _piece(self) -> int:
        """Pictures that get detail together."""
        if self.config.detail != "tokens":
            return PIECE
        return min(PIECE, _fitting(self.public.network, self.config.detail_sampler.guidance))

    def detail(self) -> Detail:
        """The detail stage that the settings ask for."""
        if self.public.examples is not None:
            return ExampleDetail(self.public.tokenizer, self.public.examples, self.config.examples)
        if self.public.resolver is not None:
            return DiffusedDetail(self.public.tokenizer, self.public.resolver, self.config.superresolution.levels)
        if self.config.detail == "tokens":
            return TokenDetail(self.public.tokenizer, self.public.network, self.config.detail_sampler.taste())
        return UpscaledDetail(self.public.tokenizer, upscaler(self.config.detail))

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors`; a run with test noise is NOT PRIVATE in name and metadata."""
        state = {f"coarse.{name}": value.contiguous() for name, value in self.coarse.state_dict().items()}
        state |= {f"public.{name}": value for name, value in self.public.state().items()}
        if self.vectors is not None:
            state["vectors"] = self.vectors.contiguous()
        if self.check is not None:
            state |= {f"check.{name}": value for name, value in self.check.state().items()}
        facts = {
            "method": "spectral",
            "config": self.config.model_dump_json(),
            "image": json.dumps(self.image),
            "conditions": json.dumps([self.coarse.condition, self.public.network.condition]),
        }
        if self.not_private:
            facts["privacy"] = "NOT PRIVATE"
        write_atomic(folder / model_name(self.not_private), save(state, facts), mode=0o600)

    @classmethod
    def load(cls, folder: Path, not_private: bool) -> SpectralModel:
        """Reads what `save` wrote."""
        file = folder / model_name(not_private)
        with safe_open(file, "pt") as opened:
            facts = opened.metadata()
        state = load_file(file)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        config = SpectralConfig.model_validate_json(facts["config"])
        channels, height, width = json.loads(facts["image"])
        image = channels, height, width
        mine, theirs = (Condition(*condition) for condition in json.loads(facts["conditions"]))
        coarse = empty_coarse(config, image, mine)
        coarse.load_state_dict(part("coarse."))
        public = PublicModel.of(config, image, theirs, part("public."))
        seen, checked = config.shape(image).small(1), part("check.")
        check = LabelCheck.of(seen, checked, config.check.tries) if checked else None
        return cls(config, image, coarse.requires_grad_(False), public, state.get("vectors"), check, not_private)


def empty_coarse(config: SpectralConfig, image: Image, condition: Condition) -> ScaleGPT:
    """A model of coarse tokens with any weights."""
    shape = config.shape(image)
    with torch.random.fork_rng(devices=[]):
        return ScaleGPT(config.vocabulary, 1, shape.tokens, config.transformer(), condition).eval()


def untrained(config: SpectralConfig, image: Image, condition: Condition) -> SpectralModel:
    """A model that knows nothing, for speed trials."""
    told = condition if condition.kind == "text" else Condition()
    vectors = torch.zeros(1, condition.size) if condition.kind == "text" else None
    public = new_model(config, image, told, seed=0)
    if config.detail == "examples":
        blank = Examples.blank(image, public.tokenizer.shape.tokens, config.examples.count)
        public = replace(public, examples=blank)
    return SpectralModel(config, image, empty_coarse(config, image, condition), public, vectors, None, not_private=True)


def _fitting(network: ScaleGPT, guidance: float) -> int:
    """Pictures whose earlier tokens are remembered at once, at least one."""
    rows = 1 if guidance == 1 else 2  # guidance looks twice
    each = rows * 2 * 4 * network.shape.layers * network.shape.width * network.length  # keys and values in float32
    return max(1, _KEPT // each)


def upscaler(name: str) -> Upscaler:
    """The upscaler called `name`: "lanczos", one of the zoo, or `backend:NAME` (see `open_model`).

    Raises:
        UserError: there is none of this name, it has not been pulled, or it is no upscaler.
    """
    if name == "lanczos":
        return Lanczos()
    known = [entry.name for entry in zoo.ENTRIES.values() if entry.kind == "upscaler"]
    if ":" not in name and name not in known:
        raise UserError(
            f"There is no upscaler called {name!r}; known are lanczos, {', '.join(known)} and huggingface:NAME. Detail "
            "may also come from public images: examples, diffusion or tokens."
        )
    return for_released(open_model(name if ":" in name else f"offline:{name}", "upscaler"))
