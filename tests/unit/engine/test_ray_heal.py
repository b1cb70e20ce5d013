"""Flower's own pool with workers that die, over a Ray that answers without processes."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from importlib.metadata import version
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.clientapp.client_app import ClientAppException
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend import raybackend
from flwr.simulation.ray_transport import ray_actor

from atlas_flwr.engine import ray_heal
from strategies.rounds.exchange import telling_line

# The class as Flower ships it, also where importing the apps has put ours in its place.
FLOWERS = ray_actor.BasicActorPool


class Died(Exception):
    """What Ray raises for a worker that has gone."""


class FakeRay:
    """Workers that answer when they are asked; ``deaths`` says how many of them die first."""

    exceptions = SimpleNamespace(
        RayActorError=Died, WorkerCrashedError=Died, OutOfMemoryError=MemoryError
    )

    def __init__(self, *endings: Any) -> None:
        self._endings, self._ids = list(endings), count(1)
        self.killed: list[Any] = []

    def new_actor(self) -> int:
        return next(self._ids)

    def wait(self, futures: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return ([], futures) if self._endings[:1] == ["hangs"] else (futures, [])

    def get(self, future: Any) -> Any:
        actor, job = future
        ending = self._endings.pop(0) if self._endings else None
        if isinstance(ending, Exception):
            raise ending
        return job[2], f"reply of {actor}", job[3]

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)
        if self._endings[:1] == ["hangs"]:
            self._endings.pop(0)


class Letter:
    """A message: what it carries."""

    def __init__(self, content: RecordDict) -> None:
        self.content = content


def job(timeout: float | None = None) -> Any:
    content = RecordDict()
    if timeout is not None:
        run = {"run": {"client_timeout": timeout}}
        content["job"] = ConfigRecord({"job": "{}", "config": json.dumps(run)})
    return None, Letter(content), "3", "context"


@pytest.fixture
def pool_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeRay], Any]:
    """Make a pool of two workers over a fake Ray."""

    def make(ray: FakeRay) -> Any:
        monkeypatch.setattr(ray_actor, "ray", ray)
        monkeypatch.setattr(ray_actor, "pool_size_from_resources", lambda resources: 2)
        told: list[str] = []
        kind = ray_heal.healing(FLOWERS, ray, lambda job, text: told.append(f"{job[2]}: {text}"))
        pool = kind(SimpleNamespace(), {"num_cpus": 1}, {})
        pool.create_actor_fn = ray.new_actor
        pool.add_actors_to_pool(2)
        pool.told = told
        return pool

    return make


def ask(pool: Any, what: Any) -> Any:
    """Do what Flower's backend does with a job, also when it fails."""
    future = pool.submit(lambda actor, *job: (actor, job), what)
    try:
        return pool.fetch_result_and_return_actor_to_pool(future)
    except Exception:
        pool.add_actor_back_to_pool(future)
        raise


def test_nothing_changes_where_nobody_dies(pool_of: Callable[[FakeRay], Any]) -> None:
    ray = FakeRay()
    pool = pool_of(ray)
    assert ask(pool, job()) == ("reply of 2", "context")
    assert (sorted(pool.pool), ray.killed, pool.told, pool._jobs) == ([1, 2], [], [], {})


@pytest.mark.parametrize("death", [Died("gone"), MemoryError("too much")])
def test_a_job_whose_worker_died_runs_again(
    pool_of: Callable[[FakeRay], Any], death: Exception
) -> None:
    ray = FakeRay(death)
    pool = pool_of(ray)
    assert ask(pool, job()) == ("reply of 3", "context")
    assert (sorted(pool.pool), ray.killed) == ([1, 3], [2])
    assert pool.told == ["3: its worker process died; the job runs again on a new one"]


