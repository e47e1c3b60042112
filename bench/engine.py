"""What a DP step costs: our engine beside a plain step, Opacus and torch.func.vmap, on the same network and batch.

    pip install opacus==1.6.0 opt-einsum --no-deps
    python bench/engine.py

A step is forward, backward and, for private ones, the sum of clipped per-record gradients; no optimiser, no noise. The
contenders of a network take turns, at least five times each; figures are medians. "Plain" is a `nn.Module` step on all
of PyTorch's threads, the faster of its two memory layouts; `plain_replicas` is the same with one replica a core, as our
engine works. Peak memory is that of a process which does nothing else.

Last line: {"gpt16": {"dp_over_plain": .., "opacus_fp32_over_ours": .., "opacus_bf16_over_ours": ..,
"memory_over_plain": ..}, ..., "without_bf16": {"gpt16": {..}, ..}}; Opacus is the faster of its modes "hooks" and
"ghost". The cells that end with "fp32", under "without_bf16", are float32 alone. "film", "attention"
and "entropy" have the time in PyTorch over that of compiled code, alone on one thread and within our step: of what lies
between the U-Net's convolutions (K = 1), and of attention and cross-entropy of the GPTs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import machine, run
from contenders import CLIP, CONTENDERS, TASKS, VOCABULARY, autocast, ours
from torch import Tensor

from sfumato.hardware import keep_freed_memory
from sfumato.nets import attention, entropy, film

REPEATS, LEAST_SECONDS = 7, 0.5
PARTS = {"attention": attention, "entropy": entropy}
SLOW = {"unet_wide": {"vmap"}}
FP32 = " fp32"


def measure(name: str, repeats: int, has_bf16: bool) -> dict[str, Any]:
    """Seconds a record of every contender in both precisions, in turns."""
    keep_freed_memory()
    warnings.filterwarnings("ignore", message="Full backward hook")  # Opacus's
    torch.manual_seed(0)
    task = TASKS[name]()
    steps: dict[str, Callable[[], None]] = {}
    failures: dict[str, str] = {}
    for contender, make in CONTENDERS.items():
        if contender in SLOW.get(name, ()) or (contender == "plain_nhwc" and name.startswith("gpt")):
            continue
        for precision in ("fp32", "bf16") if has_bf16 else ("fp32",):
            key = f"{contender}_{precision}"
            try:
                step = make(task, precision)
                step()
                steps[key] = step
            except Exception as error:
                failures[key] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    times: dict[str, list[float]] = {key: [] for key in steps}
    counts = {key: _repeats_of(step) for key, step in steps.items()}
    for _ in range(repeats):
        for key, step in steps.items():
            began = time.perf_counter()
            for _ in range(counts[key]):
                step()
            times[key].append((time.perf_counter() - began) / counts[key] / task.records)
    return {
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "records": task.records,
        "rows": task.rows,
        "seconds_a_record": {key: [round(value, 8) for value in values] for key, values in times.items()},
        "failed": failures,
    }


def _repeats_of(step: Callable[[], None]) -> int:
    step()
    began = time.perf_counter()
    step()
    return max(1, math.ceil(LEAST_SECONDS / (time.perf_counter() - began)))


def measure_film(repeats: int, has_bf16: bool) -> dict[str, list[float]]:
    """Seconds of what lies between convolutions, forward and backward, and of our step with it, either way in turns."""
    torch.manual_seed(0)
    steps: dict[str, Callable[[], None]] = {}
    for precision, dtype in _precisions(has_bf16):
        x = torch.randn(128, 32, 14, 14, dtype=dtype).contiguous(memory_format=torch.channels_last)
        values = [x.requires_grad_(), *torch.randn(2, 128, 32, dtype=dtype).requires_grad_().unbind()]
        steps[f"alone_{precision}"] = partial(
            _backward, lambda v: film.film_silu(*v), values, torch.randn_like(x), precision
        )
        steps[f"step_{precision}"] = ours(TASKS["unet_k1"](), precision)
    return _either_way(film, steps, repeats)


def measure_transformers(repeats: int, has_bf16: bool, owner: Any) -> dict[str, list[float]]:
    """Seconds of one part of a transformer, forward and backward, and of our step with it, either way in turns."""
    torch.manual_seed(0)
    steps: dict[str, Callable[[], None]] = {}
    for precision, dtype in _precisions(has_bf16):
        for rows, length in ((64, 16), (32, 64), (8, 256)):  # as many as an engine's chunk has
            if owner is attention:
                x, gradient = torch.randn(rows, length, 768, dtype=dtype), torch.randn(rows, length, 256, dtype=dtype)
                steps[f"alone{length}_{precision}"] = partial(
                    _backward, lambda x: attention.attention(x, 8, True), x.requires_grad_(), gradient, precision
                )
            if owner is entropy:
                x, tokens = torch.randn(rows, length, VOCABULARY, dtype=dtype), torch.zeros(rows, length).long()
                lose = partial(entropy.mean_cross_entropy, tokens=tokens)
                steps[f"alone{length}_{precision}"] = partial(
                    _backward, lose, x.requires_grad_(), torch.ones(rows), precision
                )
            steps[f"step{length}_{precision}"] = ours(TASKS[f"gpt{length}"](), precision)
    return _either_way(owner, steps, repeats)


def _precisions(has_bf16: bool) -> tuple[tuple[str, torch.dtype], ...]:
    return (("fp32", torch.float32), ("bf16", torch.bfloat16))[: 1 + has_bf16]


def _backward(use: Callable[[Any], Tensor], values: Any, gradient: Tensor, precision: str) -> None:
    with autocast(precision):
        use(values).backward(gradient)


def _either_way(owner: Any, steps: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step where `owner` does what it fits and where nothing fits it; those "alone" on one thread."""
    keep_freed_memory()
    times: dict[str, list[float]] = {}
    counts = {key: _repeats_of(step) for key, step in steps.items()}
    threads, fits = torch.get_num_threads(), owner.fits
    try:
        for _ in range(repeats):
            for key, step in steps.items():
                torch.set_num_threads(1 if key.startswith("alone") else threads)
                for way, chosen in (("compiled", fits), ("pytorch", lambda *_: False)):
                    owner.fits = chosen
                    step()
                    began = time.perf_counter()
                    for _ in range(counts[key]):
                        step()
                    times.setdefault(f"{key}_{way}", []).append((time.perf_counter() - began) / counts[key])
    finally:
        owner.fits = fits
        torch.set_num_threads(threads)
    return {key: [round(value, 8) for value in values] for key, values in times.items()}


