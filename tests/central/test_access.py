"""API keys and HTTP sessions against a real broker: what one central says of them, and what another does."""

import asyncio
import contextlib
import itertools

import pytest
from msgspec.structs import replace

from cyxcentral.access import (
    KEYS_PER_IDENTITY,
    REMEMBERED_MS,
    SESSION_MS,
    SESSIONS_PER_IDENTITY,
    SILENT_S,
    STRANGER_SAFE_MS,
    Access,
    Refused,
)
from cyxcentral.machine import Machine
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.bus import ApiError, Bus, BusError
from cyxnet.outcomes import Stored

ALICE, BOB, OPERATOR = ("c-" + letter * 32 for letter in "abc")
SECRET = b"s" * 32


class Clock:
    """Time that only tests move."""

    def __init__(self):
        self.ms = 1_800_000_000_000

    def machine(self):
        return Machine(wall_ms=lambda: self.ms)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def roles():
    """What each may be now; a test may change it."""
    return {ALICE: {"client"}, BOB: {"client"}, OPERATOR: {"client", "operator"}}


@pytest.fixture
async def central(broker, clock, roles):
    """central() is the Access of one more central."""
    async with contextlib.AsyncExitStack() as stack:

        async def start():
            core = await Bus.connect(broker.url("core"), name="central")
            stack.push_async_callback(core.close)
            return Access(core, clock.machine(), SECRET, lambda identity: roles[identity])

        yield start


async def new_key(access, caller=ALICE, **wanted):
    return await access._key_new(caller, m.KeyNewRequest(**wanted))


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


async def test_a_key_is_good_at_every_central_and_after_a_restart(central):
    one, two = await central(), await central()
    await two.open()
    made = await new_key(one, name="ci", requests_per_s=5.0)
    for access in (one, two, await central()):
        found = await access.key(made.key)
        assert (found.identity, found.role, found.requests_per_s) == (ALICE, "client", 5.0)


async def test_the_stream_holds_no_secret(central):
    access = await central()
    made = await new_key(access)
    _, token = await access.open_session("nonce", ALICE, "client", "00" * 32)
    stored = [await access._core.at(subjects.ACCESS, seq) for seq in range(1, 4)]
    secrets = [text.rsplit("_", 1)[1].encode() for text in (made.key, token)]
    assert len(secrets[0]) == len(secrets[1]) == 64
    assert not any(secret in each.payload for each in stored for secret in secrets)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1] + ("0" if key[-1] != "0" else "1"),
        lambda key: key.replace("cyxk_", "cyxk_f", 1)[: len(key)],
        lambda key: key.upper(),
        lambda key: key + "0",
        lambda key: key[:18],
        lambda key: "",
        lambda key: key + "\n",
        lambda key: key.replace("_", "_\x00", 1),
    ],
)
async def test_what_is_not_quite_a_key_is_refused(central, spoil):
    access = await central()
    made = await new_key(access)
    with pytest.raises(Refused):
        await access.key(spoil(made.key))


async def test_a_revoked_key_is_refused_at_once_here_and_soon_at_another_central(central):
    one, two = await central(), await central()
    made = await new_key(one)
    await two.key(made.key)
    await one._key_revoke(ALICE, m.KeyRevokeRequest(id=made.view.id))
    with pytest.raises(Refused, match="was revoked"):
        await one.key(made.key)
    await until(lambda: two._held[made.view.id][1].revoked_at_ms)
    with pytest.raises(Refused, match="was revoked"):
        await two.key(made.key)


async def test_a_central_that_does_not_hear_what_is_revoked_says_nothing_is_good(central, monkeypatch):
    access = await central()
    made = await new_key(access)
    loop = asyncio.get_running_loop()
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + SILENT_S + 1)
    with pytest.raises(BusError, match="does not hear which keys"):
        await access.key(made.key)


async def test_a_key_ends_with_its_days(central, clock):
    access = await central()
    made = await new_key(access, days=2)
    clock.ms += 2 * 86_400_000 - 1
    assert await access.key(made.key)
    clock.ms += 1
    with pytest.raises(Refused, match="is over"):
        await access.key(made.key)


