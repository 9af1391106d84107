"""Take signatures, keys and passwords out of text that Qdrant or httpx wrote, before anybody reads it."""

import re

# Qdrant echoes the whole presigned URL, signature included, when it cannot fetch it (seen on 1.16.3); cutting every
# query string also covers the signatures of stores that name them otherwise.
_QUERY = re.compile(r"(https?://[^\s?#\"'<>]*)[?#][^\s\"'<>]*", re.IGNORECASE)
_USER = re.compile(r"(https?://)[^\s/@\"']+@", re.IGNORECASE)
# A signed query that is not part of a whole URL: a path alone, or one that was cut or percent-encoded on the way.
_SIGNED = re.compile(
    r"\b(X-Amz-[\w-]+|X-Goog-[\w-]+|AWSAccessKeyId|Signature|sig|api[-_]key)(=|%3D)[^\s&\"'<>)]*", re.IGNORECASE
)


def redact(text: str, secret: str | None = None) -> str:
    """The text with every URL cut to its path, signed parameters emptied and ``secret`` replaced."""
    if secret:
        text = text.replace(secret, "[key]")
    text = _USER.sub(r"\1", _QUERY.sub(r"\1", text))
    return _SIGNED.sub(r"\1=…", text)
