"""Presets: draws against the figures published for the traces they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from sim.seeds import rng
from sim.workload.preset_tables import PROBABILITIES, TABLES
from sim.workload.presets import PRESETS, draw_preset_lengths, preset_arrival, preset_problems

N = 200_000

# (mean, p50, p99, max) of input and of output, measured on the traces themselves.
TRACES = {
    "azure-conv-2023": ((1154.7, 1020, 4142, 14050), (211.1, 129, 601, 1000)),
    "azure-code-2023": ((2047.8, 1469, 7436, 7437), (27.9, 13, 251.5, 1899)),
    "mooncake-conversation": ((12035.1, 6909, 85400, 126195), (342.6, 350, 1118.5, 2000)),
    "sharegpt": ((245.8, 35, 2862, 3973), (325.6, 286, 1000, 1734)),
}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


@pytest.mark.parametrize("name", PRESETS)
def test_lengths_have_the_traces_mean_and_quantiles(name: str) -> None:
    for column, (mean, p50, p99, top) in zip(
        draw_preset_lengths(name, rng(0, "in"), rng(0, "out"), N), TRACES[name], strict=True
    ):
        assert column.min() >= 1
        assert column.max() <= top
        assert column.mean() == pytest.approx(mean, rel=0.025)
        assert np.median(column) == pytest.approx(p50, rel=0.02)
        assert np.quantile(column, 0.99) == pytest.approx(p99, rel=0.05)


@pytest.mark.parametrize(
    ("name", "correlation"),
    [("azure-conv-2023", 0.073), ("mooncake-conversation", 0.072), ("sharegpt", 0.138), ("azure-code-2023", 0.0)],
)
def test_input_and_output_keep_their_rank_correlation(name: str, correlation: float) -> None:
    inputs, outputs = draw_preset_lengths(name, rng(0, "in"), rng(0, "out"), N)
    assert spearman(inputs, outputs) == pytest.approx(correlation, abs=0.02)


def test_azure_conv_keeps_what_a_correlation_does_not_say() -> None:
    """Prompts of its middle deciles get long answers, those of its ends short ones."""
    inputs, outputs = draw_preset_lengths("azure-conv-2023", rng(0, "in"), rng(0, "out"), N)
    middle = (inputs > np.quantile(inputs, 0.42)) & (inputs < np.quantile(inputs, 0.78))
    longest = inputs > np.quantile(inputs, 0.9)
    assert outputs[middle].mean() > 2.5 * outputs[longest].mean()


@pytest.mark.parametrize("name", PRESETS)
def test_tables_are_inverse_distribution_functions(name: str) -> None:
    table = TABLES[name]
    assert PROBABILITIES[0] == 0
    assert PROBABILITIES[-1] == 1
    assert np.all(np.diff(PROBABILITIES) > 0)
    for tokens in (table.input_tokens, table.output_tokens):
        assert len(tokens) == len(PROBABILITIES)
        assert np.all(np.diff(tokens) >= 0)
    if table.coupling is not None:
        shares = np.array(table.coupling)
        assert shares.shape == (10, 10)
        assert shares.sum(axis=1).tolist() == [1000] * 10
        assert np.abs(shares.sum(axis=0) - 1000).max() <= 10  # each output decile holds a tenth


def test_arrivals_of_a_preset() -> None:
    arrival = preset_arrival("azure-conv-2023")
    assert arrival is not None
    assert arrival.process == "gamma"
    assert (arrival.rate, arrival.cv) == (5.53, 1.094)
    assert preset_arrival("sharegpt") is None


def test_unknown_preset_is_a_problem_with_a_suggestion() -> None:
    for name in ("azure-conv", "Azure_Conv-2023"):
        (problem,) = preset_problems(name, "workload")
        assert "did you mean azure-conv-2023?" in problem.message


@pytest.mark.parametrize("name", ["azure-conv-2024", "azure-code-2024", "mooncake-toolagent", "sharegpt-v3"])
def test_another_trace_is_not_suggested(name: str) -> None:
    (problem,) = preset_problems(name, "workload")
    assert "did you mean" not in problem.message
    assert "(presets: azure-conv-2023, " in problem.message
