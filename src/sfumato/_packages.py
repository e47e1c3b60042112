"""Pinned files from package registries: wheels through pip, npm tarballs through the user's registry.

A file is known by its SHA-256 before it is asked for, so it does not matter who delivers it. It is only stored, never
installed, imported or built. Which registry is asked is the user's own configuration: pip's, and npm's.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sfumato._files import fsync_dir, sha256_file
from sfumato.errors import UserError

Progress = Callable[[int], None]
"""Told the bytes received so far."""

NPM_REGISTRY = "https://registry.npmjs.org/"
PIP_TIMEOUT = 3600  # seconds for a whole download
PIP_PAUSE = 0.2  # seconds between two looks at how far it is
PIP_OPTIONS = "--no-deps --only-binary :all: --require-hashes --ignore-requires-python --no-input --progress-bar off"
TIMEOUT = 60  # seconds without a byte
CHUNK = 2**18  # bytes
LONGEST_REASON = 300  # characters quoted of what others say


def pinned_wheel(
    name: str,
    version: str,
    file: str,
    sha256: str,
    max_bytes: int,
    folder: Path,
    progress: Progress = lambda received: None,
) -> Path:
    """A wheel from the user's Python package index, fetched by pip; only built wheels, without what they depend on.

    What already lies in `folder` is taken as it is, without network, if its hash is right.

    Args:
        name: project name on the index.
        version: its exact version.
        file: name of the wheel.
        sha256: of the file, 64 hexadecimal digits.
        max_bytes: pip is stopped when it has written more than this into one file.
        folder: where the file is kept; made if missing.
        progress: told how it goes.

    Returns:
        Path of the wheel in `folder`.

    Raises:
        UserError: no pip, no index in reach, or the file has another hash or is larger.
    """
    target = folder / file
    if is_published(target, sha256, max_bytes):
        return target
    with _place_beside(target) as place:
        (place / "requirements.txt").write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        fault = _pip_download(place, max_bytes, progress)
        if "DO NOT MATCH THE HASHES" in fault:
            raise UserError(
                f"Your Python package index offers a {name} {version} that is not the published file (sha256 "
                f"{sha256}); nothing was kept. Check which index pip uses: `pip config list`."
            )
        if fault or not is_published(place / file, sha256, max_bytes):
            raise UserError(
                f"The wheel {name} {version} cannot be fetched: {fault or 'pip delivers no such file'}. Check the "
                f"network and `pip config list`, {_or_offer(file)}"
            )
        return _keep(place / file, target)


def pinned_npm(
    name: str,
    version: str,
    sha256: str,
    max_bytes: int,
    folder: Path,
    progress: Progress = lambda received: None,
) -> Path:
    """The tarball of an npm package from the user's registry; npm itself is not needed.

    Args:
        name: package, with its scope if it has one.
        version: its exact version.
        sha256, max_bytes, folder, progress: as of `pinned_wheel`; the file is named as `npm pack` names it.

    Returns:
        Path of the `.tgz` in `folder`.

    Raises:
        UserError: no registry in reach, or the file has another hash or is larger.
    """
    target = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    address = f"{npm_registry(name)}{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
    return pinned_download(address, sha256, max_bytes, target, progress)


def pinned_download(
    address: str, sha256: str, max_bytes: int, target: Path, progress: Progress = lambda received: None
) -> Path:
    """A file from an http(s) address; what already lies at `target` is taken if its hash is right.

    Raises:
        UserError: the address is not http(s) or not in reach, or the file has another hash or is larger.
    """
    if is_published(target, sha256, max_bytes):
        return target
    if not address.startswith(("https://", "http://")):
        raise UserError(f"{address} is not an http or https address; check `npm config get registry`.")
    with _place_beside(target) as place:
        part = place / "part"
        received = 0
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, part.open("wb") as file:
                while data := answer.read(min(CHUNK, max_bytes + 1 - received)):
                    received += file.write(data)
                    progress(received)
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            reason = str(getattr(error, "reason", None) or error)[:LONGEST_REASON]
            raise UserError(
                f"{address} cannot be fetched: {reason}. Check the network and the registry, {_or_offer(target.name)}"
            ) from error
        if not is_published(part, sha256, max_bytes):
            raise UserError(
                f"What {address} delivers is not the published file (sha256 {sha256}, at most {max_bytes:,} bytes); "
                "nothing was kept. Check which registry is configured."
            )
        return _keep(part, target)


def is_published(path: Path, sha256: str, max_bytes: int) -> bool:
    """Whether a file is there and is the one known by its hash.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.is_file() and path.stat().st_size <= max_bytes and sha256_file(path) == sha256
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error


