"""A real S3 server on loopback (SeaweedFS): signatures, conditional puts, multipart, checksums."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from sandbox.binaries import weed_binary
from sandbox.process import LOOPBACK, Launch, Process, free_port
from sandbox.running import Running

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
ACCESS_KEY = "ferry-sandbox"
SECRET_KEY = "ferry-sandbox-secret"  # noqa: S105 - guards a server that only loopback reaches
_PORTS = ("master", "volume", "filer", "s3")
# Its own filer keeps streams open, for which a graceful stop waits 15 s each time. Killed, it loses nothing that it
# has acknowledged: the page cache outlives the process.
GRACE_SECONDS = 0.0
_PROBE_KEY = "ferry-sandbox-ready"


def loopback_client(service: str, endpoint_url: str, keys: tuple[str, str], ca_file: Path | None = None) -> Any:
    """A boto3 client for a server on this machine: it does not retry, and asks no proxy of the environment."""
    config = Config(
        signature_version="s3v4" if service == "s3" else None,
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": 1},
        connect_timeout=5,
        read_timeout=20,
        proxies={},
    )
    return boto3.client(  # type: ignore[call-overload]  # of any service
        service,
        endpoint_url=endpoint_url,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        region_name=REGION,
        verify=str(ca_file) if ca_file else None,
        config=config,
    )


class S3Server(Running):
    """SeaweedFS in one process; ready when an object put into each bucket is read back."""

    def __init__(
        self,
        folder: Path | None = None,
        access_key: str = ACCESS_KEY,
        secret_key: str = SECRET_KEY,
        buckets: Sequence[str] = ("ferry",),
        detached: bool = False,
    ) -> None:
        """Prepare a server; a folder that is given is kept at the end, a temporary one is removed."""
        self._temporary = folder is None
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="ferry-s3-"))).absolute()
        self.access_key = access_key
        self.secret_key = secret_key
        self.buckets = tuple(buckets)
        self._ports = self._found_or_made_ports()
        launch = Launch("s3 (SeaweedFS)", self._command(), str(self.folder / "s3.log"), detached=detached)
        self.process = Process(launch)

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self._ports['s3']}"

    @property
    def host_port(self) -> tuple[str, int]:
        """Where it listens, for a proxy to put in front."""
        return LOOPBACK, self._ports["s3"]

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self, endpoint_url: str | None = None) -> S3Client:
        """Return a boto3 client for this server, or for a proxy in front of it; it does not retry."""
        client: S3Client = loopback_client("s3", endpoint_url or self.endpoint_url, (self.access_key, self.secret_key))
        return client

    def start(self, timeout_seconds: float = 60) -> Self:
        """Start the server, create the buckets, and wait until each gives back what was put; or end it again."""
        try:
            (self.folder / "data").mkdir(parents=True, exist_ok=True)
            self._write_identities()
            self.process.start()
            client = self.client()
            self.process.wait_ready(lambda: self._round_trips(client), timeout_seconds)
            client.close()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server and remove the sockets it leaves in /tmp, and a temporary folder. Twice is fine."""
        self.process.stop(GRACE_SECONDS)
        remove_sockets(self._ports)
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self) -> None:
        """End the server and start it again on its data and ports."""
        self.process.stop(GRACE_SECONDS)
        self.start()

    def record(self) -> dict[str, Any]:
        """Return what another process needs to end this server and to reach it; it holds the secret key."""
        return {
            "process": self.process.record(),
            "ports": self._ports,
            "endpoint_url": self.endpoint_url,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "buckets": list(self.buckets),
        }

    def _round_trips(self, client: S3Client) -> bool:
        try:
            existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for bucket in self.buckets:
                if bucket not in existing:
                    client.create_bucket(Bucket=bucket)
                client.put_object(Bucket=bucket, Key=_PROBE_KEY, Body=b"ready")
                came_back = client.get_object(Bucket=bucket, Key=_PROBE_KEY)["Body"].read()
                client.delete_object(Bucket=bucket, Key=_PROBE_KEY)
                if came_back != b"ready":
                    return False
        except (BotoCoreError, ClientError):
            return False
        return True

    def _command(self) -> tuple[str, ...]:
        ports = [f"-{part}.port={self._ports[part]}" for part in _PORTS]
        grpc_ports = [f"-{part}.port.grpc={self._ports[part + '.grpc']}" for part in _PORTS]
        return (
            str(weed_binary()), "server", f"-dir={self.folder / 'data'}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}",
            *ports, *grpc_ports,
            "-s3", f"-s3.config={self.folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false",
            "-s3.autoCreateBucket=false",  # a misspelt bucket must be an error here as it is on AWS
            "-master.telemetry=false", "-master.electionTimeout=1s",  # alone, it need not wait 10 s for other masters
            "-master.volumePreallocate=false", "-master.volumeSizeLimitMB=256", "-volume.max=1000",
            "-volume.preStopSeconds=0",  # the default waits 10 s for clients that a sandbox does not have
        )  # fmt: skip

    def _found_or_made_ports(self) -> dict[str, int]:
        """Keep the ports with the data: the master knows its volume server by address."""
        note = self.folder / "ports.json"
        if note.exists():
            return {name: int(port) for name, port in json.loads(note.read_text()).items()}
        ports = {name: free_port() for part in _PORTS for name in (part, f"{part}.grpc")}
        self.folder.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(ports))
        return ports

    def _write_identities(self) -> None:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        file = self.folder / "s3.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps({"identities": [{"name": "ferry", "credentials": credentials, "actions": actions}]}))


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the Unix sockets SeaweedFS makes in /tmp, named by port, and does not remove when it is killed."""
    for name, port in ports.items():
        part = name.removesuffix(".grpc")
        kind = f"{part}-grpc" if name.endswith(".grpc") else part
        with suppress(OSError):
            Path(f"/tmp/seaweedfs-{kind}-{port}.sock").unlink()  # noqa: S108 - SeaweedFS's own fixed place
