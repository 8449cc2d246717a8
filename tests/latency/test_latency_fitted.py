"""What a fit changes of step costs, and which files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import engine_config
from profiles import hand_made

from sim.errors import InputError
from sim.latency.base import StepCost, StepShape
from sim.latency.build import build_step_cost
from sim.latency.constant import ConstantCost
from sim.latency.fitted import FACTOR_OF, PARAMETERS, TERMS_OF, Fitted, load_fit
from sim.latency.gpus import load_gpu
from sim.latency.lockstep_cost import LockstepCost
from sim.latency.models import load_model
from sim.latency.profile.cost import ProfileCost
from sim.latency.profile.library import Found
from sim.latency.profile.terms import TERMS
from sim.latency.roofline import RooflineCost
from sim.run import load, run
from sim.scenario.schema import LatencyConfig

H100 = load_gpu("h100-sxm")
VALUES = {
    "matrices": 1.3,
    "experts": 0.7,
    "attention": 1.9,
    "all_reduce": 2.5,
    "exposed_step_ms": 0.4,
    "exposed_request_us": 7.0,
}
MIXED = StepShape(
    num_prefills=2,
    num_prefill_tokens=600,
    prefill_context_tokens=600,
    prefill_attention_pairs=2 * 300 * 300,
    num_decodes=3,
    decode_context_tokens=3000,
    num_sampled=5,
)
FILE = """\
fit: 1
kind: profile
gpu: h100-sxm
fitted_on:
  - {model: llama-3.1-8b, dtype: bfloat16, tensor_parallel_size: 1, pipeline_parallel_size: 1, data_parallel_size: 1}
