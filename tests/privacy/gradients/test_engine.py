"""Clipped gradient sums: equal to a loop over single records, and formed as the engine says."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato import _compiled
from sfumato.errors import InternalError, UserError
from sfumato.nets.transformer import GPT, TransformerShape
from sfumato.privacy.gradients import compiled, contributions, engine, kernels
from sfumato.privacy.gradients.contributions import Choice
from sfumato.privacy.gradients.engine import ClippedGradients, Clipping
from sfumato.privacy.gradients.tape import Reading
from tests.privacy.gradients.engine_cases import (
    ALL_KINDS,
    FLAT,
    KINDS,
    SETTINGS,
    Losses,
    Small,
    everyone,
    model_and_losses,
    of_settings,
)
from tests.privacy.gradients.reference import distance, gradients, loop, norm_of, summed

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* goes through torch.func")


@settings(max_examples=25, deadline=None)
@given(
    records=st.integers(1, 5),
    rows=st.integers(1, 4),
    size=st.integers(2, 6),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("clipping", [FLAT, Clipping(2.0, "automatic")])
def test_matches_a_loop(records: int, rows: int, size: int, bias: bool, seed: int, clipping: Clipping) -> None:
    torch.manual_seed(seed)
    model, x = Small(bias), torch.randn(records * rows, 2, 2 * size, size + 2)
    engine = ClippedGradients(model, clipping, rows=rows)
    found = summed(engine, lambda: model(x), everyone(records))
    assert distance(found, loop(model, lambda part: model(x[part]), records, rows, clipping)) < 1e-5


def force(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every layer that has both ways take one."""
    chosen = contributions.choose

    def choose(module: nn.Module, reading: Reading, rows: int) -> Choice:
        has_both = isinstance(module, nn.Linear | nn.Embedding) or (
            isinstance(module, nn.Conv2d) and module.groups == 1
        )
        return chosen(module, reading, rows)._replace(way=way) if has_both else chosen(module, reading, rows)

    for place in (engine, compiled):
        monkeypatch.setattr(place, "choose", choose)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    ("way", "keep"),
    [(level, small) for level in ("avx2", "avx512") for small in (0, 2**18)]
    + [("chosen", 2**28), ("ghost", 2**28), ("instantiate", 2**28), ("instantiate", 0)],
)
def test_every_model_matches_a_loop(kind: str, way: str, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By compiled kernels at either level and for networks of either size; by PyTorch in every way."""
    compiled = way in _compiled.LEVELS
    monkeypatch.setenv("SFUMATO_KERNELS", way if compiled else "off")
    monkeypatch.setattr(engine if compiled else contributions, "_SMALL" if compiled else "KEEP", keep)
    if way in ("ghost", "instantiate"):
        force(way, monkeypatch)
    for records, rows in ((5, 1), (3, 3)):
        model, losses = model_and_losses(kind, records * rows, records)
        typical = norm_of(loop(model, losses, 1, rows, Clipping(1e9, "flat")))
        clipping = Clipping(typical, "flat")  # some records are clipped and some are not
        sums = ClippedGradients(model, clipping, rows=rows)
        found = summed(sums, lambda losses=losses: losses(slice(None)), everyone(records))
        assert distance(found, loop(model, losses, records, rows, clipping)) < 1e-5


def exact(engine: ClippedGradients, losses: Losses, records: int) -> tuple[dict[str, Tensor], Tensor]:
    """The sum in double precision, and the norms, from what the layers saw in this precision."""
    readings, _ = engine._passes(lambda: losses(slice(None)), records)
    parts: dict[str, Tensor] = {}
    for name, module, trained in engine.layers:
        activation, gradient = readings[name]
        if activation.is_floating_point():
            activation = activation.to(gradient.dtype)
        found = gradients(module, Reading(activation, gradient), engine.rows)
        parts |= {f"{name}.{key}": found[key] for key in trained}
    norms = torch.stack([value.reshape(len(value), -1).square().sum(1) for value in parts.values()]).sum(0).sqrt()
    weights = engine.clipping.weights(norms)
    return {name: torch.tensordot(weights, value, 1) for name, value in parts.items()}, norms


@pytest.mark.parametrize("small", [0, 2**18])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS[1:], ids="-".join)
def test_half_precision_matches_products_of_the_same_values(
    setting: tuple[str, str], kind: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision = of_settings(setting, monkeypatch)
    monkeypatch.setattr(engine, "_SMALL", small)
    model, losses = model_and_losses(kind, 10, 1)
    found_by = ClippedGradients(model, Clipping(1e-3, "flat"), rows=2, precision=precision)  # type: ignore[arg-type]
    found = summed(found_by, lambda: losses(slice(None)), everyone(5))
    right, norms = exact(found_by, losses, 5)
    assert float(norms.min()) > 1e-3
    formed_in_half = setting[1] == "off" or kind in ("grouped", "tokens") or (kind in ("patches", "unet") and not small)
    assert distance(found, right) < (1e-2 if formed_in_half else 2e-3)
    if small and kind in ("small", "unet") and setting[1] != "off":
        assert distance(found, right) < 1e-5


@pytest.mark.parametrize("small", [0, 2**18])
@pytest.mark.parametrize("trained", ["weight", "bias"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_only_weights_or_only_biases_train(
    setting: tuple[str, str], kind: str, trained: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part of a layer is frozen: kernels are told where the other part goes, and that this one goes nowhere."""
    precision = of_settings(setting, monkeypatch)
    monkeypatch.setattr(engine, "_SMALL", small)
    model, losses = model_and_losses(kind, 10, 1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(trained))
    found_by = ClippedGradients(model, Clipping(1e-3, "flat"), rows=2, precision=precision)  # type: ignore[arg-type]
    found = summed(found_by, lambda: losses(slice(None)), everyone(5))
    right, norms = exact(found_by, losses, 5)
    assert set(found) == {name for name, _ in model.named_parameters() if name.endswith(trained)}
    assert float(norms.min()) > 0
    assert distance(found, right) < (1e-5 if precision == "fp32" else 1e-2)


def test_bf16_stays_near_fp32() -> None:
    model, losses = model_and_losses("unet", 12, 0)
    engine = ClippedGradients(model, FLAT, rows=1, precision="bf16")
    found = summed(engine, lambda: losses(slice(None)), everyone(12))
    assert distance(found, loop(model, losses, 12, 1, FLAT)) < 0.05


def test_fillers_and_empty_chunks_add_nothing() -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(4, 2, 8, 6)
    engine = ClippedGradients(model, FLAT, rows=2)
    assert norm_of(summed(engine, lambda: model(x), torch.zeros(2, dtype=torch.bool))) == 0
    half = summed(engine, lambda: model(x), torch.tensor([True, False]))
    assert distance(half, loop(model, lambda part: model(x[part]), 1, 2, FLAT)) < 1e-5
    assert norm_of(summed(engine, lambda: model(x[:0]), everyone(0))) == 0


def test_chunks_add_up_and_a_reset_forgets() -> None:
    model, losses = model_and_losses("small", 12, 0)
    sums = ClippedGradients(model, FLAT, rows=2)
    for part in (slice(0, 4), slice(4, 12)):
        sums.add(lambda part=part: losses(part), everyone((part.stop - part.start) // 2))
    parts = {name: value.clone() for name, value in sums.shaped(sums.total).items()}
    assert distance(parts, summed(sums, lambda: losses(slice(None)), everyone(6))) < 1e-6


def test_frozen_layers_are_left_out_and_parameters_come_back_trainable() -> None:
    model, x = Small(), torch.randn(4, 2, 8, 6)
    model.first.requires_grad_(False)
    engine = ClippedGradients(model, FLAT, rows=1)
    found = summed(engine, lambda: model(x), everyone(4))
    assert "first.weight" not in found
    assert distance(found, loop(model, lambda part: model(x[part]), 4, 1, FLAT)) < 1e-5
    assert model.last.weight.requires_grad
    assert model.last.weight.grad is None


def test_refused_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Small()
    engine = ClippedGradients(model, FLAT, rows=1)
    with pytest.raises(InternalError, match="per row"):
        engine.add(lambda: model(torch.randn(4, 2, 8, 6)).mean(), everyone(4))
    for clip_norm, rows in ((0.0, 1), (-1.0, 1), (math.nan, 1), (1.0, 0)):
        with pytest.raises(UserError, match="must be positive"):
            ClippedGradients(model, Clipping(clip_norm), rows=rows)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    with pytest.raises(UserError, match="highest"):
        ClippedGradients(Small(), FLAT, rows=1)


def test_clipping_weights() -> None:
    norms = torch.tensor([0.0, 1e-30, 0.3, 5.0, 1e300], dtype=torch.float64)
    for clipping in (FLAT, Clipping(0.3, "automatic")):
        assert (clipping.weights(norms) * norms <= 0.3 * (1 + 1e-15)).all()
    assert FLAT.weights(norms)[:3].tolist() == [1.0, 1.0, 1.0]


def test_sums_are_double() -> None:
    """Records that cancel: in float32 the small third would be lost."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    x = torch.tensor([[1.0], [-1.0], [1e-9], [0.0]])
    for precision in ("fp32", "bf16"):
        engine = ClippedGradients(model, Clipping(1.0, "flat"), rows=1, precision=precision)  # type: ignore[arg-type]
        found = summed(engine, lambda: model(x).float()[:, 0], everyone(4))
        assert float(found["0.weight"]) == pytest.approx(1e-9, rel=1e-2)


class Tenth(nn.Linear):
    """Not what it looks like."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 0.1 * self.weight.square(), self.bias)


class Standardised(nn.Conv2d):
    """Weights are standardised first."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight / weight.norm(), self.bias, padding=1)


@pytest.mark.parametrize("small", [0, 2**18])
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_a_subclass_is_not_taken_for_its_parent(
    setting: tuple[str, str], small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    precision = of_settings(setting, monkeypatch)
    monkeypatch.setattr(engine, "_SMALL", small)
    torch.manual_seed(0)
    x = torch.randn(4, 9, 8)
    for model, shaped in ((Tenth(8, 6), x), (Standardised(9, 5, 3), x[..., None])):
        sums = ClippedGradients(model, FLAT, rows=1, precision=precision)  # type: ignore[arg-type]

        def losses(part: slice, model: nn.Module = model, shaped: Tensor = shaped) -> Tensor:
            return model(shaped[part]).float().square().flatten(1).sum(1)

        found = summed(sums, lambda losses=losses: losses(slice(None)), everyone(4))
        assert distance(found, loop(model, losses, 4, 1, FLAT)) < (1e-5 if precision == "fp32" else 2e-2)
        assert [plan.way for plan in sums.explain(lambda losses=losses: losses(slice(None)), 4)] == ["torch.func"]


def test_the_explanation_says_how_each_layer_is_treated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, losses = model_and_losses("tokens", 6, 0)
    for value, way in (("off", "instantiate"), ("amx", "compiled" if kernels.level("fp32") else "instantiate")):
        monkeypatch.setenv("SFUMATO_KERNELS", value)
        with pytest.warns(UserWarning, match="'learned' .* goes through torch.func"):
            sums = ClippedGradients(model, FLAT, rows=2)
        plans = sums.explain(lambda: losses(slice(None)), 3)
        assert {plan.name: plan.way for plan in plans} == {
            "tokens": "instantiate",
            "learned": "torch.func",
            "norm": "instantiate",
            "adapted.down": way,
            "adapted.up": way,
            "scale": "instantiate",
            "head": way,
        }
        assert {plan.name: plan.parameters for plan in plans}["learned"] == 57
    wide, tokens = GPT(40, TransformerShape(64, 1, 2, 64)), torch.randint(40, (2, 64))
    compiled = "compiled linear" if kernels.level("fp32") else "ghost"
    monkeypatch.setattr(engine, "_SMALL", 0)
    for length, way in ((3, "ghost"), (9, compiled), (60, "instantiate")):
        part = tokens[:, :length]
        sums = ClippedGradients(wide, FLAT, rows=1)
        ways = {plan.name: plan for plan in sums.explain(lambda part=part: wide.losses(part), 2)}
        assert ways["blocks.0.expand"].way == way
        assert (ways["blocks.0.expand"].ghost < ways["blocks.0.expand"].instantiate) == (way != "instantiate")
        assert float(sums.total.norm()) == 0
    if not kernels.level():
        return
    for small, way in ((0, "compiled linear"), (2**18, "compiled")):
        monkeypatch.setattr(engine, "_SMALL", small)
        plans = ClippedGradients(wide, FLAT, rows=1, precision="bf16").explain(lambda: wide.losses(tokens), 2)
        ways_now = {plan.name: plan.way for plan in plans}
        assert ways_now["head"] == way
        assert ways_now["norm"] == "compiled norm"


def test_threads_with_engines_of_their_own_do_not_meet() -> None:
    """As private training runs them."""
    found: dict[int, list[Tensor]] = {}
    cases = [model_and_losses(kind, 8, 5) for kind in ("small", "gpt")]

    def work(number: int) -> None:
        model, losses = cases[number]
        sums = ClippedGradients(model, FLAT, rows=1, precision="bf16")
        for _ in range(5):
            sums.reset()
            sums.add(lambda: losses(slice(None)), everyone(8))
            found.setdefault(number, []).append(sums.total.clone())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        expected = found[number][0]
        work(number)
        assert len(found[number]) == 10
        assert all(torch.equal(total, expected) for total in found[number])


@pytest.mark.parametrize("kind", ["small", "gpt"])
@pytest.mark.parametrize("setting", SETTINGS, ids="-".join)
def test_two_engines_add_up_to_one(setting: tuple[str, str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a thread, with a copy of a network that counts as large; only without convolutions they share a sum."""
    precision = of_settings(setting, monkeypatch)
    monkeypatch.setattr(engine, "_SMALL", 0)
    monkeypatch.setattr(engine, "_MANY", 0)
    cases = [model_and_losses(kind, 16, 3) for _ in range(2)]
    alone = ClippedGradients(cases[0][0], FLAT, rows=1, precision=precision)  # type: ignore[arg-type]
    pair: list[ClippedGradients] = []
    for model, _ in cases:
        beside = pair[0] if pair else None
        pair.append(ClippedGradients(model, FLAT, rows=1, precision=precision, beside=beside))  # type: ignore[arg-type]
    assert (pair[0].sum is pair[1].sum) == (kind == "gpt" or setting[1] == "off")
    pair[0].examine(lambda: cases[0][1](slice(0, 4)), 4)

    def work(number: int) -> None:
        for first in range(8 * number, 8 * number + 8, 4):
            pair[number].add(lambda first=first: cases[number][1](slice(first, first + 4)), everyone(4))

    for _ in range(5):
        for each in pair:
            each.reset()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = torch.stack([one.vector for one in {id(each.sum): each.sum for each in pair}.values()]).sum(0)
        alone.reset()
        for first in range(0, 16, 4):
            alone.add(lambda first=first: cases[0][1](slice(first, first + 4)), everyone(4))
        assert torch.allclose(total, alone.total, rtol=0, atol=1e-9)


MEMORY = """
import resource, sys, torch
from sfumato.nets.transformer import GPT, TransformerShape
from sfumato.privacy.gradients import contributions
from sfumato.privacy.gradients.engine import ClippedGradients, Clipping

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

torch.manual_seed(0)
contributions.KEEP = 2**25
precision, length = sys.argv[1], int(sys.argv[2])
gpt = GPT(64, TransformerShape(128, 32, 4, length))
sums = ClippedGradients(gpt, Clipping(1.0), rows=1, precision=precision)
tokens, present = torch.randint(64, (16, length + 1)), torch.ones(16) > 0
sums.add(lambda: gpt.losses(tokens[:2]), present[:2])
readings, _ = sums._passes(lambda: gpt.losses(tokens), 16)
del readings
passes = peak()
sums.add(lambda: gpt.losses(tokens), present)
print({plan.way for plan in sums.explain(lambda: gpt.losses(tokens), 16) if plan.kind == "Linear"})
print(peak() - passes, 16 * 4 * len(sums.total) >> 20)
"""


@pytest.mark.parametrize(
    ("precision", "length", "way"),
    [
        ("fp32", 12, "compiled linear" if kernels.level("fp32") else "ghost"),
        ("fp32", 72, "instantiate"),
        ("bf16", 12, "compiled linear" if kernels.level() else "ghost"),
    ],
)
def test_no_gradient_of_a_record_is_kept(precision: str, length: int, way: str) -> None:
    """Beyond what a forward and a backward pass take, a chunk costs a small part of what its gradients would."""
    command = [sys.executable, "-c", MEMORY, precision, str(length)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    ways, figures = result.stdout.splitlines()
    more, whole = (int(value) for value in figures.split())
    assert way in ways
    assert whole > 380
    assert more < whole / 4, figures
