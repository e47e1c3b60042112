"""What all models behind an OpenAI-compatible server share: a name, a place, and what their calls cost at most."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar, Self

from sfumato.errors import UserError
from sfumato.pretrained._connection import Connection, Failure, Request
from sfumato.pretrained._service import Service
from sfumato.pretrained._spending import Spending, Work
from sfumato.pretrained.interfaces import Identity
from sfumato.pretrained.wall import Endpoint

TERMS = "terms of the service"
IMAGE_TOKENS = 2_000  # at most what services count for one small image


class RemoteModel:
    """A model on a server.

    Args:
        model: its name on the server.
        connection: how to reach the server.
        licence: of the model or terms of the service, where known.
    """

    shows_images: ClassVar[bool] = False

    def __init__(self, model: str, connection: Connection, licence: str = TERMS) -> None:
        if not model.strip():
            raise UserError("The name of the model is empty; give the one that the server lists under /models.")
        self.model, self.connection, self.licence = model, connection, licence
        private = self.shows_images
        answers = None if private else connection.answers
        self._service = Service(connection, model, private=private, allowed=(), answers=answers)

    @property
    def identity(self) -> Identity:
        """The model's name and the server's address; which weights are behind it only the server knows."""
        return Identity(self.model, "as served", "", self.licence, f"{self.connection.url} (OpenAI-compatible)")

    @property
    def endpoint(self) -> Endpoint:
        """Where it answers."""
        return self._service.endpoint

    @property
    def private(self) -> bool:
        """Whether what it is shown is treated as private."""
        return self._service.private

    @property
    def spending(self) -> Spending:
        """What was asked and paid so far."""
        return self.connection.spending

    def showing(self, *, private: bool, allowed: Collection[str], answers: Path | None) -> Self:
        """The same model for private or for released data; call `wall.for_private` or `wall.for_released`."""
        other = copy.copy(self)
        kept = answers if private else self.connection.answers
        other._service = Service(self.connection, self.model, private=private, allowed=allowed, answers=kept)
        return other

    def _ask(
        self,
        count: int,
        request: Callable[[int], Request],
        read: Callable[[Any], bytes],
        probe: Request | None = None,
    ) -> list[bytes | Failure]:
        return self._service.ask(count, request, read, probe)

    def _most(self, letters: int, max_tokens: int = 0, images: int = 0) -> Work:
        """What a call is billed at most: a token is at least a byte."""
        for name in ("max_tokens", "max_completion_tokens"):
            value = self.connection.extra.get(name)
            max_tokens = value if isinstance(value, int) else max_tokens
        return Work(64 + letters + IMAGE_TOKENS * images, max_tokens)
