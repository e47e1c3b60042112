"""Captions from any chat model: random ones of a public domain, and variations by filling in blanks.

These are the two calls that Private Evolution makes of a text model (Xie et al. 2024, "Differentially private synthetic
data via foundation model APIs 2: Text", section 4). A variation hides each word with a probability and asks for the
blanks, in a number of words that wanders, so that lengths adapt to what is wanted. Every request carries worked
examples in the conversation: without them small models do not understand it.

What the requests hold besides the texts to vary (domain, examples, qualifiers) was fixed before any private image was
seen. Whoever writes them after looking at the private images leaks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sfumato.errors import UserError
from sfumato.pretrained.interfaces import Identity, Model

if TYPE_CHECKING:
    from sfumato.pretrained.smollm import Message

DOMAIN = "a simple cartoon drawing"
EXAMPLES = (
    "a red apple with a green leaf",
    "a small white dog with a blue collar",
    "an old wooden sailing boat",
    "a smiling yellow sun behind a cloud",
    "a chocolate cake with three candles",
    "a green tractor on a field",
    "two orange fish in a glass bowl",
    "a purple butterfly on a flower",
)
SHOTS = 3  # worked examples in a conversation
BLANK = "_"
SPREAD = 0.8
"""Standard deviation of a variation's length: this times the strength times the range of lengths. Aug-PE takes 60 words
times the mask probability, for lengths of 25 to 100 words."""
TOKENS_A_WORD = 3
KEPT = 0.5  # share of the words left standing that an answer must still have
REMARK = re.compile(r"\s*\(\s*(?:exactly\s+)?\d+\s+words?\s*\)\s*", re.IGNORECASE)
PREAMBLE = re.compile(r"^[^:]{0,60}\b(?:caption|description|answer|text|sentence|version|here)\b[^:]{0,40}:\s*", re.I)
REFUSAL = re.compile(r"\b(?:i'm sorry|i am sorry|i can(?:'|no)t|as an ai|language model|i'm unable)", re.IGNORECASE)


class ChatModel(Model, Protocol):
    """Anything that answers conversations."""

    def chat(
        self, conversations: Sequence[Sequence[Message]], seed: int, max_tokens: int = 64, temperature: float = 0.8
    ) -> list[str]:
        """One answer a conversation; the n-th is drawn with `seed + n` and depends on its conversation alone."""


class FewShotTexts:
    """A `TextGenerator` over a chat model. What it makes of item n depends on that item and on `seed + n` alone.

    Args:
        chat: the model.
        domain: a public noun phrase, such as "a photo of a bedroom".
        examples: public or invented captions of the domain, at least three. They show the model style and length.
        qualifiers: a public list of things, places or moods; a random caption is asked about one of them.
        words: least and most words of a caption; by default those of the examples.
        temperature: of the answers; 0 would give the same caption again and again.

    Attributes:
        asked: how many texts were asked for so far.
        unusable: why answers were not used, and how often; their texts were left as they were.

    Raises:
        UserError: fewer than three examples, an empty domain, or lengths that are none.
    """

    def __init__(
        self,
        chat: ChatModel,
        domain: str = DOMAIN,
        examples: Sequence[str] = EXAMPLES,
        qualifiers: Sequence[str] = (),
        words: tuple[int, int] | None = None,
        temperature: float = 1.0,
    ) -> None:
        if len(examples) < SHOTS or not all(example.split() for example in examples):
            raise UserError(f"Give at least {SHOTS} example captions, none of them empty; given were {len(examples)}.")
        if not domain.strip():
            raise UserError('The domain is empty; describe it in a few words, such as "a photo of a bedroom".')
        lengths = [len(example.split()) for example in examples]
        self.least, self.most = words or (min(lengths), max(lengths))
        if not 1 <= self.least <= self.most:
            raise UserError(f"Captions of {self.least} to {self.most} words are not possible; give 1 <= least <= most.")
        self.domain, self.examples, self.qualifiers = domain.strip(), tuple(examples), tuple(qualifiers)
        self.temperature = temperature
        self.asked = 0
        self.unusable: Counter[str] = Counter()
        self._chat = chat

    @property
    def identity(self) -> Identity:
        """The chat model's, with a digest of the public words that it is asked with."""
        prompts = json.dumps([self.domain, self.examples, self.qualifiers, self.least, self.most, self.temperature])
        digest = hashlib.sha256(prompts.encode()).hexdigest()[:12]
        of = self._chat.identity
        return Identity(f"{of.name}, few-shot {digest}", of.revision, of.sha256, of.licence, of.source)

    def random_texts(self, count: int, seed: int) -> list[str]:
        """`count` captions of the domain; an unusable answer becomes one of the examples."""
        requests, spare = [], []
        for number in range(count):
            rng = np.random.default_rng((0, (seed + number) % 2**32))
            turns = [_system(f"You invent captions of {self.domain}.")]
            for example in self._shown(rng):
                # A worked example is said to be about its own last word: mostly a noun.
                last = example.split()[-1] if self.qualifiers else None
                turns += [_user(_wish(len(example.split()), last)), _assistant(example)]
            about = str(rng.choice(self.qualifiers)) if self.qualifiers else None
            requests.append([*turns, _user(_wish(int(rng.integers(self.least, self.most + 1)), about))])
            spare.append(str(rng.choice(self.examples)))
        return self._answers(requests, spare, [[] for _ in spare], seed)

    def vary_texts(self, texts: Sequence[str], seed: int, strength: float = 0.5) -> list[str]:
        """One caption near each given one: each word is hidden with probability `strength` and filled in anew.

        Returns:
            A list as long as `texts`; where the answer is unusable, the given text.

        Raises:
            UserError: a strength outside (0, 1].
        """
        if not 0 < strength <= 1:
            raise UserError(f"The strength is {strength}; it must be above 0 and at most 1.")
        requests, kept = [], []
        for number, text in enumerate(texts):
            rng = np.random.default_rng((1, (seed + number) % 2**32))
            turns = [_system(f"You fill in the blanks of captions of {self.domain}.")]
            for example in self._shown(rng):
                hidden = self._hidden(example, strength, rng)
                turns += [_user(_task(hidden, len(example.split()))), _assistant(example)]
            hidden = self._hidden(text, strength, rng)
            wanted = len(text.split()) + rng.normal(0, SPREAD * strength * (self.most - self.least))
            requests.append([*turns, _user(_task(hidden, int(np.clip(round(wanted), self.least, self.most))))])
            kept.append([word for word in hidden.split() if word != BLANK])
        return self._answers(requests, texts, kept, seed)

    def _shown(self, rng: np.random.Generator) -> list[str]:
        return [str(example) for example in rng.choice(self.examples, SHOTS, replace=False)]

    def _hidden(self, text: str, strength: float, rng: np.random.Generator) -> str:
        """The first words of a text, each hidden with probability `strength`, one at the least."""
        words = text.split()[: 2 * self.most] or [BLANK]
        hide = rng.random(len(words)) < strength
        if not hide.any():
            hide[rng.integers(len(words))] = True
        return " ".join(BLANK if hidden else word for word, hidden in zip(words, hide, strict=True))

    def _answers(
        self, requests: list[list[Message]], otherwise: Sequence[str], kept: list[list[str]], seed: int
    ) -> list[str]:
        """What the model answers, cleaned; `otherwise` where that is of no use."""
        limit = TOKENS_A_WORD * self.most + 8
        found = []
        self.asked += len(requests)
        answers = self._chat.chat(requests, seed, max_tokens=limit, temperature=self.temperature) if requests else []
        for answer, spare, standing in zip(answers, otherwise, kept, strict=True):
            text = cleaned(answer)
            if fault := self._fault(text, standing):
                self.unusable[fault] += 1
            found.append(spare if fault else text)
        return found

    def _fault(self, text: str, standing: list[str]) -> str | None:
        words = text.split()
        if not words:
            return "empty"
        if BLANK in text:
            return "blanks left"
        if REFUSAL.search(text):
            return "refused"
        if not self.least / 2 <= len(words) <= 2 * self.most:
            return "length"
        left = Counter(_bare(word) for word in standing)
        if (left & Counter(map(_bare, words))).total() < KEPT * left.total():
            return "other words"
        return None


def cleaned(answer: str) -> str:
    """The caption in an answer: its first line of words, without preamble, quotation marks and word counts."""
    line = next((line for line in answer.splitlines() if PREAMBLE.sub("", line.strip()).strip("*\"'` ")), "")
    line = REMARK.sub(" ", PREAMBLE.sub("", line.strip()))
    line = "".join(character if character.isprintable() else " " for character in line)
    return " ".join(line.split()).strip("*\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK} ")


def _bare(word: str) -> str:
    return word.strip(".,;:!?\"'()").lower()


def _wish(words: int, about: str | None) -> str:
    return f"A new caption, in {words} words" + (f", about: {about}" if about else "")


def _task(hidden: str, words: int) -> str:
    return f"Fill in the blanks, in {words} words: {hidden}"


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
