"""The write-ahead record of all that was ever spent on a data set, and the filter that keeps its cap.

There is one file per data set *name*, chosen by the user: a budget belongs to the name, whatever happens to the folder.
A run first writes its `plan`, which the filter admits or refuses. The plan buys *attempts* at each touch: before a
touch happens its `intent` is on disk and one attempt is used up, whether or not the touch survives; `done` follows once
the released value is durable. So a killed run ends with fewer touches than it paid for, never with more.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from sfumato._files import fsync_dir, write_atomic
from sfumato._home import home
from sfumato.errors import SfumatoError, UserError
from sfumato.privacy._book import NOT_PRIVATE, Book, Cap, Charge, Run, total_of
from sfumato.privacy._chain import Chain, Entry, make_private_folder

__all__ = ["NOT_PRIVATE", "TORN", "VERIFY_LIMIT", "Attempts", "Cap", "Charge", "Ledger", "Run"]

VERIFY_LIMIT = "Lines removed from the end of a ledger after the last quoted line cannot be seen."
TORN = "The last line is torn: a crash cut its append short. Nothing was done upon it, and the next append removes it."
_DIGEST_BYTES = 16


class Attempts(NamedTuple):
    """Of one touch: attempts begun, attempts whose released value is durable, attempts bought.

    *Guarantee:* done <= used <= planned. *Does not cover:* attempts that other processes begin later.
    """

    used: int
    done: int
    planned: int


class Ledger:
    """The ledger of one data set. Objects are cheap, may be shared by threads, and any number may be open at once.

    Every method may raise `PrivacyRefusal` (the file is not an unbroken continuation of what was seen) and `UserError`
    (it cannot be read or written; an append then left no trace, or the message says that it may have).

    *Guarantee:* a method that appends returns when the line is on disk; checks and append are one step for all threads
    and processes. Whatever is killed when, standing plans stay within the cap and intents within their plans.
    *Does not cover:* a ledger removed, or replaced by an older copy, between two processes (`verify` against a quoted
    head finds it); two names for one data set (`overlap` warns); file systems whose `flock` or `fsync` lies; a child
    forked while another thread is inside a method (it must open its own ledger).
    """

    def __init__(self, dataset: str, path: Path) -> None:
        self.dataset = dataset
        self.path = path
        self._chain: Chain[Book] = Chain(path, lambda: Book(dataset))

    @classmethod
    def open(cls, dataset: str, path: str | os.PathLike[str] | None = None) -> Ledger:
        """The ledger of `dataset` at `path`, by default `ledgers/DATASET.jsonl` in `home()`; made by its first line.

        Raises:
            UserError: `dataset` is not 1-64 letters, digits, `.`, `_`, `-`, or begins with a dot.
        """
        if not re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,64}", dataset):
            raise UserError(
                "A data set name has 1 to 64 letters, digits, dots, dashes or underscores and does not begin with a "
                f"dot; {dataset!r} does not fit."
            )
        return cls(dataset, home() / "ledgers" / f"{dataset}.jsonl" if path is None else Path(path).absolute())

    # Budget

    def set_cap(self, cap: Cap) -> None:
        """Sets, raises or lowers the cap.

        Raises:
            PrivacyRefusal: more is spent already, or something is spent and the filter or its order would change.

        *Guarantee:* see `Cap`. *Does not cover:* why the cap was raised; the line stays visible.
        """
        with self._writing() as (_, write):
            write("cap", epsilon=cap.epsilon, delta=cap.delta, filter=cap.filter, order=cap.order, implicit=False)

    def charge(
        self,
        run_id: str,
        charge: Charge,
        attempts: Mapping[str, int],
        plan_sha256: str,
        unit: str,
        fingerprint: str,
        not_private: bool = False,
    ) -> None:
        """Enters a plan, if the filter admits it. Without a cap the first plan's (epsilon, delta) becomes the cap.

        Args:
            run_id: new to this ledger.
            attempts: touch name to the attempts that the plan buys (>= 1).
            plan_sha256: of the plan's canonical form, 64 hexadecimal digits.
            unit: `image` or `person`, the same for all runs that are charged: budgets of other units do not add up.
            fingerprint: keyed digest of the private folder; a resumed run must show the same.
            not_private: a run with test noise. It is stamped NOT PRIVATE and charged nothing.

        Raises:
            PrivacyRefusal: the cap or the unit forbids it.
            UserError: `run_id` is taken, or an argument is malformed.

        *Guarantee:* the plan stands, durably, and with all others keeps the cap; or nothing changed.
        *Does not cover:* whether the plan's touches cost what it says.
        """
        with self._writing() as (book, write):
            if not not_private and book.cap_is_open and book.cap != Cap(charge.epsilon, charge.delta):
                write("cap", epsilon=charge.epsilon, delta=charge.delta, filter="sum", order=None, implicit=True)
            write(
                "plan",
                run=run_id,
                epsilon=charge.epsilon,
                delta=charge.delta,
                rdp=charge.rdp,
                attempts=dict(attempts),
                plan_sha256=plan_sha256,
                unit=unit,
                fingerprint=fingerprint,
                stamp=NOT_PRIVATE if not_private else None,
            )

    def give_back(self, run_id: str) -> None:
        """Takes a plan back, and with it its charge.

        *Guarantee:* refused (`PrivacyRefusal`) once the run wrote an intent, or ended.
        *Does not cover:* single touches; none is ever returned.
        """
        with self._writing() as (_, write):
            write("give_back", run=run_id)

    def import_(self, epsilon: float, delta: float, description: str, rdp: Mapping[str, float] | None = None) -> None:
        """Records what was spent on the same data elsewhere, such as on a generator trained with DP on the same people.

        *Guarantee:* it counts from now on, even beyond the cap, which then admits no run.
        *Does not cover:* whether the figures are right and for the ledger's unit. Without `rdp` no `renyi` cap admits
        a run any more.
        """
        charge = Charge(epsilon, delta, rdp)
        with self._writing() as (_, write):
            write("import", epsilon=charge.epsilon, delta=charge.delta, rdp=charge.rdp, description=description)

    def look(self, what: str) -> None:
        """Records, before it is taken, an un-noised measurement of private data; `what` names it and holds no value.

        *Guarantee:* every later statement can say that there were looks. *Does not cover:* what was learnt from them.
        """
        with self._writing() as (_, write):
            write("look", what=what)

    # Touches

    def intent(self, run_id: str, touch: str) -> int:
        """Uses up one attempt at `touch` and returns its number, from 1. To be called before the touch happens.

        Raises:
            PrivacyRefusal: the run is unknown, given back or finished, or all attempts that it bought are used up.

        *Guarantee:* no two calls, in any process, return the same number, and none returns more than was planned.
        *Does not cover:* what the touch then does.
        """
        with self._writing() as (book, write):
            attempt = book.run(run_id, "standing").used.get(touch, 0) + 1
            write("intent", run=run_id, touch=touch, attempt=attempt)
        return attempt

    def done(self, run_id: str, touch: str, attempt: int, sha256: str) -> None:
        """Records that the value released by an attempt is durable and has this SHA-256.

        *Guarantee:* refused (`PrivacyRefusal`) without its intent, or a second time: a value is never drawn again.
        *Does not cover:* whether the file is there; the caller writes it first.
        """
        with self._writing() as (_, write):
            write("done", run=run_id, touch=touch, attempt=attempt, sha256=sha256)

    def finish(self, run_id: str) -> None:
        """Ends a run; a second call changes nothing.

        *Guarantee:* no intent follows. *Does not cover:* unused attempts: they stay paid for.
        """
        with self._writing() as (book, write):
            if book.run(run_id, "standing", "finished").status == "standing":
                write("finished", run=run_id)

    def release(self, run_id: str, release_id: str) -> None:
        """Records that something made from the run's released values is published; a second call changes nothing.

        *Guarantee:* refused (`PrivacyRefusal`) for a run that is NOT PRIVATE. *Does not cover:* what the release holds.
        """
        with self._writing() as (book, write):
            if release_id not in book.run(run_id, "standing", "finished").releases:
                write("release", run=run_id, release=release_id)

    # Questions

    def cap(self) -> Cap | None:
        """The cap in force, or None before the first."""
        with self._chain.reading() as book:
            return book.cap

    def spent(self) -> Charge:
        """The sum of all that stands: epsilons and deltas rounded up, RDP at the orders that every charge knows."""
        with self._chain.reading() as book:
            return total_of(book.charges())

    def runs(self) -> dict[str, Run]:
        """Every run in the order of their plans, those given back or NOT PRIVATE among them."""
        with self._chain.reading() as book:
            return copy.deepcopy(book.runs)

    def attempts(self, run_id: str) -> dict[str, Attempts]:
        """Attempts used, done and planned at each touch of a run."""
        with self._chain.reading() as book:
            run = book.run(run_id)
            return {
                touch: Attempts(run.used.get(touch, 0), len(run.done.get(touch, {})), planned)
                for touch, planned in run.planned.items()
            }

    def recorded(self, run_id: str, touch: str, attempt: int) -> str | None:
        """The SHA-256 of the value of an attempt, or None if it is not done."""
        with self._chain.reading() as book:
            return book.run(run_id).done.get(touch, {}).get(attempt)

    def last_done(self, run_id: str, touch: str) -> tuple[int, str] | None:
        """The latest attempt whose value is durable, with the value's SHA-256."""
        with self._chain.reading() as book:
            return max(book.run(run_id).done.get(touch, {}).items(), default=None)

    def fingerprint(self, run_id: str) -> str:
        """The keyed digest of the private folder that the run was planned on."""
        with self._chain.reading() as book:
            return book.run(run_id).fingerprint

    def looks(self) -> int:
        """How often private data were seen outside the guarantee: looks, and touched runs that are NOT PRIVATE."""
        with self._chain.reading() as book:
            return book.looks + sum(run.not_private and bool(run.used) for run in book.runs.values())

    def public_id(self) -> str | None:
        """A random name of the ledger that a release may carry; None while the ledger is empty."""
        with self._chain.reading() as book:
            return book.public_id

    def head(self) -> tuple[int, str]:
        """Number and hash of the last line, for a statement to quote; (-1, 64 zeros) while the ledger is empty."""
        with self._chain.reading():
            return self._chain.head

    def entries(self) -> list[Entry]:
        """Every line, checked against the chain."""
        with Chain(self.path, _Entries).reading() as entries:
            return entries

    @staticmethod
    def verify(path: str | os.PathLike[str], against: tuple[int, str] | None = None) -> list[str]:
        """What is wrong with a ledger file: its chain, its rules replayed from the first line, a head quoted before.

        Returns:
            Sentences: the first break (what follows one proves nothing), or `TORN` (a crash, which heals), or none.

        *Guarantee:* any change, removal, insertion or exchange of lines up to the head `against` is found.
        *Does not cover:* `VERIFY_LIMIT`; without `against`, a file rewritten with all its hashes.
        """
        if not Path(path).is_file():
            raise UserError(f"There is no ledger at {path}.")
        chain = Chain(Path(path), Book, against)
        try:
            with chain.reading():
                return [TORN] if chain.torn else []
        except SfumatoError as problem:
            return [str(problem)]

    # Fingerprints: only for warnings on this machine; they never define what a data set is

    def fingerprint_key(self) -> bytes:
        """The 32 secret bytes that key all fingerprints in the ledger's folder, made when first asked for.

        *Guarantee:* all processes get the same key; only the owner can read it.
        *Does not cover:* who owns both key and digests can test whether a given file was there.
        """
        path = self.path.parent / "fingerprint.key"
        with _explained(path):
            if not path.exists():
                make_private_folder(path.parent)
                fresh = path.with_name(f".{secrets.token_hex(8)}.tmp")
                write_atomic(fresh, secrets.token_bytes(32), mode=0o600)
                with contextlib.suppress(FileExistsError):
                    os.link(fresh, path)  # unlike a rename, never over the key of another process
                fresh.unlink()
                fsync_dir(path.parent)
            key = path.read_bytes()
        if len(key) != 32:
            raise UserError(f"{path} must hold 32 bytes: restore it, or remove it, but then no run can be resumed.")
        return key

    def remember(self, digests: Iterable[bytes]) -> None:
        """Adds the keyed digests (16 bytes each) of the data set's files to those remembered beside the ledger.

        *Guarantee:* written atomically, readable by the owner only. *Does not cover:* see `fingerprint_key`.
        """
        path = self.path.with_suffix(".prints")
        with self._writing(), _explained(path):
            old = path.read_bytes() if path.exists() else b""
            write_atomic(path, b"".join(sorted({*_split(old), *digests})), mode=0o600)

    def overlap(self, digests: Iterable[bytes]) -> list[str]:
        """Names of the other data sets beside this ledger that remember at least one of `digests`.

        *Guarantee:* none; it warns of one data set under two names. *Does not cover:* files that differ in one byte.
        """
        mine, own = set(digests), self.path.with_suffix(".prints")
        with _explained(own.parent):
            others = [path for path in sorted(own.parent.glob("*.prints")) if path != own]
            return [path.stem for path in others if not mine.isdisjoint(_split(path.read_bytes()))]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[Book, Callable[..., None]]]:
        with self._chain.writing() as write:
            if self._chain.head[0] < 0:
                # The salt, never published, keeps a quoted head from confirming guesses at the lines below it.
                write("open", dataset=self.dataset, public_id=secrets.token_hex(16), salt=secrets.token_hex(16))
            yield self._chain.state, write


class _Entries(list[Entry]):
    def apply(self, entry: Entry) -> None:
        self.append(entry)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise UserError(f"{path} cannot be read or written ({fault.strerror}).") from fault


def _split(prints: bytes) -> Iterator[bytes]:
    return (prints[i : i + _DIGEST_BYTES] for i in range(0, len(prints), _DIGEST_BYTES))
