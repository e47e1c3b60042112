"""Nearest candidates at the size of SPTI's largest experiment: 14,000 candidates of 2,048 dimensions, 300,000 voters.

    python bench/voting.py

Last line: {"speedup_over_faiss": .., "speedup_over_torch": .., "identical": .., "peak_mb": .., ...}: how many times
faster `sfumato.methods.voting.Nearest` is than `faiss.IndexFlatL2` and than a blocked float32 product of PyTorch, and
whether its winners are those of float64 brute force and its histogram that of two shards. All three are timed in turns
in one process, on a slice of 8,192 voters (their cost is proportional to the voters), with OPENBLAS_CORETYPE unset and
set for faiss; the smallest of the ratios counts. The cell `stream` lets all 300,000 vote once: its seconds, and the
memory taken beyond the candidates' own while they do. The cells that end with "fp32" are what is left of the ratios
(to faiss, to PyTorch) where nothing but float32 is multiplied fast; they are reported apart, as "without_bf16".

Features: `gaussian` is i.i.d. standard normal; `clustered` has 200 standard normal centres and a spread of 0.3 around
them, for voters and candidates alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from cells import run
from intake import Peak, own_memory
from numpy.typing import NDArray

from sfumato.methods.voting import TIE, Nearest

VOTERS, CANDIDATES, DIMENSIONS = 300_000, 14_000, 2_048
SLICE, REPEATS, BLOCK = 8_192, 5, 1_024
FP32 = " fp32"
CORES = {"": "as faiss finds it", "-skylakex": "SkylakeX"}
Features = NDArray[np.float32]


def features(kind: str, count: int, seed: int) -> Features:
    """`count` feature vectors of one distribution."""
    random = np.random.default_rng(seed)
    found = random.standard_normal((count, DIMENSIONS), dtype=np.float32)
    if kind == "clustered":
        centres = np.random.default_rng(0).standard_normal((200, DIMENSIONS), dtype=np.float32)
        found *= np.float32(0.3)
        found += centres[random.integers(0, len(centres), count)]
    return found


def brute_force(voters: Features, candidates: Features) -> NDArray[np.int64]:
    """The lowest number among the candidates within 1e-6 (relative) of the least squared distance, all in float64."""
    centre = candidates.mean(axis=0, dtype=np.float64)
    right = torch.from_numpy(candidates - centre)
    squares = right.square().sum(dim=1)
    winners = []
    for begin in range(0, len(voters), BLOCK):
        left = torch.from_numpy(voters[begin : begin + BLOCK] - centre)
        distances = left.square().sum(dim=1, keepdim=True) + squares - 2 * (left @ right.T)
        tied = distances <= distances.amin(dim=1, keepdim=True) * (1 + TIE)
        winners.append(tied.byte().argmax(dim=1).numpy())
    return np.concatenate(winners)


def blocked(voters: Features, candidates: Features) -> NDArray[np.int64]:
    """PyTorch in float32, a block of voters at a time."""
    right = torch.from_numpy(candidates)
    half = right.square().sum(dim=1) / 2
    parts = [torch.addmm(half, part, right.T, alpha=-1).argmin(dim=1) for part in torch.from_numpy(voters).split(BLOCK)]
    return torch.cat(parts).numpy()


def compare(kind: str, core: str, bfloat16: bool | None = None) -> dict[str, Any]:
    """Times the three in turns on one slice."""
    if core:
        os.environ["OPENBLAS_CORETYPE"] = CORES[core]
    import faiss

    candidates, voters = features(kind, CANDIDATES, 1), features(kind, SLICE, 2)
    index = faiss.IndexFlatL2(DIMENSIONS)
    index.add(candidates)
    nearest = Nearest(candidates, bfloat16=bfloat16)
    ways: dict[str, Callable[[], Any]] = {
        "sfumato": lambda: nearest(voters),
        "torch": lambda: blocked(voters, candidates),
        "faiss": lambda: index.search(voters, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if repeat:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    found: dict[str, Any] = {name: [round(value, 3) for value in values] for name, values in seconds.items()}
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return found | {
        "over_faiss": round(middle["faiss"] / middle["sfumato"], 2),
        "over_torch": round(middle["torch"] / middle["sfumato"], 2),
        "identical": bool((nearest(voters) == brute_force(voters, candidates)).all()),
        "voters": SLICE,
    }


def stream() -> dict[str, Any]:
    """All voters, drawn block by block; then whether shards of a slice give its histogram."""
    candidates = features("gaussian", CANDIDATES, 1)
    nearest = Nearest(candidates)
    seconds = 0.0

    def voters() -> Iterator[Features]:
        nonlocal seconds
        for number in range(-(-VOTERS // BLOCK)):
            block = features("gaussian", min(BLOCK, VOTERS - number * BLOCK), number + 2)
            began = time.perf_counter()
            yield block
            seconds += time.perf_counter() - began

    before = own_memory()
    peak = Peak()
    votes = nearest.histogram(voters())
    most = peak.stop() - before
    part = features("clustered", BLOCK, 2)
    shards = nearest.histogram([part[:300]]) + nearest.histogram([part[300:]])
    return {
        "voters": int(votes.sum()),
        "seconds": round(seconds, 1),
        "peak_mb": round(most, 1),
        "shards_agree": bool((shards == nearest.histogram([part[::-1].copy()])).all()),
    }


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """One a kind of features and core type; and the stream."""
    table: dict[str, Callable[[], Any]] = {
        kind + core: partial(compare, kind, core) for kind in ("gaussian", "clustered") for core in CORES
    }
    table |= {kind + FP32: partial(compare, kind, "", False) for kind in ("gaussian", "clustered")}
    return table | {"stream": stream}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    whole = found.get("stream")
    compared = [cell for name, cell in found.items() if name != "stream" and not name.endswith(FP32)]
    line: dict[str, Any] = {}
    if compared:
        line["speedup_over_faiss"] = min(cell["over_faiss"] for cell in compared)
        line["speedup_over_torch"] = min(cell["over_torch"] for cell in compared)
        line["identical"] = all(cell["identical"] for cell in compared) and (whole is None or whole["shards_agree"])
    if whole:
        line |= {"peak_mb": whole["peak_mb"], "seconds_300000": whole["seconds"]}
    without = {name: cell for name, cell in found.items() if name.endswith(FP32)}
    if without:
        line["without_bf16"] = {name: [cell["over_faiss"], cell["over_torch"]] for name, cell in without.items()}
    return line


if __name__ == "__main__":
    run(
        "voting",
        cells,
        summary,
        settings={"candidates": CANDIDATES, "dimensions": DIMENSIONS, "slice": SLICE, "repeats": REPEATS},
    )
