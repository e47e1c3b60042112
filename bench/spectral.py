"""Spectral: what a private step costs beside DP diffusion, and how good its portraits are beside four others.

    python bench/spectral.py                      # cost, then quality; every cell is stored when it is done
    python bench/spectral.py --only cost          # one cell
    python bench/spectral.py --part detail        # further cells: the oracle floor by detail stage
    python bench/spectral.py --part ablations     # further cells: levels, trained sets, warm start

Pictures are 64 x 64 colour portraits of people who do not exist, drawn by the generator `portraits` of the zoo. Private
are draws whose latents lie on one side of 48 declared random directions; public are draws from all of latent space.
Both are made anew in `bench/scratch/` and never leave it. (With three directions private draws could not be told from
public ones: the Frechet distance of 1,500 images to 1,500 private ones, EfficientNet-Lite0, was 9.7 for public and 9.5
for private draws. With 48 it is 20.0 and 6.7.)

Cost is the time of one epoch of private training, with tokenising, noise and the optimiser's steps, with as many
trained parameters (within 10 %), the same records a step, engine and precision; medians of readings that take turns.
Quality is the Frechet distance of equal numbers of images from private draws that no run has seen: private draws
themselves, the oracle floor (true coarse tokens of private draws and the detail stage), the public model untouched, a
non-private fine-tune, ours, DP diffusion that learnt from all public images, and PrivImage, both with our wall time.

Last line: {"diffusion_k1_over_ours": .., "diffusion_k32_over_ours": .., "frechet": {"<embedder>": {"real": ..,
"oracle": .., "public": .., "nonprivate": .., "ours": {"10": [..], "1": [..]}, "diffusion": {"10": [..], "1": [..]},
"privimage": {..}}}}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from cells import run as run_cells
from numpy.typing import NDArray
from PIL import Image

from sfumato import run
from sfumato._home import home
from sfumato.config import validated
from sfumato.hardware import choose_hardware, keep_freed_memory
from sfumato.measure.features import NETWORKS, features, load_embedder
from sfumato.measure.frechet import frechet_distance
from sfumato.methods.coarse import CoarseLearner, coarse_network, condition_of
from sfumato.methods.denoising import DenoisingLearner, Schedule
from sfumato.methods.open_training import minimise
from sfumato.methods.spectral_model import SpectralModel, untrained
from sfumato.methods.spectral_settings import SpectralConfig
from sfumato.methods.tokens import encoded, public_model
from sfumato.nets.adapters import trained_parameters
from sfumato.nets.autoregressive import Condition
from sfumato.nets.unet import UNet, UNetShape
from sfumato.pretrained import zoo
from sfumato.pretrained.portraits import on_one_side
from sfumato.privacy.draws import Draws
from sfumato.privacy.plan import TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.training import Crew
from sfumato.speed import in_time

SCRATCH = Path(__file__).parent / "scratch" / "spectral"
SIDE, PRIVATE, PUBLIC, UNSEEN = 64, 20_000, 20_000, 2_000
SEED, DIRECTIONS = 20_260_101, 48
RUNS = (1, 2, 3)
EPSILONS = ("10", "1")
IMAGE = (3, SIDE, SIDE)
METHODS = ("ours", "diffusion", "privimage")
ABLATIONS: dict[str, dict[str, Any]] = {
    **{f"levels {levels}": {"levels": levels, "patch": 8 >> levels} for levels in (1, 3)},
    **{f"trained {kind}": {"trained": kind} for kind in ("full", "lora", "norms", "head")},
    "no warm start": {"warm_share": 0.0},
}
RULED = {"10": "full", "1": "head"}  # what the rule for the trained set takes: such ablations are the runs of ours
DETAILS = ("diffusion", "tokens", "lanczos", "realesrgan-animevideo-x4")  # beside the default
SIZES = {"side": SIDE, "private": PRIVATE}
PORTRAITS = {"public": PUBLIC, "unseen": UNSEEN, "seed": SEED, "directions": DIRECTIONS}
DECIDE_COST = {"levels", "patch", "vocabulary", "width", "layers", "heads", "batch", "chunk"}
ROWS = 64  # of a chunk of DP diffusion
REPEATS = 5


def settings(cell: str) -> dict[str, Any]:
    """What decides a cell; Spectral's defaults among it, so that a cell of other defaults counts as missing.

    Quality does not hang on the size of chunks, and nothing is told captions. Defaults of DP diffusion and of PrivImage
    are not here: they are those of the commit that a cell is stored with.
    """
    kind, _, name = cell.partition(" ")
    if kind == "cost":
        return SIZES | SpectralConfig().model_dump(include=DECIDE_COST) | {"rows": ROWS, "repeats": REPEATS}
    changes: dict[str, Any] = {"detail": name} if kind == "oracle" and name else {}
    changes |= ABLATIONS.get(cell.partition(" epsilon ")[0], {})
    method = SpectralConfig.model_validate(changes).model_dump(mode="json", exclude={"chunk", "prompts"})
    return SIZES | PORTRAITS | {"method": method}


def portraits() -> dict[str, Path]:
    """Folders of private, public and unseen private portraits, drawn once."""
    folders = {name: SCRATCH / name for name in ("private", "public", "unseen")}
    if (SCRATCH / "DRAWN").exists():
        return folders
    shutil.rmtree(SCRATCH, ignore_errors=True)
    zoo.pull(["portraits", *NETWORKS, DETAILS[-1]])
    generator: Any = zoo.load_image_source("portraits")
    inside = on_one_side(generator.latents(PRIVATE + UNSEEN, SEED), DIRECTIONS, SEED)
    parts = {"private": inside[:PRIVATE], "unseen": inside[PRIVATE:]}
    parts["public"] = generator.latents(PUBLIC, SEED + 1)
    for name, chosen in parts.items():
        folders[name].mkdir(parents=True)
        for number, face in enumerate(generator.draw_from(chosen)):
            Image.fromarray(face.transpose(1, 2, 0)).save(folders[name] / f"{number:05}.png")
    (SCRATCH / "DRAWN").touch()
    return folders


def pixels(folder: Path, count: int) -> NDArray[np.uint8]:
    """The first images of a folder, `(count, 3, H, W)`."""
    files = sorted(folder.rglob("*.png"))[:count]
    return np.stack([np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files])


# Cost


def _rows(count: int, each: int) -> Rows:
    draws = Draws(bytes(32), "cost", 0, [bytes(16)] * count)
    images = torch.randint(0, 256, (count * each, *IMAGE), dtype=torch.uint8)
    return Rows(images, torch.full((count * each,), -1), torch.ones(count, dtype=torch.bool), draws)


def _ours() -> CoarseLearner:
    """All parameters of the default model, tokenising included."""
    model = untrained(SpectralConfig(), IMAGE, Condition())
    return CoarseLearner(
        model.coarse, model.public.tokenizer, None, Schedule(1e-3, 1),
        trained="full", rank=4, average=0.9, label_dropout=0.0, seed=0, hardware=choose_hardware("cpu"),
    )  # fmt: skip


def _diffusion(draws: int, wanted: int) -> DenoisingLearner:
    """A U-Net with as many parameters."""
    shapes = [UNetShape(12, 0, 0, (width, 2 * width), (4, 4)) for width in range(16, 257, 8)]
    best = min(shapes, key=lambda shape: abs(trained_parameters(UNet(shape)) - wanted))
    learner = DenoisingLearner(
        best, IMAGE, None, Schedule(1e-3, 1), rows=draws, average=0.9, seed=0,
        hardware=choose_hardware("cpu"), label_dropout=0.0,
    )  # fmt: skip
    assert abs(trained_parameters(learner.model) / wanted - 1) < 0.1
    return learner


def _measured(learner: Any, chunk: int, draws: int) -> tuple[float, float]:
    """Records a second, and the seconds of a step beside them."""
    asked = SpectralConfig().training_request(PRIVATE)
    touch = TrainingTouch("cost", 0.1, 1, 1.0, 1.0, draws, asked.slack, grouped=asked.grouped)
    with contextlib.closing(Crew(learner, touch, chunk, choose_hardware("cpu").precision)) as crew:
        return crew.rows_per_second(_rows(chunk, draws), chunks=4) / draws, crew.seconds_beside(learner)


def cost() -> dict[str, Any]:
    """Records a second and seconds an epoch of ours and of DP diffusion, in turns."""
    keep_freed_memory()
    config, ours = SpectralConfig(), _ours()
    wanted = trained_parameters(ours.model)
    each: dict[str, tuple[Any, int, int]] = {"ours": (ours, config.chunk, 1)}
    each |= {f"diffusion_k{draws}": (_diffusion(draws, wanted), ROWS // draws, draws) for draws in (1, 32)}
    readings: dict[str, list[tuple[float, float]]] = {name: [] for name in each}
    for _ in range(REPEATS):
        for name, contender in each.items():
            readings[name].append(_measured(*contender))
    result = {}
    for name, (learner, _, _) in each.items():
        speeds, beside = zip(*readings[name], strict=True)
        result[name] = {
            "parameters": trained_parameters(learner.model),
            "records_per_second": speeds,
            "seconds_beside": beside,  # noise and optimiser, a step
            "epoch": PRIVATE / median(speeds) + PRIVATE / config.batch * median(beside),
        }
    return result


# Quality


def _settings(method: str, epsilon: str, number: int, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dataset": "portraits-bench",
        "method": "spectral" if method == "ours" else "privimage",
        "epsilon": float(epsilon),
        "delta": 1e-5,
        "public_size": PRIVATE,
        "count": UNSEEN,
        "seed": number,
        "image": {"height": SIDE, "width": SIDE, "channels": 3},
        "public": {"folders": [str(portraits()["public"])]},
        "spectral": changes,
    }
    if method != "ours":
        ours = json.loads((_place("ours", "10", number) / "minutes.json").read_text())  # public stage included
        values["minutes"] = ours["minutes"]
    if method == "diffusion":  # learns from all public images and has no warm start
        values["privimage"] = {"warm_share": 0.0, "warm_steps": 0, "semantic": {"kept": 1.0, "clusters": 2, "votes": 1}}
    return values


def _place(method: str, epsilon: str, number: int, name: str = "") -> Path:
    return SCRATCH / "runs" / f"{name or method}-{epsilon}-{number}".replace(" ", "-")


def private_run(method: str, epsilon: str, number: int, name: str = "", **changes: Any) -> dict[str, Any]:
    """A whole run of the product, from two folders to a release; one that was cut off begins again, as it is timed."""
    torch.manual_seed(number)
    folder, place = portraits(), _place(method, epsilon, number, name)
    for embedder in NETWORKS:
        _unseen(embedder)  # before the run: a model that is missing is noticed now
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    _move_home(number, empty=method == "ours" and epsilon == "10" and not name)
    began = time.monotonic()
    given = _settings(method, epsilon, number, **changes) | {"ledger": str(place / "ledger.jsonl")}
    config = in_time(validated(given))
    started = run.prepare(config, folder["private"], place / "release", place / "run", run.make_plan(config))
    release = run.finish(started)
    assert release is not None
    minutes = (time.monotonic() - began) / 60
    (place / "minutes.json").write_text(json.dumps({"minutes": minutes}))
    return {"minutes": minutes, "frechet": _distances(pixels(release, UNSEEN))}


def _move_home(number: int, empty: bool) -> None:
    """Public models are kept for runs of the same number only, so that the first of them is timed with all it does."""
    models, folder = home() / "models", SCRATCH / "homes" / str(number)
    if empty:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "models").exists():
        (folder / "models").symlink_to(models)
    os.environ["SFUMATO_HOME"] = str(folder)


def _distances(made: NDArray[np.uint8]) -> dict[str, float]:
    return {name: frechet_distance(_unseen(name), features(made, load_embedder(name))).distance for name in NETWORKS}


def _unseen(name: str) -> NDArray[np.float32]:
    """Features of unseen private draws; kept for the cells that follow."""
    file = SCRATCH / f"unseen-{name}.npy"
    if not file.exists():
        np.save(file, features(pixels(portraits()["unseen"], UNSEEN), load_embedder(name)))
    found: NDArray[np.float32] = np.load(file)
    return found


def _public_model() -> SpectralModel:
    """What the first run of ours learnt from public images, as it was before it met a private one."""
    found = run.load_model(run.Run(_place("ours", "10", 1) / "run"))
    assert isinstance(found, SpectralModel)
    return SpectralModel(
        found.config,
        IMAGE,
        coarse_network(found.public.network, Condition()),
        found.public,
        None,
        None,
        not_private=True,
    )


def _sampled(model: SpectralModel) -> NDArray[np.uint8]:
    parts = model.sample(torch.full((UNSEEN,), -1), 0, choose_hardware("cpu"))
    return np.concatenate([part.numpy() for part in parts])


def real() -> dict[str, Any]:
    """Private draws themselves: what no method can be better than."""
    return {"frechet": _distances(pixels(portraits()["private"], UNSEEN))}


def oracle(detail: str) -> dict[str, Any]:
    """True coarse tokens of private draws, detail from the public stage."""
    hardware, began = choose_hardware("cpu"), time.monotonic()
    idle = {} if detail == "tokens" else {"pretraining": {"steps": 0}}  # no tokens are drawn
    config = SpectralConfig.model_validate({"detail": detail, **idle})
    known = public_model(
        config, IMAGE, lambda: pixels(portraits()["public"], PUBLIC), Condition(), seed=1, hardware=hardware
    )
    learnt = time.monotonic() - began
    stage = SpectralModel(config, IMAGE, known.network, known, None, None, not_private=False).detail()
    generator, parts = torch.Generator().manual_seed(0), []
    for part in torch.split(torch.from_numpy(pixels(portraits()["private"], UNSEEN)), 100):
        coarse, nothing = known.tokenizer.encode(part, 1), torch.full((len(part),), -1)
        parts.append(stage.pictures(coarse, nothing, generator, hardware).numpy())
    drawn = time.monotonic() - began - learnt
    return {"frechet": _distances(np.concatenate(parts)), "learning_seconds": learnt, "drawing_seconds": drawn}


def public() -> dict[str, Any]:
    """The public model untouched."""
    return {"frechet": _distances(_sampled(_public_model()))}


def nonprivate() -> dict[str, Any]:
    """Fine-tuned on the private coarse tokens without privacy, as many steps as the private stage has."""
    model, hardware = _public_model(), choose_hardware("cpu")
    tokens = encoded(model.public.tokenizer, torch.from_numpy(pixels(portraits()["private"], PRIVATE)), 1)
    generator = torch.Generator().manual_seed(0)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            chosen = tokens[torch.randint(len(tokens), (model.config.batch,), generator=generator)]
            yield chosen, condition_of(Condition(), torch.full((len(chosen),), -1), None)

    for _ in minimise(model.coarse, batches(), model.config.steps, 4e-4, hardware, chunk=model.config.chunk):
        pass
    return {"frechet": _distances(_sampled(model))}


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    if options.part == "detail":
        return {f"oracle {detail}": partial(oracle, detail) for detail in DETAILS}
    if options.part == "ablations":
        return {
            f"{name} epsilon {epsilon}": partial(private_run, "ours", epsilon, 1, name, **changes)
            for name, changes in ABLATIONS.items()
            for epsilon in EPSILONS
            if changes.get("trained") != RULED[epsilon]
        }
    table: dict[str, Callable[[], Any]] = {"cost": cost}
    for method in METHODS:
        for epsilon in EPSILONS:
            for number in RUNS:
                table[f"{method} epsilon {epsilon} run {number}"] = partial(private_run, method, epsilon, number)
    return table | {
        "real": real,
        "oracle": partial(oracle, SpectralConfig().detail),
        "public": public,
        "nonprivate": nonprivate,
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if "cost" in found:
        for draws in (1, 32):
            ratio = found["cost"][f"diffusion_k{draws}"]["epoch"] / found["cost"]["ours"]["epoch"]
            result[f"diffusion_k{draws}_over_ours"] = round(ratio, 2)
    table: dict[str, dict[str, Any]] = {name: {} for name in NETWORKS}
    for cell, value in found.items():
        for embedder, distance in value.get("frechet", {}).items():
            if " run " in cell:
                method, _, epsilon, _, _ = cell.split()
                table[embedder].setdefault(method, {}).setdefault(epsilon, []).append(distance)
            else:
                table[embedder][cell] = distance
    return result | {"frechet": {name: row for name, row in table.items() if row}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["main", "detail", "ablations"], default="main", help="which cells")
    run_cells("spectral", cells, summary, settings=settings, parser=parser)
