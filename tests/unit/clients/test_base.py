"""What every client does: stages, and a model put together from message, disk and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.aggregation.delta import accumulate
from atlas_flwr.errors import AtlasError, WriteBackError
from atlas_flwr.types import BODY, PARTS, Adapter, Job, LoraFactors, ModelParts, Part, Stage
from clients.base import FineTuneClient
from clients.full import FullClient
from clients.lora import LoraClient
from homes import RANK, Home, home, same_bits, tensors

HEAD: frozenset[Part] = frozenset({"head"})
B_AND_HEAD: frozenset[Part] = frozenset({"lora_B", "head"})
KINDS: dict[str, type[FineTuneClient]] = {"lora": LoraClient, "full": FullClient}


@pytest.fixture
def place(folder_of: Callable[[str], str], tmp_path: Path) -> Home:
    return home(tmp_path, folder_of("gpt2"))


def moved(before: ModelParts, after: ModelParts) -> set[str]:
    """Return the names of tensors that are not the same to the bit."""
    a, b = tensors(before), tensors(after)
    return {name for name in b if a[name].tobytes() != b[name].tobytes()}


# ------------------------------------------------------------------ stages


@pytest.mark.parametrize("adaptation", KINDS)
def test_fedreps_stages_hold_the_other_part_to_the_bit(
    folder_of: Callable[[str], str], tmp_path: Path, adaptation: str
) -> None:
    place = home(tmp_path, folder_of("bert"), adaptation)
    kind, start = KINDS[adaptation], place.site.initial(0)
    head_first = (Stage(HEAD, 2),)
    job = Job(0, "train", 1, start, stages=head_first)
    middle = place.fit(job, kind).parts
    assert moved(start, middle) == set(start.head)
    both = place.fit(replace(job, stages=(*head_first, Stage(BODY))), kind).parts
    assert moved(middle, both) <= set(start.body())
    assert {name for name in moved(middle, both) if "lora_A" not in name}
    # Its streams are of its own: another than one stage alone takes.
    after = place.fit(Job(0, "train", 1, middle, stages=(Stage(BODY),)), kind).parts
    assert not same_bits(both, after)


def test_a_stages_epochs_are_its_own(place: Home) -> None:
    start = place.random(0)
    ends = [
        place.fit(Job(0, "train", 1, start, stages=(Stage(HEAD, n),))).parts for n in (1, 2, None)
    ]
    assert same_bits(ends[0], ends[2])  # None: the experiment's, which is 1
    assert not same_bits(ends[0], ends[1])


def test_a_frozen_a_never_moves_and_does_not_travel(place: Home) -> None:
    """FFA-LoRA: A from the seed, B trained, B back."""
    start = place.random(0)
    stage = (Stage(B_AND_HEAD),)
    job = Job(
        0, "train", 1, start.without("lora_A"),
        seeded=frozenset({"lora_A"}), stages=stage, returns=B_AND_HEAD,
    )  # fmt: skip
    answer = place.fit(job).parts
    seeded = place.site.initial(0)
    for module, factors in place.loaded().adapter.items():
        assert factors.a.tobytes() == seeded.adapter[module].a.tobytes()
        assert answer.adapter[module].a.size == 0
        assert answer.adapter[module].b.tobytes() == factors.b.tobytes()
    # The same as if A had been sent.
    whole = {m: replace(f, a=seeded.adapter[m].a) for m, f in start.adapter.items()}
    sent = Job(0, "train", 1, replace(start, adapter=whole), stages=stage, returns=B_AND_HEAD)
    assert same_bits(place.fit(sent).parts, answer)


@pytest.mark.parametrize("returns", [frozenset({"lora_A"}), frozenset({"head"}), frozenset()])
def test_only_what_is_asked_for_comes_back(place: Home, returns: frozenset[Part]) -> None:
    start = place.random(0)
    whole = place.fit(Job(0, "train", 1, start)).parts
    got = place.fit(Job(0, "train", 1, start, returns=returns)).parts
    assert same_bits(got, whole.only(*returns))


# ------------------------------------------------------------------ private and seeded parts


def test_private_parts_stay_and_go_on_by_round(place: Home) -> None:
    start = place.random(0)
    b, private = place.site.initial(0), frozenset({"lora_B", "head"})
    sent = start.only("lora_A")
    job = Job(0, "train", 1, sent, private=private)
    answer = place.fit(job).parts
    assert all(f.b.size == 0 for f in answer.adapter.values())
    assert not answer.head
    kept = place.stores.private.load(1)
    assert all(f.a.size == 0 and f.b.any() for f in kept.adapter.values())
    # The first start is the seed's, and what is kept is what was trained.
    whole = place.fit(Job(0, "train", 1, sent.filled(b.only(*private)))).parts
    assert same_bits(kept, whole.only(*private))
    assert same_bits(answer, whole.only("lora_A"))
    # Round 2 continues, and can be asked again.
    second = replace(job, round=2, since=1, parts=answer)
    once = place.fit(second).parts
    again = place.fit(second).parts
    assert same_bits(once, again)
    assert same_bits(once, place.fit(Job(0, "train", 2, whole)).parts.only("lora_A"))
    assert same_bits(place.stores.private.load(1), kept)
    # Round 1's parts are asked for no more once no commit of the last rounds counts on them.
    for round_ in range(3, 7):
        place.fit(replace(job, round=round_, since=round_ - 1, parts=once))
    with pytest.raises(AtlasError, match="round 1 are missing"):
        place.fit(second)


def test_scoring_uses_what_is_kept_and_writes_nothing(place: Home, tmp_path: Path) -> None:
    private = frozenset(PARTS)
    place.fit(Job(0, "train", 1, private=private))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    kept = place.stores.private.load(1)
    score = place.evaluate(Job(0, "evaluate", 1, private=private, since=1))
    assert score == place.loss_of(kept)
    assert score != place.evaluate(Job(0, "evaluate", 1, private=private))
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_seeded_parts_are_the_draw_that_was_asked_for(place: Home) -> None:
    head = place.random(0).only("head")
    found = []
    for draw in (0, 1, 2, 1):
        seeded = frozenset({"lora_A", "lora_B"})
        place.evaluate(Job(0, "evaluate", 1, head, seeded=seeded, draw=draw))
        loaded, want = place.loaded(), place.site.initial(draw)
        assert same_bits(loaded.without("head"), want.without("head"))
        assert same_bits(loaded.only("head"), head)
        found.append(loaded)
    assert same_bits(found[1], found[3])
    assert len({next(iter(f.adapter.values())).a.tobytes() for f in found}) == 3
    # Draws differ in A alone: B is zero, and there is one head.
    assert same_bits(place.site.initial(1).only("head"), place.site.initial(0).only("head"))


def test_what_is_sent_wins_over_what_is_kept_and_that_over_the_seed(place: Home) -> None:
    sent = place.random(0)
    place.fit(Job(0, "train", 1, place.random(4), private=B_AND_HEAD))
    job = Job(
        0, "evaluate", 1, sent.only("lora_A"),
        private=B_AND_HEAD, since=1, seeded=frozenset({"lora_A", "lora_B"}), draw=1,
    )  # fmt: skip
    place.evaluate(job)
    loaded, kept = place.loaded(), place.stores.private.load(1)
    assert same_bits(loaded.only("lora_A"), sent.only("lora_A"))
    assert same_bits(loaded.only(*B_AND_HEAD), kept)


# ------------------------------------------------------------------ carried parts


def change(place: Home, seed: int, rank: int = 1) -> Adapter:
    """Return a small change of all modules, of scale 1."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (0.3 * rng.normal(size=shape)).astype(np.float32)

    shapes = place.site.model.backbone.shapes.items()
    return {m: LoraFactors(draw(rank, i), draw(o, rank), 1.0) for m, (o, i) in shapes}


