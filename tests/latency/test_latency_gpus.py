"""GPU presets: datasheet figures against each other, and unknown names."""

from __future__ import annotations

from typing import Any

import pytest

from sim.errors import InputError
from sim.latency.gpus import GIB, GPUS, best_known_first, load_gpu, standing
from sim.latency.profile.library import profile_for_gpu
from sim.results.results import Results
from sim.run import load, run
from sim.scenario.schema import GpuConfig


def test_the_presets_named_in_the_docs_are_there() -> None:
    names = "a100-40gb-sxm a100-80gb-sxm h100-sxm h200-sxm b200-sxm l40s rtx-pro-6000 rtx-4090"
    names += " l4 a10g a30 a40 rtx-3090 a6000 h20 h100-pcie h100-nvl gh200 b300-sxm gb200"
    assert set(GPUS) == set(names.split())


@pytest.mark.parametrize("name", list(GPUS))
def test_reported_memory_is_a_little_under_the_nominal_size(name: str) -> None:
    nominal = {"a100-40gb-sxm": 40, "a100-80gb-sxm": 80, "h100-sxm": 80, "h200-sxm": 141, "b200-sxm": 180}
    nominal |= {"l40s": 48, "rtx-pro-6000": 96, "rtx-4090": 24, "l4": 24, "a10g": 24, "a30": 24, "a40": 48}
    nominal |= {"rtx-3090": 24, "a6000": 48, "h20": 96, "h100-pcie": 80, "h100-nvl": 94, "gh200": 96}
    nominal |= {"b300-sxm": 288, "gb200": 186}
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
    ("name", "near"),
    [
        ("a100", "a100-80gb-sxm"),
        ("h100_sxm", "h100-sxm"),
        ("rtx4090", "rtx-4090"),
        ("NVIDIA H100 SXM5 80GB", "h100-sxm"),
        ("h100-smx", "h100-sxm"),
        ("RTX PRO 6000", "rtx-pro-6000"),
        ("4090", "rtx-4090"),
        ("a100-40gb", "a100-40gb-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA L4 24GB", "l4"),
    ],
)
def test_unknown_names_get_a_suggestion(name: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"engine.gpu: unknown GPU .*did you mean .*{near}"):
        load_gpu(name)


def test_a_name_like_nothing_gets_the_list() -> None:
    with pytest.raises(InputError, match="presets: a100-80gb-sxm"):
        load_gpu("tpu")


def test_measured_presets_are_named_first_and_the_others_marked() -> None:
    """As the profiles that come with the program have it."""
    for name, gpu in GPUS.items():
        own = profile_for_gpu(name)
        assert standing(gpu) == ("estimate" if own is None else "measured" if own == name else "scaled")
    order = [standing(gpu) for gpu in best_known_first()]
    assert order == sorted(order, key=["measured", "scaled", "estimate"].index)
    assert {gpu.name for gpu in best_known_first()} == set(GPUS)
    with pytest.raises(
        InputError,
        match=r"rtx-pro-6000, b300-sxm, gb200, a100-40gb-sxm \(scaled\), rtx-4090 \(estimate\), l4 \(estimate\)",
    ):
        load_gpu("tpu")
    with pytest.raises(InputError, match=r"did you mean rtx-4090 \(estimate\)\?"):
        load_gpu("GeForce RTX 4090")


def test_names_do_not_depend_on_case() -> None:
    assert load_gpu("L40S") is GPUS["l40s"]


@pytest.mark.parametrize(
    "name",
    [
        *("mi300x", "a10", "l40", "rtx-4080", "rtx-6000-ada", "gb300", "h800", "v100"),
        *("a100-48gb", "sxm", "tpu"),
    ],
)
def test_no_other_gpu_is_suggested(name: str) -> None:
    with pytest.raises(InputError) as raised:
        load_gpu(name)
    assert "did you mean" not in str(raised.value)
    assert "; presets: a100-80gb-sxm, " in str(raised.value)
    assert "goes in as a section: {name: ..., memory_gib: ..." in str(raised.value)


