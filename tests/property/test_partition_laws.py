import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.data.partition import (
    deal_evaluation,
    deal_training,
    draw_mixes,
    draw_sizes,
    largest_remainder,
    stratified_part,
)
from atlas_flwr.seeding import rng_for

laws = settings(max_examples=60, deadline=None)

kinds = st.sampled_from(["iid", "dirichlet", "pathological", "quantity"])
alphas = st.floats(1e-3, 1e4)


@st.composite
def label_columns(draw, least=2):
    """Labels of 2 to 6 classes, shuffled; every class has a row."""
    counts = draw(st.lists(st.integers(1, 60), min_size=least, max_size=6))
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)


def deal(kind, labels, clients, samples, alpha=0.5, seed=0, per_client=1):
    """Return mixes drawn, mixes realised, sizes and hands, as one client's task is dealt."""
    partitions = range(clients)
    prior = np.bincount(labels) / len(labels)
    rngs = [rng_for(seed, "label-mix", 0, p) for p in partitions]
    mixes = draw_mixes(kind, prior, rngs, alpha=alpha, num_classes_per_partition=per_client)
    sizes = draw_sizes(
        kind, samples, partitions, rng_for(seed, "sizes"), alpha=alpha, min_partition_size=1
    )
    hands, realised = deal_training(
        labels,
        mixes,
        sizes,
        rng_for(seed, "training-rows"),
        every_class=kind == "pathological",
    )
    return mixes, realised, sizes, hands


