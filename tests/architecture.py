"""The module map of ARCHITECTURE.md as data, and functions that compare the code with it."""

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
# Every part above these modules may import them, apart from the simulator.
GROUND_FLOOR = ("redaction", "display", "hosts", "errors", "error_codes", "certainty", "watching")
CORE = (
    *GROUND_FLOOR,
    *("private_files", "cancellation", "models", "config", "codec", "deadlines", "exchange", "proxies"),
    *("session", "telemetry", "transport", "outcomes", "batch"),
)


@dataclass(frozen=True)
class AllowedImports:
    """What a module, or all of a subpackage, may import."""

    package: tuple[str, ...] = ()
    third_party: tuple[str, ...] = ()


MAP = {
    "redaction": AllowedImports(),
    "display": AllowedImports(),
    "hosts": AllowedImports((), ("yarl",)),
    "errors": AllowedImports(("redaction", "display")),
    "error_codes": AllowedImports(("errors",)),
    "certainty": AllowedImports(("errors", "error_codes")),
    "watching": AllowedImports(),
    "private_files": AllowedImports(GROUND_FLOOR),
    "cancellation": AllowedImports((), ("attrs",)),
    "models": AllowedImports(GROUND_FLOOR, ("attrs",)),
    "config": AllowedImports(GROUND_FLOOR, ("attrs", "yarl")),
    "codec": AllowedImports((*GROUND_FLOOR, "models"), ("attrs", "cattrs")),
    "deadlines": AllowedImports((), ("attrs",)),
    "exchange": AllowedImports(("cancellation",), ("aiohttp", "attrs", "yarl")),
    "proxies": AllowedImports((*GROUND_FLOOR, "config"), ("attrs", "yarl")),
    "session": AllowedImports(
        (*GROUND_FLOOR, "cancellation", "config", "deadlines", "exchange", "proxies"), ("aiohttp", "yarl")
    ),
    "telemetry": AllowedImports((*GROUND_FLOOR, "config"), ("attrs", "opentelemetry", "yarl")),
    "transport": AllowedImports(
        (
            *GROUND_FLOOR,
            *("cancellation", "config", "codec", "models", "deadlines", "exchange", "session", "telemetry"),
        ),
        ("aiohttp", "attrs", "backoff", "yarl"),
    ),
    "outcomes": AllowedImports((*GROUND_FLOOR, "models"), ("attrs",)),
    "batch": AllowedImports(
        (*GROUND_FLOOR, "cancellation", "config", "models", "codec", "telemetry", "outcomes"), ("attrs",)
    ),
    "webhooks": AllowedImports(
        (*GROUND_FLOOR, "cancellation", "models", "config", "codec"),
        ("aiohttp", "attrs", "cryptography", "jwt"),
    ),
    "client": AllowedImports((*CORE, "webhooks"), ("aiohttp", "attrs")),
    "limits": AllowedImports((*GROUND_FLOOR, "config"), ("attrs", "redis")),
    "journal": AllowedImports(
        (
            *GROUND_FLOOR,
            *("private_files", "cancellation", "config", "models", "telemetry", "outcomes", "batch"),
        ),
        ("attrs", "cryptography", "filelock", "psycopg", "sqlalchemy"),
    ),
    "temporal": AllowedImports((*CORE, "client", "journal"), ("attrs", "sqlalchemy", "temporalio")),
    "inbox": AllowedImports(
        (*GROUND_FLOOR, "cancellation", "config", "journal", "webhooks"), ("attrs", "sqlalchemy")
    ),
    "simulator": AllowedImports((), ("aiohttp", "attrs", "cryptography", "yarl")),
    "testing": AllowedImports(
        ("redaction", "hosts", "watching", "simulator", "__init__"), ("aiohttp", "attrs", "pytest")
    ),
    "gateway": AllowedImports(
        (
            *GROUND_FLOOR,
            *(
                "private_files",
                "cancellation",
                "config",
                "models",
                "codec",
                "deadlines",
                "exchange",
                "session",
                "telemetry",
                "transport",
            ),
            "limits",
        ),
        ("aiohttp", "attrs", "cattrs", "opentelemetry", "prometheus_client"),
    ),
    "cli": AllowedImports(
        (
            *(*CORE, "webhooks", "client", "limits", "journal", "temporal", "inbox", "simulator", "gateway"),
            "__init__",
        ),
        ("aiohttp", "attrs", "cyclopts", "platformdirs", "rich", "temporalio"),
    ),
    "__init__": AllowedImports((*CORE, "client")),
}

# What only one module may contain, as it is the home of a concept.
HOMES = {
    "0o600": "private_files",
    "0o077": "private_files",
    "flock(": "private_files",
    "inet_aton": "hosts",
    '"unicode_escape"': "display",
    '"backslashreplace").decode()': "display",
}

# A plain `import plaid_relay_async` loads none of these.
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
    "temporalio",
    f"{PACKAGE}.limits",
    f"{PACKAGE}.journal",
    f"{PACKAGE}.temporal",
    f"{PACKAGE}.inbox",
    f"{PACKAGE}.simulator",
    f"{PACKAGE}.cli",
    f"{PACKAGE}.gateway",
    f"{PACKAGE}.webhooks",
    f"{PACKAGE}.testing",
)


@dataclass
class SourceTree:
    """The package's modules in a folder, each with the names that it imports."""

    root: Path
    imports: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            self.imports[".".join(parts)] = set(_imports_of(path, parts))


def _imports_of(path: Path, parts: tuple[str, ...]) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join((PACKAGE, *parts[: -node.level], *filter(None, [base])))
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def _part(module: str) -> str:
    """Return the top-level module or subpackage, which is what the map lists."""
    return module.split(".", maxsplit=1)[0]


def _target(tree: SourceTree, imported: str) -> str:
    """Return the package's module that an import loads.

    `from plaid_relay_async.errors import PlaidAPIError` imports the name `plaid_relay_async.errors.PlaidAPIError`;
    its module is `errors`, so the name is shortened until it is a module.
    """
    inside = imported.removeprefix(PACKAGE).strip(".")
    for candidate in (inside, f"{inside}.__init__".strip(".")):
        if candidate in tree.imports:
            return candidate
    return _target(tree, imported.rpartition(".")[0])


def map_violations(tree: SourceTree) -> list[str]:
    """Return the imports that the map doesn't allow, and the modules that it doesn't list."""
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


def modules_with(tree: SourceTree, text: str) -> list[str]:
    """Return the modules whose source contains a text."""
    paths = {module: tree.root.joinpath(*module.split(".")).with_suffix(".py") for module in tree.imports}
    return [module for module, path in paths.items() if text in path.read_text(encoding="utf-8")]


def import_cycles(tree: SourceTree) -> list[str]:
    """Return a cycle of modules that import each other, or nothing."""
    graph = {module: _imported_modules(tree, module) for module in tree.imports}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def _imported_modules(tree: SourceTree, module: str) -> set[str]:
    own_imports = (name for name in tree.imports[module] if name.split(".")[0] == PACKAGE)
    return {target for name in own_imports if (target := _target(tree, name)) != module}


def eager_imports(folder: Path) -> list[str]:
    """Import the package from a folder in a new process, and return what it loads of `LAZY_MODULES`."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r}); import {PACKAGE}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-Ic", program], capture_output=True, text=True, check=True, env={})
    return sorted(set(LAZY_MODULES) & set(run.stdout.split()))
