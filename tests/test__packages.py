from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato import _packages
from sfumato._packages import NPM_REGISTRY, is_published, npm_registry, pinned_download, pinned_npm, pinned_wheel
from sfumato.errors import UserError
from tests.archives import sha256
from tests.registries import PROJECT, WHEEL, only_index, only_registry, write_wheel

CONTENT = bytes(range(256)) * 40
SHA256 = sha256(CONTENT)
TINY = {"tiny/data.bin": b"data"}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return only_index(tmp_path / "index", monkeypatch)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with only_registry(tmp_path / "web", monkeypatch) as folder:
        yield folder


def offer(registry: Path, path: str, content: bytes = CONTENT) -> None:
    file = registry / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


def get_wheel(sha: str, folder: Path, max_bytes: int = 10**5) -> Path:
    return pinned_wheel(PROJECT, "1.0", WHEEL, sha, max_bytes, folder)


def test_a_wheel_is_fetched_once_for_any_python_and_without_what_it_requires(index: Path, tmp_path: Path) -> None:
    content = write_wheel(index, TINY).read_bytes()
    path = get_wheel(sha256(content), tmp_path / "kept")
    assert path.read_bytes() == content
    assert files(tmp_path / "kept") == [WHEEL]
    (index / WHEEL).unlink()
    assert get_wheel(sha256(content), tmp_path / "kept") == path


def test_another_wheel_of_that_name_is_refused(index: Path, tmp_path: Path) -> None:
    write_wheel(index, TINY)
    with pytest.raises(UserError, match=rf"offers a {PROJECT} 1\.0 that is not the published file \(sha256 0000"):
        get_wheel("0" * 64, tmp_path / "kept")
    assert files(tmp_path / "kept") == []


def test_a_damaged_wheel_in_the_folder_is_fetched_anew(index: Path, tmp_path: Path) -> None:
    content = write_wheel(index, TINY).read_bytes()
    (tmp_path / WHEEL).write_bytes(content[:-1])
    assert get_wheel(sha256(content), tmp_path).read_bytes() == content


def test_an_index_without_the_wheel_is_said_in_pips_words(index: Path, tmp_path: Path) -> None:
    says = (
        rf"{PROJECT} 1\.0 cannot be fetched: No matching distribution .*pip config list`, or put {WHEEL} .* --archives"
    )
    with pytest.raises(UserError, match=says):
        get_wheel(SHA256, tmp_path / "kept")


