"""What a node signs is for one network, has a place, and is good for a while by central's clock."""

import pytest
from msgspec.structs import replace

from cyxnet import messages as m
from cyxnet.identity import Identity, verify
from cyxnode.signing import VALID_MS, Signing

KEY = Identity(b"k" * 32)
HOUR_MS = 3_600_000
SAID = m.RunCheckpoint(
    node_id="node-a",
    session="0" * 32,
    job_id="job-1",
    attempt=1,
    checkpoint=m.Checkpoint(step=1, steps=2, state=m.ArtifactRef(sha256="a" * 64, size=1)),
    signature="0" * 128,
)


class Clocks:
    """Of a machine: both in milliseconds, moved by hand."""

    def __init__(self, wall_ms):
        self.wall_ms, self.monotonic_ms = wall_ms, 5_000

    def pass_time(self, ms):
        self.wall_ms += ms
        self.monotonic_ms += ms


@pytest.fixture
def clocks():
    return Clocks(10 * HOUR_MS)


@pytest.fixture
def signing(clocks):
    return Signing(KEY.sign, "net-1", lambda: clocks.wall_ms, lambda: clocks.monotonic_ms)


def test_each_report_has_the_next_place_and_a_signature_over_all_of_it(signing):
    first, second = signing.signed(SAID), signing.signed(SAID)
    assert [first.sequence, second.sequence] == [1, 2]
    assert first.network_id == "net-1"
    for said in (first, second):
        assert verify(KEY.public_key, m.checkpoint_bytes(said), said.signature)
    assert not verify(KEY.public_key, m.checkpoint_bytes(replace(second, sequence=1)), second.signature)


def test_what_is_nothing_to_be_signed_stays_as_it_is(signing):
    said = m.RunStarted(node_id="node-a", session="0" * 32, job_id="job-1", attempt=1)
    assert signing.signed(said) is said


def test_a_goodbye_is_signed_for_the_session_that_it_ends(signing):
    said = signing.signed(m.Goodbye(node_id="node-a", session="0" * 32))
    assert verify(KEY.public_key, m.goodbye_bytes(said), said.signature)
    assert not verify(KEY.public_key, m.goodbye_bytes(replace(said, session="1" * 32)), said.signature)


def test_the_expiry_follows_the_latest_clock_of_all_centrals(signing, clocks):
    assert signing.signed(SAID).expires_ms == clocks.wall_ms + VALID_MS
    signing.told(12 * HOUR_MS)
    signing.told(11 * HOUR_MS)  # of another central, whose clock is late
    signing.told(0)  # of one that says nothing
    clocks.pass_time(1_000)
    assert signing.signed(SAID).expires_ms == 12 * HOUR_MS + 1_000 + VALID_MS


def test_a_clock_that_stood_still_while_the_machine_slept_does_not_make_an_expiry_of_the_past(signing, clocks):
    signing.told(clocks.wall_ms)
    clocks.wall_ms += 8 * HOUR_MS
    assert signing.signed(SAID).expires_ms == clocks.wall_ms + VALID_MS


def test_a_clock_that_is_days_ahead_gives_way_to_the_central_that_says_so(signing, clocks):
    signing.told(72 * HOUR_MS)
    assert not signing.refused("bad_signature", None)
    assert signing.refused("good_too_long", 10 * HOUR_MS)
    clocks.pass_time(1_000)
    assert signing.signed(SAID).expires_ms == 10 * HOUR_MS + 1_000 + VALID_MS
    assert signing.refused("expired", 12 * HOUR_MS)  # by another central
    assert signing.signed(SAID).expires_ms == 12 * HOUR_MS + VALID_MS


def test_a_node_that_knows_its_network_is_not_told_another(clocks):
    known = Signing(KEY.sign, "net-1", lambda: clocks.wall_ms, lambda: 0)
    unknown = Signing(KEY.sign, "", lambda: clocks.wall_ms, lambda: 0)
    for each in (known, unknown):
        each.told(0, "net-2")
    assert (known.network_id, unknown.network_id) == ("net-1", "net-2")
