"""Checks of engine, cluster and latency settings against each other.

The engine's are those of vLLM's ``SchedulerConfig.verify_max_model_len`` (``vllm/config/scheduler.py``,
0.32.0), and those of the settings vLLM does not have. What an engine leaves to a model or GPU that is unknown is
compared with nothing.
"""

from __future__ import annotations

from sim.checks.findings import Findings
from sim.latency.kind import latency_kind
from sim.scenario.schema import ClusterConfig, EngineSection, LatencyConfig, SpeculativeConfig
from sim.scenario.vllm_version import DEFAULT_VERSION, OLDEST_VERSION, version_problem

_ENGINE = ("engine",)
NVIDIA_BLOCK = 16
"""Tokens that the attention kernels on NVIDIA GPUs need a block to be a multiple of; every preset is one."""

LATENCY_KEYS = {
    "step_s": ("constant",),
    "profile": ("profile",),
    "host_overhead_ms": ("roofline", "profile"),
    "link_bandwidth_gb_s": ("roofline", "profile"),
    "link_latency_us": ("roofline", "profile"),
    "expert_load_imbalance": ("roofline", "profile"),
    "sampling": ("profile",),
}
"""Keys of ``latency`` and the kinds that read them."""


def check_engine_settings(engine: EngineSection, findings: Findings) -> None:
    """Everything about ``engine`` that needs neither model nor GPU."""
    if wrong := version_problem(engine.vllm_version):
        findings.problem(
            (*_ENGINE, "vllm_version"),
            f"`engine.vllm_version`: {wrong}; write a version from {OLDEST_VERSION} to {DEFAULT_VERSION}",
        )
    _check_block_size(engine, findings)
    _check_budget(engine, findings)
    _check_chunking(engine, findings)
    _check_baselines(engine, findings)
    if engine.num_gpu_blocks_override is not None:
        findings.unused(
            engine, _ENGINE, "kv_cache_memory_bytes", "num_gpu_blocks_override says how many blocks there are"
        )
    if engine.speculative is not None:
        _check_speculative(engine, engine.speculative, findings)


def _check_block_size(engine: EngineSection, findings: Findings) -> None:
    multiple = NVIDIA_BLOCK if isinstance(engine.gpu, str) else engine.gpu.kv_block_multiple
    if engine.block_size % multiple == 0:
        return
    below = engine.block_size // multiple * multiple
    near = f"{below} or {below + multiple}" if below else str(multiple)
    remedy = f"choose {near}"
    if not isinstance(engine.gpu, str):
        remedy += ", or say by `gpu.kv_block_multiple` what its kernels take"
    findings.problem(
        (*_ENGINE, "block_size"),
        f"`engine.block_size` ({engine.block_size}) is no multiple of {multiple}, as the attention kernels on "
        f"{engine.gpu_name} need it: vLLM refuses to start; {remedy}",
    )


def _check_budget(engine: EngineSection, findings: Findings) -> None:
    budget, seqs, length = engine.max_num_batched_tokens, engine.max_num_seqs, engine.max_model_len
    if budget is not None and seqs is not None:
        _check_seats(engine, budget, seqs, findings)
    if length is not None and engine.long_prefill_token_threshold > length:  # vLLM: ValueError
        findings.problem(
            (*_ENGINE, "long_prefill_token_threshold"),
            f"`engine.long_prefill_token_threshold` ({engine.long_prefill_token_threshold}) is above "
            f"`engine.max_model_len` ({length}): vLLM refuses to start; 0 turns the threshold off",
        )
    if engine.long_prefill_token_threshold == 0:
        findings.unused(
            engine, _ENGINE, "long_prefill_token_threshold_adaptive", "long_prefill_token_threshold is 0 (off)"
        )


