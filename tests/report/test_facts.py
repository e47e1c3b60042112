"""What a real run tells of itself, and the wall between what may be published and what may not."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.given import Page, facts
from tests.small_set import draw_folder, plan_of, settings

from sfumato import run
from sfumato.config import validated
from sfumato.data.release import verify_release
from sfumato.errors import UserError
from sfumato.evaluation import evaluate_release
from sfumato.measure import recipes
from sfumato.report.facts import AUDITS, Curve, InternalFacts, ReleaseFacts, RunFacts, shown
from sfumato.report.render import render_report, write_internal

LISTED, UNLISTED, UNREADABLE = 131, 107, 103  # images of each sort: numbers that nothing else has
SECRET_CLASS = "osteosarcoma"
LOSS, BOUND = 0.73519, 1.93127


def fill(folder: Path) -> Path:
    """Private images whose names, class and numbers tell something."""
    draw_folder(folder, LISTED)
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(path.with_name(f"mrs-miller-{number:04}.png"))
    for number, path in enumerate(sorted(draw_folder(folder / "x", UNLISTED).rglob("*.png"))):
        (folder / SECRET_CLASS).mkdir(exist_ok=True)
        path.rename(folder / SECRET_CLASS / f"mr-jones-{number:04}.png")
    for number in range(UNREADABLE):
        (folder / "disc" / f"torn-{number:04}.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return folder


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, run.Run]]:
    """A release and its run: trained, released, measured, with losses and an audit beside it."""
    place = tmp_path_factory.mktemp("told")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_HOME", str(place / "home"))
        patch.setattr(recipes, "LEAST", 500)  # steps of a classifier
        config = validated(settings(count=30, ledger=str(place / "ledger.jsonl")))
        private = fill(place / "clinic")
        begun = run.prepare(config, private, place / "out", place / "out.run", plan_of(config))
        out = run.finish(begun)
        assert out is not None
        assert (begun.folder / "internal.html").exists()
        evaluate_release(
            out,
            private,
            draw_folder(place / "holdout", 61),
            ledger=begun.ledger,
            out=begun.folder,
            embedders=["pixels"],
            classifiers=["logistic"],
            device="cpu",
        )
        lines = [{"stage": "pretraining", "step": step, "loss": LOSS / step} for step in (1, 2)]
        (begun.folder / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
        for name in AUDITS:
            (begun.folder / name).write_text(json.dumps({"memorised": {"lower bound": BOUND}}))
        write_internal(begun.folder, out)
        yield out, begun


def texts(release: Path) -> dict[str, str]:
    """The files of a release that are no images, without pictures and random names, in which any digits may be."""
    found = {}
    for path in release.rglob("*"):
        if path.is_file() and path.suffix != ".png":
            text = re.sub(r"data:image/png;base64,[\w+/=]+", "", path.read_text())
            found[path.name] = re.sub(r"(?<![.\w])[0-9a-f]{16,64}\b", "", text)
    return found


def figures(value: Any) -> Iterator[float]:
    """All exact measurements in a nested result: numbers that are not whole."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from figures(part)
    elif isinstance(value, float) and value != round(value, 3):
        yield value


def written(value: float) -> set[str]:
    """Ways in which a page may write a measurement."""
    ways = {repr(value), f"{value:.4g}", f"{value:.3f}", f"{100 * value:.2f}"}
    return {way for way in ways if len(re.sub(r"\D", "", way).lstrip("0")) >= 4}


def test_no_private_value_is_anywhere_in_the_release(told: tuple[Path, run.Run]) -> None:
    out, begun = told
    pages, measured = texts(out), json.loads((begun.folder / "evaluation.json").read_text())
    assert pages.keys() == {
        *("README.md", "croissant.json", "metadata.jsonl", "privacy.json", "report.html", "MANIFEST.sha256", "DONE")
    }
    assert len([*out.rglob("*.png")]) == len([*(out / "images").rglob("*.png")]) == 30
    names = ["miller", "jones", "torn-", SECRET_CLASS, "clinic", str(begun.folder.parent), "pretraining", "memorised"]
    numbers = {str(number) for number in (LISTED, UNLISTED, UNREADABLE, LISTED + UNLISTED + UNREADABLE, 61)}
    exact = [*figures(measured["distances"]), *figures(measured["classifiers"])]
    assert len(exact) > 20
    numbers |= {way for value in [*exact, LOSS, LOSS / 2, BOUND] for way in written(value)}
    number = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, sorted(numbers)))})(?![\w]|\.\d)")
    for page, text in pages.items():
        assert not [name for name in names if name in text], page
        assert number.findall(text) == [], page
    raw = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for secret in (begun.run_id, begun.facts["key"], begun.ledger.fingerprint(begun.run_id)):
        assert secret.encode() not in raw
    assert verify_release(out) == []


