"""The method over real touches: through to samples, killed anywhere, resumed; and its settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from tests.methods.spectral_parts import CPU, IMAGE, config, known, pictures
from tests.privacy.memory_source import Picture
from tests.privacy.runs import session

from sfumato.data.public import PublicSet
from sfumato.errors import PrivacyRefusal
from sfumato.methods import spectral, spectral_model
from sfumato.methods.labelcheck import LABEL_CHECK
from sfumato.methods.spectral import NOTES, PUBLIC_MODEL, START, PublicSide
from sfumato.methods.spectral_model import SpectralModel, untrained
from sfumato.methods.spectral_settings import FINE_TUNING, WARM_START, SpectralConfig, TasteConfig
from sfumato.nets.autoregressive import Condition
from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.plan import SumTouch, Touch, TrainingTouch
from sfumato.privacy.session import Session

PIXELS = pictures(40, seed=7)
PRIVATE = [Picture(f"{n:02}.png", pixels, "ab"[n % 2]) for n, pixels in enumerate(PIXELS)]


class Killed(Exception):  # noqa: N818
    """Stands for a kill between two stages."""


def touches(settings: SpectralConfig) -> tuple[Touch, ...]:
    request = settings.training_request(40)
    found: list[Touch] = [SumTouch(WARM_START, 1.0, 2, 2.0)] if settings.warm_share else []
    if settings.check.spent(2):
        found.append(TrainingTouch(LABEL_CHECK, 0.5, settings.check.steps, 0.1, 1.0, 1, 1e-6))
    return *found, TrainingTouch(FINE_TUNING, 0.4, settings.steps, 2.0, 1.0, 1, request.slack, grouped=request.grouped)


def quiet(settings: SpectralConfig) -> tuple[Touch, ...]:
    """Hardly any noise, for what a model can learn from 40 records."""
    request = settings.training_request(40)
    return (TrainingTouch(FINE_TUNING, 0.5, settings.steps, 0.1, 1.0, 1, request.slack, grouped=request.grouped),)


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    return np.array([[len(text), text.count("a"), 1.0] for text in texts], np.float32)


class Trial:
    """One run in a folder, begun as often as wanted."""

    def __init__(self, folder: Path, noise: Noise | None = None, texts: bool = False, **changes: Any) -> None:
        self.folder, self.noise, self.config = folder, noise, config(**changes)
        self.reads, self.stages, self.texts, self.private = 0, list[str](), texts, PRIVATE
        folder.mkdir(exist_ok=True)

    def read(self) -> PublicSet:
        self.reads += 1
        return PublicSet(pictures(60), np.arange(60) % 2, ("cat", "ant"))

    def session(self) -> Session:
        return session(self.folder, noise=self.noise, pictures=self.private, touches=touches(self.config))

    def fit(self, kill: str = "") -> SpectralModel:
        def progress(stage: str, done: int, of: int) -> None:
            self.stages.append(stage)
            if stage == kill:
                raise Killed

        public = PublicSide(
            self.read, "facts", self.folder, self.folder / "cache", ("a", "b"), embed if self.texts else None
        )
        return spectral.fit(
            self.config, self.session(), IMAGE, size=40, seed=0, hardware=CPU, progress=progress, public=public
        )


def drawn(model: SpectralModel, seed: int = 0, count: int = 6) -> torch.Tensor:
    return torch.cat(list(model.sample(torch.arange(count) % 2, seed, CPU, batch=4)))


@pytest.mark.parametrize(("texts", "detail"), [(False, "examples"), (True, "diffusion")])
def test_from_public_images_to_samples(tmp_path: Path, texts: bool, detail: str) -> None:
    condition = "text" if texts else "class"
    trial = Trial(tmp_path / "run", texts=texts, condition=condition, noise_limit=0.01, detail=detail)
    model = trial.fit()
    assert list(dict.fromkeys(trial.stages)) == [
        "codebooks of public images",
        *(["decoder of public images"] if detail == "diffusion" else []),
        "tokens of public images",
        "pretraining on public tokens",
        *(["super-resolution of public images"] if detail == "diffusion" else []),
        "noisy sum of the coarse band",
        "warm-up on images that lie there",
        "private training",
    ]
    images = drawn(model)
    assert images.shape == (6, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert torch.equal(images, drawn(model))
    assert not torch.equal(images, drawn(model, seed=1))
    model.save(trial.folder)
    again = SpectralModel.load(trial.folder, not_private=False)
    assert torch.equal(images, drawn(again))
    assert model.coarse.condition.kind == ("text" if texts else "class")
    notes = json.loads((trial.folder / NOTES).read_text())
    assert notes["trained"] == "norms"  # 40 records carry no more
    assert [error["height"] for error in notes["public_reconstruction"]] == [4, 8]


def test_tokens_are_released_under_the_class_that_they_show(tmp_path: Path) -> None:
    """Private "a" are dark above, "b" below; a model that has hardly learnt draws both, and what it draws is sorted."""
    slope, plain = np.linspace(-90, 90, 8)[None, :, None], pictures(40, seed=3) * 0.3 + 90
    sign = np.where(np.arange(40) % 2, -1, 1)[:, None, None, None]
    pixels = np.clip(plain + sign * slope, 0, 255).astype(np.uint8)
    check = {"share": 0.1, "steps": 30, "batch": 20, "tries": 30}
    trial = Trial(tmp_path / "run", TestNoise(b"the same in every run"), check=check)
    trial.private = [Picture(f"{number:02}.png", one, "ab"[number % 2]) for number, one in enumerate(pixels)]
    with pytest.raises(Killed):
        trial.fit(kill="label check")
    model = trial.fit()
    assert trial.session().attempts_made(LABEL_CHECK) == 30

    def right(some: SpectralModel) -> float:
        images = drawn(some, count=40).float()
        darker_above = images[:, 0, :4].mean((1, 2)) < images[:, 0, 4:].mean((1, 2))
        return float((darker_above == (torch.arange(40) % 2 == 0)).float().mean())

    assert right(model) > 0.8 > right(replace(model, check=None))
    model.save(trial.folder)
    assert torch.equal(drawn(model), drawn(SpectralModel.load(trial.folder, not_private=True)))

    # Cut off and called again it draws the same, what waits for its place included.
    keep, labels = trial.folder / "drawn", torch.arange(40) % 2
    begun = model.sample(labels, 0, CPU, batch=4, keep=keep)
    assert torch.equal(torch.cat([next(begun) for _ in range(5)]), drawn(model, count=40)[:20])
    first = {file: file.stat().st_mtime_ns for file in keep.iterdir()}
    assert torch.equal(torch.cat(list(model.sample(labels, 0, CPU, batch=4, keep=keep))), drawn(model, count=40))
    assert first.items() < {file: file.stat().st_mtime_ns for file in keep.iterdir()}.items()


def test_private_captions_teach_what_prompts_mean(tmp_path: Path) -> None:
    """Public captions tell nothing; private ones say which half of the picture is dark."""
    above, below = "aaaa", "b"
    slope, plain = np.linspace(-90, 90, 8)[None, :, None], pictures(40, seed=3) * 0.3 + 90
    sign = np.where(np.arange(40) % 2, -1, 1)[:, None, None, None]
    pixels = np.clip(plain + sign * slope, 0, 255).astype(np.uint8)
    shown = [Picture(f"{number:02}.png", one, text=((above, below)[number % 2],)) for number, one in enumerate(pixels)]
    public = PublicSet(pixels, None, (), (("public",),) * 40)
    settings = config(
        condition="captions", warm_share=0.0, trained="full", steps=60, learning_rate=0.02, label_dropout=0.0
    )
    models = []
    for name, describe in (("told", embed), ("untold", lambda texts: np.zeros((len(texts), 3), np.float32))):
        folder = tmp_path / name
        begun = session(
            folder, noise=TestNoise(b"n"), pictures=shown, touches=quiet(settings), classes=None, describe=describe
        )
        side = PublicSide(lambda: public, "facts", folder, folder / "cache", (), embed, (above, below))
        models.append(
            spectral.fit(settings, begun, IMAGE, size=40, seed=0, hardware=CPU, progress=lambda *_: None, public=side)
        )

    def heard(model: SpectralModel) -> float:
        images = drawn(model, count=60).float()
        darker_above = images[:, 0, :4].mean((1, 2)) < images[:, 0, 4:].mean((1, 2))
        return float((darker_above == (torch.arange(60) % 2 == 0)).float().mean())

    assert heard(models[0]) > 0.85
    assert heard(models[1]) < 0.7


def captioned(folder: Path, unit: str = "image", **changes: Any) -> SpectralModel:
    """A run that is told captions: picture n of the public ones has one of n + 1 letters."""
    shown = [Picture(f"{n:02}.png", one, person=f"p{n % 9}", text=("a" * (n % 3),)) for n, one in enumerate(PIXELS)]
    settings = config(condition="captions", **changes)
    begun = session(
        folder, pictures=shown, touches=touches(settings), classes=None, describe=embed, unit=unit, noise=TestNoise()
    )
    public = PublicSet(pictures(60), None, (), tuple(("x" * (n + 1),) for n in range(60)))
    side = PublicSide(lambda: public, "facts", folder, folder / "cache", (), embed, ("a", "bb"))
    return spectral.fit(settings, begun, IMAGE, size=40, seed=0, hardware=CPU, progress=lambda *_: None, public=side)


@pytest.mark.parametrize("source", ["public", "model"])
def test_the_warm_start_tells_an_image_its_own_caption(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def learn(network: Any, batches: Any, steps: int, *_: Any, **__: Any) -> Any:
        for step in range(steps):
            seen.append(next(batches))
            yield step + 1

    monkeypatch.setattr(spectral, "minimise", learn)
    model = captioned(tmp_path / "run", warm_source=source, warm_steps=6)
    tokens, told = (torch.cat(part) for part in zip(*seen, strict=True))
    if source == "model":  # thumbnails that nobody described
        assert not told.any()
        return
    number = told[:, 0].long() - 1
    means = model.public.tokenizer.thumbnail(model.public.tokenizer.encode(torch.from_numpy(pictures(60)), 1))
    assert len(number.unique()) > 5
    assert torch.equal(model.public.tokenizer.thumbnail(tokens), means[number])


@pytest.mark.parametrize("detail", ["examples", "tokens", "diffusion"])
@pytest.mark.parametrize("unit", ["image", "person"])
def test_any_detail_stage_draws_under_prompts(detail: str, unit: str, tmp_path: Path) -> None:
    model = captioned(tmp_path / "run", unit, detail=detail, sampler={"guidance": 2.0})
    images = drawn(model)
    assert images.shape == (6, 1, 8, 8)
    model.save(tmp_path / "run")
    assert torch.equal(images, drawn(SpectralModel.load(tmp_path / "run", not_private=True)))
    again = captioned(tmp_path / "run", unit, detail=detail, sampler={"guidance": 2.0})  # from what is there
    assert torch.equal(images, drawn(again))


@pytest.mark.parametrize("prompts", [[], [""], ["a", " "], ["a\nb"], "a"])
def test_prompts_that_cannot_be(prompts: Any) -> None:
    with pytest.raises(ValidationError):
        config(condition="captions", prompts=prompts)


def test_the_label_check_sees_nothing_fine() -> None:
    """What a block's mean does not tell is not in the picture that the classifier is shown."""
    tokenizer, images = known().tokenizer, torch.from_numpy(pictures(10)).clamp(20, 200)
    moved = images.clone()
    moved[:, :, 0::2, 0::2] += 20
    moved[:, :, 1::2, 1::2] -= 20
    seen, still = (tokenizer.thumbnail(tokenizer.encode(one, 1)) for one in (images, moved))
    assert seen.shape == (10, 1, 4, 4)
    assert torch.equal(seen, still)
    assert not torch.equal(seen, tokenizer.thumbnail(tokenizer.encode(images.flip(2), 1)))


