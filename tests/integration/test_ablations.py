"""Strategies that must agree do, to the bit where the mathematics says so; others must differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from atlas_flwr.engine.inline import InlineGrid
from runs import Run

pytestmark = pytest.mark.usefixtures("no_report")


def arrays(found: Run, key: str = "global") -> dict[str, np.ndarray]:
    """Return an exported adapter's tensors."""
    return load((found.folder / "adapters" / key / "adapter_model.safetensors").read_bytes())


def bits(found: Run, key: str = "global") -> bytes:
    return (found.folder / "adapters" / key / "adapter_model.safetensors").read_bytes()


def strategy(name: str, **options: Any) -> dict[str, Any]:
    named = {key.replace("_", "-"): value for key, value in options.items()}
    return {"strategy": {"name": name, "options": named}}


MERGE = ("aggregation_error", "truncation_error", "compression_error", "effective_rank")


def scores(found: Run) -> dict[str, Any]:
    """Return ``measured`` without the numbers of the merge, which a run may not have."""
    measured = found.measured()
    plain = [{k: v for k, v in line.items() if k not in MERGE} for line in measured["rounds"]]
    return {**measured, "rounds": plain}


def merged(found: Run, key: str) -> list[Any]:
    """Return one number of the merge, round by round."""
    return [line[key] for line in found.rounds]


def test_fedprox_without_its_term_is_fedavg(run: Callable[..., Run]) -> None:
    fedavg = run("fedavg")
    nothing = run("prox0", **strategy("fedprox", mu=0.0))
    assert nothing.tensors() == fedavg.tensors()
    assert nothing.measured() == fedavg.measured()
    held_back = run("prox1", **strategy("fedprox", mu=1.0))
    assert bits(held_back) != bits(fedavg)


def test_a_strong_proximal_term_holds_clients_near_the_start(run: Callable[..., Run]) -> None:
    def moved(found: Run) -> float:
        factors = arrays(found)
        return float(sum(np.square(t).sum() for n, t in factors.items() if "lora_B" in n))

    weak = run("weak", **strategy("fedprox", mu=0.0), run={"rounds": 1})
    strong = run("strong", **strategy("fedprox", mu=100.0), run={"rounds": 1})
    assert moved(strong) < moved(weak) / 2


def test_server_momentum(run: Callable[..., Run]) -> None:
    fedavg = run("fedavg")
    plain = run("m0", **strategy("fedavgm", momentum=0.0, learning_rate=1.0))
    assert arrays(plain).keys() == arrays(fedavg).keys()
    for name, tensor in arrays(fedavg).items():
        np.testing.assert_allclose(arrays(plain)[name], tensor, atol=1e-6)
    heavy = run("m9", **strategy("fedavgm", momentum=0.9))
    assert any(
        not np.allclose(arrays(heavy)[name], tensor, atol=1e-4)
        for name, tensor in arrays(fedavg).items()
    )
    # Momentum has no past in round 1.
    one, avg = (
        run("m9-one", **strategy("fedavgm", momentum=0.9), run={"rounds": 1}),
        run("avg-one", run={"rounds": 1}),
    )
    for name, tensor in arrays(avg).items():
        np.testing.assert_allclose(arrays(one)[name], tensor, atol=1e-6)


def test_fedadam_is_none_of_the_others(run: Callable[..., Run]) -> None:
    fedavg, adam = run("fedavg"), run("adam", **strategy("fedadam"))
    small = run("small", **strategy("fedadam", learning_rate=1e-5))
    assert bits(adam) != bits(fedavg)
    # About the rate a round at most: a small rate stays near the start, where B is 0.
    for name, tensor in arrays(small).items():
        if "lora_B" in name:
            assert np.abs(tensor).max() < 5e-5


def test_alone_is_alone(run: Callable[..., Run]) -> None:
    """With one client there is nobody to average with: the same rows, the same seed, same bits."""
    one = {"run": {"clients": 1}}
    fedavg = run("fedavg", **one)
    local = run("local", **one, **strategy("local_only"))
    central = run("central", **one, **strategy("centralised"))
    assert bits(local, "client-0") == bits(fedavg) == bits(central, "task-two")
    assert fedavg.measured() == central.measured()
    assert scores(local) == scores(fedavg)
    # A mean of one is that one, to float32; nothing was merged where nothing was shared.
    assert all(error < 1e-6 for error in merged(fedavg, "aggregation_error"))
    assert {key: merged(local, key) for key in MERGE} == {key: [None, None] for key in MERGE}


