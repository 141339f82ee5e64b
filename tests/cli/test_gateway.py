"""The commands of the gateway, in this process and in other processes, and the command `console`."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from processes import ignoring_signals, wait_until
from support import CREATE

from plaid_relay_async import AuthenticationError, RelayClient, Timeouts
from plaid_relay_async.gateway import RELAY_OPERATIONS, KeyFile
from plaid_relay_async.gateway.keys import find_key
from plaid_relay_async.limits import RateLimit
from plaid_relay_async.simulator import Fault

REPORT = "assets-sandbox-1111"
SECRET = "canary-secret-7d1f"
COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
KEY = re.compile(r"plaid-gateway-[A-Za-z0-9_-]{43}")


@pytest.fixture(autouse=True)
def config_home(tmp_path, monkeypatch):
    """Set a configuration folder and credentials for this test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [name for name in os.environ if name.startswith("PLAID_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    monkeypatch.setenv("PLAID_SECRET", SECRET)
    return tmp_path


@pytest.fixture
def keys_file(config_home):
    return KeyFile(config_home / "config" / "plaid_relay_async" / "gateway-keys.json")


def call(url, key, path=CREATE, context=None, headers=(), **body):
    """Send a call, and return its status and the decoded response."""
    details = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", **dict(headers)}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), details)
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def create(url, key, partner="ann", **more):
    return call(url, key, report_tokens=[REPORT], secondary_client_id=partner, **more)


def read_address(process, word="listening on "):
    line = process.stdout.readline()
    assert line.startswith(word), line or process.stderr.read()
    return line.removeprefix(word).strip()


# Keys


def test_a_key_is_printed_alone_and_once(run, keys_file):
    """`keys add` prints only the key on standard output, and never again."""
    result = run("gateway", "keys", "add", "ann")
    assert result.status == 0
    assert KEY.fullmatch(result.out.removesuffix("\n"))
    assert result.err == "The key is shown only once: store it now.\n"
    [key] = keys_file.read()
    assert find_key([key], result.out.strip()) == key
    assert (key.name, key.credentials, key.operations, key.partners, key.rate) == (
        "ann",
        "default",
        frozenset(RELAY_OPERATIONS),
        None,
        None,
    )
    assert stat.S_IMODE(keys_file.path.stat().st_mode) == 0o600
    again = run("gateway", "keys", "add", "ann")
    assert (again.status, again.out) == (2, "")
    assert "the name ann is taken" in again.err


def test_the_permissions_of_a_key(run, config_home):
    """A key has the credentials, operations, partners and rate limit of its options, in the selected file."""
    args = ["--credentials", "acme-bank", "--operation", CREATE, "--operation", "/asset_report/get"]
    more = ["--partner", "p1", "--partner", "p2", "--rate", "100/0.5", "--keys", config_home / "keys.json"]
    assert run("gateway", "keys", "add", "ann", *args, *more).status == 0
    [key] = KeyFile(config_home / "keys.json").read()
    assert (key.credentials, key.operations) == ("acme-bank", {CREATE, "/asset_report/get"})
    assert (key.partners, key.rate) == ({"p1", "p2"}, RateLimit(100, 0.5))
    assert run("gateway", "keys", "add", "ben", "--operation", "all").status == 0


def test_list_shows_nothing_secret(run, keys_file):
    """`keys list` shows names and permissions, but neither a key nor its digest."""
    run("gateway", "keys", "add", "ann", "--operation", "all", "--rate", "5/10")
    run("gateway", "keys", "add", "ben", "--partner", "[red]p1", "--operation", CREATE)
    listed = run("gateway", "keys", "list")
    rows = [line.split() for line in listed.out.splitlines()]
    today = f"{keys_file.read()[0].created:%Y-%m-%d}"
    assert rows == [
        ["name", "credentials", "operations", "partners", "rate", "created"],
        ["ann", "default", "all", "all", "5/10", today],
        ["ben", "default", CREATE, "[red]p1", today],
    ]
    assert not any(key.digest in listed.out + listed.err for key in keys_file.read())


def test_list_and_revoke(run, keys_file):
    """A revoked key is not listed, and can't be revoked again."""
    assert run("gateway", "keys", "list").status == 0
    run("gateway", "keys", "add", "ann")
    assert run("gateway", "keys", "revoke", "ann").status == 0
    assert "ann" not in run("gateway", "keys", "list").out
    again = run("gateway", "keys", "revoke", "ann")
    assert (again.status, "has that name" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["an canary-token"], "name must be 1 to 64"),
        (["ann", "--credentials", "canary_token"], "credentials must be the name of a set"),
        (["ann", "--operation", "/canary-token"], "--operation: must be all, or a path"),
        (["ann", "--partner", "canary-token x"], "one of the partners contains whitespace"),
        (["ann", "--rate", "canary-token"], "--rate: must be COUNT/SECONDS, such as 100/60"),
        (["ann", "--rate", "0/5"], "a whole number of at least 1, and a number of seconds above 0"),
        (["ann", "--rate", "1.5/2"], "a whole number of at least 1, and a number of seconds above 0"),
        (["ann", "--rate", f"{10**20}/2"], "a whole number of at least 1, and a number of seconds above 0"),
        (["ann", "--rate", "5"], "--rate: must be COUNT/SECONDS, such as 100/60"),
        (["ann", "canary-token"], "see plaid-relay --help"),
        ([], "see plaid-relay --help"),
    ],
)
def test_keys_add_with_invalid_options(run, keys_file, args, problem):
    """Invalid usage has status 2 and a message without values, and creates no key."""
    result = run("gateway", "keys", "add", *args)
    assert (result.status, result.out) == (2, "")
    assert problem in result.err
    assert "canary" not in result.err
    assert keys_file.read() == ()


