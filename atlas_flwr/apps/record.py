"""What happens in a run, written to its directory and told to whoever watches."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas_flwr.apps.keeping import Keeper, check_mirror
from atlas_flwr.apps.resume import restore
from atlas_flwr.config.load import dump_config
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.checkpoint import Commit
from atlas_flwr.engine.files import passed
from atlas_flwr.results.events import append_event, cut_events
from atlas_flwr.results.lines import found_lines
from atlas_flwr.results.provenance import provenance
from atlas_flwr.results.ranked import ranks_line
from atlas_flwr.results.record import (
    Bytes,
    ClientRow,
    RoundRecord,
    RunFacts,
    Status,
    final_scores,
    summary,
)
from atlas_flwr.results.store import RunWriter, prepare, read_extra, to_json
from atlas_flwr.results.sweeps import flat
from atlas_flwr.results.trackers import Trackers
from atlas_flwr.results.writing import atomic_write
from strategies.state import State

EVENTS = "events.jsonl"
Watcher = Callable[[Mapping[str, Any]], None]


class Recorder:
    """The run directory's writer, as the federation's observer.

    Args:
        config: The experiment.
        out: The run directory.
        engine: Name for the summary.
        argv: The command as typed.
        watch: Called with every event, in this process.
        since: Where a run goes on from; None: from its beginning.
        fresh: Whether the directory is a new one.

    Attributes:
        out: The run directory.
        rounds: Records of the rounds that ended; those read back are plain.
    """

    def __init__(
        self,
        config: Config,
        out: Path,
        engine: str,
        argv: Sequence[str],
        watch: Watcher | None = None,
        since: Commit | None = None,
        fresh: bool = True,
    ) -> None:
        self.out, self._watch = out, watch
        self._facts = _facts(config, engine)
        self._began, self._before = time.monotonic(), since.seconds if since else 0.0
        check_mirror(config, out, fresh)
        self._writer = self._opened(config, provenance(list(argv), config.run.seed), since, fresh)
        self.rounds: list[RoundRecord | Mapping[str, Any]] = [*self._writer.rounds_so_far()]
        self._rows: list[ClientRow] = self._writer.rows_so_far()
        self._keeper = Keeper(config, out)
        cut_events(out / EVENTS)
        self.tell(
            "start",
            experiment=config.run.name,
            strategy=config.strategy.name,
            model=config.model.name,
            engine=engine,
            rounds=config.run.rounds,
            clients=config.run.clients,
            tasks=list(config.data.tasks),
            **({} if fresh else {"resumed": [_plain(r)["accuracy"] for r in self.rounds]}),
        )
        self._trackers = Trackers(config.run.trackers, out, shown_config(config), self._note)
        self._trackers.start([_plain(r) for r in self.rounds], self._rows)

    def _opened(
        self, config: Config, now: dict[str, Any], since: Commit | None, fresh: bool
    ) -> RunWriter:
        """Return the writer of a new directory, or of one put back to where the run stood."""
        if shared := read_extra(self.out / "autopilot.json"):
            now = {**now, "autopilot": shared}
        if fresh:
            prepare(self.out)
            writer = RunWriter(self.out)
            # The config comes last: from then on there is a run to go on with.
            writer.write_provenance({**now, "engine": self._facts.engine})
            writer.write_config(dump_config(config))
            return writer
        restore(self.out, since)
        reached = since.round if since else 0
        writer = RunWriter.reopen(self.out, reached)
        writer.replace_config(dump_config(config))
        told = read_extra(self.out / "provenance.json")
        again = {"after_round": reached, **now}
        writer.write_provenance({**told, "resumed": [*told.get("resumed", []), again]})
        return writer

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, earlier sessions included."""
        return self._before + time.monotonic() - self._began

    def tell(self, event: str, **facts: Any) -> None:
        """Tell whoever watches, in this process or through the file."""
        told = {"event": event, **facts}
        append_event(self.out / EVENTS, {**told, "time": time.time()})
        if self._watch is not None:
            self._watch(told)

    def _note(self, text: str) -> None:
        self.tell("note", partition=None, text=text)

    # -------------------------------------------------------------- the observer

    def phase(self, round_: int, phase: str, partitions: Sequence[int]) -> None:
        """A phase begins."""
        self.tell("phase", round=round_, phase=phase, clients=len(partitions))

    def arrived(self, done: int, total: int) -> None:
        """So many replies are there, and wait for the others to be judged together."""
        self.tell("arrived", done=done, total=total)

    def client(self, row: ClientRow, notes: Sequence[str], done: int, total: int) -> None:
        """A client has answered, or is lost."""
        self._rows.append(row)
        self._writer.add_rows([row])
        for note in notes:
            self.tell("note", partition=row.partition, text=note)
        if row.status != "ok":
            text = f"{row.status} in {row.phase}: {row.error}"
            self.tell("note", partition=row.partition, text=text)
        self.tell(
            "client",
            round=row.round,
            phase=row.phase,
            partition=row.partition,
            done=done,
            total=total,
        )

    def round(self, record: RoundRecord) -> None:
        """A round has ended: its line is on disk before the next begins."""
        passed("round-ended")
        self.rounds.append(record)
        self._writer.append_round(record)
        passed("rows-written")
        self.tell("round", **record.to_dict())
        self._trackers.round(record.to_dict(), self._rows)

    def commit(self, state: State, moved: Bytes) -> State:
        """Keep where the run stands; return what it goes on from.

        Raises:
            RunStopped: The run's time is up.
        """
        kept = self._keeper.commit(state, moved, self.seconds)
        self._keeper.check_time(state.round)
        return kept

    def clusters(self, facts: Mapping[str, Any]) -> None:
        """Clients have been clustered: the choice and its reasons go to ``clusters.json``.

        What ``facts`` holds as ``ranks`` is a file of its own, ``ranks.json``.
        """
        found, ranks = dict(facts), facts.get("ranks")
        found.pop("ranks", None)
        atomic_write(self.out / "clusters.json", to_json(found, indent=2) + "\n")
        self.tell("note", partition=None, text=f"clusters: {facts['k']}. {facts['why']}")
        for said in found_lines(found):
            self.tell("note", partition=None, text=said)
        if ranks is not None:
            atomic_write(self.out / "ranks.json", to_json(ranks, indent=2) + "\n")
            if said := ranks_line(ranks):
                self.tell("note", partition=None, text=said)

    # -------------------------------------------------------------- the end

    def complete(self, final_rows: Sequence[ClientRow], moved: Bytes) -> None:
        """Write the summary of a run that got to its end.

        Args:
            final_rows: A ``final`` row for every client.
            moved: All bytes of the run.
        """
        passed("exported")
        recorded = {row.partition for row in self._rows if row.phase == "final"}
        self._writer.add_rows(row for row in final_rows if row.partition not in recorded)
        last = _plain(self.rounds[-1])["round"]
        own = [row for row in self._rows if row.phase == "evaluate" and row.round == last]
        scores = final_scores(final_rows, own)
        self._finish("completed", scores, moved)
        self.tell("final", **scores)

    def fail(self, error: BaseException, moved: Bytes) -> None:
        """Write the summary of a run that stopped: what was measured stays, the end is null."""
        self._finish("failed", final_scores([], []), moved)
        lines = (str(error) or type(error).__name__).splitlines()
        self.tell("error", text=lines[0])

    def stop(self, why: str, moved: Bytes) -> None:
        """Write the summary of a run that was stopped on purpose."""
        self._finish("stopped", final_scores([], []), moved)
        self.tell("stop", text=why)

    def copied(self) -> None:
        """Everything is written: copy the results to the run's mirror."""
        self._keeper.finish()

    def _finish(self, status: Status, scores: Mapping[str, Any], moved: Bytes) -> None:
        peaks = [row.peak_memory_mb for row in self._rows if row.peak_memory_mb is not None]
        peak = max(peaks, default=None)
        facts, seconds = self._facts, self.seconds
        told = summary(facts, status, self.rounds, scores, moved, seconds, peak)
        self._writer.finish(told)
        passed("closed")
        self._trackers.end(told)


