"""Files of feature vectors: ``.npz``, one a video, and Parquet, one for all or one a part; and search in the latter.

A Parquet file has the columns ``path``, ``start``, ``end`` (seconds) and ``vector`` (float32, of a fixed length), and
an ``.npz`` file the arrays ``path``, ``starts``, ``ends`` and ``vectors``. Both say how the vectors were made, as JSON:
the metadata ``gcvideo`` of the schema, the array ``info``.
"""

import base64
import glob
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gcvideo.config import TestConfig
from gcvideo.console import Progress
from gcvideo.data.annotations.folders import VIDEO_SUFFIXES
from gcvideo.data.records import Failure, RecordTable
from gcvideo.errors import DataError
from gcvideo.files import Journal, Row, replacing, write_atomically
from gcvideo.predict.embedding import Embedding, Recipe
from gcvideo.predict.predictor import Predictor
from gcvideo.prepare.jobs import Part

METADATA = b"gcvideo"
PART = re.compile(r"(.*)\.part-\d+-of-(\d+)\.parquet", re.DOTALL)


def embed_to(
    predictor: Predictor, records: RecordTable, out: Path, *, recipe: Recipe, part: Part, workers: int = 0
) -> list[Failure]:
    """Write the feature vectors of this part's share of the records; an interrupted run is resumed.

    Args:
        records: of all parts.
        out: a file ``.parquet``, of which each part writes its own (see ``Part.file``), or a folder for ``.npz`` files.
        recipe: what the vectors are made of.
        workers: processes that decode ahead.

    Returns:
        the videos of the share that could not be read.

    Raises:
        ConfigError: an unfinished job with other vectors has left its work there.
    """
    in_one = out.suffix == ".parquet"
    if in_one:
        records.require_text()
    info = {"checkpoint": predictor.describe(), **recipe.describe(predictor.config.data)}
    place = f"{part.file(out if in_one else out / 'vectors.npz')}.partial"
    key = {**info, "records": records.fingerprint, "ids": records.order}
    journal = Journal(place, key)
    journal.require_own("checkpoint, layer, views or list of videos")
    names = file_names([record.id for record in records])
    share = part.share(range(len(records)))
    waiting = [index for index in share if names[index] not in journal]
    found = predictor.embed_files(records.select(waiting), recipe, workers=workers)
    failures = []
    with Progress("embed", total=len(share), unit="videos", start=len(share) - len(waiting)) as progress:
        for index, embedding in zip(waiting, found, strict=True):
            progress.advance()
            if isinstance(embedding, Failure):
                failures.append(embedding)
                continue
            file = io.BytesIO()
            more: Any = {"path": np.array(records[index].path), "info": np.array(json.dumps(info))}
            np.savez(file, **embedding._asdict(), **more)
            if not in_one:
                write_atomically(out / f"{names[index]}.npz", file.getvalue())
            journal.add(names[index], {"npz": base64.b64encode(file.getvalue()).decode()} if in_one else {})
    if in_one and ((rows := Journal(place, key).rows()) or not part.is_whole):  # parts are complete if each has a file
        write_parquet(part.file(out), [np.load(io.BytesIO(base64.b64decode(row["npz"]))) for row in rows], info)
    journal.remove()
    return failures


def file_names(ids: Iterable[str]) -> list[str]:
    """A file name for each video, with folders, unique; without the suffix of the video where that is free."""
    taken: dict[str, None] = {}
    for number, id_ in enumerate(ids):
        name = os.path.normpath(f"/{id_}").lstrip("/")  # never outside the folder
        stem, suffix = os.path.splitext(name)
        choices = ([stem] if suffix.lower() in VIDEO_SUFFIXES else []) + [name, f"{name}-{number}"]
        taken[next(choice for choice in choices if choice not in taken)] = None
    return list(taken)


def write_parquet(path: Path, videos: Sequence[Mapping[str, np.ndarray]], info: dict[str, Any]) -> None:
    """Write the vectors of many videos in one file; of each the arrays of its ``.npz`` file."""
    videos = videos or [{"vectors": np.empty((0, 1), np.float32), "starts": np.empty(0), "ends": np.empty(0)}]
    vectors, starts, ends = (np.concatenate([video[name] for video in videos]) for name in Embedding._fields)
    paths = [str(video["path"]) for video in videos for _ in video["starts"]]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"path": pa.array(paths, pa.string()), "start": starts, "end": ends, "vector": column})
    with replacing(path) as temporary:
        pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(info)}), temporary, compression="zstd")


