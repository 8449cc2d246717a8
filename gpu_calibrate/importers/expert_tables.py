"""Tables of routed experts as an engine meets them: which kernel's time counts, and how evenly tokens choose.

AIConfigurator's collector lays tokens out evenly (``balanced``: n tokens touch min(experts, n * chosen) experts), or
draws the load of each expert from a power law. At 16 to 32 tokens its drawn busiest of 8 experts has 2.2 to 2.5 times
the mean, at 1,024 tokens 3.5 times. Mixtral's own have 1.6 times at most (arXiv 2401.04088, figure 7: 5 to 20 % of the
tokens where 12.5 % are even), and every point of a table is a single draw: with 8 experts one that happens to need a
second tile of a kernel is a sixth of the time. So models of few experts take the even layout, with as many experts
touched as tokens that choose by themselves touch.

Those of many experts keep the draw, which is not to touch more experts than that either: 8 drawn tokens that choose 8
of 256 touch as many as laid out evenly, 64, where tokens that choose by themselves touch 57 at most (an uneven choice
touches fewer). Up to ``READING`` rows an expert, time is that of reading those which are touched.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from gpu_calibrate.importers.source_tables import Floats
from sim.latency.profile.expert_routing import FEW_EXPERTS

if TYPE_CHECKING:
    import pandas as pd

ROUTING = "power_law_1.01"
"""Distribution of tokens over many experts. Of the two drawn ones this is the less skewed."""
EVEN = "balanced"
SHAPE = ["hidden_size", "inter_size", "num_experts", "topk", "moe_tp_size", "moe_ep_size"]

READING = 2.0
"""Rows for each expert, on average, up to which experts take as long as reading those that are touched."""
DRAWS = 400
"""Of tokens that choose by themselves, to find how many experts the busiest GPU has to read."""

FP8_NO_SLOWER_THAN = ("fp8_block", "bfloat16")
"""Experts in FP8 with one scale per tensor have no more bytes, arithmetic or scales than those in blocks or 16 bits."""


def routed(rows: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows of the distribution that stands for an engine's tokens, and what to say of the others."""
    import pandas as pd

    drawn = rows[rows["distribution"] == ROUTING]
    if not len(drawn):
        return rows, ()
    even = rows[(rows["distribution"] == EVEN) & (rows["num_experts"] <= FEW_EXPERTS)]
    groups = [_chosen_alone(group) for _, group in even.groupby(["moe_dtype", *SHAPE], sort=True)]
    notes: tuple[str, ...] = (
        f"moe: routing {ROUTING}; {len(rows) - len(drawn) - len(even)} rows of other distributions left out",
    )
    drawn, lowered = _touching_no_more(drawn, rows[rows["distribution"] == EVEN])
    if lowered:
        notes = (*notes, f"moe: {lowered} drawn rows at the time of as many experts as tokens touch by themselves")
    if not groups:
        return drawn, notes
    evenly = pd.concat(groups)
    places = [*SHAPE, "moe_dtype"]
    replaced = drawn.merge(evenly[places].drop_duplicates(), on=places, how="left", indicator=True)["_merge"] == "both"
    note = f"moe: {len(evenly)} rows of up to {FEW_EXPERTS} experts are routed evenly, each token choosing by itself"
    return pd.concat([drawn[~replaced.to_numpy()], evenly]), (*notes, note)


def _chosen_alone(rows: pd.DataFrame) -> pd.DataFrame:
    """Even rows of one shape with as many experts touched as tokens that choose by themselves touch: 4 tokens that
    choose 2 of 8 touch 5.5, where 4 laid out evenly touch all 8."""
    first = rows.iloc[0]
    experts, chosen = int(first["num_experts"]), int(first["topk"])
    medians = rows.groupby("num_tokens", sort=True)["latency"].median()
    tokens, times = medians.index.to_numpy(dtype=np.float64), medians.to_numpy(dtype=np.float64)

    def touching(number: Floats) -> Floats:
        found: Floats = np.exp(np.interp(np.log(number / chosen), np.log(tokens), np.log(times)))
        return found

    laid_out = np.minimum(float(experts), tokens * chosen)
    by_chance = experts * (1.0 - (1.0 - chosen / experts) ** tokens)
    share = touching(by_chance) / touching(laid_out)
    kept = rows.drop_duplicates("num_tokens").sort_values("num_tokens")
    return kept.assign(latency=times * share)