def test_an_unknown_command_is_not_repeated(run):
    """An unknown command is not repeated in the message."""
    result = run("gateway", "keys", "canary-token")
    assert result.status == 2
    assert "canary-token" not in result.err
    assert "add, list, revoke" in result.err


def test_a_key_that_cannot_be_printed(spawn, keys_file):
    """A key that can't be printed isn't created."""
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn("gateway", "keys", "add", "ann", stdout=writing)
    os.close(writing)
    assert process.wait() == 1
    assert "the key can't be written (Broken pipe), so it was not created" in process.stderr.read()
    assert keys_file.read() == ()


def test_a_file_with_open_permissions_is_rejected(run, keys_file):
    """A keys file that others can read is used by no command, and the message names the remedy."""
    run("gateway", "keys", "add", "ann")
    keys_file.path.chmod(0o644)
    for args in (["keys", "add", "ben"], ["keys", "list"], ["keys", "revoke", "ann"], []):
        result = run("gateway", *args)
        assert (result.status, "chmod 600" in result.err) == (2, True)


# Invalid options


@pytest.fixture
def tls_files(config_home):
    """Create a certificate and its key; return the options and a context that trusts it."""
    authority = trustme.CA()
    issued = authority.issue_cert("gateway.test", "127.0.0.1")
    issued.private_key_pem.write_to_path(config_home / "key.pem")
    issued.cert_chain_pems[0].write_to_path(config_home / "certificate.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return [
        "--tls-certificate",
        config_home / "certificate.pem",
        "--tls-key",
        config_home / "key.pem",
    ], context


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--upstream", "https://production.plaid.com"], "confirm with --environment production"),
        (["--upstream", "https://PRODUCTION.plaid.com./"], "confirm with --environment production"),
        (
            ["--upstream", "https://sandbox.plaid.com", "--environment", "production"],
            "confirm with --environment sandbox",
        ),
        (["--upstream", "http://plaid.example"], "--upstream is plain http to plaid.example"),
        (["--environment", "development"], "see plaid-relay --help"),
        (["--listen", "0.0.0.0"], "use --tls-certificate and --tls-key, or --plain-http"),
        (["--listen", "::"], "use --tls-certificate and --tls-key, or --plain-http"),
        (["--port", "70000"], "for --port. Must be an integer from 0 to 65535."),
        (["--port", "-1"], "for --port. Must be an integer from 0 to 65535."),
        (["--metrics-port", "70000"], "for --metrics-port. Must be an integer from 0 to 65535."),
        (["--listen", "192.0.2.1", "--plain-http"], "can't listen: "),
        (["--listen", "a" * 64, "--plain-http"], "can't listen: "),
        (["--name", "https://x.example"], "--name: must be a host name"),
        (["--name", "x.example:443"], "--name: must be a host name"),
        (["--operation", "/credit"], "--operation: must be all, or a path"),
        (["--connections", "0"], "--connections: must be an integer of at least 1"),
        (["--drain", "-1"], "--drain: must be a number of seconds"),
        (["--drain", "inf"], "--drain: must be a number of seconds"),
        (["--audit", "no/such/folder"], "--audit: no/such/folder: No such file"),
        (["--tls-certificate", "x"], "--tls-certificate and --tls-key must be used together"),
        (["--tls-key", "x"], "--tls-certificate and --tls-key must be used together"),
        (["--tls-certificate", "x", "--tls-key", "x"], "can't be read: No such file"),
        (["--secret", "canary-token"], "see plaid-relay --help"),
    ],
)
def test_invalid_options_of_the_gateway(run, args, problem):
    """Invalid options have status 2; PLAID_ENV is ignored, and no option takes a secret."""
    result = run("gateway", *args)
    assert (result.status, result.out) == (2, "")
    # Only some releases of cyclopts quote an option.
    assert problem.replace('"', "") in result.err.replace('"', "")
    assert "canary-token" not in result.err


