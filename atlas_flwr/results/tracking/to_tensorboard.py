"""TensorBoard: one event file a session; look at it with ``tensorboard --logdir runs``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from atlas_flwr.results.tracking.card import Card

ALL = 0  # of an accumulator's events: none is left out


class TensorBoard:
    """Writes scalars by round with TensorBoard's own writer of records.

    Its `EventFileWriter` would put the machine's name into the file's.
    """

    def start(self, card: Card) -> int:
        """Begin a file; one that goes on says from which round on older ones don't count."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415
        from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415

        before = sorted(card.folder.glob("events.out.tfevents.*"))
        held = min(_last_step(card), card.kept) if before else 0
        path = card.folder / f"events.out.tfevents.{len(before) + 1:06d}"
        self._file = path.open("xb")
        self._records = RecordWriter(self._file)
        self._event = Event
        self._write(file_version="brain.Event:2")
        if before:
            # Readers drop what they have of this step and later ones.
            self._write(step=held + 1, session_log=SessionLog(status=SessionLog.START))
        return held

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar a metric."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415

        values = [Summary.Value(tag=name, simple_value=v) for name, v in metrics.items()]
        self._write(step=step, summary=Summary(value=values))

    def end(self, status: str) -> None:
        """Close the file; a run's status has no place in it."""
        self._records.close()

    def _write(self, **fields: Any) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
        self._records.flush()


def _last_step(card: Card) -> int:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    found = EventAccumulator(str(card.folder), size_guidance={"scalars": ALL}).Reload()
    tags = found.Tags()["scalars"]
    return max((scalar.step for tag in tags for scalar in found.Scalars(tag)), default=0)
