"""What a command line may name as an experiment, and what it is told of anything else."""

from pathlib import Path

import pytest

from atlas_flwr.apps.catalogue import experiment_file
from atlas_flwr.apps.shipped import shipped_experiments, shipped_suites
from atlas_flwr.apps.suites.file import suite_file
from atlas_flwr.config.load import load_config
from atlas_flwr.config.suite_cells import load_suite
from atlas_flwr.errors import ConfigError
from atlas_flwr.models.catalog import MODELS, refusal


def test_a_shipped_name_and_a_path_are_experiments(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("")
    assert experiment_file(own) == own
    assert experiment_file(Path("demo")) == shipped_experiments()["demo"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("suite_glue", "is a suite, not an experiment: atlas suite suite_glue"),
        ("suite_glue.toml", "is a suite, not an experiment: atlas suite suite_glue"),
        ("demoo", "did you mean 'demo'"),
        (".", "is a folder; name the experiment's TOML file"),
    ],
)
def test_what_is_none_is_told_what_it_is(given: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment_file(Path(given))
    assert words in str(caught.value)


def test_an_experiment_is_no_suite_and_a_suite_no_experiment() -> None:
    suite, experiment = shipped_suites()["suite_glue"], shipped_experiments()["sst2"]
    with pytest.raises(ConfigError, match="is a suite, not an experiment: atlas suite"):
        load_config(suite)
    with pytest.raises(ConfigError, match="is an experiment, not a suite: atlas run"):
        load_suite(experiment)
    with pytest.raises(ConfigError, match="is an experiment, not a suite: atlas run sst2"):
        suite_file(Path("sst2"))


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.hub_id])
def test_a_known_model_that_is_out_of_reach_is_no_misspelling(name: str) -> None:
    assert "did you mean" not in str(refusal(name, OSError("no network")))
    assert f"did you mean '{name}'" in str(refusal(name[:-2] + name[-1], OSError("no such model")))
