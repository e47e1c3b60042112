"""Book-keeping (Bu et al. 2023, arXiv 2210.00038): one backward pass that keeps activations and output gradients.

Parameters do not require gradients while the tape runs, so the backward pass computes output gradients only; what each
layer saw and what came back to it is enough to form any record's weight gradient afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.errors import PrivacyRefusal, UserError
from sfumato.privacy.gradients.layers import FALLBACK, rule_of

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Layer(NamedTuple):
    """A layer with trained parameters: its name in the model, the module, and the names of what it trains."""

    name: str
    module: nn.Module
    trained: tuple[str, ...]


class Reading(NamedTuple):
    """What one layer saw in one pass: its input, and the loss's gradient by its output."""

    activation: Tensor
    gradient: Tensor


def trained_layers(model: nn.Module) -> list[Layer]:
    """The layers of `model` that train, in a fixed order.

    Raises:
        UserError: a layer with trained parameters has an option that its rule does not know.
        PrivacyRefusal: a parameter is shared between layers, or a module mixes records, keeps running statistics or
            drops out; then a sum of clipped per-record gradients would not have the bounded sensitivity it is priced
            at.
    """
    layers: list[Layer] = []
    owners: Counter[int] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            raise PrivacyRefusal(
                f"Layer '{name}' ({type(module).__name__}) normalises over the batch, so records would meet in it; "
                "use a norm over one image (GroupNorm, LayerNorm) instead."
            )
        if isinstance(module, _DROPOUT) and module.p and module.training:
            raise PrivacyRefusal(
                f"Layer '{name}' ({type(module).__name__}) draws from one generator for all records; call eval(), "
                "or take each record's own draws."
            )
        trained = tuple(key for key, value in module.named_parameters(recurse=False) if value.requires_grad)
        if not trained:
            continue
        if any(isinstance(value, nn.UninitializedParameter) for value in module.parameters(recurse=False)):
            raise UserError(f"Layer '{name}' ({type(module).__name__}) has no shape yet; run the model once before.")
        rule = rule_of(module)
        obstacle = rule.obstacle(module)
        if rule is not FALLBACK and not {"weight", "bias"}.issuperset(trained):  # older ways to reparametrise
            obstacle = "parameters besides weight and bias"
        if obstacle:
            raise UserError(f"Layer '{name}' ({type(module).__name__}) has {obstacle}, which has no gradient rule.")
        owners.update(id(module.get_parameter(key)) for key in trained)
        layers.append(Layer(name, module, trained))
    if any(count > 1 for count in owners.values()):
        raise PrivacyRefusal("Two layers share a trained parameter; its per-record norm would be wrong. Untie them.")
    if not layers:
        raise UserError("The model has no trained parameter.")
    return layers


