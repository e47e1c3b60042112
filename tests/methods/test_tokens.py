"""The public stage: it learns, is found again in its cache, and holds some images out."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tests.methods.spectral_parts import CPU, IMAGE, TINY, config, known, pictures
from torch import Tensor

from sfumato.methods import checkpoint
from sfumato.methods.tokens import (
    Progress,
    PublicModel,
    cache_name,
    encoded,
    new_model,
    public_model,
    seen_in_training,
)
from sfumato.methods.told import Told
from sfumato.nets.autoregressive import Condition

TEXT = Condition("text", 5)


def test_it_learns() -> None:
    settings = config(
        tokenizer={"width": 16, "layers": 1, "heads": 2, "rounds": 5, "steps": 30, "batch": 16},
        pretraining={"steps": 60, "batch": 32, "rate": 5e-3},
        detail="tokens",
    )
    seen: list[tuple[str, int, int]] = []
    model = public_model(
        settings,
        IMAGE,
        lambda: pictures(200),
        Condition(),
        seed=0,
        hardware=CPU,
        progress=lambda *told: seen.append(told),
    )
    assert seen[-1] == ("pretraining on public tokens", 60, 60)
    assert {("codebooks of public images", 2, 2), ("decoder of public images", 30, 30)} <= set(seen)
    fresh = pictures(100, seed=9)
    coarse, full = model.errors(fresh)
    assert (coarse.height, full.height) == (4, 8)
    assert full.lost < 1.1
    assert coarse.lost < 0.3
    assert full.rmse < 20
    tokens = encoded(model.tokenizer, torch.from_numpy(fresh))
    before = new_model(settings, IMAGE, Condition(), seed=0).network
    nothing = torch.full((100,), -1)
    assert float(model.network.losses(tokens, nothing).mean()) < 0.9 * float(before.losses(tokens, nothing).mean())
    assert not any(value.requires_grad for part in (model.network, model.tokenizer) for value in part.parameters())


def test_what_draws_detail_is_learnt_and_nothing_else() -> None:
    whole = known(detail="tokens")
    assert (whole.network.scales, whole.resolver, whole.examples) == (2, None, None)
    coarse = known(detail="diffusion")
    assert (coarse.network.scales, coarse.examples) == (1, None)
    assert coarse.resolver is not None
    assert float(coarse.resolver.get_buffer("spread")) != 1  # measured on the public pictures
    assert not any(value.requires_grad for value in coarse.resolver.parameters())
    lanczos = public_model(config(detail="lanczos"), IMAGE, lambda: pictures(40), Condition(), seed=0, hardware=CPU)
    assert (lanczos.network.scales, lanczos.resolver, lanczos.examples) == (1, None, None)


def test_examples_are_pictures_that_it_learnt_from() -> None:
    model, shown = known(), torch.from_numpy(pictures(60)[seen_in_training(60)])
    assert (model.network.scales, model.resolver) == (1, None)
    assert model.examples is not None
    assert sorted(map(str, model.examples.pictures.tolist())) == sorted(map(str, shown.tolist()))
    assert torch.equal(model.examples.tokens, encoded(model.tokenizer, model.examples.pictures, 1))
    codes = model.tokenizer.codebook(0)[model.examples.tokens]
    assert torch.equal(
        model.tokenizer(model.examples.tokens)[0], codes
    )  # nobody asks the decoder, so it learnt nothing


@pytest.mark.parametrize("detail", ["examples", "diffusion", "tokens"])
def test_a_model_is_restored(detail: str) -> None:
    model = known(detail=detail)
    restored = type(model).of(config(detail=detail), IMAGE, Condition(), model.state())
    assert restored.state().keys() == model.state().keys()
    assert all(torch.equal(value, restored.state()[name]) for name, value in model.state().items())


def test_texts_are_told_and_heard() -> None:
    model = known(TEXT)
    tokens = encoded(model.tokenizer, torch.from_numpy(pictures(8)), 1)
    told, untold = (model.network.losses(tokens, given) for given in (torch.randn(8, 5), torch.zeros(8, 5)))
    assert not torch.allclose(told, untold)


def test_images_are_told_their_own_texts() -> None:
    """Texts say which half is darker; images that are held out shift no other's text."""
    shown = pictures(200)
    darker = shown[:, 0, :4].mean((1, 2)) < shown[:, 0, 4:].mean((1, 2))
    told = Told(torch.eye(2, 5), torch.from_numpy(darker.astype(np.int64)), torch.arange(200), torch.ones(200).long())
    settings = config(pretraining={"steps": 150, "batch": 32, "rate": 5e-3, "label_dropout": 0.0})
    model = public_model(settings, IMAGE, lambda: shown, TEXT, heard=lambda: told, seed=0, hardware=CPU)
    tokens = encoded(model.tokenizer, torch.from_numpy(shown), 1)
    right, wrong = (torch.eye(2, 5)[told.texts if right else 1 - told.texts] for right in (True, False))
    surprised = model.network.losses(tokens, wrong) > model.network.losses(tokens, right)
    assert float(surprised.float().mean()) > 0.9


