"""The commands of the gateway, in this process and in processes of their own, and the console's."""

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

from plaid_relay_async import AuthenticationError, RelayClient, Timeouts
from plaid_relay_async.gateway import RELAY_OPERATIONS, KeyFile
from plaid_relay_async.gateway.keys import find_key
from plaid_relay_async.limits import RateLimit
from plaid_relay_async.simulator import Fault

CREATE = "/credit/relay/create"
REPORT = "assets-sandbox-1111"
SECRET = "canary-secret-7d1f"
COMMAND = [sys.executable, "-Im", "plaid_relay_async.cli"]
KEY = re.compile(r"plaid-gateway-[A-Za-z0-9_-]{43}")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A configuration folder and credentials of the test's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in [name for name in os.environ if name.startswith("PLAID_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    monkeypatch.setenv("PLAID_SECRET", SECRET)
    return tmp_path


@pytest.fixture
def file(home):
    return KeyFile(home / "config" / "plaid_relay_async" / "gateway-keys.json")


def ask(url, key, path=CREATE, context=None, headers=(), **body):
    """Send one call, and give its status and what was answered."""
    told = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", **dict(headers)}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), told)
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def share(url, key, partner="ann", **more):
    return ask(url, key, report_tokens=[REPORT], secondary_client_id=partner, **more)


def listening(process, word="listening on "):
    line = process.stdout.readline()
    assert line.startswith(word), line or process.stderr.read()
    return line.removeprefix(word).strip()


# keys


def test_a_key_is_printed_alone_and_once(run, file):
    """`keys add` prints the key and nothing else on standard output; it can't be had again."""
    done = run("gateway", "keys", "add", "ann")
    assert done.status == 0
    assert KEY.fullmatch(done.out.removesuffix("\n"))
    assert done.err == "The key is shown only once: store it now.\n"
    [key] = file.read()
    assert find_key([key], done.out.strip()) == key
    assert (key.name, key.credentials, key.operations, key.partners, key.rate) == (
        "ann",
        "default",
        frozenset(RELAY_OPERATIONS),
        None,
        None,
    )
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    again = run("gateway", "keys", "add", "ann")
    assert (again.status, again.out) == (2, "")
    assert "the name ann is taken" in again.err


def test_what_a_key_is_bound_to(run, home):
    """A key's set, operations, partners and rate are those that were said, in the file that was said."""
    words = ["--credentials", "acme-bank", "--operation", CREATE, "--operation", "/asset_report/get"]
    more = ["--partner", "p1", "--partner", "p2", "--rate", "100/0.5", "--keys", home / "keys.json"]
    assert run("gateway", "keys", "add", "ann", *words, *more).status == 0
    [key] = KeyFile(home / "keys.json").read()
    assert (key.credentials, key.operations) == ("acme-bank", {CREATE, "/asset_report/get"})
    assert (key.partners, key.rate) == ({"p1", "p2"}, RateLimit(100, 0.5))
    assert run("gateway", "keys", "add", "ben", "--operation", "all").status == 0


def test_list_shows_nothing_secret(run, file):
    """`keys list` shows names and what they are bound to, and neither a key nor its digest."""
    run("gateway", "keys", "add", "ann", "--operation", "all", "--rate", "5/10")
    run("gateway", "keys", "add", "ben", "--partner", "[red]p1", "--operation", CREATE)
    listed = run("gateway", "keys", "list")
    rows = [line.split() for line in listed.out.splitlines()]
    today = f"{file.read()[0].created:%Y-%m-%d}"
    assert rows == [
        ["name", "credentials", "operations", "partners", "rate", "created"],
        ["ann", "default", "all", "all", "5/10", today],
        ["ben", "default", CREATE, "[red]p1", today],
    ]
    assert not any(key.digest in listed.out + listed.err for key in file.read())


