"""Sfumato's own audit: lower bounds on epsilon for the three methods, beside what they claim.

    python bench/audit.py

Last line: {"<method>": {"<epsilon>": {"white_box": .., "black_box": .., "seconds": ..}}, "training": {..},
"touches": {..}, "non_private": {..}}; bounds at 95 %, `broken` where one at 99.9 % (Bonferroni over the table) lies
above its claim.

White box: 5,000 Dirac canaries in every touch that the method plans, seen by an attacker who knows every released
value. The plans are the methods' own, for 20,000 declared records. `training` is private training alone at epsilon 4,
beside a U-Net that learns drawings, three runs; the same guesses against one Gaussian release would show `ideal`. Black
box: images of random blocks in a folder of drawings that goes through the whole product. `non_private` is the same
without noise. Everything is drawn by code; no cell takes more than ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import run

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.evolution_models import objects, private_pictures

from sfumato.audit.bounds import GATE, SHOWN, OneRun
from sfumato.audit.canaries import white_box
from sfumato.audit.core import audit_core, training_plan
from sfumato.audit.inserted import black_box, random_blocks, write
from sfumato.audit.standins import SHAPES, Picture, drawn
from sfumato.config import RunConfig, validated
from sfumato.hardware import Hardware
from sfumato.methods.denoising import DenoisingLearner, Schedule
from sfumato.methods.models import OWN
from sfumato.nets.unet import UNetShape
from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.plan import Plan
from sfumato.workflows import workflow

METHODS, EPSILONS, DELTA = ("privimage", "spti", "spectral"), (1.0, 4.0, 10.0), 1e-5
CANARIES, INSERTED, RECORDS, STAND_INS = 5000, 1000, 20_000, 1500
REPEATS = 3
TESTS = 2 * len(METHODS) * len(EPSILONS) + REPEATS
SPECTRAL = {
    "levels": 1,
    "patch": 4,
    "vocabulary": 64,
    "width": 32,
    "layers": 2,
    "heads": 2,
    "batch": 256,
    "steps": 60,
    "tokenizer": {"width": 32, "layers": 1, "heads": 2, "rounds": 5, "steps": 100, "batch": 64},
    "pretraining": {"steps": 100, "batch": 64},
}
PRIVIMAGE = {"width": [16, 16], "blocks": [1, 1], "batch": 256, "steps": 100, "warm_steps": 40}
SPTI_SETTINGS = {"rounds": 4, "population": 40, "part": 64}


def settings_of(method: str, epsilon: float, size: int, public: Path | None) -> dict[str, Any]:
    """Settings of a run on stand-ins."""
    common: dict[str, Any] = {"dataset": "audit", "method": method, "epsilon": epsilon, "delta": DELTA}
    common |= {"public_size": size, "count": 400}
    grey = {"image": {"height": 16, "width": 16, "channels": 1}, "classes": list(SHAPES), "classes_origin": "listed"}
    if method == "spti":
        named = {name: f"{OWN}{model.identity.name}" for name, model in objects().items()}
        return common | {"image": {"height": 16, "width": 16, "channels": 3}, "spti": SPTI_SETTINGS | named}
    if method == "spectral":
        return common | grey | {"spectral": SPECTRAL, "public": {"folders": [str(public)]}}
    return common | grey | {"privimage": PRIVIMAGE}


def plan_of(method: str, epsilon: float) -> Plan:
    """The plan of the method's usual settings for `RECORDS` records."""
    config = validated(settings_of(method, epsilon, RECORDS, Path("public")) | _usual(method))
    return planned(config)


def _usual(method: str) -> dict[str, Any]:
    return {} if method == "spti" else {method: {}}


def planned(config: RunConfig) -> Plan:
    """As a run makes it, on a coarser grid of losses, whose price is an upper bound too."""
    requests = workflow(config.method).requests(config)
    return Plan.calibrate(
        requests, epsilon=config.epsilon, delta=config.delta, unit="image", declared_size=config.public_size,
        interval=1e-3,
    )  # fmt: skip


def judged(found: OneRun, began: float) -> dict[str, Any]:
    """A bound with what it rests on."""
    verdict = found.verdict("", TESTS)
    return verdict.to_json() | {"confidence": [SHOWN, GATE], "seconds": round(time.monotonic() - began, 1)}


def white(method: str, epsilon: float, protected: bool = True) -> dict[str, Any]:
    """Dirac canaries in the touches of a method."""
    began, noise = time.monotonic(), Noise() if protected else TestNoise(b"audit")
    with tempfile.TemporaryDirectory() as folder:
        return judged(white_box(plan_of(method, epsilon), CANARIES, Path(folder), noise), began)


