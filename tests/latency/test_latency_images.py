"""Vision towers: what is read of a config, and what images add to a step, worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engines import engine_config
from multimodal import GEMMA_3_4B, QWEN3_VL_8B, config_file

from sim.cluster.deployment import encoder_embeds, served_image
from sim.latency.base import StepShape
from sim.latency.build import build_step_cost
from sim.latency.hf_config import read_model_config
from sim.latency.image_cost import ImageCost
from sim.scenario.schema import LatencyConfig
from sim.workload.prompt_images import ImagePlaces


def engine(folder: Path, config: dict[str, Any], **more: Any) -> Any:
    path = config_file(folder, config)
    return engine_config(
        model=str(path),
        gpu="h100-sxm",
        enable_images=True,
        max_model_len=16384,
        **{"max_num_batched_tokens": 8192, **more},
    )


def images(number: int, embeds: int) -> dict[str, int]:
    return {
        "num_images": number,
        "num_image_embeds": number * embeds,
        "image_attention_pairs": number * embeds**2,
    }


PREFILL = {
    "num_prefills": 1,
    "num_prefill_tokens": 600,
    "prefill_context_tokens": 600,
    "prefill_attention_pairs": 360_000,
    "num_sampled": 1,
}


def test_gemma_makes_256_embeddings_of_4096_patches_and_frames_them(tmp_path: Path) -> None:
    vision = read_model_config(config_file(tmp_path, GEMMA_3_4B)).vision
    assert vision is not None
    assert (vision.tokens_per_image, vision.patches_per_embed, vision.largest_embeds) == (256, 4096 // 256, 256)
    assert (vision.layers, vision.width, vision.heads, vision.head_size, vision.mlp_width) == (27, 1152, 16, 72, 4304)
    gemma = engine(tmp_path, GEMMA_3_4B)
    assert served_image(gemma, None) == ImagePlaces(num_tokens=260, num_embeds=256, num_before=2)
    assert encoder_embeds(gemma, vision) == 8192


def test_qwen_makes_an_embedding_of_four_patches_and_its_size_depends_on_the_image(tmp_path: Path) -> None:
    qwen = engine(tmp_path, QWEN3_VL_8B)
    vision = read_model_config(Path(qwen.model)).vision
    assert vision is not None
    assert (vision.tokens_per_image, vision.patches_per_embed, vision.patch_values) == (0, 4, 3 * 16 * 16)
    assert served_image(qwen, None) is None
    assert encoder_embeds(qwen, vision) == 16384, "the largest image, beyond the token budget of 8,192"


def test_without_images_nothing_is_kept_for_them(tmp_path: Path) -> None:
    text = engine_config(model=str(config_file(tmp_path, GEMMA_3_4B)), gpu="h100-sxm", max_model_len=8192)
    assert encoder_embeds(text, read_model_config(Path(text.model)).vision) == 0
    assert not isinstance(build_step_cost(text, LatencyConfig(kind="roofline")), ImageCost)


@pytest.mark.parametrize("kind", ["profile", "roofline"])
def test_images_add_to_steps_that_encode_some(tmp_path: Path, kind: Any) -> None:
    cost = build_step_cost(engine(tmp_path, QWEN3_VL_8B), LatencyConfig(kind=kind))
    assert isinstance(cost, ImageCost)
    plain, with_one = StepShape(**PREFILL), StepShape(**PREFILL, **images(1, 1024))
    assert cost.gpu_ns(plain) == cost.target.gpu_ns(plain)
    assert cost.gpu_ns(with_one) - cost.gpu_ns(plain) == cost.image_ns(with_one) > 0
    unit = 1e9 if kind == "roofline" else 1
    assert sum(cost.breakdown(with_one).values()) * unit == pytest.approx(cost.gpu_ns(with_one), rel=1e-3)
    many = [cost.image_ns(StepShape(**PREFILL, **images(number, 1024))) for number in (1, 2, 4, 8)]
    assert many == sorted(many)
    assert many[3] > 3 * many[1]


def test_attention_comes_from_the_curve_of_the_tower(tmp_path: Path) -> None:
    cost = build_step_cost(engine(tmp_path, GEMMA_3_4B), LatencyConfig(kind="profile"))
    assert isinstance(cost, ImageCost)
    assert cost.has_attention
    predictor = cost.target.operators.predictor  # type: ignore[attr-defined]
    assert predictor.has_exactly("encoder_attention", (16, 72, 4))
    layer_s = predictor.time_ns("encoder_attention", (16, 72, 4), 4096) / 1e9
    assert cost.parts_s(4, 4 * 256, 4 * 256**2)["attention"] == pytest.approx(27 * layer_s)


def test_a_tower_by_hand(tmp_path: Path) -> None:
    cost = build_step_cost(engine(tmp_path, GEMMA_3_4B), LatencyConfig(kind="roofline"))
    assert isinstance(cost, ImageCost)
    patches, width, mlp = 8 * 4096, 1152, 4304
    per_layer = 2.0 * patches * (4 * width**2 + 2 * width * mlp)
    around = 2.0 * (patches * 3 * 14**2 * width + 8 * 256 * width * 2560)
    parts = cost.parts_s(8, 8 * 256, 8 * 256**2)
    peak = 989.4e12
    assert parts["matrices"] == pytest.approx((27 * per_layer + around) / (peak * 0.72), rel=0.02)
    assert parts["attention"] == pytest.approx(27 * (2e-6 + 4.0 * 8 * width * 4096**2 / (peak * 0.5)), rel=0.01)
    assert parts["launches"] == 0.0
    assert cost.parts_s(1, 16, 16**2)["launches"] > 0, "a small image waits for its launches"


def test_two_gpus_share_a_tower(tmp_path: Path) -> None:
    one = build_step_cost(engine(tmp_path, GEMMA_3_4B), LatencyConfig(kind="roofline"))
    two = build_step_cost(engine(tmp_path, GEMMA_3_4B, tensor_parallel_size=2), LatencyConfig(kind="roofline"))
    assert isinstance(one, ImageCost)
    assert isinstance(two, ImageCost)
    counts = (8, 8 * 256, 8 * 256**2)
    assert two.parts_s(*counts)["all_reduce"] > 0
    assert two.parts_s(*counts)["matrices"] == pytest.approx(one.parts_s(*counts)["matrices"] / 2, rel=0.05)