def test_detail_comes_in_pieces_of_what_is_drawn_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Trial(tmp_path / "run").fit()
    whole = torch.cat(list(model.sample(torch.arange(10) % 2, 0, CPU, batch=10)))
    monkeypatch.setattr(spectral_model, "PIECE", 4)
    pieces = list(model.sample(torch.arange(10) % 2, 0, CPU, batch=10))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    assert torch.equal(torch.cat(pieces), whole)
    assert model.at_once == 400
    with torch.device("meta"):
        paper = untrained(SpectralConfig.model_validate({"preset": "paper"}), (3, 256, 256), Condition("text", 384))
    assert 10 < paper.at_once < 40  # a gigabyte
    guided = paper.config.model_copy(update={"sampler": TasteConfig(guidance=2.0)})
    assert replace(paper, config=guided).at_once == paper.at_once // 2


def test_detail_of_tokens_is_drawn_for_as_many_pictures_as_memory_holds() -> None:
    asked = SpectralConfig.model_validate({"preset": "paper", "detail": "tokens"})
    with torch.device("meta"):
        paper = untrained(asked, (3, 256, 256), Condition("text", 384))
    assert paper.public.network.length == 4 * paper.coarse.length
    assert 1 <= paper._piece == paper.at_once // 4
    assert replace(paper, config=asked.model_copy(update={"detail": "diffusion"}))._piece == spectral_model.PIECE