def test_all_of_it_is_on_the_internal_page(told: tuple[Path, run.Run]) -> None:
    out, begun = told
    path = begun.folder / "internal.html"
    assert path.stat().st_mode & 0o777 == 0o600
    page = Page(path.read_text())
    assert page.open == []
    measured = json.loads((begun.folder / "evaluation.json").read_text())["distances"]["pixels"]
    for words in (
        *("INTERNAL", "small", str(UNREADABLE), str(UNLISTED), str(LISTED + UNLISTED + UNREADABLE)),
        *("pretraining", "from 0.7352 to 0.3676", "1.931", *AUDITS.values(), "warm start", "fine-tuning"),
        *(f"{measured[side]['frechet']['distance']:.4g}" for side in ("release", "reference")),
        json.loads((out / "privacy.json").read_text())["release_id"],
    ):
        assert words in page.text, words
    assert begun.facts["key"] not in path.read_text()
    neighbours = (begun.folder / "neighbours.png").read_bytes()
    assert base64.b64encode(neighbours).decode() in path.read_text()


def test_the_report_follows_from_the_release_alone(told: tuple[Path, run.Run]) -> None:
    out, begun = told
    html = (out / "report.html").read_text()
    picture = re.search(r'src="data:image/png;base64,([^"]+)" alt="Contact sheet of synthetic images: (.*?)\."', html)
    assert picture is not None
    read = RunFacts.gather(out, begun.folder).release
    assert render_report(read, base64.b64decode(picture[1]), picture[2]) == html
    assert read.counts == {"bars": 10, "disc": 10, "ring": 10}
    assert read.shape == (1, 16, 16)


def test_the_budget_is_that_of_the_plan(told: tuple[Path, run.Run]) -> None:
    out, begun = told
    budget = ReleaseFacts.read(out).budget
    assert {one.name: one.share for one in budget} == begun.plan.shares()
    assert [(one.name, one.bought, one.used) for one in budget] == [("warm start", 2, 1), ("fine-tuning", 5, 5)]
    assert [one.noise for one in budget] == [touch.noise_multiplier for touch in begun.plan.touches]


def test_only_a_release_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a release"):
        RunFacts.gather(tmp_path, tmp_path)
    assert InternalFacts.read(tmp_path) == InternalFacts()


def test_broken_files_tell_nothing(tmp_path: Path) -> None:
    for name in ("config.json", "intake.json", "evaluation.json", "audit.json", "attack.json"):
        (tmp_path / name).write_text("[1")
    (tmp_path / "progress.jsonl").write_text(
        '{"time": 100, "stage": "a", "done": 1, "of": 4}\n5\n{"time": 160, "stage": "a", "done": 4, "of": 4}\n{"time"'
    )
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": "x", "loss": 1}\n')
    found = InternalFacts.read(tmp_path)
    assert found == InternalFacts(progress=(Curve("a", [(0.0, 25.0), (1.0, 100.0)]),))


def test_what_has_a_place_of_its_own_is_not_among_the_sentences() -> None:
    assert facts().guarantee == ["One.", "Two."]
    assert facts(statement={"attacker": None}).guarantee == ["One.", "In figures: x.", "Two."]
    assert "Not covered: A. B." in facts(statement={"not_covered": []}).guarantee


def test_a_budget_without_shares_is_not_drawn() -> None:
    assert facts(statement={"declared": {}}).budget == []
    assert [one.what for one in facts().budget] == ["noisy histogram", "noisy sum", "private training"]


@given(st.floats(1e-300, 1e300))
def test_a_parameter_is_never_shown_smaller_than_it_is(value: float) -> None:
    text = shown(value)
    assert Decimal(text) >= Decimal(repr(value))
    assert float(text) <= value * (1 + 1.0001e-5)
    assert float(shown(float(text))) == float(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (10, "10"), (0.98765, "0.98765"), (0.12345678, "0.123457"), (1e-6, "1e-6"), (100_000.0, "100000")],
)
def test_parameters_look_as_people_write_them(value: float, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("alarm", "power", "words"),
    [(0.05, 0.13201, ("5", "13.3")), (0.05, 0.132, ("5", "13.2")), (0.01, 0.99999, ("1", "100"))],
)
def test_the_attackers_power_is_rounded_up(alarm: float, power: float, words: tuple[str, str]) -> None:
    assert facts(statement={"attacker": {"false_alarm": alarm, "most_recognised": power}}).attacker == words
