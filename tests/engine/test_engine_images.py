"""Images in steps: what is encoded, what waits, what is found again; and a run with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_driver import Driver, make_request
from multimodal import GEMMA_3_4B, config_file

import sim
from sim.engine.request import Image


def pictured(row: int, prompt: int, *images: Image, output: int = 2, **more: Any) -> Any:
    return make_request(row, prompt, output, images=images, **more)


def test_a_chunk_ends_before_an_image_beyond_the_budget() -> None:
    driver = Driver(encoder_budget_embeds=10, encoder_cache_embeds=100)
    driver.add(pictured(0, 40, Image(5, 8, 8, 1), Image(20, 8, 8, 2)))
    steps = driver.run()
    assert steps[0] == {"r0": 20}, "up to the second image, which is left for the next step"
    assert steps[1] == {"r0": 20}
    assert [batch.shape.num_images for batch in driver.batches[:3]] == [1, 1, 0]
    assert [batch.shape.num_image_embeds for batch in driver.batches[:2]] == [8, 8]


def test_an_image_is_encoded_once_while_its_embeddings_are_kept() -> None:
    driver = Driver(encoder_budget_embeds=16, encoder_cache_embeds=16, max_num_seqs=1)
    for row, content in enumerate((1, 1, 2, 3, 2, 1)):
        driver.add(pictured(row, 20, Image(4, 8, 8, content), output=1))
    driver.run()
    # Two fit: 3 takes the place of 1, which is encoded again at the end and takes that of 3.
    assert [batch.shape.num_images for batch in driver.batches if batch.scheduled] == [1, 0, 1, 1, 0, 1]


def test_an_image_is_cut_unless_that_is_off() -> None:
    def first(**more: Any) -> dict[str, int]:
        driver = Driver(max_num_batched_tokens=16, encoder_budget_embeds=16, encoder_cache_embeds=16, **more)
        driver.add(pictured(0, 40, Image(10, 12, 12, 1)))
        return driver.one_step()

    assert first() == {"r0": 16}
    assert first(disable_chunked_mm_input=True) == {"r0": 10}


def test_the_frame_of_an_image_needs_no_encoder() -> None:
    driver = Driver(max_num_batched_tokens=12, encoder_budget_embeds=16, encoder_cache_embeds=16)
    driver.add(pictured(0, 40, Image(10, 12, 8, 1, num_before=2)))
    driver.run()
    assert [batch.shape.num_images for batch in driver.batches[:2]] == [0, 1]


@pytest.fixture
def gemma(tmp_path: Path) -> str:
    return str(config_file(tmp_path, GEMMA_3_4B))


def run(model: str, images: dict[str, Any] | None, **engine: Any) -> Any:
    workload: dict[str, Any] = {
        "requests": 40,
        "arrival": {"process": "poisson", "rate": 4},
        "input_tokens": {"dist": "fixed", "value": 200},
        "output_tokens": {"dist": "fixed", "value": 20},
    }
    if images is not None:
        workload["images"] = images
    settings = {"model": model, "gpu": "h100-sxm", "max_model_len": 8192, "enable_images": True, **engine}
    return sim.simulate({"name": "x", "workload": workload, "engine": settings})


def test_a_run_encodes_every_image_once_and_says_what_it_cost(gemma: str) -> None:
    results = run(gemma, {"per_request": 2})
    assert results.summary["counts"]["completed"] == 40
    assert (results.requests["input_tokens"] == 200 + 2 * 260).all()
    steps = results.steps
    assert steps["num_images"].sum() == 80
    assert steps["num_image_embeds"].sum() == 80 * 256
    assert results.summary["error"]["terms"]["images"]["seconds"] > 0


def test_images_that_many_share_are_encoded_seldom(gemma: str) -> None:
    shared = run(gemma, {"per_request": 2, "shared": 4})
    assert shared.steps["num_images"].sum() == 4, "32 fit into the cache"
    assert shared.summary["mean_ttft_ms"] < run(gemma, {"per_request": 2}).summary["mean_ttft_ms"]


def test_an_engine_that_serves_images_takes_text_as_one_that_does_not(gemma: str) -> None:
    served, plain = run(gemma, None).summary, run(gemma, None, enable_images=False).summary
    assert served["mean_e2el_ms"] == plain["mean_e2el_ms"]
    assert served["mean_ttft_ms"] == plain["mean_ttft_ms"]
