"""The ledger: its chain shows tampering, its filter keeps the cap, its attempts are never exceeded, come what may."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sfumato
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.privacy import _chain
from sfumato.privacy.ledger import NOT_PRIVATE, TORN, Attempts, Cap, Charge, Ledger

SHA = hashlib.sha256(b"value").hexdigest()
SMALL = Charge(0.5, 1e-6)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open("clinic", tmp_path / "clinic.jsonl")


def plan(ledger: Ledger, run: str = "run", charge: Charge = SMALL, rounds: int = 3, **more: Any) -> None:
    arguments = {"attempts": {"votes": rounds}, "plan_sha256": SHA, "unit": "image", "fingerprint": "print", **more}
    ledger.charge(run, charge, **arguments)


def kinds(ledger: Ledger) -> list[str]:
    return [entry["kind"] for entry in ledger.entries()]


def reopened(ledger: Ledger) -> Ledger:
    return Ledger.open(ledger.dataset, ledger.path)


def story(path: Path) -> Ledger:
    """A ledger with a line of every kind."""
    ledger = Ledger.open("clinic", path)
    ledger.set_cap(Cap(3.0, 1e-5))
    plan(ledger, "one", Charge(1.0, 1e-6, {"8": 0.25}))
    ledger.done("one", "votes", ledger.intent("one", "votes"), SHA)
    plan(ledger, "two")
    ledger.give_back("two")
    ledger.import_(0.25, 0.0, "a generator trained elsewhere")
    ledger.look("training loss")
    ledger.finish("one")
    ledger.release("one", "release-1")
    return ledger


# The file


def test_is_made_by_its_first_line_readable_by_the_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "state"))
    umask = os.umask(0)
    try:
        ledger = Ledger.open("clinic")
        assert ledger.head() == (-1, "0" * 64)
        assert not (tmp_path / "state").exists()
        plan(ledger)
        ledger.fingerprint_key()
        ledger.remember([bytes(16)])
    finally:
        os.umask(umask)
    folder = tmp_path / "state" / "ledgers"
    assert ledger.path == folder / "clinic.jsonl"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {"clinic.jsonl", "clinic.prints", "fingerprint.key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["", ".", ".hidden", "a/b", "../up", "a b", "ä", "a\n", "x" * 65])
def test_refuses_names_that_are_no_plain_file_names(name: str) -> None:
    with pytest.raises(UserError, match="data set name"):
        Ledger.open(name, "/nowhere")


def test_refuses_the_ledger_of_another_data_set(ledger: Ledger) -> None:
    ledger.look("loss")
    with pytest.raises(UserError, match="data set clinic, not of school"):
        Ledger.open("school", ledger.path).spent()


def test_lines_are_chained_json_that_anyone_can_check(tmp_path: Path) -> None:
    ledger = story(tmp_path / "clinic.jsonl")
    previous = "0" * 64
    for number, line in enumerate(ledger.path.read_text().splitlines()):
        entry = json.loads(line)
        assert list(entry)[:3] == ["n", "time", "kind"]
        assert list(entry)[-2:] == ["prev", "hash"]
        assert (entry["n"], entry["prev"]) == (number, previous)
        assert entry["time"].endswith("Z")
        previous = entry.pop("hash")
        assert hashlib.sha256(json.dumps(entry, separators=(",", ":")).encode()).hexdigest() == previous
    assert ledger.head() == (number, previous)
    assert " ".join(kinds(ledger)) == "open cap plan intent done plan give_back import look finished release"
    assert Ledger.verify(ledger.path, ledger.head()) == []
    assert ledger.public_id() == ledger.entries()[0]["public_id"] == reopened(ledger).public_id()


# Tampering


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes], tuple[int, str]]:
    """A scratch file, the lines of a whole story, and its head."""
    ledger = story(tmp_path_factory.mktemp("told") / "clinic.jsonl")
    return ledger.path, ledger.path.read_bytes().splitlines(keepends=True), ledger.head()


Told = tuple[Path, list[bytes], tuple[int, str]]


def forge(lines: list[bytes]) -> bytes:
    """The lines renumbered, with every hash computed anew: what somebody can do who has no quoted hash to meet."""
    out, previous = b"", "0" * 64
    for number, line in enumerate(lines):
        entry = {**json.loads(line), "n": number, "prev": previous}
        del entry["hash"]
        previous = hashlib.sha256(json.dumps(entry, separators=(",", ":")).encode()).hexdigest()
        out += json.dumps({**entry, "hash": previous}, separators=(",", ":")).encode() + b"\n"
    return out


def forge_one(lines: list[bytes], **fields: object) -> bytes:
    """The last line with some fields replaced and its own hash put right."""
    entry = {**json.loads(lines[-1]), **fields}
    del entry["hash"]
    digest = hashlib.sha256(json.dumps(entry, separators=(",", ":")).encode()).hexdigest()
    return b"".join(lines[:-1]) + json.dumps({**entry, "hash": digest}, separators=(",", ":")).encode() + b"\n"


def test_a_line_must_name_its_number_and_its_predecessor(told: Told) -> None:
    path, lines, _ = told
    path.write_bytes(forge_one(lines, release="other"))
    assert Ledger.verify(path) == []
    for fields in ({"n": len(lines)}, {"prev": "0" * 64}):
        path.write_bytes(forge_one(lines, **fields))
        assert "does not follow" in Ledger.verify(path)[0]


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_changed_byte_before_the_head_is_found(told: Told, data: st.DataObject) -> None:
    path, lines, head = told
    content = bytearray(b"".join(lines))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert Ledger.verify(path, head) != []
    assert Ledger.verify(path) != []


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_removed_repeated_and_moved_lines_are_found(told: Told, data: st.DataObject) -> None:
    path, lines, head = told
    numbers = list(range(len(lines)))
    at = data.draw(st.sampled_from(numbers))
    to = data.draw(st.sampled_from([number for number in numbers if number != at]))
    moved = [number for number in numbers if number != at]
    moved.insert(to, at)
    orders = {"remove": numbers[:at] + numbers[at + 1 :], "repeat": sorted([*numbers, at]), "move": moved}
    order = orders[data.draw(st.sampled_from(sorted(orders)))]
    path.write_bytes(b"".join(lines[number] for number in order))
    assert Ledger.verify(path, head) != []
    # Without the head, lines missing from the end cannot be seen: this is the stated limit.
    assert (Ledger.verify(path) != []) == (order != numbers[:-1])
    # With all hashes computed anew, the quoted head still tells whatever happened up to its line.
    path.write_bytes(forge([lines[number] for number in order]))
    assert (Ledger.verify(path, head) != []) == (order[: len(lines)] != numbers)


def test_a_head_quoted_earlier_vouches_for_the_lines_up_to_it_only(ledger: Ledger) -> None:
    ledger.look("one")
    early = ledger.head()
    ledger.look("two")
    late, whole = ledger.head(), ledger.path.read_bytes()
    ledger.path.write_bytes(whole[: whole.index(b'{"n":2')])
    assert Ledger.verify(ledger.path, early) == []
    assert "lines were removed" in Ledger.verify(ledger.path, late)[0]
    ledger.path.write_bytes(whole[:-9] + b"00000000\n")
    assert "Line 2" in Ledger.verify(ledger.path, early)[0]


def test_verify_replays_the_rules_and_not_only_the_hashes(tmp_path: Path) -> None:
    ledger = story(tmp_path / "clinic.jsonl")
    lines = ledger.path.read_bytes().splitlines()
    ledger.path.write_bytes(forge([line for line in lines if b'"kind":"intent"' not in line]))
    assert "Line 3 " in Ledger.verify(ledger.path)[0]
    assert "no intent" in Ledger.verify(ledger.path)[0]
    twice = [line for line in lines for _ in range(1 + (b'"kind":"intent"' in line))]
    ledger.path.write_bytes(forge(twice))
    assert "Line 4 " in Ledger.verify(ledger.path)[0]
    ledger.path.write_bytes(forge([line.replace(b'"epsilon":3.0', b'"epsilon":0.5') for line in lines]))
    assert "does not allow this plan" in Ledger.verify(ledger.path)[0]
    ledger.path.write_bytes(forge([line.replace(b'"kind":"look"', b'"kind":"gaze"') for line in lines]))
    assert "newer" in Ledger.verify(ledger.path)[0]
    ledger.path.write_bytes(forge([line.replace(b'"unit":"image",', b"") for line in lines]))
    assert "malformed" in Ledger.verify(ledger.path)[0]
    ledger.path.write_bytes(forge(lines[1:]))
    assert "`open`" in Ledger.verify(ledger.path)[0]


def test_a_broken_ledger_is_neither_read_nor_written(ledger: Ledger) -> None:
    plan(ledger)
    content = ledger.path.read_bytes().replace(b'"epsilon":0.5', b'"epsilon":0.1')
    ledger.path.write_bytes(content)
    with pytest.raises(PrivacyRefusal, match="hash"):
        reopened(ledger).spent()
    with pytest.raises(PrivacyRefusal, match="hash"):
        reopened(ledger).intent("run", "votes")
    assert ledger.path.read_bytes() == content


@pytest.mark.parametrize("undo", ["shorten", "replace", "remove"])
def test_a_process_does_not_let_its_ledger_go_back(ledger: Ledger, undo: str) -> None:
    plan(ledger)
    older = ledger.path.read_bytes()
    ledger.intent("run", "votes")
    if undo == "shorten":
        os.truncate(ledger.path, len(older))
    else:
        ledger.path.unlink()
        if undo == "replace":
            ledger.path.write_bytes(older)
    with pytest.raises(PrivacyRefusal, match="lines were removed"):
        ledger.intent("run", "votes")


def test_a_ledger_moved_away_and_back_is_the_same_ledger(ledger: Ledger) -> None:
    plan(ledger)
    content = ledger.path.read_bytes()
    ledger.path.rename(ledger.path.with_name("elsewhere"))
    ledger.path.write_bytes(content)
    assert ledger.intent("run", "votes") == 1


def test_a_file_system_without_locks_is_refused(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(ledger)
    handles = os.listdir("/proc/self/fd")

    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for act in (lambda: ledger.intent("run", "votes"), ledger.head):
        with pytest.raises(UserError, match="locked"):
            act()
    assert os.listdir("/proc/self/fd") == handles


def test_verify_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no ledger"):
        Ledger.verify(tmp_path / "none.jsonl")


# Runs and attempts


def test_a_run_gets_the_attempts_it_bought_and_no_more(ledger: Ledger) -> None:
    plan(ledger, attempts={"votes": 3, "means": 1})
    assert ledger.attempts("run") == {"votes": Attempts(0, 0, 3), "means": Attempts(0, 0, 1)}
    assert ledger.last_done("run", "votes") is None
    assert [ledger.intent("run", "votes") for _ in range(3)] == [1, 2, 3]
    for book in (ledger, reopened(ledger)):
        with pytest.raises(PrivacyRefusal, match="none is left"):
            book.intent("run", "votes")
        with pytest.raises(PrivacyRefusal, match="none is left"):
            book.intent("run", "other")
    assert ledger.intent("run", "means") == 1
    ledger.done("run", "votes", 3, SHA)
    ledger.done("run", "votes", 2, "0" * 64)
    for book in (ledger, reopened(ledger)):
        assert book.attempts("run") == {"votes": Attempts(3, 2, 3), "means": Attempts(1, 0, 1)}
        assert book.last_done("run", "votes") == (3, SHA)
        assert [book.recorded("run", "votes", attempt) for attempt in (1, 2, 3)] == [None, "0" * 64, SHA]
        assert book.fingerprint("run") == "print"


def test_done_needs_its_intent_and_happens_once(ledger: Ledger) -> None:
    plan(ledger)
    ledger.intent("run", "votes")
    for attempt in (0, 2):
        with pytest.raises(PrivacyRefusal, match="no intent"):
            ledger.done("run", "votes", attempt, SHA)
    with pytest.raises(PrivacyRefusal, match="no intent"):
        ledger.done("run", "means", 1, SHA)
    with pytest.raises(UserError, match="SHA-256"):
        ledger.done("run", "votes", 1, "short")
    ledger.done("run", "votes", 1, SHA)
    with pytest.raises(PrivacyRefusal, match="done already"):
        ledger.done("run", "votes", 1, SHA)


def test_only_standing_plans_may_touch(ledger: Ledger) -> None:
    with pytest.raises(PrivacyRefusal, match="no plan"):
        ledger.intent("run", "votes")
    plan(ledger)
    ledger.give_back("run")
    with pytest.raises(PrivacyRefusal, match="given back"):
        ledger.intent("run", "votes")
    plan(ledger, "next")
    ledger.intent("next", "votes")
    ledger.finish("next")
    ledger.finish("next")
    with pytest.raises(PrivacyRefusal, match="finished"):
        ledger.intent("next", "votes")
    with pytest.raises(PrivacyRefusal, match="finished"):
        ledger.done("next", "votes", 1, SHA)
    assert kinds(ledger).count("finished") == 1


def test_a_plan_is_given_back_only_before_its_first_intent(ledger: Ledger) -> None:
    plan(ledger)
    ledger.give_back("run")
    assert ledger.spent() == Charge(0.0, 0.0)
    with pytest.raises(PrivacyRefusal, match="given back"):
        ledger.give_back("run")
    plan(ledger, "next")
    ledger.intent("next", "votes")
    with pytest.raises(PrivacyRefusal, match="charge stays"):
        ledger.give_back("next")
    assert ledger.spent() == SMALL


def test_a_malformed_plan_is_refused_and_leaves_no_line(ledger: Ledger) -> None:
    plan(ledger)
    before = ledger.path.read_bytes()
    wrongs: list[dict[str, Any]] = [{"attempts": attempts} for attempts in ({}, {"votes": 0}, {"votes": True})]
    for wrong in [*wrongs, {"plan_sha256": "?"}]:
        with pytest.raises(UserError):
            plan(ledger, "other", Charge(0.0, 0.0), **wrong)
    with pytest.raises(UserError, match="has a plan already"):
        plan(ledger, charge=Charge(0.0, 0.0))
    assert ledger.path.read_bytes() == before


def test_runs_tell_what_became_of_each_plan(tmp_path: Path) -> None:
    runs = story(tmp_path / "clinic.jsonl").runs()
    assert list(runs) == ["one", "two"]
    assert (runs["one"].status, runs["one"].used, runs["one"].releases) == ("finished", {"votes": 1}, ["release-1"])
    assert runs["one"].charge == Charge(1.0, 1e-6, {"8": 0.25})
    assert (runs["two"].status, runs["two"].counts) == ("given back", False)


def test_a_release_is_entered_once(tmp_path: Path) -> None:
    ledger = story(tmp_path / "clinic.jsonl")
    ledger.release("one", "release-1")
    assert kinds(ledger).count("release") == 1
    with pytest.raises(PrivacyRefusal, match="given back"):
        ledger.release("two", "release-2")


def test_a_run_with_test_noise_is_stamped_costs_nothing_counts_as_a_look_and_is_never_released(ledger: Ledger) -> None:
    plan(ledger, charge=Charge(50.0, 1e-6), not_private=True)
    assert ledger.entries()[-1]["stamp"] == NOT_PRIVATE
    assert ledger.runs()["run"].not_private
    assert ledger.cap() is None
    assert ledger.spent() == Charge(0.0, 0.0)
    assert ledger.looks() == 0
    ledger.intent("run", "votes")
    assert ledger.looks() == 1
    ledger.finish("run")
    with pytest.raises(PrivacyRefusal, match=NOT_PRIVATE):
        ledger.release("run", "release-1")
    plan(ledger, "real", unit="person")
    assert ledger.entries()[-1]["stamp"] is None
    assert ledger.spent() == SMALL


def test_looks_are_counted(ledger: Ledger) -> None:
    assert ledger.looks() == 0
    ledger.look("training loss")
    ledger.look("Frechet distance")
    assert reopened(ledger).looks() == 2


# The cap


def test_the_first_plan_sets_the_cap_and_the_second_needs_a_raise(ledger: Ledger) -> None:
    plan(ledger)
    assert ledger.cap() == Cap(0.5, 1e-6)
    assert [entry.get("implicit") for entry in ledger.entries()] == [None, True, None]
    with pytest.raises(PrivacyRefusal, match=r"`sfumato ledger cap clinic --epsilon 0\.75 --delta 2e-06`") as refusal:
        plan(ledger, "two", Charge(0.25, 1e-6))
    assert "has spent epsilon 0.5 and delta 1e-06 of its cap of epsilon 0.5 and delta 1e-06" in str(refusal.value)
    assert kinds(ledger) == ["open", "cap", "plan"]
    ledger.set_cap(Cap(0.75, 2e-6))
    plan(ledger, "two", Charge(0.25, 1e-6))
    assert ledger.spent() == Charge(0.75, 2e-6)


def test_the_first_plan_that_stands_is_the_one_that_sets_the_cap(ledger: Ledger) -> None:
    plan(ledger, "one", Charge(5.0, 1e-5))
    ledger.give_back("one")
    plan(ledger, "two", Charge(1.0, 1e-6))
    assert ledger.cap() == Cap(1.0, 1e-6)
    ledger.set_cap(Cap(9.0, 1e-5))
    ledger.give_back("two")
    plan(ledger, "three", Charge(1.0, 1e-6))
    assert ledger.cap() == Cap(9.0, 1e-5)


@pytest.mark.parametrize(
    ("cap", "costs", "admitted"),
    [
        (0.3, [0.1, 0.2], 2),  # 0.1 + 0.2 > 0.3 in floats, but not as written
        (1.0, [0.1] * 11, 10),
        (1.0, [1 / 3] * 4, 3),  # 0.3333333333333333 three times is below 1
        (1.0, [0.9999999999999999, 1e-16, 1e-300], 2),  # sums to exactly 1; the float sum would swallow the third
        (1e16, [1e16, 1.0], 1),  # 1e16 + 1.0 == 1e16 in floats
        (0.0, [0.0, 5e-324], 1),
    ],
)
@pytest.mark.parametrize("which", ["epsilon", "delta"])
def test_sums_are_exact(tmp_path: Path, which: str, cap: float, costs: list[float], admitted: int) -> None:
    if which == "delta":
        if cap > 1:
            cap, costs = 1.0, [cost / cap for cost in costs]
        made = [Charge(0.0, cost) for cost in costs]
    else:
        made = [Charge(cost, 0.0) for cost in costs]
    ledger = Ledger.open("clinic", tmp_path / "clinic.jsonl")
    ledger.set_cap(Cap(cap if which == "epsilon" else 0.0, cap if which == "delta" else 0.0))
    for number, charge in enumerate(made):
        if number < admitted:
            plan(ledger, str(number), charge)
        else:
            with pytest.raises(PrivacyRefusal):
                plan(ledger, str(number), charge)


def test_the_spend_shown_is_never_less_than_the_sum(ledger: Ledger) -> None:
    ledger.set_cap(Cap(2e16, 1.0))
    plan(ledger, "one", Charge(1e16, 0.7))
    plan(ledger, "two", Charge(1.0, 0.2))
    assert ledger.spent() == Charge(1e16 + 2, 0.9)
    ledger.import_(0.0, 0.7, "elsewhere")
    assert ledger.spent().delta == 1.0


def test_the_cap_is_not_lowered_below_what_is_spent(ledger: Ledger) -> None:
    ledger.set_cap(Cap(3.0, 1e-5))
    plan(ledger, charge=Charge(1.0, 1e-6))
    for low in (Cap(0.99, 1e-5), Cap(3.0, 9e-7)):
        with pytest.raises(PrivacyRefusal, match="already spent"):
            ledger.set_cap(low)
    ledger.set_cap(Cap(1.0, 1e-6))
    assert reopened(ledger).cap() == Cap(1.0, 1e-6)


def test_imports_count_even_beyond_the_cap(ledger: Ledger) -> None:
    ledger.set_cap(Cap(1.0, 1e-5))
    ledger.import_(4.0, 1e-6, "a generator trained elsewhere")
    assert ledger.spent() == Charge(4.0, 1e-6)
    with pytest.raises(PrivacyRefusal, match=r"--epsilon 4\.5 --delta 1e-05"):
        plan(ledger)


def test_an_import_before_any_cap_asks_for_one(ledger: Ledger) -> None:
    ledger.import_(1.0, 1e-6, "a generator trained elsewhere")
    with pytest.raises(PrivacyRefusal, match=r"has no cap\. `sfumato ledger cap clinic --epsilon 1\.5 --delta 2e-06`"):
        plan(ledger)
    ledger.set_cap(Cap(1.5, 2e-6))
    plan(ledger)


def test_the_filter_is_fixed_once_something_is_spent(ledger: Ledger) -> None:
    ledger.set_cap(Cap(3.0, 1e-5, "renyi", 8))
    ledger.set_cap(Cap(3.0, 1e-5, "renyi", 16))
    plan(ledger, charge=Charge(1.0, 1e-6, {"8": 0.1, "16": 0.2}))
    for other in (Cap(3.0, 1e-5), Cap(3.0, 1e-5, "renyi", 8)):
        with pytest.raises(PrivacyRefusal, match="fixes how it counts"):
            ledger.set_cap(other)
    ledger.set_cap(Cap(2.5, 1e-5, "renyi", 16))


def test_renyi_budget_is_the_published_conversion_rounded_down() -> None:
    epsilon, delta, order = 2.0, 1e-5, 16.0
    budget = Cap(epsilon, delta, "renyi", order).rdp_budget()
    expected = epsilon - (math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1))
    assert expected - 1e-11 < budget < expected
    # The same number by the definition: at this RDP the conversion's delta at epsilon is the cap's.
    log_delta = (order - 1) * (float(budget) - epsilon) + order * math.log1p(-1 / order) - math.log(order - 1)
    assert math.isclose(math.exp(log_delta), delta, rel_tol=1e-9)


def test_renyi_filter_adds_rdp_at_its_order_and_nothing_else(ledger: Ledger) -> None:
    cap = Cap(2.0, 1e-5, "renyi", 16)
    ledger.set_cap(cap)
    third = float(cap.rdp_budget()) / 3
    share = Charge(1.9, 1e-5, {"16.0": math.nextafter(third, 0), "4": 9.0})
    for run in ("one", "two", "three"):
        plan(ledger, run, share)  # the epsilons add up to 5.7: under this filter they do not matter
    with pytest.raises(PrivacyRefusal, match="--filter renyi --order 16`"):
        plan(ledger, "four", Charge(0.0, 0.0, {"16": 1e-9}))
    with pytest.raises(PrivacyRefusal, match="do not state their RDP"):
        plan(ledger, "four", Charge(0.0, 0.0, {"4": 0.0}))
    assert set(ledger.spent().rdp or {}) == {"16", "4"}


@given(spent=st.floats(0, 50), epsilon=st.floats(2, 9), delta=st.floats(1e-9, 1e-3), order=st.floats(16, 300))
@settings(deadline=None)
def test_the_raise_that_a_refusal_proposes_is_enough(spent: float, epsilon: float, delta: float, order: float) -> None:
    for cap, charge in (
        (Cap(epsilon, delta), Charge(spent, 1.7e-4)),
        (Cap(epsilon, delta, "renyi", order), Charge(9.0, 1.0, {repr(order): spent})),
    ):
        raised = cap.raised_for([charge, charge])
        assert raised is not None
        assert raised.admits([charge, charge])
        assert raised.epsilon >= cap.epsilon


def test_an_import_without_rdp_closes_a_renyi_cap(ledger: Ledger) -> None:
    ledger.set_cap(Cap(3.0, 1e-5, "renyi", 16))
    ledger.import_(0.1, 0.0, "elsewhere")
    with pytest.raises(PrivacyRefusal, match="do not state their RDP"):
        plan(ledger, charge=Charge(0.1, 1e-6, {"16": 0.01}))


def test_budgets_of_different_units_do_not_add_up(ledger: Ledger) -> None:
    ledger.set_cap(Cap(9.0, 1e-5))
    plan(ledger, "one", unit="person")
    with pytest.raises(PrivacyRefusal, match="one person each and this plan one image"):
        plan(ledger, "two", unit="image")
    ledger.give_back("one")
    plan(ledger, "two", unit="image")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Charge(-1.0, 0.0),
        lambda: Charge(math.nan, 0.0),
        lambda: Charge(math.inf, 0.0),
        lambda: Charge(1.0, 1.1),
        lambda: Charge(1.0, math.nan),
        lambda: Charge(1.0, 0.0, {"1": 0.5}),
        lambda: Charge(1.0, 0.0, {"2": math.inf}),
        lambda: Charge(1.0, 0.0, {"2": -0.1}),
        lambda: Charge(1.0, 0.0, {"2": 0.1, "2.0": 0.2}),
        lambda: Cap(math.inf, 0.0),
        lambda: Cap(1.0, 1e-5, "sum", 8.0),
        lambda: Cap(1.0, 1e-5, "renyi"),
        lambda: Cap(1.0, 1e-5, "renyi", 1.0),
        lambda: Cap(1.0, 0.0, "renyi", 8.0),
        lambda: Cap(1.0, 1e-5, "renyi", 2.0),  # at order 2, delta 1e-5 alone costs more than epsilon 1
        lambda: Cap(1.0, 1e-5, "best"),  # type: ignore[arg-type]
    ],
)
def test_budgets_that_mean_nothing_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        make()


# Random histories against a plain model


@given(steps=st.lists(st.tuples(st.sampled_from("piiigfddl"), st.integers(0, 2), st.integers(1, 4)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_random_histories_keep_cap_and_attempts(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    ledger = Ledger.open("clinic", tmp_path_factory.mktemp("history") / "clinic.jsonl")
    ledger.set_cap(Cap(0.3, 3e-6))
    with contextlib.ExitStack() as patches:
        patches.enter_context(pytest.MonkeyPatch.context()).setattr(os, "fsync", lambda handle: None)
        for letter, name, number in steps:
            run = str(name)
            with contextlib.suppress(PrivacyRefusal, UserError):
                match letter:
                    case "p":
                        plan(ledger, run, Charge(number / 10, 1e-6), number)
                    case "i":
                        ledger.intent(run, "votes")
                    case "g":
                        ledger.give_back(run)
                    case "f":
                        ledger.finish(run)
                    case "d":
                        ledger.done(run, "votes", number, SHA)
                    case "l":
                        ledger.look("loss")
    lines = ledger.entries()
    plans = {line["run"]: line for line in lines if line["kind"] == "plan"}
    returned = {line["run"] for line in lines if line["kind"] == "give_back"}
    intents = [line["run"] for line in lines if line["kind"] == "intent"]
    assert sum(round(10 * line["epsilon"]) for run, line in plans.items() if run not in returned) <= 3
    assert all(intents.count(run) <= line["attempts"]["votes"] for run, line in plans.items())
    assert not returned & set(intents)
    assert (reopened(ledger).runs(), reopened(ledger).head()) == (ledger.runs(), ledger.head())


# Crashes and full disks


def script(body: str, *arguments: object) -> subprocess.Popen[str]:
    """A separate process that runs `body` with `sys.argv[1:]` as given."""
    begin = "import os, sys\nfrom sfumato.errors import *\nfrom sfumato.privacy.ledger import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", begin + body, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(sfumato.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out


def test_a_line_torn_anywhere_was_never_acted_upon_and_is_healed(ledger: Ledger) -> None:
    plan(ledger)
    ledger.intent("run", "votes")
    whole = ledger.path.read_bytes()
    begin = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(begin, len(whole)):
        ledger.path.write_bytes(whole[:cut])
        torn = cut > begin
        assert Ledger.verify(ledger.path) == ([TORN] if torn else [])
        again = reopened(ledger)
        assert again.attempts("run")["votes"].used == 0
        if cut % 40 == 0:
            assert again.intent("run", "votes") == 1
            assert Ledger.verify(ledger.path, again.head()) == []
            assert kinds(again) == ["open", "cap", "plan", "intent"]


def test_a_first_plan_torn_from_its_implicit_cap_can_be_made_again(ledger: Ledger) -> None:
    plan(ledger)
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[:2]) + lines[2][:50])
    again = reopened(ledger)
    plan(again, charge=Charge(2.0, 1e-6))
    assert again.cap() == Cap(2.0, 1e-6)
    assert Ledger.verify(ledger.path) == []


def test_a_line_is_on_disk_before_the_call_returns(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes | None] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        synced.append(None if stat.S_ISDIR(os.fstat(handle).st_mode) else ledger.path.read_bytes())

    monkeypatch.setattr(os, "fsync", fsync)
    plan(ledger)
    assert synced[-1] is None  # the folder entry of a new ledger
    assert synced[-2] == ledger.path.read_bytes()
    for act in (lambda: ledger.intent("run", "votes"), lambda: ledger.done("run", "votes", 1, SHA)):
        synced.clear()
        act()
        assert synced == [ledger.path.read_bytes()]


@pytest.mark.parametrize("fault", ["write", "short", "quota", "fsync", "interrupt"])
def test_a_failed_append_leaves_the_ledger_as_it_was(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    plan(ledger)
    before = ledger.path.read_bytes()
    write, fsync = os.write, os.fsync
    faults = {"write": errno.ENOSPC, "quota": errno.EDQUOT, "fsync": errno.EIO}
    failing = True

    def bad_write(handle: int, data: bytes) -> int:
        if fault == "short":
            return write(handle, data[: len(data) // 2])
        if fault == "interrupt":
            write(handle, data)
            raise KeyboardInterrupt
        raise OSError(faults[fault], os.strerror(faults[fault]))

    def bad_fsync(handle: int) -> None:
        nonlocal failing
        if failing:
            failing = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    if fault == "fsync":
        monkeypatch.setattr(os, "fsync", bad_fsync)
    else:
        monkeypatch.setattr(os, "write", bad_write)
    with pytest.raises(KeyboardInterrupt if fault == "interrupt" else UserError):
        ledger.intent("run", "votes")
    assert ledger.path.read_bytes() == before
    monkeypatch.undo()
    reopened(ledger).look("more than the failed line would have taken " * 9)
    assert ledger.attempts("run")["votes"].used == 0
    assert ledger.intent("run", "votes") == 1
    assert Ledger.verify(ledger.path, ledger.head()) == []


@pytest.mark.parametrize("written", [1, 100, None])
def test_a_failed_append_that_cannot_be_put_back_says_so_and_heals(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, written: int | None
) -> None:
    plan(ledger)
    write = os.write

    def bad_write(handle: int, data: bytes) -> int:
        write(handle, data[:written])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def bad_truncate(handle: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", bad_write)
    monkeypatch.setattr(os, "ftruncate", bad_truncate)
    with pytest.raises(UserError, match="nor put back"):
        ledger.intent("run", "votes")
    monkeypatch.undo()
    # A line that reached the disk whole counts, although nobody acted upon it: the safe side.
    assert ledger.intent("run", "votes") == (2 if written is None else 1)
    assert Ledger.verify(ledger.path, ledger.head()) == []


def test_a_really_full_disk_stops_the_run_with_nothing_lost(ledger: Ledger) -> None:
    plan(ledger, rounds=1000)
    size = ledger.path.stat().st_size
    out = finished(
        script(
            """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, size = sys.argv[1], int(sys.argv[2])
