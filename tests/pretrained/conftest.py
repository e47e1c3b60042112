"""Models for the tests: pulled once into the user's own folder by the product itself, then used without a network."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
import torch

from sfumato._home import home
from sfumato.pretrained import zoo
from sfumato.pretrained.efficientnet import EfficientNet
from sfumato.pretrained.inception import Inception
from sfumato.pretrained.interfaces import Images
from sfumato.pretrained.minilm import MiniLM
from sfumato.pretrained.portraits import Portraits
from sfumato.pretrained.realesrgan import RealESRGAN
from sfumato.pretrained.smollm import SmolLM2

HOME = home()  # before every test is given a home of its own


def cut_network(patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    patch.setattr(socket.socket, "connect", refuse)
    patch.setattr(socket, "getaddrinfo", refuse)


def loaded(name: str) -> Any:
    """A model of the zoo, pulled if need be, loaded with the network cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_HOME", str(HOME))
        zoo.pull([name])
        cut_network(patch)
        return zoo.load(name)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_network(monkeypatch)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def efficientnet() -> EfficientNet:
    return loaded("efficientnet-lite0")


@pytest.fixture(scope="session")
def efficientnet_lite2() -> EfficientNet:
    return loaded("efficientnet-lite2")


@pytest.fixture(scope="session")
def inception() -> Inception:
    return loaded("inception-nsfwjs")


@pytest.fixture(scope="session")
def minilm() -> MiniLM:
    return loaded("minilm")


@pytest.fixture(scope="session", params=["realesrgan-x4plus", "realesrgan-x4plus-anime", "realesrgan-animevideo-x4"])
def upscaler(request: pytest.FixtureRequest) -> RealESRGAN:
    return loaded(request.param)


@pytest.fixture(scope="session")
def portraits() -> Portraits:
    return loaded("portraits")


@pytest.fixture(scope="session")
def smollm() -> SmolLM2:
    return loaded("smollm2")


@pytest.fixture(scope="session")
def picture() -> Images:
    """A deterministic colour picture, `(1, 3, 96, 96)`, for values that other code computed."""
    y, x = np.mgrid[0:96, 0:96]
    return np.stack([x * x + 3 * y, x * y // 7, 5 * x + y * y // 3])[None].astype(np.uint8)