def test_a100_is_both_and_with_its_memory_one() -> None:
    with pytest.raises(InputError, match=r"did you mean a100-80gb-sxm or a100-40gb-sxm \(scaled\)\?"):
        load_gpu("A100")
    with pytest.raises(InputError, match=r"did you mean a100-80gb-sxm\?"):
        load_gpu("A100 80GB")


OWN = {"name": "mi300x", "memory_gib": 191.5, "memory_bandwidth_gb_s": 5300.0, "fp16_tflops": 1307.4}


def scenario_of(gpu: Any, **latency: Any) -> dict[str, Any]:
    return {
        "name": "own",
        "workload": {
            "requests": 20,
            "arrival": {"process": "constant", "rate": 10},
            "input_tokens": {"dist": "fixed", "value": 100},
            "output_tokens": {"dist": "fixed", "value": 10},
        },
        "engine": {"model": "llama-3.1-8b", "gpu": gpu},
        "latency": latency,
    }


def test_a_gpu_of_ones_own() -> None:
    spec = load_gpu(GpuConfig(**OWN))
    assert (spec.memory_bandwidth, spec.fp16_flops, spec.fp8_flops) == (5300e9, 1307.4e12, None)
    assert spec.link_bandwidth == 32e9
    results = run(load(scenario_of(OWN)))
    assert results.summary["run"]["latency"]["kind"] == "roofline"
    assert "usd" not in results.summary["cost"]
    assert load(yaml_of(results)).scenario.engine.gpu == GpuConfig(**OWN)
    priced = run(load(scenario_of({**OWN, "usd_per_hour": 3.5}))).summary["cost"]
    assert (priced["usd_per_gpu_hour"], priced["price_source"]) == (3.5, "the scenario's, for mi300x")


def yaml_of(results: Results) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return dict(YAML(typ="safe").load(results.context.scenario_yaml))


def test_the_same_figures_as_a_preset_give_the_same_times() -> None:
    h100 = GPUS["h100-sxm"]
    same = {
        "name": "mine",
        "memory_gib": h100.memory_bytes / GIB,
        "memory_bandwidth_gb_s": h100.memory_bandwidth / 1e9,
        "fp16_tflops": h100.fp16_flops / 1e12,
        "fp8_tflops": h100.fp8_flops / 1e12,
        "nvlink_gb_s": h100.nvlink_bandwidth / 1e9,
        "pcie_gb_s": 64.0,
    }
    own, preset = (run(load(scenario_of(gpu, kind="roofline"))).summary for gpu in (same, "h100-sxm"))
    for key in ("mean_ttft_ms", "p99_itl_ms", "output_throughput"):
        assert own[key] == preset[key]


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ({"name": "mine", "memory_gib": 10}, "lacks the required key `memory_bandwidth_gb_s`"),
        ({**OWN, "memory_gb": 10}, "`memory_gb`"),
        ({**OWN, "memory_gib": 0}, "it must be a number, at least 0.001"),
        ({**OWN, "memory_gib": "big"}, "it must be a number, at least 0.001"),
        ({**OWN, "name": "H100-SXM"}, "H100-SXM is a preset; write `gpu: h100-sxm`"),
        ({**OWN, "memory_gib": 8}, "mi300x"),
        (16, "it must be text"),
    ],
)
def test_what_is_wrong_with_a_gpu_of_ones_own_is_said(gpu: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        run(load(scenario_of(gpu)))
    assert message in str(raised.value)
    assert "engine.gpu" in str(raised.value) or "does not fit" in str(raised.value)


def test_a_profile_of_another_gpu_is_refused_for_ones_own() -> None:
    with pytest.raises(InputError, match=r"h100-sxm was measured on h100-sxm, but engine\.gpu is mi300x"):
        run(load(scenario_of(OWN, profile="h100-sxm")))
    with pytest.raises(InputError, match="there is no built-in profile for mi300x"):
        run(load(scenario_of(OWN, kind="profile")))


def test_other_names_of_a_preset_are_taken() -> None:
    assert load_gpu("RTX-A6000") is GPUS["a6000"]
    assert load_gpu("b300") is GPUS["b300-sxm"]
