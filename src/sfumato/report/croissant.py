"""Croissant 1.1 metadata of a release (MLCommons), with the fields for responsible AI (Croissant-RAI 1.0).

Machines read here what the dataset card tells people: where the records are, what they mean, what they are good for,
and what is promised of the private images behind them.
"""

from __future__ import annotations

from typing import Any

from sfumato.report.facts import ReleaseFacts

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
        "measurementTechnique": facts.method_name,
        "version": "1.0.0",
        "keywords": ["synthetic", "differential privacy", "images"],
        **_responsibly(facts),
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


def _responsibly(facts: ReleaseFacts) -> dict[str, Any]:
    """The fields for responsible AI, as far as they apply to images that nobody took."""
    annotations = [
        *[f"Nobody looked at the images: {facts.labels}."] * bool(facts.counts),
        *["A caption is the text from which the image was made; nobody looked at it."] * facts.texts,
    ]
    maker = f"Sfumato {facts.version} ({facts.method_name})"
    return {
        "rai:hasSyntheticData": True,
        "rai:dataCollection": f"Nothing was collected: every image was {facts.origin}, by {maker}.",
        "rai:dataCollectionType": ["Software Collection"],
        "rai:dataCollectionMissingData": (
            "Private images that could not be read contributed nothing; whether there were any is not told."
        ),
        "rai:dataCollectionRawData": "The private originals are no part of this release and cannot be had with it.",
        "rai:dataPreprocessingProtocol": [f"Private images were brought to one declared form ({facts.form})."],
        **(
            {
                "rai:dataAnnotationProtocol": annotations,
                "rai:machineAnnotationTools": [maker],
                "rai:annotationsPerItem": "1",
            }
            if annotations
            else {}
        ),
        "rai:dataUseCases": [
            "Developing, testing and teaching image software where the private originals may not be shared.",
            "Not for conclusions about single people, nor for decisions about them.",
        ],
        "rai:dataLimitations": [
            f"{facts.details.capitalize()}, and rare things may be missing.",
            *(f"Not covered by the guarantee: {item}" for item in facts.not_covered),
        ],
        "rai:dataBiases": [
            "Biases of the private originals and of public models and data are reproduced.",
            "Noise hides small groups first: rare kinds of images may be drawn worse, or not at all.",
        ],
        "rai:dataSocialImpact": (
            "Images can be shared without sharing the private ones. They may still resemble somebody by chance, and "
            "what is true of the private images as a whole remains visible."
        ),
        "rai:personalSensitiveInformation": [" ".join(facts.sentences)],
        "rai:dataReleaseMaintenancePlan": (
            "The release is final: its files are never changed, and MANIFEST.sha256 tells whether they are. A further "
            "release has an identifier of its own."
        ),
    }


def _field(name: str, data_type: str, source: dict[str, Any], **more: Any) -> dict[str, Any]:
    field = {"@type": "cr:Field", "@id": f"records/{name}", "name": name, "dataType": data_type, "source": source}
    return field | more
