"""What the settings can hold: profiles of clusters, repositories and policies, and the machine that runs the flows."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

# Lower case, because a variable cannot tell FERRY_CLUSTERS__PROD from FERRY_CLUSTERS__prod.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
MIB = 1024 * 1024
GRPC_PORT = 6334  # Qdrant's own default

ProfileName = Annotated[str, Field(pattern=NAME_PATTERN)]
QuietHours = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")]


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError; a folder gives an OSError
        msg = f"{name} is no time zone that this machine knows, such as Europe/Berlin (Python's tzdata has them all)"
        raise ValueError(msg) from error
    return name


TimeZone = Annotated[str, AfterValidator(_known_zone)]
GrpcUrl = Annotated[str, Field(pattern=r"^https?://[^\s/@]+:\d+/?$")]
HttpUrl = Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/[^\s@]*)?$")]


class Profile(BaseModel):
    """A settings table: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StaticHeadroom(Profile):
    """What one node has free, when the operator knows it and nothing measures it."""

    disk_free_bytes: int = Field(ge=0, description="Free bytes on the node's storage and snapshots disk.")
    ram_free_bytes: int | None = Field(default=None, ge=0, description="Free bytes of memory on the node.")


class Headroom(Profile):
    """Where the free disk and memory of each node are read from. Qdrant tells it from 1.19 on, not before."""

    kind: Literal["auto", "quotas", "prometheus", "local", "static", "unknown"] = Field(
        default="auto",
        description="auto: /quotas where Qdrant has it (1.19), else what is configured here, else unknown.",
    )
    paths: list[Path] = Field(
        default_factory=list, description="local: each node's storage folder on this host, in the order of nodes."
    )
    prometheus_url: HttpUrl | None = Field(default=None, description="prometheus: base address of its HTTP API.")
    disk_query: str | None = Field(
        default=None, description="prometheus: query for free bytes; {host} is replaced by the node's host name."
    )
    ram_query: str | None = Field(default=None, description="prometheus: the same for available memory.")
    static: list[StaticHeadroom] = Field(
        default_factory=list, description="static: one entry for each node, in the order of nodes."
    )
    when_unknown: Literal["refuse", "warn"] = Field(
        default="refuse", description="What a preflight does when the free disk of a node cannot be told."
    )


class ClusterProfile(Profile):
    """One Qdrant cluster: the address of every node, and how to read each node's headroom."""

    nodes: list[HttpUrl] = Field(
        min_length=1, description="REST address of every node itself; never one address that is balanced over them."
    )
    grpc_nodes: list[GrpcUrl] | None = Field(
        default=None, description="The gRPC address of every node, in the order of nodes; absent: port 6334 of each."
    )
    api_key: SecretStr | None = Field(default=None, description="Key with the right to manage (snapshots need it).")
    ca_file: Path | None = Field(default=None, description="Certificate authority of the nodes, when it is private.")
    timeout_seconds: float = Field(default=30.0, gt=0, description="Deadline of one ordinary request to a node.")
    snapshot_timeout_seconds: float = Field(
        default=3600.0, gt=0, description="Deadline of making or recovering one snapshot on a node."
    )
    stall_seconds: float = Field(default=60.0, gt=0, description="Without a byte for so long a transfer starts anew.")
    headroom: Headroom = Field(default_factory=Headroom, description="Where free disk and memory are read from.")

    @field_validator("nodes", "grpc_nodes")
    @classmethod
    def _nodes_differ(cls, nodes: list[str] | None) -> list[str] | None:
        cleaned = [node.rstrip("/") for node in nodes or ()]
        if len(set(cleaned)) != len(cleaned):
            msg = "the same address stands twice; every node needs its own"
            raise ValueError(msg)
        return None if nodes is None else cleaned

    @model_validator(mode="after")
    def _one_entry_a_node(self) -> "ClusterProfile":
        for name, entries in (
            ("headroom.paths", self.headroom.paths),
            ("headroom.static", self.headroom.static),
            ("grpc_nodes", self.grpc_nodes),
        ):
            if entries and len(entries) != len(self.nodes):
                msg = f"{name} has {len(entries)} entries for {len(self.nodes)} nodes; it needs one for each"
                raise ValueError(msg)
        return self

    @property
    def grpc_addresses(self) -> list[str]:
        """The gRPC address of every node, in the order of nodes: as configured, or port 6334 of its host."""
        return self.grpc_nodes or [_grpc_default(node) for node in self.nodes]