@pytest.mark.parametrize(
    "upstream",
    [
        "https://production.plaid.com",
        "https://production.plaid.com:443/",
        "https://Production.plaid.com.",
        "https://\uff50roduction.plaid.com",
    ],
)
def test_production_is_not_selected_by_the_environment(run, monkeypatch, upstream):
    """PLAID_ENV=production doesn't allow Plaid's production URL, however it is spelled."""
    monkeypatch.setenv("PLAID_ENV", "production")
    result = run("gateway", "--upstream", upstream)
    assert (result.status, "confirm with --environment production" in result.err) == (2, True)


def test_more_connections_than_the_shell_allows():
    """More connections than the limit of open files are rejected, and the message names the remedy."""
    command = " ".join([*COMMAND, "gateway", "--connections", "500"])
    result = subprocess.run(
        ["sh", "-c", f"ulimit -n 256; {command}"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, "raise ulimit -n" in result.stderr) == (2, True)


def test_a_port_that_is_taken(run, plaid):
    """An address that isn't available is reported with the reason of the operating system."""
    result = run("gateway", "--port", plaid.url.rpartition(":")[2])
    assert (result.status, "can't listen: " in result.err, "in use" in result.err) == (2, True, True)


def test_invalid_certificates(run, tls_files, config_home):
    """A certificate without its key, and a key with a passphrase, are rejected without a prompt."""
    args, _ = tls_files
    (config_home / "wrong.pem").write_text("no PEM")
    plain = serialization.load_pem_private_key(args[3].read_bytes(), None)
    encrypted = plain.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"canary"),
    )
    (config_home / "sealed.pem").write_bytes(encrypted)
    for key in (config_home / "wrong.pem", args[1], config_home / "sealed.pem"):
        result = run("gateway", *args[:2], "--tls-key", key)
        assert (result.status, "must be PEM files of a certificate and its key" in result.err) == (2, True)


def test_missing_sets_of_credentials(run, monkeypatch):
    """The message names both variables of each missing set of credentials."""
    run("gateway", "keys", "add", "ann", "--credentials", "acme-bank")
    run("gateway", "keys", "add", "ben")
    monkeypatch.delenv("PLAID_SECRET")
    monkeypatch.setenv("PLAID_CLIENT_ID_ACME_BANK", "acme")
    result = run("gateway")
    assert result.status == 2
    assert "acme-bank: PLAID_CLIENT_ID_ACME_BANK and PLAID_SECRET_ACME_BANK" in result.err
    assert "default: PLAID_CLIENT_ID and PLAID_SECRET" in result.err


@pytest.mark.parametrize(
    ("name", "value"), [("PLAID_SECRET_ACME", "canary-token\n"), ("PLAID_CLIENT_ID_ACME", "canary token")]
)
def test_invalid_credentials(run, monkeypatch, name, value):
    """Credentials with whitespace are reported with their variable, but without their value."""
    monkeypatch.setenv("PLAID_CLIENT_ID_ACME", "acme")
    monkeypatch.setenv("PLAID_SECRET_ACME", "secret")
    monkeypatch.setenv(name, value)
    result = run("gateway")
    assert (result.status, "canary" not in result.err) == (2, True)
    assert f"{name} contains whitespace" in result.err


