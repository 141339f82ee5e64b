"""The package's imports follow the module map, and its public names can be imported."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import architecture
import pytest
from support import OWNER

import plaid_relay_async
from plaid_relay_async import RelayClient, models
from plaid_relay_async.simulator import Simulator

if TYPE_CHECKING:
    from types import FrameType

INSTALLED = Path(plaid_relay_async.__file__).parent


@pytest.fixture
def package_copy(tmp_path: Path) -> Path:
    """A copy of the package that a test can change."""
    shutil.copytree(INSTALLED, tmp_path / "plaid_relay_async", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "plaid_relay_async"


def append_line(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")


def test_every_import_is_allowed_by_the_map():
    """Each module imports only what the map allows, and the map lists each module."""
    assert architecture.map_violations(architecture.SourceTree(INSTALLED)) == []


@pytest.mark.parametrize("text", architecture.HOMES)
def test_a_concept_has_one_home(text):
    """Private files, host names and the display of untrusted text are each implemented in one module."""
    tree = architecture.SourceTree(INSTALLED)
    assert architecture.modules_with(tree, text) == [architecture.HOMES[text]]


def test_no_module_imports_itself():
    """There is no import cycle, neither direct nor indirect."""
    assert architecture.import_cycles(architecture.SourceTree(INSTALLED)) == []


def test_the_package_loads_no_extra():
    """`import plaid_relay_async` loads neither aiohttp.web, nor an extra, nor a subpackage that needs one."""
    assert architecture.eager_imports(INSTALLED.parent) == []


@pytest.mark.parametrize("module", ["webhooks", "webhooks.asgi"])
def test_a_receiver_loads_no_server_and_no_database(module):
    """The receiver and its ASGI application load neither aiohttp.web nor a database."""
    program = f"import sys; import plaid_relay_async.{module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"aiohttp.web", "sqlalchemy"} & {*run.stdout.split()}


@pytest.mark.parametrize(
    ("module", "line", "problem"),
    [
        ("errors", "import attrs", "errors imports attrs"),
        ("codec", "import aiohttp", "codec.__init__ imports aiohttp"),
        ("models", "from plaid_relay_async.codec import encode", "models.__init__ imports codec"),
        ("batch", "from plaid_relay_async import transport", "batch.__init__ imports transport"),
        ("session", "from . import codec", "session imports codec"),
        ("config", "from .session import SessionState", "config imports session"),
        ("simulator/__init__", "import plaid_relay_async.errors", "simulator.__init__ imports errors"),
        (
            "simulator/__init__",
            "from plaid_relay_async import RelayClient",
            "simulator.__init__ imports __init__",
        ),
        ("batch", "def late():\n    import aiohttp", "batch.__init__ imports aiohttp"),
    ],
)
def test_a_disallowed_import_is_reported(package_copy: Path, module: str, line: str, problem: str):
    """An import that the map doesn't allow is reported, in whatever form it is written."""
    subpackage = package_copy / module / "__init__.py"
    append_line(subpackage if subpackage.is_file() else package_copy / f"{module}.py", line)
    assert problem in architecture.map_violations(architecture.SourceTree(package_copy))


def test_an_unlisted_module_is_reported(package_copy: Path):
    """A module that the map doesn't list is reported."""
    (package_copy / "utils.py").write_text("", encoding="utf-8")
    assert architecture.map_violations(architecture.SourceTree(package_copy)) == ["unknown module utils"]


def test_an_import_cycle_is_reported(package_copy: Path):
    """A cycle is reported, also one inside a subpackage."""
    append_line(package_copy / "errors.py", "from plaid_relay_async import client")
    assert "errors" in architecture.import_cycles(architecture.SourceTree(package_copy))[0]
    (package_copy / "cli").mkdir(exist_ok=True)
    (package_copy / "cli" / "one.py").write_text("from plaid_relay_async.cli import two", encoding="utf-8")
    (package_copy / "cli" / "two.py").write_text("from .one import x", encoding="utf-8")
    shutil.copy(INSTALLED / "errors.py", package_copy / "errors.py")
    assert "cli.two" in architecture.import_cycles(architecture.SourceTree(package_copy))[0]


