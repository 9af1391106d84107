"""What the trials of a bucket have shown, kept with the repository: tried again when settings change, or after a month.

Only what passed is kept: a bucket that failed is tried again each time, because the operator repairs it.
"""

import hashlib
import logging
from datetime import datetime, timedelta
from typing import Literal

import orjson
from pydantic import Field, ValidationError

from ferry.errors import BackupNotFoundError, StoreUnavailableError
from ferry.models import Value, now
from ferry.profiles import RepositoryProfile
from ferry.repository.layout import Keys
from ferry.repository.probe import ProbeResult, require_conforming
from ferry.repository.records import Record
from ferry.repository.store import Store

_log = logging.getLogger(__name__)

GOOD_FOR = timedelta(days=30)


class Tried(Value):
    """One time that the bucket passed, with the settings that matter for it; no secret is among them."""

    at: datetime
    settings: dict[str, str | bool | None]
    results: tuple[ProbeResult, ...]


class Conformance(Record):
    """conformance.json: what passed, by a fingerprint of the settings. Workers with other keys have other ones."""

    format_version: Literal[1] = 1
    tried: dict[str, Tried] = Field(default_factory=dict)


def ensure_conforming(store: Store, keys: Keys) -> Tried:
    """See to it that the bucket has passed its trials with these settings within the last 30 days.

    Raises StoreRefusedError when it fails one. When it is busy or away meanwhile that says nothing: an older result
    then counts until the next time, and without one StoreUnavailableError is raised.
    """
    known = read_conformance(store, keys)
    if (held := passed(known, store.profile)) is not None:
        return held
    try:
        results = require_conforming(store)
    except StoreUnavailableError as error:
        if (older := known.tried.get(_fingerprint(store.profile))) is None:
            raise
        _log.warning("The trials of %s count for now: %s", f"{older.at:%Y-%m-%d}", error.message)
        return older
    fresh = Tried(at=now(), settings=settings_that_matter(store.profile), results=tuple(results))
    kept = {mark: tried for mark, tried in known.tried.items() if _recent(tried)}
    document = Conformance(tried=kept | {_fingerprint(store.profile): fresh})
    # Two that do so at a time may lose one of both results: then there is one more trial.
    store.put_document(keys.conformance, document.to_bytes())
    _log.info("The bucket of %s passed %d trials.", keys.prefix, len(fresh.results))
    return fresh


def read_conformance(store: Store, keys: Keys) -> Conformance:
    """What is kept; nothing where there is none, or none that this Ferry understands."""
    try:
        return Conformance.model_validate_json(store.get_document(keys.conformance)[0])
    except (BackupNotFoundError, ValidationError):
        return Conformance()


def passed(known: Conformance, profile: RepositoryProfile) -> Tried | None:
    """When the bucket passed with the settings of this profile, unless that is too long ago."""
    held = known.tried.get(_fingerprint(profile))
    return held if held is not None and _recent(held) else None


def settings_that_matter(profile: RepositoryProfile) -> dict[str, str | bool | None]:
    """Those settings on which it depends what the store does."""
    return {
        "bucket": profile.bucket,
        "endpoint_url": profile.endpoint_url,
        "node_endpoint_url": profile.node_endpoint_url,
        "addressing_style": profile.addressing_style,
        "checksums": profile.checksum_mode,
        "role_arn": profile.role_arn,
        "sse": profile.sse,
        "sse_kms_key_id": profile.sse_kms_key_id,
        "lock_mode": profile.lock_mode,
        "can_delete": profile.can_delete,
    }


def _fingerprint(profile: RepositoryProfile) -> str:
    document = orjson.dumps(settings_that_matter(profile), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(document).hexdigest()[:16]


def _recent(tried: Tried) -> bool:
    return abs(now() - tried.at) < GOOD_FOR  # a time to come is of a clock that was wrong
