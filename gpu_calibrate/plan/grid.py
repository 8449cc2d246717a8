"""Which points a calibration times: shapes of the model presets, densest where kernels step, thinned to a time budget.

Points come in tiers. Tier 0 is what ``--quick`` keeps: the shapes of a few much-served models at a coarse grid. Tier 1
adds the dense grid and the held-out points, tier 2 all other models. ``plan`` takes them in this order until the
estimated time is used up: the same points on every run, and a smaller budget gives nearly a subset of a larger one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from gpu_calibrate.plan.points import CURVE, RANDOM, REPEAT, SKEW, Point, expected_ns, work_of
from sim.latency.gpus import GpuSpec
from sim.latency.model_spec import ModelSpec
from sim.latency.models import MODELS

TP_SIZES = (1, 2, 4, 8)
WIDEST = 1 << 16
"""Outputs of a matrix: 2 GiB of 16-bit results with 16,384 tokens."""
CORE_MODELS = (("llama-3.1-8b", 1), ("llama-3.1-70b", 4), ("qwen3-32b", 2))
"""(model, TP) whose shapes are in every calibration."""

COARSE_M = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384)
"""Without 8,192: from 4,096 rows on a GEMM is bound by arithmetic, its time nearly a line, and the held-out points say
how nearly. The time goes into the end of the range instead."""
DENSE_M = (
    *(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128),
    *(129, 160, 192, 224, 256, 257, 288, 320, 352, 384, 385, 416, 448, 480, 512, 513),
    *(576, 640, 641, 704, 768, 769, 832, 896, 897, 960, 1024),
    *(1152, 1280, 1536, 1792, 2048, 2560, 3072, 4096, 6144, 8192, 12288, 16384),
)
"""Tiles are up to 256 rows: around each multiple of 128 a GEMM may need one more wave of them."""
HEAD_M = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Rows of the LM head: sampled rows only, so no more than seats."""

CONTEXTS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
COARSE_CONTEXTS = (128, 512, 2048, 8192, 32768)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COARSE_BATCHES = (1, 8, 64, 256)
MAX_KV_BYTES = 4 << 30
"""Of one decode or prefill point: beyond, time per byte no longer changes."""
CORE_HEADS = (32, 8, 128)
OTHER_HEADS = (
    (8, 1, 128),
    (16, 2, 128),
    (64, 8, 128),
    (32, 32, 128),
    (28, 4, 128),
    (32, 4, 128),
    (8, 8, 128),
    (32, 8, 64),
)
"""(query heads, KV heads, head size) per GPU: groups of 1, 4, 7 and 8 over 1 to 32 KV heads."""

CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
COARSE_CHUNKS = (64, 256, 1024, 4096)
PRIORS = (0, 512, 2048, 8192, 32768)
TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
ROWS = (1, 4, 16, 64, 256, 1024)
COPY_BYTES = tuple(1 << power for power in range(14, 29, 2))
LINK_BYTES = tuple(1 << power for power in range(13, 29))

NUM_RANDOM = {"gemm": 96, "decode_attention": 64, "prefill_attention": 40}
REPEAT_SHARE = 0.05
"""Of the curves' points, of the first two tiers, timed once more after them: the noise of one run."""

QUICK_S, DEFAULT_S = 40.0, 225.0
"""Seconds of estimated measuring; the rest of a run (start, compilation, fit) comes on top."""
MIN_REPLAYS = 10
PREPARE_S = 0.030
"""Buffers, warm-up and capture of one point."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be timed, in order of importance, and what did not fit the budget."""

    points: tuple[Point, ...]
    seconds: float
    """Estimated."""
    left_out: int


@dataclass(slots=True)
class Grid:
    """All candidates by tier; a point is added once, at its lowest tier."""

    tiers: tuple[list[Point], list[Point], list[Point]] = field(default_factory=lambda: ([], [], []))
    seen: set[tuple[str, tuple[str | int, ...], int]] = field(default_factory=set)

    def add(self, tier: int, operator: str, key: tuple[str | int, ...], places: Iterable[int]) -> None:
        """Curve points of one key."""
        for at in places:
            if (operator, key, at) not in self.seen:
                self.seen.add((operator, key, at))
                self.tiers[tier].append(Point(operator, key, at))


