"""What a release says about its privacy: sentences that a lawyer can read, and the facts that NIST SP 800-226 asks for.

A statement is a pure function of the plan, of what the ledger says was executed, and of public settings. It claims the
larger of planned and executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sfumato import __version__
from sfumato.privacy import accounting
from sfumato.privacy.plan import HistogramTouch, Plan, SumTouch, TrainingTouch

FALSE_ALARM = 0.05

NOT_COVERED = (
    "Public models and public data sets, which may themselves contain the private images.",
    "What was declared: the size of the data set, the class list, class shares, clip bounds, prompts and settings.",
    "Choices made by people who saw the private data, and un-noised measurements of it.",
    "Records that resemble each other, several records about the same thing, and groups.",
    "Side channels and running time; that a run was made, failed or took long.",
    "Data that other tools released from the same people.",
)


_TRAINING_NOISE = (
    " Training noise is floating point, each value a sum of four draws from the kernel's cryptographic generator."
)


@dataclass(frozen=True)
class PrivacyStatement:
    """The guarantee of one run.

    Guarantee:
        `epsilon` is at least what the executed attempts cost, at least what was planned, and rounded up.

    Does not cover:
        What `NOT_COVERED` lists; the statement prints it.

    Attributes:
        plan: the plan of the run.
        executed: touch name to attempts used, from the ledger.
        release_id: a random name that the release carries.
        ledger: random public name of the ledger, number and hash of its head when the statement was made.
        looks: un-noised measurements of private data that the ledger recorded before this release.
        runs: charged runs on this data set, this one included.
        total: (epsilon, delta) of all of them by summation.
        not_private: the run used test noise.
        declared: further public settings by name, such as classes and their origin.
        public_inputs: public models and data sets used, each a sentence.
        released: values that the run released besides its images, by name; post-processing of its touches.
    """

    plan: Plan
    executed: Mapping[str, int]
    release_id: str
    ledger: tuple[str, int, str]
    looks: int = 0
    runs: int = 1
    total: tuple[float, float] | None = None
    not_private: bool = False
    declared: Mapping[str, Any] = field(default_factory=dict)
    public_inputs: tuple[str, ...] = ()
    released: Mapping[str, Any] = field(default_factory=dict)

    @property
    def epsilon(self) -> float:
        """What is claimed."""
        return self.plan.claimed_epsilon(self.executed)

    @property
    def delta(self) -> float:
        """As planned."""
        return self.plan.delta

    def sentences(self) -> list[str]:
        """The statement, one fact a sentence, most important first."""
        plan = self.plan
        if self.not_private:
            return ["NOT PRIVATE: this run used test noise. It has no privacy guarantee and must not be released."]
        unit = "one image" if plan.unit == "image" else "all images of one person"
        power = accounting.attacker_power(plan.mechanisms, FALSE_ALARM)
        texts = [
            f"These images were made under ({self.epsilon:g}, {self.delta:g})-differential privacy.",
            f"Protected is {unit}: how much this release can tell about whether {unit} was in the private folder is "
            "bounded, whatever else the reader knows.",
            f"In figures: a test for the presence of {unit} that is wrong in {_percent_up(FALSE_ALARM)} of the cases "
            f"where it was absent finds it in at most {_percent_up(power)} of the cases where it was present.",
            "Neighbouring data sets differ by adding or removing one unit.",
            *(_touch_sentence(touch) for touch in plan.touches),
            f"Accounting: privacy loss distributions at interval {plan.interval:g}, pessimistic, by dp-accounting "
            f"{plan.accountant_version}; claimed is the larger of what was planned and what was executed.",
            "The theorem holds for exact arithmetic. Histograms and sums are sampled exactly."
            + (_TRAINING_NOISE if any(isinstance(touch, TrainingTouch) for touch in plan.touches) else ""),
        ]
        if plan.declared_size is not None:
            texts.append(
                f"The size of the private data set was declared as {plan.declared_size} by its owner; the guarantee "
                "does not hide it."
            )
        if self.runs > 1 and self.total is not None:
            texts.append(
                f"This is one of {self.runs} runs on this data set; together they are "
                f"({self.total[0]:g}, {self.total[1]:g})-differentially private."
            )
        if self.looks:
            texts.append(
                "Un-noised measurements were consulted before this release; choices made with them are not covered."
            )
        texts += self.public_inputs
        texts.append("Not covered: " + " ".join(NOT_COVERED))
        if plan.unit == "image":
            texts.append("The unit is one image: further images of the same person are not covered.")
        return texts

    def render(self) -> str:
        """The statement as one paragraph."""
        return " ".join(self.sentences())

    def to_json(self) -> dict[str, Any]:
        """The facts of NIST SP 800-226 and the sentences; public as a whole."""
        name, line, head = self.ledger
        return {
            "text": self.render(),
            "sentences": self.sentences(),
            "not_private": self.not_private,
            "release_id": self.release_id,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.plan.unit,
            "neighbouring_relation": self.plan.relation,
            "declared": {"size": self.plan.declared_size, **self.declared},
            "plan": self.plan.to_json(),
            "plan_sha256": self.plan.sha256(),
            "executed": dict(self.executed),
            "accountant": {
                "method": "privacy loss distributions",
                "interval": self.plan.interval,
                "package": f"dp-accounting {self.plan.accountant_version}",
            },
            "attacker": {
                "false_alarm": FALSE_ALARM,
                "most_recognised": accounting.attacker_power(self.plan.mechanisms, FALSE_ALARM),
            },
            "data_set": {
                "ledger": name,
                "ledger_line": line,
                "ledger_hash": head,
                "runs": self.runs,
                "total": self.total,
                "looks": self.looks,
            },
            "public_inputs": list(self.public_inputs),
            "released": dict(self.released),
            "not_covered": list(NOT_COVERED),
            "software": f"sfumato {__version__}",
        }


def _touch_sentence(touch: HistogramTouch | SumTouch | TrainingTouch) -> str:
    name = touch.name[0].upper() + touch.name[1:]
    match touch:
        case HistogramTouch():
            return (
                f"{name}: {touch.rounds} noisy histogram(s), at most {touch.cells} cell(s) a record, discrete Gaussian "
                f"noise of scale {touch.scale:g}."
            )
        case SumTouch():
            return (
                f"{name}: a noisy sum of vectors of norm at most {touch.clip_norm:g}, discrete Gaussian noise of "
                f"multiplier {touch.noise_multiplier:g}, {touch.attempts} attempt(s) charged."
            )
        case TrainingTouch():
            return (
                f"{name}: {touch.steps} steps of DP-SGD on Poisson samples of rate {touch.sampling_rate:g}, noise "
                f"multiplier {touch.noise_multiplier:g}, gradients clipped to norm {touch.clip_norm:g}."
            )


def _percent_up(share: float) -> str:
    """A share as a percentage with one decimal, rounded up."""
    tenths = -int(-share * 1000 // 1)
    return f"{min(100.0, tenths / 10):g} %"
