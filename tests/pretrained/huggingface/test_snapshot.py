from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato._files import sha256_file
from sfumato.errors import UserError
from sfumato.pretrained.huggingface._snapshot import INDEX, choose, find, library

CONFIG = json.dumps({"model_type": "bert"})
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def chosen(*files: str, half: bool = False, index: dict[str, Any] | None = None) -> tuple[list[str], str | None]:
    return choose(files, index, half, "a model")


def test_safetensors_and_text_are_chosen_and_nothing_else() -> None:
    held = ["model.safetensors", "pytorch_model.bin", "config.json", "vocab.txt", "modeling.py", "onnx/model.onnx"]
    held += ["onnx/config.json", "1_Pooling/config.json", "README.md", "open_clip.safetensors", "tf_model.h5"]
    assert chosen(*held) == (["1_Pooling/config.json", "config.json", "model.safetensors", "vocab.txt"], None)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert chosen(*shards) == (shards, None)


def test_half_precision_chooses_smaller_weights() -> None:
    both = ["config.json", "model.fp16.safetensors", "model.safetensors"]
    assert chosen(*both) == (["config.json", "model.safetensors"], None)
    assert chosen(*both, half=True) == (["config.json", "model.fp16.safetensors"], "fp16")
    assert chosen("config.json", "model.fp16.safetensors") == (["config.json", "model.fp16.safetensors"], "fp16")
    assert chosen("config.json", "model.safetensors", half=True)[1] is None


def test_a_pipeline_is_its_parts() -> None:
    index = {"_class_name": "Pipeline", "unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"]}
    index |= {"scheduler": ["diffusers", "Euler"], "feature_extractor": [None, None]}
    parts = [INDEX, "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"]
    weights = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    small = "unet/diffusion_pytorch_model.fp16.safetensors"
    others = ["xl_1.0.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors", "feature_extractor/a.json", small]
    held = [*parts, *weights, *others]
    assert chosen(*held, index=index) == (sorted(parts + weights), None)
    assert chosen(*held, index=index, half=True) == (sorted([*parts, small, weights[1]]), "fp16")
    with pytest.raises(UserError, match=r"may run code when it is opened \(vae\)"):
        chosen(*parts, weights[0], "vae/diffusion_pytorch_model.bin", index=index)


def test_pickled_and_missing_weights_are_refused() -> None:
    for file in ("pytorch_model.bin", "model.pt", "tf_model.h5", "weights.ckpt"):
        with pytest.raises(UserError, match="only safetensors are read"):
            chosen("config.json", file)
    with pytest.raises(UserError, match="holds no weights"):
        chosen("config.json")


def model_folder(place: Path, card: str = "") -> Path:
    place.mkdir()
    (place / "config.json").write_text(CONFIG)
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "pytorch_model.bin").write_bytes(b"pickle")
    if card:
        (place / "README.md").write_text(card)
    return place


