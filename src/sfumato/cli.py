"""The commands: parse, call one function, print. Heavy imports happen inside the commands, so `--help` is quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sfumato import __version__
from sfumato.cli_audit import audit_app
from sfumato.cli_data import data_app
from sfumato.cli_evaluate import evaluate
from sfumato.cli_ledger import Json, LedgerPath, ledger_app
from sfumato.cli_models import models_app
from sfumato.cli_pictures import caption, draw
from sfumato.cli_progress import progress
from sfumato.errors import SfumatoError, UserError

if TYPE_CHECKING:
    from sfumato.config import RunConfig
    from sfumato.run import Run

app = typer.Typer(
    name="sfumato",
    help="A folder of private images goes in, a folder of synthetic images with a stated privacy guarantee comes out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(ledger_app, name="ledger")
app.add_typer(audit_app, name="audit")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")

PrivateDir = Annotated[Path, typer.Argument(help="Folder of private images (class sub-folders or metadata.jsonl).")]
Dataset = Annotated[str | None, typer.Option(help="Name of the private data set; its budget is kept under this name.")]
Method = Annotated[
    Literal["privimage", "spti", "private-evolution", "spectral"] | None,
    typer.Option(help="How the images are made.  [default: privimage]", show_default=False),
]
Epsilon = Annotated[float | None, typer.Option(help="Privacy budget: above 0, at most 100; 1 is strong, 10 is weak.")]
Delta = Annotated[float | None, typer.Option(help="Below 1 / public size.  [default: 1e-6]", show_default=False)]
UnitOption = Annotated[Literal["image", "person"] | None, typer.Option(help="What is protected.  [default: image]")]
PublicSize = Annotated[
    int | None, typer.Option(help="Number of records (of the unit) that you declare to be public; never counted.")
]
Classes = Annotated[str | None, typer.Option(help="Class names that are public, separated by commas.")]
ClassesArePublic = Annotated[
    bool, typer.Option("--classes-are-public", help="Declare the names of the private sub-folders to be public.")
]
ClassShares = Annotated[
    str | None,
    typer.Option(help="How many of each class: uniform, bought (by a touch), or public shares such as 0.7,0.3."),
]
Preset = Annotated[str | None, typer.Option(help="The method's settings: laptop or paper.  [default: laptop]")]
Count = Annotated[int | None, typer.Option(help="Images to make.  [default: 10000]")]
Size = Annotated[
    str | None, typer.Option(help="Height x width of the images, such as 28x28.  [default: 28x28; others: 64x64]")
]
Channels = Annotated[int | None, typer.Option(help="1 (grey) or 3 (colour).  [default: 1; others: 3]")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with any of the settings.")]
RunDir = Annotated[
    Path | None, typer.Option(help="Private folder of the run.  [default: RELEASE_DIR.run]", show_default=False)
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Train for as many steps as the whole run then takes here.  [default: the preset's]"),
]
Public = Annotated[
    list[Path] | None,
    typer.Option("--public", help="Folder of public images to learn from first; may be given several times."),
]
PublicGround = Annotated[
    Literal["any", "dark", "light"] | None,
    typer.Option(help="Invert public pictures that are not on this ground.  [default: any]", show_default=False),
]
AllowPrivateTo = Annotated[
    list[str] | None,
    typer.Option("--allow-private-to", help="HOST[:PORT] of a model server that you trust with private images."),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"sfumato {__version__}")
        raise typer.Exit


@app.command()
def synthesize(
    private_dir: PrivateDir,
    release_dir: Annotated[Path, typer.Argument(help="Folder to make; may be published as a whole.")],
    dataset: Dataset = None,
    method: Method = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    unit: UnitOption = None,
    public_size: PublicSize = None,
    classes: Classes = None,
    classes_are_public: ClassesArePublic = False,
    class_shares: ClassShares = None,
    preset: Preset = None,
    count: Count = None,
    size: Size = None,
    channels: Channels = None,
    config: ConfigFile = None,
    run_dir: RunDir = None,
    ledger: LedgerPath = None,
    minutes: Minutes = None,
    public: Public = None,
    public_ground: PublicGround = None,
    allow_private_to: AllowPrivateTo = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make synthetic images from private ones.

    Example:

        sfumato synthesize clinic/ release/ --dataset clinic-2026 --epsilon 1

    Say what may be known in public with --public-size and --classes; labelled images need their classes.

    The budget is spent once. If the run is interrupted, `sfumato resume release.run` finishes it.
    """
    from sfumato import run
    from sfumato._folders import check_folders
    from sfumato.hardware import choose_hardware
    from sfumato.speed import in_time

    settings = _settings(locals())
    folder = run_dir or release_dir.with_name(release_dir.name + ".run")
    check_folders(private_dir, release_dir, folder)
    resolved = in_time(_resolve(settings, private_dir, classes_are_public, config, preset), choose_hardware(device))
    started = run.prepare(resolved, private_dir, release_dir, folder, run.make_plan(resolved))
    _finish(started, device, as_json)