def _grpc_default(node: str) -> str:
    address = urlsplit(node)
    host = f"[{address.hostname}]" if ":" in (address.hostname or "") else address.hostname
    return f"{address.scheme}://{host}:{GRPC_PORT}"


class Encryption(Profile):
    """Encryption of archives on the worker, in the format of age (age-encryption.org), which its own tool can read."""

    recipients: list[str] = Field(
        min_length=1, description="Public keys (age1…) whose owners can read the archives. The first is the key id."
    )
    identity: SecretStr | None = Field(
        default=None,
        description="Secret key (AGE-SECRET-KEY-1…) of one recipient; proofs and restores need it. One a line where "
        "older archives were encrypted for another.",
    )
    identity_kms_ciphertext: str | None = Field(
        default=None, description="The secret key encrypted by a KMS key (base64), instead of identity."
    )
    kms_endpoint_url: HttpUrl | None = Field(default=None, description="Address of the KMS; absent: AWS.")

    @model_validator(mode="after")
    def _one_identity(self) -> "Encryption":
        if self.identity is not None and self.identity_kms_ciphertext is not None:
            msg = "identity and identity_kms_ciphertext exclude each other"
            raise ValueError(msg)
        return self


class RepositoryProfile(Profile):
    """One bucket and prefix that hold backups."""

    bucket: str = Field(min_length=3, max_length=63, description="Bucket name.")
    prefix: str = Field(default="ferry", description="Folder in the bucket under which everything of Ferry's lies.")
    endpoint_url: HttpUrl | None = Field(default=None, description="Address of an S3 server other than AWS.")
    node_endpoint_url: HttpUrl | None = Field(
        default=None, description="The same server as the Qdrant nodes see it, when that differs; used to sign URLs."
    )
    region: str = Field(default="us-east-1", description="Region of the bucket.")
    access_key: SecretStr | None = Field(default=None, description="Access key; absent: the AWS default chain.")
    secret_key: SecretStr | None = Field(default=None, description="Secret key that goes with access_key.")
    session_token: SecretStr | None = Field(default=None, description="Session token of temporary keys.")
    aws_profile: str | None = Field(default=None, description="Profile of the AWS configuration files.")
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="path is what most servers other than AWS need."
    )
    checksums: Literal["auto", "when_required", "when_supported"] = Field(
        default="auto",
        description="boto3's default checksums break some stores; auto: when_required with an endpoint_url.",
    )
    ca_file: Path | None = Field(default=None, description="Certificate authority of the store, when it is private.")
    part_bytes: int = Field(default=16 * MIB, ge=5 * MIB, le=512 * MIB, description="Bytes of one multipart part.")
    parts_in_flight: int = Field(
        default=4, ge=1, le=32, description="Parts of one archive in memory: one is filled, the others are sent."
    )
    read_timeout_seconds: float = Field(
        default=60.0, gt=0, description="Without an answer for so long a request to the store is sent again."
    )
    presign_seconds: int = Field(
        default=6 * 3600, ge=60, le=7 * 24 * 3600, description="How long a signed address for a node stays valid."
    )
    lease_seconds: float = Field(
        default=60.0, ge=1, description="A run that does not renew its lease for so long counts as dead."
    )
    role_arn: str | None = Field(default=None, description="Role to assume; its keys are renewed before they expire.")
    role_external_id: str | None = Field(default=None, description="External id that the role's trust asks for.")
    web_identity_token_file: Path | None = Field(
        default=None, description="Token with which role_arn is assumed, as Kubernetes gives it; read at each renewal."
    )
    sts_endpoint_url: HttpUrl | None = Field(default=None, description="Address of the token service; absent: AWS.")
    sse: Literal["none", "AES256", "aws:kms"] = Field(
        default="none", description="Encryption by the store itself; none leaves it to the bucket's default."
    )
    sse_kms_key_id: str | None = Field(default=None, description="Key for sse aws:kms; absent: the account's own.")
    lock_mode: Literal["none", "GOVERNANCE", "COMPLIANCE"] = Field(
        default="none", description="Object Lock for archives and manifests; the bucket must have it switched on."
    )
    lock_days: int = Field(default=0, ge=0, le=36_500, description="How long lock_mode keeps them from being deleted.")
    can_delete: bool = Field(
        default=True, description="false: the keys may not delete (write-only). Nothing is pruned with them."
    )
    max_parts: int = Field(default=10_000, ge=2, le=10_000, description="Parts that the provider allows an object.")
    max_object_bytes: int = Field(
        default=5 * 1024**4, ge=5 * MIB, description="The largest object that the provider allows."
    )
    encryption: Encryption | None = Field(
        default=None, description="Encrypts archives before they leave the worker; absent: they are Qdrant's bytes."
    )

    @field_validator("prefix")
    @classmethod
    def _plain_prefix(cls, prefix: str) -> str:
        cleaned = prefix.strip("/")
        if not cleaned or any(part in ("", ".", "..") for part in cleaned.split("/")):
            msg = "must be a plain folder name such as ferry or team/ferry"
            raise ValueError(msg)
        return cleaned

    @model_validator(mode="after")
    def _keys_in_pairs(self) -> "RepositoryProfile":
        if (self.access_key is None) != (self.secret_key is None):
            msg = "access_key and secret_key go together"
            raise ValueError(msg)
        if (self.lock_mode == "none") != (self.lock_days == 0):
            msg = "lock_mode and lock_days go together"
            raise ValueError(msg)
        if self.sse_kms_key_id is not None and self.sse != "aws:kms":
            msg = "sse_kms_key_id needs sse = aws:kms"
            raise ValueError(msg)
        if self.web_identity_token_file is not None and self.role_arn is None:
            msg = "web_identity_token_file needs role_arn"
            raise ValueError(msg)
        return self

    @property
    def checksum_mode(self) -> Literal["when_required", "when_supported"]:
        """The checksum mode for boto3 and s3fs, with ``auto`` resolved."""
        if self.checksums == "auto":
            return "when_required" if self.endpoint_url else "when_supported"
        return self.checksums


