import pytest

from atlas_flwr.apps.keeping import identity
from atlas_flwr.config.load import parse_config
from atlas_flwr.errors import ConfigError


def config(**run):
    return parse_config({"run": run, "data": {"tasks": ["tweets"]}})


def test_one_name_or_several():
    assert config(trackers="wandb").run.trackers == ("wandb",)
    assert config(trackers=["mlflow", "trackio"]).run.trackers == ("mlflow", "trackio")
    assert config().run.trackers == ()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["tensorbord"], r"run\.trackers.*did you mean 'tensorboard'"),
        (["wandb", "wandb"], r"run\.trackers.*named twice"),
    ],
)
def test_a_wrong_name_is_told_with_its_key(names, said):
    with pytest.raises(ConfigError, match=said):
        config(trackers=names)


def test_trackers_do_not_make_another_run():
    assert identity(config()) == identity(config(trackers=["wandb", "tensorboard"]))
