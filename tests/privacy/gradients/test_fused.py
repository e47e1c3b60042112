"""A linear layer whose product adds the bias is the same layer, bit for bit, and is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.nets.transformer import GPT, TransformerShape
from sfumato.privacy.gradients.fused import FusedLinear, _Product
from sfumato.privacy.gradients.tape import Reading, taped, trained_layers

needed = pytest.mark.skipif(not FusedLinear.fits(nn.Linear(32, 32)), reason="PyTorch was built without oneDNN")


def passed(layer: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output, and gradient by the input, under autocast."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, x, gradient.to(y.dtype))]


@needed
@pytest.mark.parametrize("shape", [(64, 32), (192, 768), (768, 192), (192, 512), (32, 96)])
@pytest.mark.parametrize("rows", [(1,), (7,), (64,), (8, 16), (128, 64), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_same_bits(shape: tuple[int, int], rows: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(*shape).requires_grad_(False)
    x, gradient = torch.randn(*rows, shape[0]).to(dtype), torch.randn(*rows, shape[1])
    expected = passed(layer, x, gradient)
    fused = FusedLinear(layer)
    found = passed(layer, x, gradient)
    fused.remove()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@needed
def test_a_tape_of_a_transformer_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GPT(64, TransformerShape(64, 2, 2, 9))
    tokens = torch.randint(0, 64, (5, 10))
    calls: list[int] = []
    apply = _Product.apply
    monkeypatch.setattr(_Product, "apply", lambda *given: (calls.append(1), apply(*given))[1])  # type: ignore[no-untyped-call]

    def readings() -> dict[str, Reading]:
        with taped(model, trained_layers(model), 5) as found, torch.autocast("cpu", torch.bfloat16):
            model.losses(tokens).sum().backward()  # type: ignore[no-untyped-call]
        return found

    fused, used = readings(), len(calls)
    monkeypatch.setattr(FusedLinear, "fits", staticmethod(lambda _: False))
    plain = readings()
    assert used == len(calls) == 9  # four in each block, and the head
    assert fused.keys() == plain.keys()
    for name, (activation, gradient) in fused.items():
        assert torch.equal(activation, plain[name].activation)
        assert torch.equal(gradient, plain[name].gradient)


@needed
def test_a_layer_is_left_as_it_was() -> None:
    layer = nn.Linear(32, 32)
    model, tokens = nn.Sequential(layer), torch.randn(3, 32)

    def broken() -> None:
        with taped(model, trained_layers(model), 3):
            assert "forward" in vars(layer)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert "forward" not in vars(layer)
    layer(tokens).sum().backward()
    assert layer.bias.grad is not None


@needed
@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_parameters_that_need_gradients_get_them(trained: str) -> None:
    layer = nn.Linear(32, 32).requires_grad_(False)
    layer.get_parameter(trained).requires_grad_(True)
    FusedLinear(layer)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(2, 32)).sum().backward()
    gradient = layer.get_parameter(trained).grad
    assert gradient is not None
    assert (gradient == 2).all()


class Sub(nn.Linear):
    """May compute anything."""


@needed
@pytest.mark.parametrize(
    "layer", [nn.Linear(32, 32, bias=False), nn.Linear(32, 48), nn.Linear(16, 32), Sub(32, 32), nn.Linear(32, 32)]
)
def test_other_layers_are_left_alone(layer: nn.Linear) -> None:
    vars(layer)["forward"] = lambda x: 2 * x
    assert not FusedLinear.fits(layer)
    del vars(layer)["forward"]
    plain = type(layer) is nn.Linear and layer.bias is not None and layer.weight.shape == (32, 32)
    assert FusedLinear.fits(layer) is plain
