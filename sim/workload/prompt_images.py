"""Images of prompts: how many a request has, where they lie, and which are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.errors import InputError
from sim.seeds import rng
from sim.workload.lengths import draw_lengths
from sim.workload.table import ImageColumns, IntColumn

if TYPE_CHECKING:
    from sim.workload.traffic_plan import ClassPlan


class ImagePlaces(NamedTuple):
    """What one image takes in a prompt."""

    num_tokens: int
    num_embeds: int
    """Of the tokens, those that hold embeddings, ..."""
    num_before: int = 0
    """... and those before the first of them."""


@dataclass(frozen=True, slots=True)
class DrawnImages:
    """Images of each turn, and what they are."""

    counts: IntColumn
    """Images of each row's own turn."""
    places: ImagePlaces

    @property
    def tokens(self) -> IntColumn:
        """Places that a row's own images take."""
        return self.counts * self.places.num_tokens


def draw_images(plan: ClassPlan, seed: int, n: int, served: ImagePlaces | None) -> DrawnImages | None:
    """How many images each of ``n`` turns has; None = prompts are text. ``served``: an image of the engine's model."""
    images = plan.images
    if images is None:
        return None
    if isinstance(images.per_request, int):
        counts = np.full(n, images.per_request, dtype=np.int64)
    else:
        counts = draw_lengths(images.per_request, rng(seed, "images", plan.name), n)
    return DrawnImages(counts, places_of(plan, served))


def places_of(plan: ClassPlan, served: ImagePlaces | None) -> ImagePlaces:
    """What an image of a class takes: what the class says, else what the model's config says."""
    if plan.images is not None and plan.images.tokens is not None:
        return ImagePlaces(plan.images.tokens, plan.images.tokens)
    if served is None:
        raise InputError(
            f"{plan.where}.images: nothing says how many tokens an image takes; write `images.tokens`, for example 1024"
        )
    return served


def placed(
    drawn: DrawnImages, input_tokens: IntColumn, turn: IntColumn, plan: ClassPlan, seed: int, first_content: int
) -> ImageColumns:
    """The images of rows whose inputs count them already: each turn's behind its text, and in a conversation those of
    the turns before it. Contents count from ``first_content`` on, up to ``num_contents`` of them."""
    counts, places = drawn.counts, drawn.places
    total = int(counts.sum())
    number = np.arange(total)
    if plan.images is not None and plan.images.shared is not None:
        drawing = rng(seed, "image_contents", plan.name)
        number = drawing.integers(0, plan.images.shared, size=total, dtype=np.int64)
    start = np.repeat(input_tokens - drawn.tokens, counts) + number_within(counts) * places.num_tokens
    values = np.empty((total, len(ImageColumns.FIELDS)), dtype=np.int64)
    values[:, 0], values[:, 1], values[:, 2] = start, places.num_tokens, places.num_embeds
    values[:, 3], values[:, 4] = first_content + number, places.num_before
    own = ImageColumns(counts, values)
    return own if not np.any(turn) else _with_earlier(own, turn)


def num_contents(drawn: DrawnImages, plan: ClassPlan) -> int:
    """Different images that a class may have."""
    shared = None if plan.images is None else plan.images.shared
    return int(drawn.counts.sum()) if shared is None else shared


def number_within(counts: IntColumn) -> IntColumn:
    """0, 1, 2, ... within each group of so many."""
    found: IntColumn = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def _with_earlier(own: ImageColumns, turn: IntColumn) -> ImageColumns:
    """The images of each turn and of those before it, which are the rows before it."""
    rows = np.repeat(np.arange(len(turn)) - turn, turn + 1) + number_within(turn + 1)
    taken = own.take(rows)
    per_row = np.add.reduceat(own.count[rows], np.cumsum(turn + 1) - (turn + 1)) if len(rows) else own.count
    return ImageColumns(per_row.astype(np.int64), taken.values)


def joined_images(parts: Sequence[tuple[ImageColumns | None, int]]) -> ImageColumns | None:
    """Images of several classes, each with its number of rows, one after the other; None where none has any."""
    if all(images is None for images, _ in parts):
        return None
    columns = [images or ImageColumns.none(num_rows) for images, num_rows in parts]
    return ImageColumns(
        np.concatenate([each.count for each in columns]), np.concatenate([each.values for each in columns])
    )
