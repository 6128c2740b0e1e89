"""A link treats bytes as its mode says, in each direction, and lets go of them or tears when the mode ends."""

import asyncio

import pytest

from tests.chaos.proxy import MODES, Link

PING = b"ping"  # of a connection that does not go through the link


@pytest.fixture
async def echo():
    """A server that says back what it hears, behind a link: (link, reader, writer, what the server heard of it)."""
    heard = []
    writers = []

    async def serve(reader, writer):
        writers.append(writer)
        while data := await reader.read(100):
            if data != PING:
                heard.append(data)
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    link = Link(server.sockets[0].getsockname()[1])
    await link.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    yield link, reader, writer, heard
    writer.close()
    await link.close()
    server.close()
    for each in writers:
        each.close()


async def says(reader, writer, text):
    writer.write(text)
    async with asyncio.timeout(60):
        return await reader.readexactly(len(text))


async def is_silent(link, reader):
    """Nothing arrives, though the link has what was written and time to pass it on.

    What it passes on comes with one turn of the event loop more at each hop, and there are fewer hops than round trips
    here to the same server by another way.
    """
    arrived = asyncio.create_task(reader.read(1))
    other_reader, other_writer = await asyncio.open_connection("127.0.0.1", link.target_port)
    for _ in range(10):
        await says(other_reader, other_writer, PING)
    other_writer.close()
    silent = not arrived.done()
    arrived.cancel()
    await asyncio.wait({arrived})
    return silent


async def test_a_clean_link_passes_everything_on(echo):
    _, reader, writer, _ = echo
    assert await says(reader, writer, b"hello") == b"hello"


@pytest.mark.parametrize("mode", ["hold-up", "hold-down"])
async def test_held_bytes_arrive_when_the_holding_ends(echo, mode):
    link, reader, writer, _ = echo
    assert await says(reader, writer, b"one") == b"one"
    link.begin(mode)
    writer.write(b"two")
    assert await is_silent(link, reader)
    link.end()
    async with asyncio.timeout(60):
        assert await reader.readexactly(3) == b"two"


async def test_a_lost_answer_was_heard_by_the_other_side(echo):
    link, reader, writer, heard = echo
    assert await says(reader, writer, b"one") == b"one"
    link.begin("lose-down")
    writer.write(b"two")
    assert await is_silent(link, reader)
    assert heard == [b"one", b"two"]
    link.end()
    async with asyncio.timeout(60):
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)


async def test_a_lost_question_is_never_heard(echo):
    link, reader, writer, heard = echo
    assert await says(reader, writer, b"one") == b"one"
    link.begin("lose-up")
    writer.write(b"two")
    assert await is_silent(link, reader)
    link.end()
    assert heard == [b"one"]


@pytest.mark.parametrize("mode", sorted(name for name, mode in MODES.items() if mode.tears))
async def test_a_torn_connection_is_reset_and_the_next_one_is_clean(echo, mode):
    link, reader, writer, _ = echo
    assert await says(reader, writer, b"one") == b"one"
    link.begin(mode)
    link.end()
    async with asyncio.timeout(60):
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
    again_reader, again_writer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await says(again_reader, again_writer, b"two") == b"two"
    again_writer.close()


async def test_a_delayed_byte_arrives(echo):
    link, reader, writer, _ = echo
    link.begin("delay")
    assert await says(reader, writer, b"late") == b"late"
