from __future__ import annotations

import gzip

import numpy as np
import pytest

from sfumato.data.collections import mnist5k
from sfumato.data.collections.mnist5k import read_table


def table(rows: np.ndarray) -> bytes:
    return gzip.compress("\n".join(",".join(map(str, row)) for row in rows).encode())


def test_lines_become_images_and_labels() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (4, 785))
    rows[:, -1] = [3, 1, 9, 0]
    images, labels = read_table(table(rows))
    assert images.dtype == np.uint8
    assert (images == rows[:, :-1].reshape(4, 28, 28)).all()
    assert labels.tolist() == [3, 1, 9, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1,2",
        gzip.compress(b""),
        gzip.compress(b"1,2\n3"),
        gzip.compress(b"a,b"),
        table(np.full((2, 785), 10)),
        table(np.full((2, 785), 256)),
        table(np.zeros((2, 784), int)),
        gzip.compress(b"0," * 784 + b"-1"),
    ],
    ids=range(9),  # gzip writes the time into what it makes
)
def test_other_tables_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="table of digits"):
        read_table(data)


def test_a_table_that_swells_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist5k, "MAX_TABLE", 1000)
    with pytest.raises(ValueError, match="table of digits"):
        read_table(table(np.zeros((2, 785), int)))
