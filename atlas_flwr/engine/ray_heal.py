"""Flower's pool of Ray workers, mended: one killed worker must not poison a run.

Flower 1.41 puts a dead worker back into its pool, where it fails every job in an instant and so
draws most of them: one `kill -9` loses three clients of four in that round and in every later one.
Its public API has nothing that replaces a worker, so a pool that does takes the place of its own.
This fits one version of Flower and looks before it touches anything: where it does not fit,
Flower's own pool stays, and the log says so.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache, wraps
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from logging import WARNING
from pathlib import Path
from typing import Any, ClassVar

from flwr.clientapp.client_app import ClientAppException

from atlas_flwr.results.events import append_event
from atlas_flwr.wire import job_config

FITS = "1.41."
LIVES = 2  # workers that one job may cost: one that kills both is the culprit
_POLL_SECONDS = 0.5
_VCE = "flwr.server.superlink.fleet.vce.vce_api"
_BACKEND = "flwr.server.superlink.fleet.vce.backend.raybackend"
_POOL = {
    "submit": ["self", "actor_fn", "job"],
    "add_actor_back_to_pool": ["self", "future"],
    "fetch_result_and_return_actor_to_pool": ["self", "future"],
}
_WORKER = ["messageins_queue", "messageres_queue", "node_info_store", "backend", "f_stop"]


class Healing:
    """What a pool of workers does besides Flower's ``BasicActorPool``, of which it is a mixin.

    A job whose worker died is run again, once, on a new one. A client is a function of its message
    and its vault, which keeps what a round started from, so the answer has the bits of an
    undisturbed one. A job that works longer than ``run.client-timeout``, or still works when the
    run has ended, is ended with its worker.

    Attributes:
        ray: The ``ray`` package.
        tell: Is told the job and what happened to its worker.
        stopping: Set by Flower when the run has ended.
    """

    ray: ClassVar[Any]
    tell: ClassVar[Callable[[Any, str], None]]
    stopping: threading.Event | None = None
    create_actor_fn: Callable[[], Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._jobs: dict[Any, tuple[Any, Any]] = {}
        self._future_to_actor: dict[Any, Any]

    def submit(self, actor_fn: Any, job: Any) -> Any:
        """Give a job to an idle worker, and keep it."""
        future = super().submit(actor_fn, job)  # type: ignore[misc]
        self._jobs[future] = (actor_fn, job)
        return future

    def fetch_result_and_return_actor_to_pool(self, future: Any) -> Any:
        """Return the job's reply and context, from the second worker if need be.

        Raises:
            ClientAppException: There is none: its workers died, it took too long, or the run ended
                first. Flower answers with an error reply, and puts the worker that ``future`` maps
                to, by then a new one, back into the pool.
        """
        actor_fn, job = self._jobs.pop(future)
        gone = self.ray.exceptions
        running = future
        for lost in range(1, LIVES + 1):
            if why := self._await(running, _limit(job)):
                self._replace(future)
                raise ClientAppException(why)
            try:
                _, reply, context = self.ray.get(running)
                break
            except (gone.RayActorError, gone.WorkerCrashedError, gone.OutOfMemoryError) as error:
                self._replace(future)
                if lost == LIVES:
                    raise ClientAppException(_died(error)) from error
                type(self).tell(job, "its worker process died; the job runs again on a new one")
                running = actor_fn(self._future_to_actor[future], *job)
        self.add_actor_back_to_pool(future)  # type: ignore[attr-defined]
        return reply, context

    def _replace(self, future: Any) -> None:
        """Put a new worker in the place of the job's, unless the run has ended."""
        # Ray may call a worker dead that it lost sight of, which then keeps its share of the GPU.
        self.ray.kill(self._future_to_actor[future])
        if not self._ended():
            self._future_to_actor[future] = self.create_actor_fn()

    def _await(self, running: Any, limit: float | None) -> str:
        """Wait for a reply; return why there is none, if the run ended or the time is up."""
        began = time.monotonic()
        while not self.ray.wait([running], timeout=_POLL_SECONDS)[0]:
            if self._ended():
                return "the run ended before the client did"
            if limit is not None and time.monotonic() - began > limit:
                return f"worked longer than run.client-timeout ({limit:g} s); its worker was ended"
        return ""

    def _ended(self) -> bool:
        return self.stopping is not None and self.stopping.is_set()


