"""What a key may do on a node, learnt without doing it.

Qdrant asks for the right before it looks for the thing. So a request that names what cannot exist is answered 403 where
the right is missing, and 404 where it is there (measured on 1.16.3 with an api key, a read-only key and JWTs of every
kind). Only DELETEs are sent: should a name exist against all odds, no snapshot is made and no download begins.
"""

from uuid import uuid4

from ferry.errors import NodeRefusedError, PreflightError
from ferry.models import Value
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.http import NotFoundError
from ferry.qdrant.node import Node


class Right(Value):
    """Something that Ferry must be allowed to do, and a request that tells; ``{name}`` cannot exist."""

    label: str
    needed_for: str
    path: str


# "write" on the collection with the whole of it; a read-only key has not got it.
SNAPSHOTS = Right(
    label="may make snapshots",
    needed_for="backups",
    path="/collections/{name}/shards/0/snapshots/{name}.snapshot",
)
# The global right "manage", which a token for some collections never has: recovering, creating, aliases.
MANAGE = Right(label="may manage", needed_for="restores (recover, create, aliases)", path="/snapshots/{name}.snapshot")
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
        node.request("DELETE", path)
    except NotFoundError:
        return None
    except NodeRefusedError as error:
        return error.message.partition(": ")[2] or error.message
    return None
