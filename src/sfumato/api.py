"""The Python interface: constructors hold parameters and do no work, `fit` spends, `sample` is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sfumato import run
from sfumato.config import RunConfig, validated
from sfumato.data.folder import class_folders
from sfumato.data.public import PublicImages
from sfumato.data.release import Samples, write_release
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.forecast import Forecast, forecast
from sfumato.forecast_evolution import EvolutionForecast, forecast_evolution
from sfumato.forecast_spectral import SpectralForecast, forecast_spectral
from sfumato.methods.evolution_settings import KINDS
from sfumato.methods.models import OWN
from sfumato.speed import in_time


class PrivateImages:
    """A folder of private images, named. Nothing is read until `fit`."""

    def __init__(
        self,
        folder: str | Path,
        *,
        dataset: str,
        unit: str = "image",
        public_size: int | None = None,
        classes: Sequence[str] | None = None,
        classes_are_public: bool = False,
        size: tuple[int, int] | None = None,
        channels: Literal[1, 3] | None = None,
    ) -> None:
        """
        Args:
            folder: class sub-folders, or `metadata.jsonl` with `file_name` and optional `label`, `text`, `person_id`.
            dataset: name under which the budget is kept.
            unit: `image` or `person`.
            public_size: number of records as you declare it to be public.
            classes: class names that are public.
            classes_are_public: declare the names of the sub-folders to be public.
            size: height and width that every image is brought to; None takes the method's own.
            channels: 1 or 3; None takes the method's own.
        """
        self.folder = Path(folder)
        if classes is not None and classes_are_public:
            raise UserError("Give classes or classes_are_public, not both.")
        self._classes, self._from_folders = classes, classes_are_public
        self._settings = {
            "dataset": dataset,
            "unit": unit,
            "public_size": public_size,
            "image": ({"height": size[0], "width": size[1]} if size else {})
            | ({"channels": channels} if channels else {}),
        }

    def __repr__(self) -> str:
        return f"PrivateImages(dataset={self._settings['dataset']!r})"

    def settings(self) -> dict[str, Any]:
        """The public settings that this folder contributes to a run."""
        classes = list(self._classes) if self._classes is not None else None
        if self._from_folders:
            classes = class_folders(self.folder)
        origin = None if classes is None else "folder names" if self._from_folders else "listed"
        return self._settings | {"classes": classes, "classes_origin": origin}


class FittedModel:
    """A finished run: sample from it as often as you like."""

    def __init__(self, finished: run.Run, model: Any) -> None:
        self._run, self._model = finished, model

    def sample(self, count: int, *, seed: int = 0, prompts: Sequence[str] = ()) -> Samples:
        """`count` images with their provenance, in the run's class shares or under prompts; costs no privacy.

        Args:
            count: images.
            seed: public; another seed gives other images.
            prompts: public texts to draw under, for a model that was told captions; none may come from private records.
        """
        given = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        return run.draw(self._run, self._model, count, seed, prompts=given)

    @property
    def statement(self) -> str:
        """The privacy statement as text."""
        return run.statement(self._run).render()


class _Trained:
    """What the methods that train a model have in common."""

    _method: str

    def __init__(
        self,
        *,
        epsilon: float,
        delta: float = 1e-6,
        count: int = 10_000,
        minutes: float | None = None,
        public: PublicImages | None = None,
        **settings: Any,
    ) -> None:
        """
        Args:
            epsilon: in (0, 100].
            delta: in [1e-12, 1).
            count: images that a release is meant to hold.
            minutes: how long the whole run may take here; the number of training steps follows from a speed trial.
            public: public images to learn from first.
            settings: fields of `PrivImageConfig` or `SpectralConfig`.
        """
        self._settings: dict[str, Any] = {"epsilon": epsilon, "delta": delta, "count": count, "minutes": minutes}
        self._settings[self._method] = settings
        self._settings["public"] = public.settings() if public else None

    def _config(self, private: PrivateImages) -> RunConfig:
        return validated(private.settings() | {"method": self._method} | self._settings)

    def fit(self, private: PrivateImages, run_dir: str | Path, *, report: run.Report = run.silent) -> FittedModel:
        """Spends the budget and trains. An interrupted fit is finished by `load(run_dir)`."""
        config = in_time(self._config(private))
        started = run.prepare(config, private.folder, None, Path(run_dir), run.make_plan(config))
        return FittedModel(started, run.train(started, report))


class PrivImage(_Trained):
    """PrivImage: DP diffusion that learns from public images first, where there are any."""

    _method = "privimage"

    def forecast(self, private: PrivateImages) -> Forecast:
        """What `fit` would cost; opens no private file."""
        return forecast(self._config(private))


class Spectral(_Trained):
    """Spectral: private coarse structure, public detail. It needs public images."""

    _method = "spectral"

    def forecast(self, private: PrivateImages) -> SpectralForecast:
        """What `fit` would cost and could reach at best; opens no private file."""
        return forecast_spectral(self._config(private))


class _Evolution:
    """What SPTI and Private Evolution have in common."""

    _method: str

    def __init__(
        self,
        *,
        epsilon: float,
        delta: float = 1e-6,
        count: int = 10_000,
        seed: int = 0,
        allow_private_to: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        """
        Args:
            epsilon: in (0, 100].
            delta: in [1e-12, 1).
            count: images that a release is meant to hold.
            seed: of captions and images; noise cannot be seeded.
            allow_private_to: hosts besides this machine that may be shown private images.
            settings: fields of `SPTIConfig` or `PrivateEvolutionConfig`. A model is a line such as
                "offline:efficientnet-lite0", or an object of your own that implements its interface.
        """
        self._models = {name: value for name, value in settings.items() if name in KINDS and _is_object(value)}
        named = {name: f"{OWN}{model.identity.name}" for name, model in self._models.items()}
        self._settings: dict[str, Any] = {
            "epsilon": epsilon,
            "delta": delta,
            "count": count,
            "seed": seed,
            "allow_private_to": tuple(allow_private_to),
            self._method.replace("-", "_"): settings | named,
        }

    def _config(self, private: PrivateImages) -> RunConfig:
        return validated(private.settings() | {"method": self._method} | self._settings)

    def forecast(self, private: PrivateImages) -> EvolutionForecast:
        """What `fit` would cost; opens no private file."""
        return forecast_evolution(self._config(private), self._models)

    def fit(self, private: PrivateImages, run_dir: str | Path, *, report: run.Report = run.silent) -> FittedModel:
        """Spends the budget. An interrupted fit is finished by `load(run_dir)`, with the same objects as `models`."""
        config = self._config(private)
        started = run.prepare(config, private.folder, None, Path(run_dir), run.make_plan(config), self._models)
        return FittedModel(started, run.train(started, report))


class SPTI(_Evolution):
    """SPTI: captions evolve by the votes of private images; no model is trained."""

    _method = "spti"


class PrivateEvolution(_Evolution):
    """Private Evolution: images evolve by the votes of private images; also for a few images of one thing."""

    _method = "private-evolution"


def _is_object(value: object) -> bool:
    return value is not None and not isinstance(value, str)


def load(
    run_dir: str | Path, *, report: run.Report = run.silent, models: Mapping[str, Any] = MappingProxyType({})
) -> FittedModel:
    """The model of a run; finishes the run first if it was interrupted.

    Args:
        run_dir: folder of the run.
        report: progress.
        models: the objects that the run was begun with, by the name of their setting.
    """
    found = run.Run(Path(run_dir), models)
    return FittedModel(found, run.train(found, report))


def release(samples: Samples, folder: str | Path) -> Path:
    """Writes a publishable folder.

    Raises:
        PrivacyRefusal: anything but samples of a fitted model: images without provenance have no statement.
    """
    if not isinstance(samples, Samples):
        raise PrivacyRefusal("Only samples of a fitted model can be released: plain images carry no guarantee.")
    if samples.provenance.run_folder is None:
        return write_release(samples, Path(folder))
    return run.publish(run.Run(samples.provenance.run_folder), samples, Path(folder))
