"""Where a run stands, kept after each round: a commit, its mirror, and whether time is up."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas_flwr.config.durations import seconds_in
from atlas_flwr.config.load import dump_config, load_config
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.checkpoint import RECORDS, Commit, settled, write_commit
from atlas_flwr.engine.files import digest
from atlas_flwr.engine.mirror import MARK, SUMMARY, VAULT, Mirror, VaultDigests
from atlas_flwr.engine.vault import vault_name
from atlas_flwr.errors import ResultError, RunStopped
from atlas_flwr.results.record import Bytes
from strategies.state import State

# What may differ between the run that wrote a commit and the one that goes on from it: where
# things lie, how long to wait, and what runs the clients. Dotted, or a whole section.
MOVABLE = (
    *("run.out", "run.mirror", "run.stop-after", "run.client-timeout", "run.on-failure"),
    *("run.min-results", "run.trackers", "data.root", "engine"),
)
RESULTS = (
    *("summary.csv", "report.html", "rounds.jsonl", "clients.parquet"),
    *("clusters.json", "ranks.json", "autopilot.json", "plots", "adapters", "models"),
    "trackers",
)


def identity(config: Config) -> str:
    """Return the digest of what makes a run what it is: its config but for ``MOVABLE`` keys."""
    tree = tomllib.loads(dump_config(config))
    for path in MOVABLE:
        section, _, key = path.partition(".")
        if key:
            tree.get(section, {}).pop(key, None)
        else:
            tree.pop(section, None)
    return digest(json.dumps(tree, sort_keys=True).encode())


def mirror_of(config: Config, out: Path) -> Mirror | None:
    """Return a run's mirror; None without one, and where the run goes on in the mirror itself."""
    if config.run.mirror is None:
        return None
    folder = (Path(config.run.mirror).expanduser() / out.name).resolve()
    return None if folder == out.resolve() else Mirror(folder)


def check_mirror(config: Config, out: Path, fresh: bool) -> None:
    """Refuse a mirror that would hold nothing of its own, or is another run's; nothing is written.

    Args:
        config: The experiment.
        out: The run directory; it need not be there yet.
        fresh: Whether the run begins; else it goes on.

    Raises:
        ResultError: The mirror is refused.
    """
    mirror = mirror_of(config, out)
    home = out.resolve()
    if config.run.mirror is not None and (
        home in mirror.folder.parents if mirror is not None else fresh
    ):
        raise ResultError(
            f"run.mirror: {config.run.mirror}: its copy would lie in the run directory; name a "
            "folder elsewhere"
        )
    if mirror is None or not (mirror.folder / "config.toml").exists():
        return
    resume = f"atlas resume {mirror.folder}"
    if fresh:
        raise ResultError(
            f"run.mirror: {mirror.folder} already holds a run; go on with that one ({resume}), or "
            "name another folder"
        )
    there = load_config(mirror.folder / "config.toml")
    if identity(there) != identity(config):
        one, other = (tomllib.loads(dump_config(each)) for each in (config, there))
        raise ResultError(
            f"run.mirror: {mirror.folder} holds another run: {told_differences(one, other)}; name "
            "another folder"
        )
    if not (mirror.folder / MARK).exists():
        raise ResultError(
            f"run.mirror: the run has gone on in {mirror.folder} itself; go on there ({resume}), "
            "or name another folder"
        )


def catch_up(config: Config, out: Path) -> None:
    """Copy a finished run's results to its mirror, if that was cut short."""
    mirror = mirror_of(config, out)
    if mirror is None or (mirror.folder / SUMMARY).exists():
        return
    if (mirror.folder / MARK).exists():
        check_mirror(config, out, fresh=False)
        mirror.finish(out, RESULTS)


class Keeper:
    """Writes a run's commits.

    Args:
        config: The experiment; ``run.out`` is set, and `check_mirror` was asked.
        out: The run directory.

    Raises:
        ResultError: The mirror can't be written.
    """

    def __init__(self, config: Config, out: Path) -> None:
        self._out, self._identity = out, identity(config)
        self._vault = VaultDigests(out / VAULT)
        stop = config.run.stop_after
        self._until = None if stop is None else seconds_in(stop)
        self._stop = stop
        self._rounds = config.run.rounds
        self._mirror = mirror_of(config, out)
        if self._mirror is not None:
            self._mirror.begin(out)
        self._began = self._last = time.monotonic()
        self._longest = 0.0

    def commit(self, state: State, moved: Bytes, seconds: float) -> State:
        """Write a commit and its copy; return the state that the run goes on from.

        Args:
            state: Where the run stands.
            moved: All bytes so far.
            seconds: Wall time of the run so far, earlier sessions included.
        """
        kept: State = settled(state, (State,))
        records = {n: (self._out / n).read_bytes() for n in RECORDS if (self._out / n).exists()}
        vault = self._vault.of(vault_names(kept))
        commit = Commit(kept.round, kept, moved, seconds, self._identity, vault, records)
        folder = write_commit(self._out, commit)
        if self._mirror is not None:
            self._mirror.add(self._out, folder, vault)
        return kept

    def check_time(self, round_: int) -> None:
        """Stop while there is time: another round as long as the longest would end too late.

        Raises:
            RunStopped: Says what goes on from here.
        """
        now = time.monotonic()
        self._longest, self._last = max(self._longest, now - self._last), now
        if self._until is not None and now - self._began + self._longest > self._until:
            raise RunStopped(
                f"after round {round_} of {self._rounds}: run.stop-after is {self._stop}"
            )

    def finish(self) -> None:
        """Copy the results to the mirror."""
        if self._mirror is not None:
            self._mirror.finish(self._out, RESULTS)


def vault_names(state: State) -> list[str]:
    """Return the vault files that a state counts on: private parts, and what clients carry."""
    private = [vault_name(p, r) for p, r in sorted(state.kept.items()) if r]
    carried = [vault_name(p, v, "carried") for p, v in sorted(state.delivered.items()) if v]
    return private + carried


def told_differences(here: Mapping[str, Any], there: Mapping[str, Any], path: str = "") -> str:
    """Return the first key whose value differs between two trees, with both values."""
    # The strategy first: heads and options follow from it.
    for key in sorted(here.keys() | there.keys(), key=lambda key: (key != "strategy", key)):
        name, one, other = f"{path}{key}", here.get(key), there.get(key)
        if name in MOVABLE or one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            if inner := told_differences(one, other, f"{name}."):
                return inner
            continue
        return f"{name} is {one!r} here, {other!r} there"
    return ""
