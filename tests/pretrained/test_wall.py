from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.model_server import Models, ModelServer

from sfumato.errors import PrivacyRefusal, UserError
from sfumato.pretrained.backends import open_model
from sfumato.pretrained.fewshot import FewShotTexts
from sfumato.pretrained.openai import (
    Connection,
    OpenAICaptioner,
    OpenAIChat,
    OpenAIImageEmbedder,
    OpenAIImageVariator,
    OpenAITextEmbedder,
    ServiceError,
)
from sfumato.pretrained.wall import Endpoint, PrivacyWarning, for_private, for_released, forwarding, whereabouts

IMAGES = np.full((2, 3, 8, 8), 7, np.uint8)
AWAY = "https://api.example.com/v1"


@pytest.fixture
def no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a connection nor a look-up nor a socket."""

    def explode(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, explode)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "http://LOCALHOST:8000",
        "https://localhost/v1",
        "http://127.0.0.1:8000/v1",
        "http://127.8.9.1/v1",
        "http://[::1]:8000/v1",
        "http://[0:0:0:0:0:0:0:1]:8000/v1",
    ],
)
def test_loopback_is_what_is_written_so(url: str, no_socket: None) -> None:
    assert Endpoint.parse(url).on_loopback
    assert for_private(OpenAICaptioner("m", Connection(url))).private


@pytest.mark.parametrize(
    "url",
    [
        AWAY,
        "http://localhost.example.com/v1",
        "http://127.0.0.1.nip.io/v1",
        "http://localtest.me:8000/v1",
        "http://0.0.0.0:8000/v1",
        "http://[::]:8000/v1",
        "http://[::ffff:127.0.0.1]:8000/v1",
        "http://127.1/v1",
        "http://2130706433/v1",
        "http://0x7f000001/v1",
        "http://0177.0.0.1/v1",
        "http://10.0.0.1:8000/v1",
        "http://192.168.0.10:8000/v1",
        "http://ip6-localhost:8000/v1",
    ],
)
def test_all_else_is_away_whatever_it_resolves_to(url: str, no_socket: None) -> None:
    assert not Endpoint.parse(url).on_loopback
    model = OpenAICaptioner("m", Connection(url))
    with pytest.raises(PrivacyRefusal, match="--allow-private-to"):
        for_private(model)
    with pytest.raises(PrivacyRefusal, match="nothing was sent"):
        model.caption(IMAGES)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1@evil.example.com/v1",
        "http://user:secret@127.0.0.1/v1",
        "http://127.0.0.1/v1?key=secret",
        "http://127.0.0.1/v1#secret",
        "http://127.0.0.1\\@evil.example.com/v1",
        "http://127.0.0.1%2eevil.example.com/v1",
        "http://[::1%25eth0]/v1",
        "http://localhost./v1",
        "http://127.0.0.1:0/v1",
        "http://127.0.0.1:99999/v1",
        "http://127.0.0.1:8000/v1 /x",
        "ftp://127.0.0.1/v1",
        "127.0.0.1:8000/v1",
        "http:///v1",
        "http://[::1/v1",
        "",
    ],
)
def test_addresses_that_two_readers_could_read_differently_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="must be http"):
        Connection(url)


def test_a_refusal_never_quotes_a_password() -> None:
    with pytest.raises(UserError) as refusal:
        Endpoint.parse("http://user:secret@host/v1")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "allowed", "passes"),
    [
        ("https://gpu.lab/v1", ["gpu.lab"], True),
        ("https://gpu.lab/v1", ["GPU.lab:443"], True),
        ("http://gpu.lab/v1", ["gpu.lab:80"], True),
        ("https://gpu.lab:8000/v1", ["gpu.lab:8000"], True),
        ("https://[fd00::1]:8000/v1", ["[fd00::1]:8000"], True),
        ("https://gpu.lab:8000/v1", ["gpu.lab"], False),
        ("https://gpu.lab/v1", ["gpu.lab:80"], False),
        ("https://gpu.lab/v1", ["lab"], False),
        ("https://other.gpu.lab/v1", ["gpu.lab"], False),
        ("https://gpu.lab.example.com/v1", ["gpu.lab"], False),
        ("https://gpu.lab/v1", [], False),
    ],
)
def test_a_name_is_matched_exactly(url: str, allowed: list[str], passes: bool, no_socket: None) -> None:
    model = OpenAIImageEmbedder("m", Connection(url))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        if passes:
            assert for_private(model, allowed).private
        else:
            with pytest.raises(PrivacyRefusal):
                for_private(model, allowed)


@pytest.mark.parametrize("entry", ["*", "*.lab", "http://gpu.lab", "gpu.lab/v1", "gpu lab", "a@b", "", "gpu.lab:port"])
def test_what_is_no_host_is_no_permission(entry: str) -> None:
    with pytest.raises(UserError, match="is no host"):
        for_private(OpenAICaptioner("m", Connection(AWAY)), [entry])


@pytest.mark.parametrize("passed", ["unmarked", "private", "wrapped"])
def test_no_socket_is_opened_for_private_data(passed: str, no_socket: None) -> None:
    """Whoever forgets the wall, or passes the wrong model, gets a refusal."""
    connection = Connection(AWAY, concurrency=4)
    captioner, embedder = OpenAICaptioner("m", connection), OpenAIImageEmbedder("m", connection)
    variator, texts = OpenAIImageVariator("m", connection, side=8), OpenAITextEmbedder("m", connection)
    if passed == "private":
        captioner = captioner.showing(private=True, allowed=["elsewhere.example.com"], answers=None)
        embedder = embedder.showing(private=True, allowed=["elsewhere.example.com"], answers=None)
    texts = texts.showing(private=True, allowed=(), answers=None)
    shows: list[Callable[[], object]] = [
        lambda: captioner.caption(IMAGES),
        lambda: embedder.embed_images(IMAGES),
        lambda: variator.try_vary_images(IMAGES, 1, 0.5),
        lambda: texts.embed_texts(["a private caption"]),
    ]
    if passed == "wrapped":

        class Polite:
            def __init__(self, model: OpenAICaptioner) -> None:
                self.inner = [model]

        shows = [lambda: for_private(Polite(OpenAICaptioner("m", connection)))]
        shows.append(lambda: for_private(FewShotTexts(OpenAIChat("m", connection))))
    for show in shows:
        with pytest.raises(PrivacyRefusal):
            show()


def test_released_data_may_go_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts, and images that somebody vouched for, are really sent: here to a name that is looked up."""
    asked: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> Any:
        asked.append(host)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("sfumato.pretrained._service.FIRST_PAUSE", 0.001)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    connection = Connection("http://models.example.com/v1")
    with pytest.raises(ServiceError, match="3 tries"):
        OpenAIChat("m", connection).chat([[{"role": "user", "content": "a released caption"}]], seed=1)
    with pytest.raises(ServiceError):
        for_released(OpenAICaptioner("m", connection)).caption(IMAGES)
    assert set(asked) == {"models.example.com"}


