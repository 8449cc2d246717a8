"""Draws docs/img/policies.png, the README's picture: what a policy changes, and when.

Usage: python docs/img/make_readme_figure.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

import sim

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "policy_comparison.yaml"
SEEDS = range(5)
RATES = [4.0, 5.0, 5.75, 6.5, 7.0, 7.5]
POLICIES = {
    "fcfs": ("tab:gray", []),
    "srtf": ("tab:orange", ["engine.policy=srtf"]),
    "sjf": ("tab:blue", ["engine.policy=sjf"]),
}
PANELS = [("p50_ttft_ms", "median TTFT"), ("p95_ttft_ms", "p95 TTFT"), ("p99_ttft_ms", "p99 TTFT")]


def seconds(overrides: list[str], rate: float, seed: int) -> list[float]:
    """What the panels show, of one run."""
    summary = sim.simulate(SCENARIO, overrides=[*overrides, f"workload.arrival.rate={rate}"], seed=seed).summary
    return [summary[key] / 1e3 for key, _ in PANELS]


def main() -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, row = plt.subplots(1, 3, figsize=(9.6, 3.1), layout="constrained")
    for policy, (color, overrides) in POLICIES.items():
        runs = np.array([[seconds(overrides, rate, seed) for seed in SEEDS] for rate in RATES])  # rate, seed, panel
        for panel, axes in enumerate(row):
            values = runs[:, :, panel]
            axes.plot(RATES, np.median(values, axis=1), "o-", color=color, markersize=3.5, label=policy)
            axes.fill_between(RATES, values.min(axis=1), values.max(axis=1), color=color, alpha=0.12, linewidth=0)
    for axes, (_, title) in zip(row, PANELS, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("requests/s")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    row[0].set_ylabel("s")
    row[0].legend(fontsize=9, frameon=False)
    figure.savefig(Path(__file__).with_name("policies.png"), dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
