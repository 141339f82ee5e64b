"""The pages about the gateway: their tables match the code, and their examples work."""

from __future__ import annotations

import contextlib
import http.client
import inspect
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import trustme
from cyclopts import Parameter
from processes import running_process, wait_until

import plaid_relay_async
from plaid_relay_async import (
    Credentials,
    OutcomeUnknownError,
    PlaidRelayError,
    RelayClient,
    RelayCreateRequest,
    RetryPolicy,
    Timeouts,
)
from plaid_relay_async.certainty import Certainty, certainty_of
from plaid_relay_async.cli import gateway as commands
from plaid_relay_async.cli.serving import variable_names
from plaid_relay_async.codec import RELAY_CREATE, RawResponse, read_response
from plaid_relay_async.gateway import Gateway, connections, new_key
from plaid_relay_async.gateway.audit import AuditRecord
from plaid_relay_async.gateway.error_responses import ERROR_REASONS, error_response
from plaid_relay_async.gateway.metrics import Metrics
from plaid_relay_async.redaction import Hidden
from plaid_relay_async.simulator import Fault, Simulator

ROOT = Path(__file__).parent.parent
INSTALLED = Path(plaid_relay_async.__file__).parent
LOGROTATE = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
PAGE = (ROOT / "docs/gateway.md").read_text(encoding="utf-8")
MODEL = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")


def section(heading, text=PAGE):
    return re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)[1]


def table_rows(heading, columns, text=PAGE):
    """Return the first cells of each row of a section's tables, without heads."""
    matches = re.findall(r"^\| (.*) \|$", section(heading, text), re.MULTILINE)
    cells = [re.split(r" *\| *", line) for line in matches]
    return [line[:columns] for line in cells if line[0].startswith("`") or line[0].isdigit()]


def code_block(language):
    [content] = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return content


