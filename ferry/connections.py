"""The clients that a job needs, made from profile names: a repository, and for most jobs a cluster with it."""

from dataclasses import dataclass
from functools import lru_cache

from ferry.models import BackupId
from ferry.profiles import RepositoryProfile, WorkerSettings
from ferry.qdrant.cluster import Cluster
from ferry.repository.catalog import Catalog
from ferry.repository.journal import Journal
from ferry.repository.layout import Keys
from ferry.repository.store import Store
from ferry.settings import load_settings


@dataclass(frozen=True)
class Repository:
    """Open clients of one repository; safe to use from several threads."""

    profile: RepositoryProfile
    worker: WorkerSettings
    store: Store
    keys: Keys
    catalog: Catalog


@dataclass(frozen=True)
class Connections(Repository):
    """Open clients of one repository and one cluster."""

    cluster: Cluster

    def journal(self, run_id: BackupId) -> Journal:
        """The durable record of what a run may leave behind."""
        return Journal(self.store, self.keys, self.cluster.name, run_id)


@lru_cache(maxsize=32)
def connect_repository(name: str) -> Repository:
    """The clients of a repository profile, kept for the life of the process: boto3 clients are slow to make.

    Raises ConfigurationError for an unknown name, before anything is asked.
    """
    settings = load_settings()
    profile = settings.repository(name)
    store, keys = Store(profile), Keys(profile.prefix)
    return Repository(profile, settings.worker, store, keys, Catalog(store, keys))


@lru_cache(maxsize=32)
def connect(cluster: str, repository: str) -> Connections:
    """The clients of two profiles. Raises ConfigurationError for an unknown name, before anything is asked."""
    profile = load_settings().cluster(cluster)
    base = connect_repository(repository)
    opened = Cluster(cluster, profile)
    _clusters.append(opened)
    return Connections(base.profile, base.worker, base.store, base.keys, base.catalog, cluster=opened)


_clusters: list[Cluster] = []


def forget_connections() -> None:
    """Close every client and forget the settings, so that the next call reads and makes them anew."""
    while _clusters:
        _clusters.pop().close()
    for cached in (load_settings, connect_repository, connect):
        cached.cache_clear()
