"""What the status of a response means: go on, try again, give up this item, or give up."""

from __future__ import annotations

import email.utils
import json
import os
import re
import time
from collections.abc import Mapping

from sfumato.pretrained._connection import Failure, Refused, ServiceError

LONGEST_REASON = 300  # characters quoted of what a server says

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 507, 520, 522, 524, 529}
REJECTED = {400, 413, 415, 422}
POLICY = re.compile(r"content.?policy|content.?filter|moderation|safety|responsible.?ai", re.IGNORECASE)
QUOTA = re.compile(r"insufficient.?quota|billing", re.IGNORECASE)


class InPassing(Exception):  # noqa: N818
    """A call failed in a way that another try may mend."""

    def __init__(
        self,
        status: str,
        *,
        wait: float | None = None,
        billed: bool = False,
        absent: bool = False,
        spared: bool = False,
        last: Failure | None = None,
    ) -> None:
        super().__init__(status)
        self.status, self.wait, self.last = status, wait, last
        self.billed, self.absent, self.spared = billed, absent, spared


class Rejected(Exception):  # noqa: N818
    """The server finds fault with this request."""


def judge(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    url: str,
    model: str,
    key_variable: str | None,
    quotes: bool,
) -> None:
    """Returns if the status is one of success.

    Args:
        status, headers, content: of the response.
        url, model: of whom it is.
        key_variable: name of the environment variable with the API key, if there is one.
        quotes: whether errors may quote what the server says, which may quote what it was shown.

    Raises:
        InPassing: another try may help.
        Refused: for what the item shows.
        Rejected: the request is at fault.
        ServiceError: everything is: key, address, quota.
    """
    if 200 <= status < 300:
        return
    told = _told(content)
    key = os.environ.get(key_variable or "", "").strip()
    told = told.replace(key, "(key)") if key else told  # some servers quote the key that they reject
    said = f" It says: {told[:LONGEST_REASON]}" if told and quotes else ""
    if status in REJECTED | {403} and POLICY.search(told):
        raise Refused
    if status in AGAIN and not (status == 429 and QUOTA.search(told)):
        last = Failure("failed") if status == 500 else None
        reason = f"status {status}" + (f" ({told[:LONGEST_REASON]})" if said else "")
        raise InPassing(reason, wait=_asked_for(headers), spared=status == 429, last=last)
    where = f"{url} answered with status {status}"
    if 300 <= status < 400:
        raise ServiceError(f"{where}, a redirect, which is not followed; give the address that it leads to.")
    if status in (401, 403):
        mend = f"check the key in ${key_variable}" if key_variable else "name the environment variable that holds a key"
        raise ServiceError(f"{where}: the key is missing or not accepted; {mend}.{said}")
    if status in (402, 429):
        raise ServiceError(f"{where}: the account's quota is used up; answers so far are kept.{said}")
    if status in (404, 405, 501):
        raise ServiceError(
            f"{where}: it has no such interface, or no model {model!r}; check the address (it usually ends in /v1) and "
            f"the model's name.{said}"
        )
    raise Rejected(f"{where}: it rejects the request for {model!r}; check the model and its options.{said}")


def _told(content: bytes) -> str:
    """What an error response says, on one line."""
    text = content[:10_000].decode("utf-8", "replace")
    try:
        error = json.loads(text)
        error = error.get("error", error) if isinstance(error, dict) else error
        if isinstance(error, dict):
            text = " ".join(str(error[name]) for name in ("message", "code", "type", "detail") if error.get(name))
    except ValueError:
        pass
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _asked_for(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After`, which is a number or a date."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None
