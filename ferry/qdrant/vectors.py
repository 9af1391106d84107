"""The vectors of a collection by its configuration: what is stored under which name. Pure."""

from collections.abc import Mapping
from typing import Any, Literal

from ferry.models import Value


class VectorShape(Value):
    """What a vector of one name must be like; sparse ones have no size, distance or datatype of their own."""

    kind: Literal["dense", "multivector", "sparse"]
    size: int | None = None
    distance: str | None = None
    datatype: str = "float32"

    @property
    def words(self) -> str:
        """As an operator says it: ``dense, 768 × float32, Cosine``."""
        return self.kind if self.kind == "sparse" else f"{self.kind}, {self.size} × {self.datatype}, {self.distance}"

    @property
    def nearest_first(self) -> bool:
        """Whether the smallest score is the best: distances are small where similarities are large."""
        return self.distance in ("Euclid", "Manhattan")

    def problem(self, vector: Any) -> str | None:
        """Why a vector, as Qdrant's REST API takes it, is none of this shape; None when it is one."""
        if self.kind == "sparse":
            return _sparse_problem(vector)
        rows = vector if self.kind == "multivector" and vector and isinstance(vector, list) else [vector]
        fits = all(isinstance(row, list) and len(row) == self.size and _numbers(row) for row in rows)
        return None if fits else f"{'rows of ' if self.kind == 'multivector' else ''}{self.size} numbers"


def vectors_of(config: Mapping[str, Any]) -> dict[str, VectorShape]:
    """The shape of each vector by its name, out of ``GET /collections/{c}``'s ``config``; "" is the unnamed one."""
    params = config["params"]
    dense = params.get("vectors") or {}
    shapes = {name: _dense(vector) for name, vector in ({"": dense} if "size" in dense else dense).items()}
    return shapes | {name: VectorShape(kind="sparse") for name in params.get("sparse_vectors") or {}}


def _dense(vector: Mapping[str, Any]) -> VectorShape:
    return VectorShape(
        kind="multivector" if vector.get("multivector_config") else "dense",
        size=vector["size"],
        distance=vector["distance"],
        datatype=vector.get("datatype") or "float32",
    )


def _sparse_problem(vector: Any) -> str | None:
    if (
        not isinstance(vector, dict)
        or vector.keys() != {"indices", "values"}
        or not all(map(_numbers, vector.values()))
    ):
        return "indices and values"
    return None if len(vector["indices"]) == len(vector["values"]) else "as many indices as values"


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)
