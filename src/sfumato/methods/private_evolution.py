"""Private Evolution for images (Lin et al., ICLR 2024, algorithm 1): images evolve, images vote.

1. A model draws images at random.
2. T times: every private image votes for the candidate that is nearest in a public embedding; noise is added to the
   votes (one noisy histogram); candidates are drawn in proportion to their votes above a threshold, and varied, less
   each time.
3. The last variations are released.

It needs no captions, so it can follow what words do not say; it is the baseline of SPTI, and the better choice for a
few images of one thing. With `lookahead`, a candidate stands for what its variations look like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfumato.methods.candidates import NO_PARENT, Candidates, Draft, Numbers, by_class, public_seed
from sfumato.methods.evolution import VOTES, Progress, Voting, best, by_image, fitted
from sfumato.methods.evolution_settings import PrivateEvolutionConfig
from sfumato.methods.models import Models
from sfumato.methods.population import Population, Round
from sfumato.pretrained.interfaces import Embeddings, Images
from sfumato.pretrained.renders import Renders, try_generate, try_vary_images
from sfumato.privacy.plan import HistogramTouch
from sfumato.privacy.session import Session


def fit(
    config: PrivateEvolutionConfig,
    session: Session,
    models: Models,
    folder: Path,
    image: tuple[int, int, int],
    classes: Sequence[str],
    *,
    size: int | None,
    seed: int,
    progress: Progress,
) -> Population:
    """Runs the method, or what is left of it after a crash; arguments and errors as in `spti.fit`."""
    touch = session.touch(VOTES, HistogramTouch)
    population = config.population_for(size, touch.scale, max(len(classes), 1))
    candidates = Candidates(folder / "candidates", config.part)
    embedder = models["embedder"]
    voting = Voting(
        session,
        session.features(
            f"image-{public_seed(embedder.identity):08x}",
            by_image(embedder),
            embedder.dimensions,
            lambda done: progress("embedding private images", min(done, size or 0), size),
        ),
    )
    work = _Work(config, models, candidates, image, classes, seed, progress)
    # 1. Random images.
    cells = work.draw(lambda: work.invent(population), work.render, config.degree(1))
    rounds: list[Round] = []
    while True:
        # 2. Votes, survivors, variations.
        result = voting.round(candidates, cells)
        rounds.append(Round(len(cells), int(result.votes.sum()), []))
        progress(VOTES, len(rounds), config.rounds)
        estimate = np.maximum(result.votes - config.threshold * touch.scale, 0.0)
        if config.selection == "sample":
            draw = np.random.default_rng(public_seed(seed, "survivors", len(rounds)))
            places = sampled(estimate, candidates.made[cells], candidates.labels[cells], population, draw)
        else:
            votes = result.votes.astype(np.float64)
            places = best(votes, cells, candidates, max(len(classes), 1), population)
        survivors, degree = cells[places], config.degree(len(rounds))
        ahead = config.degree(min(len(rounds) + 1, config.rounds))
        cells = work.draw(partial(work.vary, survivors), work.variation(degree), ahead)
        if not voting.more():
            break
    # 3. The last variations; one that failed is replaced by what it should have varied.
    chosen = np.where(candidates.made[cells], cells, survivors)
    return Population(
        candidates,
        chosen,
        [candidates.texts[number] for number in chosen],
        candidates.labels[chosen],
        estimate[places],
        rounds,
        True,
        not session.noise.private,
    )


def sampled(
    estimate: NDArray[np.float64], made: NDArray[np.bool_], labels: Numbers, count: int, draw: np.random.Generator
) -> NDArray[np.int64]:
    """`count` places drawn with replacement, in equal shares of the classes, in proportion to the estimates.

    In the order of the draw, so that the first images of a population are a fair sample of it.

    Where a class has no candidate above the threshold, all of its candidates that were made are equally likely.
    """
    groups = list(by_class(labels))
    chosen = []
    for number, (_, places) in enumerate(groups):
        weights = np.where(made[places], estimate[places], 0.0)
        if weights.sum() == 0:
            weights = made[places].astype(np.float64)
        share = count // len(groups) + (number < count % len(groups))
        chosen.append(draw.choice(places, max(share, 1), p=weights / weights.sum()))
    return np.concatenate(chosen)


Draw = Callable[[Draft, Numbers], Renders]


class _Work:
    """Everything that is made for a run: images and embeddings."""

    def __init__(
        self,
        config: PrivateEvolutionConfig,
        models: Models,
        candidates: Candidates,
        image: tuple[int, int, int],
        classes: Sequence[str],
        seed: int,
        progress: Progress,
    ) -> None:
        self.config, self.models, self.candidates = config, models, candidates
        self._image, self._classes, self._seed, self._progress = image, classes, seed, progress

    def draw(self, draft: Callable[[], Draft], render: Draw, degree: float) -> Numbers:
        """Makes a generation, and embeds it: itself, or variations of it at the `degree` that comes next."""
        generation = len(self.candidates.starts)

        def told(done: int, of: int) -> None:
            self._progress(f"drawing generation {generation}", done, of)

        def embed(some: Draft, images: Images | None, numbers: Numbers) -> Embeddings:
            assert images is not None
            return self._embed(images, some.texts, numbers, degree)

        return self.candidates.add(draft, render, embed, told, ahead=not self.config.lookahead)

    def invent(self, count: int) -> Draft:
        """What the first images are drawn from: captions, or nothing where the model needs none."""
        source = self.config.source is not None
        texts = [""] * count if source else self.models["texts"].random_texts(count, public_seed(self._seed, "random"))
        return Draft(texts, np.arange(count) % max(len(self._classes), 1), np.full(count, NO_PARENT))

    def vary(self, survivors: Numbers) -> Draft:
        """A variation of every survivor."""
        texts = [self.candidates.texts[number] for number in survivors]
        return Draft(texts, self.candidates.labels[survivors], survivors)

    def render(self, draft: Draft, numbers: Numbers) -> Renders:
        """First images."""
        seed = public_seed(self._seed, "image", numbers[0])
        if self.config.source is not None:
            images = self.models["source"].draw(len(numbers), seed)
            return Renders(images, np.ones(len(images), dtype=np.bool_))
        names = self._classes or ("",)
        asked = [
            self.config.prompt.format(text=text, label=names[label])
            for text, label in zip(draft.texts, draft.labels, strict=True)
        ]
        return try_generate(self.models["images"], asked, seed)

    def variation(self, degree: float) -> Draw:
        """Makes variations of this strength."""

        def render(draft: Draft, numbers: Numbers) -> Renders:
            images = self.candidates.images(draft.parents)
            return vary(self.models, images, draft.texts, public_seed(self._seed, "image", numbers[0]), degree)

        return render

    def _embed(self, images: Images, texts: Sequence[str], numbers: Numbers, degree: float) -> Embeddings:
        embedder = self.models["embedder"]
        if not self.config.lookahead:
            found: Embeddings = embedder.embed_images(fitted(images, self._image))
            return found
        total: NDArray[np.float64] = np.zeros((len(images), embedder.dimensions))
        for fold in range(self.config.lookahead):
            seed = public_seed(self._seed, "lookahead", fold, numbers[0])
            ahead = vary(self.models, images, texts, seed, degree)
            seen = embedder.embed_images(fitted(ahead.images, self._image)).astype(np.float64)
            total += np.where(ahead.made[:, None], seen, np.nan)
        return (total / self.config.lookahead).astype(np.float32)


def vary(models: Models, images: Images, texts: Sequence[str], seed: int, degree: float) -> Renders:
    """An image near each given one; models that can are told its caption."""
    captions = list(texts) if any(texts) else None
    return try_vary_images(models["variator"], images, seed, degree, captions)


def revary(
    config: PrivateEvolutionConfig, population: Population, models: Models, places: NDArray[np.int64], seed: int
) -> Renders:
    """New variations of survivors, at the last degree."""
    images = population.candidates.images(population.numbers[places])
    texts = [population.texts[place] for place in places]
    return vary(models, images, texts, seed, config.degree(config.rounds))
