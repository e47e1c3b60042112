from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.archives import ar, deb, sha256, tar

from sfumato.data.collections import _debian
from sfumato.data.collections._debian import Deb, Unavailable, apt_download, fetch_debs
from sfumato.errors import UserError

PACKAGE = ar(
    ("debian-binary", b"2.0\n"),
    ("control.tar.xz", tar({"./control": b"Package: tiny\nVersion: 2\nArchitecture: all\nMaintainer: x\n"})),
    ("data.tar.xz", tar({"./usr/share/tiny": b"tiny"})),
)
PINNED = Deb("tiny", "2", "tiny", sha256(PACKAGE), 10_000)
ANOTHER = Deb("tiny", "1", "tiny", "0" * 64, 10_000)
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="not a Debian system")


@pytest.fixture(autouse=True)
def _no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_debian, "POOL", "http://127.0.0.1:9/pool")


@pytest.fixture
def no_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that is apt's only archive; unsigned, and the machine is careless about that."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)  # started by root, apt reads as another user, who may not enter the folders of pytest
        folder = root / "repository"
        folder.mkdir()
        furnish(folder)
        monkeypatch.setenv("APT_CONFIG", str(root / "careless.conf"))
        yield folder


def furnish(folder: Path) -> None:
    (folder / "tiny_2_all.deb").write_bytes(PACKAGE)
    entry = f"Package: tiny\nVersion: 2\nArchitecture: all\nFilename: ./tiny_2_all.deb\nSize: {len(PACKAGE)}\n"
    packages = f"{entry}SHA256: {PINNED.sha256}\n\n"
    (folder / "Packages").write_text(packages)
    listed = f" {sha256(packages.encode())} {len(packages)} Packages\n"
    (folder / "Release").write_text(f"Date: Sat, 01 Jan 2022 00:00:00 UTC\nSHA256:\n{listed}")
    (folder.parent / "careless.conf").write_text(
        f'Dir::Etc::sourcelist "{folder.parent}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        'Acquire::AllowInsecureRepositories "true";\nAPT::Get::AllowUnauthenticated "true";\n'
    )
    trust(folder, "")


def trust(repository: Path, options: str) -> None:
    (repository.parent / "sources.list").write_text(f"deb {options} file:{repository} ./\n")


@pytest.fixture
def key() -> Iterator[Path]:
    """A home of GnuPG with a key that signs; in a short place, for the agent's socket."""
    if shutil.which("gpg") is None:
        pytest.skip("no gpg to sign an archive with")
    with tempfile.TemporaryDirectory(prefix="gpg-") as name:
        command = ["gpg", "--homedir", name, "--batch", "--quiet", "--passphrase", ""]
        subprocess.run([*command, "--quick-gen-key", "tiny", "ed25519", "sign"], check=True, capture_output=True)
        yield Path(name)
        subprocess.run(["gpgconf", "--homedir", name, "--kill", "all"], check=False, capture_output=True)


def sign(repository: Path, key: Path) -> None:
    command = ["gpg", "--homedir", str(key), "--batch", "--yes", "--output"]
    subprocess.run([*command, "InRelease", "--clearsign", "Release"], cwd=repository, check=True, capture_output=True)
    public = repository.parent / "public.gpg"
    subprocess.run([*command, str(public), "--export"], check=True, capture_output=True)
    public.chmod(0o644)
    trust(repository, f"[signed-by={public}]")


@pytest.mark.usefixtures("no_apt")
def test_a_kept_package_with_the_pinned_hash_needs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tiny_1%3a2_all.deb").write_bytes(PACKAGE)
    (found,) = fetch_debs([PINNED], tmp_path)
    assert (found.name, found.version, found.sha256, found.authenticated) == (
        "tiny",
        "2",
        PINNED.sha256,
        "pinned SHA-256",
    )
    assert found.path.read_bytes() == PACKAGE