def test_models_in_this_process_pass_as_they_are() -> None:
    class Here:
        def embed_images(self, images: object) -> None: ...

    model = Here()
    assert for_private(model) is model
    assert for_released(model) is model
    assert whereabouts(model) == "in this process"


def test_what_a_wrapper_holds_may_have_passed_already() -> None:
    chat = for_private(OpenAIChat("m", Connection("http://127.0.0.1:9/v1")))
    texts = FewShotTexts(chat)
    assert for_private(texts) is texts
    assert whereabouts(texts) == "local endpoint as configured (127.0.0.1:9)"
    with pytest.warns(PrivacyWarning, match="without encryption"):
        away = for_private(OpenAIChat("m", Connection("http://gpu.lab/v1")), ["gpu.lab"])
    assert whereabouts(away) == "remote endpoint gpu.lab:80"


def test_models_that_ollama_passes_on_are_refused() -> None:
    connection = Connection("http://localhost:11434/v1")
    for name in ("gpt-oss:120b-cloud", "qwen3-vl:cloud"):
        with pytest.raises(PrivacyRefusal, match=r"passes on to ollama\.com"):
            for_private(OpenAICaptioner(name, connection))
        with pytest.raises(PrivacyRefusal, match=r"passes on to ollama\.com"):
            OpenAICaptioner(name, connection).caption(IMAGES)
        assert for_private(OpenAICaptioner(name, connection), ["ollama.com"]).private
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for_private(OpenAICaptioner("qwen3-vl:8b", connection))
        for_private(OpenAICaptioner("cloudy:7b", connection))


