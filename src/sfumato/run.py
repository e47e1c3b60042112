"""One run, start to release, and its resumption; the only file that knows the order of things.

A run lives in a folder of its own (mode 0700) beside the release: settings, plan, decoded pixels, released values,
model, logs. `prepare` makes the folder, `train` spends the budget, `publish` writes a release; each can be interrupted
and called again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sfumato._files import writable, write_json
from sfumato._folders import check_folders
from sfumato.config import RunConfig, validated
from sfumato.data.folder import ImageFolder
from sfumato.data.release import Provenance, Samples, check_new, write_release
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.hardware import Hardware, choose_hardware, keep_freed_memory
from sfumato.privacy.ledger import Charge, Ledger
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import Plan
from sfumato.privacy.records import PrivateRecords, record_key
from sfumato.privacy.session import Session
from sfumato.privacy.statement import PrivacyStatement
from sfumato.report.render import write_internal
from sfumato.workflows import Report as Report
from sfumato.workflows import Wanted, Work, workflow

DRAWN = "drawn"
"""Sub-folder of a run for pictures of releases that are not written yet."""

RDP_ORDERS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def silent(stage: str, done: int, of: int | None) -> None:
    """A `Report` that tells nobody."""


@dataclass(frozen=True)
class Run:
    """A run folder and what it holds.

    Attributes:
        folder: the run folder.
        models: the user's own model objects, by the name of their setting; not kept in the folder.
    """

    folder: Path
    models: Mapping[str, Any] = field(default_factory=dict)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads((self.folder / name).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder} is not a run folder of Sfumato ({name} is missing or broken).") from error
        return value

    @property
    def config(self) -> RunConfig:
        """The resolved settings."""
        return validated(self._read("config.json"))

    @property
    def facts(self) -> dict[str, Any]:
        """Run id, private and release folder, key of per-record randomness."""
        return self._read("run.json")

    @property
    def run_id(self) -> str:
        """Random name of the run."""
        return str(self.facts["run_id"])

    @property
    def plan(self) -> Plan:
        """The touches that were bought."""
        return Plan.from_json(self._read("plan.json"))

    @property
    def ledger(self) -> Ledger:
        """The ledger of the run's data set."""
        return Ledger.open(self.config.dataset, self.config.ledger)

    @property
    def work(self) -> Work:
        """The run as its method's workflow sees it."""
        return Work(self.folder, self.config, self.facts, self.models)

    @property
    def trained(self) -> bool:
        """Whether the model is complete."""
        return (self.folder / "TRAINED").exists()


def make_plan(config: RunConfig) -> Plan:
    """Calibrates and prices all touches from public settings; opens no private file."""
    return Plan.calibrate(
        workflow(config.method).requests(config),
        epsilon=config.epsilon,
        delta=config.delta,
        unit=config.unit,
        declared_size=config.public_size,
    )


def prepare(
    config: RunConfig,
    private: Path,
    release: Path | None,
    folder: Path,
    plan: Plan,
    models: Mapping[str, Any] = MappingProxyType({}),
) -> Run:
    """Checks the folders against each other and makes the run folder.

    Raises:
        UserError: a folder is missing, occupied, inside another, or cannot be written; or public images or models do
            not suit the settings.
        PrivacyRefusal: a model that was not named for it would be shown private images.
    """
    check_folders(private, release, folder)
    others = tuple(path for path in (release, folder) if path is not None)
    public = workflow(config.method).prepare(Work(folder, config, models=models), private, others)
    with writable(folder):
        folder.mkdir(mode=0o700, parents=True)
        facts = {
            "run_id": secrets.token_hex(8),
            "private": str(private.resolve()),
            "release": str(release.resolve()) if release else None,
            "key": secrets.token_hex(32),
        }
        write_json(folder / "config.json", config.to_json(), mode=0o600)
        write_json(folder / "plan.json", plan.to_json(), mode=0o600)
        write_json(folder / "run.json", facts | public, mode=0o600)
    return Run(folder, models)


