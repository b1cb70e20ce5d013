"""The models of a run that hasn't ended, from its last commit."""

from __future__ import annotations

from pathlib import Path

from atlas_flwr.apps.export import export_models
from atlas_flwr.apps.prepare import prepare
from atlas_flwr.apps.resume import DEPLOYED, find_run
from atlas_flwr.errors import ResultError
from atlas_flwr.results.store import read_extra


def export_last_commit(run: Path, out: Path) -> int:
    """Write the models of a run's last commit below ``out``; return its round.

    The run's data and model are opened again.

    Raises:
        ResultError: Nothing was committed, or the run is a deployment, whose rows are elsewhere.
        UserError: The data or the model can't be had any more.
    """
    if read_extra(run / "provenance.json").get("engine") == DEPLOYED:
        raise ResultError(f"{run}: is a deployment that hasn't ended; let it end first")
    found = find_run(run)
    if found.commit is None:
        raise ResultError(f"{run}: no round was committed yet; go on with: atlas resume {run}")
    export_models(found.config, prepare(found.config), found.commit.state, out, run)
    return found.commit.round
