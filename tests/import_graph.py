"""Which module imports which, read off the sources; ``python tests/import_graph.py [FOLDER]`` prints the circles.

Every import counts: at the top of a file, inside a function, and under ``TYPE_CHECKING``. One thing does not: that
``import sim.run`` also runs ``sim/__init__.py``, whose functions lead to every module, and which nothing in ``sim``
names.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sim", "policies", "gpu_calibrate")

Graph = Mapping[str, Iterable[str]]


def modules(package: str, root: Path = ROOT) -> dict[str, Path]:
    """Module name -> file, of everything under the folder ``package``."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in the file, with its line."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield (inner if inner in known else source), node.lineno


def part_of(module: str) -> str:
    """``sim.engine.reference.replica`` -> ``sim.engine``; ``policies.base`` -> ``policies``."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("sim", "gpu_calibrate") and len(parts) > 1 else parts[0]


def module_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the project's modules that it imports."""
    known = {name: path for package in PACKAGES for name, path in modules(package, root).items()}
    return {
        name: {module for module, _ in imports(name, path, known) if module in known} - {name}
        for name, path in known.items()
    }


def part_graph(graph: Graph) -> dict[str, set[str]]:
    """Folder or top-level module -> those that its modules import."""
    parts: dict[str, set[str]] = {}
    for name, imported in graph.items():
        part = part_of(name)
        parts.setdefault(part, set()).update(part_of(module) for module in imported)
        parts[part].discard(part)
    return parts


def circles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that all reach each other (strongly connected components), largest first; Tarjan's algorithm."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in path:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            group = path[path.index(node) :]
            del path[path.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return sorted(found, key=lambda group: (-len(group), group))


def main() -> None:
    """Print the circles of the tree given as the first argument, else of this one."""
    graph = module_graph(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
    for what, found in (("modules", circles(graph)), ("folders", circles(part_graph(graph)))):
        print(f"{len(found)} circles of {what}")
        for group in found:
            print(f"  {', '.join(group)}")


if __name__ == "__main__":
    main()
