"""The code panel: it follows the form, and what it shows runs as it stands."""

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
NASTY = [
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


async def run(*command: str, cwd, env=None) -> str:
    """Run a program to its end, give what it wrote, and fail if it failed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PLAID_", "PYTHON"))}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=kept | TOKENS | (env or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    written, _ = await process.communicate()
    assert process.returncode == 0, written.decode()
    return written.decode()


async def snippets(modules, language, path, inputs, address):
    """The code for each of some inputs, as the page writes it."""
    return await modules.evaluate(
        """async ([language, path, inputs, address]) => {
          const { snippet } = await import('/console/snippets.js');
          const { operationOf } = await import('/console/operations.js');
          return inputs.map((each) => snippet(language, operationOf(path), each, address));
        }""",
        [language, path, inputs, address],
    )


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        told = f"needs {name}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(told)
    return found


async def run_code(language: str, codes: list[str], folder) -> str:
    """Run each piece of code as a person would, from a file in a folder of its own."""
    ending = {"python": "py", "bulk": "py", "curl": "sh", "typescript": "mts"}[language]
    names = []
    for number, code in enumerate(codes):
        file = folder / str(number) / f"shown.{ending}"
        file.parent.mkdir(exist_ok=True)
        file.write_text(code, encoding="utf-8", newline="")
        names.append(str(file))
    if language == "curl":
        return "".join([await run(tool("sh"), name, cwd=Path(name).parent) for name in names])
    # One process for all of them: each takes longer to start than to do its work.
    if language == "typescript":
        every = (
            "import { dirname } from 'node:path';"
            "for (const name of process.argv.slice(1)) { process.chdir(dirname(name)); await import(name); }"
        )
        return await run(tool("node"), "--input-type=module", "--eval", every, *names, cwd=folder)
    every = (
        "import os, runpy, sys\n"
        "for name in sys.argv[1:]: os.chdir(os.path.dirname(name)); runpy.run_path(name, run_name='__main__')"
    )
    return await run(sys.executable, "-c", every, *names, cwd=folder)


@pytest.mark.parametrize("language", ["python", "curl", "typescript"])
async def test_any_text_survives_in_the_code(modules, language, tmp_path):
    """Quotes, dollars, line breaks, and what can't be seen arrive in the request as they were filled in."""
    inputs = [{"reason_code": "OTHER", "reason_note": text} for text in NASTY]
    async with Recorder() as upstream:
        codes = await snippets(modules, language, "/item/remove", inputs, upstream.url)
        assert not any(set("\x00\x1b\x7f\u202e\u2066\u2028\ufeff") & set(code) for code in codes)
        told = await run_code(language, codes, tmp_path)
        notes = [upstream.body(number)["reason_note"] for number in range(len(upstream.requests))]
        assert notes == NASTY
        assert upstream.body()["access_token"] == "canary-access"
        assert dict(upstream.fields())["authorization"] == "Bearer canary-key"
    assert "canary" not in told


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_code_of_every_operation_asks_for_the_same(modules, language, tmp_path):
    """For each operation the code sends what the page itself would send, with tokens of the environment."""
    filled = {
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
    }
    async with Recorder() as upstream:
        upstream.says = answer_of
        codes = {
            path: (await snippets(modules, language, path, [filled], upstream.url))[0]
            for path in ALL_OPERATIONS
        }
        for path in [path for path, code in codes.items() if code is None]:
            assert not path.startswith("/credit/relay")
            del codes[path]
        told = await run_code(language, list(codes.values()), tmp_path)
        sent = [
            (each.split(b" ")[1].decode(), upstream.body(at)) for at, each in enumerate(upstream.requests)
        ]
    for path in codes:
        body = await body_of(modules, path, filled)
        asked = [without_false(each) for to, each in sent if to == path]
        if language == "bulk" and "relay_token" in body:
            assert sorted(asked, key=str) == [
                body | {"relay_token": f"canary-relay-{number}"} for number in (1, 2)
            ]
        else:
            assert asked == [body], path
    assert "canary" not in told
    made = [file for file in tmp_path.rglob("*") if file.suffix in {".json", ".csv", ".pdf"}]
    assert all(file.stat().st_mode & 0o077 == 0 for file in made)
    for number, path in enumerate(codes):
        kept = "".join(file.read_text() for file in made if file.parent == tmp_path / str(number))
        assert KEPT[path] in kept if path in KEPT else "request-" in kept + told, (language, path)


# What is in a file once the code has run; of other operations the request id is there, or is printed.
KEPT = {
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
    """The package says of a switch that it is off; the page leaves it out."""
    return {name: value for name, value in body.items() if value is not False}


@pytest.mark.parametrize("language", ["python", "typescript"])
async def test_no_code_writes_an_answer_over_another(modules, language, tmp_path):
    """Where an answer lies already nothing is sent: it may be all that there is of a token."""
    async with Recorder() as upstream:
        upstream.says = answer_of
        [code] = await snippets(modules, language, "/credit/relay/create", [{}], upstream.url)
        await run_code(language, [code], tmp_path)
        kept = tmp_path / "0" / "answer.json"
        answer = kept.read_bytes()
        assert b"canary-relay-new" in answer
        with pytest.raises(AssertionError, match=r"answer\.json"):
            await run_code(language, [code], tmp_path)
        assert len(upstream.requests) == 1
    assert kept.read_bytes() == answer


@pytest.mark.parametrize("shell", ["sh", "bash"])
async def test_curl_writes_no_answer_over_another(modules, shell, tmp_path):
    """Where an answer lies already nothing is sent: it may be all that there is of a token."""
    kept = tmp_path / "answer.json"
    async with Recorder() as upstream:
        [code] = await snippets(modules, "curl", "/credit/relay/create", [{}], upstream.url)
        await run(tool(shell), "-c", code, cwd=tmp_path)
        answer = kept.read_bytes()
        with pytest.raises(AssertionError, match=r"answer\.json"):
            await run(tool(shell), "-c", code, cwd=tmp_path)
        assert len(upstream.requests) == 1
    assert kept.read_bytes() == answer


async def test_curl_takes_an_address_and_values_to_the_letter(modules, tmp_path):
    """Braces and brackets don't make several requests, and a value is never a file, an option or a command."""
    endings = ["/{a,b}", "/[1-3]", "/it's", "/$HOME`id`!!", "/-X/@x"]
    values = ["@/etc/passwd", "-d", "!!", "!x", "%0a%1", "<x", ">x"]
    async with Recorder() as upstream:
        codes = []
        for ending in endings:
            codes += await snippets(modules, "curl", "/item/remove", [{}], upstream.url + ending)
        inputs = [{"reason_code": "OTHER", "reason_note": value} for value in values]
        codes += await snippets(modules, "curl", "/item/remove", inputs, upstream.url)
        await run_code("curl", codes, tmp_path)
        targets = [each.split(b" ")[1].decode() for each in upstream.requests]
        notes = [upstream.body(number)["reason_note"] for number in range(len(endings), len(codes))]
    assert targets == [f"{ending}/item/remove" for ending in endings] + ["/item/remove"] * len(values)
    assert notes == values
    assert "!!" not in codes[len(endings) + 2]


async def body_of(modules, path, filled):
    """What the page itself would send."""
    return await modules.evaluate(
        """async ([path, filled, tokens]) => {
          const { bodyOf, valueOf } = await import('/console/request.js');
          const { operationOf } = await import('/console/operations.js');
          const text = (input) => input.env ? tokens[input.env].replaceAll(' ', '\\n') : filled[input.name];
          return bodyOf(operationOf(path), (input) => valueOf(input, text(input)));
        }""",
        [path, filled, TOKENS],
    )


def answer_of(request: bytes):
    """An answer that fits the operation, with a secret in each place where there is one."""
    path = request.split(b" ")[1].decode()
    number = "2" if b"canary-relay-2" in request else "1"
    if path.endswith("pdf/get"):
        head = "Content-Type: application/pdf\r\nPlaid-Request-ID: id-{}\r\nContent-Length: 15\r\n\r\n%PDF-1.7\n%%EOF\n"
        return [("HTTP/1.1 200 OK\r\n" + head.format(number)).encode()]
    told = {
        "relay_token": "canary-relay-new",
        "asset_report_token": "canary-report-new",
        "asset_report_id": "report-id",
        "access_token": "canary-access-new",
        "item_id": "item-id",
        "public_token": "canary-public-new",
        "removed": True,
        "webhook_fired": True,
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
    body = json.dumps(told).encode()
    return [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    ]


async def test_the_code_follows_the_form(shown):
    """Each stroke is in the code of each language at once, quoted; what isn't filled in yet is an example."""
    await shown.open(report_token="canary-report")
    assert '"ce5bd328dcd34123456"' in await shown.code("python")
    assert "an example" in await shown.page.locator("#code-note").inner_text()
    await shown.fill(secondary_client_id='a"b')
    for language, quoted in zip(LANGUAGES, (r'"a\"b"', r'["a\"b"]', r'"a\\"b"', r'"a\"b"'), strict=True):
        code = await shown.code(language)
        assert quoted in code, language
        assert "webhook" not in code
    await shown.fill(webhook="https://lender.example/$x")
    for language in LANGUAGES:
        assert (
            "https://lender.example/\\$x" if language == "curl" else "https://lender.example/$x"
        ) in await shown.code(language)
    assert "an example" not in await shown.page.locator("#code-note").inner_text()
    await shown.page.locator("#address").fill("https://gateway.example/plaid/")
    for language in LANGUAGES:
        assert "https://gateway.example/plaid" in await shown.code(language)
    await shown.choose("/asset_report/remove")
    assert "no batch of its own" in await shown.code("bulk")


async def test_what_is_copied_is_what_is_shown(shown):
    """The button copies the code to the letter, and says so."""
    page = await shown.open()
    await shown.fill(secondary_client_id="é\\")
    code = await shown.code("curl")
    await page.locator("#copy").click()
    await page.locator("#copy", has_text="Copied").wait_for()
    assert await page.evaluate("navigator.clipboard.readText()") == code


async def test_no_code_has_a_secret_in_it(shown):
    """Neither the key nor a token stands in the code, nor one that was filled into a field for something else."""
    await shown.open(report_token="assets-sandbox-canary-1", relay_token="credit-relay-sandbox-canary-2")
    await shown.fill(secondary_client_id="credit-relay-sandbox-canary-3")
    assert "looks like a token" in await shown.page.locator("#input-secondary_client_id-wrong").inner_text()
    for path in ("/credit/relay/create", "/credit/relay/get"):
        await shown.choose(path)
        for language in LANGUAGES:
            code = await shown.code(language)
            assert "canary" not in code
            assert "PLAID_GATEWAY_KEY" in code
            assert shown.keys["owner"] not in code


@pytest.mark.timeout(240)
async def test_the_python_code_runs_in_a_fresh_environment(shown, tmp_path, request):
    """With nothing installed but the package, the shown code shares a report through the gateway."""
    token = shown.plaid.add_report()
    await shown.open()
    await shown.fill(secondary_client_id="partner", webhook="https://lender.example/relay")
    code = await shown.code("python")
    bulk = await shown.code("bulk")
    python = tmp_path / "venv" / "bin" / "python"
    await run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"), cwd=tmp_path)
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile")
    await run(*pip, str(request.config.rootpath), cwd=tmp_path)
    given = {"PLAID_GATEWAY_KEY": shown.keys["owner"], "REPORT_TOKEN": token}
    for number, each in enumerate((code, bulk)):
        file = tmp_path / f"shown{number}.py"
        file.write_text(each, encoding="utf-8")
        told = await run(str(python), "-I", "-X", "dev", "-W", "error", str(file), cwd=tmp_path, env=given)
        assert shown.plaid.ledger[number]["secondary_client_id"] == "partner"
        assert shown.plaid.ledger[number]["relay_token"] not in told
        assert ("RelayCreateResponse", "succeeded=1")[number] in told
    one = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert one["relay_token"] == shown.plaid.ledger[0]["relay_token"]
    kept = (tmp_path / "relay-tokens.csv").read_text(encoding="utf-8")
    assert kept.strip() == f"partner,{shown.plaid.ledger[1]['relay_token']}"