def test_list_and_revoke(run, file):
    """A key that is revoked isn't listed any more, and can't be revoked twice."""
    assert run("gateway", "keys", "list").status == 0
    run("gateway", "keys", "add", "ann")
    assert run("gateway", "keys", "revoke", "ann").status == 0
    assert "ann" not in run("gateway", "keys", "list").out
    again = run("gateway", "keys", "revoke", "ann")
    assert (again.status, "there is no key of that name" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["an canary-token"], "name must be 1 to 64"),
        (["ann", "--credentials", "canary_token"], "credentials must be the name of a set"),
        (["ann", "--operation", "/canary-token"], "--operation: must be all, or a path"),
        (["ann", "--partner", "canary-token x"], "one of the partners holds white space"),
        (["ann", "--rate", "canary-token"], "--rate: must be of the form COUNT/SECONDS"),
        (["ann", "--rate", "0/5"], "--rate: must be of the form COUNT/SECONDS"),
        (["ann", "--rate", "5"], "--rate: must be of the form COUNT/SECONDS"),
        (["ann", "canary-token"], "see plaid-relay --help"),
        ([], "see plaid-relay --help"),
    ],
)
def test_keys_add_used_wrongly(run, file, words, problem):
    """Status 2 and a sentence that quotes nothing that may be a secret; there is no key then."""
    done = run("gateway", "keys", "add", *words)
    assert (done.status, done.out) == (2, "")
    assert problem in done.err
    assert "canary" not in done.err
    assert file.read() == ()


def test_what_is_told_of_a_command_names_no_value(run):
    """A wrong word in the place of a command of the gateway isn't quoted."""
    done = run("gateway", "keys", "canary-token")
    assert done.status == 2
    assert "canary-token" not in done.err
    assert "add, list, revoke" in done.err


def test_a_key_that_cannot_be_printed(spawn, file):
    """A key that can't be printed isn't created, and the command says so."""
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn("gateway", "keys", "add", "ann", stdout=writing)
    os.close(writing)
    assert process.wait() == 1
    assert "the key can't be written (Broken pipe), so it was not created" in process.stderr.read()
    assert file.read() == ()


def test_a_wide_file_is_refused(run, file):
    """A file of keys that others may read is used by no command, and the way out is told."""
    run("gateway", "keys", "add", "ann")
    file.path.chmod(0o644)
    for words in (["keys", "add", "ben"], ["keys", "list"], ["keys", "revoke", "ann"], []):
        done = run("gateway", *words)
        assert (done.status, "chmod 600" in done.err) == (2, True)


# what isn't run


@pytest.fixture
def certificate(home):
    """The files of a certificate and its key, and a context that trusts it."""
    authority = trustme.CA()
    issued = authority.issue_cert("gateway.test", "127.0.0.1")
    issued.private_key_pem.write_to_path(home / "key.pem")
    issued.cert_chain_pems[0].write_to_path(home / "certificate.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return ["--tls-certificate", home / "certificate.pem", "--tls-key", home / "key.pem"], context


@pytest.mark.parametrize(
    ("words", "problem"),
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
        (["--port", "99999"], "can't listen: bind(): port must be 0-65535"),
        (["--listen", "192.0.2.1", "--plain-http"], "can't listen: "),
        (["--listen", "a" * 64, "--plain-http"], "can't listen: "),
        (["--name", "https://x.example"], "--name: must be a host name"),
        (["--name", "x.example:443"], "--name: must be a host name"),
        (["--operation", "/credit"], "--operation: must be all, or a path"),
        (["--connections", "0"], "--connections: must be an integer of at least 1"),
        (["--drain", "-1"], "--drain: must be a number of seconds"),
        (["--drain", "inf"], "--drain: must be a number of seconds"),
        (["--audit", "no/such/folder"], "--audit: no/such/folder: No such file"),
        (["--tls-certificate", "x"], "--tls-certificate and --tls-key go together"),
        (["--tls-key", "x"], "--tls-certificate and --tls-key go together"),
        (["--tls-certificate", "x", "--tls-key", "x"], "can't be read: No such file"),
        (["--secret", "canary-token"], "see plaid-relay --help"),
    ],
)
def test_a_gateway_that_is_not_run(run, words, problem):
    """Status 2 and the option that is wrong; PLAID_ENV changes nothing, and no option takes a secret."""
    done = run("gateway", *words)
    assert (done.status, done.out) == (2, "")
    assert problem in done.err
    assert "canary-token" not in done.err


