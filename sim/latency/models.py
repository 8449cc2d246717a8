"""Model shapes: what a decoder's ``config.json`` says, and presets of the models that people serve.

The presets repeat the published ``config.json`` of each model on Hugging Face. Sizes are in
parameters, dimensions in elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from sim.errors import InputError
from sim.latency.hub_names import LIKELY, REPOSITORIES, positions_of, preset_of, quantised_preset_of, quantised_words
from sim.latency.model_spec import ModelSpec
from sim.latency.preset_configs import CONFIGS
from sim.latency.preset_configs import TRUNCATING as CONFIGS_TRUNCATING
from sim.latency.uniform import uniform_model
from sim.scenario.messages import spelled_alike

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "codellama": "LlamaForCausalLM",
    "qwen2.5": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}
"""How the names of dense presets begin -> vLLM's class."""


def _dense(
    name: str,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocab: int,
    positions: int,
    head_size: int = 128,
    *,
    tied: bool = False,
    window: int | None = None,
    bias: bool = False,
    qk_norm: bool = False,
) -> ModelSpec:
    return uniform_model(
        name=name,
        architecture=next(known for prefix, known in _ARCHITECTURES.items() if name.startswith(prefix)),
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        intermediate_size=intermediate,
        vocab_size=vocab,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        sliding_window=window,
        attention_bias=bias,
        qk_norm=qk_norm,
    )


def _presets() -> tuple[ModelSpec, ...]:
    return (
        # name, layers, hidden, heads, KV heads, intermediate, vocabulary, positions
        _dense("llama-2-7b", 32, 4096, 32, 32, 11008, 32000, 4096),
        _dense("llama-2-13b", 40, 5120, 40, 40, 13824, 32000, 4096),
        _dense("llama-2-70b", 80, 8192, 64, 8, 28672, 32000, 4096),
        _dense("llama-3-8b", 32, 4096, 32, 8, 14336, 128256, 8192),
        _dense("llama-3-70b", 80, 8192, 64, 8, 28672, 128256, 8192),
        _dense("llama-3.1-8b", 32, 4096, 32, 8, 14336, 128256, 131072),
        _dense("llama-3.1-70b", 80, 8192, 64, 8, 28672, 128256, 131072),
        _dense("llama-3.1-405b", 126, 16384, 128, 8, 53248, 128256, 131072),
        _dense("llama-3.2-1b", 16, 2048, 32, 8, 8192, 128256, 131072, 64, tied=True),
        _dense("llama-3.2-3b", 28, 3072, 24, 8, 8192, 128256, 131072, tied=True),
        _dense("llama-3.3-70b", 80, 8192, 64, 8, 28672, 128256, 131072),
        _dense("codellama-34b", 48, 8192, 64, 8, 22016, 32000, 16384),
        _dense("qwen2.5-7b", 28, 3584, 28, 4, 18944, 152064, 131072, bias=True),
        _dense("qwen2.5-14b", 48, 5120, 40, 8, 13824, 152064, 131072, bias=True),
        _dense("qwen2.5-32b", 64, 5120, 40, 8, 27648, 152064, 131072, bias=True),
        _dense("qwen2.5-72b", 80, 8192, 64, 8, 29568, 152064, 131072, bias=True),
        _dense("qwen3-8b", 36, 4096, 32, 8, 12288, 151936, 40960, qk_norm=True),
        _dense("qwen3-14b", 40, 5120, 40, 8, 17408, 151936, 40960, qk_norm=True),
        _dense("qwen3-32b", 64, 5120, 64, 8, 25600, 151936, 40960, qk_norm=True),
        _dense("mistral-7b", 32, 4096, 32, 8, 14336, 32000, 32768, window=4096),  # v0.1, the one with a window
        _dense("mistral-7b-v0.3", 32, 4096, 32, 8, 14336, 32768, 32768),
        _dense("mistral-nemo-12b", 40, 5120, 32, 8, 14336, 131072, 131072),
        uniform_model(
            name="qwen3-30b-a3b",
            architecture="Qwen3MoeForCausalLM",
            num_layers=48,
            hidden_size=2048,
            num_attention_heads=32,
            num_kv_heads=4,
            head_size=128,
            intermediate_size=6144,
            vocab_size=151936,
            max_position_embeddings=40960,
            num_experts=128,
            experts_per_token=8,
            moe_intermediate_size=768,
            qk_norm=True,
        ),
        uniform_model(
            name="minimax-m2.5",
            architecture="MiniMaxM2ForCausalLM",
            num_layers=62,
            hidden_size=3072,
            num_attention_heads=48,
            num_kv_heads=8,
            head_size=128,
            intermediate_size=1536,
            vocab_size=200064,
            max_position_embeddings=196608,
            num_experts=256,
            experts_per_token=8,
            moe_intermediate_size=1536,
            qk_norm=True,
            has_wide_qk_norm=True,
            has_float32_router=True,
            dtype="fp8_block",
            dtype_source="quantization_config of MiniMaxAI/MiniMax-M2.5",
        ),
        _mixtral("mixtral-8x7b", 32, 4096, 32, 14336, 32768),
        _mixtral("mixtral-8x22b", 56, 6144, 48, 16384, 65536),
    )


