"""Models behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama and others here, or a hosted service.

The interface is that of OpenAI's API reference: chat/completions (with images as base64 data addresses),
images/generations, images/edits, embeddings. One request an item, so that an item's answer is its own and is kept on
its own (`_service.py`, `_answers.py`). What is shown to a captioner, an image embedder or a variator counts as private
until `wall.for_released` says otherwise: it goes nowhere but to loopback, one item at a time, and its answers are not
kept unless `wall.for_private` names a folder.

A service may change a model behind its name, which no checksum shows; the identities say no more than they can.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sfumato.errors import UserError
from sfumato.pretrained._connection import Connection, Failure, Request, ServiceError
from sfumato.pretrained._networks import check_images
from sfumato.pretrained._remote import TERMS, RemoteModel
from sfumato.pretrained._spending import CostCapReached, Prices, Spending, Usage, Work
from sfumato.pretrained._wire import as_vector, data_url, image_of, pixels, png, text_of, vector_of
from sfumato.pretrained.interfaces import Embeddings, Images
from sfumato.pretrained.renders import GREY, Renders

if TYPE_CHECKING:
    from sfumato.pretrained.smollm import Message

__all__ = [
    "Connection",
    "CostCapReached",
    "OpenAICaptioner",
    "OpenAIChat",
    "OpenAIImageEmbedder",
    "OpenAIImageGenerator",
    "OpenAIImageVariator",
    "OpenAITextEmbedder",
    "Prices",
    "ServiceError",
    "Spending",
    "Usage",
]

SEEDS = 2**31  # what every server can take
CAPTION = "Describe this image in one plain sentence: what it shows, in which style and colours. Answer with it alone."
VARIATION = "Another picture of the same kind."
DEGREES = ("almost as it is", "changed a little", "changed much", "made anew, keeping only the subject")


class OpenAIChat(RemoteModel):
    """Answers conversations; stands where `SmolLM2` can."""

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        seed: int,
        max_tokens: int = 64,
        temperature: float = 0.8,
    ) -> list[str]:
        """The model's answer to each conversation.

        Args:
            conversations: turns, the last of them the user's.
            seed: of public randomness; the n-th conversation is asked with `seed + n`.
            max_tokens: where an answer is cut off.
            temperature: 0 takes the likeliest word every time.

        Returns:
            As many texts; an empty one where the model refused or gave no usable answer (`spending.usage` counts them).

        Raises:
            UserError: a conversation is empty; the server fails or rejects the request; the cost cap.
        """
        for number, conversation in enumerate(conversations):
            if not conversation:
                raise UserError(f"Conversation {number} is empty; give at least one message.")

        def request(number: int) -> Request:
            own = (seed + number) % SEEDS
            messages = [dict(message) for message in conversations[number]]
            asked = sum(len(str(message["content"]).encode()) for message in messages)
            body = {"messages": messages, "seed": own, "max_tokens": max_tokens, "temperature": temperature}
            return Request("chat/completions", body, draw=own, most=self._most(asked, max_tokens))

        return [_text(answer) for answer in self._ask(len(conversations), request, text_of)]


class OpenAICaptioner(RemoteModel):
    """A `Captioner`: a chat model that is shown one image.

    Args:
        model, connection, licence: as for all.
        prompt: what is asked about each image; public.
        max_tokens: where a caption is cut off.
        least_side: smaller images are enlarged to this many pixels, since vision models refuse tiny ones.
    """

    shows_images = True

    def __init__(
        self,
        model: str,
        connection: Connection,
        licence: str = TERMS,
        prompt: str = CAPTION,
        max_tokens: int = 128,
        least_side: int = 224,
    ) -> None:
        super().__init__(model, connection, licence)
        self.prompt, self.max_tokens, self.least_side = prompt, max_tokens, least_side

    def caption(self, images: Images) -> list[str]:
        """One caption an image, on one line; what is asked about an image depends on nothing else.

        Args:
            images: uint8 `(N, 1 or 3, H, W)`.

        Returns:
            As many texts; an empty one where the model refused or gave no usable answer.

        Raises:
            PrivacyRefusal: the images count as private and the server is elsewhere.
            UserError: not such images; the server fails or rejects everything; the cost cap.
        """
        check_images(images, (1, 3))

        def request(image: Images) -> Request:
            picture = {"type": "image_url", "image_url": {"url": data_url(png(image, self.least_side))}}
            content = [{"type": "text", "text": self.prompt}, picture]
            messages = [{"role": "user", "content": content}]
            body = {"messages": messages, "seed": 0, "max_tokens": self.max_tokens, "temperature": 0}
            most = self._most(len(self.prompt.encode()), self.max_tokens, images=1)
            return Request("chat/completions", body, most=most)

        probe = request(_grey(images.shape[2], images.shape[3]))
        answers = self._ask(len(images), lambda number: request(images[number]), text_of, probe)
        return [" ".join(_text(answer).split()) for answer in answers]


class OpenAIImageGenerator(RemoteModel):
    """An `ImageGenerator` through images/generations.

    Args:
        model, connection, licence: as for all.
        side: of the square images that are kept; answers of another size are cut to their middle square and resized.
        size: what the server is asked for; by default `side` x `side`.
        sends: fields beyond OpenAI's own that this server knows: "seed". Without a seed, images are new draws each
            time, apart from those that are kept on disk.
    """

    fields: ClassVar[Collection[str]] = ("seed",)

    def __init__(
        self,
        model: str,
        connection: Connection,
        licence: str = TERMS,
        side: int = 1024,
        size: str | None = None,
        sends: Collection[str] = (),
    ) -> None:
        super().__init__(model, connection, licence)
        if side < 1:
            raise UserError(f"The side of images is {side}; it must be at least 1 pixel.")
        if unknown := set(sends) - set(self.fields):
            raise UserError(f"There is no field {', '.join(sorted(unknown))} to send; allowed are {list(self.fields)}.")
        self.side, self.size, self.sends = side, size or f"{side}x{side}", frozenset(sends)

    def generate(self, texts: Sequence[str], seed: int) -> Images:
        """One RGB image a text, uint8 `(N, 3, side, side)`; the n-th is drawn with `seed + n`.

        Raises:
            ServiceError: the server fails, or made not all of them; `try_generate` goes on without those.
            CostCapReached: the cap.
        """
        return _all(self.try_generate(texts, seed))

    def try_generate(self, texts: Sequence[str], seed: int) -> Renders:
        """As `generate`; an image that was refused, or failed again and again, is marked and left grey."""

        def request(number: int) -> Request:
            own = (seed + number) % SEEDS
            body: dict[str, Any] = {"prompt": texts[number], "n": 1, "size": self.size}
            if "seed" in self.sends:
                body["seed"] = own
            return Request("images/generations", body, draw=own, most=self._most_made(texts[number]))

        answers = self._ask(len(texts), request, lambda response: image_of(response, self._service.fetch))
        return _renders(answers, self.side)

    def _most_made(self, text: str) -> Work:
        return replace(self._most(len(text.encode()), images=1), images=1)


class OpenAIImageVariator(OpenAIImageGenerator):
    """An `ImageVariator` through images/edits.

    The interface has no strength, so it is said in words: "almost as it is" to "made anew". A server that knows the
    field gets the number (`sends=("seed", "strength")`).
    """

    shows_images = True
    fields: ClassVar[Collection[str]] = ("seed", "strength")

    def vary_images(self, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None) -> Images:
        """One image near each given one, uint8 `(N, 3, side, side)`.

        Args:
            images: uint8 `(N, 1 or 3, H, W)`; released or public ones (`wall.for_released`).
            seed: the n-th is drawn with `seed + n`.
            strength: in (0, 1]; 1 keeps next to nothing.
            texts: what each is to show.

        Raises:
            ServiceError: the server fails, or made not all of them; `try_vary_images` goes on without those.
            PrivacyRefusal: the images count as private and the server is elsewhere.
            UserError: a strength out of range; not such images; not as many texts.
        """
        return _all(self.try_vary_images(images, seed, strength, texts))

    def try_vary_images(
        self, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None
    ) -> Renders:
        """As `vary_images`; an image that was refused, or failed again and again, is marked and left grey."""
        check_images(images, (1, 3))
        if not 0 < strength <= 1:
            raise UserError(f"The strength is {strength}; it must be above 0 and at most 1.")
        if texts is not None and len(texts) != len(images):
            raise UserError(f"Give one text an image: {len(images)} images, {len(texts)} texts.")

        def request(number: int) -> Request:
            own = (seed + number) % SEEDS
            prompt = texts[number] if texts is not None else VARIATION
            body: dict[str, Any] = {"prompt": prompt, "n": 1, "size": self.size}
            if "strength" in self.sends:
                body["strength"] = strength
            else:
                degree = DEGREES[min(int(strength * len(DEGREES)), len(DEGREES) - 1)]
                body["prompt"] = f"{prompt.rstrip('.')}. The picture is to be {degree}."
            if "seed" in self.sends:
                body["seed"] = own
            files = {"image": png(images[number])}
            return Request("images/edits", body, files, draw=own, most=self._most_made(body["prompt"]))

        answers = self._ask(len(images), request, lambda response: image_of(response, self._service.fetch))
        return _renders(answers, self.side)


class _Embedder(RemoteModel, ABC):
    """Vectors through embeddings."""

    @cached_property
    def dimensions(self) -> int:
        """Length of an embedding; asked of the server once, with a public item."""
        (answer,) = self._ask(1, lambda _: self._probe(), vector_of)
        if isinstance(answer, Failure):
            raise ServiceError(f"{self.endpoint.url} gives no usable embedding; check that {self.model} is for this.")
        return len(as_vector(answer))

    @abstractmethod
    def _probe(self) -> Request:
        """A request that shows a public item."""

    def _vectors(self, count: int, request: Callable[[int], Request]) -> Embeddings:
        """`(count, dimensions)`; a row of NaN where a private item got no answer.

        Raises:
            ServiceError: a released item got no answer, or answers differ in length.
        """
        answers = self._ask(count, request, vector_of, self._probe())
        vectors = [as_vector(answer) for answer in answers if isinstance(answer, bytes)]
        lengths = {len(vector) for vector in vectors} or {self.dimensions}
        if len(lengths) != 1:
            raise ServiceError(f"{self.endpoint.url} gave embeddings of different lengths; check the model's name.")
        if len(vectors) < count and not self.private:
            raise ServiceError(
                f"{self.endpoint.url} gave no usable embedding for {count - len(vectors)} of {count} items; those that "
                f"it gave are kept."
            )
        rows = np.full((count, lengths.pop()), np.nan, np.float32)
        rows[[isinstance(answer, bytes) for answer in answers]] = np.stack(vectors) if vectors else 0
        return rows


class OpenAITextEmbedder(_Embedder):
    """A `TextEmbedder`."""

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeds `N` texts as `(N, dimensions)`, each of length 1; what is too long the server cuts off or rejects.

        Texts that may be private (captions of private images) need `wall.for_private`; then a text without an answer is
        a row of NaN, a null contribution.
        """
        if not texts:
            return np.empty((0, self.dimensions), np.float32)
        vectors = self._vectors(len(texts), lambda number: self._request(texts[number]))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)

    def _probe(self) -> Request:
        return self._request("a picture")

    def _request(self, text: str) -> Request:
        return Request("embeddings", {"input": text}, most=self._most(len(text.encode())))