ledger = Ledger.open("clinic", path)
for limit in range(size, size + 1600, 37):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    before = open(path, "rb").read()
    try:
        print(ledger.intent("run", "votes"))
    except UserError as error:
        assert "no private data was touched" in str(error), error
        assert open(path, "rb").read() == before
        print("full")
""",
            ledger.path,
            size,
        )
    ).split()
    numbers = [int(word) for word in out if word != "full"]
    assert out[0] == "full"
    assert numbers == list(range(1, len(numbers) + 1))
    assert 3 <= len(numbers) < len(out) - 3
    assert ledger.attempts("run")["votes"].used == len(numbers)
    assert Ledger.verify(ledger.path, ledger.head()) == []


def test_killed_in_the_middle_of_appends_it_opens_verifies_and_has_every_acknowledged_line(ledger: Ledger) -> None:
    plan(ledger, rounds=10**6)
    for _ in range(5):
        process = script(
            """
ledger = Ledger.open("clinic", sys.argv[1])
while True:
    attempt = ledger.intent("run", "votes")
    print(attempt, flush=True)
    ledger.done("run", "votes", attempt, "0" * 64)
""",
            ledger.path,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(random.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        acknowledged = max(int(word) for word in (first + out).split("\n")[:-1])
        assert Ledger.verify(ledger.path) in ([], [TORN])
        used, done, _ = reopened(ledger).attempts("run")["votes"]
        assert acknowledged <= used <= acknowledged + 1
        assert 0 < done <= used
        ledger.look("loss")
        assert Ledger.verify(ledger.path, ledger.head()) == []


# Many writers


def test_two_processes_race_for_the_last_budget_and_one_wins(tmp_path: Path) -> None:
    names = [f"set-{number}" for number in range(8)]
    for name in names:
        Ledger.open(name, tmp_path / name).set_cap(Cap(1.0, 1e-5))
    racers = [
        script(
            """