def test_one_client_a_task_pools_nothing(run: Callable[..., Run]) -> None:
    base = {"data": {"tasks": ["two", "three"]}, "run": {"clients": 2}}
    local = run("local", **base, **strategy("local_only"))
    central = run("central", **base, **strategy("centralised"))
    for partition, task in enumerate(("two", "three")):
        assert bits(local, f"client-{partition}") == bits(central, f"task-{task}")
    assert scores(local) == scores(central)
    assert all(error < 1e-6 for error in merged(central, "aggregation_error"))


def test_sharing_differs_from_not_sharing(run: Callable[..., Run]) -> None:
    fedavg, local = run("fedavg"), run("local", **strategy("local_only"))
    central = run("central", **strategy("centralised"))
    pooled = run("control", **strategy("centralised", steps="client"))
    clients = [bits(local, f"client-{p}") for p in range(3)]
    files = {bits(fedavg), bits(central, "task-two"), bits(pooled, "task-two"), *clients}
    assert len(files) == 6
    # One client trains the pool.
    assert set(central.clients[central.clients.phase == "train"].partition) == {0}


def test_mixed_ranks_stay_apart(run: Callable[..., Run]) -> None:
    local = run(**strategy("local_only"), lora={"rank": [1, 2, 3]})
    for partition in range(3):
        factors = arrays(local, f"client-{partition}")
        ranks = {t.shape[0] for name, t in factors.items() if "lora_A" in name}
        assert ranks == {partition + 1}
    rows = local.clients
    assert dict(zip(rows.partition, rows.ranks, strict=True)) == {0: "1", 1: "2", 2: "3"}


def test_head_policies_differ(run: Callable[..., Run]) -> None:
    base = {"data": {"tasks": ["two", "deux"]}, "run": {"clients": 4}}
    found = {
        policy: run(policy, **base, model={"head": policy})
        for policy in ("shared", "per_task", "local")
    }
    keys = {policy: {Path(name).parent.name for name in r.tensors()} for policy, r in found.items()}
    assert keys == {
        "shared": {"global"},
        "per_task": {"task-two", "task-deux"},
        "local": {f"client-{p}" for p in range(4)},
    }
    bodies: dict[str, dict[str, bytes]] = {}
    for policy, run_ in found.items():
        heads = set()
        for key in keys[policy]:
            tensors = arrays(run_, key)
            body = {n: t.tobytes() for n, t in tensors.items() if "lora_" in n}
            heads.add(tuple(t.tobytes() for n, t in sorted(tensors.items()) if "lora_" not in n))
            # One body for everybody, whoever's head is on it.
            assert bodies.setdefault(policy, body) == body
        assert len(heads) == len(keys[policy])
    assert len({tuple(sorted(body.items())) for body in bodies.values()}) == 3
    local = found["local"].summary["bytes"]["by_kind"]
    assert local["head"] == 0 < local["adapter"]


@pytest.mark.parametrize("order", ["reversed", "shuffled", "all at once"])
def test_arrival_never_matters(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    base = {"data": {"tasks": ["two", "three"]}, "run": {"clients": 5}}
    expected = run("expected", **base)
    pull = InlineGrid.pull_messages
    rng = np.random.default_rng(5)

    def late(self: InlineGrid, message_ids: Any) -> list[Any]:
        ids = list(message_ids)
        if order == "shuffled":
            rng.shuffle(ids)
            return list(pull(self, ids))
        if order == "reversed":
            return list(pull(self, reversed(ids)))
        return [reply for i in reversed(ids) for reply in pull(self, [i])]

    monkeypatch.setattr(InlineGrid, "pull_messages", late)
    found = run("found", **base)
    assert found.tensors() == expected.tensors()
    assert found.measured() == expected.measured()