class OpenAIImageEmbedder(_Embedder):
    """An `ImageEmbedder`, where the server offers one: OpenAI's interface has none, others extend it.

    Args:
        model, connection, licence: as for all.
        form: "messages", a conversation with an image, as vLLM takes it; "input", the image's data address in the place
            of a text.
        least_side: smaller images are enlarged to this many pixels.
    """

    shows_images = True

    def __init__(
        self,
        model: str,
        connection: Connection,
        licence: str = TERMS,
        form: Literal["messages", "input"] = "messages",
        least_side: int = 224,
    ) -> None:
        super().__init__(model, connection, licence)
        if form not in ("messages", "input"):
            raise UserError(f"The form of an image is {form!r}; allowed are 'messages' and 'input'.")
        self.form, self.least_side = form, least_side

    def embed_images(self, images: Images) -> Embeddings:
        """Embeds `(N, 1 or 3, H, W)` as `(N, dimensions)`; a private image without an answer is a row of NaN."""
        check_images(images, (1, 3))
        if not len(images):
            return np.empty((0, self.dimensions), np.float32)
        return self._vectors(len(images), lambda number: self._request(images[number]))

    def _probe(self) -> Request:
        return self._request(_grey(self.least_side, self.least_side))

    def _request(self, image: Images) -> Request:
        address = data_url(png(image, self.least_side))
        most = self._most(0, images=1)
        if self.form == "input":
            return Request("embeddings", {"input": [address]}, most=most)
        content = [{"type": "image_url", "image_url": {"url": address}}]
        return Request("embeddings", {"messages": [{"role": "user", "content": content}]}, most=most)


def _grey(height: int, width: int) -> Images:
    """A public picture, `(3, H, W)`."""
    return np.full((3, height, width), GREY, np.uint8)


def _text(answer: bytes | Failure) -> str:
    return "" if isinstance(answer, Failure) else answer.decode()


def _renders(answers: Sequence[bytes | Failure], side: int) -> Renders:
    images = np.full((len(answers), 3, side, side), GREY, np.uint8)
    made = np.array([isinstance(answer, bytes) for answer in answers], bool)
    for place, answer in zip(images, answers, strict=True):
        if isinstance(answer, bytes):
            place[:] = pixels(answer, side)
    return Renders(images, made)


def _all(renders: Renders) -> Images:
    if missing := int((~renders.made).sum()):
        raise ServiceError(
            f"{missing} of {len(renders.made)} images were refused or failed; the others are kept. Ask with "
            f"try_generate or try_vary_images to go on without them."
        )
    return renders.images
