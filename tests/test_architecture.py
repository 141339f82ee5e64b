from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import architecture
import pytest

import plaid_relay_async
from plaid_relay_async import models

INSTALLED = Path(plaid_relay_async.__file__).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, to be spoilt."""
    shutil.copytree(INSTALLED, tmp_path / "plaid_relay_async", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "plaid_relay_async"


def append_line(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")


def test_the_code_keeps_to_the_map():
    """Each module imports what the map allows it, and the map knows each module."""
    assert architecture.map_violations(architecture.SourceTree(INSTALLED)) == []


def test_there_is_no_circle():
    """No module imports, by whatever way round, itself."""
    assert architecture.import_cycles(architecture.SourceTree(INSTALLED)) == []


def test_the_package_alone_loads_no_extra():
    """`import plaid_relay_async` loads neither aiohttp.web nor an extra nor a part of its own that needs one."""
    assert architecture.eager_imports(INSTALLED.parent) == []


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("errors", "import attrs", "errors imports attrs"),
        ("codec", "import aiohttp", "codec.__init__ imports aiohttp"),
        ("models", "from plaid_relay_async.codec import encode", "models.__init__ imports codec"),
        ("batch", "from plaid_relay_async import transport", "batch imports transport"),
        ("session", "from . import codec", "session imports codec"),
        ("config", "from .session import State", "config imports session"),
        ("simulator/__init__", "import plaid_relay_async.errors", "simulator.__init__ imports errors"),
        (
            "simulator/__init__",
            "from plaid_relay_async import RelayClient",
            "simulator.__init__ imports __init__",
        ),
        ("batch", "def late():\n    import aiohttp", "batch imports aiohttp"),
    ],
)
def test_an_import_against_the_map_is_found(copy: Path, module: str, line: str, problem: str):
    """An arrow that isn't on the map is named, however the import is written."""
    whole = copy / module / "__init__.py"
    append_line(whole if whole.is_file() else copy / f"{module}.py", line)
    assert problem in architecture.map_violations(architecture.SourceTree(copy))


def test_an_unknown_module_is_found(copy: Path):
    """A module that the map doesn't know is named."""
    (copy / "utils.py").write_text("", encoding="utf-8")
    assert architecture.map_violations(architecture.SourceTree(copy)) == ["unknown module utils"]


def test_a_circle_is_found(copy: Path):
    """A circle is named, also one inside a part of the package."""
    append_line(copy / "errors.py", "from plaid_relay_async import client")
    assert "errors" in architecture.import_cycles(architecture.SourceTree(copy))[0]
    (copy / "cli").mkdir(exist_ok=True)
    (copy / "cli" / "one.py").write_text("from plaid_relay_async.cli import two", encoding="utf-8")
    (copy / "cli" / "two.py").write_text("from .one import x", encoding="utf-8")
    shutil.copy(INSTALLED / "errors.py", copy / "errors.py")
    assert "cli.two" in architecture.import_cycles(architecture.SourceTree(copy))[0]


@pytest.mark.parametrize("module", ["aiohttp.web", "rich", "plaid_relay_async.simulator"])
def test_an_early_import_is_found(copy: Path, module: str):
    """An extra, or aiohttp.web, that the plain import loads is named."""
    append_line(copy / "__init__.py", f"import {module}")
    assert module in architecture.eager_imports(copy.parent)


def test_the_page_shows_the_map(request: pytest.FixtureRequest):
    """ARCHITECTURE.md has the same table."""
    page = (request.config.rootpath / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/?` \|[^|]*\| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)
    shown = {
        name: (set(package.split(", ")) - {"nothing"}, set(third.split(", ")) - {""})
        for name, package, third in rows
    }
    core = {*architecture.CORE, "client"}
    told = {
        name: (
            {"all above"} if core <= {*room.package, "client"} else set(room.package),
            set(room.third_party),
        )
        for name, room in architecture.MAP.items()
    }
    assert shown == told


def test_what_is_exported_is_named():
    """`__all__` is what the package's namespace holds, sorted, and each public name can be imported."""
    public = {name for name in vars(plaid_relay_async) if not name.startswith("_")}
    others = {"Any", "TYPE_CHECKING"} | {
        name for name in public if getattr(plaid_relay_async, name).__class__.__name__ == "module"
    }
    late = {
        *("AssetReport", "AssetReportGetResponse", "ItemPublicTokenExchangeResponse", "ItemRemoveResponse"),
        *("SandboxItemFireWebhookResponse", "SandboxPublicTokenCreateResponse"),
        "WebhookVerificationKeyGetResponse",
    }
    assert set(plaid_relay_async.__all__) == (public - others) | {"__version__"} | late
    assert plaid_relay_async.__all__ == sorted(plaid_relay_async.__all__)


@pytest.mark.parametrize("module", [plaid_relay_async, models])
def test_every_name_leads_somewhere(module):
    """Each name of `__all__` is there, whether it is loaded early or late, and others aren't."""
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018  # that it raises is the point


def test_creating_tokens_loads_no_record_of_a_report():
    """A process that creates and removes relay tokens never loads the records of reports."""
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(INSTALLED.parent)!r})
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.simulator import Simulator

async def main():
    async with Simulator() as plaid, RelayClient(Credentials("a", "b"), base_url=plaid.url) as client:
        made = await client.relay.create([plaid.add_report()], "p")
        await client.relay.remove(made.relay_token)

asyncio.run(main())
print(*sys.modules)
"""
    run = subprocess.run([sys.executable, "-Ic", program], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert "plaid_relay_async.models.relay" in loaded
    assert not {f"plaid_relay_async.models.{name}" for name in ("report", "insights", "values")} & {*loaded}
