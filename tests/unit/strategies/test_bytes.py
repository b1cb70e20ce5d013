"""Bytes of real Flower messages against the formulas: A, B, both, stacks, cores, bitmaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from atlas_flwr.types import Job, Update
from atlas_flwr.wire import count_bytes, pack_job, pack_update, read_job, read_update
from federations import ALL, LABELS, setting
from players import BEFORE, Player, rounds
from strategies.base import Method
from strategies.registry import STRATEGIES, build

# (d_out, d_in) as in DistilBERT, so that headers and names are small beside numbers.
MODULES = {"m.0.q": (768, 768), "m.0.up": (1536, 768)}
D_OUT, D_IN = (sum(pair[i] for pair in MODULES.values()) for i in (0, 1))
FLOAT = 4
EQUAL, MIXED = (8,) * 6, (8, 4, 16, 8, 4, 16)
LAST = 3
HEADER = 300  # a NumPy header, a name and Flower's record, at most, for a tensor
HEADS_BYTES = FLOAT * 2 * 5


def size_a(rank: int) -> int:
    return FLOAT * rank * D_IN


def size_b(rank: int) -> int:
    return FLOAT * rank * D_OUT


def c(rank: int) -> int:
    """Both factors of all modules: C(r)."""
    return size_a(rank) + size_b(rank)


class Weighed(Player):
    """A player whose messages are packed, weighed and read back as on the wire."""

    adapter_bytes: dict[tuple[int, str], tuple[int, int, int]]
    head_bytes: dict[tuple[int, str], tuple[int, int]]

    def answer(self, job: Job) -> Update:
        down = pack_job(job, "")
        asked, _ = read_job(down)
        update = super().answer(asked)
        up = pack_update(update)
        heard = read_update(up, self.partition)
        sizes = [count_bytes(content) for content in (down, up)]
        tensors = sum(len(record) for r in (down, up) for record in r.array_records.values())
        kind, _, action = job.action.partition(".")
        key = (job.round, action if job.action in BEFORE else kind)
        self.adapter_bytes = getattr(self, "adapter_bytes", {})
        self.head_bytes = getattr(self, "head_bytes", {})
        self.adapter_bytes[key] = (sizes[0]["adapter"], sizes[1]["adapter"], tensors)
        self.head_bytes[key] = (sizes[0]["head"], sizes[1]["head"])
        return replace(heard, sparse=update.sparse)


def weigh(name: str, ranks: Sequence[int], **options: object) -> list[Weighed]:
    """Everybody's messages of three rounds of full participation."""
    policy = STRATEGIES[name].head or "per_task"
    method = build(name, dict(options), setting(policy, ranks, LABELS, MODULES))
    return _weighed(method)


def _weighed(method: Method) -> list[Weighed]:
    players = [Weighed(method.setting, partition) for partition in ALL]
    for _ in rounds(method, [ALL] * LAST, players):
        pass
    return players


def assert_bytes(
    player: Weighed, phase: str, down: float, up: float, round_: int = LAST, within: float = 0.05
) -> None:
    """Compare one exchange's adapter bytes with formulas: never fewer, headers more."""
    *counted, tensors = player.adapter_bytes[round_, phase]
    for got, formula in zip(counted, (down, up), strict=True):
        assert formula <= got <= formula + HEADER * tensors, (phase, got, formula)
        assert got <= (1 + within) * formula, (phase, got, formula)


WHOLE = ["fedit", "hetlora", "rbla", "raflora", "flexlora", "lora_fair", "fedavg", "fedprox"]
WHOLE += ["fedavgm", "fedadam", "fedper", "fedrep", "cluster_fedavg", "fl_tac", "mira"]


@pytest.mark.parametrize("name_", WHOLE)
def test_rules_on_both_factors_cost_c_each_way(name_: str) -> None:
    ranks = MIXED if STRATEGIES[name_].mixed_ranks else EQUAL
    for player, rank in zip(weigh(name_, ranks), ranks, strict=True):
        assert_bytes(player, "train", c(rank), c(rank))
        assert_bytes(player, "evaluate", c(rank), 0)


def test_ffa_costs_b_alone() -> None:
    for player, rank in zip(weigh("ffa", MIXED), MIXED, strict=True):
        assert_bytes(player, "train", size_b(rank), size_b(rank))
        assert_bytes(player, "evaluate", size_b(rank), 0)


def test_fedsa_costs_a_alone() -> None:
    for player, rank in zip(weigh("fedsa", MIXED), MIXED, strict=True):
        assert_bytes(player, "train", size_a(rank), size_a(rank))
        assert_bytes(player, "evaluate", size_a(rank), 0)


