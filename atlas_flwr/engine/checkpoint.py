"""One folder a round from which a run goes on: ``checkpoints/round-<n>/``.

``state.safetensors`` holds the tensors of the server's state and ``state.json`` everything else:
the state's own tree, the bytes moved so far, the digest of every file beside it and of every vault
file it counts on, and its own. The run's records as of that round lie beside them, so that a
commit needs nothing but itself. A folder is written under a name that starts with a dot, synced
and renamed: one called ``round-<n>`` was whole, and what is not whole now has been damaged since.
Randomness has no position to keep: every draw follows from seed, role, round and partition.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load, save

from atlas_flwr.engine.codec import decode, encode
from atlas_flwr.engine.files import digest, move_into_place, passed, remove
from atlas_flwr.errors import ResultError
from atlas_flwr.results.rows import Bytes, Measured
from atlas_flwr.results.writing import write_synced
from atlas_flwr.types import Array, LoraFactors, ModelParts

FOLDER = "checkpoints"
VERSION = 1
KEPT = 3
_TENSORS, MANIFEST = "state.safetensors", "state.json"
RECORDS = ("rounds.jsonl", "clients.parquet", "clusters.json", "ranks.json")


@dataclass(frozen=True)
class Commit:
    """Where a run stood at the end of a round.

    Attributes:
        round: The round, from 1.
        state: The server's state.
        moved: All bytes so far.
        seconds: Wall time of the run so far.
        run: Digest of what makes the run what it is: its config but for places and engines.
        vault: Digest of every vault file the state counts on, by its path in the vault.
        records: The run's records as of that round, by file name.
    """

    round: int
    state: Any
    moved: Bytes
    seconds: float
    run: str
    vault: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, bytes] = field(default_factory=dict)


def write_commit(root: Path, commit: Commit) -> Path:
    """Write a commit below ``root`` and remove those older than the last three.

    Args:
        root: The run directory.
        commit: What is written; its state is as ``settled`` returned it.

    Returns:
        The commit's folder.
    """
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    made = folder / f".round-{commit.round}.tmp"
    remove(made)
    made.mkdir()
    tree, tensors = encode(commit.state)
    files = {_TENSORS: save(tensors), **commit.records}
    for name, data in files.items():
        write_synced(made / name, data)
    passed("files-written")
    manifest = {
        "version": VERSION,
        "round": commit.round,
        "run": commit.run,
        "seconds": commit.seconds,
        "bytes": {"up": commit.moved.by_kind_up, "down": commit.moved.by_kind_down},
        "files": {name: digest(data) for name, data in files.items()},
        "vault": dict(commit.vault),
        "state": tree,
    }
    write_synced(made / MANIFEST, _sealed(manifest))
    passed("manifest-written")
    path = folder / f"round-{commit.round}"
    move_into_place(made, path)
    passed("renamed")
    prune(folder, commit.round)
    passed("pruned")
    return path


def prune(folder: Path, last: int) -> None:
    """Remove what is older than the last commits, newer than ``last``, or was never finished.

    What others put there stays: file browsers and cloud drives leave files of their own.
    """
    for path in folder.iterdir():
        number = _round_of(path)
        unfinished = path.name.startswith(".round-") and path.is_dir()
        if unfinished or (number is not None and not last - KEPT < number <= last):
            remove(path)


def settled(state: Any, types: Iterable[type]) -> Any:
    """Return a state as it will be read back: a run goes on from this, killed or not."""
    tree, tensors = encode(state)
    return decode(tree, tensors, (*types, *_TYPES))


def commits(root: Path) -> list[int]:
    """Return the rounds that have been committed below a run directory, ascending."""
    folder = root / FOLDER
    found = (_round_of(path) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(number for number in found if number is not None)


def read_commit(root: Path, round_: int, types: Iterable[type]) -> Commit:
    """Read a commit and check every digest.

    Args:
        root: The run directory.
        round_: The round.
        types: The dataclasses of the state, but for those of ``atlas_flwr``.

    Raises:
        ResultError: It is missing, damaged, or written by a later version.
    """
    folder = root / FOLDER / f"round-{round_}"
    manifest = read_manifest(folder / MANIFEST)
    try:
        files = {name: _checked(folder / name, told) for name, told in manifest["files"].items()}
        tensors: dict[str, Array] = load(files.pop(_TENSORS))
        return Commit(
            round=manifest["round"],
            state=decode(manifest["state"], tensors, (*types, *_TYPES)),
            moved=Bytes(manifest["bytes"]["up"], manifest["bytes"]["down"]),
            seconds=float(manifest["seconds"]),
            run=manifest["run"],
            vault=manifest["vault"],
            records=files,
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ResultError(f"{folder}: not a commit of this version ({error})") from error


_TYPES = (ModelParts, LoraFactors, Measured)


def _round_of(path: Path) -> int | None:
    """Return the round a commit's folder is named by; None for anything else."""
    number = path.name.removeprefix("round-")
    return int(number) if path.name != number and number.isdecimal() and path.is_dir() else None


def _text(tree: Any) -> str:
    return json.dumps(tree, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return the manifest as JSON, under its digest."""
    own = _text(manifest)
    return f'{{"digest":"{digest(own.encode())}","commit":{own}}}\n'.encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """Read ``state.json`` and check its digest and version.

    Raises:
        ResultError: It is missing, damaged, no commit, or written by a later version.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        manifest, seal = told["commit"], told["digest"]
        version = manifest["version"]
    except OSError as error:
        raise ResultError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ResultError(f"{path}: is damaged (truncated, or not a commit)") from error
    if digest(_text(manifest).encode()) != seal:
        raise ResultError(f"{path}: is damaged (its digest differs)")
    if version > VERSION:
        raise ResultError(
            f"{path}: written by a later version of atlas-flwr (format {version}, this one reads "
            f"{VERSION}); upgrade to resume"
        )
    return dict(manifest)


def _checked(path: Path, told: str) -> bytes:
    """Return a file's bytes.

    Raises:
        ResultError: They are missing, or not those that were written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ResultError(f"{path}: can't be read ({error.strerror})") from error
    if digest(data) != told:
        raise ResultError(f"{path}: is damaged (its digest differs)")
    return data
