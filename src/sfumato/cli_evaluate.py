"""The command `sfumato evaluate`: measurements of a release; un-noised for the curator alone, or bought for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli_ledger import Json, LedgerPath
from sfumato.cli_progress import progress
from sfumato.errors import PrivacyRefusal, UserError

FinishedRelease = Annotated[Path, typer.Argument(help="A finished release.")]
PrivateOption = Annotated[Path, typer.Option(help="Folder of the private images that the release was made from.")]
HoldoutOption = Annotated[
    Path | None, typer.Option(help="Folder of real images that it was not made from; as private as the others.")
]
Look = Annotated[
    bool, typer.Option("--look", help="Agree to un-noised looks at private images, noted on the ledger for good.")
]
DatasetOption = Annotated[
    str | None, typer.Option(help="Name of the data set.  [default: as the run folder has it]", show_default=False)
]


def evaluate(
    release_dir: FinishedRelease,
    private: PrivateOption,
    holdout: HoldoutOption = None,
    look: Look = False,
    dataset: DatasetOption = None,
    ledger: LedgerPath = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Internal folder for the evaluation.  [default: RELEASE_DIR.run]", show_default=False),
    ] = None,
    embedder: Annotated[
        list[str] | None,
        typer.Option(
            help="What measures distances; repeatable.  [default: efficientnet-lite0, inception-nsfwjs]",
            show_default=False,
        ),
    ] = None,
    classifiers: Annotated[
        str, typer.Option(help="What measures utility, separated by commas, or 'none'.")
    ] = "logistic,mlp,cnn,wrn",
    images: Annotated[int, typer.Option(help="Most images of each folder for distances.")] = 2000,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    epsilon_for_report: Annotated[
        float | None, typer.Option(help="Buy figures that may be published, instead of a look, with this budget.")
    ] = None,
    delta_for_report: Annotated[float, typer.Option(help="Delta of the bought figures.")] = 1e-6,
    figures: Annotated[str, typer.Option(help="Which to buy, separated by commas.")] = "accuracy,distance",
    public_size: Annotated[
        int | None, typer.Option(help="Number of records (of the unit) that you declare to be public.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a release against private images. INTERNAL with --look: the figures are exact and must not be published.

    Distances, precision and recall, nearest neighbours and classifiers, each beside what held-out real images reach.
    Writes `evaluation.json` and `internal.html` into the run folder. Every later statement about the data set tells
    that there were looks.

    Example:

        sfumato evaluate release/ --private clinic/ --holdout clinic-holdout/ --look

    With --epsilon-for-report no look is taken: a classifier's accuracy on private images, and a Frechet distance, are
    bought with noise, charged to the ledger like a run, and may be published.

        sfumato evaluate release/ --private clinic/ --epsilon-for-report 0.5
    """
    run = release_dir.with_name(release_dir.name + ".run")
    if epsilon_for_report is not None:
        budget, where = (epsilon_for_report, delta_for_report), (dataset, ledger)
        _buy(release_dir, private, budget, public_size, figures, where, out or run, as_json)
        return
    if holdout is None:
        raise UserError("Give --holdout, real images that the release was not made from; or buy figures instead.")
    if not look:
        raise PrivacyRefusal(
            "An evaluation measures private images without noise, and every later statement about the data set will "
            "say so; give --look to agree."
        )
    from sfumato import evaluation
    from sfumato.measure.features import NETWORKS
    from sfumato.measure.recipes import CLASSIFIERS
    from sfumato.report.evaluation import summarise

    wanted = [] if classifiers == "none" else [name.strip() for name in classifiers.split(",")]
    known = [name for name in CLASSIFIERS if name in wanted]
    if len(known) < len(wanted):
        raise UserError(f"--classifiers {classifiers!r} is not 'none' or some of {','.join(CLASSIFIERS)}.")
    with progress(as_json) as report:
        facts = evaluation.evaluate_release(
            release_dir,
            private,
            holdout,
            ledger=evaluation.ledger_of(release_dir, run, dataset, ledger),
            out=out or run,
            embedders=embedder or NETWORKS,
            classifiers=known,
            images=images,
            device=device,
            report=report,
        )
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        typer.echo(summarise(facts))
        typer.echo(f"\nThe whole of it, internal too, is in {out or run}: internal.html, evaluation.json.")


def _buy(
    release: Path,
    private: Path,
    budget: tuple[float, float],
    size: int | None,
    wanted: str,
    where: tuple[str | None, Path | None],
    out: Path,
    as_json: bool,
) -> None:
    from sfumato.evaluation import ledger_of
    from sfumato.figures import buy_figures, check_figures

    names = check_figures([name.strip() for name in wanted.split(",") if name.strip()])
    ledger = ledger_of(release, release.with_name(release.name + ".run"), *where)
    epsilon, delta = budget
    with progress(as_json) as report:
        facts = buy_figures(
            release,
            private,
            ledger=ledger,
            out=out,
            epsilon=epsilon,
            delta=delta,
            size=size,
            wanted=names,
            report=report,
        )
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    found = facts["figures"]
    if accuracy := found.get("accuracy"):
        typer.echo(
            f"Accuracy of a {accuracy['classifier']} on the private images: {accuracy['share']:.1%}, "
            f"within {accuracy['error']:.1%} as far as the noise goes"
        )
    if distance := found.get("distance"):
        typer.echo(
            f"Frechet distance in {distance['dimensions']} directions of {distance['embedder']['name']}: "
            f"{distance['frechet']:.4g}; equal sets would show {distance['by_noise_alone']:.4g} by the noise alone"
        )
    typer.echo(
        f"Bought with epsilon {facts['epsilon']:g}, delta {facts['delta']:g} for one {facts['unit']}, on the ledger. "
        f"They may be published: {out / 'figures.json'}."
    )