parameters: {matrices: 1.2, client_ms: 7.5}
"""


def fitted(kind: Any = "profile", **values: float) -> Fitted:
    return Fitted(kind, H100.name, values)


def cost(found: Fitted | None = None, **engine: Any) -> ProfileCost:
    profile = hand_made()
    config = engine_config(**{"model": "mixtral-8x7b", "gpu": H100.name, "tensor_parallel_size": 2, **engine})
    return ProfileCost(Found(profile, profile.device), load_model(config.model), H100, config, fitted=found)


def same_run(cost: StepCost) -> None:
    shapes = [StepShape(num_decodes=40, num_sampled=40, decode_context_tokens=40_000 + 40 * i) for i in range(50)]
    assert cost.decode_run_ns(40, 40_000, 50).tolist() == [cost.gpu_ns(shape) for shape in shapes]


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_each_term_takes_its_factor(async_scheduling: bool) -> None:
    plain = cost(async_scheduling=async_scheduling).breakdown(MIXED)
    changed = cost(fitted(**VALUES), async_scheduling=async_scheduling)
    exposed = 400_000 + 7_000 * 5 if async_scheduling else 0
    terms = changed.breakdown(MIXED)
    for name, ns in plain.items():
        factor = VALUES.get(FACTOR_OF.get(name, ""), 1.0)
        expected = factor * ns + (exposed if name == "step_overhead" else 0)
        assert terms[name] == pytest.approx(expected, rel=1e-4, abs=2), name
    assert sum(terms.values()) == changed.gpu_ns(MIXED)
    same_run(changed)


def test_a_fit_of_ones_changes_nothing() -> None:
    plain, same = cost(), cost(fitted(matrices=1.0, experts=1.0, attention=1.0, all_reduce=1.0))
    assert abs(same.gpu_ns(MIXED) - plain.gpu_ns(MIXED)) <= 2
    assert plain.describe().get("fit") is None
    assert same.describe()["fit"] == {"file": None, "parameters": dict(same.fitted.values) if same.fitted else {}}


def test_host_times() -> None:
    found = cost(fitted(host_step_ms=1.5, host_request_us=20.0), async_scheduling=False)
    assert found.host_ns(MIXED) == 1_500_000 + 5 * 20_000
    only_step = cost(fitted(host_step_ms=1.5))
    assert only_step.host_request_ns == cost().host_request_ns
    roofline = build_step_cost(
        engine_config(model="llama-3.1-8b", gpu="l40s"),
        LatencyConfig(kind="roofline"),
        fitted=fitted("roofline", host_request_us=9.0),
    )
    assert roofline.host_ns(MIXED) == 1_000_000 + 5 * 9_000


def test_ranks_that_step_together_pay_factors_too() -> None:
    spread = {"data_parallel_size": 2, "enable_expert_parallel": True}
    engine = engine_config(model="mixtral-8x7b", gpu=H100.name, tensor_parallel_size=2, **spread)

    def group(found: Fitted | None) -> LockstepCost:
        return LockstepCost(cost(found, **spread), engine, load_model(engine.model))

    plain, changed = group(None), group(fitted(experts=2.0, all_reduce=3.0))
    tokens = np.array([64.0])
    before, after = plain.own.group_terms_ns(tokens), changed.own.group_terms_ns(tokens)
    assert after["experts"] == pytest.approx(2 * before["experts"])
    assert after["dispatch"] == pytest.approx(3 * before["dispatch"])
    assert changed.gpu_ns(MIXED) > plain.gpu_ns(MIXED)


def test_roofline() -> None:
    engine = engine_config(model="llama-3.1-8b", gpu="h100-sxm")

    def roofline(found: Fitted | None) -> RooflineCost:
        built = build_step_cost(engine, LatencyConfig(kind="roofline"), fitted=found)
        assert isinstance(built, RooflineCost)
        return built

    plain = roofline(None).breakdown(MIXED)
    changed = roofline(fitted("roofline", matrices=1.5, attention=2.0, exposed_step_ms=1.0))
    terms = changed.breakdown(MIXED)
    assert terms["layers"] == pytest.approx(1.5 * plain["layers"])
    assert terms["decode_attention"] == pytest.approx(2.0 * plain["decode_attention"])
    assert terms["exposed_host"] == pytest.approx(1e-3)
    assert changed.gpu_ns(MIXED) == pytest.approx(1e9 * sum(terms.values()), abs=5)
    same_run(changed)


def test_constant_with_a_time_per_token() -> None:
    engine = engine_config(model="llama-3.1-8b", gpu="h100-sxm")
    built = build_step_cost(engine, LatencyConfig(kind="constant"), fitted=fitted("constant", step_ms=5, token_us=2))
    assert isinstance(built, ConstantCost)
    assert built.gpu_ns(MIXED) == 5_000_000 + 2_000 * 603 == built.step_ns(2, 600, 0, 0, 3, 3000, 5)
    assert built.empty_step_ns() == 5_000_000
    assert built.describe()["token_s"] == 2e-6
    same_run(built)


def test_every_factor_is_of_terms_that_there_are() -> None:
    together = {"dispatch", "combine"}  # of ranks that step together, see LockstepCost
    assert {term for terms in TERMS_OF.values() for term in terms} <= set(TERMS) | together
    assert set(TERMS_OF) <= set(PARAMETERS)


def test_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "FIT.yaml").write_text(FILE)
    found = load_fit("FIT.yaml", tmp_path)
    assert (found.kind, found.gpu, found.values) == ("profile", "h100-sxm", {"matrices": 1.2, "client_ms": 7.5})
    assert (found.ns("client_ms"), found.ns("host_step_ms")) == (7_500_000, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fit: 1", "fit: 2", "format 2; this version reads 1"),
        ("fit: 1\n", "", "the key `fit` is missing"),
        ("kind: profile", "kind: measured", "must be one of roofline, constant, profile"),
        ("gpu: h100-sxm", "gpu: 7", "`gpu` must name a GPU"),
        ("matrices: 1.2", "matrix: 1.2", "no parameter 'matrix'; did you mean 'matrices'"),
        ("matrices: 1.2", "matrices: .nan", "`matrices` must be a number"),
        ("matrices: 1.2", "matrices: true", "`matrices` must be a number"),
        ("matrices: 1.2", "matrices: -1", "between 0.1 and 10, found -1"),
        ("matrices: 1.2", "step_ms: 1.2", "no parameter of kind profile"),
        ("{matrices: 1.2, client_ms: 7.5}", "[1, 2]", "`parameters` must be a section"),
        ("fit: 1", "fit: [", "not YAML"),
    ],
)
def test_refuses(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "FIT.yaml").write_text(FILE.replace(old, new))
    with pytest.raises(InputError) as error:
        load_fit("FIT.yaml", tmp_path)
    assert message in str(error.value)


def scenario(**latency: Any) -> dict[str, Any]:
    return {
        "name": "with a fit",
        "workload": {
            "requests": 20,
            "arrival": {"process": "poisson", "rate": 5.0},
            "input_tokens": {"dist": "fixed", "value": 200},
            "output_tokens": {"dist": "fixed", "value": 20},
        },
        "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm"},
        "latency": latency,
    }


def test_a_scenario_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "FIT.yaml"
    path.write_text(FILE)
    plain, with_fit = run(load(scenario())).summary, run(load(scenario(fit=str(path), client_overhead_ms=1.0))).summary
    assert with_fit["run"]["latency"]["client_overhead_ms"] == 7.5
    assert with_fit["run"]["latency"]["fit"]["parameters"] == {"matrices": 1.2, "client_ms": 7.5}
    assert 1.1 < with_fit["mean_tpot_ms"] / plain["mean_tpot_ms"] < 1.2
    assert any("`latency.client_overhead_ms` has no effect" in note for note in with_fit["run"]["notes"])


def test_another_gpu_or_kind_is_refused_another_model_noted(tmp_path: Path) -> None:
    path = tmp_path / "FIT.yaml"
    path.write_text(FILE)
    other = scenario(fit=str(path))
    other["engine"] = {"model": "qwen3-14b", "gpu": "h100-sxm", "tensor_parallel_size": 2}
    notes = run(load(other)).summary["run"]["notes"]
    assert any("used for qwen3-14b in bfloat16, TP 2: no measured run says how well" in note for note in notes)
    other["engine"]["gpu"] = "a100-80gb-sxm"
    with pytest.raises(InputError, match=r"fitted on h100-sxm, but engine.gpu is a100-80gb-sxm"):
        run(load(other))
    with pytest.raises(InputError, match="fitted under `kind: profile`, and this is `kind: roofline`"):
        run(load(scenario(fit=str(path), kind="roofline")))
    with pytest.raises(InputError, match=r"no file .missing\.yaml."):
        run(load(scenario(fit="missing.yaml")))
