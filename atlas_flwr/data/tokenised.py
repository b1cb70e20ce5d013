"""Tokenised once per dataset into a memory-mapped Arrow file; batches are cut from it unpadded."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from atlas_flwr.data.files import first_line
from atlas_flwr.data.load import (
    Rows,
    TaskRows,
    is_split_by_seed,
    load_rows,
    source_identity,
)
from atlas_flwr.data.tasks import TaskSpec
from atlas_flwr.errors import DataError

FORMAT_VERSION = 2
"""Part of every cache key; raise it when rows, splits or the file's layout change meaning."""

_TOKENISE_ROWS = 4096
_log = logging.getLogger(__name__)


class TokenTable:
    """Token ids of many rows end to end, with views into the mapped file; no row is copied."""

    def __init__(self, batch: Any) -> None:
        ids = batch.column("input_ids")
        self._offsets: NDArray[np.int64] = ids.offsets.to_numpy()
        self._ids: NDArray[np.int32] = ids.values.to_numpy()
        self._types: NDArray[np.int8] | None = None
        if "token_type_ids" in batch.schema.names:
            self._types = batch.column("token_type_ids").values.to_numpy()
        self.labels: NDArray[np.int64] = batch.column("labels").to_numpy()
        """Class of each row, int64, shape ``(n,)``."""
        self.lengths: NDArray[np.int32] = np.diff(self._offsets).astype(np.int32)
        """Tokens of each row, special ones included, int32, shape ``(n,)``."""

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, row: int) -> bytes:
        """Return a row's tokens as bytes: equal for rows that the model can't tell apart."""
        return self._ids[self._offsets[row] : self._offsets[row + 1]].tobytes()

    def batch(self, indices: NDArray[Any], pad_token_id: int) -> dict[str, NDArray[np.int64]]:
        """Return rows padded on the right to the longest of them.

        Args:
            indices: Row numbers, shape ``(b,)``, in the order wanted.
            pad_token_id: Fills ``input_ids``; other pads are 0.

        Returns:
            int64 ``input_ids``, ``attention_mask`` and, where the tokenizer makes them,
            ``token_type_ids``, each of shape ``(b, longest)``, and ``labels`` of shape ``(b,)``.
        """
        lengths = self.lengths[indices]
        columns = np.arange(lengths.max(initial=0))
        mask = columns < lengths[:, None]
        # Row-major order of the mask is the order of the rows' tokens.
        places = (self._offsets[indices][:, None] + columns)[mask]
        ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
        ids[mask] = self._ids[places]
        out = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        if self._types is not None:
            out["token_type_ids"] = np.zeros(mask.shape, dtype=np.int64)
            out["token_type_ids"][mask] = self._types[places]
        out["labels"] = self.labels[indices]
        return out


@dataclass(frozen=True, eq=False)
class TokenisedTask:
    """A task's two tables; equal only to itself, so that it can key a cache."""

    train: TokenTable
    validation: TokenTable
    num_labels: int
    label_names: tuple[str, ...]


_open: dict[Path, TokenisedTask] = {}


def open_tokenised(
    spec: TaskSpec,
    tokenizer: Any,
    tokenizer_key: str,
    max_length: int,
    root: str | None,
    seed: int,
    cache_dir: Path | None = None,
) -> TokenisedTask:
    """Return a task's token tables, tokenising first if no process has done so.

    One process tokenises while others wait; a damaged file is made anew. Opening twice gives the
    same object. The seed is part of the file's name only where it decides the split.

    Args:
        spec: The task.
        tokenizer: A Hugging Face tokenizer; called with lists of texts.
        tokenizer_key: What names the tokenizer and its revision.
        max_length: Tokens kept of a row.
        root: ``data.root``.
        seed: The run's seed.
        cache_dir: Folder of the files; default ``$ATLAS_CACHE``, else ``~/.cache/atlas-flwr``.

    Raises:
        DataError: The rows can't be had, or the folder can't be written.
    """
    key = {
        "format": FORMAT_VERSION,
        "spec": asdict(spec),
        "source": source_identity(spec, root),
        "tokenizer": tokenizer_key,
        "max_length": max_length,
        "seed": seed if is_split_by_seed(spec) else None,
    }
    read = partial(load_rows, spec, root, seed)
    return open_rows(cache_dir, key, read, tokenizer, max_length)


