"""The code panel: the code follows the form, and runs as shown."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from recorder import Recorder

from plaid_relay_async.gateway import ALL_OPERATIONS

LANGUAGES = ("python", "bulk", "curl", "typescript")
TOKENS = {
    "PLAID_GATEWAY_KEY": "canary-key",
    "REPORT_TOKEN": "canary-report",
    "RELAY_TOKEN": "canary-relay",
    "RELAY_TOKENS": "canary-relay-1 canary-relay-2",
    "ACCESS_TOKEN": "canary-access",
    "ACCESS_TOKENS": "canary-access-1 canary-access-2",
    "PUBLIC_TOKEN": "canary-public",
}
UNUSUAL_TEXTS = [
    *(
        '"',
        "'",
        "\\",
        "\\\\n",
        "$HOME",
        "`id`",
        "$(id)",
        "${PATH}",
        "%s %d",
        "{x}",
        "#",
        "</script>",
        "<!--",
        "\\u0041",
    ),
    *(
        "two\nlines",
        "two\r\nlines",
        "tab\t",
        "\x00",
        "\x1b[31m",
        "\x7f",
        "é😀",
        "a\u2028\u2029",
        "\u202e\u2066",
        "a\ufeff",
    ),
    *(
        "\nBODY\n",
        "\nKEY\n",
        '"""',
        "'''",
        "a" * 200,
        "\U000e0041",
        "\\",
        "!!",
        "~",
        "*",
        "*/ //",
        "${x}",
        "`${x}`",
    ),
]


