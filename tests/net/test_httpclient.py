"""Questions over kept connections: whole answers in every form of HTTP/1.1, and never that of another question."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path

import pytest

from cyxnet import httpclient, tls
from cyxnet.httpclient import BadAddress, BadStatus, NoAnswer, Poster, Reading

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n[1,2,3]"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\n[1,\r\n4\r\n2,3]\r\n0\r\n\r\n"
TRAILED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n7\r\n[1,2,3]\r\n0\r\nX-After: all\r\n\r\n"
AFTER_INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + LENGTH
UNTIL_THE_END = b"HTTP/1.1 200 OK\r\n\r\n[1,2,3]"


@pytest.mark.parametrize("answer", [LENGTH, CHUNKED, TRAILED, AFTER_INTERIM])
def test_an_answer_is_whole_with_its_last_byte_and_not_before(answer: bytes) -> None:
    assert [Reading().take(answer[:stop]) for stop in range(len(answer))] == [None] * len(answer)
    reading = Reading()
    pieces = [reading.take(answer[at : at + 1]) for at in range(len(answer))]
    assert pieces[:-1] == [None] * (len(answer) - 1) and not reading.more
    for found in (pieces[-1], (behind := Reading()).take(answer + b"HTTP/1.1 200")):
        assert found is not None and found.body == b"[1,2,3]"
    assert behind.more


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    reading = Reading()
    assert reading.take(UNTIL_THE_END) is None
    found = reading.take(b"", ended=True)
    assert found is not None and found.body == b"[1,2,3]" and found.headers["connection"] == "close"


def test_an_answer_that_has_no_body_is_not_waited_for() -> None:
    found = Reading().take(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert found is not None and (found.status_code, found.body) == (204, b"")


ENDLESS = [
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 60_000 + b"\r\na\r\n"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-After: " + b"x" * 60_000 + b"\r\n"),
    (b"", b"HTTP/1.1 102 Processing\r\nX: " + b"x" * 60_000 + b"\r\n\r\n"),
    (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 60_000),
]


@pytest.mark.parametrize(("begin", "again"), ENDLESS)
def test_no_answer_fills_the_memory_in_whatever_it_never_ends(
    monkeypatch: pytest.MonkeyPatch, begin: bytes, again: bytes
) -> None:
    monkeypatch.setattr(httpclient, "LARGEST_ANSWER_BYTES", 2**20)
    reading = Reading()
    assert reading.take(begin) is None
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        for _ in range(20):
            assert reading.take(again) is None


def test_an_answer_in_very_many_pieces_is_read_once() -> None:
    # each piece had all before it read again: some megabytes in small chunks held central up for minutes
    class Counting(Reading):
        lines = 0

        def _until(self, mark: bytes) -> Generator[None, None, bytes]:
            self.lines += 1
            return super()._until(mark)

    reading = Counting()
    assert reading.take(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n") is None
    for _ in range(200):
        assert reading.take(b"1\r\na\r\n" * 50) is None
    found = reading.take(b"0\r\n\r\n")
    assert found is not None and found.body == b"a" * 10_000
    assert reading.lines == 1 + 10_000 + 2


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:abc/", "https:///x", "http://127.0.0.1:99999", "https://é..x/", "https://[::1", "ftp://h/"]
    + ["http://h:0/", "http://127.0.0.1/a b", "http://127.0.0.1/ü", "https://h/?a\x00b"],
)
def test_what_is_no_address_is_one_clear_error(url: str) -> None:
    with pytest.raises(BadAddress, match="expected the URL of a server, got"):
        Poster(url, 1.0)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 2000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabcd",
    ],
)
def test_what_is_no_answer_is_refused_and_not_waited_for(answer: bytes) -> None:
    with pytest.raises(ValueError):
        Reading().take(answer)


class Scripted:
    """A server that gives the next of its answers to each question, and remembers connections and questions."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []  # None: the connection ends instead
        self.asked: list[tuple[int, bytes]] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.held = asyncio.Event()  # answers wait for it
        self.held.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        number = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.asked.append((number, head + await reader.readexactly(length)))
                answer = self.answers.pop(0)
                await self.held.wait()
                if answer is None:
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


Make = Callable[..., Poster]


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    async with await asyncio.start_server(scripted.serve, "127.0.0.1", 0) as listener:
        scripted.port = listener.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        yield scripted
        scripted.held.set()  # from Python 3.12.1 on a listener ends with its last connection


@pytest.fixture
async def poster(server: Scripted) -> AsyncIterator[Make]:
    made: list[Poster] = []

    def make(before: str = "", after: str = "/", timeout_s: float = 10.0) -> Poster:
        made.append(Poster(f"http://{before}127.0.0.1:{server.port}{after}", timeout_s))  # type: ignore[attr-defined]
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def test_one_connection_serves_one_question_after_the_other(server: Scripted, poster: Make) -> None:
    server.answers = [LENGTH, CHUNKED, AFTER_INTERIM]
    asking = poster(before="me:p%40ss@", after="/rpc?key=a%20b")
    assert [await asking.post(b"q%d" % n) for n in range(3)] == [b"[1,2,3]"] * 3
    assert server.connections == 1
    head, _, body = server.asked[0][1].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /rpc?key=a%20b HTTP/1.1\r\n") and body == b"q0"
    assert b"Authorization: Basic " + base64.b64encode(b"me:p@ss") in head


