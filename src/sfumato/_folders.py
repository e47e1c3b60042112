"""Which folders of a run may lie where."""

from __future__ import annotations

from pathlib import Path

from sfumato.errors import UserError


def check_folders(private: Path, release: Path | None, folder: Path) -> None:
    """Refuses arrangements of folders that would mix private and public files (UserError)."""
    if not private.is_dir():
        raise UserError(f"The private folder {private} does not exist or is not a folder.")
    inside = private.resolve()
    for name, path in (("release", release), ("run", folder)):
        if path is None:
            continue
        target = path.resolve()
        if target == inside or inside in target.parents:
            raise UserError(f"The {name} folder {path} lies inside the private folder; choose a place outside it.")
        if target in inside.parents:
            raise UserError(f"The private folder lies inside the {name} folder {path}; choose another place for it.")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            remedy = f" To finish an interrupted run: sfumato resume {path}" if name == "run" else ""
            raise UserError(f"The {name} folder {path} already exists; nothing is overwritten.{remedy}")
    if release is not None and (release.resolve() == folder.resolve() or release.resolve() in folder.resolve().parents):
        raise UserError("The run folder holds private values and must not lie inside the release folder.")
