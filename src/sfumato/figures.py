"""Figures of a release on its private images that are bought with budget, and so may be published."""

from __future__ import annotations

import dataclasses
import secrets
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sfumato import __version__
from sfumato._files import write_json
from sfumato.bought import Space, right_or_wrong, share_of
from sfumato.data.decode import ImageSpec
from sfumato.data.folder import ImageFolder
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.evaluation import check_ledger, declared_spec, released_statement
from sfumato.measure.features import features, load_embedder
from sfumato.measure.images import read_folder, read_images
from sfumato.measure.recipes import ClassifierName, train
from sfumato.methods.privimage_model import stamped
from sfumato.privacy import accounting
from sfumato.privacy.histogram import Votes
from sfumato.privacy.ledger import Charge, Ledger
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import HistogramRequest, HistogramTouch, Plan, Request, SumRequest, SumTouch, Unit
from sfumato.privacy.records import PrivateRecords, record_key
from sfumato.privacy.session import Session
from sfumato.privacy.statement import FALSE_ALARM
from sfumato.run import RDP_ORDERS

FIGURES = ("accuracy", "distance")
ACCURACY, DISTANCE = FIGURES
_SHARE = 0.2  # of mu^2 for the accuracy, which needs far less than the distance
_MOST = 5000  # synthetic images whose features decide the space

Report = Callable[[str, int, int | None], None]


def check_figures(wanted: Sequence[str]) -> tuple[str, ...]:
    """The figures that are wanted, in order.

    Raises:
        UserError: none is named.
        PrivacyRefusal: one that no touch can give.
    """
    for name in wanted:
        if name not in FIGURES:
            raise PrivacyRefusal(
                f"The figure {name!r} cannot be bought: only {' and '.join(FIGURES)} come from sums over records. "
                "Anything about neighbours, single images or the best of several results stays internal (--look)."
            )
    if not wanted:
        raise UserError(f"No figure is named; give some of {', '.join(FIGURES)}.")
    return tuple(name for name in FIGURES if name in wanted)


def plan_figures(wanted: Sequence[str], epsilon: float, delta: float, unit: Unit, size: int | None) -> Plan:
    """The touches of a purchase, calibrated; each has one spare attempt."""
    both = len(wanted) == len(FIGURES)
    requests: list[Request] = []
    if ACCURACY in wanted:
        requests.append(HistogramRequest(ACCURACY, cells=1, rounds=2, share=_SHARE if both else None))
    if DISTANCE in wanted:
        requests.append(SumRequest(DISTANCE, 1.0, attempts=2))
    return Plan.calibrate(requests, epsilon=epsilon, delta=delta, unit=unit, declared_size=size)


def buy_figures(
    release: Path,
    private: Path,
    *,
    ledger: Ledger,
    out: Path,
    epsilon: float,
    delta: float,
    size: int | None = None,
    wanted: Sequence[str] = FIGURES,
    embedder: str = "efficientnet-lite0",
    classifier: ClassifierName = "cnn",
    report: Report = lambda *_: None,
    noise: Noise | None = None,
) -> dict[str, Any]:
    """Buys figures about a finished release. They are charged to the ledger like a run, and count in later statements.

    Args:
        release: complete, and as it was written.
        private: the images that it was made from, or others of the same data set.
        ledger: the one that the release quotes.
        out: folder for `figures.json`, or `figures-NOT-PRIVATE.json`; made if missing.
        epsilon, delta: of all figures together.
        size: declared number of records, or None.
        wanted: some of `FIGURES`.
        embedder: that the distance sees with.
        classifier: that learns from the release.
        report: progress.
        noise: test noise makes the figures NOT PRIVATE.

    Returns:
        What `figures.json` holds: may be published, as a whole.

    Raises:
        UserError: the release is not as it was written, or has no classes; an unknown embedder; no images.
        PrivacyRefusal: a figure that cannot be bought, another ledger, or a cap that forbids the plan.
    """
    wanted, noise = check_figures(wanted), noise or Noise()
    statement = released_statement(release)
    check_ledger(ledger, statement, release)
    classes = statement["declared"]["classes"]
    if ACCURACY in wanted and not classes:
        raise UserError("The release has no classes, so no accuracy can be bought; ask for the distance alone.")
    plan = plan_figures(wanted, epsilon, delta, statement["unit"], size)
    asked = _questions(release, statement, wanted, embedder, classifier, report)
    run_id = secrets.token_hex(8)
    folder = out / f"figures-{run_id}"
    folder.mkdir(mode=0o700, parents=True)
    try:
        session = _opened(private, declared_spec(release, statement), classes, plan, ledger, run_id, folder, noise)
        figures = {}
        for number, (name, ask) in enumerate(asked.items()):
            report("asking private images", number, len(asked))
            figures[name] = ask(session)
        report("asking private images", len(asked), len(asked))
        ledger.finish(run_id)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts = {
        "release_id": statement["release_id"],
        "not_private": not noise.private,
        "epsilon": plan.planned_epsilon,
        "delta": plan.delta,
        "unit": plan.unit,
        "attacker": {
            "false_alarm": FALSE_ALARM,
            "most_recognised": accounting.attacker_power(plan.mechanisms, FALSE_ALARM),
        },
        "plan": plan.to_json(),
        "figures": figures,
        "software": f"sfumato {__version__}",
    }
    write_json(out / stamped("figures.json", not noise.private), facts)
    return facts


