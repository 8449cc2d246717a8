"""The loader, the plans and the launches, without a GPU: a stand-in for CuPy records what would be launched."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpu_calibrate.launches import attention_plans, kernels, launch
from gpu_calibrate.launches.float64 import to_float64
from gpu_calibrate.launches.kernels import FILES, KernelError, load_module, nvrtc_options, source
from gpu_calibrate.launches.plan_types import HEADS_PER_TILE
from gpu_calibrate.launches.plans import DECODE_LADDER, PLANNERS, plan

ROOT = Path(__file__).parents[2]

SHAPES: dict[str, dict[str, Any]] = {
    **{
        op: {"num_q_heads": 8, "num_kv_heads": 2, "head_size": 64, "context_lens": [30, 500]}
        for op in (*DECODE_LADDER, "contiguous_attention")
    },
    "paged_prefill": {
        "num_q_heads": 8,
        "num_kv_heads": 2,
        "head_size": 128,
        "query_lens": [3, 70],
        "context_lens": [30, 500],
    },
    "reshape_and_cache": {"num_tokens": 7, "num_kv_heads": 2, "head_size": 64},
    "rms_norm": {"num_tokens": 7, "hidden_size": 512},
    "rotary": {"num_tokens": 7, "num_q_heads": 8, "num_kv_heads": 2, "head_size": 64},
    "silu_and_mul": {"num_tokens": 7, "intermediate_size": 512},
}


def test_importing_needs_neither_cupy_nor_torch() -> None:
    code = (
        "import sys; import gpu_calibrate.launches.launch, gpu_calibrate.launches.float64;"
        "import gpu_calibrate.commands.cubins;"
        "print(sorted({'cupy', 'torch', 'cuda'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_one_source_per_kernel_and_nothing_else_in_the_folder() -> None:
    folder = kernels.kernels_dir()
    assert {path.stem for path in folder.glob("*.cu")} == set(FILES) == set(PLANNERS) == set(SHAPES)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".cu", ".cuh"}


def parameters(text: str, entry: str) -> list[str]:
    """The parameters of a kernel, comments taken out."""
    match = re.search(rf"\b{entry}\(([^;{{]*)\)\s*{{", re.sub(r"//[^\n]*", "", text))
    assert match is not None, entry
    return [" ".join(each.split()) for each in match[1].split(",")]


SCALARS = {np.int32: "int", np.int64: "long long", np.float32: "float"}


@pytest.mark.parametrize("op", PLANNERS)
def test_arguments_match_the_kernels_parameters(op: str) -> None:
    """Number, order and type: a scalar of another width would shift all that follow."""
    variants = [{}] if op != "rms_norm" else [{"residual": True}, {"residual": False}]
    if op in ("paged_attention_split_kv", "contiguous_attention"):
        variants = [{"merge": "kernel", "tokens_per_split": 64}]
    for variant in variants:
        planned = plan(op, **SHAPES[op], **variant)
        for call in planned.calls:
            wanted = parameters(source(planned.file).text, call.entry)
            assert len(wanted) == len(call.args), call.entry
            for parameter, arg in zip(wanted, call.args, strict=True):
                kind, name = parameter.rsplit(" ", 1)
                if isinstance(arg, str):
                    assert "*" in kind, f"{call.entry}: {parameter} gets the array {arg}"
                    assert arg == name
                else:
                    assert kind == SCALARS[type(arg)], f"{call.entry}: {parameter} gets {arg!r}"


@pytest.mark.parametrize("name", FILES)
def test_text_is_whole_and_hashed(name: str) -> None:
    text = source(name)
    assert "#include" not in text.text
    for entry in FILES[name].entries:
        assert f"{entry}(" in text.text
    assert re.fullmatch("[0-9a-f]{16}", text.hash)
    assert len({source(other).hash for other in FILES}) == len(FILES)


def test_every_source_opens_with_what_it_computes_moves_and_launches() -> None:
    for name in set(FILES) - {"contiguous_attention"}:
        header = (kernels.kernels_dir() / f"{name}.cu").read_text(encoding="utf-8").split("#include")[0]
        for word in (name, "Bytes", "FLOPs", "Grid", "block"):
            assert word in header or word.capitalize() in header, f"{name}: {word}"


def test_installed_copy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gpu_calibrate"
    package.mkdir()
    monkeypatch.setattr(kernels, "__file__", str(package / "launches" / "kernels.py"))
    for folder in (tmp_path / "kernels", package / "kernels"):
        kernels.kernels_dir.cache_clear()
        folder.mkdir()
        (folder / "paged_attention_split_kv.cu").write_text("")
        assert kernels.kernels_dir() == folder
    (package / "kernels" / "paged_attention_split_kv.cu").unlink()
    (tmp_path / "kernels" / "paged_attention_split_kv.cu").unlink()
    kernels.kernels_dir.cache_clear()
    with pytest.raises(KernelError, match="install the package again"):
        kernels.kernels_dir()
    monkeypatch.undo()
    kernels.kernels_dir.cache_clear()


@pytest.mark.parametrize(
    ("arch", "message"),
    [("sm_75", "need sm_80"), ("90", "name it as sm_80, sm_90"), ("compute_90", "name it as sm_80, sm_90")],
)
def test_the_architecture_is_named_and_new_enough(arch: str, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        nvrtc_options(arch, {})


def test_options_name_architecture_and_macros() -> None:
    assert nvrtc_options("sm_90", {"HEAD_SIZE": 64, "BLOCK_SIZE": 16}) == (
        "-std=c++17",
        "--gpu-architecture=sm_90",
        "-DBLOCK_SIZE=16",
        "-DHEAD_SIZE=64",
    )


def test_without_cupy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    for action in (lambda: launch.prepare("rotary", **SHAPES["rotary"]), lambda: load_module("rotary", {})):
        with pytest.raises(KernelError, match=r"pip install 'simrun-llm\[gpu-cu12\]'"):
            action()


class FakeKernel:
    """Records launches; like CuPy's, it must be told of more than 48 KB of shared memory."""

    def __init__(self, entry: str) -> None:
        self.entry = entry
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self.launches: list[tuple[Any, ...]] = []

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        self.launches.append((grid, block, args, shared_mem))


