"""What the command's messages and docs/command.md tell a person to do: each test sees the failure, does that, succeeds."""

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

from plaid_relay_async.cli.output import open_output
from plaid_relay_async.simulator import Fault

CREATE, GET, REMOVE = "/credit/relay/create", "/credit/relay/get", "/credit/relay/remove"
REPORT = "assets-sandbox-1111"


def bulk(run, path, *words):
    return run("bulk", path, "--report-token", REPORT, *words)


def ledger(plaid):
    return {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def shared(plaid, run, tmp_path):
    """The path of a file with the relay token of a report that is shared with the caller itself."""
    path = tmp_path / "token.txt"
    done = run("create", "--report-token", REPORT, "--partner", "owner")
    path.write_text(done.lines[0]["relay_token"])
    return path


# ------------------------------------------------------------------------------------------------- chmod 600


@pytest.fixture
def guarded(tmp_path, monkeypatch, partners, shared, run):
    """The commands that use a private file, by its kind, and that file, readable by others."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PLAID_RELAY_KEY", raising=False)
    journal = ("--journal", tmp_path / "relay.db", "--run", "nov")
    files = {name: tmp_path / name for name in ("output", "key", "relay.db")}
    creating = ("bulk", partners(2), "--report-token", REPORT)
    commands = {
        "output": (*creating, "--output", files["output"], "--append"),
        "fetched": ("fetch", shared, "--dir", tmp_path / "r", "--output", files["output"], "--append"),
        "key": (*creating, *journal, "--key-file", files["key"]),
        "relay.db": (*creating, *journal),
        "keys": ("gateway", "keys", "add", "ben", "--keys", tmp_path / "keys"),
    }

    def guarded(kind):
        path = files["output" if kind == "fetched" else kind] if kind != "keys" else tmp_path / "keys"
        if kind == "keys":
            assert run("gateway", "keys", "add", "ann", "--keys", path).status == 0
        else:
            path.write_text(Fernet.generate_key().decode() if kind == "key" else "")
        path.chmod(0o644)
        return commands[kind], path

    return guarded


@pytest.mark.parametrize("kind", ["output", "fetched", "key", "relay.db", "keys"])
def test_a_file_that_others_may_read_chmod_600(plaid, run, guarded, kind):
    """The command names the file and the chmod, and sends nothing; after the chmod the same command succeeds."""
    command, path = guarded(kind)
    sent = len(plaid.requests)
    refused = run(*command)
    assert refused.status in {1, 2}
    assert f"{path}" in refused.err
    assert "chmod 600" in refused.err
    assert len(plaid.requests) == sent
    path.chmod(0o600)
    assert run(*command).status == 0


@pytest.fixture
def gateway(plaid, spawn, run, tmp_path, monkeypatch):
    """Start a gateway with an audit file, and return its process, its address and a key."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def gateway(*words):
        process = spawn("gateway", "--upstream", plaid.url, "--audit", tmp_path / "audit", *words)
        line = process.stdout.readline()
        return process, line.removeprefix("listening on ").strip()

    return gateway


def status_of(url, key, partner="p"):
    """Create through a gateway, and return the HTTP status."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    body = json.dumps({"report_tokens": [REPORT], "secondary_client_id": partner}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + CREATE, body, headers), timeout=60) as done:
            return done.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_an_audit_file_that_others_may_read_chmod_600(gateway, run, tmp_path):
    """The gateway doesn't start; after the chmod it does, and writes into the file."""
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
    """After the chmod and another SIGHUP lines go into the new file."""
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
    """The message names them; with them the gateway starts, and serves the key."""
    key = run("gateway", "keys", "add", "ann", "--credentials", "acme").out.strip()
    process, _ = gateway()
    assert process.wait() == 2
    assert "acme: PLAID_CLIENT_ID_ACME and PLAID_SECRET_ACME" in process.stderr.read()
    monkeypatch.setenv("PLAID_CLIENT_ID_ACME", "acme")
    monkeypatch.setenv("PLAID_SECRET_ACME", "secret")
    _, url = gateway()
    assert status_of(url, key) == 200


def test_no_caller_has_a_key_add_one(gateway, run):
    """The gateway says how, and admits the caller within a second or so."""
    process, url = gateway()
    assert "plaid-relay gateway keys add NAME" in process.stderr.readline()
    key = run("gateway", "keys", "add", "ann").out.strip()
    wait_until(lambda: status_of(url, key) == 200)


def test_a_key_that_could_not_be_printed_add_it_again(spawn, run, tmp_path, monkeypatch):
    """There is no key of that name, so that the same command makes it."""
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
    """It isn't overwritten; with --append the new rows are added to it."""
    out = tmp_path / "out.jsonl"
    assert bulk(run, partners(1), "--output", out).status == 0
    refused = bulk(run, partners(2), "--output", out)
    assert (refused.status, "already exists; --append adds to it" in refused.err) == (2, True)
    assert len(plaid.ledger) == len(rows(out)) == 1
    assert bulk(run, partners(2), "--output", out, "--append").status == 0
    assert len(plaid.ledger) == len(rows(out)) == 3


def test_an_output_that_another_run_uses_wait_for_its_end(plaid, run, partners, tmp_path):
    """The same command succeeds afterwards."""
    out = tmp_path / "out"
    with open_output(str(out)):
        assert "another run is writing to it" in bulk(run, partners(3), "--output", out, "--append").err
    assert bulk(run, partners(3), "--output", out, "--append").status == 0
    assert {row["secondary_client_id"]: row["relay_token"] for row in rows(out)} == ledger(plaid)


def test_an_input_that_is_wrong_correct_the_rows(plaid, run, tmp_path):
    """The rows are named and nothing is sent; the corrected file is sent as a whole."""
    path = tmp_path / "in.csv"
    path.write_text("secondary_client_id,report_token\na,\nb,x y\n")
    refused = run("bulk", path)
    assert (refused.status, "nothing was sent" in refused.err) == (2, True)
    assert f"{path}:2: " in refused.err
    assert f"{path}:3: " in refused.err
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
    """The one that is missing is named; with it the same command succeeds."""
    monkeypatch.delenv("PLAID_SECRET")
    refused = bulk(run, partners(1))
    assert (refused.status, "PLAID_SECRET" in refused.err) == (2, True)
    monkeypatch.setenv("PLAID_SECRET", "secret")
    assert bulk(run, partners(1)).status == 0


def test_a_full_disk_use_the_rescue_file(plaid, run, tmp_path):
    """`fetch` reads its rows, and the partners of neither file go into the next run: each has one token."""
    names = ["owner", *(f"p{n}" for n in range(200))]
    path, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    path.write_text("".join(f"{name}\n" for name in names))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        done = bulk(run, path, "--output", out, "--concurrency", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (done.status, "rescued: " in done.err) == (1, True)
    [rescued] = tmp_path.glob("plaid-relay-rescued-*.jsonl")
    assert str(rescued) in done.err
    held = {row["secondary_client_id"] for row in (*rows(out), *rows(rescued)) if row["relay_token"]}
    path.write_text("".join(f"{name}\n" for name in names if name not in held))
    assert bulk(run, path, "--output", out, "--append").status == 0
    assert len(plaid.ledger) == len(names)
    every = {row["secondary_client_id"]: row["relay_token"] for row in (*rows(out), *rows(rescued))}
    assert {name: token for name, token in every.items() if token} == ledger(plaid)


def test_a_rescue_file_is_an_input_of_fetch(plaid, run, spawn, tmp_path, rescued):
    """Its rows have the fields of `bulk`'s output: each report of a token in it is fetched."""
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
    done = run("fetch", file, "--dir", tmp_path / "reports")
    assert (done.status, done.count("fetched")) == (0, len(plaid.ledger))
    assert len(list((tmp_path / "reports").iterdir())) == len(plaid.ledger) > 0


def test_to_have_a_report_anew_delete_its_file(plaid, run, shared, tmp_path):
    """The same command fetches it again, byte for byte what Plaid sends, and leaves the others as they are."""
    folder = tmp_path / "reports"
    assert run("fetch", shared, "--dir", folder).status == 0
    [file] = folder.iterdir()
    first = file.read_bytes()
    file.write_bytes(b"old")
    assert run("fetch", shared, "--dir", folder).lines[0]["outcome"] == "already_there"
    assert (file.read_bytes(), plaid.counts[GET]) == (b"old", 1)
    file.unlink()
    again = run("fetch", shared, "--dir", folder)
    assert [(line["outcome"], line["file"]) for line in again.lines] == [("fetched", str(file))]
    assert json.loads(file.read_bytes())["report"] == json.loads(first)["report"]
    assert (plaid.counts[GET], stat.S_IMODE(file.stat().st_mode)) == (2, 0o600)


# ------------------------------------------------------------------------------------------------ single calls


def test_a_removal_that_was_interrupted_remove_it_again(plaid, run, shared, signal_when):
    """If its response is lost, its outcome is unknown; the second removal succeeds, and the token opens nothing."""
    plaid.fail(Fault(path=REMOVE, latency=1.0, close=True, times=1))
    signal_when(lambda: plaid.counts[REMOVE])
    interrupted = run("remove", f"@{shared}")
    assert (interrupted.status, "removing the token again is safe" in interrupted.err) == (3, True)
    assert run("remove", f"@{shared}").status == 0
    assert run("get", f"@{shared}").status == 1


def test_a_token_that_plaid_did_not_remove_remove_it_again(plaid, run, shared):
    """`removed` is false and the exit status 1; until it is repeated, the token opens the report."""
    plaid.fail(Fault(path=REMOVE, status=200, body={"removed": False, "request_id": "r"}, times=1))
    assert run("remove", f"@{shared}").status == 1
    assert run("get", f"@{shared}").status == 0
    assert run("remove", f"@{shared}").status == 0
    assert run("get", f"@{shared}").status == 1


# -------------------------------------------------------------------------------------------------- the journal


@pytest.fixture
def book(tmp_path, monkeypatch):
    """The path of a journal, and its key and that in the environment."""
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
def test_a_recorded_removal_that_was_interrupted(plaid, run, partners, book, signal_when, fault, status):
    """Its response counts and is recorded; without one the removal is repeated, which is then recorded."""
    [made] = bulk(run, partners(1), "--run", "nov").lines
    plaid.fail(fault)
    signal_when(lambda: plaid.counts[REMOVE])
    assert run("remove", made["relay_token"]).status == status
    assert run("remove", made["relay_token"]).status == 0
    assert [line["outcome"] for line in run("export", "nov").lines] == ["removed"]
    assert plaid.counts[REMOVE] == (2 if status else 1)


def test_tokens_that_plaid_did_not_remove_revoke_again(plaid, run, partners, book):
    """They are failed with what to do, and the next `revoke` removes them."""
    assert bulk(run, partners(3), "--run", "nov").status == 0
    plaid.fail(Fault(path=REMOVE, status=200, body={"removed": False, "request_id": "r"}))
    assert run("revoke", "nov", "--yes").count("failed") == 3
    plaid.clear_faults()
    again = run("revoke", "nov", "--yes")
    assert (again.status, again.count("removed")) == (0, 3)
    assert {entry["removed"] for entry in plaid.ledger} == {True}


@pytest.mark.parametrize("word", ["revoke", "forget"])
def test_no_terminal_pass_yes(plaid, run, partners, book, stdin, word):
    """Nothing is done without it; with --yes the same command succeeds."""
    assert bulk(run, partners(1), "--run", "nov").status == 0
    stdin("")
    refused = run(word, "nov")
    assert (refused.status, "pass --yes to confirm" in refused.err) == (2, True)
    assert run(word, "nov", "--yes").status == 0


def test_a_run_that_is_not_there_list_the_runs(plaid, run, partners, book):
    """`runs` lists the names, with which `status` succeeds."""
    assert bulk(run, partners(1), "--run", "nov").status == 0
    missing = run("status", "now")
    assert (missing.status, "the journal has no run 'now'" in missing.err) == (1, True)
    [name] = [line.split()[0] for line in run("runs").out.splitlines() if "nov" in line]
    assert run("status", name).status == 0


def test_an_encrypted_journal_set_its_key(plaid, run, partners, book, monkeypatch):
    """Without the key the journal doesn't open; with it the run goes on, and no pair is created twice."""
    key = os.environ["PLAID_RELAY_KEY"]
    assert bulk(run, partners(2), "--run", "nov").status == 0
    monkeypatch.delenv("PLAID_RELAY_KEY")
    refused = bulk(run, partners(3), "--run", "nov")
    assert (refused.status, "give its key" in refused.err) == (2, True)
    monkeypatch.setenv("PLAID_RELAY_KEY", key)
    assert bulk(run, partners(3), "--run", "nov").status == 0
    assert len(plaid.ledger) == 3
