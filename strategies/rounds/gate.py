"""Replies in, verdicts out, in partition order: where the firewall stands in a round.

An answer whose norm is within the bound of earlier rounds is handed on in its turn. At the first
that is not, and where there is no bound yet, all that are left are looked at before one is handed
on, for the others say, too, what is too far; they wait on disk, so that memory stays flat. What is
accepted depends on neither arrival nor waiting, and all that is remembered is in ``State.norms``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

from flwr.app import Message

from atlas_flwr.errors import AtlasError, WireError
from atlas_flwr.types import Job, Update
from atlas_flwr.wire import count_bytes, read_update
from strategies.rounds import norms
from strategies.rounds.exchange import spooled, telling_line
from strategies.rounds.firewall import admitted, most_rows
from strategies.state import Setting, State

Most = Mapping[str, float]
_Size = tuple[norms.Norms, float]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Verdict:
    """What became of one reply.

    Attributes:
        update: The answer, where it was accepted.
        status: ``"ok"``, ``"lost"`` (no answer) or ``"rejected"`` (one that was refused).
        error: Why, in one line, unless ``"ok"``.
        moved: Bytes of the reply by kind.
        sizes: Its norms, where it passed all but these.
        shapes: Of its fingerprint.
    """

    update: Update | None
    status: Literal["ok", "lost", "rejected"] = "ok"
    error: str | None = None
    moved: Mapping[str, int] = field(default_factory=dict)
    sizes: norms.Norms = field(default_factory=dict)
    shapes: Shapes = ()

    def refused(self, error: AtlasError) -> Verdict:
        """Return the verdict of a reply that was refused after all."""
        return replace(self, update=None, status="rejected", error=str(error))


class Gate:
    """Passes each phase's replies on, or refuses them.

    Args:
        setting: The run's facts.
        ratio: How far beyond the median an answer may go.
        arrived: Told how many replies there are of all, while none is handed on yet.

    Attributes:
        declared: What clients said of their rows when they said hello, by partition.
    """

    def __init__(
        self,
        setting: Setting,
        ratio: float,
        arrived: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._setting, self._ratio, self._arrived = setting, ratio, arrived
        self._total = 0
        self._strides = norms.strides(setting)
        self._accepted: list[_Size] = []
        self.declared: Mapping[int, Mapping[str, int]] = {}

    def screen(
        self, state: State, jobs: Sequence[Job], replies: Iterable[Message]
    ) -> Iterator[Verdict]:
        """Yield a verdict for each reply, in their order.

        Args:
            state: As of the beginning of the exchange.
            jobs: What was asked, in partition order.
            replies: One for each job.
        """
        self._accepted, self._total, sizes = [], len(jobs), list[_Size]()
        known = norms.bounds(state.norms, {}, self._ratio)
        turns = zip(jobs, replies, strict=True)
        for job, reply in turns:
            verdict = self._looked(job, reply)
            stride = norms.stride_of(job, self._strides)
            sizes.append((verdict.sizes, stride))
            if verdict.status == "ok" and not self._known(job, verdict, known, stride):
                yield from self._together(state, sizes, chain([(job, reply)], turns))
                return
            yield self._held_against(known, verdict, stride)

    def remembered(self, state: State) -> State:
        """Return the state with the norms of what the last exchange accepted."""
        accepted, self._accepted = norms.together(self._accepted), []
        return replace(state, norms=norms.remembered(state.norms, accepted)) if accepted else state

    def _looked(self, job: Job, reply: Message) -> Verdict:
        """Return the verdict but for the norms."""
        if reply.has_error():
            return Verdict(None, "lost", telling_line(reply.error.reason))
        try:
            moved = count_bytes(reply.content)
        except (ValueError, TypeError) as error:
            return Verdict(None, "rejected", f"the reply can't be serialised: {error}")
        try:
            most = most_rows(job, self._setting, self.declared)
            update = admitted(job, reply.content, self._setting, most)
            sizes = norms.norms_of(job, update) if job.action.startswith("train") else {}
        except AtlasError as error:
            return Verdict(None, "rejected", str(error), moved)
        prints = update.fingerprint if job.action == "train.fingerprint" else {}
        shapes = tuple((name, prints[name].shape) for name in sorted(prints))
        return Verdict(update, "ok", None, moved, sizes, shapes)

    def _held_against(self, most: Most, verdict: Verdict, stride: float) -> Verdict:
        """Return the verdict with the norms; note those of an answer that is accepted."""
        try:
            norms.check_norms(verdict.sizes, most, self._ratio, stride)
        except WireError as error:
            return verdict.refused(error)
        if verdict.status == "ok":
            self._accepted.append((verdict.sizes, stride))
        return verdict

    def _known(self, job: Job, verdict: Verdict, most: Most, stride: float) -> bool:
        """Tell whether what is known of earlier rounds is enough to accept an answer."""
        if not self._ratio:
            return True
        if job.action == "train.fingerprint" or verdict.sizes.keys() - most.keys():
            return False
        return all(norm <= most[key] * stride for key, norm in verdict.sizes.items())

    def _together(
        self, state: State, sizes: list[_Size], turns: Iterable[tuple[Job, Message]]
    ) -> Iterator[Verdict]:
        """Look at all that are left, then hold each against everybody; contents wait on disk.

        Args:
            state: As of the beginning of the exchange.
            sizes: Norms and strides of those before, and of the first that is left.
            turns: Those that are left.
        """
        found: list[tuple[Job, Verdict, float]] = []
        with spooled() as spool:
            for turn, (job, reply) in enumerate(turns):
                verdict, stride = self._looked(job, reply), norms.stride_of(job, self._strides)
                if verdict.status == "ok":
                    spool.put(turn, reply)
                found.append((job, replace(verdict, update=None), stride))
                self._arrived(len(sizes) - 1 + len(found), self._total)
            everybody = [*sizes[:-1], *((v.sizes, stride) for _, v, stride in found)]
            most = norms.bounds(state.norms, norms.together(everybody), self._ratio)
            usual = self._usual_shapes(found)
            for turn, (job, verdict, stride) in enumerate(found):
                shapes = usual.get(self._labels(job))
                if verdict.shapes and verdict.shapes != shapes:
                    odd = WireError(f"fingerprint: shapes {verdict.shapes}, the others' {shapes}")
                    yield verdict.refused(odd)
                    continue
                held = self._held_against(most, verdict, stride)
                if held.status == "ok":
                    content = spool.take(turn).content
                    held = replace(held, update=read_update(content, job.partition))
                yield held

    def _labels(self, job: Job) -> int:
        return self._setting.num_labels[self._setting.tasks[job.partition]]

    def _usual_shapes(self, found: Sequence[tuple[Job, Verdict, float]]) -> dict[int, Shapes]:
        """Return the shapes that most fingerprints of a label space have, the first of equals."""
        votes: dict[int, Counter[Shapes]] = {}
        for job, verdict, _ in found:
            if verdict.shapes:
                votes.setdefault(self._labels(job), Counter())[verdict.shapes] += 1
        return {labels: each.most_common(1)[0][0] for labels, each in votes.items()}