def black(method: str, epsilon: float, protected: bool = True) -> dict[str, Any]:
    """Inserted images through the product."""
    began, noise = time.monotonic(), Noise() if protected else TestNoise(b"audit")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(drawn(600, 16, seed=9), folder / "public")
        settings = settings_of(method, epsilon, STAND_INS, folder / "public")
        if method == "spti":
            pictures = [
                Picture(p.identity, None, p.pixels) for p in private_pictures(STAND_INS) if p.pixels is not None
            ]
            canaries = [Picture(c.identity, None, c.pixels) for c in random_blocks(INSERTED, (3, 16, 16), "", 5)]
            found = black_box(settings, pictures, canaries, folder / "run", noise, models=objects())
        else:
            canaries = random_blocks(INSERTED, (1, 16, 16), SHAPES[0], 5)
            found = black_box(settings, drawn(STAND_INS, 16, seed=4), canaries, folder / "run", noise)
        return judged(found, began)


def training(number: int, protected: bool = True) -> dict[str, Any]:
    """Private training at epsilon 4 beside a U-Net."""
    began, noise = time.monotonic(), Noise() if protected else TestNoise(b"audit")
    torch.manual_seed(number)
    beside = DenoisingLearner(
        UNetShape(4, 4, 3, (8, 8), (1, 1)),
        (1, 16, 16),
        torch.zeros(3, 4, 8, 8),
        Schedule(1e-3, 64),
        rows=1,
        average=0.9,
        seed=number,
        hardware=Hardware(torch.device("cpu"), "fp32"),
    )
    with tempfile.TemporaryDirectory() as folder:
        pictures, plan = drawn(300, 16, seed=number), training_plan(4.0, DELTA)
        return judged(white_box(plan, CANARIES, Path(folder), noise, beside=beside, pictures=pictures), began)


def touches(epsilon: float) -> dict[str, Any]:
    """Sensitivity and every touch, from many runs."""
    began = time.monotonic()
    found = audit_core((epsilon,), delta=DELTA, runs=4000, canaries=1000)
    return found | {"seconds": round(time.monotonic() - began, 1)}


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """Two a method and epsilon; private training; touches; without noise."""
    table: dict[str, Callable[[], Any]] = {}
    for number in range(REPEATS):
        table[f"training {number + 1}"] = partial(training, number)
    for method in METHODS:
        for epsilon in EPSILONS:
            table[f"{method} {epsilon:g} white"] = partial(white, method, epsilon)
            table[f"{method} {epsilon:g} black"] = partial(black, method, epsilon)
    table |= {f"touches {epsilon:g}": partial(touches, epsilon) for epsilon in EPSILONS}
    table["non_private white"] = partial(training, 0, False)
    table |= {f"non_private {method} white": partial(white, method, 4.0, False) for method in METHODS}
    return table | {"non_private black": partial(black, "privimage", 4.0, False)}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    line: dict[str, Any] = {}
    for method in METHODS:
        for epsilon in EPSILONS:
            cell: dict[str, Any] = {}
            for box in ("white", "black"):
                if one := found.get(f"{method} {epsilon:g} {box}"):
                    cell[f"{box}_box"] = round(one["bound"], 3)
                    cell["seconds"] = round(cell.get("seconds", 0) + one["seconds"], 1)
                    cell["broken"] = cell.get("broken", False) or one["broken"]
            if cell:
                line.setdefault(method, {})[f"{epsilon:g}"] = cell
    if runs := [one for name, one in found.items() if name.startswith("training ")]:
        bounds = [one["bound"] for one in runs]
        line["training"] = {"bounds": [round(b, 3) for b in bounds], "mean": round(sum(bounds) / len(bounds), 3)}
        line["training"] |= {"ideal": runs[0]["ideal"], "broken": any(one["broken"] for one in runs)}
    for epsilon in EPSILONS:
        if one := found.get(f"touches {epsilon:g}"):
            bounds_of = {each["name"]: round(each["bound"], 3) for each in one["bounds"]}
            line.setdefault("touches", {})[f"{epsilon:g}"] = bounds_of | {"broken": one["broken"]}
    bare = {name.removeprefix("non_private "): one for name, one in found.items() if name.startswith("non_private ")}
    if bare:
        line["non_private"] = {
            name: {"bound": round(one["bound"], 3), "flagged": one["broken"] or one["unprotected"]}
            for name, one in bare.items()
        }
    return line


if __name__ == "__main__":
    sizes = {"canaries": CANARIES, "inserted": INSERTED, "records": RECORDS, "stand_ins": STAND_INS}
    run("audit", cells, summary, settings={**sizes, "delta": DELTA, "epsilons": list(EPSILONS)})
