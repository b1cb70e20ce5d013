import numpy as np
import pytest

from atlas_flwr.data.partition import (
    deal_evaluation,
    deal_training,
    draw_mixes,
    draw_sizes,
    largest_remainder,
)
from atlas_flwr.errors import DataError


def rngs(n, seed=0):
    return [np.random.default_rng([seed, k]) for k in range(n)]


def mixes_of(kind, prior, n, alpha=0.5, per_client=1, seed=0):
    return draw_mixes(
        kind, np.array(prior), rngs(n, seed), alpha=alpha, num_classes_per_partition=per_client
    )


def deal(labels, mixes, sizes, **options):
    return deal_training(
        np.array(labels), np.array(mixes, float), np.array(sizes), rngs(1)[0], **options
    )


def counts(labels, hands, classes):
    return [np.bincount(np.array(labels)[hand], minlength=classes).tolist() for hand in hands]


def test_iid_and_quantity_have_the_tasks_mix():
    for kind in ("iid", "quantity"):
        np.testing.assert_array_equal(mixes_of(kind, [0.2, 0.8], 3), [[0.2, 0.8]] * 3)


def test_dirichlet_has_the_moments_of_its_distribution():
    prior, alpha = np.array([0.5, 0.3, 0.2]), 0.7
    mixes = mixes_of("dirichlet", prior, 20_000, alpha=alpha)
    # Dir(a): mean a/a0, variance a(a0 - a) / (a0^2 (a0 + 1)), with a = alpha * C * prior.
    np.testing.assert_allclose(mixes.mean(axis=0), prior, atol=0.01)
    variance = prior * (1 - prior) / (alpha * 3 + 1)
    np.testing.assert_allclose(mixes.var(axis=0), variance, rtol=0.05)


def test_dirichlet_for_balanced_classes_is_the_symmetric_one():
    mine = mixes_of("dirichlet", [0.25] * 4, 5, alpha=0.3)
    plain = [rng.dirichlet([0.3] * 4) for rng in rngs(5)]
    np.testing.assert_allclose(mine, plain)


def test_a_class_without_rows_is_in_no_mix():
    for kind in ("iid", "dirichlet", "pathological", "quantity"):
        assert not mixes_of(kind, [0.5, 0.0, 0.5], 4, per_client=2)[:, 1].any()


def test_a_very_small_alpha_gives_one_class():
    for alpha in (1e-3, 1e-8, 1e-300):
        mixes = mixes_of("dirichlet", [0.5, 0.3, 0.2], 6, alpha=alpha)
        np.testing.assert_allclose(mixes.sum(axis=1), 1)


def test_pathological_shares_a_class_equally_among_its_holders():
    mixes = mixes_of("pathological", [0.6, 0.2, 0.2], 3, per_client=2)
    assert (mixes > 0).sum(axis=0).tolist() == [2, 2, 2]
    shares = np.where(mixes > 0, [0.6, 0.2, 0.2], 0.0)
    np.testing.assert_allclose(mixes, shares / shares.sum(axis=1, keepdims=True))


def test_pathological_with_all_classes_is_iid():
    np.testing.assert_allclose(
        mixes_of("pathological", [0.6, 0.3, 0.1], 4, per_client=3), [[0.6, 0.3, 0.1]] * 4
    )


def test_pathological_wants_no_more_classes_than_there_are():
    with pytest.raises(DataError, match=r"data.num-classes-per-partition: 3 .* have 2; use 2"):
        mixes_of("pathological", [0.5, 0.5, 0.0], 4, per_client=3)


def test_rounding_is_by_largest_remainder():
    labels = [0] * 50 + [1] * 50
    hands, realised = deal(labels, [[0.67, 0.33], [0.1, 0.9]], [10, 10])
    assert counts(labels, hands, 2) == [[7, 3], [1, 9]]
    np.testing.assert_array_equal(realised, [[0.67, 0.33], [0.1, 0.9]])


