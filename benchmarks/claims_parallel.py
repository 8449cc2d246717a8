"""Claims about splitting a model over GPUs (E14, E15, decisions)."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.claims_base import SIZES, Claim, backlog, markdown_table, run
from sim.latency.parallel import all_reduce_bytes, pipeline_utilization, plain_transfer_s, ring_all_reduce_s

MIB = 1 << 20
PCIE = 32e9
"""Bytes/s each way of PCIe 4.0 with 16 lanes."""


def pass_terms_ms(link: float | None = None, **engine: object) -> dict[str, float]:
    """GPU time by term of the pass in question: 16 prompts of 512 tokens, Llama 2 7B in FP16, TP4.

    ``link`` replaces what was measured between the GPUs by a ring at 70 % of this bandwidth (bytes/s each way).
    """
    from sim.latency.base import StepShape
    from sim.latency.gpus import load_gpu
    from sim.latency.models import load_model
    from sim.latency.profile.cost import ProfileCost
    from sim.latency.profile.file import load_profile
    from sim.latency.profile.library import BUILTIN, SUFFIX, Found, find_profile
    from sim.scenario.schema import EngineConfig

    settings = {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", "tensor_parallel_size": 4}
    config = EngineConfig(**{**SIZES, **settings, "dtype": "float16", "max_num_batched_tokens": 8192, **engine})
    gpu = load_gpu(config.gpu)
    found = find_profile(None, gpu)
    if link is not None:
        collectives = ("all_reduce", "all_gather")
        profile = load_profile(BUILTIN / f"{config.gpu}{SUFFIX}")
        others = {name: each for name, each in profile.operators.items() if name not in collectives}
        found = Found(
            profile.model_copy(update={"operators": others}),
            found.device.model_copy(update={"link_bandwidth_bytes_per_s": link}),
        )
    cost = ProfileCost(found, load_model(config.model), gpu, config)
    shape = StepShape(
        num_prefills=16,
        num_prefill_tokens=16 * 512,
        prefill_context_tokens=16 * 512,
        prefill_attention_pairs=16 * 512 * 512,
        num_sampled=16,
    )
    return {name: ns / 1e6 for name, ns in cost.breakdown(shape).items()}


def share(terms: dict[str, float]) -> float:
    """All-reduces' share of the pass."""
    return terms["all_reduce"] / sum(terms.values())


def communication() -> Claim:
    """Tensor-parallel all-reduces."""
    each = all_reduce_bytes(16 * 512, 4096, 2)
    whole = 2 * 32 * each
    ms = {
        "600": plain_transfer_s(whole, 600e9) * 1e3,
        "32": plain_transfer_s(whole, PCIE) * 1e3,
        "ring 300": ring_all_reduce_s(whole, 4, 300e9) * 1e3,
        "ring 32": ring_all_reduce_s(whole, 4, PCIE) * 1e3,
    }
    nvlink, pcie, l40s = pass_terms_ms(), pass_terms_ms(PCIE), pass_terms_ms(gpu="l40s")
    rows = [
        (name, f"{terms['all_reduce']:,.0f}", f"{sum(terms.values()):,.0f}", f"{share(terms):.0%}")
        for name, terms in (
            ("A100, NVLink, all-reduce as measured", nvlink),
            ("A100, PCIe, a ring at 70 % of 32 GB/s", pcie),
            ("L40S, PCIe, all-reduce at the rate of 2 GPUs", l40s),
        )
    ]
    return Claim(
        key="tp-communication",
        rows="E14",
        title="Communication of tensor parallelism",
        claimed="TP4, 16 x 512 tokens, hidden 4,096, 32 layers, FP16: 64 MiB each, 4 GiB a pass; 7.2 ms at 600 GB/s, "
        "134 ms at 32; a ring of 4 takes 21.5 ms at 300 GB/s each way, 201 ms over PCIe.",
        computed=f"{each // MIB} MiB, {whole / (1 << 30):g} GiB; plainly {ms['600']:.1f} and {ms['32']:.0f} ms; ring "
        f"(2 x 3/4 of the payload over each link) {ms['ring 300']:.1f} and {ms['ring 32']:.0f} ms.",
        simulated="One prefill pass of Llama 2 7B, embedding's all-reduce included: table. "
        f"NVLink: {nvlink['all_reduce']:.0f} ms, {share(nvlink):.0%} of the pass; PCIe {share(pcie):.0%} by the link's "
        f"bandwidth, {share(l40s):.0%} at the rate measured over 2 (L40S).",
        verdict="Holds when bandwidth is all that counts: the plain figure is a third of a ring's, and what was "
        f"measured is {nvlink['all_reduce'] / ms['ring 300']:.1f}x the ring's figure over NVLink. Over PCIe "
        "communication is most of the pass.",
        holds={
            "64 MiB and 4 GiB": each == 64 * MIB and whole == 4 << 30,
            "7.2, 134, 21.5, 201 ms": [round(ms["600"], 1), round(ms["32"]), round(ms["ring 300"], 1)]
            == [7.2, 134, 21.5]
            and round(ms["ring 32"]) == 201,
            "measured is above the ring's bound": nvlink["all_reduce"] > ms["ring 300"],
            "under a third of the pass over NVLink": 0.08 < share(nvlink) < 0.35,
            "most of it over PCIe": share(pcie) > 0.5 and share(l40s) > 0.5,
        },
        table=markdown_table(("GPUs and link", "all-reduce, ms", "pass, ms", "share"), rows),
        numbers={
            "nvlink": share(nvlink),
            "pcie": share(pcie),
            "l40s": share(l40s),
            "measured_ms": nvlink["all_reduce"],
        },
    )


