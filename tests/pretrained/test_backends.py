from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.model_server import Models, ModelServer
from tests.pretrained.conftest import HOME

from sfumato._home import home
from sfumato.errors import UserError
from sfumato.pretrained.backends import SERVED, default_answers, open_model
from sfumato.pretrained.clipart import ClipartGenerator
from sfumato.pretrained.fewshot import FewShotTexts
from sfumato.pretrained.minilm import MiniLM
from sfumato.pretrained.openai import OpenAICaptioner, OpenAIChat, OpenAIImageGenerator, Prices, Spending
from sfumato.pretrained.portraits import Portraits
from sfumato.pretrained.smollm import SmolLM2

SERVER = "http://127.0.0.1:9/v1"


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch, portraits: Portraits, smollm: SmolLM2) -> None:
    """The user's own home, with the models that the fixtures pulled."""
    monkeypatch.setenv("SFUMATO_HOME", str(HOME))


def test_offline_models(pulled: None, portraits: Portraits) -> None:
    source = open_model("offline:portraits", "image source")
    assert np.array_equal(source.draw(1, seed=1), portraits.draw(1, seed=1))
    texts = open_model("offline:smollm2", "text generator", domain="a photo of a bedroom")
    assert isinstance(texts, FewShotTexts)
    assert texts.domain == "a photo of a bedroom"
    with pytest.raises(UserError, match="offline:portraits is no captioner but: image source"):
        open_model("offline:portraits", "captioner")
    with pytest.raises(UserError, match="portraits has no option 'steps'; it takes none"):
        open_model("offline:portraits", "image source", steps=3)


def test_the_generator_takes_options(pulled: None, minilm: MiniLM) -> None:
    fast = open_model("offline:clipart", "image generator", fast=True)
    texts = ["a red apple", "a green cat"]
    assert np.array_equal(fast.generate(texts, 3), ClipartGenerator(fast=True, embedder=minilm).generate(texts, 3))
    with pytest.raises(UserError, match="no option 'speed'; its options are fast, guidance, steps"):
        open_model("offline:clipart", "image generator", speed=9)
    with pytest.raises(UserError, match="guidance must be 1 to 10"):
        open_model("offline:clipart", "image generator", guidance=99)


def test_offline_models_that_are_not_there() -> None:
    with pytest.raises(UserError, match="no model called 'blip'"):
        open_model("offline:blip", "captioner")
    with pytest.raises(UserError, match="sfumato models pull minilm"):
        open_model("offline:minilm", "text embedder")


@pytest.mark.parametrize("kind", SERVED)
def test_models_on_servers(kind: str) -> None:
    model = open_model(f"openai:Qwen/Qwen2.5-VL-7B@x@{SERVER}", kind, concurrency=3, licence="Apache-2.0")
    assert type(model).__name__ == SERVED[kind]
    assert model.model == "Qwen/Qwen2.5-VL-7B@x"
    assert model.connection.url == SERVER
    assert model.connection.concurrency == 3
    assert model.connection.answers == default_answers() == home() / "answers"
    assert model.identity.licence == "Apache-2.0"


def test_options_reach_whom_they_are_for(tmp_path: Path) -> None:
    spending = Spending(2.0)
    prices = Prices(image=0.01)
    generator = open_model(
        f"openai:m@{SERVER}",
        "image generator",
        side=64,
        sends=["seed"],
        prices=prices,
        spending=spending,
        answers=tmp_path,
    )
    assert isinstance(generator, OpenAIImageGenerator)
    assert (generator.side, generator.spending, generator.connection.answers) == (64, spending, tmp_path)
    texts = open_model(f"openai:m@{SERVER}", "text generator", domain="a drawing", temperature=0.5, concurrency=2)
    assert isinstance(texts, FewShotTexts)
    assert texts.temperature == 0.5
    assert isinstance(texts._chat, OpenAIChat)
    assert texts._chat.connection.concurrency == 2
    captioner = open_model(f"openai:m@{SERVER}", "captioner", answers=None, prompt="What is this?")
    assert isinstance(captioner, OpenAICaptioner)
    assert captioner.connection.answers is None


def test_options_may_come_from_a_file_of_settings(tmp_path: Path) -> None:
    options: dict[str, Any] = {"prices": {"image": 0.01}, "max_cost": 2.5, "answers": str(tmp_path), "side": 32}
    model: Any = open_model(f"openai:m@{SERVER}", "image generator", **options)
    assert model.connection.prices == Prices(image=0.01)
    assert model.spending.max_cost == 2.5
    assert model.connection.answers == tmp_path
    with pytest.raises(UserError, match="no price of pictures; there are: input_tokens"):
        open_model(f"openai:m@{SERVER}", "image generator", prices={"pictures": 1})
    with pytest.raises(UserError, match="not both"):
        open_model(f"openai:m@{SERVER}", "captioner", max_cost=1, spending=Spending(), prices={"call": 1})


def test_answers_are_kept_in_the_users_folder_by_default() -> None:
    with ModelServer(Models(chat=lambda messages, body: "yes")) as server:
        for _ in range(2):
            chat: Any = open_model(f"openai:m@{server.url}", "chat model")
            assert chat.chat([[{"role": "user", "content": "there?"}]], seed=1) == ["yes"]
        assert len(server.calls) == 1
    assert default_answers().stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("spec", "kind", "options", "match"),
    [
        ("blip", "captioner", {}, "allowed are offline:NAME, huggingface:NAME and openai:MODEL@"),
        ("azure:gpt", "captioner", {}, "names no model; allowed are offline:NAME"),
        ("openai:", "captioner", {}, "names no model"),
        ("openai:gpt-4o", "captioner", {}, "is written openai:MODEL@http://host:port/v1"),
        ("openai:gpt-4o@localhost:8000", "captioner", {}, "is written openai:MODEL@http://host:port/v1"),
        ("openai:@http://127.0.0.1/v1", "captioner", {}, "is written openai:MODEL@http://host:port/v1"),
        ("openai:m@http://u:secret@127.0.0.1/v1", "captioner", {}, "must be http"),
        (f"openai:m@{SERVER}", "painter", {}, "no kind of model called 'painter'; allowed are: captioner, chat model"),
        (f"openai:m@{SERVER}", "upscaler", {}, "interface has no upscaler; it has: captioner"),
        (f"openai:m@{SERVER}", "captioner", {"side": 8}, "takes no option side; it takes: .*prompt"),
        (f"openai:m@{SERVER}", "text generator", {"side": 8}, "takes no option side"),
        ("huggingface:somebody/something", "image source", {}, "no kind of model called 'image source'"),
    ],
)
def test_what_cannot_be_opened(spec: str, kind: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as refusal:
        open_model(spec, kind, **options)
    assert "secret" not in str(refusal.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "httpx2" else found(name, *rest)
    )
    with pytest.raises(UserError, match=r"pip install 'sfumato\[openai\]'"):
        open_model(f"openai:m@{SERVER}", "captioner")


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, sfumato.pretrained.backends, sfumato.pretrained.wall; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("torch", "httpx2", "transformers", "diffusers", "xllamacpp"):
        assert f"'{name}'" not in loaded