def test_an_audit_file_with_open_permissions(run, config_home):
    """An existing audit file that others can read is rejected."""
    (config_home / "audit").write_text("")
    (config_home / "audit").chmod(0o644)
    result = run("gateway", "--audit", config_home / "audit")
    assert (result.status, "run chmod 600 first" in result.err) == (2, True)


# A running gateway


@pytest.fixture
def gateway(spawn, plaid):
    """Start a gateway to the simulator in another process."""

    def start(*args, **settings):
        process = spawn("gateway", "--upstream", plaid.url, *args, **settings)
        return process, read_address(process)

    return start


@pytest.fixture
def key(run):
    return run("gateway", "keys", "add", "ann").out.strip()


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    out, err = process.communicate()
    return process.returncode, out, err


def test_a_gateway_from_the_command(gateway, key, plaid):
    """The gateway prints its address, adds credentials, writes the audit log, and ends at SIGTERM with 0."""
    process, url = gateway()
    status, response = create(url, key, secret="canary-body", client_id="canary-client")
    assert (status, response["relay_token"]) == (200, plaid.ledger[0]["relay_token"])
    assert plaid.ledger[0]["client_id"] == "owner"
    assert create(url, key[:-1])[0] == 401
    assert call(url, key, "/asset_report/get")[1]["error_code"] == "UNAUTHORIZED_OPERATION"
    code, _, err = stop(process)
    lines = [json.loads(line) for line in err.splitlines()]
    assert code == 0
    assert [(line["caller"], line["status"]) for line in lines] == [("ann", 200), (None, 401), ("ann", 403)]
    assert not re.search(f"canary|{key}|{response['relay_token']}", err)


def test_other_clients_pass_the_key_as_the_secret(gateway, key, run, plaid, monkeypatch, config_home):
    """The command can call through the gateway with a key as the secret, and curl with a key from a file."""
    _, url = gateway()
    monkeypatch.setenv("PLAID_BASE_URL", url)
    monkeypatch.setenv("PLAID_CLIENT_ID", "any")
    monkeypatch.setenv("PLAID_SECRET", key)
    result = run("create", "--report-token", REPORT, "--partner", "ann")
    assert result.lines[0]["relay_token"] == plaid.ledger[0]["relay_token"]
    assert plaid.ledger[0]["client_id"] == "owner"
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (config_home / "key").write_text(f"Authorization: Bearer {key}\n")
    body = json.dumps({"report_tokens": [REPORT], "secondary_client_id": "ben"})
    args = ["curl", "-s", "--header", f"@{config_home / 'key'}", "--json", body, url + CREATE]
    response = subprocess.run(args, capture_output=True, check=True)
    assert json.loads(response.stdout)["relay_token"] == plaid.ledger[1]["relay_token"]


def test_keys_take_effect_while_it_runs(gateway, run):
    """A running gateway accepts a key that is added, and rejects one that is revoked."""
    _, url = gateway()
    key = run("gateway", "keys", "add", "ann").out.strip()
    wait_until(lambda: create(url, key)[0] == 200)
    run("gateway", "keys", "revoke", "ann")
    wait_until(lambda: create(url, key)[0] == 401)


def test_a_gateway_without_keys(gateway):
    """A gateway without keys runs, and prints how to create one."""
    process, url = gateway()
    assert create(url, "x")[0] == 401
    assert "no caller has a key yet; to create one: plaid-relay gateway keys add NAME" in stop(process)[2]


def test_sets_of_credentials(gateway, run, plaid, monkeypatch):
    """A call uses the credentials of its key, even if the key was added after the start of the gateway."""
    monkeypatch.setenv("PLAID_CLIENT_ID_ACME_BANK_2", "acme")
    monkeypatch.setenv("PLAID_SECRET_ACME_BANK_2", "secret")
    monkeypatch.setenv("PLAID_CLIENT_ID_HALF", "half")
    _, url = gateway()
    key = run("gateway", "keys", "add", "ann", "--credentials", "acme-bank-2").out.strip()
    half = run("gateway", "keys", "add", "ben", "--credentials", "half").out.strip()
    wait_until(lambda: create(url, key)[0] == 200)
    assert plaid.ledger[0]["client_id"] == "acme"
    wait_until(lambda: create(url, half)[1]["error_code"] == "UNAUTHORIZED_CREDENTIALS")


