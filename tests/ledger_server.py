"""An upstream in a process of its own, whose books outlive it: `python ledger_server.py PORT BOOKS`.

It answers each creation with a token, once it has written partner, token and secret into the books; a kill loses
nothing of those. It waits a little before and behind that, so that a kill meets requests at every stage.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys

from fault_proxy import read_message


async def main(port: int, path: str) -> None:
    books = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    draw = random.Random(port)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                came = await read_message(reader)
                await asyncio.sleep(draw.random() * 0.02)
                partner = json.loads(came.partition(b"\r\n\r\n")[2])["secondary_client_id"]
                token = f"credit-relay-sandbox-{os.urandom(8).hex()}"
                os.write(books, f"{json.dumps([partner, token])}\n".encode())
                await asyncio.sleep(draw.random() * 0.02)
                body = json.dumps({"relay_token": token, "request_id": f"r{token[-8:]}"}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, reuse_address=True)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.wait_for(server.serve_forever(), 300)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
