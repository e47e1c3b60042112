"""The internal report on a release: how good the images are, and how near they come to the private ones.

Every figure stands beside a reference: what real images that the release was not made from reach in its place. The
figures are exact, so the private and the holdout images are looked at without protection. Each look is on the ledger
before a file is opened, and what is found stays in an internal folder.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato import __version__
from sfumato._files import write_atomic, write_json
from sfumato.data.decode import MAX_SIDE, ImageSpec
from sfumato.data.release import verify_release
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.measure.closeness import closeness, lean
from sfumato.measure.density_coverage import density_coverage, expected_coverage
from sfumato.measure.features import NETWORKS, features, load_embedder
from sfumato.measure.frechet import frechet_distance
from sfumato.measure.images import read_folder, read_images, spec_of
from sfumato.measure.kernel import kernel_distance
from sfumato.measure.neighbours import nearest
from sfumato.measure.precision_recall import precision_recall
from sfumato.measure.recipes import CLASSIFIERS, ClassifierName
from sfumato.measure.utility import utility_table
from sfumato.pretrained.interfaces import ImageEmbedder
from sfumato.privacy.ledger import Ledger
from sfumato.report.evaluation import NOTICE
from sfumato.report.render import write_internal
from sfumato.report.sheet import neighbours_sheet

IMAGES = 2000
LEAST_IMAGES = 12  # of each set, for the neighbours that are asked for
SHOWN = 12  # synthetic images in the picture of nearest neighbours
SHOWN_SIDE = 96  # their width there in pixels, about
CLASSIFIER_SIDE = 64  # classifiers see images reduced to this many pixels of the longer side

Features = NDArray[np.float32]

Report = Callable[[str, int, int | None], None]
"""Told (stage, steps done, steps in all or None). Internal: it counts private images."""


def evaluate_release(
    release: Path,
    private: Path,
    holdout: Path,
    *,
    ledger: Ledger,
    out: Path,
    embedders: Sequence[str] = NETWORKS,
    classifiers: Sequence[ClassifierName] = CLASSIFIERS,
    images: int = IMAGES,
    device: str = "auto",
    report: Report = lambda *_: None,
) -> dict[str, Any]:
    """Measures a release against the private images it was made from and against others that were held out.

    Distances are between equal numbers of images, for many of them depend on it. Classifiers learn from the release
    and, for comparison, from as many private images; both are tested on the holdout. Real images are brought to the
    release's shape as its run did it.

    Args:
        release: complete, and as it was written.
        private: the images that the release was made from.
        holdout: real images of the same kind that it was not made from; as private as the others.
        ledger: of the data set; must be the one that the release quotes. Two `look` lines are written first of all.
        out: internal folder for `evaluation.json`, `neighbours.png` and `internal.html`; made if missing.
        embedders: what measures distances, by name.
        classifiers: what measures utility; none leaves it out.
        images: most images of each set for distances.
        device: where classifiers are trained: "cpu", "cuda" or "auto".
        report: progress.

    Returns:
        What `evaluation.json` holds.

    Raises:
        UserError: folders that do not fit together, an unfinished release, another data set's ledger, an unknown name,
            or too few images.
        PrivacyRefusal: the ledger cannot be trusted.
    """
    began = time.monotonic()
    check_folders(release, private, holdout, out)
    statement = released_statement(release)
    check_ledger(ledger, statement, release)
    if images < LEAST_IMAGES:
        raise UserError(f"--images {images} is too few; give {LEAST_IMAGES} or more.")
    models = {name: load_embedder(name) for name in embedders}
    spec = declared_spec(release, statement)
    make_internal(out)
    for whose in ("private", "holdout"):
        ledger.look(f"evaluation of release {statement['release_id']}: distances and classifiers, {whose} images")
    places = {"synthetic": release, "private": private, "holdout": holdout}
    pictured = next(iter(models), None)
    facts = {
        "notice": NOTICE,
        "release_id": statement["release_id"],
        "epsilon": statement["epsilon"],
        "delta": statement["delta"],
        "dataset": ledger.dataset,
        "software": f"sfumato {__version__}",
        "distances": {
            name: _distances(name, model, places, spec, images, report, out if name == pictured else None)
            for name, model in models.items()
        },
        "classifiers": _classifiers(release, private, holdout, spec, classifiers, device, report),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(out / "evaluation.json", facts, mode=0o600)
    write_internal(out, release)
    return facts


def ledger_of(release: Path, run: Path, dataset: str | None, path: Path | None) -> Ledger:
    """The ledger of a release: as named, or as the settings in its run folder have it.

    Raises:
        UserError: the data set is not named and there is no run folder that knows it.
    """
    if dataset is None:
        try:
            settings = json.loads((run / "config.json").read_text())
            dataset, noted = str(settings["dataset"]), settings["ledger"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{run} does not tell which data set {release} was made from; name it with --dataset."
            ) from error
        path = path or (Path(noted) if noted else None)
    return Ledger.open(dataset, path)


def check_folders(release: Path, private: Path, holdout: Path, out: Path) -> None:
    for name, folder in (("release", release), ("private", private), ("holdout", holdout)):
        if not folder.is_dir():
            raise UserError(f"The {name} folder {folder} does not exist or is not a folder.")
    one, other = private.resolve(), holdout.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise UserError("The holdout must be other images than the private ones; neither folder may lie in the other.")
    target = out.resolve()
    for name, folder in (("release", release), ("private", private), ("holdout", holdout)):
        if folder.resolve() == target or folder.resolve() in target.parents:
            raise UserError(f"The evaluation is internal and may not be written into the {name} folder; give --out.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder; give a folder for the evaluation with --out.")


def released_statement(release: Path) -> dict[str, Any]:
    """The privacy statement of a release that is complete and unchanged."""
    if not (release / "DONE").is_file():
        raise PrivacyRefusal(
            f"{release} is not a finished release: it holds no DONE. Looks come after the release, for choices made "
            "with them are not covered by its statement."
        )
    findings = verify_release(release)
    if findings:
        raise UserError(
            f"{release} is not as it was written ({findings[0]}); `sfumato verify {release}` names all that is wrong."
        )
    statement: dict[str, Any] = json.loads((release / "privacy.json").read_text())
    return statement


def declared_spec(release: Path, statement: dict[str, Any]) -> ImageSpec:
    """The release's shape; real images are brought to it in the way that its run declared."""
    shape = spec_of(release, longest=MAX_SIDE)
    declared = statement["declared"].get("image")
    if declared is None:
        return shape
    return dataclasses.replace(shape, fit=declared["fit"], range16=tuple(declared["range16"]))


