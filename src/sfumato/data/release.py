"""Images out: a folder that may be published as a whole, and the check that it still is what was written.

A release holds images, `metadata.jsonl`, a dataset card, Croissant metadata, the privacy statement, a report and
checksums, and nothing else. Its bytes follow from the samples and the title alone: no time, no host, no path.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato import __version__
from sfumato._files import sha256_file
from sfumato.data._staging import DONE, new_folder, seal
from sfumato.data._staging import check_new as check_new
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.report.croissant import croissant
from sfumato.report.facts import ReleaseFacts, shown
from sfumato.report.render import render_card, render_report
from sfumato.report.sheet import contact_sheet

__all__ = ["Finding", "Provenance", "Samples", "contact_sheet", "verify_release", "write_release"]

MANIFEST = "MANIFEST.sha256"
METADATA = "metadata.jsonl"
STATEMENT = "privacy.json"
SHEET_ROWS, SHEET_COLUMNS, SHEET_TILE = 12, 12, 56  # report: rows, columns, least width of an image in pixels
# Folder names that every file system and tool reads alike. Loaders that split data by folder names would take a
# class "test" or "dev board" for a split.
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 _-]{0,62}[A-Za-z0-9])?")
_SPLIT = re.compile(
    r"(?i)(?:^|[-_ \d])(?:train(?:ing)?|val(?:id(?:ation)?)?|dev|test(?:ing)?|eval(?:uation)?)(?:[-_ \d]|$)"
)
_DEVICE = re.compile(r"(?i)(?:con|prn|aux|nul|com[0-9]|lpt[0-9])")
_MANIFEST_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\\]+)")


@dataclass(frozen=True)
class Provenance:
    """Where samples come from: a model or population, and what it cost.

    Attributes:
        run_id: name of the run; stays inside, a release carries the statement's `release_id`.
        method: name of the method.
        statement: the `PrivacyStatement` as JSON.
        run_folder: where the run lives, so that a release can be noted on its ledger; stays inside too.
    """

    run_id: str
    method: str
    statement: dict[str, Any]
    run_folder: Path | None = None


@dataclass(eq=False)
class Samples:
    """Synthetic images on their way out.

    Attributes:
        pixels: uint8 `(N, C, H, W)`, C 1 (grey) or 3 (RGB).
        labels: int64 `(N,)`, indices into `classes`, or None.
        classes: class names, declared public; None exactly if `labels` is.
        texts: captions, one an image, from public prompts; or None.
        provenance: required by `write_release`.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    texts: list[str] | None
    provenance: Provenance