async def run_program(*command: str, cwd, env=None) -> str:
    """Run a program, return its output, and fail if it failed."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PLAID_", "PYTHON"))
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=inherited | TOKENS | (env or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    written, _ = await process.communicate()
    assert process.returncode == 0, written.decode()
    return written.decode()


async def generate_code(module_page, language, path, inputs, address):
    """Return the code that the page generates for each of these inputs."""
    return await module_page.evaluate(
        """async ([language, path, inputs, address]) => {
          const { snippet } = await import('/console/snippets.js');
          const { operationOf } = await import('/console/operations.js');
          return inputs.map((each) => snippet(language, operationOf(path), each, address));
        }""",
        [language, path, inputs, address],
    )


def find_tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        reason = f"needs {name}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return path


async def run_code(language: str, codes: list[str], folder) -> str:
    """Run each snippet from a file in a separate folder, as a user would."""
    ending = {"python": "py", "bulk": "py", "curl": "sh", "typescript": "mts"}[language]
    names = []
    for number, code in enumerate(codes):
        file = folder / str(number) / f"shown.{ending}"
        file.parent.mkdir(exist_ok=True)
        file.write_text(code, encoding="utf-8", newline="")
        names.append(str(file))
    if language == "curl":
        return "".join([await run_program(find_tool("sh"), name, cwd=Path(name).parent) for name in names])
    # One process runs all of them, because starting a process takes longer than the work.
    if language == "typescript":
        runner = (
            "import { dirname } from 'node:path';"
            "for (const name of process.argv.slice(1)) { process.chdir(dirname(name)); await import(name); }"
        )
        return await run_program(
            find_tool("node"), "--input-type=module", "--eval", runner, *names, cwd=folder
        )
    runner = (
        "import os, runpy, sys\n"
        "for name in sys.argv[1:]: os.chdir(os.path.dirname(name)); runpy.run_path(name, run_name='__main__')"
    )
    return await run_program(sys.executable, "-c", runner, *names, cwd=folder)


@pytest.mark.parametrize("language", ["python", "curl", "typescript"])
async def test_any_text_is_preserved_in_the_code(module_page, language, tmp_path):
    """Quotes, dollars, line breaks and invisible characters arrive in the request as entered."""
    inputs = [{"reason_code": "OTHER", "reason_note": text} for text in UNUSUAL_TEXTS]
    async with Recorder() as upstream:
        codes = await generate_code(module_page, language, "/item/remove", inputs, upstream.url)
        assert not any(set("\x00\x1b\x7f\u202e\u2066\u2028\ufeff") & set(code) for code in codes)
        output = await run_code(language, codes, tmp_path)
        notes = [upstream.body(number)["reason_note"] for number in range(len(upstream.requests))]
        assert notes == UNUSUAL_TEXTS
        assert upstream.body()["access_token"] == "canary-access"
        assert dict(upstream.fields())["authorization"] == "Bearer canary-key"
    assert "canary" not in output


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_code_of_each_operation_sends_the_same_request(module_page, language, tmp_path):
    """The code sends what the page itself would send, with tokens from the environment."""
    values = {
        "secondary_client_id": "partner$2",
        "webhook": "https://lender.example/?a=1&b=$2",
        "include_insights": True,
        "days_requested": "61",
        "client_report_id": "a “name”, it's mine",
        "account_ids_to_exclude": "one\ntwo\n",
        "institution_id": "ins_1",
        "initial_products": "assets\ntransactions",
        "webhook_code": "PRODUCT_READY",
        "key_id": "id",
        "cursor": 'next\n"cursor"',
        "count": "7",
        "webhook_types": "ASSETS\nITEM",
    }
    async with Recorder() as upstream:
        upstream.respond = create_response
        codes = {
            path: (await generate_code(module_page, language, path, [values], upstream.url))[0]
            for path in ALL_OPERATIONS
        }
        for path in [path for path, code in codes.items() if code is None]:
            assert not path.startswith("/credit/relay")
            del codes[path]
        output = await run_code(language, list(codes.values()), tmp_path)
        sent = [
            (each.split(b" ")[1].decode(), upstream.body(at)) for at, each in enumerate(upstream.requests)
        ]
    for path in codes:
        body = await expected_body(module_page, path, values)
        bodies = [without_false(each) for to, each in sent if to == path]
        if language == "bulk" and "relay_token" in body:
            assert sorted(bodies, key=str) == [
                body | {"relay_token": f"canary-relay-{number}"} for number in (1, 2)
            ]
        else:
            assert bodies == [body], path
    assert "canary" not in output
    files = [file for file in tmp_path.rglob("*") if file.suffix in {".json", ".csv", ".pdf"}]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    for number, path in enumerate(codes):
        saved = "".join(file.read_text() for file in files if file.parent == tmp_path / str(number))
        assert SAVED[path] in saved if path in SAVED else "request-" in saved + output, (language, path)


# What the saved file contains. For other operations the request ID is saved or printed.
SAVED = {
    "/credit/relay/create": "canary-relay-new",
    "/credit/relay/get": '"report"',
    "/credit/relay/pdf/get": "%PDF-1.7",
    "/credit/relay/refresh": "canary-relay-new",
    "/asset_report/create": "canary-report-new",
    "/asset_report/get": '"report"',
    "/asset_report/pdf/get": "%PDF-1.7",
    "/asset_report/refresh": "canary-report-new",
    "/asset_report/filter": "canary-report-new",
    "/item/public_token/exchange": "canary-access-new",
    "/sandbox/public_token/create": "canary-public-new",
}


def without_false(body):
    """Return a body without false flags, which the package sends and the page omits."""
    return {name: value for name, value in body.items() if value is not False}


@pytest.mark.parametrize("language", ["python", "typescript"])
async def test_no_code_overwrites_a_response(module_page, language, tmp_path):
    """If the file exists, nothing is sent, because it may contain the only copy of a token."""
    async with Recorder() as upstream:
        upstream.respond = create_response
        [code] = await generate_code(module_page, language, "/credit/relay/create", [{}], upstream.url)
        await run_code(language, [code], tmp_path)
        path = tmp_path / "0" / "response.json"
        content = path.read_bytes()
        assert b"canary-relay-new" in content
        with pytest.raises(AssertionError, match=r"response\.json"):
            await run_code(language, [code], tmp_path)
        assert len(upstream.requests) == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize("shell", ["sh", "bash"])
async def test_curl_overwrites_no_response(module_page, shell, tmp_path):
    """If the file exists, nothing is sent, because it may contain the only copy of a token."""
    path = tmp_path / "response.json"
    async with Recorder() as upstream:
        [code] = await generate_code(module_page, "curl", "/credit/relay/create", [{}], upstream.url)
        await run_program(find_tool(shell), "-c", code, cwd=tmp_path)
        content = path.read_bytes()
        with pytest.raises(AssertionError, match=r"response\.json"):
            await run_program(find_tool(shell), "-c", code, cwd=tmp_path)
        assert len(upstream.requests) == 1
    assert path.read_bytes() == content


async def test_curl_uses_the_address_and_values_literally(module_page, tmp_path):
    """Braces and brackets don't cause several requests, and a value is never a file, an option or a command."""
    endings = ["/{a,b}", "/[1-3]", "/it's", "/$HOME`id`!!", "/-X/@x"]
    values = ["@/etc/passwd", "-d", "!!", "!x", "%0a%1", "<x", ">x"]
    async with Recorder() as upstream:
        codes = []
        for ending in endings:
            codes += await generate_code(module_page, "curl", "/item/remove", [{}], upstream.url + ending)
        inputs = [{"reason_code": "OTHER", "reason_note": value} for value in values]
        codes += await generate_code(module_page, "curl", "/item/remove", inputs, upstream.url)
        await run_code("curl", codes, tmp_path)
        targets = [each.split(b" ")[1].decode() for each in upstream.requests]
        notes = [upstream.body(number)["reason_note"] for number in range(len(endings), len(codes))]
    assert targets == [f"{ending}/item/remove" for ending in endings] + ["/item/remove"] * len(values)
    assert notes == values
    assert "!!" not in codes[len(endings) + 2]