def _mixtral(name: str, layers: int, hidden: int, heads: int, width: int, positions: int) -> ModelSpec:
    return uniform_model(
        name=name,
        architecture="MixtralForCausalLM",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_kv_heads=8,
        head_size=128,
        intermediate_size=width,
        vocab_size=32000,
        max_position_embeddings=positions,
        num_experts=8,
        experts_per_token=2,
        moe_intermediate_size=width,
    )


TRUNCATING = ("llama-", "qwen2.5-", "qwen3-", "minimax-")
"""Families whose ``generation_config.json`` sets ``top_p`` or ``top_k`` (of Qwen2.5 the tuned models')."""


class Presets(Mapping[str, ModelSpec]):
    """Presets by name: lower-case Hugging Face short names. Those that are written as configs are read when asked
    for."""

    def __init__(self) -> None:
        self._known = {
            model.name: replace(model, truncates_sampling=model.name.startswith(TRUNCATING)) for model in _presets()
        }
        self._names = (*self._known, *CONFIGS)

    def __getitem__(self, name: str) -> ModelSpec:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _of_config(name)
        return known

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _of_config(name: str) -> ModelSpec:
    """Read a preset that is written as a config. Raises KeyError for a name that is none."""
    from sim.latency.hf_config import read_values

    spec = read_values(CONFIGS[name], file=name, name=name)
    source = f"{spec.dtype_source} of {REPOSITORIES[name]}" if spec.dtype_source else ""
    # A preset repeats what makes the layers: where it says nothing of layers that draft, the model may have some.
    drafting = spec.mtp_layers if "num_nextn_predict_layers" in CONFIGS[name] else None
    return replace(
        spec, mtp_layers=drafting, dtype_source=source, truncates_sampling=name.startswith(CONFIGS_TRUNCATING)
    )


MODELS: Mapping[str, ModelSpec] = Presets()
"""The presets."""


def load_model(name_or_path: str, base_dir: Path | None = None, *, key: str = "engine.model") -> ModelSpec:
    """A preset by name or by the name of its repository, or a Hugging Face ``config.json`` (the file, or a directory
    that holds one).

    Relative paths start at ``base_dir`` (the scenario's directory), else at the working directory. ``key`` is the
    setting that errors name.
    Raises InputError for an unknown name, an unreadable file or an architecture this project cannot cost.
    """
    if name_or_path.lower() in MODELS:
        return MODELS[name_or_path.lower()]
    path = (base_dir or Path()) / Path(name_or_path).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        from sim.latency.hf_config import read_model_config

        return read_model_config(path)
    repository = _of_repository(name_or_path)
    if repository is not None:
        return repository
    raise InputError(
        f"{key}: {name_or_path!r} is neither a model preset nor an existing config.json (looked at {path})"
        f"{_hint(name_or_path)}"
    )


def _of_repository(name: str) -> ModelSpec | None:
    """The model in a repository that is known by name, quantised where its name says so; None = not known."""
    named, stored = preset_of(name), quantised_preset_of(name)
    if stored is not None:
        named, dtype = stored
        model = replace(MODELS[named], dtype=dtype, dtype_source=f"the name of {name}")
    elif named is not None:
        model = MODELS[named]
    else:
        return None
    longest = positions_of(name)
    return model if longest is None else replace(model, max_position_embeddings=longest)


def _hint(name_or_path: str) -> str:
    """The presets that an unknown name can mean, else those of its family, else all.

    A quantised repository means none of them as it is: its weights are stored otherwise.
    """
    words, quantised = quantised_words(name_or_path.rstrip("/"))
    if quantised:
        return f"; {_quantised_hint(words, quantised)}"
    near = spelled_alike("-".join(words), MODELS)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    for count in (2, 1):
        # A second word without a digit belongs to the family's name: gpt-4 is no gpt-oss.
        own = [name for name in MODELS if count > 1 or not name.split("-")[1].isalpha()]
        family = [name for name in own if len(words) >= count and name.split("-")[:count] == words[:count]]
        if family:
            return f"; presets of that family: {', '.join(family)}; another goes in as the path of its config.json"
    return f"; presets: {', '.join(MODELS)}"


def _quantised_hint(words: list[str], quantised: list[str]) -> str:
    told = f"its name says {' '.join(quantised)}, and how that repository stores its weights is not known"
    preset, formats = "-".join(words), {LIKELY[word] for word in quantised}
    dtype = formats.pop()
    if formats or not dtype:
        return f"{told}, nor is that format simulated; give the path of its config.json"
    if preset not in MODELS:
        return f"{told}; give the path of its config.json"
    return f"{told}; give the path of its config.json, or `model: {preset}` with `dtype: {dtype}` if it is that"
