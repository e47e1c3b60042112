from __future__ import annotations

import io
import lzma
import struct
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.archives import ar, deb, tar, tgz, zipped

from sfumato.data.collections import _archives
from sfumato.data.collections._archives import deb_members, npm_members, zip_members


def all_of(limit: int = 1000) -> Callable[[str], int]:
    return lambda name: limit


def read(reader: Callable[..., Iterator[tuple[str, bytes | None]]], data: bytes, limit: int = 1000) -> dict:
    return dict(reader(io.BytesIO(data), all_of(limit)))


READERS = [
    pytest.param(deb_members, lambda files: deb(files), id="deb"),
    pytest.param(deb_members, lambda files: deb(tar(files, "w:gz"), "data.tar.gz"), id="deb-gz"),
    pytest.param(deb_members, lambda files: deb(tar(files, "w"), "data.tar/"), id="deb-plain"),
    pytest.param(npm_members, tgz, id="npm"),
    pytest.param(zip_members, zipped, id="zip"),
]


@pytest.mark.parametrize(("reader", "pack"), READERS)
def test_members_come_back_and_large_ones_as_none(reader: Callable, pack: Callable) -> None:
    archive = pack({"usr/a": b"A" * 1000, "usr/b": b"B" * 1001, "c": b"C"})
    assert read(reader, archive) == {"usr/a": b"A" * 1000, "usr/b": None, "c": b"C"}
    assert dict(reader(io.BytesIO(archive), lambda name: 5 * (name == "c"))) == {"c": b"C"}


@pytest.mark.parametrize(("reader", "pack"), READERS)
def test_an_archive_that_swells_is_refused_in_little_memory(
    reader: Callable, pack: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack({str(number): bytes(2_000_000) for number in range(20)})
    monkeypatch.setattr(_archives, "MAX_TOTAL", 10_000_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="swells"):
        for _ in reader(io.BytesIO(archive), all_of(2**21)):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_members_that_are_not_wanted_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_archives, "MAX_TOTAL", 1_000_000)
    with pytest.raises(ValueError, match="swells"):
        list(deb_members(io.BytesIO(deb({"x": bytes(2_000_000)})), all_of(0)))


def test_links_and_folders_are_left_out() -> None:
    link, folder, device = (tarfile.TarInfo(name) for name in ("usr/a", "b", "c"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    folder.type, device.type = tarfile.DIRTYPE, tarfile.CHRTYPE
    assert read(deb_members, deb(tar({"l": link, "f": folder, "d": device}))) == {}


@pytest.mark.parametrize(
    "package",
    [
        b"",
        b"PK\x03\x04",
        ar(("debian-binary", b"2.0\n")),
        deb(b"\x28\xb5\x2f\xfd junk", "data.tar.zst"),
        deb({"a": b"A" * 500})[:-100],
        deb(lzma.compress(b"no tar" * 100)),
        b"!<arch>\n" + b"x" * 60,
    ],
    ids=range(7),  # times are written into archives
)
def test_packages_that_cannot_be_read_are_refused(package: bytes) -> None:
    with pytest.raises(ValueError, match="Debian package"):
        read(deb_members, package)


@pytest.mark.parametrize("package", [b"", b"no gzip", tgz({"a": bytes(3000)})[:-30]], ids=["empty", "plain", "cut"])
def test_npm_packages_that_cannot_be_read_are_refused(package: bytes) -> None:
    with pytest.raises(ValueError, match="npm package"):
        read(npm_members, package, 10**6)


def test_zips_that_lie_or_break_cost_only_their_member() -> None:
    archive = bytearray(zipped({"bomb": bytes(100_000), "good": b"G", "torn": b"T" * 50}))
    place = archive.rindex(b"PK\x01\x02", 0, archive.index(b"good", archive.index(b"PK\x01\x02")))
    bomb = archive.index(b"PK\x01\x02")
    assert archive[bomb + 46 : bomb + 50] == b"bomb"
    archive[bomb + 24 : bomb + 28] = struct.pack("<I", 10)  # the size it claims
    torn = archive.index(b"torn") + 4
    archive[torn : torn + 3] = b"\xff\xff\xff"
    assert place > bomb
    found = read(zip_members, bytes(archive))
    assert found["good"] == b"G"
    assert found["torn"] is None
    assert len(found["bomb"] or b"") <= 1000
    with pytest.raises(ValueError, match="zip archive"):
        read(zip_members, b"no zip")


def test_large_members_of_zips_are_not_decoded_whole() -> None:
    archive = zipped({"bomb": bytes(50_000_000)})
    tracemalloc.start()
    assert read(zip_members, archive) == {"bomb": None}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_packages_are_read_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({"b": b"B", "a": b"A"}))
    assert list(zip_members(tmp_path / "x.zip", all_of())) == [("a", b"A"), ("b", b"B")]
