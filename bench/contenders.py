"""What `engine.py` compares: tasks, and one step of each contender on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.nets.diffusion import Denoiser
from sfumato.nets.transformer import GPT, TransformerShape
from sfumato.nets.unet import UNet, UNetShape
from sfumato.privacy.gradients.engine import rounding_slack
from sfumato.privacy.plan import TrainingTouch
from sfumato.privacy.training import Crew

CLIP = 1.0
VOCABULARY = 512


class Task(NamedTuple):
    """A network, its batch and what to compute.

    Attributes:
        model: to train.
        batch: tensors with one row per row of the batch.
        loss: `(model, *batch)` to one loss a row.
        rows: rows a record.
        chunk: records in one of our passes.
    """

    model: nn.Module
    batch: tuple[Tensor, ...]
    loss: Callable[..., Tensor]
    rows: int
    chunk: int

    @property
    def records(self) -> int:
        return len(self.batch[0]) // self.rows


def gpt(length: int, records: int) -> Task:
    """5.0 M parameters: 6 blocks of width 256."""
    model = _Losses(GPT(VOCABULARY, TransformerShape(256, 6, 8, length)))
    return Task(model, (torch.randint(0, VOCABULARY, (records, length + 1)),), lambda m, *x: m(*x), 1, records // 2)


class _Losses(nn.Module):
    """A network whose forward pass is its loss, because Opacus and vmap want a module that takes the batch."""

    def __init__(self, network: UNet | GPT) -> None:
        super().__init__()
        self.network = network

    def forward(self, *batch: Tensor) -> Tensor:
        if isinstance(self.network, GPT):
            return self.network.losses(*batch)
        return Denoiser(self.network, 0.5).loss(*batch)


def unet(rows: int, records: int, width: tuple[int, int] = (32, 32), blocks: tuple[int, int] = (2, 2)) -> Task:
    """The `laptop` U-Net on 28 x 28 grey images of 10 classes, or a larger one."""
    model = _Losses(UNet(UNetShape(4, 4, 10, width, blocks)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    count = rows * records
    picture = (count, 4, 14, 14)
    batch = (torch.randn(picture), torch.randn(picture), torch.rand(count) + 0.1, torch.arange(count) % 10)
    return Task(model, (*batch, torch.randn(picture)), lambda m, *x: m(*x), rows, records // 2)


TASKS: dict[str, Callable[[], Task]] = {
    "gpt16": partial(gpt, 16, 128),
    "gpt64": partial(gpt, 64, 64),
    "gpt256": partial(gpt, 256, 16),
    "unet_k1": partial(unet, 1, 256),
    "unet_k4": partial(unet, 4, 64),
    "unet_wide": partial(unet, 1, 64, (96, 128), (4, 4)),
}


def autocast(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def plain(task: Task, precision: str, layout: torch.memory_format) -> Callable[[], None]:
    """An ordinary step."""
    model = copy.deepcopy(task.model).to(memory_format=layout)  # type: ignore[call-overload]
    batch = tuple(x.contiguous(memory_format=layout) if x.dim() == 4 else x for x in task.batch)

    def step() -> None:
        model.zero_grad()
        with autocast(precision):
            losses = task.loss(model, *batch)
        losses.float().mean().backward()

    return step


def consume(_: Tensor) -> None:
    """A step returns nothing."""


class _Learner(NamedTuple):
    """As much of a learner as a crew asks for that is given losses."""

    model: nn.Module


def crew_of(task: Task, precision: str) -> Crew:
    room = 2 * task.records
    touch = TrainingTouch("training", 0.1, 1, 1.0, CLIP, task.rows, rounding_slack(room, room), grouped=room)
    model = copy.deepcopy(task.model)
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Crew(_Learner(model), touch, chunk_of(task), precision)  # type: ignore[arg-type]


def chunk_of(task: Task) -> int:
    """Records of a chunk: there is one for every core at least."""
    return min(task.chunk, task.records // torch.get_num_threads())


def parts_of(task: Task, number: int, workers: int) -> list[tuple[Tensor, ...]]:
    """The chunks of one of so many workers."""
    chunk = chunk_of(task)
    assert task.records % chunk == 0
    size = chunk * task.rows
    return [
        tuple(x[i * size : (i + 1) * size] for x in task.batch) for i in range(number, task.records // chunk, workers)
    ]


def ours(task: Task, precision: str) -> Callable[[], None]:
    """Our step: one replica a core."""
    crew = crew_of(task, precision)
    present, workers = torch.ones(chunk_of(task), dtype=torch.bool), len(crew._engines)
    first, few = crew._engines[0], tuple(x[: 8 * task.rows] for x in task.batch)
    first.examine(lambda: task.loss(first.model, *few), len(few[0]) // task.rows)  # as private training does it

    def work(number: int, engine: Any) -> None:
        for part in parts_of(task, number, workers):
            engine.add(lambda part=part: task.loss(engine.model, *part), present, room=True)  # as planned in `crew_of`

    return lambda: consume(crew._sum(work))


def plain_replicas(task: Task, precision: str) -> Callable[[], None]:
    """An ordinary step with one replica a core, in our memory layout."""
    crew = crew_of(task, precision)

    def work(number: int, engine: Any) -> None:
        engine.model.zero_grad()
        for part in parts_of(task, number, len(crew._engines)):
            with autocast(precision):
                losses = task.loss(engine.model, *part)
            losses.float().mean().backward()

    return lambda: consume(crew._sum(work))


def opacus_hooks(task: Task, precision: str) -> Callable[[], None]:
    """Opacus's default: all gradients kept; of several rows a record, the mean is taken before clipping."""
    from opacus.grad_sample import GradSampleModule

    model = GradSampleModule(copy.deepcopy(task.model), loss_reduction="sum")

    def step() -> None:
        model.zero_grad()
        with autocast(precision):
            losses = task.loss(model, *task.batch)
        losses.float().sum().backward()
        samples = []
        for parameter in model.parameters():
            sample = parameter.grad_sample
            samples.append(sample.unflatten(0, (-1, task.rows)).mean(1) if task.rows > 1 else sample)
        norms = torch.stack([sample.flatten(1).float().norm(dim=1) for sample in samples], dim=1).norm(dim=1)
        factors = (CLIP / (norms + 1e-6)).clamp(max=1.0)  # as in DPOptimizer.clip_and_accumulate
        for parameter, sample in zip(model.parameters(), samples, strict=True):
            parameter.grad = torch.einsum("i,i...", factors.to(sample.dtype), sample).to(parameter.dtype)
            parameter.grad_sample = None

    return step