async def expected_body(module_page, path, values):
    """Return what the page itself would send."""
    return await module_page.evaluate(
        """async ([path, filled, tokens]) => {
          const { bodyOf, valueOf } = await import('/console/request-body.js');
          const { operationOf } = await import('/console/operations.js');
          const text = (input) => input.env ? tokens[input.env].replaceAll(' ', '\\n') : filled[input.name];
          return bodyOf(operationOf(path), (input) => valueOf(input, text(input)));
        }""",
        [path, values, TOKENS],
    )


def create_response(request: bytes):
    """Return a response for the operation, with a secret in each field for one."""
    path = request.split(b" ")[1].decode()
    number = "2" if b"canary-relay-2" in request else "1"
    if path.endswith("pdf/get"):
        head = "Content-Type: application/pdf\r\nPlaid-Request-ID: id-{}\r\nContent-Length: 15\r\n\r\n%PDF-1.7\n%%EOF\n"
        return [("HTTP/1.1 200 OK\r\n" + head.format(number)).encode()]
    output = {
        "relay_token": "canary-relay-new",
        "asset_report_token": "canary-report-new",
        "asset_report_id": "report-id",
        "access_token": "canary-access-new",
        "item_id": "item-id",
        "public_token": "canary-public-new",
        "removed": True,
        "webhook_fired": True,
        "webhook_events": [],
        "has_more": False,
        "next_cursor": "next",
        "request_id": f"request-{number}",
        "key": {
            "alg": "ES256",
            "kid": "id",
            "kty": "EC",
            "crv": "P-256",
            "x": "x",
            "y": "y",
            "use": "sig",
            "created_at": 1,
        },
        "report": {
            "asset_report_id": "report-id",
            "date_generated": "2026-06-30T00:00:00Z",
            "days_requested": 60,
            "items": [],
            "user": {},
        },
        "warnings": [],
    }
    body = json.dumps(output).encode()
    return [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    ]


