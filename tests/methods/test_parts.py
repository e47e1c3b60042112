"""A drawing that was cut off goes on as if nothing had happened, and makes nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato.methods.parts import Parts


class Drawing:
    """Parts of random numbers; the part that is to fail does so after it has drawn some."""

    def __init__(self) -> None:
        self.made = 0

    def draw(self, folder: Path | None, sizes: tuple[int, ...] = (3, 3, 3, 2), fails: int = -1) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        parts = Parts(folder, generator)

        def make(count: int, number: int) -> Tensor:
            drawn = torch.rand(count, 2, generator=generator)
            if number == fails:
                raise InterruptedError
            self.made += 1
            return drawn

        return torch.cat([parts.next(size, lambda s=size, n=n: make(s, n)) for n, size in enumerate(sizes)])


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_it_goes_on_where_it_was_cut_off(tmp_path: Path, cut: int) -> None:
    drawing, whole = Drawing(), Drawing().draw(None)
    with pytest.raises(InterruptedError):
        drawing.draw(tmp_path / "drawn" / "11-4", fails=cut)
    assert drawing.made == cut
    for _ in range(2):  # and when all is there
        assert torch.equal(drawing.draw(tmp_path / "drawn" / "11-4"), whole)
        assert drawing.made == 4
    assert all(file.stat().st_mode & 0o77 == 0 for file in tmp_path.rglob("*"))


def test_a_broken_part_is_made_anew(tmp_path: Path) -> None:
    drawing, whole = Drawing(), Drawing().draw(None)
    drawing.draw(tmp_path / "one")
    sorted((tmp_path / "one").iterdir())[2].write_bytes(b"broken")
    assert torch.equal(drawing.draw(tmp_path / "one"), whole)
    assert drawing.made == 4 + 2


def test_parts_of_another_length_and_those_behind_are_made_anew(tmp_path: Path) -> None:
    drawing, sizes = Drawing(), (3, 4, 3, 1)
    drawing.draw(tmp_path / "one")
    assert torch.equal(drawing.draw(tmp_path / "one", sizes), Drawing().draw(None, sizes))
    assert drawing.made == 4 + 3
    assert torch.equal(drawing.draw(tmp_path / "one", sizes), Drawing().draw(None, sizes))
    assert drawing.made == 4 + 3
