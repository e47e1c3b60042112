from __future__ import annotations

import re

import mlcroissant
import pytest
from tests.report.given import facts

from sfumato.report.croissant import croissant
from sfumato.report.facts import PIECES, SEEN, ReleaseFacts

# Of the Croissant RAI vocabulary 1.0 (MLCommons), and `hasSyntheticData` of 1.1.
VOCABULARY = {
    *("annotationsPerItem", "annotatorDemographics", "dataAnnotationAnalysis", "dataAnnotationPlatform"),
    *("dataAnnotationProtocol", "dataBiases", "dataCollection", "dataCollectionMissingData", "dataCollectionRawData"),
    *("dataCollectionTimeframe", "dataCollectionType", "dataImputationProtocol", "dataLimitations"),
    *("dataManipulationProtocol", "dataPreprocessingProtocol", "dataReleaseMaintenancePlan", "dataSocialImpact"),
    *("dataUseCases", "hasSyntheticData", "machineAnnotationTools", "personalSensitiveInformation"),
}


def responsible(some: ReleaseFacts) -> dict[str, object]:
    document = croissant(some, "0" * 64)
    return {name.removeprefix("rai:"): value for name, value in document.items() if name.startswith("rai:")}


def test_there_is_a_field_for_each_column() -> None:
    def names(some: ReleaseFacts) -> list[str]:
        (records,) = croissant(some, "0" * 64)["recordSet"]
        return [field["name"] for field in records["field"]]

    assert names(facts()) == ["name", "image", "label"]
    assert names(facts(texts=True)) == ["name", "image", "label", "text"]
    assert names(facts(counts={})) == ["name", "image"]
    document = croissant(facts(), "ab" * 32)
    assert document["distribution"][0]["sha256"] == "ab" * 32
    assert "datePublished" not in document


def test_the_responsible_fields_are_of_the_vocabulary_and_say_what_is_promised() -> None:
    found = responsible(facts(texts=True))
    assert found.keys() <= VOCABULARY
    assert found["hasSyntheticData"] is True
    assert found["personalSensitiveInformation"] == ["One. In figures: x. Two. From a shop. Not covered: A. B."]
    assert "Not covered by the guarantee: B." in found["dataLimitations"]  # type: ignore[operator]
    for name in ("dataCollection", "dataBiases", "dataUseCases", "dataSocialImpact", "dataReleaseMaintenancePlan"):
        assert found[name], name
    assert len(found["dataAnnotationProtocol"]) == 2  # type: ignore[arg-type]
    assert "dataAnnotationProtocol" not in responsible(facts(counts={}))


def test_the_responsible_fields_say_who_made_the_images_and_whose_word_the_labels_are() -> None:
    drawn, pieced = responsible(facts()), responsible(facts(statement={"released": {"detail": PIECES, "labels": SEEN}}))
    fields = ("dataCollection", "dataLimitations", "dataAnnotationProtocol")
    for name, text in zip(fields, ("drawn by a model", "Details are invented", "asked to show"), strict=True):
        assert text in str(drawn[name])
        assert text not in str(pieced[name])
    for name, text in zip(fields, ("from pieces of public", "those of public images", "classifier"), strict=True):
        assert text in str(pieced[name])


@pytest.mark.parametrize("some", [facts(), facts(counts={}, texts=True)], ids=["labels", "captions"])
def test_mlcroissant_finds_no_error_and_reads_the_responsible_fields(some: ReleaseFacts) -> None:
    metadata = mlcroissant.Metadata.from_json(ctx=mlcroissant.Context(), json_=croissant(some, "0" * 64))
    assert not metadata.ctx.issues.errors
    told = " ".join(metadata.ctx.issues.warnings)
    assert set(re.findall(r'schema\.org/(\w+)"', told)) <= {"license", "datePublished", "citeAs", "url"}
    assert metadata.data_limitations is not None
    assert metadata.data_social_impact is not None
    assert metadata.data_collection == responsible(some)["dataCollection"]
