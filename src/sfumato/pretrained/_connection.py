"""How to reach an OpenAI-compatible server, what is asked of it, and the ways in which that can fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sfumato.errors import UserError
from sfumato.pretrained._spending import Prices, Spending, Work
from sfumato.pretrained.wall import Endpoint

FREE = Prices()
NOTHING = Work()


class ServiceError(UserError):
    """A model server does not do what is asked, for any item: says where, what it answered, and what to do."""


class Malformed(Exception):  # noqa: N818 - an outcome of reading, which the caller turns into another try
    """A response is not what the interface promises."""


class Refused(Exception):  # noqa: N818
    """The model would not answer."""


@dataclass(frozen=True)
class Failure:
    """An item that got no answer.

    Attributes:
        reason: refused by the model; malformed answers; or failed inside the server.
    """

    reason: Literal["refused", "malformed", "failed"]


ANSWERED = (Failure("refused"), Failure("malformed"))


@dataclass(frozen=True)
class Connection:
    """How to reach a server, and what to keep of its answers.

    Attributes:
        url: such as `http://127.0.0.1:8000/v1`.
        key_variable: name of the environment variable that holds the API key; None sends none.
        concurrency: calls at a time; private items always go one by one, so that a server does not batch them.
        timeout: seconds for one call, from the first byte sent to the last received.
        attempts: tries an item.
        longest_wait: seconds; a server that asks for more ends the run, which can be resumed later.
        patience: failures in a row, over all items, after which the server counts as down.
        answers: folder of answers to released data; None keeps none.
        prices: what is paid.
        spending: counts and cap; one object for several models gives them one cap.
        extra: fields put into every request's body, or with None taken out of it.
    """

    url: str
    key_variable: str | None = None
    concurrency: int = 8
    timeout: float = 300.0
    attempts: int = 8
    longest_wait: float = 300.0
    patience: int = 25
    answers: Path | None = None
    prices: Prices = FREE
    spending: Spending = field(default_factory=Spending)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Endpoint.parse(self.url)
        for name in ("concurrency", "attempts", "patience", "timeout", "longest_wait"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} of a connection must be above 0; given was {getattr(self, name)}.")
        if self.spending.max_cost is not None and self.prices == FREE:
            raise UserError("A cost cap needs prices: say what a million tokens or an image cost.")


@dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        path: below the connection's address.
        body: fields, of JSON, or of a form where there are files.
        files: PNG files by the field that carries them.
        draw: tells apart requests that are equal but whose answers are drawn at random; it is not sent.
        most: what will be billed at most.
    """

    path: str
    body: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)
    draw: int = 0
    most: Work = NOTHING