class Retention(Profile):
    """Which backups are kept. A backup stays when any rule keeps it; without any rule all stay."""

    keep_last: int | None = Field(default=None, ge=1, description="The newest so many.")
    keep_within_days: float | None = Field(default=None, gt=0, description="All that are younger than this.")
    keep_daily: int = Field(default=0, ge=0, description="The newest of each of the last so many days that have one.")
    keep_weekly: int = Field(default=0, ge=0, description="The same by ISO weeks.")
    keep_monthly: int = Field(default=0, ge=0, description="The same by months.")
    keep_yearly: int = Field(default=0, ge=0, description="The same by years.")
    minimum_proven: int = Field(
        default=3, ge=1, description="So many proven backups of each collection stay, whatever the rules say."
    )
    forget_dropped_days: float | None = Field(
        default=None,
        gt=0,
        description="minimum_proven ends for a collection that newer backups have not held for so long; absent: never.",
    )
    timezone: str = Field(default="UTC", description="Whose days, weeks, months and years, such as Europe/Berlin.")
    grace_hours: float = Field(
        default=24.0,
        ge=0,
        description="A reader that has not shown itself for so long is dead; younger orphans are left alone.",
    )

    @property
    def keeps_all(self) -> bool:
        """Whether no rule is set, so that nothing is ever pruned."""
        rules = (self.keep_last, self.keep_within_days, self.keep_daily, self.keep_weekly)
        return not any((*rules, self.keep_monthly, self.keep_yearly))


