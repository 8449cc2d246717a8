"""``simrun vllm-args``: what it says, and what it refuses. That vLLM takes the flags: ``tests/live``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from sim.cli import main
from sim.latency.models import MODELS
from sim.live import vllm_args
from sim.scenario.schema import EngineConfig

SCENARIO = """\
name: served
workload:
  requests: 10
  arrival: {process: poisson, rate: 1.0}
  input_tokens: {dist: fixed, value: 100}
  output_tokens: {dist: fixed, value: 10}
engine:
  model: llama-3.1-8b
  gpu: h100-sxm
"""


def simrun(*argv: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "served.yaml"
    path.write_text(SCENARIO)
    return str(path)


def command(scenario: str, capsys: pytest.CaptureFixture[str], *overrides: str, model: str | None = None) -> Any:
    argv = [word for each in overrides for word in ("--set", each)]
    argv += [] if model is None else ["--model", model]
    assert simrun("vllm-args", scenario, "--json", *argv) == 0
    return json.loads(capsys.readouterr().out)


def flags(document: Any) -> dict[str, str | None]:
    """Flag -> value, None for a switch."""
    found: dict[str, str | None] = {}
    name = ""
    for word in document["argv"][3:]:
        if word.startswith("--"):
            name = word
            found[name] = None
        else:
            found[name] = word
    return found


def test_every_engine_setting_has_a_place() -> None:
    """A new key of ``engine`` is given a flag, or a reason why it has none, in ``sim/live/vllm_args.py``."""
    places = [
        *(vllm_args.PLAIN_VALUES, vllm_args.SWITCHES, vllm_args.SPECIAL),
        *(vllm_args.NOT_THE_ENGINES, vllm_args.REFUSED),
    ]
    placed = [key for place in places for key in place]
    assert sorted(placed) == sorted(EngineConfig.model_fields)


def test_every_preset_has_a_repository() -> None:
    assert set(vllm_args.REPOSITORIES) == set(MODELS)


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_a_repository_that_the_scenario_names_is_served(
    scenario: str, capsys: pytest.CaptureFixture[str], name: str, served: str
) -> None:
    assert command(scenario, capsys, f"engine.model={name}")["argv"][2] == served


def test_a_preset_without_a_repository_is_refused(
    scenario: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_args, "REPOSITORIES", {})
    assert simrun("vllm-args", scenario) == 2
    assert "no repository is known for `llama-3.1-8b`; give one by --model" in capsys.readouterr().err
    assert command(scenario, capsys, model="x/y")["argv"][2] == "x/y"


def test_settings_carry_over(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = command(
        *(scenario, capsys, "engine.max_num_seqs=17", "engine.watermark=0.05", "engine.enable_prefix_caching=false"),
        *("engine.tensor_parallel_size=2", "engine.num_gpu_blocks_override=999", "engine.policy=priority"),
    )
    assert document["argv"][:3] == ["vllm", "serve", "meta-llama/Llama-3.1-8B"]
    found = flags(document)
    assert found["--max-num-seqs"] == "17"
    assert found["--watermark"] == "0.05"
    assert found["--tensor-parallel-size"] == "2"
    assert found["--num-gpu-blocks-override"] == "999"
    assert found["--scheduling-policy"] == "priority"
    assert {"--no-enable-prefix-caching", "--async-scheduling", "--enable-chunked-prefill"} <= set(found)
    assert "--scheduler-cls" not in found
    assert document["environment"] == {}


def test_images_need_no_flag_and_are_cut_unless_that_is_off(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    served = (scenario, capsys, "engine.model=gemma-3-4b", "engine.enable_images=true")
    found = flags(command(*served, "workload.images={per_request: 2}"))
    assert not [flag for flag in found if "mm" in flag or "image" in flag]
    assert "--disable-chunked-mm-input" in flags(command(*served, "engine.disable_chunked_mm_input=true"))


def test_ranks_and_experts_carry_over(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = command(
        *(scenario, capsys, "engine.model=qwen3-30b-a3b", "engine.gpu=h200-sxm", "engine.data_parallel_size=4"),
        *("engine.enable_expert_parallel=true", "cluster.router=vllm_dp", "latency.expert_load_imbalance=1.5"),
    )
    found = flags(document)
    assert found["--data-parallel-size"] == "4"
    assert found["--all2all-backend"] == "allgather_reducescatter"
    assert "--enable-expert-parallel" in found
    assert any("4 ranks of 1 GPU each" in note and "as `vllm_dp` simulates" in note for note in document["notes"])


def test_the_text_is_the_same_command_for_a_shell(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    policy = "engine.policy={name: hybrid, latency_weight: 0.25}"
    document = command(scenario, capsys, policy)
    assert simrun("vllm-args", scenario, "--set", policy) == 0
    words = shlex.split(capsys.readouterr().out.replace("\\\n", " "), comments=True)
    environment = [f"{name}={value}" for name, value in document["environment"].items()]
    assert words == [*environment, *document["argv"]]


def test_the_module_form_names_the_model_by_a_flag(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = command(scenario, capsys)
    assert simrun("vllm-args", scenario, "--module") == 0
    words = shlex.split(capsys.readouterr().out.replace("\\\n", " "), comments=True)
    assert words == ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", *document["argv"][2:]]


def test_policies_go_to_the_plugin(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = command(scenario, capsys, "engine.policy={name: hybrid, latency_weight: 0.25}")
    found = flags(document)
    assert found["--scheduling-policy"] == "priority"
    assert found["--scheduler-cls"] == "policies.vllm_plugin.PolicyScheduler"
    assert json.loads(document["environment"]["SIMRUN_POLICY"]) == {"name": "hybrid", "latency_weight": 0.25}
    assert document["environment"]["SIMRUN_PREDICTOR"] == "exact"
    assert any("true length" in note for note in document["notes"])


def test_class_means_go_along(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = command(scenario, capsys, "engine.policy=sjf", "engine.predictor=class_mean")
    assert json.loads(document["environment"]["SIMRUN_PREDICTOR"]) == {"name": "class_mean", "means": {"default": 10.0}}


def test_a_policy_without_predictor_gets_none(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(command(scenario, capsys, "engine.policy=adaptive")["environment"]) == {"SIMRUN_POLICY"}


def test_the_seed_goes_with_what_is_drawn(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = command(scenario, capsys, "seed=7", "engine.policy=sjf", "engine.predictor={name: noisy, sigma: 0.3}")
    assert document["environment"]["SIMRUN_SEED"] == "7"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("engine.preemption=swap", "engine.preemption: swap"),
        ("engine.kv=contiguous", "engine.kv: contiguous"),
        ("engine.batching=static", "engine.batching: static"),
        ("engine.max_prefill_tokens_per_step=512", "max_prefill_tokens_per_step: 512"),
        ("engine.policy=packed", "vLLM cannot run the policy packed"),
        ("engine.policy={name: fair, shares: true}", "vLLM cannot run the policy fair"),
        ("engine.dtype=int4", "name a quantised one by --model"),
        ("engine.kv_cache_dtype=float32", "runs in bfloat16"),
    ],
)
def test_what_vllm_lacks_is_refused_by_name(
    scenario: str, capsys: pytest.CaptureFixture[str], override: str, expected: str
) -> None:
    assert simrun("vllm-args", scenario, "--set", override) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""


def test_every_refusal_at_once_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "served.yaml"
    path.write_text(SCENARIO + "  preemption: swap\n  policy: packed\n")
    assert simrun("vllm-args", str(path)) == 2
    error = capsys.readouterr().err
    assert f"{path}:10:15: vLLM cannot do `engine.preemption: swap`" in error
    assert f"{path}:11:11: vLLM cannot run the policy packed" in error


def test_the_type_of_a_float16_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2}
    more = {"intermediate_size": 256, "vocab_size": 1000, "max_position_embeddings": 8192, "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(shape | more))
    path = tmp_path / "served.yaml"
    path.write_text(SCENARIO.replace("llama-3.1-8b", ".") + "  dtype: auto\n  kv_cache_dtype: float32\n")
    assert simrun("vllm-args", str(path)) == 2
    assert "this one runs in float16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "model", "expected"),
    [
        (["engine.dtype=fp8"], None, {"--dtype": "auto", "--quantization": "fp8"}),
        (["engine.dtype=int4"], "x/Llama-AWQ", {"--dtype": "auto"}),
        (
            ["engine.dtype=float16", "engine.kv_cache_dtype=fp8"],
            None,
            {"--dtype": "float16", "--kv-cache-dtype": "fp8"},
        ),
        (["engine.kv_cache_dtype=int8"], None, {"--kv-cache-dtype": "int8_per_token_head"}),
        (["engine.moe_backend=triton"], None, {"--moe-backend": "triton"}),
        (
            ["engine.kv_offloading_size=62.5"],
            None,
            {"--kv-offloading-size": "62.5", "--kv-offloading-backend": "native"},
        ),
        (["engine.dtype=float32", "engine.kv_cache_dtype=float32"], None, {"--kv-cache-dtype": "auto"}),
    ],
)
def test_number_formats(
    scenario: str, capsys: pytest.CaptureFixture[str], overrides: list[str], model: str | None, expected: dict[str, str]
) -> None:
    document = command(scenario, capsys, *overrides, model=model)
    assert expected.items() <= flags(document).items()
    assert ("--quantization" in flags(document)) == ("--quantization" in expected)
    if model is not None:
        assert document["argv"][2] == model


def test_pipelines_and_baselines_schedule_synchronously(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--no-async-scheduling" in flags(command(scenario, capsys, "engine.pipeline_parallel_size=2"))


def test_drafts_become_vllms_own_setting(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    drafted = "{method: draft_model, draft_model: llama-3.2-1b, num_speculative_tokens: 5}"
    given = flags(command(scenario, capsys, "engine.tensor_parallel_size=2", f"engine.speculative={drafted}"))
    assert json.loads(given["--speculative-config"] or "") == {
        "method": "draft_model",
        "model": "meta-llama/Llama-3.2-1B",
        "num_speculative_tokens": 5,
        "draft_tensor_parallel_size": 2,
    }
    assert "--async-scheduling" in given
    ngram = flags(command(scenario, capsys, "engine.speculative={method: ngram, num_speculative_tokens: 2}"))
    assert json.loads(ngram["--speculative-config"] or "") == {"method": "ngram", "num_speculative_tokens": 2}
    assert "--no-async-scheduling" in ngram
    head = command(scenario, capsys, "engine.speculative={method: eagle3, num_speculative_tokens: 3}")
    assert json.loads(flags(head)["--speculative-config"] or "") == {
        "method": "eagle3",
        "model": vllm_args.EAGLE_HEAD,
        "num_speculative_tokens": 3,
        "draft_tensor_parallel_size": 1,
    }
    assert any(vllm_args.EAGLE_HEAD in note for note in head["notes"])
    assert "--async-scheduling" in flags(head)
    assert "--speculative-config" not in flags(command(scenario, capsys))


def test_fused_kernels_and_graphs_are_passed_on(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = "{max_cudagraph_capture_size: 1024, pass_config: {fuse_allreduce_rms: false}}"
    given = flags(command(scenario, capsys, f"engine.compilation_config={told}"))
    assert json.loads(given["--compilation-config"] or "") == {
        "max_cudagraph_capture_size": 1024,
        "pass_config": {"fuse_allreduce_rms": False},
    }
    assert "--compilation-config" not in flags(command(scenario, capsys))


def test_replicas_are_told_not_hidden(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = command(scenario, capsys, "cluster.replicas=4", "cluster.router=least_kv")
    assert any("start 4 of these" in note and "least_kv" in note for note in document["notes"])


def test_salts_that_clients_must_send_are_told(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = command(scenario, capsys, "engine.cache_isolation=tenant")
    assert any("cache_salt" in note for note in document["notes"])
    assert not any("cache_salt" in note for note in command(scenario, capsys)["notes"])


def test_a_folder_without_weights_gets_made_up_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((root / "scenarios/data/tiny-llama/config.json").read_text())
    path = tmp_path / "served.yaml"
    path.write_text(SCENARIO.replace("llama-3.1-8b", "model/config.json"))
    document = command(str(path), capsys, "engine.max_model_len=1024")
    assert document["argv"][2] == str(folder)
    assert flags(document)["--load-format"] == "dummy"
    (folder / "model.safetensors").write_bytes(b"")
    assert "--load-format" not in flags(command(str(path), capsys, "engine.max_model_len=1024"))


def test_a_block_that_nvidia_gpus_do_not_take_is_refused(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simrun("vllm-args", scenario, "--set", "engine.block_size=24") == 2
    assert "`engine.block_size` (24) is no multiple of 16, as the attention kernels on h100" in capsys.readouterr().err
    assert flags(command(scenario, capsys, "engine.block_size=32"))["--block-size"] == "32"
