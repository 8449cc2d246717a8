"""GPU presets: datasheet figures against each other, and unknown names."""

from __future__ import annotations

import pytest

from sim.errors import InputError
from sim.latency.gpus import GIB, GPUS, load_gpu


def test_the_presets_named_in_the_docs_are_there() -> None:
    names = "a100-40gb-sxm a100-80gb-sxm h100-sxm h200-sxm b200-sxm l40s rtx-pro-6000 rtx-4090"
    assert set(GPUS) == set(names.split())


@pytest.mark.parametrize("name", list(GPUS))
def test_reported_memory_is_a_little_under_the_nominal_size(name: str) -> None:
    nominal = {"a100-40gb-sxm": 40, "a100-80gb-sxm": 80, "h100-sxm": 80, "h200-sxm": 141, "b200-sxm": 180}
    nominal |= {"l40s": 48, "rtx-pro-6000": 96, "rtx-4090": 24}
    assert 0.92 < GPUS[name].memory_bytes / (nominal[name] * GIB) < 1.0


@pytest.mark.parametrize("name", list(GPUS))
def test_rates_grow_as_formats_shrink(name: str) -> None:
    gpu = GPUS[name]
    assert gpu.fp32_flops <= gpu.tf32_flops < gpu.fp16_flops
    assert gpu.fp8_flops is None or gpu.fp8_flops == pytest.approx(2 * gpu.fp16_flops, rel=0.02)
    assert gpu.source


def test_ridge_points() -> None:
    """FLOPs per byte at which an FP16 kernel turns compute-bound: 153 on an A100."""
    a100, h100 = GPUS["a100-80gb-sxm"], GPUS["h100-sxm"]
    assert a100.fp16_flops / a100.memory_bandwidth == pytest.approx(153, abs=0.5)
    assert h100.fp16_flops / h100.memory_bandwidth == pytest.approx(295, abs=1)


def test_links() -> None:
    assert GPUS["a100-80gb-sxm"].link_bandwidth == 300e9
    assert GPUS["l40s"].link_bandwidth == 32e9
    assert GPUS["a100-40gb-sxm"].fp8_flops is None


@pytest.mark.parametrize(
    ("name", "near"), [("a100", "a100-80gb-sxm"), ("h100_sxm", "h100-sxm"), ("rtx4090", "rtx-4090")]
)
def test_unknown_names_get_a_suggestion(name: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"engine.gpu: unknown GPU .*did you mean .*{near}"):
        load_gpu(name)


def test_a_name_like_nothing_gets_the_list() -> None:
    with pytest.raises(InputError, match="presets: a100-40gb-sxm"):
        load_gpu("tpu")


def test_names_do_not_depend_on_case() -> None:
    assert load_gpu("L40S") is GPUS["l40s"]
