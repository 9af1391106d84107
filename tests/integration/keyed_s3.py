"""A real S3 server (SeaweedFS) with several kinds of keys, a token service, Object Lock, certificates, host names."""

import base64
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self

from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sandbox.process import LOOPBACK
from sandbox.s3 import S3Server, loopback_client

PREFIX = "guarded"
DOMAIN = "s3.test"
ROLE = "arn:aws:iam::000000000000:role/backup"
_PAGE = Path(__file__).parents[2] / "docs" / "stores.md"
_TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": ["sts:AssumeRole"]}],
}


def documented_policy(name: str) -> dict[str, Any]:
    """A policy as docs/stores.md has it, for bucket ``ferry`` and prefix ``guarded``."""
    found = re.search(rf"<!-- policy: {name} -->\n```json\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert found is not None, f"docs/stores.md has no policy {name}"
    text = found[1].replace("BUCKET/ferry/", f"BUCKET/{PREFIX}/").replace("BUCKET", "ferry")
    return dict(json.loads(text))


class KeyedS3(S3Server):
    """Keys ``write-only`` and ``restore-only`` with the documented policies, and a role."""

    signing_key = b"k" * 32

    def __init__(self) -> None:
        super().__init__(buckets=())

    def start(self, timeout_seconds: float = 60) -> Self:
        """Start it, and make the bucket with Object Lock (and with it versions) when there is none."""
        super().start(timeout_seconds)
        client = self.client()
        self.process.wait_ready(lambda: self._made(client), timeout_seconds)
        client.close()
        return self

    def _made(self, client: Any) -> bool:
        """Right after its start a server may not yet have a volume to write to."""
        try:
            if not client.list_buckets()["Buckets"]:
                client.create_bucket(Bucket="ferry", ObjectLockEnabledForBucket=True)
            client.put_object(Bucket="ferry", Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    def keys(self, name: str) -> dict[str, str]:
        """Settings of a repository profile for one of the limited identities."""
        return {"access_key": name, "secret_key": f"{name}-secret"}

    def renew_tokens(self) -> None:
        """Start anew with another signing key: whatever keys its token service has given out so far are worthless."""
        self.signing_key = bytes([self.signing_key[0] + 1]) * 32
        self.restart()

    def _command(self) -> tuple[str, ...]:
        command = [part for part in super()._command() if not part.startswith("-s3.iam=")]
        return (*command, f"-s3.iam.config={self.folder / 'iam.json'}", f"-s3.domainName={DOMAIN}")

    def _write_identities(self) -> None:
        # SSE-S3 needs a key of the server's own.
        self.process.launch = replace(self.process.launch, env={"WEED_S3_SSE_KEK": "00" * 32})
        full = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            {
                "name": "ferry",
                "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
                "actions": full,
            }
        ]
        names = ("full", "write-only", "restore-only")
        for name in names:
            pair = {"accessKey": name, "secretKey": f"{name}-secret"}
            identities.append({"name": name, "credentials": [pair], "actions": [], "policyNames": [name]})
        policies = [{"name": name, "content": json.dumps(documented_policy(name))} for name in names]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities, "policies": policies}))
        everything = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]}],
        }
        tokens = {
            "tokenDuration": "1h",
            "maxSessionLength": "12h",
            "issuer": "ferry-test",
            "signingKey": base64.b64encode(self.signing_key).decode(),
        }
        role = {"roleName": "backup", "roleArn": ROLE, "trustPolicy": _TRUST, "attachedPolicies": ["everything"]}
        iam = {
            "sts": tokens,
            "policies": [{"name": "everything", "document": everything}],
            "roles": [role],
            "policy": {"defaultEffect": "Allow"},
        }
        (self.folder / "iam.json").write_text(json.dumps(iam))


class Authority:
    """A certificate authority of our own, and a server certificate for loopback signed by it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self._name, self._key.public_key(), authority=True)
        self.ca_file = folder / f"{name}.pem"
        self.ca_file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        key = ec.generate_private_key(ec.SECP256R1())
        server = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, LOOPBACK)]), key.public_key())
        self.cert_file, self.key_file = folder / f"{name}-server.pem", folder / f"{name}-server.key"
        self.cert_file.write_bytes(server.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        self.key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, authority: bool = False) -> x509.Certificate:
        moment = datetime.now(UTC)
        building = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - timedelta(hours=1))
            .not_valid_after(moment + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK)), x509.DNSName("localhost")])
        building = building.add_extension(names, critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return building.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())


class TlsS3(S3Server):
    """The same server behind a certificate of a private authority."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.authority = authority
        super().__init__(folder=folder)

    @property
    def endpoint_url(self) -> str:
        return f"https://{LOOPBACK}:{self._ports['s3']}"

    def client(self, endpoint_url: str | None = None) -> Any:
        """A client that trusts the authority."""
        keys = (self.access_key, self.secret_key)
        return loopback_client("s3", endpoint_url or self.endpoint_url, keys, self.authority.ca_file)

    def _command(self) -> tuple[str, ...]:
        files = (f"-s3.cert.file={self.authority.cert_file}", f"-s3.key.file={self.authority.key_file}")
        return (*super()._command(), *files)
