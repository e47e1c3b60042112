"""The wall: a private image reaches a model only in this process, on loopback, or where the user named the place.

What is decided here is decided from names, before a socket is opened and before any name is looked up. A model in this
process passes. A model that answers from elsewhere (`Remote`) passes `for_private` if its host is loopback, written as
an address or as `localhost`, or stands in the user's list; every other name counts as far away, wherever it may resolve
to. A remote model that is shown images treats them as private until `for_released` says otherwise, so a method that
forgets the wall gets a refusal and not a leak. Released captions, prompts and images may go anywhere.

*Guarantee:* no request that carries private data leaves for a host that is neither loopback nor named. Such requests
ignore the environment's proxies, follow no redirect, and their answers are kept only in the folder given.
*Does not cover:* what listens on loopback, which may be a tunnel or a gateway (`forwarding` knows a few), and models of
your own that open connections by themselves.
"""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, cast, runtime_checkable
from urllib.parse import urlsplit

from sfumato.errors import PrivacyRefusal, UserError

PORTS = {"http": 80, "https": 443}
HOST = re.compile(r"(?=.{1,253}\Z)([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\Z")
DEEP = 3  # how far a model is searched for others that it holds

OLLAMA_CLOUD = re.compile(r"[:-]cloud\Z")  # tags of models that a local Ollama passes on to ollama.com
HOSTED_ONLY = re.compile(r"(gpt-(?!oss)|chatgpt|o[1-9](-|\Z)|claude|gemini|dall-e|grok-)")  # no local server has these
GATEWAYS = {4000: "LiteLLM"}  # usual ports of programs that pass requests on

M = TypeVar("M")


class PrivacyWarning(UserWarning):
    """Something about privacy that only the user can judge."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers, in one spelling.

    Attributes:
        scheme: http or https.
        host: in lower case; an IPv6 address without brackets.
        port: always a number.
        path: without a slash at the end; may be empty.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """The parts of `url`.

        Raises:
            UserError: not `http[s]://host[:port][/path]`. Names and passwords, queries and fragments are refused too:
                an address is quoted in statements, so it may hold no secret.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        host = (parts.hostname or "").lower()
        plain = parts.scheme in PORTS and "@" not in parts.netloc and not parts.query and not parts.fragment
        spelt = re.fullmatch(r"[/\w.~%+-]*", parts.path, re.ASCII)
        if not (plain and spelt and is_host(host)) or port == 0:
            raise UserError(
                "The address of a model server must be http[s]://host[:port][/path], without user name, password or "
                "query, such as http://127.0.0.1:8000/v1; an API key goes into an environment variable."
            )
        return cls(parts.scheme, host, port or PORTS[parts.scheme], parts.path.rstrip("/"))

    @property
    def netloc(self) -> str:
        """`host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where to connect. `localhost` becomes 127.0.0.1, so that no name service is asked who that is; with https its
        certificate says so.
        """
        plain_localhost = self.host == "localhost" and self.scheme == "http"
        place = f"127.0.0.1:{self.port}" if plain_localhost else self.netloc
        return f"{self.scheme}://{place}{self.path}"

    @property
    def on_loopback(self) -> bool:
        """Whether the host is `localhost`, in 127.0.0.0/8, or ::1, as written; nothing is looked up."""
        if self.host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv4Address):
            return address in ipaddress.IPv4Network("127.0.0.0/8")
        return address == ipaddress.IPv6Address("::1")

    def is_named(self, allowed: Collection[str]) -> bool:
        """Whether one of `allowed` is exactly this host and port; `host` alone means the scheme's usual port."""
        return (self.host, self.port) in {_named(entry, PORTS[self.scheme]) for entry in allowed}


def is_host(text: str) -> bool:
    """Whether `text` is an address or a host name of letters, digits, dots, hyphens and underscores."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return HOST.match(text) is not None
    return "%" not in text


def _named(entry: str, usual: int) -> tuple[str, int]:
    """Host and port of an entry of `--allow-private-to`."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:/@\s]+))(?::(\d{1,5}))?", entry)
    host = (match[1] or match[2]).lower() if match else ""
    if match is None or not is_host(host):
        raise UserError(
            f"{entry!r} is no host; allowed are host, host:port and [IPv6 address]:port, without wildcards."
        )
    return host, int(match[3] or usual)


@runtime_checkable
class Remote(Protocol):
    """A model that answers from elsewhere."""

    @property
    def endpoint(self) -> Endpoint:
        """Where."""

    @property
    def model(self) -> str:
        """Its name there."""

    @property
    def private(self) -> bool:
        """Whether what it is shown is treated as private."""

    def showing(self, *, private: bool, allowed: Collection[str], answers: Path | None) -> Self:
        """The same model, for private data or for released data; `answers` is where those to private data are kept."""


