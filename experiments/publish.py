"""Put a suite's finished runs among the committed: ``python -m experiments.publish FOLDER NAME``.

``experiments/results/NAME.csv`` gets the folder's rows, in the suite's order, over those of the
same setting, label and seed; ``NAME.choices.json`` the values that it chose;
``NAME.provenance.json`` what they come from, beside what earlier rows come from. Paths are told by
their last names.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas_flwr.config.suite import parse_suite
from atlas_flwr.errors import ResultError
from atlas_flwr.results.store import read_extra, to_json
from atlas_flwr.results.suites.rows import read_suites
from atlas_flwr.results.suites.table import suite_csv
from atlas_flwr.results.writing import atomic_write

RESULTS = Path(__file__).parent / "results"
_TEXTS = ("suite", "base")  # the files as they were, which the newest rows have too
Rows = dict[tuple[str, str, int], Mapping[str, str]]


def publish(folder: Path, name: str, results: Path = RESULTS) -> list[str]:
    """Publish a suite folder, and return what was there before with other numbers.

    Raises:
        ResultError: The folder or what is published holds no suite or is broken, or the folder has
            no provenance.
    """
    csv_file, told_file, chosen_file = (
        results / f"{name}{end}" for end in (".csv", ".provenance.json", ".choices.json")
    )
    new, told = _rows(folder), read_extra(folder / "provenance.json")
    if "suite" not in told:
        raise ResultError(f"{folder}: no provenance.json of a suite; give atlas suite's folder")
    old = _rows(csv_file) if csv_file.exists() else {}
    rows = {**old, **new}
    ordered = sorted(rows, key=_order(str(told["suite"]), rows))
    atomic_write(csv_file, suite_csv([dict(rows[key]) for key in ordered]))
    atomic_write(told_file, _text(_provenance(told, read_extra(told_file), sorted(rows))))
    if (chosen := read_extra(folder / "tuned.json")) or chosen_file.exists():
        before = read_extra(chosen_file)
        pairs = {**before.get("pairs", {}), **chosen.get("pairs", {})}
        atomic_write(chosen_file, _text({**before, **chosen, "pairs": pairs}))
    changed = [key for key in new if key in old and old[key]["accuracy"] != new[key]["accuracy"]]
    return ["/".join(map(str, key)) for key in changed]


def _rows(path: Path) -> Rows:
    return {(run.setting, run.label, run.seed): run.values for run in read_suites([path])}


def _order(suite: str, rows: Rows) -> Any:
    """Return the key that sorts as the suite does; what it no longer has comes last."""
    file = parse_suite(suite)
    known = [(s.name, entry.label) for s in file.setting for entry in file.entries(s.name)]
    every = [*known, *dict.fromkeys(key[:2] for key in rows if key[:2] not in known)]
    return lambda key: (every.index(key[:2]), key[2])


def _provenance(
    new: Mapping[str, Any], old: Mapping[str, Any], keys: Sequence[tuple[str, str, int]]
) -> dict[str, Any]:
    """Return where all rows come from: the newest, and once each what came before it."""
    before = [*new.get("earlier", ()), *([old] if old else ()), *old.get("earlier", ())]
    seen, earlier = [(new["commit"], new["machine"])], []
    for source in before:
        if (key := (source["commit"], source["machine"])) not in seen:
            seen.append(key)
            earlier.append({k: v for k, v in source.items() if k not in (*_TEXTS, "earlier")})
    told = {**new, "seeds": sorted({seed for *_, seed in keys}), "earlier": earlier}
    for source in (told, *earlier):
        source["argv"] = [_last(word) for word in source["argv"]]
    return told


def _last(word: str) -> str:
    """Return a word of a command without the folders in it.

    >>> _last("data.root=/home/me/glue"), _last("--jobs")
    ('data.root=glue', '--jobs')
    """
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{value.rstrip('/').rpartition('/')[2]}"


def _text(tree: Mapping[str, Any]) -> str:
    return to_json(tree, indent=2) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.publish", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder that atlas suite wrote")
    parser.add_argument("name", help="of the files under experiments/results")
    args = parser.parse_args()
    for line in publish(args.folder, args.name):
        print(f"replaced  {line}")
