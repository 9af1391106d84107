"""Keys of every kind, renewed in mid-run: both S3 clients and signed addresses go on with the new ones."""

import json
import stat
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from ferry.errors import FerryError, StoreRefusedError
from ferry.repository.store import Store
from sandbox.fault_proxy import FaultProxy
from sandbox.moto_s3 import MotoServer
from sandbox.s3 import S3Server
from tests.integration.keyed_s3 import PREFIX, ROLE, KeyedS3
from tests.integration.stores import PART, blocks_of, payload, profile, read_all

pytestmark = pytest.mark.servers


def expire(store: Store) -> None:
    """The time has come: what the store's keys say of their end is now, and botocore's own memory of them is old."""
    keys: Any = store.credentials
    if memory := getattr(getattr(keys._refresh_using, "__self__", None), "_cache", None):
        memory.clear()
    keys._expiry_time = datetime.now(UTC)


def everything_works(store: Store, folder: str) -> None:
    """Every way of asking: boto3, s3fs, archives, and an address for nodes."""
    etag = store.put_document(folder + "document", b"one")
    assert store.get_document(folder + "document") == (b"one", etag)
    store.upload(folder + "archive", [b"12345"])
    assert read_all(store, folder + "archive", 5) == b"12345"
    assert [info.key for info in store.list(folder)] == [folder + "archive", folder + "document"]
    with urllib.request.urlopen(store.presign(folder + "archive")) as answer:  # noqa: S310 - our own address
        assert answer.read() == b"12345"
    store.delete([folder + "archive", folder + "document"])


@pytest.fixture
def tokens(keyed: KeyedS3) -> Iterator[FaultProxy]:
    """The token service of the same server by a way of its own, on which requests are counted."""
    with FaultProxy(keyed.host_port) as proxy:
        yield proxy


def role(keyed: KeyedS3, tokens: FaultProxy, **changes: Any) -> Store:
    values = {"role_arn": ROLE, "sts_endpoint_url": tokens.url, "read_timeout_seconds": 15.0}
    return Store(profile(keyed, **values | changes))


def test_a_role_is_assumed_once_for_both_clients_and_renewed_when_it_ends(
    keyed: KeyedS3, tokens: FaultProxy, folder: str
) -> None:
    """In the middle of an upload, and again when all keys given out so far have become worthless."""
    store = role(keyed, tokens)
    everything_works(store, folder)
    assert len(tokens.requests) == 1
    assert store.credentials is not None
    old = store.credentials.get_frozen_credentials()
    data = payload(6 * PART)

    def blocks() -> Iterator[bytes]:
        yield from blocks_of(data[: 3 * PART])
        expire(store)
        yield from blocks_of(data[3 * PART :])

    assert store.upload(folder + "large", blocks(), expected_bytes=len(data)).bytes == len(data)
    assert read_all(store, folder + "large", len(data)) == data
    assert [line.split(" ")[:2] for line in tokens.requests] == [["POST", "/"]] * 2
    keyed.renew_tokens()
    expire(store)
    everything_works(store, folder + "after/")
    assert len(tokens.requests) == 3
    kept = {"access_key": old.access_key, "secret_key": old.secret_key, "session_token": old.token}
    stale = Store(profile(keyed, **kept))
    for ask in (lambda: stale.put_document(folder + "a", b""), lambda: list(stale.list(folder))):
        with pytest.raises(StoreRefusedError) as caught:
            ask()
        assert old.token not in str(caught.value)


def test_a_role_that_is_refused_is_named(keyed: KeyedS3, tokens: FaultProxy, folder: str) -> None:
    """By whichever client asks first, in other words than a right that is missing in the bucket."""
    for ask in (lambda store: store.put_document(folder + "a", b""), lambda store: list(store.list(folder))):
        with pytest.raises(StoreRefusedError, match="the role was not given") as caught:
            ask(role(keyed, tokens, role_arn=ROLE + "-of-nobody"))
        assert "role_arn" in (caught.value.remedy or "")


