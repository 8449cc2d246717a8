"""Every term of a step: switched off, it is missing and nothing else is; and what swapping takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import engine_config
from profiles import hand_made

from sim.latency.base import StepShape
from sim.latency.gpus import load_gpu
from sim.latency.models import load_model
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.file import Profile
from sim.latency.profile.library import Found
from sim.latency.profile.swap import SWAP_EFFICIENCY
from sim.latency.profile.terms import TERMS
from sim.run import load, run

H100 = load_gpu("h100-sxm")
COPIES: dict[str, Any] = {"host_copy": [("to_host",), ("to_gpu",)]}
EVERYTHING = {
    "model": "mixtral-8x7b",
    "tensor_parallel_size": 8,
    "pipeline_parallel_size": 2,
    "enforce_eager": True,
    "preemption": "swap",
}
SPREAD = {
    "model": "mixtral-8x7b",
    "tensor_parallel_size": 2,
    "data_parallel_size": 2,
    "enable_expert_parallel": True,
    "preemption": "swap",
}
"""One that gathers tokens behind its experts. Between them they have every term."""
SHAPES = {
    "decodes": StepShape(num_decodes=40, num_sampled=40, decode_context_tokens=40_000),
    "prompts": StepShape(
        num_prefills=2,
        num_prefill_tokens=600,
        prefill_context_tokens=600,
        prefill_attention_pairs=2 * 300 * 300,
        num_decodes=3,
        decode_context_tokens=3000,
        num_sampled=5,
        swap_bytes=3 << 20,
    ),
    "drafts": StepShape(
        num_decodes=8,
        num_draft_tokens=24,
        num_sampled=32,
        decode_context_tokens=8000,
        verify_attention_pairs=32_000_000,
    ),
}


def cost(profile: Profile | None = None, without: frozenset[str] = frozenset(), **engine: Any) -> ProfileCost:
    profile = profile or hand_made(**COPIES)
    config = engine_config(**{"model": "llama-3.1-8b", "gpu": H100.name, **engine})
    return ProfileCost(Found(profile, profile.device), load_model(config.model), H100, config, without=without)


ENGINES = {"alone": EVERYTHING, "ranks": SPREAD}
WHOLE = {name: cost(**engine) for name, engine in ENGINES.items()}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("term", TERMS)
def test_without_a_term_a_step_is_the_others(term: str, name: str) -> None:
    whole, part = WHOLE[name], cost(without=frozenset({term}), **ENGINES[name])
    for kind, shape in SHAPES.items():
        terms = whole.breakdown(shape)
        assert set(terms) <= set(TERMS)
        assert part.gpu_ns(shape) == sum(terms.values()) - terms.get(term, 0), kind
        assert part.breakdown(shape).get(term, 0) == 0
        assert sum(part.breakdown(shape).values()) == part.gpu_ns(shape)
    run_ns = part.decode_run_ns(40, 40_000, 3)
    assert run_ns.tolist() == [
        part.gpu_ns(replace(SHAPES["decodes"], decode_context_tokens=40_000 + 40 * i)) for i in range(3)
    ]


def test_every_term_is_something_somewhere() -> None:
    for term in TERMS:
        told = [whole.breakdown(shape).get(term, 0) for whole in WHOLE.values() for shape in SHAPES.values()]
        assert max(told) > 0, term


def test_without_all_terms_a_step_takes_no_time() -> None:
    assert [cost(without=frozenset(TERMS), **EVERYTHING).gpu_ns(shape) for shape in SHAPES.values()] == [1, 1, 1]


def test_unknown_terms_are_refused() -> None:
    with pytest.raises(ValueError, match="no term of a step: head, tax; there are matrices, elementwise"):
        cost(without=frozenset({"tax", "swap", "head"}))


# -- swapping ---------------------------------------------------------------------------------------------------------


def test_swapping_goes_by_measured_copies_where_there_are_some() -> None:
    """Each GPU copies its share; twice the speed of light of 64 GB/s by the hand-made profile, 0.7 of 55 otherwise."""
    swapped = 8 << 30
    measured = cost(tensor_parallel_size=2, preemption="swap")
    assert measured.breakdown(StepShape(swap_bytes=swapped))["swap"] == pytest.approx(
        swapped / 2 * 2 / 64e9 * 1e9, rel=1e-3
    )
    assert "host_copy" not in measured.operators.stand_ins
    assert measured.breakdown(StepShape(swap_bytes=1))["swap"] > 1000
    assert measured.breakdown(StepShape())["swap"] == 0

    plain = cost(hand_made(), tensor_parallel_size=2, preemption="swap")
    expected = swapped / 2 / (SWAP_EFFICIENCY * H100.pcie_bandwidth) * 1e9
    assert plain.breakdown(StepShape(swap_bytes=swapped))["swap"] == pytest.approx(expected, rel=1e-6)
    assert plain.operators.stand_ins["host_copy"] == "70% of the datasheet's PCIe bandwidth"
    assert "host_copy" not in cost(hand_made()).operators.stand_ins


@pytest.mark.parametrize("extra", [{}, COPIES])
def test_swapped_bytes_as_columns_take_what_they_take_one_by_one(extra: dict[str, Any]) -> None:
    model = cost(hand_made(**extra), tensor_parallel_size=2)
    sizes = [0, 1, 2, 3, 4095, 4096, 5000, 1 << 20, (1 << 20) + 7, 12 << 30, 1 << 40]
    single = [model.breakdown(StepShape(swap_bytes=size))["swap"] for size in sizes]
    assert model.swaps_ns(np.array(sizes)).tolist() == single == sorted(single)


@pytest.mark.parametrize("stepping", ["fast", "reference"])
def test_a_run_that_swaps_has_a_column_of_its_own(tmp_path: Path, stepping: str) -> None:
    engine = {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", "num_gpu_blocks_override": 60, "stepping": stepping}
    workload = {
        "requests": 30,
        "arrival": {"process": "poisson", "rate": 20.0},
        "input_tokens": {"dist": "fixed", "value": 100},
        "output_tokens": {"dist": "fixed", "value": 200},
    }
    scenario = {"name": "swaps", "workload": workload, "engine": {**engine, "preemption": "swap"}}
    results = run(load(scenario))
    steps = results.steps
    assert results.summary["preemptions"]["total"] > 0
    block = 2 * 32 * 32 * 128 * 2 * 16
    assert (steps["swap_bytes"] % block == 0).all()
    assert ((steps["swap_bytes"] > 0) == (steps["swap_ms"] > 0)).all()
    names = [f"{name}_ms" for name in TERMS if f"{name}_ms" in steps]
    assert steps[names].sum(axis=1).to_numpy() == pytest.approx(steps["gpu_ms"].to_numpy())
    assert results.summary["utilization"]["step_time_s"]["swap"] == pytest.approx(steps["swap_ms"].sum() / 1e3)
    assert json.loads(results.summary_json)["run"]["latency"]["stand_ins"]["host_copy"]

    never = run(load({**scenario, "engine": engine})).steps
    assert not {"swap_bytes", "swap_ms"} & set(never)
