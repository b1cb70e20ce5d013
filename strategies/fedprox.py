"""FedProx: FedAvg with a proximal term on the client (Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from atlas_flwr.types import Scalar
from strategies.base import Method, Options, State


class FedProxOptions(Options):
    """Options of FedProx."""

    mu: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 0.01
    """Weight of the proximal term; 0 is FedAvg."""


class FedProx(Method):
    """Clients minimise ``f_k(θ) + (μ/2)‖θ − θᵗ‖²``; the server averages as FedAvg does.

    With LoRA the term acts on the factors, as is usual, and so depends on their gauge.
    """

    options_type = FedProxOptions
    options: FedProxOptions
    summary = "FedAvg with a proximal term (mu) on the clients"

    def job_options(self, state: State) -> Mapping[str, Scalar]:
        """Send μ with every job."""
        return {"mu": self.options.mu}