def _check_seats(engine: EngineSection, budget: int, seqs: int, findings: Findings) -> None:
    length = engine.max_model_len
    if budget < seqs:  # vLLM: ValueError
        key = "max_num_batched_tokens" if "max_num_batched_tokens" in engine.model_fields_set else "max_num_seqs"
        findings.problem(
            (*_ENGINE, key),
            f"`engine.max_num_batched_tokens` ({budget}) is below `engine.max_num_seqs` ({seqs}): "
            "vLLM refuses to start; raise the first or lower the second",
        )
    elif length is not None and budget > seqs * length:  # vLLM: warning
        findings.note(
            f"`engine.max_num_batched_tokens` ({budget}) is more than max_num_seqs * max_model_len ({seqs * length}) "
            "and cannot be used up; vLLM warns about it"
        )


def _check_chunking(engine: EngineSection, findings: Findings) -> None:
    budget, cap = engine.max_num_batched_tokens, engine.max_prefill_tokens_per_step
    if not engine.enable_chunked_prefill:
        if cap is not None:
            findings.problem(
                (*_ENGINE, "max_prefill_tokens_per_step"),
                "`engine.max_prefill_tokens_per_step` cuts prompts into chunks, "
                "which `enable_chunked_prefill: false` forbids; remove one of the two",
            )
        length = engine.max_model_len
        if budget is not None and length is not None and budget < length:  # vLLM: ValueError
            key = "max_num_batched_tokens" if "max_num_batched_tokens" in engine.model_fields_set else "max_model_len"
            findings.problem(
                (*_ENGINE, key),
                f"`engine.max_num_batched_tokens` ({budget}) is below `engine.max_model_len` ({length}), and without "
                "chunked prefill a prompt must fit one step: vLLM refuses to start; raise the first, lower the second, "
                "or turn `enable_chunked_prefill` on",
            )
    elif cap is not None and budget is not None and cap >= budget:
        findings.note(
            f"`engine.max_prefill_tokens_per_step` has no effect: the token budget of a step, "
            f"max_num_batched_tokens ({budget}), is no larger"
        )


def _check_baselines(engine: EngineSection, findings: Findings) -> None:
    causes = [
        cause
        for cause, given in (
            ("preemption: swap", engine.preemption == "swap"),
            ("batching: static", engine.batching == "static"),
            ("kv: contiguous", engine.kv == "contiguous"),
            ("pipeline_parallel_size above 1", engine.pipeline_parallel_size > 1),
            (
                "speculative decoding with n-grams",
                engine.speculative is not None and engine.speculative.method == "ngram",
            ),
        )
        if given
    ]
    if causes and engine.async_scheduling:
        verb = "run" if len(causes) > 1 else "runs"
        findings.note(f"{' and '.join(causes)} {verb} without asynchronous scheduling: async_scheduling is off")
    if engine.kv == "contiguous" and engine.enable_prefix_caching:
        findings.note("kv: contiguous shares nothing between requests: enable_prefix_caching is off")
    if not engine.enable_prefix_caching or engine.kv == "contiguous":
        findings.unused(engine, _ENGINE, "cache_isolation", "requests share nothing anyway, without a prefix cache")
    if engine.preemption == "recompute":
        findings.unused(engine, _ENGINE, "swap_space_gib", "it belongs to `preemption: swap`")
    if engine.batching == "continuous":
        findings.unused(engine, _ENGINE, "static_batch_wait_s", "it belongs to `batching: static`")


