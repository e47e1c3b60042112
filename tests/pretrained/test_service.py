"""Transport: retries, pauses, breaker, cap, keys and answers on disk, against a server that fails on purpose."""

from __future__ import annotations

import email.utils
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.model_server import FAILURES, Faults, Models, ModelServer

from sfumato.errors import UserError
from sfumato.pretrained import _service
from sfumato.pretrained.openai import (
    Connection,
    CostCapReached,
    OpenAIChat,
    OpenAIImageGenerator,
    Prices,
    ServiceError,
    Spending,
)

SIDE = 16


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_service, "FIRST_PAUSE", 0.005)


def drawn(text: str, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng([*text.encode(), seed]).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)


def models() -> Models:
    return Models(chat=lambda messages, body: f"echo {messages[-1]['content']} {body['seed']}", generate=drawn)


def asked(*texts: str) -> list[Any]:
    return [[{"role": "user", "content": text}] for text in texts]


def chat(server: ModelServer, **options: Any) -> OpenAIChat:
    return OpenAIChat("m", Connection(server.url, **options))


class Troubled(Faults):
    """Fails on the first `times` calls of each request."""

    def __init__(self, *kinds: str, silence: float = 1.2) -> None:
        super().__init__(kinds=kinds, silence=silence)

    def of(self, request: bytes, attempt: int) -> str | None:
        return self.kinds[attempt - 1] if attempt <= len(self.kinds) else None


def patience_with(failure: str) -> float:
    """A timeout: short only where it is to be met."""
    return 0.8 if failure == "silence" else 30


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_in_passing_is_mended(failure: str) -> None:
    timeout = patience_with(failure)
    with ModelServer(models(), Troubled(failure)) as server:
        generator = OpenAIImageGenerator("m", Connection(server.url, timeout=timeout), side=SIDE, sends=["seed"])
        assert np.array_equal(generator.generate(["a cat"], seed=3)[0], drawn("a cat", 3))
        assert chat(server, timeout=timeout).chat(asked("hello"), seed=1) == ["echo hello 1"]
        retries = generator.spending.usage.retries
        assert retries == 1 or (failure == "silence" and retries > 1), "on a busy machine more may time out"
        assert len(server.calls) >= 4


@pytest.mark.parametrize("links", [False, True])
def test_a_third_of_calls_failing_changes_nothing(links: bool) -> None:
    texts = [f"picture {number}" for number in range(40)]
    with ModelServer(models(), Faults(0.3, seed=1, silence=1.2), links=links) as server:
        generator = OpenAIImageGenerator("m", Connection(server.url, timeout=0.8), side=SIDE, sends=["seed"])
        images = generator.generate(texts, seed=7)
        failed = sum(call.failure is not None for call in server.calls)
    assert np.array_equal(images, np.stack([drawn(text, 7 + number) for number, text in enumerate(texts)]))
    assert failed >= 10
    assert generator.spending.usage.calls >= len(texts) + failed


@pytest.mark.parametrize(
    ("status", "said", "match"),
    [
        (400, {"message": "unknown field seed"}, "rejects the request.*unknown field seed"),
        (401, {"message": "bad key"}, "name the environment variable"),
        (403, {"message": "not yours"}, "key is missing or not accepted"),
        (404, {"message": "no such model"}, "no model 'm'.*no such model"),
        (422, {"message": "n must be 1"}, "n must be 1"),
        (402, {"message": "pay"}, "quota is used up"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "quota is used up"),
        (501, {"message": "no images"}, "no such interface"),
        (302, {}, "redirect"),
    ],
)
def test_what_another_try_cannot_mend_is_said_at_once(status: int, said: dict[str, str], match: str) -> None:
    with ModelServer(models()) as server:
        server.answer = (status, {"Location": "http://127.0.0.1:1/"}, json.dumps({"error": said}).encode())
        with pytest.raises(ServiceError, match=match) as error:
            chat(server, concurrency=1).chat(asked("a", "b", "c"), seed=1)
        assert len(server.calls) == 1
        assert server.url in str(error.value)
        assert str(status) in str(error.value)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_back_all_calls(form: str) -> None:
    """Not only the call that was turned away."""
    turned = threading.Event()
    came: list[float] = []

    class Busy(Faults):
        def of(self, request: bytes, attempt: int) -> str | None:
            came.append(time.monotonic())
            first, _ = not turned.is_set(), turned.set()
            return f"429 {form}" if first else None

    with ModelServer(models(), Busy()) as server:
        began = time.time()
        chat(server, concurrency=1).chat(asked(*"abcd"), seed=1)
        if form == "date":  # it is in whole seconds
            assert time.time() >= int(began) + 1
        else:
            assert came[1] - came[0] >= 0.2
        assert len(came) == 5