async def test_a_key_loses_what_its_owner_loses(central, roles):
    access = await central()
    made = await new_key(access, OPERATOR, role="operator")
    assert (await access.key(made.key)).role == "operator"
    roles[OPERATOR] = {"client"}
    with pytest.raises(Refused, match="may not be operator now"):
        await access.key(made.key)


async def test_an_operator_lists_the_keys_of_all_in_pages(central):
    access = await central()
    made = [(await new_key(access, caller)).view.id for caller in (ALICE, BOB, ALICE, BOB, ALICE)]
    seen, ask = [], m.KeyListRequest(as_operator=True, limit=2)
    while True:
        page = await access._key_list(OPERATOR, ask)
        assert len(page.keys) <= 2
        seen += [key.id for key in page.keys]
        if not page.after:
            break
        ask = replace(ask, after=page.after)
    assert sorted(seen) == sorted(made) and len(page.keys) == 1
    with pytest.raises(ApiError, match="begin the list anew"):
        await access._key_list(OPERATOR, replace(ask, after="0" * 12))
    with pytest.raises(ApiError, match="begin the list anew"):
        await access._key_list(ALICE, m.KeyListRequest(after=made[1]))  # of somebody else


async def test_nobody_makes_a_key_with_more_rights_than_his_own(central):
    with pytest.raises(ApiError, match="may not be operator"):
        await new_key(await central(), ALICE, role="operator")


async def test_keys_are_listed_and_revoked_by_their_owner_or_an_operator_only(central):
    access = await central()
    made = await new_key(access)
    assert [key.id for key in (await access._key_list(ALICE, m.KeyListRequest())).keys] == [made.view.id]
    assert (await access._key_list(BOB, m.KeyListRequest())).keys == []
    with pytest.raises(ApiError, match="no operator"):
        await access._key_list(BOB, m.KeyListRequest(as_operator=True))
    for as_operator, why in ((False, "no key or session"), (True, "no operator")):
        with pytest.raises(ApiError, match=why):
            await access._key_revoke(BOB, m.KeyRevokeRequest(id=made.view.id, as_operator=as_operator))
    ask = m.KeyRevokeRequest(id=made.view.id, as_operator=True)
    assert (await access._key_revoke(OPERATOR, ask)).keys[0].revoked_at_ms


async def test_keys_of_one_identity_are_bounded(central):
    access = await central()
    for _ in range(KEYS_PER_IDENTITY):
        await new_key(access)
    with pytest.raises(ApiError, match="revoke one first"):
        await new_key(access)
    assert await new_key(access, BOB)


async def test_of_keys_that_are_asked_for_at_once_no_more_are_made_than_there_may_be(central, monkeypatch):
    monkeypatch.setattr("cyxcentral.access.KEYS_PER_IDENTITY", 2)
    access = await central()
    await new_key(access)
    await together(access, monkeypatch, lambda: new_key(access), "too_many_keys")
    assert len(access._live(ALICE, m.ApiKey)) == 2


async def test_of_sessions_that_are_asked_for_at_once_no_more_are_opened_than_there_may_be(central, monkeypatch):
    monkeypatch.setattr("cyxcentral.access.SESSIONS_REMEMBERED", 2)
    access, nonces = await central(), iter("abc")

    def opened():
        return access.open_session(next(nonces), ALICE, "client", "0" * 64)

    await opened()
    await together(access, monkeypatch, opened, "too_many_sessions")
    assert len(access._of[ALICE]) == 2


async def test_what_strangers_hold_is_bounded_and_what_was_used_longest_ago_gives_way(
    central, clock, roles, monkeypatch
):
    monkeypatch.setattr("cyxcentral.access.STRANGERS_REMEMBERED", 3)
    access, paid = await central(), set()
    access._is_known = paid.__contains__
    names = [f"c-{number:032}" for number in range(6)]
    roles |= {name: {"client"} for name in names}
    made = {}
    for name in names[:3]:
        made[name] = (await new_key(access, name)).key
        clock.ms += STRANGER_SAFE_MS
    await access.key(made[names[0]])
    paid.add(names[1])
    for name in names[3:5]:
        made[name] = (await new_key(access, name)).key
        clock.ms += STRANGER_SAFE_MS
    for name in (names[0], names[1], names[3], names[4]):
        assert (await access.key(made[name])).identity == name
    with pytest.raises(Refused, match="not an API key of this network"):
        await access.key(made[names[2]])
    assert len(access._strangers) == 3 and len(access._held) == 4
    other = await central()  # it finds the same in the stream
    with pytest.raises(Refused):
        await other.key(made[names[2]])


