"""Checks between keys: notes about keys without effect, and the limits that vLLM has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engines import SIZES

from sim.checks.all_checks import check_all
from sim.checks.loading import load_data
from sim.errors import InputError
from sim.latency import hf_config
from sim.latency.model_spec import ModelSpec
from sim.latency.models import MODELS

DATA: dict[str, Any] = {
    "name": "x",
    "workload": {
        "requests": 100,
        "arrival": {"process": "poisson", "rate": 4},
        "input_tokens": {"dist": "fixed", "value": 512},
        "output_tokens": {"dist": "fixed", "value": 128},
    },
    "engine": {"model": "llama-2-7b", "gpu": "a100-80gb-sxm", **SIZES},
}

FUSE = ("engine.compilation_config={pass_config: {fuse_allreduce_rms: true}}",)
CAPTURE = "engine.compilation_config={max_cudagraph_capture_size: 64}"
TP_2 = "engine.tensor_parallel_size=2"
NO_FUSION = "`engine.compilation_config.pass_config.fuse_allreduce_rms` has no effect:"
NO_CAPTURE = "`engine.compilation_config.max_cudagraph_capture_size` has no effect:"
MOE = ("engine.model=qwen3-30b-a3b", "engine.gpu=h200-sxm")


def notes(*overrides: str) -> list[str]:
    loaded = load_data(DATA, overrides)
    check_all(loaded)
    check_all(loaded)
    return loaded.notes


def problems(*overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        check_all(load_data(DATA, overrides))
    return [problem.message for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["engine.swap_space_gib=8"], "`engine.swap_space_gib` has no effect"),
        (["engine.static_batch_wait_s=1"], "`engine.static_batch_wait_s` has no effect"),
        (
            ["engine.long_prefill_token_threshold_adaptive=true"],
            "`engine.long_prefill_token_threshold_adaptive` has no",
        ),
        (["engine.max_prefill_tokens_per_step=4096"], "`engine.max_prefill_tokens_per_step` has no effect"),
        (["engine.predictor=max_tokens"], "`engine.predictor` has no effect: policy fcfs"),
        (["cluster.router=least_kv"], "`cluster.router` has no effect: there is one replica"),
        (["latency.step_s=1"], "`latency.step_s` has no effect: it belongs to `kind: constant`"),
        (["latency={kind: constant, step_s: 1, host_overhead_ms: 1}"], "`latency.host_overhead_ms` has no effect"),
        (["latency={kind: roofline, profile: a100-80gb-sxm}"], "`latency.profile` has no effect"),
        (["engine.enable_expert_parallel=true"], "`engine.enable_expert_parallel` has no effect: llama-2-7b has no"),
        (
            ["engine.all2all_backend=deepep_high_throughput"],
            "`engine.all2all_backend` has no effect: llama-2-7b has no",
        ),
        (["latency.expert_load_imbalance=1.5"], "`latency.expert_load_imbalance` has no effect: no GPU has experts of"),
        (
            [*MOE, "engine.enable_expert_parallel=true"],
            "`engine.enable_expert_parallel` has no effect: tensor_parallel",
        ),
        (
            [*MOE, "engine.all2all_backend=deepep_high_throughput"],
            "`engine.all2all_backend` has no effect: data_parallel_size is 1",
        ),
        (
            [*MOE, "engine.data_parallel_size=2", "engine.all2all_backend=deepep_high_throughput"],
            "`engine.all2all_backend` has no effect: without enable_expert_parallel",
        ),
        (
            [*MOE, "engine.data_parallel_size=2", "latency.expert_load_imbalance=1.5"],
            "`latency.expert_load_imbalance` has no effect: no GPU has experts of",
        ),
        ([*MOE, "engine.data_parallel_size=16"], "experts are spread over 16 GPUs: their links are taken"),
        (["engine.preemption=swap"], "preemption: swap runs without asynchronous scheduling"),
        (["engine.preemption=swap", "engine.batching=static"], "preemption: swap and batching: static run without"),
        (
            ["latency={kind: constant, step_s: 1}", "engine.pipeline_parallel_size=2", "engine.async_scheduling=false"],
            "`latency.kind: constant` knows no stages: the 2 batches",
        ),
        (["engine.speculative={method: ngram}"], "speculative decoding with n-grams runs without asynchronous"),
        (
            [
                "latency={kind: constant, step_s: 1}",
                "engine.speculative={method: draft_model, draft_model: llama-2-7b}",
            ],
            "`latency.kind: constant`: drafting takes no time",
        ),
        ([*FUSE, "latency={kind: constant, step_s: 1}", TP_2], f"{NO_FUSION} it belongs to `kind: profile`"),
        ([*FUSE, "latency={kind: roofline}", TP_2], f"{NO_FUSION} it belongs to `kind: profile`"),
        (FUSE, f"{NO_FUSION} tensor_parallel_size is 1"),
        ([*FUSE, TP_2], f"{NO_FUSION} vLLM has no such kernel for 2 x a100-80gb-sxm"),
        (
            [*FUSE, TP_2, "engine.gpu=h200-sxm", "engine.enforce_eager=true"],
            f"{NO_FUSION} enforce_eager compiles nothing",
        ),
        ([CAPTURE, "engine.enforce_eager=true"], f"{NO_CAPTURE} enforce_eager captures no CUDA graphs"),
        (
            [CAPTURE, "latency={kind: constant, step_s: 1}", "engine.num_gpu_blocks_override=1000"],
            f"{NO_CAPTURE} constant times",
        ),
        (
            [CAPTURE, "latency={kind: constant, step_s: 1}", "engine.vllm_version=0.15.1"],
            f"{NO_CAPTURE} constant times",
        ),
        (
            ["engine.num_gpu_blocks_override=1000", "engine.kv_cache_memory_bytes=10000000000"],
            "`engine.kv_cache_memory_bytes` has no effect: num_gpu_blocks_override says how many",
        ),
        (["engine.max_num_seqs=1", "engine.max_model_len=1024"], "`engine.max_num_batched_tokens` (2048) is more than"),
    ],
)
def test_one_note(overrides: Sequence[str], start: str) -> None:
    (note,) = notes(*overrides)
    assert note.startswith(start)


@pytest.mark.parametrize(
    "overrides",
    [
        (*FUSE, TP_2, "engine.gpu=h200-sxm"),
        (CAPTURE,),
        # the memory plan counts graphs, whatever a step takes
        (CAPTURE, "latency={kind: constant, step_s: 1}"),
        ("engine.kv_cache_memory_bytes=10000000000",),
    ],
)
def test_keys_with_an_effect_are_not_noted(overrides: Sequence[str]) -> None:
    assert notes(*overrides) == []


def test_contiguous_kv_turns_two_settings_off() -> None:
    assert len(notes("engine.kv=contiguous")) == 2
    assert notes("engine.kv=contiguous", "engine.async_scheduling=false", "engine.enable_prefix_caching=false") == []


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["engine.swap_space_gib=4"],
        ["engine.preemption=swap", "engine.async_scheduling=false", "engine.swap_space_gib=8"],
        ["engine.policy=srtf", "engine.predictor=max_tokens"],
        ["cluster={replicas: 2, router: least_kv}"],
        ["cluster.router=vllm_dp", "engine.data_parallel_size=2"],
        ["engine.data_parallel_size=2", "engine.pipeline_parallel_size=2", "engine.async_scheduling=false"],
        ["latency={kind: constant, step_s: 1}"],
        ["engine.enable_chunked_prefill=false", "engine.max_num_batched_tokens=4096"],
    ],
)
def test_no_note_without_reason(overrides: Sequence[str]) -> None:
    assert notes(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["engine.max_num_seqs=2049"], "`engine.max_num_batched_tokens` (2048) is below `engine.max_num_seqs` (2049)"),
        (["engine.long_prefill_token_threshold=4097"], "`engine.long_prefill_token_threshold` (4097) is above"),
        (
            [
                *("engine.enable_chunked_prefill=false", "engine.max_num_batched_tokens=4096"),
                "engine.max_prefill_tokens_per_step=9",
            ],
            "`engine.max_prefill_tokens_",
        ),
        (
            ["engine.enable_chunked_prefill=false"],
            "`engine.max_num_batched_tokens` (2048) is below `engine.max_model_len` (4096), and without chunked",
        ),
        (
            ["engine.gpu=rtx-4090", "engine.model=llama-3.1-8b", "engine.max_model_len=131072"],
            "`engine.max_model_len`: a request of 131072 tokens needs 17.18 GB of KV cache per GPU, and llama-3.1-8b",
        ),
        (
            ["engine.speculative={method: draft_model}"],
            "`engine.speculative`: `method: draft_model` needs `draft_model`",
        ),
        (["latency.kind=constant"], "`latency.kind: constant` needs `step_s`"),
        (["latency={kind: constant, step_s: 1e-10}"], "`latency.step_s` is 1e-10 s, below the nanosecond"),
        (["latency.profile=a100-80gb"], "`latency.profile`: no profile 'a100-80gb'; did you mean 'a100-80gb-sxm'?"),
        (["latency.profile=mine.json"], "`latency.profile`: no profile file 'mine.json'"),
        (["latency.profile=h100-sxm"], "`latency.profile`: h100-sxm was measured on h100-sxm, but engine.gpu is"),
        (["workload.input_tokens.value=4096"], "`workload.input_tokens` is at least 4096"),
        (["workload.input_tokens={dist: uniform, low: 5000, high: 6000}"], "`workload.input_tokens` is at least 5000"),
        (
            ["workload.arrival={process: stages, stages: [{rate: 0, duration_s: 9}]}"],
            "every stage of `workload.arrival`",
        ),
        (["workload.requests=1e9", "workload.arrival.rate=1e6"], "`workload`: this arrival process would create"),
        (["workload.arrival.rate=1e-9"], "`workload`: arrivals would go on for 1e+11 s"),
        (
            ["workload.output_tokens={dist: quantiles, points: [[0, 0.5], [1, 9]]}"],
            "`workload.output_tokens` begins at 0.5",
        ),
        (["engine.model=llama-2-70b"], "`engine`: llama-2-70b in bfloat16 does not fit"),
        (
            [*MOE, "engine.data_parallel_size=2", "engine.preemption=swap"],
            "`engine.preemption: swap` does not go with data_parallel_size 2 of a model with experts",
        ),
        ([*MOE, "engine.data_parallel_size=5"], "`engine.data_parallel_size`: without enable_expert_parallel every"),
        (
            [
                *(*MOE, "engine.tensor_parallel_size=4", "engine.enable_expert_parallel=true"),
                "latency.expert_load_imbalance=4.5",
            ],
            "`latency.expert_load_imbalance` (4.5) is above 4",
        ),
    ],
)
def test_one_problem(overrides: Sequence[str], start: str) -> None:
    (message,) = problems(*overrides)
    assert message.startswith(start)


@pytest.mark.parametrize(
    "override",
    [
        "workload.input_tokens.value=4095",
        "workload.input_tokens={dist: uniform, low: 1, high: 1e6}",
        "engine.max_num_seqs=2048",
        "engine.long_prefill_token_threshold=4096",
        "workload.output_tokens={dist: quantiles, points: [[0, 0.6], [1, 9]]}",
    ],
)
def test_just_inside(override: str) -> None:
    check_all(load_data(DATA, [override]))


def test_several_problems_of_one_setting() -> None:
    messages = problems("engine.tensor_parallel_size=3")
    assert messages
    assert all(message.startswith("`engine.tensor_parallel_size`") for message in messages)


def test_a_model_that_does_not_fit_is_told_by_how_much() -> None:
    with pytest.raises(InputError, match=r"misses \d+\.\d GB"):
        check_all(load_data(DATA, ["engine.model=llama-2-70b"]))


def test_a_config_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> ModelSpec:
        read.append(path)
        return MODELS["llama-2-7b"]

    monkeypatch.setattr(hf_config, "read_model_config", counted)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    loaded = load_data(DATA, ["engine.model=config.json"], base_dir=tmp_path)
    read.clear()  # loading fills in what the engine leaves to its model
    planned = check_all(loaded)
    assert read == [tmp_path / "config.json"]
    assert planned.model is MODELS["llama-2-7b"]
    assert planned.gpu.name == DATA["engine"]["gpu"]
    assert planned.draft is None
    assert planned.memory == check_all(load_data(DATA)).memory


def test_what_is_wrong_elsewhere_is_told_too() -> None:
    """A slip in one section does not hide what the checks find in another."""
    messages = problems("workload.arrival.rate=-1", "engine.model=llama-2-70b", "cluster.router=nowhere")
    assert {message.split(" ")[0].strip(":") for message in messages} == {
        "`cluster.router`",
        "`engine`",
        "`workload.arrival.rate`",
    }
    assert len(messages) == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "input_tokens={dist: normal, mean: 100, cv: 1}",
            "`workload.input_tokens`: normal lengths of mean 100 that are "
            "at least 1 are 108 in the mean; to draw what is written, choose a smaller `cv`, or lognormal",
        ),
        (
            "output_tokens={dist: lognormal, mean: 300, cv: 1, max: 400}",
            "`workload.output_tokens`: lognormal lengths of "
            "mean 300 that are at most 400 are 231 in the mean; to draw what is written, raise `max`, or lower `mean`",
        ),
        ("input_tokens={dist: normal, mean: 100, cv: 0.5}", None),
        ("input_tokens={dist: lognormal, mean: 300, cv: 1, max: 3000}", None),
    ],
)
def test_a_mean_that_cutting_moves_is_noted(override: str, said: str | None) -> None:
    assert [note for note in notes(f"workload.{override}") if "in the mean" in note] == ([] if said is None else [said])


@pytest.mark.parametrize(("size", "remedy"), [(8, "choose 16"), (24, "choose 16 or 32")])
def test_a_block_that_vllm_refuses_on_nvidia_is_refused(size: int, remedy: str) -> None:
    (message,) = problems(f"engine.block_size={size}")
    assert message.startswith(f"`engine.block_size` ({size}) is no multiple of 16, as the attention kernels on a100")
    assert message.endswith(f"vLLM refuses to start; {remedy}")


@pytest.mark.parametrize("size", [16, 64])
def test_multiples_of_16_are_taken(size: int) -> None:
    check_all(load_data(DATA, [f"engine.block_size={size}"]))


@pytest.mark.parametrize(
    ("multiple", "size", "is_taken"), [(32, 16, False), (32, 64, True), (1, 3, True), (None, 8, False)]
)
def test_a_gpu_of_ones_own_says_what_its_kernels_take(multiple: int | None, size: int, is_taken: bool) -> None:
    gpu = {"name": "mine", "memory_gib": 80, "memory_bandwidth_gb_s": 2000, "fp16_tflops": 300}
    if multiple is not None:
        gpu["kv_block_multiple"] = multiple
    engine = {**DATA["engine"], "gpu": gpu, "block_size": size}
    if is_taken:
        check_all(load_data({**DATA, "engine": engine}))
        return
    with pytest.raises(InputError, match=r"`gpu\.kv_block_multiple` what its kernels take"):
        load_data({**DATA, "engine": engine})