class AnswerLimits(Profile):
    """How far a backup may slow its collection down. Answer times are measured on the node that makes the snapshot."""

    interval_seconds: float = Field(default=1.0, gt=0, description="Between two measurements.")
    pause_above_ms: float | None = Field(
        default=None, gt=0, description="Above it the backup slows down, then pauses until it is below again."
    )
    stop_above_ms: float | None = Field(
        default=None, gt=0, description="Above it for stop_after_seconds the run stops with a finding."
    )
    stop_after_seconds: float = Field(default=60.0, gt=0, description="How long stop_above_ms must be passed.")


class PolicyProfile(Profile):
    """How backups are made and how long they are kept: what a schedule names besides a cluster and a repository."""

    retention: Retention = Field(default_factory=Retention, description="Which backups are kept.")
    prune_after_backup: bool = Field(default=True, description="Apply the retention as the last step of a backup.")
    resume_hours: float = Field(
        default=6.0, ge=0, description="A dead run younger than this is continued by the next one; 0: never."
    )
    quiet_hours: list[QuietHours] = Field(
        default_factory=list, description="Times (08:00-18:00) in which no snapshot is begun; the backup waits."
    )
    timezone: TimeZone = Field(default="UTC", description="Whose clock quiet_hours mean, such as Europe/Berlin.")
    longest_wait_minutes: float = Field(
        default=120.0, ge=0, description="Waiting for quiet_hours or answer times to pass ends after this."
    )
    nodes_at_a_time: int | None = Field(
        default=None, ge=1, description="Nodes that make snapshots at a time; absent: worker.parallel_nodes."
    )
    node_mb_per_second: float | None = Field(
        default=None, gt=0, description="Megabytes (10^6) a second read from one node; absent: as fast as it goes."
    )
    pause_seconds: float = Field(default=0.0, ge=0, description="Rest of a node between two of its snapshots.")
    answers: AnswerLimits = Field(default_factory=AnswerLimits, description="Limits for the answer times meanwhile.")


class WorkerSettings(Profile):
    """The machine that runs the flows."""

    spool_dir: Path = Field(
        default=Path("/tmp/ferry-spool"),  # noqa: S108 - a default that exists on every worker; settable
        description="Disk for opening archives: needs about 2.2 times the largest one for each proof at a time.",
    )
    prove_from: Literal["bucket", "spool"] = Field(
        default="bucket",
        description="bucket reads every archive back before it counts; spool trusts the copy on this disk instead.",
    )
    cache_bytes: int = Field(
        default=10 << 30,
        ge=0,
        description="Disk for shards that were queried or recovered from, unpacked under spool_dir/cache; those used "
        "longest ago go first. Encrypted archives are never kept there.",
    )
    parallel_nodes: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Nodes worked on at a time; each may hold part_bytes × parts_in_flight in memory.",
    )
    parallel_proofs: int = Field(default=1, ge=1, le=16, description="Archives proven at a time on this worker.")
    sample_points: int = Field(default=64, ge=1, le=1000, description="Points a shard kept for the sample comparison.")
    upload_mb_per_second: float | None = Field(
        default=None, gt=0, description="Megabytes (10^6) a second to the bucket, all lanes together; absent: no limit."
    )
    download_mb_per_second: float | None = Field(
        default=None, gt=0, description="The same from the bucket, for proofs and for restores that upload."
    )
    runner: Literal["threads", "dask", "ray"] = Field(
        default="threads", description="Where a flow's tasks run; dask and ray need the extra of that name."
    )
    runner_address: str | None = Field(
        default=None, description="Address of the Dask scheduler or the Ray cluster; absent: one on this machine."
    )