def test_a_token_service_that_is_away_is_no_refusal(
    keyed: KeyedS3, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come back."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = Store(profile(keyed, role_arn=ROLE, sts_endpoint_url="http://127.0.0.1:9"))
    with pytest.raises(FerryError, match=r"127\.0\.0\.1:9") as caught:
        store.put_document(folder + "a", b"")
    assert caught.value.transient


# Web identities


class _TokenService(ThreadingHTTPServer):
    """Gives keys for any token, and notes what it was asked; moto takes any keys, signed or not."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.signed: list[bool] = []
        super().__init__(("127.0.0.1", 0), _GiveKeys)


class _GiveKeys(BaseHTTPRequestHandler):
    server: _TokenService

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.asked.append({name: values[0] for name, values in form.items()})
        self.server.signed.append("Authorization" in self.headers)
        action, number = form["Action"][0], len(self.server.asked)
        end = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = (
            f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials>'
            f"<AccessKeyId>ASIA{number}</AccessKeyId><SecretAccessKey>secret{number}</SecretAccessKey>"
            f"<SessionToken>token{number}</SessionToken><Expiration>{end}</Expiration>"
            f"</Credentials></{action}Result></{action}Response>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quietly."""


@pytest.fixture
def service() -> Iterator[_TokenService]:
    """A token service that notes what it is asked."""
    with _TokenService() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_a_web_identity_is_read_anew_at_each_renewal(
    moto: MotoServer, service: _TokenService, tmp_path: Path, folder: str
) -> None:
    """Kubernetes replaces the token about once an hour; no other keys are needed."""
    token = tmp_path / "token"
    token.write_text("first\n")
    url = f"http://127.0.0.1:{service.server_port}"
    given = {"role_arn": "arn:aws:iam::123456789012:role/x", "web_identity_token_file": token, "sts_endpoint_url": url}
    store = Store(profile(moto, access_key=None, secret_key=None, **given))
    everything_works(store, folder)
    token.write_text("second")
    expire(store)
    everything_works(store, folder)
    assert [asked["WebIdentityToken"] for asked in service.asked] == ["first", "second"]
    assert {asked["Action"] for asked in service.asked} == {"AssumeRoleWithWebIdentity"}
    assert {asked["RoleSessionName"] for asked in service.asked} == {"ferry"}
    assert service.signed == [False, False]
    assert "Amz-Security-Token=token2" in store.presign(folder + "archive")
    token.unlink()
    expire(store)
    for ask in (lambda: store.head(folder + "document"), lambda: list(store.list(folder))):
        with pytest.raises(StoreRefusedError, match=str(token)) as caught:
            ask()
        assert "web_identity_token_file" in (caught.value.remedy or "")


def test_the_external_id_of_a_role_is_sent(moto: MotoServer, service: _TokenService, folder: str) -> None:
    """Signed by the profile's own keys."""
    url = f"http://127.0.0.1:{service.server_port}"
    given = {"role_arn": "arn:aws:iam::123456789012:role/x", "role_external_id": "ours", "sts_endpoint_url": url}
    everything_works(Store(profile(moto, **given)), folder)
    (asked,) = service.asked
    assert (asked["Action"], asked["ExternalId"]) == ("AssumeRole", "ours")
    assert service.signed == [True]


# Profiles and the AWS chain


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """AWS files and variables of this test alone; no machine's own keys."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


def test_keys_of_a_named_profile(shared_s3: S3Server, aws: Path, folder: str) -> None:
    """For both clients; a profile that is not there is named."""
    keys = f"aws_access_key_id = {shared_s3.access_key}\naws_secret_access_key = {shared_s3.secret_key}\n"
    (aws / "credentials").write_text(f"[backups]\n{keys}")
    unset = {"access_key": None, "secret_key": None}
    everything_works(Store(profile(shared_s3, aws_profile="backups", **unset)), folder)
    for missing in ({"aws_profile": "nonesuch"}, {}):
        store = Store(profile(shared_s3, **unset, **missing))
        for ask in (lambda store=store: store.put_document(folder, b""), lambda store=store: list(store.list(folder))):
            with pytest.raises(StoreRefusedError, match="there are no keys"):
                ask()


def test_keys_of_the_environment(shared_s3: S3Server, aws: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The AWS default chain, when the profile names no keys."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", shared_s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", shared_s3.secret_key)
    assert aws.is_dir()
    everything_works(Store(profile(shared_s3, access_key=None, secret_key=None)), folder)


def test_a_program_that_gives_keys_is_asked_again_when_they_end(keyed: KeyedS3, aws: Path) -> None:
    """``credential_process``: the first keys may not delete, the next ones may, so each client shows which it has."""
    held, program = aws / "held.json", aws / "give"
    program.write_text(f"#!/bin/sh\nexec cat {held}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (aws / "config").write_text(f"[profile backups]\ncredential_process = {program}\n")

    def give(name: str) -> None:
        end = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        pair = {"AccessKeyId": name, "SecretAccessKey": f"{name}-secret", "Expiration": end}
        held.write_text(json.dumps({"Version": 1, **pair}))

    give("restore-only")
    unset = {"access_key": None, "secret_key": None}
    store = Store(profile(keyed, aws_profile="backups", **unset))
    with pytest.raises(StoreRefusedError, match="no right"):
        store.put_document(f"{PREFIX}/program/a", b"1")
    assert list(store.list(f"{PREFIX}/program/")) == []
    give("full")
    expire(store)
    everything_works(store, f"{PREFIX}/program/")
