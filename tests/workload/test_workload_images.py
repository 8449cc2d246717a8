"""Images of prompts: how many, where, which are the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import InputError
from sim.scenario.schema import WorkloadConfig
from sim.workload.build_table import build_workload
from sim.workload.prompt_images import ImagePlaces
from sim.workload.table import RequestTable

FRAMED = ImagePlaces(num_tokens=260, num_embeds=256, num_before=2)
LMM = (
    "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    "2024-10-15 00:00:01.5+00:00,0,300,20\n"
    "2024-10-15 00:00:02.0+00:00,2,400,30\n"
    "2024-10-15 00:00:03.0+00:00,1,50,30\n"
)


def table(images: dict[str, Any] | None, served: ImagePlaces | None = FRAMED, **more: Any) -> RequestTable:
    config: dict[str, Any] = {
        "requests": 30,
        "arrival": {"process": "poisson", "rate": 1},
        "input_tokens": {"dist": "uniform", "low": 50, "high": 100},
        "output_tokens": {"dist": "fixed", "value": 10},
        "images": images,
        **more,
    }
    return build_workload(WorkloadConfig.model_validate(config), 1, Path(), image=served)


def rows_of(found: RequestTable) -> list[list[list[int]]]:
    assert found.images is not None
    return found.images.by_row()


def test_images_lie_behind_the_text_and_come_on_top_of_it() -> None:
    text, found = table(None), table({"per_request": 2})
    assert (found.input_tokens == text.input_tokens + 520).all()
    for row, images in enumerate(rows_of(found)):
        start = int(text.input_tokens[row])
        assert [image[0] for image in images] == [start, start + 260]
        assert {tuple(image[1:3] + image[4:]) for image in images} == {(260, 256, 2)}
    assert len({image[3] for images in rows_of(found) for image in images}) == 60


def test_the_workload_may_say_how_large_they_are() -> None:
    found = table({"tokens": 1024}, served=None)
    assert {tuple(image[1:3]) for images in rows_of(found) for image in images} == {(1024, 1024)}
    with pytest.raises(InputError, match=r"images\.tokens"):
        table({"per_request": 1}, served=None)


def test_their_number_is_drawn_and_other_draws_stay_as_they_were() -> None:
    text, found = table(None), table({"per_request": {"dist": "uniform", "low": 1, "high": 4}, "shared": 3})
    counts = np.array([len(images) for images in rows_of(found)])
    assert set(counts.tolist()) == {1, 2, 3, 4}
    assert (found.input_tokens - 260 * counts == text.input_tokens).all()
    assert (found.arrival_ns == text.arrival_ns).all()
    assert {image[3] for images in rows_of(found) for image in images} == {0, 1, 2}


def test_later_turns_of_a_conversation_have_the_images_of_earlier_ones() -> None:
    found = table({"per_request": 1}, sessions={"turns": 3})
    images = rows_of(found)
    opened = np.flatnonzero(found.parent < 0)
    for row in opened.tolist():
        turns = [row]
        while len(turns) < 3 and (after := np.flatnonzero(found.parent == turns[-1])).size:
            turns.append(int(after[0]))
        assert [len(images[turn]) for turn in turns] == [1, 2, 3][: len(turns)]
        for before, turn in pairwise(turns):
            assert images[turn][:-1] == images[before], "at their old places, the same images"
            assert images[turn][-1][0] + 260 == found.input_tokens[turn]
            assert images[turn][-1][0] >= found.input_tokens[before] + 10


def test_outputs_of_one_prompt_have_its_images() -> None:
    found = table({"per_request": 1}, n=2)
    images = rows_of(found)
    assert len(images) == 60
    assert all(images[row] == images[row + 1] for row in range(0, 60, 2))


def trace(folder: Path, served: ImagePlaces | None, images: dict[str, Any] | None = None) -> RequestTable:
    (folder / "lmm.csv").write_text(LMM)
    config = {"trace": {"path": "lmm.csv", "format": "azure"}, "images": images}
    return build_workload(WorkloadConfig.model_validate(config), 1, folder, image=served)


def test_a_trace_says_how_many_images_its_requests_have(tmp_path: Path) -> None:
    found = trace(tmp_path, FRAMED)
    assert found.input_tokens.tolist() == [300, 400 + 520, 50 + 260]
    assert [[image[0] for image in images] for images in rows_of(found)] == [[], [400, 660], [50]]
    assert trace(tmp_path, None, {"tokens": 100}).input_tokens.tolist() == [300, 600, 150]


def test_a_trace_with_images_needs_an_engine_that_serves_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 of 3 requests have images \(`NumImages`\).*enable_images: true"):
        trace(tmp_path, None)
