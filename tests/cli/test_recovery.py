"""The remedies in messages and in docs/command.md: each test applies one after a failure, and succeeds."""

import json
import os
import resource
import signal
import stat
import urllib.error
import urllib.request

import pytest
from cryptography.fernet import Fernet
from processes import wait_until
from support import CREATE, GET, REMOVE

from plaid_relay_async.cli.output import open_output
from plaid_relay_async.simulator import Fault

REPORT = "assets-sandbox-1111"


def bulk(run, path, *args):
    return run("bulk", path, "--report-token", REPORT, *args)


def ledger(plaid):
    return {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def shared_token_file(plaid, run, tmp_path):
    """Create a file with the relay token of a report that is shared with the caller itself."""
    path = tmp_path / "token.txt"
    result = run("create", "--report-token", REPORT, "--partner", "owner")
    path.write_text(result.lines[0]["relay_token"])
    return path


# ------------------------------------------------------------------------------------------------- chmod 600


@pytest.fixture
def exposed_file(tmp_path, monkeypatch, partners, shared_token_file, run):
    """Return a command that uses a private file of some kind, and that file, readable by others."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PLAID_RELAY_KEY", raising=False)
    journal = ("--journal", tmp_path / "relay.db", "--run", "nov")
    files = {name: tmp_path / name for name in ("output", "key", "relay.db")}
    creating = ("bulk", partners(2), "--report-token", REPORT)
    commands = {
        "output": (*creating, "--output", files["output"], "--append"),
        "fetched": (
            "fetch",
            shared_token_file,
            "--dir",
            tmp_path / "r",
            "--output",
            files["output"],
            "--append",
        ),
        "key": (*creating, *journal, "--key-file", files["key"]),
        "relay.db": (*creating, *journal),
        "keys": ("gateway", "keys", "add", "ben", "--keys", tmp_path / "keys"),
    }

    def exposed_file(kind):
        path = files["output" if kind == "fetched" else kind] if kind != "keys" else tmp_path / "keys"
        if kind == "keys":
            assert run("gateway", "keys", "add", "ann", "--keys", path).status == 0
        else:
            path.write_text(Fernet.generate_key().decode() if kind == "key" else "")
        path.chmod(0o644)
        return commands[kind], path

    return exposed_file


@pytest.mark.parametrize("kind", ["output", "fetched", "key", "relay.db", "keys"])
def test_a_file_that_others_may_read_chmod_600(plaid, run, exposed_file, kind):
    """The command names the file and the chmod, and sends nothing; after the chmod it succeeds."""
    command, path = exposed_file(kind)
    sent = len(plaid.requests)
    rejected = run(*command)
    assert rejected.status in {1, 2}
    assert f"{path}" in rejected.err
    assert "chmod 600" in rejected.err
    assert len(plaid.requests) == sent
    path.chmod(0o600)
    assert run(*command).status == 0


@pytest.fixture
def gateway(plaid, spawn, run, tmp_path, monkeypatch):
    """Start a gateway with an audit file, and return its process and its address."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def gateway(*args):
        process = spawn("gateway", "--upstream", plaid.url, "--audit", tmp_path / "audit", *args)
        line = process.stdout.readline()
        return process, line.removeprefix("listening on ").strip()

    return gateway


def status_of(url, key, partner="p"):
    """Create a token through a gateway, and return the HTTP status."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    body = json.dumps({"report_tokens": [REPORT], "secondary_client_id": partner}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url + CREATE, body, headers), timeout=60
        ) as result:
            return result.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_an_audit_file_that_others_may_read_chmod_600(gateway, run, tmp_path):
    """The gateway doesn't start; after the chmod it does, and writes to the file."""
    audit = tmp_path / "audit"
    audit.touch()
    audit.chmod(0o644)
    process, _ = gateway()
    assert process.wait() == 2
    assert "chmod 600" in process.stderr.read()
    audit.chmod(0o600)
    key = run("gateway", "keys", "add", "ann").out.strip()
    _, url = gateway()
    assert status_of(url, key) == 200
    wait_until(audit.read_text)


def test_an_audit_file_that_was_not_reopened_chmod_600_and_reload(gateway, run, tmp_path):
    """After the chmod and another SIGHUP, lines go to the new file."""
    key = run("gateway", "keys", "add", "ann").out.strip()
    process, url = gateway()
    audit = tmp_path / "audit"
    audit.rename(tmp_path / "audit.1")
    audit.touch()
    audit.chmod(0o644)
    process.send_signal(signal.SIGHUP)
    while "chmod 600" not in (line := process.stderr.readline()):
        assert line
    audit.chmod(0o600)
    process.send_signal(signal.SIGHUP)
    while "plaid-relay: reloaded" not in (line := process.stderr.readline()):
        assert line
    assert status_of(url, key) == 200
    wait_until(audit.read_text)


# ------------------------------------------------------------------------------------------------ the gateway


def test_credentials_that_a_key_needs_set_the_variables(gateway, run, monkeypatch):
    """The message names the variables; with them the gateway starts, and accepts the key."""
    key = run("gateway", "keys", "add", "ann", "--credentials", "acme").out.strip()
    process, _ = gateway()
    assert process.wait() == 2
    assert "acme: PLAID_CLIENT_ID_ACME and PLAID_SECRET_ACME" in process.stderr.read()
    monkeypatch.setenv("PLAID_CLIENT_ID_ACME", "acme")
    monkeypatch.setenv("PLAID_SECRET_ACME", "secret")
    _, url = gateway()
    assert status_of(url, key) == 200


def test_no_caller_has_a_key_add_one(gateway, run):
    """The gateway prints the command, and accepts the new key within a second or so."""
    process, url = gateway()
    assert "plaid-relay gateway keys add NAME" in process.stderr.readline()
    key = run("gateway", "keys", "add", "ann").out.strip()
    wait_until(lambda: status_of(url, key) == 200)


def test_a_key_that_could_not_be_printed_add_it_again(spawn, run, tmp_path, monkeypatch):
    """No key of that name exists, so the same command creates it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn("gateway", "keys", "add", "ann", stdout=writing)
    os.close(writing)
    assert process.wait() == 1
    assert "so it was not created" in process.stderr.read()
    assert run("gateway", "keys", "add", "ann").out.startswith("plaid-gateway-")


# ----------------------------------------------------------------------------------------- inputs and outputs


def test_an_output_that_exists_append(plaid, run, partners, tmp_path):
    """The file isn't overwritten; with --append the new rows are added to it."""
    out = tmp_path / "out.jsonl"
    assert bulk(run, partners(1), "--output", out).status == 0
    rejected = bulk(run, partners(2), "--output", out)
    assert (rejected.status, "already exists; --append adds to it" in rejected.err) == (2, True)
    assert len(plaid.ledger) == len(rows(out)) == 1
    assert bulk(run, partners(2), "--output", out, "--append").status == 0
    assert len(plaid.ledger) == len(rows(out)) == 3


def test_an_output_that_another_run_uses_wait_for_its_end(plaid, run, partners, tmp_path):
    """The same command succeeds afterwards."""
    out = tmp_path / "out"
    with open_output(str(out)):
        assert "another process is writing to it" in bulk(run, partners(3), "--output", out, "--append").err
    assert bulk(run, partners(3), "--output", out, "--append").status == 0
    assert {row["secondary_client_id"]: row["relay_token"] for row in rows(out)} == ledger(plaid)


def test_an_input_that_is_wrong_correct_the_rows(plaid, run, tmp_path):
    """The rows are reported and nothing is sent; the corrected file is sent completely."""
    path = tmp_path / "in.csv"
    path.write_text("secondary_client_id,report_token\na,\nb,x y\n")
    rejected = run("bulk", path)
    assert (rejected.status, "nothing was sent" in rejected.err) == (2, True)
    assert f"{path}:2: " in rejected.err
    assert f"{path}:3: " in rejected.err
    path.write_text(f"secondary_client_id,report_token\na,{REPORT}\nb,{REPORT}\n")
    assert run("bulk", path).status == 0
    assert ledger(plaid).keys() == {"a", "b"}


def test_too_many_connections_for_the_shell_raise_ulimit(plaid, spawn, partners):
    """The same command succeeds in a shell that allows more open files."""
    command = ("bulk", partners(3), "--report-token", REPORT, "--concurrency", "300")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        process = spawn(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.wait() == 2
    assert "raise ulimit -n" in process.stderr.read()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        process = spawn(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert process.wait() == 0
    assert len(plaid.ledger) == 3


def test_no_credentials_set_the_variables(plaid, run, partners, monkeypatch):
    """The missing variable is named; with it the same command succeeds."""
    monkeypatch.delenv("PLAID_SECRET")
    rejected = bulk(run, partners(1))
    assert (rejected.status, "PLAID_SECRET" in rejected.err) == (2, True)
    monkeypatch.setenv("PLAID_SECRET", "secret")
    assert bulk(run, partners(1)).status == 0


def test_a_full_disk_use_the_rescue_file(plaid, run, tmp_path):
    """After a run without the partners of the output and of the rescue file, each partner has one token."""
    names = ["owner", *(f"p{n}" for n in range(200))]
    path, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    path.write_text("".join(f"{name}\n" for name in names))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        result = bulk(run, path, "--output", out, "--concurrency", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (result.status, "rescued: " in result.err) == (1, True)
    [rescued] = tmp_path.glob("plaid-relay-rescued-*.jsonl")
    assert str(rescued) in result.err
    partners_with_token = {
        row["secondary_client_id"] for row in (*rows(out), *rows(rescued)) if row["relay_token"]
    }
    path.write_text("".join(f"{name}\n" for name in names if name not in partners_with_token))
    assert bulk(run, path, "--output", out, "--append").status == 0
    assert len(plaid.ledger) == len(names)
    token_by_partner = {
        row["secondary_client_id"]: row["relay_token"] for row in (*rows(out), *rows(rescued))
    }
    assert {name: token for name, token in token_by_partner.items() if token} == ledger(plaid)


def test_a_rescue_file_is_an_input_of_fetch(plaid, run, spawn, tmp_path, rescued):
    """`fetch` reads the rescue file like the output of `bulk`, and fetches each report."""
    path = tmp_path / "in.jsonl"
    lines = [
        {
            "report_token": plaid.add_report(),
            "secondary_client_id": "owner",
            "webhook": f"https://a.example/{n}",
        }
        for n in range(5)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn("bulk", path, stdout=writing)
    os.close(writing)
    assert process.wait() == 1
    place = next(line for line in process.stderr.read().splitlines() if line.startswith("rescued: "))
    file = place.rpartition(", in ")[2]
    assert {row["relay_token"] for row in rescued()} == {entry["relay_token"] for entry in plaid.ledger}
    result = run("fetch", file, "--dir", tmp_path / "reports")
    assert (result.status, result.count("fetched")) == (0, len(plaid.ledger))
    assert len(list((tmp_path / "reports").iterdir())) == len(plaid.ledger) > 0


def test_to_fetch_a_report_again_delete_its_file(plaid, run, shared_token_file, tmp_path):
    """The same command fetches that report again, and leaves the others as they are."""
    folder = tmp_path / "reports"
    assert run("fetch", shared_token_file, "--dir", folder).status == 0
    [file] = folder.iterdir()
    first = file.read_bytes()
    file.write_bytes(b"old")
    assert run("fetch", shared_token_file, "--dir", folder).lines[0]["outcome"] == "already_there"
    assert (file.read_bytes(), plaid.counts[GET]) == (b"old", 1)
    file.unlink()
    again = run("fetch", shared_token_file, "--dir", folder)
    assert [(line["outcome"], line["file"]) for line in again.lines] == [("fetched", str(file))]
    assert json.loads(file.read_bytes())["report"] == json.loads(first)["report"]
    assert (plaid.counts[GET], stat.S_IMODE(file.stat().st_mode)) == (2, 0o600)


# ------------------------------------------------------------------------------------------------ single calls


def test_a_removal_that_was_interrupted_remove_it_again(plaid, run, shared_token_file, signal_when):
    """If the response is lost, the outcome is unknown; the second removal succeeds."""
    plaid.fail(Fault(path=REMOVE, latency=1.0, close=True, times=1))
    signal_when(lambda: plaid.counts[REMOVE])
    interrupted = run("remove", f"@{shared_token_file}")
    assert (interrupted.status, "removing the token again is safe" in interrupted.err) == (3, True)
    assert run("remove", f"@{shared_token_file}").status == 0
    assert run("get", f"@{shared_token_file}").status == 1


def test_a_token_that_plaid_did_not_remove_remove_it_again(plaid, run, shared_token_file):
    """After `removed: false` the token is still valid, until the removal is repeated."""
    plaid.fail(Fault(path=REMOVE, status=200, body={"removed": False, "request_id": "r"}, times=1))
    assert run("remove", f"@{shared_token_file}").status == 1
    assert run("get", f"@{shared_token_file}").status == 0
    assert run("remove", f"@{shared_token_file}").status == 0
    assert run("get", f"@{shared_token_file}").status == 1


# -------------------------------------------------------------------------------------------------- the journal


@pytest.fixture
def journal_path(tmp_path, monkeypatch):
    """Set the path of a journal and its key in the environment, and return the path."""
    monkeypatch.setenv("PLAID_RELAY_KEY", Fernet.generate_key().decode())
    monkeypatch.setenv("PLAID_RELAY_JOURNAL", str(tmp_path / "relay.db"))
    return tmp_path / "relay.db"


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault(path=REMOVE, latency=1.0, times=1), 0),
        (Fault(path=REMOVE, latency=1.0, close=True, times=1), 3),
    ],
    ids=["response", "no response"],
)
def test_a_recorded_removal_that_was_interrupted(
    plaid, run, partners, journal_path, signal_when, fault, status
):
    """Its response is recorded; without a response, the repeated removal is recorded."""
    [row] = bulk(run, partners(1), "--run", "nov").lines
    plaid.fail(fault)
    signal_when(lambda: plaid.counts[REMOVE])
    assert run("remove", row["relay_token"]).status == status
    assert run("remove", row["relay_token"]).status == 0
    assert [line["outcome"] for line in run("export", "nov").lines] == ["removed"]
    assert plaid.counts[REMOVE] == (2 if status else 1)


def test_tokens_that_plaid_did_not_remove_revoke_again(plaid, run, partners, journal_path):
    """They are failed with advice, and the next `revoke` removes them."""
    assert bulk(run, partners(3), "--run", "nov").status == 0
    plaid.fail(Fault(path=REMOVE, status=200, body={"removed": False, "request_id": "r"}))
    assert run("revoke", "nov", "--yes").count("failed") == 3
    plaid.clear_faults()
    again = run("revoke", "nov", "--yes")
    assert (again.status, again.count("removed")) == (0, 3)
    assert {entry["removed"] for entry in plaid.ledger} == {True}


@pytest.mark.parametrize("word", ["revoke", "forget"])
def test_no_terminal_pass_yes(plaid, run, partners, journal_path, stdin, word):
    """Without a terminal nothing is done; with --yes the same command succeeds."""
    assert bulk(run, partners(1), "--run", "nov").status == 0
    stdin("")
    rejected = run(word, "nov")
    assert (rejected.status, "pass --yes to confirm" in rejected.err) == (2, True)
    assert run(word, "nov", "--yes").status == 0


def test_a_run_that_does_not_exist_list_the_runs(plaid, run, partners, journal_path):
    """`runs` lists the names that `status` accepts."""
    assert bulk(run, partners(1), "--run", "nov").status == 0
    missing = run("status", "now")
    assert (missing.status, "the journal has no run 'now'" in missing.err) == (1, True)
    [name] = [line.split()[0] for line in run("runs").out.splitlines() if "nov" in line]
    assert run("status", name).status == 0


def test_an_encrypted_journal_set_its_key(plaid, run, partners, journal_path, monkeypatch):
    """Without the key the journal can't be opened; with it the run is resumed, without a second token."""
    key = os.environ["PLAID_RELAY_KEY"]
    assert bulk(run, partners(2), "--run", "nov").status == 0
    monkeypatch.delenv("PLAID_RELAY_KEY")
    rejected = bulk(run, partners(3), "--run", "nov")
    assert (rejected.status, "pass its key" in rejected.err) == (2, True)
    monkeypatch.setenv("PLAID_RELAY_KEY", key)
    assert bulk(run, partners(3), "--run", "nov").status == 0
    assert len(plaid.ledger) == 3
