"""The table of methods: a name, a class; what other packages bring is added to it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from atlas_flwr.errors import ConfigError, did_you_mean
from strategies import plugins
from strategies.atlas import Atlas, AtlasClusterMean, AtlasNoLaplacian, AtlasUniformRank
from strategies.base import Method, Options, Setting
from strategies.centralised import Centralised
from strategies.cluster_controls import OneCluster, OracleCluster, RandomCluster
from strategies.cluster_mean import ClusterFedAvg
from strategies.dp import DpFedAvg
from strategies.embedding_cluster import EmbeddingCluster
from strategies.fedavg import FedAvg, FedIt
from strategies.fedlease import FedLease
from strategies.fedopt import FedAdam, FedAvgM
from strategies.fedprox import FedProx
from strategies.fedsb import FedSb
from strategies.fl_tac import FlTac
from strategies.flasc import Flasc
from strategies.flexlora import FlexLora, RaFlora
from strategies.flora import FedEx, Flora
from strategies.hetlora import HetLora, Rbla
from strategies.ifca import Ifca
from strategies.local_only import LocalOnly
from strategies.lora_fair import LoraFair
from strategies.mira import Mira
from strategies.one_factor import FedSa, Ffa, RoLora
from strategies.personal import Ditto, FedPer, FedRep
from strategies.robust import FedMedian, FedTrimmedAvg, MultiKrum, NormClip

STRATEGIES: dict[str, type[Method]] = {
    "local_only": LocalOnly,
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedit": FedIt,
    "hetlora": HetLora,
    "rbla": Rbla,
    "raflora": RaFlora,
    "flora": Flora,
    "flexlora": FlexLora,
    "fedex": FedEx,
    "ffa": Ffa,
    "rolora": RoLora,
    "fedsa": FedSa,
    "lora_fair": LoraFair,
    "fedsb": FedSb,
    "flasc": Flasc,
    "fedper": FedPer,
    "fedrep": FedRep,
    "ditto": Ditto,
    "fedlease": FedLease,
    "atlas": Atlas,
    "atlas_no_laplacian": AtlasNoLaplacian,
    "atlas_cluster_mean": AtlasClusterMean,
    "atlas_uniform_rank": AtlasUniformRank,
    "oracle_cluster": OracleCluster,
    "random_cluster": RandomCluster,
    "atlas_one_cluster": OneCluster,
    "embedding_cluster": EmbeddingCluster,
    "cluster_fedavg": ClusterFedAvg,
    "ifca": Ifca,
    "fl_tac": FlTac,
    "mira": Mira,
    "fedmedian": FedMedian,
    "fedtrimmedavg": FedTrimmedAvg,
    "multikrum": MultiKrum,
    "norm_clip": NormClip,
    "dp_fedavg": DpFedAvg,
    "centralised": Centralised,
}


def parse_options(name: str, options: dict[str, Any]) -> Options:
    """Check a strategy's name and options.

    Raises:
        ConfigError: The name is unknown or that of a package's strategy that can't be used, or an
            option is unknown or out of range.
    """
    if name in REFUSED:
        raise ConfigError(f"strategy.name: {REFUSED[name]}")
    method = STRATEGIES.get(name)
    if method is None:
        raise ConfigError(
            f"strategy.name: unknown strategy '{name}'{did_you_mean(name, STRATEGIES)}; "
            f"known: {', '.join(STRATEGIES)}"
        )
    try:
        return method.options_type.model_validate(options)
    except ValidationError as error:
        raise ConfigError(_one_line(name, method, error)) from error


def widest_rank(name: str, options: dict[str, Any]) -> int:
    """Return the highest LoRA rank the method may give by itself; 0 if it gives none.

    Raises:
        ConfigError: As in ``parse_options``.
    """
    return STRATEGIES[name].widest(parse_options(name, options))


def build(name: str, options: dict[str, Any], setting: Setting) -> Method:
    """Return the method for a setting.

    Raises:
        ConfigError: The name, an option, or the pair of method and setting is wrong.
    """
    parsed = parse_options(name, options)
    return STRATEGIES[name](setting, parsed)


def _one_line(name: str, method: type[Method], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:  # a pair of options, told by its validator
        return f"strategy.options.{first['msg'].removeprefix('Value error, ')}"
    key = str(first["loc"][0])
    path = f"strategy.options.{key}"
    if first["type"] == "extra_forbidden":
        known = [str(field.alias) for field in method.options_type.model_fields.values()]
        options = f"its options: {', '.join(known)}" if known else "it has no options"
        return f"{path}: '{name}' has no such option{did_you_mean(key, known)}; {options}"
    return f"{path}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"


# At the end: a package's module may import this one.
REFUSED = plugins.add_to(STRATEGIES)
"""Names that installed packages offer and that can't be used, and why, in one line."""
