from __future__ import annotations

import json
import os
import random
import socket
import tracemalloc
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato.data import folder as module
from sfumato.data.decode import ImageSpec, Unreadable, open_beneath
from sfumato.data.folder import Entry, Finding, ImageFolder, class_folders
from sfumato.errors import UserError

KEY = b"k" * 16


def make(root: Path, *names: str | bytes, content: bytes = b"x") -> Path:
    for name in names:
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def describe(root: Path, *lines: object) -> Path:
    """Writes metadata.jsonl; bytes stand for themselves."""
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (root / "metadata.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    return root


Row = tuple[str, str | None, str | None, tuple[str, ...]]


def listed(folder: ImageFolder) -> list[Row]:
    return [(entry.identity, entry.label, entry.person, entry.text) for entry in folder.entries()]


def names(root: Path) -> list[str]:
    return [entry.identity for entry in ImageFolder(root).entries()]


def findings(root: Path) -> dict[Finding, int]:
    """Of the second walk: the first must not count in it."""
    folder = ImageFolder(root)
    list(folder.entries())
    list(folder.entries())
    return dict(folder.findings)


# --- folders without metadata ---


def test_flat_and_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "b.png", "cat/1.jpg", "cat/deep/er/2.jpg", "dog/1.jpg", "a.webp")
    folder = ImageFolder(str(tmp_path))
    want = [
        ("a.webp", None, None, ()),
        ("b.png", None, None, ()),
        ("cat/1.jpg", "cat", None, ()),
        ("cat/deep/er/2.jpg", "cat", None, ()),
        ("dog/1.jpg", "dog", None, ()),
    ]
    assert listed(folder) == want
    assert listed(folder) == want
    assert folder.findings == Counter()


def test_an_empty_folder_has_no_entries(tmp_path: Path) -> None:
    (tmp_path / "empty" / "er").mkdir(parents=True)
    assert listed(ImageFolder(tmp_path)) == []


def test_the_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    make(tmp_path, "a/x.png", "a-b.png", "a.png", "a/b/y.png", "a/b.png", "a0.png", "ab/z.png", "Z.png", "a/b-c/w.png")
    make(tmp_path, "é.png", b"\xff.png", b"\x80/q.png")
    got = [os.fsencode(name) for name in names(tmp_path)]
    assert got == sorted(got)
    assert len(got) == 12


@settings(max_examples=30, deadline=None)
@given(st.sets(st.lists(st.sampled_from(["a", "a-", "a0", "b", "é", "a b"]), min_size=1, max_size=4).map(tuple)))
def test_any_tree_comes_out_complete_and_sorted(
    tmp_path_factory: pytest.TempPathFactory, paths: set[tuple[str, ...]]
) -> None:
    root = make(tmp_path_factory.mktemp("tree"), *("/".join(path) + ".png" for path in paths))
    assert names(root) == sorted(("/".join(path) + ".png" for path in paths), key=os.fsencode)


def test_extensions_in_any_case_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, "a.PNG", "b.JpEg", "c.tiff", "d.gif", "e.apng")
    make(tmp_path, "f", "g.txt", "h.png.bak", "i.svg", "j.pdf", "Thumbs.db", "desktop.ini", "k.heic", "png")
    assert names(tmp_path) == ["a.PNG", "b.JpEg", "c.tiff", "d.gif", "e.apng"]
    assert findings(tmp_path) == {Finding.not_an_image: 9}


def test_hidden_files_and_archive_droppings(tmp_path: Path) -> None:
    make(tmp_path, "a.png", ".b.png", "._a.png", ".git/c.png", "cat/.hidden/d.png", "__MACOSX/cat/._a.png", ".DS_Store")
    assert names(tmp_path) == ["a.png"]
    assert findings(tmp_path) == {Finding.hidden: 6}


def test_links_pipes_and_empty_files(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "a.png", "cat/b.png")
    make(tmp_path / "outside", "c.png")
    (root / "link.png").symlink_to(tmp_path / "outside" / "c.png")
    (root / "inner.png").symlink_to(root / "a.png")
    (root / "dangling.png").symlink_to(root / "gone.png")
    (root / "outside").symlink_to(tmp_path / "outside")
    (root / "cat" / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "socket.png"))
    server.close()
    make(root, "empty.png", "cat/empty.jpg", content=b"")
    assert names(root) == ["a.png", "cat/b.png"]
    assert findings(root) == {Finding.link: 5, Finding.special: 2, Finding.empty: 2}


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    make(tmp_path / "root", "a.png")
    (tmp_path / "link").symlink_to("root")
    assert names(tmp_path / "link") == ["a.png"]


