"""A collection's configuration, as Qdrant shows it, for the engine that builds its shards; and what cannot be built.

A segment that has otherwise than its collection is rebuilt by the target's optimizers, so everything that decides that
(graph, quantization, where vectors and payload lie, payload indexes) is carried over exactly or refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import qdrant_edge as edge

from ferry.migration.changed_config import dense_vectors, sparse_vectors
from ferry.qdrant.versions import parse

Json = Mapping[str, Any]
# What 0.9.0 of the engine writes is read by these; older ones have other storages (qdrant.md §4).
OLDEST = (1, 16)

_DISTANCES = {name: getattr(edge.Distance, name) for name in ("Cosine", "Euclid", "Dot", "Manhattan")}
_DATATYPES = {
    "float32": edge.VectorStorageDatatype.Float32,
    "float16": edge.VectorStorageDatatype.Float16,
    "uint8": edge.VectorStorageDatatype.Uint8,
}
_COMPRESSIONS = {name.lower(): getattr(edge.CompressionRatio, name) for name in ("X4", "X8", "X16", "X32", "X64")}
_ENCODINGS = {
    "one_bit": edge.BinaryQuantizationEncoding.OneBit,
    "two_bits": edge.BinaryQuantizationEncoding.TwoBits,
    "one_and_half_bits": edge.BinaryQuantizationEncoding.OneAndHalfBits,
}
_QUERY_ENCODINGS = {
    "default": edge.BinaryQuantizationQueryEncoding.Default,
    "binary": edge.BinaryQuantizationQueryEncoding.Binary,
    "scalar4bits": edge.BinaryQuantizationQueryEncoding.Scalar4Bits,
    "scalar8bits": edge.BinaryQuantizationQueryEncoding.Scalar8Bits,
}
_TOKENIZERS = {
    name.lower(): getattr(edge.TokenizerType, name) for name in ("Prefix", "Whitespace", "Word", "Multilingual")
}
_LANGUAGES = {name.lower(): getattr(edge.Language, name) for name in dir(edge.Language) if name[0].isupper()}
_STEMMERS = {
    name.lower(): getattr(edge.SnowballLanguage, name) for name in dir(edge.SnowballLanguage) if name[0].isupper()
}
_HNSW = ("m", "ef_construct", "full_scan_threshold", "max_indexing_threads", "on_disk", "payload_m", "inline_storage")
_KNOWN = {
    "vector": {"size", "distance", "on_disk", "multivector_config", "datatype", "quantization_config", "hnsw_config"},
    "sparse": {"modifier", "index"},
    "sparse index": {"full_scan_threshold", "on_disk", "datatype"},
    "scalar": {"type", "quantile", "always_ram"},
    "product": {"compression", "always_ram"},
    "binary": {"always_ram", "encoding", "query_encoding"},
}
_OWN = {"on_disk", "enable_hnsw"}
_INDEXES: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "keyword": (edge.KeywordIndexParams, _OWN | {"is_tenant"}),
    "integer": (edge.IntegerIndexParams, _OWN | {"lookup", "range", "is_principal"}),
    "float": (edge.FloatIndexParams, _OWN | {"is_principal"}),
    "geo": (edge.GeoIndexParams, _OWN),
    "text": (
        edge.TextIndexParams,
        _OWN
        | {"tokenizer", "min_token_len", "max_token_len", "lowercase", "ascii_folding", "phrase_matching"}
        | {"stopwords", "stemmer"},
    ),
    "bool": (edge.BoolIndexParams, _OWN),
    "datetime": (edge.DatetimeIndexParams, _OWN | {"is_principal"}),
    "uuid": (edge.UuidIndexParams, _OWN | {"is_tenant"}),
}


def obstacles(config: Json, payload_schema: Json, versions: tuple[str, ...]) -> list[str]:
    """Why finished shards of such a collection cannot be built for nodes of these versions; empty when they can."""
    found = [f"a node has Qdrant {each}" for each in versions if parse(each)[:2] < OLDEST]
    for name, vector in dense_vectors(config).items():
        found += [f"vector {name!r}: {problem}" for problem in _vector_problems(vector)]
    for name, sparse in sparse_vectors(config).items():
        index = sparse.get("index") or {}
        problems = [*_unknown("sparse", sparse), *_unknown("sparse index", index)]
        if sparse.get("modifier") not in (None, "none", "idf"):
            problems.append(f"modifier {sparse['modifier']}")
        if index.get("datatype") not in (None, *_DATATYPES):
            problems.append(f"datatype {index['datatype']}")
        found += [f"sparse vector {name!r}: {problem}" for problem in problems]
    found += _quantization_problems(config.get("quantization_config"))
    found += _hnsw_problems(config.get("hnsw_config") or {})
    for field, info in payload_schema.items():
        found += [f"payload index {field!r}: {problem}" for problem in _index_problems(info)]
    return found


def engine_config(config: Json) -> edge.EdgeConfig:
    """The configuration of a shard of that collection, which `obstacles` has nothing against.

    A graph is built whatever the shard's size, so that the target finds nothing left to do; a write-ahead log is not
    needed, because a shard that was not finished is built again.
    """
    params, graph = config["params"], config["hnsw_config"]
    everything = config.get("quantization_config")
    return edge.EdgeConfig(
        vectors={name: _vector(vector, graph, everything) for name, vector in dense_vectors(config).items()},
        sparse_vectors={name: _sparse(sparse) for name, sparse in sparse_vectors(config).items()},
        on_disk_payload=params.get("on_disk_payload"),
        hnsw_config=_hnsw(graph),
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
        wal_enabled=False,
    )


def field_index(info: Json) -> Any:
    """A payload index as the engine takes it, of an entry of a captured ``payload_schema``."""
    params = {key: value for key, value in (info.get("params") or {}).items() if value is not None}
    if not params:
        return getattr(edge.PayloadSchemaType, str(info["data_type"]).capitalize())
    make, _ = _INDEXES[str(info["data_type"])]
    params.pop("type", None)
    if "tokenizer" in params:
        params["tokenizer"] = _TOKENIZERS[params["tokenizer"]]
    if "stopwords" in params:
        params["stopwords"] = _stopwords(params["stopwords"])
    if "stemmer" in params:
        params["stemmer"] = edge.SnowballParams(_STEMMERS[params["stemmer"]["language"]])
    return make(**params)


def _stopwords(document: str | Json) -> Any:
    if isinstance(document, str):
        return _LANGUAGES[document]
    languages = {_LANGUAGES[name] for name in document.get("languages") or ()}
    return edge.StopwordsSet(languages=languages, custom=set(document.get("custom") or ()))


def _vector(vector: Json, graph: Json, everything: Json | None) -> edge.EdgeVectorParams:
    comparator = (vector.get("multivector_config") or {}).get("comparator")
    datatype = vector.get("datatype")
    return edge.EdgeVectorParams(
        size=vector["size"],
        distance=_DISTANCES[vector["distance"]],
        on_disk=vector.get("on_disk"),
        multivector_config=comparator and edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
        datatype=datatype and _DATATYPES[datatype],
        quantization_config=_quantization(vector.get("quantization_config") or everything),
        hnsw_config=_hnsw({**graph, **_given(vector.get("hnsw_config") or {})}),
    )


def _sparse(sparse: Json) -> edge.EdgeSparseVectorParams:
    index = sparse.get("index") or {}
    datatype = index.get("datatype")
    return edge.EdgeSparseVectorParams(
        full_scan_threshold=index.get("full_scan_threshold"),
        on_disk=index.get("on_disk"),
        modifier=edge.Modifier.Idf if sparse.get("modifier") == "idf" else None,
        datatype=datatype and _DATATYPES[datatype],
    )


def _hnsw(graph: Json) -> edge.HnswIndexConfig:
    return edge.HnswIndexConfig(**{"max_indexing_threads": 0} | {key: graph[key] for key in _HNSW if key in graph})


def _quantization(document: Json | None) -> Any:
    if not document:
        return None
    [(kind, given)] = document.items()
    if kind == "scalar":
        quantile, in_ram = given.get("quantile"), given.get("always_ram")
        return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=quantile, always_ram=in_ram)
    if kind == "product":
        return edge.ProductQuantizationConfig(_COMPRESSIONS[given["compression"]], always_ram=given.get("always_ram"))
    encoding, query = given.get("encoding"), given.get("query_encoding")
    return edge.BinaryQuantizationConfig(
        always_ram=given.get("always_ram"),
        encoding=encoding and _ENCODINGS[encoding],
        query_encoding=query and _QUERY_ENCODINGS[query],
    )


def _vector_problems(vector: Json) -> Iterator[str]:
    yield from _unknown("vector", vector)
    if vector["distance"] not in _DISTANCES:
        yield f"distance {vector['distance']}"
    if vector.get("datatype") not in (None, *_DATATYPES):
        yield f"datatype {vector['datatype']}"
    if (vector.get("multivector_config") or {}).get("comparator") not in (None, "max_sim"):
        yield "the way its multivectors are compared"
    yield from _quantization_problems(vector.get("quantization_config"))
    yield from _hnsw_problems(vector.get("hnsw_config") or {})


def _hnsw_problems(graph: Json) -> list[str]:
    """``inline_storage`` is one: the engine keeps such vectors as ``GraphInline``, which 1.16.3 cannot read."""
    known = [key for key in _HNSW if key != "inline_storage" or not graph.get(key)]
    return [f"setting hnsw_config.{key}" for key in _left_over(graph, known)]


def _quantization_problems(document: Json | None) -> list[str]:
    found = []
    for kind, given in _given(document or {}).items():
        if kind not in ("scalar", "product", "binary"):
            found.append(f"{kind} quantization")
            continue
        found += _unknown(kind, given)
        choices = {"compression": _COMPRESSIONS, "encoding": _ENCODINGS, "query_encoding": _QUERY_ENCODINGS}
        choices["type"] = {"int8": None}
        named = ((key, value) for key, value in given.items() if key in choices and value is not None)
        found += [f"{kind} quantization with {key} {value}" for key, value in named if value not in choices[key]]
    return found


def _index_problems(info: Json) -> Iterator[str]:
    kind = str(info["data_type"])
    if kind not in _INDEXES:
        yield f"type {kind}"
        return
    params = info.get("params") or {}
    yield from (f"setting {key}" for key in _left_over(params, {"type", *_INDEXES[kind][1]}))
    if params.get("tokenizer") not in (None, *_TOKENIZERS):
        yield f"tokenizer {params['tokenizer']}"
    stopwords, stemmer = params.get("stopwords") or {}, params.get("stemmer") or {}
    languages = [stopwords] if isinstance(stopwords, str) else stopwords.get("languages") or []
    yield from (f"stopwords of {language}" for language in languages if language not in _LANGUAGES)
    if stemmer and (stemmer.get("type") != "snowball" or stemmer.get("language") not in _STEMMERS):
        yield f"stemmer {stemmer.get('type')} {stemmer.get('language')}"


def _unknown(what: str, document: Json) -> list[str]:
    return [f"setting {key}" for key in _left_over(document, _KNOWN[what])]


def _left_over(document: Json, known: Any) -> list[str]:
    return [key for key in _given(document) if key not in known]


def _given(document: Json) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}
