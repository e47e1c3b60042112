"""A server on loopback that speaks OpenAI's interface with models of this process, and fails on purpose.

Whether a call fails, and how, follows from the request and from how often it was made before, so a run fails in the
same places whatever the order of its threads. Failures are those of real servers: statuses with and without
`Retry-After`, silence, cut connections, answers that are no answers, and refusals.
"""

from __future__ import annotations

import base64
import contextlib
import email.message
import email.parser
import email.policy
import email.utils
import hashlib
import http.server
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]
"""`(3, H, W)`."""

FAILURES = (
    "429",
    "429 seconds",
    "429 date",
    "500",
    "503",
    "silence",
    "cut",
    "cut answer",
    "no json",
    "empty",
    "half an image",
    "refused",
    "refused politely",
)


@dataclass(frozen=True)
class Faults:
    """Which calls fail.

    Attributes:
        rate: share of calls.
        seed: of the choice.
        kinds: of `FAILURES`.
        silence: seconds that a silent server takes.
    """

    rate: float = 0.0
    seed: int = 0
    kinds: Sequence[str] = FAILURES
    silence: float = 2.0

    def of(self, request: bytes, attempt: int) -> str | None:
        """The failure of the `attempt`-th call with this request, or None."""
        digest = hashlib.sha256(f"{self.seed} {attempt} ".encode() + hashlib.sha256(request).digest()).digest()
        if int.from_bytes(digest[:8], "big") >= self.rate * 2**64:
            return None
        return self.kinds[int.from_bytes(digest[8:16], "big") % len(self.kinds)]


@dataclass
class Models:
    """What the server answers with; None has no such interface."""

    chat: Callable[[list[dict[str, Any]], dict[str, Any]], str] | None = None
    caption: Callable[[Picture, str], str] | None = None
    generate: Callable[[str, int], Picture] | None = None
    vary: Callable[[Picture, str, float, int], Picture] | None = None
    embed_text: Callable[[str], NDArray[np.float32]] | None = None
    embed_image: Callable[[Picture], NDArray[np.float32]] | None = None


