"""What a sealed file is worth: to its client and node, and to everybody else."""

import hashlib

import pytest

from cyxcore.spec import ModelSpec
from cyxnet.envelope import (
    LEAD_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    About,
    DiskFault,
    SealError,
    as_client,
    as_node,
    is_sealed,
    new_envelope,
    node_key,
    seal,
    unseal,
    within,
)
from cyxnet.identity import Identity
from cyxnet.messages import ArtifactRef, JobRequest

CLIENT, NODE, CENTRAL = (Identity(name.encode().ljust(32, b".")) for name in ("client", "node", "central"))
JOB = JobRequest(name="secret", model=ModelSpec(), dataset=ArtifactRef(sha256="a" * 64, size=5), amount_base_units=1)
HEAD_BYTES = LEAD_BYTES + 1 + 32


@pytest.fixture
def place(tmp_path):
    (tmp_path / "plain").write_bytes(b"rows of a patient")
    return tmp_path


def sealed(place, kind="data", about=None, envelope=None):
    envelope = envelope or new_envelope(CLIENT, node_key(NODE))
    seal(place / "plain", place / "sealed", envelope, kind, about or About(job=JOB))
    return envelope


def opened(place, who, kind="data"):
    return unseal(place / "sealed", place / "opened", who, kind)


@pytest.mark.parametrize("size", [1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES + 17])
def test_client_and_node_read_what_was_sealed(place, size):
    content = hashlib.shake_256(b"cyx").digest(size)
    (place / "plain").write_bytes(content)
    envelope = sealed(place)
    assert is_sealed(place / "sealed") and not is_sealed(place / "plain")
    for who in (as_client(CLIENT), as_node(NODE), within(envelope)):
        found, about, ref = opened(place, who)
        assert (found, about) == (envelope, About(job=JOB))
        assert ref == ArtifactRef(sha256=hashlib.sha256(content).hexdigest(), size=size)
        assert (place / "opened").read_bytes() == content


@pytest.mark.parametrize("length", [SEGMENT_BYTES - 60, SEGMENT_BYTES, 3 * SEGMENT_BYTES])
def test_what_is_said_of_the_content_may_be_long(place, length):
    about = About(job_id="j" * length)
    sealed(place, about=about)
    assert opened(place, as_node(NODE))[1] == about
    assert (place / "opened").read_bytes() == b"rows of a patient"


def test_nobody_else_reads_it_and_two_seals_of_one_file_share_nothing(place):
    sealed(place)
    first = (place / "sealed").read_bytes()
    for who in (as_client(NODE), as_node(CLIENT), as_client(CENTRAL), as_node(CENTRAL)):
        with pytest.raises(SealError):
            opened(place, who)
        assert not (place / "opened").exists() and len(list(place.iterdir())) == 2
    sealed(place)
    second = (place / "sealed").read_bytes()
    assert all(first[at : at + 16] != second[at : at + 16] for at in range(8, len(first), 16))


def test_no_byte_can_be_changed(place):
    sealed(place)
    whole = (place / "sealed").read_bytes()
    for at in range(len(whole)):
        (place / "sealed").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SealError):
            opened(place, as_node(NODE))
    assert not (place / "opened").exists()


def test_nothing_can_be_cut_off_added_or_put_in_another_place(place):
    (place / "plain").write_bytes(bytes(3 * SEGMENT_BYTES))
    sealed(place)
    whole, segment = (place / "sealed").read_bytes(), SEGMENT_BYTES + TAG_BYTES
    first, second = whole[HEAD_BYTES : HEAD_BYTES + segment], whole[HEAD_BYTES + segment : HEAD_BYTES + 2 * segment]
    rest = whole[HEAD_BYTES + 2 * segment :]
    for body in (b"", first, first + second, second + first + rest, first + second + rest + first, rest):
        (place / "sealed").write_bytes(whole[:HEAD_BYTES] + body)
        with pytest.raises(SealError):
            opened(place, as_node(NODE))
    (place / "sealed").write_bytes(whole[: HEAD_BYTES - 1])
    with pytest.raises(SealError, match="it is none"):
        opened(place, as_node(NODE))


def test_a_file_is_of_its_kind_only(place):
    sealed(place, kind="state")
    for kind in ("data", "model"):
        with pytest.raises(SealError, match=f"expected sealed {kind}"):
            opened(place, as_node(NODE), kind)
    whole = bytearray((place / "sealed").read_bytes())
    whole[LEAD_BYTES] = 3
    (place / "sealed").write_bytes(whole)
    with pytest.raises(SealError, match="changed"):
        opened(place, as_client(CLIENT), "model")


def test_who_knows_the_public_keys_makes_no_result_that_the_client_takes(place):
    """Who carries the files could seal a model of his own to keys that are no secret."""
    data = sealed(place)
    forged = new_envelope(CENTRAL, node_key(CLIENT))  # to whatever key of the client he knows
    sealed(place, "model", About(job_id="job-1"), forged)
    with pytest.raises(SealError):
        opened(place, as_client(CLIENT), "model")
    sealed(place, "model", About(job_id="job-1"), data)  # as the node does
    assert opened(place, as_client(CLIENT), "model")[1] == About(job_id="job-1")


def test_a_node_goes_on_from_no_state_of_another_envelope(place):
    data = sealed(place)
    sealed(place, "state", envelope=new_envelope(CENTRAL, node_key(NODE)))
    assert opened(place, as_node(NODE), "state")  # it opens by itself
    with pytest.raises(SealError, match="another job"):
        opened(place, within(data), "state")


@pytest.mark.parametrize("key", ["", "abc", "0" * 64, "G" * 64])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(SealError):
        new_envelope(CLIENT, key)


def test_a_file_that_cannot_be_written_or_read_is_one_error(place):
    with pytest.raises(DiskFault, match="cannot be sealed"):
        seal(place / "missing", place / "sealed", new_envelope(CLIENT, node_key(NODE)), "data", About())
    with pytest.raises(DiskFault, match="cannot be opened"):
        opened(place, as_node(NODE))


def test_what_is_of_another_job_takes_the_place_of_nothing(place):
    (place / "opened").write_bytes(b"what was there before")
    sealed(place, "model", About(job_id="job-2"))
    with pytest.raises(SealError, match="job-1: the model is that of job-2"):
        unseal(place / "sealed", place / "opened", as_client(CLIENT), "model", "job-1")
    assert (place / "opened").read_bytes() == b"what was there before"
    assert len(list(place.iterdir())) == 3
    unseal(place / "sealed", place / "opened", as_client(CLIENT), "model", "job-2")
    assert (place / "opened").read_bytes() == b"rows of a patient"
