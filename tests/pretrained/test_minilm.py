from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from sfumato.pretrained import minilm as minilm_module
from sfumato.pretrained._networks import with_weights
from sfumato.pretrained.interfaces import TextEmbedder
from sfumato.pretrained.minilm import LENGTHS, MiniLM

pytestmark = pytest.mark.usefixtures("offline")

SENTENCES = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]


def test_it_is_the_published_model(minilm: MiniLM) -> None:
    """Expected: transformers 5.23.0, BertModel with mean pooling, on the same weights; largest difference 2e-7."""
    found = minilm.embed_texts(SENTENCES)
    assert found.shape == (3, 384)
    assert found.dtype == np.float32
    expected = [0.033241544, 0.004406065, -0.006276938, 0.048378699, -0.138702273, -0.033617317]
    np.testing.assert_allclose(found[0, :6], expected, atol=2e-6)
    np.testing.assert_allclose(found @ found[0], [1, 0.755337, -0.104958], atol=1e-5)


def test_meaning_counts_not_words(minilm: MiniLM) -> None:
    photo, same, other = minilm.embed_texts(
        ["a photograph of a kitten", "picture of a young cat", "a photograph of a motorway"]
    )
    assert photo @ same > photo @ other + 0.2


def test_a_text_does_not_depend_on_its_neighbours(minilm: MiniLM) -> None:
    texts = [f"{'a red car on a wet road ' * count}{count}" for count in (1, 2, 3, 6, 1, 1, 12, 20, 40)] * 4
    texts += [f"caption {number}" for number in range(30)]
    together = minilm.embed_texts(texts)
    assert np.array_equal(minilm.embed_texts(texts[::-1]), together[::-1])
    for number in (0, 3, 8, 40):
        assert np.array_equal(minilm.embed_texts([texts[number]])[0], together[number])


def test_padding_is_not_read(minilm: MiniLM) -> None:
    """A text embeds alike in a longer bucket, up to rounding."""
    tokens = minilm._tokenizer.encode(SENTENCES[0]).ids
    padded = np.zeros((1, LENGTHS[2]), np.int64)
    padded[0, : len(tokens)] = tokens
    with torch.inference_mode():
        longer = minilm._network(torch.from_numpy(padded)).numpy()
    np.testing.assert_allclose(longer, minilm.embed_texts(SENTENCES[:1]), atol=1e-6)


def test_what_is_too_long_is_cut(minilm: MiniLM) -> None:
    long = "word " * 254  # with the two marks at its ends just the longest input
    found = minilm.embed_texts([long, long + "and another end", "word " * 200, ""])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_no_text_is_no_row(minilm: MiniLM) -> None:
    assert isinstance(minilm, TextEmbedder)
    assert minilm.embed_texts([]).shape == (0, minilm.dimensions)


def test_each_weight_finds_its_place() -> None:
    roles = {"query": 1.0, "key": 2.0, "value": 3.0}
    shapes = {
        "attention.output.dense": (384, 384),
        "attention.output.LayerNorm": (384,),
        "intermediate.dense": (1536, 384),
        "output.dense": (384, 1536),
        "output.LayerNorm": (384,),
    }
    given = {
        "embeddings.word_embeddings.weight": torch.full((9, 384), 4.0),
        "embeddings.position_embeddings.weight": torch.full((8, 384), 5.0),
        "embeddings.token_type_embeddings.weight": torch.tensor([[6.0], [7.0]]).repeat(1, 384),
        "embeddings.LayerNorm.weight": torch.ones(384),
        "embeddings.LayerNorm.bias": torch.zeros(384),
    }
    for layer in range(6):
        for role, value in roles.items():
            given[f"encoder.layer.{layer}.attention.self.{role}.weight"] = torch.full((384, 384), value + 10 * layer)
            given[f"encoder.layer.{layer}.attention.self.{role}.bias"] = torch.full((384,), value + 10 * layer)
        for number, (name, shape) in enumerate(shapes.items()):
            given[f"encoder.layer.{layer}.{name}.weight"] = torch.full(shape, 20.0 + number)
            given[f"encoder.layer.{layer}.{name}.bias"] = torch.full(shape[:1], 30.0 + number)
    files = minilm_module.prepare({"weights.safetensors": save(given), "tokenizer.json": b"{}"})
    network = with_weights(lambda: minilm_module.Network(9, 8), load(files["weights.safetensors"]))
    layers = [layer for layer in network.encoder.layers if isinstance(layer, torch.nn.TransformerEncoderLayer)]
    assert len(layers) == 6
    for number, layer in enumerate(layers):
        merged = layer.self_attn.in_proj_weight.reshape(3, 384, 384)
        assert merged.unique(dim=1)[:, 0, 0].tolist() == [value + 10 * number for value in roles.values()]
        places = (layer.self_attn.out_proj, layer.norm1, layer.linear1, layer.linear2, layer.norm2)
        assert [float(place.weight.flatten()[0]) for place in places] == [20, 21, 22, 23, 24]
        assert [float(place.bias[0]) for place in places] == [30, 31, 32, 33, 34]
    assert float(network.segment[0]) == 6
