"""An evaluation in words: exact measurements of private images, hence internal, unlike the pages of a release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTICE = (
    "INTERNAL: do not publish. These are exact measurements of private images, without protection; no privacy "
    "guarantee covers them, nor choices made with them."
)


def summarise(facts: Mapping[str, Any]) -> str:
    """The main figures as lines of text, the notice first."""
    lines = [
        NOTICE,
        "",
        f"Release {facts['release_id']}: how it stands to the private images, and how the holdout does",
    ]
    for name, found in facts["distances"].items():
        lines += ["", f"{name}, {found['images']} images of each set {'release':>27} {'holdout':>12}"]
        lines += [f"  {label:<42} {one:>12.4g} {other:>12.4g}" for label, one, other in _rows(found)]
        lines.append(f"  {'nearer to a private than a holdout image':<42} {found['lean']['share']:>12.1%}")
    table = facts["classifiers"]
    if "absent" in table:
        return "\n".join([*lines, "", f"No classifiers: {table['absent']}"])
    first, real = table["synthetic"][0], table["real"][0]
    trained = f"trained on {first['train_images']} synthetic, {real['train_images']} private images"
    lines += ["", f"Classifiers, {trained}, tested on {first['test_images']} of the holdout"]
    for one, other in zip(table["synthetic"], table["real"], strict=True):
        lines.append(f"  {one['classifier']:<42} {one['accuracy']:>12.2%} {other['accuracy']:>12.2%}")
    for label in ("mean", "maximum"):
        lines.append(f"  {label:<42} {table[label]:>12.2%} {table[f'real_{label}']:>12.2%}")
    return "\n".join(lines)


def _rows(found: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    return [
        (label, found["release"][measure][field], found["reference"][measure][field])
        for label, measure, field in (
            ("Frechet distance", "frechet", "distance"),
            ("kernel distance", "kernel", "mean"),
            ("precision", "precision_recall", "precision"),
            ("recall", "precision_recall", "recall"),
            ("density", "density_coverage", "density"),
            ("coverage", "density_coverage", "coverage"),
            ("distance to the nearest, median", "nearest", "median"),
            ("distance to the nearest, least", "nearest", "smallest"),
        )
    ]
