import ntpath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from atlas_flwr.config.load import parse_config
from atlas_flwr.config.names import Name, twice
from atlas_flwr.config.suite import parse_suite
from atlas_flwr.errors import ConfigError

NAME = TypeAdapter(Name)


@pytest.mark.parametrize(
    "name", ["CON", "nul", "aux.toml", "Com1", "lpt9.a.b", "run.", "a..", "a/b"]
)
def test_a_name_that_windows_has_no_file_for_is_refused(name):
    with pytest.raises(ValidationError):
        NAME.validate_python(name)


@pytest.mark.parametrize("name", ["console", "com", "com10", "sst2-lora", "a.b", "nully.1"])
def test_names_like_them_are_names(name):
    assert NAME.validate_python(name) == name


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_what_passes_is_no_reserved_path(name):
    try:
        NAME.validate_python(name)
    except ValidationError:
        return
    if hasattr(ntpath, "isreserved"):  # Python 3.13
        assert not ntpath.isreserved(name)
    assert ntpath.basename(name) == name


def test_a_disk_may_not_tell_cases_apart():
    assert twice(["a", "b"]) is None
    with pytest.raises(ConfigError, match=r"^data.tasks: 'BBC' is named twice"):
        parse_config({"data": {"tasks": ["bbc", "BBC"]}, "run": {"clients": 2}})
    text = 'name="s"\nbase="demo.toml"\nseeds=[1]\n'
    runs = '[[run]]\nname="X"\nstrategy="fedavg"\n[[run]]\nname="x"\nstrategy="fedavg"\n'
    with pytest.raises(ConfigError, match=r"^run.1.name: 'x' is named twice"):
        parse_suite(text + runs)


def test_the_refusal_names_key_value_and_mend():
    said = r"^run.name: is a device's name on Windows.*take another, got 'con'$"
    with pytest.raises(ConfigError, match=said):
        parse_config({"data": {"tasks": ["bbc"]}, "run": {"name": "con"}})
