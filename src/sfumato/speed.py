"""How fast this machine is at the parts of a run, tried on random images; and what training then fits into its time.

Both happen before the first touch and read no private file, so what is chosen stays a public constant of the plan.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import NamedTuple

import torch
from torch import nn

from sfumato.config import RunConfig
from sfumato.errors import UserError
from sfumato.hardware import Hardware, choose_hardware
from sfumato.methods.denoising import DenoisingLearner, Schedule, View, draw_pictures, network_of
from sfumato.methods.privimage import WARM_BATCH
from sfumato.methods.privimage_settings import WIDER, PrivImageConfig
from sfumato.methods.prototypes import Layout, share_for_clear_means
from sfumato.methods.semantic import BATCH, DEFAULT_CLUSTERS
from sfumato.nets.classifier import ConvNet
from sfumato.nets.scattering import ScatteringClassifier
from sfumato.privacy.accounting import gaussian_mu
from sfumato.privacy.draws import Draws
from sfumato.privacy.records import Rows
from sfumato.privacy.training import Crew

READ_PER_SECOND = 2_000
"""Small images that intake reads in a second on two cores; a guess, because trying it would open the folder."""

_RESERVE = 0.1  # of the minutes: machines are not equally fast all the time
_LESSONS = 0.15  # of the minutes: public pretraining
_LEAST_STEPS, _LEAST_BATCH = 10, 128
_DRAWN = 1.3  # pictures drawn for one that is released, where a label check sorts them; a guess
_PICTURES, _CHUNKS = 256, 8
_PATIENCE = 4.0  # seconds of a trial's chunk, or of its pictures
_PRESET = PrivImageConfig()


class Speed(NamedTuple):
    """What a run meets on this machine.

    Attributes:
        parameters: trained.
        rows_per_second: of private training, all cores.
        pictures_per_second: of sampling.
        votes_per_second: of the semantic query; not tried without public images.
        checks_per_second: pictures a second whose class the label check judges.
    """

    parameters: int
    rows_per_second: float
    pictures_per_second: float
    votes_per_second: float = math.inf
    checks_per_second: float = math.inf


def measure_speed(config: RunConfig, hardware: Hardware) -> Speed:
    """Trains and samples for a few seconds on random images of the configured shape.

    Networks too slow for that are tried on fewer rows, pictures and sampling steps.
    """
    method, image = config.privimage, (config.image.channels, config.image.height, config.image.width)
    rate = _trained_rows(config, hardware, records=1, draws=1, chunks=1)
    room = max(1, int(rate * _PATIENCE))
    draws = min(method.draws, room)
    records = min(method.chunk, max(1, room // draws))
    chunks = _CHUNKS if (records, draws) == (method.chunk, method.draws) else 1
    learner = _learner(config, hardware, 1)
    return Speed(
        parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
        rows_per_second=_trained_rows(config, hardware, records, draws, chunks),
        pictures_per_second=_drawn_pictures(config, learner, hardware),
        votes_per_second=_pictures_per_second(ConvNet(image, DEFAULT_CLUSTERS), image) if config.public else math.inf,
        checks_per_second=_pictures_per_second(ScatteringClassifier(image, 2), image) if config.classes else math.inf,
    )


def _learner(config: RunConfig, hardware: Hardware, draws: int) -> DenoisingLearner:
    classes, image = len(config.classes or ()), config.image.spec().shape
    shape = config.privimage.shape(image, classes)
    view = View.of(shape)
    return DenoisingLearner(
        shape,
        image,
        torch.zeros(max(classes, 1), *view.size(image)) if view.guided else None,
        Schedule(1e-3, 1),
        rows=draws,
        average=0.9,
        seed=0,
        hardware=hardware,
    )


def _trained_rows(config: RunConfig, hardware: Hardware, records: int, draws: int, chunks: int) -> float:
    """Rows a second of private training, with chunks of so many records of so many draws."""
    method, classes = config.privimage, len(config.classes or ())
    labels = (torch.arange(records) % max(classes, 1)) if classes else torch.full((records,), -1)
    rows = Rows(
        torch.randint(0, 256, (records * draws, *config.image.spec().shape), dtype=torch.uint8),
        labels.repeat_interleave(draws),
        torch.ones(records, dtype=torch.bool),
        Draws(bytes(32), "speed trial", 0, [bytes(16)] * records),
    )
    touch = method.model_copy(update={"draws": draws}).training_request(config.public_size).at(1.0)
    with contextlib.closing(Crew(_learner(config, hardware, draws), touch, records, hardware.precision)) as crew:
        return crew.rows_per_second(rows, chunks)


def _drawn_pictures(config: RunConfig, learner: DenoisingLearner, hardware: Hardware) -> float:
    """Pictures a second of sampling."""
    image, sampler = config.image.spec().shape, config.privimage.sampler.sampler()

    def seconds(count: int, steps: int) -> float:
        begun = time.perf_counter()
        draw_pictures(
            learner.averaged,
            image,
            learner.guides,
            torch.arange(count) % max(len(config.classes or ()), 1),
            torch.Generator().manual_seed(0),
            sampler._replace(steps=steps),
            hardware,
        )
        return time.perf_counter() - begun

    steps = min(sampler.steps, 2)
    seconds(1, steps)  # the first time, kernels are chosen
    calls = (2 * sampler.steps - 1) / (2 * steps - 1)  # of the network, over the trial's
    if seconds(8, steps) * _PICTURES / 8 * calls <= _PATIENCE:
        return _PICTURES / seconds(_PICTURES, sampler.steps)
    count = max(8, min(_PICTURES, int(8 * _PATIENCE / seconds(8, steps))))
    return count / (seconds(count, steps) * calls)


@torch.inference_mode()
def _pictures_per_second(classifier: nn.Module, image: tuple[int, int, int]) -> float:
    """Of a classifier's forward pass."""
    network = classifier.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = torch.randn(_PICTURES, *image).contiguous(memory_format=torch.channels_last)
    network(pictures)
    begun = time.perf_counter()
    network(pictures)
    return _PICTURES / (time.perf_counter() - begun)