def test_a_root_given_relatively_survives_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "root", "a.png")
    monkeypatch.chdir(tmp_path)
    folder = ImageFolder("root")
    monkeypatch.chdir("/")
    assert [entry.identity for entry in folder.entries()] == ["a.png"]


def test_unicode_twins_and_undecodable_names(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é") + ".png" for form in ("NFC", "NFD"))
    raw = os.fsdecode(b"\xe9\xff/\xfe.png")
    make(tmp_path, composed, decomposed, raw)
    assert set(names(tmp_path)) == {composed, decomposed, raw}
    assert listed(ImageFolder(tmp_path))[2][1] == os.fsdecode(b"\xe9\xff")


def test_very_deep_folders(tmp_path: Path) -> None:
    """The path of the file is longer than the system takes in one piece."""
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(45):
        os.mkdir("f" * 100, dir_fd=handle)
        inner = os.open("f" * 100, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    with open("a.png", "wb", opener=lambda name, flags: os.open(name, flags, dir_fd=handle)) as file:
        file.write(b"x")
    os.close(handle)
    (name,) = names(tmp_path)
    assert len(name) > 4096
    assert name.endswith("f/a.png")
    (outcome,) = ImageFolder(tmp_path, workers=0).decode([name], ImageSpec(4, 4, 1), KEY)
    assert outcome.fault is Unreadable.not_a_file


def test_a_closed_folder_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.png", "closed/b.png", "open/c.png")

    def refuse(root: Path, parts: list[str], *flags: int) -> int:
        if parts == ["closed"]:
            raise PermissionError(13, "Permission denied", "closed")
        return open_beneath(root, parts, *flags)

    monkeypatch.setattr(module, "open_beneath", refuse)
    assert names(tmp_path) == ["a.png", "open/c.png"]
    assert findings(tmp_path) == {Finding.closed: 1}


def test_a_folder_that_vanishes_is_a_finding(tmp_path: Path) -> None:
    folder = ImageFolder(make(tmp_path / "root", "a.png", "b/c.png", "d.png"))
    entries = folder.entries()
    assert next(entries).identity == "a.png"
    (tmp_path / "root" / "b").rename(tmp_path / "moved")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "moved")
    assert [entry.identity for entry in entries] == ["d.png"]
    assert folder.findings == {Finding.closed: 1}


# --- folders with metadata ---


def test_metadata_decides(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "2.png", "cat/3.png", "dog/4.png", "5.png")
    describe(
        tmp_path,
        {"file_name": "dog/4.png", "label": "wolf", "text": "a wolf", "person_id": "p1"},
        {"file_name": "cat/3.png", "text": None, "label": ""},
        {"file_name": "2.png", "label": 7, "person_id": 12, "extra": [1, 2], "text": ["two", 2, None, ""]},
        {"file_name": "1.png", "text": []},
    )
    assert listed(ImageFolder(tmp_path)) == [
        ("1.png", None, None, ()),
        ("2.png", "7", "12", ("two", "2")),
        ("cat/3.png", "cat", None, ()),
        ("dog/4.png", "wolf", "p1", ("a wolf",)),
    ]
    assert findings(tmp_path) == {Finding.unlisted: 1}


def test_one_file_has_one_spelling(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png")
    describe(tmp_path, *({"file_name": name} for name in ("./cat/1.png", "cat//1.png", "cat/./1.png", "cat/1.png")))
    assert names(tmp_path) == ["cat/1.png"]
    assert findings(tmp_path) == {Finding.repeated: 3}


def test_bad_lines_are_findings(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "2.png")
    bad = [
        b"{not json",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"file_name": "1.png", "label": ' + b"9" * 10_000 + b"}",
        b'{"file_name": "1.png", "text": "\\ud800"}',
        b'{"file_name": "\\ud800.png"}',
        b'"1.png"',
        b"null",
        b"3",
        {"file": "1.png"},
        {"file_name": 5},
        {"file_name": None},
        {"file_name": ""},
        {"file_name": "."},
        {"file_name": "a\0.png"},
        {"file_name": "1.png", "label": 1.5},
        {"file_name": "1.png", "label": True},
        {"file_name": "1.png", "label": ["a"]},
        {"file_name": "1.png", "person_id": {"a": 1}},
        {"file_name": "1.png", "text": False},
        {"file_name": "1.png", "text": ["a", ["b"]]},
        {"file_name": "1.png", "text": {"en": "a"}},
    ]
    outside = [{"file_name": name} for name in ("/etc/passwd.png", "../1.png", "a/../1.png", "..")]
    absent = [{"file_name": name} for name in ("0.png", "gone.png", "3.png", "1.png/x", "metadata.jsonl")]
    describe(tmp_path, *bad, *outside, {"file_name": "2.png"}, b"", b"  \r", *absent)
    assert names(tmp_path) == ["2.png"]
    assert findings(tmp_path) == {
        Finding.bad_line: len(bad),
        Finding.outside: len(outside),
        Finding.missing: len(absent),
        Finding.unlisted: 1,
    }


def test_lines_that_name_what_is_no_image_of_the_folder(tmp_path: Path) -> None:
    make(tmp_path / "root", "a.txt", ".b.png", ".h/c.png", "good.png")
    make(tmp_path / "root", "empty.png", content=b"")
    make(tmp_path, "outside.png")
    root = tmp_path / "root"
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    named = ["a.txt", ".b.png", ".h/c.png", "empty.png", "link.png", "good.png"]
    describe(root, *({"file_name": name} for name in named))
    assert names(root) == ["good.png"]
    assert findings(root)[Finding.missing] == 5


def test_overlong_lines_are_one_finding_each(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "2.png")
    long = {"file_name": "1.png", "text": "x" * (3 * module.MAX_LINE)}
    hidden = b" " * module.MAX_LINE + b'{"file_name": "1.png"}'
    describe(tmp_path, long, {"file_name": "2.png"}, hidden)
    assert names(tmp_path) == ["2.png"]
    assert findings(tmp_path) == {Finding.bad_line: 2, Finding.unlisted: 1}


def test_windows_line_ends_byte_order_mark_and_no_final_newline(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "1.png"}\r\n\r\n{"file_name": "2.png"}')
    assert names(tmp_path) == ["1.png", "2.png"]
    assert findings(tmp_path) == {}


def test_repeated_lines_of_one_person_count_once_and_disputed_ones_not_at_all(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "2.png", "3.png")
    describe(
        tmp_path,
        {"file_name": "1.png", "person_id": "a", "text": "first"},
        {"file_name": "2.png", "person_id": "a"},
        {"file_name": "3.png", "person_id": "c"},
        {"file_name": "2.png", "person_id": "b"},
        {"file_name": "1.png", "person_id": "a", "text": "second"},
        {"file_name": "3.png"},
        {"file_name": "2.png", "person_id": "b"},
    )
    assert listed(ImageFolder(tmp_path)) == [("1.png", None, "a", ("first", "second"))]
    assert findings(tmp_path) == {Finding.repeated: 1, Finding.disputed: 5}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.sampled_from("xy")), max_size=12),
    st.sampled_from("abc"),
)
@example([(0, "a", "x"), (0, "b", "x")], "a")
def test_removing_a_person_changes_no_other_entry(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, str, str]], leaver: str
) -> None:
    """A person leaves: their lines and the files that these name go. Every other entry stays as it was."""
    root = make(tmp_path_factory.mktemp("people"), *(f"{number}.png" for number, _, _ in lines))

    def state(present: list[tuple[int, str, str]]) -> list[Row]:
        rows = ({"file_name": f"{number}.png", "person_id": who, "text": text} for number, who, text in present)
        return listed(ImageFolder(describe(root, *rows)))

    before = state(lines)
    for number, who, _ in lines:
        if who == leaver:
            (root / f"{number}.png").unlink(missing_ok=True)
    assert state([line for line in lines if line[1] != leaver]) == [entry for entry in before if entry[2] != leaver]


