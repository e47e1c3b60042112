"""What a run of Spectral would cost and could reach at best, before it costs anything; from public values alone.

The oracle floor is the reach: public images, reduced to their true coarse band and given detail again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import avg_pool2d

from sfumato.config import RunConfig
from sfumato.data.public import to_facts
from sfumato.errors import UserError
from sfumato.hardware import Hardware, choose_hardware
from sfumato.methods.coarse import CoarseLearner, set_sizes
from sfumato.methods.denoising import Schedule
from sfumato.methods.detail import ExampleDetail, Floor, floor_of, floors, upscaled, whole
from sfumato.methods.examples import Examples
from sfumato.methods.open_training import minimise
from sfumato.methods.spectral_model import SpectralModel, untrained, upscaler
from sfumato.methods.spectral_settings import FINE_TUNING, SpectralConfig
from sfumato.methods.superresolution import lessons
from sfumato.methods.tokens import (
    PublicModel,
    cache_name,
    encoded,
    load_public_model,
    make_codebooks,
    seen_in_training,
)
from sfumato.nets.adapters import Trained
from sfumato.nets.autoregressive import Condition
from sfumato.nets.scattering import ScatteringClassifier
from sfumato.nets.tokenizer import ScaleError, Tokenizer
from sfumato.privacy.draws import Draws
from sfumato.privacy.plan import Plan, TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.training import Crew
from sfumato.run import make_plan
from sfumato.speed import READ_PER_SECOND, duration, with_check
from sfumato.workflows.spectral import pretrained_models, prompts_of, public_side

TOLD_PER_SECOND = 150.0
"""Captions that a text embedder of MiniLM's size takes on two cores."""

_RESERVE = 0.06  # of the minutes: machines are not equally fast all the time
_DRAWN = 2.0  # pictures drawn for one that is released, where a label check sorts them; as on Fashion-MNIST
_PATIENCE = 30.0  # seconds of a trial, if many rows cost no less each than one alone
_PICTURES = 32  # judged in a trial
_FEW_PICTURES = 100  # that get detail which takes time
MOST_PICTURES, MOST_VALUES = 400, 2**24
"""Public images that the floor is measured on; fewer, where they are large."""


class SpectralSpeed(NamedTuple):
    """What a run meets on this machine.

    Attributes:
        trained: set that private training moves.
        parameters: of it.
        rows_per_second: of private training, all cores, tokenising and noise included.
        public_seconds: of the public stage.
        warm_seconds: of the warm start.
        check_seconds: of the label check: its training, and its judging of what is drawn.
        pictures_per_second: of sampling, as far as they are released.
    """

    trained: Trained
    parameters: int
    rows_per_second: float
    public_seconds: float
    warm_seconds: float
    check_seconds: float
    pictures_per_second: float