@pytest.mark.parametrize(
    "upstream",
    [
        "https://production.plaid.com",
        "https://production.plaid.com:443/",
        "https://Production.plaid.com.",
        "https://\uff50roduction.plaid.com",
    ],
)
def test_production_is_not_had_from_the_environment(run, monkeypatch, upstream):
    """PLAID_ENV=production doesn't make the gateway's upstream production, however that is typed."""
    monkeypatch.setenv("PLAID_ENV", "production")
    done = run("gateway", "--upstream", upstream)
    assert (done.status, "confirm with --environment production" in done.err) == (2, True)


def test_more_connections_than_the_shell_allows():
    """It is said before anything listens, with the way out."""
    command = " ".join([*COMMAND, "gateway", "--connections", "500"])
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n 256; {command}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "raise ulimit -n" in done.stderr) == (2, True)


def test_a_port_that_is_taken(run, plaid):
    """An address that can't be had is told in the system's words."""
    done = run("gateway", "--port", plaid.url.rpartition(":")[2])
    assert (done.status, "can't listen: " in done.err, "in use" in done.err) == (2, True, True)


def test_certificates_that_can_not_be(run, certificate, home):
    """A certificate without its key is refused, and so is a key with a passphrase, for which nobody is asked."""
    words, _ = certificate
    (home / "wrong.pem").write_text("no PEM")
    plain = serialization.load_pem_private_key(words[3].read_bytes(), None)
    sealed = plain.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"canary"),
    )
    (home / "sealed.pem").write_bytes(sealed)
    for key in (home / "wrong.pem", words[1], home / "sealed.pem"):
        done = run("gateway", *words[:2], "--tls-key", key)
        assert (done.status, "must be PEM files of a certificate and its key" in done.err) == (2, True)


def test_missing_sets_of_credentials(run, monkeypatch):
    """Each set that a key needs and the environment lacks is named with both of its variables."""
    run("gateway", "keys", "add", "ann", "--credentials", "acme-bank")
    run("gateway", "keys", "add", "ben")
    monkeypatch.delenv("PLAID_SECRET")
    monkeypatch.setenv("PLAID_CLIENT_ID_ACME_BANK", "acme")
    done = run("gateway")
    assert done.status == 2
    assert "acme-bank: PLAID_CLIENT_ID_ACME_BANK and PLAID_SECRET_ACME_BANK" in done.err
    assert "default: PLAID_CLIENT_ID and PLAID_SECRET" in done.err


@pytest.mark.parametrize(
    ("name", "value"), [("PLAID_SECRET_ACME", "canary-token\n"), ("PLAID_CLIENT_ID_ACME", "canary token")]
)
def test_credentials_that_can_not_be_sent(run, monkeypatch, name, value):
    """Credentials with white space are refused by the name of their variable, and not quoted."""
    monkeypatch.setenv("PLAID_CLIENT_ID_ACME", "acme")
    monkeypatch.setenv("PLAID_SECRET_ACME", "secret")
    monkeypatch.setenv(name, value)
    done = run("gateway")
    assert (done.status, "canary" not in done.err) == (2, True)
    assert f"{name} holds white space" in done.err


def test_an_audit_file_that_others_may_read(run, home):
    """An audit file that is there and wide is refused."""
    (home / "audit").write_text("")
    (home / "audit").chmod(0o644)
    done = run("gateway", "--audit", home / "audit")
    assert (done.status, "run chmod 600 first" in done.err) == (2, True)


# what is run


@pytest.fixture
def gateway(spawn, plaid):
    """Start a gateway to the simulator in a process of its own; the environment leads to nowhere else."""

    def start(*words, **settings):
        process = spawn("gateway", "--upstream", plaid.url, *words, **settings)
        return process, listening(process)

    return start