class FakeModule:
    def __init__(self, **given: Any) -> None:
        self.given = given
        self.kernels: dict[str, FakeKernel] = {}

    def compile(self) -> None:
        if "HEAD_SIZE" in self.given["code"]:
            assert any(option.startswith("-DHEAD_SIZE") for option in self.given["options"])

    def get_function(self, entry: str) -> FakeKernel:
        return self.kernels.setdefault(entry, FakeKernel(entry))


@pytest.fixture
def fake_cupy(monkeypatch: pytest.MonkeyPatch) -> list[FakeModule]:
    modules: list[FakeModule] = []

    def raw_module(**given: Any) -> FakeModule:
        modules.append(FakeModule(**given))
        return modules[-1]

    cupy: Any = ModuleType("cupy")
    for name in ("asarray", "zeros", "random", "resize", "ascontiguousarray", "where", "minimum"):
        setattr(cupy, name, getattr(np, name))
    cupy.RawModule = raw_module
    device = SimpleNamespace(compute_capability="90", attributes={"MultiProcessorCount": 132})
    cupy.cuda = SimpleNamespace(
        Device=lambda: device, compiler=SimpleNamespace(CompileException=type("CompileException", (Exception,), {}))
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(kernels, "_MODULES", {})
    return modules


@pytest.mark.parametrize("op", PLANNERS)
def test_prepare_launches_what_was_planned(fake_cupy: list[FakeModule], op: str) -> None:
    run = launch.prepare(op, **SHAPES[op])
    run.call()
    run.call()
    assert run.kernel_name in FILES[run.plan.file].entries
    assert run.kernel_hash == source(run.plan.file).hash
    assert run.buffer_bytes == sum(array.nbytes for array in run.arrays.values())
    module = fake_cupy[0]
    assert not any("architecture" in option for option in module.given["options"])
    for call in run.plan.calls:
        launches = module.kernels[call.entry].launches
        assert len(launches) == 2
        grid, block, args, shared = launches[0]
        assert (grid, block, shared) == (call.grid, call.block, call.shared_bytes)
        for arg, planned in zip(args, call.args, strict=True):
            assert arg is run.arrays[planned] if isinstance(planned, str) else arg == planned


def test_more_than_48_kb_of_shared_memory_are_asked_for(fake_cupy: list[FakeModule]) -> None:
    heads = {"num_q_heads": 4, "num_kv_heads": 4, "head_size": 256}
    run = launch.prepare("paged_prefill", query_lens=[4], context_lens=[9], **heads)
    run.call()
    assert run.plan.calls[0].shared_bytes > 48 * 1024
    assert fake_cupy[0].kernels["paged_prefill"].max_dynamic_shared_size_bytes == run.plan.calls[0].shared_bytes


def test_a_module_is_compiled_once(fake_cupy: list[FakeModule]) -> None:
    launch.prepare("rms_norm", num_tokens=2, hidden_size=64)
    launch.prepare("rms_norm", num_tokens=5, hidden_size=128, residual=False)
    assert len(fake_cupy) == 1
    launch.prepare("rms_norm", num_tokens=2, hidden_size=64, dtype="float16")
    assert len(fake_cupy) == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "fp8"])
def test_random_data_are_normal_in_every_format(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal(20_000, dtype=np.float32)
    stored = to_float64(launch.to_bits(np, values.copy(), dtype), dtype)
    step = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "fp8": 2.0**-3}[dtype]
    assert (np.abs(stored - values) <= np.abs(values) * step * 1.001 + 2.0**-6).all()


