"""Attacks on a finished release: who was in it (membership), and does it copy (memorisation).

An internal look. Private and holdout images are measured without noise, so the looks are on the ledger first, as for
`sfumato evaluate`, and what is found stays in the run folder. Where private and holdout images are a random division of
one collection, an attack that tells them apart better than the statement allows is a finding; where they are not, it
may only have learnt how they differ.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato import __version__, evaluation
from sfumato._files import write_json
from sfumato.audit.bounds import SHOWN, clopper_pearson
from sfumato.data.decode import ImageSpec
from sfumato.errors import UserError
from sfumato.measure.features import features, load_embedder
from sfumato.measure.images import read_captioned, read_images
from sfumato.measure.neighbours import nearest
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.statement import FALSE_ALARM
from sfumato.report.evaluation import NOTICE
from sfumato.report.render import write_internal

IMAGES = 2000
LEAST_IMAGES = 40
NEAR = 0.5
"""A generated image is a near copy of an image that is nearer than this part of its distance to the other side."""
Scores = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Attack:
    """How well scores tell members from others.

    Attributes:
        name: of the attack.
        members, others: images.
        area: under the receiver operating characteristic; 1/2 for a guess.
        found: share of members recognised, with a threshold that half of the others fixed and at most 5 % of them pass.
        false_alarms: share of the other half that pass it.
        found_at_least: lower end of the 95 % interval of `found`.
        allowed: the most that the statement allows at the false alarms' upper end.
    """

    name: str
    members: int
    others: int
    area: float
    found: float
    false_alarms: float
    found_at_least: float
    allowed: float

    @property
    def exceeds(self) -> bool:
        """Whether more was recognised than the statement allows."""
        return self.found_at_least > self.allowed


def attacked(name: str, members: Scores, others: Scores, allowed: Callable[[float], float]) -> Attack:
    """Scores `(N,)` and `(M,)`, the higher the likelier a member.

    Args:
        name: of the attack.
        members: scores of images that were learnt from.
        others: of images that were not; every second fixes the threshold.
        allowed: false alarms to the most true ones.
    """
    fixing, judged = others[::2], others[1::2]
    threshold = np.quantile(fixing, 1 - FALSE_ALARM)
    hits, alarms = int((members > threshold).sum()), int((judged > threshold).sum())
    most = clopper_pearson(alarms, len(judged), SHOWN).high
    order = np.sort(others)
    below = np.searchsorted(order, members, "left") + np.searchsorted(order, members, "right")
    return Attack(
        name=name,
        members=len(members),
        others=len(others),
        area=float(below.mean() / 2 / len(others)),
        found=hits / len(members),
        false_alarms=alarms / len(judged),
        found_at_least=clopper_pearson(hits, len(members), SHOWN).low,
        allowed=float(allowed(most)) if most < 1 else 1.0,
    )


def attack_release(
    release: Path,
    private: Path,
    holdout: Path,
    *,
    ledger: Ledger,
    run_folder: Path,
    out: Path,
    embedder: str = "efficientnet-lite0",
    images: int = IMAGES,
    report: evaluation.Report = lambda *_: None,
) -> dict[str, Any]:
    """Attacks a release with the images it was made from and others that were held out.

    Args:
        release: complete, and as it was written.
        private: the images that it was made from.
        holdout: images of the same kind that it was not made from; as private as the others.
        ledger: of the data set; must be the one that the release quotes. Two `look` lines are written first of all.
        run_folder: of the run; where it holds an autoregressive model, its likelihoods are attacked too.
        out: internal folder for `attack.json`; made if missing.
        embedder: what measures distances, by name.
        images: most images of each set.
        report: progress.

    Returns:
        What `attack.json` holds; `internal.html` beside it shows it.

    Raises:
        UserError: folders that do not fit together, an unfinished release, another data set's ledger, too few images.
        PrivacyRefusal: the ledger cannot be trusted, or the release is not finished.
    """
    evaluation.check_folders(release, private, holdout, out)
    statement = evaluation.released_statement(release)
    evaluation.check_ledger(ledger, statement, release)
    if images < LEAST_IMAGES:
        raise UserError(f"--images {images} is too few; give {LEAST_IMAGES} or more.")
    model, spec = load_embedder(embedder), evaluation.declared_spec(release, statement)
    evaluation.make_internal(out)
    for whose in ("private", "holdout"):
        ledger.look(f"attack on release {statement['release_id']}: membership and memorisation, {whose} images")
    found = {}
    for whose, folder in (("synthetic", release), ("private", private), ("holdout", holdout)):

        def told(done: int, stage: str = f"{whose} images") -> None:
            report(stage, done, images)

        found[whose] = features(read_images(folder, spec, images), model, told)
    members, others, made = (found[whose] for whose in ("private", "holdout", "synthetic"))
    if min(len(members), len(others)) < LEAST_IMAGES or not len(made):
        raise UserError(f"An attack needs at least {LEAST_IMAGES} readable private and holdout images.")
    allowed = _allowed(statement)
    attacks = [_by_distance(members, others, made, allowed)]
    likelihood = _likelihoods(run_folder, spec, (private, holdout), images, report)
    if likelihood is not None:
        gains, others_gains = likelihood
        attacks.append(attacked("likelihood of the coarse tokens", gains, others_gains, allowed))
    facts = {
        "notice": NOTICE,
        "release_id": statement["release_id"],
        "epsilon": statement["epsilon"],
        "delta": statement["delta"],
        "software": f"sfumato {__version__}",
        "embedder": model.identity.to_json(),
        "attacks": [{**dataclasses.asdict(attack), "exceeds": attack.exceeds} for attack in attacks],
        "memorisation": memorisation(members, others, made),
    }
    write_json(out / "attack.json", facts, mode=0o600)
    write_internal(out, release)
    return facts


def _by_distance(
    members: NDArray[np.float32],
    others: NDArray[np.float32],
    made: NDArray[np.float32],
    allowed: Callable[[float], float],
) -> Attack:
    """The nearer the nearest generated image, the likelier a member."""
    near, far = (-nearest(images, made).distances for images in (members, others))
    return attacked("distance to the nearest generated image", near, far, allowed)


def memorisation(
    members: NDArray[np.float32], others: NDArray[np.float32], made: NDArray[np.float32]
) -> dict[str, float | int]:
    """Near copies among generated images, of private images and, for comparison, of as many from the holdout.

    A generated image is a near copy of its nearest private image if that is less than half as far as its nearest
    holdout image; and the other way round.
    """
    count = min(len(members), len(others))
    to_private, to_holdout = (nearest(made, images[:count]).distances for images in (members, others))
    return {
        "generated": len(made),
        "images_of_each": count,
        "copies_of_private": int((to_private < NEAR * to_holdout).sum()),
        "copies_of_holdout": int((to_holdout < NEAR * to_private).sum()),
        "exact_copies": int((to_private == 0).sum()),
    }


def _allowed(statement: dict[str, Any]) -> Callable[[float], float]:
    """From the plan in the statement: the most true alarms at a rate of false ones."""
    from sfumato.privacy import accounting
    from sfumato.privacy.plan import Plan

    if "plan" not in statement:  # a bound that needs epsilon and delta alone
        epsilon, delta = float(statement["epsilon"]), float(statement["delta"])
        return lambda rate: min(1.0, math.exp(epsilon) * rate + delta)
    plan = Plan.from_json(statement["plan"])
    return lambda rate: accounting.attacker_power(plan.mechanisms, rate)


def _likelihoods(
    folder: Path, spec: ImageSpec, places: tuple[Path, Path], images: int, report: evaluation.Report
) -> tuple[Scores, Scores] | None:
    """How much likelier the trained model of coarse tokens finds each image than the public one did; None without it.

    The public model knows how hard an image is in itself; what private training added is what tells of membership
    (Carlini et al. 2022, "Membership inference attacks from first principles", section IV, on calibration). The
    attacker need not know an image's class, and takes the one in which it gained most; captions of it they know.
    """
    if not (folder / "TRAINED").is_file():
        return None
    if json.loads((folder / "config.json").read_text()).get("method") != "spectral":
        return None
    from sfumato import run
    from sfumato.audit.inserted import by_likelihood, hearing
    from sfumato.workflows import workflow

    finished = run.Run(folder)
    model, embed = run.load_model(finished), workflow("spectral").describe(finished.work)
    told = model.coarse.condition
    classes = {"none": 0, "class": told.size, "text": 0 if model.vectors is None else len(model.vectors)}[told.kind]
    scores = []
    for whose, place in zip(("private", "holdout"), places, strict=True):
        gains = []
        for number, (pixels, captions) in enumerate(read_captioned(place, spec, images)):
            if embed is not None:
                model, classes = hearing(model, embed, captions), len(captions)
            labels = torch.arange(-1, classes)
            shown = torch.from_numpy(pixels).expand(len(labels), -1, -1, -1)
            gains.append(by_likelihood(model, shown, labels).max())
            report(f"likelihood of {whose} images", number + 1, images)
        scores.append(np.array(gains))
    return scores[0], scores[1]
