"""What a run shows of itself: facts that may be published, and facts that may not.

`RunFacts` is gathered from a finished release and the run folder, and both pages come from it. The wall between them is
a type: card, report and Croissant metadata are given a `ReleaseFacts` and nothing else, which holds the privacy
statement, class names declared public, counts of synthetic images, the software's version and a title given by the
user. Everything else is `InternalFacts`, and only the internal page sees it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from sfumato.errors import UserError

UNITS = {"image": "one image", "person": "all images of one person"}
SUBJECTS = {"image": "one given image", "person": "the images of one given person"}
METHODS = {
    "privimage": "PrivImage",
    "spti": "SPTI",
    "spectral": "Spectral DP",
    "private-evolution": "Private Evolution",
}
AUDITS = {"audit.json": "Attacks on the guarantee", "attack.json": "Attacks on the release"}
TOUCHES = {"histogram": "noisy histogram", "sum": "noisy sum", "training": "private training"}

PIECES, SEEN = "pieces of public images", "seen by a private classifier"
"""Values of "detail" and "labels" among what a run releases, where they are not what one expects of a model."""


class Share(NamedTuple):
    """A touch's part of the budget, which is counted in units of mu^2: these add up, epsilons do not.

    Attributes:
        name: of the touch.
        what: its kind, in words.
        share: of the whole, in [0, 1].
        noise: noise in units of what one record can change.
        bought, used: attempts.
    """

    name: str
    what: str
    share: float
    noise: float
    bought: int
    used: int


@dataclass(frozen=True)
class ReleaseFacts:
    """What the pages of a release may show.

    Attributes:
        title: heading, given by the user or a default.
        method: name of the method that made the images.
        statement: the privacy statement as JSON.
        counts: synthetic images per class name, in class order; empty if the images have no labels.
        total: synthetic images.
        shape: (channels, height, width) of each.
        texts: whether images have captions.
        version: of Sfumato.
    """

    title: str
    method: str
    statement: Mapping[str, Any]
    counts: Mapping[str, int]
    total: int
    shape: tuple[int, int, int]
    texts: bool
    version: str

    @classmethod
    def read(cls, release: Path) -> ReleaseFacts:
        """The facts that a finished release was written from, out of its own files.

        Raises:
            UserError: it is not a release that Sfumato wrote.
        """
        try:
            statement = json.loads((release / "privacy.json").read_bytes())
            described = json.loads((release / "croissant.json").read_bytes())
            lines = (release / "metadata.jsonl").read_bytes().splitlines()
            records = [json.loads(line) for line in lines]
            labels = Counter(record["label"] for record in records if "label" in record)
            with Image.open(release / records[0]["file_name"]) as image:
                shape = (len(image.getbands()), image.height, image.width)
            classes = (statement.get("declared") or {}).get("classes") or sorted(labels)
            return cls(
                title=described["name"],
                method=described.get("measurementTechnique", "not told"),
                statement=statement,
                counts={name: labels[name] for name in classes} if labels else {},
                total=len(records),
                shape=shape,
                texts="text" in records[0],
                version=str(statement.get("software", "")).removeprefix("sfumato "),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{release} is not a release that this version of Sfumato wrote.") from error

    @property
    def sentences(self) -> list[str]:
        """The statement, a fact a sentence."""
        return [str(sentence) for sentence in self.statement.get("sentences") or [self.statement["text"]]]

    @property
    def epsilon(self) -> str:
        """Epsilon as the pages quote it."""
        return shown(self.statement["epsilon"])

    @property
    def delta(self) -> str:
        """Delta as the pages quote it."""
        return shown(self.statement["delta"])

    @property
    def release_id(self) -> str:
        """The release's random name."""
        return str(self.statement["release_id"])

    @property
    def unit(self) -> str | None:
        """What one record is, in words."""
        return UNITS.get(str(self.statement.get("unit")))

    @property
    def subject(self) -> str:
        """Whom an attacker looks for, in words."""
        return SUBJECTS.get(str(self.statement.get("unit")), "one given record")

    @property
    def method_name(self) -> str:
        """The method as its authors write it."""
        return METHODS.get(self.method, self.method)

    @property
    def not_covered(self) -> list[str]:
        """What the guarantee does not cover, an item a sentence."""
        return [str(item) for item in self.statement.get("not_covered") or []]

    @property
    def public_inputs(self) -> list[str]:
        """Public models and data with their licences, a sentence each."""
        return [str(item) for item in self.statement.get("public_inputs") or []]

    @property
    def guarantee(self) -> list[str]:
        """The sentences of the statement that have no place of their own on a page."""
        apart = {*self.public_inputs}
        starts = ("Not covered:",) * bool(self.not_covered) + ("In figures:",) * (self.attacker is not None)
        return [text for text in self.sentences if text not in apart and not text.startswith(starts)]

    @property
    def budget(self) -> list[Share]:
        """The touches and their shares; empty if the statement does not tell them."""
        shares = (self.statement.get("declared") or {}).get("budget_shares") or {}
        executed = self.statement.get("executed") or {}
        touches = (self.statement.get("plan") or {}).get("touches") or []
        return [
            Share(
                touch["name"],
                TOUCHES[touch["kind"]],
                float(shares[touch["name"]]),
                float(touch.get("noise_multiplier", touch.get("scale"))),
                int(touch.get("attempts") or touch.get("rounds") or touch.get("steps")),
                int(executed.get(touch["name"], 0)),
            )
            for touch in touches
            if touch["name"] in shares
        ]

    @property
    def public_classes(self) -> dict[str, str]:
        """Private class to the public classes that the semantic query chose for it, in words; empty without a query."""
        chosen = self._released.get("public_classes") or {}
        return {str(name): ", ".join(str(public) for public, _ in row) for name, row in chosen.items()}

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """What each round of votes released; empty for methods without rounds."""
        return list(self._released.get("rounds") or [])

    @property
    def origin(self) -> str:
        """Who made the images, after "every image was"."""
        if self._released.get("detail") == PIECES:
            return "put together from pieces of public images, as a model of the private ones says"
        return "drawn by a model"

    @property
    def details(self) -> str:
        """Where the images' details are from, as a clause."""
        return (
            "details are those of public images" if self._released.get("detail") == PIECES else "details are invented"
        )

    @property
    def labels(self) -> str:
        """What labels mean, as a clause."""
        if self._released.get("labels") == SEEN:
            return "labels say what a classifier, which learnt under the guarantee, takes the images for"
        return "labels are those the images were asked to show"

    @property
    def _released(self) -> Mapping[str, Any]:
        return self.statement.get("released") or {}

    @property
    def attacker(self) -> tuple[str, str] | None:
        """False alarms of a test for one unit's presence, and how often it can be right at most, in per cent."""
        facts = self.statement.get("attacker")
        if not isinstance(facts, Mapping):
            return None
        return _percent_up(float(facts["false_alarm"])), _percent_up(float(facts["most_recognised"]))

    @property
    def form(self) -> str:
        """Size and colour of an image in words."""
        channels, height, width = self.shape
        return f"{width} \N{MULTIPLICATION SIGN} {height} pixels, {'grey' if channels == 1 else 'colour'}"


