"""``simrun models``: model presets, or the layers, formats and KV cache of one model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sim.outputs import standard_output

if TYPE_CHECKING:
    from sim.latency.model_spec import ModelSpec

EXIT_DONE = 0
SIXTEEN_BIT = 2
EIGHT_BIT = 1


@click.command("models", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models_command(model: str | None, as_json: bool) -> int:
    """List model presets, or say what MODEL is made of.

    MODEL is a preset, a repository's name, or the path of a config.json: its layers by kind, the number formats of its
    weights, and what it keeps of a token.
    """
    from sim.latency.models import MODELS, load_model

    if model is not None:
        spec = load_model(model, key="MODEL")
        with standard_output():
            click.echo(json.dumps(document(spec), indent=2) if as_json else text(spec))
        return EXIT_DONE
    with standard_output():
        if as_json:
            click.echo(json.dumps([document(spec) for spec in MODELS.values()], indent=2))
        else:
            click.echo(table(list(MODELS.values())))
    return EXIT_DONE


def kv_bytes(model: ModelSpec) -> int:
    """Bytes that all layers keep of a token on one GPU, in the format that ``kv_cache_dtype: auto`` takes."""
    size = EIGHT_BIT if model.kv_dtype else SIXTEEN_BIT
    return sum(count * (mixer.kept_bytes(1, size) + mixer.index_bytes(size)) for mixer, count in model.mixers)


def state_bytes(model: ModelSpec) -> int:
    """Bytes of the states of one request, of all layers on one GPU."""
    from sim.latency.state_layers import StateLayer

    return sum(
        count * mixer.state_bytes(1, SIXTEEN_BIT) for mixer, count in model.mixers if isinstance(mixer, StateLayer)
    )


def weight_bytes(model: ModelSpec) -> int:
    """Bytes of the weights as the checkpoint stores them, scales included."""
    from sim.latency.formats import bytes_per_weight
    from sim.latency.memory_weights import weight_parts

    total = 2.0 * (model.num_parameters - model.linear_parameters)
    for kind, count in model.kinds:
        formats = kind.format_of
        for part, size, _ in weight_parts(kind, model.hidden_size, 1, 1):
            total += count * size * bytes_per_weight(formats.get(part, model.dtype))
    vision = model.vision
    return round(total + (0 if vision is None else 2 * vision.parameters))


def document(model: ModelSpec) -> dict[str, Any]:
    """One model for a program."""
    return {
        "model": model.name,
        "architecture": model.architecture,
        "parameters": model.num_parameters,
        "active_parameters": model.num_active_parameters,
        "vision_parameters": 0 if model.vision is None else model.vision.parameters,
        "num_layers": model.num_layers,
        "layers": [
            {"count": count, "kind": kind.words, "formats": {**kind.format_of}}
            for kind, count in model.alike("mixer", "mlp", "experts", "formats")
        ],
        "dtype": model.dtype,
        "dtype_source": model.dtype_source,
        "weight_bytes": weight_bytes(model),
        "kv_cache_dtype": model.kv_dtype or "as activations",
        "kv_bytes_per_token": kv_bytes(model),
        "state_bytes_per_request": state_bytes(model),
        "max_model_len": model.default_context,
        "notes": list(model.notes),
    }


def table(models: list[ModelSpec]) -> str:
    """All presets, a line each."""
    lines = [f"{'model':<26}{'params':>8} {'layers':<19}{'format':<10}{'KV/token':>8}{'context':>8}"]
    lines += [
        f"{model.name:<26}{model.num_parameters / 1e9:>7.1f}B {_kinds(model):<19}{model.dtype:<10}"
        f"{kv_bytes(model) / 1024:>7.1f}K{_short(model.max_position_embeddings):>8}"
        for model in models
    ]
    lines += [
        "KV/token: KiB that all layers keep, on one GPU. `simrun models NAME`: by kind.",
        "Also by the name of the repository (meta-llama/Llama-3.1-8B-Instruct).",
        "Any other: engine.model = path of a Hugging Face config.json",
    ]
    return "\n".join(lines)


def _short(tokens: int) -> str:
    """131,072 is 128K."""
    return f"{tokens / (1 << 20):g}M" if tokens >= 1 << 20 else f"{tokens / (1 << 10):g}K"


def _kinds(model: ModelSpec) -> str:
    """How many layers mix tokens in which way: ``window:18+full:18``."""
    found: dict[str, int] = {}
    for mixer, count in model.mixers:
        found[_kind(mixer)] = found.get(_kind(mixer), 0) + count
    return "+".join(f"{name}:{count}" for name, count in found.items())


def _kind(mixer: Any) -> str:
    from sim.latency.attention_kinds import LatentAttention
    from sim.latency.state_layers import StateLayer

    if isinstance(mixer, StateLayer):
        return "state"
    sparse = "sparse" if mixer.index is not None else ""
    if isinstance(mixer, LatentAttention):
        return "sparse-latent" if sparse else "latent"
    if mixer.window is not None:
        return "window"
    return "chunk" if mixer.chunk is not None else sparse or "full"


def text(model: ModelSpec) -> str:
    """One model for a reader."""
    size = EIGHT_BIT if model.kv_dtype else SIXTEEN_BIT
    lines = [
        f"{model.name}{f' ({model.architecture})' if model.architecture else ''}",
        "",
        f"parameters   {model.num_parameters / 1e9:,.2f} B, of which a token passes "
        f"{model.num_active_parameters / 1e9:,.2f} B",
        f"weights      {weight_bytes(model) / (1 << 30):,.1f} GiB, {model.dtype}"
        + (f" ({model.dtype_source})" if model.dtype_source else ""),
        f"context      {model.default_context:,} tokens",
        f"KV cache     {kv_bytes(model):,} bytes for each token, {'fp8' if model.kv_dtype else '16 bits'}",
    ]
    if state_bytes(model):
        lines.append(f"states       {state_bytes(model):,} bytes for each request")
    if model.vision is not None:
        lines.append(f"vision       {model.vision.parameters / 1e9:.2f} B parameters")
    lines += ["", "layers"]
    for kind, count in model.alike("mixer", "mlp", "experts", "formats"):
        lines.append(f"  {count:>3} x {kind.words}")
        if kind.mixer is not None:
            kept = kind.mixer.kept_bytes(1, size) + kind.mixer.index_bytes(size)
            lines.append(f"        keeps {kept:,} bytes of each token")
        if kind.formats:
            lines.append(f"        {', '.join(f'{part} {told}' for part, told in kind.formats)}")
    lines += ["", *(f"note: {note}" for note in model.notes)] if model.notes else []
    return "\n".join(lines)
