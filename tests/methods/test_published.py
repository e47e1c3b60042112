"""Renyi accounting as the papers do it, against the noise that their code uses."""

from __future__ import annotations

import pytest

from sfumato.errors import UserError
from sfumato.methods.published import renyi_multiplier


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ((1 / 14, 2100, 1.0, 1.666e-6, 50.0), 14.611),  # DPImageBench, Fashion-MNIST
        ((1 / 14, 2100, 1.0, 1.666e-6, None), 14.553),  # the same without a query
        ((1 / 3, 150, 10.0, 1e-5, 484.48), 2.33),  # PrivImage, CIFAR-10
        ((1 / 20, 1000, 5.0, 1e-6, 5300.0), 1.84),  # PrivImage, CelebA 64
    ],
)
def test_published_noise(given: tuple[float, int, float, float, float | None], published: float) -> None:
    assert renyi_multiplier(*given) == pytest.approx(published, rel=3e-3)


def test_what_no_noise_buys_is_refused() -> None:
    with pytest.raises(UserError, match="not met by any noise"):
        renyi_multiplier(1.0, 10_000, 0.001, 1e-9)