async def test_newcomers_wait_while_everything_that_strangers_hold_is_new(central, clock, roles, monkeypatch):
    monkeypatch.setattr("cyxcentral.access.STRANGERS_REMEMBERED", 2)
    access = await central()
    for _ in range(2):
        await new_key(access)
    with pytest.raises(ApiError) as refused:
        await access.open_session("nonce", BOB, "client", "0" * 64)
    assert (refused.value.code, refused.value.status) == ("busy", 429)
    access._is_known = BOB.__eq__
    await access.open_session("nonce", BOB, "client", "0" * 64)


async def together(access, monkeypatch, ask, code):
    """Two ask for the last place before either has stored anything: one gets it."""
    append, go_on, here = access._core.append, asyncio.Event(), asyncio.Event()

    async def at_the_gate(*args, **options):
        here.set()
        await go_on.wait()
        return await append(*args, **options)

    monkeypatch.setattr(access._core, "append", at_the_gate)
    first = asyncio.create_task(ask())
    await asyncio.wait_for(here.wait(), 60)
    with pytest.raises(ApiError) as refused:
        await ask()
    assert refused.value.code == code
    go_on.set()
    await asyncio.wait_for(first, 60)
    assert not access._storing


async def test_a_refresh_token_is_good_once_and_its_second_use_revokes_the_session(central):
    one, two = await central(), await central()
    session, first = await one.open_session("nonce", ALICE, "client", "00" * 32)
    _, second = await two.refresh(first)
    assert await one.refresh(second)
    with pytest.raises(Refused, match="was used before"):
        await two.refresh(second)
    for access in (one, two):
        await until(lambda access=access: access._held[session.id][1].revoked_at_ms)
        with pytest.raises(Refused, match="was revoked"):
            await access.good(session.id)


async def test_of_two_uses_at_the_same_time_one_wins_and_then_nobody(central):
    one, two = await central(), await central()
    session, first = await one.open_session("nonce", ALICE, "client", "00" * 32)
    await two.open()
    got = await asyncio.gather(one.refresh(first), two.refresh(first), return_exceptions=True)
    assert sum(isinstance(each, Refused) for each in got) >= 1
    await until(lambda: one._held[session.id][1].revoked_at_ms)


@pytest.mark.parametrize("change", [("_1_", "_2_"), ("_1_", "_01_"), ("cyxr_", "cyxk_"), ("_1_", "_999999999_")])
async def test_a_made_up_refresh_token_is_refused_and_harms_nobody(central, change):
    access = await central()
    session, token = await access.open_session("nonce", ALICE, "client", "00" * 32)
    with pytest.raises(Refused):
        await access.refresh(token.replace(*change))
    assert (await access.good(session.id)).id == session.id


async def test_a_nonce_opens_one_session_whichever_central_is_asked(central):
    one, two = await central(), await central()
    await two.open()
    got = await asyncio.gather(
        *(access.open_session("nonce", ALICE, "client", "00" * 32) for access in (one, two, one)),
        return_exceptions=True,
    )
    assert sorted(isinstance(each, Refused) for each in got) == [False, True, True]


async def test_a_session_ends_however_often_it_is_refreshed(central, clock):
    access = await central()
    _, token = await access.open_session("nonce", ALICE, "client", "00" * 32)
    clock.ms += SESSION_MS - 1
    _, token = await access.refresh(token)
    clock.ms += 1
    with pytest.raises(Refused, match="is over"):
        await access.refresh(token)


@pytest.mark.parametrize("step_ms", [0, -1])  # the order of the stream is what counts, whatever the clocks said
async def test_the_oldest_of_too_many_sessions_gives_way(central, clock, step_ms):
    access = await central()
    opened = []
    for number in range(SESSIONS_PER_IDENTITY + 1):
        clock.ms += step_ms
        opened.append((await access.open_session(f"nonce-{number}", ALICE, "client", "00" * 32))[0])
    with pytest.raises(Refused, match="was revoked"):
        await access.good(opened[0].id)
    assert await access.good(opened[1].id)


