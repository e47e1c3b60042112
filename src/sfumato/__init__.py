"""Sfumato: a folder of private images goes in, a folder of synthetic images with a stated privacy guarantee comes out.

Public names are loaded when first used, so that `sfumato --help` need not wait for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sfumato.api import SPTI, PrivateEvolution, PrivateImages, PrivImage, Spectral, load, release
    from sfumato.data.public import PublicImages
    from sfumato.errors import InternalError, PrivacyRefusal, SfumatoError, UserError

_HOMES = {
    "PrivImage": "sfumato.api",
    "PrivateEvolution": "sfumato.api",
    "PrivateImages": "sfumato.api",
    "PublicImages": "sfumato.data.public",
    "SPTI": "sfumato.api",
    "Spectral": "sfumato.api",
    "load": "sfumato.api",
    "release": "sfumato.api",
    "InternalError": "sfumato.errors",
    "PrivacyRefusal": "sfumato.errors",
    "SfumatoError": "sfumato.errors",
    "UserError": "sfumato.errors",
}

__all__ = [
    "SPTI",
    "InternalError",
    "PrivImage",
    "PrivacyRefusal",
    "PrivateEvolution",
    "PrivateImages",
    "PublicImages",
    "SfumatoError",
    "Spectral",
    "UserError",
    "__version__",
    "load",
    "release",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