@contextmanager
def taped(
    model: nn.Module, layers: list[Layer], rows: int, ends: dict[str, tuple[Tensor, Tensor]] | None = None
) -> Iterator[dict[str, Reading]]:
    """Runs a forward and a backward pass inside; afterwards the yielded dictionary maps layer names to readings.

    Args:
        model: what runs.
        layers: its trained layers.
        rows: of the batch; every layer must see each of them.
        ends: where to put the layers' inputs and outputs, for `refuse_meetings`; there are no readings then.

    Raises:
        PrivacyRefusal: a layer ran twice in one pass (its norm would lack the cross term), or a buffer or parameter
            changed in `forward` (the model would remember records outside what is noised).
        UserError: a layer does not map one tensor to one tensor row by row, its input was overwritten, or the first
            one's output was.
    """
    readings: dict[str, Reading] = {}
    seen: set[str] = set()
    given: dict[nn.Module, Tensor] = {}  # inputs of fenced layers as they were
    handles = []
    parameters = [module.get_parameter(key) for _, module, trained in layers for key in trained]
    before = _state(model)

    def watch(name: str, module: nn.Module) -> None:
        def after(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            if name in seen:
                raise PrivacyRefusal(f"Layer '{name}' runs twice in one pass; give each use a layer of its own.")
            seen.add(name)
            if len(inputs) != 1 or options or not all(isinstance(x, Tensor) for x in (*inputs, output)):
                raise UserError(
                    f"Layer '{name}' ({type(module).__name__}) has trained parameters of its own and does not map one "
                    "tensor to one tensor; put the parameters into a layer that does."
                )
            activation = given.pop(module, inputs[0]).detach()
            if any(x.shape[:1] != (rows,) for x in (activation, output)):
                raise UserError(
                    f"Layer '{name}' ({type(module).__name__}) maps {tuple(activation.shape)} to {tuple(output.shape)} "
                    f"in a pass of {rows} rows; give it something for each row (repeat constants, such as positions)."
                )
            if not output.requires_grad:  # nothing before it trains: gradients start here
                output.requires_grad_()
            if ends is not None:
                ends[name] = inputs[0], output
                return
            version = activation._version

            def keep(gradient: Tensor) -> None:
                if activation._version != version:
                    raise UserError(f"The input of layer '{name}' was overwritten after its use; work on a copy.")
                readings[name] = Reading(activation, gradient)

            output.register_hook(keep)

        handles.append(module.register_forward_hook(after, with_kwargs=True))

    def fence(module: nn.Module) -> None:
        def before(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            given[module] = inputs[0]
            return _finite(inputs[0])

        def after(_: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
            if output.requires_grad:
                output.register_hook(_finite)

        handles.extend((module.register_forward_pre_hook(before), module.register_forward_hook(after)))

    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        for name, module, _ in layers:
            watch(name, module)
        for module in model.modules():
            if _reaches_into_the_next_row(module):
                fence(module)
        with torch.enable_grad():
            yield readings
    except RuntimeError as error:
        if "leaf Variable" not in str(error):
            raise
        raise UserError(
            "The output of the first trained layer is overwritten in place, so that its gradient would be lost; use "
            "inplace=False behind it."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters:
            parameter.requires_grad_(True)
    after = _state(model)
    for place in before | after:
        (old, was), (new, now) = before.get(place, (None, 0)), after.get(place, (None, 0))
        if old is not new or was != now:
            names = {id(module): name for name, module in model.named_modules()}
            name = f"{names.get(place[0], '')}.{place[1]}".removeprefix(".")
            raise PrivacyRefusal(f"'{name}' changed in forward; private training allows no running state.")


def _reaches_into_the_next_row(module: nn.Module) -> bool:
    """Whether NaN in one row may spoil the row before it, which may be another record's.

    On processors, PyTorch's products of bfloat16 (oneDNN) multiply whole pairs and fours of numbers. Where a row does
    not end with one, they take the first numbers of the next row times zero. So such layers get, forward and backward,
    zeros for what is not finite; readings keep it, and the record is skipped.
    """
    return isinstance(module, nn.Linear) and bool(module.in_features % 4 or module.out_features % 4)


def _finite(x: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, 0.0)


def _state(model: nn.Module) -> dict[tuple[int, str], tuple[Tensor, int]]:
    """Buffers and parameters by module and name, with the number of times that each was written to."""
    return {
        (id(module), key): (value, value._version)
        for module in model.modules()
        for key, value in chain(module._buffers.items(), module._parameters.items())
        if value is not None
    }


def fingerprints(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Sum and sum of squares of all buffers and parameters: what is written past autograd (`.data`) shows here."""
    values = ((name, value.detach().double()) for name, value in chain(model.named_buffers(), model.named_parameters()))
    return {name: (float(value.sum()), float(value.square().sum())) for name, value in values}


def refuse_changes(before: Mapping[str, tuple[float, float]], model: nn.Module) -> None:
    """Refuses a model that is not what it was before a forward pass, when it had these `fingerprints`.

    Raises:
        PrivacyRefusal: a buffer or a parameter changed.
    """
    for name, value in fingerprints(model).items():
        if repr(value) != repr(before.get(name)):  # NaN is equal to itself here
            raise PrivacyRefusal(f"'{name}' changed in forward; private training allows no running state.")


def refuse_uses_elsewhere(layers: list[Layer], losses: Callable[[], Tensor]) -> None:
    """Refuses a loss that uses a trained parameter outside its layer's own call, where no rule sees it.

    The layers' outputs are cut off from their parameters here, so whatever gradient still reaches one came another way:
    an embedding's weight taken for the head, a penalty on weights.

    Args:
        layers: the trained ones.
        losses: runs the model.

    Raises:
        PrivacyRefusal: it does.
    """
    handles = [layer.module.register_forward_hook(_cut) for layer in layers]
    try:
        with torch.enable_grad():
            rows = losses()
    finally:
        for handle in handles:
            handle.remove()
    names = [(layer, key) for layer in layers for key in layer.trained]
    parameters = [layer.module.get_parameter(key) for layer, key in names]
    found = torch.autograd.grad(rows.float().sum(), parameters, allow_unused=True) if rows.requires_grad else ()
    for (layer, key), gradient in zip(names, found, strict=False):
        if gradient is not None:
            raise PrivacyRefusal(
                f"Parameter '{key}' of layer '{layer.name}' is used outside its layer; untie it, or drop the penalty."
            )


def _cut(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
    return output.detach().requires_grad_().clone()  # the copy may be overwritten, as a layer's output may


def refuse_meetings(ends: Mapping[str, tuple[Tensor, Tensor]], losses: Tensor, rows: int) -> None:
    """Refuses a pass in which records meet: inside `taped`, after the forward pass.

    One half of the records' losses and of what their layers see and say must have no gradient by what layers say of the
    other half. The halves are those of the Thue-Morse sequence, which no regular pattern of meetings escapes. Zeros are
    exact here, and NaN says nothing, so that the answer does not hang on what the records hold.

    Args:
        ends: inputs and outputs of the trained layers, `(R rows, ...)`.
        losses: `(R rows,)`.
        rows: rows a record.

    Raises:
        PrivacyRefusal: they meet.
    """
    halves = torch.tensor([record.bit_count() % 2 == 0 for record in range(len(losses) // rows)], device=losses.device)
    half = halves.repeat_interleave(rows)
    heads = [value for value in (losses, *chain.from_iterable(ends.values())) if value.requires_grad]
    for mine in (half, ~half):
        looks = [output.register_hook(_look(name, ~mine)) for name, (_, output) in ends.items()]  # type: ignore[no-untyped-call]
        torch.autograd.backward(torch.stack([_uneven_sum(value, mine) for value in heads]).sum(), retain_graph=True)
        for look in looks:
            look.remove()


def _look(name: str, others: Tensor) -> Callable[[Tensor], None]:
    """A hook that looks at a gradient as it comes by; keeping all of them would cost several passes' memory."""

    def look(gradient: Tensor) -> None:
        theirs = gradient[others]
        if bool((theirs.isfinite() & (theirs != 0)).any()):
            raise PrivacyRefusal(f"Records meet after layer '{name}': a row's loss must depend on that row alone.")

    return look


def _uneven_sum(value: Tensor, rows: Tensor) -> Tensor:
    """A sum over some rows with weights from 1 to 2, because an even sum of a norm's output has no gradient."""
    flat = value.reshape(len(value), -1)
    place, row = (torch.linspace(1, 2, size, device=value.device) for size in (flat.shape[1], len(flat)))
    sums = (flat * place.to(value.dtype)).sum(1).float()
    return (sums[rows] * row[rows]).sum()