def model_matrices(model: ModelSpec, tp: int) -> Iterator[tuple[int, int]]:
    """(n, k) of a layer's linear layers on one of ``tp`` GPUs; empty where the model cannot be split so."""
    widths = [model.intermediate_size] if model.num_moe_layers < model.num_layers else []
    if model.shared_expert_intermediate_size:
        widths.append(model.shared_expert_intermediate_size)
    if model.num_attention_heads % tp or any(width % tp for width in widths):
        return
    kv = max(1, model.num_kv_heads // tp) * model.head_size
    yield model.q_size // tp + 2 * kv, model.hidden_size
    yield model.hidden_size, model.q_size // tp
    for width in widths:
        yield (model.mlp_matrices - 1) * width // tp, model.hidden_size
        yield model.hidden_size, width // tp
    if model.num_experts:
        yield model.num_experts, model.hidden_size


def head_matrix(model: ModelSpec, tp: int) -> tuple[int, int]:
    """(n, k) of the LM head on one of ``tp`` GPUs, its rows padded to a multiple of 64 as engines do."""
    padded = -(-model.vocab_size // 64) * 64
    return padded // tp, model.hidden_size


def measured_models() -> list[ModelSpec]:
    """Presets whose shapes are measured: those of one shape in all layers, and no wider than the scratch memory holds
    with the most tokens. What others ask for is interpolated."""
    return [
        model
        for model in MODELS.values()
        if model.is_plain and all(n <= WIDEST for tp in TP_SIZES for n, _ in model_matrices(model, tp))
    ]


def fits(model: ModelSpec, tp: int, gpu: GpuSpec) -> bool:
    """Whether the model could be served so: 8-bit weights in nine tenths of the memory."""
    return model.num_parameters / tp <= 0.9 * gpu.memory_bytes


def _gemms(grid: Grid, gpu: GpuSpec) -> None:
    core = [(MODELS[name], tp) for name, tp in CORE_MODELS if fits(MODELS[name], tp, gpu)]
    others = [(model, tp) for model in measured_models() for tp in TP_SIZES if fits(model, tp, gpu)]
    dtypes = ("bfloat16", "fp8") if gpu.fp8_flops else ("bfloat16",)
    for model, tp in core:
        for n, k in model_matrices(model, tp):
            grid.add(0, "gemm", ("bfloat16", n, k), COARSE_M)
            grid.add(1, "gemm", ("bfloat16", n, k), DENSE_M)
        grid.add(0, "gemm", ("bfloat16", *head_matrix(model, tp)), HEAD_M)
    for dtype in dtypes:
        for model, tp in others:
            for n, k in model_matrices(model, tp):
                if dtype == "bfloat16" or (n % 16 == 0 and k % 16 == 0):
                    in_core = (model, tp) in core
                    grid.add(1 if in_core else 2, "gemm", (dtype, n, k), COARSE_M)
            if dtype == "bfloat16":
                grid.add(2, "gemm", (dtype, *head_matrix(model, tp)), HEAD_M)


def _kv_fits(point: Point) -> bool:
    return work_of(point).bytes <= MAX_KV_BYTES


def _attention(grid: Grid, gpu: GpuSpec) -> None:
    def decodes(
        tier: int, kv: str, heads: tuple[int, int, int], batches: Iterable[int], contexts: Iterable[int]
    ) -> None:
        for batch in batches:
            key = ("bfloat16", kv, *heads, 0, batch)
            places = [at for at in contexts if _kv_fits(Point("decode_attention", key, at))]
            grid.add(tier, "decode_attention", key, places)

    def prefills(
        tier: int, heads: tuple[int, int, int], batch: int, priors: Iterable[int], chunks: Iterable[int]
    ) -> None:
        for prior in priors:
            key = ("bfloat16", "bfloat16", *heads, 0, batch, prior)
            grid.add(tier, "prefill_attention", key, [at for at in chunks if batch * at <= max(CHUNKS)])

    decodes(0, "bfloat16", CORE_HEADS, COARSE_BATCHES, CONTEXTS)
    decodes(1, "bfloat16", CORE_HEADS, BATCHES, CONTEXTS)
    decodes(1, "fp8", CORE_HEADS, COARSE_BATCHES, COARSE_CONTEXTS)
    prefills(0, CORE_HEADS, 1, PRIORS, COARSE_CHUNKS)
    prefills(1, CORE_HEADS, 1, PRIORS, CHUNKS)
    prefills(1, CORE_HEADS, 4, (0, 2048), CHUNKS)
    prefills(2, CORE_HEADS, 16, (0,), CHUNKS)
    for heads in OTHER_HEADS:
        tier = 1 if heads == (8, 1, 128) else 2
        decodes(tier, "bfloat16", heads, COARSE_BATCHES, COARSE_CONTEXTS)
        prefills(tier, heads, 1, (0, 2048, 8192), COARSE_CHUNKS)
        decodes(2, "fp8", heads, COARSE_BATCHES, COARSE_CONTEXTS)
    for batch in (8, 64):
        key = ("bfloat16", "bfloat16", *CORE_HEADS, 0, batch)
        grid.add(1, "decode_attention_contiguous", key, [at for at in COARSE_CONTEXTS if at * batch <= 1 << 20])


def _small_operators(grid: Grid, gpu: GpuSpec, num_gpus: int) -> None:
    models = [model for model in measured_models() if any(fits(model, tp, gpu) for tp in TP_SIZES)]
    core = [(MODELS[name], tp) for name, tp in CORE_MODELS]
    for tier, pairs in ((0, core), (2, [(model, tp) for model in models for tp in TP_SIZES])):
        places = TOKENS if tier == 0 else TOKENS[::2]
        for model, tp in pairs:
            grid.add(tier, "elementwise", ("rms_norm", model.hidden_size), places)
            if model.num_attention_heads % tp == 0:
                kv = max(1, model.num_kv_heads // tp) * model.head_size
                grid.add(tier, "elementwise", ("rotary", model.q_size // tp + kv), places)
                grid.add(tier, "elementwise", ("reshape_and_cache", 2 * kv), places)
            if model.num_moe_layers < model.num_layers and model.intermediate_size % (8 * tp) == 0:
                grid.add(tier, "elementwise", ("silu_and_mul", model.intermediate_size // tp), places)
    for vocab_size in (128256, 151936, 32000):
        grid.add(0 if vocab_size == 128256 else 1, "sampling", (vocab_size,), ROWS)
    for direction in ("to_host", "to_gpu"):
        grid.add(0, "host_copy", (direction,), COPY_BYTES)
    if num_gpus > 1:
        for size in (size for size in TP_SIZES[1:] if size <= num_gpus):
            grid.add(0, "all_reduce", ("nccl", size), LINK_BYTES)


def _held_out(grid: Grid) -> list[Point]:
    """Points off the grid, within its reach: what is asked of a profile. Drawn with a fixed seed."""
    import numpy as np

    rng = np.random.default_rng(20240501)
    known = grid.tiers[0] + grid.tiers[1]
    drawn: dict[str, Point] = {}

    def log_uniform(low: int, high: int) -> int:
        return round(float(np.exp(rng.uniform(np.log(low), np.log(high + 0.49)))))

    for operator, count in NUM_RANDOM.items():
        keys = sorted({point.key for point in known if point.operator == operator}, key=str)
        for _ in range(count):
            key = keys[int(rng.integers(len(keys)))]
            places = [point.at for point in known if point.operator == operator and point.key == key]
            point = Point(operator, key, log_uniform(min(places), max(places)), RANDOM)
            if operator == "decode_attention":
                # Any batch, as an engine has them: between the curves, too.
                batch, context = log_uniform(1, 256), log_uniform(64, 16384)
                point = replace(point, key=(*key[:-1], batch), at=min(context, (1 << 21) // batch))
            drawn[point.id] = point
    return [point for point in drawn.values() if (point.operator, point.key, point.at) not in grid.seen]


def _skewed() -> list[Point]:
    keys = [("bfloat16", "bfloat16", *CORE_HEADS, 0, batch) for batch in (16, 64)]
    return [
        Point("decode_attention", key, at, SKEW, skew=skew)
        for key in keys
        for at in (512, 4096)
        for skew in ("one_long", "lognormal")
    ]


def _repeats(points: list[Point]) -> list[Point]:
    step = max(1, round(1 / REPEAT_SHARE))
    return [replace(point, role=REPEAT) for point in points if point.role == CURVE][::step]


def point_seconds(point: Point, gpu: GpuSpec) -> float:
    """Estimated time to measure a point: preparation and the least number of replays."""
    each = expected_ns(point, gpu) * 1e-9
    return PREPARE_S + (MIN_REPLAYS + 4) * each * launches_per_graph(each * 1e9)


def launches_per_graph(expected: float) -> int:
    """Launches in one graph: enough to last a millisecond, so that starting the graph is no part of the time."""
    return int(max(1, min(256, 1.2e6 // expected)))


def candidates(gpu: GpuSpec, num_gpus: int = 1) -> tuple[list[Point], list[Point], list[Point]]:
    """All points by tier."""
    grid = Grid()
    _gemms(grid, gpu)
    _attention(grid, gpu)
    _small_operators(grid, gpu, num_gpus)
    first, second, third = grid.tiers
    return first, [*_held_out(grid), *second, *_skewed()], third


def plan(gpu: GpuSpec, budget_s: float, num_gpus: int = 1) -> Plan:
    """The points for ``budget_s`` seconds of measuring on ``gpu``.

    Each tier is a mixture of its curves, so that whatever does not fit, or is not reached in time, no operator or model
    is left out altogether.
    """
    chosen: list[Point] = []
    spent, total = 0.0, 0
    for number, tier in enumerate(candidates(gpu, num_gpus)):
        total += len(tier)
        ordered = _evenly(tier)
        if number == 2:
            # Before the long tail, which is what a run that is late leaves out.
            ordered = [*_repeats(chosen), *ordered]
        for point in ordered:
            seconds = point_seconds(point, gpu)
            if spent + seconds <= budget_s or point.role == REPEAT:
                chosen.append(point)
                spent += seconds
    return Plan(tuple(chosen), spent, total - sum(point.role != REPEAT for point in chosen))


def _evenly(points: list[Point]) -> list[Point]:
    """Held-out points first, then whole curves in a mixed order (by a hash), the operators taking turns."""
    held_out = [point for point in points if point.role != CURVE]
    curves: dict[str, dict[tuple[str | int, ...], list[Point]]] = {}
    for point in points:
        if point.role == CURVE:
            curves.setdefault(point.operator, {}).setdefault(point.key, []).append(point)
    queues = [sorted(keys.values(), key=lambda curve: curve[0].number) for keys in curves.values()]
    ordered = list(held_out)
    while any(queues):
        for queue in queues:
            if queue:
                ordered += queue.pop(0)
    return ordered
