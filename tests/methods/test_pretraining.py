"""Pretraining: the right pictures under the right conditions, and a loss that falls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.methods.test_clusters import pictures

from sfumato.hardware import Hardware
from sfumato.methods import checkpoint
from sfumato.methods.denoising import Network, row_losses, to_bands
from sfumato.methods.pretraining import Examples, PretrainingConfig, chosen_examples, lot_of_examples, pretrain
from sfumato.nets.unet import UNet, UNetShape

CPU = Hardware(torch.device("cpu"), "fp32")
SHAPE = UNetShape(4, 4, 2, (8, 8), (2, 1))


def examples(config: PretrainingConfig, conditional: bool = True) -> Examples:
    pixels, quarter = pictures(200)
    return chosen_examples(config, pixels, quarter.astype(np.int64), np.array([[0, 3], [2, 0]]), conditional, seed=0)


def test_chosen_pictures_carry_the_label_that_chose_them() -> None:
    pixels, quarter = pictures(200)
    found = examples(PretrainingConfig(guides=8))
    assert found.labels.tolist() == [0] * 100 + [1] * 100
    wanted = np.concatenate((pixels[np.isin(quarter, (0, 3))], pixels[np.isin(quarter, (0, 2))]))
    assert np.array_equal(found.pixels.numpy(), wanted)
    assert set(examples(PretrainingConfig(), conditional=False).labels.tolist()) == {-1}


def test_a_guide_is_the_mean_of_its_group() -> None:
    found = examples(PretrainingConfig(guides=8))
    assert len(found.means) == 8
    for group in (0, 5):
        wanted = (found.pixels[found.groups == group].float() / 127.5 - 1).mean(0)
        assert torch.allclose(found.means[group], wanted, atol=1e-5)


def test_groups_are_large_enough_to_blur() -> None:
    assert len(examples(PretrainingConfig(guides=10_000)).means) == 20


def test_the_loss_falls() -> None:
    config = PretrainingConfig(steps=60, batch=32, rate=5e-3, guides=4)
    known = examples(config)

    def error(network: Network) -> float:
        count = 100
        normal = torch.randn(count, 4, 10, 10, generator=torch.manual_seed(1))
        spread = torch.randn(count, generator=torch.manual_seed(2))
        scaled = known.pixels[:count].float() / 127.5 - 1
        guides = to_bands(known.means[known.groups[:count]])
        with torch.no_grad():
            return float(row_losses(network, scaled, known.labels[:count], guides, normal, spread).mean())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = error(UNet(SHAPE))
    trained = list(pretrain(config, SHAPE, known, seed=0, hardware=CPU))
    assert [step for step, _ in trained] == list(range(1, 61))
    assert error(trained[-1][1]) < 0.8 * before


def test_cut_off_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    config = PretrainingConfig(steps=9, batch=16, guides=4)
    file, known = tmp_path / "a.safetensors", examples(config)
    begun = pretrain(config, SHAPE, known, seed=0, hardware=CPU, unfinished=file, facts={"privacy": "NOT PRIVATE"})
    for _ in range(4):
        next(begun)
    assert b"NOT PRIVATE" in file.read_bytes()
    further = list(pretrain(config, SHAPE, known, seed=0, hardware=CPU, unfinished=file))
    assert [step for step, _ in further] == [5, 6, 7, 8, 9]
    whole = list(pretrain(config, SHAPE, known, seed=0, hardware=CPU))[-1][1].state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in further[-1][1].state_dict().items())


def test_a_seed_decides_and_labels_are_dropped() -> None:
    def weights(**changes: float) -> dict[str, torch.Tensor]:
        config = PretrainingConfig(**{"steps": 3, "batch": 16, "guides": 4} | changes)  # type: ignore[arg-type]
        return list(pretrain(config, SHAPE, examples(config), seed=0, hardware=CPU))[-1][1].state_dict()

    one, same, hidden = weights(), weights(), weights(label_dropout=1.0)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    slow = PretrainingConfig(steps=1, batch=16, rate=1e-12)
    _, start = next(pretrain(slow, SHAPE, examples(slow), seed=0, hardware=CPU))
    initial = start.state_dict()["film.weight"][:, :2]
    assert torch.allclose(hidden["film.weight"][:, :2], initial, atol=1e-9), "no label is ever seen"
    assert not torch.allclose(one["film.weight"][:, :2], initial, atol=1e-5)


def test_a_lot_takes_its_share_without_a_condition() -> None:
    pixels, _ = pictures(200)
    found = lot_of_examples(PretrainingConfig(guides=8), pixels, 0.25, seed=3)
    assert len(found.pixels) == 50
    assert set(found.labels.tolist()) == {-1}
    known = {picture.tobytes() for picture in pixels}
    assert {picture.tobytes() for picture in found.pixels.numpy()} < known
    other = lot_of_examples(PretrainingConfig(guides=8), pixels, 0.25, seed=4)
    assert not torch.equal(found.pixels, other.pixels)
    assert len(lot_of_examples(PretrainingConfig(guides=8), pixels, 1.0, seed=3).pixels) == 200
