"""What a run of PrivImage makes, and how it draws pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sfumato._files import write_atomic
from sfumato.hardware import Hardware
from sfumato.methods.denoising import Image, Network, Shape, View, draw_pictures, network_of
from sfumato.methods.labelcheck import LabelCheck
from sfumato.methods.parts import Parts
from sfumato.methods.prototypes import Prototypes
from sfumato.nets.diffusion import Sampler


@dataclass(frozen=True)
class PrivImageModel:
    """The averaged network, the class models that it draws around, and what checks the pictures.

    Attributes:
        network: averaged weights.
        image: `(C, H, W)` of the pictures.
        prototypes: class means and factors; None where there was no warm start.
        check: of the classes that pictures show; None where there was none.
        sampler: how pictures are drawn.
        mixed: share of the pictures that the class models draw themselves.
        not_private: the weights come from a run with test noise.
    """

    network: Network
    image: Image
    prototypes: Prototypes | None
    check: LabelCheck | None
    sampler: Sampler
    mixed: float
    not_private: bool

    def sample(
        self, labels: Tensor, seed: int, hardware: Hardware, batch: int = 500, keep: Path | None = None
    ) -> Iterator[Tensor]:
        """Yields uint8 pictures `(<= batch, C, H, W)` for labels `(N,)`; free, and as many as wanted.

        What is drawn is kept in the folder `keep`, if there is one, and not drawn again when this is called again.
        """
        generator = torch.Generator().manual_seed(seed)
        parts = Parts(keep, generator)
        network, guides = self.network.to(hardware.device), guides_of(self.prototypes, self.network.shape)
        if guides is not None:
            guides = guides.to(hardware.device, memory_format=torch.channels_last)

        def draw(part: Tensor) -> Tensor:
            pictures = draw_pictures(network, self.image, guides, part, generator, self.sampler, hardware).cpu()
            if self.mixed and self.prototypes is not None:
                blurred = torch.rand(len(part), generator=generator) < self.mixed
                classes = torch.where(part < 0, 0, part)
                pictures = torch.where(
                    blurred[:, None, None, None], self.prototypes.sample(classes, generator), pictures
                )
            return ((pictures + 1) * 127.5).round().to(torch.uint8)

        def drawn(part: Tensor) -> Tensor:
            return parts.next(len(part), lambda: draw(part))

        sorter = self.check.sorter() if self.check is not None else None
        for part in torch.split(labels, batch):
            yield drawn(part) if sorter is None else sorter.fill(part, drawn)

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors`; a run with test noise is NOT PRIVATE in name and metadata."""
        state = {f"network.{name}": value.contiguous() for name, value in self.network.state_dict().items()}
        if self.prototypes is not None:
            state |= {f"prototypes.{name}": value for name, value in self.prototypes.state().items()}
        if self.check is not None:
            state |= {f"check.{name}": value for name, value in self.check.state().items()}
        facts = {
            "shape": json.dumps(self.network.shape),
            "image": json.dumps(self.image),
            "sampler": json.dumps(self.sampler._asdict()),
            "mixed": json.dumps(self.mixed),
            "tries": json.dumps(self.check.tries if self.check else 1),
        }
        if self.not_private:
            facts["privacy"] = "NOT PRIVATE"
        write_atomic(folder / model_name(self.not_private), save(state, facts), mode=0o600)

    @classmethod
    def load(cls, folder: Path, not_private: bool, shape: Shape) -> PrivImageModel:
        """Reads what `save` wrote."""
        file = folder / model_name(not_private)
        with safe_open(file, "pt") as opened:
            facts = {name: json.loads(text) for name, text in opened.metadata().items() if name != "privacy"}
        state = load_file(file)

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        network = network_of(shape, 0)
        network.load_state_dict(part("network."))
        known, checked = part("prototypes."), part("check.")
        image = (facts["image"][0], facts["image"][1], facts["image"][2])
        return cls(
            network.requires_grad_(False),
            image,
            Prototypes(**known) if known else None,
            LabelCheck.of(image, checked, facts["tries"]) if checked else None,
            Sampler(**facts["sampler"]),
            facts["mixed"],
            not_private,
        )


def guides_of(prototypes: Prototypes | None, shape: Shape) -> Tensor | None:
    """The class means as the network sees them, or None for one that is not guided."""
    view = View.of(shape)
    return view.encode(prototypes.means) if view.guided and prototypes is not None else None


def model_name(not_private: bool) -> str:
    """The name of the model's file."""
    return stamped("model.safetensors", not_private)


def stamped(name: str, not_private: bool) -> str:
    """The name of a file; what comes from test noise says so."""
    return name.replace(".", "-NOT-PRIVATE.") if not_private else name