def shown_file(path):
    """Return the content of a file that the page shows, without the line that names it."""
    [content] = re.findall(rf"^```\w+\n# {re.escape(path)}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return content


# the tables


def test_each_error_is_documented():
    """gateway.md lists each error response of the gateway with its status."""
    documented = [
        (int(status), code.strip("`")) for status, code in table_rows("Responses of the gateway", 2)
    ]
    assert sorted(documented) == sorted((reason.status, reason.code) for reason in ERROR_REASONS)


@pytest.mark.parametrize("reason", ERROR_REASONS, ids=lambda reason: reason.code)
def test_unknown_outcomes_are_documented(reason):
    """For a creation, exactly the four errors that gateway.md calls unknown are unknown to the client."""
    response = error_response(reason, "gateway-1")
    raw_response = RawResponse(reason.status, response.headers, bytearray(response.body))
    with pytest.raises(PlaidRelayError) as caught:
        read_response(RELAY_CREATE, raw_response, RelayCreateRequest(("report",), "partner"), Hidden("key"))
    unknown = reason.code in {"INTERNAL_ERROR", "UPSTREAM_LOST", "UPSTREAM_ENCODING", "UPSTREAM_TIMEOUT"}
    assert (certainty_of(caught.value) is Certainty.IN_DOUBT) == unknown
    assert caught.value.advice == reason.action or unknown
    assert f"`{reason.code}`" in section("Responses of the gateway")


def options_of(function):
    """Return a command's options with their defaults, as users write them."""
    hints = get_type_hints(function, include_extras=True)
    options = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            [meta] = [each for each in hints[name].__metadata__ if isinstance(each, Parameter)]
            option = next(iter(meta.name or ()), f"--{name.replace('_', '-')}")
            is_shown = parameter.default is not None and parameter.default is not False
            options[option] = str(parameter.default) if is_shown else ""
    return options


@pytest.mark.parametrize(
    ("heading", "command", "elsewhere"),
    [("Start the gateway", commands.run_gateway, {}), ("Keys", commands.add_key, {"--keys": ""})],
)
def test_each_option_is_documented(heading, command, elsewhere):
    """gateway.md lists each option with its default."""
    documented = {}
    for names, default in table_rows(heading, 2):
        for name in re.findall(r"`(--[\w-]+)`", names):
            documented[name] = default
    assert documented | elsewhere == options_of(command)


def test_each_command_is_documented():
    """gateway.md lists the commands for keys."""
    documented = re.findall(r"`gateway keys (\w+)", section("Keys"))
    assert set(documented) >= {"add", "list", "revoke"} == {name for name in commands.keys if name.isalpha()}


def test_the_variables_are_documented():
    """gateway.md lists the environment variables that the command reads for each set."""
    for name, documented in table_rows("Sets of credentials", 2):
        assert documented == ", ".join(f"`{variable}`" for variable in variable_names(name.strip("`")))


def test_each_field_of_the_audit_log_is_documented(caplog):
    """gateway.md lists the fields of an audit line, in order."""
    caplog.set_level(logging.INFO)
    AuditRecord().write()
    documented = [
        name.strip("`")
        for name, *_ in table_rows("Health, metrics and the audit log", 1)
        if "plaid_" not in name
    ]
    assert documented == list(json.loads(caplog.messages[-1]))


def test_each_metric_is_documented():
    """gateway.md lists the metrics and their labels."""
    metrics = Metrics(lambda: 0, lambda: 0)
    metrics.count_call(AuditRecord())
    page, documented = metrics.render_text().decode(), set()
    for name, labels in table_rows("Health, metrics and the audit log", 2):
        if name.startswith("`plaid_"):
            line = re.search(rf"^{name.strip('`')}(?:_count)?(?:{{(.*)}})? ", page, re.MULTILINE)
            assert set(re.findall(r"(\w+)=", line[1] or "")) == set(re.findall(r"\w+", labels))
            documented.add(name.strip("`"))
    assert documented == {
        name for name in re.findall(r"^# TYPE (\w+)", page, re.MULTILINE) if "created" not in name
    }


# the commands


@pytest.fixture
def shell(tmp_path):
    """Return a function that runs a line with `plaid-relay` in a temporary folder and configuration."""
    script = f'#!/bin/sh\nexec "{sys.executable}" -m plaid_relay_async.cli "$@"\n'
    (tmp_path / "plaid-relay").write_text(script)
    (tmp_path / "plaid-relay").chmod(0o700)
    variables = {
        "XDG_CONFIG_HOME": str(tmp_path),
        "PLAID_CLIENT_ID": "owner",
        "PLAID_SECRET": "secret",
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }

    def run(line):
        environment = os.environ | variables
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return running_process(["sh", "-c", f"exec {line}"], cwd=tmp_path, env=environment, **pipes)

    return run


def stops_cleanly(process):
    """Return whether it reports its address and exits successfully on SIGTERM, and its output."""
    line = process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return re.match(r"(listening on|console:) http", line), out + err


@pytest.mark.slow
def test_each_example_of_the_command_works(shell):
    """Each command line of gateway.md works, in the page's order."""
    lines = re.findall(r"^\$ (plaid-relay .*)", PAGE, re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        with shell(line.replace("--port 8484", "--port 0")) as process:
            if "keys" in line:
                assert process.wait() == 0, process.stderr.read()
            else:
                assert stops_cleanly(process)[0]


def with_free_port(command, folder):
    return re.sub(r"(port) \d+", r"\1 0", command).replace("/var/lib/plaid-gateway", str(folder))


def test_the_systemd_unit(shell, tmp_path):
    """Its command runs, and TimeoutStopSec exceeds the drain timeout."""
    unit = shown_file("/etc/systemd/system/plaid-gateway.service").replace("\\\n", "")
    command = re.search(r"^ExecStart=/opt/plaid-gateway/bin/(.*)$", unit, re.MULTILINE)[1]
    with shell(with_free_port(command, tmp_path)) as process:
        assert stops_cleanly(process)[0]
    stop = float(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1])
    assert stop > inspect.signature(Gateway.__init__).parameters["drain"].default
    [add] = re.findall(r"^sudo -u plaid-gateway /opt/plaid-gateway/bin/(.*)$", PAGE, re.MULTILINE)
    with shell(with_free_port(add, tmp_path)) as process:
        assert process.wait() == 0


def reload_command(process):
    """Return the command by which the unit reloads, for a process."""
    unit = shown_file("/etc/systemd/system/plaid-gateway.service")
    return re.search(r"^ExecReload=(.*)$", unit, re.MULTILINE)[1].replace("$MAINPID", str(process.pid))


def run_with_audit_file(shell, folder):
    """Run the unit's command with the audit file that the page adds to it, in a temporary folder."""
    unit = shown_file("/etc/systemd/system/plaid-gateway.service").replace("\\\n", "")
    command = re.search(r"^ExecStart=/opt/plaid-gateway/bin/(.*)$", unit, re.MULTILINE)[1]
    [option] = re.findall(r"`(--audit /var/log/plaid-gateway/\S+)`", section("Log rotation"))
    return shell(f"{with_free_port(command, folder)} {option.replace('/var/log/plaid-gateway', str(folder))}")


def rejected_call(process, folder):
    """Return a function that makes a call that is rejected, and waits for its audit line."""
    url = re.match("listening on (.*)", process.stdout.readline())[1]
    process.stdout.readline()  # the address of the metrics
    host, port = url.removeprefix("http://").split(":")

    def call():
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.request("POST", RELAY_CREATE.path, "{}", {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            assert response.status == 401
        connection.close()
        # The audit line is written after the response was delivered.
        wait_until(lambda: (folder / "audit.jsonl").read_text().endswith("\n"))

    return call


def test_audit_log_rotation(shell, tmp_path):
    """The unit's reload command makes the gateway write to a new file, as logrotate's settings expect."""
    settings = shown_file("/etc/logrotate.d/plaid-gateway")
    [path] = re.findall(r"`--audit (\S+)`", section("Log rotation"))
    assert settings.startswith(f"{path} {{\n")
    assert "systemctl reload plaid-gateway" in settings
    assert {"nocreate", "delaycompress"} <= set(settings.split())
    folder = re.search(r"^LogsDirectory=(.*)$", PAGE, re.MULTILINE)[1]
    assert path.startswith(f"/var/log/{folder}/")
    audit = tmp_path / Path(path).name
    with run_with_audit_file(shell, tmp_path) as process:
        call = rejected_call(process, tmp_path)
        call()
        audit.rename(tmp_path / "rotated")
        subprocess.run(shlex.split(reload_command(process)), check=True)
        lines = iter(process.stderr.readline, "")
        assert "plaid-relay: reloaded\n" in lines
        call()
    assert (audit.stat().st_mode & 0o777, len(audit.read_text().splitlines())) == (0o600, 1)
    assert len((tmp_path / "rotated").read_text().splitlines()) == 1


@pytest.mark.skipif(LOGROTATE is None, reason="needs logrotate")
def test_logrotate_accepts_the_settings(shell, tmp_path):
    """Logrotate renames the file, and the gateway writes to a new one."""
    settings = shown_file("/etc/logrotate.d/plaid-gateway").replace("/var/log/plaid-gateway", str(tmp_path))
    settings = re.sub(r"^ *su .*\n", "", settings, flags=re.MULTILINE)
    with run_with_audit_file(shell, tmp_path) as process:
        call = rejected_call(process, tmp_path)
        call()
        (tmp_path / "logrotate.conf").write_text(
            settings.replace("systemctl reload plaid-gateway", reload_command(process))
        )
        command = [LOGROTATE, "--force", "--state", tmp_path / "state", tmp_path / "logrotate.conf"]
        rotation = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (rotation.returncode, rotation.stderr) == (0, "")
        assert "plaid-relay: reloaded\n" in iter(process.stderr.readline, "")
        call()
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 1
    assert len((tmp_path / "audit.jsonl.1").read_text().splitlines()) == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path):
    """Systemd reports no problem with the unit, and a low exposure."""
    unit = tmp_path / "plaid-gateway.service"
    # systemd checks that the program and the user exist.
    text = shown_file("/etc/systemd/system/plaid-gateway.service").replace(
        "/opt/plaid-gateway/bin/plaid-relay", sys.executable
    )
    unit.write_text(text.replace("User=plaid-gateway", "User=daemon"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert security.returncode == 0, security.stdout + security.stderr


def test_the_container(shell, tmp_path):
    """The image's command starts with the options that name how callers reach it."""
    file = code_block("dockerfile")
    arguments = json.loads(re.search(r"^ENTRYPOINT (.*)$", file, re.MULTILINE)[1])
    arguments += ["--name", "plaid-gateway.internal.example", "--plain-http"]
    command = shlex.join(arguments).replace("8484", "0").replace("/keys/", f"{tmp_path}/")
    with shell(command) as process:
        assert stops_cleanly(process)[0]
    for port in re.findall(r"^EXPOSE (\d+)$", file, re.MULTILINE):
        assert port in arguments
    assert re.search(r"^USER (?!root)", file, re.MULTILINE)
    assert set(re.search(r"/src\[(.*)\]", file)[1].split(",")) == {"cli", "gateway"}


# nginx

# Before nginx has read its settings, it logs to /var/log, where only root may write.
NGINX_COMMAND = [NGINX, "-q", "-e", "stderr"]


def free_port():
    """Return a port that is free now, for a program that doesn't report the port it picked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def nginx_settings(folder, port, gateway="127.0.0.1:8484"):
    """Write the page's settings with the test's ports, certificates and folders, and return the file."""
    text = code_block("nginx").replace("127.0.0.1:8484", gateway)
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    text = text.replace("/etc/ssl/plaid-gateway.pem", f"{folder}/certificate.pem")
    text = text.replace("/etc/ssl/private/plaid-gateway.key", f"{folder}/key.pem")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{paths}{text}}}\n"
    )
    return folder / "nginx.conf"


@pytest.fixture
def certificate(tmp_path):
    """Return the CA that issued nginx's certificate."""
    authority = trustme.CA()
    issued = authority.issue_cert("plaid-gateway.internal.example", "localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    return authority


def seconds_of(name):
    return float(re.search(rf"{name} (\d+)s;", code_block("nginx"))[1])


def test_the_nginx_settings():
    """Nginx waits longer than the gateway, closes idle connections earlier, and repeats no request."""
    times = Timeouts()
    assert seconds_of("proxy_read_timeout") > times.connect + times.slow_read
    assert f"{times.connect + times.slow_read:.0f} s for which the gateway waits" in code_block("nginx")
    assert re.search(r"\n    keepalive_timeout 60s;", code_block("nginx"))
    assert connections._KEEPALIVE_SECONDS > 60
    assert "proxy_next_upstream off;" in code_block("nginx")


@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_nginx_accepts_the_settings(certificate, tmp_path):
    """Nginx reports no problem with the settings."""
    tested = subprocess.run(
        [*NGINX_COMMAND, "-t", "-c", nginx_settings(tmp_path, free_port()), "-p", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tested.returncode, tested.stderr) == (0, "")


@contextlib.contextmanager
def running_nginx(folder, gateway):
    """Run nginx on a port that was free just before, and yield the port."""
    port = free_port()
    command = [*NGINX_COMMAND, "-c", nginx_settings(folder, port, gateway), "-p", folder]

    def stops_cleanly():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True

    with running_process(command, stderr=subprocess.DEVNULL):
        wait_until(stops_cleanly)
        yield port


@pytest.mark.may_block
@pytest.mark.skipif(NGINX is None, reason="needs nginx")
async def test_a_gateway_behind_nginx(certificate, tmp_path):
    """Through nginx each call is executed once, and a truncated response is unknown."""
    context = ssl.create_default_context()
    certificate.configure_trust(context)
    record, key = new_key("ann", operations=[RELAY_CREATE.path, "/credit/relay/get"])
    async with (
        Simulator(reports=["report"]) as plaid,
        Gateway(
            [record],
            upstream=plaid.url,
            credentials={"default": Credentials("ann", "secret")},
            allowed_hosts=["plaid-gateway.internal.example", "localhost"],
        ) as gateway,
    ):
        with running_nginx(tmp_path, gateway.url.removeprefix("http://")) as port:
            async with RelayClient(
                gateway_key=key,
                base_url=f"https://localhost:{port}",
                ssl=context,
                retry=RetryPolicy(backoff=0.001),
            ) as client:
                created = await client.relay.create(["report"], "ann")
                assert (await client.relay.get(created.relay_token)).report.items
                for number, fault in enumerate((Fault(close=True, when="after"), Fault(truncate=3))):
                    plaid.fail(fault)
                    with pytest.raises(OutcomeUnknownError):
                        await client.relay.create(["report"], f"ben-{number}")
                    plaid.clear_faults()
    assert plaid.counts[RELAY_CREATE.path] == 3


# the threat model


def test_each_named_test_exists():
    """Each test that threat-model.md names exists."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", MODEL)
    assert named
    for file, test in named:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {test}(" in text if test else text, (file, test)


def test_each_module_of_the_gateway_is_listed():
    """threat-model.md says for each module of the gateway what an edit of it affects."""
    documented = "\n".join(cells[0] for cells in table_rows("Changes that require a review", 1, MODEL))
    modules = (INSTALLED / "gateway").rglob("*.py")
    names = {f"gateway/{path.name}" for path in modules if path.name != "__init__.py"}
    assert names <= set(re.findall(r"gateway/\w+\.py", documented))
    for path in re.findall(r"`([\w/]+\.(?:py|md))`", documented):
        assert (INSTALLED / path).is_file() or (ROOT / path).is_file(), path
