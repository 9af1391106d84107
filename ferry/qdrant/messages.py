"""Qdrant's gRPC messages as far as points need them, in a descriptor pool of their own.

They are declared with other types of the same wire form: floats of a vector as bytes (packed ``repeated float`` is the
same on the wire, and 100 times as fast as a list), and what only passes through as bytes, too. Numbers are those of
qdrant-client 1.20's ``points.proto``; fields that are not named here are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ferry.migration.batch import PointId

# Number, name and type of every field that is used; a star: repeated; a capital: another message of this table.
_TABLE = {
    "PointId": "1 num uint64, 2 uuid string",
    "ShardKey": "1 keyword string, 2 number uint64",
    "ShardKeySelector": "1 shard_keys ShardKey*",
    "Names": "1 names string*",
    "Selector": "1 enable bool, 2 include Names",
    "ScrollPoints": (
        "1 collection_name string, 2 filter bytes, 3 offset PointId, 4 limit uint32, 6 with_payload Selector, "
        "7 with_vectors Selector, 9 shard_key_selector ShardKeySelector, 11 timeout uint64"
    ),
    "GetPoints": (
        "1 collection_name string, 2 ids PointId*, 4 with_payload Selector, 5 with_vectors Selector, "
        "7 shard_key_selector ShardKeySelector, 8 timeout uint64"
    ),
    "UpsertPoints": (
        "1 collection_name string, 2 wait bool, 3 points bytes*, 5 shard_key_selector ShardKeySelector, "
        "7 timeout uint64"
    ),
    "RetrievedPoint": "1 id bytes, 2 payload bytes*, 4 vectors bytes",
    "ScrollResponse": "1 next_page_offset PointId, 2 result RetrievedPoint*",
    "GetResponse": "1 result RetrievedPoint*",
    "PointStruct": "1 id bytes, 3 payload bytes*, 4 vectors bytes",
    "ReadPoint": "1 id PointId, 2 payload Entry*, 4 vectors bytes",
    "BuiltPoint": "1 id PointId, 3 payload Entry*, 4 vectors bytes",
    "Value": (
        "1 null_value int32, 2 double_value double, 3 integer_value int64, 4 string_value string, 5 bool_value bool, "
        "6 struct_value Struct, 7 list_value List"
    ),
    "Entry": "1 key string, 2 value Value",  # a map is a repeated message of key and value
    "Struct": "1 fields Entry*",
    "List": "1 values Value*",
    "Indices": "1 data uint32*",
    "DenseVector": "1 data bytes",
    "SparseVector": "1 values bytes, 2 indices uint32*",
    "MultiVector": "1 vectors DenseVector*",
    "Vector": (
        "1 data bytes, 2 indices Indices, 3 vectors_count uint32, 101 dense DenseVector, 102 sparse SparseVector, "
        "103 multi_dense MultiVector"
    ),
    "NamedVector": "1 key string, 2 value bytes",
    "NamedVectors": "1 vectors NamedVector*",
    "Vectors": "1 vector bytes, 2 vectors NamedVectors",
}


def _messages(table: Mapping[str, str]) -> dict[str, Any]:
    """The classes of a table of messages. As proto2, which knows of every field whether it is there."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="ferry_wire.proto", package="ferry_wire", syntax="proto2")
    for message, fields in table.items():
        declared = file.message_type.add(name=message)
        for entry in fields.split(", "):
            number, name, kind = entry.split()
            repeated, kind = kind.endswith("*"), kind.rstrip("*")
            added = declared.field.add(name=name, number=int(number))
            added.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind[0].isupper():
                added.type, added.type_name = field.TYPE_MESSAGE, f".ferry_wire.{kind}"
            else:
                added.type = getattr(field, f"TYPE_{kind.upper()}")
                added.options.packed = repeated and kind == "uint32"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ferry_wire.{name}")) for name in table}


MESSAGES = _messages(_TABLE)
# Tags of fields of bytes: 1 and 2 of any message, 101 to 103 of Vector.
FIRST, SECOND, DENSE, SPARSE, MULTI = b"\x0a", b"\x12", b"\xaa\x06", b"\xb2\x06", b"\xba\x06"
_PointId = MESSAGES["PointId"]


def id_message(point_id: PointId) -> Any:
    """An id as its message."""
    return _PointId(num=point_id) if isinstance(point_id, int) else _PointId(uuid=str(point_id))


def plain_id(message: Any) -> PointId:
    """An id's message as the id."""
    return str(message.uuid) if message.HasField("uuid") else int(message.num)


def field(tag: bytes, body: bytes) -> bytes:
    """A field of bytes: its tag, the length as a varint, and the bytes."""
    length, size = b"", len(body)
    while size > 0x7F:
        length, size = length + bytes((size & 0x7F | 0x80,)), size >> 7
    return tag + length + bytes((size,)) + body