def test_all_options(gateway, run, config_home, tls_files, plaid):
    """TLS, another address, a host name, all operations, an audit file, metrics, and no page."""
    args, context = tls_files
    key = run(
        "gateway", "keys", "add", "ann", "--operation", "all", "--keys", config_home / "keys.json"
    ).out.strip()
    more = [
        "--listen",
        "0.0.0.0",
        "--name",
        "gateway.test",
        "--operation",
        "all",
        "--audit",
        config_home / "audit",
    ]
    process, url = gateway(
        *args, *more, "--keys", config_home / "keys.json", "--metrics-port", 0, "--no-console", "--drain", 1
    )
    metrics = read_address(process, "metrics on ")
    assert url.startswith("https://0.0.0.0:")
    local_url = url.replace("0.0.0.0", "127.0.0.1")
    status, _ = call(local_url, key, "/asset_report/get", context=context, asset_report_token=REPORT)
    assert status == 200
    for host, expected in (("gateway.test", 200), ("elsewhere.test", 421)):
        assert create(local_url, key, context=context, headers={"Host": host})[0] == expected
    with urllib.request.urlopen(metrics, timeout=60) as response:
        assert b'plaid_gateway_operations_total{caller="ann"' in response.read()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{local_url}/", timeout=60, context=context)
    caught.value.close()
    assert caught.value.code == 404
    assert stop(process)[0] == 0
    assert stat.S_IMODE((config_home / "audit").stat().st_mode) == 0o600
    lines = [json.loads(line) for line in (config_home / "audit").read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 200, 421, 404]


def test_plain_http_behind_a_proxy(gateway, key):
    """--plain-http allows another address without TLS; loopback names are still accepted."""
    _, url = gateway("--listen", "0.0.0.0", "--plain-http", "--name", "::1")
    assert create(url.replace("0.0.0.0", "127.0.0.1"), key)[0] == 200


def accepts(url):
    """Return whether a server accepts connections."""
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
    except ConnectionError:
        return False
    return True


def test_a_signal_drains(gateway, key, plaid):
    """After SIGTERM no call is accepted, a call in flight gets its response, and the status is 0."""
    plaid.fail(Fault(latency=5.0))
    process, url = gateway()
    responses = []
    thread = threading.Thread(target=lambda: responses.append(create(url, key)))
    thread.start()
    wait_until(lambda: plaid.requests)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not accepts(url))
    with pytest.raises(urllib.error.URLError):
        create(url, key)
    thread.join()
    assert responses[0][0] == 200
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("drain", [60, 0.1], ids=["a second signal", "the end of the drain"])
def test_calls_are_cut_off(gateway, key, plaid, drain):
    """A second signal, and the end of the drain, close the connections of calls in flight; the status is 1."""
    plaid.fail(Fault(latency=60.0))
    process, url = gateway("--drain", str(drain))
    errors = []

    def call():
        try:
            create(url, key)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: plaid.requests)
    process.send_signal(signal.SIGINT)
    if drain == 60:
        wait_until(lambda: not accepts(url))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    thread.join()
    assert (process.returncode, len(errors)) == (1, 1)
    assert err.endswith("plaid-relay: calls in flight were cut off; their outcome is unknown\n")
    assert "Traceback" not in err


def test_no_secret_in_the_list_of_processes(gateway, key):
    """No process has a key in its arguments, title or environment."""
    process, url = gateway()
    assert create(url, key)[0] == 200
    for path in Path("/proc").glob("[0-9]*"):
        details = [read_bytes(path / name) for name in ("cmdline", "comm", "status")]
        assert not any(key.encode() in text or SECRET.encode() in text for text in details)
        assert key.encode() not in read_bytes(path / "environ")
    assert SECRET.encode() in read_bytes(Path(f"/proc/{process.pid}/environ"))


def read_bytes(path):
    try:
        return path.read_bytes()
    except OSError:  # the process has ended, or belongs to another user
        return b""