def measure_memory(has_bf16: bool) -> dict[str, dict[str, float]]:
    """Peak megabytes of ours and of plain steps, by network; the less of plain's two layouts."""
    precision = "bf16" if has_bf16 else "fp32"
    found = {}
    for name in TASKS:
        plain = [_peak(name, f"plain_{layout}_{precision}") for layout in ("nchw", "nhwc")]
        found[name] = {"ours": _peak(name, f"ours_{precision}"), "plain": min(plain)}
    return found


def _peak(name: str, contender: str) -> float:
    """Most memory of a process that takes three steps, less what it has with network and batch before the first."""
    command = [sys.executable, __file__, "--peak", f"{name}:{contender}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _print_peak(what: str) -> None:
    name, _, contender = what.partition(":")
    kind, _, precision = contender.rpartition("_")
    keep_freed_memory()
    task = TASKS[name]()
    step = CONTENDERS[kind](task, precision)
    before = _status("VmRSS")
    for _ in range(3):
        step()
    print(round(_status("VmHWM") - before, 1))  # not ru_maxrss, which a process inherits from the one that starts it


def _status(field: str) -> float:
    """Megabytes that the system notes about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """One a network, and one for memory; and float32 alone, for processors that have nothing else."""
    has_bf16 = bool(machine()["bf16"])
    networks = {name: partial(measure, name, REPEATS, has_bf16) for name in TASKS}
    without = {name + FP32: partial(measure, name, REPEATS, False) for name in TASKS if name != "unet_wide"}
    others = {
        "memory": partial(measure_memory, has_bf16),
        "film": partial(measure_film, REPEATS, has_bf16),
        **{name: partial(measure_transformers, REPEATS, has_bf16, owner) for name, owner in PARTS.items()},
    }
    return {**networks, **others, **without}


def ratios(cell: dict[str, Any], memory: dict[str, float] | None) -> dict[str, Any]:
    """The figures of the last line from one network's cell and its peaks of memory."""
    median = {key: statistics.median(values) for key, values in cell["seconds_a_record"].items()}

    def best(*prefixes: str, precision: str) -> float | None:
        found = [v for k, v in median.items() if k.startswith(prefixes) and k.endswith(precision)]
        return min(found) if found else None

    def over(one: float | None, other: float | None) -> float | None:
        return round(one / other, 3) if one and other else None

    precision = "bf16" if "ours_bf16" in median else "fp32"
    our = median[f"ours_{precision}"]
    return {
        "dp_over_plain": over(our, best("plain_n", precision=precision)),
        "opacus_fp32_over_ours": over(best("opacus", precision="fp32"), our),
        "opacus_bf16_over_ours": over(best("opacus", precision="bf16"), our),
        "memory_over_plain": over(memory["ours"], memory["plain"]) if memory else None,
        "dp_over_plain_replicas": over(our, best("plain_replicas", precision=precision)),
        "dp_over_plain_fp32": over(median["ours_fp32"], best("plain_n", precision="fp32")),
        "vmap_over_ours": over(best("vmap", precision="fp32"), our),
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    line = {name: ratios(found[name], found.get("memory", {}).get(name)) for name in TASKS if name in found}
    without = {name: ratios(found[name + FP32], None) for name in TASKS if name + FP32 in found}
    gains = {cell: _gains(found[cell]) for cell in ("film", *PARTS) if cell in found}
    return line | ({"without_bf16": without} if without else {}) | gains


def _gains(times: dict[str, list[float]]) -> dict[str, float]:
    """PyTorch's time over that with compiled code."""
    median = {key: statistics.median(values) for key, values in times.items()}
    return {
        key.removesuffix("_pytorch"): round(value / median[key.replace("pytorch", "compiled")], 3)
        for key, value in median.items()
        if key.endswith("_pytorch")
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        _print_peak(sys.argv[2])
        sys.exit()
    run(
        "engine",
        cells,
        summary,
        settings={"repeats": REPEATS, "clip_norm": CLIP, "threads": torch.get_num_threads()},
    )