class Curve(NamedTuple):
    """A line in a picture: its name and points (x, y), in the order of x."""

    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class InternalFacts:
    """What only the curator may see: everything in a run folder that is exact, or tells of one record.

    Attributes:
        dataset: name of the data set; None outside a run folder.
        intake: what intake found in the private folder.
        evaluation: exact measurements, as `evaluation.json` holds them.
        neighbours: picture of synthetic images beside the private ones they resemble most, PNG.
        audits: what attacks found, by title; as the files of `AUDITS` hold it.
        losses: a curve a stage, of loss against step.
        progress: a curve a stage, of the share that was done (per cent) against minutes since the run began.
    """

    dataset: str | None = None
    intake: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    neighbours: bytes | None = None
    audits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    losses: tuple[Curve, ...] = ()
    progress: tuple[Curve, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> InternalFacts:
        """What the files of a folder tell; those that are missing or broken tell nothing."""
        settings, picture = _json(folder / "config.json"), folder / "neighbours.png"
        return cls(
            dataset=None if settings is None else str(settings.get("dataset")),
            intake=_json(folder / "intake.json"),
            evaluation=_json(folder / "evaluation.json"),
            neighbours=picture.read_bytes() if picture.is_file() else None,
            audits={title: found for name, title in AUDITS.items() if (found := _json(folder / name)) is not None},
            losses=_losses(_lines(folder / "losses.jsonl")),
            progress=_progress(_lines(folder / "progress.jsonl")),
        )


@dataclass(frozen=True)
class RunFacts:
    """All that is told of a finished run: `release` to everyone, `inside` to the curator alone."""

    release: ReleaseFacts
    inside: InternalFacts

    @classmethod
    def gather(cls, release: Path, folder: Path) -> RunFacts:
        """Reads a finished release and a run folder, or another internal folder with an evaluation in it.

        Raises:
            UserError: `release` is not a release.
        """
        return cls(ReleaseFacts.read(release), InternalFacts.read(folder))


def shown(value: float) -> str:
    """A privacy parameter with at most six significant digits, rounded up: no page promises more than is true."""
    rounded = Context(prec=6, rounding=ROUND_CEILING).plus(Decimal(repr(float(value)))).normalize()
    return f"{rounded:f}" if 1e-4 <= rounded < 10**6 else f"{rounded:e}"


def _percent_up(share: float) -> str:
    """A share in per cent with one decimal, rounded up except for what binary fractions add."""
    return f"{min(100.0, math.ceil(round(1000 * share, 6)) / 10):g}"


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; a last line that a crash cut short is passed over."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _losses(lines: list[dict[str, Any]]) -> tuple[Curve, ...]:
    curves: dict[str, dict[float, float]] = {}
    for line in lines:
        loss, step = line.get("loss"), line.get("step")
        if isinstance(loss, int | float) and isinstance(step, int | float) and math.isfinite(loss):
            curves.setdefault(str(line.get("stage", "training")), {})[float(step)] = float(loss)  # resumed, told twice
    return tuple(Curve(name, sorted(points.items())) for name, points in curves.items())


def _progress(lines: list[dict[str, Any]]) -> tuple[Curve, ...]:
    curves: dict[str, list[tuple[float, float]]] = {}
    began: float | None = None
    for line in lines:
        time, done, of = line.get("time"), line.get("done"), line.get("of")
        if not isinstance(time, int | float) or not isinstance(done, int | float):
            continue
        began = time if began is None else began
        share = min(100.0, 100 * done / of) if isinstance(of, int | float) and of > 0 else 100.0
        curves.setdefault(str(line.get("stage")), []).append(((time - began) / 60, share))
    return tuple(Curve(name, points) for name, points in curves.items())
