"""The keys of a repository profile: static, from the AWS chain or a named profile, or of a role that is assumed.

One object for both S3 clients, so that keys that expire are renewed once, and are the same for boto3 and s3fs. Renewal
is botocore's own: from 15 minutes before the end, and at once within the last 10 (botocore/credentials.py).
"""

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import botocore.session
from aiobotocore.credentials import AioCredentialResolver, AioCredentials
from aiobotocore.session import AioSession
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    AssumeRoleWithWebIdentityCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    Credentials,
    DeferredRefreshableCredentials,
    RefreshableCredentials,
)
from botocore.exceptions import NoCredentialsError

from ferry.errors import StoreRefusedError
from ferry.profiles import RepositoryProfile

if TYPE_CHECKING:
    from pydantic import SecretStr

_SESSION_NAME = "ferry"  # what the provider's audit log shows beside the role


def find_credentials(profile: RepositoryProfile) -> Credentials | None:
    """The keys that a profile means; None when it names none and the AWS chain has none either.

    Nothing is asked of a token service before the first request needs keys. Raises botocore's own errors.
    """
    session = botocore.session.Session(profile=profile.aws_profile)
    if profile.role_arn is None:
        return _own(profile, session)
    create_client = partial(
        session.create_client,
        region_name=profile.region,
        endpoint_url=profile.sts_endpoint_url,
        verify=str(profile.ca_file) if profile.ca_file and profile.sts_endpoint_url else None,
    )
    arguments = {"RoleSessionName": _SESSION_NAME}
    if profile.role_external_id is not None:
        arguments["ExternalId"] = profile.role_external_id
    fetcher: AssumeRoleCredentialFetcher | AssumeRoleWithWebIdentityCredentialFetcher
    if profile.web_identity_token_file is not None:
        fetcher = AssumeRoleWithWebIdentityCredentialFetcher(
            create_client,
            partial(_read_token, profile.web_identity_token_file),
            profile.role_arn,
            extra_args={"RoleSessionName": _SESSION_NAME},
        )
    else:
        source = _own(profile, session)
        if source is None:
            raise NoCredentialsError
        fetcher = AssumeRoleCredentialFetcher(create_client, source, profile.role_arn, extra_args=arguments)
    return DeferredRefreshableCredentials(refresh_using=fetcher.fetch_credentials, method="ferry-role")


def _own(profile: RepositoryProfile, session: botocore.session.Session) -> Credentials | None:
    if profile.access_key is None or profile.secret_key is None:
        return session.get_credentials()
    return Credentials(
        profile.access_key.get_secret_value(), profile.secret_key.get_secret_value(), _revealed(profile.session_token)
    )


def _revealed(secret: "SecretStr | None") -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _read_token(file: Path) -> str:
    """Anew at each renewal, because Kubernetes replaces the token. botocore's own reader would raise FileNotFoundError,
    which at that place would be taken for a missing object."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        msg = f"The token file {file} cannot be read: {error.strerror}."
        remedy = "Correct web_identity_token_file of the repository profile, then run: python -m ferry doctor"
        raise StoreRefusedError(msg, remedy) from None


class _Given(CredentialProvider):
    """Hands a session keys that were found already."""

    METHOD = "ferry"

    def __init__(self, credentials: Any) -> None:
        super().__init__()
        self._credentials = credentials

    def load(self) -> Any:
        return self._credentials


class _GivenToAio(_Given):
    async def load(self) -> Any:
        return self._credentials


class _SharedCredentials(AioCredentials):  # type: ignore[misc] # aiobotocore has no types
    """The same keys for aiobotocore, which asks for them before each request; renewing blocks, so it gets a thread."""

    def __init__(self, shared: Credentials) -> None:
        super().__init__("renewed", "renewed")
        self._shared = shared

    async def get_frozen_credentials(self) -> Any:
        if isinstance(self._shared, RefreshableCredentials):
            return await asyncio.to_thread(self._shared.get_frozen_credentials)
        return self._shared.get_frozen_credentials()


def boto_session(profile: RepositoryProfile, credentials: Credentials | None) -> botocore.session.Session:
    """A session for boto3 with just these keys; the rest of a named AWS profile counts as ever."""
    session = botocore.session.Session(profile=profile.aws_profile)
    session.register_component("credential_provider", CredentialResolver([_Given(credentials)]))
    return session


def s3fs_session(profile: RepositoryProfile, credentials: Credentials | None) -> Any:
    """The same for s3fs."""
    session = AioSession(profile=profile.aws_profile)
    shared = _SharedCredentials(credentials) if credentials is not None else None
    session.register_component("credential_provider", AioCredentialResolver([_GivenToAio(shared)]))
    return cast("Any", session)
