"""Claims about memory: KV blocks, formats, prefix caching, what fits (E7-E9, E12, E17)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.claims_base import SIZES, Claim, backlog, decode_ns, markdown_table, run, step_cost
from sim.engine.reference.kv_cache import ceil_div, slot_of
from sim.latency.models import MODELS
from sim.latency.precision import parameter_bytes

GB = 1e9
BLOCK = 16


def paged_waste(tokens: int) -> float:
    """Share of a request's blocks of 16 that holds nothing."""
    return 1 - tokens / (ceil_div(tokens, BLOCK) * BLOCK)


def reserved_waste(tokens: int, reserved: int = 2048) -> float:
    """Share of a contiguous reservation that holds nothing."""
    return 1 - tokens / reserved


def average_paged_waste(tokens: int) -> float:
    """Mean over the 16 lengths from ``tokens`` on: half a block or so is empty."""
    return float(np.mean([paged_waste(length) for length in range(tokens, tokens + BLOCK)]))


def first_below(limit: float, waste: list[float]) -> int:
    """Least length from which on all ``waste`` (by length from 1 on) stays under ``limit``."""
    return max(length for length, each in enumerate(waste, start=1) if each >= limit) + 1


def simulated_waste(tokens: int, kv: str) -> float:
    """Waste that a run's own columns show in the one step in which all requests hold ``tokens`` tokens."""
    blocks = 8 * 2048 // BLOCK
    engine = {"kv": kv, "max_model_len": 2048, "num_gpu_blocks_override": 1 + blocks, "max_num_batched_tokens": 8192}
    steps = run(engine, backlog(8, tokens - 1, 2)).steps
    step = steps[steps["num_decodes"] == 8].iloc[0]
    return float(1 - step["decode_context_tokens"] / ((blocks - step["free_blocks"]) * BLOCK))


