"""Events: what is appended is what is followed, also while it is still being written."""

import json

import pytest

from atlas_flwr.errors import ResultError
from atlas_flwr.results.events import append_event, cut_events, follow_events

NOTES = [{"event": "note", "partition": n, "text": "größer\nline"} for n in (None, 1, 2)]


def test_followed_in_order_and_to_the_end(tmp_path):
    path = tmp_path / "events.jsonl"
    left = list(NOTES)

    def stop():  # writes one more before each look, the last one after which it ends
        if left:
            append_event(path, left.pop(0))
        return not left

    assert list(follow_events(path, stop, interval=0)) == NOTES


def test_a_line_without_its_end_waits(tmp_path):
    path = tmp_path / "events.jsonl"
    line = json.dumps(NOTES[1]) + "\n"
    pieces = [line[:9], line[9:]]

    def stop():
        with path.open("a") as file:
            file.write(pieces.pop(0))
        return not pieces

    assert list(follow_events(path, stop, interval=0)) == [NOTES[1]]


def test_no_file_yet_is_no_event(tmp_path):
    assert list(follow_events(tmp_path / "none", lambda: True)) == []


@pytest.mark.parametrize("line", ["{broken", '{"event": "party"}', "[1]"])
def test_a_foreign_line_is_refused(tmp_path, line):
    (tmp_path / "e").write_text(line + "\n")
    with pytest.raises(ResultError, match="not an event"):
        list(follow_events(tmp_path / "e", lambda: True))


@pytest.mark.parametrize("event", [{"event": "note"}, {"event": None}, {}])
def test_events_lacking_fields_are_not_written(tmp_path, event):
    with pytest.raises(ValueError, match=r"lacks|none of"):
        append_event(tmp_path / "e", event)
    assert not (tmp_path / "e").exists()


def test_a_session_s_first_line_never_stands_behind_half_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    assert cut_events(path) == 0
    append_event(path, NOTES[0])
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write('{"event": "note", "text": "ö'.encode()[:-1])
    assert cut_events(path) == whole == cut_events(path)
    append_event(path, NOTES[1])
    assert list(follow_events(path, lambda: True)) == NOTES[:2]
    path.write_bytes(b"half")
    assert cut_events(path) == 0
