"""The commands, as typed: each mistake is one clear sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sfumato import cli
from sfumato.errors import PrivacyRefusal, SfumatoError, UserError
from tests.small_set import SMALL, draw_folder

ROOT = Path(__file__).parents[1]
COMMANDS = ["synthesize", "forecast", "resume", "sample", "verify", "evaluate", "clean", "ledger", "data", "models"]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("private"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"image": {"height": 16, "width": 16}, "privimage": SMALL}))
    return file


def typed(*words: object) -> str:
    """Runs a command in this process; what it raises, it raises here."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False, standalone_mode=False)
    return result.stdout


def shell(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own."""
    command = [sys.executable, "-m", "sfumato", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)  # type: ignore[call-overload,no-any-return]


BUDGET = ("--dataset", "cli", "--epsilon", 8, "--delta", 1e-5, "--public-size", 90, "--count", 6)


def test_help_names_what_works_and_answers_quickly() -> None:
    shell("--help")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = shell("--help").stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(command in text for command in COMMANDS)
    # Processor seconds: what it takes on a machine that does nothing else, whatever this one does beside.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, sfumato.cli; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["synthesize", "forecast", "resume", "sample", "verify", "clean"])
def test_help_has_an_example(command: str) -> None:
    assert f"sfumato {command}" in typed(command, "--help")


def test_the_main_job_and_what_follows(private: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "release"
    words = ("synthesize", private, out, *BUDGET, "--classes-are-public", "--config", config)
    made = json.loads(typed(*words, "--json"))
    assert made["release"] == str(out)
    assert 0 < made["epsilon"] <= 8
    assert "differential privacy" in made["statement"]
    checked = json.loads(typed("verify", out, "--dataset", "cli", "--json"))
    assert checked["ok"]
    assert len(checked["checked"]) == 3
    shown = json.loads(typed("ledger", "show", "cli", "--json"))
    assert shown["spent"]["epsilon"] == made["epsilon"]
    typed("sample", tmp_path / "release.run", tmp_path / "more", "-n", 7)
    assert len(list((tmp_path / "more").rglob("*.png"))) == 7
    assert json.loads(typed("ledger", "show", "cli", "--json"))["spent"] == shown["spent"]
    assert "whole" in typed("ledger", "verify", "cli", "--against", out)
    assert "release" in typed("resume", tmp_path / "release.run")
    assert "stay" in typed("clean", tmp_path / "release.run")
    with pytest.raises(PrivacyRefusal, match="cap"):
        typed("synthesize", private, tmp_path / "second", *BUDGET, "--classes", "bars,disc,ring", "--config", config)
    assert not (tmp_path / "second").exists()


def test_public_images_come_first(private: Path, config: Path, tmp_path: Path) -> None:
    public = draw_folder(tmp_path / "public", 30)
    settings = yaml.safe_load(config.read_text())
    settings["privimage"] |= {"semantic": {"votes": 1, "steps": 5}, "pretraining": {"steps": 2, "batch": 8}}
    config.write_text(yaml.safe_dump(settings))
    words = (private, tmp_path / "out", *BUDGET, "--public", public, "--public-ground", "dark", "--config", config)
    found = json.loads(typed("forecast", *words, "--json"))
    assert "semantic query" in found["shares"]
    made = json.loads(typed("synthesize", *words, "--json"))
    assert "30 public images" in made["statement"]
    assert str(tmp_path / "out.run" / "selection.png") in typed("resume", tmp_path / "out.run")
    kept = json.loads((tmp_path / "out.run" / "config.json").read_text())["public"]
    assert kept == {"folders": [str(public)], "ground": "dark", "fit": None}
    for command in ("forecast", "synthesize"):
        with pytest.raises(UserError, match="overlap"):
            typed(command, private, tmp_path / "b", *BUDGET, "--public", private / "bars", "--config", config)


def test_a_spoilt_release_is_found(private: Path, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "release"
    typed("synthesize", private, out, *BUDGET, "--config", config)
    statement = json.loads((out / "privacy.json").read_text())
    (out / "privacy.json").write_text(json.dumps(statement | {"epsilon": 1.0}))
    result = CliRunner().invoke(cli.app, ["verify", str(out)])
    assert result.exit_code == 1
    assert "PROBLEM" in result.stdout
    assert "more than the 1 that is stated" in result.stdout


def test_forecast_opens_no_file(config: Path, tmp_path: Path, private: Path) -> None:
    words = ("forecast", private, *BUDGET, "--config", config, "--classes", "a,b")
    private.chmod(0o000)
    try:
        found = json.loads(typed(*words, "--json"))
        text = typed(*words)
    finally:
        private.chmod(0o700)
    assert found["plan"]["touches"][1]["noise_multiplier"] > 0
    assert found["parameters"] > 0
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert "trained parameters" in text
    assert not list(tmp_path.glob("*.run"))


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (["--epsilon", 0], UserError, "epsilon"),
        (["--epsilon", -1], UserError, "epsilon"),
        (["--epsilon", "nan"], UserError, "finite"),
        (["--epsilon", 1e9], UserError, "100"),
        (["--delta", 0], UserError, "delta"),
        (["--delta", 1], UserError, "delta"),
        (["--delta", 1e-15], UserError, "1e-12"),
        (["--delta", 0.5], UserError, "delta"),
        (["--public-size", 0], UserError, "public_size"),
        (["--dataset", "../x"], UserError, "data set name"),
        (["--size", "big"], UserError, "height x width"),
        (["--classes", "a,a"], UserError, "twice"),
        (["--classes", "a", "--classes-are-public"], UserError, "not both"),
    ],
)
def test_wrong_arguments(
    words: list[object], error: type[SfumatoError], sentence: str, private: Path, config: Path, tmp_path: Path
) -> None:
    given = [word for pair in zip(BUDGET[::2], BUDGET[1::2], strict=True) if pair[0] != words[0] for word in pair]
    with pytest.raises(error, match=sentence) as caught:
        typed("synthesize", private, tmp_path / "out", *given, *words, "--config", config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


@pytest.mark.parametrize("words", [["--method", "magic"], ["--unit", "family"], ["--epsilon", "much"]])
def test_words_that_no_option_has(words: list[str], private: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["synthesize", str(private), str(tmp_path / "out"), *words])
    assert result.exit_code == 2
    assert words[0] in result.output


def test_errors_of_a_real_process_are_one_sentence(tmp_path: Path) -> None:
    result = shell("synthesize", tmp_path / "none", tmp_path / "out", *BUDGET)
    assert result.returncode == UserError.exit_code
    assert result.stdout == ""
    assert result.stderr.strip().count("\n") == 0
    assert "does not exist" in result.stderr


def test_an_empty_folder_and_a_class_that_does_not_exist(private: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        typed("synthesize", tmp_path / "empty", tmp_path / "a", *BUDGET, "--config", config)
    typed("synthesize", private, tmp_path / "b", *BUDGET, "--classes", "bars,unicorn", "--config", config)
    found = json.loads((tmp_path / "b.run" / "intake.json").read_text())
    assert found["unlisted"] == 60  # known inside, told to nobody: the classes are what was declared
    assert "unicorn" in (tmp_path / "b" / "metadata.jsonl").read_text()


def test_a_place_that_cannot_be_written(private: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        typed("synthesize", private, tmp_path / "file" / "out", *BUDGET, "--config", config)


def test_a_full_disk_is_one_sentence_and_loses_nothing(private: Path, config: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: the checkpoint cannot be written, and later it can."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); from sfumato.cli import main; main()"
    )
    words = ["synthesize", private, tmp_path / "out", *BUDGET, "--config", config]
    failed = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False, env=os.environ
    )
    assert failed.returncode == UserError.exit_code, failed.stderr
    assert "nothing that was spent is lost" in failed.stderr
    assert "Traceback" not in failed.stderr
    typed("resume", tmp_path / "out.run")
    assert (tmp_path / "out" / "DONE").exists()


def test_ledger_commands(tmp_path: Path) -> None:
    typed("ledger", "cap", "museum", "--epsilon", 2, "--delta", 1e-5)
    typed("ledger", "import", "museum", "--epsilon", 0.5, "--delta", 1e-6, "--description", "survey")
    shown = json.loads(typed("ledger", "show", "museum", "--json"))
    assert shown["cap"] == {"epsilon": 2.0, "delta": 1e-5, "filter": "sum"}
    assert shown["spent"] == {"epsilon": 0.5, "delta": 1e-6}
    with pytest.raises(PrivacyRefusal):
        typed("ledger", "cap", "museum", "--epsilon", 0.1, "--delta", 1e-5)
    with pytest.raises(UserError, match="Nothing was ever spent"):
        typed("ledger", "show", "unknown")


def test_data_list() -> None:
    assert "fashion-mnist" in typed("data", "list")
