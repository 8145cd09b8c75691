"""An S3 server on loopback, in a process of its own, that holds a dataset and can be down."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from drills.job import Failed
from drills.scene import free_port

NAME = "drill"

_STARTS_S = 60.0


class Bucket:
    """moto's server with the files of a folder below `s3://drill/train`.

    Attributes:
        url: of the dataset.
        env: what leads a process there.

    Raises:
        Failed: moto is not installed.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder, self._log, self._port = folder, log, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"s3://{NAME}/train"
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Start it, and return when it holds everything."""
        with self._log.open("ab") as log:
            words = [sys.executable, "-m", "drills.bucket", str(self._port), str(self._folder)]
            self._process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=log, env=os.environ | self.env, cwd=Path(__file__).parents[1]
            )
        limit = time.monotonic() + _STARTS_S
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        while not self._process.stdout.read(1):
            if self._process.poll() is not None or time.monotonic() > limit:
                raise Failed(f"no S3 server:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def down(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def main(port: int, folder: Path) -> None:
    """Serve the folder's files until killed; one byte on standard output says that all are there."""
    try:
        import boto3  # type: ignore[import-untyped]
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        sys.exit(f"this drill needs {error.name}: make install, which brings what development needs")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    client = boto3.client("s3")
    client.create_bucket(Bucket=NAME)
    for file in sorted(folder.iterdir()):
        client.upload_file(str(file), NAME, f"train/{file.name}")
    os.write(1, b".")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
