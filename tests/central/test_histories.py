"""Logs written long ago mean today what they meant then."""

import json
from typing import get_args

import pytest

from cyxcentral import jobrules
from cyxnet import messages as m
from cyxnet.codec import MSGPACK, decode
from cyxnet.outcomes import Stored
from cyxnet.subjects import last_token
from tests.central.histories import FOLDER, HISTORIES, Unchained, fold, path_of, plain, state_of

KEPT = sorted(FOLDER.glob("*.json"))


def read(path):
    kept = json.loads(path.read_text())
    lines = enumerate(kept["records"], start=1)
    return kept, [Stored(line["subject"], seq, bytes.fromhex(line["payload"])) for seq, line in lines]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_history_still_folds_to_its_state(path):
    kept, stored = read(path)
    assert state_of(fold(stored)) == kept["state_sha256"]


@pytest.mark.parametrize("path", [path for path in KEPT if "quarantine" not in path.name], ids=lambda path: path.stem)
def test_every_event_of_a_history_is_still_possible_where_it_stands(path):
    _, stored = read(path)
    for before, each in enumerate(stored):
        event = decode(m.Record, each.payload, MSGPACK).event
        if isinstance(event, m.JobEvent):
            assert jobrules.illegal(fold(stored[:before]).jobs.get(last_token(each.subject)), event) is None, (
                each.seq,
                event,
            )


def test_every_history_in_the_table_is_kept():
    assert [name for name in HISTORIES if not path_of(name).exists()] == [], "run: python -m tests.central.histories"


def test_every_kind_of_event_is_in_a_history():
    events = (each for history in HISTORIES.values() for _, each in history)
    said = {type(each.event if isinstance(each, Unchained) else each) for each in events}
    assert said >= set(get_args(m.AnyEvent))


def test_a_new_field_with_its_default_changes_no_state():
    job = fold(read(KEPT[0])[1]).jobs
    assert all("pause_requested" not in plain(each) for each in job.values())
