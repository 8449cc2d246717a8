"""One's own policy in a file beside the scenario, and folders that have the names of the project's packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import simrun_llm
from policies.base import PolicyError
from policies.beside import import_beside
from sim.errors import InputError
from sim.run import load, run

SCENARIO = """\
name: beside
workload:
  requests: 12
  arrival: {process: constant, rate: 500.0}
  input_tokens: {dist: fixed, value: 64}
  output_tokens: {dist: values, values: [5, 20, 9]}
engine: {model: llama-3.1-8b, gpu: h100-sxm, max_num_seqs: 2, policy: "%s"}
"""
POLICY = """\
from policies.base import Policy
import beside_helper
class Mine(Policy):
    name = "mine"
    summary = "by a helper's rule"
    def rank(self, request, now_ns):
        return beside_helper.sign() * request.num_prompt_tokens
"""


@pytest.fixture(autouse=True)
def modules_and_path() -> Iterator[None]:
    """Each test imports afresh, and leaves nothing behind."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("beside_"):
            del sys.modules[name]


def folder(place: Path, sign: int, module: str = "beside_mine") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "s.yaml").write_text(SCENARIO % f"{module}:Mine")
    file = place.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    file.write_text(POLICY)
    (place / "beside_helper.py").write_text(f"def sign(): return {sign}\n")
    return place / "s.yaml"


@pytest.mark.parametrize("module", ["beside_mine", "beside_package.mine"])
def test_a_file_beside_the_scenario_is_found(tmp_path: Path, module: str) -> None:
    results = run(load(folder(tmp_path, 1, module)))
    assert results.summary["completed"] == 12
    assert Path(sys.modules[module].__file__ or "").is_relative_to(tmp_path)


def test_each_scenario_has_its_own_folders_file(tmp_path: Path) -> None:
    for name in ("one", "two", "one"):
        scenario = folder(tmp_path / name, 1)
        run(load(scenario))
        assert Path(sys.modules["beside_mine"].__file__ or "").parent.name == name


def test_without_a_file_the_path_counts_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SCENARIO % "beside_nowhere:Mine")
    with pytest.raises(InputError, match=r"put beside_nowhere\.py beside the scenario, or its folder on PYTHONPATH"):
        run(load(tmp_path / "s.yaml"))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "beside_nowhere.py").write_text(
        POLICY.replace("beside_helper.sign() *", "").replace("import beside_helper\n", "")
    )
    sys.path.insert(0, str(tmp_path / "lib"))
    assert run(load(tmp_path / "s.yaml")).summary["completed"] == 12


@pytest.mark.parametrize("name", ["random:Mine", "policies.mine:Mine"])
def test_the_name_of_a_module_in_use_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path.joinpath(*name.partition(":")[0].split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit\n")
    with pytest.raises(PolicyError, match="has the name of a module that is in use already; call it otherwise"):
        import_beside("policy", name, tmp_path)


def test_a_file_that_fails_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "beside_broken.py").write_text("1 / 0\n")
    with pytest.raises(PolicyError, match="cannot import 'beside_broken': ZeroDivisionError"):
        import_beside("policy", "beside_broken:Mine", tmp_path)
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("name", ["fcfs", "../up:Mine", "a-b:Mine", ":Mine"])
def test_what_is_no_module_is_left_to_the_registry(tmp_path: Path, name: str) -> None:
    import_beside("policy", name, tmp_path)
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("seeds", [[], ["--seeds", "2", "--jobs", "2"]])
def test_folders_named_like_the_packages_do_not_break_the_command(tmp_path: Path, seeds: list[str]) -> None:
    scenario = folder(tmp_path, 1)
    for name in ("sim", "policies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    root = str(Path(simrun_llm.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", "import simrun_llm; simrun_llm.main()", scenario.name, *seeds, "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f".{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_in_use_that_lies_in_the_folder_stays_in_use(tmp_path: Path) -> None:
    """The scenario lies where this project does: its own packages are not replaced later."""
    root = Path(__file__).resolve().parents[2]
    import_beside("policy", "policies.fcfs:Fcfs", root)
    before = sys.modules["policies"]
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.py").write_text("")
    with pytest.raises(PolicyError, match="a module that is in use already"):
        import_beside("policy", "policies.mine:Mine", tmp_path)
    assert sys.modules["policies"] is before
