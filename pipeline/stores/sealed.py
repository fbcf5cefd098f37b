"""Arrow IPC files that are made from others: mapped when read, sealed by a checksum, and made again when in doubt."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import CorruptShard
from pipeline.stores.atomic import atomic_write, write_json
from pipeline.stores.integrity import read_json, sha256_file, verify_file


def write_sealed(path: Path, table: pa.Table, **options: Any) -> None:
    """Write a table without compression, and its seal beside it (`.json`).

    Args:
        path: the file, `.arrow`.
        table: its schema's metadata are kept.
        options: of `write_table`.
    """
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table, **options)
    write_json(path.with_suffix(".json"), {"sha256": sha256_file(path)})


def read_sealed(path: Path) -> pa.Table:
    """Map a table that `write_sealed` wrote.

    Raises:
        MissingData: it has no seal.
        CorruptShard: it is not what was sealed. The caller makes it anew.
    """
    seal = read_json(path.with_suffix(".json"), {"sha256": str})
    verify_file(path, seal["sha256"])
    try:
        with pa.memory_map(str(path)) as mapped:
            return pa.ipc.open_file(mapped).read_all()
    except (pa.ArrowException, OSError, ValueError, json.JSONDecodeError) as error:
        raise CorruptShard(f"{path} cannot be read ({error})", fix="delete it: it is made again") from None