def _touching_no_more(drawn: pd.DataFrame, even: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Drawn rows of many experts at no more than the time of as many experts as tokens touch that choose by themselves,
    and how many that lowered."""
    places = ["moe_dtype", *SHAPE]
    known = {tuple(shape): group for shape, group in even.groupby(places, sort=True)}
    times = drawn["latency"].to_numpy(dtype=np.float64).copy()
    tokens = drawn["num_tokens"].to_numpy(dtype=np.float64)
    for shape, rows in drawn.reset_index(drop=True).groupby(places, sort=True):
        first = rows.iloc[0]
        experts, chosen, ep = (int(first[name]) for name in ("num_experts", "topk", "moe_ep_size"))
        laid = known.get(tuple(shape))
        if experts <= FEW_EXPERTS or laid is None or ep > experts // chosen:
            continue
        medians = laid.groupby("num_tokens", sort=True)["latency"].median()
        laid_out = medians.index.to_numpy(dtype=np.float64) * chosen / ep
        places_of = rows.index.to_numpy()
        at = places_of[tokens[places_of] * chosen <= READING * experts]
        touched = np.array([_touched(experts, chosen, ep, int(number)) for number in tokens[at]])
        reading = medians.to_numpy(dtype=np.float64)
        times[at] = np.minimum(times[at], np.exp(np.interp(np.log(touched), np.log(laid_out), np.log(reading))))
    lowered = int((times < drawn["latency"].to_numpy()).sum())
    return drawn.assign(latency=times), lowered


@cache
def _touched(experts: int, chosen: int, ep: int, tokens: int) -> float:
    """Experts that the busiest of ``ep`` GPUs has to read for tokens that choose evenly by themselves, in the mean."""
    if ep == 1:
        return experts * (1.0 - (1.0 - chosen / experts) ** tokens)
    random = np.random.default_rng(0)
    busiest = 0
    for _ in range(DRAWS):
        choice = random.random((tokens, experts)).argpartition(chosen, axis=1)[:, :chosen]
        is_touched = np.zeros(experts, dtype=np.bool_)
        is_touched[choice.ravel()] = True
        busiest += int(is_touched.reshape(ep, -1).sum(axis=1).max())
    return busiest / DRAWS


def no_slower(rows: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """FP8 experts at the time of other formats of the same shape, where those are faster.

    vLLM 0.24.0's table has one kernel for ModelOpt checkpoints (FlashInfer's CUTLASS experts) as its ``fp8``. On Hopper
    it takes 2 to 5 times as long as 16 bits, at a tenth of the bandwidth; the Triton kernel of vLLM 0.19.0, measured on
    an H200 in the same package, takes half of 16 bits, and about what ``fp8_block`` does.
    """
    shape = [*SHAPE, "num_tokens"]
    others = rows[rows["moe_dtype"].isin(FP8_NO_SLOWER_THAN)].groupby(["moe_dtype", *shape])["latency"].median()
    least = others.groupby(level=shape).min().rename("least").reset_index()
    bound = rows.merge(least, on=shape, how="left")["least"].to_numpy()
    slower = (rows["moe_dtype"] == "fp8").to_numpy() & (rows["latency"].to_numpy() > bound)
    if not slower.any():
        return rows, ()
    rows = rows.assign(latency=np.where(slower, bound, rows["latency"].to_numpy()))
    return rows, (f"moe: {int(slower.sum())} rows of fp8 are the lesser time of {', '.join(FP8_NO_SLOWER_THAN)}",)