Question = Callable[[Session], dict[str, Any]]


def _questions(
    release: Path,
    statement: dict[str, Any],
    wanted: Sequence[str],
    embedder: str,
    classifier: ClassifierName,
    report: Report,
) -> dict[str, Question]:
    """What each figure asks, prepared from the release alone, before a private file is opened."""
    found: dict[str, Question] = {}
    spec, classes = declared_spec(release, statement), statement["declared"]["classes"]
    if ACCURACY in wanted:
        known = read_folder(release, spec, classes=classes).numbered(tuple(classes))
        told = partial(report, "classifier on synthetic images")
        found[ACCURACY] = partial(_accuracy, classifier, right_or_wrong(train(classifier, known, "cpu", told)))
    if DISTANCE in wanted:
        model = load_embedder(embedder)
        seen = features(read_images(release, spec, _MOST), model, lambda done: report("synthetic images", done, None))
        found[DISTANCE] = partial(_distance, Space.of(model, seen))
    return found


def _accuracy(classifier: str, vote: Votes, session: Session) -> dict[str, Any]:
    counts = session.noisy_histogram(ACCURACY, vote, 2)
    share = share_of(counts, session.touch(ACCURACY, HistogramTouch).scale)
    return {"classifier": classifier, **dataclasses.asdict(share)}


def _distance(space: Space, session: Session) -> dict[str, Any]:
    noisy = session.noisy_sum(DISTANCE, space.vectors, (1, space.length))[0]
    noise = session.touch(DISTANCE, SumTouch).noise_multiplier
    return {
        "embedder": space.embedder.identity.to_json(),
        "dimensions": space.axes.shape[1],
        "frechet": space.distance(noisy),
        "by_noise_alone": space.by_noise_alone(noisy, noise),
    }


def _opened(
    private: Path,
    spec: ImageSpec,
    classes: Sequence[str] | None,
    plan: Plan,
    ledger: Ledger,
    run_id: str,
    folder: Path,
    noise: Noise,
) -> Session:
    """Reads the private folder and enters the plan on the ledger."""
    records, found = PrivateRecords.intake(
        ImageFolder(private),
        spec,
        spec.shape,
        unit=plan.unit,
        classes=classes,
        folder=folder / "private",
        key=record_key(secrets.token_bytes(32)),
        fingerprint_key=ledger.fingerprint_key(),
    )
    if found.images == 0:
        raise UserError("There are no images in the private folder; nothing was spent.")
    charge = Charge(plan.planned_epsilon, plan.delta, plan.rdp(RDP_ORDERS))
    ledger.charge(
        run_id, charge, plan.attempts(), plan.sha256(), plan.unit, found.fingerprint, not_private=not noise.private
    )
    return Session(records, plan, ledger, run_id, folder, noise)