@dataclass(frozen=True)
class Finding:
    """Something wrong with a release.

    Attributes:
        path: file inside the release, or "." for the folder.
        problem: what is wrong with it.
    """

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def write_release(
    samples: Samples, out: Path, *, title: str | None = None, progress: Callable[[int], None] | None = None
) -> Path:
    """Writes a publishable folder; it appears as a whole or not at all.

    Layout: `images/CLASS/000000.png` numbered through the release (`images/000000.png` without labels), where folders
    are called `class-0000` and so on if a class name does not make a plain folder name; the labels are in
    `metadata.jsonl`.

    Args:
        samples: with provenance from a run that was private.
        out: a folder that does not exist or is empty.
        title: heading of card and report; public.
        progress: told the number of images written.

    Returns:
        `out`.

    Raises:
        PrivacyRefusal: bare images, or samples without the statement of a private run.
        UserError: `out` is occupied, or the samples do not fit together.
    """
    statement = _admit(samples)
    _check_form(samples)
    facts = _facts(samples, statement, title)
    out = Path(out)
    with new_folder(out) as folder:
        digests: dict[str, str] = {}

        def put(name: str, data: bytes) -> None:
            (folder / name).write_bytes(data)
            digests[name] = hashlib.sha256(data).hexdigest()

        records = []
        for index, (name, record) in enumerate(_records(samples)):
            if "/" in name:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            put(name, _png(samples.pixels[index]))
            records.append(json.dumps(record, ensure_ascii=False) + "\n")
            if progress is not None:
                progress(index + 1)
        put(METADATA, "".join(records).encode())
        put(STATEMENT, _json(statement))
        put("croissant.json", _json(croissant(facts, digests[METADATA])))
        put("README.md", render_card(facts).encode())
        put("report.html", render_report(facts, *_sheet(samples)).encode())
        manifest = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()
        (folder / MANIFEST).write_bytes(manifest)
        seal(folder, f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n")
    return out


def verify_release(folder: Path) -> list[Finding]:
    """Looks for everything that keeps a folder from being the release that was written.

    Checked are the marker, the manifest in both directions, links and odd names, the statement, what card and
    report quote from it, and that the metadata names the images. Whether the ledger agrees is for the caller, who has
    it.

    Returns:
        What is wrong, sorted by path; empty if nothing is.

    Raises:
        UserError: `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder of a release.")
    found, findings = _walk(folder)
    listed = _manifest(folder, found, findings)
    findings += [Finding(name, "is missing") for name in listed.keys() - found]
    findings += [Finding(name, "is not in the manifest") for name in found - listed.keys() - {MANIFEST, DONE}]
    both = listed.keys() & found
    findings += [Finding(name, "has changed") for name in both if _digest(folder, name) != listed[name]]
    findings += _compare_pages(folder, found)
    findings += _compare_metadata(folder, found)
    return sorted(set(findings), key=lambda finding: (finding.path, finding.problem))


def _admit(samples: Samples) -> dict[str, Any]:
    """The statement under which samples may leave."""
    provenance = getattr(samples, "provenance", None)
    if not isinstance(samples, Samples) or not isinstance(provenance, Provenance):
        raise PrivacyRefusal(
            "Only samples that carry the provenance of a run can be released, not bare images: nothing is known about "
            "the privacy of those."
        )
    statement = provenance.statement
    if statement.get("not_private") is not False:
        raise PrivacyRefusal("These samples are NOT PRIVATE: their run used test noise, so they cannot be released.")
    limited = all(_is_limit(statement.get(name)) for name in ("epsilon", "delta"))
    if not limited or not statement.get("text") or not statement.get("release_id"):
        raise PrivacyRefusal(
            "The statement of these samples does not give epsilon, delta, a text and a release id; nothing is released "
            "without a complete statement."
        )
    return statement


def _is_limit(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _check_form(samples: Samples) -> None:
    pixels, labels, classes, texts = samples.pixels, samples.labels, samples.classes, samples.texts
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not pixels.size:
        raise UserError(
            f"The images are {pixels.dtype} of shape {pixels.shape}; give a uint8 array (N, 1 or 3, height, width) "
            "with at least one image."
        )
    if (labels is None) != (classes is None):
        raise UserError("Labels and class names belong together; give both or neither.")
    if labels is not None and classes is not None:
        whole = labels.shape == pixels.shape[:1] and np.issubdtype(labels.dtype, np.integer)
        if not whole or labels.min() < 0 or labels.max() >= len(classes):
            raise UserError("Labels must be whole numbers, one an image, from 0 to the number of classes less one.")
        if len(set(classes)) < len(classes) or not all(name.strip() and name.isprintable() for name in classes):
            raise UserError("Class names must be different from each other, printable and not blank.")
    if texts is not None and (len(texts) != len(pixels) or not all(map(_encodable, texts))):
        raise UserError("Captions must be texts, as many as images; give one an image or none at all.")


def _encodable(text: str) -> bool:
    """Half a character (a lone surrogate) cannot be written."""
    return isinstance(text, str) and not re.search("[\ud800-\udfff]", text)


def _facts(samples: Samples, statement: dict[str, Any], title: str | None) -> ReleaseFacts:
    title = " ".join((title or "Synthetic images").split())
    if not title.isprintable():
        raise UserError("The title holds characters that cannot be printed; give plain text.")
    counts: dict[str, int] = {}
    if samples.labels is not None and samples.classes is not None:
        numbers = np.bincount(samples.labels, minlength=len(samples.classes))
        counts = {name: int(number) for name, number in zip(samples.classes, numbers, strict=True)}
    return ReleaseFacts(
        title=title,
        method=samples.provenance.method,
        statement=statement,
        counts=counts,
        total=len(samples.pixels),
        shape=(samples.pixels.shape[1], samples.pixels.shape[2], samples.pixels.shape[3]),
        texts=samples.texts is not None,
        version=__version__,
    )


def _records(samples: Samples) -> Iterator[tuple[str, dict[str, str]]]:
    """Path and line of metadata of each image."""
    folders = _folders(samples.classes or ())
    digits = max(6, len(str(len(samples.pixels) - 1)))
    for index in range(len(samples.pixels)):
        record = {}
        parts = ["images", f"{index:0{digits}}.png"]
        if samples.labels is not None and samples.classes is not None:
            label = int(samples.labels[index])
            parts.insert(1, folders[label])
            record["label"] = samples.classes[label]
        if samples.texts is not None:
            record["text"] = samples.texts[index]
        name = "/".join(parts)
        yield name, {"file_name": name} | record


def _folders(classes: tuple[str, ...]) -> list[str]:
    """Folder names of classes: their own if all of them are plain, else numbers."""
    plain = all(_PLAIN.fullmatch(name) and not _SPLIT.search(name) and not _DEVICE.fullmatch(name) for name in classes)
    if plain and len({name.lower() for name in classes}) == len(classes):
        return list(classes)
    return [f"class-{number:04}" for number in range(len(classes))]


def _png(pixels: np.ndarray) -> bytes:
    """One image `(C, H, W)` as PNG: header, pixels and nothing else."""
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def _sheet(samples: Samples) -> tuple[bytes, str]:
    """The report's contact sheet and what it shows."""
    width = samples.pixels.shape[3]
    scale = -(-SHEET_TILE // width) if width <= SHEET_TILE else min(1.0, 2 * SHEET_TILE / width)
    sheet = contact_sheet(
        samples.pixels, samples.labels, rows=SHEET_ROWS, columns=SHEET_COLUMNS, scale=scale, classes=samples.classes
    )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    if samples.labels is None or samples.classes is None:
        return buffer.getvalue(), f"the first {min(len(samples.pixels), SHEET_ROWS * SHEET_COLUMNS)} images"
    names = [samples.classes[label] for label in np.unique(samples.labels)[:SHEET_ROWS]]
    return buffer.getvalue(), f"the first images of each class, a row a class: {', '.join(names)}"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _walk(folder: Path) -> tuple[set[str], list[Finding]]:
    """Regular files below `folder` as POSIX paths, and what else is there."""
    found, findings = set(), []
    for place, folders, names in os.walk(folder):
        for name in folders + names:
            item = Path(place, name)
            path = item.relative_to(folder).as_posix()
            if item.is_symlink():
                findings.append(Finding(path, "is a symbolic link, and links may lead out of the release"))
            elif item.is_file():
                found.add(path)
            elif not item.is_dir():
                findings.append(Finding(path, "is neither a file nor a folder"))
    return found, findings


def _manifest(folder: Path, found: set[str], findings: list[Finding]) -> dict[str, str]:
    """Listed files and their checksums; what is wrong with marker and manifest is added to `findings`."""
    if DONE not in found:
        findings.append(Finding(DONE, "is missing: the release was never finished"))
    if MANIFEST not in found:
        findings.append(Finding(MANIFEST, "is missing"))
        return {}
    if DONE in found and (folder / DONE).read_bytes() != f"{sha256_file(folder / MANIFEST)}  {MANIFEST}\n".encode():
        findings.append(Finding(DONE, f"does not match {MANIFEST}"))
    listed: dict[str, str] = {}
    for number, line in enumerate((folder / MANIFEST).read_text(errors="replace").rstrip("\n").split("\n"), 1):
        match = _MANIFEST_LINE.fullmatch(line)
        name = match[2] if match else ""
        if not match or name in listed:
            findings.append(Finding(MANIFEST, f"line {number} is not a checksum and a new name"))
        elif not {"", ".", ".."}.isdisjoint(name.split("/")):
            findings.append(Finding(MANIFEST, f"line {number} names something outside the release"))
        else:
            listed[name] = match[1]
    return listed


def _digest(folder: Path, name: str) -> str:
    try:
        return sha256_file(folder / name)
    except OSError:
        return "unreadable"


def _compare_pages(folder: Path, found: set[str]) -> list[Finding]:
    """The statement must be one that may be published, and card and report must quote its epsilon and delta."""
    if STATEMENT not in found:
        return [Finding(STATEMENT, "is missing")]
    try:
        statement = json.loads((folder / STATEMENT).read_bytes())
        quoted = [shown(statement[name]) for name in ("epsilon", "delta")]
        private = statement["not_private"] is False and math.isfinite(statement["epsilon"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, ArithmeticError):
        return [Finding(STATEMENT, "is not a privacy statement")]
    findings = [] if private else [Finding(STATEMENT, "states no guarantee: it is NOT PRIVATE")]
    for name, pattern in (
        ("README.md", r"^\| (?:Epsilon|Delta) \| (\S+) \|$"),
        ("report.html", r'<data id="(?:epsilon|delta)" value="([^"]*)">'),
    ):
        page = (folder / name).read_text(errors="replace") if name in found else ""
        if re.findall(pattern, page, re.MULTILINE) != quoted:
            findings.append(Finding(name, f"does not quote the epsilon and delta of {STATEMENT}"))
    return findings


def _compare_metadata(folder: Path, found: set[str]) -> list[Finding]:
    """The metadata must name every image once, and nothing else."""
    if METADATA not in found:
        return [Finding(METADATA, "is missing")]
    try:
        lines = (folder / METADATA).read_bytes().splitlines()
        named = Counter(json.loads(line)["file_name"] for line in lines)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return [Finding(METADATA, "is not a list of images")]
    if named != Counter(name for name in found if name.startswith("images/")):
        return [Finding(METADATA, "does not name every image exactly once")]
    return []
