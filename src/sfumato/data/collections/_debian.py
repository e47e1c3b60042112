"""Debian packages, pinned or signed, fetched without root and never installed.

A package is taken if its SHA-256 is the pinned one, wherever it comes from. Debian releases carry different versions
under one name, so another version is taken too, but only from apt, which has checked it against the signed lists of the
machine's own archives; `authenticated` says which of the two it was. Anything else is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato._files import sha256_file
from sfumato._packages import is_published, limit_file_size, pinned_download
from sfumato.data.collections._folder import Package
from sfumato.errors import UserError

POOL = "https://deb.debian.org/debian/pool/main"
MAX_FILE = 2**29  # bytes; apt may not write a larger one, be it a package, a list or its cache
TIMEOUT = 1800  # seconds for one call of apt-get
# Everything apt writes goes to a folder of ours, so neither root nor the machine's package lists are needed; which
# archives to trust is read from the machine, but never that unsigned ones will do. The machine's hooks are not run:
# they would tidy the machine's own caches.
APT_CONFIGURATION = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
APT::Get::List-Cleanup "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
"""


class Unavailable(Exception):  # noqa: N818 - one source has nothing, the next one is asked
    """Why a source does not deliver; part of the error when none does."""


@dataclass(frozen=True)
class Deb:
    """A Debian package as we know it.

    Attributes:
        name: of the package.
        version: without epoch, as in the file's name.
        source: the source package, which names the folder of the archive.
        sha256: of the `.deb`.
        max_bytes: no version may be larger.
    """

    name: str
    version: str
    source: str
    sha256: str
    max_bytes: int

    @property
    def address(self) -> str:
        return f"{POOL}/{self.source[0]}/{self.source}/{self.name}_{self.version}_all.deb"


def fetch_debs(pins: Sequence[Deb], folder: Path) -> list[Package]:
    """Packages from `folder`, else from apt, else (the pinned version only) from Debian's public archive.

    Args:
        pins: the packages.
        folder: where they are kept; made if missing. A file there is taken only if its hash is pinned.

    Returns:
        The packages, in the order of `pins`.

    Raises:
        UserError: one of them cannot be had from anywhere.
    """
    found = {pin.name: package for pin in pins if (package := _held(pin, folder)) is not None}
    missing = [pin for pin in pins if pin.name not in found]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "apt-get delivers other content"
        try:
            found |= {package.name: package for package in _from_apt(missing, folder)}
        except Unavailable as error:
            reason = str(error)
        for pin in missing:
            if pin.name not in found:
                found[pin.name] = _from_pool(pin, folder, reason)
    return [found[pin.name] for pin in pins]


def _held(pin: Deb, folder: Path) -> Package | None:
    for path in sorted(folder.glob(f"{pin.name}_*.deb")):
        if is_published(path, pin.sha256, pin.max_bytes):
            return Package("debian", pin.name, pin.version, pin.sha256, "pinned SHA-256", path)
    return None


def _from_apt(pins: Sequence[Deb], folder: Path) -> list[Package]:
    """Those of the packages that apt delivers, whatever their versions."""
    packages = []
    with tempfile.TemporaryDirectory(prefix="sfumato-apt-") as temporary:
        delivered = apt_download([pin.name for pin in pins], Path(temporary))
        for pin in pins:
            path = delivered.get(pin.name)
            if path is not None and path.stat().st_size <= pin.max_bytes:
                sha256 = sha256_file(path)
                if sha256 != pin.sha256 and not _all_signed(Path(temporary) / "state/lists"):
                    continue
                version = re.sub(r"^[0-9]+%3a", "", path.name.split("_")[1], flags=re.IGNORECASE)
                how = "pinned SHA-256" if sha256 == pin.sha256 else "signature of the archive, checked by apt"
                kept = Path(shutil.move(path, folder / path.name))
                packages.append(Package("debian", pin.name, version, sha256, how, kept))
    return packages


def _all_signed(lists: Path) -> bool:
    """Whether every list of packages belongs to a signed archive: `[trusted=yes]` in a sources list is not enough."""
    names = [path.name for path in lists.iterdir() if path.is_file()]
    signed = tuple(
        re.sub(r"(InRelease|Release\.gpg)$", "", name) for name in names if re.search(r"(InRelease|gpg)$", name)
    )
    return all(name.startswith(signed) for name in names if re.search(r"_Packages(\.\w+)?$", name))


def apt_download(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Packages downloaded by apt, which checks the archives' signatures.

    Args:
        names: of the packages.
        folder: an empty folder for everything that apt writes.

    Returns:
        The `.deb` files inside `folder` by package name; a package that apt does not have is not among them.

    Raises:
        Unavailable: there is no apt-get here, or it hangs.
    """
    apt = shutil.which("apt-get")
    if apt is None:
        raise Unavailable("there is no apt-get here")
    folder.chmod(0o755)  # started by root, apt downloads as another user
    for part in ("state/lists/partial", "cache/archives/partial", "log", "package"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "apt.conf").write_text(APT_CONFIGURATION.format(folder=folder))
    package = folder / "package"
    command = [apt, "-q", "-c", str(folder / "apt.conf")]
    run_apt([*command, "update"], package)
    run_apt([*command, "download", *names], package)
    if len(names) > 1 and not any(package.iterdir()):  # apt-get gives up on all when one is unknown
        for name in names:
            run_apt([*command, "download", name], package)
    return {path.name.partition("_")[0]: path for path in sorted(package.glob("*.deb"))}


def run_apt(command: list[str], folder: Path) -> None:
    """Runs apt-get silently. Its exit code says little (one dead mirror of many is an error): the package decides."""
    quiet = subprocess.DEVNULL
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        with subprocess.Popen(command, cwd=folder, env=environment, stdin=quiet, stdout=quiet, stderr=quiet) as process:
            limit_file_size(process.pid, MAX_FILE)
            try:
                process.wait(TIMEOUT)
            except BaseException:
                process.kill()
                raise
    except (OSError, subprocess.TimeoutExpired):
        raise Unavailable("apt-get does not run or hangs") from None


def _from_pool(pin: Deb, folder: Path, reason: str) -> Package:
    target = folder / pin.address.rpartition("/")[2]
    try:
        path = pinned_download(pin.address, pin.sha256, pin.max_bytes, target)
    except UserError as error:
        raise UserError(f"The Debian package {pin.name} cannot be fetched: {reason}, and {error}") from error
    return Package("debian", pin.name, pin.version, pin.sha256, "pinned SHA-256", path)
