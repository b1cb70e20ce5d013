"""Trackio in one SQLite file: ``TRACKIO_DIR=… trackio show --project atlas-flwr``."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing

from atlas_flwr.results.tracking.card import Card

PROJECT = "atlas-flwr"
# Each would send numbers away.
_ELSEWHERE = ("SPACE_ID", "SERVER_URL", "BUCKET_ID", "WEBHOOK_URL")


class Trackio:
    """One trackio run, with the same name in every session."""

    def start(self, card: Card) -> int:
        """Begin a run, or go on with the one in the folder."""
        os.environ["TRACKIO_DIR"] = str(card.folder)
        for name in _ELSEWHERE:
            os.environ.pop(f"TRACKIO_{name}", None)
        import trackio  # noqa: PLC0415
        from trackio.sqlite_storage import SQLiteStorage  # noqa: PLC0415

        there = SQLiteStorage.get_runs(PROJECT) if SQLiteStorage.get_projects() else []
        name, held = (there or [card.run])[0], 0
        if there:
            _drop_after(SQLiteStorage.get_project_db_path(PROJECT), card.kept)
            logs = SQLiteStorage.get_logs(PROJECT, name)
            held = max((log["step"] for log in logs), default=0)
        self._run = trackio.init(
            project=PROJECT,
            name=name,
            group=card.experiment,
            config=dict(card.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return held

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row."""
        self._run.log(dict(metrics), step=step)

    def end(self, status: str) -> None:
        """Write what is left, and close."""
        self._run.finish()


def _drop_after(path: os.PathLike[str], kept: int) -> None:
    """Remove rows of rounds that are run again."""
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM metrics WHERE step > ?", (kept,))