@app.command()
def forecast(
    private_dir: PrivateDir,
    release_dir: Annotated[Path | None, typer.Argument(help="Not looked at.")] = None,
    dataset: Dataset = None,
    method: Method = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    unit: UnitOption = None,
    public_size: PublicSize = None,
    classes: Classes = None,
    classes_are_public: ClassesArePublic = False,
    class_shares: ClassShares = None,
    preset: Preset = None,
    count: Count = None,
    size: Size = None,
    channels: Channels = None,
    config: ConfigFile = None,
    run_dir: RunDir = None,
    ledger: LedgerPath = None,
    minutes: Minutes = None,
    public: Public = None,
    public_ground: PublicGround = None,
    allow_private_to: AllowPrivateTo = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show what a run would cost in noise, memory and time; opens no private file and spends nothing.

    Takes the arguments of `synthesize`.

    Example:

        sfumato forecast clinic/ --dataset clinic-2026 --epsilon 1
    """
    from sfumato.forecast import forecast_of
    from sfumato.hardware import choose_hardware

    resolved = _resolve(_settings(locals()), private_dir, classes_are_public, config, preset)
    if resolved.method in ("privimage", "spectral"):  # the others count calls
        typer.echo("Trying this machine: seconds for small images, minutes for published settings.", err=True)
    found = forecast_of(resolved, choose_hardware(device))
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else str(found))


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(help="Folder of an interrupted run.")],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Finish an interrupted run. Costs nothing more: its price was charged when it began.

    Example:

        sfumato resume release.run
    """
    from sfumato import run

    _finish(run.Run(run_dir), device, as_json)


@app.command()
def sample(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out_dir: Annotated[Path, typer.Argument(help="Release folder to make.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Images to make.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other images.")] = 1,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Text file of public prompts, a line each, for a model that was told captions."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Make more images from a finished run. Free: whatever is done with a released model costs no privacy.

    Interrupted, the same command goes on with what was drawn.

    Example:

        sfumato sample release.run more/ -n 5000

        sfumato sample release.run circles/ -n 200 --prompts prompts.txt
    """
    from sfumato import run
    from sfumato.hardware import choose_hardware

    finished = run.Run(run_dir)
    texts = _prompts(prompts, Path(finished.facts["private"]), run_dir)
    with progress(as_json) as report:
        model, hardware = run.load_model(finished), choose_hardware(device)
        run.make_release(finished, model, count, seed, out_dir, report, hardware=hardware, prompts=texts)
    _print_release(out_dir, as_json)


@app.command()
def verify(
    release_dir: Annotated[Path, typer.Argument(help="A release folder.")],
    ledger: LedgerPath = None,
    dataset: Annotated[str | None, typer.Option(help="Compare with your ledger of this data set.")] = None,
    as_json: Json = False,
) -> None:
    """Check a release: its files, its statement, and (where you have it) the ledger it quotes.

    Example:

        sfumato verify release/
    """
    from sfumato import verification

    problems, checked = verification.verify(release_dir, dataset, ledger)
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "problems": problems, "checked": checked}, indent=2))
    else:
        for line in checked:
            typer.echo(f"ok       {line}")
        for line in problems:
            typer.echo(f"PROBLEM  {line}")
    if problems:
        raise typer.Exit(1)


app.command()(evaluate)
app.command()(draw)
app.command()(caption)


@app.command()
def clean(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    everything: Annotated[bool, typer.Option("--all", help="Remove the whole run folder, model included.")] = False,
) -> None:
    """Remove decoded private pixels and checkpoints of a run; the ledger stays.

    Example:

        sfumato clean release.run
    """
    from sfumato import run

    typer.echo(run.clean(run.Run(run_dir), everything))


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The run settings among a command's arguments, by their names in `RunConfig`; what was not given is left out."""
    names = ("dataset", "method", "epsilon", "delta", "unit", "public_size", "count", "minutes")
    settings = {name: given[name] for name in names if given[name] is not None}
    if given["ledger"] is not None:
        settings["ledger"] = str(given["ledger"])
    if given["classes"] is not None:
        settings["classes"] = [name.strip() for name in given["classes"].split(",")]
        settings["classes_origin"] = "listed"
    if given["class_shares"] is not None:
        settings["class_shares"] = _shares(given["class_shares"])
    if given["allow_private_to"]:
        settings["allow_private_to"] = list(given["allow_private_to"])
    image: dict[str, Any] = {}
    if given["size"] is not None:
        try:
            image["height"], image["width"] = (int(part) for part in given["size"].lower().split("x"))
        except ValueError as error:
            raise UserError(f"--size {given['size']!r} is not height x width, such as 28x28.") from error
    if given["channels"] is not None:
        image["channels"] = given["channels"]
    public: dict[str, Any] = {}
    if given["public"]:
        public["folders"] = [str(folder.absolute()) for folder in given["public"]]
    if given["public_ground"] is not None:
        public["ground"] = given["public_ground"]
    return settings | ({"image": image} if image else {}) | ({"public": public} if public else {})


def _prompts(file: Path | None, *private: Path) -> tuple[str, ...]:
    """The lines of a text file that hold something; none without a file.

    Raises:
        UserError: it cannot be read, holds nothing, or lies in one of the folders that are private.
    """
    if file is None:
        return ()
    if any(folder.resolve() in file.resolve().parents for folder in private):
        raise UserError(f"The prompts in {file} lie in a private folder; prompts are released, so they must be public.")
    try:
        found = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The prompts in {file} cannot be read; give a text file, a prompt a line.") from error
    if not found:
        raise UserError(f"There are no prompts in {file}; give a text file, a prompt a line.")
    return found


def _shares(text: str) -> str | list[float]:
    if text in ("uniform", "bought"):
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"--class-shares {text!r} is neither uniform nor bought, nor a list of numbers such as 0.7,0.3."
        ) from error


def _resolve(
    settings: dict[str, Any], private: Path, classes_are_public: bool, file: Path | None, preset: str | None
) -> RunConfig:
    from sfumato.config import read_config
    from sfumato.data.folder import class_folders

    if classes_are_public:
        if "classes" in settings:
            raise UserError("Give --classes or --classes-are-public, not both.")
        settings["classes"] = class_folders(private)
        settings["classes_origin"] = "folder names"
    resolved = read_config(file, settings, preset)
    if resolved.public is not None:
        resolved.public.images().check(private)
    return resolved


def _finish(started: Run, device: str, as_json: bool) -> None:
    from sfumato import run
    from sfumato.hardware import choose_hardware

    with progress(as_json, started.folder) as report:
        out = run.finish(started, report, hardware=choose_hardware(device))
    if out is None:
        typer.echo(f"The model is in {started.folder}.")
    else:
        _print_release(out, as_json)
    if not as_json and (started.folder / "selection.png").exists():
        typer.echo(f"Which public images taught the network, class by class: {started.folder / 'selection.png'}.")


def _print_release(out: Path, as_json: bool) -> None:
    statement = json.loads((out / "privacy.json").read_text())
    if as_json:
        facts = {name: statement[name] for name in ("epsilon", "delta", "unit", "release_id")}
        typer.echo(json.dumps({"release": str(out), **facts, "statement": statement["text"]}))
    else:
        typer.echo("")
        for sentence in statement["sentences"]:
            typer.echo(f"- {sentence}")
        typer.echo(f"\nThe release is in {out}; open {out / 'report.html'}.")


def main() -> None:
    """Entry point: runs a command; refusals become one sentence and an exit code instead of a traceback."""
    try:
        app()
    except SfumatoError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_code)
