"""A second S3 server on loopback: moto, with STS and KMS beside it. What SeaweedFS overlooks, it may not.

moto keeps everything in memory, checks no signature and, left to itself, no Content-MD5, and its conditional puts look
first and write then. So it runs behind a small gate of ours that compares Content-MD5 and lets one request in at a
time. ``gate=False`` leaves the gate out: a store that lacks a promise.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sandbox.process import LOOPBACK, Launch, Process, free_port
from sandbox.running import Running
from sandbox.s3 import loopback_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ACCESS_KEY = "ferry-moto"
SECRET_KEY = "ferry-moto-secret"  # noqa: S105 - guards nothing: moto takes any key
_BAD_DIGEST = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>BadDigest</Code>'
    b"<Message>The Content-MD5 you specified did not match what we received.</Message></Error>"
)


class MotoServer(Running):
    """moto's server in a process of its own; ready when it has its buckets."""

    name = "moto"

    def __init__(self, buckets: Sequence[str] = ("ferry",), *, gate: bool = True) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ferry-moto-"))
        self.access_key = ACCESS_KEY
        self.secret_key = SECRET_KEY
        self.buckets = tuple(buckets)
        self.port = free_port()
        command = (sys.executable, "-m", "sandbox.moto_s3", str(self.port), *(() if gate else ("--no-gate",)))
        log = str(self.folder / "moto.log")
        self.process = Process(Launch("s3 (moto)", command, log, cwd=str(Path(__file__).parents[1])))

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def host_port(self) -> tuple[str, int]:
        """Where it listens, for a proxy to put in front."""
        return LOOPBACK, self.port

    def client(self, endpoint_url: str | None = None) -> S3Client:
        """Return a boto3 client for this server, or for a proxy in front of it; it does not retry."""
        client: S3Client = loopback_client("s3", endpoint_url or self.endpoint_url, (self.access_key, self.secret_key))
        return client

    def other_client(self, service: str) -> Any:
        """Return a boto3 client for another service of the same server: ``iam``, ``sts``, ``kms``."""
        return loopback_client(service, self.endpoint_url, (self.access_key, self.secret_key))

    def start(self, timeout_seconds: float = 60) -> Self:
        """Start the server and make the buckets; or end it again."""
        try:
            self.process.start()
            self.process.wait_ready(self._answers, timeout_seconds)
            client = self.client()
            for bucket in self.buckets:
                client.create_bucket(Bucket=bucket)
            client.close()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server; what it held is gone. Twice is fine."""
        self.process.stop(0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint_url}/moto-api/", timeout=2) as answer:  # noqa: S310 - our own
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False


class _Gate:
    """Refuses a body that is not its Content-MD5, and lets one request in at a time."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._one = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        said = environ.get("HTTP_CONTENT_MD5")
        if said is not None and said != base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode():
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [_BAD_DIGEST]
        with self._one:
            return list(self._app(environ, start_response))


def main() -> None:
    """Serve until ended: python -m sandbox.moto_s3 PORT [--no-gate]."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    parser = argparse.ArgumentParser(description="moto's server, behind a gate.")
    parser.add_argument("port", type=int)
    parser.add_argument("--no-gate", action="store_true")
    given = parser.parse_args()
    app: Any = DomainDispatcherApplication(create_backend_app)
    app = app if given.no_gate else _Gate(app)
    run_simple(LOOPBACK, given.port, app, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
