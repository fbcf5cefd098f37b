"""Which part of a job a process is: `--shard i/n`. Light, so that a wrong one is refused at once."""

import re
from collections.abc import Mapping

from pipeline.errors import BadInput


def parse_part(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """Which part of the shards `--shard` names: "i/n" from 0/n on, or "auto" in a Slurm array job.

    >>> parse_part("0/4", {})
    (0, 4)
    >>> slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}
    >>> parse_part("auto", slurm)
    (2, 4)

    Raises:
        BadInput: neither, or outside an array job, or of an array whose numbers have gaps.
    """
    if text == "auto":
        try:
            task, count, least = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "COUNT", "MIN"))
            step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
        except (KeyError, ValueError):
            raise BadInput(
                "--shard auto", expected="a Slurm array job", got="no SLURM_ARRAY_TASK_ID", fix="give --shard 0/4"
            ) from None
        index, gap = divmod(task - least, max(1, step))
        if gap or not 0 <= index < count:
            raise BadInput(
                "--shard auto in an array with gaps",
                expected=f"task {least} to {least + (count - 1) * step}",
                got=task,
                fix="submit the whole array again (what is done takes no time), or give --shard i/n",
            )
        return index, count
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise BadInput("--shard", expected="i/n from 0/n to n-1/n, such as 0/4, or auto", got=repr(text))
    return int(match[1]), int(match[2])
