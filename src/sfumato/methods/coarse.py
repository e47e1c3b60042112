"""The private stage of Spectral: a model of coarse tokens alone, as private training sees it.

A record's tokens are those of the coarsest scale. They are an exact function of the record's image (see
`sfumato.nets.tokenizer`), formed anew in every step; nothing of the finer scales is ever computed from a private image.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from sfumato.hardware import Hardware
from sfumato.methods.denoising import Schedule
from sfumato.nets.adapters import Trained, merge, select, trained_parameters
from sfumato.nets.autoregressive import Condition, ScaleGPT
from sfumato.nets.tokenizer import Tokenizer
from sfumato.privacy.records import Rows


def coarse_network(public: ScaleGPT, condition: Condition) -> ScaleGPT:
    """The part of a public model that knows the coarsest scale, told of other conditions.

    Classes begin as what the public model knows without any; texts are told as they were.
    """
    made = ScaleGPT(public.vocabulary, 1, public.tokens, public.shape, condition)
    known = public.state_dict()
    state = {name: known[name] for name in made.state_dict() if not name.startswith(("start.", "places."))}
    state["places.weight"] = known["places.weight"][: public.tokens]
    if condition.kind == public.condition.kind:
        state |= {name: value for name, value in known.items() if name.startswith("start.")}
    else:
        nothing = public._begin(public.condition.nothing(1))[0].detach()
        state["start.weight"] = nothing.expand(condition.size + 1, -1)
    made.load_state_dict(state)
    return made.eval().requires_grad_(False)


def set_sizes(network: ScaleGPT, rank: int) -> dict[Trained, int]:
    """Parameters of every trained set."""
    sizes = {}
    for kind in get_args(Trained):
        tried = copy.deepcopy(network)
        select(tried, kind, rank)
        sizes[kind] = trained_parameters(tried)
    return sizes


class CoarseLearner:
    """Trains a set of a `ScaleGPT`'s parameters on the coarse tokens of images; a `Learner` of private training."""

    def __init__(
        self,
        network: ScaleGPT,
        tokenizer: Tokenizer,
        vectors: Tensor | None,
        schedule: Schedule,
        *,
        trained: Trained,
        rank: int,
        average: float,
        label_dropout: float,
        seed: int,
        hardware: Hardware,
    ) -> None:
        """
        Args:
            network: of the coarse tokens; copied.
            tokenizer: public and frozen.
            vectors: of the classes' names, `(classes, size)`, where these are told as texts.
            schedule: learning rate.
            trained: what moves.
            rank: of adapters.
            average: decay of the exponential moving average of what moves.
            label_dropout: share of the records shown without class or caption, each step anew.
            seed: of the public initialisation of adapters.
            hardware: where to compute.
        """
        self.model = copy.deepcopy(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            select(self.model, trained, rank)
        self.model.to(hardware.device)
        self.tokenizer = copy.deepcopy(tokenizer).to(hardware.device)
        self.vectors = None if vectors is None else vectors.to(hardware.device)
        self.schedule, self.average, self.label_dropout = schedule, average, label_dropout
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self._trained = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        self._slow = {name: self.averaged.get_parameter(name) for name in self._trained}
        self.optimizer = torch.optim.Adam(self._trained.values(), lr=schedule.peak, betas=(0.9, 0.99))
        for parameter in self._trained.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # zero gradients: creates the moments without moving the weights

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        """Mean surprise of each row's coarse tokens; whether what it is told is hidden is the record's own draw."""
        assert isinstance(model, ScaleGPT)
        tokens = self.tokenizer.encode(rows.images, 1)
        labels, captions = rows.labels, rows.captions
        told = condition_of(model.condition, labels, self.vectors) if captions is None else captions
        if model.condition.kind != "none" and self.label_dropout:
            draws = rows.draws.uniform("label", len(labels) // len(rows.present)).flatten().to(labels.device)
            hidden = (draws < self.label_dropout).view(-1, *[1] * (told.dim() - 1))
            told = torch.where(hidden, model.condition.nothing(len(labels)).to(told), told)
        return model.losses(tokens, told)

    def update(self, gradient: Mapping[str, Tensor], step: int) -> None:
        """One step of Adam, one step of the average."""
        for name, parameter in self._trained.items():
            parameter.grad = gradient[name].to(parameter).clone()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(step)
        self.optimizer.step()
        decay = min(self.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, slow in self._slow.items():
                slow.lerp_(self._trained[name], 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """What moves, its average, and Adam's moments, by name; what is frozen is public or was released before."""
        state = {f"model.{name}": value for name, value in self._trained.items()}
        state |= {f"average.{name}": value for name, value in self._slow.items()}
        for name, parameter in self._trained.items():
            for key, value in self.optimizer.state[parameter].items():
                state[f"adam.{name}.{key}"] = value
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in state.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave."""
        for name, parameter in self._trained.items():
            parameter.copy_(state[f"model.{name}"])
            self._slow[name].copy_(state[f"average.{name}"])
            for key, value in self.optimizer.state[parameter].items():
                value.copy_(state[f"adam.{name}.{key}"])

    def finished(self) -> ScaleGPT:
        """The averaged model, adapters merged, on the processor."""
        made = copy.deepcopy(self.averaged).to("cpu")
        merge(made)
        return made.requires_grad_(False)


def condition_of(condition: Condition, labels: Tensor, vectors: Tensor | None) -> Tensor:
    """What a model is told of rows with these labels `(N,)`, -1 for none; where it hears texts, `vectors` of them."""
    if condition.kind == "none":
        return torch.full_like(labels, -1)
    if condition.kind == "class":
        return labels
    if vectors is None:
        return condition.nothing(len(labels)).to(labels.device)
    return torch.where(labels[:, None] < 0, 0.0, vectors[labels.clamp(min=0)])