def test_the_audit_logger_is_restored(run, plaid, signal_when, config_home):
    """The gateway restores the audit logger when it ends."""
    signal_when(number=signal.SIGTERM)
    result = run("gateway", "--upstream", plaid.url, "--audit", config_home / "audit")
    assert result.status == 0
    assert result.out.startswith("listening on http://127.0.0.1:")
    signal_when(number=signal.SIGTERM)
    assert run("gateway", "--upstream", plaid.url).status == 0
    audit = logging.getLogger("plaid_relay_async.gateway.audit")
    assert (audit.handlers, audit.propagate, audit.level) == ([], True, logging.NOTSET)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_audit_file_on_a_full_disk(gateway, key):
    """Calls continue, and standard error reports once that the audit log can't be written."""
    process, url = gateway("--audit", "/dev/full")
    assert [create(url, key)[0] for _ in range(3)] == [200] * 3
    code, _, err = stop(process)
    assert code == 0
    assert err == "plaid-relay: the audit log can't be written: No space left on device\n"


# SIGHUP


def send_sighup(process):
    """Send SIGHUP, and return the line on standard error that reports its result."""
    process.send_signal(signal.SIGHUP)
    while not (line := process.stderr.readline()).startswith("plaid-relay: "):
        assert line, process.poll()
    return line


def served_certificate(url, context):
    """Return the certificate that the server presents on a new connection."""
    host, port = url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as plain:
        with context.wrap_socket(plain, server_hostname=host) as connection:
            return connection.getpeercert(binary_form=True)


def write_certificate(authority, folder, **settings):
    issued = authority.issue_cert("gateway.test", "127.0.0.1", **settings)
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())


@pytest.mark.parametrize("number", [(), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)])
def test_sighup_reloads_the_certificate(gateway, key, plaid, config_home, number):
    """After SIGHUP new connections get the new certificate, even of another key type; no call is lost."""
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    first = write_certificate(authority, config_home)
    args = ["--tls-certificate", config_home / "certificate.pem", "--tls-key", config_home / "key.pem"]
    with ignoring_signals(*number):
        process, url = gateway(*args)
    assert served_certificate(url, context) == first
    plaid.fail(Fault(latency=1.5, times=1))
    responses = []
    thread = threading.Thread(target=lambda: responses.append(create(url, key, context=context)))
    thread.start()
    wait_until(lambda: plaid.requests)
    second = write_certificate(authority, config_home, key_type=trustme.KeyType.RSA)
    assert send_sighup(process) == "plaid-relay: reloaded\n"
    assert served_certificate(url, context) == second != first
    thread.join()
    assert responses[0][0] == 200
    assert create(url, key, partner="ben", context=context)[0] == 200
    assert stop(process)[0] == 0


def test_a_certificate_that_can_not_be_reloaded(gateway, key, config_home):
    """A certificate that is missing or doesn't match its key is reported, and the old one stays in use."""
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    first = write_certificate(authority, config_home)
    own_key = (config_home / "key.pem").read_bytes()
    process, url = gateway(
        "--tls-certificate", config_home / "certificate.pem", "--tls-key", config_home / "key.pem"
    )
    write_certificate(authority, config_home)
    (config_home / "key.pem").write_bytes(own_key)
    line = send_sighup(process)
    assert line.startswith(
        "plaid-relay: error: not reloaded, the previous one stays in use: --tls-certificate"
    )
    assert served_certificate(url, context) == first
    (config_home / "certificate.pem").unlink()
    assert "can't be read: No such file" in send_sighup(process)
    assert create(url, key, context=context)[0] == 200
    third = write_certificate(authority, config_home)
    assert send_sighup(process) == "plaid-relay: reloaded\n"
    assert served_certificate(url, context) == third


def test_a_key_file_that_can_not_be_reloaded(gateway, key, keys_file):
    """A key file that others can read is reported, and no call is accepted until it is private again."""
    process, url = gateway()
    keys_file.path.chmod(0o644)
    assert send_sighup(process).startswith("plaid-relay: error: not reloaded, no caller is admitted: ")
    assert create(url, key)[0] == 401
    keys_file.path.chmod(0o600)
    assert send_sighup(process) == "plaid-relay: reloaded\n"
    assert create(url, key)[0] == 200
    assert stop(process)[0] == 0


def test_sighup_reopens_the_audit_file(gateway, key, plaid, config_home):
    """Lines go to the renamed file until SIGHUP, and then to a new file with mode 0600."""
    audit, old = config_home / "audit", config_home / "audit.1"
    process, url = gateway("--audit", audit)
    assert create(url, key)[0] == 200
    plaid.fail(Fault(latency=1.5, times=1))
    responses = []
    thread = threading.Thread(target=lambda: responses.append(create(url, key, partner="ben")))
    thread.start()
    wait_until(lambda: plaid.counts[CREATE] == 2)
    audit.rename(old)
    assert create(url, key, partner="carl")[0] == 200
    assert send_sighup(process) == "plaid-relay: reloaded\n"
    thread.join()
    assert responses[0][0] == 200
    assert stop(process)[0] == 0
    partners = [
        [json.loads(line)["partner"] for line in path.read_text().splitlines()] for path in (old, audit)
    ]
    assert partners == [["ann", "carl"], ["ben"]]
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


