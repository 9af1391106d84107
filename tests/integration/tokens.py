"""Clusters that take tokens with rights of their own (JWT), and such tokens."""

import base64
import hmac
import json
from typing import Any

from sandbox.qdrant import NodePlace, QdrantCluster

API_KEY = "an-api-key-that-is-long-enough-to-sign"


class TokenCluster(QdrantCluster):
    """Nodes behind API_KEY that also take tokens."""

    def __init__(self, nodes: int, **options: Any) -> None:
        super().__init__(nodes=nodes, api_key=API_KEY, **options)

    def _env(self, place: NodePlace) -> dict[str, str]:
        return {**super()._env(place), "QDRANT__SERVICE__JWT_RBAC": "true"}


def token(claims: dict[str, object]) -> str:
    """A token as Qdrant's documentation describes it: HS256 with the API key."""

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    text = ".".join(encoded(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{text}.{encoded(hmac.digest(API_KEY.encode(), text.encode(), 'sha256'))}"
