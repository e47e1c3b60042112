"""How fast this machine is at the parts of a run, tried on random images; and how many steps fit into given minutes.

Both happen before the first touch and read no private file, so the number of steps stays a public constant of the plan.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import NamedTuple

import torch

from sfumato.config import RunConfig
from sfumato.errors import UserError
from sfumato.hardware import Hardware, choose_hardware
from sfumato.methods.denoising import DenoisingLearner, Schedule, View, draw_pictures
from sfumato.methods.privimage import WARM_BATCH
from sfumato.methods.semantic import BATCH, DEFAULT_CLUSTERS
from sfumato.nets.classifier import ConvNet
from sfumato.privacy.draws import Draws
from sfumato.privacy.records import Rows
from sfumato.privacy.training import Crew

READ_PER_SECOND = 2_000
"""Small images that intake reads in a second on two cores; a guess, because trying it would open the folder."""

_RESERVE = 0.06  # of the minutes: machines are not equally fast all the time
_PICTURES = 256


class Speed(NamedTuple):
    """What a run meets on this machine.

    Attributes:
        parameters: trained.
        rows_per_second: of private training, all cores.
        pictures_per_second: of sampling.
        votes_per_second: of the semantic query; not tried without public images.
    """

    parameters: int
    rows_per_second: float
    pictures_per_second: float
    votes_per_second: float = math.inf


def measure_speed(config: RunConfig, hardware: Hardware) -> Speed:
    """Trains and samples for a few seconds on random images of the configured shape."""
    method, classes = config.privimage, len(config.classes or ())
    image = (config.image.channels, config.image.height, config.image.width)
    shape = method.shape(image, classes)
    view = View.of(shape)
    learner = DenoisingLearner(
        shape,
        image,
        torch.zeros(max(classes, 1), *view.size(image)) if view.guided else None,
        Schedule(1e-3, 1),
        rows=method.draws,
        average=0.9,
        seed=0,
        hardware=hardware,
    )
    count = method.chunk
    labels = (torch.arange(count) % max(classes, 1)) if classes else torch.full((count,), -1)
    rows = Rows(
        torch.randint(0, 256, (count * method.draws, *image), dtype=torch.uint8),
        labels.repeat_interleave(method.draws),
        torch.ones(count, dtype=torch.bool),
        Draws(bytes(32), "speed trial", 0, [bytes(16)] * count),
    )
    training = method.training_request(config.public_size)
    with contextlib.closing(Crew(learner, training.at(1.0), method.chunk, hardware.precision)) as crew:
        rows_per_second = crew.rows_per_second(rows)
    begun = time.perf_counter()
    draw_pictures(
        learner.averaged,
        image,
        learner.guides,
        torch.arange(_PICTURES) % max(classes, 1),
        torch.Generator().manual_seed(0),
        method.sampler.sampler(),
        hardware,
    )
    return Speed(
        parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
        rows_per_second=rows_per_second,
        pictures_per_second=_PICTURES / (time.perf_counter() - begun),
        votes_per_second=_votes_per_second(image) if config.public else math.inf,
    )


@torch.inference_mode()
def _votes_per_second(image: tuple[int, int, int]) -> float:
    network = ConvNet(image, DEFAULT_CLUSTERS).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = torch.randn(_PICTURES, *image).contiguous(memory_format=torch.channels_last)
    network(pictures)
    begun = time.perf_counter()
    network(pictures)
    return _PICTURES / (time.perf_counter() - begun)


def seconds_beside_training(config: RunConfig, speed: Speed) -> float:
    """Intake, public training and query, warm-up, sampling."""
    size, method = config.public_size or 0, config.privimage
    seconds = size / READ_PER_SECOND + config.count / speed.pictures_per_second
    seconds += method.warm_steps * WARM_BATCH / speed.rows_per_second
    if config.public is not None:
        seconds += method.pretraining.steps * method.pretraining.batch / speed.rows_per_second
        # A step of training costs about three forward passes; a classifier from the cache costs none.
        seconds += (3 * method.semantic.steps * BATCH + size) / speed.votes_per_second
    return seconds


def with_steps(config: RunConfig, speed: Speed) -> RunConfig:
    """The settings with as many training steps as make the whole run take about `config.minutes` on this machine.

    Without minutes they are returned as they are. All steps are planned and charged; nothing stops a run that is slower
    than its trial.

    Raises:
        UserError: not even 10 steps fit.
    """
    if config.minutes is None:
        return config
    method, minutes = config.privimage, config.minutes
    batch = method.sampling_rate(config.public_size) * config.public_size if config.public_size else method.batch
    left = 60 * minutes * (1 - _RESERVE) - seconds_beside_training(config, speed)
    steps = int(left * speed.rows_per_second / (batch * method.draws))
    if steps < 10:
        needed = (60 * minutes - left + 10 * batch * method.draws / speed.rows_per_second) / 60
        raise UserError(
            f"{minutes:g} minutes are too few for these settings on this machine: at least {needed:.1f} are needed, or "
            "a smaller batch or network."
        )
    return config.model_copy(update={"privimage": method.model_copy(update={"steps": steps})})


def in_time(config: RunConfig, hardware: Hardware | None = None) -> RunConfig:
    """`with_steps` by a trial now, where minutes were given."""
    if config.minutes is None:
        return config
    hardware = hardware or choose_hardware()
    if config.method == "spectral":
        from sfumato.forecast_spectral import measure_spectral_speed, with_spectral_steps

        return with_spectral_steps(config, measure_spectral_speed(config, hardware))
    return with_steps(config, measure_speed(config, hardware))
