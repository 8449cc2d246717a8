"""What may import what (docs/architecture.md), read off the sources; and no ``assert`` outside the tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import import_graph
import pytest
from import_graph import ROOT, circles, module_graph, modules, part_graph, part_of

LAYERS: dict[str, set[str]] = {
    # What each part of sim may import of sim; its own part and those of ALL_PARTS always.
    "sim.scenario": set(),
    "sim.workload": {"sim.scenario"},
    "sim.latency": {"sim.scenario"},
    "sim.results": {"sim.workload"},
    "sim.engine": {"sim.latency", "sim.results", "sim.workload"},
    "sim.checks": {"sim.scenario", "sim.workload", "sim.latency"},
    "sim.live": {
        *("sim.run", "sim.checks", "sim.cluster", "sim.latency", "sim.results", "sim.workload", "sim.scenario"),
        *("sim.outputs", "sim.progress"),
    },
    "sim.cluster": {"sim.engine", "sim.latency", "sim.results", "sim.workload", "sim.scenario"},
    "sim.explore": {
        *("sim.run", "sim.live", "sim.checks", "sim.cluster", "sim.latency", "sim.results", "sim.workload"),
        *("sim.scenario", "sim.outputs", "sim.progress"),
    },
}
ALL_PARTS = {"sim.errors", "sim.seeds", "sim.version"}
POLICIES_FROM = {"sim.engine", "sim.cluster", "sim.checks", "sim.live", "sim.cli"}
"""Parts that may import ``policies``: those that run them, and those that check or list them by name."""
CALIBRATION_ORDER = (
    *("gpu_calibrate.cli", "gpu_calibrate.commands", "gpu_calibrate.importers", "gpu_calibrate.fit"),
    *("gpu_calibrate.timing", "gpu_calibrate.device", "gpu_calibrate.launches", "gpu_calibrate.plan"),
)
"""Folders of the calibration, each of which imports only those after it."""
SIMPY_FROM = {"sim.engine", "sim.cluster"}
SAME_MEANING = {
    "__init__.py": "",
    "__main__.py": "",
    "cli.py": "the command of its package",
    "base.py": "the contract that its folder fulfils",
}
"""Names that several files may have, and what they mean wherever they stand."""
CALIBRATION_USES = (
    *("sim.latency.profile", "sim.latency.base", "sim.latency.gpus", "sim.latency.models", "sim.latency.model_spec"),
    "sim.latency.uniform",
    "sim.errors",
)
"""All that ``gpu_calibrate`` may import of ``sim``: the profile file and its reading, facts of GPUs and models."""


SIM, POLICIES, CALIBRATE = modules("sim"), modules("policies"), modules("gpu_calibrate")
KNOWN = SIM | POLICIES | CALIBRATE


def imports(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in the file, with its line."""
    return import_graph.imports(name, path, KNOWN)


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_there_is_something_to_look_at() -> None:
    assert {part_of(name) for name in SIM} >= set(LAYERS)
    assert len(POLICIES) > 10
    found = {module for module, _ in imports("sim.engine.reference.replica", SIM["sim.engine.reference.replica"])}
    assert {"sim.engine.reference.scheduler", "sim.engine.clock", "simpy"} <= found


