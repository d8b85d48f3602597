"""A bucket on moto's S3 server, in this process, so that what lies in it can be made older than it is."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import FakeBucket, s3_backends
from moto.server import ThreadedMotoServer


@dataclass(frozen=True)
class Bucket:
    """`environment` is what an S3 client, our processes included, needs to find it."""

    name: str
    endpoint: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}/prefix"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "eu-central-1",
        }

    def names(self) -> list[str]:
        """Of the objects below the prefix."""
        return sorted(name.removeprefix("prefix/") for name in self._kept.keys.keys())  # noqa: SIM118 - not a dictionary

    def contents(self) -> list[bytes]:
        """Of all objects."""
        return [self._kept.keys[name].value for name in self._kept.keys.keys()]  # noqa: SIM118 - not a dictionary

    def age(self, days: float, containing: str = "") -> None:
        """Make objects older whose names have this in them."""
        for name in self._kept.keys.keys():  # noqa: SIM118 - not a dictionary
            if containing in name:
                self._kept.keys[name].last_modified -= timedelta(days=days)

    @property
    def _kept(self) -> FakeBucket:
        return s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[self.name]


@contextmanager
def running_s3() -> Iterator[str]:
    """The endpoint of a server without buckets."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def make_bucket(endpoint: str) -> Bucket:
    """An empty one of its own."""
    bucket = Bucket(f"mail-{uuid4().hex}", endpoint)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket.name}", method="PUT"), timeout=30).close()
    return bucket