def seconds_beside_training(config: RunConfig, speed: Speed) -> float:
    """Intake, public training and query, warm-up, label check, sampling."""
    size, method = config.public_size or 0, config.privimage
    drawn: float = config.count
    seconds = size / READ_PER_SECOND
    if method.check.spent(len(config.classes or ())):
        drawn *= _DRAWN
        judged = method.check.steps * method.check.expected_batch(config.public_size) + drawn
        seconds += judged / speed.checks_per_second
    seconds += drawn / speed.pictures_per_second
    seconds += method.warm_steps * WARM_BATCH / speed.rows_per_second
    if config.public is not None:
        seconds += method.pretraining.steps * method.pretraining.batch / speed.rows_per_second
    if config.public is not None and method.selection == "semantic":
        # A step of training costs about three forward passes; a classifier from the cache costs none.
        seconds += (3 * method.semantic.steps * BATCH + size) / speed.votes_per_second
    return seconds


def settled(config: RunConfig, hardware: Hardware, speed: Speed | None = None) -> tuple[RunConfig, Speed]:
    """The settings with everything that follows from epsilon and minutes, and the speed that they will meet here.

    What a user set is kept. Without minutes, training may take as many rows as the preset's; with them, as many as make
    the whole run take about that long on this machine, pretraining about a seventh of it. All steps are planned and
    charged; nothing stops a run that is slower than its trial.

    Args:
        config: of PrivImage.
        hardware: where the run will compute.
        speed: of these settings, if it is known.

    Raises:
        UserError: not even 10 steps fit into the minutes.
    """
    tried = speed is None
    speed = speed or measure_speed(config, hardware)
    config = _lessons_in_time(_clear_means(with_check(config)), speed)
    if not _open(config):
        return with_steps(config, speed), speed
    if tried and config.minutes is not None:
        wide = config.privimage.model_copy(update={"width": WIDER})
        if wide_pays(config, _rows(config, speed) / 2, _parameters(config, wide)):
            config = _with(config, wide)
            speed = measure_speed(config, hardware)
        chosen = proportioned(config, _rows(config, speed), speed.parameters)
        if chosen.privimage.draws > 1:  # rows of one record cost less
            speed = measure_speed(chosen, hardware)
    return proportioned(config, _rows(config, speed), speed.parameters), speed


def proportioned(config: RunConfig, rows: float, parameters: int) -> RunConfig:
    """The settings with batch, steps and draws that follow from a budget of rows and the declared size."""
    size, mu = _size_and_mu(config)
    return _with(config, config.privimage.proportioned(rows, size, mu, parameters))


def wide_pays(config: RunConfig, rows: float, parameters: int) -> bool:
    """Whether the larger network, which trains so many parameters, pays."""
    size, mu = _size_and_mu(config)
    return config.privimage.wider_pays(rows, size, mu, parameters)


def _size_and_mu(config: RunConfig) -> tuple[int, float]:
    mu, classes = gaussian_mu(config.epsilon, config.delta), len(config.classes or ())
    return config.public_size or 1, config.privimage.training_mu(mu, config.public is not None, classes)


def _open(config: RunConfig) -> bool:
    return config.method == "privimage" and config.public_size is not None and config.privimage.open


