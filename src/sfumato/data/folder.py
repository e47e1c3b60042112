"""A folder of private images as a list of entries: what counts as an image of the data set, and what is said about it.

Whether a file is listed depends on the file and on its own lines of `metadata.jsonl` alone, so that adding or removing
one file (or all files and lines of one person) leaves every other entry as it was. What is not listed is counted in
`ImageFolder.findings`, by kind and without names, for the curator's internal report.
"""

from __future__ import annotations

import bisect
import enum
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from sfumato.data.decode import Decoded, ImageSpec, is_integer, open_beneath, open_regular
from sfumato.data.decode_pool import DecodePool
from sfumato.errors import UserError

METADATA = "metadata.jsonl"
EXTENSIONS = frozenset(
    {".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
MAX_LINE = 2**20  # bytes of one line of metadata


class Finding(enum.StrEnum):
    """What the intake met besides images. Each kind is counted; none stops a run."""

    hidden = "hidden"  # files and folders whose name begins with a dot, and __MACOSX
    link = "link"  # symbolic links, which are never followed
    special = "special"  # pipes, sockets, devices
    not_an_image = "not_an_image"  # extension not in EXTENSIONS
    empty = "empty"  # image files without a byte
    closed = "closed"  # folders, or a metadata file, that cannot be read
    bad_line = "bad_line"  # metadata lines that are not what Sfumato understands
    outside = "outside"  # metadata lines whose file_name leads out of the folder
    missing = "missing"  # files named in the metadata that are not images of this folder
    repeated = "repeated"  # further lines on a file that agree with its first about the person
    disputed = "disputed"  # lines on a file that several persons claim; none of them counts
    unlisted = "unlisted"  # images that the metadata does not name


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """One image of the data set.

    Attributes:
        identity: POSIX path below the root, the image's own identity; undecodable bytes are surrogate escapes.
        label: class name, or None.
        person: who the image belongs to, or None.
        text: captions, often one or none.
    """

    identity: str
    label: str | None
    person: str | None
    text: tuple[str, ...] = ()


class ImageFolder:
    """A folder of images in class sub-folders, flat, or described by `metadata.jsonl` (the form "imagefolder").

    Without metadata every image candidate is an entry and its label is its first-level folder, however deep it lies.
    With a `metadata.jsonl` at the top, that file decides: a line is an object with `file_name` and optional `label`,
    `person_id` and `text`, each a string or whole number; `text`, the caption, may be a list of several, and further
    lines on a file may bring more of them. Null and "" mean absent, and an absent label falls back to the folder. Names
    are compared byte by byte: two spellings of one accented name are two files. An image candidate is a regular file,
    not empty, with an extension in EXTENSIONS in upper or lower case; what it holds is for `decode`.

    Args:
        root: the folder; may itself be a link.
        workers: decoding processes, 0 for none.

    Attributes:
        findings: what the latest walk of `entries()` met, by `Finding`; complete when the walk is.

    Raises:
        UserError: `root` does not exist, is not a folder, or may not be read.
    """

    def __init__(self, root: str | os.PathLike[str], workers: int = 2) -> None:
        self._root = Path(root).absolute()
        self._workers = workers
        self.findings: Counter[str] = Counter()
        fault = ""
        try:
            with os.scandir(self._root):
                pass
        except FileNotFoundError:
            fault = "does not exist"
        except NotADirectoryError:
            fault = "is not a folder"
        except (OSError, ValueError):
            fault = "cannot be read"
        if fault:
            raise UserError(f"The image folder given {fault}; give the path of an existing folder that you may read.")

    def entries(self) -> Iterator[Entry]:
        """Walks the folder and yields its entries, sorted by the bytes of their identities.

        Memory: the names of one branch of folders, and about 200 bytes a line of metadata; no image is opened.
        """
        self.findings = Counter()
        try:
            with open_regular(self._root, [METADATA]) as metadata:
                yield from self._described(metadata)
        except FileNotFoundError:
            for identity in self._walk():
                yield Entry(identity, _folder_label(identity), None)
        except OSError:
            # It would have decided. Folder names in its place would invent labels and forget who is on the images.
            self._note(Finding.closed)

    def decode(self, identities: Iterable[str], spec: ImageSpec, key: bytes) -> Iterator[Decoded]:
        """Decodes entries by identity, in the order given, in bounded memory; see `DecodePool`."""
        with DecodePool(self._root, spec, key, self._workers) as pool:
            yield from pool.map(identities)

    def _walk(self) -> Iterator[str]:
        """Paths of all image candidates, sorted by bytes."""
        # A folder is a path with a slash at its end. With it, sorting each folder by itself sorts the whole walk, for
        # everything inside begins with that path.
        ahead = [b""]
        while ahead:
            path = ahead.pop()
            if path and not path.endswith(b"/"):
                yield os.fsdecode(path)
            else:
                ahead += sorted(self._list(path), reverse=True)

    def _list(self, folder: bytes) -> Iterator[bytes]:
        """Image candidates and sub-folders directly inside `folder`, a path that is empty or ends in a slash."""
        try:
            handle = open_beneath(self._root, os.fsdecode(folder).split("/")[:-1])
        except OSError:
            self._note(Finding.closed)
            return
        try:
            with os.scandir(handle) as items:
                for item in items:
                    path = folder + os.fsencode(item.name)
                    finding = _judge(item)
                    if finding is None:
                        yield path + b"/" * item.is_dir(follow_symlinks=False)
                    elif folder or item.name != METADATA:
                        self._note(finding)
        except OSError:
            self._note(Finding.closed)
        finally:
            os.close(handle)

    def _described(self, metadata: BinaryIO) -> Iterator[Entry]:
        """Entries as the metadata has them: each walked file is looked up among the sorted lines."""
        index, found = self._index(metadata), 0
        for identity in self._walk():
            path = os.fsencode(identity)
            first, last = (bisect.bisect_left(index, (name, 0)) for name in (path, path + b"\0"))
            found += last - first
            lines = [_understand(_line_at(metadata, place)) for _, place in index[first:last]]
            entries = [line for line in lines if isinstance(line, Entry)]
            if not entries:
                self._note(Finding.unlisted)
            elif len({entry.person for entry in entries}) > 1:
                self._note(Finding.disputed, len(entries))
            else:
                self._note(Finding.repeated, len(entries) - 1)
                yield replace(entries[0], text=tuple(dict.fromkeys(chain.from_iterable(one.text for one in entries))))
        self._note(Finding.missing, len(index) - found)

    def _index(self, metadata: BinaryIO) -> list[tuple[bytes, int]]:
        """File name and offset of each usable line, sorted. Captions stay on disk until their turn."""
        index = []
        place = 0
        while line := _line_at(metadata, place):
            entry = _understand(line)
            if isinstance(entry, Entry):
                index.append((os.fsencode(entry.identity), place))
            elif line.strip():
                self._note(entry)
            place = metadata.tell()
        return sorted(index)

    def _note(self, finding: Finding, times: int = 1) -> None:
        if times:
            self.findings[finding] += times


def class_folders(root: str | os.PathLike[str]) -> list[str]:
    """Names of the folders directly inside `root`, sorted: the classes, for a user who declares them public.

    Opens no file and looks into no class.

    Raises:
        UserError: as `ImageFolder`; or there is no such folder, or one whose name is not text.
    """
    names = [os.fsdecode(path[:-1]) for path in sorted(ImageFolder(root)._list(b"")) if path.endswith(b"/")]
    if not names:
        raise UserError("The image folder given has no class folders; list the classes with --classes, or give none.")
    if any("\udc80" <= letter <= "\udcff" for name in names for letter in name):
        raise UserError("A class folder has a name that is not valid UTF-8; rename it, or list the classes.")
    return names


def _judge(item: os.DirEntry[str]) -> Finding | None:
    """Why an item of a folder is neither an image candidate nor a folder to walk; None if it is one."""
    if item.is_symlink():
        return Finding.link
    if item.name.startswith(".") or item.name == "__MACOSX":
        return Finding.hidden
    if item.is_dir(follow_symlinks=False):
        return None
    if not item.is_file(follow_symlinks=False):
        return Finding.special
    if os.path.splitext(item.name)[1].lower() not in EXTENSIONS:
        return Finding.not_an_image
    try:
        return None if item.stat(follow_symlinks=False).st_size else Finding.empty
    except OSError:
        return Finding.closed


def _line_at(metadata: BinaryIO, place: int) -> bytes:
    """The line that begins at an offset, or something useless if it is too long; leaves the file at the next line."""
    metadata.seek(place)
    line = rest = metadata.readline(MAX_LINE)
    while len(rest) == MAX_LINE and not rest.endswith(b"\n"):
        rest = metadata.readline(MAX_LINE)
    return line if rest is line else b"overlong"


def _understand(line: bytes) -> Entry | Finding:
    """One line of metadata as the entry it describes, or what is wrong with it."""
    try:
        fields = json.loads(line)
        name = fields["file_name"]
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            return Finding.outside
        identity = "/".join(parts)
        if not parts or b"\0" in os.fsencode(identity):
            return Finding.bad_line
        label, person = _word(fields.get("label")), _word(fields.get("person_id"))
        text = fields.get("text")
        texts = tuple(word for one in (text if isinstance(text, list) else [text]) if (word := _word(one)) is not None)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Finding.bad_line
    return Entry(identity, _folder_label(identity) if label is None else label, person, texts)


def _word(value: object) -> str | None:
    """A string or whole number of the metadata as a string; raises ValueError for anything else."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) and not is_integer(value):
        raise ValueError
    word = str(value)
    word.encode()  # half a character (a lone surrogate) would fail somewhere later
    return word


def _folder_label(identity: str) -> str | None:
    folder, slash, _ = identity.partition("/")
    return sys.intern(folder) if slash else None
