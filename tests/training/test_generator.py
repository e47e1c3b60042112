"""Training of the generator: batches show what they say, workers learn, and a killed run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.nets.latent import LatentAutoencoder
from sfumato.pretrained._colours import COLOURS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

import autoencoder  # noqa: E402
import generator  # noqa: E402
import material  # noqa: E402
from optimiser import Muon, orthogonal  # noqa: E402

ITEMS = 12
RED, BLUE = (1 + COLOURS.index(name) for name in ("red", "blue"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs and material of twelve drawings: discs, red ones and squares with a neighbour each; no model needed."""
    place = tmp_path_factory.mktemp("pairs")
    y, x = np.mgrid[:64, :64]
    images = np.full((ITEMS, 64, 64, 3), 255, np.uint8)
    for i, image in enumerate(images):
        inside = (
            (x - 32) ** 2 + (y - 32) ** 2 < (14 + i) ** 2 if i % 2 else np.maximum(abs(x - 32), abs(y - 32)) < 14 + i
        )
        image[inside] = (220, 30, 30)
    with (place / "pairs.jsonl").open("w") as file:
        for i in range(ITEMS):
            row = {"title": ["square", "disc"][i % 2], "keywords": ["shape"], "category": "food", "source": "noto"}
            file.write(json.dumps(row | {"colour": "red", "artist": "me", "group": "g"}) + "\n")
    np.savez(place / "pairs.npz", images=images)
    network = LatentAutoencoder().requires_grad_(False)
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    network.start(torch.cat([pictures[:, order] for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 0, 1), (0, 1, 0))]))
    network.standardise(pictures)
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, place / "autoencoder.safetensors"
    )
    material.write_latents(images, material.load_autoencoder(place), place / "latents.npz")
    random = np.random.default_rng(0)
    np.savez(
        place / "texts.npz",
        vectors=random.standard_normal((3, 384)).astype(np.float16),
        titles=np.arange(ITEMS) % 2,
        captions=np.arange(ITEMS) % 2,
        singles=np.tile([2, -1, -1], (ITEMS, 1)),
        neighbours=np.where(np.arange(8) < 1, (np.arange(ITEMS)[:, None] + 2) % ITEMS, -1),
    )
    return place


