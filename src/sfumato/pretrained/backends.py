"""Any model by one line: `offline:NAME`, `huggingface:NAME` or `openai:MODEL@ADDRESS`.

    open_model("offline:efficientnet-lite0", "image embedder")
    open_model("huggingface:stabilityai/sdxl-turbo", "image generator")
    open_model("openai:Qwen/Qwen2.5-VL-7B-Instruct@http://127.0.0.1:8000/v1", "captioner")

A backend's packages are imported when a model of it is opened. What is shown private images goes through
`wall.for_private` afterwards.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, overload

from sfumato._home import home
from sfumato.errors import UserError
from sfumato.pretrained.interfaces import (
    Captioner,
    ImageEmbedder,
    ImageGenerator,
    ImageSource,
    ImageVariator,
    TextEmbedder,
    TextGenerator,
    Upscaler,
)

Kind = Literal[
    "captioner",
    "chat model",
    "text generator",
    "image generator",
    "image variator",
    "image source",
    "image embedder",
    "text embedder",
    "upscaler",
]

INTERFACES: Mapping[str, type] = {
    "captioner": Captioner,
    "text generator": TextGenerator,
    "image generator": ImageGenerator,
    "image variator": ImageVariator,
    "image source": ImageSource,
    "image embedder": ImageEmbedder,
    "text embedder": TextEmbedder,
    "upscaler": Upscaler,
}

SERVED = {
    "captioner": "OpenAICaptioner",
    "chat model": "OpenAIChat",
    "image generator": "OpenAIImageGenerator",
    "image variator": "OpenAIImageVariator",
    "image embedder": "OpenAIImageEmbedder",
    "text embedder": "OpenAITextEmbedder",
}


@overload
def open_model(spec: str, kind: Literal["captioner"], **options: Any) -> Captioner: ...
@overload
def open_model(spec: str, kind: Literal["text generator"], **options: Any) -> TextGenerator: ...
@overload
def open_model(spec: str, kind: Literal["image generator"], **options: Any) -> ImageGenerator: ...
@overload
def open_model(spec: str, kind: Literal["image variator"], **options: Any) -> ImageVariator: ...
@overload
def open_model(spec: str, kind: Literal["image source"], **options: Any) -> ImageSource: ...
@overload
def open_model(spec: str, kind: Literal["image embedder"], **options: Any) -> ImageEmbedder: ...
@overload
def open_model(spec: str, kind: Literal["text embedder"], **options: Any) -> TextEmbedder: ...
@overload
def open_model(spec: str, kind: Literal["upscaler"], **options: Any) -> Upscaler: ...
@overload
def open_model(spec: str, kind: str, **options: Any) -> Any: ...
def open_model(spec: str, kind: str, **options: Any) -> Any:
    """A model, ready to use.

    Args:
        spec: `offline:NAME`, a pulled model (`sfumato models list`); `huggingface:NAME`, a folder or a name on the hub;
            `openai:MODEL@http[s]://host:port/v1`, a model on an OpenAI-compatible server.
        kind: one of `Kind`. Any chat model is a text generator too, asked with worked examples (`fewshot.py`).
        options: of the backend and kind. For `openai`: those of `Connection` (`key_variable`, `prices`, also as a
            mapping, `spending` or `max_cost`, `answers`, by default a folder in the user's state folder, and more) and
            of the model's class. For a text generator over a chat model also those of `FewShotTexts`. Of
            offline models `clipart` takes some (`fast`, `guidance`, `steps`).

    Raises:
        UserError: no such backend, kind, model or option; a package is missing; the model is of another kind.
    """
    if kind not in get_args(Kind):
        raise UserError(f"There is no kind of model called {kind!r}; allowed are: {', '.join(get_args(Kind))}.")
    backend, _, name = spec.partition(":")
    if backend not in BACKENDS or not name:
        raise UserError(
            f"{backend!r} names no model; allowed are offline:NAME, huggingface:NAME and openai:MODEL@http://host:port/v1."
        )
    return BACKENDS[backend](name, kind, options)


def _offline(name: str, kind: str, options: dict[str, Any]) -> Any:
    from sfumato.pretrained import zoo

    if kind == "text generator" and zoo.entry(name).kind == "language model":
        return _texts(zoo.load(name), options)
    model = zoo.load(name, **options)
    fits = callable(getattr(model, "chat", None)) if kind == "chat model" else isinstance(model, INTERFACES[kind])
    if not fits:
        raise UserError(f"offline:{name} is no {kind} but: {zoo.entry(name).kind}; see: sfumato models list")
    return model


def _huggingface(name: str, kind: str, options: dict[str, Any]) -> Any:
    from sfumato.pretrained import huggingface

    if kind == "text generator":
        own = _taken(options, _text_options())
        return _texts(huggingface.load(name, "chat model", **options), own)
    return huggingface.load(name, kind, **options)


def _openai(name: str, kind: str, options: dict[str, Any]) -> Any:
    if importlib.util.find_spec("httpx2") is None:
        raise UserError("Models on servers need the package httpx2; run: pip install 'sfumato[openai]'")
    from sfumato.pretrained import openai

    parts = re.fullmatch(r"(.+?)@(https?://.+)", name)
    if parts is None:
        raise UserError("A model on a server is written openai:MODEL@http://host:port/v1.")
    model, url = parts.groups()
    if kind == "text generator":
        own = _taken(options, _text_options())
        return _texts(_openai(name, "chat model", options), own)
    if kind not in SERVED:
        raise UserError(f"The OpenAI interface has no {kind}; it has: {', '.join(SERVED)}, text generator.")
    of_connection = {field.name for field in fields(openai.Connection)} - {"url"} | {"max_cost"}
    settings = _taken(options, of_connection)
    build: Callable[..., Any] = getattr(openai, SERVED[kind])
    of_model = set(inspect.signature(build).parameters) - {"model", "connection"}
    if unknown := options.keys() - of_model:
        raise UserError(
            f"A {kind} on a server takes no option {', '.join(sorted(unknown))}; it takes: "
            f"{', '.join(sorted(of_model | of_connection))}."
        )
    return build(model, openai.Connection(url, **_plain(settings)), **options)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a connection from what a file of settings can hold: numbers, texts and mappings."""
    from sfumato.pretrained.openai import Prices, Spending

    answers = settings.get("answers", default_answers())
    settings["answers"] = Path(answers) if isinstance(answers, str) else answers
    if isinstance(prices := settings.get("prices"), Mapping):
        known = [field.name for field in fields(Prices)]
        if unknown := prices.keys() - set(known):
            raise UserError(f"There is no price of {', '.join(sorted(unknown))}; there are: {', '.join(known)}.")
        settings["prices"] = Prices(**prices)
    if (cap := settings.pop("max_cost", None)) is not None:
        if "spending" in settings:
            raise UserError("Give max_cost, or spending with a cap of its own, not both.")
        settings["spending"] = Spending(cap)
    return settings


def default_answers() -> Path:
    """Where answers of servers to public and released data are kept: `answers` in the user's state folder."""
    return home() / "answers"


def _texts(chat: Any, options: dict[str, Any]) -> Any:
    """A text generator over a chat model."""
    from sfumato.pretrained.fewshot import FewShotTexts

    if unknown := options.keys() - _text_options():
        raise UserError(
            f"A text generator takes no option {', '.join(sorted(unknown))}; it takes: "
            f"{', '.join(sorted(_text_options()))}."
        )
    return FewShotTexts(chat, **options)


def _text_options() -> set[str]:
    from sfumato.pretrained.fewshot import FewShotTexts

    return set(inspect.signature(FewShotTexts).parameters) - {"chat"}


def _taken(options: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Takes those of `names` out of the options."""
    return {name: options.pop(name) for name in list(options) if name in names}


BACKENDS: Mapping[str, Callable[[str, str, dict[str, Any]], Any]] = {
    "offline": _offline,
    "huggingface": _huggingface,
    "openai": _openai,
}
