"""SmolLM2-135M-Instruct: a small language model that follows instructions, through llama.cpp.

Allal et al. 2025, "SmolLM2: When Smol goes big". At this size it needs two or three examples in the conversation to
rewrite a caption, and drifts all the same.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypedDict

import xllamacpp  # type: ignore[import-untyped]

from sfumato.errors import UserError
from sfumato.pretrained.interfaces import Identity

CONTEXT = 1024  # tokens of a conversation and its answer
CONVERSATIONS = 4  # answered side by side


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class SmolLM2:
    """Answers conversations in this process.

    Args:
        folder: of the pulled model.
        identity: which model it is.
        threads: processor cores to use.
    """

    def __init__(self, folder: Path, identity: Identity, threads: int = 1) -> None:
        self.identity = identity
        settings = xllamacpp.CommonParams()
        settings.model.path = str(folder / "model.gguf")
        settings.n_ctx = CONTEXT * CONVERSATIONS
        settings.n_parallel = CONVERSATIONS
        settings.cpuparams.n_threads = threads
        settings.cpuparams_batch.n_threads = threads
        settings.n_gpu_layers = 0
        settings.offline = True
        settings.verbosity = -1
        settings.warmup = False
        settings.cache_ram_mib = 0
        # The library always listens. Here it does so on a socket in a folder of our own and asks for a key that nobody
        # knows, so that no other user of the machine can read what is asked or answered.
        settings.ui = False
        settings.endpoint_slots = False
        settings.n_threads_http = 1
        settings.api_keys = [secrets.token_hex(32)]
        with tempfile.TemporaryDirectory(prefix="sfumato-", dir="/tmp") as place:  # a socket's path must be short
            settings.hostnames = [f"{place}/s.sock"]
            self._server = xllamacpp.Server(settings)

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        seed: int,
        max_tokens: int = 64,
        temperature: float = 0.8,
    ) -> list[str]:
        """The model's answer to each conversation; each depends on its conversation and its number in the list alone.

        Args:
            conversations: turns, the last of them the user's.
            seed: of public randomness; the n-th conversation is answered with `seed + n`.
            max_tokens: where an answer is cut off.
            temperature: 0 takes the likeliest word every time, 1 draws from the model's distribution.

        Raises:
            UserError: a conversation is empty, or longer than the model's context of 1,024 tokens.
        """

        def answer(number: int, conversation: Sequence[Message]) -> str:
            if not conversation:
                raise UserError(f"Conversation {number} is empty; give at least one message.")
            reply: dict[str, Any] = self._server.handle_chat_completions(
                {
                    "messages": list(conversation),
                    "seed": (seed + number) % 2**32,
                    "max_tokens": max_tokens,
                    "temperature": temperature,
                    "cache_prompt": False,  # what was asked before must not show
                }
            )
            if "error" in reply:
                raise UserError(f"{self.identity.name} does not answer: {reply['error']['message']}.")
            return str(reply["choices"][0]["message"]["content"]).strip()

        with ThreadPoolExecutor(CONVERSATIONS) as pool:
            return list(pool.map(answer, range(len(conversations)), conversations))


def prepare(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The model's file, as it is in the wheel."""
    return dict(members)


def load(folder: Path, identity: Identity) -> SmolLM2:
    """The model in `folder`."""
    return SmolLM2(folder, identity)
