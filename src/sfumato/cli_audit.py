"""The commands `sfumato audit ...`: attacks on the guarantee itself, and on a finished release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli_evaluate import DatasetOption, FinishedRelease, HoldoutOption, Look, PrivateOption
from sfumato.cli_ledger import Json, LedgerPath
from sfumato.cli_progress import progress
from sfumato.errors import PrivacyRefusal, UserError

audit_app = typer.Typer(
    no_args_is_help=True,
    help="Attack the guarantee: the trusted core on public stand-ins, or a finished release.",
)


@audit_app.command("core")
def audit_core(
    epsilon: Annotated[str, typer.Option(help="What is claimed; several separated by commas.")] = "1,4,10",
    delta: Annotated[float, typer.Option(help="What is claimed with it.")] = 1e-6,
    runs: Annotated[int, typer.Option(help="Runs of each touch on either of two neighbours.")] = 4000,
    canaries: Annotated[int, typer.Option(help="Canaries in one run of private training.")] = 5000,
    without_noise: Annotated[
        bool, typer.Option("--without-noise", help="Take the noise away, to see that the audit notices.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Attack the trusted core on this machine. No private image is opened and nothing is spent.

    Sensitivity by brute force, a lower bound on epsilon for each touch from many runs, and one for private training
    from canaries. Exit code 1 if a bound at 99.9 % lies above its claim. A few minutes for each epsilon.

    Examples:

        sfumato audit core

        sfumato audit core --epsilon 1 --without-noise
    """
    from sfumato.audit import core

    try:
        epsilons = [float(word) for word in epsilon.split(",")]
    except ValueError as error:
        raise UserError(f"--epsilon {epsilon!r} is not a number, or several separated by commas.") from error
    with progress(as_json) as report:
        facts = core.audit_core(
            epsilons, delta=delta, runs=runs, canaries=canaries, protected=not without_noise, report=report
        )
    typer.echo(json.dumps(facts, indent=2) if as_json else _core_in_words(facts))
    if facts["broken"]:
        raise typer.Exit(1)


@audit_app.command("release")
def audit_release(
    release_dir: FinishedRelease,
    private: PrivateOption,
    holdout: HoldoutOption = None,
    look: Look = False,
    dataset: DatasetOption = None,
    ledger: LedgerPath = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Private folder of the run.  [default: RELEASE_DIR.run]", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Internal folder for the findings.  [default: RELEASE_DIR.run]", show_default=False),
    ] = None,
    embedder: Annotated[str, typer.Option(help="What measures distances.")] = "efficientnet-lite0",
    images: Annotated[int, typer.Option(help="Most images of each folder.")] = 2000,
    as_json: Json = False,
) -> None:
    """Attack a finished release. INTERNAL: the figures are exact and must not be published.

    Membership by the distance to the nearest generated image, and by likelihood where the model is autoregressive;
    near copies, beside those of images that were held out. Writes `attack.json` into the run folder. Every later
    statement about the data set tells that there were looks.

    Example:

        sfumato audit release release/ --private clinic/ --holdout clinic-holdout/ --look
    """
    if holdout is None:
        raise UserError("Give --holdout, real images that the release was not made from.")
    if not look:
        raise PrivacyRefusal(
            "An attack measures private images without noise, and every later statement about the data set will say "
            "so; give --look to agree."
        )
    from sfumato.audit.membership import attack_release
    from sfumato.evaluation import ledger_of

    run = run_dir or release_dir.with_name(release_dir.name + ".run")
    with progress(as_json) as report:
        facts = attack_release(
            release_dir,
            private,
            holdout,
            ledger=ledger_of(release_dir, run, dataset, ledger),
            run_folder=run,
            out=out or run,
            embedder=embedder,
            images=images,
            report=report,
        )
    typer.echo(json.dumps(facts, indent=2) if as_json else _release_in_words(facts, out or run))


def _core_in_words(facts: dict[str, Any]) -> str:
    lines = [] if facts["protected"] else ["NOT PRIVATE: the noise was taken away for this audit.", ""]
    lines.append("What one record changed (brute force on neighbouring folders), and what is paid for:")
    for one in facts["sensitivity"]:
        flag = "   BROKEN" if one["broken"] else ""
        lines.append(f"  {one['touch']:<28} {one['unit']:<7} {one['largest']:>9.6f} of {one['bound']:g}{flag}")
    lines += ["", f"{'Lower bounds on epsilon (95 %), and claims':<44} {'claim':>6} {'bound':>7} {'at most':>8}"]
    for one in facts["bounds"]:
        flag = "   BROKEN" if one["broken"] else "   AS IF WITHOUT NOISE" if one["unprotected"] else ""
        lines.append(f"  {one['name']:<42} {one['claim']:>6g} {one['bound']:>7.2f} {one['ceiling']:>8.2f}{flag}")
    lines.append("")
    if facts["broken"]:
        lines.append(
            "THE GUARANTEE DOES NOT HOLD as claimed: it is refuted at 99.9 % confidence, for all bounds together."
        )
    else:
        lines.append("No claim is refuted. A bound below its claim proves nothing: a better attack may find more.")
    return "\n".join(lines)


def _release_in_words(facts: dict[str, Any], place: Path) -> str:
    copies = facts["memorisation"]
    lines = [facts["notice"], "", f"Release {facts['release_id']}: who was in it?"]
    for one in facts["attacks"]:
        lines.append(
            f"  {one['name']}: area {one['area']:.3f} (0.5 for a guess); finds {one['found']:.1%} of the private images"
            f" with {one['false_alarms']:.1%} false alarms, {one['allowed']:.1%} being allowed."
            + ("   EXCEEDS THE STATEMENT" if one["exceeds"] else "")
        )
    lines += [
        "",
        f"Near copies among {copies['generated']} images: {copies['copies_of_private']} of private images, "
        f"{copies['copies_of_holdout']} of as many held-out ones; {copies['exact_copies']} exact.",
        f"\nAll of it, internal too, is in {place / 'attack.json'}.",
    ]
    return "\n".join(lines)
