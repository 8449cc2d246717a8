"""``simrun memory``: what the engine of a scenario needs of a GPU's memory, and what is left for KV."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sim.outputs import standard_output

if TYPE_CHECKING:
    from sim.latency.memory_plan import MemoryPlan, PlannedEngine
    from sim.scenario.schema import EngineConfig

EXIT_DONE = 0
GIB = 1 << 30
WIDTH = 26
FORMULAS = ("activations", "outside PyTorch", "CUDA graphs")
"""Parts that vLLM measures when it starts."""


@click.command("memory", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.argument("scenario", metavar="SCENARIO.yaml")
@click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a key of the scenario; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def memory_command(scenario: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Print the memory plan of a scenario's engine, and stop.

    Of one GPU, of the pipeline stage with the least room. Nothing is simulated.
    """
    from sim.checks.all_checks import check_all
    from sim.run import load

    loaded = load(scenario, overrides)
    planned = check_all(loaded)
    engine = loaded.scenario.engine
    with standard_output():
        if as_json:
            click.echo(json.dumps(memory_document(planned), indent=2))
        else:
            click.echo(memory_text(engine, planned))
    return EXIT_DONE


def memory_document(planned: PlannedEngine) -> dict[str, Any]:
    """The plan for a program: bytes, blocks and tokens."""
    plan = planned.memory
    return {
        "model": planned.model.name,
        "gpu": planned.gpu.name,
        "vllm_version": plan.vllm_version,
        "model_runner": plan.model_runner,
        "total_bytes": plan.total_bytes,
        "requested_bytes": plan.requested_bytes,
        "weights_bytes": plan.weights_bytes,
        "draft_weights_bytes": plan.draft_weights_bytes,
        "lora_bytes": plan.lora_bytes,
        "activation_bytes": plan.activation_bytes,
        "non_torch_bytes": plan.non_torch_bytes,
        "graph_bytes": plan.graph_bytes,
        "kv_cache_bytes": plan.available_kv_bytes,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "block_size": plan.block_size,
        "num_gpu_blocks": plan.num_gpu_blocks,
        "kv_cache_size_tokens": plan.logged_kv_tokens,
        "kv_capacity_tokens": plan.kv_capacity_tokens,
        "max_model_len": plan.max_model_len,
        "max_concurrency": round(plan.max_concurrency, 4),
        "formulas": ["activation_bytes", "non_torch_bytes", "graph_bytes"],
        "notes": list(plan.notes),
    }


def memory_text(engine: EngineConfig, planned: PlannedEngine) -> str:
    """The plan as a table: GiB of one GPU, and where each figure is from."""
    plan = planned.memory
    gpus = engine.tensor_parallel_size * engine.pipeline_parallel_size * engine.data_parallel_size
    lines = [
        f"{planned.model.name} on {gpus} x {planned.gpu.name}, as vLLM {plan.vllm_version} plans it (model runner "
        f"V{plan.model_runner}). GiB of one GPU:",
        "",
        *(_row(name, size, told) for name, size, told in _parts(engine, plan)),
        "",
        f"{'GPU KV cache size':<{WIDTH}}{plan.logged_kv_tokens:,} tokens, as vLLM logs it",
        f"{'':<{WIDTH}}{plan.num_gpu_blocks:,} blocks of {plan.block_size} tokens, one of them the null block; "
        f"{plan.kv_bytes_per_token:,} bytes per token",
        f"{'Maximum concurrency':<{WIDTH}}{plan.max_concurrency:.2f}x for {plan.max_model_len:,} tokens per request",
        "",
        f"Formulas, where vLLM measures when it starts: {', '.join(FORMULAS)}.",
        "They were held against logs of vLLM 0.9 to 0.31 (docs/memory.md). A start that has to compile first may leave",
        "0.4 to 2 GiB less.",
        *(f"note: {note}" for note in plan.notes),
    ]
    return "\n".join(lines)


def _parts(engine: EngineConfig, plan: MemoryPlan) -> list[tuple[str, int, str]]:
    drafted = f", {plan.draft_weights_bytes / GIB:.2f} of them the draft model's" if plan.draft_weights_bytes else ""
    if plan.lora_bytes:
        drafted += f", {plan.lora_bytes / GIB:.2f} the slots of LoRA adapters"
    counted = "formula" if plan.graph_bytes else "not taken from the KV cache"
    if engine.enforce_eager:
        counted = "none with enforce_eager"
    if engine.kv_cache_memory_bytes is None:
        share = ("requested", plan.requested_bytes, f"gpu_memory_utilization {engine.gpu_memory_utilization:g}")
        rest = "what is left"
    else:
        share = ("requested", plan.total_bytes, "all: gpu_memory_utilization is not used")
        rest = "kv_cache_memory_bytes"
    return [
        ("total", plan.total_bytes, "as CUDA reports it"),
        share,
        ("weights", plan.weights_bytes, f"from the model's config{drafted}"),
        ("activations", plan.activation_bytes, "formula: peak of the profiling pass"),
        ("outside PyTorch", plan.non_torch_bytes, "formula: libraries, communicators"),
        ("CUDA graphs", plan.graph_bytes, counted),
        ("KV cache", plan.available_kv_bytes, rest),
    ]


def _row(name: str, size: int, told: str) -> str:
    return f"{name:<{WIDTH}}{size / GIB:>7.2f}  {told}"