def check(endpoint: Endpoint, allowed: Collection[str], model: str) -> None:
    """Lets private data pass, or not.

    Raises:
        PrivacyRefusal: the endpoint is neither on loopback nor in `allowed`; or the model is one that a local Ollama
            passes on, and `ollama.com` is not in `allowed`.
        UserError: an entry of `allowed` is no host.
    """
    named = endpoint.is_named(allowed)
    if not (endpoint.on_loopback or named):
        raise PrivacyRefusal(
            f"Private images would leave this machine for {endpoint.netloc}, so nothing was sent. Use a model on this "
            f"machine, or, if the place is trusted with them, name it: --allow-private-to {endpoint.netloc}"
        )
    cloud = Endpoint("https", "ollama.com", 443, "")
    if OLLAMA_CLOUD.search(model) and not cloud.is_named(allowed):
        raise PrivacyRefusal(
            f"The model {model} at {endpoint.netloc} is one that Ollama passes on to ollama.com, so nothing was sent. "
            f"Use a model that runs here, or, if that place is trusted with private images, name it: "
            f"--allow-private-to ollama.com"
        )


def forwarding(endpoint: Endpoint, model: str) -> str | None:
    """Why a model on loopback may not run there, in a sentence; None where nothing says so."""
    if not endpoint.on_loopback:
        return None
    reason = None
    if HOSTED_ONLY.match(model.rpartition("/")[2].lower()):
        reason = f"its name is that of a hosted model ({model})"
    elif endpoint.port in GATEWAYS:
        reason = f"port {endpoint.port} is usually {GATEWAYS[endpoint.port]}, a gateway"
    return reason and (
        f"The server on {endpoint.netloc} may pass private images on to a hosted service: {reason}. Make sure that the "
        f"model runs on this machine."
    )


def for_private(model: M, allowed: Collection[str] = (), answers: Path | None = None) -> M:
    """The model, for data that may be private; what a method shows private images to has gone through here.

    Args:
        model: any model; one in this process is returned as it is.
        allowed: hosts that the user trusts with private images, `host[:port]`.
        answers: folder for answers to private data, private as well: of the run, mode 0700, removed when the run is
            done. None keeps none.

    Raises:
        PrivacyRefusal: the model, or one that it holds, answers from a place that is neither loopback nor allowed; or
            it holds one that was not opened for private data.
        UserError: an entry of `allowed` is no host.

    Warns:
        PrivacyWarning: a model on loopback that looks as if it were passed on; a connection without encryption.
    """
    if not isinstance(model, Remote):
        for held in _held(model, DEEP):
            if not held.private:
                raise PrivacyRefusal(
                    f"{type(model).__name__} uses the model {held.model} at {held.endpoint.netloc}, which was not "
                    f"opened for private data; pass that one through the wall first."
                )
            check(held.endpoint, allowed, held.model)
        return model
    check(model.endpoint, allowed, model.model)
    if concern := forwarding(model.endpoint, model.model):
        warnings.warn(concern, PrivacyWarning, stacklevel=2)
    if model.endpoint.scheme == "http" and not model.endpoint.on_loopback:
        warnings.warn(
            f"Private images go to {model.endpoint.netloc} without encryption; prefer https or a tunnel to loopback.",
            PrivacyWarning,
            stacklevel=2,
        )
    return cast(M, model.showing(private=True, allowed=tuple(allowed), answers=answers))


def for_released(model: M) -> M:
    """The model, for data that is public or released already: it may answer from anywhere.

    Whoever calls this vouches for the data. A model in this process is returned as it is.
    """
    return cast(M, model.showing(private=False, allowed=(), answers=None)) if isinstance(model, Remote) else model


def whereabouts(model: object) -> str:
    """Where a model runs, in the words of a privacy statement; a local endpoint may be a tunnel, and is only quoted."""
    if not isinstance(model, Remote):
        places = sorted({whereabouts(held) for held in _held(model, DEEP)})
        return " and ".join(places) or "in this process"
    if model.endpoint.on_loopback:
        return f"local endpoint as configured ({model.endpoint.netloc})"
    return f"remote endpoint {model.endpoint.netloc}"


def _held(model: object, deep: int) -> Iterator[Remote]:
    """Remote models among the attributes of `model`."""
    values: list[Any] = list(getattr(model, "__dict__", {}).values())
    for value in values:
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, type) or item is None:
                continue
            if isinstance(item, Remote):
                yield item
            elif deep > 1 and type(item).__module__.split(".")[0] == type(model).__module__.split(".")[0]:
                yield from _held(item, deep - 1)