def test_found_again(tmp_path: Path) -> None:
    files = tmp_path / "run.safetensors", tmp_path / "cache" / "one.safetensors"
    calls = 0

    def read() -> NDArray[np.uint8]:
        nonlocal calls
        calls += 1
        return pictures(40)

    def learn(*where: Path) -> dict[str, Tensor]:
        return public_model(config(), IMAGE, read, Condition(), seed=0, hardware=CPU, files=where).state()

    first = learn(*files)
    files[0].unlink()
    again = learn(*files)  # from the cache, and copied into the run
    assert calls == 1
    assert files[0].exists()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    files[1].write_bytes(b"broken")
    files[0].unlink()
    learn(*files)
    assert calls == 2
    assert all(torch.equal(value, load_file(files[1])[name]) for name, value in first.items())  # mended


@pytest.mark.parametrize("detail", ["tokens", "diffusion"])
def test_a_public_stage_that_was_cut_off_goes_on(detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off at every step of every training, it becomes what it would have been, and makes no step twice."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    made: list[tuple[str, int]] = []
    trainings = ["decoder of public images", "pretraining on public tokens"]
    if detail == "diffusion":
        trainings.append("super-resolution of public images")

    def cut(stage: str, step: int, of: int) -> None:
        if stage in trainings:
            made.append((stage, step))
            if step < of:
                raise InterruptedError

    def learn(progress: Progress, *files: Path) -> PublicModel:
        read = lambda: pictures(60)  # noqa: E731
        settings = config(detail=detail)
        return public_model(settings, IMAGE, read, Condition(), seed=0, hardware=CPU, files=files, progress=progress)

    found = None
    while found is None:
        with contextlib.suppress(InterruptedError):
            found = learn(cut, tmp_path / "run.safetensors")
    whole = learn(lambda *_: None).state()
    assert found.state().keys() == whole.keys()
    assert all(torch.equal(value, found.state()[name]) for name, value in whole.items())
    settings = config(detail=detail)
    steps = (settings.decoder_steps, settings.pretraining.steps, settings.superresolution.steps)
    assert made == [(stage, step) for stage, of in zip(trainings, steps, strict=False) for step in range(1, of + 1)]
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_rows_at_a_time_change_memory_only() -> None:
    few, many = (
        public_model(
            config(chunk=chunk), IMAGE, lambda: pictures(60), Condition(), seed=0, hardware=CPU
        ).network.state_dict()
        for chunk in (3, 8)
    )
    assert all(torch.allclose(value, many[name], atol=1e-5) for name, value in few.items())


def test_a_cache_knows_what_decides_a_model() -> None:
    def name(condition: Condition = Condition(), facts: object = "a", seed: int = 0, **changes: object) -> str:  # noqa: B008
        return cache_name(config(**changes), condition, facts, seed)

    names = {name(), name(TEXT), name(facts="b"), name(seed=1), name(levels=2), name(pretraining={"steps": 5})}
    names |= {name(detail=detail) for detail in ("tokens", "lanczos", "diffusion")}
    names |= {name(examples={"count": 7}), name(detail="diffusion", superresolution={"steps": 7})}
    names |= {cache_name(config(condition="captions"), TEXT, "a", 0)}
    assert len(names) == 12
    assert name(steps=50, trained="head", examples={"window": 2}) == name()  # private and later settings do not
    assert name(superresolution={"steps": 7}) == name()
    assert name(detail="diffusion", superresolution=TINY["superresolution"] | {"levels": 9}) == name(detail="diffusion")
    assert name(detail="lanczos", superresolution={"steps": 7}) == name(detail="realesrgan-x4plus")


@pytest.mark.parametrize(("count", "held_out"), [(5, 0), (19, 0), (40, 4), (9_000, 500)])
def test_some_images_are_held_out(count: int, held_out: int) -> None:
    assert int((~seen_in_training(count)).sum()) == held_out
