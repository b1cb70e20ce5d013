"""Noise against Flower's and its law; ε against closed forms and Flower's own accountant."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from flwr.supercore.differential_privacy import compute_stdv
from flwr.supercore.privacy_accounting import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    SamplingMethod,
)
from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant
from scipy import stats

from atlas_flwr.aggregation.noise import (
    accounting,
    epsilon,
    epsilon_sampled,
    noise_std,
    noisy,
    said,
)
from atlas_flwr.errors import ConfigError

DELTA = 1e-5


def test_the_standard_deviation_is_flowers() -> None:
    for case in ((1.0, 0.5, 10), (0.3, 2.0, 7)):
        assert noise_std(*case) == compute_stdv(*case)


def test_noise_is_normal_independent_and_drawn_from_the_generator_alone() -> None:
    zero = {"b": np.zeros((200, 100), np.float32), "a": np.zeros(20_000)}
    np.random.seed(0)
    state = np.random.get_state()[1].tobytes()
    first, again = (noisy(zero, 0.25, np.random.default_rng(5)) for _ in range(2))
    assert np.random.get_state()[1].tobytes() == state
    assert list(first) == ["b", "a"]
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, again[name])
        assert (tensor.shape, tensor.dtype) == (zero[name].shape, zero[name].dtype)
        assert stats.kstest(tensor.ravel() / 0.25, "norm").pvalue > 0.01
    correlation = np.corrcoef(first["a"], first["b"].ravel())[0, 1]
    assert abs(correlation) < 0.03
    other = noisy(zero, 0.25, np.random.default_rng(6))
    assert not np.array_equal(other["a"], first["a"])


def exact_delta(epsilon_: float, mu: float) -> float:
    """δ of Gaussian mechanisms of total signal to noise μ (Balle & Wang 2018, Dong et al. 2022)."""
    return float(
        stats.norm.cdf(mu / 2 - epsilon_ / mu)
        - math.exp(epsilon_) * stats.norm.cdf(-mu / 2 - epsilon_ / mu)
    )


@pytest.mark.parametrize(("sigma", "times"), [(1.0, 1), (4.0, 10), (8.0, 100), (20.0, 20)])
def test_epsilon_is_no_less_than_the_truth_and_near_it(sigma: float, times: int) -> None:
    found = epsilon(sigma, times, DELTA)
    for relation, sensitivity in (("zero_out", 1.0), ("replace_one", 2.0)):
        mu = sensitivity * math.sqrt(times) / sigma
        assert exact_delta(found[relation], mu) <= DELTA
        assert exact_delta(0.8 * found[relation], mu) > DELTA


def test_epsilon_without_amplification_is_flowers() -> None:
    config = PrivacyConfig(
        target_delta=DELTA,
        population_size=50,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
    )
    theirs = RdpAccountant(config)
    theirs.compose(GaussianPrivacyEvent(3.0, 50, 50), 12)
    ours = epsilon(3.0, 12, DELTA)["zero_out"]
    assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-3)


def test_epsilon_grows_with_rounds_and_falls_with_noise() -> None:
    rounds = [epsilon(2.0, t, DELTA)["zero_out"] for t in (0, 1, 5, 50)]
    assert rounds[0] == 0
    assert rounds == sorted(rounds)
    noise = [epsilon(s, 5, DELTA)["zero_out"] for s in (0.5, 1.0, 2.0, 50.0)]
    assert noise == sorted(noise, reverse=True)
    weak = epsilon(1e-15, 3, DELTA)
    assert all(math.isfinite(value) for value in weak.values())


def test_who_is_drawn_less_is_hidden_better() -> None:
    everybody = epsilon_sampled(4.0, 100, 100, 20, DELTA)
    assert everybody == pytest.approx(epsilon(4.0, 20, DELTA)["replace_one"], rel=1e-2)
    shares = [epsilon_sampled(4.0, 100, m, 20, DELTA) for m in (1, 10, 50, 100)]
    assert shares == sorted(shares)
    config = PrivacyConfig(
        target_delta=DELTA,
        population_size=100,
        neighboring_relation=NeighboringRelation.REPLACE_ONE,
        sampling_method=SamplingMethod.WITHOUT_REPLACEMENT,
    )
    theirs = RdpAccountant(config)
    # Its multiplier is relative to how far a replaced client moves the sum: 2 C, not C.
    theirs.compose(GaussianPrivacyEvent(4.0 / 2, 10, 100), 20)
    assert shares[1] == pytest.approx(theirs.get_epsilon(DELTA), rel=0.02)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.startswith("dp_accounting")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"strategy\.name.*'atlas-flwr\[dp\]'") as refused:
        accounting()
    assert "\n" not in str(refused.value)


def test_epsilon_is_told_in_three_digits() -> None:
    assert (
        said({"zero_out": 3.21049, "replace_one": math.inf})
        == "zero_out 3.21, replace_one infinite"
    )