import time
folder, run = sys.argv[1:]
write = os.write
def slowly(handle, data):  # widens the gap between the check and the append
    time.sleep(0.05)
    return write(handle, data)
os.write = slowly
print("ready", flush=True)
for name in sys.stdin.readline().split():
    try:
        Ledger.open(name, f"{folder}/{name}").charge(run, Charge(0.6, 1e-6), {"votes": 1}, "0" * 64, "image", "print")
        print("won")
    except PrivacyRefusal:
        print("lost")
""",
            tmp_path,
            run,
        )
        for run in ("one", "two")
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(" ".join(names) + "\n")
        racer.stdin.flush()
    results = [finished(racer).split() for racer in racers]
    assert [sorted(pair) for pair in zip(*results, strict=True)] == [["lost", "won"]] * len(names)
    for name in names:
        assert Ledger.open(name, tmp_path / name).spent() == Charge(0.6, 1e-6)


def test_many_processes_and_threads_share_the_attempts_and_keep_the_chain(ledger: Ledger) -> None:
    planned = 120
    plan(ledger, rounds=planned)
    body = """
import threading
shared = Ledger.open("clinic", sys.argv[1])
def work(ledger):
    while True:
        try:
            os.write(1, b"%d\\n" % ledger.intent("run", "votes"))
        except PrivacyRefusal:
            return
