"""Calls to an OpenAI-compatible server: bounded, retried where that helps, paid once, never beyond the cap.

A call that fails is one of three things. *In passing* (408, 409, 429, 5xx, a cut connection, a timeout, a malformed or
refused answer): it is tried again, after as long as the server asks for, else after an exponential pause with jitter.
*Of this item* (still refused, malformed or a 500 after all tries; a private item that the server rejects): the item is
reported as failed, and the others go on. *Of everything* (a wrong key or address, a rejected request, the cap, a server
that fails again and again): `ServiceError`, and what was answered is on disk for the next start.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from sfumato.errors import UserError
from sfumato.pretrained._answers import Answer, Answers
from sfumato.pretrained._connection import ANSWERED, Connection, Failure, Malformed, Refused, Request, ServiceError
from sfumato.pretrained._statuses import InPassing, Rejected, judge
from sfumato.pretrained.wall import Endpoint, check

LAYOUT = 1  # grows when the meaning of a request or of what is kept of its answer changes
FIRST_PAUSE = 0.5  # seconds; doubled after each failure
LONGEST_PAUSE = 30.0  # seconds, where the server does not say
USELESS = 4  # refused or malformed answers to an item, each of which is billed
FETCHES = 4  # tries to bring what an answer points to
KNOCKS = 3  # tries to connect to a server that was never met
PROBES = 5  # tries of a first request without private content
LARGEST_ANSWER = 2**26  # bytes


class Service:
    """A server as one model uses it.

    Args:
        connection: how to reach it.
        model: name of the model there.
        private: whether what is sent may be private.
        allowed: hosts that private data may go to besides loopback.
        answers: folder of answers; None keeps none.
    """

    def __init__(
        self, connection: Connection, model: str, *, private: bool, allowed: Collection[str], answers: Path | None
    ) -> None:
        self.connection, self.model, self.private, self.allowed = connection, model, private, tuple(allowed)
        self.endpoint = Endpoint.parse(connection.url)
        self._answers = Answers(answers) if answers is not None else None
        self._client: httpx2.Client | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._hold_until = 0.0
        self._in_a_row = 0
        self._met = False
        self._probed = False
        self._last = ""  # how the last item that got no answer failed
        self._quotes = not private  # whether errors may quote the server, which may quote what it was shown

    def ask(
        self,
        count: int,
        request: Callable[[int], Request],
        read: Callable[[Any], bytes],
        probe: Request | None = None,
    ) -> list[bytes | Failure]:
        """The answers to `count` requests, in their order.

        Args:
            count: of items.
            request: the request of an item.
            read: what is kept of a response's JSON; raises Malformed or Refused.
            probe: a request without private content, sent before the first private one: a request that the server
                rejects as such stops the run, so that a rejection later is about the item.

        Raises:
            ServiceError: the server is down, unreachable or refuses all requests.
            CostCapReached: the next call could cost more than what is left.
            PrivacyRefusal: private data would leave for another place.
        """
        if self.private:
            check(self.endpoint, self.allowed, self.model)
        if count == 0:
            return []
        self._open()
        if self.private and probe is not None and not self._probed:
            self._probe(probe, read)
        workers = 1 if self.private else self.connection.concurrency
        with ThreadPoolExecutor(min(workers, count), "sfumato-calls") as pool:
            tasks: list[Future[bytes | Failure]] = []
            try:
                tasks = [pool.submit(lambda n: self._worked(request(n), read), number) for number in range(count)]
                wait(tasks, return_when=FIRST_EXCEPTION)
                if self._error is not None:
                    raise self._error
                return [task.result() for task in tasks]
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _worked(self, request: Request, read: Callable[[Any], bytes]) -> bytes | Failure:
        """An item in a thread: an error of one ends the others before their next call."""
        try:
            return self._item(request, read)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
                self._stop.set()
            raise

    def fetch(self, url: str) -> bytes:
        """A file that an answer points to; the API key goes only to the server that it is for."""
        try:
            parts = urlsplit(url)
            place = Endpoint.parse(f"{parts.scheme}://{parts.netloc}")
        except (ValueError, UserError):
            raise Malformed("an address that is none") from None
        if self.private:
            check(place, self.allowed, self.model)
        same = (place.scheme, place.netloc) == (self.endpoint.scheme, self.endpoint.netloc)
        headers = self._key() if same else {}
        address = place.url + parts.path + ("?" + parts.query if parts.query else "")
        for attempt in range(1, FETCHES + 1):
            try:
                return self._send("GET", address, headers=headers, follow_redirects=not self.private)
            except InPassing as failure:
                if attempt < FETCHES:
                    self._pause(attempt, failure.wait)
                    self._wait_for_turn()
            except (Rejected, ServiceError):
                break
        raise Malformed("an address that leads nowhere")

    def _open(self) -> None:
        """Before a batch: whoever failed before gets one chance."""
        if self._answers is not None:
            self._answers.prepare()
        with self._lock:
            self._stop.clear()
            self._error = None
            self._in_a_row = min(self._in_a_row, self.connection.patience - 1)
            if self._client is None:
                environment = not (self.private or self.endpoint.on_loopback)  # proxies, and where certificates are
                self._client = httpx2.Client(
                    timeout=self.connection.timeout,
                    verify=_certificates(environment),
                    trust_env=environment,
                    follow_redirects=False,
                    limits=httpx2.Limits(max_connections=self.connection.concurrency + 1),
                )

    def _probe(self, request: Request, read: Callable[[Any], bytes]) -> None:
        """Whether the server answers such requests at all, seen on one without private content."""
        self._quotes = True
        try:
            if isinstance(self._item(request, read, probing=True), Failure):
                raise ServiceError(
                    f"{self.endpoint.url} gives no usable answer to a plain public item (the last: {self._last}); "
                    f"check that {self.model!r} is a model for this."
                )
            self._probed = True
        finally:
            self._quotes = False

    def _item(self, request: Request, read: Callable[[Any], bytes], probing: bool = False) -> bytes | Failure:
        """One item to its end: from disk, or by as many tries as it takes."""
        request = self._completed(request)
        key = self._name(request)
        spending = self.connection.spending
        if self._answers is not None and not probing and (found := self._answers.get(key)) is not None:
            spending.found(key, found.cost)
            return found.payload
        useless = 0
        attempts = min(self.connection.attempts, PROBES) if probing else self.connection.attempts
        for attempt in range(1, attempts + 1):
            try:
                answer = self._call(request, key, read, attempt, useless)
            except InPassing as failure:
                useless += failure.last in ANSWERED
                self._count(failure)
                away = failure.absent and not self._met and attempt >= KNOCKS
                if attempt == attempts or useless == USELESS or away:
                    self._last = failure.status
                    return self._gave_up(failure, attempt)
                self._pause(attempt, failure.wait)
            except Rejected as rejection:
                if self.private and not probing:  # says something about the item, so nobody is told what
                    spending.gave_up(refused=False)
                    return Failure("failed")
                raise ServiceError(str(rejection)) from None
            else:
                self._in_a_row = 0
                if self._answers is not None and not probing:
                    self._answers.put(key, answer)
                return answer.payload
        raise AssertionError("unreachable")

    def _completed(self, request: Request) -> Request:
        body = {"model": self.model, **request.body, **self.connection.extra}
        body = {name: value for name, value in body.items() if value is not None}
        return Request(request.path, body, request.files, request.draw, request.most)

    def _name(self, request: Request) -> str:
        """The request's name on disk: everything that decides the answer, and no credentials."""
        files = {name: hashlib.sha256(data).hexdigest() for name, data in request.files.items()}
        parts = [LAYOUT, self.endpoint.url, request.path, request.body, files, request.draw]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _call(self, request: Request, key: str, read: Callable[[Any], bytes], attempt: int, useless: int) -> Answer:
        """One try. Its name lets a server know a call that it answered already; a useless answer is asked for anew."""
        prices, spending = self.connection.prices, self.connection.spending
        highest = prices.of(request.most)
        self._wait_for_turn()
        headers = {**self._key(), "Idempotency-Key": f"{key[:40]}-{useless}"}
        spending.reserve(highest, retry=attempt > 1)
        cost, work = 0.0, None
        try:
            url = f"{self.endpoint.url}/{request.path}"
            if request.files:
                files = {name: (f"{name}.png", data, "image/png") for name, data in request.files.items()}
                form = {name: str(value) for name, value in request.body.items()}
                content = self._send("POST", url, headers=headers, data=form, files=files)
            else:
                content = self._send("POST", url, headers=headers, json=request.body)
            cost = highest  # it was answered, so it is billed, whatever the answer
            try:
                response = json.loads(content)
            except (ValueError, RecursionError):
                raise Malformed("not JSON") from None
            used = request.most.as_told(response)
            cost = prices.of(used)
            payload = read(response)
            work = used
            return Answer(payload, cost)
        except InPassing as failure:
            cost = highest if failure.billed else cost
            raise
        except Malformed as error:
            cost = cost or highest
            raise InPassing(f"malformed answer: {error}", last=Failure("malformed")) from None
        except Refused:
            raise InPassing("refused", last=Failure("refused")) from None
        finally:
            spending.settle(highest, cost, key, work)

    def _send(self, method: str, url: str, **arguments: Any) -> bytes:
        """The body of a successful response.

        Raises:
            InPassing, Rejected, Refused, ServiceError: what else came of it.
        """
        assert self._client is not None
        until = time.monotonic() + self.connection.timeout
        content = bytearray()
        try:
            with self._client.stream(method, url, **arguments) as response:
                self._met = True
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > LARGEST_ANSWER:
                        raise Malformed("too long")
                    if time.monotonic() > until:
                        raise httpx2.ReadTimeout("too slow")
        except httpx2.TimeoutException:
            status = f"no answer within {self.connection.timeout:g} seconds"
            raise InPassing(status, billed=True) from None
        except (httpx2.DecodingError, httpx2.TooManyRedirects, httpx2.InvalidURL) as error:
            raise Malformed(type(error).__name__) from None
        except httpx2.TransportError as error:
            absent = isinstance(error, (httpx2.ConnectError, httpx2.ProxyError))
            raise InPassing(f"{type(error).__name__}: {error}", billed=not absent, absent=absent) from None
        judge(
            response.status_code,
            response.headers,
            bytes(content),
            url=self.endpoint.url,
            model=self.model,
            key_variable=self.connection.key_variable,
            quotes=self._quotes,
        )
        return bytes(content)

    def _key(self) -> dict[str, str]:
        """The header that carries the API key, read anew for each call."""
        variable = self.connection.key_variable
        if variable is None:
            return {}
        key = os.environ.get(variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ServiceError(f"The environment variable {variable} holds no usable API key; set it, and try again.")
        return {"Authorization": f"Bearer {key}"}

    def _count(self, failure: InPassing) -> None:
        """Opens the circuit when nothing but failures has come for long."""
        if failure.spared or failure.last in ANSWERED:
            return  # it is there
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row >= self.connection.patience:
                raise ServiceError(
                    f"{self.endpoint.url} failed {self._in_a_row} times in a row, the last time with: "
                    f"{failure.status}. Answers so far are kept; see whether the server runs, and go on."
                )

    def _gave_up(self, failure: InPassing, tries: int) -> Failure:
        if failure.last is None:
            raise ServiceError(
                f"{self.endpoint.url} did not answer a request in {tries} tries, the last time with: {failure.status}. "
                f"Answers so far are kept; see whether the server runs and keeps up, or lower the concurrency."
            )
        self.connection.spending.gave_up(refused=failure.last == Failure("refused"))
        return failure.last

    def _pause(self, attempt: int, asked: float | None) -> None:
        """Before the next try. What a server asks for holds back all calls to it."""
        if asked is None:
            longest = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
            self._sleep(longest * random.uniform(0.5, 1))
            return
        if asked > self.connection.longest_wait:
            raise ServiceError(
                f"{self.endpoint.url} asks to wait {asked:.0f} seconds, more than the {self.connection.longest_wait:g} "
                f"allowed. Answers so far are kept; go on later."
            )
        with self._lock:
            self._hold_until = max(self._hold_until, time.monotonic() + asked)

    def _wait_for_turn(self) -> None:
        while (left := self._hold_until - time.monotonic()) > 0:
            self._sleep(left + random.uniform(0, 0.05))
        if self._stop.is_set():
            raise ServiceError("Another call has failed.")

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise ServiceError("Another call has failed.")


@cache
def _certificates(environment: bool) -> ssl.SSLContext:
    """Whom to trust; loading that takes longer than a call."""
    return httpx2.create_ssl_context(trust_env=environment)
