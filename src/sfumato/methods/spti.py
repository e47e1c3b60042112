"""SPTI, synthesis via private textual intermediaries (arXiv 2506.07555): captions evolve, images vote.

1. A text generator invents captions of a public domain and varies them; an image generator draws them.
2. T times: every private image votes for the drawing that is nearest in a public embedding; noise is added to the votes
   (one noisy histogram); the best captions stay, and each gets F variations, which are drawn.
3. The drawings that won are released, with their captions. More can be drawn from the captions at any time.

No model is trained, and no private image is ever captioned, unless captions are to vote. What goes to the generators is
public or was chosen by noisy votes alone, so they may be anywhere.

Beyond the published code, each to be switched off in the settings: nothing is varied after the last vote; a caption
that stays keeps its drawing; its votes of all rounds count (`evolution.Scores`); equal captions share a cell; the
population is scaled to the declared size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sfumato.methods.candidates import NO_PARENT, Candidates, Draft, Numbers, distinct, public_seed
from sfumato.methods.evolution import VOTES, Progress, Scores, Voting, best, by_caption, by_image, fitted
from sfumato.methods.evolution_settings import SPTIConfig
from sfumato.methods.models import Models
from sfumato.methods.population import Population, Round
from sfumato.pretrained.interfaces import Embeddings, Images
from sfumato.pretrained.renders import Renders, try_generate
from sfumato.privacy.features import Features
from sfumato.privacy.plan import HistogramTouch
from sfumato.privacy.session import Session

TOLD = 10
"""Captions of a round that are worth telling."""


def fit(
    config: SPTIConfig,
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
    """Runs the method, or what is left of it after a crash.

    Args:
        config: settings.
        session: the planned touches.
        models: what writes, draws and embeds.
        folder: private folder of the run; keeps the candidates.
        image: `(C, H, W)` at which records and drawings are compared, public.
        classes: declared classes; none in an unconditional run.
        size: declared number of records, or None.
        seed: of the public randomness (captions, drawings); never of noise.
        progress: told about every stage.

    Raises:
        PrivacyRefusal: every planned round was lost to crashes.
        UserError: not one caption of a class could be drawn.
    """
    noise = session.touch(VOTES, HistogramTouch).scale
    population = config.population_for(size, noise, max(len(classes), 1))
    work = _Work(config, models, Candidates(folder / "candidates", config.part), image, classes, seed, progress)
    candidates = work.candidates
    voting = Voting(session, _features(config, session, models, size, progress))
    # 1. Random captions and their first variations.
    invented = work.draw(partial(work.invent, population))
    cells = np.concatenate((invented, work.draw(partial(work.vary, invented, config.first_variations))))
    # 2. Rounds.
    scores, rounds = Scores(noise, config.combine_votes), []
    while True:
        result = voting.round(candidates, cells)
        estimate = scores.take(result)
        places = best(estimate, cells, candidates, max(len(classes), 1), population)
        chosen = cells[places]
        told = [candidates.texts[number] for number in chosen[:TOLD]]
        rounds.append(Round(len(cells), int(result.votes.sum()), told))
        progress(VOTES, len(rounds), config.rounds)
        last = not voting.more()
        if last and not config.children_last:
            break
        kept = chosen if config.keep_renders else work.draw(partial(work.again, chosen))
        cells = np.concatenate((kept, work.draw(partial(work.vary, kept, config.variations))))
        if last:
            break
    # 3. What won.
    return Population(
        candidates,
        chosen,
        [candidates.texts[number] for number in chosen],
        candidates.labels[chosen],
        estimate[places],
        rounds,
        config.voting == "image",
        not session.noise.private,
    )


def _features(config: SPTIConfig, session: Session, models: Models, size: int | None, progress: Progress) -> Features:
    """What the records vote by."""
    if config.voting == "image":
        embed, compared = by_image(models["embedder"]), models["embedder"]
    else:
        embed, compared = by_caption(models["captioner"], models["text_embedder"]), models["text_embedder"]
    name = f"{config.voting}-{public_seed(*(models[role].identity for role in config.shown_private_images())):08x}"
    return session.features(
        name, embed, compared.dimensions, lambda done: progress("embedding private images", min(done, size or 0), size)
    )


class _Work:
    """Everything that is made for a run: captions, drawings, embeddings."""

    def __init__(
        self,
        config: SPTIConfig,
        models: Models,
        candidates: Candidates,
        image: tuple[int, int, int],
        classes: Sequence[str],
        seed: int,
        progress: Progress,
    ) -> None:
        self.config, self.models, self.candidates = config, models, candidates
        self._image, self._classes, self._seed, self._progress = image, classes, seed, progress

    def draw(self, draft: Callable[[], Draft]) -> Numbers:
        """Draws and embeds a generation of captions."""
        generation = len(self.candidates.starts)

        def told(done: int, of: int) -> None:
            self._progress(f"drawing generation {generation}", done, of)

        return self.candidates.add(draft, self._render, self._embed, told)

    def invent(self, count: int) -> Draft:
        """Random captions, in equal shares of the classes."""
        texts = self.models["texts"].random_texts(count, public_seed(self._seed, "random"))
        labels = np.arange(count) % max(len(self._classes), 1)
        return self._merged(Draft(texts, labels, np.full(count, NO_PARENT)), np.zeros(0, dtype=np.int64))

    def vary(self, parents: Numbers, folds: int) -> Draft:
        """Variations of each caption."""
        texts: list[str] = []
        of = [self.candidates.texts[number] for number in parents]
        for fold in range(folds if of else 0):
            seed = public_seed(self._seed, "variation", len(self.candidates.starts), fold)
            texts += self.models["texts"].vary_texts(of, seed, self.config.strength)
        every = np.tile(parents, folds)
        return self._merged(Draft(texts, self.candidates.labels[every], every), parents)

    def again(self, numbers: Numbers) -> Draft:
        """The same captions, to be drawn anew."""
        texts = [self.candidates.texts[number] for number in numbers]
        return Draft(texts, self.candidates.labels[numbers], numbers)

    def _merged(self, draft: Draft, beside: Numbers) -> Draft:
        """Without captions that are among `beside`, or came before."""
        if not self.config.merge_duplicates:
            return draft
        kept = distinct(
            [self.candidates.texts[number] for number in beside] + draft.texts,
            np.concatenate((self.candidates.labels[beside], draft.labels)),
        )
        kept = kept[kept >= len(beside)] - len(beside)
        return Draft([draft.texts[place] for place in kept], draft.labels[kept], draft.parents[kept])

    def _render(self, draft: Draft, numbers: Numbers) -> Renders | None:
        if self.config.voting == "text":
            return None
        seed = public_seed(self._seed, "image", numbers[0])
        return try_generate(self.models["images"], prompts(self.config, draft.texts, draft.labels, self._classes), seed)

    def _embed(self, draft: Draft, images: Images | None, _: Numbers) -> Embeddings:
        found: Embeddings
        if images is None:
            found = self.models["text_embedder"].embed_texts(draft.texts)
        else:
            found = self.models["embedder"].embed_images(fitted(images, self._image))
        return found


def prompts(config: SPTIConfig, texts: Sequence[str], labels: Numbers, classes: Sequence[str]) -> list[str]:
    """What the image model is asked; class names are declared public."""
    names = classes or ("",)
    return [config.prompt.format(text=text, label=names[label]) for text, label in zip(texts, labels, strict=True)]


def redraw(
    config: SPTIConfig, population: Population, models: Models, classes: Sequence[str], places: Numbers, seed: int
) -> Renders:
    """New drawings of captions that won; they did not win themselves, and tend to be a little worse."""
    texts = [population.texts[place] for place in places]
    return try_generate(models["images"], prompts(config, texts, population.labels[places], classes), seed)
