"""A TLS server in threads, because asyncio's servers send no alert when they reject a handshake."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

CONNECTIONS = 50  # at the same time


@contextlib.contextmanager
def tls_server(tls: ssl.SSLContext, serve: Callable[[ssl.SSLSocket], None]) -> Iterator[str]:
    """Run a server on 127.0.0.1, and yield its `HOST:PORT`.

    Args:
        tls: the server's context.
        serve: serves one connection in a thread. After the block, the connection ends for it.
    """

    def accept() -> None:
        while True:
            connection, _ = server.accept()
            if closing:
                return connection.close()
            connection.settimeout(30)
            connections.append(tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False))
            threads.submit(handle, connections[-1])

    def handle(connection: ssl.SSLSocket) -> None:
        with connection, contextlib.suppress(OSError):  # the client reports the error
            try:
                connection.do_handshake()
                serve(connection)
            finally:
                socket.socket.shutdown(connection, socket.SHUT_WR)
                # To close a socket with unread bytes resets the connection, which may discard the alert.
                while socket.socket.recv(connection, 65_536):
                    pass

    closing: list[bool] = []
    connections: list[ssl.SSLSocket] = []
    with ThreadPoolExecutor(CONNECTIONS) as threads, socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield "{}:{}".format(*server.getsockname())
        finally:
            closing.append(True)
            socket.create_connection(server.getsockname()).close()
            thread.join()
            for connection in connections:
                with contextlib.suppress(OSError):  # it has ended
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
