"""The command `bulk` with a journal, killed at random until it is done: no second and no lost token."""

import asyncio
import random
import re
import signal
import subprocess
import time
from collections import Counter

import pytest
from attrs import define
from cryptography.fernet import Fernet
from support import CREATE

from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.slow

REPORT = "assets-sandbox-1111"
PARTNERS = 60
CONCURRENCY = 5
KILLS = 6  # the maximum per run
LEASE = 1.0  # seconds
TIMEOUT = 10.0  # seconds for one creation; --retry-unknown waits as long
# Each of these faults may leave one pair unknown.
IN_DOUBT = (
    Fault(path=CREATE, rate=0.05, times=2, close=True, when="after"),
    Fault(path=CREATE, rate=0.05, times=2, truncate=20),
    Fault(path=CREATE, rate=0.05, times=1, status=500, when="after"),
    Fault(path=CREATE, rate=0.05, times=1, close=True),
)
DECLINED_STATUSES = {400, 429}
DECLINED = (
    Fault(path=CREATE, rate=0.1, times=5, status=429),
    Fault(path=CREATE, rate=0.05, times=2, status=400, body={"error_type": "ITEM_ERROR"}),
)


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        rounds = metafunc.config.getoption("rounds")
        metafunc.parametrize("seed", range(1 if rounds < 10 else rounds))


