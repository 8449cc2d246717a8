"""What the notebooks share: settings times seeds as one table, bands over the seeds, an answer that is checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import sim

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sweep(
    scenario: str | Path, settings: Mapping[str, Sequence[str]], seeds: Sequence[int], common: Sequence[str] = ()
) -> pd.DataFrame:
    """One row per setting and seed, in that order; all settings of a seed meet the same requests.

    Args:
        scenario: the file.
        settings: ``--set`` texts, by a name of the setting.
        seeds: one run each.
        common: ``--set`` texts for all of them.

    Returns:
        ``setting``, ``seed``, every number at the top level of ``summary.json``, and the tenants' as ``tenant.key``.
    """
    runs = [(name, seed) for name in settings for seed in seeds]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        rows = pool.map(
            _numbers,
            [scenario] * len(runs),
            [(*common, *settings[name]) for name, _ in runs],
            [seed for _, seed in runs],
            chunksize=4,
        )
        return pd.DataFrame(
            [{"setting": name, "seed": seed, **row} for (name, seed), row in zip(runs, rows, strict=True)]
        )


def _numbers(scenario: str | Path, overrides: Sequence[str], seed: int) -> dict[str, Any]:
    summary = sim.simulate(scenario, overrides=overrides, seed=seed).summary
    numbers = _scalars(summary)
    for tenant, entry in summary["tenants"].items():
        numbers |= {f"{tenant}.{key}": value for key, value in _scalars(entry).items()}
    return numbers


def _scalars(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if isinstance(value, int | float)}


def against(frame: pd.DataFrame, base: str, key: str) -> pd.DataFrame:
    """``key`` as a ratio to the setting ``base`` on the same seed: one row per seed, one column per setting."""
    table = frame.pivot(index="seed", columns="setting", values=key)[list(dict.fromkeys(frame["setting"]))]
    return table.div(table[base], axis=0)


def band(axes: Axes, frame: pd.DataFrame, x: str, y: str, **style: Any) -> None:
    """``y`` over ``x``: a line at the median of the seeds, a band from the least to the most of them."""
    groups = frame.groupby(x)[y]
    (line,) = axes.plot(groups.median(), marker="o", markersize=3, linewidth=1.5, **style)
    axes.fill_between(groups.min().index, groups.min(), groups.max(), color=line.get_color(), alpha=0.15, linewidth=0)


def answer(text: str, claims: Mapping[str, bool]) -> None:
    """Show ``text`` as Markdown, unless one of the claims that its words make no longer holds.

    Raises:
        RuntimeError: the numbers have changed so that the text would be wrong.
    """
    from IPython.display import Markdown, display

    broken = [claim for claim, holds in claims.items() if not holds]
    if broken:
        raise RuntimeError(f"the answer must be written anew; no longer true: {'; '.join(broken)}")
    display(Markdown(text))  # type: ignore[no-untyped-call]
