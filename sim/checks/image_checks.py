"""Checks of images in prompts: models that see none, images of unknown or impossible size, what is not modelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.checks.findings import Findings
from sim.scenario.schema import EngineConfig

if TYPE_CHECKING:
    from sim.latency.model_spec import ModelSpec, VisionSpec
    from sim.scenario.loader import Parts
    from sim.scenario.schema import EngineSection, ImagesConfig, WorkloadConfig

Place = tuple[str | int, ...]
NOT_WITH_IMAGES = (
    ("pipeline_parallel_size", 1, "a vision tower on the first of several stages is not modelled"),
    ("data_parallel_size", 1, "images on several ranks are not modelled"),
    ("speculative", None, "drafts for requests with images are not modelled"),
    ("enable_lora", False, "adapters of requests with images are not modelled"),
    ("batching", "continuous", "the static baseline knows no images"),
    ("kv", "paged", "the contiguous baseline knows no images"),
    ("preemption", "recompute", "the older engine's swapping knows no images"),
)
"""Settings that an engine with images cannot have: the only value they can, and why."""
CAPS = ("long_prefill_token_threshold", "max_prefill_tokens_per_step")


def check_images(engine: EngineSection, parts: Parts, findings: Findings) -> None:
    """Images of ``engine`` against its other settings and against the workload."""
    asked = [] if parts.workload is None else _places(parts.workload)
    if not engine.enable_images:
        findings.unused(engine, ("engine",), "disable_chunked_mm_input", "enable_images is off")
        for path, what, _ in asked:
            findings.problem(
                path,
                f"`{what}`: the engine serves no images; set engine.enable_images: true (with a model that has a "
                "vision tower), or remove it",
            )
        return
    if not asked and parts.workload is not None and parts.workload.trace is None:
        findings.note("engine.enable_images: no request has an image (`workload.images`), and every step is taken")
    for key, only, why in NOT_WITH_IMAGES:
        value = getattr(engine, key)
        if value != only:
            findings.problem(
                ("engine", key),
                f"`engine.{key}` does not go with `engine.enable_images`: {why}; "
                + ("remove one of the two" if not only else f"set it to {only}, or enable_images to false"),
            )


def check_image_model(engine: EngineSection, model: ModelSpec, parts: Parts, findings: Findings) -> None:
    """Images of ``engine`` against its model."""
    if not engine.enable_images:
        return
    where = ("engine", "enable_images")
    vision = model.vision
    if vision is None:
        findings.problem(
            where,
            f"`engine.enable_images`: {model.name} is a text model, as far as its config is read: it has no vision "
            "tower; choose a model with one, or remove the images",
        )
        return
    if not vision.patches_per_embed or not vision.heads:
        findings.problem(
            where,
            f"`engine.enable_images`: the config of {model.name} does not say how its vision tower makes embeddings "
            "of patches (`spatial_merge_size`, or `mm_tokens_per_image` with `image_size`); write it in",
        )
    if vision.heads % engine.tensor_parallel_size:
        findings.problem(
            ("engine", "tensor_parallel_size"),
            f"`engine.tensor_parallel_size: {engine.tensor_parallel_size}` does not divide the {vision.heads} heads of "
            f"the vision tower of {model.name}; a tower that is whole on each GPU is not modelled",
        )
    for path, what, images in [] if parts.workload is None else _places(parts.workload):
        if images.tokens is None and not vision.tokens_per_image:
            findings.problem(
                (*path, "tokens"),
                f"`{what}.tokens` is missing: how many tokens an image takes depends on its size with {model.name}; "
                "write it, for Qwen3-VL width times height over 1,024 (a 1,024 x 1,024 image: 1024)",
            )
        elif isinstance(engine, EngineConfig):
            of_model = vision.tokens_per_image and sum(vision.frame) + vision.tokens_per_image
            if of_model and images.tokens not in (None, of_model):
                findings.note(f"{what}.tokens: {model.name} makes {of_model} tokens of any image, not {images.tokens}")
            tokens = images.tokens or of_model
            _check_size(tokens, engine, vision, (path, what), findings)


def _check_size(
    tokens: int, engine: EngineConfig, vision: VisionSpec, asked: tuple[Place, str], findings: Findings
) -> None:
    """An image of ``tokens`` tokens against what a step can hold; ``asked``: its place, in words too."""
    path, what = asked
    budget = engine.max_num_batched_tokens
    largest = max(budget, vision.largest_embeds + sum(vision.frame))
    if tokens > largest:
        findings.problem(
            path,
            f"`{what}`: an image of {tokens} tokens can never be encoded: a step makes {largest} at most; take smaller "
            "images, or raise engine.max_num_batched_tokens",
        )
        return
    if not engine.disable_chunked_mm_input:
        return
    most = max(tokens, vision.largest_embeds + sum(vision.frame))
    if most > budget:
        findings.problem(
            ("engine", "disable_chunked_mm_input"),
            f"`engine.disable_chunked_mm_input`: the largest image takes {most} tokens, more than "
            f"`engine.max_num_batched_tokens` ({budget}), so that vLLM refuses to start; raise the second, or drop the "
            "first",
        )
    for key in CAPS:
        cap = getattr(engine, key)
        if cap and cap < tokens:
            findings.problem(
                ("engine", key),
                f"`engine.{key}` ({cap}) is below the {tokens} tokens of an image (`{what}`), which "
                "`engine.disable_chunked_mm_input` never cuts: its request would wait for ever; raise it",
            )


def _places(workload: WorkloadConfig) -> list[tuple[Place, str, ImagesConfig]]:
    """Where the workload asks for images, that place in words, and what it asks for."""
    found: list[tuple[Place, str, ImagesConfig]] = []
    if workload.images is not None:
        found.append((("workload", "images"), "workload.images", workload.images))
    for index, each in enumerate(workload.classes or ()):
        if each.images is not None:
            place: Place = ("workload", "classes", index, "images")
            found.append((place, f"workload.classes[{index}].images", each.images))
    return found
