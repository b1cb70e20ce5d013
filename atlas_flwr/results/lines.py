"""What was found out about clusters, in lines for the terminal and the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_flwr.results.steps import steps_line

_SKEWED = 0.2  # from here on a client's accuracy on its own rows suffers from others' mixes


def clusters_line(clusters: Mapping[str, Any]) -> str:
    """Return who is with whom in one line; empty when ``clusters.json`` does not say.

    >>> clusters_line({"clusters": {"0": 0, "1": 1, "2": 0, "3": 0}})
    'clusters: 0, 2, 3 | 1'
    """
    members: dict[int, list[int]] = {}
    for partition, cluster in clusters.get("clusters", {}).items():
        members.setdefault(int(cluster), []).append(int(partition))
    said = " | ".join(", ".join(map(str, sorted(who))) for _, who in sorted(members.items()))
    return f"clusters: {said}" if said else ""


def privacy_line(clusters: Mapping[str, Any]) -> str:
    """Return what the noise on fingerprints is worth in one line; empty without noise.

    >>> privacy_line({"privacy": {"epsilon": 4.377, "delta": 1e-5, "times": 1}})
    'fingerprints: ε = 4.38 at δ = 1e-05 for the text of one row, asked once'
    """
    told = clusters.get("privacy")
    if not told:
        return ""
    times = "once" if told["times"] == 1 else f"at most {told['times']} times"
    worth = f"ε = {told['epsilon']:.3g} at δ = {told['delta']:g}"
    return f"fingerprints: {worth} for the text of one row, asked {times}"


def mixes_line(clusters: Mapping[str, Any]) -> str:
    """Return what to do about label mixes that differ inside a cluster; empty where nothing is.

    >>> mixes_line({"label_mixes": {"apart": {"0": 0.05, "1": 0.62}, "learned": True}})[:48]
    'label mixes differ by up to 0.62 in cluster 1: t'
    """
    told = clusters.get("label_mixes", {})
    most = max(told.get("apart", {}).items(), key=lambda item: item[1], default=("", 0.0))
    if most[1] < _SKEWED or not told["learned"]:
        return ""
    return (
        f"label mixes differ by up to {most[1]:.2f} in cluster {most[0]}: the mean of such models "
        "forgets each client's own; train.logit-adjustment = 1 takes the mixes out of the models"
    )


def found_lines(clusters: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of the clusters that were found, beside who is in them."""
    return list(filter(None, (steps_line(clusters), privacy_line(clusters), mixes_line(clusters))))