def test_a_folder_is_known_by_the_hash_of_what_is_read(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine", "---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n")
    found = find(str(folder), None, half=False)
    printed = subprocess.run(
        ["sha256sum", "config.json", "model.safetensors"], cwd=folder, capture_output=True, check=True
    ).stdout
    assert found.identity.sha256 == hashlib.sha256(printed).hexdigest()
    assert (found.identity.name, found.identity.revision, found.identity.licence) == ("mine", "local", "apache-2.0")
    assert str(tmp_path) not in str(found.identity), "a path of this machine would be published"
    (folder / "pytorch_model.bin").write_bytes(b"other")
    assert find(str(folder), None, half=False).identity == found.identity
    (folder / "config.json").write_text("{}")
    assert find(str(folder), None, half=False).identity.sha256 != found.identity.sha256


@pytest.mark.parametrize(
    ("card", "licence"),
    [("", "not stated"), ("# No front", "not stated"), ("---\nlicense: other\nlicense_name: sai-nc\n---\n", "sai-nc"),
     ("---\n: [\n---\n", "not stated"), ("---\n- a\n---\n", "not stated")],
)  # fmt: skip
def test_the_licence_is_what_the_card_states(tmp_path: Path, card: str, licence: str) -> None:
    assert find(str(model_folder(tmp_path / "mine", card)), None, half=False).identity.licence == licence


@pytest.mark.usefixtures("offline")
def test_what_is_no_folder_is_told_without_a_network(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in (f"{tmp_path}/none", "./none", "a/b/c", "~/none", str(tmp_path / "file")):
        with pytest.raises(UserError, match="There is no folder"):
            find(name, None, half=False)
    with pytest.raises(UserError, match="only names on the hub have one"):
        find(str(model_folder(tmp_path / "mine")), "main", half=False)


class Hub:
    """Models behind the part of the hub's interface that its client uses, on loopback."""

    def __init__(self, cache: Path) -> None:
        self.files: dict[str, bytes] = {"config.json": CONFIG.encode(), "model.safetensors": b"weights"}
        self.files |= {"pytorch_model.bin": b"pickle", "README.md": b"---\nlicense: mit\n---\n"}
        self.asked: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(*hub.answer(self.path))

            def do_GET(self) -> None:
                hub.asked.append(self.path)
                self.wfile.write(self.answer(*hub.answer(self.path)))

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> bytes:
                self.send_response(status)
                headers |= {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                return body

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.cache = cache
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        path = path.partition("?")[0]
        if path.startswith("/api/models/me/gated"):
            return 403, b"{}", {"X-Error-Code": "GatedRepo"}
        if path.startswith("/api/models/me/model/revision/none"):
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        if "/tree/" in path:
            rows = [{"type": "file", "path": f, "size": len(b), "oid": sha1(b)} for f, b in self.files.items()]
            return 200, json.dumps(rows).encode(), {}
        if path.startswith("/api/models/me/model"):
            facts = {"id": "me/model", "sha": COMMIT, "siblings": [{"rfilename": file} for file in self.files]}
            return 200, json.dumps(facts).encode(), {}
        file = path.rpartition(f"/me/model/resolve/{COMMIT}/")[2]
        if file in self.files:
            return 200, self.files[file], {"ETag": f'"{sha1(self.files[file])}"'}
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}


def sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = library("huggingface_hub").constants
    hub = Hub(tmp_path / "cache")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template[template.index("/{") :])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_a_model_of_the_hub_is_brought_here_once_and_never_pickled(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find("me/model", None, half=False)
    assert found.files == ("config.json", "model.safetensors")
    assert (found.folder / "model.safetensors").read_bytes() == b"weights"
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    assert (found.identity.name, found.identity.revision, found.identity.licence) == ("me/model", COMMIT, "mit")
    assert found.identity.source == "Hugging Face Hub"
    sums = "".join(f"{sha256_file(found.folder / file)}  {file}\n" for file in found.files)
    assert found.identity.sha256 == hashlib.sha256(sums.encode()).hexdigest()
    hub.asked.clear()
    assert find("me/model", COMMIT, half=True) == found
    assert not any("/resolve/" in path for path in hub.asked), "it was downloaded twice"
    monkeypatch.setattr(library("huggingface_hub").constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert find("me/model", COMMIT, half=False) == found
    assert hub.asked == []
    with pytest.raises(
        UserError, match=r"me/other is not on this machine and the hub cannot be reached; .*hf download"
    ):
        find("me/other", None, half=False)


def test_a_model_that_was_fetched_is_found_without_the_hub(hub: Hub) -> None:
    found = find("me/model", COMMIT, half=False)
    hub.server.shutdown()
    hub.server.server_close()
    assert find("me/model", COMMIT, half=False) == found
    with pytest.raises(UserError, match="the hub cannot be reached"):
        find("me/other", None, half=False)


def test_what_the_hub_does_not_give_is_told(hub: Hub) -> None:
    with pytest.raises(UserError, match="me/nothing is neither a folder here nor a model on the hub"):
        find("me/nothing", None, half=False)
    with pytest.raises(UserError, match="me/model has no revision none"):
        find("me/model", "none", half=False)
    with pytest.raises(UserError, match="accepted its terms"):
        find("me/gated", None, half=False)
    with pytest.raises(UserError, match="neither a folder"):
        find("not a name!", None, half=False)
    del hub.files["model.safetensors"]
    with pytest.raises(UserError, match="only safetensors are read"):
        find("me/model", None, half=False)
    assert not list(hub.cache.rglob("*.bin"))
