"""Clipped gradient sums: bounded for every record, blind to broken ones, and no record moves another's share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.nets.diffusion import Denoiser
from sfumato.nets.transformer import GPT, TransformerShape
from sfumato.privacy.gradients import engine, kernels
from sfumato.privacy.gradients.engine import ClippedGradients, Clipping, groupable, rounding_slack
from tests.privacy.gradients.engine_cases import (
    ALL_KINDS,
    FLAT,
    SETTINGS,
    Small,
    everyone,
    model_and_losses,
    of_settings,
)
from tests.privacy.gradients.reference import distance, norm_of, summed

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* goes through torch.func")


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_no_record_of_any_model_passes_the_clip_norm(
    setting: tuple[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision = of_settings(setting, monkeypatch)
    monkeypatch.setattr(engine, "_SMALL", 0 if kind in ("gpt", "scales") else 2**18)
    model, losses = model_and_losses(kind, 8, 2)
    for clipping in (Clipping(1e-3, "flat"), Clipping(2.0, "automatic")):
        slack = rounding_slack(8, groupable(8))
        sums = ClippedGradients(model, clipping, rows=2, precision=precision, groups=True)  # type: ignore[arg-type]
        for scale in (1.0, 1e6):
            for record in range(4):
                only = torch.arange(4) == record
                norm = norm_of(summed(sums, lambda scale=scale: scale * losses(slice(None)), only))
                assert 0.5 * clipping.clip_norm * (scale > 1) <= norm <= clipping.clip_norm * (1 + slack)


@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
@pytest.mark.parametrize("kind", ["flat", "automatic"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6, 1e18])
def test_no_record_passes_the_clip_norm(
    setting: tuple[str, str], kind: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alternating signs and near-duplicate tokens, on which low-precision Gram matrices lose the norm."""
    precision = of_settings(setting, monkeypatch)
    torch.manual_seed(0)
    signs = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)[None, :, None]
    for small in (0, 2**18):
        monkeypatch.setattr(engine, "_SMALL", small)
        for nearness in (1e-3, 1e-7):
            model = nn.Sequential(nn.Linear(8, 8, bias=False))
            tokens = torch.ones(1, 64, 8) + nearness * torch.randn(1, 64, 8)
            sums = ClippedGradients(model, Clipping(1.0, kind), rows=1, precision=precision)  # type: ignore[arg-type]
            for weight in (signs, torch.ones_like(signs), signs + nearness * torch.randn(1, 64, 8)):
                found = summed(sums, lambda: (model(tokens) * weight * scale).sum((1, 2)), everyone(1))  # noqa: B023
                assert norm_of(found) <= 1
                if 1 <= scale < 1e18 and kind == "flat" and bool((weight == 1).all()):
                    assert norm_of(found) > 0.999  # the bound is met, not merely kept


