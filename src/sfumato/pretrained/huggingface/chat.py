"""Conversations with a language model of `transformers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.pretrained.huggingface._replicas import Replicas, buckets, chosen_devices, chosen_precision
from sfumato.pretrained.huggingface._snapshot import find, library, loaded, reading

Turns = Sequence[Mapping[str, str]]


class Draws:
    """Takes the word at which the running sum of chances passes a number of the conversation's own, another each step.

    One uniform number a word, from a generator of the conversation's own on the CPU: words depend neither on what is
    answered beside it nor on the kind of device. It leaves one word possible, so the library's choice of the likeliest
    word takes it.

    Args:
        numbers: float64 `(N, words)` in [0, 1).
        temperature: above 0.
    """

    def __init__(self, numbers: Tensor, temperature: float) -> None:
        self._numbers = numbers
        self._temperature = temperature
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(N, vocabulary)` to scores that are finite at one word a row."""
        sums = (scores.double() / self._temperature).softmax(1).cumsum(1)
        # Scaled to the last sum, so that rounding never leads past the last word that has a chance.
        places = self._numbers[:, self._step, None] * sums[:, -1:]
        words = torch.searchsorted(sums, places, right=True).clamp(max=scores.shape[1] - 1)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, words, 0)


class Chat:
    """Answers conversations. Untested on GPU and on full-size models.

    Args:
        name: a folder or a name on the hub of an instruction-tuned model with a chat template.
        revision: on the hub.
        devices: `auto`, a device, or several, each with a copy of the model.
        precision: `auto` (float32 on a CPU, bfloat16 on GPUs), `fp32`, `fp16` or `bf16`.
        batch: conversations a call; each batch is filled up, so give 1 where single questions must be cheap.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        devices: str | Sequence[str] = "auto",
        precision: str = "auto",
        batch: int = 8,
    ) -> None:
        places = chosen_devices(devices)
        dtype = chosen_precision(precision, places, "bf16")
        transformers = library("transformers")
        snapshot = find(name, revision, dtype != torch.float32)
        self.identity = snapshot.identity
        with reading(snapshot, "chat model"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                snapshot.folder, local_files_only=True, trust_remote_code=False
            )
        if not self._tokenizer.chat_template:
            raise UserError(f"{name} has no chat template: choose a model that was tuned to follow instructions.")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "left"

        def build(device: torch.device) -> Any:
            model = loaded(transformers.AutoModelForCausalLM.from_pretrained, snapshot, "chat model", dtype=dtype)
            ends = model.generation_config.eos_token_id
            # The model's own taste (top-k, penalties) is left out: a temperature of 1 is its distribution.
            model.generation_config = transformers.GenerationConfig(
                eos_token_id=self._tokenizer.eos_token_id if ends is None else ends,
                pad_token_id=self._tokenizer.pad_token_id,
                bos_token_id=model.generation_config.bos_token_id,
                do_sample=False,
            )
            return model.to(device)

        self._replicas = Replicas(build, places, batch)
        config = self._replicas.copies[0][0].config.get_text_config()
        self.context = int(getattr(config, "max_position_embeddings", 0)) or 2**20

    def chat(
        self, conversations: Sequence[Turns], seed: int, max_tokens: int = 64, temperature: float = 0.8
    ) -> list[str]:
        """The model's answer to each conversation; each depends on its conversation and its number in the list alone.

        To the bit on a CPU: a conversation is padded on the left to a length that it decides itself, and batches are
        full. What is in a batch can matter only to models whose layers share room between rows (some mixtures of
        experts).

        Args:
            conversations: turns with `role` and `content`, the last of them the user's.
            seed: of public randomness; the n-th conversation is answered with `seed + n`.
            max_tokens: where an answer is cut off.
            temperature: 0 takes the likeliest word every time, 1 draws from the model's distribution.

        Raises:
            UserError: a conversation is empty or longer than the model's context, or a number is out of range.
        """
        if max_tokens < 1 or temperature < 0:
            raise UserError(
                f"max_tokens {max_tokens} and temperature {temperature} were given; give at least 1 and at least 0."
            )
        asked = [self._tokens(number, turns) for number, turns in enumerate(conversations)]
        for number, tokens in enumerate(asked):
            if len(tokens) + max_tokens > self.context:
                raise UserError(
                    f"Conversation {number} has {len(tokens)} tokens and its answer up to {max_tokens}, more than the "
                    f"context of {self.context} tokens of {self.identity.name}; shorten it."
                )
        answers = [""] * len(asked)
        for length, numbers in buckets([len(tokens) for tokens in asked], self.context, 64).items():

            def answer(model: Any, device: torch.device, batch: list[int], length: int = length) -> list[str]:
                inputs = self._tokenizer.pad(
                    {"input_ids": [asked[number] for number in batch]},
                    padding="max_length",
                    max_length=length,
                    return_tensors="pt",
                ).to(device)
                chosen = []
                if temperature > 0:
                    rows = [uniform(seed + number, max_tokens) for number in batch]
                    chosen = [Draws(torch.stack(rows).to(device), temperature)]
                written = model.generate(**inputs, max_new_tokens=max_tokens, logits_processor=chosen)
                texts = self._tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
                return [text.strip() for text in texts]

            for number, text in zip(numbers, self._replicas.map(answer, numbers), strict=True):
                answers[number] = text
        return answers

    def _tokens(self, number: int, turns: Turns) -> list[int]:
        if not turns:
            raise UserError(f"Conversation {number} is empty; give at least one message.")
        from jinja2.exceptions import TemplateError

        try:
            text = self._rendered(turns)
        except TemplateError as error:
            try:  # some models know no system's turn
                text = self._rendered(without_system(turns))
            except TemplateError:
                raise UserError(f"{self.identity.name} does not take conversation {number}: {error}.") from error
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rendered(self, turns: Turns) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,  # where a template knows it
            )
        )


def without_system(turns: Turns) -> list[dict[str, str]]:
    """The conversation with the system's words at the beginning of the user's first."""
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    rest = [dict(turn) for turn in turns if turn["role"] != "system"]
    if system and rest:
        rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
    return rest


def uniform(seed: int, count: int) -> Tensor:
    """`count` float64 numbers in [0, 1), the same on every machine."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed % 2**63), dtype=torch.float64)
