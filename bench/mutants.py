"""Deliberate breaks of our own code, each with the test that must fail on it; `mutations.py` runs them."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One break.

    Attributes:
        name: what goes wrong, in words.
        file: below `src/sfumato/`.
        old, new: text that occurs once, and what stands in its place.
        test: node id, below `tests/`.
        also: a second edit of the same file.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    also: tuple[str, str] | None = None


ENGINE, CONTRIBUTIONS, TAPE = (f"privacy/gradients/{name}.py" for name in ("engine", "contributions", "tape"))
TRAINING, HISTOGRAM, SUMS, NOISE = (f"privacy/{name}.py" for name in ("training", "histogram", "sums", "noise"))
RECORDS, DRAWS, SESSION, PLAN = (f"privacy/{name}.py" for name in ("records", "draws", "session", "plan"))
BOOK, CHAIN, ACCOUNTING = "privacy/_book.py", "privacy/_chain.py", "privacy/accounting.py"
FLAT = "return self.clip_norm / norms.clamp(min=self.clip_norm)"
SOFT = "return self.clip_norm / (norms + _GAMMA)"
DEVIATION = "deviation = touch.noise_multiplier * touch.clip_norm * (1 + touch.slack)"
DRAWN = "session.noise.gaussian(total.numel(), deviation)"
URANDOM = "return os.urandom(count)"
ONE_STEP = "privacy/test_training.py::test_one_record_moves_a_step_by_at_most_the_clip_norm"
STEP_NOISE = "privacy/test_training.py::test_noise_is_added_once_a_step_at_the_planned_scale"
PLANNED = "privacy/test_break_touches.py::test_rate_noise_and_divisor_are_the_planned_ones_whoever_is_there"
GATE = "audit/test_touches.py::test_sound_touches_pass"

CONTRIBUTED: dict[str, tuple[Mutant, ...]] = {
    "gradients": (
        Mutant("no clipping", ENGINE, SOFT, "return torch.ones_like(norms)", ONE_STEP),
        Mutant(
            "clip after the sum",
            ENGINE,
            SOFT,
            "return torch.ones_like(norms)",
            ONE_STEP,
            (
                "        return self.sum.vector\n",
                "        vector = self.sum.vector\n"
                "        return vector * min(1.0, self.clipping.clip_norm / float(vector.norm() + 1e-9))\n",
            ),
        ),
        Mutant(
            "flat clipping by the root of the norm",
            ENGINE,
            FLAT,
            "return (self.clip_norm / norms.clamp(min=self.clip_norm)).sqrt()",
            "privacy/gradients/test_engine.py::test_clipping_weights",
        ),
        Mutant(
            "norms of all layers but the first",
            ENGINE,
            "        for _, contribution in apart:\n            squares",
            "        for _, contribution in apart[1:]:\n            squares",
            "privacy/gradients/test_engine.py::test_matches_a_loop",
        ),
        Mutant(
            "Gram matrices in bfloat16",
            CONTRIBUTIONS,
            "        a, g = self._operands()\n        sizes",
            "        a, g = (x.bfloat16() for x in self._operands())\n        sizes",
            "privacy/gradients/test_contributions.py::test_no_norm_is_below_what_is_added",
            ("_FLOOR = 2.0**-14", "_FLOOR = 0.0"),
        ),
        Mutant(
            "Gram matrices in float32 without the bound",
            CONTRIBUTIONS,
            "_FLOOR = 2.0**-14",
            "_FLOOR = 0.0",
            "privacy/gradients/test_contributions.py::test_no_norm_is_below_what_is_added",
            (
                "        a, g = self._operands()\n        sizes",
                "        a, g = (x.float() for x in self._operands())\n        sizes",
            ),
        ),
        Mutant(
            "NaN by weight 0",
            CONTRIBUTIONS,
            "                values[~kept] = 0\n",
            "                pass\n",
            "privacy/gradients/test_contributions.py::test_weight_zero_is_not_read",
        ),
        Mutant(
            "NaN by weight 0 without a gradient of its own",
            CONTRIBUTIONS,
            "            g = torch.where(kept[:, None, None], g, 0.0)\n",
            "            pass\n",
            "privacy/gradients/test_contributions.py::test_weight_zero_is_not_read",
        ),
        Mutant(
            "batch norm let in",
            TAPE,
            "if isinstance(module, nn.modules.batchnorm._NormBase):",
            "if False:",
            "privacy/gradients/test_tape.py::test_structures_that_are_refused",
        ),
        Mutant(
            "shared parameters let in",
            TAPE,
            "if any(count > 1 for count in owners.values()):",
            "if False:",
            "privacy/gradients/test_tape.py::test_structures_that_are_refused",
        ),
        Mutant(
            "a layer that runs twice let in",
            TAPE,
            "            if name in seen:",
            "            if False:",
            "privacy/gradients/test_tape.py::test_faults_that_a_pass_shows",
        ),
        Mutant(
            "losses in which records meet let in",
            TAPE,
            "if bool((theirs.isfinite() & (theirs != 0)).any()):",
            "if False:",
            "privacy/gradients/test_tape.py::test_records_that_meet_are_refused",
        ),
        Mutant(
            "losses that depend on other records let in",
            TRAINING,
            "if bool((moved & ~others).any()):",
            "if False:",
            "privacy/test_training.py::test_records_that_meet_outside_of_gradients_are_refused",
        ),
        Mutant(
            "dropout at work let in",
            TAPE,
            "if isinstance(module, _DROPOUT) and module.p and module.training:",
            "if False:",
            "privacy/gradients/test_tape.py::test_dropout_at_work_is_refused",
        ),
        Mutant(
            "state that is written past autograd let in",
            TAPE,
            "if repr(value) != repr(before.get(name)):",
            "if False:",
            "privacy/gradients/test_tape.py::test_state_that_is_written_past_autograd_is_seen",
        ),
        Mutant(
            "weights used outside their layer let in",
            TAPE,
            "        if gradient is not None:",
            "        if False:",
            "privacy/gradients/test_tape.py::test_a_weight_that_is_used_outside_its_layer_is_refused",
        ),
        Mutant(
            "more records grouped than the noise covers",
            "privacy/_touches.py",
            "if self.slack < self.grouped * GROUPED_SLACK:",
            "if False:",
            "privacy/test_plan.py::test_what_is_grouped_is_covered",
        ),
        Mutant(
            "a share that hangs on how many records are grouped",
            ENGINE,
            "how = self._level, self._groups, room",
            "how = self._level, self._groups and room, room",
            "privacy/test_training.py::test_no_record_s_share_hangs_on_how_many_others_there_are",
        ),
    ),
    "training": (
        Mutant("noise of a step halved", TRAINING, DEVIATION, f"{DEVIATION} / 2", STEP_NOISE),
        Mutant(
            "noise shared out over microbatches",
            TRAINING,
            DRAWN,
            "session.noise.gaussian(total.numel(), deviation / max(1.0, len(chosen) / chunk) ** 0.5)",
            STEP_NOISE,
        ),
        Mutant(
            "the same noise in every step",
            TRAINING,
            DRAWN,
            f"_KEPT.setdefault(total.numel(), {DRAWN})",
            STEP_NOISE,
            ("_FEW = 8", "_KEPT: dict = {}\n_FEW = 8"),
        ),
        Mutant("noise that does not cover rounding", TRAINING, " * (1 + touch.slack)", "", PLANNED),
        Mutant(
            "divided by the batch that was drawn",
            TRAINING,
            "/ divisor).float()",
            "/ max(1, len(chosen))).float()",
            PLANNED,
        ),
        Mutant(
            "rate from the true number of records",
            TRAINING,
            "poisson_mask(len(mask), touch.sampling_rate)",
            "poisson_mask(len(mask), min(1.0, 15 / max(1, len(mask))))",
            PLANNED,
        ),
        Mutant(
            "every process works on all records",
            TRAINING,
            "chosen[team.rank :: team.size]",
            "chosen",
            "privacy/test_break_touches.py::test_processes_share_the_records_of_a_step_and_no_record_is_in_two",
        ),
        Mutant(
            "an interrupted training goes on with older weights",
            TRAINING,
            "        learner.load_state(load(stored))",
            "        load(stored)",
            "privacy/test_training.py::test_a_state_is_restored_before_the_next_step",
        ),
        Mutant(
            "a retry after an out-of-memory error draws anew",
            TRAINING,
            "                self._chunk //= 2",
            "                self._chunk //= 2\n                attempt += 1",
            "privacy/test_training.py::test_running_out_of_memory_redraws_nothing",
        ),
    ),
    "histogram and sum": (
        Mutant(
            "noise of a histogram halved",
            HISTOGRAM,
            "noise.discrete_gaussian(cells, touch.scale)",
            "noise.discrete_gaussian(cells, touch.scale / 2)",
            "privacy/test_histogram.py::test_noise_is_added_to_every_cell_at_the_planned_scale",
        ),
        Mutant(
            "one draw of noise for all cells",
            HISTOGRAM,
            "noise.discrete_gaussian(cells, touch.scale)",
            "noise.discrete_gaussian(1, touch.scale)",
            "privacy/test_histogram.py::test_noise_is_added_to_every_cell_at_the_planned_scale",
        ),
        Mutant(
            "a voter votes in every class",
            HISTOGRAM,
            "ballot.shape != (len(present), touch.cells)",
            "ballot.ndim != 2",
            "privacy/test_histogram.py::test_anything_but_cell_numbers_is_a_type_error",
        ),
        Mutant(
            "a voter fills one cell several times",
            HISTOGRAM,
            "        ballot[:, 1:][ballot[:, 1:] == ballot[:, :-1]] = ABSTAIN",
            "        pass",
            "privacy/test_histogram.py::test_any_ballot_is_bounded",
        ),
        Mutant(
            "null contributions vote",
            HISTOGRAM,
            "        ballot = torch.where(present[:, None], ballot, ABSTAIN)\n",
            "",
            "privacy/test_histogram.py::test_one_record_moves_at_most_k_cells_by_one",
        ),
        Mutant(
            "a record without its class votes in another's",
            "methods/evolution.py",
            "np.flatnonzero((own == label) & voters.present.numpy())",
            "np.flatnonzero(voters.present.numpy())",
            "methods/test_evolution.py::test_a_record_votes_once_over_all_classes",
        ),
        Mutant(
            "noise of a sum halved",
            SUMS,
            "touch.noise_multiplier * GRID)",
            "touch.noise_multiplier * GRID / 2)",
            "privacy/test_sums.py::test_noise_has_the_planned_scale_in_the_units_of_the_vectors",
        ),
        Mutant(
            "rounded to the grid instead of truncated",
            SUMS,
            ".trunc_()",
            ".add_(0.5).ceil_()",
            "privacy/test_sums.py::test_any_vector_stays_inside_the_ball",
        ),
        Mutant(
            "NaN by weight 0 in a sum",
            SUMS,
            "vector = torch.where(usable[:, None], vector, 0.0)",
            "vector = vector * usable[:, None]",
            "privacy/test_sums.py::test_a_bad_record_leaves_the_sum_of_the_others",
        ),
        Mutant(
            "clip bound from private data",
            SUMS,
            ".clamp(min=touch.clip_norm)",
            ".clamp(min=min(touch.clip_norm, float(norm.max())))",
            "privacy/test_break_touches.py::test_a_vector_is_clipped_whoever_else_is_there",
        ),
    ),
}
