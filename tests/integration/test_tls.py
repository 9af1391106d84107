"""Private authorities, bucket host names, and clocks: how a store is reached, and what is said when it is not."""

import socket
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import pytest

from ferry.connections import connect_repository
from ferry.errors import ConfigurationError, StoreRefusedError
from ferry.models import now
from ferry.repository import refusals, store
from ferry.repository.probe import probe
from ferry.repository.store import Store
from sandbox.s3 import S3Server
from tests.integration.keyed_s3 import DOMAIN, Authority, KeyedS3, TlsS3
from tests.integration.stores import profile

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private authority."""
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(scope="module")
def tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsS3]:
    """A server whose certificate it signed."""
    with TlsS3(tmp_path_factory.mktemp("tls"), authority) as server:
        yield server


def asks(asked: Store) -> list[Any]:
    """Both clients."""
    return [lambda: asked.put_document("a", b"1"), lambda: list(asked.list("a/"))]


def test_a_private_authority_is_trusted_when_it_is_named(tls: TlsS3, authority: Authority) -> None:
    """By both clients, and by the trial of a signed address."""
    results = probe(Store(profile(tls, ca_file=authority.ca_file)))
    assert [result for result in results if not result.ok] == []


def test_another_authority_is_refused_by_name(tls: TlsS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not taken for a store that is away."""
    monkeypatch.setattr(store, "REQUEST_ATTEMPTS", 1)
    for settings in ({"ca_file": Authority(tmp_path, "theirs").ca_file}, {}):
        for ask in asks(Store(profile(tls, **settings))):
            with pytest.raises(StoreRefusedError, match="certificate is not trusted") as caught:
                ask()
            assert "ca_file" in (caught.value.remedy or "")
            assert not caught.value.transient


def test_a_file_that_is_not_there_or_no_certificate_is_refused_before_anything(
    tls: TlsS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the settings' own words; no server is asked."""
    other = tmp_path / "other.pem"
    other.write_text("not a certificate")
    with pytest.raises(ConfigurationError, match="no certificate"):
        Store(profile(tls, ca_file=other))
    missing = tmp_path / "missing.pem"
    with pytest.raises(ConfigurationError, match=str(missing)):
        Store(profile(tls, ca_file=missing))
    config = tmp_path / "ferry.toml"
    config.write_text(f'[repositories.main]\nbucket = "ferry"\nca_file = "{missing}"\n')
    monkeypatch.setenv("FERRY_CONFIG", str(config))
    with pytest.raises(ConfigurationError, match=str(missing)):
        connect_repository("main")


# Addresses


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names under s3.test are this machine; the names that were asked for."""
    asked: list[str] = []
    original = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name.endswith(DOMAIN):
            asked.append(name)
            host = "127.0.0.1"
        return original(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


@pytest.mark.parametrize(("style", "host"), [("virtual", f"ferry.{DOMAIN}"), ("path", DOMAIN), ("auto", DOMAIN)])
def test_addresses_of_either_style_work(keyed: KeyedS3, resolved: list[str], style: str, host: str) -> None:
    """The bucket in the name of the host, or in the path; for requests of both clients and for signed addresses."""
    reached = Store(profile(keyed, f"http://{DOMAIN}:{keyed.host_port[1]}", addressing_style=style))
    assert [result for result in probe(reached) if not result.ok] == []
    assert set(resolved) == {host}
    address = urlsplit(reached.presign("a"))
    assert (address.hostname, address.path) == (host, "/a" if style == "virtual" else "/ferry/a")


# Clocks


@pytest.mark.parametrize(("shift", "side"), [(1200, "ahead of"), (-1200, "behind")])
def test_a_clock_that_is_off_is_named_with_its_seconds(
    shared_s3: S3Server, monkeypatch: pytest.MonkeyPatch, shift: int, side: str
) -> None:
    """For every verb, a HEAD too, to which the store gives no reason."""
    real = botocore.auth.get_current_datetime

    def shifted(remove_tzinfo: bool = True) -> datetime:
        return real(remove_tzinfo) + timedelta(seconds=shift)

    monkeypatch.setattr(botocore.auth, "get_current_datetime", shifted)
    monkeypatch.setattr(refusals, "now", lambda: now() + timedelta(seconds=shift))
    skewed = Store(profile(shared_s3))
    for ask in (*asks(skewed), lambda: skewed.head("a"), lambda: skewed.get_document("a")):
        with pytest.raises(StoreRefusedError, match=rf"clock is 1(199|200|201) s {side} the store's") as caught:
            ask()
        assert "NTP" in (caught.value.remedy or "")


def test_wrong_keys_are_not_taken_for_a_wrong_clock(shared_s3: S3Server) -> None:
    """A HEAD that is refused by a store whose clock is ours."""
    with pytest.raises(StoreRefusedError, match="the keys are wrong"):
        Store(profile(shared_s3, secret_key="wrong")).head("a")