def test_no_file_in_the_working_folder_runs(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    content = write_wheel(index, TINY).read_bytes()
    assert get_wheel(sha256(content), tmp_path / "kept").read_bytes() == content
    assert not (tmp_path / "ran").exists()


def test_source_archives_are_never_built(index: Path, tmp_path: Path) -> None:
    project = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": f"open({str(tmp_path / 'ran')!r}, 'w')\n",
    }
    with tarfile.open(index / f"{PROJECT}-1.0.tar.gz", "w:gz") as archive:
        for name, text in project.items():
            entry = tarfile.TarInfo(f"{PROJECT}-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    with pytest.raises(UserError, match="cannot be fetched"):
        get_wheel(sha256((index / f"{PROJECT}-1.0.tar.gz").read_bytes()), tmp_path / "kept")
    assert not (tmp_path / "ran").exists()


def test_a_wheel_above_its_cap_is_not_written_and_one_at_it_is_watched(
    registry: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_wheel(registry, {"tiny/data.bin": os.urandom(3_000_000)})
    (registry / "index.html").write_text(f'<a href="{WHEEL}">tiny</a>')
    monkeypatch.setenv("PIP_FIND_LINKS", npm_registry("x") + "index.html")
    content = place.read_bytes()
    with pytest.raises(UserError, match="File too large"):
        get_wheel(sha256(content), tmp_path / "kept", 10**6)
    assert files(tmp_path / "kept") == []
    told: list[int] = []
    pinned_wheel(PROJECT, "1.0", WHEEL, sha256(content), len(content), tmp_path / "kept", told.append)
    assert files(tmp_path / "kept") == [WHEEL]
    assert [size for size in told if 10**5 < size < len(content)]


def python_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


def test_a_python_without_pip_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python_that('echo "$0: No module named pip" >&2; exit 1', tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"has no pip .*ensurepip"):
        get_wheel(SHA256, tmp_path / "kept")


def test_a_hanging_pip_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python_that(f"echo $$ > {tmp_path}/id; exec sleep 60", tmp_path, monkeypatch)
    monkeypatch.setattr(_packages, "PIP_TIMEOUT", 1)
    with pytest.raises(UserError, match="pip does not run or hangs"):
        get_wheel(SHA256, tmp_path / "kept")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)
    assert files(tmp_path / "kept") == []


@pytest.mark.parametrize(
    ("name", "path", "file"),
    [
        ("emoji-set", "emoji-set/-/emoji-set-2.0.0.tgz", "emoji-set-2.0.0.tgz"),
        ("@some/models", "@some/models/-/models-2.0.0.tgz", "some-models-2.0.0.tgz"),
    ],
)
def test_an_npm_package_is_fetched_once(registry: Path, tmp_path: Path, name: str, path: str, file: str) -> None:
    offer(registry, path)
    told: list[int] = []
    found = pinned_npm(name, "2.0.0", SHA256, 2**20, tmp_path / "kept", told.append)
    assert found == tmp_path / "kept" / file
    assert found.read_bytes() == CONTENT
    assert told[-1] == len(CONTENT)
    (registry / path).unlink()
    assert pinned_npm(name, "2.0.0", SHA256, 2**20, tmp_path / "kept") == found
    assert files(tmp_path / "kept") == [file]


@pytest.mark.parametrize("content", [CONTENT + b"!", CONTENT[:-1], b""])
def test_an_npm_file_with_another_hash_is_refused(registry: Path, tmp_path: Path, content: bytes) -> None:
    offer(registry, "emoji-set/-/emoji-set-2.0.0.tgz", content)
    with pytest.raises(UserError, match="is not the published file"):
        pinned_npm("emoji-set", "2.0.0", SHA256, 2**20, tmp_path / "kept")
    assert files(tmp_path / "kept") == []


def test_a_download_stops_at_its_cap(registry: Path, tmp_path: Path) -> None:
    content = bytes(2000)
    offer(registry, "emoji-set/-/emoji-set-2.0.0.tgz", content)
    told: list[int] = []
    with pytest.raises(UserError, match="at most 1,000 bytes"):
        pinned_npm("emoji-set", "2.0.0", sha256(content), 1000, tmp_path / "kept", told.append)
    assert told == [1001], "no more is taken than shows that it is too much"
    assert files(tmp_path / "kept") == []


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (None, r"set-2\.0\.0\.tgz cannot be fetched: File not found\. .* put emoji-set-2\.0\.0\.tgz into .* --from"),
        ("http://127.0.0.1:9", "cannot be fetched: .*refused"),
        ("http://127.0.0.1:x", "cannot be fetched: nonnumeric port"),
        ("http://[", "cannot be fetched: Invalid IPv6"),
        ("file:///etc", "not an http or https address; check `npm config get registry`"),
    ],
)
def test_a_missing_package_and_a_dead_registry_are_one_sentence(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None, reason: str
) -> None:
    if address is not None:
        monkeypatch.setenv("npm_config_registry", address)
    with pytest.raises(UserError, match=reason):
        pinned_npm("emoji-set", "2.0.0", SHA256, 2**20, tmp_path / "kept")
    assert files(tmp_path / "kept") == []


def test_files_that_cannot_be_read_and_folders_that_cannot_be_written(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/proc/self/mem cannot be read \(Input/output error\)"):
        is_published(Path("/proc/self/mem"), SHA256, 10)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/kept cannot be written to \(Not a directory\)"):
        pinned_npm("emoji-set", "2.0.0", SHA256, 2**20, tmp_path / "file" / "kept")


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/etc/hostname"])
def test_only_web_addresses_are_opened(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="not an http or https address"):
        pinned_download(address, SHA256, 2**20, tmp_path / "x")


@pytest.mark.parametrize(
    ("npmrc", "environment", "name", "expected"),
    [
        (None, {}, "openmoji", NPM_REGISTRY),
        ("registry=https://a.example/npm", {}, "openmoji", "https://a.example/npm/"),
        ('; registry=https://b.example\n registry = "https://a.example/"', {}, "openmoji", "https://a.example/"),
        ("registry=https://a.example", {"NPM_CONFIG_REGISTRY": "https://c.example"}, "x", "https://c.example/"),
        (
            "#registry=https://b.example\nother=1\nregistry=https://${M}/npm/",
            {"M": "a.example"},
            "x",
            "https://a.example/npm/",
        ),
        ("@some:registry=https://${HOST_NAME}/", {"HOST_NAME": "d.example"}, "@some/models", "https://d.example/"),
        ("@some:registry=https://d.example", {}, "@other/models", NPM_REGISTRY),
        ("@some:registry=https://d.example", {"npm_config_registry": "https://c"}, "@some/x", "https://d.example/"),
    ],
)
def test_the_registry_is_the_users(
    tmp_path: Path, npmrc: str | None, environment: dict[str, str], name: str, expected: str
) -> None:
    if npmrc is not None:
        (tmp_path / ".npmrc").write_text(npmrc)
    assert npm_registry(name, environment | {"HOME": str(tmp_path)}) == expected
    if npmrc is not None:
        (tmp_path / ".npmrc").rename(tmp_path / "other")
        environment = environment | {"npm_config_userconfig": str(tmp_path / "other")}
        assert npm_registry(name, environment | {"HOME": str(tmp_path)}) == expected