def _reduced(spec: ImageSpec) -> ImageSpec:
    """The shape in which classifiers see images."""
    scale = min(1.0, CLASSIFIER_SIDE / max(spec.height, spec.width))
    return dataclasses.replace(spec, height=max(4, round(scale * spec.height)), width=max(4, round(scale * spec.width)))


def check_ledger(ledger: Ledger, statement: dict[str, Any], release: Path) -> None:
    """A look on another data set's ledger would be a look that no later statement tells of."""
    if ledger.public_id() != statement["data_set"]["ledger"]:
        raise UserError(
            f"The ledger {ledger.path} is not the one that {release} quotes, and looks belong there; name the data set "
            "with --dataset, or the file with --ledger."
        )


def make_internal(out: Path) -> None:
    """An internal folder that can be written, before anything is looked at."""
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give another folder with --out.") from error


def _distances(
    name: str,
    model: ImageEmbedder,
    places: dict[str, Path],
    spec: ImageSpec,
    images: int,
    report: Report,
    out: Path | None,
) -> dict[str, Any]:
    """All distances by one embedder: the release's, and those of the holdout in its place.

    A picture of nearest neighbours is written into `out`, if that is given.
    """
    found = {}
    for whose, folder in places.items():
        stage = f"{name}: {whose} images"

        def told(done: int, stage: str = stage) -> None:
            report(stage, done, images)

        found[whose] = features(read_images(folder, spec, images), model, told)
    count = min(map(len, found.values()))
    if count < LEAST_IMAGES:
        raise UserError(f"Distances need at least {LEAST_IMAGES} readable images in each of the three folders.")
    synthetic, private, holdout = (found[whose][:count] for whose in ("synthetic", "private", "holdout"))
    report(f"{name}: distances", 0, 2)
    release = _compare(private, synthetic)
    report(f"{name}: distances", 1, 2)
    reference = _compare(private, holdout)
    report(f"{name}: distances", 2, 2)
    if out is not None:
        buffer = io.BytesIO()
        _neighbours(places, spec, synthetic, private, holdout).save(buffer, "PNG")
        write_atomic(out / "neighbours.png", buffer.getvalue(), mode=0o600)
    return {
        "embedder": model.identity.to_json(),
        "images": count,
        "release": release,
        "reference": reference,
        "release_to_holdout": dataclasses.asdict(closeness(holdout, synthetic)),
        "lean": dataclasses.asdict(lean(private, holdout, synthetic)),
        "expected": {"density": 1.0, "coverage": expected_coverage(count, count), "lean": 0.5},
    }