@pytest.fixture
def key(run):
    return run("gateway", "keys", "add", "ann").out.strip()


def ended(process, number=signal.SIGTERM):
    process.send_signal(number)
    out, err = process.communicate()
    return process.returncode, out, err


def test_a_gateway_from_the_command(gateway, key, plaid):
    """It says where it listens, adds the credentials, writes a line for each call, and ends at SIGTERM with 0."""
    process, url = gateway()
    status, answer = share(url, key, secret="canary-body", client_id="canary-client")
    assert (status, answer["relay_token"]) == (200, plaid.ledger[0]["relay_token"])
    assert plaid.ledger[0]["client_id"] == "owner"
    assert share(url, key[:-1])[0] == 401
    assert ask(url, key, "/asset_report/get")[1]["error_code"] == "UNAUTHORIZED_OPERATION"
    code, _, err = ended(process)
    lines = [json.loads(line) for line in err.splitlines()]
    assert code == 0
    assert [(line["caller"], line["status"]) for line in lines] == [("ann", 200), (None, 401), ("ann", 403)]
    assert not re.search(f"canary|{key}|{answer['relay_token']}", err)


def test_other_clients_come_in_by_the_place_of_the_secret(gateway, key, run, plaid, monkeypatch, home):
    """The command calls through the gateway by its address and a key for a secret; curl, with a key from a file."""
    _, url = gateway()
    monkeypatch.setenv("PLAID_BASE_URL", url)
    monkeypatch.setenv("PLAID_CLIENT_ID", "any")
    monkeypatch.setenv("PLAID_SECRET", key)
    done = run("create", "--report-token", REPORT, "--partner", "ann")
    assert done.lines[0]["relay_token"] == plaid.ledger[0]["relay_token"]
    assert plaid.ledger[0]["client_id"] == "owner"
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (home / "key").write_text(f"Authorization: Bearer {key}\n")
    body = json.dumps({"report_tokens": [REPORT], "secondary_client_id": "ben"})
    words = ["curl", "-s", "--header", f"@{home / 'key'}", "--json", body, url + CREATE]
    answer = subprocess.run(words, capture_output=True, check=True)
    assert json.loads(answer.stdout)["relay_token"] == plaid.ledger[1]["relay_token"]


def test_keys_take_effect_while_it_runs(gateway, run):
    """A running gateway accepts a key that is added, and no longer accepts one that is revoked."""
    _, url = gateway()
    key = run("gateway", "keys", "add", "ann").out.strip()
    wait_until(lambda: share(url, key)[0] == 200)
    run("gateway", "keys", "revoke", "ann")
    wait_until(lambda: share(url, key)[0] == 401)


def test_a_gateway_without_keys(gateway):
    """A gateway that nobody has a key for runs, and says how to make one."""
    process, url = gateway()
    assert share(url, "x")[0] == 401
    assert "no caller has a key yet; to create one: plaid-relay gateway keys add NAME" in ended(process)[2]


def test_sets_of_credentials(gateway, run, plaid, monkeypatch):
    """A key's calls are made with its own set, also one that no key was bound to when the gateway began."""
    monkeypatch.setenv("PLAID_CLIENT_ID_ACME_BANK_2", "acme")
    monkeypatch.setenv("PLAID_SECRET_ACME_BANK_2", "secret")
    monkeypatch.setenv("PLAID_CLIENT_ID_HALF", "half")
    _, url = gateway()
    key = run("gateway", "keys", "add", "ann", "--credentials", "acme-bank-2").out.strip()
    half = run("gateway", "keys", "add", "ben", "--credentials", "half").out.strip()
    wait_until(lambda: share(url, key)[0] == 200)
    assert plaid.ledger[0]["client_id"] == "acme"
    wait_until(lambda: share(url, half)[1]["error_code"] == "UNAUTHORIZED_CREDENTIALS")


