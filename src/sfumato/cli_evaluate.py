"""The command `sfumato evaluate`: un-noised measurements of a release, for the curator alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli_progress import progress
from sfumato.errors import PrivacyRefusal, UserError


def evaluate(
    release_dir: Annotated[Path, typer.Argument(help="A finished release.")],
    private: Annotated[Path, typer.Option(help="Folder of the private images that the release was made from.")],
    holdout: Annotated[
        Path, typer.Option(help="Folder of real images that it was not made from; as private as the others.")
    ],
    look: Annotated[
        bool, typer.Option("--look", help="Agree to un-noised looks at private images, noted on the ledger for good.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="Name of the data set.  [default: as the run folder has it]", show_default=False)
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="Use this ledger file instead of your own.")] = None,
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")
    ] = False,
) -> None:
    """Measure a release against private images. INTERNAL: the figures are exact and must not be published.

    Distances, precision and recall, nearest neighbours and classifiers, each beside what held-out real images reach.
    Writes `evaluation.json` and `evaluation.html` into the run folder. Every later statement about the data set tells
    that there were looks.

    Example:

        sfumato evaluate release/ --private clinic/ --holdout clinic-holdout/ --look
    """
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
    run = release_dir.with_name(release_dir.name + ".run")
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
        typer.echo(f"\nThe whole of it, internal too, is in {out or run}: evaluation.html, evaluation.json.")