def test_an_audit_file_that_can_not_be_reopened(gateway, key, config_home):
    """A new file that others can read isn't used: it is reported, and the old file stays in use."""
    audit, old = config_home / "audit", config_home / "audit.1"
    process, url = gateway("--audit", audit)
    audit.rename(old)
    audit.touch()
    audit.chmod(0o644)
    assert "not reloaded, the previous one stays in use: --audit" in send_sighup(process)
    assert create(url, key)[0] == 200
    assert stop(process)[0] == 0
    assert (len(old.read_text().splitlines()), audit.read_text()) == (1, "")


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there is no /dev/null")
def test_an_audit_device_is_not_reopened(gateway, key):
    """SIGHUP doesn't reopen a device or a pipe, because opening a pipe waits for its reader."""
    process, url = gateway("--audit", "/dev/null")
    assert send_sighup(process) == "plaid-relay: reloaded\n"
    assert create(url, key)[0] == 200
    assert stop(process)[0] == 0


def test_sighup_while_the_gateway_closes(gateway, key, plaid):
    """SIGHUP together with SIGTERM, or after it, doesn't cut off calls in flight."""
    plaid.fail(Fault(latency=1.5))
    process, url = gateway()
    responses = []
    thread = threading.Thread(target=lambda: responses.append(create(url, key)))
    thread.start()
    wait_until(lambda: plaid.requests)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP):
        process.send_signal(number)
    thread.join()
    assert responses[0][0] == 200
    assert process.wait() == 0


# The console


@pytest.fixture
def console(spawn):
    """Start the console; return its process and the values that it prints, by name."""
    process = spawn("console")
    printed = dict(process.stdout.readline().strip().split(": ", 1) for _ in range(5))
    return process, printed


async def test_the_keys_of_the_console(console):
    """The lender's key creates and removes, the partner's key reads and refreshes."""
    process, printed = console
    address, _, code = printed["console"].partition("/#code=")
    async with (
        aiohttp.ClientSession() as browser,
        browser.post(f"{address}/console/handover.json", json=code) as response,
    ):
        assert await response.json() == {
            "key": printed["lender's key"],
            "report_token": printed["report token"],
        }
    quick = {"base_url": address, "timeouts": Timeouts(total=20)}
    async with (
        RelayClient(gateway_key=printed["lender's key"], **quick) as lender,
        RelayClient(gateway_key=printed["partner's key"], **quick) as partner,
    ):
        created = await lender.relay.create([printed["report token"]], printed["secondary_client_id"])
        assert (await partner.relay.get(created.relay_token)).report.items
        assert (await partner.relay.get_pdf(created.relay_token)).content.startswith(b"%PDF-")
        assert (await partner.relay.refresh(created.relay_token)).asset_report_id
        with pytest.raises(AuthenticationError, match="UNAUTHORIZED_OPERATION"):
            await partner.relay.remove(created.relay_token)
        assert (await lender.relay.remove(created.relay_token)).removed
        assert (await lender.asset_report.get(printed["report token"])).report.items
        assert (await lender.sandbox.create_public_token("ins_109508", ["assets"])).public_token
    async with aiohttp.ClientSession() as browser, browser.get(f"{address}/") as page:
        assert page.status == 200
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


def test_a_console_that_can_not_listen(run, plaid):
    """A port that isn't available is reported."""
    result = run("console", "--port", plaid.url.rpartition(":")[2])
    assert (result.status, "can't listen: " in result.err) == (2, True)


def test_a_console_in_this_process(run, signal_when):
    """The console listens on loopback, and prints a link and two different keys."""
    signal_when(number=signal.SIGTERM)
    result = run("console")
    assert result.status == 0
    assert len(set(KEY.findall(result.out))) == 2
    assert re.search(r"^console: http://127\.0\.0\.1:\d+/#code=[\w-]{43}$", result.out, re.MULTILINE)
