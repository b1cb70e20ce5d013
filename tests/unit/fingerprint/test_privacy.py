"""ε and δ of the Gaussian mechanism against numerical integration."""

from __future__ import annotations

import math

import pytest
from scipy.integrate import quad
from scipy.stats import norm

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.privacy import delta, epsilon


@pytest.mark.parametrize("noise", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("eps", [0.0, 0.5, 3.0])
def test_delta_is_the_hockey_stick_divergence(noise, eps):
    """Oracle: ∫ max(p − e^ε q, 0) for two normals one sensitivity apart."""

    def excess(x):
        return max(norm.pdf(x, 1, noise) - math.exp(eps) * norm.pdf(x, 0, noise), 0.0)

    start = 0.5 + eps * noise**2  # where the densities' ratio passes e^ε
    want, _ = quad(excess, start, start + 40 * noise, limit=200)
    assert delta(noise, eps) == pytest.approx(want, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("noise", [0.2, 1.0, 10.0, 300.0])
def test_epsilon_inverts_delta(noise):
    eps = epsilon(noise, 1e-5)
    assert delta(noise, eps) <= 1e-5 * (1 + 1e-5)
    if eps > 1e-6:
        assert delta(noise, eps * 0.99) > 1e-5


def test_more_noise_is_worth_more_and_none_is_worth_nothing():
    values = [epsilon(noise, 1e-5) for noise in (0.0, 0.1, 0.5, 1.0, 2.0, 8.0, 1e6)]
    assert values == sorted(values, reverse=True)
    assert values[0] == math.inf
    assert values[-1] == 0.0


def test_it_is_never_more_than_the_classical_bound():
    """Dwork and Roth 2014, theorem A.1: σ ≥ √(2 ln(1.25/δ)) / ε gives (ε, δ) for ε ≤ 1."""
    for eps in (0.1, 0.5, 1.0):
        sigma = math.sqrt(2 * math.log(1.25 / 1e-5)) / eps
        assert epsilon(sigma, 1e-5) <= eps


def test_bad_numbers_are_refused():
    for call in (lambda: delta(0.0, 1.0), lambda: delta(1.0, -1.0), lambda: epsilon(1.0, 0.0)):
        with pytest.raises(AggregationError, match="must be"):
            call()