def close_unfinished(
    config: Config, out: Path, engine: str, error: str, seconds: float, status: Status = "failed"
) -> None:
    """Write the summary that a killed server could not: the rounds that ended, and how.

    Does nothing where the server wrote its own, or had not begun to write.

    Args:
        config: The experiment.
        out: Its run directory.
        engine: Name for the summary.
        error: One line on how it ended.
        seconds: Wall time of the run.
        status: How it ended.
    """
    if not (out / "config.toml").exists() or (out / "summary.json").exists():
        return
    path = out / "rounds.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # the last line may have been cut by the kill
    # Killed between the first round's line and its rows: it has no round yet.
    begun = (out / "clients.parquet").exists()
    rounds = [json.loads(line) for line in whole.splitlines()] if begun else []
    moved = sum((Bytes(r["by_kind_up"], r["by_kind_down"]) for r in rounds), Bytes())
    peak = max((r["memory_mb"] for r in rounds if r["memory_mb"] is not None), default=None)
    facts, none = _facts(config, engine), final_scores([], [])
    writer = RunWriter.reopen(out, len(rounds))
    writer.finish(summary(facts, status, rounds, none, moved, seconds, peak))
    name = "stop" if status == "stopped" else "error"
    append_event(out / EVENTS, {"event": name, "text": error})


def _plain(record: RoundRecord | Mapping[str, Any]) -> Mapping[str, Any]:
    return record.to_dict() if isinstance(record, RoundRecord) else record


def shown_config(config: Config) -> dict[str, str]:
    """Return the config as trackers show it: dotted keys, values as text, no places."""
    return {
        key: value
        for key, value in flat(tomllib.loads(dump_config(config))).items()
        if key not in ("run.out", "run.mirror", "data.root")
    }


def _facts(config: Config, engine: str) -> RunFacts:
    return RunFacts(
        experiment=config.run.name,
        strategy=config.strategy.name,
        model=config.model.name,
        engine=engine,
        seed=config.run.seed,
    )
