"""Claims about arithmetic: number formats, intensity, kernels, speculation, the reference design (E12, E18, F10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.claims_base import Claim, backlog, decode_ns, fixed, markdown_table, run, step_cost
from sim.latency.gpus import load_gpu

FP16 = 2
"""Bytes."""


# --- formulas ----------------------------------------------------------------------------------


def prefill_intensity(tokens: int, *, causal: bool, group: int = 1) -> float:
    """FLOPs per byte of the attention of one prompt in FP16, scores kept on the chip.

    A multiply-add counts two; queries, keys, values and the output each move once. ``group`` query heads share a KV
    head.
    """
    flops = 4.0 * tokens * tokens * group / (2 if causal else 1)
    traffic = FP16 * tokens * (2 * group + 2)
    return flops / traffic


def decode_intensity(group: int) -> float:
    """FLOPs per byte of the attention of a decode in FP16 over a long context: each key and value serves ``group``
    queries once."""
    return 4.0 * group / (2 * FP16)


def gemm_intensity(m: int, n: int, k: int) -> float:
    """FLOPs per byte of an m x k by k x n product in FP16."""
    return 2.0 * m * n * k / (FP16 * (m * k + k * n + m * n))


def speculative_tokens(acceptance: float, k: int) -> float:
    """Expected tokens per verification of ``k`` drafted tokens, each accepted with this probability."""
    return float(k + 1) if acceptance == 1 else (1 - acceptance ** (k + 1)) / (1 - acceptance)


@dataclass(frozen=True)
class ReferenceDesign:
    """100 A100s as 50 pairs, 10,000 users with a request a minute, 200 tokens in and 150 out, a dense 220B in INT4."""

    users: int = 10_000
    input_tokens: int = 200
    output_tokens: int = 150
    pairs: int = 50
    pair_tokens_per_s: float = 2000.0
    parameters: float = 220e9
    usd_per_gpu_hour: float = 2.0
    mfu: float = 0.5

    @property
    def tokens_per_s(self) -> float:
        """Demand: input and output together."""
        return self.users / 60 * (self.input_tokens + self.output_tokens)

    @property
    def supply(self) -> float:
        """Tokens/s of all pairs, as the estimate has them."""
        return self.pairs * self.pair_tokens_per_s

    @property
    def usd_per_million(self) -> float:
        """Price of a million tokens at that supply."""
        return 2 * self.pairs * self.usd_per_gpu_hour / (self.supply * 3600 / 1e6)

    @property
    def pair_flops(self) -> float:
        """FLOP/s that a pair would need: two per parameter and token."""
        return 2 * self.parameters * self.pair_tokens_per_s

    @property
    def weight_read_s(self) -> float:
        """Seconds that a pair needs to read the weights once: the least time of one token."""
        return self.parameters * 0.5 / 2 / load_gpu("a100-80gb-sxm").memory_bandwidth

    @property
    def gpus(self) -> float:
        """A100s for the demand at the stated MFU, counting arithmetic only."""
        return 2 * self.parameters * self.tokens_per_s / (self.mfu * load_gpu("a100-80gb-sxm").fp16_flops)


# --- claims ------------------------------------------------------------------------------------


def float32() -> Claim:
    """FP32 where FP16 was meant."""
    costs = {dtype: step_cost(model="llama-3.1-8b", dtype=dtype) for dtype in ("float16", "float32")}
    batches = (1, 8, 16, 24, 32, 64)

    def ratio(batch: int) -> float:
        return decode_ns(costs["float32"], batch, 256) / decode_ns(costs["float16"], batch, 256)

    ratios = {batch: ratio(batch) for batch in batches}
    passed = next(batch for batch in range(1, 257) if ratio(batch) >= 2.5)
    rates, first = {}, {}
    for dtype in costs:
        lengths = {"dist": "lognormal", "cv": 0.8, "max": 2000}
        workload = backlog(400, {**lengths, "mean": 512}, {**lengths, "mean": 256})
        rates[dtype] = run({"model": "llama-3.1-8b", "dtype": dtype}, workload).summary["output_throughput"]
        first[dtype] = run({"model": "llama-3.1-8b", "dtype": dtype}, backlog(1, 2048, 1)).summary["mean_ttft_ms"]
    prefill, whole = first["float32"] / first["float16"], rates["float16"] / rates["float32"]
    a100 = load_gpu("a100-80gb-sxm")
    turn = a100.fp32_flops / a100.memory_bandwidth * 4 / 2
    rows = [(f"decode step, batch {batch}", f"{value:.1f}") for batch, value in ratios.items()]
    rows += [("prompt of 2,048 tokens, TTFT", f"{prefill:.1f}"), ("backlog, tokens/s", f"{whole:.1f}")]
    return Claim(
        key="fp32-by-mistake",
        rows="E12",
        title="FP32 for FP16 by mistake",
        claimed="Costs about 2.5x the throughput.",
        computed="Twice the bytes: 2x for what is bound by reading. On an A100 FP32 is multiplied without tensor cores "
        f"at {a100.fp32_flops / 1e12:g} of {a100.fp16_flops / 1e12:g} TFLOP/s: up to 16x for what is bound by "
        f"arithmetic, which FP32 matrices are from a batch of about {turn:.0f} on.",
        simulated="Llama 3.1 8B on an A100, time in FP32 over time in FP16: table. FP32 was not measured: the curves "
        "of BF16 are scaled by its peak rates.",
        verdict=f"Does not hold: about 2x per decode step at small equal batches, 2.5x from a batch of {passed} on, "
        f"{prefill:.0f}x for prompts, {whole:.0f}x for a backlog of chat traffic on an A100. GPUs with faster FP32 "
        "lose less, and TF32 would be another figure; vLLM leaves it off by default.",
        holds={
            "about 2x at small batches": 1.6 < ratios[1] < 2.2 and 1.6 < ratios[8] < 2.2,
            "2.5x is passed where arithmetic begins to bind": turn <= passed < 3 * turn,
            "more than 10x for prompts": prefill > 10,
            "far more than 2.5x in a whole run": whole > 4,
        },
        table=markdown_table(("Llama 3.1 8B, A100", "FP32 / FP16"), rows),
        numbers={**{f"batch {batch}": value for batch, value in ratios.items()}, "prefill": prefill, "whole": whole},
    )


def intensity() -> Claim:
    """Arithmetic intensity of attention and of the matrices."""
    a100 = load_gpu("a100-80gb-sxm")
    ridge = a100.fp16_flops / a100.memory_bandwidth
    full, causal = prefill_intensity(512, causal=False), prefill_intensity(512, causal=True)
    grouped = prefill_intensity(512, causal=True, group=4)
    gemm = gemm_intensity(512, 4096, 4096)
    step = run({}, backlog(1, 512, 1)).steps.iloc[0]
    matrices, attention = (step[name] / step["gpu_ms"] for name in ("matrices_ms", "prefill_attention_ms"))
    use = run({}, backlog(1, 512, 200)).summary["utilization"]
    return Claim(
        key="intensity",
        rows="kernels",
        title="Arithmetic intensity of attention",
        claimed="FP16 prefill attention N/2 FLOPs per byte, causal N/4: 128 at 512, below an A100's ridge of 153; it "
        "is the GEMMs that make prefill compute-bound. Decode 1.0 for MHA, about the group size for GQA.",
        computed=f"Multiply-adds as two, the output's bytes included. At 512 tokens {full:.0f} and {causal:.0f}; ridge "
        f"{ridge:.0f}, so a causal MHA prompt is bound by memory up to {4 * ridge:.0f} tokens. With 4 query heads to a "
        f"KV head fewer bytes move: {grouped:.0f} at 512, above the ridge. A 4,096 x 4,096 GEMM of 512 tokens: "
        f"{gemm:.0f}. Decode: {decode_intensity(1):.0f}, {decode_intensity(4):.0f}, {decode_intensity(8):.0f} at "
        "groups of 1, 4, 8.",
        simulated=f"One prompt of 512 tokens, Llama 2 7B on an A100: matrices {matrices:.0%} of the step, attention "
        f"{attention:.0%}. Decoding alone reaches an MFU of {use['mfu']:.1%} and {use['memory_bandwidth']:.0%} of the "
        "bandwidth.",
        verdict="Holds when heads do not share KV; with grouped queries (4 to 1) causal prefill attention passes the "
        "ridge at about 380 tokens already.",
        holds={
            "N/2 and N/4": (full, causal) == (256.0, 128.0),
            "128 is below the ridge of 153": round(ridge) == 153 and causal < ridge,
            "GQA is above it": grouped > ridge > prefill_intensity(370, causal=True, group=4),
            "a GEMM is above it": gemm > ridge,
            "decode is the group size": [decode_intensity(group) for group in (1, 4, 8)] == [1, 4, 8],
            "GEMMs are most of a prefill": matrices > 0.5 > 0.2 > attention,
            "decode is bound by memory": use["mfu"] < 0.1 and use["memory_bandwidth"] > 0.4,
        },
        numbers={"ridge": ridge, "causal": causal, "matrices": matrices},
    )


def naive_attention() -> Claim:
    """Scores recomputed in every pass."""
    size = 128
    return Claim(
        key="naive-attention",
        rows="kernels",
        title="The naive attention kernel",
        claimed="130x the QK work at head size 128.",
        computed=f"Scores are computed anew for the maximum, for the sum and for each of {size} output elements: "
        f"{size} + 2 = {size + 2} times.",
        simulated="Not a scenario's business: engines use better kernels. The ladder is in `kernels/`.",
        verdict="Holds by counting. Its time is not yet measured.",
        holds={"130": size + 2 == 130},
    )


def price_of_paging() -> Claim:
    """Paged against contiguous attention."""
    return Claim(
        key="price-of-paging",
        rows="kernels",
        title="The price of paging",
        claimed="Attention through a block table is about 10 % slower than over contiguous KV.",
        computed="None: traffic is the same but for the table (4 bytes per 16 tokens).",
        simulated="Step costs are measured on paged kernels, so the price is in them and cannot be told apart.",
        verdict="Not yet measured: `gpu-calibrate` has the best kernel with and without a block table; it needs a GPU.",
        holds={},
    )


def speculative_gain(acceptance: float, requests: int) -> float:
    """Output tokens/s with four drafts over those without: Llama 3.1 70B on four H100s, a 1B drafting, that many
    requests of 500 and 300 tokens at a time."""
    engine = {"model": "llama-3.1-70b", "gpu": "h100-sxm", "tensor_parallel_size": 4}
    drafts = {
        "method": "draft_model",
        "draft_model": "llama-3.2-1b",
        "num_speculative_tokens": 4,
        "acceptance": acceptance,
    }
    workload = {
        "requests": max(8, 2 * requests),
        "arrival": {"process": "closed_loop", "concurrency": requests},
        "input_tokens": fixed(500),
        "output_tokens": fixed(300),
    }
    with_drafts, without = (
        run({**engine, **more}, workload).summary["output_throughput"] for more in ({"speculative": drafts}, {})
    )
    return float(with_drafts / without)


def speculative() -> Claim:
    """Speculative decoding."""
    cases = {a: speculative_tokens(a, 4) for a in (0.9, 0.8, 0.5, 0.2)}
    gains = {(a, n): speculative_gain(a, n) for a, n in ((0.9, 1), (0.8, 1), (0.2, 1), (0.8, 192))}
    few, many = ({a: gain for (a, n), gain in gains.items() if n == size} for size in (1, 192))
    return Claim(
        key="speculative",
        rows="E18",
        title="Speculative decoding",
        claimed="2-3x at high acceptance and small batch, below 1x at low acceptance or large batch.",
        computed="k = 4 drafted tokens, each accepted with probability a: (1 - a^5) / (1 - a) tokens per verification: "
        + ", ".join(f"{tokens:.2f} at {a:g}" for a, tokens in cases.items())
        + ". What a draft and verifying k + 1 tokens at once cost decides the rest.",
        simulated="Llama 3.1 70B on four H100s, a 1B drafting four tokens, output tokens/s over those without drafts: "
        + ", ".join(f"{gain:.2f}x at a = {a:g}" for a, gain in few.items())
        + f" with one request at a time; {many[0.8]:.2f}x at a = 0.8 with 192.",
        verdict="Holds, for a draft model far smaller than the model; how many requests take the gain away depends on "
        "their prompts and on the GPU.",
        holds={
            "2-3x at high acceptance and small batch": 2 < few[0.8] < few[0.9] < 3.2,
            "below 1 at low acceptance": few[0.2] < 1,
            "a large batch takes the gain away": many[0.8] < 1.1,
        },
        numbers={f"{a:g}, {n} at a time": gain for (a, n), gain in gains.items()},
    )


def reference_design() -> Claim:
    """A fleet of 100 A100s."""
    design = ReferenceDesign()
    decode_s = design.output_tokens * design.weight_read_s
    return Claim(
        key="reference-design",
        rows="F10",
        title="The reference design",
        claimed="10,000 users with a request a minute (200 in, 150 out) on 50 pairs of A100s, a dense 220B in INT4: "
        "2,000 tokens/s per pair, 1.7x headroom, p95 under 5 s, $0.0072 per million tokens at $2 per GPU hour.",
        computed=f"Demand {design.users / 60:.0f} requests/s = {design.tokens_per_s:,.0f} tokens/s, "
        f"{2 * design.tokens_per_s:,.0f} at twice the load, against {design.supply:,.0f}. $200 an hour / 360 M tokens "
        f"= ${design.usd_per_million:.3f} per million. 2,000 tokens/s are {design.pair_flops / 1e12:,.0f} TFLOP/s, two "
        f"A100s have 624. Reading the weights takes {design.weight_read_s * 1e3:.0f} ms a token, so 150 tokens take "
        f"{decode_s:.1f} s at least. At 50 % MFU {design.gpus:.1f} GPUs, {2 * design.gpus:.1f} at twice the load.",
        simulated="Not yet: a fleet.",
        verdict=f"Does not hold: by arithmetic alone the price is {design.usd_per_million / 0.0072:.0f} times the one "
        "claimed, a pair cannot compute what it is said to, and the peak is above the supply; a p95 under 1 s is out "
        "of reach of any fleet of such pairs. The fleet itself is not yet simulated.",
        holds={
            "$0.556": round(design.usd_per_million, 3) == 0.556,
            "880 TFLOP/s, above two A100s": round(design.pair_flops / 1e12) == 880
            and design.pair_flops > 2 * load_gpu("a100-80gb-sxm").fp16_flops,
            "27 ms, 4 s": round(design.weight_read_s * 1e3) == 27 and round(decode_s) == 4,
            "165 and 329 GPUs": (round(design.gpus), round(2 * design.gpus)) == (165, 329),
            "headroom 1.7x, none at peak": design.supply / design.tokens_per_s > 1.7
            and design.supply < 2 * design.tokens_per_s,
        },
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    "fp32-by-mistake": float32,
    "intensity": intensity,
    "naive-attention": naive_attention,
    "price-of-paging": price_of_paging,
    "speculative": speculative,
    "reference-design": reference_design,
}
"""By key."""
