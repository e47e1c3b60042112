"""The whole audit passes on sound code and cries out where there is no noise."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from sfumato import cli_audit
from sfumato.audit.core import audit_core
from sfumato.cli_audit import audit_app
from sfumato.errors import UserError


def test_too_little_to_find_anything_is_refused() -> None:
    for options in ({"runs": 10}, {"canaries": 10}):
        with pytest.raises(UserError, match="finds nothing"):
            audit_core([1.0], **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one"):
        audit_core([])


def test_the_command_cries_out_where_there_is_no_noise() -> None:
    app = typer.Typer()
    app.add_typer(audit_app, name="audit")
    words = ["audit", "core", "--epsilon", "1", "--runs", "200", "--canaries", "400", "--without-noise", "--json"]
    told = CliRunner().invoke(app, words)
    found = json.loads(told.stdout)
    assert told.exit_code == 1
    assert not found["protected"]
    assert found["broken"]
    assert not any(one["broken"] for one in found["sensitivity"])  # clipping is there without noise too
    assert [one["broken"] for one in found["bounds"]] == [True] * 4
    assert found["confidence"]["tests"] == 4
    text = cli_audit._core_in_words(found)
    assert text.startswith("NOT PRIVATE")
    assert "THE GUARANTEE DOES NOT HOLD" in text
    assert text.count("BROKEN") == 4