def train(run: Run, report: Report = silent, *, noise: Noise | None = None, hardware: Hardware | None = None) -> Any:
    """Spends the budget: intake, ledger, touches; or what a crash left of them.

    Args:
        run: the run folder.
        report: progress.
        noise: test noise makes the run NOT PRIVATE.
        hardware: where to compute.

    Raises:
        UserError: the private folder is empty or gone.
        PrivacyRefusal: the ledger's cap forbids the plan, or the private folder changed since the run began.
    """
    config, facts, plan, ledger = run.config, run.facts, run.plan, run.ledger
    noise = noise or Noise()
    if run.trained:
        _close(run)
        return load_model(run)
    keep_freed_memory()
    with writable(run.folder):
        records = _intake(run, config, facts, plan, ledger, report, not noise.private)
        session = Session(records, plan, ledger, run.run_id, run.folder, noise)
        method = workflow(config.method)
        model = method.fit(run.work, session, report, hardware or choose_hardware())
        write_json(run.folder / "TRAINED", {"not_private": not noise.private}, mode=0o600)
        _close(run)
    return model


def _close(run: Run) -> None:
    """What follows a complete model: no further intents, no decoded pixels. Harmless when done again after a crash."""
    run.ledger.finish(run.run_id)
    shutil.rmtree(run.folder / "private", ignore_errors=True)


def _intake(
    run: Run, config: RunConfig, facts: dict[str, Any], plan: Plan, ledger: Ledger, report: Report, not_private: bool
) -> PrivateRecords:
    """Reads the private folder, enters the plan on the ledger, and writes the internal report."""
    spec, done = config.image.spec(), Counter[str]()

    def one_more(stage: str) -> None:
        done[stage] += 1
        if done[stage] % 64 == 0:
            report(stage, done[stage], config.public_size)

    describe = workflow(config.method).describe(run.work)
    records, found = PrivateRecords.intake(
        ImageFolder(Path(facts["private"])),
        spec,
        spec.shape,
        unit=config.unit,
        classes=config.classes,
        folder=run.folder / "private",
        key=record_key(bytes.fromhex(facts["key"])),
        fingerprint_key=ledger.fingerprint_key(),
        describe=describe,
        progress=one_more,
    )
    if found.images == 0:
        raise UserError("There are no images in the private folder; nothing was spent.")
    if describe is not None and found.captions == 0:
        raise UserError(
            "No image of the private folder has a caption, so there is nothing to tell and nothing was spent. Captions "
            "stand in metadata.jsonl as 'text'; or set spectral.condition to class."
        )
    parts = (found.digests[place : place + 16] for place in range(0, len(found.digests), 16))
    digests = [digest for digest in parts if any(digest)]  # unreadable files have none
    findings = {name: value for name, value in found._asdict().items() if name != "digests"}
    write_json(run.folder / "intake.json", findings | {"also_in": ledger.overlap(digests)}, mode=0o600)
    if run.run_id in ledger.runs():
        if ledger.fingerprint(run.run_id) != found.fingerprint:
            raise PrivacyRefusal(
                "The private folder is not what it was when this run began, so the run cannot be resumed. Restore it, "
                "or start a new run."
            )
    else:
        ledger.charge(
            run.run_id,
            Charge(plan.planned_epsilon, plan.delta, plan.rdp(RDP_ORDERS)),
            plan.attempts(),
            plan.sha256(),
            config.unit,
            found.fingerprint,
            not_private=not_private,
        )
        ledger.remember(digests)
    return records


def load_model(run: Run) -> Any:
    """The finished model of a run.

    Raises:
        UserError: the run is not finished.
    """
    if not run.trained:
        raise UserError(f"The run in {run.folder} is not finished; finish it with: sfumato resume {run.folder}")
    return workflow(run.config.method).load(run.work, run._read("TRAINED")["not_private"])


def draw(
    run: Run,
    model: Any,
    count: int,
    seed: int,
    report: Report = silent,
    *,
    hardware: Hardware | None = None,
    prompts: tuple[str, ...] = (),
    keep: Path | None = None,
) -> Samples:
    """Samples `count` images, in the class shares of the settings or under prompts. Free: post-processing.

    Args:
        run: a finished run.
        model: its model.
        count: images.
        seed: public; another seed gives other images.
        report: progress.
        hardware: where to compute.
        prompts: public texts to draw under in place of the run's own, if its model hears captions.
        keep: folder of this drawing and no other; if it is cut off, the same call goes on from what is there.

    Raises:
        UserError: there are prompts, and the model hears none, or one of them is empty.
    """
    config, wanted = run.config, Wanted(count, seed, prompts, keep)
    if prompts and workflow(config.method).describe(run.work) is None:
        raise UserError("This run's model hears no prompts; it would have to be told captions (Spectral's condition).")
    found = workflow(config.method).draw(run.work, model, wanted, report, hardware or choose_hardware())
    return Samples(
        pixels=found.pixels,
        labels=found.labels,
        classes=config.classes,
        texts=found.texts,
        provenance=Provenance(run.run_id, config.method, statement(run).to_json(), run.folder),
    )