ledgers = shared, shared, Ledger.open("clinic", sys.argv[1])
threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    workers = [script(body, ledger.path) for _ in range(3)]
    numbers = sorted(int(word) for worker in workers for word in finished(worker).split())
    assert numbers == list(range(1, planned + 1))
    assert Ledger.verify(ledger.path, ledger.head()) == []
    assert ledger.attempts("run") == {"votes": Attempts(planned, 0, planned)}


def test_threads_may_share_one_ledger_for_questions(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        plan(ledger, rounds=150)
        for _ in range(150):
            ledger.intent("run", "votes")
    answers: list[int] = []
    fresh = reopened(ledger)
    together = threading.Barrier(4)

    def ask() -> None:
        together.wait()
        answers.append(fresh.attempts("run")["votes"].used)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert answers == [150] * 4


def test_a_child_forked_while_the_lock_is_held_does_not_keep_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(ledger)
    children: list[int] = []
    fsync = os.fsync

    def fork_then_sync(handle: int) -> None:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        children.append(child)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fork_then_sync)
    ledger.intent("run", "votes")
    monkeypatch.undo()
    waiting = threading.Thread(target=lambda: reopened(ledger).intent("run", "votes"), daemon=True)
    waiting.start()
    waiting.join(timeout=5)
    blocked = waiting.is_alive()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert children
    assert not blocked


