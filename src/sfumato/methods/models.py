"""Opens the models of a run: by the line in its settings, or as objects that the user made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.errors import UserError
from sfumato.methods.evolution_settings import KINDS, PrivateEvolutionConfig, SPTIConfig
from sfumato.pretrained.backends import INTERFACES, open_model
from sfumato.pretrained.interfaces import Identity
from sfumato.pretrained.wall import for_private, for_released, whereabouts

OWN = "object:"
"""How settings name a model that is the user's own object."""


@dataclass
class Models:
    """The models of one run, opened when first asked for.

    Attributes:
        config: names them.
        given: the user's own objects, by the name of the setting.
        allowed: hosts that the user trusts with private images.
        answers: private folder for what remote models answered about private images.
    """

    config: SPTIConfig | PrivateEvolutionConfig
    given: Mapping[str, Any] = field(default_factory=dict)
    allowed: Collection[str] = ()
    answers: Path | None = None
    _open: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, role: str) -> Any:
        if role not in self._open:
            self._open[role] = self._passed(role, self._opened(role))
        return self._open[role]

    def _opened(self, role: str) -> Any:
        line = self.config.roles()[role]
        if role in self.given:
            model = self.given[role]
            if not isinstance(model, INTERFACES[KINDS[role]]):
                raise UserError(f"{role} must be a model that is a {KINDS[role]} (see sfumato.pretrained.interfaces).")
            return model
        if line.startswith(OWN):
            raise UserError(
                f"This run was begun with a model object of your own for '{role}' ({line.removeprefix(OWN)}); give it "
                f"again to go on: load(run_dir, models={{{role!r}: ...}})."
            )
        return open_model(line, KINDS[role], **self.config.model_options(role))

    def _passed(self, role: str, model: Any) -> Any:
        """Through the wall: what is shown private images must be allowed to; the others see released values only."""
        if role in self.config.shown_private_images():
            return for_private(model, self.allowed, self.answers)
        return for_released(model)

    def check(self) -> None:
        """Opens all models and lets those that are shown private images pass the wall, or not.

        Raises:
            UserError: a model is missing, or of another kind.
            PrivacyRefusal: private images would leave the machine for a place that was not named.
        """
        for role in self.config.roles():
            self[role]

    def sentences(self) -> list[str]:
        """One for every model, for the privacy statement."""
        uses = {
            "texts": "Captions were written by",
            "images": "Images were drawn by",
            "variator": "Images were varied by",
            "source": "First images came from",
            "embedder": "Records and candidates were compared by",
            "captioner": "Private images were captioned by",
            "text_embedder": "Captions were compared by",
            "upscaler": "Images were enlarged by",
        }
        return [
            f"{uses[role]} {_named(self[role].identity)}, {whereabouts(self[role])}." for role in self.config.roles()
        ]


def _named(identity: Identity) -> str:
    digest = f", sha256 {identity.sha256[:16]}" if identity.sha256 else ""
    return f"{identity.name} (revision {identity.revision}{digest}, {identity.licence}; {identity.source})"