def test_metadata_that_cannot_be_read_is_no_reason_to_guess(tmp_path: Path) -> None:
    for kind in ("link", "pipe", "folder"):
        root = make(tmp_path / kind, "cat/1.png")
        if kind == "link":
            (tmp_path / "real.jsonl").write_text('{"file_name": "cat/1.png"}')
            (root / "metadata.jsonl").symlink_to(tmp_path / "real.jsonl")
        elif kind == "pipe":
            os.mkfifo(root / "metadata.jsonl")
        else:
            (root / "metadata.jsonl").mkdir()
        assert names(root) == []
        assert findings(root) == {Finding.closed: 1}


def test_metadata_below_the_top_is_no_metadata(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.png", "cat/metadata.jsonl")
    assert names(tmp_path) == ["cat/1.png"]
    assert findings(tmp_path) == {Finding.not_an_image: 1}


def test_undecodable_names_can_be_named_in_metadata(tmp_path: Path) -> None:
    make(tmp_path, b"\xff.png")
    describe(tmp_path, rb'{"file_name": "\udcff.png", "label": "l"}')
    assert listed(ImageFolder(tmp_path)) == [(os.fsdecode(b"\xff.png"), "l", None, ())]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5))
@example([b'{"file_name": "1.png"}', b'{"file_name": "1.png", "person_id": 1}'])
def test_arbitrary_metadata_never_raises(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    root = describe(make(tmp_path_factory.mktemp("fuzz"), "1.png"), *lines)
    assert set(names(root)) <= {"1.png"}


# --- size, decoding, silence ---


def test_memory_per_file(tmp_path: Path) -> None:
    """Empty files would be findings, so all are hard links to one; 1.2 kB captions must stay on disk."""
    count = 2_000
    source = make(tmp_path / "root", "seed.png") / "seed.png"
    order = [f"image-{number:06}.png" for number in range(count)]
    for name in order:
        os.link(source, tmp_path / "root" / name)
    random.Random(1).shuffle(order)
    describe(tmp_path / "root", *({"file_name": name, "text": "x" * 1200, "label": name[-5]} for name in order))
    folder = ImageFolder(tmp_path / "root")
    tracemalloc.start()
    got = sum(1 for _ in folder.entries())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert got == count
    assert peak < 400 * count


def test_decode_gives_pixels_in_the_order_asked(tmp_path: Path) -> None:
    for shade in range(5):
        Image.fromarray(np.full((6, 6), shade, np.uint8)).save(tmp_path / f"{shade}.png")
    make(tmp_path, "broken.png")
    folder = ImageFolder(tmp_path, workers=1)
    wanted = [*reversed(names(tmp_path)), "0.png", "../x"]
    assert wanted[0] == "broken.png"
    outcome = list(folder.decode(iter(wanted), ImageSpec(6, 6, 1), KEY))
    assert [one.pixels is not None and int(one.pixels[0, 0, 0]) for one in outcome] == [False, 4, 3, 2, 1, 0, 0, False]
    assert [one.fault for one in outcome] == [Unreadable.unknown_format, *[None] * 6, Unreadable.not_a_file]
    assert outcome[5].digest == outcome[6].digest != outcome[4].digest


@pytest.mark.parametrize("kind", ["does not exist", "is not a folder", "cannot be read"])
def test_only_the_root_itself_is_an_error(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "Mrs-Smith"
    if kind == "is not a folder":
        path.write_text("x")
    if kind == "cannot be read":
        path.mkdir()

        def refuse(path: object) -> object:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(module.os, "scandir", refuse)
    with pytest.raises(UserError, match=f"{kind}; give") as caught:
        ImageFolder(path)
    assert "Smith" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_class_folders(tmp_path: Path) -> None:
    root = make(tmp_path / "root", "b/1.png", "a/deep/2.png", "é/3.png", "4.png", ".h/5.png", "__MACOSX/6.png")
    (root / "empty").mkdir()
    (root / "link").symlink_to(root / "a")
    assert class_folders(root) == ["a", "b", "empty", "é"]
    with pytest.raises(UserError, match="has no class folders"):
        class_folders(root / "a" / "deep")
    with pytest.raises(UserError, match="does not exist"):
        class_folders(root / "gone")
    make(root, b"Smith\xff/1.png")
    with pytest.raises(UserError, match="not valid UTF-8") as caught:
        class_folders(root)
    assert "Smith" not in str(caught.value)


def test_representations_tell_nothing(tmp_path: Path) -> None:
    folder = ImageFolder(make(tmp_path / "Smith", "Smith/Smith.png"))
    entry = next(folder.entries())
    assert entry == Entry("Smith/Smith.png", "Smith", None)
    assert "Smith" not in repr(folder) + str(folder) + repr(entry) + str(entry)