async def test_questions_at_the_same_time_get_a_connection_each_and_their_own_answers(
    server: Scripted, poster: Make
) -> None:
    server.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % n for n in range(4)]
    server.held.clear()
    asking = poster()
    answers = [asyncio.ensure_future(asking.post(b"q")) for _ in range(4)]
    async with asyncio.timeout(60):
        while len(server.asked) < 4:
            await asyncio.sleep(0)
    server.held.set()
    assert sorted(await asyncio.gather(*answers)) == [b"0", b"1", b"2", b"3"]
    assert server.connections == 4


async def test_a_kept_connection_that_was_closed_meanwhile_is_no_failure(server: Scripted, poster: Make) -> None:
    server.answers = [LENGTH, None, LENGTH]  # the second question meets the end
    asking = poster()
    assert await asking.post(b"first") == await asking.post(b"second") == b"[1,2,3]"
    assert [number for number, _ in server.asked] == [1, 1, 2]
    assert len(asking._links) == 1


async def test_connections_that_the_server_ended_are_forgotten(server: Scripted, poster: Make) -> None:
    asking = poster()
    for number in range(3):
        server.answers = [LENGTH]
        await asking.post(b"q")
        server.writers[number].close()
        async with asyncio.timeout(60):
            while asking._free[0].usable:
                await asyncio.sleep(0)
    server.answers = [LENGTH]
    await asking.post(b"q")
    assert (server.connections, len(asking._links)) == (4, 1)


async def test_a_connection_over_which_something_came_unasked_is_closed(server: Scripted, poster: Make) -> None:
    server.answers = [LENGTH, LENGTH]
    asking = poster()
    await asking.post(b"q")
    [link] = asking._free
    server.writers[0].write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    async with asyncio.timeout(60):
        while link.usable:
            await asyncio.sleep(0)
        assert await asking.post(b"q") == b"[1,2,3]"
        while link._transport is not None:  # it stayed open for as long as the server liked
            await asyncio.sleep(0)
    assert server.connections == 2


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n[1"])
async def test_a_new_connection_that_ends_before_the_answer_is_one(
    server: Scripted, poster: Make, answer: bytes | None
) -> None:
    server.answers = [answer] if answer is None else [answer, None]
    asking = poster()
    waiting = asyncio.ensure_future(asking.post(b"q"))
    async with asyncio.timeout(60):
        while not server.asked:
            await asyncio.sleep(0)
    server.writers[0].close()
    with pytest.raises(NoAnswer):
        await waiting
    assert len(server.asked) == 1


async def test_a_status_that_is_not_200_is_told_with_its_headers(server: Scripted, poster: Make) -> None:
    server.answers = [b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n"]
    with pytest.raises(BadStatus) as refused:
        await poster().post(b"q")
    assert (refused.value.response.status_code, refused.value.response.headers["retry-after"]) == (429, "2")


async def test_the_answer_to_a_question_that_was_given_up_is_given_to_no_other(server: Scripted, poster: Make) -> None:
    server.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst", LENGTH]
    server.held.clear()
    asking = poster()
    first = asyncio.ensure_future(asking.post(b"first"))
    async with asyncio.timeout(60):
        while not server.asked:
            await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    server.held.set()
    assert await asking.post(b"second") == b"[1,2,3]"
    assert server.connections == 2


async def test_a_server_that_says_nothing_is_waited_for_so_long_and_no_longer(server: Scripted, poster: Make) -> None:
    server.answers = [LENGTH]
    server.held.clear()
    with pytest.raises(TimeoutError):
        await poster(timeout_s=0.05).post(b"q")


async def test_no_more_connections_than_so_many_are_made(
    server: Scripted, poster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(httpclient, "CONNECTIONS", 2)
    server.answers = [LENGTH] * 9
    asking = poster()
    assert await asyncio.gather(*(asking.post(b"q") for _ in range(9))) == [b"[1,2,3]"] * 9
    assert server.connections == 2


async def test_over_tls_only_a_server_that_is_trusted_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, stranger = tls.make(tmp_path / "ours"), tls.make(tmp_path / "theirs")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server, trusting = Scripted(), tls.context
    server.answers = [LENGTH, CHUNKED]
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context) as listener:
        url = f"https://localhost:{listener.sockets[0].getsockname()[1]}"
        monkeypatch.setattr(tls, "context", lambda ca: trusting(files.ca.read_text()))
        asking = Poster(url, 10.0)
        assert [await asking.post(b"q") for _ in range(2)] == [b"[1,2,3]"] * 2
        await asking.close()
        monkeypatch.setattr(tls, "context", lambda ca: trusting(stranger.ca.read_text()))
        asking = Poster(url, 10.0)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asking.post(b"q")
        await asking.close()
    assert len(server.asked) == 2
