"""An autoregressive transformer over the tokens of an image's scales, coarse to fine, and how to sample from it.

The order is that of the Spectral Image Tokenizer (Esteves et al. 2024, arXiv 2412.09607): scale by scale, and line by
line within a scale. Each scale has its own codebook, hence its own embedding and its own head. What is drawn may be
conditioned on a class or on the vector of a text; both become the first element of the sequence.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.nets.entropy import mean_cross_entropy
from sfumato.nets.transformer import Block, Memory, TransformerShape, initialise, positions, stream


class Condition(NamedTuple):
    """What an image is drawn from.

    Attributes:
        kind: "none"; "class", a label from 0, or -1 for none; "text", a vector, or zeros for none.
        size: number of classes, or length of a vector.
    """

    kind: Literal["none", "class", "text"] = "none"
    size: int = 0

    def nothing(self, count: int) -> Tensor:
        """ "No condition" for `count` rows."""
        return torch.zeros(count, self.size) if self.kind == "text" else torch.full((count,), -1)


UNCONDITIONAL = Condition()


class ScaleGPT(nn.Module):
    """Predicts each token of each scale from those before it.

    Rows never meet, no buffer changes in `forward`, and no weight is used twice.

    Args:
        vocabulary: tokens of each scale are integers in [0, vocabulary).
        scales: number of scales.
        tokens: of each scale.
        shape: of the transformer; `positions` is not looked at.
        condition: what is drawn from.
    """

    def __init__(
        self, vocabulary: int, scales: int, tokens: int, shape: TransformerShape, condition: Condition = UNCONDITIONAL
    ) -> None:
        super().__init__()
        self.vocabulary, self.scales, self.tokens, self.condition = vocabulary, scales, tokens, condition
        self.shape = shape._replace(positions=scales * tokens)
        width = shape.width
        text = condition.kind == "text"
        self.start: nn.Module = nn.Linear(condition.size, width) if text else nn.Embedding(condition.size + 1, width)
        self.inlets = nn.ModuleList(nn.Embedding(vocabulary, width) for _ in range(scales))
        self.places = nn.Embedding(scales * tokens, width)
        self.blocks = nn.ModuleList(Block(width, shape.heads, True) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, vocabulary) for _ in range(scales))
        initialise(self, shape.layers)

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return self.scales * self.tokens

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Logits of every token and of the one behind them.

        Args:
            tokens: the first T of each image, integers `(N, T)`, T < `length`.
            condition: labels `(N,)`, or vectors `(N, size)`.

        Returns:
            `(N, T + 1, vocabulary)`: row t is what is expected of token t.
        """
        x = torch.cat([self._begin(condition), *self._embedded(tokens, 0)], 1)
        return self._logits(x, 0, None)

    def losses(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Mean cross-entropy of each row's tokens `(N, T)`, the first one included; `(N,)`."""
        return mean_cross_entropy(self(tokens[:, :-1].contiguous(), condition), tokens)

    def _begin(self, condition: Tensor) -> Tensor:
        if self.condition.kind == "text":
            return self.start(condition[:, None])  # type: ignore[no-any-return]
        labels = torch.where(condition < 0, self.condition.size, condition)
        return self.start(labels[:, None].contiguous())  # type: ignore[no-any-return]

    def _embedded(self, tokens: Tensor, begin: int) -> list[Tensor]:
        """Embeddings of tokens from number `begin` on, in parts that end where scales do."""
        parts, end = [], begin + tokens.shape[1]
        for scale in range(begin // self.tokens, -(-end // self.tokens)):
            low, high = max(begin, scale * self.tokens), min(end, (scale + 1) * self.tokens)
            parts.append(self.inlets[scale](tokens[:, low - begin : high - begin].contiguous()))
        return parts

    def _logits(self, x: Tensor, begin: int, memories: list[Memory] | None) -> Tensor:
        """From embeddings at positions from `begin` on; position t says what token t is."""
        x = stream(x + self.places(positions(x[:, :, 0], begin)))
        for number, block in enumerate(self.blocks):
            x = block(x, memory=memories[number] if memories else None)
        x, end, parts = self.norm(x), begin + x.shape[1], []
        for scale in range(begin // self.tokens, -(-end // self.tokens)):
            low, high = max(begin, scale * self.tokens), min(end, (scale + 1) * self.tokens)
            parts.append(self.heads[scale](x[:, low - begin : high - begin].contiguous()))
        return torch.cat(parts, 1)


class Taste(NamedTuple):
    """How tokens are drawn; all are public settings.

    Attributes:
        temperature: divides logits; 0 takes the likeliest token.
        top_k: only the k likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together have this probability (Holtzman et al. 2020).
        guidance: w in `none + w (conditioned - none)` of log-probabilities; 1 for no guidance (Ho and Salimans 2022).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0


PLAIN = Taste()


@torch.inference_mode()
def generate(
    model: ScaleGPT,
    condition: Tensor,
    generator: torch.Generator,
    *,
    prefix: Tensor | None = None,
    length: int | None = None,
    taste: Taste = PLAIN,
) -> Tensor:
    """Draws tokens one after the other; keys and values of earlier ones are kept.

    Args:
        model: on any device.
        condition: labels `(N,)`, or vectors `(N, size)`.
        generator: public randomness, on the processor.
        prefix: the first tokens, `(N, t)`, which are kept as they are.
        length: tokens in all; by default those of all scales.
        taste: how they are drawn.

    Returns:
        int64 `(N, length)`, on the processor.
    """
    device = next(model.parameters()).device
    condition, count = condition.to(device), len(condition)
    guided = taste.guidance != 1 and model.condition.kind != "none"
    if guided:
        condition = torch.cat((condition, model.condition.nothing(count).to(condition)))
    length = length or model.length
    memories = [Memory(length) for _ in model.blocks]
    known = torch.empty(count, 0, dtype=torch.long) if prefix is None else prefix
    tokens = torch.empty(count, length, dtype=torch.long)
    tokens[:, : known.shape[1]] = known
    logits = torch.empty(0)
    for place in range(known.shape[1], length):
        if place == known.shape[1]:
            shown = known.to(device).repeat(1 + guided, 1)
            embedded = torch.cat([model._begin(condition), *model._embedded(shown, 0)], 1)
            logits = model._logits(embedded, 0, memories)[:, -1]
        else:
            shown = tokens[:, place - 1 : place].to(device).repeat(1 + guided, 1)
            logits = model._logits(model._embedded(shown, place - 1)[0], place, memories)[:, -1]
        logs = logits.float().log_softmax(-1)
        if guided:
            conditioned, free = logs.chunk(2)
            logs = free + taste.guidance * (conditioned - free)
        tokens[:, place] = draw(logs.cpu(), taste, generator)
    return tokens


def draw(logits: Tensor, taste: Taste, generator: torch.Generator) -> Tensor:
    """One token a row from logits `(N, vocabulary)`; int64 `(N,)`."""
    if taste.temperature == 0:
        return logits.argmax(-1)
    logits = logits / taste.temperature
    if 0 < taste.top_k < logits.shape[1]:
        kept = logits.topk(taste.top_k).indices  # so many, also where logits are equal
        beyond = torch.ones_like(logits, dtype=torch.bool).scatter_(1, kept, torch.zeros_like(kept, dtype=torch.bool))
        logits = logits.masked_fill(beyond, float("-inf"))
    if taste.top_p < 1:
        shares, order = logits.softmax(-1).sort(descending=True, stable=True)
        beyond = shares.cumsum(-1) - shares >= taste.top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter_(1, order, beyond), float("-inf"))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