def test_a_class_that_runs_out_is_cut_in_proportion_and_filled_from_the_mix():
    labels = [0] * 6 + [1] * 40 + [2] * 40
    hands, realised = deal(labels, [[0.8, 0.2, 0], [0.4, 0, 0.6], [0, 0.5, 0.5]], [10, 10, 10])
    assert counts(labels, hands, 3) == [[4, 6, 0], [2, 0, 8], [0, 5, 5]]
    np.testing.assert_array_equal(realised, [[0.4, 0.6, 0], [0.2, 0, 0.8], [0, 0.5, 0.5]])


def test_a_mix_that_runs_out_is_filled_from_any_class():
    labels = [0] * 4 + [1] * 10 + [2] * 10
    hands, realised = deal(labels, [[1, 0, 0], [1, 0, 0]], [6, 6])
    assert counts(labels, hands, 3) == [[2, 2, 2], [2, 2, 2]]
    np.testing.assert_allclose(realised, 1 / 3)


def test_all_rows_can_be_used():
    labels = [0] * 3 + [1] * 9
    hands, _ = deal(labels, [[0.5, 0.5]] * 4, [3] * 4)
    assert sorted(np.concatenate(hands)) == list(range(12))


def test_a_rare_class_is_not_lost_where_every_class_must_stay():
    labels = [0] * 99 + [1]
    assert counts(labels, deal(labels, [[0.99, 0.01]], [10])[0], 2) == [[10, 0]]
    assert counts(labels, deal(labels, [[0.99, 0.01]], [10], every_class=True)[0], 2) == [[9, 1]]


def test_too_few_rows_says_how_many_are_possible():
    with pytest.raises(DataError) as caught:
        deal([0, 1] * 50, [[0.5, 0.5]] * 3, [40] * 3)
    assert str(caught.value) == (
        "data.samples-per-client: 3 clients need 120 training rows of the task, which has 100; "
        "use at most 33 or fewer clients"
    )


def test_sizes():
    def sizes(kind, least=1, samples=50):
        return draw_sizes(kind, samples, (4, 5, 6), rngs(1)[0], alpha=0.5, min_partition_size=least)

    assert sizes("iid").tolist() == [50, 50, 50]
    assert sizes("quantity").sum() == 150
    assert len(set(sizes("quantity").tolist())) == 3
    assert sizes("quantity", least=50).tolist() == [50, 50, 50]
    with pytest.raises(DataError, match=r"data.min-partition-size: 51 is above .* \(50\)"):
        sizes("quantity", least=51)


def test_an_empty_partition_is_named():
    with pytest.raises(DataError, match="leaves partition 4 without training rows"):
        draw_sizes("quantity", 1, (3, 4), rngs(1)[0], alpha=1e-3, min_partition_size=0)


def test_evaluation_rows_follow_the_mix_and_a_class_nobody_has_stays():
    labels = np.repeat([0, 1, 2], [8, 6, 5])
    mixes, prior = (
        np.array([[0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0, 0]]),
        np.array([0.4, 0.4, 0.2]),
    )
    slices = deal_evaluation(labels, mixes, prior, rngs(1)[0])
    assert counts(labels, slices[:2], 3) in ([[6, 2, 0], [2, 4, 0]], [[6, 1, 0], [2, 5, 0]])
    assert not slices[2].size


def test_a_client_is_scored_on_its_own_mix_where_all_lean_to_one_class():
    # Dealt by class alone, the first client's slice would be half of class 0.
    mixes = np.array([[0.09, 0.91], [0.03, 0.97], [0.0, 1.0]])
    labels = np.repeat([0, 1], [129, 279])
    slices = deal_evaluation(labels, mixes, np.array([129, 279]) / 408, rngs(1)[0])
    assert counts(labels, slices, 2) == [[9, 88], [3, 94], [0, 97]]


def test_a_weight_of_zero_gets_nothing_and_ties_go_to_the_first():
    assert largest_remainder(np.array([1.0, 0.0, 1.0]), 3).tolist() == [2, 0, 1]