def opacus_ghost(task: Task, precision: str) -> Callable[[], None]:
    """Opacus's ghost clipping: a second backward pass. It knows one row a record; several count as records here."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model = GradSampleModuleFastGradientClipping(
        copy.deepcopy(task.model), max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="sum"
    )

    def step() -> None:
        model.zero_grad()
        model.enable_hooks()
        with autocast(precision):
            losses = task.loss(model, *task.batch).float()
        losses.sum().backward(retain_graph=True)
        model.zero_grad()
        factors = model.get_clipping_coef()
        model.disable_hooks()
        (factors.detach() * losses).sum().backward()

    return step


def vmap(task: Task, precision: str) -> Callable[[], None]:
    """torch.func: per-record gradients by vmap in chunks of 16 records."""
    model = copy.deepcopy(task.model)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(weights: dict[str, Tensor], *record: Tensor) -> Tensor:
        with autocast(precision):
            rows = torch.func.functional_call(
                _Call(model, task.loss), {f"model.{k}": v for k, v in weights.items()}, record
            )
        return rows.float().mean()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *(0 for _ in task.batch)), chunk_size=16)
    batch = tuple(x.unflatten(0, (-1, task.rows)) for x in task.batch)

    def step() -> None:
        samples = gradients(parameters, *batch)
        norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples.values()], dim=1).norm(dim=1)
        factors = (CLIP / (norms + 1e-6)).clamp(max=1.0)
        for sample in samples.values():
            torch.einsum("i,i...", factors, sample)

    return step


class _Call(nn.Module):
    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, *batch)


CONTENDERS: dict[str, Callable[[Task, str], Callable[[], None]]] = {
    "ours": ours,
    "plain_nchw": partial(plain, layout=torch.contiguous_format),
    "plain_nhwc": partial(plain, layout=torch.channels_last),
    "plain_replicas": plain_replicas,
    "opacus_hooks": opacus_hooks,
    "opacus_ghost": opacus_ghost,
    "vmap": vmap,
}