def _neighbours(
    places: dict[str, Path], spec: ImageSpec, synthetic: Features, private: Features, holdout: Features
) -> Image.Image:
    """The synthetic images that come nearest to a private one, above it and above the nearest of the holdout."""
    to_private, to_holdout = nearest(synthetic, private), nearest(synthetic, holdout)
    chosen = np.argsort(to_private.distances, kind="stable")[:SHOWN]
    rows = {"synthetic": chosen, "private": to_private.indices[chosen], "holdout": to_holdout.indices[chosen]}
    scale = max(1, SHOWN_SIDE // spec.width) if spec.width <= SHOWN_SIDE else SHOWN_SIDE / spec.width
    return neighbours_sheet([(name, _chosen(places[name], spec, row)) for name, row in rows.items()], scale)


def _chosen(folder: Path, spec: ImageSpec, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images by their place in what `read_images` gives, `(len(indices), C, H, W)`."""
    read = enumerate(read_images(folder, spec, int(indices.max()) + 1))
    held = {place: image for place, image in read if place in indices}
    return np.stack([held[int(place)] for place in indices])


def _compare(real: NDArray[np.float32], generated: NDArray[np.float32]) -> dict[str, Any]:
    measures: dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], Any]] = {
        "frechet": frechet_distance,
        "kernel": kernel_distance,
        "precision_recall": precision_recall,
        "density_coverage": density_coverage,
        "nearest": closeness,
    }
    return {name: dataclasses.asdict(measure(real, generated)) for name, measure in measures.items()}


def _classifiers(
    release: Path,
    private: Path,
    holdout: Path,
    spec: ImageSpec,
    classifiers: Sequence[ClassifierName],
    device: str,
    report: Report,
) -> dict[str, Any]:
    """The table of classifiers, or why there is none."""
    spec = _reduced(spec)
    if not classifiers:
        return {"absent": "No classifier was asked for."}
    try:
        report("reading images with labels", 0, 3)
        known = read_folder(release, spec)
        report("reading images with labels", 1, 3)
        test = read_folder(holdout, spec, classes=known.classes).numbered(known.classes)
        report("reading images with labels", 2, 3)
        real = read_folder(private, spec, classes=known.classes, limit=len(known.labels)).numbered(known.classes)
        report("reading images with labels", 3, 3)
    except UserError as error:
        return {"absent": str(error)}
    return utility_table(known, test, real, classifiers=classifiers, device=device, progress=report).to_json()
