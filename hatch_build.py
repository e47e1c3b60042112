"""Compiles the kernels of the gradient engine and the networks where there is a C++ compiler; both do without."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = (Path("src/sfumato/privacy/gradients"), Path("src/sfumato/nets"))
LIBRARY = "_kernels.so"
# Processor features are asked for function by function and chosen at run time, so there is no -march here. GCC warns of
# uninitialised values inside its own intrinsics.
OPTIONS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-Wno-uninitialized", "-Wno-maybe-uninitialized")


class Kernels(BuildHookInterface[Any]):
    """Puts a compiled library beside the code that loads it, in each folder that has sources (`sfumato._compiled`)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles; on failure says so and goes on."""
        if self.target_name != "wheel":
            return
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            self.app.display_warning("No C++ compiler: private training will run without compiled kernels.")
            return
        built = [folder for folder in FOLDERS if self._compile(compiler, folder)]
        if built and version != "editable":
            # Plain C, no Python headers: one wheel for all Python versions of a platform.
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].extend(str(folder / LIBRARY) for folder in built)

    def _compile(self, compiler: str, name: Path) -> bool:
        """Whether the sources in a folder became a library."""
        folder = Path(self.root) / name
        fresh = folder / f"{LIBRARY}.new"
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(folder.glob("*.?pp")))).hexdigest()
        options = (*OPTIONS, f'-DSOURCES="{digest}"')  # so that a library of other sources is not loaded
        command = [*compiler.split(), *options, "-o", str(fresh), *map(str, sorted(folder.glob("*.cpp")))]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
            self.app.display_warning(f"The kernels in {name} do not compile, so training will be slower: {reason}")
            return False
        fresh.replace(folder / LIBRARY)  # a process that has the old one open keeps it
        return True