def _check_speculative(engine: EngineSection, speculative: SpeculativeConfig, findings: Findings) -> None:
    path, k = (*_ENGINE, "speculative"), speculative.num_speculative_tokens
    if speculative.method == "draft_model" and speculative.draft_model is None:
        findings.problem(
            path,
            "`engine.speculative`: `method: draft_model` needs `draft_model`, a small model of the same family, such "
            "as llama-3.2-1b for a Llama 3.1",
        )
    elif speculative.method == "ngram" and speculative.draft_model is not None:
        findings.problem(
            (*path, "draft_model"),
            "`engine.speculative.draft_model`: n-grams come from the request itself, without a model; remove it, or "
            "choose `method: draft_model`",
        )
    elif speculative.has_head and speculative.draft_model is not None:
        findings.problem(
            (*path, "draft_model"),
            f"`engine.speculative.draft_model`: `method: {speculative.method}` drafts by a head on the model's own "
            "hidden states, taken to be of the model's shape; remove it, or choose `method: draft_model`",
        )
    rates = speculative.rates
    if len(rates) != k:
        findings.problem(
            (*path, "acceptance"),
            f"`engine.speculative.acceptance` has {len(rates)} probabilities for num_speculative_tokens {k}; give one "
            "for each position, or one number for all",
        )
    for key, only, why in (
        ("batching", "continuous", "the static baseline has no drafts"),
        ("kv", "paged", "the contiguous baseline has no drafts"),
        ("preemption", "recompute", "the older engine's swapping has no drafts"),
        ("pipeline_parallel_size", 1, "drafting on the last of several stages is not modelled"),
    ):
        value = getattr(engine, key)
        if value != only:
            findings.problem(
                (*_ENGINE, key),
                f"`engine.{key}: {value}` does not go with `engine.speculative`: {why}; set it to {only}, or remove "
                "`speculative`",
            )
    threshold = engine.long_prefill_token_threshold
    if 0 < threshold <= k:  # vLLM: AssertionError while it runs
        findings.problem(
            (*_ENGINE, "long_prefill_token_threshold"),
            f"`engine.long_prefill_token_threshold` ({threshold}) cuts decodes of 1 + {k} tokens, which vLLM fails on; "
            f"raise it to {k + 1} at least, or to 0 (off)",
        )


def check_cluster(cluster: ClusterConfig, engine: EngineSection | None, findings: Findings) -> None:
    """Everything about ``cluster``. A router also chooses between the ranks of one deployment."""
    if cluster.replicas == 1 and (engine is None or engine.data_parallel_size == 1):
        findings.unused(cluster, ("cluster",), "router", "there is one replica")


def check_latency(latency: LatencyConfig, engine: EngineSection | None, findings: Findings) -> None:
    """Everything about ``latency``, and about ``engine`` where it asks for what that latency cannot tell."""
    path = ("latency",)
    if latency.kind == "constant" and latency.step_s is None and latency.fit is None:
        findings.problem(
            path, "`latency.kind: constant` needs `step_s`, the seconds a step takes; add for example `step_s: 0.02`"
        )
    if latency.kind == "constant" and latency.step_s is not None and round(latency.step_s * 1e9) < 1:
        findings.problem(
            (*path, "step_s"),
            f"`latency.step_s` is {latency.step_s:g} s, below the nanosecond that time is counted in; steps of a "
            "model take milliseconds, such as 0.02",
        )
    kind = latency_kind(engine.gpu, latency) if engine is not None else latency.kind
    if kind is not None:
        for key, kinds in LATENCY_KEYS.items():
            if kind not in kinds:
                belongs = " or ".join(kinds)
                findings.unused(latency, path, key, f"it belongs to `kind: {belongs}`, and this is `kind: {kind}`")
    if kind != "constant" and latency.link_bandwidth_gb_s is None:
        findings.unused(latency, path, "link_latency_us", "there is no `link_bandwidth_gb_s`")
    elif kind != "constant" and engine is not None and _has_one_gpu(engine):
        findings.unused(latency, path, "link_bandwidth_gb_s", "a replica has one GPU")
    if latency.kind == "constant" and engine is not None and engine.speculative is not None:
        findings.note(
            "`latency.kind: constant`: drafting takes no time, and verifying drafts no longer than a plain step"
        )
    if latency.kind == "constant" and engine is not None and engine.pipeline_parallel_size > 1:
        stages = engine.pipeline_parallel_size
        findings.note(
            f"`latency.kind: constant` knows no stages: the {stages} batches in flight under pipeline_parallel_size "
            f"{stages} run one after the other, so a request gets a token every {stages} steps and nothing is gained"
        )


def _has_one_gpu(engine: EngineSection) -> bool:
    return engine.tensor_parallel_size * engine.pipeline_parallel_size * engine.data_parallel_size == 1