def versions(folder: Path) -> set[int]:
    files = (folder / "client-0" / "carried").glob("round-*.safetensors")
    return {int(path.stem.removeprefix("round-")) for path in files}


def carried(place: Home, version: int) -> ModelParts:
    return place.stores.carried.load(version)


def test_deltas_add_up_version_by_version(place: Home, tmp_path: Path) -> None:
    base, changes = place.random(0), [change(place, seed) for seed in (1, 2, 3)]
    total: Adapter = {}
    for version, one in enumerate(changes, start=1):
        sent = replace(base, delta=one)
        score = place.evaluate(Job(0, "evaluate", version, sent, carried=(version - 1, version)))
        total = accumulate(total, one)
        for module, factors in carried(place, version).delta.items():
            np.testing.assert_allclose(factors.product(), total[module].product(), atol=1e-5)
            assert factors.scale == 1.0
        assert versions(tmp_path) == set(range(1, version + 1))  # for commits of earlier rounds
        # Who carries it is who is sent it whole.
        single = {m: f.astype(np.float32) for m, f in total.items()}
        whole = Job(0, "evaluate", 1, replace(base, delta=single))
        assert score == pytest.approx(place.evaluate(whole), abs=1e-5)
        assert abs(score - place.loss_of(base)) > 1e-4


