"""Every flag that ``simrun vllm-args`` prints, through vLLM's own argument parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sim.checks.all_checks import check_all
from sim.live.vllm_args import PLAIN_VALUES, SWITCHES, serve_command
from sim.run import load

ROOT = Path(__file__).resolve().parents[2]
SCENARIO: dict[str, Any] = {
    "name": "parsed",
    "workload": {
        "requests": 10,
        "arrival": {"process": "poisson", "rate": 1.0},
        "input_tokens": {"dist": "fixed", "value": 100},
        "output_tokens": {"dist": "fixed", "value": 10},
    },
    "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm"},
}
OVERRIDES = (
    (),
    ("engine.max_num_seqs=17", "engine.max_num_batched_tokens=4096", "engine.max_model_len=8192"),
    ("engine.block_size=32", "engine.gpu_memory_utilization=0.85", "engine.num_gpu_blocks_override=999"),
    ("engine.tensor_parallel_size=2", "engine.pipeline_parallel_size=2"),
    ("engine.enable_chunked_prefill=false",),
    ("engine.long_prefill_token_threshold=512", "engine.long_prefill_token_threshold_adaptive=true"),
    ("engine.enable_prefix_caching=false", "engine.scheduler_reserve_full_isl=false", "engine.watermark=0.05"),
    ("engine.async_scheduling=false", "engine.enforce_eager=true"),
    ("engine.dtype=auto", "engine.kv_cache_dtype=fp8"),
    ("engine.dtype=float16", "engine.kv_cache_dtype=float16"),
    ("engine.dtype=fp8", "engine.kv_cache_dtype=int8"),
    ("engine.dtype=int8",),
    ("engine.dtype=float32", "engine.kv_cache_dtype=float32"),
    ("engine.speculative={method: draft_model, draft_model: llama-3.2-1b, num_speculative_tokens: 4}",),
    ("engine.speculative={method: ngram}", "engine.async_scheduling=false"),
    ("engine.data_parallel_size=4", "engine.all2all_backend=deepep_high_throughput"),
    ("engine.policy=priority",),
    ("engine.policy=srtf",),
    ("engine.policy={name: tiered, age_promote_s: 5}", "engine.predictor=class_mean", "engine.async_scheduling=false"),
)


@pytest.fixture(scope="module")
def parser() -> Any:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


@pytest.mark.parametrize("overrides", OVERRIDES, ids=lambda each: ",".join(each) or "defaults")
def test_vllm_reads_every_setting_as_the_scenario_has_it(parser: Any, overrides: tuple[str, ...]) -> None:
    loaded = load(SCENARIO, overrides)
    check_all(loaded)
    command = serve_command(loaded)
    engine = loaded.scenario.engine
    told = parser.parse_args(command.argv[2:])
    assert told.model_tag == "meta-llama/Llama-3.1-8B"
    for key in (*PLAIN_VALUES, *SWITCHES):
        assert getattr(told, key) == getattr(engine, key), key
    stock = engine.policy in ("fcfs", "priority")
    assert told.scheduling_policy == (engine.policy if stock else "priority")
    assert (told.scheduler_cls is None) == stock
    speculative = engine.speculative
    assert (told.speculative_config or {}).get("method") == (speculative and speculative.method)
    synchronous = not engine.async_scheduling or engine.pipeline_parallel_size > 1
    assert told.async_scheduling == (not synchronous)
    if engine.dtype in ("fp8", "int8"):
        from vllm.model_executor.layers.quantization import get_quantization_config

        assert get_quantization_config(told.quantization) is not None
    else:
        assert told.quantization is None


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_parser_takes_every_scenario(parser: Any, path: Path) -> None:
    command = serve_command(load(path))
    told = parser.parse_args(command.argv[2:])
    assert told.max_num_seqs == load(path).scenario.engine.max_num_seqs


def test_the_class_and_the_variables_are_those_of_the_plugin() -> None:
    from ruamel.yaml import YAML
    from vllm.utils.import_utils import resolve_obj_by_qualname
    from vllm.v1.core.sched.scheduler import Scheduler

    from policies import vllm_settings
    from policies.vllm_settings import build, read_settings

    command = serve_command(load(ROOT / "scenarios/multi_tenant_tiers.yaml"))
    flags = dict(group for group in command.arguments if len(group) == 2)
    assert issubclass(resolve_obj_by_qualname(flags["--scheduler-cls"]), Scheduler)
    assert set(command.environment) <= set(vllm_settings.VARIABLES)
    policy = build(read_settings(command.environment, YAML(typ="safe").load))
    assert policy.name == "tiered"
    assert policy.predictor.name == "class_mean"
    assert policy.age_promote_s == 60


def test_an_engine_is_configured_as_simulated(parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole configuration that vLLM derives, for the scenario that it can run on a CPU."""
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    loaded = load(ROOT / "scenarios/live_smoke.yaml")
    engine = loaded.scenario.engine
    told = parser.parse_args(serve_command(loaded).argv[2:])
    told.model = told.model_tag
    config = EngineArgs.from_cli_args(told).create_engine_config()
    scheduler, cache = config.scheduler_config, config.cache_config
    assert scheduler.policy == "priority"
    assert scheduler.scheduler_cls == "policies.vllm_plugin.PolicyScheduler"
    for key in ("max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "watermark", "async_scheduling"):
        assert getattr(scheduler, key) == getattr(engine, key), key
    assert config.model_config.max_model_len == engine.max_model_len
    assert cache.block_size == engine.block_size
    assert cache.num_gpu_blocks_override == engine.num_gpu_blocks_override
    assert cache.enable_prefix_caching == engine.enable_prefix_caching
