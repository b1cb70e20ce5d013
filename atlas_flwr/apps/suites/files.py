"""What a suite writes into its own folder: rows, scores of tuning, where they come from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from atlas_flwr.apps.suites.folders import finished_rows, in_order, read_json, row_of
from atlas_flwr.config.suite import Pair
from atlas_flwr.config.suite_cells import Cell, Suite
from atlas_flwr.errors import ResultError
from atlas_flwr.results.provenance import provenance
from atlas_flwr.results.store import read_run, to_json
from atlas_flwr.results.suites.table import Row, suite_csv
from atlas_flwr.results.writing import atomic_write

SCORE = "final.own.accuracy on data.holdout"
Score = dict[str, Any]
Values = dict[str, Any]


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the suite's folder and keep other suites out of it; a killed one holds nothing.

    Raises:
        ResultError: Another suite writes there, or nobody can.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ResultError(f"{out}: another suite is writing there; name another --out") from error
    except OSError as error:
        raise ResultError(f"{out}: can't be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()


class SuiteFiles:
    """Keeps ``results.csv``, ``tuned.json`` and ``provenance.json`` in step with the runs.

    Attributes:
        rows: Every completed run's row by its folder.
        choices: The values chosen for each pair whose tuning has ended with a score.
    """

    def __init__(self, suite: Suite, out: Path) -> None:
        self.suite, self.out = suite, out
        self.rows = finished_rows(suite, out)
        self.choices: dict[Pair, Values] = {}
        self._pairs: dict[str, Any] = read_json(out / "tuned.json").get("pairs", {})
        # What an earlier call wrote: the pairs of this one are replaced while it goes on.
        try:
            self._failed = {
                score["path"]: str(score["error"])
                for pair in self._pairs.values()
                for score in pair["scores"]
                if score["error"] is not None
            }
        except (AttributeError, LookupError, TypeError) as error:
            raise ResultError(f"{out / 'tuned.json'}: is not a suite's; move it away") from error
        self._pairs |= {"/".join(pair): dict(told) for pair, told in suite.known.items()}

    def write_provenance(self) -> None:
        """Write ``provenance.json``: the suite, its base and this call; earlier calls are kept."""
        path = self.out / "provenance.json"
        told = read_json(path)
        earlier = told.pop("earlier", [])
        if told:
            earlier.append({k: v for k, v in told.items() if k not in ("suite", "base")})
        now = provenance(sys.argv, self.suite.seeds[0])
        del now["seed"]
        texts = {"suite": self.suite.text, "base": self.suite.base.read_text(encoding="utf-8")}
        told = {**now, "seeds": list(self.suite.seeds), **texts, "earlier": earlier}
        atomic_write(path, to_json(told, indent=2) + "\n")

    def save_rows(self) -> None:
        """Replace ``results.csv``: the suite's order, whichever run ended first."""
        atomic_write(self.out / "results.csv", suite_csv(in_order(self.suite, self.rows)))

    def add_row(self, cell: Cell) -> Row:
        """Add the row of a run that is finished, and return it."""
        row = self.rows[cell.folder] = row_of(self.out, cell.folder, cell.setting, cell.label)
        self.save_rows()
        return row

    def failed_before(self, cell: Cell) -> str | None:
        """Return what a tuned value's run failed of in an earlier call, if it did."""
        return self._failed.get(cell.folder.as_posix())

    def score(self, cell: Cell, error: str | None) -> Score:
        """Return a tuned value's score; of one that failed, what it failed of."""
        accuracy = None
        if error is None:
            accuracy = read_run(self.out / cell.folder).summary["final"]["own"]["accuracy"]
        path = cell.folder.as_posix()
        return {"values": dict(cell.values), "accuracy": accuracy, "error": error, "path": path}

    def choose(self, cell: Cell, scores: Sequence[Score]) -> bool:
        """Choose the values of a pair and write all scores; return whether there is a choice.

        Args:
            cell: One of the runs that tried them.
            scores: One a run, in the grid's order.
        """
        chosen = choose(scores)
        run, data = cell.config.run, cell.config.data
        facts = {"seed": run.seed, "rounds": run.rounds, "holdout": data.holdout}
        name = f"{cell.setting}/{cell.label}"
        self._pairs[name] = {"chosen": chosen, **facts, "scores": list(scores)}
        self.save_choices()
        if chosen is not None:
            self.choices[cell.setting, cell.label] = chosen
        return chosen is not None

    def save_choices(self) -> None:
        """Write ``tuned.json``, in the suite's order; without any pair there is none."""
        order = [f"{setting.name}/{entry.label}" for setting, entry in self.suite.pairs()]
        known = {key: self._pairs[key] for key in order if key in self._pairs}
        told = {"score": SCORE, "pairs": {**known, **self._pairs}}
        if self._pairs:
            atomic_write(self.out / "tuned.json", to_json(told, indent=2) + "\n")


def choose(scores: Sequence[Score]) -> Values | None:
    """Return the values with the highest accuracy; of equals those nearest the middle of the list.

    Without any accuracy there is no choice: ``None``.
    """
    there = [(i, score) for i, score in enumerate(scores) if score["accuracy"] is not None]
    if not there:
        return None
    middle = (len(scores) - 1) / 2
    _, best = max(there, key=lambda item: (item[1]["accuracy"], -abs(item[0] - middle)))
    return dict(best["values"])


def at_the_end(chosen: Values, scores: Sequence[Score]) -> list[str]:
    """Return the keys whose chosen number is the least or the greatest of three or more tried.

    What lies beyond may be better. Keys of other values than numbers have no ends.

    >>> tried = [{"values": {"train.learning-rate": rate}} for rate in (1e-4, 1e-3, 1e-2)]
    >>> at_the_end({"train.learning-rate": 1e-2}, tried)
    ['train.learning-rate']
    >>> at_the_end({"train.learning-rate": 1e-3}, tried)
    []
    """
    found = []
    for key, value in chosen.items():
        tried = {score["values"][key] for score in scores}
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in tried)
        if numbers and len(tried) > 2 and value in (min(tried), max(tried)):
            found.append(key)
    return found