async def test_what_is_over_is_forgotten_here_and_in_the_stream(central, broker):
    clock, core = Clock(), await Bus.connect(broker.url("core"), name="central")
    ids = itertools.count()
    access = Access(core, clock.machine(), SECRET, lambda identity: {"client"})
    await access.open_session(str(next(ids)), ALICE, "client", "00" * 32)
    kept_s = access._keep_s(access._live(ALICE, m.HttpSession)[0])
    assert SESSION_MS / 1000 < kept_s < SESSION_MS / 1000 + 2 * 86_400
    clock.ms += 1000 * kept_s
    await access.open_session(str(next(ids)), ALICE, "client", "00" * 32)
    assert len(access._of[ALICE]) == len(access._held) == 1
    assert await core.append(subjects.access("short"), b"x", keep_s=1)  # the broker takes what is to be forgotten
    await core.close()


async def test_what_is_over_is_forgotten_with_the_next_change_of_anybody(central, clock):
    access = await central()
    session, _ = await access.open_session("nonce", ALICE, "client", "00" * 32)
    await access.revoke(session.id, "over")
    assert access._keep_s(access._held[session.id][1]) < 2 * 86_400
    clock.ms += REMEMBERED_MS + 1
    await new_key(access, BOB)
    assert ALICE not in access._of and session.id not in access._held


async def test_a_refresh_leaves_nothing_behind_to_be_forgotten(central):
    access = await central()
    _, token = await access.open_session("nonce", ALICE, "client", "00" * 32)
    for _ in range(5):
        _, token = await access.refresh(token)
    assert len(access._to_forget) == 1


async def test_sessions_that_are_remembered_are_bounded(central, clock, monkeypatch):
    monkeypatch.setattr("cyxcentral.access.SESSIONS_PER_IDENTITY", 1)
    monkeypatch.setattr("cyxcentral.access.SESSIONS_REMEMBERED", 3)
    access = await central()

    async def open_one(number, identity=ALICE):
        clock.ms += 1
        return await access.open_session(f"nonce-{number}", identity, "client", "00" * 32)

    for number in range(3):
        await open_one(number)
    with pytest.raises(ApiError, match="refresh one of them, or use an API key") as refused:
        await open_one(3)
    assert refused.value.status == 429
    assert await open_one(4, BOB)
    clock.ms += REMEMBERED_MS
    await open_one(5, BOB)
    assert await open_one(6)


class SlowStream:
    """A stream that is read as the test says; it stands for the broker and for the follower."""

    def __init__(self):
        self.seen_seq, self.behind_s, self.closed = 0, 0.0, False

    async def ensure_stream(self, *_, **__):
        pass

    async def append(self, *_, **__):
        return 3

    async def follow(self, stream, subject, after_seq, handler, rewound, stall_s):
        self._handler = handler
        return self

    async def bring(self):
        self.seen_seq += 1
        await self._handler(Stored(subjects.access("x"), self.seen_seq, b""))

    def close(self):
        self.closed = True


async def test_a_long_stream_is_read_as_long_as_more_of_it_comes(clock, monkeypatch):
    loop, stream, passed_s = asyncio.get_running_loop(), SlowStream(), [0.0]
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + passed_s[0])

    async def pass_by():
        passed_s[0] += SILENT_S + 1
        await turns()

    opening = asyncio.ensure_future(Access(stream, clock.machine(), SECRET, lambda _: {"client"}).open())
    await turns()
    for _ in range(3):
        assert not opening.done()
        await stream.bring()
        await pass_by()
    await opening
    stuck = asyncio.ensure_future(Access(SlowStream(), clock.machine(), SECRET, lambda _: {"client"}).open())
    await turns()
    await pass_by()
    with pytest.raises(BusError, match="nothing came"):
        await stuck


async def turns():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_central_that_heard_what_is_revoked_but_did_not_take_it_in_says_nothing_is_good(central, monkeypatch):
    one, two = await central(), await central()
    made = await new_key(one)
    assert await two.key(made.key)
    two._follower._tasks[1].cancel()  # what arrives waits from now on
    loop = asyncio.get_running_loop()
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + SILENT_S + 1)
    await one.revoke(made.view.id, "lost")
    await until(lambda: two._follower._arrived)
    assert two._follower.silent_s < SILENT_S
    with pytest.raises(BusError, match="does not hear which keys"):
        await two.key(made.key)
