from __future__ import annotations

import os
from pathlib import Path

import pytest

from sfumato.errors import UserError
from sfumato.pretrained.smollm import Message, SmolLM2

pytestmark = pytest.mark.usefixtures("offline")


def asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def test_answers_follow_the_question(smollm: SmolLM2) -> None:
    questions = [asked("What is 2 + 2? Answer with a number."), asked('Write the word "apple".')]
    number, word = smollm.chat(questions, seed=1, max_tokens=8, temperature=0)
    assert "4" in number
    assert "apple" in word


def test_examples_set_the_form(smollm: SmolLM2) -> None:
    examples: list[Message] = [
        {"role": "user", "content": "a red car"},
        {"role": "assistant", "content": "a blue van"},
        {"role": "user", "content": "two dogs"},
        {"role": "assistant", "content": "two cats"},
        {"role": "user", "content": "a wooden boat"},
    ]
    answer = smollm.chat([examples], seed=1, max_tokens=12, temperature=0)[0]
    assert 1 <= len(answer.split()) <= 6


def test_an_answer_depends_on_its_question_place_and_seed_alone(smollm: SmolLM2) -> None:
    questions = [asked(f"Say something about the number {number}.") for number in range(5)]
    together = smollm.chat(questions, seed=5, max_tokens=8)
    assert smollm.chat(questions[3:4], seed=8, max_tokens=8) == together[3:4]
    assert smollm.chat(questions[:2], seed=5, max_tokens=8) == together[:2]
    assert len(set(together)) > 1
    assert smollm.chat(questions[:3], seed=99, max_tokens=8) != together[:3]
    assert smollm.chat([], seed=5) == []
    assert len(set(smollm.chat(questions[:1] * 3, seed=5, max_tokens=8))) > 1


def test_what_cannot_be_answered_is_refused(smollm: SmolLM2) -> None:
    with pytest.raises(UserError, match="exceeds the available context size"):
        smollm.chat([asked("word " * 3000)], seed=1)
    with pytest.raises(UserError, match="Conversation 1 is empty"):
        smollm.chat([asked("Hello"), []], seed=1, max_tokens=1)


def test_nobody_else_can_reach_it(smollm: SmolLM2) -> None:
    """The library serves HTTP: not on a port, and its socket is in no folder."""
    assert smollm.chat([asked("Hello")], seed=1, max_tokens=1)
    mine = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            assert not (fields[3] == "0A" and f"socket:[{fields[9]}]" in mine), "it listens on a port"
    for line in Path("/proc/self/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[6]}]" in mine and len(fields) > 7:
            assert not Path(fields[7]).exists()