def test_all_that_can_be_said(gateway, run, home, certificate, plaid):
    """TLS, another address, a name, all operations, an audit file, metrics, and no page."""
    words, context = certificate
    key = run("gateway", "keys", "add", "ann", "--operation", "all", "--keys", home / "keys.json").out.strip()
    more = ["--listen", "0.0.0.0", "--name", "gateway.test", "--operation", "all", "--audit", home / "audit"]
    process, url = gateway(
        *words, *more, "--keys", home / "keys.json", "--metrics-port", 0, "--no-console", "--drain", 1
    )
    metrics = listening(process, "metrics on ")
    assert url.startswith("https://0.0.0.0:")
    here = url.replace("0.0.0.0", "127.0.0.1")
    status, _ = ask(here, key, "/asset_report/get", context=context, asset_report_token=REPORT)
    assert status == 200
    for host, wanted in (("gateway.test", 200), ("elsewhere.test", 421)):
        assert share(here, key, context=context, headers={"Host": host})[0] == wanted
    with urllib.request.urlopen(metrics, timeout=60) as answer:
        assert b'plaid_gateway_calls_total{caller="ann"' in answer.read()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{here}/", timeout=60, context=context)
    caught.value.close()
    assert caught.value.code == 404
    assert ended(process)[0] == 0
    assert stat.S_IMODE((home / "audit").stat().st_mode) == 0o600
    lines = [json.loads(line) for line in (home / "audit").read_text().splitlines()]
    assert [line["status"] for line in lines] == [200, 200, 421, 404]


def test_plain_http_behind_a_proxy(gateway, key):
    """In words it listens without TLS on another address, and answers to loopback's names all the same."""
    _, url = gateway("--listen", "0.0.0.0", "--plain-http", "--name", "::1")
    assert share(url.replace("0.0.0.0", "127.0.0.1"), key)[0] == 200


def accepts(url):
    """Return whether a server accepts connections."""
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
    except ConnectionError:
        return False
    return True


def test_a_signal_lets_calls_in_flight_end(gateway, key, plaid):
    """After SIGTERM nobody gets in, a call in flight has its answer, and the status is 0."""
    plaid.fail(Fault(latency=5.0))
    process, url = gateway()
    answers = []
    calling = threading.Thread(target=lambda: answers.append(share(url, key)))
    calling.start()
    wait_until(lambda: plaid.requests)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not accepts(url))
    with pytest.raises(urllib.error.URLError):
        share(url, key)
    calling.join()
    assert answers[0][0] == 200
    process.communicate()
    assert process.returncode == 0


def test_a_second_signal_cuts(gateway, key, plaid):
    """A second signal doesn't wait for calls in flight; their callers see a connection that is lost."""
    plaid.fail(Fault(latency=60.0))
    process, url = gateway()
    lost = []

    def call():
        try:
            share(url, key)
        except OSError as error:
            lost.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    wait_until(lambda: plaid.requests)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: not accepts(url))
    assert process.poll() is None
    code, _, err = ended(process, signal.SIGINT)
    calling.join()
    assert (code, len(lost)) == (1, 1)
    assert "their outcome is unknown" in err
    assert "Traceback" not in err


def test_nothing_secret_where_processes_are_listed(gateway, key):
    """No process's arguments, title or environment holds a key, and Plaid's secret is in the environment alone."""
    process, url = gateway()
    assert share(url, key)[0] == 200
    for path in Path("/proc").glob("[0-9]*"):
        told = [contents(path / name) for name in ("cmdline", "comm", "status")]
        assert not any(key.encode() in text or SECRET.encode() in text for text in told)
        assert key.encode() not in contents(path / "environ")
    assert SECRET.encode() in contents(Path(f"/proc/{process.pid}/environ"))