def test_rolora_costs_the_active_factor_each_way() -> None:
    for player in weigh("rolora", EQUAL):
        for round_ in range(1, LAST + 1):
            active = size_b(8) if round_ % 2 else size_a(8)
            # What changed went down with the models that were scored.
            assert_bytes(player, "train", 0, active, round_)
            assert_bytes(player, "evaluate", active, 0, round_)


def test_flora_costs_c_up_and_all_stacks_down() -> None:
    for player, rank in zip(weigh("flora", MIXED), MIXED, strict=True):
        for round_ in range(1, LAST + 1):
            assert_bytes(player, "train", 0, c(rank), round_)
            assert_bytes(player, "evaluate", sum(map(c, MIXED)), 0, round_)


def test_fedex_costs_c_each_way_and_a_residual_of_rank_m_minus_1_r() -> None:
    for player in weigh("fedex", EQUAL):
        for round_ in range(1, LAST + 1):
            assert_bytes(player, "train", c(8), c(8), round_)
            assert_bytes(player, "evaluate", c(8) + c((len(EQUAL) - 1) * 8), 0, round_)


@pytest.mark.parametrize("init", ["gradient", "seeded"])
def test_fedsb_costs_square_cores(init: str) -> None:
    ranks = (64,) * 5 + (32,)
    for player, rank in zip(weigh("fedsb", ranks, init=init), ranks, strict=True):
        cores = FLOAT * rank**2 * len(MODULES)
        for round_ in range(2, LAST + 1):
            assert_bytes(player, "train", cores, cores, round_, within=0.1)
            assert_bytes(player, "evaluate", cores, 0, round_, within=0.1)
        # The frozen factors went down once, before the first cores came up.
        assert_bytes(player, "train", c(rank) + cores, cores, 1, within=0.1)
        assert_bytes(player, "evaluate", cores, 0, 1, within=0.1)
        if init == "gradient":
            assert_bytes(player, "gradient", 0, c(max(ranks)), 1)
        else:
            assert (1, "gradient") not in player.adapter_bytes


@pytest.mark.parametrize(("down", "up"), [(0.25, 0.25), (0.5, 0.125)])
def test_flasc_costs_its_density_and_a_bit_an_entry(down: float, up: float) -> None:
    options = {"down-density": down, "up-density": up}
    bitmap = c(8) / 32
    for player in weigh("flasc", EQUAL, **options):
        # A bitmap and its values are two tensors: twice the headers, for a fraction of the numbers.
        assert_bytes(player, "train", down * c(8) + bitmap, up * c(8) + bitmap, within=0.1)
        assert_bytes(player, "evaluate", down * c(8) + bitmap, 0)


@pytest.mark.parametrize("models", [1, 3])
def test_ifca_costs_every_model_down_and_one_up(models: int) -> None:
    for player in weigh("ifca", EQUAL, clusters=models):
        for round_ in range(1, LAST + 1):
            assert_bytes(player, "train", models * c(8), c(8), round_)
            assert_bytes(player, "evaluate", c(8), 0, round_)


def test_ditto_costs_what_fedavg_does_and_scores_for_nothing() -> None:
    for player in weigh("ditto", EQUAL):
        assert_bytes(player, "train", c(8), c(8))
        assert_bytes(player, "evaluate", 0, 0)
        assert player.head_bytes[LAST, "evaluate"] == (0, 0)


def test_local_only_costs_nothing() -> None:
    for player in weigh("local_only", MIXED):
        for phase in ("train", "evaluate"):
            assert_bytes(player, phase, 0, 0)
            assert player.head_bytes[LAST, phase] == (0, 0)


def test_heads_are_counted_once_and_private_ones_never(name: str) -> None:
    ranks = MIXED if STRATEGIES[name].mixed_ranks else EQUAL
    small = {"m.q": (40, 24)}
    for policy in ("per_task", "local"):
        if policy == "local" and (name == "ditto" or STRATEGIES[name].head == "personal"):
            continue
        players = _weighed(build(name, {}, setting(policy, ranks, LABELS, small)))
        local = policy == "local" or STRATEGIES[name].head == "local"
        asked = {0, 3} if name == "centralised" else set(ALL)
        for player in players:
            if player.partition not in asked:
                continue
            kept = local and name != "centralised"
            times = (4, 1) if name == "ifca" else (1, 1)  # four models go down to be chosen from
            for sent, heads in zip(player.head_bytes[LAST, "train"], times, strict=True):
                if kept or name == "local_only":
                    assert sent == 0
                else:
                    assert heads * HEADS_BYTES <= sent <= heads * (HEADS_BYTES + HEADER)