def test_a_wait_beyond_the_longest_ends_the_run() -> None:
    later = email.utils.formatdate(time.time() + 3600, usegmt=True)
    for value in ("3600", later):
        with ModelServer(models()) as server:
            server.answer = (429, {"Retry-After": value}, b"{}")
            with pytest.raises(ServiceError, match=r"asks to wait 3[56]"):
                chat(server).chat(asked("a"), seed=1)


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "inf", ""])
def test_a_senseless_retry_after_is_no_reason_to_wait(value: str) -> None:
    with ModelServer(models()) as server:
        server.answer = (503, {"Retry-After": value}, b"{}")
        began = time.monotonic()
        with pytest.raises(ServiceError, match="3 tries, the last time with: status 503"):
            chat(server, attempts=3).chat(asked("a"), seed=1)
        assert time.monotonic() - began < 5


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(_service, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(_service.Service, "_sleep", lambda self, seconds: pauses.append(seconds))
    with ModelServer(models()) as server:
        server.answer = (503, {}, b"")
        with pytest.raises(ServiceError, match="10 tries"):
            chat(server, attempts=10).chat(asked("a"), seed=1)
    ceilings = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert all(ceiling / 2 <= pause <= ceiling for pause, ceiling in zip(pauses, ceilings, strict=True))
    assert len({pause / ceiling for pause, ceiling in zip(pauses, ceilings, strict=True)}) > 5


def test_the_circuit_opens_when_nothing_else_comes() -> None:
    with ModelServer(models()) as server:
        server.answer = (503, {}, b"")
        talker = chat(server, patience=12, attempts=50, concurrency=4)
        with pytest.raises(ServiceError, match=r"failed 1[2-9] times in a row"):
            talker.chat(asked(*map(str, range(20))), seed=1)
        assert len(server.calls) <= 12 + 4
        before = len(server.calls)
        with pytest.raises(ServiceError, match="times in a row"):
            talker.chat(asked("one chance"), seed=1)
        assert len(server.calls) == before + 1
        server.answer = None
        assert talker.chat(asked("again"), seed=1) == ["echo again 1"]


def test_one_item_that_fails_for_ever_leaves_the_others_alone() -> None:
    class Cursed(Faults):
        def of(self, request: bytes, attempt: int) -> str | None:
            return next((kind for kind in self.kinds if f"bad {kind}".encode() in request), None)

    texts = ["good", "bad 500", "bad refused", "fine", "bad empty"]
    with ModelServer(models(), Cursed(kinds=("500", "refused", "empty"))) as server:
        connection = Connection(server.url)
        generator = OpenAIImageGenerator("m", connection, side=SIDE, sends=["seed"])
        renders = generator.try_generate(texts, seed=1)
        assert renders.made.tolist() == [True, False, False, True, False]
        assert np.array_equal(renders.images[3], drawn("fine", 4))
        assert (renders.images[[1, 2, 4]] == 128).all()
        usage = connection.spending.usage
        assert (usage.refused, usage.failed) == (1, 2)
        tries = [sum(text in str(call.body) for call in server.calls) for text in texts]
        assert tries == [1, connection.attempts, _service.USELESS, 1, _service.USELESS]
        with pytest.raises(ServiceError, match="3 of 5 images were refused or failed"):
            generator.generate(texts, seed=1)
        answers = OpenAIChat("m", connection).chat(asked(*texts), seed=1)
        assert answers == ["echo good 1", "", "", "echo fine 4", ""]


def test_a_server_that_is_not_there_is_named_soon() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ServiceError, match=rf"{url} did not answer a request in 3 tries.*ConnectError"):
        OpenAIChat("m", Connection(url)).chat(asked("a"), seed=1)


