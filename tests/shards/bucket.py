"""A real S3-compatible server on loopback, with one empty bucket."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

BUCKET = "photos"


class Bucket:
    """The bucket; its server can be stopped and started again, with what it held."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        self.host, self.port = self.server.get_host_and_port()
        self.endpoint = f"http://{self.host}:{self.port}"

    def client(self) -> Any:
        import boto3

        return boto3.client("s3")

    def contents(self, prefix: str) -> dict[str, bytes]:
        """All objects below a prefix."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix + "/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key.removeprefix(prefix + "/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys
        }

    def down(self) -> None:
        self.server.stop()

    def up(self) -> None:
        for _ in range(50):  # the port may linger
            self.server = ThreadedMotoServer(ip_address=self.host, port=self.port, verbose=False)
            try:
                self.server.start()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server does not come back")


@contextmanager
def serving() -> Iterator[Bucket]:
    """Start it, with the environment that leads there."""
    import s3fs

    bucket = Bucket()
    s3fs.S3FileSystem.clear_instance_cache()  # one of another server, or without keys
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket.client().create_bucket(Bucket=BUCKET)
        yield bucket
    bucket.server.stop()
    s3fs.S3FileSystem.clear_instance_cache()
