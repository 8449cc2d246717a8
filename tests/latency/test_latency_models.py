"""Presets against published totals; what load_model accepts and how it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim.errors import InputError
from sim.latency.hub_names import REPOSITORIES, preset_of
from sim.latency.models import MODELS, load_model

# Billions of parameters as the model cards (safetensors totals) state them.
PUBLISHED = {
    "llama-2-7b": 6.738,
    "llama-2-13b": 13.016,
    "llama-2-70b": 68.977,
    "llama-3-8b": 8.030,
    "llama-3-70b": 70.554,
    "llama-3.1-8b": 8.030,
    "llama-3.1-70b": 70.554,
    "llama-3.1-405b": 405.85,
    "llama-3.2-1b": 1.236,
    "llama-3.2-3b": 3.213,
    "llama-3.3-70b": 70.554,
    "codellama-34b": 33.744,
    "qwen2.5-7b": 7.616,
    "qwen2.5-14b": 14.770,
    "qwen2.5-32b": 32.764,
    "qwen2.5-72b": 72.706,
    "qwen3-8b": 8.191,
    "qwen3-14b": 14.768,
    "qwen3-32b": 32.762,
    "qwen3-30b-a3b": 30.532,
    "minimax-m2.5": 228.70,
    "mistral-7b": 7.242,
    "mistral-7b-v0.3": 7.248,
    "mistral-nemo-12b": 12.248,
    "llama-4-scout-17b-16e": 107.77,
    "mixtral-8x7b": 46.703,
    "mixtral-8x22b": 140.621,
    "gpt-oss-20b": 20.91,
    "gpt-oss-120b": 116.83,
    "deepseek-v3": 671.03,
    "deepseek-r1": 671.03,
    "deepseek-v3.2": 671.88,
    "kimi-k2": 1026.4,
    "kimi-k2.5": 1026.4,
    "qwen3-235b-a22b": 235.09,
    "qwen3-next-80b-a3b": 79.67,
    "gemma-7b": 8.538,
    "gemma-2-9b": 9.242,
    "gemma-2-27b": 27.227,
    "gemma-3-4b": 4.300,
    "gemma-3-12b": 12.187,
    "gemma-3-27b": 27.432,
    "glm-5": 744.0,
    "llama-4-maverick-17b-128e": 400.71,
    "mistral-small-3.2-24b": 24.011,
    "phi-4": 14.660,
    "nemotron-3-nano-30b-a3b": 31.578,
}
BY_NAME = {
    "qwen3.5-27b": 27.0,
    "qwen3.5-35b-a3b": 35.0,
    "qwen3.5-122b-a10b": 122.0,
    "qwen3.5-397b-a17b": 397.0,
    "gemma-4-31b": 31.0,
    "gemma-4-26b-a4b": 25.8,
}
"""Billions of parameters of the whole model as its name or card says them, to 2 %: no total at hand."""

LLAMA_31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}


def write(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def refusal(folder: Path, config: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        load_model(str(write(folder, config)))
    return str(error.value)


def test_every_preset_has_the_published_number_of_parameters() -> None:
    assert {*PUBLISHED, *BY_NAME} == set(MODELS)
    for name, billions in PUBLISHED.items():
        assert whole(name) == pytest.approx(billions, rel=0.002), name
    for name, billions in BY_NAME.items():
        assert whole(name) == pytest.approx(billions, rel=0.02), name


def whole(name: str) -> float:
    """Billions of parameters with the vision tower."""
    model = MODELS[name]
    return (model.num_parameters + (model.vision.parameters if model.vision else 0)) / 1e9


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("mixtral-8x7b", 12.9),
        ("mixtral-8x22b", 39.0),
        ("qwen3-30b-a3b", 3.3),
        ("llama-4-scout-17b-16e", 17.2),
        ("deepseek-v3", 37.5),
        ("gpt-oss-120b", 5.75),
    ],
)
def test_active_parameters_of_moe_models(name: str, billions: float) -> None:
    assert MODELS[name].num_active_parameters / 1e9 == pytest.approx(billions, rel=0.02)


def test_dense_models_use_all_parameters() -> None:
    model = MODELS["llama-2-7b"]
    assert model.num_active_parameters == model.num_parameters


def test_a_config_equals_its_preset(tmp_path: Path) -> None:
    path = write(tmp_path, LLAMA_31_8B)
    preset = MODELS["llama-3.1-8b"]
    for given in (str(path), str(tmp_path)):
        model = load_model(given)
        assert model.num_parameters == preset.num_parameters
        assert (model.num_kv_heads, model.head_size, model.notes) == (8, 128, ())
        assert model.name == tmp_path.name


def test_relative_paths_start_at_the_scenario(tmp_path: Path) -> None:
    write(tmp_path, LLAMA_31_8B)
    assert load_model("config.json", tmp_path).num_layers == 32


def test_moe_config_with_leading_dense_layers_and_shared_experts(tmp_path: Path) -> None:
    moe = {"n_routed_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
    extra = {"model_type": "glm4_moe", "n_shared_experts": 1, "first_k_dense_replace": 3}
    model = load_model(str(write(tmp_path, LLAMA_31_8B | moe | extra)))
    assert (model.num_experts, model.num_dense_layers, model.num_moe_layers) == (16, 3, 29)
    assert model.shared_expert_intermediate_size == 512
    experts = 29 * (4096 * 16 + 17 * 3 * 4096 * 512)
    attention = 32 * 2 * 4096 * (4096 + 1024)
    assert model.linear_parameters == attention + 3 * 3 * 4096 * 14336 + experts


def test_llama_4_has_a_shared_expert_and_layers_with_experts_at_a_step(tmp_path: Path) -> None:
    text = LLAMA_31_8B | {
        "model_type": "llama4_text",
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 8192,
    }
    scout = load_model(str(write(tmp_path, {"model_type": "llama4", "text_config": text})))
    assert (scout.num_experts, scout.experts_per_token, scout.num_dense_layers) == (16, 1, 0)
    assert (scout.moe_intermediate_size, scout.shared_expert_intermediate_size) == (8192, 8192)
    assert any("chunks of 8192 tokens" in note for note in scout.notes)
    every_other = load_model(str(write(tmp_path, text | {"interleave_moe_layer_step": 2})))
    assert (every_other.num_dense_layers, every_other.intermediate_size) == (16, 16384)
    assert [kind.experts is not None for kind in every_other.layer_list[:4]] == [False, True, False, True]
    listed = load_model(str(write(tmp_path, text | {"moe_layers": [1, 3, 5]})))
    assert listed.num_moe_layers == 3


def test_windows_that_are_switched_off_are_ignored(tmp_path: Path) -> None:
    config = LLAMA_31_8B | {"sliding_window": 4096}
    assert load_model(str(write(tmp_path, config))).sliding_window == 4096
    assert load_model(str(write(tmp_path, config | {"use_sliding_window": False}))).sliding_window is None


@pytest.mark.parametrize(
    ("more", "window", "num_windowed"),
    [
        ({}, 4096, 0),
        ({"sliding_window": 0}, None, 0),
        ({"layer_types": ["sliding_attention"] * 32}, 4096, 0),
        ({"layer_types": ["sliding_attention", "full_attention"] * 16}, None, 16),
        ({"layer_types": ["full_attention"] * 32}, None, 0),
        ({"sliding_window_pattern": 6}, None, 27),
        ({"sliding_window_pattern": "LLLG"}, None, 24),
        ({"model_type": "mimo_v2_flash", "hybrid_layer_pattern": [0, 1, 1, 1] * 8}, None, 24),
        ({"model_type": "gemma2"}, None, 16),
        ({"model_type": "gpt_oss"}, None, 16),
        ({"model_type": "qwen2"}, None, 0),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 28}, None, 4),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 32}, None, 0),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, 4096, 0),
    ],
)
def test_windows_are_those_of_the_layers_that_have_them(
    tmp_path: Path, more: dict[str, Any], window: int | None, num_windowed: int
) -> None:
    model = load_model(str(write(tmp_path, LLAMA_31_8B | {"sliding_window": 4096} | more)))
    assert model.sliding_window == window
    assert model.num_window_layers == num_windowed
    assert model.layer_window == (4096 if num_windowed else 0)


def test_notes_say_what_was_assumed(tmp_path: Path) -> None:
    unknown = load_model(str(write(tmp_path, LLAMA_31_8B | {"model_type": "newcomer"})))
    assert "newcomer" in unknown.notes[0]
    nested = {"model_type": "mistral3", "text_config": LLAMA_31_8B, "vision_config": {"layers": "many"}}
    notes = load_model(str(write(tmp_path, nested))).notes
    assert "multimodal" in notes[0]
    assert "vision tower" in notes[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}, "kv_lora_rank is missing"),
        ({"kv_lora_rank": 512}, "LlamaForCausalLM is not supported: kv_lora_rank: multi-head latent"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "jamba", "architectures": ["JambaForCausalLM"]}, "JambaForCausalLM.*state-space"),
        ({"layer_types": ["linear_attention", "full_attention"] * 16}, "layer_types: 'linear_attention' is not read"),
        ({"layer_types": ["full_attention"] * 31}, "layer_types: has 31 entries for 32 layers"),
        ({"model_type": "deepseek_v4", "compress_ratios": [0, 4]}, "compressed sparse attention"),
        ({"compress_ratios": [0, 4]}, "compressed sparse attention"),
        ({"model_type": "gemma4_text", "hidden_size_per_layer_input": 256}, "embeddings for each layer"),
        (
            {"model_type": "newcomer", "hybrid_layer_pattern": [0, 1]},
            "'newcomer' is not known, .* hybrid_layer_pattern",
        ),
        ({"model_type": "newcomer", "swa_head_dim": 64}, "swa_head_dim means for its layers is not either"),
        ({"intermediate_size": [8192, 4096]}, "layers that differ in it are not read"),
        ({"sliding_window": 128, "sliding_window_pattern": "LXG"}, "sliding_window_pattern: 'LXG' is not read"),
        ({"model_type": "bert"}, "does not generate"),
        ({"model_type": "llama4_text"}, "num_local_experts is missing"),
        ({"num_attention_heads": 30}, "not a multiple of num_key_value_heads"),
        ({"num_key_value_heads": 32, "num_attention_heads": 24}, "num_key_value_heads 32"),
        ({"hidden_size": -1}, "hidden_size: expected a whole number of at least 1, found -1"),
        ({"vocab_size": "many"}, "vocab_size: expected a whole number"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "more than the 4 experts"),
        ({"num_experts": 4}, "num_experts_per_tok.*missing"),
        ({"num_experts": 4, "num_experts_per_tok": 1, "mlp_only_layers": 3}, "mlp_only_layers: expected a list"),
        ({"num_key_value_heads": None, "multi_query": True}, "multi_query is not read; write num_key_value_heads"),
        ({"num_key_value_heads": None, "multi_query_attention": True}, "multi_query_attention is not read"),
        ({"num_key_value_heads": None, "num_kv_heads": 8}, "num_kv_heads is not read; write num_key_value_heads"),
        ({"ffn_config": {"ffn_hidden_size": 1}}, "ffn_config is not read"),
        ({"block_configs": [{}]}, "block_configs: has 1 entries for 32 layers"),
        ({"attn_layer_period": 8}, "state-space"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings: expected true or false, found 'false'"),
        ({"attention_bias": "no"}, "attention_bias: expected true or false, found 'no'"),
        ({"layer_types": "mamba"}, "layer_types: expected a list"),
    ],
)
def test_what_cannot_be_costed_is_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_model(str(write(tmp_path, LLAMA_31_8B | change)))


def test_all_problems_of_a_config_are_reported_with_the_file(tmp_path: Path) -> None:
    config = {key: value for key, value in LLAMA_31_8B.items() if key not in ("vocab_size", "hidden_size")}
    text = refusal(tmp_path, config)
    assert "vocab_size is missing" in text
    assert "hidden_size is missing" in text
    assert text.count(str(tmp_path / "config.json")) == 2, "no consequence of a missing number is a problem of its own"


def test_other_names_do_not_matter_where_the_number_is_given(tmp_path: Path) -> None:
    config = LLAMA_31_8B | {"multi_query": True, "num_kv_heads": 4, "moe_layer_freq": [1] * 32}
    assert load_model(str(write(tmp_path, config))).num_kv_heads == 8
    assert load_model(str(write(tmp_path, LLAMA_31_8B | {"num_key_value_heads": None, "multi_query": False})))


def test_an_unknown_quantization_of_a_nested_text_decoder_is_refused(tmp_path: Path) -> None:
    nested = {"model_type": "llava", "text_config": LLAMA_31_8B | {"quantization_config": {"quant_method": "gguf"}}}
    assert "quant_method gguf is not read" in refusal(tmp_path, nested)


def test_files_that_are_not_configs(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 1,\n oops}')
    with pytest.raises(InputError, match=r"config.json:2:2: not JSON"):
        load_model(str(path))
    path.write_text("[1]")
    with pytest.raises(InputError, match="expected a JSON object"):
        load_model(str(path))
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_model(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("lama-3.1-8b", "llama-3.1-8b"),
        ("llama3.1_8b", "llama-3.1-8b"),
        ("somebody/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("qwen3-30b", "qwen3-30b-a3b"),
        ("llama-4-scout", "llama-4-scout-17b-16e"),
        ("llama-3.1", "llama-3.1-8b or llama-3.1-70b or llama-3.1-405b"),
    ],
)
def test_unknown_names_get_a_suggestion(name: str, suggestion: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean {suggestion}\?$"):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("llama-3.1-9b", "llama-3.1-8b, llama-3.1-70b, llama-3.1-405b"),
        ("qwen3-4b", "qwen3-8b, qwen3-14b, qwen3-32b, qwen3-30b-a3b, qwen3-235b-a22b"),
        ("Qwen/Qwen3-15B", "qwen3-8b, qwen3-14b, qwen3-32b, qwen3-30b-a3b, qwen3-235b-a22b"),
        ("codellama-7b", "codellama-34b"),
    ],
)
def test_another_size_is_another_model(name: str, family: str) -> None:
    with pytest.raises(InputError) as raised:
        load_model(name)
    assert "did you mean" not in str(raised.value)
    assert f"; presets of that family: {family}; another goes in as the path" in str(raised.value)


@pytest.mark.parametrize("name", ["yi-34b", "falcon-7b", "gpt-4"])
def test_no_other_family_is_suggested(name: str) -> None:
    with pytest.raises(InputError) as raised:
        load_model(name)
    assert "did you mean" not in str(raised.value)
    assert "; presets: llama-2-7b, " in str(raised.value)


def test_a_name_like_nothing_gets_the_list() -> None:
    with pytest.raises(InputError, match=r"presets: llama-2-7b"):
        load_model("zzz")


def test_names_do_not_depend_on_case() -> None:
    assert load_model("Llama-2-7B") is MODELS["llama-2-7b"]


@pytest.mark.parametrize("preset", MODELS)
def test_every_preset_is_found_by_its_repository(preset: str) -> None:
    for name in (REPOSITORIES[preset], REPOSITORIES[preset].upper(), REPOSITORIES[preset].partition("/")[2]):
        assert load_model(name) is MODELS[preset]


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("meta-llama/Llama-3.3-70B-instruct", "llama-3.3-70b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("mistralai/Mistral-7B-Instruct-v0.1", "mistral-7b"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo-12b"),
        ("llama-3.1-8b-it", "llama-3.1-8b"),
        ("mixtral-8x7b-instruct", "mixtral-8x7b"),
        ("gemma-3-27b-it", "gemma-3-27b"),
        ("mistral-small-3.2-24b-instruct", "mistral-small-3.2-24b"),
        ("llama-4-maverick-17b-128e-instruct", "llama-4-maverick-17b-128e"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
    ],
)
def test_tuned_variants_have_the_presets_shape(name: str, preset: str) -> None:
    assert load_model(name) is MODELS[preset]


@pytest.mark.parametrize(
    ("name", "preset", "positions"),
    [("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b", 32768), ("Qwen/Qwen3-8B-Base", "qwen3-8b", 32768)],
)
def test_variants_with_another_context_keep_it(name: str, preset: str, positions: int) -> None:
    assert MODELS[preset].max_position_embeddings != positions
    assert load_model(name) == replace(MODELS[preset], max_position_embeddings=positions)


@pytest.mark.parametrize(
    "name",
    [
        *("mistralai/Mistral-7B-Instruct-v0.2", "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-8B-FP8"),
        *("Qwen/Qwen3-8B-AWQ", "unsloth/Llama-3.1-8B", "meta-llama/", "-instruct", "/"),
    ],
)
def test_other_repositories_are_no_presets(name: str) -> None:
    assert preset_of(name) is None


def test_a_folder_of_that_name_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen" / "Qwen3-8B"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json"):
        load_model("Qwen/Qwen3-8B", tmp_path)
