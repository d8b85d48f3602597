"""What a cluster of ours finds outside: a PostgreSQL with an empty database of ours, and an S3 with a bucket.

Started in the network of the pods: `python -m tests.deploy.outside BUCKET`; prints a line once both answer.
"""

from __future__ import annotations

import asyncio
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

from moto.server import ThreadedMotoServer
from sqlalchemy import create_engine, make_url

from tests.servers.postgres import running_postgres

POSTGRES_PORT, S3_PORT = 5432, 5000


def main(bucket: str) -> None:
    s3 = ThreadedMotoServer("0.0.0.0", S3_PORT, verbose=False)
    s3.start()
    made = urllib.request.Request(f"http://127.0.0.1:{S3_PORT}/{bucket}", method="PUT")
    urllib.request.urlopen(made, timeout=30).close()
    with running_postgres() as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE ROLE email_ingestion LOGIN PASSWORD 'change-me'")
            connection.exec_driver_sql("CREATE DATABASE email_ingestion OWNER email_ingestion ENCODING 'UTF8'")
        engine.dispose()
        socket = Path(str(make_url(url).query["host"])) / f".s.PGSQL.{POSTGRES_PORT}"
        asyncio.run(_relay(socket))


async def _relay(socket: Path) -> None:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(socket)
        await asyncio.gather(pump(reader, ours), pump(theirs, writer))

    server = await asyncio.start_server(connected, "0.0.0.0", POSTGRES_PORT)
    sys.stdout.write("both answer\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