@dataclass(frozen=True)
class SpectralForecast:
    """What a run would buy, need and reach at best.

    Attributes:
        plan: the calibrated touches.
        speed: tried on random images.
        tokens: coarse tokens that a record is to the private stage.
        noise: norm of the training's noise, seen as one release of the mean gradient, over the bound on a record's.
        training_minutes: expected duration of private training on this machine.
        total_minutes: the same of the whole run, from intake to sampling.
        floors: oracle floors on public images, by number of levels and detail stage.
        reconstruction: of the public images by the run's own tokens, by scale; empty until the public stage was run.
        notes: warnings from public values.
    """

    plan: Plan
    speed: SpectralSpeed
    tokens: int
    noise: float
    training_minutes: float
    total_minutes: float
    floors: tuple[Floor, ...]
    reconstruction: tuple[ScaleError, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, for scripts."""
        values = asdict(replace(self, floors=(), reconstruction=()))
        return values | {
            "epsilon": self.plan.planned_epsilon,
            "delta": self.plan.delta,
            "plan": self.plan.to_json(),
            "shares": self.plan.shares(),
            "speed": self.speed._asdict(),
            "floors": [floor._asdict() for floor in self.floors],
            "reconstruction": [error._asdict() for error in self.reconstruction],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        speed, wide = self.speed, max([12, *(len(floor.detail) for floor in self.floors)])
        pace = f"{speed.rows_per_second:,.0f}" if speed.rows_per_second >= 10 else f"{speed.rows_per_second:.2g}"
        lines = [
            *self.plan.in_words(),
            f"Private stage: {self.tokens} tokens a record; {speed.parameters:,} parameters move ({speed.trained}); "
            f"noise of norm {self.noise:.3g} in the mean of all gradients, whose norm is at most 1",
            f"Speed: {pace} records a second here, so about {duration(self.training_minutes)} of private training and "
            f"{duration(self.total_minutes)} in all, {duration(speed.public_seconds / 60)} of them on public images",
            "Oracle floor on public images (their true coarse image and a detail stage):",
            f"  levels  coarse    {'detail':<{wide}}  energy   psnr  sharpness",
        ]
        for floor in self.floors:
            size = f"{floor.height}x{floor.width}"
            lines.append(
                f"  {floor.levels:<6}  {size:<8}  {floor.detail:<{wide}}  {floor.energy:>6.1%}  {floor.psnr:>5.1f}  "
                f"{floor.sharpness:>9.2f}"
            )
        for error in self.reconstruction:
            lines.append(
                f"Tokens up to {error.height}x{error.width} keep public images with an error of {error.rmse:.1f} of 255"
            )
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def forecast_spectral(config: RunConfig, hardware: Hardware | None = None) -> SpectralForecast:
    """Prices a run, tries the machine's speed, and measures the oracle floor; opens no private file.

    Raises:
        UserError: a public folder is missing or empty, or without captions that are to be told; a model that the
            settings name does not exist or has not been pulled; or the minutes are too few.
    """
    hardware = hardware or choose_hardware()
    if config.spectral.condition == "captions" and config.public is not None:
        prompts_of(config, config.public.images())
    pretrained_models(config)  # what is missing is said before anything is tried
    config = with_check(config)
    speed = measure_spectral_speed(config, hardware)
    config = with_spectral_steps(config, speed)
    plan, method, size = make_plan(config), config.spectral, config.public_size
    (touch,) = (one for one in plan.touches if isinstance(one, TrainingTouch) and one.name == FINE_TUNING)
    batch = method.expected_batch(size)
    noise = touch.noise_multiplier * (1 + touch.slack) / batch * (speed.parameters / touch.steps) ** 0.5
    found, errors = _reach(config, hardware)
    notes = ["The time does not include the reading of public images."]
    if size is None:
        notes.append("No size was declared: rate, delta and divisor are the preset's.")
    elif batch / size > 0.5:
        notes.append("More than half of the records take part in every step; such a small set learns little.")
    if noise > 1:
        notes.append("The noise is larger than any gradient can be: use more records or more epsilon.")
    mine = [floor for floor in found if floor.levels == method.levels]
    if mine and mine[0].energy < 0.7:
        notes.append(
            f"The coarse band holds {mine[0].energy:.0%} of these images' variance only: fewer levels keep more."
        )
    training = batch * method.steps / speed.rows_per_second
    return SpectralForecast(
        plan=plan,
        speed=speed,
        tokens=method.shape(config.image.spec().shape).tokens,
        noise=noise,
        training_minutes=training / 60,
        total_minutes=(training + _beside_training(config, speed)) / 60,
        floors=tuple(found),
        reconstruction=tuple(errors),
        notes=tuple(notes),
    )


def measure_spectral_speed(config: RunConfig, hardware: Hardware) -> SpectralSpeed:
    """Trains and samples for a few seconds on random images of the configured shape."""
    method, image, size = config.spectral, config.image.spec().shape, config.public_size
    model = untrained(method, image, _condition(config))
    sizes = set_sizes(model.coarse, method.rank)
    trained = method.trained_set(config.epsilon, config.delta, size, sizes)
    condition = model.coarse.condition
    learner = CoarseLearner(
        model.coarse,
        model.public.tokenizer,
        torch.zeros(1, condition.size) if condition.kind == "text" else None,
        Schedule(1e-3, 1),
        trained=trained,
        rank=method.rank,
        average=0.9,
        label_dropout=method.label_dropout,
        seed=0,
        hardware=hardware,
    )
    touch, label = method.training_request(size).at(1.0), 0 if config.classes else -1

    def training(count: int) -> float:
        rows = Rows(
            torch.randint(0, 256, (count, *image), dtype=torch.uint8),
            torch.full((count,), label),
            torch.ones(count, dtype=torch.bool),
            Draws(bytes(32), "speed trial", 0, [bytes(16)] * count),
        )
        with contextlib.closing(Crew(learner, touch, count, hardware.precision)) as crew:
            return count / crew.rows_per_second(rows, chunks=2 if count > 1 else 1)

    def beside() -> float:
        with contextlib.closing(Crew(learner, touch, 1, hardware.precision)) as crew:
            return crew.seconds_beside(learner)

    def drawing(count: int) -> float:
        return _seconds(lambda: list(model.sample(torch.full((count,), label), 0, hardware, batch=count)))

    workers = torch.get_num_threads() if hardware.device.type == "cpu" else 1
    seconds = _per_row(training, method.chunk, 7 * workers)  # once, then three times two chunks, of each worker
    pictures = 1 / _per_row(drawing, model.at_once)
    public = _public_seconds(method, model, hardware)
    warm = method.warm_steps * method.warm_batch * seconds if method.warm_share else 0.0
    checking = 0.0
    if method.check.spent(len(config.classes or ())):
        images = torch.randint(0, 256, (_PICTURES, *image), dtype=torch.uint8)
        judged = method.check.steps * method.check.expected_batch(size) + _DRAWN * config.count
        checking = judged * _seconds(lambda: _judged(model, images)) / _PICTURES
        pictures /= _DRAWN
    batch, at_once = method.expected_batch(size), workers * method.chunk
    computed = max(batch + at_once / 2, at_once)  # the last chunks of a step are filled up
    pace = batch / (computed * seconds + beside())
    return SpectralSpeed(trained, sizes[trained], pace, public, warm, checking, pictures)


def _per_row(seconds: Callable[[int], float], most: int, times: int = 2) -> float:
    """Seconds a row, tried `times` on as many rows as patience allows, at most `most`."""
    one = seconds(1)
    count = min(most, max(1, int(_PATIENCE / (times * one))))
    return one if count == 1 else seconds(count) / count


@torch.no_grad()
def _judged(model: SpectralModel, images: torch.Tensor) -> torch.Tensor:
    """What the label check does with records, but for its gradients."""
    tokenizer = model.public.tokenizer
    seen = ScatteringClassifier(tokenizer.shape.small(1), 2)
    found: torch.Tensor = seen(tokenizer.thumbnail(tokenizer.encode(images, 1)) / 127.5 - 1)
    return found


def _public_seconds(method: SpectralConfig, model: SpectralModel, hardware: Hardware) -> float:
    """Of all public trainings, from a step of each kind."""
    public, learning = model.public, method.pretraining

    def of(module: torch.nn.Module, steps: int, batch: int, rows: Callable[[int], tuple[torch.Tensor, ...]]) -> float:
        def step(count: int) -> float:
            given = [rows(count)]
            return _seconds(lambda: list(minimise(module, given, 1, 1e-6, hardware, chunk=count)))

        return steps * batch * _per_row(step, min(batch, method.chunk)) if steps else 0.0

    def pictures(count: int) -> torch.Tensor:
        return torch.randint(0, 256, (count, *model.image), dtype=torch.uint8)

    def lines(length: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(method.vocabulary, (count, length)), public.network.condition.nothing(count)

    seconds = of(public.tokenizer, method.decoder_steps, method.tokenizer.batch, lambda count: (pictures(count),))
    coarse, whole_length = public.network.tokens, public.network.length
    shares = {coarse: learning.coarse_share, whole_length: 1 - learning.coarse_share}
    for length, share in shares.items() if coarse < whole_length else [(coarse, 1.0)]:
        seconds += share * of(public.network, learning.steps, learning.batch, partial(lines, length))
    if (resolver := public.resolver) is not None:
        settings = method.superresolution

        def lesson(count: int) -> tuple[torch.Tensor, ...]:
            some = pictures(count)
            small = avg_pool2d(some.float(), 1 << method.levels)
            return next(lessons(settings.model_copy(update={"batch": count}), resolver, some, small, torch.Generator()))

        seconds += of(resolver, settings.steps, settings.batch, lesson)
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    """Of the second time: in the first one, memory is asked for and kernels are chosen."""
    work()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _condition(config: RunConfig) -> Condition:
    return config.spectral.condition_of(len(config.classes or ()), 384)  # of the text embedder, or near it


def _beside_training(config: RunConfig, speed: SpectralSpeed) -> float:
    """Seconds of intake, public stage, warm start and sampling."""
    intake = (config.public_size or 0) / READ_PER_SECOND
    if config.spectral.condition == "captions" and config.public is not None:  # one for each private image
        intake += ((config.public_size or 0) + len(config.public.images().captions())) / TOLD_PER_SECOND
    once = speed.public_seconds + speed.warm_seconds + speed.check_seconds
    return intake + once + config.count / speed.pictures_per_second


def with_spectral_steps(config: RunConfig, speed: SpectralSpeed) -> RunConfig:
    """The settings with as many training steps as make the whole run take about `config.minutes` on this machine.

    Without minutes they are returned as they are. All steps are planned and charged.

    Raises:
        UserError: not even 10 steps fit.
    """
    if config.minutes is None:
        return config
    batch = config.spectral.expected_batch(config.public_size)
    left = 60 * config.minutes * (1 - _RESERVE) - _beside_training(config, speed)
    steps = int(left * speed.rows_per_second / batch)
    if steps < 10:
        needed = (60 * config.minutes - left + 10 * batch / speed.rows_per_second) / 60
        raise UserError(
            f"{config.minutes:g} minutes are too few for these settings on this machine: at least {needed:.1f} are "
            "needed, or a smaller batch, or fewer steps on public images (spectral.pretraining.steps)."
        )
    return config.model_copy(update={"spectral": config.spectral.model_copy(update={"steps": steps})})


def _reach(config: RunConfig, hardware: Hardware) -> tuple[list[Floor], list[ScaleError]]:
    """Floors on public images; of the run's own detail stage too, as far as it can be had without a training."""
    assert config.public is not None
    method, images = config.spectral, config.public.images()
    images.check()
    side = public_side(config, Path(), to_facts(images.identities()))
    pixels = images.read(config.image.spec()).pixels
    unseen = ~seen_in_training(len(pixels))  # or examples would be found again
    most = min(MOST_PICTURES, max(2, MOST_VALUES // pixels[0].size))
    pictures = torch.from_numpy(pixels[unseen] if unseen.sum() > 1 else pixels)[:most]
    found = list(floors(pictures, max(4, method.levels)))
    told = Condition() if side.embed is None else Condition("text", side.embed(("",)).shape[1])
    file = side.cache / cache_name(method, told, side.facts, config.seed)
    model = load_public_model(method, config.image.spec().shape, told, file)
    errors = model.errors(pixels) if model is not None else []
    few = pictures[:_FEW_PICTURES]
    if method.detail == "examples":
        found += _examples(config, torch.from_numpy(pixels[~unseen]), few, hardware)
    elif method.own_detail and model is not None:
        found.append(_own_detail(config, model, few, hardware))
    elif not method.own_detail and method.detail != "lanczos":  # which all levels have
        adds = upscaler(method.detail)
        for levels in sorted({floor.levels for floor in found}):
            small = whole(avg_pool2d(few.float(), 1 << levels))
            finer = upscaled(small, adds, few.shape[2], few.shape[3])
            found.append(floor_of(method.detail, levels, few, finer))
    return sorted(found, key=lambda floor: floor.levels), errors


def _own_detail(config: RunConfig, model: PublicModel, pictures: torch.Tensor, hardware: Hardware) -> Floor:
    """The floor of the run's own detail stage, which public images have taught."""
    stage = SpectralModel(config.spectral, model.tokenizer.shape.image, model.network, model, None, None, False)
    coarse, nothing = model.tokenizer.encode(pictures, 1), model.network.condition.nothing(len(pictures))
    drawn = stage.detail().pictures(coarse, nothing, torch.Generator().manual_seed(config.seed), hardware)
    return floor_of("own", config.spectral.levels, pictures, drawn)


def _examples(config: RunConfig, shown: torch.Tensor, pictures: torch.Tensor, hardware: Hardware) -> Iterator[Floor]:
    """The floor of pieces of the public images `shown`, for every number of levels, with tokens as large as the run's.

    Nothing has to be learnt for it but codebooks of the coarse scale.
    """
    method, image = config.spectral, config.image.spec().shape
    side = method.patch << method.levels  # of a token, in pixels
    for levels in (levels for levels in range(1, side.bit_length()) if side % (1 << levels) == 0):
        trial = method.model_copy(update={"levels": levels, "patch": side >> levels})
        generator, tokenizer = torch.Generator().manual_seed(config.seed), Tokenizer(trial.shape(image)).eval()
        next(make_codebooks(trial, tokenizer, shown, generator))
        kept = shown[torch.randperm(len(shown), generator=generator)[: method.examples.count]]
        stage = ExampleDetail(tokenizer, Examples(kept, encoded(tokenizer, kept, 1)), method.examples)
        coarse = tokenizer.encode(pictures, 1)
        yield floor_of("examples", levels, pictures, stage.pictures(coarse, coarse, generator, hardware))
