"""``simrun import-args``: the scenario of a command line, there and back, and what it says that it leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from sim.checks.all_checks import check_all
from sim.cli import main
from sim.errors import InputError
from sim.live.import_args import PLACEHOLDER, import_command
from sim.live.vllm_args import SCHEDULER_CLS, serve_command
from sim.run import load

SERVE = "vllm serve meta-llama/Llama-3.1-8B-Instruct"


def engine(command: str) -> dict[str, Any]:
    found = import_command(command, "h100-sxm")
    assert found.left_out == []
    return {key: value for key, value in found.engine.items() if key not in ("model", "gpu")}


def simrun(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", {}),
        (
            "-tp 2 -pp=2 -dp 4 -ep",
            {
                "tensor_parallel_size": 2,
                "pipeline_parallel_size": 2,
                "data_parallel_size": 4,
                "enable_expert_parallel": True,
            },
        ),
        ("--max_model_len=16k --max-num-batched-tokens 8K", {"max_model_len": 16000, "max_num_batched_tokens": 8192}),
        ("--no-enable-prefix-caching --enforce-eager", {"enable_prefix_caching": False, "enforce_eager": True}),
        ("--no-async-scheduling --watermark 0.05", {"async_scheduling": False, "watermark": 0.05}),
        ("--enable-chunked-prefill=false", {"enable_chunked_prefill": False}),
        ("--dtype half --kv-cache-dtype fp8_e4m3", {"dtype": "float16", "kv_cache_dtype": "fp8"}),
        ("--moe-backend triton", {"moe_backend": "triton"}),
        ("--quantization fp8 --dtype auto", {"dtype": "fp8"}),
        ("--scheduling-policy priority", {"policy": "priority"}),
        (
            """--speculative-config '{"method": "ngram", "num_speculative_tokens": 4}'""",
            {"speculative": {"method": "ngram", "num_speculative_tokens": 4}},
        ),
        (
            """--speculative-config '{"method": "deepseek_mtp", "num_speculative_tokens": 1}'""",
            {"speculative": {"method": "mtp", "num_speculative_tokens": 1}},
        ),
        (
            """--max-cudagraph-capture-size 2048 --compilation_config.pass_config.fuse_allreduce_rms true""",
            {"compilation_config": {"max_cudagraph_capture_size": 2048, "pass_config": {"fuse_allreduce_rms": True}}},
        ),
        (
            """-cc '{"pass_config": {"fuse_allreduce_rms": false}, "max_cudagraph_capture_size": 64}'""",
            {"compilation_config": {"max_cudagraph_capture_size": 64, "pass_config": {"fuse_allreduce_rms": False}}},
        ),
        (
            "-cc.pass_config.fuse_allreduce_rms=True --compilation-config.max_cudagraph_capture_size 1k",
            {"compilation_config": {"max_cudagraph_capture_size": 1000, "pass_config": {"fuse_allreduce_rms": True}}},
        ),
        ("--gpu-memory-utilization .95", {"gpu_memory_utilization": 0.95}),
        ("--enable-lora --max-loras 4 --max-lora-rank 32", {"enable_lora": True, "max_loras": 4, "max_lora_rank": 32}),
        ("--disable-chunked-mm-input", {"disable_chunked_mm_input": True}),
        ("--kv-offloading-size 100", {"kv_offloading_size": 100}),
        (
            "--kv-offloading-size=62.5 --kv-offloading-backend native",
            {"kv_offloading_size": 62.5, "kv_offloading_backend": "native"},
        ),
        ("--host 0.0.0.0 --port 80 --trust-remote-code --seed -1", {}),
    ],
)
def test_flags_become_settings(flags: str, expected: dict[str, Any]) -> None:
    assert engine(f"{SERVE} {flags}") == expected


@pytest.mark.parametrize(
    "command",
    [
        "python3 -m vllm.entrypoints.openai.api_server --model Qwen/Qwen3-8B --max-num-seqs 64",
        "CUDA_VISIBLE_DEVICES=0 /opt/bin/vllm serve --max-num-seqs 64 Qwen/Qwen3-8B",
        "export A=1\nexec vllm serve Qwen/Qwen3-8B \\\n  --max-num-seqs=64  # few\n",
        "docker run --gpus all image vllm serve Qwen/Qwen3-8B --max-num-seqs 64",
        "python -m vllm.entrypoints.cli.main serve Qwen/Qwen3-8B --max-num-seqs 64 2>&1 | tee log",
        "nohup vllm serve Qwen/Qwen3-8B --max-num-seqs 64 > vllm.log 2>&1 &",
        "cd /srv && vllm serve Qwen/Qwen3-8B --max-num-seqs 64",
        "bash -c 'exec vllm serve Qwen/Qwen3-8B --max-num-seqs 64 && echo done'",
    ],
)
def test_forms_of_the_command(command: str) -> None:
    found = import_command(command, "h200-sxm")
    told = {"model": "Qwen/Qwen3-8B", "gpu": "h200-sxm", "max_num_seqs": 64}
    assert found.engine == told


RUN = "sudo docker run --runtime nvidia --gpus all -v ~/.cache:/root/.cache -e HF_TOKEN=s3cret -p 8000:8000 --ipc=host"


@pytest.mark.parametrize(
    ("command", "version", "left_out"),
    [
        ("vllm/vllm-openai:v0.15.1 --model Qwen/Qwen3-8B", "0.15.1", []),
        ("--entrypoint vllm registry.local/mirror/vllm-openai:0.23.0 serve Qwen/Qwen3-8B", "0.23.0", []),
        ("vllm/vllm-openai:v0.15.1@sha256:0123abc Qwen/Qwen3-8B", "0.15.1", []),
        ("vllm/vllm-openai:v0.15.1 -m vllm.entrypoints.openai.api_server --model Qwen/Qwen3-8B", "0.15.1", []),
        ("vllm/vllm-openai:latest --model Qwen/Qwen3-8B", None, ["latest"]),
        ("vllm/vllm-openai --model Qwen/Qwen3-8B", None, ["vllm/vllm-openai"]),
        ("vllm/vllm-openai:v0.6.3 --model Qwen/Qwen3-8B", None, ["v0.6.3"]),
    ],
)
def test_a_container_is_read_as_what_runs_in_it(command: str, version: str | None, left_out: list[str]) -> None:
    found = import_command(f"{RUN} {command} --max-num-seqs 64", "h200-sxm")
    told = {"model": "Qwen/Qwen3-8B", "gpu": "h200-sxm", "max_num_seqs": 64}
    assert found.engine == {**told, **({} if version is None else {"vllm_version": version})}
    assert found.left_out == [f"the image's version {each!r}: vLLM 0.32.0 is simulated" for each in left_out]
    assert "s3cret" not in str(found)


def test_variables_of_a_container_are_read() -> None:
    flags = f"--scheduling-policy priority --scheduler-cls {SCHEDULER_CLS}"
    command = f"podman run -e SIMRUN_POLICY=sjf --env=SIMRUN_PREDICTOR=max_tokens vllm/vllm-openai:v0.32.0 {SERVE[11:]}"
    engine = import_command(f"{command} {flags}", "h100-sxm").engine
    assert (engine["policy"], engine["predictor"]) == ("sjf", "max_tokens")


@pytest.mark.parametrize(
    ("model", "preset", "stored"),
    [
        ("RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8", "llama-3.1-70b", "fp8"),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "llama-3.1-8b", "int8"),
        ("Qwen/Qwen3-32B-FP8", "qwen3-32b", "fp8_block"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5-7b", "int4"),
    ],
)
def test_a_quantised_repository_is_its_preset_in_that_format(model: str, preset: str, stored: str) -> None:
    """From the command line to the memory plan, and back to a command line that asks for no other format."""
    found = import_command(
        f"vllm serve {model} -tp 4 --quantization fp8" if "fp8" in stored else f"vllm serve {model}", "h100-sxm"
    )
    assert (found.left_out, "dtype" in found.engine) == ([], False)
    loaded = load(found.document())
    planned = check_all(loaded)
    assert (planned.model.name, planned.model.dtype) == (preset, stored)
    plain = check_all(load(found.document(), [f"engine.model={preset}", "engine.tensor_parallel_size=4"]))
    size = {"fp8": 0.5, "fp8_block": 0.5, "int8": 0.5, "int4": 0.25}[stored]
    matrices = planned.memory.weights_bytes * loaded.scenario.engine.tensor_parallel_size
    assert size * 0.9 < matrices / (plain.memory.weights_bytes * 4) < size + 0.2
    command = serve_command(loaded)
    assert command.argv[2] == model
    assert "--quantization" not in command.argv
    again = serve_command(load(found.document(), ["engine.dtype=fp8"])) if "fp8" in stored else command
    assert "--quantization" not in again.argv


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("TheBloke/Llama-2-7B-AWQ", "or `model: llama-2-7b` with `dtype: int4` if it is that"),
        ("Meta-Llama-3.1-8B-Instruct-FP8", "or `model: llama-3.1-8b` with `dtype: fp8` if it is that"),
        ("nvidia/Llama-3.1-70B-Instruct-NVFP4", "nor is that format simulated; give the path of its config.json"),
        ("Qwen/Qwen3-4B-AWQ", "how that repository stores its weights is not known; give the path of its config.json"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "says gptq int8, and how that repository stores its weights"),
    ],
)
def test_other_quantised_repositories_are_never_read_as_something_near(model: str, told: str) -> None:
    with pytest.raises(InputError) as raised:
        load(import_command(f"vllm serve {model}", "h100-sxm").document())
    (problem,) = raised.value.problems
    assert told in str(problem)
    assert "did you mean" not in str(problem)


def test_the_repository_of_an_eagle_head_is_left_out() -> None:
    told = """--speculative-config '{"method": "eagle3", "model": "some/head", "num_speculative_tokens": 2}'"""
    found = import_command(f"{SERVE} {told}", "h100-sxm")
    assert found.document()["engine"]["speculative"] == {"method": "eagle3", "num_speculative_tokens": 2}
    assert found.left_out == ["the model of --speculative-config (some/head)"]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("engine.max_num_seqs=17", "engine.watermark=0.05", "engine.enable_prefix_caching=false"),
        ("engine.dtype=fp8", "engine.kv_cache_dtype=int8", "engine.async_scheduling=false"),
        ("engine.policy={name: tiered, age_promote_s: 5, output_weight: 3}", "engine.predictor=max_tokens"),
        ("engine.speculative={method: draft_model, draft_model: llama-3.2-1b, num_speculative_tokens: 4}",),
    ],
)
def test_there_and_back(overrides: tuple[str, ...]) -> None:
    data = {"name": "x", "workload": dict(PLACEHOLDER), "engine": {"model": "llama-3.1-8b", "gpu": "h100-sxm"}}
    loaded = load(data, overrides)
    check_all(loaded)
    found = import_command(serve_command(loaded).shell(), "h100-sxm")
    assert found.left_out == []
    back = load(found.document()).scenario.engine
    there = loaded.scenario.engine
    assert serve_command(load(found.document())).argv == serve_command(loaded).argv
    other = {"model", "speculative"}
    assert back.model_dump(exclude=other) == there.model_dump(exclude=other)


@pytest.mark.parametrize("gpu", ["a100-80gb-sxm", "h100-sxm", "b200-sxm", "rtx-pro-6000"])
@pytest.mark.parametrize("given", ["", "--max-model-len 4k", "--max-num-seqs 64", "--no-enable-chunked-prefill"])
def test_what_a_command_leaves_out_is_filled_in_alike_on_both_sides(given: str, gpu: str) -> None:
    """A bare command, its scenario, the command of that with every value in it, and its scenario again."""
    found = import_command(f"{SERVE} {given}", gpu)
    loaded = load(found.document())
    check_all(loaded)
    there = loaded.scenario.engine
    command = serve_command(loaded)
    flags = dict(group for group in command.arguments if len(group) == 2)
    assert "gpu_memory_utilization" not in found.engine
    assert there.gpu_memory_utilization == 0.92
    for key in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization"):
        assert flags[f"--{key.replace('_', '-')}"] == str(getattr(there, key))
    assert flags["--dtype"] == there.dtype == "bfloat16"
    again = import_command(command.shell(), gpu)
    told = {"max_model_len", "max_num_seqs", "max_num_batched_tokens", "dtype", "gpu_memory_utilization"}
    assert told <= set(again.engine)
    assert load(again.document()).scenario.engine.model_dump() == there.model_dump()


@pytest.mark.parametrize("value", ["auto", "-1"])
def test_a_length_that_vllm_fits_to_its_memory_is_left_out(value: str) -> None:
    found = import_command(f"{SERVE} --max-model-len {value}", "h100-sxm")
    assert found.left_out == [f"--max-model-len {value}"]
    assert "max_model_len" not in found.engine


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            "--compilation-config.cudagraph_mode FULL_DECODE_ONLY",
            "--compilation-config.cudagraph_mode FULL_DECODE_ONLY",
        ),
        ("-cc.cudagraph_mode=FULL", "--compilation-config.cudagraph_mode FULL"),
        ("--compilation_config.mode 3", "--compilation-config.mode 3"),
        ("-cc.pass_config.fuse_norm_quant=true", "--compilation-config.pass_config.fuse_norm_quant true"),
        ("-cc.a.b.fuse_allreduce_rms 1", "--compilation-config.a.b.fuse_allreduce_rms 1"),
    ],
)
def test_keys_of_compilation_that_are_not_modelled_are_left_out_as_they_were_spelled(given: str, shown: str) -> None:
    found = import_command(f"{SERVE} {given} --max-num-seqs 8", "h100-sxm")
    assert found.left_out == [shown]
    assert "compilation_config" not in found.engine
    assert found.engine["max_num_seqs"] == 8


def test_what_is_left_out_is_said_and_secrets_are_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = "--api-key s3cret --compilation-config '{\"mode\": 3}' --kv-cache-dtype fp8_e5m2 --lora-modules sql=/a"
    assert simrun("import-args", f"{SERVE} {flags}", "--gpu", "h100-sxm") == 0
    out, err = capsys.readouterr()
    left_out = ["""--compilation-config '{"mode": 3}'""", "--kv-cache-dtype fp8_e5m2", "--lora-modules sql=/a"]
    assert sorted(err.splitlines()) == sorted(f"simrun: note: left out: {each}" for each in left_out)
    for each in left_out:
        assert f"# left out: {each}\n" in out
    assert "# of no matter here: --api-key\n" in out
    assert "s3cret" not in out + err
    told = "max_model_len 131072, max_num_seqs 1024, max_num_batched_tokens 8192, dtype bfloat16, "
    told += "gpu_memory_utilization 0.92"
    assert f"# not in the command line, so that vLLM's defaults count: {told}\n" in out
    (tmp_path / "s.yaml").write_text(out)
    assert load(tmp_path / "s.yaml").scenario.engine.model == "meta-llama/Llama-3.1-8B-Instruct"
    assert simrun("import-args", f"{SERVE} {flags}", "--gpu", "h100-sxm", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scenario"] == YAML(typ="safe").load(out)
    assert sorted(told["left_out"]) == sorted(left_out)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "no `vllm serve` in it"),
        ("vllm bench serve --model x", "no `vllm serve` in it"),
        ("vllm serve", "the command names no model"),
        ("vllm serve --port 80", "the command names no model"),
        ("vllm serve 'x", "not a command line: no closing quotation"),
        (f"{SERVE} --max-num-seqs many", "--max-num-seqs many: expected a number"),
        (f"{SERVE} --max-num-seqs", "--max-num-seqs is without a value"),
        (f"{SERVE} --max-num-seqs=", "--max-num-seqs is without a value"),
        (f"{SERVE} --scheduling-policy --port 80", "--scheduling-policy is without a value"),
        (f"{SERVE} --dtype= --port 80", "--dtype is without a value"),
        (f"{SERVE} --kv-cache-dtype", "--kv-cache-dtype is without a value"),
        (f"{SERVE} --speculative-config {{x", "--speculative-config: not JSON"),
        (f"{SERVE} --max-num-seqs 0", "`engine.max_num_seqs` is 0"),
        (f"{SERVE} --scheduling-policy best", "unknown policy 'best'"),
        ("vllm serve some/model", "'some/model' is neither a model preset"),
    ],
)
def test_what_cannot_be_imported_is_one_line(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun("import-args", command, "--gpu", "h100-sxm") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_model_of_ones_own_takes_the_commands_place() -> None:
    assert import_command("vllm serve some/model -tp 2", "h100-sxm", "qwen3-8b").engine["model"] == "qwen3-8b"
    with pytest.raises(InputError, match="names no model"):
        import_command("vllm serve", "h100-sxm")
