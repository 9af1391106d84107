"""What a key may do on a node, learnt by requests that only read.

Qdrant asks for the right before it looks for the thing. Two of its GETs need the same rights as what Ferry will do:
streaming a shard's snapshot needs "write" on the whole collection, as making one does, and reading the debugger's
settings needs the global right "manage", as recovering does (qdrant src/actix/api/snapshot_api.rs and debug_api.rs,
the same in 1.16 to 1.19). Without the right they are answered 403; measured on 1.16.3 with an api key, a read-only key
and JWTs of every kind, where DELETEs that need these rights were answered alike. No request that could change anything
is sent, and the snapshot is asked of a collection that cannot exist, so that no download begins.
"""

from uuid import uuid4

from ferry.errors import NodeRefusedError, PreflightError
from ferry.models import Value
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.http import NotFoundError
from ferry.qdrant.node import Node


class Right(Value):
    """Something that Ferry must be allowed to do, and a GET that tells; ``{name}`` cannot exist."""

    label: str
    needed_for: str
    path: str


# "write" on the collection with the whole of it; a read-only key has not got it.
SNAPSHOTS = Right(label="may make snapshots", needed_for="backups", path="/collections/{name}/shards/0/snapshot")
# The global right "manage", which a token for some collections never has: recovering, creating, aliases.
MANAGE = Right(label="may manage", needed_for="restores (recover, create, aliases)", path="/debugger")
RIGHTS = (SNAPSHOTS, MANAGE)


def require_right(cluster: Cluster, right: Right) -> None:
    """Raise PreflightError when one node refuses the cluster's key what an operation needs."""
    for node in cluster.nodes:
        if said := refusal(node, right):
            msg = f"{node.label} refuses what {right.needed_for} need: {said} Nothing was changed."
            raise PreflightError(msg, f"Set clusters.{cluster.name}.api_key to a key with the right to manage.")


def refusal(node: Node, right: Right) -> str | None:
    """What the node said when it refused the right, or None when the key has it. Changes nothing."""
    path = right.path.format(name=f"ferry-doctor-{uuid4().hex}")
    try:
        node.request("GET", path)
    except NotFoundError:
        return None
    except NodeRefusedError as error:
        return error.message.partition(": ")[2] or error.message
    return None