def _with(config: RunConfig, method: PrivImageConfig) -> RunConfig:
    return config.model_copy(update={"privimage": method})


def _lessons_in_time(config: RunConfig, speed: Speed) -> RunConfig:
    """Pretraining of a seventh of the minutes, if that is longer than the preset's and nobody said how long."""
    lessons = config.privimage.pretraining
    if config.minutes is None or config.public is None or "steps" in lessons.model_fields_set:
        return config
    steps = int(_LESSONS * 60 * config.minutes * speed.rows_per_second / lessons.batch)
    longer = lessons.model_copy(update={"steps": max(steps, lessons.steps)})
    return _with(config, config.privimage.model_copy(update={"pretraining": longer}))


def _clear_means(config: RunConfig) -> RunConfig:
    """The warm start's share that follows from epsilon and size, where neither it nor the proportions were set."""
    method = config.privimage
    if not _open(config) or "warm_share" in method.model_fields_set:
        return config
    layout = Layout(config.image.spec().shape, max(len(config.classes or ()), 1))
    mu = gaussian_mu(config.epsilon, config.delta)
    share = share_for_clear_means(layout, config.public_size or 1, mu, method.warm_attempts)
    return _with(config, method.model_copy(update={"warm_share": share}))


def with_check(config: RunConfig) -> RunConfig:
    """The label check's share that follows from public values, where it was not set; of PrivImage and Spectral."""
    image, mu = config.image.spec().shape, gaussian_mu(config.epsilon, config.delta)
    method = config.spectral if config.method == "spectral" else config.privimage
    seen = config.spectral.shape(image).small(1) if config.method == "spectral" else image
    check = method.check.settled(seen, len(config.classes or ()), config.public_size, mu)
    return config.model_copy(update={config.method: method.model_copy(update={"check": check})})


def _parameters(config: RunConfig, method: PrivImageConfig) -> int:
    shape = method.shape(config.image.spec().shape, len(config.classes or ()))
    return sum(parameter.numel() for parameter in network_of(shape, 0).parameters())


def _rows(config: RunConfig, speed: Speed) -> float:
    """Rows of private training that there is time for."""
    if config.minutes is None:
        return float(_PRESET.batch * _PRESET.steps)
    left = _seconds_left(config, speed)
    if left * speed.rows_per_second < _LEAST_STEPS * _LEAST_BATCH:
        needed = config.minutes + (_LEAST_STEPS * _LEAST_BATCH / speed.rows_per_second - left) / 60
        raise _too_short(config.minutes, needed)
    return left * speed.rows_per_second


def _seconds_left(config: RunConfig, speed: Speed) -> float:
    return 60 * (config.minutes or 0.0) * (1 - _RESERVE) - seconds_beside_training(config, speed)


def _too_short(minutes: float, needed: float) -> UserError:
    return UserError(
        f"{minutes:g} minutes are too few for these settings on this machine: at least {needed:.1f} are needed, or "
        "a smaller batch or network."
    )


def with_steps(config: RunConfig, speed: Speed) -> RunConfig:
    """The settings with as many training steps as make the whole run take about `config.minutes` on this machine.

    Without minutes they are returned as they are.

    Raises:
        UserError: not even 10 steps fit.
    """
    if config.minutes is None:
        return config
    method = config.privimage
    batch = method.sampling_rate(config.public_size) * config.public_size if config.public_size else method.batch
    left = _seconds_left(config, speed)
    steps = int(left * speed.rows_per_second / (batch * method.draws))
    if steps < _LEAST_STEPS:
        needed = config.minutes + (_LEAST_STEPS * batch * method.draws / speed.rows_per_second - left) / 60
        raise _too_short(config.minutes, needed)
    return _with(config, method.model_copy(update={"steps": steps}))


def in_time(config: RunConfig, hardware: Hardware | None = None) -> RunConfig:
    """The settings as the run will have them: `settled`, by a trial now where one is needed."""
    hardware = hardware or choose_hardware()
    if config.method not in ("privimage", "spectral"):
        return config
    config = with_check(config)
    if config.method == "spectral":
        from sfumato.forecast_spectral import measure_spectral_speed, with_spectral_steps

        if config.minutes is None:
            return config
        return with_spectral_steps(config, measure_spectral_speed(config, hardware))
    if config.minutes is not None:
        return settled(config, hardware)[0]
    if not _open(config):
        return config
    return proportioned(_clear_means(config), _PRESET.batch * _PRESET.steps, _parameters(config, config.privimage))


def duration(minutes: float) -> str:
    """Minutes in words; hours, where they are many."""
    return f"{minutes:.1f} minutes" if minutes < 600 else f"{minutes / 60:,.0f} hours"