@pytest.mark.usefixtures("no_apt")
def test_a_kept_package_that_is_not_pinned_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny_1_all.deb").write_bytes(PACKAGE)
    with pytest.raises(UserError, match=r"tiny cannot be fetched: there is no apt-get here, and http://127\.0\.0\.1:9"):
        fetch_debs([ANOTHER], tmp_path)


@needs_apt
def test_the_pinned_version_is_taken_from_any_archive(repository: Path, tmp_path: Path) -> None:
    trust(repository, "[trusted=yes]")
    (found,) = fetch_debs([PINNED], tmp_path / "kept")
    assert found.authenticated == "pinned SHA-256"
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["tiny_2_all.deb"]


@needs_apt
@pytest.mark.parametrize("options", ["", "[trusted=yes]", "[allow-insecure=yes]"])
def test_another_version_from_an_unsigned_archive_is_refused(repository: Path, tmp_path: Path, options: str) -> None:
    trust(repository, options)
    with pytest.raises(UserError, match="tiny cannot be fetched"):
        fetch_debs([ANOTHER], tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


@needs_apt
def test_another_version_from_a_signed_archive_is_taken_and_told(repository: Path, tmp_path: Path, key: Path) -> None:
    sign(repository, key)
    (found,) = fetch_debs([ANOTHER], tmp_path / "kept")
    assert (found.version, found.sha256) == ("2", PINNED.sha256)
    assert found.authenticated == "signature of the archive, checked by apt"


@needs_apt
def test_a_package_that_its_signed_archive_does_not_list_like_this_is_refused(
    repository: Path, tmp_path: Path, key: Path
) -> None:
    sign(repository, key)
    (repository / "tiny_2_all.deb").write_bytes(deb({"usr/share/tiny": b"evil"}))
    with pytest.raises(UserError, match="tiny cannot be fetched"):
        fetch_debs([ANOTHER], tmp_path / "kept")


@needs_apt
def test_one_unknown_package_does_not_hide_the_others(repository: Path, tmp_path: Path) -> None:
    trust(repository, "[trusted=yes]")
    (tmp_path / "own").mkdir()
    assert set(apt_download(["tiny", "unknown"], tmp_path / "own")) == {"tiny"}


@needs_apt
def test_a_package_above_its_cap_is_not_taken(repository: Path, tmp_path: Path) -> None:
    trust(repository, "[trusted=yes]")
    small = Deb("tiny", "2", "tiny", PINNED.sha256, len(PACKAGE) - 1)
    with pytest.raises(UserError, match="tiny cannot be fetched"):
        fetch_debs([small], tmp_path / "kept")


def script(folder: Path, text: str) -> None:
    path = folder / "apt-get"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_apt_keeps_its_state_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(
        tmp_path,
        f'cat "$3" >> {tmp_path}/configuration; pwd >> {tmp_path}/places; echo "$1 $2 $4 $5" >> {tmp_path}/calls',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "own").mkdir()
    assert apt_download(["tiny"], tmp_path / "own") == {}
    assert (tmp_path / "calls").read_text().split("\n")[:2] == ["-q -c update ", "-q -c download tiny"]
    assert set((tmp_path / "places").read_text().split()) == {str(tmp_path / "own" / "package")}
    for line in ("Dir::State", "Dir::State::status", "Dir::Cache", "Dir::Log"):
        assert f'{line} "{tmp_path}/own/' in (tmp_path / "configuration").read_text()


def test_a_hanging_apt_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, f"echo $$ > {tmp_path}/id; exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(_debian, "TIMEOUT", 1)
    (tmp_path / "own").mkdir()
    with pytest.raises(Unavailable, match="hangs"):
        apt_download(["tiny"], tmp_path / "own")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)


def test_apt_cannot_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, 'test "$4" = download && sleep 1 && head -c 1000000 /dev/zero > tiny_2_all.deb')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(_debian, "MAX_FILE", 10_000)
    delivered = apt_download(["tiny"], tmp_path / "own")
    assert all(path.stat().st_size <= 10_000 for path in delivered.values())
    assert delivered
