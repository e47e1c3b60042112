"""One record, one bounded contribution, and nothing about it depends on another."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.errors import PrivacyRefusal, UserError
from sfumato.privacy.records import PrivateRecords
from tests.privacy.memory_source import KEY, SHAPE, MemorySource, Picture, held, picture


def shown(records: PrivateRecords, step: int = 1, rows: int = 1, size: int = 4) -> dict[bytes, tuple[bytes, ...]]:
    """What each record shows at a step: identity to (pixels, labels, presence, first draws)."""
    seen = {}
    everyone = np.arange(records._size())
    for chunk, numbers in records._chunks(everyone, size, rows, "touch", step):
        images = chunk.images.view(size, rows, *SHAPE)
        labels = chunk.labels.view(size, rows)
        normal = chunk.draws.normal("x", 3)
        for place, number in enumerate(numbers):
            seen[records._identities[number].tobytes()] = (
                images[place].numpy().tobytes(),
                labels[place].numpy().tobytes(),
                bytes(chunk.present[place : place + 1].numpy()),
                normal[place].numpy().tobytes(),
            )
    return seen


PEOPLE = [
    picture(number, label="ab"[number % 2], person=f"person-{number % 5}", readable=number != 7) for number in range(20)
]


@pytest.mark.parametrize("unit", ["image", "person"])
@pytest.mark.parametrize("classes", [None, ("a", "b"), ("a",)])
@pytest.mark.parametrize("rows", [1, 3])
def test_removing_a_record_leaves_every_other_as_it_was(
    unit: str, classes: tuple[str, ...] | None, rows: int, tmp_path: Path
) -> None:
    everyone = shown(held(PEOPLE, tmp_path / "all", unit=unit, classes=classes), rows=rows)  # type: ignore[arg-type]
    assert len(everyone) == (20 if unit == "image" else 5)
    for gone in {p.identity if unit == "image" else p.person for p in PEOPLE}:
        rest = [p for p in PEOPLE if gone not in (p.identity, p.person)]
        fewer = shown(held(rest, tmp_path / str(gone), unit=unit, classes=classes), rows=rows)  # type: ignore[arg-type]
        assert len(fewer) == len(everyone) - 1
        assert all(everyone[name] == seen for name, seen in fewer.items())


def test_the_order_of_the_source_does_not_matter(tmp_path: Path) -> None:
    class Shuffled(MemorySource):
        def entries(self):  # type: ignore[no-untyped-def]
            yield from reversed(list(super().entries()))

    def take(source: MemorySource, folder: str) -> PrivateRecords:
        records, _ = PrivateRecords.intake(
            source, None, SHAPE, unit="person", classes=None, folder=tmp_path / folder, key=KEY, fingerprint_key=KEY
        )
        return records

    one, other = take(MemorySource(PEOPLE), "a"), take(Shuffled(PEOPLE), "b")
    assert one._identities.tolist() != other._identities.tolist()
    sets_one = {name: seen[2:] for name, seen in shown(one).items()}
    sets_other = {name: seen[2:] for name, seen in shown(other).items()}
    assert sets_one == sets_other


def test_a_person_shows_images_of_all_classes_over_time(tmp_path: Path) -> None:
    records = held(PEOPLE, tmp_path, unit="person", classes=("a", "b"))
    labels = {seen[1] for step in range(40) for seen in [next(iter(shown(records, step).values()))]}
    assert len(labels) == 2


def test_null_contributions(tmp_path: Path) -> None:
    pictures = [
        picture(0, label="a"),
        picture(1, label="a", readable=False),
        picture(2, label="not declared"),
        picture(3, label=None),
        picture(4, label="b"),
    ]
    records = held(pictures, tmp_path, classes=("a", "b"))
    present = [seen[2] == b"\x01" for seen in shown(records).values()]
    assert present == [True, False, False, False, True]
    unreadable = held([picture(n, person="p", readable=False) for n in range(3)], tmp_path / "p", unit="person")
    assert [seen[2] for seen in shown(unreadable).values()] == [b"\x00"]


def test_an_unreadable_image_of_a_person_is_passed_over(tmp_path: Path) -> None:
    pictures = [picture(0, person="p"), picture(1, person="p", readable=False)]
    records = held(pictures, tmp_path, unit="person")
    assert all(next(iter(shown(records, step).values()))[2] == b"\x01" for step in range(20))


def test_chunks_have_one_shape(tmp_path: Path) -> None:
    records = held([picture(number) for number in range(9)], tmp_path)
    shapes = {tuple(chunk.images.shape) for chunk, _ in records._chunks(np.arange(9), 4, 2, "t", 1)}
    assert shapes == {(8, *SHAPE)}
    last = [chunk for chunk, _ in records._chunks(np.arange(9), 4, 2, "t", 1)][-1]
    assert last.present.tolist() == [True, False, False, False]
    assert not last.images[2:].any()


def test_nothing_private_is_offered(tmp_path: Path) -> None:
    few, many = held([picture(1)], tmp_path / "1"), held([picture(n) for n in range(9)], tmp_path / "9")
    assert repr(few) == repr(many) == "PrivateRecords(unit='image')"
    for operation in (len, iter, list):
        with pytest.raises(TypeError):
            operation(many)  # type: ignore[operator, arg-type]
    with pytest.raises(TypeError):
        many[0]  # type: ignore[index]
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(PrivacyRefusal):
            leak(many)
    public = {name for name in vars(PrivateRecords) | vars(many) if not name.startswith("_")}
    assert public == {"intake", "unit", "image_shape"}


def test_person_needs_a_person_for_every_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="person_id"):
        held([picture(1, person="p"), picture(2)], tmp_path, unit="person")


def test_intake_of_nothing_and_of_one(tmp_path: Path) -> None:
    assert held([], tmp_path / "0")._size() == 0
    assert held([picture(1)], tmp_path / "1")._size() == 1


def test_the_private_folder_is_closed_to_others(tmp_path: Path) -> None:
    held([picture(1)], tmp_path / "private")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "private" / "pixels.u8").stat().st_mode & 0o777 == 0o600


def test_fingerprint_sees_every_change(tmp_path: Path) -> None:
    def fingerprint(pictures: list[Picture]) -> str:
        _, report = PrivateRecords.intake(
            MemorySource(pictures), None, SHAPE, unit="image", classes=None, folder=tmp_path, key=KEY,
            fingerprint_key=KEY,
        )  # fmt: skip
        json.dumps(report._replace(digests=b"")._asdict() | {"digests": None})
        return report.fingerprint

    base = [picture(number) for number in range(4)]
    assert fingerprint(base) == fingerprint(base)
    renamed = [*base[:3], Picture("other", base[3].pixels)]
    changed = [*base[:3], Picture(base[3].identity, base[2].pixels)]
    assert len({fingerprint(p) for p in (base, base[:3], renamed, changed)}) == 4


def test_everything_that_reads_records_is_in_the_trusted_core() -> None:
    root = Path(__file__).parents[2] / "src" / "sfumato"
    for path in root.rglob("*.py"):
        if "privacy" not in path.relative_to(root).parts:
            text = path.read_text()
            assert "._chunks" not in text, path
            assert "._pixels" not in text, path
            assert "._size(" not in text, path


def test_draws_of_absent_records_exist(tmp_path: Path) -> None:
    records = held([picture(1)], tmp_path)
    chunk, _ = next(records._chunks(np.arange(1), 4, 1, "t", 1))
    assert torch.isfinite(chunk.draws.normal("x", 5)).all()
    assert chunk.draws.normal("x", 5).shape == (4, 5)
