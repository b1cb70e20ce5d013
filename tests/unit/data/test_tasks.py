import pytest

from atlas_flwr.config.sections import TaskSection
from atlas_flwr.data.tasks import TASKS, mapped_names, resolve_tasks
from atlas_flwr.errors import ConfigError


def test_built_in_tasks_come_in_the_order_named():
    specs = resolve_tasks(["rte", "bbc", "sst2"], [])
    assert list(specs) == ["rte", "bbc", "sst2"]
    assert specs["sst2"] is TASKS["sst2"]


def test_glue_columns_are_those_of_the_hub():
    assert TASKS["qnli"].text == ("question", "sentence")
    assert TASKS["mrpc"].text == TASKS["rte"].text == ("sentence1", "sentence2")
    assert TASKS["cola"].hub == ("nyu-mll/glue", "cola")


def test_every_built_in_task_names_its_labels_and_one_source():
    for name, spec in TASKS.items():
        assert spec.name == spec.source == name
        assert len(spec.label_names) == spec.num_labels
        assert (spec.hub is None) != (spec.package is None)


def test_own_task_with_files():
    own = TaskSection(name="mine", path="/d/mine", text="sentence", label="y")
    spec = resolve_tasks(["mine"], [own])["mine"]
    assert (spec.text, spec.label, spec.path, spec.num_labels) == (
        ("sentence",),
        "y",
        "/d/mine",
        None,
    )


def test_own_task_with_a_base_keeps_its_source_and_maps_its_labels():
    spec = resolve_tasks(["flip"], [TaskSection(name="flip", base="sst2", label_map=(1, 0))])[
        "flip"
    ]
    assert (spec.name, spec.source, spec.label_map) == ("flip", "sst2", (1, 0))
    assert mapped_names(spec.label_names, spec.label_map) == ("positive", "negative")


@pytest.mark.parametrize(
    ("names", "section", "message"),
    [
        (["sst"], None, "data.tasks: unknown task 'sst' (did you mean 'sst2'?); known: sst2, mrpc"),
        (["zzz"], None, "data.tasks: unknown task 'zzz'; known: sst2, mrpc, cola, qnli, rte, bbc"),
        ([], {"name": "bbc", "base": "sst2"}, "task.name: 'bbc' is the name of a built-in task"),
        ([], {"name": "m"}, "task.m: needs path, text and label for files, or base"),
        ([], {"name": "m", "path": "p"}, "task.m.text: is required with path"),
        ([], {"name": "m", "path": "p", "text": "t"}, "task.m.label: is required with path"),
        ([], {"name": "m", "base": "sst2", "path": "p"}, "task.m.path: not with base"),
        ([], {"name": "m", "base": "sst2", "label": "p"}, "task.m.label: not with base"),
        ([], {"name": "m", "base": "sts2"}, "task.m.base: unknown built-in task 'sts2' (did you"),
        (
            [],
            {"name": "m", "path": "p", "text": ["a", "b", "c"], "label": "y"},
            "task.m.text: 3 columns",
        ),
        (
            [],
            {"name": "m", "path": "p", "text": "y", "label": "y"},
            "task.m.text: ['y'] names a column twice",
        ),
        (
            [],
            {"name": "m", "path": "p", "text": "t", "label": "y", "label_map": [1, 0]},
            "task.m.label-map: needs base",
        ),
        (
            [],
            {"name": "m", "base": "sst2", "label_map": [0, 1, 0]},
            "task.m.label-map: [0, 1, 0] has 3 entries, but 'sst2' has 2 labels",
        ),
        (
            [],
            {"name": "m", "base": "tweets", "label_map": [0, 2, 0]},
            "task.m.label-map: [0, 2, 0]; the new labels must be 0, 1, … without gaps",
        ),
        ([], {"name": "m", "base": "sst2", "label_map": [0, 0]}, "leaves one class"),
    ],
)
def test_refusals(names, section, message):
    own = [TaskSection(**section)] if section else []
    with pytest.raises(ConfigError) as caught:
        resolve_tasks(names, own)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_own_tasks_of_one_name_are_refused():
    twice = [TaskSection(name="m", base="sst2"), TaskSection(name="m", base="cola")]
    with pytest.raises(ConfigError, match="another"):
        resolve_tasks(["m"], twice)
