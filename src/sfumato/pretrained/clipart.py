"""Sfumato's own generator of small drawings: a text to a picture of 64 x 64 pixels, and a picture to others like it.

It is semi-parametric: public clip art and emoji lie in its memory as latents; a text finds neighbours there, and a flow
transformer draws from noise what the text asks for, with a neighbour before its eyes (`nets/flow.py`). So it draws what
its memory has, in other colours, proportions and hands; it may return a public training picture nearly as it was.
`training/CARD-generator.md` says what it learned from, what was measured and what it cannot do.

Item n of a batch depends on its own text or image and on `seed + n`, and on nothing else in the batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from sfumato._files import sha256_file
from sfumato.errors import UserError
from sfumato.nets.flow import RELATIONS, Condition, FlowShape, FlowTransformer
from sfumato.nets.latent import CHANNELS, GRID, LatentAutoencoder
from sfumato.pretrained import zoo
from sfumato.pretrained._colours import COLOURS
from sfumato.pretrained._memory import Drawings, Index, asked
from sfumato.pretrained._networks import check_images, resized, with_weights
from sfumato.pretrained._warp import warped
from sfumato.pretrained.interfaces import Identity, Images, TextEmbedder

FILE = "clipart.safetensors"
SIDE = 64  # pixels
TEXT = 384  # dimensions of a text's embedding
BATCH = 16
STEPS = 8
GUIDANCE = 2.0
GUIDED = 0.6  # share of the steps that are guided; the last ones only sharpen
CANDIDATES = 5  # neighbours that one is drawn from
CLOSE = 0.35  # how far below the best a neighbour may score
SHARPNESS = 9.0  # of the draw among them
KNOWN = 0.42  # least score of a neighbour worth showing
KEPT = 0.5  # how far along the flow a picture starts that is to stay as it is
ALONE, BESIDE = RELATIONS.index("none"), RELATIONS.index("variant")

Wish = tuple[str, str | None]
"""What a text is about, and its colour."""


@dataclass(frozen=True)
class _Found:
    """What the memory has for a wish: rows that one is drawn from, with their chances; none where nothing fits."""

    vector: NDArray[np.float32]
    rows: NDArray[np.int64]
    chances: NDArray[np.float64]

    def one(self, seed: int) -> int | None:
        return int(np.random.default_rng([seed, 0]).choice(self.rows, p=self.chances)) if len(self.rows) else None


class ClipartGenerator:
    """An `ImageGenerator` and `ImageVariator` of drawings on white ground, 64 x 64, RGB; English texts.

    Args:
        fast: takes drawings from memory as they are, without the network.
        guidance: how strongly text and colour are followed; 1 is without guidance and takes half the time.
        steps: of the flow; fewer than 8 get coarse.
        weights: folder of `clipart.safetensors`; by default the one that comes with Sfumato.
        embedder: MiniLM; by default the pulled one.
        identity: by default that of the file.

    Raises:
        UserError: a setting out of range, no weights, or MiniLM was not pulled.
    """

    def __init__(
        self,
        fast: bool = False,
        guidance: float = GUIDANCE,
        steps: int = STEPS,
        weights: Path | None = None,
        embedder: TextEmbedder | None = None,
        identity: Identity | None = None,
    ) -> None:
        if not 1 <= guidance <= 10 or not 1 <= steps <= 1000:
            raise UserError(f"guidance must be 1 to 10 and steps 1 to 1000; given were {guidance} and {steps}.")
        self.fast, self.guidance, self.steps = fast, guidance, steps
        file = (weights or Path(__file__).parent / "weights") / FILE
        if not file.is_file():
            raise UserError(f"{file} is missing; install Sfumato anew.")
        self.identity = identity or Identity("clipart", "1", sha256_file(file), "Apache-2.0", "comes with Sfumato")
        self._embedder = embedder or zoo.load_text_embedder("minilm")
        tensors, facts = _read(file)
        shape = FlowShape(**json.loads(facts["shape"]))
        self._autoencoder = with_weights(LatentAutoencoder, _part(tensors, "autoencoder."))
        self._flow = with_weights(lambda: FlowTransformer(shape), _part(tensors, "flow."))
        self._kind = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        self._flow = self._flow.to(self._kind)
        self._memory = (tensors["memory.latents"] * tensors["memory.unit"].float()[:, None, None]).flatten(1)
        drawings = Drawings(**json.loads(facts["drawings"]))
        vectors = tensors["memory.vectors"].float().numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = tensors["memory.rows"].numpy()
        self.drawings = drawings
        self._index = Index(drawings, vectors[rows[0]], vectors[rows[1]])

    def generate(self, texts: Sequence[str], seed: int, fast: bool | None = None) -> Images:
        """Draws what texts say, such as "a green heart".

        Args:
            texts: `N` short phrases; what counts is one thing and perhaps its colour.
            seed: text n is drawn with `seed + n`.
            fast: overrides the setting of the generator.

        Returns:
            uint8 `(N, 3, 64, 64)`.
        """
        fast = self.fast if fast is None else fast
        wishes = [asked(text) for text in texts]
        found = self._found(wishes, -np.inf if fast else KNOWN)
        rows = [found[wish].one(seed + i) for i, wish in enumerate(wishes)]
        pictures = self._decoded(self._remembered(rows))
        if fast:
            return pictures
        vectors = np.array([found[wish].vector for wish in wishes], np.float32).reshape(-1, TEXT)
        return self._redrawn(pictures, rows, vectors, [colour for _, colour in wishes], seed)

    def vary_images(self, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None) -> Images:
        """Draws pictures near given ones.

        Up to a strength of a half the given picture is altered: its stance, and its colour where a text names one.
        From there on more and more results are other drawings from memory, of what the text says or of what is most
        alike; at 1 all are.

        Args:
            images: uint8 `(N, 1 or 3, H, W)`; best drawings on white ground.
            seed: image n is varied with `seed + n`.
            strength: in (0, 1].
            texts: what each is to show, colours included; by default no text guides.

        Returns:
            uint8 `(N, 3, 64, 64)`.

        Raises:
            UserError: no such images, another number of texts, or a strength out of range.
        """
        check_images(images, (1, 3))
        if not 0 < strength <= 1:
            raise UserError(f"strength must be above 0 and at most 1; given was {strength}.")
        if texts is not None and len(texts) != len(images):
            raise UserError(f"There must be one text an image; given were {len(texts)} texts for {len(images)} images.")
        n = len(images)
        pictures = resized(images, SIDE)
        rows: list[int | None] = [None] * n
        wishes = [asked(text) for text in texts] if texts is not None else []
        other = [i for i in range(n) if np.random.default_rng([seed + i, 3]).random() < 2 * strength - 1]
        if other:
            sought = [wishes[i] for i in other] if wishes else self._likest(pictures[other])
            found = self._found(sought, KNOWN)
            for i, wish in zip(other, sought, strict=True):
                rows[i] = found[wish].one(seed + i)
            other = [i for i in other if rows[i] is not None]
            pictures[other] = self._decoded(self._remembered([rows[i] for i in other]))
        vectors = (
            self._embedder.embed_texts([wish for wish, _ in wishes]) if wishes else np.zeros((n, TEXT), np.float32)
        )
        colours = [colour for _, colour in wishes] or [None] * n
        return self._redrawn(pictures, rows, vectors, colours, seed, strength, given=True)

    def _found(self, wishes: Sequence[Wish], least: float) -> dict[Wish, _Found]:
        """The neighbours of each different wish that score at least so much."""
        different = list(dict.fromkeys(wishes))
        vectors = self._embedder.embed_texts([subject for subject, _ in different])
        found = {}
        for (subject, colour), vector in zip(different, vectors, strict=True):
            scores = self._index.rank(subject, vector, colour)
            best = np.argsort(-scores)[:CANDIDATES]
            best = best[scores[best] > max(least, float(scores[best[0]]) - CLOSE)]
            weights = np.exp(SHARPNESS * (scores[best] - scores[best[:1]]).astype(np.float64))
            found[subject, colour] = _Found(vector, best, weights / weights.sum())
        return found

    def _likest(self, pictures: Images) -> list[Wish]:
        """What the drawing in memory shows that is most alike, and its colour."""
        given = self._encoded(pictures).flatten(1)
        rows = [int((self._memory - latent).square().sum(1).argmin()) for latent in given]
        return [(self.drawings.titles[row], self.drawings.colours[row]) for row in rows]

    def _remembered(self, rows: Sequence[int | None]) -> Tensor:
        """Latents of drawings of the memory; zeros for none."""
        latents = [self._memory[row] if row is not None else torch.zeros(CHANNELS * GRID**2) for row in rows]
        return torch.stack(latents).view(-1, CHANNELS, GRID, GRID) if rows else torch.zeros(0, CHANNELS, GRID, GRID)

    def _redrawn(
        self,
        pictures: Images,
        rows: Sequence[int | None],
        vectors: NDArray[np.float32],
        colours: Sequence[str | None],
        seed: int,
        strength: float = 1.0,
        given: bool = False,
    ) -> Images:
        """Draws pictures anew: in another stance and hand, and in the colours that are told.

        Args:
            pictures: the neighbours.
            rows: where they are in the memory; None for those that are not.
            vectors: embeddings of texts, zeros for no text.
            colours: wished for; None for the neighbour's own.
            seed: of the first.
            strength: how far stances change, and how much of the way the flow goes.
            given: whether pictures without a row are neighbours too.
        """
        seeds = [seed + i for i in range(len(pictures))]
        moved, noise = pictures.copy(), np.zeros((len(seeds), CHANNELS, GRID, GRID), np.float32)
        own = [self.drawings.colours[row] if row is not None else None for row in rows]
        for i, one in enumerate(seeds):
            moved[i] = warped(pictures[i].transpose(1, 2, 0), np.random.default_rng([one, 2]), strength).transpose(
                2, 0, 1
            )
            noise[i] = np.random.default_rng([one, 1]).standard_normal(noise[i].shape, np.float32)
        shown = torch.tensor([given or row is not None for row in rows], dtype=torch.bool)
        told = [colour or ours for colour, ours in zip(colours, own, strict=True)]
        condition = Condition(
            text=torch.from_numpy(vectors),
            colour=torch.tensor([0 if name is None else 1 + COLOURS.index(name) for name in told], dtype=torch.long),
            style=torch.tensor([0 if row is None else 1 + self.drawings.styles[row] for row in rows], dtype=torch.long),
            relation=torch.where(shown, BESIDE, ALONE),
            neighbour=self._encoded(moved) * shown[:, None, None, None],
        )
        start = torch.lerp(torch.from_numpy(noise), condition.neighbour, begin := max(0.0, KEPT - strength))
        parts = [slice(first, first + BATCH) for first in range(0, len(seeds), BATCH)]
        flowed = [self._flowed(start[part], Condition(*(field[part] for field in condition)), begin) for part in parts]
        return self._decoded(torch.cat([*flowed, start[:0]]))

    @torch.inference_mode()
    def _flowed(self, start: Tensor, condition: Condition, begin: float) -> Tensor:
        """Follows the flow of at most `BATCH` latents from the time `begin` to 1 in equal steps (Euler)."""
        x, given = _full(start), Condition(*map(_full, condition))
        given = given._replace(text=given.text.to(self._kind), neighbour=given.neighbour.to(self._kind))
        silent = given._replace(
            text=torch.zeros_like(given.text),
            colour=torch.zeros_like(given.colour),
            style=torch.zeros_like(given.style),
        )
        for step in range(self.steps):
            now = torch.full((BATCH,), begin + (1 - begin) * step / self.steps)
            velocity = self._flow(x.to(self._kind), now, given).float()
            if self.guidance != 1 and step < GUIDED * self.steps:
                plain = self._flow(x.to(self._kind), now, silent).float()
                velocity = plain + self.guidance * (velocity - plain)
            x = x + velocity * ((1 - begin) / self.steps)
        return x[: len(start)]

    @torch.inference_mode()
    def _encoded(self, images: Images) -> Tensor:
        rows = [torch.zeros(0, CHANNELS, GRID, GRID)]
        for first in range(0, len(images), BATCH):
            part = torch.from_numpy(images[first : first + BATCH])
            rows.append(self._autoencoder.encode(_full(part).float() / 127.5 - 1)[: len(part)])
        return torch.cat(rows)

    @torch.inference_mode()
    def _decoded(self, latents: Tensor) -> Images:
        out = np.empty((len(latents), 3, SIDE, SIDE), np.uint8)
        for first in range(0, len(latents), BATCH):
            part = latents[first : first + BATCH]
            pictures = self._autoencoder.decode(_full(part))[: len(part)]
            out[first : first + BATCH] = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        return out


def load(
    folder: Path, identity: Identity, *, fast: bool = False, guidance: float = GUIDANCE, steps: int = STEPS
) -> ClipartGenerator:
    """The generator whose weights are in `folder`; the rest as in `ClipartGenerator`."""
    return ClipartGenerator(fast, guidance, steps, weights=folder, identity=identity)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, dict(stored.metadata())  # noqa: SIM118


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor.float() for name, tensor in tensors.items() if name.startswith(prefix)}


def _full(rows: Tensor) -> Tensor:
    """Rows filled up to one constant number, so that the same kernels run on every item."""
    full = torch.zeros(BATCH, *rows.shape[1:], dtype=rows.dtype)
    full[: len(rows)] = rows
    return full
