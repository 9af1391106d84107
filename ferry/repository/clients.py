"""The two S3 clients of a repository profile, set up alike: signature v4, checksum mode, addressing, time limits."""

import logging
from typing import TYPE_CHECKING, Any

import boto3
import s3fs
from botocore.config import Config
from botocore.credentials import Credentials

from ferry.profiles import RepositoryProfile
from ferry.repository.credentials import boto_session, s3fs_session

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_SECONDS = 10.0
# One more than the lanes of a large run need at a time (8 nodes x 4 parts); beyond it connections are thrown away.
_POOL_CONNECTIONS = 64

# At DEBUG these print whole signed requests and presigned addresses, session token included: never into our logs.
for _name in ("botocore.auth", "botocore.endpoint", "botocore.credentials", "aiobotocore.endpoint"):
    logging.getLogger(_name).setLevel(logging.INFO)


def boto_client(
    profile: RepositoryProfile, credentials: Credentials | None, attempts: int, endpoint_url: str | None = None
) -> "S3Client":
    """A boto3 client for that profile that sends a request at most ``attempts`` times (botocore's standard mode)."""
    session = boto3.session.Session(botocore_session=boto_session(profile, credentials))
    return session.client(
        "s3",
        endpoint_url=endpoint_url or profile.endpoint_url,
        region_name=profile.region,
        verify=str(profile.ca_file) if profile.ca_file else None,
        config=Config(**_config(profile, attempts)),
    )


def s3fs_client(profile: RepositoryProfile, credentials: Credentials | None, attempts: int) -> s3fs.S3FileSystem:
    """An s3fs file system for that profile, without any cache: what it lists must be what there is now."""
    arguments: dict[str, Any] = {"region_name": profile.region}
    if profile.ca_file:
        arguments["verify"] = str(profile.ca_file)
    files = s3fs.S3FileSystem(
        endpoint_url=profile.endpoint_url,
        session=s3fs_session(profile, credentials),
        client_kwargs=arguments,
        config_kwargs=_config(profile, attempts),
        use_listings_cache=False,
        skip_instance_cache=True,
        default_cache_type="none",
    )
    files.retries = 1  # botocore below it retries already; two layers would multiply
    return files


def _config(profile: RepositoryProfile, attempts: int) -> dict[str, Any]:
    style = profile.addressing_style
    if style == "auto" and profile.endpoint_url:
        style = "path"  # few servers other than AWS have a wildcard name for their buckets
    return {
        "signature_version": "s3v4",
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "read_timeout": profile.read_timeout_seconds,
        "retries": {"mode": "standard", "total_max_attempts": attempts},
        "max_pool_connections": _POOL_CONNECTIONS,
        "request_checksum_calculation": profile.checksum_mode,
        "response_checksum_validation": profile.checksum_mode,
        # Every write carries a signed Content-MD5. Hashing the body once more for the signature costs a core, and
        # SeaweedFS 4.48 does not even compare that hash.
        "s3": {"addressing_style": style, "payload_signing_enabled": False},
    }
