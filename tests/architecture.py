"""The map of the package as data, and the checks that hold the code against it."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "plaid_relay_async"
CORE = (
    *("errors", "cancellation", "models", "config", "codec", "watch", "exchange", "proxies", "session"),
    *("transport", "outcomes", "batch"),
)


@dataclass(frozen=True)
class AllowedImports:
    """What a module, or a subpackage as a whole, may import."""

    package: tuple[str, ...] = ()
    third_party: tuple[str, ...] = ()


MAP = {
    "errors": AllowedImports(),
    "cancellation": AllowedImports(),
    "models": AllowedImports(("errors",), ("attrs",)),
    "config": AllowedImports(("errors",), ("attrs", "yarl")),
    "codec": AllowedImports(("errors", "models"), ("attrs", "cattrs")),
    "watch": AllowedImports(),
    "exchange": AllowedImports(("cancellation",), ("aiohttp", "attrs", "yarl")),
    "proxies": AllowedImports(("config", "errors"), ("attrs", "yarl")),
    "session": AllowedImports(
        ("cancellation", "config", "errors", "watch", "exchange", "proxies"), ("aiohttp", "yarl")
    ),
    "transport": AllowedImports(
        ("cancellation", "config", "errors", "codec", "models", "watch", "exchange", "session"),
        ("aiohttp", "attrs", "backoff", "yarl"),
    ),
    "outcomes": AllowedImports(("errors", "models"), ("attrs",)),
    "batch": AllowedImports(("cancellation", "errors", "models", "outcomes"), ("attrs",)),
    "client": AllowedImports(CORE, ("aiohttp", "attrs")),
    "limits": AllowedImports(("config", "errors"), ("attrs", "redis")),
    "journal": AllowedImports(
        ("cancellation", "config", "errors", "models", "outcomes", "batch"),
        ("attrs", "cryptography", "filelock", "psycopg", "sqlalchemy"),
    ),
    "simulator": AllowedImports((), ("aiohttp", "attrs")),
    "gateway": AllowedImports(
        ("cancellation", "config", "errors", "exchange", "codec", "models", "session", "transport", "limits"),
        ("aiohttp", "attrs", "prometheus_client"),
    ),
    "cli": AllowedImports(
        (*CORE, "client", "limits", "journal", "simulator", "gateway", "__init__"),
        ("aiohttp", "attrs", "cyclopts", "platformdirs", "rich"),
    ),
    "__init__": AllowedImports((*CORE, "client")),
}

# What a plain `import plaid_relay_async` leaves alone.
LAZY_MODULES = (
    "anyio",
    "aiohttp.web",
    "cyclopts",
    "rich",
    "sqlalchemy",
    "cryptography",
    "filelock",
    "jwt",
    "redis",
    "opentelemetry",
    "prometheus_client",
    "platformdirs",
    f"{PACKAGE}.limits",
    f"{PACKAGE}.journal",
    f"{PACKAGE}.simulator",
    f"{PACKAGE}.cli",
    f"{PACKAGE}.gateway",
)


@dataclass
class SourceTree:
    """The package's modules under a folder, with what each imports."""

    root: Path
    imports: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            self.imports[".".join(parts)] = set(_imports_of(path, parts))


def _imports_of(path: Path, parts: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join((PACKAGE, *parts[: -node.level], *filter(None, [base])))
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def _part(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def _target(tree: SourceTree, imported: str) -> str:
    """The module of the package that an import reaches: itself, or the one that has the name."""
    inside = imported.removeprefix(PACKAGE).strip(".")
    for candidate in (inside, f"{inside}.__init__".strip(".")):
        if candidate in tree.imports:
            return candidate
    return _target(tree, imported.rpartition(".")[0])


def map_violations(tree: SourceTree) -> list[str]:
    """Imports that the map doesn't allow, and modules that it doesn't know."""
    problems = [f"unknown module {name}" for name in tree.imports if _part(name) not in MAP]
    for module, imported in tree.imports.items():
        allowed = MAP.get(_part(module), AllowedImports())
        for name in sorted(imported):
            top = name.split(".")[0]
            if top == PACKAGE:
                target = _part(_target(tree, name))
                if target not in {_part(module), *allowed.package}:
                    problems.append(f"{module} imports {target}")
            elif top not in sys.stdlib_module_names and top not in allowed.third_party:
                problems.append(f"{module} imports {top}")
    return problems


def import_cycles(tree: SourceTree) -> list[str]:
    """Modules that import each other."""
    graph = {module: _imported_modules(tree, module) for module in tree.imports}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def _imported_modules(tree: SourceTree, module: str) -> set[str]:
    ours = (name for name in tree.imports[module] if name.split(".")[0] == PACKAGE)
    return {target for name in ours if (target := _target(tree, name)) != module}


def eager_imports(folder: Path) -> list[str]:
    """What `import plaid_relay_async`, as it lies in the folder, loads and should not."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r}); import {PACKAGE}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-Ic", program], capture_output=True, text=True, check=True, env={})
    return sorted(set(LAZY_MODULES) & set(run.stdout.split()))
