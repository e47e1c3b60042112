from __future__ import annotations

import threading

import pytest
import torch

from sfumato.errors import UserError
from sfumato.pretrained.huggingface._replicas import Replicas, buckets, chosen_devices, chosen_precision

CPU = torch.device("cpu")


def test_batches_are_always_full_and_results_in_order() -> None:
    seen: list[list[int]] = []

    def double(factor: int, device: torch.device, batch: list[int]) -> list[int]:
        assert device == CPU
        assert torch.is_inference_mode_enabled()
        seen.append(batch)
        return [factor * item for item in batch]

    copies = Replicas(lambda _: 2, [CPU], 4)
    assert copies.map(double, range(10)) == [2 * item for item in range(10)]
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert copies.map(double, []) == []


def test_copies_work_side_by_side_and_each_on_one_batch_at_a_time() -> None:
    together = threading.Barrier(2, timeout=20)
    busy = [threading.Lock(), threading.Lock()]
    numbers = iter(range(2))

    def work(number: int, _: torch.device, batch: list[int]) -> list[tuple[int, int]]:
        assert busy[number].acquire(blocking=False), "two batches on one copy"
        together.wait()
        busy[number].release()
        return [(number, item) for item in batch]

    done = Replicas(lambda _: next(numbers), [CPU, CPU], 3).map(work, range(12))
    assert [item for _, item in done] == list(range(12))
    assert {number for number, _ in done} == {0, 1}


def test_an_error_frees_the_copy() -> None:
    copies = Replicas(lambda _: None, [CPU], 1)

    def fail(*_: object) -> list[int]:
        raise torch.OutOfMemoryError("no room")

    for _ in range(2):
        with pytest.raises(UserError, match="cpu has too little memory for batches of 1"):
            copies.map(fail, [1, 2])


def test_devices_and_precisions() -> None:
    assert chosen_devices("cpu") == [CPU]
    assert chosen_devices(["cpu", "cpu"]) == [CPU, CPU]
    if not torch.cuda.is_available():
        assert chosen_devices("auto") == [CPU]
    assert chosen_precision("auto", [CPU], "fp16") == torch.float32
    assert chosen_precision("bf16", [CPU], "fp16") == torch.bfloat16
    for wrong in ("cuda:99", "abacus", []):
        with pytest.raises(UserError, match="device"):
            chosen_devices(wrong)
    with pytest.raises(UserError, match="There is no precision 'fp8'"):
        chosen_precision("fp8", [CPU], "fp16")
    with pytest.raises(UserError, match="A batch of 0"):
        Replicas(lambda _: 0, [CPU], 0)


def test_a_padded_length_is_decided_by_the_item_alone() -> None:
    assert buckets([3, 16, 17, 70, 100, 5], 77) == {16: [0, 1, 5], 32: [2], 77: [3, 4]}
