"""The released model: saved and loaded it draws the same pictures; mixing takes the share that is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.hardware import Hardware
from sfumato.methods import privimage_model
from sfumato.methods.denoising import Shape, draw_pictures, network_of
from sfumato.methods.labelcheck import LabelCheck
from sfumato.methods.privimage_model import PrivImageModel, guides_of, model_name
from sfumato.methods.prototypes import Prototypes
from sfumato.nets.ddpmpp import DDPMppShape
from sfumato.nets.diffusion import Sampler
from sfumato.nets.scattering import ScatteringClassifier
from sfumato.nets.unet import UNetShape

CPU = Hardware(torch.device("cpu"), "fp32")
PROTOTYPES = Prototypes(
    means=torch.linspace(-0.5, 0.5, 2 * 64).view(2, 1, 8, 8),
    factors=torch.zeros(2, 3, 1, 8, 8),
    counts=torch.tensor([30.0, 70.0]),
)
GUIDED, PUBLISHED = UNetShape(4, 4, 2, (8, 8), (2, 1)), DDPMppShape(1, 8, 2, 8, (1, 2), (4,), 1)


def model(shape: Shape, prototypes: Prototypes | None, mixed: float = 0.0) -> PrivImageModel:
    return PrivImageModel(network_of(shape, 3), (1, 8, 8), prototypes, None, Sampler(steps=4), mixed, not_private=False)


@pytest.mark.parametrize(("shape", "prototypes"), [(GUIDED, PROTOTYPES), (PUBLISHED, None), (PUBLISHED, PROTOTYPES)])
def test_saved_and_loaded_it_draws_the_same(shape: Shape, prototypes: Prototypes | None, tmp_path: Path) -> None:
    one, labels = model(shape, prototypes, mixed=0.5 if prototypes else 0.0), torch.arange(12) % 2
    one.save(tmp_path)
    other = PrivImageModel.load(tmp_path, False, shape)
    pictures = torch.cat(list(one.sample(labels, 5, CPU, batch=5)))
    assert pictures.shape == (12, 1, 8, 8)
    assert pictures.dtype == torch.uint8
    assert torch.equal(pictures, torch.cat(list(other.sample(labels, 5, CPU, batch=5))))
    assert not torch.equal(pictures, torch.cat(list(other.sample(labels, 6, CPU, batch=5))))


def test_cut_off_it_goes_on_with_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a label check and with pictures of the class models, which draw from the same stream of chance."""
    check = LabelCheck(ScatteringClassifier((1, 8, 8), 2).requires_grad_(False), tries=3)
    torch.nn.init.normal_(check.classifier.head.weight, generator=torch.Generator().manual_seed(0))
    one, labels, calls = replace(model(GUIDED, PROTOTYPES, 0.5), check=check), torch.arange(30) % 2, []

    def counted(*given: Any) -> torch.Tensor:
        calls.append(given)
        return draw_pictures(*given)

    monkeypatch.setattr(privimage_model, "draw_pictures", counted)
    whole = torch.cat(list(one.sample(labels, 5, CPU, batch=5)))
    needed = len(calls)
    begun = one.sample(labels, 5, CPU, batch=5, keep=tmp_path / "drawn")
    for _ in range(3):
        next(begun)
    assert torch.equal(torch.cat(list(one.sample(labels, 5, CPU, batch=5, keep=tmp_path / "drawn"))), whole)
    assert len(calls) == 2 * needed > 2 * len(labels) / 5


def test_a_share_of_the_pictures_comes_from_the_class_models() -> None:
    """These class models have no spread, so their pictures are the class means themselves."""
    labels = torch.arange(400) % 2
    drawn = torch.cat(list(model(GUIDED, PROTOTYPES, mixed=0.3).sample(labels, 0, CPU)))
    means = ((PROTOTYPES.means + 1) * 127.5).round().to(torch.uint8)[labels]
    share = (drawn == means).flatten(1).all(1).float()
    assert float(share.mean()) == pytest.approx(0.3, abs=0.07)
    assert float(share[labels == 0].mean()) == pytest.approx(float(share[labels == 1].mean()), abs=0.12)


def test_test_noise_shows_in_the_name(tmp_path: Path) -> None:
    replace(model(PUBLISHED, None), not_private=True).save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [model_name(True)] == ["model-NOT-PRIVATE.safetensors"]


def test_only_guided_networks_see_class_means() -> None:
    assert guides_of(PROTOTYPES, PUBLISHED) is None
    assert guides_of(None, GUIDED) is None
    guides = guides_of(PROTOTYPES, GUIDED)
    assert guides is not None
    assert guides.shape == (2, 4, 4, 4)
