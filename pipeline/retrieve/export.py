"""Hand an index's vectors over to another engine: one Parquet file with ids, paths and unit vectors."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.stores.atomic import atomic_write
from pipeline.stores.generations import GenerationStore

BLOCK = 65536  # vectors at a time


def export_vectors(generations: GenerationStore, out: Path) -> int:
    """Write the live generation's vectors to a Parquet file, a row a vector; deleted ones are left out.

    Columns: video_id, path, vector (fixed-size list of D float16, of unit length). Several rows of one video are its
    vectors, of which the nearest counts. Queries are a head's aligned texts (`dits_head.inference.align_texts`).

    Args:
        generations: The index's generations.
        out: The file.

    Returns:
        The number of rows.
    """
    with generations.open() as live:
        videos, owners, vectors = live.videos(), live.owners(), live.vectors()
        width = vectors.shape[1]
        schema = pa.schema(
            [
                ("video_id", pa.large_string()),
                ("path", pa.large_string()),
                ("vector", pa.list_(pa.float16(), width)),
            ]
        )
        rows = 0
        with atomic_write(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(owners), BLOCK):
                kept = np.flatnonzero(owners[start : start + BLOCK] >= 0) + start
                own = pa.array(np.asarray(owners[kept]))
                flat = pa.array(np.ascontiguousarray(vectors[kept], np.float16).ravel())
                columns = [videos.table["video_id"].take(own), videos.table["path"].take(own)]
                writer.write_table(pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, width)], schema=schema))
                rows += len(kept)
    return rows