def test_large_arrays_repeat_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_RANDOM_ELEMENTS", 100)
    arrays = launch.allocate(np, plan("rms_norm", num_tokens=3, hidden_size=64), seed=5)
    flat = arrays["input"].ravel()
    np.testing.assert_array_equal(flat[:92], flat[100:])
    assert len(np.unique(flat)) > 50


def test_block_tables_own_every_block_once() -> None:
    planned = plan("paged_attention_gqa", **{**SHAPES["paged_attention_gqa"], "context_lens": [1, 16, 17, 0, 200]})
    tables = planned.arrays["block_tables"].values
    assert tables is not None
    owned = [row[row >= 0] for row in tables]
    assert [len(row) for row in owned] == [1, 1, 2, 0, 13]
    assert sorted(np.concatenate(owned)) == list(range(17))
    assert tables.shape[1] > 13
    assert planned.arrays["k_cache"].shape == (17, 16, 2, 64)


def test_bytes_and_flops_by_hand() -> None:
    """Worked out with a pencil: a multiply-add is two, every input and output moves once."""
    llama = {"num_q_heads": 32, "num_kv_heads": 8, "head_size": 128}
    decode = plan("paged_attention_split_kv", context_lens=[4096] * 64, **llama)
    kv_bytes = 64 * 4096 * 8 * 128 * 2 * 2
    assert decode.bytes_moved == kv_bytes + 2 * (64 * 32 * 128 * 2)
    assert decode.flops == 4 * 64 * 4096 * 32 * 128
    assert decode.flops / decode.bytes_moved == pytest.approx(4.0, rel=1e-3)  # the group size
    mha = plan("paged_attention_gqa", context_lens=[100_000], num_q_heads=8, num_kv_heads=8, head_size=128)
    assert mha.flops / mha.bytes_moved == pytest.approx(1.0, rel=1e-3)
    fp8 = plan("paged_attention_gqa", context_lens=[100_000], kv_dtype="fp8", **llama)
    assert fp8.flops / fp8.bytes_moved == pytest.approx(8.0, rel=1e-3)
    prefill = plan("paged_prefill", num_q_heads=8, num_kv_heads=8, head_size=64, query_lens=[512], context_lens=[512])
    assert prefill.flops / prefill.bytes_moved == pytest.approx(512 / 4, rel=3e-3)
    norm = plan("rms_norm", num_tokens=10, hidden_size=4096)
    assert norm.bytes_moved == (10 * 4 + 1) * 4096 * 2
    assert plan("silu_and_mul", num_tokens=3, intermediate_size=64).bytes_moved == 3 * 64 * 6


@pytest.mark.parametrize("batch", [1, 7, 64, 256])
@pytest.mark.parametrize("context", [100, 4_096, 131_072])
def test_splits_keep_multiprocessors_busy(batch: int, context: int) -> None:
    chunk = attention_plans.choose_split([context] * batch, 8, 132, 3, 64)
    assert chunk % 64 == 0
    assert chunk >= 64
    blocks = batch * 8 * -(-context // chunk)
    possible = batch * 8 * -(-context // 128)
    assert blocks >= min(132 * 3 // 2, possible)
    # What a chunk costs beyond its tokens stays below half of them.
    assert chunk >= min(context, 2 * attention_plans.SPLIT_OVERHEAD_TOKENS)


def test_a_skewed_batch_is_split_finer_than_its_mean_needs() -> None:
    even = attention_plans.choose_split([4_096] * 64, 8, 132, 3, 64)
    skewed = attention_plans.choose_split([131_072] + [2_080] * 63, 8, 132, 3, 64)
    assert skewed <= even


def test_head_tiles_cover_large_groups() -> None:
    planned = plan("paged_attention_gqa", num_q_heads=40, num_kv_heads=2, head_size=64, context_lens=[9, 9, 9])
    assert planned.calls[0].grid == (2 * -(-20 // HEADS_PER_TILE), 3, 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"context_lens": []}, "context_lens is empty"),
        ({"context_lens": [-1]}, "context_lens must lie in 0"),
        ({"num_q_heads": 7}, "num_q_heads 7 is no multiple of num_kv_heads 2"),
        ({"block_size": 8}, "block_size 8 is not supported: choose one of 16, 32"),
        ({"kv_dtype": "int8"}, "kv_dtype 'int8' is not supported"),
        ({"tokens_per_split": 40}, "tokens_per_split 40 must be a multiple of 16"),
        ({"tokens_per_split": -16}, "tokens_per_split must be at least 1, is -16"),
        ({"merge": "later"}, "merge 'later' is not supported"),
        ({"num_warps": 33}, "num_warps must lie in 1 ... 32, is 33"),
    ],
)
def test_unsupported_decode_shapes_are_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=re.escape(message)):
        plan("paged_attention_split_kv", **{**SHAPES["paged_attention_split_kv"], **shape})
