"""What an offline run of W&B holds, read back from its own file."""

import json
import struct
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as proto

_BLOCK, _HEADER = 32768, 7


def read_run(folder: Path) -> list[proto.Record]:
    """All records of an offline run: LevelDB's log format after W&B's seven bytes."""
    (file,) = folder.glob("run-*.wandb")
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    records, at, parts = [], 7, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # full, last
            records.append(proto.Record.FromString(parts))
            parts = b""
    return records


def history(records: list[proto.Record]) -> list[dict]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json)
                         for item in record.history.item})  # fmt: skip
    return rows


def summary_of(records: list[proto.Record]) -> dict:
    found = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return found
