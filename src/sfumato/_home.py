"""Where Sfumato keeps what belongs to a user and not to a run: ledgers and pulled models."""

from __future__ import annotations

import os
from pathlib import Path

from sfumato.errors import UserError


def home() -> Path:
    """The per-user state folder: $SFUMATO_HOME, or `sfumato` in $XDG_DATA_HOME (default ~/.local/share).

    Raises:
        UserError: $SFUMATO_HOME is a relative path, or there is no home folder.

    *Guarantee:* does not depend on the folder that the process was started in, or budgets would.
    *Does not cover:* two users of one data set, who have two ledgers unless they share a path.
    """
    data = os.environ.get("XDG_DATA_HOME", "")
    data = data if os.path.isabs(data) else os.path.expanduser("~/.local/share")
    folder = Path(os.environ.get("SFUMATO_HOME") or os.path.join(data, "sfumato"))
    if not folder.is_absolute():
        raise UserError(f"The state folder {folder} is not an absolute path: set SFUMATO_HOME to one.")
    return folder