def test_a_lost_message_can_be_sent_again(place: Home) -> None:
    """The server counts on version 1 until an answer says 2: nothing is added twice."""
    base, one, two, three = place.random(0), *(change(place, seed) for seed in (1, 2, 3))
    place.evaluate(Job(0, "evaluate", 1, replace(base, delta=one), carried=(0, 1)))
    second = Job(0, "evaluate", 2, replace(base, delta=two), carried=(1, 2))
    scores = [place.evaluate(second) for _ in range(3)]
    assert len(set(scores)) == 1
    held = carried(place, 2)
    # The reply was lost; the next round sends what is missing since 1 as one.
    both = {m: f.astype(np.float32) for m, f in accumulate(two, three).items()}
    third = Job(0, "evaluate", 3, replace(base, delta=both), carried=(1, 3))
    place.evaluate(third)
    for module, factors in carried(place, 3).delta.items():
        want = sum(f[module].product() for f in (one, two, three))
        np.testing.assert_allclose(factors.product(), want, atol=1e-5)
    assert held.delta


def test_a_whole_delta_starts_over(place: Home, tmp_path: Path) -> None:
    base, old, new = place.random(0), change(place, 1), change(place, 2)
    place.evaluate(Job(0, "evaluate", 1, replace(base, delta=old), carried=(0, 1)))
    place.evaluate(Job(0, "evaluate", 5, replace(base, delta=new), carried=(0, 5)))
    for module, factors in carried(place, 5).delta.items():
        assert factors.a.tobytes() == new[module].a.tobytes()
    assert versions(tmp_path) == {1, 5}


def test_what_was_carried_is_loaded_when_nothing_new_is_sent(place: Home, tmp_path: Path) -> None:
    base, one = place.random(0), change(place, 1)
    sent = replace(base, delta=one)
    first = place.fit(Job(0, "train", 1, sent, carried=(0, 1))).parts
    stamp = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    head = place.fit(Job(0, "train", 1, base.only("head"), carried=(1, 1))).parts
    # The adapter came once, and is carried too.
    assert same_bits(first, head)
    assert stamp == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_training_carries_what_was_sent_and_not_what_was_trained(place: Home) -> None:
    base = place.random(0)
    place.fit(Job(0, "train", 1, base, carried=(0, 1)))
    assert same_bits(carried(place, 1), base.without("head"))


def test_factors_that_take_turns_replace_each_other(place: Home, tmp_path: Path) -> None:
    """RoLoRA: B came in round 1, A in round 2; each message holds one of them."""
    one, two, three = (place.random(seed) for seed in (1, 2, 3))
    seeded, seed = frozenset({"lora_A", "lora_B"}), place.site.initial(0)

    def ask(parts: ModelParts, held: int, new: int) -> ModelParts:
        place.evaluate(Job(0, "evaluate", new, parts, seeded=seeded, carried=(held, new)))
        return place.loaded()

    def mix(a: ModelParts, b: ModelParts) -> ModelParts:
        return a.only("lora_A").filled(b.only("lora_B")).without("head")

    # Round 1: nothing was merged yet, all is the seed's.
    assert same_bits(ask(one.only("head"), 0, 0).without("head"), mix(seed, seed))
    assert not versions(tmp_path)
    assert same_bits(ask(one.only("lora_B", "head"), 0, 1).without("head"), mix(seed, one))
    assert same_bits(ask(one.only("head"), 1, 1).without("head"), mix(seed, one))
    assert same_bits(ask(two.only("lora_A", "head"), 1, 2).without("head"), mix(two, one))
    assert same_bits(ask(three.only("lora_B", "head"), 2, 3).without("head"), mix(two, three))
    assert versions(tmp_path) == {1, 2, 3}


def test_a_lost_disk_is_told(place: Home, tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match=r"partition 0: its own parts of round 4 are missing"):
        place.evaluate(Job(0, "evaluate", 5, place.random(0), carried=(4, 5)))
    assert not versions(tmp_path)


def test_a_model_that_is_not_whole_is_refused(place: Home) -> None:
    whole = place.random(0)
    before = place.loaded()
    for part in ("lora_A", "lora_B", "head"):
        with pytest.raises(WriteBackError, match=r"expected shape|was not sent"):
            place.evaluate(Job(0, "evaluate", 1, whole.without(part)))
    assert same_bits(place.loaded(), before)
    assert set(whole.ranks().values()) == {RANK}
