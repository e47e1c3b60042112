"""Only `make test-browser` asks for these tests: they need a browser, and a network until it has been fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = (Path(argument.split("::")[0]).absolute() for argument in config.args)
    return None if any(path == HERE or HERE in path.parents for path in asked) else True
