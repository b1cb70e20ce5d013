"""Robust rules on effective updates: median, trimmed mean, Multi-Krum, norm clipping.

Flower's strategies of these names merge tensors as they are sent; see ``strategies.robust_rule``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from atlas_flwr.aggregation.clipping import clip_share, clipped, movement
from atlas_flwr.aggregation.robust import (
    Rule,
    coordinate_median,
    krum_needs,
    krum_tolerates,
    merge_adapters,
    merge_tensors,
    multi_krum,
    squared_distances,
    trimmed_mean,
    weighted_mean,
)
from atlas_flwr.errors import ConfigError, RunFailed
from atlas_flwr.types import Adapter, LoraFactors, ModelParts
from strategies.base import Options, State
from strategies.robust_rule import Merged, RobustRule, Vote

Count = Annotated[int, Field(ge=0, strict=True)]


# ------------------------------------------------------------------ coordinate by coordinate


class CoordinateRule(RobustRule):
    """A rule for each coordinate by itself; example counts have no say.

    Its products have any rank: the server keeps the best approximation of the receivers' highest.
    """

    def rule(self) -> Rule:
        """Return the function from values ``(n, …)`` to ``(…)``."""
        raise NotImplementedError

    def decide(self, state: State, group: str, votes: Sequence[Vote]) -> Merged:
        """Merge coordinate by coordinate."""
        rule, said = self.rule(), [vote.parts for vote in votes]
        adapter: dict[str, LoraFactors] = {}
        spectra: dict[str, NDArray[np.float64]] = {}
        adapters: list[Adapter] = [parts.adapter for parts in said]
        for module, factors, s in merge_adapters(adapters, rule, self._widest):
            adapter[module], spectra[module] = factors, s
        weights = merge_tensors([parts.weights for parts in said], rule)
        head = merge_tensors([parts.head for parts in said], rule)
        return Merged(ModelParts(adapter=adapter, weights=weights, head=head), spectra=spectra)


class FedMedian(CoordinateRule):
    """The median of each entry of the products, weights and heads (Yin et al., ICML 2018)."""

    summary = "coordinate median of the products (robust, unweighted)"

    def rule(self) -> Rule:
        """Return the median."""
        return coordinate_median


class TrimmedOptions(Options):
    """Options of the trimmed mean."""

    beta: Annotated[float, Field(ge=0, lt=0.5, strict=True)] = 0.2
    """Share of the clients cut on each side; of three or more at least one, unless it is 0."""


class FedTrimmedAvg(CoordinateRule):
    """The mean of each entry without its β n highest and lowest (Yin et al., ICML 2018)."""

    options_type = TrimmedOptions
    options: TrimmedOptions
    summary = "trimmed mean of the products, entry by entry (robust, unweighted)"

    def check_group(self, group: str, clients: int) -> None:
        """Refuse a group of two or one: nothing can be cut of it."""
        if self.options.beta and clients < 3:
            raise ConfigError(
                f"strategy.options.beta: {self.options.beta} cuts nothing of the {clients} "
                f"answers of '{group}'; three are needed, or beta = 0"
            )

    def rule(self) -> Rule:
        """Return the trimmed mean."""
        return lambda values: trimmed_mean(values, self.options.beta)


# ------------------------------------------------------------------ whole clients


class KrumOptions(Options):
    """Options of Multi-Krum."""

    num_malicious: Literal["auto"] | Count = "auto"
    """f, how many may be bad; ``auto``: as many as the answers allow, ``(n − 3) // 2``, none below
    five."""
    num_selected: Literal["auto"] | Annotated[int, Field(ge=1, strict=True)] = "auto"
    """m, how many are averaged; 1 is Krum; ``auto``: ``n − f − 2``, at least 1."""


class MultiKrum(RobustRule):
    """The mean of the m clients that have the nearest neighbours; the others are left out.

    Blanchard et al., NeurIPS 2017, with the m up to which El Mhamdi et al. (2018) prove it. The
    distance is that of products, and the mean is exact and weighted by examples, as in Flower.
    """

    options_type = KrumOptions
    options: KrumOptions
    summary = "exact mean of the clients with the nearest neighbours (robust)"

    def check_group(self, group: str, clients: int) -> None:
        """Refuse a group with fewer than ``2 f + 3`` answers."""
        if said := self._refusal(clients):
            raise ConfigError(f"{said} of '{group}'; lower it, or have more clients answer")

    def decide(self, state: State, group: str, votes: Sequence[Vote]) -> Merged:
        """Select, then average."""
        clients = len(votes)
        alone = group.startswith("client-")
        if not alone and (said := self._refusal(clients)):
            raise RunFailed(f"round {state.round}: {said} of '{group}'")
        malicious, keep = (0, 1) if alone else self._numbers(clients)
        distances = squared_distances([vote.parts for vote in votes])
        chosen = [votes[i] for i in multi_krum(distances, malicious, keep)]
        shares = dict.fromkeys((vote.partition for vote in votes), 0.0)
        shares |= dict.fromkeys((vote.partition for vote in chosen), 1.0)
        mean = weighted_mean([vote.parts for vote in chosen], [vote.weight for vote in chosen])
        return Merged(mean, shares)

    def _numbers(self, clients: int) -> tuple[int, int]:
        """Return f and m for a number of answers."""
        f, m = self.options.num_malicious, self.options.num_selected
        malicious = krum_tolerates(clients) if f == "auto" else f
        return malicious, max(1, clients - malicious - 2) if m == "auto" else m

    def _refusal(self, clients: int) -> str | None:
        """Return what the options ask for and the answers can't give."""
        malicious, keep = self._numbers(clients)
        if clients < krum_needs(malicious):
            needs = f"needs {krum_needs(malicious)} answers (2 f + 3)"
            return f"strategy.options.num-malicious: {malicious} {needs}, there are {clients}"
        if keep > clients - malicious:
            good = clients - malicious
            return f"strategy.options.num-selected: {keep}, but only {good} good answers can come"
        return None


class ClipOptions(Options):
    """Options of norm clipping."""

    clip: Literal["median"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "median"
    """The longest movement let in whole: a norm, or the median of the round's norms."""


class NormClip(RobustRule):
    """The mean of movements, none of them longer than a bound (Sun et al., 2019).

    A movement is ``P_k − P_0`` from what the client was sent; one that is too long is scaled, as
    factors, and stays in. It bounds what a client can do in a round, not in which direction.
    """

    options_type = ClipOptions
    options: ClipOptions
    summary = "exact mean of the products, no client moving further than the median (robust)"

    def decide(self, state: State, group: str, votes: Sequence[Vote]) -> Merged:
        """Clip, then average."""
        lengths = [movement(vote.parts, vote.start) for vote in votes]
        clip = self.options.clip
        bound = float(np.median(lengths)) if clip == "median" else clip
        shares = {v.partition: clip_share(n, bound) for v, n in zip(votes, lengths, strict=True)}
        short = [clipped(v.parts, v.start, shares[v.partition]) for v in votes]
        mean = weighted_mean(short, [vote.weight for vote in votes])
        like = votes[0].parts
        weights = {n: t.astype(like.weights[n].dtype) for n, t in mean.weights.items()}
        head = {n: t.astype(like.head[n].dtype) for n, t in mean.head.items()}
        return Merged(replace(mean, weights=weights, head=head), shares)
