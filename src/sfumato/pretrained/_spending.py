"""What calls to a model server cost: tokens, images and money counted, and a cap that is checked before each call."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields, replace
from typing import Any

from sfumato.errors import UserError


class CostCapReached(UserError):  # noqa: N818 - a cap is not a fault
    """The next call could cost more than what is left."""


@dataclass(frozen=True)
class Prices:
    """What the user pays, in any one currency; a price that is not given is zero.

    Attributes:
        input_tokens: a million tokens sent.
        output_tokens: a million tokens received.
        image: one image made or changed.
        call: one call, whatever it is.
    """

    input_tokens: float = 0.0
    output_tokens: float = 0.0
    image: float = 0.0
    call: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= getattr(self, field.name) < float("inf") for field in fields(self)):
            raise UserError("Prices must be finite and at least 0.")

    def of(self, work: Work) -> float:
        """What one call costs."""
        tokens = self.input_tokens * work.input_tokens + self.output_tokens * work.output_tokens
        return self.call + self.image * work.images + tokens / 1e6


@dataclass(frozen=True)
class Work:
    """What is billed for one call."""

    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0

    def as_told(self, answer: Any) -> Work:
        """With the tokens that the server says were used; as it is where the server does not say."""
        usage = answer.get("usage") if isinstance(answer, dict) else None
        if not isinstance(usage, dict):
            return self
        told = {
            ours: next((usage[name] for name in names if _is_count(usage.get(name))), getattr(self, ours))
            for ours, names in (
                ("input_tokens", ("prompt_tokens", "input_tokens")),
                ("output_tokens", ("completion_tokens", "output_tokens")),
            )
        }
        return replace(self, **told)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass
class Usage:
    """What was asked so far.

    Attributes:
        calls: requests that were sent, tries that failed among them.
        retries: those of them that repeat one that failed.
        kept: answers that were found on disk instead.
        refused: items that the model would not answer.
        failed: items without a usable answer for other reasons.
        input_tokens: sent, as the server counts.
        output_tokens: received, as the server counts.
        images: made.
        cost: of all calls of this process.
        cost_before: of the answers found on disk, when they were bought.
    """

    calls: int = 0
    retries: int = 0
    kept: int = 0
    refused: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    cost: float = 0.0
    cost_before: float = 0.0


class Spending:
    """Counts what one or several models cost, and keeps a cap over all of them.

    A call is let through only if its highest cost, together with that of calls under way and of everything spent,
    is within the cap. What the answers on disk cost when they were bought counts as spent, so that a run that was
    killed and resumed has one cap.

    Args:
        max_cost: the cap, in the currency of the prices; None for none.
    """

    def __init__(self, max_cost: float | None = None) -> None:
        if max_cost is not None and not 0 <= max_cost < float("inf"):
            raise UserError(f"The cost cap must be a number of at least 0; given was {max_cost}.")
        self.max_cost = max_cost
        self.usage = Usage()
        self._reserved = 0.0
        self._under_way = 0
        self._counted: set[str] = set()  # requests whose answers are in the costs
        self._change = threading.Condition()

    def reserve(self, cost: float, retry: bool) -> None:
        """Sets `cost` aside for a call; waits while calls under way could still turn out cheap enough.

        Raises:
            CostCapReached: that much is not left; nothing was sent.
        """
        with self._change:
            while self.max_cost is not None and self._spent() + self._reserved + cost > self.max_cost * (1 + 1e-9):
                if self._reserved <= 0 or self._spent() + cost > self.max_cost * (1 + 1e-9):
                    raise CostCapReached(
                        f"The next call may cost {cost:.4g}, and {self._spent():.4g} of at most {self.max_cost:g} are "
                        f"spent, so it was not made. Answers so far are kept: raise the cap and go on, and they are "
                        f"not paid again."
                    )
                self._change.wait()
            self._reserved += cost
            self._under_way += 1
            self.usage.calls += 1
            self.usage.retries += retry

    def settle(self, reserved: float, cost: float, key: str, work: Work | None) -> None:
        """Ends a call: `cost` is what it did cost, `work` what was done if it succeeded, `key` the request's name."""
        with self._change:
            self._under_way -= 1
            self._reserved = self._reserved - reserved if self._under_way else 0.0  # no rounding stays behind
            self._change.notify_all()
            self.usage.cost += cost
            if work is not None:
                self._counted.add(key)
                self.usage.input_tokens += work.input_tokens
                self.usage.output_tokens += work.output_tokens
                self.usage.images += work.images

    def _spent(self) -> float:
        return self.usage.cost + self.usage.cost_before

    def found(self, key: str, cost: float) -> None:
        """Counts an answer from disk, and once what it cost."""
        with self._change:
            self.usage.kept += 1
            self.usage.cost_before += 0.0 if key in self._counted else cost
            self._counted.add(key)

    def gave_up(self, refused: bool) -> None:
        """Counts an item without an answer."""
        with self._change:
            self.usage.refused += refused
            self.usage.failed += not refused
