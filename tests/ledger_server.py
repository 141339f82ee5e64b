"""An upstream in a separate process, with a ledger that survives it: `python ledger_server.py PORT LEDGER`.

It responds to each creation with a token, after it has appended partner and token to the ledger file. A kill
therefore loses no entry. The server waits for a random time, up to 20 ms, before and after it writes the entry,
so that a kill hits requests at every stage.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys

from fault_proxy import read_message


async def main(port: int, path: str) -> None:
    ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    rng = random.Random(port)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_message(reader)
                await asyncio.sleep(rng.random() * 0.02)
                partner = json.loads(request.partition(b"\r\n\r\n")[2])["secondary_client_id"]
                token = f"credit-relay-sandbox-{os.urandom(8).hex()}"
                os.write(ledger, f"{json.dumps([partner, token])}\n".encode())
                await asyncio.sleep(rng.random() * 0.02)
                body = json.dumps({"relay_token": token, "request_id": f"r{token[-8:]}"}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, reuse_address=True)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # The limit ends a server whose test was killed.
    await asyncio.wait_for(server.serve_forever(), 300)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
