"""Presets of models with layers of several kinds, or stored in formats of their own: what their ``config.json`` says.

Each repeats the published file on Hugging Face as far as it says something of layers, formats and length, and is read
as such a file is (``hf_config``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Config = dict[str, Any]
FP8_BLOCKS: Config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
QUANTISED_EXPERTS = ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]
INT4_EXPERTS: Config = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32},
            "input_activations": None,
        }
    },
    "ignore": QUANTISED_EXPERTS,
}
SIGLIP: Config = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "patch_size": 14,
}
QWEN_VISION: Config = {
    "hidden_size": 1152,
    "depth": 27,
    "num_heads": 16,
    "intermediate_size": 4304,
    "patch_size": 16,
    "spatial_merge_size": 2,
}


def _gpt_oss(layers: int, experts: int) -> Config:
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_hidden_layers": layers,
        "hidden_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
        "attention_bias": True,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
        },
    }


def _deepseek(architecture: str, model_type: str, **more: Any) -> Config:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "num_hidden_layers": 61,
        "hidden_size": 7168,
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "intermediate_size": 18432,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "vocab_size": 129280,
        "max_position_embeddings": 163840,
        "quantization_config": FP8_BLOCKS,
        "num_nextn_predict_layers": 1,
        **more,
    }


def _kimi(**more: Any) -> Config:
    sizes = {"num_attention_heads": 64, "n_routed_experts": 384, "first_k_dense_replace": 1, "vocab_size": 163840}
    return _deepseek("DeepseekV3ForCausalLM", "kimi_k2", num_nextn_predict_layers=0, **sizes, **more)


def _qwen35(
    architecture: str, layers: int, hidden: int, heads: int, kv_heads: int, value_heads: int, **more: Any
) -> Config:
    text = {
        "model_type": "qwen3_5_text",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 256,
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "vocab_size": 248320,
        "max_position_embeddings": 262144,
        **more,
    }
    return {"architectures": [architecture], "text_config": text, "vision_config": QWEN_VISION}


def _qwen35_moe(
    layers: int, hidden: int, heads: int, value_heads: int, experts: int, per_token: int, width: int
) -> Config:
    moe = {"num_experts": experts, "num_experts_per_tok": per_token, "moe_intermediate_size": width}
    kind = {"model_type": "qwen3_5_moe_text", "shared_expert_intermediate_size": width}
    return _qwen35("Qwen3_5MoeForConditionalGeneration", layers, hidden, heads, 2, value_heads, **{**moe, **kind})


def _gemma(version: str, layers: int, hidden: int, heads: int, kv_heads: int, size: int, width: int) -> Config:
    """Gemma and Gemma 2."""
    return {
        "architectures": [f"Gemma{version}ForCausalLM"],
        "model_type": f"gemma{version}",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "intermediate_size": width,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        **({"sliding_window": 4096} if version else {}),
    }


def _gemma3(layers: int, hidden: int, heads: int, kv_heads: int, size: int, width: int) -> Config:
    text = {
        **_gemma("3", layers, hidden, heads, kv_heads, size, width),
        "model_type": "gemma3_text",
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
    }
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": text,
        "mm_tokens_per_image": 256,
        "vision_config": {**SIGLIP, "image_size": 896},
    }


def _gemma4(layers: int, hidden: int, heads: int, kv_heads: int, global_kv: int, width: int, **more: Any) -> Config:
    text = {
        "model_type": "gemma4_text",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_global_key_value_heads": global_kv,
        "head_dim": 256,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "intermediate_size": width,
        "sliding_window": 1024,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * (layers // 6),
        "vocab_size": 262144,
        "max_position_embeddings": 262144,
        **more,
    }
    vision = {**SIGLIP, "patch_size": 16, "pooling_kernel_size": 3}
    return {"architectures": ["Gemma4ForConditionalGeneration"], "text_config": text, "vision_config": vision}


def _llama4(experts: int, every: int, positions: int) -> Config:
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4_text",
        "num_hidden_layers": 48,
        "hidden_size": 5120,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_local_experts": experts,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": every,
        "attention_chunk_size": 8192,
        "vocab_size": 202048,
        "max_position_embeddings": positions,
    }


CONFIGS: Mapping[str, Config] = MappingProxyType(
    {
        "gpt-oss-20b": _gpt_oss(24, 32),
        "gpt-oss-120b": _gpt_oss(36, 128),
        "deepseek-v3": _deepseek("DeepseekV3ForCausalLM", "deepseek_v3"),
        "deepseek-r1": _deepseek("DeepseekV3ForCausalLM", "deepseek_v3"),
        "deepseek-v3.2": _deepseek(
            "DeepseekV32ForCausalLM", "deepseek_v32", index_n_heads=64, index_head_dim=128, index_topk=2048
        ),
        "kimi-k2": _kimi(max_position_embeddings=131072),
        "kimi-k2.5": _kimi(
            architectures=["KimiK25ForConditionalGeneration"],
            max_position_embeddings=262144,
            quantization_config=INT4_EXPERTS,
        ),
        "qwen3-235b-a22b": {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_hidden_layers": 94,
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 12288,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 1536,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
        },
        "qwen3-next-80b-a3b": {
            **_qwen35("", 48, 2048, 16, 2, 32)["text_config"],
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": "qwen3_next",
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "vocab_size": 151936,
        },
        "qwen3.5-27b": _qwen35("Qwen3_5ForConditionalGeneration", 64, 5120, 24, 4, 48, intermediate_size=17408),
        "qwen3.5-35b-a3b": _qwen35_moe(40, 2048, 16, 32, 256, 8, 512),
        "qwen3.5-122b-a10b": _qwen35_moe(48, 3072, 32, 64, 256, 8, 1024),
        "qwen3.5-397b-a17b": _qwen35_moe(60, 4096, 32, 64, 512, 10, 1024),
        "gemma-7b": _gemma("", 28, 3072, 16, 16, 256, 24576),
        "gemma-2-9b": _gemma("2", 42, 3584, 16, 8, 256, 14336),
        "gemma-2-27b": _gemma("2", 46, 4608, 32, 16, 128, 36864),
        "gemma-3-4b": _gemma3(34, 2560, 8, 4, 256, 10240),
        "gemma-3-12b": _gemma3(48, 3840, 16, 8, 256, 15360),
        "gemma-3-27b": _gemma3(62, 5376, 32, 16, 128, 21504),
        "gemma-4-31b": _gemma4(60, 5376, 32, 16, 4, 21504),
        "gemma-4-26b-a4b": _gemma4(
            30, 2816, 16, 8, 2, 2112, num_experts=128, top_k_experts=8, moe_intermediate_size=704
        ),
        "glm-5": {
            **_deepseek("GlmMoeDsaForCausalLM", "glm_moe_dsa"),
            "num_hidden_layers": 78,
            "hidden_size": 6144,
            "num_attention_heads": 64,
            "q_lora_rank": 2048,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "intermediate_size": 12288,
            "index_n_heads": 32,
            "index_head_dim": 128,
            "index_topk": 2048,
            "vocab_size": 154880,
            "max_position_embeddings": 202752,
            "quantization_config": None,
        },
        "llama-4-scout-17b-16e": _llama4(16, 1, 10485760),
        "llama-4-maverick-17b-128e": _llama4(128, 2, 1048576),
        "mistral-small-3.2-24b": {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "spatial_merge_size": 2,
            "text_config": {
                "model_type": "mistral",
                "num_hidden_layers": 40,
                "hidden_size": 5120,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "intermediate_size": 32768,
                "vocab_size": 131072,
                "max_position_embeddings": 131072,
            },
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "patch_size": 14,
                "image_size": 1540,
            },
        },
        "phi-4": {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "num_hidden_layers": 40,
            "hidden_size": 5120,
            "num_attention_heads": 40,
            "num_key_value_heads": 10,
            "intermediate_size": 17920,
            "vocab_size": 100352,
            "max_position_embeddings": 16384,
        },
        "nemotron-3-nano-30b-a3b": {
            "architectures": ["NemotronHForCausalLM"],
            "model_type": "nemotron_h",
            "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            "hidden_size": 2688,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "intermediate_size": 1856,
            "n_routed_experts": 128,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1856,
            "moe_shared_expert_intermediate_size": 3712,
            "mamba_num_heads": 64,
            "mamba_head_dim": 64,
            "n_groups": 8,
            "ssm_state_size": 128,
            "conv_kernel": 4,
            "mamba_ssm_cache_dtype": "float32",
            "vocab_size": 131072,
            "max_position_embeddings": 262144,
        },
    }
)
"""Preset -> what its ``config.json`` says."""

TRUNCATING = ("deepseek-r1", "gemma-3-", "gemma-4-", "llama-", "qwen3")
"""Presets whose ``generation_config.json`` sets ``top_p`` or ``top_k``."""
