"""A model's files on disk: found in a folder or downloaded from the hub, chosen, and known by their hash.

Everything is loaded from a folder, in one way: what comes from the hub is brought into the hub's cache first, at one
commit. Only safetensors and text are read. Pickled weights can run code when they are opened, and are never downloaded.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sfumato._files import sha256_file
from sfumato.errors import UserError
from sfumato.pretrained.interfaces import Identity

INDEX = "model_index.json"
CARD = "README.md"
TEXT = (".json", ".txt", ".model", ".jinja")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl", ".onnx")
WEIGHTS = re.compile(
    r"(diffusion_pytorch_)?model(?P<variant>\.fp16)?(-\d{5}-of-\d{5})?(?P<legacy>\.fp16)?\.safetensors"
)
EXTRAS = ("additional_chat_templates", "1_Pooling")  # sub-folders that a transformers model may have


@dataclass(frozen=True)
class Snapshot:
    """A model on disk.

    Attributes:
        folder: where it is.
        files: what is read of it, relative to the folder, sorted.
        variant: the set of weights, `fp16` or None, as the libraries call it.
        identity: which model it is; its hash is of the list of `files` with their SHA-256, as `sha256sum` prints it.
    """

    folder: Path
    files: tuple[str, ...]
    variant: str | None
    identity: Identity

    def json(self, file: str) -> dict[str, Any]:
        """A JSON file of the model; empty if there is none."""
        return json.loads((self.folder / file).read_text()) if file in self.files else {}

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained`: no network, no pickle, no code from the model."""
        return {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False, "variant": self.variant}


def library(name: str) -> Any:
    """A package of the extra `huggingface`, quiet and without telemetry.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if name == "diffusers":  # it imports the other one, which is to be quiet by then
        library("transformers")
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"Models from Hugging Face need the package {error.name}; run: pip install 'sfumato[huggingface]'"
        ) from error
    if name in ("transformers", "diffusers"):
        logging = importlib.import_module(f"{name}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    return package


def find(name: str, revision: str | None, half: bool) -> Snapshot:
    """Finds a model, downloading what is not there yet.

    Args:
        name: a folder, or a name on the hub.
        revision: branch, tag or commit on the hub; None is its main branch.
        half: prefer weights stored in half precision, which are half as large.

    Raises:
        UserError: it is not there, cannot be reached, or has no weights in safetensors.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"A revision ({revision}) was given for the folder {name}; only names on the hub have one.")
        held = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        index = json.loads((folder / INDEX).read_text()) if INDEX in held else None
        commit = folder.resolve().name if folder.resolve().parent.name == "snapshots" else "local"
        return _known(folder, held, index, half, name, (folder.resolve().name, commit, "a local folder"))
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or folder.exists():
        raise UserError(f"There is no folder {name}; give a folder as save_pretrained writes it, or a name on the hub.")
    return _from_hub(name, revision, half)


def choose(files: Iterable[str], index: dict[str, Any] | None, half: bool, name: str) -> tuple[list[str], str | None]:
    """The files of a model that are read, sorted, and the variant of its weights.

    Args:
        files: all that there are, with `/` between folders.
        index: `model_index.json` of a pipeline of several models; None for one model.
        half: whether weights in half precision are preferred.
        name: of the model, for messages.

    Raises:
        UserError: weights are missing, or are there only in forms that can run code.
    """
    groups: dict[str, list[str]] = {}
    for file in files:
        folder, _, base = file.rpartition("/")
        groups.setdefault(folder, []).append(base)
    if index is None:
        read = ["", *EXTRAS]
    else:
        read = ["", *(part for part, kind in index.items() if isinstance(kind, list) and kind[0] is not None)]
    weights: dict[str, tuple[list[str], list[str]]] = {}
    for folder in read if index is None else read[1:]:
        matches = [(base, WEIGHTS.fullmatch(base)) for base in groups.get(folder, [])]
        small = [base for base, match in matches if match and (match["variant"] or match["legacy"])]
        plain = [base for base, match in matches if match and base not in small]
        if small or plain:
            weights[folder] = small, plain
        elif any(base.endswith(PICKLED) for base, _ in matches):
            raise UserError(
                f"{name} holds weights only in a form that may run code when it is opened ({folder or 'top folder'}); "
                "only safetensors are read. Choose another revision or model, or convert it on a machine apart."
            )
    if not weights:
        raise UserError(f"{name} holds no weights (model.safetensors or diffusion_pytorch_model.safetensors).")
    variant = (half and any(small for small, _ in weights.values())) or any(not plain for _, plain in weights.values())
    chosen = [
        f"{folder}/{base}" if folder else base
        for folder in read
        for base in groups.get(folder, [])
        if base.endswith(TEXT) or base in _preferred(weights.get(folder, ([], [])), variant)
    ]
    return sorted(chosen), "fp16" if variant else None


