"""An async handler: many concurrent slow calls in one process, for instance to other services.

workqueue run pages:fetch --queue pages --declare --concurrency 50
workqueue send --queue pages '{"host": "example.org"}'
"""

import asyncio

from workqueue import Message, Reject, Retry


async def fetch(message: Message) -> None:
    """Request the front page of a web server and print the first line of the response."""
    job = message.json()  # a body that is not JSON becomes a dead letter
    if "host" not in job:
        raise Reject("the job names no host")
    try:
        reader, writer = await asyncio.open_connection(job["host"], job.get("port", 80))
    except OSError as error:
        raise Retry(after=30, reason=f"{job['host']} cannot be reached: {error}") from error
    try:
        writer.write(f"GET / HTTP/1.0\r\nHost: {job['host']}\r\n\r\n".encode())
        status = await reader.readline()
        print(f"{job['host']}: {status.decode().strip()}", flush=True)
    finally:
        writer.close()
