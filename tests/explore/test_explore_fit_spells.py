"""Spells of slow steps: found where the tail of ITL tells of them, and said where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sim
from sim.cluster.deployment import resolve_deployment
from sim.errors import InputError
from sim.explore.fit_report import fit_text
from sim.explore.measured_run import KEYS
from sim.latency.fitted import Fitted
from sim.run import load, run

STEP = {"step_ms": 6.0, "token_us": 20.0, "client_ms": 12.0}
SPELLS = {"spell_share": 0.1, "spell_factor": 1.8, "spell_s": 1.0}


def scenario(rate: float = 1.0, requests: int = 300, **latency: Any) -> dict[str, Any]:
    return {
        "name": f"rate {rate:g}",
        "seed": 3,
        "workload": {
            "requests": requests,
            "arrival": {"process": "poisson", "rate": rate},
            "input_tokens": {"dist": "uniform", "low": 20, "high": 80},
            "output_tokens": {"dist": "uniform", "low": 60, "high": 200},
        },
        "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_num_seqs": 64},
        "latency": {"kind": "constant", "step_s": 0.01, **latency},
    }


def measure(told: dict[str, Any], values: dict[str, float], path: Path, seed: int = 3, keys: Any = KEYS) -> str:
    """What an engine with these parameters would show to another seed of the same traffic, as a file."""
    loaded = load(told, seed=seed)
    engine, latency = loaded.scenario.engine, loaded.scenario.latency
    deployment = resolve_deployment(engine, latency, fitted=Fitted("constant", "h100-sxm", values))
    summary = run(loaded, deployment=deployment).summary
    wanted = (*keys, "completed", "total_input_tokens", "total_output_tokens")
    path.write_text(json.dumps({key: summary[key] for key in wanted}))
    return str(path)


@pytest.mark.parametrize("seed", [3, 8])
def test_planted_spells_are_found_again(tmp_path: Path, seed: int) -> None:
    """From one run, of the scenario's own seed and of another one; the file then has them in its runs."""
    told = scenario()
    found = sim.fit(measure(told, STEP | SPELLS, tmp_path / "a.json", seed), told, out=tmp_path / "FIT.yaml")
    assert found.spells.startswith("Spells of slow steps: the tail")
    assert found.values["spell_factor"] == pytest.approx(1.8, rel=0.1)
    assert found.values["spell_share"] == pytest.approx(0.1, abs=0.05)
    assert found.values["step_ms"] == pytest.approx(6.0, rel=0.05), "the mean is not charged twice"
    for name in SPELLS:
        parameter = next(each for each in found.parameters if each.name == name)
        low, high = found.interval(parameter)
        assert low <= found.values[name] <= high
    assert abs(found.after[0]["p95_itl_ms"]) < abs(found.before[0]["p95_itl_ms"])
    again = sim.simulate({**told, "latency": {**told["latency"], "fit": str(tmp_path / "FIT.yaml")}}).summary
    assert again["run"]["latency"]["noise"]["step"]["factor"] == found.values["spell_factor"]
    assert again["p95_itl_ms"] > 1.4 * again["p50_itl_ms"]
    assert "spell_factor" in fit_text(found, None)


def test_a_quiet_machine_has_none(tmp_path: Path) -> None:
    told = scenario()
    for seed in (3, 5, 6):
        found = sim.fit(measure(told, STEP, tmp_path / "a.json", seed), told)
        assert found.spells.startswith("No spells of slow steps")
        assert not SPELLS.keys() & found.values.keys()


def test_long_prompts_are_not_taken_for_spells(tmp_path: Path) -> None:
    """Where prompts are in a third of the gaps, a long tail of ITL may be theirs; and the text says so."""
    told = scenario(rate=40.0, requests=600)
    found = sim.fit(measure(told, STEP | SPELLS, tmp_path / "a.json"), told)
    assert found.spells.startswith("Spells of slow steps cannot be told: prompts were computed in ")
    assert not SPELLS.keys() & found.values.keys()
    assert "A run at a lower rate would tell." in " ".join(fit_text(found, None).split())
    assert found.document()["spells"] == found.spells


def test_without_percentiles_of_itl_nothing_is_said_of_spells(tmp_path: Path) -> None:
    told = scenario(requests=60)
    keys = ("mean_ttft_ms", "mean_itl_ms", "p99_itl_ms")
    found = sim.fit(measure(told, STEP, tmp_path / "a.json", keys=keys), told)
    assert found.spells.startswith("Spells of slow steps are not fitted: the files have no median of ITL")


@pytest.mark.parametrize("noise", ["none", {"step": {"every_s": 5, "for_s": 1, "factor": 2}}])
def test_what_the_scenario_states_is_not_fitted(tmp_path: Path, noise: Any) -> None:
    told = scenario(requests=60, noise=noise)
    found = sim.fit(measure(told, STEP, tmp_path / "a.json"), told)
    assert found.spells == "Spells of slow steps are as the scenario states them."


def test_a_file_has_all_three_or_none(tmp_path: Path) -> None:
    (tmp_path / "FIT.yaml").write_text("{fit: 1, kind: constant, gpu: h100-sxm, parameters: {spell_share: 0.1}}")
    with pytest.raises(InputError, match="spell_factor, spell_s, spell_share go together"):
        sim.simulate(scenario(fit=str(tmp_path / "FIT.yaml")))
