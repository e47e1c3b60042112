"""The OpenAI interface against real servers on loopback: llama.cpp's own, and one of ours with models of the zoo."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import xllamacpp
from tests.model_server import Models, ModelServer, Picture
from tests.pretrained.conftest import HOME

from sfumato.errors import UserError
from sfumato.pretrained import _service, zoo
from sfumato.pretrained.efficientnet import EfficientNet
from sfumato.pretrained.fewshot import FewShotTexts
from sfumato.pretrained.interfaces import (
    Captioner,
    ImageEmbedder,
    ImageGenerator,
    ImageVariator,
    TextEmbedder,
    TextGenerator,
)
from sfumato.pretrained.minilm import MiniLM
from sfumato.pretrained.openai import (
    Connection,
    OpenAICaptioner,
    OpenAIChat,
    OpenAIImageEmbedder,
    OpenAIImageGenerator,
    OpenAIImageVariator,
    OpenAITextEmbedder,
    ServiceError,
)
from sfumato.pretrained.portraits import SIDE, Portraits
from sfumato.pretrained.renders import FallibleGenerator, FallibleVariator
from sfumato.pretrained.smollm import Message, SmolLM2
from sfumato.pretrained.wall import for_private, for_released

KEY = "key-of-the-test"


@pytest.fixture(scope="module")
def llama(smollm: SmolLM2) -> Iterator[str]:
    """SmolLM2 behind llama.cpp's own server, with a key; `smollm` has pulled it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_HOME", str(HOME))
        file = zoo.path("smollm2") / "model.gguf"
    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel = 2048, 2
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.n_gpu_layers = settings.cache_ram_mib = 0
    settings.offline, settings.warmup, settings.ui, settings.verbosity = True, False, False, -1
    settings.embedding = True
    settings.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    settings.hostnames, settings.port, settings.n_threads_http = ["127.0.0.1"], 0, 4
    settings.api_keys = [KEY]
    server = xllamacpp.Server(settings)
    yield f"{server.listening_address}/v1"
    del server