@pytest.mark.parametrize("module", ["aiohttp.web", "rich", "plaid_relay_async.simulator"])
def test_an_eager_import_is_reported(package_copy: Path, module: str):
    """An extra, or aiohttp.web, is reported if the plain import loads it."""
    append_line(package_copy / "__init__.py", f"import {module}")
    assert module in architecture.eager_imports(package_copy.parent)


def documented_names(package: tuple[str, ...]) -> set[str]:
    """Return the names of a cell of the table, which has one name for all modules of the ground floor."""
    floor = set(architecture.GROUND_FLOOR)
    return {*package} - floor | {"the ground floor"} if floor <= {*package} else {*package}


def test_architecture_md_shows_the_map(request: pytest.FixtureRequest):
    """ARCHITECTURE.md has the same table."""
    page = (request.config.rootpath / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/?` \|[^|]*\| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)
    documented = {
        name: (set(package.split(", ")) - {"nothing"}, set(third.split(", ")) - {""})
        for name, package, third in rows
    }
    core = {*architecture.CORE, "client"}
    expected = {
        name: (
            {"all above"} if core <= {*allowed.package, "client"} else documented_names(allowed.package),
            set(allowed.third_party),
        )
        for name, allowed in architecture.MAP.items()
    }
    assert documented == expected


async def test_architecture_md_lists_the_functions_of_a_creation(request: pytest.FixtureRequest):
    """The table in ARCHITECTURE.md has the functions that one `create` enters, in the order of their calls."""
    text = (request.config.rootpath / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("### The functions of one `create`\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE)
    entered: dict[str, None] = {}

    def note_call(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(INSTALLED) and path.parent.name != "simulator":
            module = ".".join(path.relative_to(INSTALLED).with_suffix("").parts)
            entered[f"{module}.{frame.f_code.co_qualname}"] = None

    async with Simulator(reports=["report"]) as plaid, RelayClient(OWNER, base_url=plaid.url) as client:
        for partner in ("partner-1", "partner-2"):  # connects, and builds what later calls reuse
            await client.relay.create(["report"], partner)
        sys.setprofile(note_call)
        try:
            await client.relay.create(["report"], "partner-3")
        finally:
            sys.setprofile(None)
    assert listed == list(entered)


def test_all_lists_the_public_names():
    """`__all__` lists the public names of the package's namespace, and those loaded on first use, sorted."""
    public = {name for name in vars(plaid_relay_async) if not name.startswith("_")}
    others = {"Any", "TYPE_CHECKING"} | {
        name for name in public if getattr(plaid_relay_async, name).__class__.__name__ == "module"
    }
    lazy = {
        *("AssetReport", "AssetReportGetResponse", "ItemPublicTokenExchangeResponse", "ItemRemoveResponse"),
        *("SandboxItemFireWebhookResponse", "SandboxPublicTokenCreateResponse", "SentWebhook"),
        *("WebhookEventsListResponse", "WebhookVerificationKeyGetResponse"),
    }
    assert set(plaid_relay_async.__all__) == (public - others) | {"__version__"} | lazy
    assert plaid_relay_async.__all__ == sorted(plaid_relay_async.__all__)


@pytest.mark.parametrize("module", [plaid_relay_async, models])
def test_every_listed_name_exists(module):
    """Each name of `__all__` exists, also if it is loaded on first use, and an unlisted name does not."""
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018  # the access itself must raise


def test_creating_tokens_loads_no_record_of_a_report():
    """A process that creates and removes relay tokens never loads the records of reports."""
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(INSTALLED.parent)!r})
from plaid_relay_async import Credentials, RelayClient
from plaid_relay_async.simulator import Simulator

async def main():
    async with Simulator() as plaid, RelayClient(Credentials("a", "b"), base_url=plaid.url) as client:
        created = await client.relay.create([plaid.add_report()], "p")
        await client.relay.remove(created.relay_token)

asyncio.run(main())
print(*sys.modules)
"""
    run = subprocess.run([sys.executable, "-Ic", program], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert "plaid_relay_async.models.relay" in loaded
    assert not {f"plaid_relay_async.models.{name}" for name in ("report", "insights", "values")} & {*loaded}
