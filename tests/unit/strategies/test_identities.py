"""Rules that must coincide do, those that must differ do; other bases and scales of one update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, LoraFactors, Part, Update
from federations import (
    ALL,
    EQUAL,
    MIXED,
    Dense,
    believed,
    distance,
    equal,
    of_rank,
    products,
    setting,
)
from players import Player, crew, first_round, play
from strategies.base import Method
from strategies.registry import build

TWICE = [ALL, ALL]


def models(method: Method, **how: object) -> list[Dense]:
    """Everybody's model after two rounds."""
    players = crew(method, **how)
    state = play(method, TWICE, players)
    return [p.effective(method.job(state, p.partition, "evaluate")) for p in players]


def assert_same(left: Method, right: Method, **how: object) -> None:
    for one, other in zip(models(left, **how), models(right, **how), strict=True):
        assert distance(one, other) <= 1e-6


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (equal("hetlora", weights="examples"), equal("fedit")),
        (equal("rbla"), equal("fedit")),
        (equal("raflora"), equal("flexlora")),
        (equal("flasc", **{"down-density": 1.0, "up-density": 1.0}), equal("fedit")),
        (equal("lora_fair", ridge=1e12), equal("fedit")),
        (equal("fedprox", mu=0.0), equal("fedavg")),
        (equal("fedavgm", **{"momentum": 0.0, "learning-rate": 1.0}), equal("fedavg")),
        (equal("fedper"), build("fedit", {}, setting("local"))),
        (equal("ffa", average="owners"), equal("ffa")),
    ],
    ids=lambda method: type(method).__name__,
)
def test_limits_coincide(left: Method, right: Method) -> None:
    assert_same(left, right)