@pytest.fixture
def connection(llama: str, monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setenv("LLAMA_KEY", KEY)
    monkeypatch.setattr(_service, "FIRST_PAUSE", 0.005)
    return Connection(llama, key_variable="LLAMA_KEY", extra={"cache_prompt": False})


@pytest.fixture(scope="module")
def zoo_server(portraits: Portraits, efficientnet: EfficientNet, minilm: MiniLM) -> Iterator[ModelServer]:
    """Draws portraits, whose latent vectors come from the prompt, and sees with EfficientNet."""

    def generate(text: str, seed: int) -> Picture:
        return portraits.draw_from(latent(portraits, text, seed))[0]

    def vary(image: Picture, text: str, strength: float, seed: int) -> Picture:
        other = generate(text, seed).astype(float)
        return np.rint((1 - strength) * image + strength * other).astype(np.uint8)

    def caption(image: Picture, prompt: str) -> str:
        features = efficientnet.embed_images(image[None])[0]
        return f"{prompt}\nfeature {int(features.argmax())} is the strongest  of all"

    models = Models(
        caption=caption,
        generate=generate,
        vary=vary,
        embed_text=lambda text: 3 * minilm.embed_texts([text])[0],
        embed_image=lambda image: efficientnet.embed_images(image[None])[0],
    )
    with ModelServer(models) as server:
        yield server


def latent(portraits: Portraits, text: str, seed: int) -> Any:
    return portraits.latents(1, int.from_bytes(hashlib.sha256(f"{text} {seed}".encode()).digest()[:4], "big"))


def asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def test_llama_answers_as_in_this_process(connection: Connection, smollm: SmolLM2) -> None:
    questions = [asked("What is 2 + 2? Answer with a number."), asked('Write the word "apple".')]
    chat = OpenAIChat("smollm2", connection)
    here = smollm.chat(questions, seed=5, max_tokens=5, temperature=0.8)
    assert chat.chat(questions, seed=5, max_tokens=5, temperature=0.8) == here
    usage = connection.spending.usage
    assert usage.calls == 2
    assert usage.input_tokens > 20
    assert 2 <= usage.output_tokens <= 10
    assert chat.chat([], seed=1) == []


def test_few_shot_texts_run_over_llama(connection: Connection) -> None:
    texts: TextGenerator = FewShotTexts(OpenAIChat("smollm2", connection), words=(3, 5))
    varied = texts.vary_texts(["a red apple on a white plate", "two small dogs with a ball"], seed=3, strength=0.3)
    assert len(varied) == 2
    assert all(isinstance(text, str) and len(text.split()) >= 3 for text in varied)
    assert connection.spending.usage.calls == 2


def test_llama_embeds_texts(connection: Connection) -> None:
    embedder = OpenAITextEmbedder("smollm2", connection)
    vectors = embedder.embed_texts(["a small cat", "a little cat", "stock market regulation"])
    assert isinstance(embedder, TextEmbedder)
    assert vectors.shape == (3, embedder.dimensions)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert embedder.embed_texts([]).shape == (0, embedder.dimensions)


def test_what_llama_refuses_is_told(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = OpenAIChat("smollm2", connection)
    with pytest.raises(ServiceError, match="exceeds the available context size"):
        chat.chat([asked("word " * 3000)], seed=1)
    with pytest.raises(UserError, match="Conversation 1 is empty"):
        chat.chat([asked("Hello"), []], seed=1)
    with pytest.raises(ServiceError, match="image input is not supported"):
        OpenAICaptioner("smollm2", connection).caption(np.zeros((1, 3, 8, 8), np.uint8))
    with pytest.raises(ServiceError, match=r"status 404.*no such interface"):
        OpenAIImageGenerator("smollm2", connection).generate(["a cat"], seed=1)
    monkeypatch.setenv("LLAMA_KEY", "wrong")
    with pytest.raises(ServiceError, match=r"check the key in \$LLAMA_KEY"):
        chat.chat([asked("Hello")], seed=1)


def test_images_arrive_as_they_were_drawn(zoo_server: ModelServer, portraits: Portraits) -> None:
    generator = OpenAIImageGenerator("portraits", Connection(zoo_server.url), side=SIDE, sends=["seed"])
    assert isinstance(generator, ImageGenerator)
    assert isinstance(generator, FallibleGenerator)
    images = generator.generate(["a smile", "a frown", "a smile"], seed=4)
    expected = [portraits.draw_from(latent(portraits, text, 4 + n))[0] for n, text in enumerate(("a smile", "a frown"))]
    assert np.array_equal(images[:2], np.stack(expected))
    assert not np.array_equal(images[0], images[2])
    assert np.array_equal(generator.generate(["a frown"], seed=5), images[1:2])
    assert generator.generate([], seed=1).shape == (0, 3, SIDE, SIDE)
    asked_for = zoo_server.calls[-1].body
    assert asked_for == {"model": "portraits", "prompt": "a frown", "n": 1, "size": "64x64", "seed": 5}


def test_images_of_another_size_are_fitted(zoo_server: ModelServer) -> None:
    connection = Connection(zoo_server.url)
    small = OpenAIImageGenerator("portraits", connection, side=16, size="1024x1024", sends=["seed"])
    large = OpenAIImageGenerator("portraits", connection, side=SIDE, sends=["seed"]).generate(["a smile"], seed=4)
    images = small.generate(["a smile"], seed=4)
    assert images.shape == (1, 3, 16, 16)
    assert np.abs(images[0].astype(float) - large[0].reshape(3, 16, 4, 16, 4).mean((2, 4))).mean() < 4
    assert zoo_server.calls[-1].body["size"] == "1024x1024"


def test_variations_go_through_a_form(zoo_server: ModelServer, portraits: Portraits) -> None:
    """The image arrives to the bit, and strength as a number or in words."""
    start = portraits.draw(2, seed=1)
    connection = Connection(zoo_server.url)
    numbered = for_released(OpenAIImageVariator("portraits", connection, side=SIDE, sends=["seed", "strength"]))
    assert isinstance(numbered, ImageVariator)
    assert isinstance(numbered, FallibleVariator)
    varied = numbered.vary_images(start, seed=9, strength=0.25, texts=["older", "younger"])
    other = portraits.draw_from(latent(portraits, "younger", 10))[0]
    assert np.array_equal(varied[1], np.rint(0.75 * start[1] + 0.25 * other.astype(float)).astype(np.uint8))
    call = next(call for call in zoo_server.calls if call.body.get("prompt") == "older")
    assert np.array_equal(call.images[0], start[0])
    in_words = OpenAIImageVariator("portraits", connection, side=SIDE)
    said = []
    for strength in (0.1, 0.5, 1.0):
        in_words.vary_images(start[:1, :1], seed=1, strength=strength)
        said.append(zoo_server.calls[-1].body)
    assert [set(body) for body in said] == [{"model", "prompt", "n", "size"}] * 3
    assert len({body["prompt"] for body in said}) == 3
    assert (zoo_server.calls[-1].images[0] == start[0, :1]).all(), "grey is sent as RGB"
    for strength in (0.0, 1.5):
        with pytest.raises(UserError, match="strength"):
            in_words.vary_images(start, seed=1, strength=strength)
    with pytest.raises(UserError, match="one text an image"):
        in_words.vary_images(start, seed=1, strength=0.5, texts=["one"])


def test_captions_depend_on_their_image_alone(
    zoo_server: ModelServer, portraits: Portraits, efficientnet: EfficientNet
) -> None:
    images = portraits.draw(3, seed=2)
    captioner = OpenAICaptioner("eyes", Connection(zoo_server.url), prompt="In short:", least_side=1)
    assert isinstance(captioner, Captioner)
    strongest = efficientnet.embed_images(images).argmax(1)
    captions = captioner.caption(images)
    assert [caption.partition("feature ")[2] for caption in captions] == [
        f"{n} is the strongest of all" for n in strongest
    ]
    assert "In short:" in captions[0]
    assert captioner.caption(images[::-1]) == captions[::-1]
    assert captioner.caption(images[1:2]) == captions[1:2]
    bodies = {
        str({name: value for name, value in call.body.items() if name != "messages"}) for call in zoo_server.calls[-3:]
    }
    assert len(bodies) == 1
    assert captioner.caption(images[:0]) == []


def test_small_images_are_enlarged_for_those_who_need_it(zoo_server: ModelServer) -> None:
    OpenAICaptioner("eyes", Connection(zoo_server.url), least_side=56).caption(np.zeros((1, 1, 28, 14), np.uint8))
    assert zoo_server.calls[-1].images[0].shape == (3, 112, 56)


@pytest.mark.parametrize("form", ["messages", "input"])
def test_image_embeddings_are_those_of_the_model(
    zoo_server: ModelServer, portraits: Portraits, efficientnet: EfficientNet, form: Any
) -> None:
    images = portraits.draw(2, seed=3)
    embedder = OpenAIImageEmbedder("eyes", Connection(zoo_server.url), form=form, least_side=1)
    assert isinstance(embedder, ImageEmbedder)
    assert np.array_equal(embedder.embed_images(images), efficientnet.embed_images(images))
    assert embedder.dimensions == efficientnet.dimensions
    assert embedder.embed_images(images[:0]).shape == (0, embedder.dimensions)


def test_texts_to_vectors_of_length_one(zoo_server: ModelServer, minilm: MiniLM) -> None:
    texts = ["a cat", "a dog"]
    for extra in ({}, {"encoding_format": "base64"}):
        embedder = OpenAITextEmbedder("sentences", Connection(zoo_server.url, extra=extra))
        assert np.allclose(embedder.embed_texts(texts), minilm.embed_texts(texts), atol=1e-6)


def test_items_without_an_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private one is a row of NaN, a null contribution; a released one is an error."""
    monkeypatch.setattr(_service, "FIRST_PAUSE", 0.001)
    vector = np.arange(1, 5, dtype=np.float32)
    odd = np.float32("nan") * vector
    models = Models(embed_image=lambda image: odd if image.max() == 9 else vector)
    images = np.zeros((3, 3, 8, 8), np.uint8)
    images[1] = 9
    with ModelServer(models) as server:
        embedder = OpenAIImageEmbedder("eyes", Connection(server.url), least_side=1)
        rows = for_private(embedder).embed_images(images)
        assert np.isnan(rows[1]).all()
        assert np.array_equal(rows[[0, 2]], [vector, vector])
        assert np.isnan(for_private(embedder).embed_images(images[1:2])).all()
        with pytest.raises(ServiceError, match="no usable embedding for 1 of 3 items"):
            for_released(embedder).embed_images(images)
        server.models.embed_image = lambda image: vector[: 2 + image.max() // 9]
        with pytest.raises(ServiceError, match="different lengths"):
            for_private(embedder).embed_images(images)


def test_identities_say_no_more_than_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "secret")
    chat = OpenAIChat("gpt-x", Connection("https://models.example.com/v1", key_variable="OUR_KEY"), licence="MIT")
    assert chat.identity.to_json() == {
        "name": "gpt-x",
        "revision": "as served",
        "sha256": "",
        "licence": "MIT",
        "source": "https://models.example.com/v1 (OpenAI-compatible)",
    }


def test_arguments_that_cannot_be() -> None:
    connection = Connection("http://127.0.0.1/v1")
    with pytest.raises(UserError, match="name of the model is empty"):
        OpenAIChat(" ", connection)
    with pytest.raises(UserError, match="no field strength"):
        OpenAIImageGenerator("m", connection, sends=["strength"])
    with pytest.raises(UserError, match="side of images"):
        OpenAIImageGenerator("m", connection, side=0)
    with pytest.raises(UserError, match="form of an image"):
        OpenAIImageEmbedder("m", connection, form="pixels")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Images must be uint8"):
        OpenAICaptioner("m", connection).caption(np.zeros((1, 3, 8, 8)))  # type: ignore[arg-type]
