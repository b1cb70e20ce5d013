"""What the tables about methods say, once: README, the site and tests read it here.

Which ranks a method takes, its head and its options are attributes of its class; what no attribute
tells is below. C is the client's own adapter in bytes, m the number of clients, M that of models,
r a rank, d a density. "Down" is one delivery: a model travels again to be scored.
Strategies that other packages bring need no row here (`strategies.plugins`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Exact = Literal["yes", "no", "nearly", "weights", "at the server", "personal", "robust", "noisy"]
Models = Literal["one", "personal head", "personal", "one a task", "one a cluster"]


@dataclass(frozen=True)
class Facts:
    """One method's row.

    Attributes:
        exact: Whether the server's result is the weighted mean of the clients' effective updates,
            of all clients or of those of a cluster.
        models: Whether clients end with one model, one a cluster, or one each.
        up: Adapter bytes that one client sends in one round.
        down: Adapter bytes of one delivery to it.
        paper: Who published it, where; "" for controls of ours.
        url: Where the paper is.
    """

    exact: Exact | Literal["–"]
    models: Models
    up: str
    down: str
    paper: str = ""
    url: str = ""


def _arxiv(number: str) -> str:
    return f"https://arxiv.org/abs/{number}"


_OURS = "ours"
_ATLAS = Facts("personal", "personal", "C", "C", _OURS)

FACTS: dict[str, Facts] = {
    "local_only": Facts("–", "personal", "0", "0"),
    "fedavg": Facts("weights", "one", "C", "C", "McMahan et al. 2017", _arxiv("1602.05629")),
    "fedprox": Facts("weights", "one", "C", "C", "Li et al. 2020", _arxiv("1812.06127")),
    "fedavgm": Facts("weights", "one", "C", "C", "Hsu et al. 2019", _arxiv("1909.06335")),
    "fedadam": Facts("weights", "one", "C", "C", "Reddi et al. 2021", _arxiv("2003.00295")),
    "fedit": Facts("no", "one", "C", "C", "Zhang et al. 2024", _arxiv("2305.05644")),
    "hetlora": Facts("no", "one", "C", "C", "Cho et al. 2024", _arxiv("2401.06432")),
    "rbla": Facts("no", "one", "C", "C", "Chen et al. 2024", _arxiv("2408.08699")),
    "raflora": Facts("no", "one", "C", "C", "Wu et al. 2026", _arxiv("2602.13486")),
    "flora": Facts("yes", "one", "C", "ΣC", "Wang et al. 2024", _arxiv("2409.05976")),
    "flexlora": Facts("at the server", "one", "C", "C", "Bai et al. 2024", _arxiv("2402.11505")),
    "fedex": Facts(
        "yes", "one", "C", "C + (m−1)C at most", "Singhal et al. 2025", _arxiv("2410.09432")
    ),
    "ffa": Facts("yes", "one", "C/2", "C/2", "Sun et al. 2024", _arxiv("2403.12313")),
    "rolora": Facts("yes", "one", "C/2", "C/2", "Chen et al. 2025", _arxiv("2502.01755")),
    "fedsa": Facts("personal", "personal", "C/2", "C/2", "Guo et al. 2025", _arxiv("2410.01463")),
    "lora_fair": Facts("nearly", "one", "C", "C", "Bian et al. 2025", _arxiv("2411.14961")),
    "fedsb": Facts(
        "yes", "one", "r² a module", "r² a module", "Singhal et al. 2025", _arxiv("2502.15436")
    ),
    "flasc": Facts(
        "no", "one", "dC + a bitmap", "dC + a bitmap", "Kuo et al. 2024", _arxiv("2406.05233")
    ),
    "fedper": Facts(
        "no", "personal head", "C", "C", "Arivazhagan et al. 2019", _arxiv("1912.00818")
    ),
    "fedrep": Facts("no", "personal head", "C", "C", "Collins et al. 2021", _arxiv("2102.07078")),
    "ditto": Facts("no", "personal", "C", "C", "Li et al. 2021", _arxiv("2012.04221")),
    "fedlease": Facts(
        "no",
        "one a cluster",
        "C + routers",
        "MC + routers",
        "Wang et al. 2025",
        _arxiv("2509.15087"),
    ),
    "atlas": _ATLAS,
    "atlas_no_laplacian": _ATLAS,
    "atlas_cluster_mean": _ATLAS,
    "atlas_uniform_rank": _ATLAS,
    "oracle_cluster": _ATLAS,
    "random_cluster": _ATLAS,
    "atlas_one_cluster": _ATLAS,
    "embedding_cluster": Facts(
        "personal", "personal", "C", "C", "Vahidian et al. 2023", _arxiv("2209.10526")
    ),
    "cluster_fedavg": Facts("no", "one a cluster", "C", "C", _OURS),
    "ifca": Facts("no", "one a cluster", "C", "MC", "Ghosh et al. 2020", _arxiv("2006.04088")),
    "fl_tac": Facts("no", "one a cluster", "C", "C", "Ping et al. 2024", _arxiv("2404.15384")),
    "mira": Facts("personal", "personal", "C", "C", "Elbakary et al. 2025", _arxiv("2410.15524")),
    "fedmedian": Facts("robust", "one", "C", "C", "Yin et al. 2018", _arxiv("1803.01498")),
    "fedtrimmedavg": Facts("robust", "one", "C", "C", "Yin et al. 2018", _arxiv("1803.01498")),
    "multikrum": Facts("robust", "one", "C", "C", "Blanchard et al. 2017", _arxiv("1703.02757")),
    "norm_clip": Facts("robust", "one", "C", "C", "Sun et al. 2019", _arxiv("1911.07963")),
    "dp_fedavg": Facts("noisy", "one", "C/2", "C/2", "McMahan et al. 2018", _arxiv("1710.06963")),
    "centralised": Facts("–", "one a task", "–", "–"),
}
