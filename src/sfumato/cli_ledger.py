"""The commands `sfumato ledger ...`: what was spent on a data set, and its cap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ledger_app = typer.Typer(no_args_is_help=True, help="What was spent on a data set, and its cap.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
LedgerPath = Annotated[Path | None, typer.Option("--ledger", help="Use this ledger file instead of your own.")]


@ledger_app.command("show")
def ledger_show(dataset: str, ledger: LedgerPath = None, as_json: Json = False) -> None:
    """Show the cap, what was spent and by which runs.

    Example: `sfumato ledger show clinic-2026`
    """
    from sfumato import verification

    typer.echo(verification.ledger_report(dataset, ledger, as_json))


@ledger_app.command("verify")
def ledger_verify(
    dataset: str,
    against: Annotated[Path | None, typer.Option(help="A release that quotes the ledger's head.")] = None,
    ledger: LedgerPath = None,
) -> None:
    """Check the chain of a ledger, against what a release quotes of it if one is given.

    Example: `sfumato ledger verify clinic-2026 --against release/`
    """
    from sfumato import verification

    problems = verification.ledger_problems(dataset, ledger, against)
    for line in problems:
        typer.echo(f"PROBLEM  {line}")
    if problems:
        raise typer.Exit(1)
    typer.echo("ok       The chain is whole. Lines cut from its end after the last quoted head cannot be seen.")


@ledger_app.command("cap")
def ledger_cap(
    dataset: str,
    epsilon: Annotated[float, typer.Option(help="Most epsilon that all runs together may spend.")],
    delta: Annotated[float, typer.Option(help="Most delta that all runs together may spend.")],
    filter_: Annotated[Literal["sum", "renyi"], typer.Option("--filter", help="How runs are added up.")] = "sum",
    order: Annotated[float | None, typer.Option(help="Renyi order of the filter 'renyi', fixed with the cap.")] = None,
    ledger: LedgerPath = None,
) -> None:
    """Set or raise the cap of a data set.

    Example: `sfumato ledger cap clinic-2026 --epsilon 2 --delta 2e-6`
    """
    from sfumato.privacy.ledger import Cap, Ledger

    Ledger.open(dataset, ledger).set_cap(Cap(epsilon, delta, filter_, order))
    typer.echo(f"The cap of {dataset} is now epsilon {epsilon:g}, delta {delta:g} ({filter_}).")


@ledger_app.command("import")
def ledger_import(
    dataset: str,
    epsilon: Annotated[float, typer.Option(help="What was spent.")],
    delta: Annotated[float, typer.Option(help="What was spent.")],
    description: Annotated[str, typer.Option(help="Where: one line.")],
    ledger: LedgerPath = None,
) -> None:
    """Enter what other software spent on the same data.

    Example: `sfumato ledger import clinic-2026 --epsilon 0.5 --delta 1e-6 --description "2025 survey"`
    """
    from sfumato.privacy.ledger import Ledger

    Ledger.open(dataset, ledger).import_(epsilon, delta, description)
    typer.echo(f"Entered epsilon {epsilon:g}, delta {delta:g} on the ledger of {dataset}.")