def flush(micro_batches: int, stages: int = 4) -> float:
    """Share of the time that stages are busy while that many prompts, one a step, pass a pipeline."""
    engine = {"pipeline_parallel_size": stages, "max_num_batched_tokens": 512}
    results = run(
        engine,
        backlog(micro_batches, 512, 1),
        latency={"kind": "profile", "host_overhead_ms": 0, "client_overhead_ms": 0},
    )
    return float(results.steps["gpu_ms"].sum() / 1e3 / results.summary["duration"])


def bubbles() -> Claim:
    """One flush of micro-batches; steady decode."""
    counts = (1, 8, 16, 32)
    computed = {count: pipeline_utilization(count, 4) for count in counts}
    simulated = {count: flush(count) for count in counts}
    engine = {"pipeline_parallel_size": 4, "max_num_seqs": 64}
    steady = run(engine, backlog(64, 128, 1000)).summary["utilization"]["busy_fraction"]
    return Claim(
        key="bubbles",
        rows="E15",
        title="Pipeline bubbles",
        claimed="Stages of a pipeline of 4 are busy 25 % of the time with 1 micro-batch, 73 % with 8, 84 % with 16, 91 "
        "% with 32.",
        computed="M / (M + S - 1): " + ", ".join(f"{value:.0%}" for value in computed.values()) + ".",
        simulated="Prompts of 512 tokens, one a step, Llama 2 7B at PP4 on A100s, host time off: "
        + ", ".join(f"{value:.0%}" for value in simulated.values())
        + f". Decoding 64 requests for 1,000 tokens: {steady:.0%}.",
        verdict="Holds when one flush passes an empty pipeline. An engine that decodes keeps as many batches in flight "
        "as there are stages, and the bubble of the flush is paid once.",
        holds={
            "the formula": [round(100 * value) for value in computed.values()] == [25, 73, 84, 91],
            "the simulator agrees": all(abs(simulated[n] - computed[n]) < 0.01 for n in counts),
            "steady decode fills the pipeline": steady > 0.8,
        },
        numbers={f"flush {count}": value for count, value in simulated.items()} | {"steady": steady},
    )


def thirteen_billion() -> Claim:
    """Four GPUs for 13B and latency."""
    splits = {"TP4": (4, 1, 1), "TP2 x PP2": (2, 2, 1), "PP4": (1, 4, 1), "2 replicas of TP2": (2, 1, 2)}
    splits["4 replicas of TP1"] = (1, 1, 4)
    seen = {}
    for name, (tp, pp, replicas) in splits.items():
        engine = {"model": "llama-2-13b", "tensor_parallel_size": tp, "pipeline_parallel_size": pp}
        workload = backlog(60, 512, 256) | {"arrival": {"process": "poisson", "rate": 0.5}}
        summary = run(engine, workload, replicas=replicas).summary
        seen[name] = (summary["mean_ttft_ms"], summary["mean_tpot_ms"], summary["mean_e2el_ms"])
    rows = [(name, *(f"{value:,.1f}" for value in values)) for name, values in seen.items()]
    return Claim(
        key="thirteen-billion",
        rows="decisions",
        title="13B on four GPUs for latency",
        claimed="TP4.",
        computed="One request at a time reads all weights once a token: TP4 reads a quarter per GPU, a pipeline or "
        "replicas read them all, one after the other.",
        simulated="Llama 2 13B on A100s with NVLink at 0.5 requests/s, 512 in and 256 out: table.",
        verdict="Holds: TP4 has the shortest TTFT, TPOT and E2E of the five.",
        holds={"TP4 is first in all three": all(seen["TP4"][i] == min(v[i] for v in seen.values()) for i in range(3))},
        table=markdown_table(("GPUs", "mean TTFT, ms", "mean TPOT, ms", "mean E2E, ms"), rows),
        numbers={f"e2e {name}": values[2] for name, values in seen.items()},
    )


