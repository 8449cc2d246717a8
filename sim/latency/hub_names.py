"""Which repositories on Hugging Face have the shape of a model preset, and in which format they store it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

REPOSITORIES: Mapping[str, str] = MappingProxyType(
    {
        "llama-2-7b": "meta-llama/Llama-2-7b-hf",
        "llama-2-13b": "meta-llama/Llama-2-13b-hf",
        "llama-2-70b": "meta-llama/Llama-2-70b-hf",
        "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
        "llama-3-70b": "meta-llama/Meta-Llama-3-70B",
        "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
        "llama-3.1-70b": "meta-llama/Llama-3.1-70B",
        "llama-3.1-405b": "meta-llama/Llama-3.1-405B",
        "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
        "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
        "llama-3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",
        "codellama-34b": "codellama/CodeLlama-34b-hf",
        "qwen2.5-7b": "Qwen/Qwen2.5-7B",
        "qwen2.5-14b": "Qwen/Qwen2.5-14B",
        "qwen2.5-32b": "Qwen/Qwen2.5-32B",
        "qwen2.5-72b": "Qwen/Qwen2.5-72B",
        "qwen3-8b": "Qwen/Qwen3-8B",
        "qwen3-14b": "Qwen/Qwen3-14B",
        "qwen3-32b": "Qwen/Qwen3-32B",
        "mistral-7b": "mistralai/Mistral-7B-v0.1",
        "mistral-7b-v0.3": "mistralai/Mistral-7B-v0.3",
        "mistral-nemo-12b": "mistralai/Mistral-Nemo-Base-2407",
        "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
        "llama-4-scout-17b-16e": "meta-llama/Llama-4-Scout-17B-16E",
        "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
        "mixtral-8x22b": "mistralai/Mixtral-8x22B-v0.1",
        "minimax-m2.5": "MiniMaxAI/MiniMax-M2.5",
        "gpt-oss-20b": "openai/gpt-oss-20b",
        "gpt-oss-120b": "openai/gpt-oss-120b",
        "deepseek-v3": "deepseek-ai/DeepSeek-V3",
        "deepseek-r1": "deepseek-ai/DeepSeek-R1",
        "deepseek-v3.2": "deepseek-ai/DeepSeek-V3.2",
        "kimi-k2": "moonshotai/Kimi-K2-Instruct",
        "kimi-k2.5": "moonshotai/Kimi-K2.5",
        "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
        "qwen3-next-80b-a3b": "Qwen/Qwen3-Next-80B-A3B-Instruct",
        "qwen3.5-27b": "Qwen/Qwen3.5-27B",
        "qwen3.5-35b-a3b": "Qwen/Qwen3.5-35B-A3B",
        "qwen3.5-122b-a10b": "Qwen/Qwen3.5-122B-A10B",
        "qwen3.5-397b-a17b": "Qwen/Qwen3.5-397B-A17B",
        "gemma-7b": "google/gemma-7b",
        "gemma-2-9b": "google/gemma-2-9b",
        "gemma-2-27b": "google/gemma-2-27b",
        "gemma-3-4b": "google/gemma-3-4b-it",
        "gemma-3-12b": "google/gemma-3-12b-it",
        "gemma-3-27b": "google/gemma-3-27b-it",
        "gemma-4-31b": "google/gemma-4-31B-it",
        "gemma-4-26b-a4b": "google/gemma-4-26B-A4B",
        "glm-5": "zai-org/GLM-5",
        "llama-4-maverick-17b-128e": "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        "mistral-small-3.2-24b": "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        "phi-4": "microsoft/phi-4",
        "nemotron-3-nano-30b-a3b": "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    }
)
"""Model preset -> its repository on Hugging Face. Tuned variants of the same shape go by ``--model``."""

TUNED = frozenset({"instruct", "it", "chat", "base", "hf"})
"""Words of a repository's name that say how its weights were trained or stored, not their shape."""
POSITIONS: Mapping[tuple[str, str], int] = MappingProxyType({("qwen2.5", "instruct"): 32768, ("qwen3", "base"): 32768})
"""Longest context by family and word, where it is not the preset's."""