def test_an_append_reads_only_what_others_appended(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    taken: list[bytes] = []
    real = _chain._unseal

    def counting(line: bytes) -> dict[str, Any]:
        taken.append(line)
        return real(line)

    monkeypatch.setattr(_chain, "_unseal", counting)
    plan(ledger, rounds=10**6)
    other = reopened(ledger)
    for _ in range(300):
        ledger.intent("run", "votes")
    for book, lines in ((other, 304), (other, 1), (ledger, 3), (ledger, 1), (other, 3)):
        taken.clear()
        book.intent("run", "votes")
        assert len(taken) == lines


# Fingerprints


def test_the_fingerprint_key_is_one_secret_for_all(tmp_path: Path) -> None:
    body = "print(Ledger.open('clinic', sys.argv[1]).fingerprint_key().hex())"
    racers = [script(body, tmp_path / "ledgers" / "clinic.jsonl") for _ in range(4)]
    keys = {finished(racer) for racer in racers}
    assert len(keys) == 1
    key = Ledger.open("school", tmp_path / "ledgers" / "school.jsonl").fingerprint_key()
    assert keys == {key.hex() + "\n"}
    assert len(key) == 32
    assert [path.name for path in (tmp_path / "ledgers").iterdir()] == ["fingerprint.key"]
    assert Ledger.open("clinic", tmp_path / "other" / "clinic.jsonl").fingerprint_key() != key


def test_a_fingerprint_key_is_never_drawn_over_another(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = bytes(range(32))
    link = os.link

    def late(source: Path, target: Path) -> None:
        target.write_bytes(theirs)
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert ledger.fingerprint_key() == theirs
    (ledger.path.parent / "fingerprint.key").write_bytes(b"short")
    with pytest.raises(UserError, match="32 bytes"):
        ledger.fingerprint_key()


def test_overlap_names_the_data_sets_that_share_a_file(tmp_path: Path) -> None:
    clinic, school = (Ledger.open(name, tmp_path / f"{name}.jsonl") for name in ("clinic", "school"))
    prints = [hashlib.sha256(bytes([number])).digest()[:16] for number in range(9)]
    clinic.remember(prints[5:2:-1])
    clinic.remember(prints[:3])
    assert (tmp_path / "clinic.prints").read_bytes() == b"".join(sorted(prints[:6]))
    assert clinic.overlap(prints) == []
    assert school.overlap(prints[5:]) == ["clinic"]
    assert school.overlap(prints[6:]) == []
    # A digest is found only where one begins.
    assert school.overlap([(prints[0] + prints[1])[8:24]]) == []
    school.remember(prints[6:])
    assert school.overlap(prints) == ["clinic"]
    assert clinic.overlap(prints) == ["school"]


def test_nothing_remembered_at_the_same_time_is_lost(ledger: Ledger) -> None:
    prints = [bytes([number]) * 16 for number in range(8)]
    threads = [threading.Thread(target=reopened(ledger).remember, args=([digest],)) for digest in prints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.path.with_suffix(".prints").read_bytes() == b"".join(prints)
