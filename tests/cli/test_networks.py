"""The command behind a proxy: how it selects the proxy, and how it reports a proxy that rejects it."""

import os
import socketserver
import threading

import pytest

REPORT = "assets-sandbox-1111"
PASSWORD = "canary-of-the-proxy"
PLAID = "https://plaid.example"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PLAID_BASE_URL", PLAID)
    monkeypatch.setenv("PLAID_CLIENT_ID", "owner")
    monkeypatch.setenv("PLAID_SECRET", "canary-secret-7d1f")
    monkeypatch.delenv("PLAID_ENV", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def proxy():
    """Run a proxy that requires another password; return its address and the requests it received."""
    heads = []

    class Refusing(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            heads.append(self.rfile.readline())
            while self.rfile.readline().strip():
                continue
            self.wfile.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", heads
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "args",
    [
        ("bulk", "partners.txt", "--report-token", REPORT),
        ("create", "--report-token", REPORT, "--partner", "ann"),
        ("get", "token"),
        ("pdf", "token", "--output", "-"),
        ("fetch", "tokens.txt", "--dir", "reports"),
        ("refresh", "token"),
        ("remove", "token"),
        ("revoke", "nov", "--journal", "journal.db"),
        ("gateway",),
    ],
    ids=lambda args: args[0],
)
def test_each_command_that_calls_takes_a_proxy(run, monkeypatch, args):
    """An invalid proxy, from the environment or from --proxy, is wrong usage and shows no password."""
    result = run(*args, "--proxy", f"socks5://me:{PASSWORD}@127.0.0.1:9")
    assert (result.status, result.out) == (2, "")
    assert "proxy is a SOCKS proxy" in result.err
    monkeypatch.setenv("HTTPS_PROXY", f"ftp://me:{PASSWORD}@127.0.0.1:9")
    result = run(*args)
    assert (result.status, result.out) == (2, "")
    assert "HTTPS_PROXY must be a URL such as" in result.err
    assert PASSWORD not in result.err


@pytest.mark.parametrize("by", ["HTTPS_PROXY", "--proxy"])
def test_a_proxy_that_rejects_is_named(proxy, run, monkeypatch, by):
    """The error names the proxy and the remedy, without the password; --proxy overrides the environment."""
    address, heads = proxy
    url = f"http://me:{PASSWORD}@{address}"
    monkeypatch.setenv("HTTPS_PROXY", url if by == "HTTPS_PROXY" else "http://127.0.0.1:9")
    result = run("get", "token", *(["--proxy", url] if by == "--proxy" else []))
    assert result.status == 1
    assert "the proxy responded with 407: the user or the password is missing or wrong" in result.err
    assert f"; proxy: http://{address} [not sent" in result.err
    assert "percent-encoded" in result.err
    assert PASSWORD not in result.err
    assert {tuple(head.split()[:2]) for head in heads} == {(b"CONNECT", b"plaid.example:443")}


def test_a_proxy_with_a_password_is_read_from_a_file(proxy, run, tmp_path):
    """`@FILE` keeps the password out of the list of processes."""
    address, heads = proxy
    (tmp_path / "proxy").write_text(f"http://me:{PASSWORD}@{address}\n")
    result = run("get", "token", "--proxy", f"@{tmp_path / 'proxy'}")
    assert (result.status, PASSWORD in result.err) == (1, False)
    assert heads


def test_loopback_is_never_called_through_a_proxy(plaid, run, monkeypatch):
    """A simulator or a gateway on loopback is called directly, whatever the environment and --proxy say."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    args = ("create", "--report-token", REPORT, "--partner")
    assert run(*args, "ann").status == 0
    assert run(*args, "bob", "--proxy", "http://127.0.0.1:9").status == 0


@pytest.mark.parametrize("without", ["NO_PROXY", "--proxy"])
def test_a_host_can_be_called_without_the_proxy(proxy, run, monkeypatch, without):
    """NO_PROXY, or an empty --proxy, bypasses the proxy."""
    _, heads = proxy
    monkeypatch.setenv("PLAID_BASE_URL", "https://plaid.invalid")
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy[0]}")
    more = ["--proxy", ""] if without == "--proxy" else []
    monkeypatch.setenv("NO_PROXY", ".invalid" if without == "NO_PROXY" else "")
    result = run("get", "token", *more)
    assert (result.status, heads) == (1, [])
    assert "the name plaid.invalid isn't known" in result.err