def sequences() -> Claim:
    """Sequences at once in the same memory."""
    low, high = 200, 340
    mean_blocks = float(np.mean([ceil_div(length, BLOCK) for length in range(low, high)]))
    computed = (2048 / BLOCK) / mean_blocks
    half = {"dist": "uniform", "low": low // 2, "high": high // 2}
    running, rates = {}, {}
    for kv in ("contiguous", "paged"):
        engine = {"kv": kv, "max_model_len": 2048, "max_num_seqs": 1024, "num_gpu_blocks_override": 1 + 128 * 24}
        results = run(engine, backlog(1000, half, half))
        steps = results.steps
        running[kv] = float(np.average(steps["num_running"], weights=steps["num_steps"]))
        rates[kv] = results.summary["output_throughput"]
    reserved = 24.0
    first = 24 * computed
    gain, faster = running["paged"] / running["contiguous"], rates["paged"] / rates["contiguous"]
    return Claim(
        key="paging-sequences",
        rows="E8",
        title="Sequences in the same memory",
        claimed="Paging fits 7-8x more sequences than reserving the longest context.",
        computed=f"2,048 reserved tokens are 128 blocks; sequences of {low}-{high} tokens need {mean_blocks:.1f}: "
        f"{computed:.1f}x ({reserved:.0f} sequences or {first:.0f}). In general: reserved over mean length.",
        simulated=f"Llama 2 7B, KV for {reserved:.0f} reservations, prompts and outputs of {low // 2}-{high // 2} "
        f"tokens each: {running['contiguous']:.0f} against {running['paged']:.0f} running on average ({gain:.1f}x, "
        f"since requests begin with their prompt alone), and {faster:.1f}x the throughput.",
        verdict="Holds when sequences end at about an eighth of the reservation: 7-8x is the ratio of the two lengths, "
        "nothing else; at 1,000 of 2,048 tokens it is 2x. Throughput gains less, because larger batches take "
        "longer steps and a full pool preempts.",
        holds={
            "7-8x computed": 7 <= computed <= 8,
            "at least 7x running": gain > 7,
            "throughput gains less": 1.5 < faster < gain,
        },
        numbers={"computed": computed, "running": gain, "faster": faster},
    )


def waste() -> Claim:
    """Memory reserved and not used."""
    lengths = range(1, 2049)
    worst = first_below(0.04, [paged_waste(length) for length in lengths])
    average = first_below(0.04, [average_paged_waste(length) for length in lengths])
    reserved, paged = simulated_waste(200, "contiguous"), simulated_waste(42, "paged")
    long = simulated_waste(369, "paged")
    return Claim(
        key="paging-waste",
        rows="E8",
        title="Memory wasted",
        claimed="200 of 2,048 reserved tokens waste 90 %; paged, 42 tokens waste 12.5 %, and under 4 % above about 180 "
        "tokens on average, 360 at worst.",
        computed=f"1 - 200 / 2,048 = {reserved_waste(200):.1%}; 42 in 3 blocks of 16: {paged_waste(42):.1%}; under 4 % "
        f"from {average} tokens on in the mean of 16 lengths, from {worst} on at worst.",
        simulated=f"From the columns of runs: {reserved:.1%}; {paged:.1%}; 369 tokens, the worst length above 360, "
        f"{long:.1%}.",
        verdict="Holds.",
        holds={
            "90 %": abs(reserved - 0.90) < 0.005,
            "12.5 %": abs(paged - 0.125) < 1e-9,
            "average from about 180": 160 <= average <= 195,
            "worst from about 360": 350 <= worst <= 365,
            "the worst above 360 is under 4 %": long < 0.04,
        },
        numbers={"average": average, "worst": worst, "reserved": reserved, "paged": paged},
    )


def slots() -> Claim:
    """Block table to slot."""
    table = [5, 12, 8]
    places = {position: slot_of(table, position, BLOCK) for position in (0, 15, 16, 47)}
    try:
        slot_of(table, 48, BLOCK)
        refused = False
    except IndexError:
        refused = True
    return Claim(
        key="slots",
        rows="E7",
        title="Slots of a block table",
        claimed="42 tokens at block 16 are 3 blocks; with table [5, 12, 8], token 0 is at slot 80, 15 at 95, 16 at "
        "192, 47 at 143; course notes put token 49 at slot 129.",
        computed=f"block x 16 + offset: {', '.join(map(str, places.values()))}. Slot 129 is 8 x 16 + 1, the place of "
        "position 33.",
        simulated="The engine's own slot arithmetic gives the same, and refuses the 49th token (position 48): it needs "
        "a fourth block.",
        verdict="Holds when the slip is left out: token 49 is not at 129, it has no slot in this table.",
        holds={
            "3 blocks": ceil_div(42, BLOCK) == 3,
            "the four slots": list(places.values()) == [80, 95, 192, 143],
            "the 49th needs a fourth block": refused and slot_of(table, 33, BLOCK) == 129,
        },
    )


def weights() -> Claim:
    """Weight memory by format."""
    formats = ("float16", "fp8", "int4")
    plain = {dtype: parameter_bytes(7_000_000_000, dtype) / GB for dtype in formats}
    model = MODELS["llama-2-7b"]
    planned = {dtype: weights_gb(dtype=dtype) for dtype in formats}
    return Claim(
        key="weights",
        rows="E12",
        title="Weights of 7B",
        claimed="14 GB in FP16, 7 in INT8 or FP8, 3.5 in INT4.",
        computed=", ".join(f"{size:g} GB" for size in plain.values()) + " (2, 1, half a byte each).",
        simulated=f"What the engine sets aside for Llama 2 7B ({model.num_parameters / 1e9:.2f} B parameters): "
        + ", ".join(f"{planned[dtype]:.2f} GB in {dtype}" for dtype in formats)
        + ". Quantised checkpoints keep embedding and LM head in 16 bits, and INT4 its scales.",
        verdict="Holds when the model has 7.0 B parameters and all are quantised; real 4-bit checkpoints are about 10 "
        "% larger.",
        holds={
            "14 / 7 / 3.5": list(plain.values()) == [14, 7, 3.5],
            "within 6 % in 16 and 8 bits": all(abs(planned[d] / plain[d] - 1) < 0.06 for d in formats[:2]),
            "larger in 4": 1.05 < planned["int4"] / plain["int4"] < 1.2,
        },
        numbers=planned,
    )


def weights_gb(**engine: object) -> float:
    """GB of weights per GPU as the engine plans its memory (fullest pipeline stage)."""
    from sim.latency.memory import plan_memory
    from sim.scenario.schema import EngineConfig

    settings = {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", **SIZES, **engine}
    return plan_memory(EngineConfig(**settings)).weights_bytes / GB


def seventy_billion() -> Claim:
    """70B over eight GPUs."""
    splits = {(8, 1): 0.0, (4, 2): 0.0}
    for tp, pp in splits:
        splits[tp, pp] = weights_gb(
            model="llama-3.1-70b", dtype="float16", tensor_parallel_size=tp, pipeline_parallel_size=pp
        )
    return Claim(
        key="seventy-billion",
        rows="E17",
        title="70B in FP16 over eight GPUs",
        claimed="17.5 GB per GPU, at TP8 and at TP4 x PP2.",
        computed="70 B x 2 bytes / 8 = 17.5 GB.",
        simulated=f"Llama 3.1 70B: {splits[8, 1]:.1f} GB at TP8, {splits[4, 2]:.1f} GB on the fuller stage at TP4 x "
        "PP2 (embedding and LM head lie at the ends of the pipeline).",
        verdict="Holds.",
        holds={"within 5 %": all(abs(size / 17.5 - 1) < 0.05 for size in splits.values())},
    )


def fp8_kv() -> Claim:
    """What FP8 KV saves."""
    engine = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "max_model_len": 32768}
    costs = [step_cost(**engine, kv_cache_dtype=dtype) for dtype in ("auto", "fp8")]
    shapes = ((1, 512), (32, 512), (64, 3000), (64, 6000), (24, 16000))
    ratios = {shape: decode_ns(costs[1], *shape) / decode_ns(costs[0], *shape) for shape in shapes}
    rows = [(f"{batch} x {context:,}", f"{ratio:.2f}") for (batch, context), ratio in ratios.items()]
    full = {
        dtype: run({**engine, "max_num_batched_tokens": 8192, "kv_cache_dtype": dtype}, backlog(160, 4000, 400)).summary
        for dtype in ("auto", "fp8")
    }
    blocks = full["fp8"]["kv"]["num_gpu_blocks"] / full["auto"]["kv"]["num_gpu_blocks"]
    faster = full["fp8"]["output_throughput"] / full["auto"]["output_throughput"]
    return Claim(
        key="fp8-kv",
        rows="E12",
        title="FP8 KV cache",
        claimed="Halves the KV cache: twice the sequences, faster decode.",
        computed="1 byte for 2 per element: capacity 2x. Time: attention's share of the step, halved where it is bound "
        "by reading KV; the weights are read as before.",
        simulated=f"Llama 3.1 8B on an H100 (both formats measured): {blocks:.2f}x the blocks. Decode step in FP8 over "
        f"16 bits by batch and context: table. 160 requests of 4,000 + 400 tokens at once: {faster:.2f}x the "
        "throughput.",
        verdict="Holds when contexts are long: capacity always doubles; the step's time does not change for one short "
        f"request and falls to {min(ratios.values()):.0%} at best here.",
        holds={
            "capacity doubles": abs(blocks - 2) < 0.01,
            "nothing for a short request": abs(ratios[1, 512] - 1) < 0.05,
            "long contexts gain": ratios[24, 16000] < 0.75,
            "never less than half": min(ratios.values()) > 0.45,
            "a run gains": 1.0 < faster < 2.2,
        },
        table=markdown_table(("batch x context", "FP8 step over 16-bit step"), rows),
        numbers={"blocks": blocks, "short": ratios[1, 512], "long": ratios[24, 16000]},
    )


def prefix_caching() -> Claim:
    """A shared system prompt."""
    shared, own = 1500, 180
    share = shared // BLOCK * BLOCK / (shared + own)
    workload = {
        **backlog(400, shared + own, 150),
        "arrival": {"process": "poisson", "rate": 4.0},
        "prefix": {"groups": 1, "tokens": shared},
    }
    seen = {
        cached: run({"model": "llama-3.1-8b", "enable_prefix_caching": cached}, workload).summary
        for cached in (False, True)
    }
    hits = seen[True]["kv"]["prefix_cache_hit_rate"]
    ttft = seen[True]["mean_ttft_ms"] / seen[False]["mean_ttft_ms"]
    itl = seen[True]["p99_itl_ms"] / seen[False]["p99_itl_ms"]
    unshared = {key: value for key, value in workload.items() if key != "prefix"}
    none = run({"model": "llama-3.1-8b", "enable_prefix_caching": True}, unshared).summary["kv"]
    return Claim(
        key="prefix-caching",
        rows="E9",
        title="Prefix caching",
        claimed="A shared system prompt is computed once.",
        computed=f"{shared} of {shared + own} prompt tokens shared, whole blocks only: {share:.1%} of the prompt "
        "tokens are hits once the first request is through.",
        simulated=f"Llama 3.1 8B on an A100 at 4 requests/s: hit rate {hits:.1%}; mean TTFT {ttft:.0%} and p99 ITL "
        f"{itl:.0%} of those without the cache. Without a shared prompt the hit rate is "
        f"{none['prefix_cache_hit_rate']:.0%}.",
        verdict="Holds: prefill shrinks by the share of whole shared blocks, decode by nothing.",
        holds={
            "the hits are the shared blocks": share - 0.02 < hits <= share,
            "TTFT falls": ttft < 0.6,
            "ITL of the others falls": itl < 0.8,
            "no hits where nothing is shared": none["prefix_cache_hits"] == 0,
        },
        numbers={"hits": hits, "share": share, "ttft": ttft},
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    "paging-sequences": sequences,
    "paging-waste": waste,
    "slots": slots,
    "weights": weights,
    "seventy-billion": seventy_billion,
    "fp8-kv": fp8_kv,
    "prefix-caching": prefix_caching,
}
"""By key."""
