"""Models of the Hugging Face Hub, or in folders of its form, through `transformers` and `diffusers`.

Tested on a CPU with small pipelines of the real classes. Untested on GPU and on full-size models.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from sfumato.errors import UserError

KINDS = {
    "captioner": ("captioners", "Captions"),
    "chat model": ("chat", "Chat"),
    "image generator": ("diffusion", "Diffusion"),
    "image variator": ("diffusion", "Diffusion"),
    "image embedder": ("embedders", "ImageFeatures"),
    "text embedder": ("embedders", "TextFeatures"),
    "upscaler": ("upscalers", "DiffusionUpscaler"),
}


def load(name: str, kind: str, **options: Any) -> Any:
    """A model, ready to use.

    Args:
        name: a folder as `save_pretrained` writes it, or a name on the hub such as `stabilityai/sdxl-turbo`, which is
            downloaded once into the hub's own cache. Nothing is sent but the names of files.
        kind: one of `KINDS`.
        options: `revision` (branch, tag or commit on the hub), `devices`, `precision`, `batch`, and what the class of
            this kind takes.

    Raises:
        UserError: a package is missing; there is no such model, or it cannot be reached; its weights are pickled or
            incomplete; it is of another kind; no such kind, option, device or precision.
    """
    if kind not in KINDS:
        raise UserError(f"There is no kind of model called {kind!r}; choose one of: {', '.join(KINDS)}.")
    module, label = KINDS[kind]
    model = getattr(importlib.import_module(f"{__name__}.{module}"), label)
    allowed = list(inspect.signature(model).parameters)[1:]
    unknown = sorted(options.keys() - set(allowed))
    if unknown:
        raise UserError(f"The kind {kind!r} takes no option {', '.join(unknown)}; it takes: {', '.join(allowed)}.")
    return model(name, **options)