async def test_the_code_follows_the_form(console):
    """Each input appears quoted in the code of each language; inputs that aren't filled in have example values."""
    await console.open(report_token="canary-report")
    assert '"ce5bd328dcd34123456"' in await console.code_text("python")
    assert "Example values" in await console.page.locator("#code-note").inner_text()
    await console.fill(secondary_client_id='a"b')
    for language, quoted in zip(LANGUAGES, (r'"a\"b"', r'["a\"b"]', r'"a\\"b"', r'"a\"b"'), strict=True):
        code = await console.code_text(language)
        assert quoted in code, language
        assert "webhook" not in code
    await console.fill(webhook="https://lender.example/$x")
    for language in LANGUAGES:
        assert (
            "https://lender.example/\\$x" if language == "curl" else "https://lender.example/$x"
        ) in await console.code_text(language)
    assert "Example values" not in await console.page.locator("#code-note").inner_text()
    await console.page.locator("#address").fill("https://gateway.example/plaid/")
    for language in LANGUAGES:
        assert "https://gateway.example/plaid" in await console.code_text(language)
    await console.choose_operation("/asset_report/remove")
    assert "no batch method" in await console.code_text("bulk")


async def test_the_shown_code_is_copied(console):
    """The button copies exactly the shown code, and confirms it."""
    page = await console.open()
    await console.fill(secondary_client_id="é\\")
    code = await console.code_text("curl")
    await page.locator("#copy").click()
    await page.locator("#copy", has_text="Copied").wait_for()
    assert await page.evaluate("navigator.clipboard.readText()") == code


async def test_no_code_contains_a_secret(console):
    """The code contains neither the key nor a token, not even one that was entered in another field."""
    await console.open(report_token="assets-sandbox-canary-1", relay_token="credit-relay-sandbox-canary-2")
    await console.fill(secondary_client_id="credit-relay-sandbox-canary-3")
    assert "looks like a token" in await console.page.locator("#input-secondary_client_id-error").inner_text()
    for path in ("/credit/relay/create", "/credit/relay/get"):
        await console.choose_operation(path)
        for language in LANGUAGES:
            code = await console.code_text(language)
            assert "canary" not in code
            assert "PLAID_GATEWAY_KEY" in code
            assert console.keys["owner"] not in code


@pytest.mark.timeout(240)
async def test_the_python_code_runs_in_a_fresh_environment(console, tmp_path, request):
    """With only the package installed, the shown code shares a report through the gateway."""
    token = console.plaid.add_report()
    await console.open()
    await console.fill(secondary_client_id="partner", webhook="https://lender.example/relay")
    code = await console.code_text("python")
    bulk = await console.code_text("bulk")
    python = tmp_path / "venv" / "bin" / "python"
    await run_program(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"), cwd=tmp_path)
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile")
    await run_program(*pip, str(request.config.rootpath), cwd=tmp_path)
    environment = {"PLAID_GATEWAY_KEY": console.keys["owner"], "REPORT_TOKEN": token}
    for number, each in enumerate((code, bulk)):
        file = tmp_path / f"shown{number}.py"
        file.write_text(each, encoding="utf-8")
        output = await run_program(
            str(python), "-I", "-X", "dev", "-W", "error", str(file), cwd=tmp_path, env=environment
        )
        assert console.plaid.ledger[number]["secondary_client_id"] == "partner"
        assert console.plaid.ledger[number]["relay_token"] not in output
        assert ("RelayCreateResponse", "succeeded=1")[number] in output
    response = json.loads((tmp_path / "response.json").read_text(encoding="utf-8"))
    assert response["relay_token"] == console.plaid.ledger[0]["relay_token"]
    rows = (tmp_path / "relay-tokens.csv").read_text(encoding="utf-8")
    assert rows.strip() == f"partner,{console.plaid.ledger[1]['relay_token']}"
