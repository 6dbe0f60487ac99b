"""Connections that each publish a file to themselves: FILE TIMES AT_ONCE SHA256."""

import asyncio
import hashlib
import sys
from pathlib import Path

import nats


async def once(number, data, sha256):
    connection = await nats.connect("nats://bus:4222", allow_reconnect=False)
    subscription = await connection.subscribe(f"s{number}")
    await connection.publish(f"s{number}", data)
    message = await subscription.next_msg(timeout=30)
    assert hashlib.sha256(message.data).hexdigest() == sha256, "another digest"
    await connection.drain()


async def main():
    data = Path(sys.argv[1]).read_bytes()
    times, at_once, sha256 = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    limit = asyncio.Semaphore(at_once)

    async def limited(number):
        async with limit:
            await once(number, data, sha256)

    await asyncio.gather(*map(limited, range(times)))


asyncio.run(main())