def test_a_dripping_answer_is_a_timeout() -> None:
    """Each byte in time, the whole never."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        for _ in range(2):
            client, _ = listener.accept()
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            try:
                for _ in range(100):
                    client.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                client.close()

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    connection = Connection(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.3, attempts=2)
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"no answer within 0\.3 seconds"):
        OpenAIChat("m", connection).chat(asked("a"), seed=1)
    assert time.monotonic() - began < 4
    listener.close()
    thread.join(10)


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_service, "LARGEST_ANSWER", 1000)
    with ModelServer(models()) as server:
        server.answer = (200, {}, b'{"choices": []' + b" " * 5000 + b"}")
        assert chat(server).chat(asked("a"), seed=1) == [""]


def test_calls_at_a_time_are_bounded() -> None:
    with ModelServer(models(), pause=0.05) as server:
        chat(server, concurrency=3).chat(asked(*map(str, range(12))), seed=1)
        assert 2 <= server.most_at_once <= 3


def test_a_resumed_run_pays_nothing_twice(tmp_path: Path) -> None:
    texts = [str(number) for number in range(10)]
    prices = Prices(call=0.5)
    with ModelServer(models()) as server:
        first = chat(server, answers=tmp_path / "kept", prices=prices)
        answers = first.chat(asked(*texts[:6]), seed=1)
        second = chat(server, answers=tmp_path / "kept", prices=prices)
        assert second.chat(asked(*texts), seed=1) == answers + [f"echo {n} {n + 1}" for n in range(6, 10)]
        assert len(server.calls) == 10
        usage = second.spending.usage
        assert (usage.calls, usage.kept, usage.cost, usage.cost_before) == (4, 6, 2.0, 3.0)
        second.chat(asked(*texts), seed=2)
        assert len(server.calls) == 20, "another seed is another request"
        server.models.chat = None
        assert second.chat(asked(*texts), seed=1)[0] == "echo 0 1"
        damaged = next(
            file for file in (tmp_path / "kept").rglob("*") if file.is_file() and b"echo 9 10" in file.read_bytes()
        )
        damaged.write_bytes(damaged.read_bytes()[:-2])
        with pytest.raises(ServiceError, match="status 404"):
            second.chat(asked(*texts), seed=1)
    assert all(file.stat().st_mode & 0o077 == 0 for file in [tmp_path / "kept", *(tmp_path / "kept").rglob("*")])


def test_a_folder_that_cannot_be_is_told_before_anything_is_paid(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with ModelServer(models()) as server:
        with pytest.raises(UserError, match="cannot be kept"):
            chat(server, answers=tmp_path / "file" / "kept").chat(asked("a"), seed=1)
        assert not server.calls


def test_what_was_answered_before_a_stop_is_kept(tmp_path: Path) -> None:
    texts = [str(number) for number in range(30)]

    class Dying(Faults):
        calls = 0

        def of(self, request: bytes, attempt: int) -> str | None:
            Dying.calls += 1
            return "503" if Dying.calls > 12 else None

    with ModelServer(models(), Dying()) as server:
        with pytest.raises(ServiceError, match="times in a row"):
            chat(server, answers=tmp_path, patience=8).chat(asked(*texts), seed=1)
        server.faults = Faults()
        server.calls.clear()
        resumed = chat(server, answers=tmp_path)
        assert len(resumed.chat(asked(*texts), seed=1)) == 30
        assert len(server.calls) == 30 - 12


def test_what_decides_an_answer_is_in_its_name_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "first-secret")
    with ModelServer(models()) as server:

        def calls(**options: Any) -> int:
            before = len(server.calls)
            model = options.pop("model", "m")
            temperature = options.pop("temperature", 0.5)
            connection = Connection(server.url, answers=tmp_path, key_variable="OUR_KEY", **options)
            OpenAIChat(model, connection).chat(asked("a"), seed=1, temperature=temperature)
            return len(server.calls) - before

        assert [calls(), calls()] == [1, 0]
        assert calls(model="other") == 1
        assert calls(temperature=0.6) == 1
        assert calls(extra={"top_p": 0.9}) == 1
        monkeypatch.setenv("OUR_KEY", "second-secret")
        assert calls(concurrency=2, timeout=9.0, prices=Prices(call=1)) == 0
        generator = OpenAIImageGenerator("m", Connection(server.url, answers=tmp_path), side=SIDE)
        generator.generate(["a", "a"], seed=1)
        assert len(server.calls) == 4 + 2, "equal prompts are drawn apart, though their seed is not sent"
        assert [call.body.get("seed") for call in server.calls[-2:]] == [None, None]
        generator.generate(["a", "a"], seed=1)
        assert len(server.calls) == 6


def test_the_key_is_sent_and_never_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("OUR_KEY", secret)
    with ModelServer(models()) as server:
        talker = chat(server, key_variable="OUR_KEY", answers=tmp_path)
        talker.chat(asked("a"), seed=1)
        assert server.calls[0].headers["authorization"] == f"Bearer {secret}"
        server.answer = (401, {}, json.dumps({"error": {"message": f"Incorrect key {secret}"}}).encode())
        with pytest.raises(ServiceError, match=r"check the key in \$OUR_KEY.*Incorrect key \(key\)") as error:
            talker.chat(asked("b"), seed=1)
        assert secret not in str(error.value)
    monkeypatch.delenv("OUR_KEY")
    with pytest.raises(ServiceError, match="OUR_KEY holds no usable API key"):
        talker.chat(asked("c"), seed=1)
    told = repr(talker.connection) + str(talker.identity) + caplog.text
    told += "".join(str(file) + file.read_text() for file in tmp_path.rglob("*") if file.is_file())
    assert secret not in told


def test_the_key_goes_to_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "secret")
    with ModelServer(models()) as other, ModelServer(models()) as server:
        file = drawn("x", 1)
        server.links = True
        sent = server._sent
        elsewhere: Callable[[bytes], dict[str, str]] = other._sent
        other.links = True
        for maker, expected in ((sent, "Bearer secret"), (elsewhere, None)):
            monkeypatch.setattr(server, "_sent", maker)
            generator = OpenAIImageGenerator(
                "m", Connection(server.url, key_variable="OUR_KEY"), side=SIDE, sends=["seed"]
            )
            assert np.array_equal(generator.generate(["x"], seed=1)[0], file)
            got = next(
                call for call in [*server.calls, *other.calls] if call.path.startswith("/files/") and not call.body
            )
            assert got.headers.get("authorization") == expected
            server.calls.clear()


def test_the_cap_is_never_passed() -> None:
    prices = Prices(input_tokens=1000.0, output_tokens=1000.0)
    with ModelServer(models(), pause=0.01) as server:
        spending = Spending(max_cost=0.5)
        talker = chat(server, prices=prices, spending=spending)
        with pytest.raises(CostCapReached, match=r"of at most 0\.5 are spent"):
            talker.chat(asked(*map(str, range(100))), seed=1, max_tokens=100)
        # A call may cost 0.165 but does cost 0.013: calls go on while the highest price is left.
        assert 0.5 - 0.166 - 0.014 <= spending.usage.cost <= 0.5
        assert len(server.calls) == spending.usage.calls >= 25
        assert spending.usage.cost == pytest.approx(0.013 * len(server.calls))


def test_one_cap_for_several_models_and_starts(tmp_path: Path) -> None:
    with ModelServer(models()) as server:

        def connection() -> Connection:
            return Connection(server.url, answers=tmp_path, prices=Prices(image=1.0, call=1.0), spending=Spending(5.0))

        one = connection()
        OpenAIChat("m", one).chat(asked("a", "b", "c"), seed=1)
        generator = OpenAIImageGenerator("m", one, side=SIDE)
        generator.generate(["x"], seed=1)
        with pytest.raises(CostCapReached):
            generator.generate(["y"], seed=1)
        again = connection()
        OpenAIChat("m", again).chat(asked("a", "b", "c"), seed=1)
        OpenAIChat("m", again).chat(asked("a", "b", "c"), seed=1)
        OpenAIImageGenerator("m", again, side=SIDE).generate(["x"], seed=1)
        assert again.spending.usage.cost_before == 5.0
        with pytest.raises(CostCapReached):
            OpenAIChat("m", again).chat(asked("d"), seed=1)
        assert len(server.calls) == 4


def test_calls_that_may_have_been_billed_count() -> None:
    prices = Prices(call=1.0)
    for failure, cost in (("cut", 2), ("silence", 2), ("no json", 2), ("503", 1), ("429", 1), ("refused", 1)):
        with ModelServer(models(), Troubled(failure)) as server:
            talker = chat(server, prices=prices, timeout=patience_with(failure))
            talker.chat(asked("a"), seed=1)
            spent = talker.spending.usage.cost
            assert spent == cost or (failure == "silence" and spent > cost), failure


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UserError, match="A cost cap needs prices"):
        Connection("http://127.0.0.1/v1", spending=Spending(1.0))
    with pytest.raises(UserError, match="concurrency of a connection must be above 0"):
        Connection("http://127.0.0.1/v1", concurrency=0)
    with pytest.raises(UserError, match="Prices must be"):
        Prices(image=-1)
    with pytest.raises(UserError, match="cap must be"):
        Spending(float("nan"))