def open_rows(
    cache_dir: Path | None,
    key: Mapping[str, Any],
    read: Callable[[], TaskRows],
    tokenizer: Any,
    max_length: int,
) -> TokenisedTask:
    """Return the token tables that a key names: held already, on disk, or made now.

    Args:
        cache_dir: Folder of the files; default ``$ATLAS_CACHE``, else ``~/.cache/atlas-flwr``.
        key: Everything that the tables depend on, as plain values.
        read: Reads the rows.
        tokenizer: A Hugging Face tokenizer.
        max_length: Tokens kept of a row.

    Raises:
        DataError: The rows can't be had, or the cache can't be written.
    """
    folder = cache_dir or _default_cache()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = folder.resolve() / f"{digest}.arrow"
    if path not in _open:
        _open[path] = _read(path) or _build(path, read, tokenizer, max_length)
    return _open[path]


def _default_cache() -> Path:
    named = os.environ.get("ATLAS_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "atlas-flwr"


# ------------------------------------------------------------------ reading


def _read(path: Path) -> TokenisedTask | None:
    """Map a cache file; ``None`` if there is none or it is damaged."""
    if not path.exists():
        return None
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        about = json.loads(reader.schema.metadata[b"atlas"])
        batches = [reader.get_batch(i) for i in range(2)]
        if _digest(batches) != about["digest"]:
            raise ValueError("its digest differs")
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        _log.warning("%s is damaged (%s); tokenising again", path, first_line(error))
        return None
    return TokenisedTask(
        TokenTable(batches[0]),
        TokenTable(batches[1]),
        about["num_labels"],
        tuple(about["label_names"]),
    )


def _digest(batches: Sequence[Any]) -> str:
    """Return a digest of all values; reading it once also warms the page cache."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            lists = pa.types.is_large_list(column.type)
            for part in (column.offsets, column.values) if lists else (column,):
                digest.update(f"{name}:{part.type}:{len(part)};".encode())
                digest.update(np.ascontiguousarray(part.to_numpy()).data)
    return digest.hexdigest()


# ------------------------------------------------------------------ building


def _build(
    path: Path, read: Callable[[], TaskRows], tokenizer: Any, max_length: int
) -> TokenisedTask:
    """Tokenise under the file's lock, unless another process did while this one waited."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            done = _read(path)
            if done is None:
                rows = read()
                batches = [
                    _encode(part, tokenizer, max_length) for part in (rows.train, rows.validation)
                ]
                about = {
                    "digest": _digest(batches),
                    "num_labels": rows.num_labels,
                    "label_names": rows.label_names,
                }
                _write(path, batches, about)
                done = _read(path)
    except OSError as error:
        raise DataError(
            f"{path.parent}: the token cache can't be written ({first_line(error)}); "
            "set ATLAS_CACHE to a folder that can"
        ) from error
    if done is None:
        raise DataError(f"{path}: is damaged right after it was written; check the disk")
    return done


def _encode(rows: Rows, tokenizer: Any, max_length: int) -> Any:
    """Tokenise rows into one record batch; its lists lie end to end."""
    first = [texts[0] for texts in rows.texts]
    second = [texts[1] for texts in rows.texts] if rows.texts and len(rows.texts[0]) == 2 else None
    ids: list[list[int]] = []
    types: list[list[int]] = []
    for start in range(0, len(first), _TOKENISE_ROWS):
        window = slice(start, start + _TOKENISE_ROWS)
        encoded = tokenizer(
            first[window],
            second[window] if second else None,
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        ids += encoded["input_ids"]
        types += encoded.get("token_type_ids", [])
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    columns = {"input_ids": _lists(ids, offsets, np.int32)}
    if types or (not ids and "token_type_ids" in tokenizer.model_input_names):
        columns["token_type_ids"] = _lists(types, offsets, np.int8)
    columns["labels"] = pa.array(rows.labels)
    return pa.RecordBatch.from_pydict(columns)


def _lists(rows: list[list[int]], offsets: NDArray[np.int64], kind: type) -> Any:
    values: NDArray[Any] = np.fromiter(
        (v for row in rows for v in row), dtype=kind, count=int(offsets[-1])
    )
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def _write(path: Path, batches: Sequence[Any], about: dict[str, Any]) -> None:
    """Write the file beside its place and move it there."""
    schema = batches[0].schema.with_metadata({"atlas": json.dumps(about)})
    temporary = path.with_suffix(f".{os.getpid()}.part")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