@dataclass(frozen=True)
class VectorIndex:
    """Vectors to search in.

    Attributes:
        paths: of the videos, one for each of V vectors.
        rows: the vectors of all videos and their times.
        info: how they were made: the checkpoint with its hash, layer, pool, windows and views.
    """

    paths: list[str]
    rows: Embedding
    info: dict[str, Any]

    @classmethod
    def load(cls, place: str | Path) -> "VectorIndex":
        """Read a Parquet file of ``gcvideo embed``, or all its parts: by its name, their folder or a pattern.

        Raises:
            DataError: there is no such file, a part is missing, or the files were not made in the same way.
        """
        tables: list[pa.Table] = []
        made: dict[str, dict[str, Any]] = {}
        for file in _files(str(place)):
            try:
                table = pq.read_table(file, columns=["path", "start", "end", "vector"], partitioning=None)
                info = json.loads(table.schema.metadata[METADATA])
                made.setdefault(json.dumps({**info, "checkpoint": info["checkpoint"]["sha256"]}), info)
            except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
                raise DataError(f"{file}: not a Parquet file of gcvideo embed ({type(error).__name__})") from None
            tables += [table] * bool(len(table))
        if len(made) > 1:
            raise DataError(f"{place}: its files were made with other checkpoints, layers or views than each other")
        if not tables:
            raise DataError(f"{place}: holds no vectors")
        table = pa.concat_tables(tables).combine_chunks()
        vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        rows = Embedding(vectors, table["start"].to_numpy(), table["end"].to_numpy())
        return cls(table["path"].to_pylist(), rows, *made.values())

    def making(self) -> dict[str, Any]:
        """How the vectors were made, as arguments of ``Predictor.embed``."""
        views = {name: value for name, value in self.info["views"].items() if name in TestConfig.__dataclass_fields__}
        return {**{name: self.info[name] for name in ("layer", "pool", "window", "step")}, "test": TestConfig(**views)}

    def find(self, path: str) -> np.ndarray:
        """The rows of a video, int64; none if it is not in the index."""
        whole = os.path.abspath(path)
        return np.flatnonzero([os.path.abspath(other) == whole for other in self.paths])

    def nearest(self, query: np.ndarray, *, top: int = 10, leave_out: Sequence[int] | np.ndarray = ()) -> list[Row]:
        """The rows nearest to a vector by cosine similarity, nearest first.

        Args:
            query: (C,).
            top: how many.
            leave_out: rows that are not looked at.

        Returns:
            ``path``, ``start``, ``end`` and ``similarity``, in [-1, 1], of each.
        """
        vectors, starts, ends = self.rows
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        similarities = vectors @ query.astype(np.float32) / np.maximum(lengths, np.finfo(np.float32).tiny)
        order = np.argsort(-similarities, kind="stable")
        best = order[~np.isin(order, leave_out)][:top].tolist()
        columns = {"start": starts, "end": ends, "similarity": similarities}
        return [{"path": self.paths[i], **{name: float(column[i]) for name, column in columns.items()}} for i in best]


def _files(place: str) -> list[str]:
    """The Parquet files that a name, a folder or a pattern means: all parts, if they are parts."""
    stem, suffix = os.path.splitext(place)
    tries = [f"{glob.escape(place)}/*.parquet", glob.escape(place), place, f"{glob.escape(stem)}.part-*{suffix}"]
    files = next(filter(None, (sorted(filter(os.path.isfile, glob.glob(name))) for name in tries)), None)
    if files is None:
        raise DataError(f"{place}: no such Parquet file, nor parts of it; gcvideo embed --out NAME.parquet writes them")
    jobs = {(match[1], int(match[2])) for match in map(PART.fullmatch, files) if match}
    parts = [(job, Part(number, count)) for job, count in sorted(jobs) for number in range(1, count + 1)]
    for path in (str(part.file(f"{job}.parquet")) for job, part in parts):
        if path not in files:
            raise DataError(f"{path}: is missing among the parts; run this part again")
    return files