@st.composite
def deals(draw):
    labels = draw(label_columns())
    clients = draw(st.integers(1, min(6, len(labels))))
    samples = draw(st.integers(1, len(labels) // clients))
    per_client = draw(st.integers(1, len(np.unique(labels))))
    kind, alpha, seed = draw(kinds), draw(alphas), draw(st.integers(0, 9))
    return labels, deal(kind, labels, clients, samples, alpha, seed, per_client)


@laws
@given(deals())
def test_training_rows_are_disjoint_and_exactly_as_many_as_asked(case):
    labels, (_, _, sizes, hands) = case
    rows = np.concatenate(hands)
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < len(labels)
    assert [len(hand) for hand in hands] == sizes.tolist()
    assert sizes.min() >= 1


@laws
@given(deals())
def test_mixes_sum_to_one_and_are_what_was_got_or_drawn(case):
    labels, (drawn, realised, sizes, hands) = case
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    np.testing.assert_allclose(realised.sum(axis=1), 1)
    for k, hand in enumerate(hands):
        got = np.bincount(labels[hand], minlength=drawn.shape[1]) / sizes[k]
        if not np.array_equal(realised[k], drawn[k]):
            np.testing.assert_allclose(realised[k], got)
        # Uncut: rounding, and one row moved to each class that would be lost.
        assert np.abs(realised[k] - got).max() <= drawn.shape[1] / sizes[k]


@laws
@given(deals(), label_columns())
def test_a_slice_is_shifted_from_the_evaluation_set_as_training_rows_from_theirs(case, held):
    labels, (_, mixes, _, _) = case
    prior = np.bincount(labels) / len(labels)
    held = held[held < mixes.shape[1]]
    supply = np.bincount(held, minlength=mixes.shape[1])
    slices = deal_evaluation(held, mixes, prior, np.random.default_rng(0))
    rows = np.concatenate(slices)
    assert len(np.unique(rows)) == len(rows)
    for own, mix in zip(slices, mixes, strict=True):
        # The largest slices of these mixes in which no class is dealt out twice.
        wanted = supply * mix / prior
        most = (mixes.sum(axis=0) / prior)[mix > 0].max()
        got = np.bincount(held[own], minlength=len(mix))
        assert np.abs(got - wanted / most).max() < 2
        assert not got[mix == 0].any()


@laws
@given(label_columns(), label_columns(), st.integers(1, 6))
def test_even_clients_have_every_evaluation_row_once(labels, held, clients):
    prior = np.bincount(labels) / len(labels)
    held = held[held < len(prior)]
    slices = deal_evaluation(held, np.tile(prior, (clients, 1)), prior, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate(slices)), np.arange(len(held)))


@laws
@given(label_columns(), kinds, st.integers(0, 99))
def test_same_seed_same_rows(labels, kind, seed):
    one, two = (deal(kind, labels, 2, max(1, len(labels) // 4), seed=seed) for _ in range(2))
    np.testing.assert_array_equal(one[1], two[1])
    for a, b in zip(one[3], two[3], strict=True):
        np.testing.assert_array_equal(a, b)


@laws
@given(kinds, st.integers(0, 10**6))
def test_other_seed_other_rows(kind, seed):
    labels = np.tile(np.arange(3), 100)  # no class can be used up, so the choice is free
    one, other = (deal(kind, labels, 2, 45, seed=s) for s in (seed, seed + 1))
    assert any(a.tolist() != b.tolist() for a, b in zip(one[3], other[3], strict=True))


@laws
@given(kinds, st.integers(1, 5), st.integers(1, 100), st.integers(1, 100), alphas)
def test_mix_does_not_change_with_the_number_of_rows(kind, clients, few, many, alpha):
    labels = np.tile(np.arange(3), 600)  # no class runs out
    one = deal(kind, labels, clients, few, alpha)
    two = deal(kind, labels, clients, many, alpha)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], one[0])
    np.testing.assert_array_equal(two[1], one[0])


@laws
@given(label_columns(), st.integers(1, 5), st.integers(1, 5), alphas)
def test_dirichlet_mix_of_a_client_does_not_depend_on_how_many_there_are(labels, few, more, alpha):
    prior = np.bincount(labels) / len(labels)
    mixes = [
        draw_mixes(
            "dirichlet",
            prior,
            [rng_for(0, "label-mix", 0, p) for p in range(n)],
            alpha=alpha,
            num_classes_per_partition=1,
        )
        for n in (few, few + more)
    ]
    np.testing.assert_array_equal(mixes[0], mixes[1][:few])


@laws
@given(label_columns(), st.integers(0, 9))
def test_dirichlet_tends_to_the_prior(labels, seed):
    prior = np.bincount(labels) / len(labels)
    rngs = [rng_for(seed, "label-mix", 0, p) for p in range(3)]
    mixes = draw_mixes("dirichlet", prior, rngs, alpha=1e9, num_classes_per_partition=1)
    np.testing.assert_allclose(mixes, np.tile(prior, (3, 1)), atol=1e-3)


@laws
@given(st.integers(2, 6), st.integers(1, 8), st.data())
def test_pathological_has_exactly_n_classes_used_evenly(classes, clients, data):
    per_client = data.draw(st.integers(1, classes))
    samples = data.draw(st.integers(per_client, 50))
    counts = data.draw(st.lists(st.integers(400, 4000), min_size=classes, max_size=classes))
    labels = np.repeat(np.arange(classes), counts)
    mixes, realised, _, hands = deal(
        "pathological",
        labels,
        clients,
        samples,
        per_client=per_client,
        seed=data.draw(st.integers(0, 9)),
    )
    assert ((mixes > 0).sum(axis=1) == per_client).all()
    holders = (mixes > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    for hand, mix in zip(hands, realised, strict=True):
        assert set(labels[hand]) == set(np.flatnonzero(mix))


@laws
@given(st.integers(1, 8), st.integers(5, 200), st.integers(1, 5), alphas)
def test_quantity_sizes_keep_the_total_and_the_least(clients, samples, least, alpha):
    sizes = draw_sizes(
        "quantity",
        samples,
        range(clients),
        np.random.default_rng(0),
        alpha=alpha,
        min_partition_size=least,
    )
    assert sizes.sum() == clients * samples
    assert sizes.min() >= least


@laws
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda w: max(w) > 1e-9),
    st.integers(0, 10**6),
)
def test_largest_remainder_sums_and_stays_within_one(weights, total):
    weights = np.array(weights)
    counts = largest_remainder(weights, total)
    assert counts.sum() == total
    assert not counts[weights == 0].any()
    assert np.abs(counts - weights / weights.sum() * total).max() < 1 + 1e-6


@laws
@given(label_columns(), st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_stratified_part_has_its_share_of_each_class(labels, share, seed):
    part = stratified_part(labels, share, np.random.default_rng(seed))
    assert len(np.unique(part)) == len(part)
    for c in np.unique(labels):
        total, inside = (labels == c).sum(), (labels[part] == c).sum()
        if total > 1:
            assert 1 <= inside < total
            assert abs(inside - share * total) <= 1
        else:
            assert inside == 0
