"""The wheel, in an environment of its own outside the tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import yaml
from tests.small_set import SMALL, draw_folder

ROOT = Path(__file__).parents[2]


def test_the_wheel_does_the_main_job(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    wheel = next(tmp_path.glob("*.whl"))
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    # Third-party packages come from the environment of the tests; Sfumato itself only from the wheel, since .pth files
    # of a folder that is named in a .pth file are not followed.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*words: object) -> str:
        command = [str(word) for word in words]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = run(python, "-c", "import sfumato; print(sfumato.__file__)").strip()
    assert Path(where).is_relative_to(tmp_path / "env")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"image": {"height": 16, "width": 16}, "privimage": SMALL}))
    command = tmp_path / "env" / "bin" / "sfumato"
    draw_folder(tmp_path / "private", 30)
    run(
        *(command, "synthesize", "private", "release", "--dataset", "wheel", "--epsilon", 5, "--count", 4),
        *("--config", "c.yaml"),
    )
    assert "ok" in run(command, "verify", "release")