def statement(run: Run) -> PrivacyStatement:
    """What a release of this run says now: the ledger may have learnt of looks and further runs since."""
    config, ledger, plan = run.config, run.ledger, run.plan
    line, head = ledger.head()
    runs, spent = ledger.runs(), ledger.spent()
    return PrivacyStatement(
        plan=plan,
        executed={name: attempts.used for name, attempts in ledger.attempts(run.run_id).items()},
        release_id=secrets.token_hex(8),
        ledger=(ledger.public_id() or "", line, head),
        looks=ledger.looks(),
        runs=sum(other.counts for other in runs.values()),
        total=(spent.epsilon, spent.delta),
        not_private=runs[run.run_id].not_private,
        declared={
            "classes": list(config.classes) if config.classes else None,
            "classes_origin": config.classes_origin and f"declared public by the user ({config.classes_origin})",
            "class_shares": config.class_shares,
            "budget_shares": plan.shares(),
            "image": config.image.model_dump(mode="json"),
        },
        public_inputs=workflow(config.method).public_inputs(run.work),
        released=workflow(config.method).released(run.work, runs[run.run_id].not_private),
    )


def publish(run: Run, samples: Samples, out: Path, report: Report = silent) -> Path:
    """Writes a release folder, notes it on the ledger, and writes the internal page into the run folder."""
    with writable(out):
        write_release(samples, out, progress=lambda done: report("writing images", done, len(samples.pixels)))
    _note(run, out)
    return out


def make_release(
    run: Run,
    model: Any,
    count: int,
    seed: int,
    out: Path,
    report: Report = silent,
    *,
    hardware: Hardware | None = None,
    prompts: tuple[str, ...] = (),
) -> Path:
    """Draws images and publishes them. Cut off, the same call goes on: what was drawn is kept until it is published.

    Raises:
        UserError: `out` is occupied, or cannot be written; or as `draw`.
    """
    check_new(out)
    keep = _drawn(run, count, seed, out, prompts)
    publish(run, draw(run, model, count, seed, report, hardware=hardware, prompts=prompts, keep=keep), out, report)
    _forget(keep)
    return out


def _drawn(run: Run, count: int, seed: int, out: Path, prompts: tuple[str, ...] = ()) -> Path | None:
    """Where the pictures of a release are kept until it is written; nowhere where there will be none."""
    if run._read("TRAINED")["not_private"]:
        return None
    name = "\n".join((str(out.resolve()), *prompts))
    return run.folder / DRAWN / f"{count}-{seed}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _forget(keep: Path | None) -> None:
    if keep is not None:
        shutil.rmtree(keep, ignore_errors=True)


def _note(run: Run, out: Path) -> None:
    """Enters a complete release on the ledger, if it is not there yet, and tells of it in the run folder."""
    run.ledger.release(run.run_id, json.loads((out / "privacy.json").read_text())["release_id"])
    with writable(run.folder):
        write_internal(run.folder, out)


def finish(run: Run, report: Report = silent, *, hardware: Hardware | None = None) -> Path | None:
    """Trains if needed, then writes the release that the run was started for. Idempotent."""
    model = train(run, report, hardware=hardware)
    release = run.facts["release"]
    if release is None:
        return None
    out = Path(release)
    if (out / "DONE").exists():
        _note(run, out)  # a crash may have come between the folder and its line
        _forget(_drawn(run, run.config.count, run.config.seed, out))
    else:
        make_release(run, model, run.config.count, run.config.seed, out, report, hardware=hardware)
    write_json(run.folder / "DONE", {"release": release}, mode=0o600)
    return out


def clean(run: Run, everything: bool) -> str:
    """Removes what a run keeps of private records, or the whole run folder; says in a sentence what it did.

    Raises:
        UserError: the run is not finished (its checkpoints are what `resume` needs), unless everything is to go.
    """
    run_id = run.run_id
    if everything:
        shutil.rmtree(run.folder)
        return f"Removed the run folder {run.folder}. What the run spent stays on the ledger."
    if not run.trained:
        raise UserError(
            f"The run in {run.folder} is not finished, and cleaning would end it: finish it with sfumato resume, or "
            "remove it with --all."
        )
    for name in ("private", "touches", DRAWN):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    return f"Removed decoded pixels and checkpoints of run {run_id}; the model and the ledger stay."
