"""The semantic query: one record moves at most k cells by one, and no other record's votes, bit by bit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.methods.test_clusters import pictures
from tests.privacy.memory_source import SHAPE, held, picture

from sfumato.data.public import PublicSet
from sfumato.errors import UserError
from sfumato.hardware import Hardware
from sfumato.methods.semantic import (
    QUERY,
    SemanticConfig,
    SemanticModel,
    cache_name,
    public_classes,
    semantic_model,
)
from sfumato.nets.classifier import ConvNet
from sfumato.privacy.draws import Draws
from sfumato.privacy.histogram import count_votes
from sfumato.privacy.plan import HistogramTouch
from sfumato.privacy.records import Rows

CPU = Hardware(torch.device("cpu"), "fp32")
VOTES, PUBLIC = 3, 7


def untrained(classes: int = PUBLIC, shape: tuple[int, int, int] = SHAPE) -> SemanticModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = ConvNet(shape, classes).eval().requires_grad_(False)
    return SemanticModel(network, np.arange(20) % classes, tuple(map(str, range(classes))))


def rows(images: torch.Tensor, labels: torch.Tensor, present: torch.Tensor | None = None) -> Rows:
    count = len(images)
    present = torch.ones(count, dtype=torch.bool) if present is None else present
    return Rows(images, labels, present, Draws(b"", "", 0, [bytes(16)] * count))


@pytest.mark.parametrize("unit", ["image", "person"])
@pytest.mark.parametrize("classes", [None, ("a", "b")])
def test_one_record_moves_at_most_k_cells(unit: str, classes: tuple[str, ...] | None, tmp_path: Path) -> None:
    everyone = [picture(n, label="abc"[n % 3], person=f"p{n % 8}", readable=n != 4) for n in range(12)]
    touch = HistogramTouch(QUERY, cells=VOTES, rounds=1, scale=1.0)
    private = len(classes or ())
    votes, cells = untrained().ballots(private, VOTES), max(private, 1) * PUBLIC

    def counted(some: list[object], name: str) -> np.ndarray:  # type: ignore[type-arg]
        return count_votes(held(some, tmp_path / name, unit=unit, classes=classes), touch, 1, votes, cells)  # type: ignore[arg-type]

    whole, moved = counted(everyone, "x"), []  # type: ignore[arg-type]
    for gone in {p.identity if unit == "image" else p.person for p in everyone}:
        rest = [p for p in everyone if gone not in (p.identity, p.person)]
        difference = whole - counted(rest, "y")  # type: ignore[arg-type]
        assert set(np.unique(difference)) <= {0, 1}
        assert difference.sum() in (0, VOTES)
        moved.append(int(difference.sum()))
    assert max(moved) == VOTES
    if unit == "image":
        silent = 1 if classes is None else 1 + 4  # the unreadable one; and class c, which is not declared
        assert moved.count(0) == silent
    assert whole.sum() == sum(moved)


def test_close_ballots_do_not_depend_on_the_place_in_the_batch() -> None:
    """Logits that differ by rounding errors alone: the votes of a record must stay what they are wherever it lies."""
    model = untrained(40, (1, 12, 12))
    with torch.no_grad():
        last = model.network[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.copy_(last.weight[:1] + 3e-7 * torch.randn(last.weight.shape, generator=torch.manual_seed(0)))
        last.bias.zero_()
    vote = model.ballots(0, VOTES)
    images = torch.randint(0, 256, (80, 1, 12, 12), dtype=torch.uint8, generator=torch.manual_seed(1))
    labels = torch.full((80,), -1)
    before = vote(rows(images, labels))
    scaled = images.float() / 127.5 - 1
    rough = model.network(scaled)
    exact = copy.deepcopy(model.network).double()(scaled.double())
    ranked, roughly = (logits.argsort(dim=1, descending=True, stable=True)[:, :VOTES] for logits in (exact, rough))
    assert not torch.equal(roughly.sort(1).values, ranked.sort(1).values), "the test needs logits that float32 confuses"
    assert torch.equal(before.sort(1).values, ranked.sort(1).values)
    for shift in (1, 5, 33):
        assert torch.equal(vote(rows(images.roll(shift, 0), labels)), before.roll(shift, 0))
    alone = vote(rows(images[:1].repeat(80, 1, 1, 1), labels))
    assert (alone == before[:1]).all()


def test_ties_go_to_the_lowest_class() -> None:
    model = untrained()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.zero_()
    images = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    assert model.ballots(0, VOTES)(rows(images, torch.tensor([-1, -1]))).tolist() == [[0, 1, 2]] * 2


def test_cells_belong_to_the_label_and_strangers_abstain() -> None:
    model = untrained()
    images = torch.randint(0, 256, (1, *SHAPE), dtype=torch.uint8).repeat(3, 1, 1, 1)
    first, second, none = model.ballots(2, VOTES)(rows(images, torch.tensor([0, 1, -1]))).tolist()
    assert [cell + PUBLIC for cell in first] == second
    assert none == [-1] * VOTES
    few = untrained(2).ballots(2, VOTES)(rows(images[:1], torch.tensor([1])))
    assert sorted(few[0].tolist()) == [-1, 2, 3]


def test_a_classifier_learns_and_is_kept(tmp_path: Path) -> None:
    pixels, quarter = pictures(160)
    names = ("a", "b", "c", "d")
    config = SemanticConfig(steps=12)
    files = (tmp_path / "run" / "c.safetensors", tmp_path / "cache" / "c.safetensors")
    steps: list[int] = []
    known = PublicSet(pixels, quarter.astype(np.int64), names)
    made = semantic_model(
        config, known, seed=0, hardware=CPU, files=files, progress=lambda done, of: steps.append(done)
    )
    assert steps == list(range(1, 13))
    best = made.ballots(0, 1)(rows(torch.from_numpy(pixels[:80]), torch.full((80,), -1)))[:, 0]
    assert float((best.numpy() == quarter[:80]).mean()) > 0.9
    files[0].unlink()
    again = semantic_model(config, known, seed=0, hardware=CPU, files=files, progress=lambda *_: pytest.fail("trained"))
    assert files[0].exists()
    assert again.classes == names
    state = again.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in made.network.state_dict().items())
    files[0].write_bytes(b"broken")
    assert semantic_model(config, known, seed=0, hardware=CPU, files=files).classes == names


def test_pictures_without_labels_are_grouped(tmp_path: Path) -> None:
    pixels, quarter = pictures(200)
    file = tmp_path / "c.safetensors"
    config = SemanticConfig(steps=1, clusters=4)
    halves = np.where(np.arange(200) % 7 == 0, 1 - quarter // 2, quarter // 2)  # most pictures of a quarter are of one
    for known in (PublicSet(pixels, None, ()), PublicSet(pixels, halves, ("low", "high"))):
        file.unlink(missing_ok=True)
        made = semantic_model(config, known, seed=0, hardware=CPU, files=(file,))
        for number in range(4):
            half = ("low", "high")[int(quarter[made.labels == number][0]) // 2]
            assert made.classes[number] == (f"group {number}" if known.labels is None else f"{half} (group {number})")
        assert len(set(zip(made.labels.tolist(), quarter.tolist(), strict=True))) == 4
        loaded = semantic_model(config, known, seed=1, hardware=CPU, files=(file,))
        assert np.array_equal(loaded.labels, made.labels)
        assert loaded.classes == made.classes


def test_what_decides_a_classifier_is_in_its_name() -> None:
    config = SemanticConfig()
    names = {
        cache_name(config, ["x"], 0),
        cache_name(config, ["y"], 0),
        cache_name(config, ["x"], 1),
        cache_name(SemanticConfig(steps=7), ["x"], 0),
        cache_name(SemanticConfig(clusters=7), ["x"], 0),
        cache_name(SemanticConfig(space="efficientnet-lite0"), ["x"], 0),
    }
    assert len(names) == 6
    assert cache_name(SemanticConfig(votes=2, share=0.1), ["x"], 0) in names


def test_the_choice_follows_the_votes() -> None:
    model, config = untrained(4), SemanticConfig(kept=0.5)
    assert model.choose(config, np.array([[9, 1, 8, 0], [8, 2, 7, 1]])).tolist() == [[0], [2]]
    assert model.choose(config, np.array([[1, 5, 2, 7]])).tolist() == [[3, 1]]
    crowd = np.eye(6, 4, dtype=np.int64)  # more private classes than public ones: they share
    assert model.choose(config, crowd)[:4, 0].tolist() == [0, 1, 2, 3]


def test_too_few_public_classes() -> None:
    config = SemanticConfig()
    assert public_classes(config, ("a", "b"), 50) == 2
    assert public_classes(config, (), 50) == 50
    assert public_classes(SemanticConfig(clusters=5), ("a", "b"), 50) == 5
    config.check(4, 4)
    with pytest.raises(UserError, match="votes for 3 public classes, but there are 2"):
        config.check(1, 2)
    with pytest.raises(UserError, match="overlapping"):
        config.check(5, 4)
    SemanticConfig(rule="overlapping").check(5, 4)