def seventy_on_sixteen() -> Claim:
    """Sixteen GPUs for 70B and throughput."""
    splits = {
        "TP16": (16, 1, 1),
        "TP8 x PP2": (8, 2, 1),
        "TP4 x PP4": (4, 4, 1),
        "2 replicas of TP8": (8, 1, 2),
        "2 replicas of TP4 x PP2": (4, 2, 2),
        "4 replicas of TP4": (4, 1, 4),
    }
    rates = {}
    for name, (tp, pp, replicas) in splits.items():
        engine = {"model": "llama-3.1-70b", "tensor_parallel_size": tp, "pipeline_parallel_size": pp}
        engine |= {"max_num_seqs": 1024, "max_num_batched_tokens": 8192}
        rates[name] = run(engine, backlog(3000, 512, 256), replicas=replicas).summary["output_throughput"]
    best = max((name for name in splits if "replicas" in name), key=lambda name: rates[name])
    one = [name for name, split in splits.items() if split[2] == 1]
    gain = rates["TP4 x PP4"] / rates["TP8 x PP2"]
    return Claim(
        key="seventy-on-sixteen",
        rows="decisions",
        title="70B on sixteen GPUs for throughput",
        claimed="TP8 x PP2 or TP4 x PP4. (And 175B on 64: TP8 x PP8.)",
        computed="None: depends on what all-reduces and bubbles cost.",
        simulated="Llama 3.1 70B in BF16 on A100s, 3,000 requests of 512 in and 256 out at once, all GPUs on one "
        "NVLink domain (real ones hold 8: TP16 would do worse). 175B is not yet simulated: there is no such preset.",
        verdict=f"Holds when the choice is among single engines and falls on TP4 x PP4: {gain:.2f}x of TP8 x PP2, "
        f"which pays more for all-reduces. Several smaller replicas do as well or better ({best} here); which of them "
        "leads changes with seats and backlog.",
        holds={
            "TP4 x PP4 is the best single engine": max(one, key=lambda name: rates[name]) == "TP4 x PP4",
            "TP8 x PP2 beats TP16": rates["TP8 x PP2"] > rates["TP16"],
            "TP4 x PP4 beats TP8 x PP2": gain > 1.05,
            "replicas do as well": rates[best] > 0.95 * rates["TP4 x PP4"],
        },
        table=markdown_table(("16 GPUs", "output tokens/s"), [(name, f"{rate:,.0f}") for name, rate in rates.items()]),
        numbers={"gain": gain},
    )


def slow_tokens() -> Claim:
    """TPOT too high: fewer seats, more GPUs."""
    seen = {}
    for tp, limit in ((1, 256), (1, 64), (2, 256)):
        engine = {"model": "llama-3.1-8b", "tensor_parallel_size": tp, "max_num_seqs": limit}
        summary = run(engine, backlog(600, 512, 256)).summary
        seen[tp, limit] = (summary["mean_tpot_ms"], summary["output_throughput"])
    rows = [(f"TP{tp}, {limit} seats", f"{tpot:.1f}", f"{rate:,.0f}") for (tp, limit), (tpot, rate) in seen.items()]
    before, seats, gpus = seen.values()
    return Claim(
        key="slow-tokens",
        rows="cures",
        title="Cures for a TPOT that is too high",
        claimed="max_num_seqs 256 -> 64, or TP1 -> TP2.",
        computed="Fewer seats read less KV and share steps with fewer prompts; two GPUs each read half of the weights "
        "and KV.",
        simulated="Llama 3.1 8B on A100s, 600 requests of 512 in and 256 out at once: table.",
        verdict=f"Holds: 64 seats cut TPOT to {seats[0] / before[0]:.0%} and cost {1 - seats[1] / before[1]:.0%} of "
        f"the throughput; TP2 cuts it to {gpus[0] / before[0]:.0%} and gives {gpus[1] / before[1]:.1f}x the throughput "
        "for twice the GPUs.",
        holds={
            "fewer seats cut TPOT": seats[0] < 0.6 * before[0],
            "and throughput": seats[1] < 0.95 * before[1],
            "a second GPU cuts TPOT": gpus[0] < 0.85 * before[0],
            "and is worth less than two": before[1] < gpus[1] < 2.05 * before[1],
        },
        table=markdown_table(("engine", "mean TPOT, ms", "output tokens/s"), rows),
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    "tp-communication": communication,
    "bubbles": bubbles,
    "thirteen-billion": thirteen_billion,
    "seventy-on-sixteen": seventy_on_sixteen,
    "slow-tokens": slow_tokens,
}
"""By key."""