def test_alterations_are_what_they_are_called(folder: Path) -> None:
    stored = np.load(folder / "latents.npz")
    assert (np.bincount(stored["item"]) >= 2 + material.WARPS).all()
    assert set(stored["form"]) == {0, 1, 2, 3}
    assert (stored["colour"][stored["form"] == 0] == RED).all()
    assert (stored["colour"][stored["form"] == 3] != RED).all()
    latents = torch.from_numpy(stored["latents"][stored["form"] == 3].astype(np.float32))
    pictures = material.load_autoencoder(folder).decode(latents)
    levels = ((pictures.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    names = [COLOURS[colour - 1] for colour in stored["colour"][stored["form"] == 3]]
    assert np.mean([found == name for found, name in zip(material.colour_of(levels), names, strict=True)]) > 0.8


def test_a_warped_picture_stays_on_white_and_moves_little() -> None:
    image = np.full((64, 64, 3), 255, np.uint8)
    image[20:44, 20:44] = (0, 0, 200)
    for seed in range(20):
        found = material.warped(image, np.random.default_rng(seed))
        assert (found[0] > 250).all()
        assert found[32, 32, 2] > 150
        assert found[32, 32, 0] < 60
        assert 250 < (found[..., 0] < 100).sum() < 700


def test_batches_show_what_they_say(folder: Path) -> None:
    source = generator.Material(folder, folder)
    latents, given = source.batch(400, np.random.default_rng(1))
    own = source.latents.float().flatten(1)
    targets = torch.cdist(latents.flatten(1), own).argmin(1)
    items = np.repeat(np.arange(ITEMS), source.count)
    relation = given.relation.numpy()
    shares = np.bincount(relation, minlength=3) / 400
    assert shares[generator.NONE] == pytest.approx(generator.RELATED[0], abs=0.06)
    alone = relation == generator.NONE
    assert not given.neighbour[torch.from_numpy(alone)].any()
    shown = torch.cdist(given.neighbour.flatten(1), own).argmin(1).numpy()
    ours, theirs = items[targets.numpy()], items[shown]
    variants, kinds = relation == generator.VARIANT, relation == generator.KIND
    assert (ours == theirs)[variants].all()
    assert (theirs[kinds] == (ours[kinds] + 2) % ITEMS).all()
    repainted = (source.colours[targets.numpy()] != source.colours[shown])[variants]
    assert 0.2 < repainted.mean() < 0.8
    # Places agree: no turned or mirrored partner is ever shown.
    assert (source.partners.begin[targets.numpy()] == source.partners.begin[shown])[variants].all()
    told = given.colour.numpy()
    known = source.colours[targets.numpy()]
    assert ((told == known) | (told == 0)).all()
    assert 0.3 < (told > 0).mean() < 0.9
    assert 0.1 < (~given.text.any(1)).float().mean() < 0.25


def test_two_workers_learn_and_a_killed_run_goes_on(folder: Path) -> None:
    script = [sys.executable, str(ROOT / "training" / "generator.py"), str(folder), str(folder), "--workers", "2"]
    small = {"OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": str(ROOT / "src")}
    first = subprocess.run([*script, "--minutes", "0.05"], env=small, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    state = torch.load(folder / "generator.pt", weights_only=True)
    steps = float(state["clock"][1])
    assert steps >= 1
    second = subprocess.run([*script, "--minutes", "0.1"], env=small, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    after = torch.load(folder / "generator.pt", weights_only=True)
    assert float(after["clock"][1]) > steps
    assert after["optimiser"]["steps"] >= steps
    assert not torch.equal(after["weights"]["inlet.weight"], state["weights"]["inlet.weight"])


def test_the_rate_warms_up_and_falls() -> None:
    assert generator.rate(0.0, 0) < 0.05 * generator.RATE
    assert generator.rate(0.3, 10_000) == generator.RATE
    assert 0 < generator.rate(0.9, 10_000) < 0.3 * generator.RATE
    assert generator.rate(1.2, 10_000) == 0


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (16, 16)])
def test_steps_of_matrices_are_about_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_the_optimiser_learns_a_linear_map_and_resumes_exactly() -> None:
    torch.manual_seed(1)
    goal, x = torch.randn(6, 8), torch.randn(64, 8)

    def trained(steps: int, weights: dict[str, torch.Tensor], state: dict[str, Any] | None = None) -> Muon:
        chosen = Muon(weights.items())
        if state:
            chosen.load(state)
        for _ in range(steps):
            error = x @ (weights["layer"] - goal).T + weights["bias"]
            chosen.step({"layer": 2 * error.T @ x / 64, "bias": 2 * error.mean(0)}, 0.05)
        return chosen

    whole = {"layer": torch.zeros(6, 8), "bias": torch.ones(6)}
    parts = {name: tensor.clone() for name, tensor in whole.items()}
    trained(80, whole)
    half = trained(40, parts)
    trained(40, parts, half.state())
    assert (whole["layer"] - goal).norm() < 0.3 * goal.norm()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_autoencoder_trains_resumes_and_writes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(minutes: float) -> None:
        arguments = ["autoencoder.py", str(folder), str(tmp_path), "--minutes", str(minutes)]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setattr(autoencoder, "REPORT", 0.5)
        monkeypatch.setattr(autoencoder, "BATCH", 4)
        autoencoder.main()

    run(0.04)
    first = torch.load(tmp_path / "autoencoder.pt", weights_only=True)
    run(0.08)
    assert torch.load(tmp_path / "autoencoder.pt", weights_only=True)["step"] > first["step"] > 0
    weights = load_file(tmp_path / "autoencoder.safetensors")
    assert weights["project"].dtype == torch.float16
    network = material.load_autoencoder(tmp_path)
    images = torch.from_numpy(np.load(folder / "pairs.npz")["images"]).permute(0, 3, 1, 2)
    assert autoencoder.decibels(network, images) > 15
