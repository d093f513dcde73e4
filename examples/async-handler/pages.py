"""An async handler: many slow things at once in one process, such as calls to other services.

workqueue run pages:fetch --queue pages --declare --concurrency 50
workqueue send --queue pages '{"host": "example.org"}'
"""

import asyncio

from workqueue import Message, Reject, Retry


async def fetch(message: Message) -> None:
    """Ask a web server for its front page and print the first line of the answer."""
    job = message.json()  # a body that is no JSON goes to the dead-letter queue by itself
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