def _preferred(weights: tuple[list[str], list[str]], variant: bool) -> list[str]:
    small, plain = weights
    return small if variant and small else plain


def _known(
    folder: Path, held: Iterable[str], index: dict[str, Any] | None, half: bool, name: str, told: tuple[str, str, str]
) -> Snapshot:
    files, variant = choose(held, index, half, name)
    sums = "".join(f"{sha256_file(folder / file)}  {file}\n" for file in files)
    called, revision, source = told
    identity = Identity(called, revision, hashlib.sha256(sums.encode()).hexdigest(), _licence(folder / CARD), source)
    return Snapshot(folder, tuple(files), variant, identity)


def _licence(card: Path) -> str:
    """As the model card states it in its first lines of YAML."""
    try:
        front = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text(), re.DOTALL)
        facts = yaml.safe_load(front[1]) if front else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        facts = None
    facts = facts if isinstance(facts, dict) else {}
    stated = facts.get("license_name") if facts.get("license") == "other" else facts.get("license")
    return str(stated) if stated else "not stated"


def _from_hub(name: str, revision: str | None, half: bool) -> Snapshot:
    hub = library("huggingface_hub")
    errors = importlib.import_module("huggingface_hub.errors")
    advice = f"give a folder, or download it first with: hf download {name}"
    try:
        info = hub.HfApi().model_info(name, revision=revision)
    except errors.GatedRepoError as error:
        raise UserError(
            f"The hub gives {name} only to those who accepted its terms: do so, then: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision} on the hub.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{name} is neither a folder here nor a model on the hub that you may read; check its spelling, or run: "
            "hf auth login"
        ) from error
    except (OSError, errors.HTTPError) as error:  # offline, or no connection: what an earlier download left will do
        try:
            folder = Path(hub.snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[INDEX]))
        except (OSError, ValueError):
            raise UserError(f"{name} is not on this machine and the hub cannot be reached; {advice}") from error
        held = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        index = json.loads((folder / INDEX).read_text()) if INDEX in held else None
        return _known(folder, held, index, half, name, (name, folder.name, "Hugging Face Hub"))
    held = [sibling.rfilename for sibling in info.siblings]
    try:
        index = None
        if INDEX in held:
            index = json.loads(Path(hub.hf_hub_download(name, INDEX, revision=info.sha)).read_text())
        files, _ = choose(held, index, half, name)
        patterns = [*files, *([CARD] if CARD in held else [])]
        folder = Path(hub.snapshot_download(name, revision=info.sha, allow_patterns=patterns))
    except (OSError, errors.HTTPError) as error:
        raise UserError(
            f"{name} could not be downloaded from the hub ({type(error).__name__}); try again, or {advice}"
        ) from error
    return _known(folder, files, index, half, name, (name, info.sha, "Hugging Face Hub"))


@contextmanager
def reading(snapshot: Snapshot, kind: str) -> Iterator[None]:
    """Turns what the libraries raise for a folder that they cannot load into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{snapshot.identity.name} cannot be loaded as {with_article(kind)}: {reason}") from error


def loaded(build: Callable[..., Any], snapshot: Snapshot, kind: str, **settings: Any) -> Any:
    """A model of `transformers`, all of whose weights were there: a missing one would be drawn at random."""
    with reading(snapshot, kind):
        model, facts = build(snapshot.folder, output_loading_info=True, **snapshot.loading, **settings)
    missing = sorted(facts["missing_keys"])
    if missing and all("pooler" in key for key in missing) and "add_pooling_layer" not in settings:
        # DINO's first version and some sentence encoders never had this layer.
        return loaded(build, snapshot, kind, add_pooling_layer=False, **settings)
    if missing:
        raise UserError(
            f"{snapshot.identity.name} cannot be used as {with_article(kind)}: it has no weights for "
            f"{', '.join(missing[:3])}."
        )
    return model.eval().requires_grad_(False)


def with_article(kind: str) -> str:
    """`a captioner`, `an upscaler`."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