BROKEN = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("bad", BROKEN)
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_a_broken_image_adds_nothing_and_changes_no_other(
    setting: tuple[str, str], bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision = of_settings(setting, monkeypatch)
    torch.manual_seed(3)
    model, x, third = Small(), torch.randn(6, 2, 8, 6), torch.arange(6) == 2
    sums = ClippedGradients(model, FLAT, rows=1, precision=precision)  # type: ignore[arg-type]
    without = summed(sums, lambda: model(x), ~third)
    broken = x.clone()
    broken[2, 1, 3, 3] = bad
    found = summed(sums, lambda: model(broken) * torch.where(third, bad, 1.0), everyone(6))
    assert all(torch.equal(found[name], without[name]) for name in found)
    spoilt = summed(sums, lambda: model(x) + torch.where(third, bad, 0.0), everyone(6))  # its gradient is sound
    assert all(torch.equal(spoilt[name], without[name]) for name in found)
    again = summed(sums, lambda: model(x), ~third)  # nothing stays behind
    assert all(torch.equal(again[name], without[name]) for name in found)


@pytest.mark.parametrize("bad", BROKEN)
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_a_broken_row_adds_nothing_where_products_are_fenced(
    setting: tuple[str, str], bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths that are no multiples of 4: the product is given zeros, and the record must be skipped all the same."""
    precision = of_settings(setting, monkeypatch)
    torch.manual_seed(0)
    model, x, third = (
        nn.Sequential(nn.Linear(35, 33), nn.Tanh(), nn.Linear(33, 34)),
        torch.randn(24, 9, 35),
        torch.arange(24) == 2,
    )
    for small in (0, 2**18):
        monkeypatch.setattr(engine, "_SMALL", small)
        sums = ClippedGradients(model, FLAT, rows=1, precision=precision)  # type: ignore[arg-type]
        without = summed(sums, lambda: model(x).sum((1, 2)), ~third)
        broken = x.clone()
        broken[2, :, 0] = bad
        found = summed(sums, lambda broken=broken: model(broken).sum((1, 2)), everyone(24))
        assert all(torch.equal(found[name], without[name]) for name in found)


@pytest.mark.parametrize("bad", [*BROKEN, 1e38])
@pytest.mark.parametrize("kind", ["tokens", "gpt", "scales", "grouped", "patches"])
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_a_broken_loss_adds_nothing_and_changes_no_other(
    setting: tuple[str, str], kind: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision = of_settings(setting, monkeypatch)
    monkeypatch.setattr(engine, "_SMALL", 0)
    model, losses = model_and_losses(kind, 12, 3)
    slack = rounding_slack(6, groupable(6))
    sums = ClippedGradients(model, FLAT, rows=2, precision=precision, groups=True)  # type: ignore[arg-type]
    third = torch.arange(6) == 2
    factor = torch.where(third.repeat_interleave(2), bad, 1.0)
    without = summed(sums, lambda: losses(slice(None)), ~third)
    found = summed(sums, lambda: losses(slice(None)) * factor, everyone(6))
    if bad == 1e38:  # large, and finite perhaps: then a share like any other
        assert distance(found, without) * norm_of(without) <= FLAT.clip_norm * (1 + slack)
        found = summed(sums, lambda: losses(slice(None)) * factor, ~third)
    assert all(torch.equal(found[name], without[name]) for name in found)
    again = summed(sums, lambda: losses(slice(None)), ~third)
    assert all(torch.equal(again[name], without[name]) for name in found)


@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_an_image_does_not_move_another(setting: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    precision = of_settings(setting, monkeypatch)
    model, _ = model_and_losses("unet", 1, 0)
    torch.manual_seed(1)
    clean, normal, guide = torch.randn(3, 16, 4, 14, 14)
    level, labels = torch.rand(16) + 0.1, torch.arange(16) % 10
    denoiser = Denoiser(model, 0.5)
    sums = ClippedGradients(model, FLAT, rows=1, precision=precision)  # type: ignore[arg-type]

    def of_record_five(order: Tensor) -> dict[str, Tensor]:
        only = order == 5
        return summed(
            sums, lambda: denoiser.loss(clean[order], normal[order], level[order], labels[order], guide[order]), only
        )

    first = of_record_five(torch.arange(16))
    clean[9] *= 50
    labels[3] = 7
    assert all(torch.equal(value, first[name]) for name, value in of_record_five(torch.arange(16)).items())
    moved = of_record_five(torch.arange(16).roll(3))
    assert distance(moved, first) < 1e-6


@pytest.mark.parametrize("small", [0, 2**18])
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_a_text_does_not_move_another(setting: tuple[str, str], small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    precision = of_settings(setting, monkeypatch)
    monkeypatch.setattr(engine, "_SMALL", small)
    torch.manual_seed(1)
    gpt, tokens = GPT(11, TransformerShape(32, 2, 4, 12)), torch.randint(11, (12, 10))
    sums = ClippedGradients(gpt, FLAT, rows=2, precision=precision, groups=True)  # type: ignore[arg-type]
    for record in (0, 3, 5):
        only = torch.arange(6) == record
        first = summed(sums, lambda: gpt.losses(tokens), only)
        changed = torch.where(only.repeat_interleave(2)[:, None], tokens, torch.randint(11, (12, 10)))
        found = summed(sums, lambda changed=changed: gpt.losses(changed), only)
        assert all(torch.equal(value, first[name]) for name, value in found.items())
        assert norm_of(first) > 0


def test_the_slack_grows_with_the_batch() -> None:
    assert 1e-6 < rounding_slack(64) < rounding_slack(4096) < 2e-6
    assert rounding_slack(1e6) > 1e-4
    assert rounding_slack(64) + 64 * 8 * 2**-23 < rounding_slack(64, groupable(64)) < 2e-4
    assert groupable(64) > 64 + 10 * 8


@pytest.mark.parametrize("small", [0, 2**18])
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_a_gradient_that_overflows_is_skipped(
    setting: tuple[str, str], small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is finite, and so is its norm in double precision, but not the gradient in float32."""
    precision = of_settings(setting, monkeypatch)
    monkeypatch.setattr(engine, "_SMALL", small)
    torch.manual_seed(0)
    model, x = nn.Linear(20, 24), torch.randn(3, 9, 20)
    x[1], size = 0, torch.tensor([1.0, 1.8e19, 1.0])
    x[1, :, 0] = 1.8e19
    nn.init.normal_(model.weight, std=1e-6)

    def losses() -> Tensor:
        return (model(x)[:, :, 0].float() * size[:, None]).sum(1)

    totals = []
    for present in (everyone(3), torch.tensor([True, False, True])):
        sums = ClippedGradients(model, FLAT, rows=1, precision=precision)  # type: ignore[arg-type]
        totals.append(summed(sums, losses, present))
    assert losses().isfinite().all()
    assert all(value.isfinite().all() for value in totals[0].values())
    if setting[1] != "off":  # PyTorch's own ways add such a record in double precision, clipped
        assert distance(*totals) == 0


@pytest.mark.skipif(kernels.level() < 1, reason="groups are for compiled kernels")
def test_no_share_hangs_on_whether_there_is_room_for_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are grouped only with room, and a record that finds none adds what it would have added in a group."""
    monkeypatch.setattr(engine, "_SMALL", 0)
    model, losses = model_and_losses("gpt", 8, 4)

    def total(grouped: bool, room: bool, present: Tensor) -> Tensor:
        sums = ClippedGradients(model, FLAT, rows=1, precision="bf16", groups=grouped)
        sums.reset()
        sums.add(lambda: losses(slice(None)), present, room)
        return sums.total.clone()

    assert torch.equal(total(False, True, everyone(8)), total(False, False, everyone(8)))
    assert not torch.equal(total(True, True, everyone(8)), total(True, False, everyone(8)))
    for present in (everyone(8), *(torch.arange(8) == record for record in range(8))):
        moved = float((total(True, True, present) - total(True, False, present)).norm())
        assert moved <= FLAT.clip_norm * rounding_slack(0, int(present.sum())) / 2
