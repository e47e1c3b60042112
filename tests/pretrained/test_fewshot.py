from __future__ import annotations

from collections.abc import Sequence

import pytest

from sfumato.errors import UserError
from sfumato.pretrained.fewshot import BLANK, EXAMPLES, FewShotTexts, cleaned
from sfumato.pretrained.interfaces import Identity, TextGenerator
from sfumato.pretrained.smollm import Message, SmolLM2

pytestmark = pytest.mark.usefixtures("offline")

TEXTS = ["a brown horse standing in a field", "a snowman with a red scarf"]


class Scripted:
    """A chat model that answers what it is told to, and remembers what it was asked."""

    identity = Identity("scripted", "1", "0" * 64, "MIT", "here")

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.requests: list[Sequence[Message]] = []
        self.seeds: list[int] = []

    def chat(
        self, conversations: Sequence[Sequence[Message]], seed: int, max_tokens: int = 64, temperature: float = 0.8
    ) -> list[str]:
        self.requests += conversations
        self.seeds.append(seed)
        return [self.answers[number % len(self.answers)] for number in range(len(conversations))]


def test_a_real_model_invents_and_varies(smollm: SmolLM2) -> None:
    texts = FewShotTexts(smollm, qualifiers=["food", "animals", "vehicles"])
    assert isinstance(texts, TextGenerator)
    invented = texts.random_texts(3, 3)
    assert len(set(invented)) == 3
    assert all(texts.least / 2 <= len(text.split()) <= 2 * texts.most for text in invented)
    varied = texts.vary_texts(TEXTS, 7, 0.3)
    assert varied != TEXTS, "at this strength and seed something changes"
    for before, after in zip(TEXTS, varied, strict=True):
        assert set(before.split()) & set(after.split()), "something stays"
        assert BLANK not in after
    assert texts.asked == 5
    assert texts.unusable.total() <= 2


def test_an_item_depends_on_itself_and_its_seed_alone() -> None:
    one, other = Scripted("a cat"), Scripted("a cat")
    FewShotTexts(one).vary_texts(TEXTS, 7)
    FewShotTexts(other).vary_texts(TEXTS[1:], 8)
    assert (other.requests, other.seeds) == (one.requests[1:], [8])
    FewShotTexts(one).random_texts(3, 5)
    FewShotTexts(other).random_texts(1, 7)
    assert other.requests[-1] == one.requests[-1]
    assert one.requests[2] != one.requests[3] != one.requests[4]


def test_the_strength_is_the_share_of_blanks() -> None:
    text = " ".join(EXAMPLES)
    for strength in (0.1, 0.5, 1.0):
        chat = Scripted("a cat")
        FewShotTexts(chat, words=(40, 80)).vary_texts([text] * 40, 1, strength)
        asked = [str(request[-1]["content"]).rpartition(": ")[2].split() for request in chat.requests]
        assert all(words.count(BLANK) for words in asked), "one blank at the least"
        share = sum(words.count(BLANK) for words in asked) / sum(map(len, asked))
        assert share == pytest.approx(strength, abs=0.05)
        assert {len(words) for words in asked} == {len(text.split())}


def test_lengths_wander_within_bounds() -> None:
    chat = Scripted("a cat")
    FewShotTexts(chat, words=(3, 20)).vary_texts(["one two three four five six seven eight"] * 50, 1)
    lengths = [int(str(request[-1]["content"]).split()[5]) for request in chat.requests]
    assert min(lengths) == 3
    assert max(lengths) > 12
    assert max(lengths) <= 20


def test_requests_hold_worked_examples_of_the_user() -> None:
    chat = Scripted("a bed")
    examples = ["a wide bed by a window", "two lamps on a table", "a white wall and a chair", "an empty room at night"]
    texts = FewShotTexts(chat, "a photo of a bedroom", examples, ["lamps"])
    texts.vary_texts(["a small bed"], 1)
    texts.random_texts(1, 1)
    for request in chat.requests:
        assert [turn["role"] for turn in request] == ["system", *["user", "assistant"] * 3, "user"]
        assert "a photo of a bedroom" in request[0]["content"]
        assert {turn["content"] for turn in request if turn["role"] == "assistant"} <= set(examples)
    assert chat.requests[1][-1]["content"].endswith("about: lamps")
    assert not {*EXAMPLES} & {turn["content"] for request in chat.requests for turn in request}


@pytest.mark.parametrize(
    ("answer", "fault"),
    [("", "empty"), (" \n ", "empty"), ("a brown _ in a field", "blanks left"), ("x " * 40, "length"),
     ("I'm sorry, but I cannot help standing in a brown horse field", "refused"), ("the sea at night", "other words")],
)  # fmt: skip
def test_an_unusable_answer_leaves_the_text_alone(answer: str, fault: str) -> None:
    texts = FewShotTexts(Scripted(answer))
    assert texts.vary_texts(TEXTS[:1], 1, 0.2) == TEXTS[:1]
    assert texts.unusable == {fault: 1}
    if fault != "other words":
        assert texts.random_texts(1, 1)[0] in EXAMPLES


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ('Sure! Here is a new caption: "A red boat."', "A red boat."),
        ("Caption:\n\n  a red   boat\nI hope this helps!", "a red boat"),
        ("**a red boat** (3 words)", "a red boat"),
        ("a clock that shows 10:30", "a clock that shows 10:30"),
        ("a sign: no dogs", "a sign: no dogs"),
        ("a red\x00boat", "a red boat"),
    ],
)
def test_answers_are_cleaned(answer: str, caption: str) -> None:
    assert cleaned(answer) == caption


def test_identity_names_the_model_and_the_prompts() -> None:
    chat = Scripted("a cat")
    one, same, other = (FewShotTexts(chat, domain).identity for domain in ("a photo", "a photo", "a drawing"))
    assert one == same != other
    assert one.name.startswith("scripted")
    assert one.sha256 == chat.identity.sha256


def test_nothing_in_nothing_out_and_mistakes() -> None:
    texts = FewShotTexts(Scripted("a cat"))
    assert texts.vary_texts([], 1) == texts.random_texts(0, 1) == []
    with pytest.raises(UserError, match="at least 3 example captions"):
        FewShotTexts(Scripted(), examples=["a", "b"])
    with pytest.raises(UserError, match="domain is empty"):
        FewShotTexts(Scripted(), " ")
    with pytest.raises(UserError, match="5 to 3 words"):
        FewShotTexts(Scripted(), words=(5, 3))
    for strength in (0, 1.1):
        with pytest.raises(UserError, match="must be above 0 and at most 1"):
            texts.vary_texts(["a"], 1, strength)