def test_without_a_warm_start(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run", warm_share=0.0, trained="full")
    model = trial.fit()
    assert "noisy sum of the coarse band" not in trial.stages
    assert drawn(model).shape == (6, 1, 8, 8)


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("codebooks of public images", set()),
        ("noisy sum of the coarse band", {PUBLIC_MODEL, NOTES}),
        ("warm-up on images that lie there", {PUBLIC_MODEL, NOTES}),
        ("private training", {PUBLIC_MODEL, START, NOTES}),
    ],
)
def test_killed_between_stages(stage: str, left: set[str], tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run")
    with pytest.raises(Killed):
        trial.fit(kill=stage)
    assert {file for file in (PUBLIC_MODEL, START, NOTES) if (trial.folder / file).exists()} == left
    kept = {file: (trial.folder / file).read_bytes() for file in left}
    trial.stages.clear()
    trial.fit()
    assert all((trial.folder / file).read_bytes() == content for file, content in kept.items())
    used = {name: trial.session().attempts_made(name) for name in (WARM_START, FINE_TUNING)}
    assert used == {WARM_START: 1, FINE_TUNING: 3}  # nothing is drawn twice
    if stage == "private training":
        assert set(trial.stages) == {"private training"}
        assert trial.stages.count("private training") == 2  # one step was there


def test_a_lost_beginning_is_not_made_up(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run")
    with pytest.raises(Killed):
        trial.fit(kill="private training")
    shutil.rmtree(trial.folder / "cache")
    (trial.folder / PUBLIC_MODEL).unlink()
    with pytest.raises(PrivacyRefusal, match="tokens that this run began with"):
        trial.fit()
    (trial.folder / START).unlink()
    with pytest.raises(PrivacyRefusal, match="training began with"):
        trial.fit()


def test_test_noise_is_stamped_everywhere(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run", noise=TestNoise(b"t"))
    model = trial.fit()
    model.save(trial.folder)
    assert (trial.folder / "model-NOT-PRIVATE.safetensors").exists()
    assert (trial.folder / START.replace(".", "-NOT-PRIVATE.")).exists()
    assert not (trial.folder / START).exists()
    assert not (trial.folder / NOTES).exists()


def test_the_trained_set_follows_the_budget() -> None:
    settings, sizes = config(), {"full": 3_000_000, "lora": 100_000, "head": 130_000, "norms": 20_000}

    def chosen(epsilon: float, size: int | None, **changes: Any) -> str:
        return config(**changes).trained_set(epsilon, 1e-6, size, sizes)  # type: ignore[arg-type]

    assert [chosen(epsilon, 20_000) for epsilon in (10.0, 1.0, 0.05)] == ["full", "head", "norms"]
    assert chosen(1.0, 100_000) == "full"
    assert chosen(1.0, 15_000) in ("lora", "head")
    assert chosen(1.0, 10) == "norms"
    assert chosen(1.0, 10, trained="lora") == "lora"
    assert chosen(10.0, None, batch=1000, rate_without_size=0.05) == chosen(10.0, 20_000)
    assert settings.trained == "auto"


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="shared by 5 heads"):
        config(heads=5)
    with pytest.raises(ValidationError, match="no class"):
        config(sampler={"guidance": 2.0}, label_dropout=0.0)
    with pytest.raises(ValueError, match="multiples of 8"):
        SpectralConfig().shape((3, 28, 28))
    paper = SpectralConfig.model_validate({"preset": "paper", "tokenizer": {"steps": 5}})
    assert (paper.levels, paper.tokenizer.steps, paper.tokenizer.layers) == (3, 5, 8)
    assert paper.condition == "captions"
    assert paper.shape((3, 256, 256)).tokens == 256
    assert [paper.shape((3, 256, 256)).side(scale) for scale in range(4)] == [2, 2, 4, 8]


def test_requests() -> None:
    (warm, fine) = SpectralConfig().requests(20_000, 10)
    assert (warm.name, fine.name) == (WARM_START, FINE_TUNING)
    assert (warm.share, fine.share) == (0.08, None)
    assert SpectralConfig().sampling_rate(20_000) == pytest.approx(1024 / 20_000)
    (alone,) = SpectralConfig(warm_share=0.0).requests(None, 0)
    assert alone.name == FINE_TUNING
    checked = SpectralConfig.model_validate({"check": {"share": 0.05}})
    assert [one.name for one in checked.requests(20_000, 2)] == [WARM_START, LABEL_CHECK, FINE_TUNING]
    assert [one.name for one in checked.requests(20_000, 0)] == [WARM_START, FINE_TUNING]