def npm_registry(name: str, environment: Mapping[str, str] | None = None) -> str:
    """The registry that npm would ask for a package, with a slash at its end.

    In this order: the scope's own registry in the user's `.npmrc`, the variable `npm_config_registry` (in any case),
    `registry` in `.npmrc`, npm's public registry. Credentials are neither read nor sent.
    """
    environment = os.environ if environment is None else environment
    variables = {key.lower(): value for key, value in environment.items() if value}
    home = environment.get("HOME") or os.path.expanduser("~")
    settings: dict[str, str] = {}
    try:
        lines = Path(variables.get("npm_config_userconfig") or f"{home}/.npmrc").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for line in lines:
        key, equals, value = line.partition("=")
        if equals and not key.lstrip().startswith(("#", ";")):
            value = re.sub(r"\$\{([^}]+)\}", lambda match: environment.get(match[1], match[0]), value)
            settings[key.strip()] = value.strip().strip("\"'")
    scope = f"{name.partition('/')[0]}:registry" if name.startswith("@") else ""
    address = settings.get(scope) or variables.get("npm_config_registry") or settings.get("registry") or NPM_REGISTRY
    return address.rstrip("/") + "/"


def limit_file_size(process: int, max_bytes: int) -> None:
    """Keeps a just started process of ours from growing any file above `max_bytes`: no registry can fill the disk."""
    with contextlib.suppress(ProcessLookupError):  # it is done already
        resource.prlimit(process, resource.RLIMIT_FSIZE, (max_bytes, max_bytes))


def _or_offer(file: str) -> str:
    return f"or put {file} into a folder and give that with --archives (data sets) or --from (models)."


@contextlib.contextmanager
def _place_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the file system that a file is to be kept on."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as place:
            yield Path(place)
    except OSError as error:
        raise UserError(f"{target.parent} cannot be written to ({error.strerror}).") from error


def _keep(path: Path, target: Path) -> Path:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(path, target)
    fsync_dir(target.parent)
    return target


def _pip_download(folder: Path, max_bytes: int, progress: Progress) -> str:
    """Runs `pip download` for `requirements.txt` in a folder; what went wrong, in pip's words, or ''."""
    command = [sys.executable, "-P", "-m", "pip", "download", *PIP_OPTIONS.split(), "--dest", str(folder)]
    environment = {"LC_ALL": "C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1"}
    try:
        with subprocess.Popen(
            [*command, "--requirement", str(folder / "requirements.txt")],
            env=os.environ | environment | {"TMPDIR": str(folder)},  # where its growing files are the progress
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            limit_file_size(process.pid, max_bytes)
            try:
                said = _end_of(process, lambda: progress(_largest(folder)))
            except BaseException:
                process.kill()
                raise
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"pip does not run or hangs ({type(error).__name__})"
    if process.returncode == 0:
        return ""
    if "No module named pip" in said:
        return f"{sys.executable} has no pip (`python -m ensurepip` installs it)"
    if "DO NOT MATCH THE HASHES" in said:
        return "DO NOT MATCH THE HASHES"
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if re.match(r"ERROR: |\w+Error: ", line)]
    return errors[-1][:LONGEST_REASON].rstrip(". ") if errors else f"pip ends with code {process.returncode}"


def _end_of(process: subprocess.Popen[str], meanwhile: Callable[[], None]) -> str:
    """What a process has said on standard error when it has ended."""
    deadline = time.monotonic() + PIP_TIMEOUT
    while True:
        try:
            return process.communicate(timeout=PIP_PAUSE)[1]
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise
            meanwhile()


def _largest(folder: Path) -> int:
    """Bytes of the largest file below a folder that another process is writing to."""
    size = 0
    with contextlib.suppress(OSError):  # something is gone again
        for path in folder.rglob("*"):
            size = max(size, path.stat().st_size if path.is_file() else 0)
    return size