def contents(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended since, or is somebody else's
        return b""


def test_the_audit_goes_back_to_where_it_was(run, plaid, signal_when, home):
    """Run in a process that does other things, too, the gateway leaves its loggers as they were."""
    signal_when(number=signal.SIGTERM)
    done = run("gateway", "--upstream", plaid.url, "--audit", home / "audit")
    assert done.status == 0
    assert done.out.startswith("listening on http://127.0.0.1:")
    signal_when(number=signal.SIGTERM)
    assert run("gateway", "--upstream", plaid.url).status == 0
    audit = logging.getLogger("plaid_relay_async.gateway.audit")
    assert (audit.handlers, audit.propagate, audit.level) == ([], True, logging.NOTSET)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_audit_file_on_a_full_disk(gateway, key):
    """Calls go on, and standard error says once that the audit log can't be written."""
    process, url = gateway("--audit", "/dev/full")
    assert [share(url, key)[0] for _ in range(3)] == [200] * 3
    code, _, err = ended(process)
    assert code == 0
    assert err == "plaid-relay: the audit log can't be written: No space left on device\n"


# SIGHUP


def hang_up(process):
    """Send SIGHUP, and return the line on standard error that says what came of it."""
    process.send_signal(signal.SIGHUP)
    while not (line := process.stderr.readline()).startswith("plaid-relay: "):
        assert line, process.poll()
    return line


def served_certificate(url, context):
    """Return the certificate that a new connection is served."""
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
def test_a_hang_up_reloads_the_certificate(gateway, key, plaid, home, number):
    """After SIGHUP, new connections get the new certificate, even with another kind of key, and no call is lost."""
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    first = write_certificate(authority, home)
    words = ["--tls-certificate", home / "certificate.pem", "--tls-key", home / "key.pem"]
    with ignoring_signals(*number):
        process, url = gateway(*words)
    assert served_certificate(url, context) == first
    plaid.fail(Fault(latency=1.5, times=1))
    answers = []
    calling = threading.Thread(target=lambda: answers.append(share(url, key, context=context)))
    calling.start()
    wait_until(lambda: plaid.requests)
    second = write_certificate(authority, home, key_type=trustme.KeyType.RSA)
    assert hang_up(process) == "plaid-relay: reloaded\n"
    assert served_certificate(url, context) == second != first
    calling.join()
    assert answers[0][0] == 200
    assert share(url, key, partner="ben", context=context)[0] == 200
    assert ended(process)[0] == 0


def test_a_certificate_that_can_not_be_reloaded(gateway, key, home):
    """A certificate that doesn't match its key, or isn't there, leaves the old one in use, and is reported."""
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    first = write_certificate(authority, home)
    own_key = (home / "key.pem").read_bytes()
    process, url = gateway("--tls-certificate", home / "certificate.pem", "--tls-key", home / "key.pem")
    write_certificate(authority, home)
    (home / "key.pem").write_bytes(own_key)
    line = hang_up(process)
    assert line.startswith(
        "plaid-relay: error: not reloaded, the previous one stays in use: --tls-certificate"
    )
    assert served_certificate(url, context) == first
    (home / "certificate.pem").unlink()
    assert "can't be read: No such file" in hang_up(process)
    assert share(url, key, context=context)[0] == 200
    third = write_certificate(authority, home)
    assert hang_up(process) == "plaid-relay: reloaded\n"
    assert served_certificate(url, context) == third


def test_a_hang_up_reopens_the_audit_file(gateway, key, plaid, home):
    """Lines go into the renamed file until SIGHUP, and into a new one (0600) afterwards; a call in flight is answered."""
    audit, old = home / "audit", home / "audit.1"
    process, url = gateway("--audit", audit)
    assert share(url, key)[0] == 200
    plaid.fail(Fault(latency=1.5, times=1))
    answers = []
    calling = threading.Thread(target=lambda: answers.append(share(url, key, partner="ben")))
    calling.start()
    wait_until(lambda: plaid.counts[CREATE] == 2)
    audit.rename(old)
    assert share(url, key, partner="carl")[0] == 200
    assert hang_up(process) == "plaid-relay: reloaded\n"
    calling.join()
    assert answers[0][0] == 200
    assert ended(process)[0] == 0
    partners = [
        [json.loads(line)["partner"] for line in path.read_text().splitlines()] for path in (old, audit)
    ]
    assert partners == [["ann", "carl"], ["ben"]]
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


def test_an_audit_file_that_can_not_be_reopened(gateway, key, home):
    """A new file that others may read isn't used: lines go to the old one, and standard error says so."""
    audit, old = home / "audit", home / "audit.1"
    process, url = gateway("--audit", audit)
    audit.rename(old)
    audit.touch()
    audit.chmod(0o644)
    assert "not reloaded, the previous one stays in use: --audit" in hang_up(process)
    assert share(url, key)[0] == 200
    assert ended(process)[0] == 0
    assert (len(old.read_text().splitlines()), audit.read_text()) == (1, "")


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there is no /dev/null")
def test_an_audit_device_is_not_reopened(gateway, key):
    """SIGHUP leaves a device or a pipe as it is: to open a pipe again would wait for a reader."""
    process, url = gateway("--audit", "/dev/null")
    assert hang_up(process) == "plaid-relay: reloaded\n"
    assert share(url, key)[0] == 200
    assert ended(process)[0] == 0


def test_a_hang_up_while_the_gateway_closes(gateway, key, plaid):
    """SIGHUP that comes with SIGTERM, or after it, doesn't cut calls in flight."""
    plaid.fail(Fault(latency=1.5))
    process, url = gateway()
    answers = []
    calling = threading.Thread(target=lambda: answers.append(share(url, key)))
    calling.start()
    wait_until(lambda: plaid.requests)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP):
        process.send_signal(number)
    calling.join()
    assert answers[0][0] == 200
    assert process.wait() == 0


