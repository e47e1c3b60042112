"""What is written for tiles of AMX, tested with tiles in software (`tests/amx.hpp`) where the processor has none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato
from sfumato._compiled import digest
from sfumato.nets import compiled
from sfumato.privacy.gradients import kernels

TESTS = Path(__file__).parents[2]
PACKAGE = Path(sfumato.__file__).parent
OPTIONS = ("-std=c++17", "-shared", "-fPIC", "-w", "-include", str(TESTS / "amx.hpp"))
FILES = (
    *(f"privacy/gradients/test_{name}.py" for name in ("kernels", "kernels_linear", "engine", "engine_bounds")),
    "nets/test_attention.py",
)
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(kernels.level() == 2, reason="the other tests run on real tiles here")
@pytest.mark.skipif(kernels.level() < 1, reason="code for tiles needs AVX512-BF16 as well")
@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("optimised", ["-O3", "-O2"])
def test_code_for_tiles_passes_all_tests_on_tiles_in_software(optimised: str, tmp_path: Path) -> None:
    """Rounding, groups, bounds and fences of the AMX level, on tiles that end the program if they are misused.

    Built as it is shipped, and with less optimisation: GCC 12 once dropped the mask that rounds weights in one of them.
    """
    copy = shutil.copytree(PACKAGE, tmp_path / "sfumato", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for module in (compiled, kernels):
        folder = copy / Path(module.__file__ or "").parent.relative_to(PACKAGE)
        into = (f'-DSOURCES="{digest(folder)}"', "-o", str(folder / "_kernels.so"), *map(str, folder.glob("*.cpp")))
        subprocess.run([str(COMPILER), optimised, *OPTIONS, *into], check=True)

    # Ids of tests name their level; what is about groups of records is run at all levels, `library` asks the processor.
    chosen = ("-k", "(amx or group) and not library", "-p", "no:xdist", "-p", "no:cacheprovider", "-q")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "SFUMATO_KERNELS": "amx"}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, *(str(TESTS / name) for name in FILES)],
        cwd=tmp_path,
        env={name: value for name, value in environment.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > 200, ran.stdout[-500:]
