from __future__ import annotations

from collections import Counter

import pytest
import torch
from tests.pretrained.huggingface.conftest import Hf, Saved, byte_tokenizer

from sfumato.errors import UserError
from sfumato.pretrained.fewshot import FewShotTexts
from sfumato.pretrained.huggingface import load
from sfumato.pretrained.huggingface.chat import Chat, Draws, uniform, without_system

pytestmark = pytest.mark.usefixtures("offline")


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


QUESTIONS = [asked(text) for text in ("a", "tell me of the sea " * 5, "why?", "a house " * 12, "red", "one two three")]


@pytest.fixture(scope="module")
def chat(saved: Saved) -> Chat:
    model: Chat = load(str(saved("llama")), "chat model", batch=4)
    return model


def test_an_answer_depends_on_its_question_place_and_seed_alone(chat: Chat) -> None:
    together = chat.chat(QUESTIONS, seed=5, max_tokens=8)
    assert len(set(together)) == len(QUESTIONS)
    for number, question in enumerate(QUESTIONS):
        assert chat.chat([question], seed=5 + number, max_tokens=8) == together[number : number + 1]
    assert chat.chat(QUESTIONS[:3], seed=5, max_tokens=8) == together[:3]
    assert chat.chat(QUESTIONS, seed=6, max_tokens=8) != together
    assert len(set(chat.chat(QUESTIONS[:1] * 4, seed=5, max_tokens=8))) > 1
    assert chat.chat([], seed=1) == []


def test_without_temperature_the_likeliest_word_is_taken(chat: Chat, saved: Saved, hf: Hf) -> None:
    """And nothing of the model's own taste in sampling: its folder asks for top-k and a penalty."""
    answers = chat.chat(QUESTIONS[:3], seed=1, max_tokens=6, temperature=0)
    model = hf.transformers.AutoModelForCausalLM.from_pretrained(saved("llama"))
    tokenizer = byte_tokenizer(hf)
    for question, answer in zip(QUESTIONS, answers, strict=False):
        tokens = tokenizer(f"<user>{question[0]['content']}</s><assistant>", add_special_tokens=False)["input_ids"]
        start = len(tokens)
        while (len(tokens) < start + 6 and tokens[-1] != 2) or len(tokens) == start:
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert answer == tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()


def test_words_are_drawn_by_their_chances() -> None:
    chances = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.4], dtype=torch.float64)
    rows = 20_000
    for temperature in (1.0, 0.5):
        draws = Draws(uniform(7, rows)[:, None], temperature)
        words = draws(torch.zeros(rows, 1), chances.log().float().expand(rows, -1)).argmax(1)
        wanted = chances ** (1 / temperature) / (chances ** (1 / temperature)).sum()
        found = Counter(words.tolist())
        assert found[2] == 0
        for word, chance in enumerate(wanted.tolist()):
            assert abs(found[word] / rows - chance) < 5 * (chance * (1 - chance) / rows) ** 0.5 + 1e-9


def test_each_word_has_a_number_of_its_own() -> None:
    draws = Draws(torch.tensor([[0.0, 0.999], [0.999, 0.0]], dtype=torch.float64), 1.0)
    even = torch.zeros(2, 10)
    assert draws(torch.zeros(2, 1), even).argmax(1).tolist() == [0, 9]
    assert draws(torch.zeros(2, 2), even).argmax(1).tolist() == [9, 0]


def test_two_devices_answer_as_one(chat: Chat, saved: Saved) -> None:
    two = load(str(saved("llama")), "chat model", batch=4, devices=["cpu", "cpu"])
    assert two.chat(QUESTIONS, seed=2, max_tokens=5) == chat.chat(QUESTIONS, seed=2, max_tokens=5)


def test_a_model_without_system_turns_reads_them_from_the_user(chat: Chat) -> None:
    turns = [{"role": "system", "content": "Be brief."}, *asked("Hello")]
    merged = without_system(turns)
    assert merged == asked("Be brief.\n\nHello")
    assert chat.chat([turns], seed=1, max_tokens=5) == chat.chat([merged], seed=1, max_tokens=5)


def test_few_shot_texts_work_over_it(saved: Saved) -> None:
    texts = FewShotTexts(load(str(saved("llama")), "chat model", batch=2))
    assert texts.identity.name.endswith("llama") or "llama" in texts.identity.name
    varied = texts.vary_texts(["a red cat"], seed=1)
    assert len(varied) == 1


def test_what_cannot_be_answered_is_refused(chat: Chat, saved: Saved) -> None:
    with pytest.raises(UserError, match="Conversation 1 is empty"):
        chat.chat([asked("Hello"), []], seed=1)
    with pytest.raises(UserError, match="context of 512 tokens"):
        chat.chat([asked("word " * 200)], seed=1)
    with pytest.raises(UserError, match="at least 1 and at least 0"):
        chat.chat([asked("Hello")], seed=1, temperature=-1)
    with pytest.raises(UserError, match="has no chat template"):
        load(str(saved("sentences")), "chat model")