# console


@pytest.fixture
def console(spawn):
    """Start the console, and give what it prints by its name."""
    process = spawn("console")
    printed = dict(process.stdout.readline().strip().split(": ", 1) for _ in range(5))
    return process, printed


async def test_a_console_and_our_client(console):
    """The owner's key creates and removes, the partner's reads and refreshes, and neither does more."""
    process, printed = console
    address, _, code = printed["console"].partition("/#code=")
    async with (
        aiohttp.ClientSession() as browser,
        browser.post(f"{address}/console/handover.json", json=code) as response,
    ):
        assert await response.json() == {
            "key": printed["owner's key"],
            "report_token": printed["report token"],
        }
    quick = {"base_url": address, "timeouts": Timeouts(total=20)}
    async with (
        RelayClient(gateway_key=printed["owner's key"], **quick) as owner,
        RelayClient(gateway_key=printed["partner's key"], **quick) as partner,
    ):
        made = await owner.relay.create([printed["report token"]], printed["secondary_client_id"])
        assert (await partner.relay.get(made.relay_token)).report.items
        assert (await partner.relay.get_pdf(made.relay_token)).content.startswith(b"%PDF-")
        assert (await partner.relay.refresh(made.relay_token)).asset_report_id
        with pytest.raises(AuthenticationError, match="UNAUTHORIZED_OPERATION"):
            await partner.relay.remove(made.relay_token)
        assert (await owner.relay.remove(made.relay_token)).removed
        assert (await owner.asset_report.get(printed["report token"])).report.items
        assert (await owner.sandbox.create_public_token("ins_109508", ["assets"])).public_token
    async with aiohttp.ClientSession() as browser, browser.get(f"{address}/") as page:
        assert page.status == 200
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


def test_a_console_that_can_not_listen(run, plaid):
    """A port that is taken is told."""
    done = run("console", "--port", plaid.url.rpartition(":")[2])
    assert (done.status, "can't listen: " in done.err) == (2, True)


def test_a_console_in_this_process(run, signal_when):
    """A console serves all operations, on loopback, with two keys that differ."""
    signal_when(number=signal.SIGTERM)
    done = run("console")
    assert done.status == 0
    assert len(set(KEY.findall(done.out))) == 2
    assert re.search(r"^console: http://127\.0\.0\.1:\d+/#code=[\w-]{43}$", done.out, re.MULTILINE)
