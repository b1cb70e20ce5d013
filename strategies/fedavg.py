"""FedAvg: the example-weighted mean of all weights, or of LoRA factors (FedIT).

McMahan et al. 2017; on LoRA factors Zhang et al. 2024 (FedIT), which averages A and B apart and is
therefore not the mean of the products ``B A``.
"""

from __future__ import annotations

from strategies.base import Method


class FedAvg(Method):
    """``θ ← Σ n_k θ_k / Σ n_k`` over the clients that replied; a group nobody updated stays."""

    summary = "example-weighted mean of weights or LoRA factors (FedIT)"


class FedIt(FedAvg):
    """FedAvg on LoRA factors under the name of its paper (Zhang et al., ICASSP 2024).

    A and B are averaged apart: ``B̄ Ā`` misses ``Σ p_k B_k A_k`` by the covariance of the factors.
    """

    summary = "FedAvg of LoRA factors, A and B apart"
    needs_lora = True
