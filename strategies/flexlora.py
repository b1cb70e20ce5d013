"""FlexLoRA and raFLoRA: products merged on the server, and cut by SVD to each receiver's rank."""

from __future__ import annotations

from typing import Literal

from atlas_flwr.aggregation.write_back import balanced, unbalanced
from atlas_flwr.types import LoraFactors
from strategies.base import Options
from strategies.folds import Fold, OfAdapters, band_mean, product_mean
from strategies.lora_rule import ProductRule, svd_of


class WriteBackOptions(Options):
    """Options of rules that write an SVD back into factors."""

    write_back: Literal["balanced", "unbalanced"] = "balanced"
    """``balanced``: √Σ on both factors; ``unbalanced``: Σ on B, as FlexLoRA is published."""


class FlexLora(ProductRule):
    """``P* = Σ p_k s_k B_k A_k``, and each receiver its best rank-r_k part of it.

    Bai et al., NeurIPS 2024. The SVD goes through stacked factors and thin QR, never through a
    dense matrix (``aggregation.products``). Exact at the server; what a receiver loses is the tail
    of the singular values. Directions without weight get fresh rows of A, or they would never
    train again (``aggregation.write_back``).
    """

    options_type = WriteBackOptions
    options: WriteBackOptions
    summary = "exact mean of the products, SVD cut to each receiver's rank"

    def fold(self, group: str) -> Fold:
        """Average the products."""
        return OfAdapters(product_mean())

    def cut(self, merged: LoraFactors, own: LoraFactors) -> LoraFactors:
        """Return the best approximation of the receiver's rank."""
        write = balanced if self.options.write_back == "balanced" else unbalanced
        return write(svd_of(merged), own.rank, own.scale, own.a)


class RaFlora(FlexLora):
    """Products averaged rank band by rank band, over the clients that own the band.

    raFLoRA (arXiv 2602.13486). High-rank clients weigh more in their own bands than their share of
    rows, by design: that is this rule's distance from P*.
    """

    summary = "products averaged over the owners of each rank band, then SVD"

    def fold(self, group: str) -> Fold:
        """Average band by band; the bands are those of all the group's clients."""
        ranks: dict[str, set[int]] = {}
        for partition in range(self.setting.clients):
            if self.body_key(partition) == group:
                for module, rank in self.setting.initial_for(partition).ranks().items():
                    ranks.setdefault(module, set()).add(rank)
        return OfAdapters(band_mean({module: sorted(found) for module, found in ranks.items()}))
