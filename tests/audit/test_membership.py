"""Attacks on releases: copies are found, an honest release is not accused, and looks come first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from tests.measure.lines import folder_of, pictures
from tests.test_evaluation import release_of
from typer.testing import CliRunner

from sfumato.audit import membership
from sfumato.audit.membership import attack_release, attacked
from sfumato.cli_audit import audit_app
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.privacy.ledger import Cap, Ledger


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger.open("lines")
    ledger.set_cap(Cap(1.0, 1e-6))
    return ledger


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    return {name: folder_of(tmp_path / name, 120, seed) for name, seed in (("private", 1), ("holdout", 2))}


def attack(release: Path, places: dict[str, Path], ledger: Ledger, out: Path, **options: Any) -> dict[str, Any]:
    return attack_release(
        release,
        places["private"],
        places["holdout"],
        ledger=ledger,
        run_folder=out,
        out=out,
        embedder="pixels",
        **options,
    )


def test_copies_are_found_and_an_honest_release_is_not_accused(
    places: dict[str, Path], ledger: Ledger, tmp_path: Path
) -> None:
    copies = release_of(tmp_path / "copies", ledger, *pictures(120, 1))
    found = attack(copies, places, ledger, tmp_path / "a")
    (one,) = found["attacks"]
    assert one["exceeds"]
    assert one["area"] == 1
    assert one["found"] == 1
    assert found["memorisation"] == {
        "generated": 120, "images_of_each": 120, "copies_of_private": 120, "copies_of_holdout": 0, "exact_copies": 120,
    }  # fmt: skip
    assert json.loads((tmp_path / "a" / "attack.json").read_text()) == found
    assert (tmp_path / "a" / "attack.json").stat().st_mode & 0o777 == 0o600
    assert "INTERNAL" in found["notice"]

    honest = release_of(tmp_path / "honest", ledger, *pictures(60, 0))
    found = attack(honest, places, ledger, tmp_path / "b")
    (one,) = found["attacks"]
    assert not one["exceeds"]
    assert 0.35 < one["area"] < 0.65
    assert found["memorisation"]["exact_copies"] == 0


def test_looks_are_on_the_ledger_before_a_file_is_opened(
    places: dict[str, Path], ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = release_of(tmp_path / "release", ledger, *pictures(60, 0))

    def watched(*_: object) -> Any:
        assert ledger.looks() == 2
        raise RuntimeError("a crash")

    monkeypatch.setattr(membership, "read_images", watched)
    with pytest.raises(RuntimeError):
        attack(release, places, ledger, tmp_path / "in")
    assert ledger.looks() == 2


def test_what_is_refused_leaves_no_look(places: dict[str, Path], ledger: Ledger, tmp_path: Path) -> None:
    release = release_of(tmp_path / "release", ledger, *pictures(60, 0))
    with pytest.raises(UserError, match="--images"):
        attack(release, places, ledger, tmp_path / "in", images=5)
    other = Ledger.open("others")
    other.set_cap(Cap(1.0, 1e-6))
    with pytest.raises(UserError, match="not the one"):
        attack(release, places, other, tmp_path / "in")
    (release / "DONE").unlink()
    with pytest.raises(PrivacyRefusal, match="finished"):
        attack(release, places, ledger, tmp_path / "in")
    assert ledger.looks() == other.looks() == 0


def test_thresholds_are_fixed_on_images_that_are_not_judged() -> None:
    random = np.random.default_rng(0)
    found = attacked("x", random.standard_normal(2000) + 3, random.standard_normal(2000), lambda rate: 1.1 * rate)
    assert abs(found.false_alarms - 0.05) < 0.03
    assert 0.85 < found.found_at_least < found.found < 0.95
    assert found.exceeds
    blind = attacked("x", random.standard_normal(2000), random.standard_normal(2000), lambda rate: 1.1 * rate)
    assert not blind.exceeds
    assert abs(blind.area - 0.5) < 0.03


def test_the_commands(places: dict[str, Path], ledger: Ledger, tmp_path: Path) -> None:
    release = release_of(tmp_path / "release", ledger, *pictures(60, 0))
    app = typer.Typer()
    app.add_typer(audit_app, name="audit")
    words = ["audit", "release", str(release), "--private", str(places["private"]), "--holdout", str(places["holdout"])]
    words += ["--dataset", "lines", "--embedder", "pixels", "--out", str(tmp_path / "in")]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, PrivacyRefusal)
    assert ledger.looks() == 0
    told = CliRunner().invoke(app, [*words, "--look"])
    assert told.exit_code == 0, told.output
    assert "who was in it?" in told.output
    printed = CliRunner().invoke(app, [*words, "--look", "--json"])
    assert json.loads(printed.stdout)["release_id"] == "5eed5eed5eed5eed"
    for command in ("core", "release"):
        help_text = CliRunner().invoke(app, ["audit", command, "--help"]).output
        assert f"sfumato audit {command}" in help_text
    bad = CliRunner().invoke(app, ["audit", "core", "--epsilon", "one"])
    assert isinstance(bad.exception, UserError)
