"""Further breaks: beneath the touches, and such as the audit itself must see."""

from __future__ import annotations

from mutants import (
    ACCOUNTING,
    BOOK,
    CHAIN,
    CONTRIBUTED,
    DEVIATION,
    DRAWS,
    GATE,
    HISTOGRAM,
    NOISE,
    PLAN,
    RECORDS,
    SESSION,
    SUMS,
    TRAINING,
    URANDOM,
    Mutant,
)

GROUPS: dict[str, tuple[Mutant, ...]] = CONTRIBUTED | {
    "noise and records": (
        Mutant(
            "shuffled instead of Poisson batches",
            NOISE,
            "        return np.frombuffer(self.bytes(8 * count), dtype=np.uint64) < np.uint64(threshold)",
            "        order = np.frombuffer(self.bytes(8 * count), dtype=np.uint64).argsort()\n"
            "        return order.argsort() < round(rate * count)",
            "privacy/test_noise.py::test_batch_sizes_vary_as_poisson_sampling_must",
        ),
        Mutant(
            "a seeded generator",
            NOISE,
            URANDOM,
            'return hashlib.shake_128(b"2026").digest(count)',
            "privacy/test_noise.py::test_no_two_draws_agree",
        ),
        Mutant(
            "a generator of 32 bits",
            NOISE,
            URANDOM,
            "return hashlib.shake_128(os.urandom(4)).digest(count)",
            "privacy/test_break_touches.py::test_every_random_byte_is_the_kernels",
        ),
        Mutant(
            "NumPy's generator",
            NOISE,
            URANDOM,
            "return np.random.default_rng(int.from_bytes(os.urandom(32), 'big')).bytes(count)",
            "privacy/test_noise.py::test_no_other_generator_is_used_in_the_trusted_core",
        ),
        Mutant(
            "the same key after a fork",
            NOISE,
            URANDOM,
            'self._calls = getattr(self, "_calls", 0) + 1\n'
            '        return hashlib.shake_128(_KEY + self._calls.to_bytes(8, "big")).digest(count)',
            "privacy/test_noise.py::test_a_fork_draws_other_masks",
            ("_SECURE_SUMMANDS = 4", "_SECURE_SUMMANDS = 4\n_KEY = os.urandom(32)"),
        ),
        Mutant(
            "four draws summed, divided by four",
            NOISE,
            "np.sqrt(_SECURE_SUMMANDS)",
            "_SECURE_SUMMANDS",
            "privacy/test_noise.py::test_gaussian_has_its_scale_and_a_wrong_scale_is_seen",
        ),
        Mutant(
            "per-record choices from a shared stream",
            DRAWS,
            "hashlib.shake_128(prefix + identity).digest(4 * count) for identity in self._identities)",
            "hashlib.shake_128(prefix + bytes([place % 256])).digest(4 * count)\n"
            "                        for place, _ in enumerate(self._identities))",
            "privacy/test_draws.py::test_a_draw_does_not_depend_on_the_company",
        ),
        Mutant(
            "a person counted once an image",
            RECORDS,
            'owners.append(people[owner] if unit == "person" else len(names) - 1)',
            "owners.append(len(names) - 1)",
            "privacy/test_histogram.py::test_one_record_moves_at_most_k_cells_by_one",
        ),
        Mutant(
            "class list from folders",
            RECORDS,
            'index.get(entry.label or "", -2)',
            'index.setdefault(entry.label or "", len(index))',
            "privacy/test_records.py::test_null_contributions",
        ),
        Mutant(
            "an unreadable file stops the run",
            RECORDS,
            "                findings[str(image.fault)] += 1",
            '                raise InternalError("an image cannot be read")',
            "privacy/test_records.py::test_null_contributions",
        ),
        Mutant(
            "the last chunk tells how many records there are",
            RECORDS,
            "            part = chosen[begin : begin + size]\n",
            "            part = chosen[begin : begin + size]\n            size = len(part)\n",
            "privacy/test_records.py::test_chunks_have_one_shape",
        ),
    ),
    "accounting": (
        Mutant(
            "the continuous event for discrete noise",
            ACCOUNTING,
            "            return cell.self_compose(mechanism.compositions)",
            "            cell = _gaussian(mechanism.scale, 1.0, interval)\n"
            "            return cell.self_compose(mechanism.compositions)",
            "privacy/test_accounting.py::test_discrete_noise_costs_more_than_continuous",
        ),
        Mutant(
            "k cells priced as one",
            "privacy/_mechanisms.py",
            "        return self.cells * self.rounds",
            "        return self.rounds",
            "privacy/test_accounting.py::test_a_record_that_votes_in_every_class",
        ),
        Mutant(
            "spare attempts not charged",
            "privacy/_touches.py",
            "        return self.after(self.attempts)",
            "        return self.after(1)",
            "privacy/test_plan.py::test_the_noise_of_auxiliary_touches",
        ),
        Mutant(
            "noise rounded down",
            ACCOUNTING,
            "Decimal(1).scaleb(exact.adjusted() - 3), rounding=ROUND_CEILING",
            'Decimal(1).scaleb(exact.adjusted() - 3), rounding="ROUND_FLOOR"',
            "privacy/test_accounting.py::test_noise_is_rounded_up",
        ),
        Mutant(
            "epsilon rounded down",
            ACCOUNTING,
            "quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING)",
            'quantize(Decimal(1).scaleb(-digits), rounding="ROUND_FLOOR")',
            "privacy/test_accounting.py::test_epsilon_is_rounded_up",
        ),
        Mutant(
            "calibration ends on the unsafe side",
            ACCOUNTING,
            "    while price(noise) > target:",
            "    while False:",
            "privacy/test_accounting.py::test_a_search_that_ends_too_low_is_raised",
        ),
        Mutant(
            "accountants that disagree are let pass",
            ACCOUNTING,
            "    if fine > 1.01 * renyi + 0.005:",
            "    if False:",
            "privacy/test_accounting.py::test_pld_above_renyi_is_our_bug",
        ),
        Mutant(
            "a statement from executed steps only",
            PLAN,
            "        return max(self.planned_epsilon, self.epsilon_of(executed))",
            "        return self.epsilon_of(executed)",
            "privacy/test_statement.py::test_the_price_is_of_all_attempts_that_were_bought",
        ),
        Mutant(
            "looks are not confessed",
            "privacy/statement.py",
            "        if self.looks:",
            "        if self.looks < 0:",
            "privacy/test_statement.py::test_looks_and_other_runs_are_confessed",
        ),
        Mutant(
            "delta from the true number of records",
            "run.py",
            "Charge(plan.planned_epsilon, plan.delta,",
            "Charge(plan.planned_epsilon, 1e-3 / max(1, found.records),",
            "privacy/test_break_public.py::test_what_is_charged_does_not_know_the_folder",
        ),
        Mutant(
            "a prompt from `text`",
            "run.py",
            "        texts=found.texts,",
            '        texts=[entry.text or "" for entry in ImageFolder(Path(run.facts["private"])).entries()],',
            "privacy/test_break_public.py::test_captions_of_private_records_are_read_nowhere",
        ),
    ),
    "ledger": (
        Mutant(
            "the cap is not charged",
            BOOK,
            "        if not self.cap.admits(wanted):",
            "        if False:",
            "privacy/test_ledger.py::test_the_first_plan_sets_the_cap_and_the_second_needs_a_raise",
        ),
        Mutant(
            "attempts beyond T",
            BOOK,
            "if attempt != used + 1 or attempt > planned:",
            "if attempt != used + 1:",
            "privacy/test_ledger.py::test_a_run_gets_the_attempts_it_bought_and_no_more",
        ),
        Mutant(
            "a charge taken back after a touch",
            BOOK,
            "                if run.used:",
            "                if False:",
            "privacy/test_ledger.py::test_a_plan_is_given_back_only_before_its_first_intent",
        ),
        Mutant(
            "a truncated ledger is believed",
            CHAIN,
            "        if self._known is not None and self._known[0] >= self._count:",
            "        if False:",
            "privacy/test_ledger.py::test_a_process_does_not_let_its_ledger_go_back",
        ),
        Mutant(
            "a changed line is believed",
            CHAIN,
            '    if seal != hashlib.sha256(text + b"}").hexdigest().encode() + b\'"}\':',
            "    if False:",
            "privacy/test_ledger.py::test_any_changed_byte_before_the_head_is_found",
        ),
        Mutant(
            "a line that is not on disk",
            CHAIN,
            "                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n            os.fsync(handle)",
            "                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))",
            "privacy/test_ledger.py::test_a_line_is_on_disk_before_the_call_returns",
        ),
        Mutant(
            "a lost round drawn again without an attempt",
            SESSION,
            "        return self._ledger.intent(self._run_id, name)",
            "        made = self.attempts_made(name)\n"
            "        lost = made > 0 and self.adopt(name, made) is None\n"
            "        return made if lost else self._ledger.intent(self._run_id, name)",
            "privacy/test_session.py::test_an_attempt_lost_in_the_touch_is_used_up",
        ),
        Mutant(
            "the touch before its intent",
            SESSION,
            "        attempt = self.begin(name)\n        buffer = io.BytesIO()\n"
            "        np.save(buffer, draw(attempt), allow_pickle=False)",
            "        buffer = io.BytesIO()\n"
            "        np.save(buffer, draw(self.attempts_made(name) + 1), allow_pickle=False)\n"
            "        attempt = self.begin(name)",
            "privacy/test_session.py::test_the_intent_is_on_disk_before_a_record_is_read",
        ),
        Mutant(
            "a resumed run draws its values anew",
            SESSION,
            "        for attempt in range(self._used_here.get(name, 0) + 1, self.attempts_made(name) + 1):",
            "        for attempt in range(0):",
            "privacy/test_session.py::test_a_resumed_run_sees_the_same_values_and_draws_no_new_ones",
        ),
        Mutant(
            "test noise in a charged run",
            SESSION,
            "        if admitted.not_private == noise.private:",
            "        if False:",
            "privacy/test_session.py::test_a_charged_run_takes_no_test_noise_and_a_marked_one_no_real_noise",
        ),
        Mutant(
            "other touches than the ledger admitted",
            SESSION,
            "        if admitted.plan_sha256 != plan.sha256():",
            "        if False:",
            "privacy/test_session.py::test_a_plan_that_was_changed_is_refused",
        ),
    ),
    "audit": (
        Mutant("histogram noise of a tenth, seen by the audit", HISTOGRAM, "touch.scale)", "touch.scale / 10)", GATE),
        Mutant(
            "sum noise of a tenth, seen by the audit",
            SUMS,
            "touch.noise_multiplier * GRID)",
            "touch.noise_multiplier * GRID / 10)",
            GATE,
        ),
        Mutant("step noise of a tenth, seen by the audit", TRAINING, DEVIATION, f"{DEVIATION} / 10", GATE),
    ),
}
