"""What a public training had when it was cut off, so that it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sfumato._files import write_atomic

EVERY = 120.0
"""Seconds between two checkpoints."""


class Checkpoint:
    """What a training of several stages had when it was cut off, in one file.

    Written after each stage, and within a stage from time to time: the modules, the generator's state, and the
    optimiser's. What follows is as if nothing had happened.

    Args:
        file: None keeps nothing.
        modules: all that learns, by name; they take over what the file has.
        generator: of all randomness of the stages; likewise.
        beside: what else decides the next step, by name; likewise.
        facts: metadata of the file, such as that it is NOT PRIVATE.
    """

    def __init__(
        self,
        file: Path | None,
        modules: Mapping[str, nn.Module],
        generator: torch.Generator,
        beside: dict[str, Tensor] | None = None,
        facts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._file, self._modules, self._generator = file, modules, generator
        self._beside, self._facts = {} if beside is None else beside, facts
        self._finished: list[str] = []
        self._stage, self._step, self._saved = "", 0, time.monotonic()
        self._moments: dict[str, Tensor] = {}
        if file is not None and file.exists():
            self._restore(file)

    def opens(self, stage: str) -> bool:
        """Whether a stage is still to be done; it is the one at work then."""
        if stage in self._finished:
            return False
        if self._stage != stage:
            self._stage, self._step, self._moments = stage, 0, {}
        return True

    def closes(self) -> None:
        """The stage at work is done."""
        self._finished.append(self._stage)
        self._save(self._stage, 0, {})

    def steps_done(self, optimizer: torch.optim.Optimizer) -> int:
        """Steps of the stage at work that were made before; the optimiser takes over its moments."""
        if self._step:
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in self._moments.items():
                number, key = name.split(".")
                state.setdefault(int(number), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return self._step

    def keeps(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Writes where the stage at work is, if the last time was long ago."""
        if self._file is not None and time.monotonic() - self._saved >= EVERY:
            moments = {
                f"{number}.{key}": value
                for number, values in optimizer.state_dict()["state"].items()
                for key, value in values.items()
            }
            self._save(self._stage, step, moments)

    def _save(self, stage: str, step: int, moments: Mapping[str, Tensor]) -> None:
        if self._file is None:
            return
        state = {f"modules.{name}": value for name, value in self._state().items()}
        state |= {f"moments.{name}": value for name, value in moments.items()}
        state |= {f"beside.{name}": value.clone() for name, value in self._beside.items()}
        state["generator"] = self._generator.get_state()
        facts = {**self._facts, "finished": json.dumps(self._finished), "stage": stage, "step": str(step)}
        whole = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self._file, save(whole, facts), mode=0o600)
        self._saved = time.monotonic()

    def _restore(self, file: Path) -> None:
        try:
            state = load_file(file)
            with safe_open(file, "pt") as opened:
                facts = opened.metadata()
        except (OSError, SafetensorError):
            return

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        known, here = part("modules."), self._state()
        if {name: value.shape for name, value in known.items()} != {name: value.shape for name, value in here.items()}:
            return  # of another version
        for name, module in self._modules.items():
            prefix = f"{name}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in known.items() if k.startswith(prefix)})
        self._generator.set_state(state["generator"])
        self._beside.update(part("beside."))
        self._finished, self._moments = json.loads(facts["finished"]), part("moments.")
        self._stage, self._step = facts["stage"], int(facts["step"])

    def _state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, module in self._modules.items()
            for key, value in module.state_dict().items()
        }