@pytest.mark.parametrize(
    ("second", "sure"), [(Died("gone"), False), (Died("killed: node ran out of memory"), True)]
)
def test_a_job_that_kills_two_workers_is_given_up(
    pool_of: Callable[[FakeRay], Any], second: Exception, sure: bool
) -> None:
    ray = FakeRay(Died("gone"), second)
    pool = pool_of(ray)
    with pytest.raises(ClientAppException) as caught:
        ask(pool, job())
    # As it arrives at the server, in the words of Flower's error reply.
    reason = f"{type(caught.value)}:<'{caught.value}'>"
    mark = "" if sure else "?"
    assert telling_line(reason) == f"its worker process died twice (out of memory{mark})"
    assert sorted(pool.pool) == [1, 4]
    assert ask(pool, job())[0] == "reply of 4"  # the others never notice


def test_a_clients_own_error_is_no_death(pool_of: Callable[[FakeRay], Any]) -> None:
    ray = FakeRay(ClientAppException("no rows"))
    pool = pool_of(ray)
    with pytest.raises(ClientAppException, match="no rows"):
        ask(pool, job())
    assert (sorted(pool.pool), ray.killed, pool.told) == ([1, 2], [], [])


def test_who_works_too_long_is_ended(pool_of: Callable[[FakeRay], Any]) -> None:
    ray = FakeRay("hangs")
    pool = pool_of(ray)
    with pytest.raises(ClientAppException, match=r"longer than run.client-timeout \(0.01 s\)"):
        ask(pool, job(timeout=0.01))
    assert (sorted(pool.pool), ray.killed) == ([1, 3], [2])


def test_the_end_of_the_run_waits_for_nobody(pool_of: Callable[[FakeRay], Any]) -> None:
    ray = FakeRay("hangs")
    pool = pool_of(ray)
    pool.stopping = threading.Event()
    pool.stopping.set()
    with pytest.raises(ClientAppException, match="the run ended"):
        ask(pool, job())
    assert ray.killed == [2]
    assert sorted(pool.pool) == [1, 2]  # nobody is started for a run that has ended


def test_it_fits_this_flower() -> None:
    backend = SimpleNamespace(BasicActorPool=FLOWERS)
    assert ray_heal.misfit(backend, vce_api, version("flwr")) == ""


def test_another_flower_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Other:
        def submit(self, actor_fn: Any, job: Any, more: Any) -> None: ...

    worker = vce_api.worker
    monkeypatch.setattr(raybackend, "BasicActorPool", Other)
    flower = logging.getLogger("flwr")
    flower.addHandler(caplog.handler)
    try:
        ray_heal.install()
    finally:
        flower.removeHandler(caplog.handler)
    assert "A killed Ray worker will not be replaced" in caplog.text
    assert raybackend.BasicActorPool is Other
    assert vce_api.worker is worker
    told = ray_heal.misfit(raybackend, vce_api, version("flwr"))
    assert told == "BasicActorPool.submit is not what it was"
    assert ray_heal.misfit(raybackend, vce_api, "1.50.0").startswith("written for Flower 1.41")


def test_it_is_put_in_place_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raybackend, "BasicActorPool", FLOWERS)
    monkeypatch.setattr(vce_api, "worker", vce_api.worker)
    ray_heal.install()
    first, worker = raybackend.BasicActorPool, vce_api.worker
    assert issubclass(first, ray_heal.Healing)
    assert issubclass(first, FLOWERS)
    ray_heal.install()
    assert (raybackend.BasicActorPool, vce_api.worker) == (first, worker)


def test_the_pool_learns_when_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    told = ray_heal._told_the_end(lambda *words: seen.append(words))
    backend, stop = SimpleNamespace(pool=SimpleNamespace()), threading.Event()
    told("in", "out", {}, backend, stop, "metrics")
    assert backend.pool.stopping is stop
    assert seen == [("in", "out", {}, backend, stop, "metrics")]


def test_the_user_is_told(tmp_path: Any) -> None:
    (tmp_path / "events.jsonl").touch()
    _, message, partition, context = job(1.0)
    told = {"run": {"client_timeout": 1.0, "out": str(tmp_path)}}
    message.content["job"] = ConfigRecord({"job": "{}", "config": json.dumps(told)})
    ray_heal.tell((None, message, partition, context), "its worker process died")
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line) == {"event": "note", "partition": 3, "text": "its worker process died"}
