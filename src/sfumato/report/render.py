"""The pages of a release: dataset card, report and Croissant metadata, from public facts only.

Everything shown comes from `ReleaseFacts`, and that is the allow-list: the privacy statement, class names declared
public, counts of synthetic images, the software's version and a title given by the user.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
UNITS = {"image": "one image", "person": "all images of one person"}
METHODS = {
    "privimage": "PrivImage",
    "spti": "SPTI",
    "spectral": "Spectral DP",
    "private_evolution": "Private Evolution",
}


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
    def method_name(self) -> str:
        """The method as its authors write it."""
        return METHODS.get(self.method, self.method)

    @property
    def not_covered(self) -> list[str]:
        """What the guarantee does not cover, an item a sentence."""
        return [str(item) for item in self.statement.get("not_covered") or []]

    @property
    def guarantee(self) -> list[str]:
        """The sentences without the one that lists `not_covered`."""
        return [text for text in self.sentences if not (self.not_covered and text.startswith("Not covered:"))]

    @property
    def public_classes(self) -> dict[str, str]:
        """Private class to the public classes that the semantic query chose for it, in words; empty without a query."""
        chosen = (self.statement.get("released") or {}).get("public_classes") or {}
        return {str(name): ", ".join(str(public) for public, _ in row) for name, row in chosen.items()}

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


def shown(value: float) -> str:
    """A privacy parameter with at most six significant digits, rounded up: no page promises more than is true."""
    rounded = Context(prec=6, rounding=ROUND_CEILING).plus(Decimal(repr(float(value)))).normalize()
    return f"{rounded:f}" if 1e-4 <= rounded < 10**6 else f"{rounded:e}"


def _percent_up(share: float) -> str:
    """A share in per cent with one decimal, rounded up except for what binary fractions add."""
    return f"{min(100.0, math.ceil(round(1000 * share, 6)) / 10):g}"


def render_card(facts: ReleaseFacts) -> str:
    """The dataset card `README.md`: a YAML header for dataset hubs, then Markdown."""
    return _templates().get_template("card.md.j2").render(facts=facts, size_category=_size_category(facts.total))


def render_report(facts: ReleaseFacts, sheet: bytes, shows: str) -> str:
    """The report `report.html`: one file that asks for nothing else, readable by eye, screen reader and printer.

    Args:
        facts: what to show.
        sheet: contact sheet as PNG.
        shows: what the sheet shows, in words.
    """
    picture = "data:image/png;base64," + base64.b64encode(sheet).decode()
    record = json.dumps(facts.statement, indent=2, ensure_ascii=False)
    return _templates().get_template("release.html.j2").render(facts=facts, picture=picture, shows=shows, record=record)


def croissant(facts: ReleaseFacts, metadata_sha256: str) -> dict[str, Any]:
    """Croissant 1.1 metadata (MLCommons) with its responsible-AI fields: where the records are and what they mean.

    Args:
        facts: what to say.
        metadata_sha256: checksum of the release's `metadata.jsonl`.
    """
    columns = ["label"] * bool(facts.counts) + ["text"] * facts.texts
    table = {"@id": "metadata.jsonl"}
    images = {"@id": "images"}
    return {
        "@context": CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": facts.title,
        "description": f"{facts.total} synthetic images ({facts.form}). {facts.sentences[0]}",
        "identifier": facts.release_id,
        "version": "1.0.0",
        "keywords": ["synthetic", "differential privacy", "images"],
        "rai:hasSyntheticData": True,
        "rai:dataCollection": f"Nothing was collected: Sfumato {facts.version} drew the images ({facts.method_name}).",
        "rai:dataCollectionType": ["Software Collection"],
        "rai:dataUseCases": ["Developing and testing image software where the private originals may not be shared."],
        "rai:dataLimitations": [
            "Synthetic images: details are invented, rare things may be missing, labels are those asked for."
        ],
        "rai:dataBiases": ["Biases of the private originals are reproduced; rare groups may be reproduced worse."],
        "rai:personalSensitiveInformation": [" ".join(facts.sentences)],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "metadata.jsonl",
                "name": "metadata.jsonl",
                "description": "One line per image: file name" + "".join(f", {column}" for column in columns) + ".",
                "contentUrl": "metadata.jsonl",
                "encodingFormat": "application/jsonlines",
                "sha256": metadata_sha256,
            },
            {
                "@type": "cr:FileSet",
                "@id": "images",
                "name": "images",
                "description": "The synthetic images.",
                "encodingFormat": "image/png",
                "includes": "images/*.png",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "records",
                "name": "records",
                "description": "One record per synthetic image.",
                "key": {"@id": "records/name"},
                "field": [
                    _field(
                        "name",
                        "sc:Text",
                        # Readers join on the last part of the path, which is unique in a release.
                        {
                            "fileObject": table,
                            "extract": {"column": "file_name"},
                            "transform": {"regex": "^(?:.*/)?([^/]+)$"},
                        },
                        references={"fileSet": images, "extract": {"fileProperty": "filename"}},
                    ),
                    _field("image", "sc:ImageObject", {"fileSet": images, "extract": {"fileProperty": "content"}}),
                    *(
                        _field(column, "sc:Text", {"fileObject": table, "extract": {"column": column}})
                        for column in columns
                    ),
                ],
            }
        ],
    }


def _field(name: str, data_type: str, source: dict[str, Any], **more: Any) -> dict[str, Any]:
    field = {"@type": "cr:Field", "@id": f"records/{name}", "name": name, "dataType": data_type, "source": source}
    return field | more


def _size_category(total: int) -> Markup:
    """The hub's word for a number of images; goes into YAML, not HTML, so its `<` stays."""
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return Markup(next((name for bound, name in bounds if total < bound), "1M<n<10M"))


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = _plain
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return environment


def _plain(text: str) -> Markup:
    """Text as Markdown that shows exactly this text: one line, nothing in it acts as markup."""
    return Markup(re.sub(r"([\\`*_{}\[\]<>|~#&$])", r"\\\1", " ".join(text.split())))
