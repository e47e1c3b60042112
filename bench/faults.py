"""A run on a model server of which 30 % of all calls fail, beside the same run on one that never fails.

    python bench/faults.py

Last line: {"failure_rate": .., "calls": .., "identical": ..}. The run is an evolution of texts as in SPTI, but without
noise: random texts, variations and captions from a chat model, images from an image model, votes by an image embedder
that is shown other images, all through HTTP on loopback. `identical` says whether texts, images, captions, embeddings
and votes of every round are the same to the bit; `failure_rate` and `calls` are of the run with failures, as its server
counted. Failures: 429 with and without Retry-After, 500, 503, silence beyond the timeout, connections cut before and
within an answer, answers that are no JSON, no answer or half an image, refusals. Images are drawn and varied by the
offline generator, captioned by the offline captioner, seen by `efficientnet-lite0`; the chat model fills blanks from a
list of words, since what is measured is the way to it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import run

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.model_server import FAILURES, Faults, Models, ModelServer, Picture

from sfumato.pretrained import zoo
from sfumato.pretrained.fewshot import FewShotTexts
from sfumato.pretrained.openai import (
    Connection,
    OpenAICaptioner,
    OpenAIChat,
    OpenAIImageEmbedder,
    OpenAIImageGenerator,
    OpenAIImageVariator,
    OpenAITextEmbedder,
)
from sfumato.pretrained.renders import try_generate
from sfumato.pretrained.wall import for_private, for_released

RATE = 0.3
TEXTS, FOLDS, ROUNDS, VOTERS = 16, 1, 2, 16
TIMEOUT, SILENCE = 15.0, 16.0  # seconds
CONCURRENCY = 4
WORDS = ("red", "green", "blue", "small", "large", "old", "young", "happy", "sad", "tall", "round", "bright", "dark")


def models() -> Models:
    """Models of this process, to be served."""
    torch.set_num_threads(1)
    zoo.pull(zoo.named(["offline"]))
    painter: Any = zoo.load("clipart")
    captioner: Any = zoo.load("captioner")
    eyes = zoo.load_image_embedder("efficientnet-lite0")
    reader = zoo.load_text_embedder("minilm")

    def number(*parts: object) -> int:
        return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")

    def chat(messages: list[dict[str, Any]], body: dict[str, Any]) -> str:
        task = str(messages[-1]["content"])
        random = np.random.default_rng(number(task, body["seed"]))
        given = task.partition(": ")[2].split() if "blanks" in task else ["_"] * 6
        return " ".join(str(random.choice(WORDS)) if word == "_" else word for word in given)

    seen: dict[bytes, Any] = {}

    def generate(text: str, seed: int) -> Picture:
        picture: Picture = painter.generate([text], seed)[0]
        return picture

    def features(image: Picture) -> Any:
        key = image.tobytes()
        if key not in seen:
            seen[key] = eyes.embed_images(image[None])[0]
        return seen[key]

    def vary(image: Picture, text: str, strength: float, seed: int) -> Picture:
        picture: Picture = painter.vary_images(image[None], seed, strength, [text])[0]
        return picture

    def caption(image: Picture, prompt: str) -> str:
        return str(captioner.caption(image[None])[0])

    return Models(
        chat=chat,
        caption=caption,
        generate=generate,
        vary=vary,
        embed_text=lambda text: reader.embed_texts([text])[0],
        embed_image=features,
    )


def evolve(url: str, voters: Any) -> tuple[str, dict[str, int]]:
    """A digest of everything that the run computes, and what its models counted."""
    connection = Connection(url, timeout=TIMEOUT, concurrency=CONCURRENCY)
    side = voters.shape[-1]
    texts = FewShotTexts(OpenAIChat("chat", connection), domain="a drawing")
    generator = OpenAIImageGenerator("clipart", connection, side=side, sends=["seed"])
    variator = for_released(OpenAIImageVariator("clipart", connection, side=side, sends=["seed", "strength"]))
    embedder = OpenAIImageEmbedder("eyes", connection, least_side=1)
    digest = hashlib.sha256()

    def note(value: Any) -> Any:
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return value

    places = note(for_private(embedder).embed_images(voters))  # as a method would show private images
    note(for_private(OpenAICaptioner("eyes", connection, least_side=1)).caption(voters))
    chosen = note(texts.random_texts(TEXTS, seed=1))
    for turn in range(ROUNDS):
        folds = [texts.vary_texts(chosen, seed=100 * turn + fold, strength=0.4) for fold in range(FOLDS)]
        candidates = note([*chosen, *(text for fold in folds for text in fold)])
        images, made = try_generate(generator, candidates, seed=1000 * turn)
        features = for_released(embedder).embed_images(note(images))
        distances = np.where(note(made), np.square(places[:, None] - note(features)[None]).sum(2), np.inf)
        votes = note(np.bincount(distances.argmin(1), minlength=len(candidates)))
        best = np.argsort(-votes, kind="stable")[:TEXTS]
        chosen = [candidates[place] for place in best]
        note(variator.vary_images(images[best], seed=turn, strength=0.5, texts=chosen))
    note(OpenAITextEmbedder("reader", connection).embed_texts(chosen))
    usage = connection.spending.usage
    return digest.hexdigest(), {"retries": usage.retries, "refused": usage.refused, "failed": usage.failed}


def measure(rate: float) -> dict[str, Any]:
    """One run."""
    served = models()
    painter: Any = zoo.load("clipart")
    voters = painter.generate(["a red boat", "a dog"] * (VOTERS // 2), seed=99, fast=True)
    with ModelServer(served, Faults(rate, silence=SILENCE)) as server:
        digest, usage = evolve(server.url, voters)
        failures = Counter(call.failure for call in server.calls if call.failure is not None)
        calls = len(server.calls)
    return {"digest": digest, "calls": calls, "failures": dict(sorted(failures.items())), **usage}


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """One a run."""
    return {"without failures": partial(measure, 0.0), "with failures": partial(measure, RATE)}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    line: dict[str, Any] = {}
    if failing := found.get("with failures"):
        line["failure_rate"] = round(sum(failing["failures"].values()) / failing["calls"], 3)
        line["calls"] = failing["calls"]
    if len(found) == 2:
        line["identical"] = len({cell["digest"] for cell in found.values()}) == 1
    return line


if __name__ == "__main__":
    kinds = {"rate": RATE, "kinds": list(FAILURES)}
    sizes = {"texts": TEXTS, "folds": FOLDS, "rounds": ROUNDS, "voters": VOTERS}
    run("faults", cells, summary, settings={**kinds, **sizes})
