"""Rows as Arrow columns: what DuckDB reads of them is what they hold, and what cannot be made is an error."""

import duckdb
import pytest

from cyxcentral import columns
from cyxcentral.columns import BIGINT, DOUBLE, VARCHAR, Rows

SHAPE = {"seq": BIGINT, "said": VARCHAR}


@pytest.fixture
def db():
    with duckdb.connect(":memory:") as connection:
        connection.execute("CREATE TABLE t (seq INTEGER, said VARCHAR)")
        yield connection


def insert(db, rows):
    with rows:
        db.from_arrow(rows).insert_into("t")


def test_numbers_and_text_of_any_length_and_script_come_as_they_are(db):
    said = ["", "a\0b", "ü 漢 🦆", "x" * 100_000, "not long, not short"] * 700
    blocks = ([range(first, first + 500), said[first : first + 500]] for first in range(0, 3_500, 500))
    insert(db, Rows(SHAPE, blocks))
    assert db.execute("FROM t ORDER BY seq").fetchall() == list(enumerate(said))
    assert not columns._held and not columns._given, "what was handed over is given back"


def test_text_may_be_utf8_already(db):
    insert(db, Rows(SHAPE, iter([[[-(2**31)], ["ü".encode()]]])))
    assert db.execute("FROM t").fetchall() == [(-(2**31), "ü")]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 2_049])
def test_what_is_missing_is_null_wherever_it_stands(db, count):
    db.execute("CREATE OR REPLACE TABLE t (seq BIGINT, said VARCHAR, loss DOUBLE, ended BOOLEAN)")
    shape = SHAPE | {"loss": DOUBLE, "ended": BIGINT}
    rows = [
        (seq, None if seq % 3 else f"{seq}", None if seq % 5 == 0 else seq / 7, None if seq % 2 else seq % 4 == 0)
        for seq in range(count)
    ]
    insert(db, Rows(shape, iter([list(zip(*rows, strict=True)), [[None]] * 3 + [[True]]])))
    assert db.execute("FROM t ORDER BY seq NULLS LAST").fetchall() == [*rows, (None, None, None, True)]
    assert not columns._held


def test_no_rows_are_no_rows(db):
    insert(db, Rows(SHAPE, iter([])))
    assert db.execute("FROM t").fetchall() == []


@pytest.mark.parametrize("bad", [[[2**63], ["x"]], [[1], [3]], [[1]]])
def test_a_block_that_cannot_be_made_ends_the_whole(db, bad):
    rows = Rows(SHAPE, iter([[[1], ["fine"]], bad]))
    with pytest.raises(duckdb.Error):
        insert(db, rows)
    assert isinstance(rows.error, OverflowError | AttributeError | ValueError)
    assert db.execute("FROM t").fetchall() == []
    assert not columns._held


def test_whatever_goes_wrong_on_the_way_is_an_error_and_not_the_end_of_the_rows(db, monkeypatch):
    """An exception that leaves a callback is lost: DuckDB took what came until then for all there was."""
    real = columns._give

    def short_of_memory(out, struct, release, needs):
        if isinstance(struct, columns._Array):
            raise MemoryError("no room for a block")
        real(out, struct, release, needs)

    monkeypatch.setattr(columns, "_give", short_of_memory)
    rows = Rows(SHAPE, iter([[[1], ["fine"]]]))
    with pytest.raises(duckdb.Error):
        insert(db, rows)
    assert isinstance(rows.error, MemoryError)


def test_who_asks_after_the_end_is_told_so(db):
    rows = Rows(SHAPE, iter([[[1], ["x"]]]))
    with rows:
        late = db.from_arrow(rows)
    with pytest.raises(duckdb.Error):
        late.insert_into("t")
