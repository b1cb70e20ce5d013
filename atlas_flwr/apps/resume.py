"""Going on with a run: which commit, which config, and the directory as it was then."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_flwr.apps.keeping import MOVABLE, identity, told_differences
from atlas_flwr.config.load import dump_config, load_config, with_out
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.checkpoint import (
    FOLDER,
    RECORDS,
    Commit,
    commits,
    prune,
    read_commit,
)
from atlas_flwr.engine.mirror import MARK, check_vault
from atlas_flwr.errors import ResultError
from atlas_flwr.results.store import read_extra
from atlas_flwr.results.watch import runs_below
from atlas_flwr.results.writing import atomic_write
from strategies.state import State

DEPLOYED = "deployment"
# What goes on with a deployment.
AGAIN = "the same atlas up with --resume auto (flwr run: resume='auto')"


@dataclass(frozen=True)
class Resumable:
    """A run that can go on.

    Attributes:
        config: Its experiment, in the directory it is found in.
        commit: Where it stands; None before its first round had ended.
        passed_over: Why newer commits are not used (a mirror may be torn).
    """

    config: Config
    commit: Commit | None
    passed_over: tuple[str, ...] = ()


def status_of(out: Path) -> str | None:
    """Return how the run in a directory ended; None while it has no summary.

    Raises:
        ResultError: There is no run in the directory.
    """
    if not (out / "config.toml").is_file():
        mend = runs_below(out) or f"; begin one with atlas run FILE --out {out}"
        raise ResultError(f"{out}: holds no run (no config.toml){mend}")
    try:
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        return str(summary["status"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ResultError(
            f"{out / 'summary.json'}: can't be read ({error}); remove it to go on from the last "
            "commit"
        ) from error


def stored_config(out: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the experiment of the run in a directory, as one that lies there now."""
    return with_out(load_config(out / "config.toml", overrides), str(out))


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse an override of what makes a run what it is.

    Raises:
        ResultError: Names the key, and those that may change.
    """
    for item in overrides:
        key = item.partition("=")[0].strip()
        if key not in MOVABLE and key.partition(".")[0] not in MOVABLE:
            raise ResultError(
                f"--set {item}: {key} makes another run of it; only these may change when a run "
                f"goes on: {', '.join(MOVABLE)}"
            )


def check_engine(out: Path, deployed: bool) -> None:
    """Refuse to go on with a deployment as a simulation.

    The rows that its clients have, and what they keep for themselves, are on their own disks.

    Raises:
        ResultError: Says what goes on with it.
    """
    if not deployed and read_extra(out / "provenance.json").get("engine") == DEPLOYED:
        raise ResultError(f"{out}: is a deployment; go on with {AGAIN}")


def find_run(out: Path, overrides: Sequence[str] = (), since: int | None = None) -> Resumable:
    """Find where a run stands; nothing is written.

    Args:
        out: Its directory, or its mirror.
        overrides: ``a.b=value`` for keys that may differ on the way.
        since: The round whose commit to go on from; by default the last one.

    Raises:
        ResultError: It can't go on: nothing there, a damaged commit, another run's, or a vault
            file is lost. In a mirror, whose copy may be torn, an older commit is used instead.
        ConfigError: An override is of a key that must stay.
    """
    check_overrides(overrides)
    status_of(out)
    config = stored_config(out, overrides)
    found = commits(out)
    if since is not None and since not in found:
        there = ", ".join(map(str, found)) or "none"
        raise ResultError(f"--from {since}: {out / FOLDER} has no such commit (there: {there})")
    asked = found[::-1] if since is None else [since]
    passed_over: list[str] = []
    for number in asked:
        try:
            return Resumable(config, _checked(out, number, config), tuple(passed_over))
        except ResultError as error:
            older = [n for n in found if n < number]
            if (out / MARK).exists() and older and since is None:
                passed_over.append(str(error))
                continue
            mend = f"; to go on from the one before: --from {older[-1]}" if older else ""
            raise ResultError(f"{error}{mend}") from error
    return Resumable(config, None)


def check_same(config: Config, stored: Config) -> None:
    """Refuse to go on with a run under another experiment than it began with.

    Raises:
        ResultError: Names the first key that differs.
    """
    if identity(config) == identity(stored):
        return
    here, there = (tomllib.loads(dump_config(each)) for each in (config, stored))
    raise ResultError(
        f"{stored.run.out}: holds another run: {told_differences(here, there)}; name another --out"
    )


def _checked(out: Path, number: int, config: Config) -> Commit:
    commit = read_commit(out, number, (State,))
    if commit.run != identity(config):
        raise ResultError(
            f"{out / FOLDER / f'round-{number}'}: belongs to another run than "
            f"{out / 'config.toml'}: their configs differ, or another version wrote it"
        )
    check_vault(out, commit.vault)
    return commit


def restore(out: Path, commit: Commit | None) -> None:
    """Put a run directory back to where it stood; what came after is dropped.

    The summary goes first: without one a run has not ended. So does the page that told of that
    end; one that is missing is drawn. Records are replaced one by one, each
    in one step, and the commit they come from stays, so that this can be repeated.
    """
    for name in ("summary.json", "summary.csv", "report.html"):
        (out / name).unlink(missing_ok=True)
    records = commit.records if commit else {}
    for name in RECORDS:
        if name in records:
            atomic_write(out / name, records[name])
        else:
            (out / name).unlink(missing_ok=True)
    if (out / FOLDER).is_dir():
        prune(out / FOLDER, commit.round if commit else 0)
    (out / MARK).unlink(missing_ok=True)
