"""MLflow in one SQLite file: ``mlflow ui --backend-store-uri sqlite:///…/mlflow.db``."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing

from atlas_flwr.results.tracking.card import Card

STATES = {"completed": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "killed": "KILLED"}
EVERY_ROUND = "communication_mb"  # a metric that no round lacks


class MLflow:
    """One MLflow run, with the same id in every session."""

    def start(self, card: Card) -> int:
        """Begin a run, or go on with the one in the file."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow.entities import Param  # noqa: PLC0415
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        path = card.folder / "mlflow.db"
        self._client = MlflowClient(tracking_uri=f"sqlite:///{path}")
        found = self._client.get_experiment_by_name(card.experiment)
        where = (card.folder / "artifacts").as_uri()
        place = found.experiment_id if found else None
        place = place or self._client.create_experiment(card.experiment, artifact_location=where)
        runs = self._client.search_runs([place])
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            _drop_after(path, self._id, card.kept)
            history = self._client.get_metric_history(self._id, EVERY_ROUND)
            return max((metric.step for metric in history), default=0)
        self._id = self._client.create_run(place, run_name=card.run).info.run_id
        params = [Param(key, str(value)) for key, value in card.config.items()]
        for first in range(0, len(params), 100):  # MLflow's own limit
            self._client.log_batch(self._id, params=params[first : first + 100])
        return 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one batch."""
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        found = [Metric(name, value, now, step) for name, value in metrics.items()]
        for first in range(0, len(found), 1000):  # MLflow's own limit
            self._client.log_batch(self._id, metrics=found[first : first + 1000])

    def end(self, status: str) -> None:
        """Terminate the run."""
        self._client.set_terminated(self._id, STATES[status])


def _drop_after(path: os.PathLike[str], run: str, kept: int) -> None:
    """Remove numbers of rounds that are run again: MLflow would hold both."""
    with closing(sqlite3.connect(path)) as file, file:
        for table in ("metrics", "latest_metrics"):
            file.execute(f"DELETE FROM {table} WHERE run_uuid = ? AND step > ?", (run, kept))
