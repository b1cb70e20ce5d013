"""All pictures of what a run found out: clusters, ranks, steps. The one list of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr.results.found import found_figures
from atlas_flwr.results.ranked import rank_figures
from atlas_flwr.results.shapes import Picture
from atlas_flwr.results.steps import step_figures

if TYPE_CHECKING:
    from atlas_flwr.results.store import RunResult


def insights(run: RunResult) -> list[Picture]:
    """Return the pictures of clusters, ranks and steps; empty for a run that has none."""
    return [*found_figures(run), *rank_figures(run), *step_figures(run)]
