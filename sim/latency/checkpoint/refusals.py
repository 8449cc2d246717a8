"""Models that are refused, each with its reason; and the model types and keys that are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.latency.checkpoint.grouped_layers import LLAMA4
from sim.latency.checkpoint.hybrid_layers import HYBRID_TYPES
from sim.latency.checkpoint.latent_layers import LATENT_TYPES

MLA = "multi-head latent attention (MLA) of a model type whose layers are not read"
STATE_SPACE = "state-space, recurrent or linear-attention layers of a model type whose states are not read"
COMPRESSED = (
    "its compressed sparse attention (compress_ratios: a window, and latents of 4 or 128 tokens each) is not modelled"
)
ENCODER_DECODER = "an encoder-decoder has cross-attention and two kinds of KV cache"
ENCODER = "an encoder does not generate text"
ALTERNATIVES = "alternating updates, embeddings for each layer and shared KV (Gemma 3n) are not modelled"

REFUSED_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("minicpm3", "longcat_flash", "deepseek_v41"), MLA),
    **dict.fromkeys(("deepseek_v4",), COMPRESSED),
    **dict.fromkeys(
        (
            *("mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "zamba", "zamba2", "plamo2", "plamo3"),
            *("granitemoehybrid", "lfm2", "lfm2_moe", "rwkv", "recurrent_gemma", "minimax", "minimax_text_01"),
            *("olmo_hybrid", "qwen4_exp"),
        ),
        STATE_SPACE,
    ),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), ALTERNATIVES),
    **dict.fromkeys(("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "whisper"), ENCODER_DECODER),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "distilbert", "albert", "deberta-v2", "modernbert"), ENCODER),
}
"""``model_type`` -> why it is refused."""

REFUSED_KEYS: Mapping[str, tuple[str, frozenset[str]]] = {
    "compress_ratios": (COMPRESSED, frozenset()),
    "kv_lora_rank": (MLA, LATENT_TYPES | {"kimi_linear"}),
    "mamba_d_state": (STATE_SPACE, HYBRID_TYPES),
    "ssm_cfg": (STATE_SPACE, HYBRID_TYPES),
    "ssm_state_size": (STATE_SPACE, HYBRID_TYPES),
    "linear_num_value_heads": (STATE_SPACE, HYBRID_TYPES),
    "attn_type_list": (STATE_SPACE, HYBRID_TYPES),
    "attn_layer_period": (STATE_SPACE, HYBRID_TYPES),
}
"""Keys of such layers, and the model types that are read all the same."""

KNOWN_TYPES = frozenset(
    (
        *("llama", "mistral", "mistral3", "ministral3", "mixtral", "minimax_m2", "minimax_m3", "gpt_oss", "phi3"),
        *("granite", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "glm", "glm4", "glm4_moe", "internlm3", "stablelm"),
        *("gemma", "gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "olmo", "olmo2", "starcoder2"),
        *("cohere", "cohere2", "exaone4", "hunyuan_v1_moe", "hunyuan_v1_dense", "dbrx", "mpt", "falcon", "mimo"),
        *("mimo_v2_flash", "mimo_v2", "step3p5", "step3p7", "qwen3_vl", "qwen3_vl_moe", "qwen3_vl_text"),
        *("qwen3_vl_moe_text", "qwen2_vl", "qwen2_5_vl", "qwen2_vl_text", "qwen2_5_vl_text", "minimax_m3_vl"),
        *LLAMA4,
        *LATENT_TYPES,
        *HYBRID_TYPES,
    )
)
"""Types whose layers are known."""

PLAIN_KEYS = frozenset(
    (
        *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
        *("intermediate_size", "max_position_embeddings", "hidden_act", "hidden_activation", "attention_bias"),
        *("attention_dropout", "hidden_dropout", "sliding_window", "use_sliding_window", "layer_types", "mlp_bias"),
        *("max_window_layers", "sliding_window_pattern", "tie_word_embeddings", "num_experts", "num_local_experts"),
        *("n_routed_experts", "num_experts_per_tok", "experts_per_token", "num_experts_per_token", "top_k_experts"),
        *("moe_topk", "moe_intermediate_size", "n_shared_experts", "num_shared_experts", "num_shared_expert"),
        *("shared_expert_intermediate_size", "first_k_dense_replace", "decoder_sparse_step", "moe_layer_freq"),
        *("interleave_moe_layer_step", "mlp_only_layers", "moe_layers", "partial_rotary_factor", "resid_pdrop"),
        *(
            "embd_pdrop",
            "attn_pdrop",
            "pretraining_tp",
            "output_hidden_states",
            "output_attentions",
            "top_k",
            "chunk_size_feed_forward",
        ),
        *("cross_attention_hidden_size", "num_nextn_predict_layers", "attn_implementation", "_attn_implementation"),
        *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "hidden_dropout_prob", "moe_router_dtype"),
    )
)
"""Keys that are read for every model type, or say nothing of shapes."""


def refusal(values: Mapping[str, Any]) -> str | None:
    """Why a config is refused as a whole; None = it may be read."""
    model_type = str(values.get("model_type", ""))
    reason = REFUSED_TYPES.get(model_type)
    if reason is not None:
        return reason
    if values.get("is_encoder_decoder") is True:
        return ENCODER_DECODER
    for key, (why, read) in REFUSED_KEYS.items():
        value = values.get(key)
        says_nothing = isinstance(value, list) and set(map(str, value)) <= {"1"}
        if value is not None and model_type not in read and not says_nothing:
            return why if key in why else f"{key}: {why}"
    return None