def healing(base: type[Any], ray: Any, tell: Callable[[Any, str], None]) -> type[Any]:
    """Return Flower's pool class with ``Healing`` before it.

    Args:
        base: ``flwr.simulation.ray_transport.ray_actor.BasicActorPool``.
        ray: The ``ray`` package.
        tell: Is told a job, ``(app, message, partition, context)``, and what happened to it.
    """
    return type("HealingPool", (Healing, base), {"ray": ray, "tell": staticmethod(tell)})


def install() -> None:
    """Mend Flower's simulation, where this process is one; say so where it can't be mended.

    Called when the ClientApp is imported, which a simulation does before it makes its workers.
    """
    if _VCE not in sys.modules or find_spec("ray") is None:
        return
    from flwr.supercore import log  # noqa: PLC0415 - where this runs, Flower is loaded

    vce: Any = sys.modules[_VCE]
    backend: Any = import_module(_BACKEND)
    if why := misfit(backend, vce, version("flwr")):
        log(WARNING, "A killed Ray worker will not be replaced: %s", why)
    elif not issubclass(backend.BasicActorPool, Healing):
        backend.BasicActorPool = healing(backend.BasicActorPool, backend.ray, tell)
        vce.worker = _told_the_end(vce.worker)


def misfit(backend: Any, vce: Any, flower: str) -> str:
    """Return why the mend does not fit; an empty string where it does.

    Args:
        backend: Flower's module ``raybackend``.
        vce: Flower's module ``vce_api``.
        flower: Flower's version.
    """
    if not flower.startswith(FITS):
        return f"written for Flower {FITS}x, this is {flower}"
    pool = getattr(backend, "BasicActorPool", None)
    for name, words in _POOL.items():
        if _words(getattr(pool, name, None)) != words:
            return f"BasicActorPool.{name} is not what it was"
    if _words(getattr(vce, "worker", None))[: len(_WORKER)] != _WORKER:
        return "vce_api.worker is not what it was"
    return ""


def tell(job: Any, text: str) -> None:
    """Say what happened to a client's worker, in Flower's log and among the run's events."""
    from flwr.supercore import log  # noqa: PLC0415 - where this runs, Flower is loaded

    _, message, partition, _ = job
    log(WARNING, "partition %s: %s", partition, text)
    out = _run_section(job_config(message.content)).get("out")
    if out and (events := Path(out) / "events.jsonl").is_file():
        append_event(events, {"event": "note", "partition": int(partition), "text": text})


def _told_the_end(worker: Callable[..., None]) -> Callable[..., None]:
    """Return Flower's worker thread, which now tells its pool where to see that the run ended."""

    @wraps(worker)
    def told(inbox: Any, outbox: Any, nodes: Any, backend: Any, f_stop: Any, *more: Any) -> None:
        backend.pool.stopping = f_stop
        worker(inbox, outbox, nodes, backend, f_stop, *more)

    return told


def _words(call: Any) -> list[str]:
    """Return the names of a function's arguments; none for anything else."""
    return list(inspect.signature(call).parameters) if inspect.isfunction(call) else []


def _died(error: Exception) -> str:
    """Return why a job is given up; Ray knows some reasons and not others."""
    sure = "out of memory" in str(error).lower() or type(error).__name__ == "OutOfMemoryError"
    return f"its worker process died twice (out of memory{'' if sure else '?'})"


def _limit(job: Any) -> float | None:
    """Return the seconds a client may work; None for a message that carries no experiment."""
    seconds = _run_section(job_config(job[1].content)).get("client_timeout")
    return None if seconds is None else float(seconds)


@lru_cache(maxsize=4)
def _run_section(config: str) -> dict[str, Any]:
    """Return ``[run]`` of an experiment as JSON; empty where the text is not one."""
    try:
        section = json.loads(config)["run"]
    except (ValueError, LookupError, TypeError):
        return {}
    return section if isinstance(section, dict) else {}


install()
