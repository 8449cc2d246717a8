"""Cases of ``traces`` with what an engine may serve besides: adapters, images, KV offloaded to host memory."""

from __future__ import annotations

import random
from dataclasses import replace

from traces import Case, CaseImage, CaseRequest, CaseSettings, blocks_of


def with_loras(case: Case) -> Case:
    """The case with LoRA adapters: a few of them, more or fewer than a step may hold, some requests without one."""
    rng = random.Random(f"loras/{case.name}")
    num_adapters = rng.choice([1, 2, 3, 5, 8])
    share = rng.choice([0.5, 0.8, 1.0])
    return replace(
        case,
        settings=replace(case.settings, max_loras=rng.choice([1, 1, 2, 3, 4])),
        requests=tuple(
            replace(request, lora=rng.randint(1, num_adapters) if rng.random() < share else 0)
            for request in case.requests
        ),
    )


def with_images(case: Case) -> Case:
    """The case with images in prompts: few different ones or many, a budget and a cache hardly larger than one.

    What requests have in common they have with its images: those of a shared part are drawn from its content.
    """
    rng = random.Random(f"images/{case.name}")
    sizes = [_draw_image_size(rng, case.settings) for _ in range(rng.choice([1, 2, 4, 12]))]
    share = rng.choice([0.4, 0.8, 1.0])
    largest = max(num_embeds for _, num_embeds, _ in sizes)
    together = sum(num_embeds for _, num_embeds, _ in sizes)

    def perhaps(request: CaseRequest) -> CaseRequest:
        images: list[CaseImage] = []
        start = 0
        parts: list[tuple[object, int]] = [(content, end) for content, end in request.segments]
        parts.append((("own", request.request_id), request.prompt_tokens))
        if request.session is not None:
            parts = [(("session", request.session), request.prompt_tokens)]
        for part, end in parts:
            draw = random.Random(f"{case.name}/{part}/{start}")
            if draw.random() < share:
                images += _draw_images(draw, sizes, start, end)
            start = end
        return replace(request, images=tuple(images))

    return replace(
        case,
        settings=replace(
            case.settings,
            encoder_budget=largest + rng.choice([0, 0, 1, largest // 2, largest, together]),
            encoder_cache=largest + rng.choice([0, 1, largest // 2, largest, together]),
            disable_chunked_mm_input=rng.random() < 0.3,
        ),
        requests=tuple(perhaps(request) for request in case.requests),
    )


def _draw_image_size(rng: random.Random, settings: CaseSettings) -> tuple[int, int, int]:
    """(places, embeddings, places before the first embedding) of an image that a step can hold whole."""
    longest = settings.max_num_batched_tokens
    if settings.long_prefill_token_threshold:
        longest = min(longest, settings.long_prefill_token_threshold)
    num_embeds = rng.randint(1, max(1, min(longest, 24) // 2))
    if rng.random() < 0.5:
        return num_embeds, num_embeds, 0
    before = rng.randint(0, max(0, min(3, longest - num_embeds)))
    after = rng.randint(0, max(0, min(3, longest - num_embeds - before)))
    return before + num_embeds + after, num_embeds, before


def _draw_images(rng: random.Random, sizes: list[tuple[int, int, int]], start: int, end: int) -> list[CaseImage]:
    """Up to six images between two places, sometimes side by side; the longer the part, the more of those drawn fit."""
    images: list[CaseImage] = []
    for _ in range(rng.choice([1, 1, 2, 3, 6])):
        content = rng.randrange(len(sizes))
        num_tokens, num_embeds, before = sizes[content]
        start += rng.choice([0, 0, 1, rng.randint(0, 12), rng.randint(0, 60)])
        if start + num_tokens > end:
            break
        images.append(CaseImage(start, num_tokens, num_embeds, content, before))
        start += num_tokens
    return images


def draw_image_pressure(async_scheduling: bool, seed: int) -> Case:
    """Prompts full of images, of little urgency, in a pool that runs out as urgent requests grow: they are preempted
    in steps that were to encode some of them."""
    rng = random.Random(f"image pressure/{async_scheduling}/{seed}")
    block_size = rng.choice([1, 4, 8])
    requests = []
    num_contents = rng.choice([3, 10, 60])
    for index in range(rng.choice([12, 20])):
        is_urgent = rng.random() < 0.3
        prompt = rng.randint(1, 10) if is_urgent else rng.randint(60, 160)
        output = rng.randint(30, 80) if is_urgent else rng.choice([1, 1, rng.randint(1, 8)])
        images = _draw_many_images(rng, prompt, num_contents)
        if images and rng.random() < 0.6:
            prompt = images[-1].start + images[-1].num_tokens
        arrival = rng.randrange(1, 12) if is_urgent else rng.randrange(12)
        request = CaseRequest(f"r{(index * 7) % 1000}", arrival, prompt, output, output, images=tuple(images))
        requests.append(replace(request, priority=0 if is_urgent else rng.choice([1, 2])))
    needs = [blocks_of(request.prompt_tokens + request.max_tokens, block_size) for request in requests]
    settings = CaseSettings(
        policy="priority",
        async_scheduling=async_scheduling,
        block_size=block_size,
        num_gpu_blocks=1 + max(needs) + rng.choice([0, max(needs) // 2, max(needs)]),
        max_num_seqs=16,
        max_num_batched_tokens=rng.choice([64, 128]),
        long_prefill_token_threshold=rng.choice([8, 8, 16]),
        scheduler_reserve_full_isl=False,
        enable_prefix_caching=rng.random() < 0.5,
        encoder_budget=rng.choice([8, 16, 32]),
        encoder_cache=rng.choice([16, 60, 150]),
    )
    requests.sort(key=lambda request: request.arrival_step)
    return Case(group="image_pressure", seed=seed, settings=settings, requests=tuple(requests))


def _draw_many_images(rng: random.Random, prompt: int, num_contents: int) -> list[CaseImage]:
    """Small images, some of so many different ones, one after the other."""
    images: list[CaseImage] = []
    start = rng.randint(0, 3)
    while True:
        content = rng.randrange(num_contents)
        size = 2 + content % 7
        if start + size > prompt:
            return images
        images.append(CaseImage(start, size, size, content))
        start += size + rng.randint(0, 6)


def with_offloading(case: Case) -> Case:
    """The case with KV offloaded to host memory: less or more than the GPU has, over a fast or a slow link.

    Prompts begin alike more often than as drawn, and half of the GPUs have hardly more room than one request needs.
    """
    rng = random.Random(f"offloading/{case.name}")
    settings, requests = case.settings, list(case.requests)
    if settings.block_size == 1:
        # vLLM fails on a prompt that is one block whole and is found in host memory: nothing of it is left to compute.
        requests = [replace(request, prompt_tokens=max(2, request.prompt_tokens)) for request in requests]
    if case.group not in {"prefix", "prefix_pressure", "identical_prompts", "sessions", "everything"}:
        requests = [
            replace(request, segments=((rng.randrange(3), rng.randint(1, request.prompt_tokens)),))
            if rng.random() < 0.8
            else request
            for request in requests
        ]
    if rng.random() < 0.5:
        requests_need = [
            blocks_of(min(each.prompt_tokens + each.max_tokens, settings.max_model_len), settings.block_size)
            for each in requests
        ]
        settings = replace(settings, num_gpu_blocks=max(requests_need) + 1 + rng.choice([0, 1, 2, 5, 20]))
    settings = replace(
        settings,
        enable_prefix_caching=True,
        num_host_blocks=rng.choice([1 + settings.usable_blocks // 4, settings.usable_blocks, 1000, 1000]),
        slowest_transfer_steps=rng.choice([1, 2, 5, 15, 40]),
    )
    return replace(case, settings=settings, requests=tuple(requests))


def transfer_steps(settings: CaseSettings, number: int, *, is_load: bool) -> int:
    """Steps until a transfer, the ``number``-th of its case, is known to be done: in the step that begins it at the
    earliest, or, of a store, in the next one."""
    rng = random.Random(f"{number}/{settings.num_gpu_blocks}")
    return rng.randrange(settings.slowest_transfer_steps) + (not is_load)