@dataclass
class Seen:
    """A call as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    images: list[Picture] = field(default_factory=list)
    failure: str | None = None


class ModelServer:
    """Listens on a free port of 127.0.0.1 inside a `with` block.

    Attributes:
        calls: all calls in the order of their arrival.
        most_at_once: the largest number of calls at the same time.
        answer: replaces what is answered to everything, as (status, headers, content).
    """

    def __init__(self, models: Models, faults: Faults = Faults(), links: bool = False, pause: float = 0.0) -> None:  # noqa: B008, RUF100
        self.models, self.faults, self.links, self.pause = models, faults, links, pause
        self.calls: list[Seen] = []
        self.most_at_once = 0
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self.files: dict[str, bytes] = {}
        self._now = 0
        self._attempts: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self._model = threading.Lock()
        self._closing = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else every answer waits 40 ms

            def do_POST(self) -> None:
                server._post(self)

            def do_GET(self) -> None:
                server._get(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _get(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.calls.append(Seen(handler.path, {name.lower(): value for name, value in handler.headers.items()}, {}))
        file = self.files.get(handler.path.partition("?")[0])
        _send(handler, 404 if file is None else 200, {"Content-Type": "image/png"}, file or b"")

    def _post(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        content = handler.rfile.read(int(handler.headers["Content-Length"]))
        call = _read(handler, content)
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            named = json.dumps([call.path, call.body], sort_keys=True).encode()
            named += b"".join(image.tobytes() for image in call.images)
            self._attempts[named] += 1
            call.failure = self.faults.of(named, self._attempts[named])
            self.calls.append(call)
        try:
            if self.pause:
                time.sleep(self.pause)
            if self.answer is not None:
                _send(handler, *self.answer)
            elif call.failure is None:
                status, value = self._answered(call)
                _send(handler, status, {}, json.dumps(value).encode())
            else:
                self._fail(handler, call)
        finally:
            with self._lock:
                self._now -= 1

    def _answered(self, call: Seen) -> tuple[int, Any]:
        with self._model:
            value = self._value(call)
        if value is None:
            return 404, {"error": {"message": f"no {call.path} here", "type": "not_found"}}
        return 200, value

    def _value(self, call: Seen) -> Any:
        """What the models say; None where there is no such interface."""
        models, body, end = self.models, call.body, call.path.removeprefix("/v1/")
        seed = int(body.get("seed", 0))
        text: str | None = None
        if end == "chat/completions" and call.images and models.caption is not None:
            text = models.caption(call.images[0], str(body["messages"][-1]["content"]))
        elif end == "chat/completions" and not call.images and models.chat is not None:
            text = models.chat(body["messages"], body)
        if text is not None:
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 10, "completion_tokens": len(text.split())}
            return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        picture: Picture | None = None
        if end == "images/generations" and models.generate is not None:
            picture = models.generate(body["prompt"], seed)
        elif end == "images/edits" and models.vary is not None:
            picture = models.vary(call.images[0], body["prompt"], float(body.get("strength", 0.5)), seed)
        if picture is not None:
            return {"created": 0, "data": [self._sent(_png(picture))]}
        vector: NDArray[np.float32] | None = None
        if end == "embeddings" and call.images and models.embed_image is not None:
            vector = models.embed_image(call.images[0])
        elif end == "embeddings" and not call.images and models.embed_text is not None:
            vector = models.embed_text(body["input"])
        if vector is None:
            return None
        coded: Any = vector.tolist()
        if body.get("encoding_format") == "base64":
            coded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return {"data": [{"index": 0, "embedding": coded}], "usage": {"prompt_tokens": 5}}

    def _sent(self, file: bytes) -> dict[str, str]:
        if not self.links:
            return {"b64_json": base64.b64encode(file).decode()}
        path = f"/files/{hashlib.sha256(file).hexdigest()},v=1:a@b.png"
        self.files[path] = file
        return {"url": f"http://127.0.0.1:{self.port}{path}?expires=soon"}

    def _fail(self, handler: http.server.BaseHTTPRequestHandler, call: Seen) -> None:
        failure = call.failure
        if failure in ("429", "429 seconds", "429 date", "500", "503"):
            headers = {
                "429 seconds": {"Retry-After": "0.2"},
                "429 date": {"Retry-After": email.utils.formatdate(time.time() + 1, usegmt=True)},
            }.get(failure, {})
            said = {"error": {"message": "try again", "type": "busy", "code": None}}
            _send(handler, int(failure[:3]), headers, json.dumps(said).encode())
        elif failure == "silence":
            self._closing.wait(self.faults.silence)
            handler.close_connection = True
        elif failure == "cut":
            handler.close_connection = True
        elif failure == "cut answer":
            _, value = self._answered(call)
            content = json.dumps(value).encode()
            _send(handler, 200, {"Content-Length": str(len(content))}, content[: len(content) // 2])
            handler.close_connection = True
        elif failure == "no json":
            _send(handler, 200, {}, b"<html>Bad gateway</html>")
        elif failure == "empty":
            _send(handler, 200, {}, b'{"choices": [], "data": []}')
        elif failure == "half an image":
            file = base64.b64encode(_png(np.zeros((3, 32, 32), np.uint8))[:60]).decode()
            said = {"data": [{"b64_json": file, "embedding": [None]}], "choices": [{"message": {"content": None}}]}
            _send(handler, 200, {}, json.dumps(said).encode())
        elif failure == "refused":
            said = {"error": {"message": "Your request was rejected.", "code": "content_policy_violation"}}
            _send(handler, 400, {}, json.dumps(said).encode())
        elif failure == "refused politely":
            message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
            said = {"choices": [{"message": message, "finish_reason": "stop"}], "error": {"code": "content_filter"}}
            _send(handler, 200 if "chat" in call.path else 403, {}, json.dumps(said).encode())
        else:
            raise AssertionError(f"no failure is called {failure}")


def _send(handler: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str], content: bytes) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(content))} | headers).items():
        handler.send_header(name, value)
    with contextlib.suppress(ConnectionError):  # the client may have gone
        handler.end_headers()
        handler.wfile.write(content)


def _read(handler: http.server.BaseHTTPRequestHandler, content: bytes) -> Seen:
    """A call, its images opened."""
    kind = handler.headers["Content-Type"]
    images: list[Picture] = []
    if kind.startswith("multipart/form-data"):
        head = f"Content-Type: {kind}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
        body: dict[str, Any] = {}
        for part in message.iter_parts():  # type: ignore[attr-defined]
            data = part.get_payload(decode=True)
            if part.get_filename():
                images.append(_opened(data))
            else:
                body[part.get_param("name", header="content-disposition")] = data.decode()
    else:
        body = json.loads(content)
        images += [_opened(base64.b64decode(url.partition(",")[2])) for url in _addresses(body)]
    headers = {name.lower(): value for name, value in handler.headers.items()}
    return Seen(handler.path, headers, body, images)


def _addresses(value: Any) -> list[str]:
    """Images in a body."""
    if isinstance(value, str):
        return [value] if value.startswith("data:image/") else []
    if isinstance(value, dict):
        value = list(value.values())
    return [found for item in value for found in _addresses(item)] if isinstance(value, list) else []


def _opened(file: bytes) -> Picture:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1).copy()


def _png(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()
