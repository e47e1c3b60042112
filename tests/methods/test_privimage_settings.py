"""Settings: presets fill what is not set, contradictions are refused, the plan holds what the settings ask for."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from pydantic import ValidationError

from sfumato.methods.labelcheck import LABEL_CHECK
from sfumato.methods.privimage_settings import FINE_TUNING, WARM_START, PrivImageConfig
from sfumato.nets.ddpmpp import DDPMpp, DDPMppShape
from sfumato.nets.unet import UNetShape


def test_a_preset_fills_what_is_not_set() -> None:
    paper = PrivImageConfig.model_validate({"preset": "paper", "steps": 7, "sampler": {"churn": 1.0}})
    assert (paper.batch, paper.draws, paper.clip_norm, paper.clipping) == (4096, 32, 1e-3, "flat")
    assert (paper.steps, paper.sampler.churn, paper.sampler.steps) == (7, 1.0, 1000)
    assert PrivImageConfig(preset="laptop") == PrivImageConfig()


def test_resolved_settings_resolve_to_themselves() -> None:
    paper = PrivImageConfig(preset="paper", average=0.5)
    assert PrivImageConfig.model_validate(paper.model_dump(mode="json")) == paper


def test_the_published_network_is_the_published_size() -> None:
    shape = PrivImageConfig(preset="paper").shape((1, 28, 28), 10)
    assert isinstance(shape, DDPMppShape)
    assert sum(parameter.numel() for parameter in DDPMpp(shape).parameters()) == 1_485_217


def test_a_network_is_guided_where_there_is_a_warm_start() -> None:
    assert PrivImageConfig().shape((3, 32, 32), 2) == UNetShape(12, 12, 2, (32, 32), (2, 2))
    assert PrivImageConfig(warm_share=0.0).shape((3, 32, 32), 2) == UNetShape(12, 0, 2, (32, 32), (2, 2))


@pytest.mark.parametrize(
    ("changes", "public", "names"),
    [
        ({}, False, (WARM_START, FINE_TUNING)),
        ({}, True, ("semantic query", WARM_START, FINE_TUNING)),
        ({"warm_share": 0.0}, False, (FINE_TUNING,)),
        ({"preset": "paper"}, True, ("semantic query", FINE_TUNING)),
        ({"check": {"share": 0.05}}, True, ("semantic query", WARM_START, LABEL_CHECK, FINE_TUNING)),
    ],
)
def test_the_touches_that_are_bought(changes: dict[str, object], public: bool, names: tuple[str, ...]) -> None:
    config = PrivImageConfig.model_validate(changes)
    requests = config.requests(60_000, classes=10, public=public)
    assert tuple(request.name for request in requests) == names
    training = asdict(requests[-1])  # type: ignore[call-overload]
    assert (training["clipping"], training["rows"], training["steps"]) == (config.clipping, config.draws, config.steps)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixed": 0.3, "warm_share": 0.0}, "'mixed' takes pictures of the warm start"),
        ({"sampler": {"guidance": 1.0}}, "guidance needs a network that knows 'no label'"),
        ({"preset": "desktop"}, "preset"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PrivImageConfig.model_validate(changes)