def test_imports_run_one_way() -> None:
    wrong = []
    for name, path in SIM.items():
        part = part_of(name)
        if part not in LAYERS:
            continue
        allowed = LAYERS[part] | ALL_PARTS | {part}
        for module, line in imports(name, path):
            target = part_of(module)
            if (target == "sim" or target.startswith("sim.")) and target not in allowed:
                wrong.append(f"{place(path, line)}: {part} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_layers_below_never_reach_up() -> None:
    """The order of docs/architecture.md: cli -> explore -> live -> run -> cluster -> engine -> policies, and leaves."""
    order = ["sim.cli", "sim.explore", "sim.live", "sim.run", "sim.cluster", "sim.engine"]
    leaves = {"sim.checks", "sim.latency", "sim.workload", "sim.scenario", "sim.results"}
    for name, path in SIM.items():
        part = part_of(name)
        above = set(order) if part in leaves else set(order[: order.index(part)]) if part in order else set()
        reached = {part_of(module) for module, _ in imports(name, path)} & above
        assert not reached, f"{name} imports {reached}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = circles(module_graph())
    assert not found, "\n".join(", ".join(group) for group in found)


def test_no_folders_import_each_other_in_a_circle() -> None:
    parts = part_graph(module_graph())
    assert {"sim.scenario", "sim.checks", "gpu_calibrate.plan"} <= set(parts)
    assert circles(parts) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    """One that only a type and an import inside a function close."""
    for name, text in (
        ("sim/a/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sim.b import y\n"),
        ("sim/b/y.py", "def run():\n    from sim.a.z import Z\n    import sim.b.w\n"),
        ("sim/b/w.py", "import sim.a.x\n"),
        ("sim/a/z.py", "import json\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    graph = module_graph(tmp_path)
    assert circles(graph) == [["sim.a.x", "sim.b.w", "sim.b.y"]]
    assert circles(part_graph(graph)) == [["sim.a", "sim.b"]]


def test_the_calibration_imports_one_way() -> None:
    parts = part_graph(module_graph())
    assert set(CALIBRATION_ORDER) == {part for part in parts if part.startswith("gpu_calibrate.")}
    wrong = [
        f"{part} imports {above}"
        for index, part in enumerate(CALIBRATION_ORDER)
        for above in CALIBRATION_ORDER[:index]
        if above in parts[part]
    ]
    assert not wrong, wrong


def test_a_file_name_means_one_thing() -> None:
    """Two files of one name in different folders say two things; `SAME_MEANING` says the same wherever it stands."""
    files: dict[str, list[str]] = {}
    for path in (*KNOWN.values(), *modules("benchmarks").values()):
        files.setdefault(path.name, []).append(str(path.relative_to(ROOT)))
    twice = {name: paths for name, paths in files.items() if len(paths) > 1 and name not in SAME_MEANING}
    assert not twice, twice


def test_policies_need_the_standard_library_only() -> None:
    wrong = []
    for name, path in POLICIES.items():
        if name == "policies.vllm_plugin":
            continue
        for module, line in imports(name, path):
            top = module.split(".")[0]
            if top != "policies" and top not in sys.stdlib_module_names:
                wrong.append(f"{place(path, line)}: {module}")
            if module == "policies.vllm_plugin":
                wrong.append(f"{place(path, line)}: the plugin is for vLLM to import")
    assert not wrong, "\n".join(wrong)


def test_policies_are_imported_by_who_runs_or_names_them() -> None:
    wrong = [
        f"{place(path, line)}: {module}"
        for name, path in SIM.items()
        for module, line in imports(name, path)
        if part_of(module) == "policies" and part_of(name) not in POLICIES_FROM
    ]
    assert not wrong, "\n".join(wrong)


def test_simpy_stays_in_engine_and_cluster() -> None:
    users = {
        part_of(name)
        for name, path in {**SIM, **CALIBRATE}.items()
        for module, _ in imports(name, path)
        if module.split(".")[0] == "simpy"
    }
    assert users == SIMPY_FROM


def test_the_simulator_and_the_calibration_meet_in_a_file_only() -> None:
    pairs = [
        *((name, path, "gpu_calibrate") for name, path in SIM.items()),
        *((name, path, "policies") for name, path in CALIBRATE.items()),
    ]
    wrong = [
        f"{place(path, line)}: {module}"
        for name, path, forbidden in pairs
        for module, line in imports(name, path)
        if module.split(".")[0] == forbidden
    ]
    wrong += [
        f"{place(path, line)}: {module}"
        for name, path in CALIBRATE.items()
        for module, line in imports(name, path)
        if module.split(".")[0] == "sim"
        and not any(module == used or module.startswith(f"{used}.") for used in CALIBRATION_USES)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("heavy", ["vllm", "torch", "cupy", "ray"])
def test_extras_are_never_imported_by_the_simulator(heavy: str) -> None:
    users = [
        place(path, line)
        for name, path in {**SIM, **POLICIES}.items()
        if name != "policies.vllm_plugin"
        for module, line in imports(name, path)
        if module.split(".")[0] == heavy
    ]
    assert not users, users


def test_no_assert_outside_the_tests() -> None:
    """``python -O`` drops them, and a user gets no message from one."""
    found = [
        place(path, node.lineno)
        for path in KNOWN.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]
    assert not found, found


def test_the_command_starts_without_the_heavy_libraries() -> None:
    """``simrun --help`` reads no module-level import of these, directly or through the modules it imports."""
    heavy = {"numpy", "pandas", "pyarrow", "matplotlib", "pydantic", "simpy", "rich", "ruamel"}
    known, todo, reached = SIM | POLICIES, ["sim.cli"], set()
    while todo:
        name = todo.pop()
        if name in reached or name not in known:
            continue
        reached.add(name)
        for node in ast.parse(known[name].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                todo += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                todo.append(node.module)
        assert not {each.split(".")[0] for each in todo} & heavy, f"{name} imports {todo}"
    assert "sim.errors" in reached


def test_help_imports_nothing_heavy() -> None:
    """``python -X importtime -m sim.cli --help`` as users pay for it, third parties' imports included.

    It writes one line per module to standard error, ``import time: self [us] | cumulative | name``, indented by what
    imported it; a module's own cost is the first number, and its importer follows below, one level further left. To
    see what is slow: ``... --help 2>&1 >/dev/null | sort -t'|' -k2 -n | tail``. The whole takes below 0.1 s.
    """
    command = [sys.executable, "-X", "importtime", "-m", "sim.cli", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    reached = {line.rpartition("|")[2].strip() for line in lines}
    assert "simrun" in done.stdout
    assert {"click", "sim.live.commands"} <= reached, "the listing is read wrongly"
    heavy = {"numpy", "pandas", "pyarrow", "matplotlib", "pydantic", "simpy", "rich", "ruamel", "yaml", "aiohttp"}
    assert not {name.partition(".")[0] for name in reached} & (heavy | {"asyncio", "policies"})
    own = {name for name in reached if name.partition(".")[0] == "sim"}
    known = {"sim", "sim.errors", "sim.explore", "sim.explore.fit_command", "sim.live", "sim.live.commands"}
    assert own == known | {"sim.explore.memory_command", "sim.explore.models_command", "sim.outputs", "sim.version"}