@pytest.mark.parametrize(
    ("port", "model", "said"),
    [
        (4000, "llava", "LiteLLM"),
        (8000, "gpt-4o-mini", "hosted model"),
        (8000, "openrouter/anthropic/claude-sonnet-4", "hosted model"),
        (8000, "gemini-2.5-flash", "hosted model"),
        (8000, "o3-mini", "hosted model"),
        (8000, "gpt-oss-20b", None),
        (8000, "Qwen/Qwen2.5-VL-7B-Instruct", None),
        (8000, "olmo-2", None),
    ],
)
def test_gateways_on_loopback_are_warned_about(port: int, model: str, said: str | None) -> None:
    captioner = OpenAICaptioner(model, Connection(f"http://127.0.0.1:{port}/v1"))
    assert (forwarding(captioner.endpoint, model) is None) == (said is None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert for_private(captioner).private
    # Others may be about files that earlier tests left open.
    ours = [str(one.message) for one in caught if issubclass(one.category, PrivacyWarning)]
    assert [str(said) in message for message in ours] == ([True] if said else [])


def test_private_calls_ignore_proxies_and_follow_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelServer(Models(caption=lambda image, prompt: "stolen")) as proxy, ModelServer(Models()) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        server.models.caption = lambda image, prompt: "seen here"
        captioner = for_private(OpenAICaptioner("m", Connection(server.url)))
        assert captioner.caption(IMAGES) == ["seen here"] * 2
        assert not proxy.calls
        server.answer = (307, {"Location": f"{proxy.url}/chat/completions"}, b"")
        with pytest.raises(ServiceError, match="redirect"):
            captioner.caption(IMAGES)
        named = for_private(OpenAICaptioner("m", Connection("https://models.invalid/v1")), ["models.invalid"])
        monkeypatch.setattr("sfumato.pretrained._service.FIRST_PAUSE", 0.001)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ServiceError):
            named.caption(IMAGES)
        assert not proxy.calls


def test_localhost_is_connected_to_without_asking_who_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service that says `localhost` is elsewhere is not asked."""
    really = socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **named: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1")
        return really(host, *rest, **named)

    with ModelServer(Models(caption=lambda image, prompt: "here")) as server:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        captioner = for_private(OpenAICaptioner("m", Connection(f"http://localhost:{server.port}/v1")))
        assert captioner.caption(IMAGES) == ["here"] * 2


def test_private_items_go_alone_and_answers_stay_in_the_run(tmp_path: Path) -> None:
    everyone, run = tmp_path / "everyone", tmp_path / "run"
    models = Models(caption=lambda image, prompt: f"mean {image.mean():.0f}")
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    with ModelServer(models, pause=0.02) as server:
        captioner = OpenAICaptioner("m", Connection(server.url, answers=everyone), least_side=8)
        unmarked = captioner.caption(images)
        assert not everyone.exists(), "whoever did not say that images are released keeps nothing"
        walled = for_private(captioner, answers=run)
        assert walled.caption(images) == unmarked
        assert server.most_at_once == 1
        before = len(server.calls)
        assert walled.caption(images) == unmarked
        assert len(server.calls) == before, "paid twice"
        assert for_released(captioner).caption(images) == unmarked
        assert server.most_at_once > 1
    assert sum(file.is_file() for file in everyone.rglob("*")) == len(images)
    assert sum(file.is_file() for file in run.rglob("*")) == len(images)
    for place in [run, *run.rglob("*")]:
        assert place.stat().st_mode & 0o077 == 0, "others can read it"


def test_a_private_item_that_is_rejected_is_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejection of one image is a null contribution; a rejection of a plain picture is an error of the settings."""
    with ModelServer(Models(caption=lambda image, prompt: "fine")) as server:
        captioner = for_private(OpenAICaptioner("m", Connection(server.url), least_side=8))
        odd = np.concatenate([IMAGES, np.zeros((1, 3, 8, 8), np.uint8)])
        answered = server._answered

        def picky(call: Any) -> Any:
            if call.images[0].max() == 0:
                return 422, {"error": {"message": "this face is too dark"}}
            return answered(call)

        monkeypatch.setattr(server, "_answered", picky)
        assert captioner.caption(odd) == ["fine", "fine", ""]
        assert captioner.spending.usage.failed == 1
        with pytest.raises(ServiceError, match="this face is too dark"):
            for_released(captioner).caption(odd)
        server.answer = (400, {}, b'{"error": {"message": "no vision here"}}')
        with pytest.raises(ServiceError, match="no vision here"):
            for_private(OpenAICaptioner("m", Connection(server.url), least_side=8)).caption(IMAGES)


def test_the_wall_stands_in_opened_models(no_socket: None) -> None:
    embedder = open_model(f"openai:siglip@{AWAY}", "image embedder")
    with pytest.raises(PrivacyRefusal):
        for_private(embedder)
    with pytest.raises(PrivacyRefusal):
        embedder.embed_images(IMAGES)
