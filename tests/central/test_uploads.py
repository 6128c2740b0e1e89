"""How much may be uploaded by whom."""

import pytest

from cyxcentral.blobs import Blobs
from cyxcentral.uploads import BESIDE_BYTES, DAY_S, STRANGERS_SHARE, WORKERS_SHARE, Uploads
from cyxnet import subjects
from cyxnet.bus import Bus
from cyxnet.outcomes import ApiError
from tests.central.test_fetches import manifest_of

DAILY = 1_000_000
KNOWN, WORKER = {"c-alice", "c-bob"}, {"node-a"}


@pytest.fixture
def uploads():
    return Uploads(DAILY, KNOWN.__contains__, WORKER.__contains__)


def sent(uploads, who, size_bytes, now_s=0.0):
    """Whether so much, with all that is kept beside it, is taken; the refusal is a plain one."""
    return taken(uploads.charge, who, size_bytes - BESIDE_BYTES, now_s)


def taken(charge, *arguments):
    try:
        charge(*arguments)
    except ApiError as error:
        assert (error.code, error.status) == ("quota", 429) and error.retry_after_ms > 0
        return False
    return True


def test_each_who_is_known_has_a_day_of_bytes_and_gets_it_back_with_time(uploads):
    assert sent(uploads, "c-alice", DAILY)
    assert not sent(uploads, "c-alice", 1_000)
    assert sent(uploads, "c-bob", DAILY)
    assert not sent(uploads, "c-alice", DAILY // 2 + 1_000, DAY_S / 2)
    assert sent(uploads, "c-alice", DAILY // 2, DAY_S / 2)


def test_strangers_have_less_each_and_one_day_together(uploads):
    each = DAILY // STRANGERS_SHARE
    assert sent(uploads, "c-0", each)
    assert not sent(uploads, "c-0", 1_000)
    for number in range(1, STRANGERS_SHARE):
        assert sent(uploads, f"c-{number}", each)
    assert not sent(uploads, "c-another", each)
    assert sent(uploads, "c-alice", DAILY)


def test_who_is_refused_because_of_all_the_others_keeps_what_is_his(uploads):
    each = DAILY // STRANGERS_SHARE
    for number in range(STRANGERS_SHARE):
        assert sent(uploads, f"c-{number}", each)
    assert not any(sent(uploads, "c-late", each) for _ in range(5))  # each of them was charged to it
    assert sent(uploads, "c-late", each, DAY_S / STRANGERS_SHARE)


def test_a_node_that_holds_a_lease_stores_what_it_was_asked_for_but_not_without_end(uploads):
    assert all(sent(uploads, "node-a", DAILY) for _ in range(WORKERS_SHARE))
    assert not sent(uploads, "node-a", DAILY)
    assert sent(uploads, "node-a", DAILY, DAY_S / WORKERS_SHARE)


def test_what_is_read_back_is_counted_besides_what_is_sent(uploads):
    """A chunk that was sent once can be named ten thousand times in one manifest: each time it is hashed anew."""
    for who, most in (("c-alice", DAILY), ("c-0", DAILY // STRANGERS_SHARE), ("node-a", DAILY * WORKERS_SHARE)):
        assert taken(uploads.charge_reading, who, most, 0.0)
        assert not taken(uploads.charge_reading, who, 1_000, 0.0)
        assert taken(uploads.charge_reading, who, most // 2, DAY_S / 2)
        assert sent(uploads, who, most)


def test_a_manifest_counts_by_its_chunks(uploads):
    fit = 0
    while taken(uploads.charge_manifest, "c-alice", 1_000, 0.0):
        fit += 1
    assert fit == DAILY // (67 * 1_000 + BESIDE_BYTES)


async def test_no_more_is_stored_than_is_counted(broker):
    """Chunks of one byte, each with its note, cost the disk hundreds of times what they hold."""
    core = await Bus.connect(broker.url("core"), name="core")
    blobs, count, who = Blobs(core), 50, "c-" + "0" * 32
    await blobs.open()
    blocks = [b"%d" % number for number in range(count)]
    for block in blocks:
        await blobs.put(block, who)
        await blobs.commit(manifest_of([block]), who)
    stored = (await core._js.stream_info(subjects.BLOBS)).state.bytes
    uploads = Uploads(stored, lambda identity: True, lambda identity: False)  # as much as the disk has now
    assert not all(
        taken(uploads.charge, who, len(block), 0.0) and taken(uploads.charge_manifest, who, 1, 0.0) for block in blocks
    )
    await core.close()


def test_without_a_quota_everything_is_taken_and_read_back():
    uploads = Uploads(0, KNOWN.__contains__, WORKER.__contains__)
    assert all(sent(uploads, "c-0", DAILY) and taken(uploads.charge_reading, "c-0", DAILY, 0.0) for _ in range(5))