@pytest.mark.parametrize("name_", ["fedavg", "fedit"])
def test_plain_averaging_of_an_adapter_is_numpys_of_each_factor(name_: str) -> None:
    """What both are: no name of the two may come to mean something else."""
    method = equal(name_)
    state, updates = first_round(method)
    rows = [update.report.num_examples for update in updates]
    after = method.model_for(method.merge(state, iter(updates)), 0).parts.body()
    for key, tensor in after.items():
        oracle = np.average([u.parts.body()[key] for u in updates], axis=0, weights=rows)
        np.testing.assert_allclose(tensor, oracle, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name_", ["flexlora", "raflora"])
def test_both_write_backs_serve_one_product_in_factors_of_their_own(name_: str) -> None:
    for ranks in (EQUAL, MIXED):
        served = []
        for write_back in ("balanced", "unbalanced"):
            method = of_rank(name_, ranks, **{"write-back": write_back})
            state, updates = first_round(method)
            after = method.merge(state, iter(updates))
            served.append([method.model_for(after, partition).parts for partition in ALL])
        for even, odd in zip(*served, strict=True):
            assert distance(products(even), products(odd)) <= 1e-6
            for module, factors in even.adapter.items():
                sizes = [np.linalg.norm(factors.a, axis=1), np.linalg.norm(factors.b, axis=0)]
                np.testing.assert_allclose(*sizes, rtol=1e-4)  # the same share of σ on both
                rows = np.linalg.norm(odd.adapter[module].a, axis=1)
                np.testing.assert_allclose(rows, 1.0, rtol=1e-5)  # all of σ on B


ONLY_B: frozenset[Part] = frozenset({"lora_B", "head"})


def test_with_a_shared_a_factor_means_are_exact() -> None:
    """FFA is FedIT of clients that leave A alone; so is RoLoRA's first round, and any exact one."""
    assert_same(equal("ffa"), equal("fedit"), moves=ONLY_B)
    states = {}
    for name in ("rolora", "ffa", "fedit", "flora", "fedex", "lora_fair"):
        options = {"ridge": 0.0} if name == "lora_fair" else {}
        method = equal(name, **options)
        state = play(method, [ALL], crew(method, moves=ONLY_B))
        states[name] = believed(method, state, 0)
    for model in states.values():
        assert distance(model, states["ffa"]) <= 1e-6


def test_fedper_is_fedit_with_local_heads_to_the_bit() -> None:
    served = []
    for method in (equal("fedper"), build("fedit", {}, setting("local"))):
        state = play(method, TWICE)
        served.append([method.model_for(state, p) for p in ALL])
    for one, other in zip(*served, strict=True):
        assert (one.key, one.private, one.since) == (other.key, other.private, other.since)
        for name, tensor in one.parts.body().items():
            np.testing.assert_array_equal(tensor, other.parts.body()[name])


def test_dittos_shared_model_is_fedavgs_and_its_personal_ones_are_local() -> None:
    ditto, fedavg, local = equal("ditto"), equal("fedavg"), equal("local_only")
    players = crew(ditto)
    state = play(ditto, TWICE, players)
    plain = play(fedavg, TWICE)
    shared = [job.parts for job in ditto.plan(replace(state, round=3, phase=0), ALL) or []]
    for partition, parts in zip(ALL, shared, strict=True):
        other = fedavg.model_for(plain, partition).parts
        assert parts.body().keys() == other.body().keys()
        for name, tensor in {**parts.body(), **parts.head}.items():
            np.testing.assert_array_equal(tensor, {**other.body(), **other.head}[name])
    # These players feel no pull, as with lambda = 0: what is left is local training.
    alone = crew(local)
    after = play(local, TWICE, alone)
    for mine, theirs in zip(players, alone, strict=True):
        own = mine.effective(ditto.job(state, mine.partition, "evaluate"))
        other_ = theirs.effective(local.job(after, theirs.partition, "evaluate"))
        assert distance(own, other_) == 0


def of_rank_1(update: Update) -> Update:
    """The update with all but one column of B zero."""

    def first(factors: LoraFactors) -> LoraFactors:
        return replace(factors, b=factors.b * (np.arange(factors.rank) == 1))

    adapter = {module: first(factors) for module, factors in update.parts.adapter.items()}
    return replace(update, parts=replace(update.parts, adapter=adapter))


@pytest.mark.parametrize("write_back", ["balanced", "unbalanced"])
def test_where_the_rank_suffices_flexlora_is_flora_and_fedex(write_back: str) -> None:
    found = {}
    for name in ("flexlora", "flora", "fedex"):
        options = {"write-back": write_back} if name == "flexlora" else {}
        method = equal(name, **options)
        state, updates = first_round(method)
        updates = [of_rank_1(update) for update in updates[:4]]  # P* has rank 4 at most
        found[name] = believed(method, method.merge(state, iter(updates)), 5)
    for model in found.values():
        assert distance(model, found["flora"]) <= 1e-6


def test_no_receiver_of_flexlora_loses_when_its_rank_suffices_whatever_the_scales() -> None:
    flexlora, flora = of_rank("flexlora", MIXED), of_rank("flora", MIXED)
    after = {}
    for method in (flexlora, flora):
        state, updates = first_round(method)
        chosen = [of_rank_1(updates[p]) for p in (0, 3)]
        after[method] = method.merge(state, iter(chosen))
    for partition in ALL:
        cut, whole = (believed(method, after[method], partition) for method in (flexlora, flora))
        assert distance(cut, whole) <= 1e-6


# ------------------------------------------------------------------ other bases, other scales

Change = Callable[[LoraFactors, np.random.Generator], LoraFactors]


def turned(factors: LoraFactors, rng: np.random.Generator) -> LoraFactors:
    """The same product in another basis: ``(B G, G⁻¹ A)``."""
    q, _ = np.linalg.qr(rng.standard_normal((factors.rank, factors.rank)))
    g = q * rng.uniform(0.5, 2.0, factors.rank)
    return replace(factors, b=factors.b @ g, a=np.linalg.solve(g, factors.a.astype(float)))


def rescaled(factors: LoraFactors, rng: np.random.Generator) -> LoraFactors:
    """The same product at another scale: ``(c s, B / c)``."""
    c = float(rng.uniform(0.25, 4.0))
    return replace(factors, b=factors.b.astype(float) / c, scale=c * factors.scale)


def after_merge(method: Method, change: Change | None, same_for_all: bool = False) -> list[Dense]:
    """Everybody's model after a first round in which each client tells its update differently."""
    state, updates = first_round(method)
    told = []
    for update in updates:
        rng = np.random.default_rng(0 if same_for_all else 1 + update.partition)
        adapter: Adapter = update.parts.adapter
        if change is not None:
            adapter = {module: change(factors, rng) for module, factors in adapter.items()}
        told.append(replace(update, parts=replace(update.parts, adapter=adapter)))
    after = method.merge(state, iter(told))
    return [believed(method, after, partition) for partition in ALL]


INVARIANT = [("flora", MIXED), ("flexlora", MIXED), ("fedex", EQUAL), ("raflora", EQUAL)]
DEPENDENT = [
    ("fedit", EQUAL, {}),
    ("hetlora", MIXED, {"weights": "examples"}),
    ("hetlora", EQUAL, {}),
    ("rbla", MIXED, {}),
    ("raflora", MIXED, {}),
    ("lora_fair", EQUAL, {}),
]


@pytest.mark.parametrize(("name_", "ranks"), INVARIANT)
def test_product_rules_do_not_see_the_basis(name_: str, ranks: tuple[int, ...]) -> None:
    method = of_rank(name_, ranks)
    for plain, other in zip(after_merge(method, None), after_merge(method, turned), strict=True):
        assert distance(other, plain) <= 1e-6


@pytest.mark.parametrize(("name_", "ranks", "options"), DEPENDENT)
def test_factor_rules_do(name_: str, ranks: tuple[int, ...], options: dict[str, str]) -> None:
    method = of_rank(name_, ranks, **options)
    for plain, other in zip(after_merge(method, None), after_merge(method, turned), strict=True):
        assert distance(other, plain) > 1e-3


@pytest.mark.parametrize(("name_", "ranks"), [c for c in INVARIANT if c[0] != "fedex"])
def test_product_rules_do_not_see_the_scale(name_: str, ranks: tuple[int, ...]) -> None:
    method = of_rank(name_, ranks)
    for plain, other in zip(after_merge(method, None), after_merge(method, rescaled), strict=True):
        assert distance(other, plain) <= 1e-6


@pytest.mark.parametrize("name_", ["fedex", "fedit", "lora_fair"])
def test_a_scale_that_all_clients_share_changes_nothing(name_: str) -> None:
    method = equal(name_, **({"ridge": 0.0} if name_ == "lora_fair" else {}))

    def half(factors: LoraFactors, rng: np.random.Generator) -> LoraFactors:
        return replace(factors, b=factors.b * 2, scale=factors.scale / 2)

    for plain, other in zip(after_merge(method, None), after_merge(method, half), strict=True):
        assert distance(other, plain) <= 1e-6
    with pytest.raises(AggregationError, match="scale"):  # but one of its own is refused
        after_merge(method, rescaled)


# ------------------------------------------------------------------ differences

DIFFERENT = {
    "equal": (
        EQUAL,
        "fedavgm fedadam fedit hetlora flora flexlora ffa rolora fedsa lora_fair fedsb flasc "
        "local_only centralised",
    ),
    "mixed": (
        MIXED,
        "hetlora rbla raflora flora flexlora ffa fedsa fedsb local_only",
    ),
}


@pytest.mark.parametrize(("ranks", "names"), DIFFERENT.values(), ids=DIFFERENT)
def test_methods_that_must_differ_do(ranks: tuple[int, ...], names: str) -> None:
    """An ablation whose two sides are one method is no ablation."""
    found = {}
    for name in names.split():
        method = of_rank(name, ranks)
        player = Player(method.setting, 4)
        players = [player if p == 4 else Player(method.setting, p) for p in ALL]
        state = play(method, TWICE, players)
        found[name] = player.effective(method.job(state, 4, "evaluate"))
    for one, other in combinations(found, 2):
        assert distance(found[one], found[other]) > 1e-3, (one, other)


def test_options_that_must_matter_do() -> None:
    pairs = [
        ("hetlora", MIXED, {"weights": "norm"}, {"weights": "examples"}),
        ("ffa", MIXED, {"average": "all"}, {"average": "owners"}),
        ("lora_fair", EQUAL, {"ridge": 0.0}, {"ridge": 10.0}),
        ("flasc", EQUAL, {"up-density": 0.25}, {"up-density": 0.5}),
        ("flasc", EQUAL, {"down-density": 0.25}, {"down-density": 0.5}),
        ("fedsb", MIXED, {"init": "gradient"}, {"init": "seeded"}),
        ("fedavgm", EQUAL, {"momentum": 0.0}, {"momentum": 0.9}),
        ("fedadam", EQUAL, {"tau": 1e-3}, {"tau": 1e-1}),
    ]
    for name, ranks, one, other in pairs:
        left, right = (models(of_rank(name, ranks, **options))[4] for options in (one, other))
        assert distance(left, right) > 1e-3, name
