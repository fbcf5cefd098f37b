"""A folder of clips, and the commands on it as a user gives them."""

import json
import shutil

from command_line import run


class Folder:
    """A folder of clips, and the commands on it."""

    def __init__(self, clips, tmp_path):
        self.videos, self.tmp = shutil.copytree(clips, tmp_path / "clips"), tmp_path
        self.here = ("--workspace", tmp_path / "workspace")

    def csv(self, rows, name="captions.csv"):
        path = self.tmp / name
        path.write_text("video_id,caption\n" + "".join(f"{video},{caption}\n" for video, caption in rows))
        return path

    def extract(self, *options, code=0):
        result = run(
            "extract", "--videos", self.videos, "--num-frames", 2, "--workers", 1, *options, *self.here, "--json",
            code=code,
        )  # fmt: skip
        return json.loads(result.stdout)

    def captions(self, *options):
        counts = self.extract(*options)["captions"]
        return {name: counts[name] for name in ("kept", "added", "changed", "withdrawn")}

    def index(self):
        return json.loads(run("index", "--run", "zero-shot", *self.here, "--json").stdout)["total"]

    def found(self):
        """Video ids of a search that lists everything."""
        hits = json.loads(run("search", "a red ring", "--top", 99, *self.here, "--json").stdout)
        hits = hits["queries"][0]["hits"] if isinstance(hits, dict) else hits
        return [hit["video_id"] for hit in hits]

    def evaluated(self):
        result = json.loads(run("evaluate", "--run", "zero-shot", "--index", *self.here, "--json").stdout)
        return result["t2v"]["queries"], result["t2v"]["gallery"]

    def reindex(self, *options):
        return json.loads(run("reindex", *options, *self.here, "--json").stdout)

    def counts(self, result):
        """Of the files that a command compared: the kinds that are not 0."""
        return {kind: listed["count"] for kind, listed in result["files"].items() if listed["count"]}

    def scores(self):
        hits = json.loads(run("search", "a red ring", "--top", 99, *self.here, "--json").stdout)
        hits = hits["queries"][0]["hits"] if isinstance(hits, dict) else hits
        return {hit["path"]: round(hit["score"], 4) for hit in hits}
