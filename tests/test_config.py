"""Settings: one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.config import RunConfig, read_config, validated
from sfumato.errors import UserError
from tests.small_set import settings


def test_a_file_and_what_is_typed_on_top(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("dataset: clinic\nepsilon: 2\nprivimage: {steps: 7}\n")
    config = read_config(file, {"epsilon": 1.0, "delta": None})
    assert (config.dataset, config.epsilon, config.delta, config.privimage.steps) == ("clinic", 1.0, 1e-6, 7)


def test_what_is_typed_goes_into_a_group_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("dataset: clinic\nepsilon: 2\npublic: {fit: pad, folders: [old]}\nimage: {height: 32}\n")
    monkeypatch.chdir(tmp_path)
    config = read_config(file, {"public": {"folders": ["new"]}, "image": {"width": 16}})
    assert config.public is not None
    assert (config.public.fit, config.public.folders) == ("pad", (str(tmp_path / "new"),))
    assert (config.image.height, config.image.width) == (32, 16)
    assert read_config(file, {}).public.folders == (str(tmp_path / "old"),)  # type: ignore[union-attr]


def test_resolved_settings_are_complete_and_come_back() -> None:
    config = validated(settings())
    assert validated(config.to_json()) == config
    assert config.to_json()["privimage"]["draws"] == 1
    assert set(config.to_json()) == set(RunConfig.model_fields)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epsilon": float("nan")}, "'epsilon' cannot be nan: must be a finite number."),
        ({"epsilon": "much"}, "'epsilon' cannot be 'much'"),
        ({"method": "magic"}, "'method' cannot be 'magic'"),
        ({"unit": "family"}, "'unit' cannot be 'family'"),
        ({"public_size": 0}, "'public_size' cannot be 0"),
        ({"count": 0}, "'count' cannot be 0"),
        ({"classes": ["a", "a"]}, "named twice"),
        ({"classes": []}, "at least one"),
        ({"public": {"ground": "dark"}}, "'public.folders' is missing: give --public or"),
        ({"public": {"folders": []}}, "'public.folders' cannot be []"),
        ({"public": {"folders": ["x"], "ground": "black"}}, "'public.ground' cannot be 'black'"),
        ({"speed": 3}, "'speed' is not a setting"),
        ({"privimage": {"steps": 0}}, "'privimage.steps' cannot be 0"),
        ({"image": {"height": 27}}, "'image.height' cannot be 27"),
    ],
)
def test_mistakes_are_named(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        validated(settings(**changes))
    assert sentence in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="'epsilon' is missing: give --epsilon"):
        validated({"dataset": "a"})


@pytest.mark.parametrize("text", ["epsilon: [", "- a\n- b", "just text"])
def test_broken_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match="configuration"):
        read_config(tmp_path / "bad.yaml", {})
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path / "none.yaml", {})