_LLM_COMPRESSOR = MappingProxyType(
    {
        "fp8": "fp8",
        "fp8-dynamic": "fp8",
        "fp8-block": "fp8_block",
        "quantized.w8a8": "int8",
        "quantized.w4a16": "int4",
    }
)
QUANTISED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "qwen": MappingProxyType({"fp8": "fp8_block", "awq": "int4", "gptq-int4": "int4"}),
        "redhatai": _LLM_COMPRESSOR,
        "neuralmagic": _LLM_COMPRESSOR,
        "hugging-quants": MappingProxyType({"awq-int4": "int4", "gptq-int4": "int4"}),
    }
)
"""Owner, end of a repository's name -> how its weights are stored, as ``quantization_config`` of their files says it.
Another owner's may be stored otherwise: the FP8 of Qwen has a scale per block, that of the others one per matrix or
row."""
LIKELY: Mapping[str, str] = MappingProxyType(
    {
        "fp8": "fp8",
        "awq": "int4",
        "gptq": "int4",
        "int4": "int4",
        "w4a16": "int4",
        "int8": "int8",
        "w8a8": "int8",
        "w8a16": "",
        "nvfp4": "",
        "mxfp4": "",
        "bnb": "",
        "gguf": "",
    }
)
"""Words of a repository's name that say that it is quantised -> ``engine.dtype`` if the format is a common one of that
name; empty = a format that is not simulated."""


def preset_of(name: str) -> str | None:
    """Tell the preset that a repository's name stands for; None = it stands for none.

    Case does not count, nor do the words of ``TUNED`` and a leading ``meta-``: ``meta-llama/Llama-3.1-8B-Instruct`` is
    llama-3.1-8b. The owner may be left out, but no other owner's copy is taken, and no quantised one
    (``Qwen/Qwen3-8B-FP8``): ``quantised_preset_of`` reads those.
    """
    owner, _, repository = name.strip().rpartition("/")
    core = core_words(repository)
    for preset, known in REPOSITORIES.items():
        known_owner, _, known_repository = known.partition("/")
        if core == core_words(known_repository) and owner.lower() in ("", known_owner.lower()):
            return preset
        if not owner and core == preset.split("-"):
            return preset
    return None


def quantised_preset_of(name: str) -> tuple[str, str] | None:
    """Tell preset and stored format of a quantised repository; None = it is none that ``QUANTISED`` knows.

    ``RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8`` is llama-3.1-70b in fp8, ``Qwen/Qwen3-32B-FP8`` qwen3-32b in fp8_block.
    Without an owner the repository is taken to be that of the preset's owner.
    """
    owner, _, repository = name.strip().lower().rpartition("/")
    for preset, known in REPOSITORIES.items():
        its_owner, _, its_repository = known.lower().partition("/")
        for ending, dtype in QUANTISED.get(owner or its_owner, {}).items():
            plain = repository.removesuffix(f"-{ending}")
            if plain != repository and core_words(plain) == core_words(its_repository):
                return preset, dtype
    return None


def quantised_words(name: str) -> tuple[list[str], list[str]]:
    """Part a repository's name into words of its shape and words that say that it is quantised:
    ``TheBloke/Llama-2-7B-AWQ`` -> llama, 2, 7b; awq."""
    words = core_words(re.sub(r"quantized[.-]", "", name.rpartition("/")[2].lower()))
    told = [word for word in words if word in LIKELY]
    return [word for word in words if word not in LIKELY and word != "dynamic"], told


def positions_of(name: str) -> int | None:
    """Tell the longest context of a repository where it is not its preset's."""
    words = name.rpartition("/")[2].lower().split("-")
    return next((value for (family, word), value in POSITIONS.items() if words[0] == family and word in words), None)


def core_words(repository: str) -> list[str]:
    """The words of a repository's name that say its shape: ``Meta-Llama-3-8B-Instruct`` -> llama, 3, 8b."""
    words = [word for word in repository.lower().split("-") if word not in TUNED]
    return words[1:] if words[:1] == ["meta"] else words
