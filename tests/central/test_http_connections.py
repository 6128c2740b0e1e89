"""Connections to the door for HTTP: who says nothing, speaks no TLS or comes too often, and certificates."""

import asyncio
import contextlib
import ssl
import subprocess
import sys

import httpx
import pytest

from cyxcentral.http.app import Limits
from cyxnet.httpserver import CONNECTIONS_OF_ONE, HttpError, Server, refuse_plain_text
from cyxnet.tls import TlsError
from tests.central.http_central import HttpCentral, soon


@pytest.fixture
async def central(broker):
    async with HttpCentral.open(broker) as running:
        yield running


async def raw(central, sent):
    """All that the server says on a connection of its own, until it closes."""
    port = int(central.server.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                return await reader.read()
        return b""
    finally:
        await hang_up(writer)


async def hang_up(writer):
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


SLOW = {
    "nothing": b"",
    "a greeting of TLS": b"\x16\x03\x01\x02\x00",
    "half a head": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Half: ",
    "silence after an answer": b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
    "half a second head": b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\n",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
async def test_who_says_nothing_is_hung_up_on(broker, sent):
    async with HttpCentral.open(broker, head_s=0.2) as central:
        assert (await raw(central, sent)).count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")


async def test_a_body_that_does_not_come_is_waited_for_a_while_only(broker):
    async with HttpCentral.open(broker, Limits(body_s=0.1)) as central:
        key = (await central.key()).key
        head = ["POST /v1/ledger/query HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Length: 9"]
        said = await raw(central, "\r\n".join([*head, "", "{"]).encode())
        assert said.startswith(b"HTTP/1.1 408") and b"too_slow" in said


async def test_a_head_that_is_too_long_or_broken_is_refused(central):
    long = b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"
    smuggled = b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    for sent in (long, smuggled, b"GET / HTTP/9.9\r\n\r\n"):
        said = await raw(central, sent)
        assert said.startswith(b"HTTP/1.1 400")
        assert (b"expected a head of at most" in said) == (sent == long)
    assert (await central.http.get("/livez")).status_code == 200


HOSTS = {
    "none": (b"HTTP/1.1\r\n", b"400"),
    "none, and more headers": (b"HTTP/1.1\r\nX-Host: x\r\n", b"400"),
    "two": (b"HTTP/1.1\r\nHost: x\r\nhost: x\r\n", b"400"),
    "one": (b"HTTP/1.1\r\nhost: x\r\nConnection: close\r\n", b"200"),
    "one that is empty": (b"HTTP/1.1\r\nHost:\r\nConnection: close\r\n", b"200"),
    "none, of HTTP/1.0": (b"HTTP/1.0\r\n", b"200"),
}


@pytest.mark.parametrize("head, status", HOSTS.values(), ids=HOSTS)
async def test_a_request_names_one_host(central, head, status):
    said = await raw(central, b"GET /livez " + head + b"\r\n")
    assert said.split(b" ")[1] == status
    assert (b"expected one Host header, got" in said) == (status == b"400")


async def test_connections_of_one_address_are_bounded(central):
    port = int(central.server.url.rsplit(":", 1)[1])
    writers = []
    for _ in range(CONNECTIONS_OF_ONE):
        writers.append((await asyncio.open_connection("127.0.0.1", port))[1])
    assert await raw(central, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    for writer in writers:
        await hang_up(writer)
    await soon(lambda: not central.server._server.server_state.connections)
    assert (await central.http.get("/livez")).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_plain_text_is_for_loopback_only(host, tmp_path):
    with pytest.raises(HttpError, match="would be plain text between machines"):
        refuse_plain_text(host, None)
    refuse_plain_text(host, (tmp_path, tmp_path))
    for near in ("127.0.0.1", "::1", "localhost"):
        refuse_plain_text(near, None)


async def test_tls_with_a_certificate_of_ones_own(broker, tmp_path):
    chain, key = certificate(tmp_path)
    async with HttpCentral.open(broker, certificate=(chain, key)) as central:
        trust = ssl.create_default_context(cafile=str(chain))
        async with httpx.AsyncClient(base_url=central.server.url, verify=trust) as client:
            assert (await client.get("/livez")).json() == {"live": True}
        assert not (await raw(central, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_handshakes_count_as_connections_from_their_accept_and_end_in_time(broker, tmp_path, monkeypatch):
    monkeypatch.setattr("cyxnet.httpserver.CONNECTIONS_OF_ONE", 3)
    chain, key = certificate(tmp_path)
    async with HttpCentral.open(broker, certificate=(chain, key), head_s=2.0) as central:
        port = int(central.server.url.rsplit(":", 1)[1])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        await soon(lambda: central.server.guests.total == 3)
        assert await raw(central, b"") == b""  # one too many is hung up on at once
        assert central.server.guests.total == 3
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), 60) == b""
            await hang_up(writer)
        await soon(lambda: central.server.guests.total == 0)
        trust = ssl.create_default_context(cafile=str(chain))
        async with httpx.AsyncClient(base_url=central.server.url, verify=trust) as client:
            assert (await client.get("/livez")).status_code == 200
            assert central.server.guests.total == 1
        await soon(lambda: central.server.guests.total == 0)
    assert not central.server._shaking


async def test_what_comes_with_the_end_of_the_handshake_is_read(broker, tmp_path):
    # a client of TLS 1.3 may send its request in the same piece, before HTTP has begun here
    chain, key = certificate(tmp_path)
    async with HttpCentral.open(broker, certificate=(chain, key)) as central:
        port = int(central.server.url.rsplit(":", 1)[1])
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = ssl.create_default_context(cafile=str(chain)).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        writer.write(outgoing.read())
        while True:
            incoming.write(await asyncio.wait_for(reader.read(65_536), 60))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
        tls.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        writer.write(outgoing.read())  # the end of the handshake and the request
        said = b""
        while b"live" not in said:
            incoming.write(await asyncio.wait_for(reader.read(65_536), 60))
            with contextlib.suppress(ssl.SSLWantReadError):
                while part := tls.read(65_536):
                    said += part
        assert said.startswith(b"HTTP/1.1 200")
        await hang_up(writer)


class Plain:
    """An application that says one word."""

    behind_proxy = False

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def close(self):
        pass


def test_handshakes_are_done_on_the_fast_loop_too(tmp_path):
    uvloop = pytest.importorskip("uvloop")
    chain, key = certificate(tmp_path)

    async def ask():
        server = await Server.start(Plain(), "127.0.0.1", 0, (chain, key))
        trust = ssl.create_default_context(cafile=str(chain))
        async with httpx.AsyncClient(base_url=server.url, verify=trust) as client:
            answers = [(await client.get("/")).text for _ in range(2)]
        _, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        await hang_up(writer)
        await soon(lambda: server.guests.total == 0)
        await server.close()
        return answers

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()) == ["ok", "ok"]


async def test_who_speaks_no_tls_is_hung_up_on_and_forgotten(broker, tmp_path):
    async with HttpCentral.open(broker, certificate=certificate(tmp_path)) as central:
        assert b"200" not in await raw(central, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(central.server.url.rsplit(":", 1)[1]))
        await soon(lambda: central.server.guests.total == 1)
        await hang_up(writer)
        await soon(lambda: central.server.guests.total == 0)


async def test_a_certificate_that_is_none_is_one_clear_error(broker, tmp_path):
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    with pytest.raises(TlsError, match="nothing.pem: expected a certificate in PEM, got another file"):
        async with HttpCentral.open(broker, certificate=(nothing, nothing)):
            pass


def certificate(folder):
    """(chain, key) for 127.0.0.1, signed by itself."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, SHA256())
    )
    paths = folder / "chain.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


def central_main(folder, *options, before=""):
    code = f"import sys; {before}\nfrom cyxcentral.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--dir", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "options, before, said",
    [
        (["--http", "127.0.0.1:0"], "sys.modules['uvicorn'] = None", "pip install 'cyx[http]'"),
        (["--http", "127.0.0.1:0"], "sys.modules['starlette'] = None", "pip install 'cyx[http]'"),
        (["--http", "0.0.0.0:0"], "", "name a certificate and its key"),
        (["--http", "127.0.0.1"], "", "expected HOST:PORT"),
        (["--http", "127.0.0.1:99999"], "", "expected HOST:PORT"),
        (["--http-cert", "x"], "", "belong together"),
    ],
)
def test_what_cannot_be_served_is_one_clear_error_before_anything_starts(tmp_path, options, before, said):
    done = central_main(tmp_path, *options, before=before)
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr


async def test_a_port_that_is_taken_is_one_clear_error(central):
    port = int(central.server.url.rsplit(":", 1)[1])
    with pytest.raises(HttpError, match="something listens there already"):
        await Server.start(central.front, "127.0.0.1", port)