@define
class CrashScenario:
    """One run over all partners, in several processes."""

    plaid: object
    spawn: object
    args: tuple
    rng: random.Random
    kills: int = 0

    def sent_partners(self):
        """Return the partners with a request that may have been executed; there must be only one for each."""
        requests = [each for each in self.plaid.requests if each.status not in DECLINED_STATUSES]
        partners = {each.secondary_client_id for each in requests}
        assert len(partners) == len(requests)
        return partners

    def start_process(self, *args):
        return self.spawn(*self.args, *args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def kill_at_random(self, process, longest):
        """Kill a process at a random moment, which in four of five cases is after its first request."""
        sent_before, request_count = self.sent_partners(), len(self.plaid.requests)
        if self.rng.random() < 0.2:
            time.sleep(self.rng.uniform(0, 0.6))
        else:
            while len(self.plaid.requests) == request_count and process.poll() is None:
                time.sleep(0.001)
            time.sleep(self.rng.uniform(0, longest))
        if process.poll() is None:
            process.kill()
            self.kills += 1
        process.communicate()
        new = self.plaid.requests[request_count:]
        assert self.sent_partners() - sent_before or all(each.status in DECLINED_STATUSES for each in new)

    def run_to_end(self, run):
        """Run the command until no outcome can be retried, and return the last exit status."""
        for _ in range(8):
            process = self.start_process()
            _, errors = process.communicate()
            assert process.returncode in {0, 1, 3}, errors
            if all(line["outcome"] in {"created", "unknown"} for line in run("export", "crash").lines):
                return process.returncode
        raise AssertionError(errors)

    def check_journal(self, run):
        """Compare the journal with the ledger; only pairs that a kill or a fault affected may be unknown."""
        self.sent_partners()
        created = Counter(entry["secondary_client_id"] for entry in self.plaid.ledger)
        assert set(created.values()) <= {1}
        lines = run("export", "crash").lines
        assert sorted(line["secondary_client_id"] for line in lines) == sorted(
            f"p{n}" for n in range(PARTNERS)
        )
        assert {line["outcome"] for line in lines} <= {"created", "unknown"}
        tokens = {line["secondary_client_id"]: line["relay_token"] for line in lines if line["relay_token"]}
        unknown = {line["secondary_client_id"] for line in lines if line["outcome"] == "unknown"}
        for entry in self.plaid.ledger:
            partner = entry["secondary_client_id"]
            assert tokens.get(partner) == entry["relay_token"] or partner in unknown
        assert len(tokens) + len(unknown) == PARTNERS
        assert len(unknown) <= self.kills * CONCURRENCY + sum(fault.times for fault in IN_DOUBT)
        return unknown

    def resume_unknown(self, run):
        """Resume with --retry-unknown until all are created; only unknown pairs may get a second token."""
        unknown = self.check_journal(run)
        created = Counter(each["secondary_client_id"] for each in self.plaid.ledger)
        for _ in range(8):
            process = self.start_process("--retry-unknown")
            process.communicate()
            if process.returncode == 0:
                break
        assert process.returncode == 0
        now = Counter(each["secondary_client_id"] for each in self.plaid.ledger)
        assert {partner for partner in now if now[partner] > created[partner]} <= unknown
        tokens = {line["secondary_client_id"]: line["relay_token"] for line in run("export", "crash").lines}
        assert tokens == {each["secondary_client_id"]: each["relay_token"] for each in self.plaid.ledger}


@pytest.fixture
def start_scenario(start, spawn, partners, monkeypatch):
    """Start a scenario with a seed and a journal."""
    path = partners(PARTNERS)
    monkeypatch.setenv("PLAID_RELAY_KEY", Fernet.generate_key().decode())

    def start_scenario(seed, journal):
        monkeypatch.setenv("PLAID_RELAY_JOURNAL", str(journal))
        plaid = start(latency=0.015, seed=seed)
        plaid.fail(*IN_DOUBT, *DECLINED)
        args = ("bulk", path, "--report-token", REPORT, "--run", "crash", "--concurrency", CONCURRENCY)
        limits = ("--lease", LEASE, "--timeout", TIMEOUT)
        return CrashScenario(plaid, spawn, (*args, *limits), random.Random(seed))

    return start_scenario


def test_killed_until_it_is_done(start_scenario, run, tmp_path, seed):
    """Each process resumes the run; the status is 0, or 3 if a kill or a fault left a pair unknown."""
    scenario = start_scenario(seed, tmp_path / "relay.db")
    for _ in range(scenario.rng.randint(1, KILLS)):
        scenario.kill_at_random(scenario.start_process(), 0.25)
    status = scenario.run_to_end(run)
    assert status == (3 if scenario.check_journal(run) else 0)
    scenario.resume_unknown(run)


def test_killed_with_its_server(start_scenario, run, postgres, seed):
    """The same with PostgreSQL, which is killed and restarted too."""
    asyncio.run(postgres.reset())
    scenario = start_scenario(seed, postgres.url)
    for _ in range(scenario.rng.randint(1, KILLS)):
        process = scenario.start_process()
        if scenario.rng.random() < 0.5:
            time.sleep(scenario.rng.uniform(0, 1))
            asyncio.run(postgres.kill())
            asyncio.run(postgres.start())
            # On a busy machine this can take longer than the lease. Then the outcomes of calls that are in
            # flight aren't recorded.
            scenario.kills += 1
        scenario.kill_at_random(process, 0.25)
    status = scenario.run_to_end(run)
    assert status == (3 if scenario.check_journal(run) else 0)
    scenario.resume_unknown(run)


def test_stopped_beyond_its_lease(start_scenario, run, postgres, seed):
    """A process that is suspended until its lease expires sends nothing more; its outcomes are kept."""
    asyncio.run(postgres.reset())
    scenario = start_scenario(seed, postgres.url)
    first = scenario.start_process()
    while not scenario.plaid.requests:
        assert first.poll() is None
    second = scenario.start_process()
    time.sleep(scenario.rng.uniform(0, 0.2))
    first.send_signal(signal.SIGSTOP)
    time.sleep(2.5 * LEASE)
    first.send_signal(signal.SIGCONT)
    assert {each.communicate() and each.returncode for each in (first, second)} <= {0, 1, 3}
    status = scenario.run_to_end(run)
    assert status == (3 if scenario.check_journal(run) else 0)
    scenario.resume_unknown(run)


@pytest.mark.timeout(900)
def test_interrupted_at_half_and_its_key_changed(start, spawn, run, partners, tmp_path, request, monkeypatch):
    """`status`, `export` and the ledger agree after a kill and a rotation of the key."""
    count = request.config.getoption("partners")
    plaid = start()
    plaid.fail(*(Fault(secondary_client_id=f"p{n}", status=400) for n in (7, count - 7)))
    plaid.fail(Fault(secondary_client_id=f"p{count - 9}", close=True, when="after"))
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    monkeypatch.setenv("PLAID_RELAY_JOURNAL", str(tmp_path / "relay.db"))
    monkeypatch.setenv("PLAID_RELAY_KEY", old)
    args = ("bulk", partners(count), "--report-token", REPORT, "--run", "half", "--concurrency", 100)
    process = spawn(*args, stdout=subprocess.DEVNULL)
    while len(plaid.ledger) < count // 2:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{new},{old}")
    assert run("rotate").status == 0
    monkeypatch.setenv("PLAID_RELAY_KEY", new)
    process = spawn(*args, stdout=subprocess.DEVNULL)
    process.communicate()
    assert process.returncode == 3
    lines = run("export", "half").lines
    assert sorted(line["secondary_client_id"] for line in lines) == sorted(f"p{n}" for n in range(count))
    status = run("status", "half")
    counts = Counter(line["outcome"] for line in lines)
    assert {kind: status_count(status, kind) for kind in counts} == counts
    unknown = {line["secondary_client_id"] for line in lines if line["outcome"] == "unknown"}
    assert set(re.findall(r"^unknown: (\S+) ", status.out, re.MULTILINE)) == unknown
    assert counts["failed"] == 2
    assert f"p{count - 9}" in unknown
    assert len(unknown) <= 101
    recorded = {line["secondary_client_id"]: line["relay_token"] for line in lines if line["relay_token"]}
    created = {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}
    assert len(created) == len(plaid.ledger)
    assert {partner: token for partner, token in created.items() if partner not in unknown} == recorded
    monkeypatch.setenv("PLAID_RELAY_KEY", old)
    assert run("status", "half").status == 2


def status_count(status, kind):
    """Return the number beside an outcome in the output of `status`."""
    return int(re.findall(rf"^{kind} +(\d+)", status.out, re.MULTILINE)[0])
