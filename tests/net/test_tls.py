"""TLS on a real broker: who is trusted, what is refused, and that nothing goes to another machine in plain text."""

import asyncio
import socket
import ssl

import pytest
from cryptography import x509
from msgspec.structs import replace

from cyxnet import tls
from cyxnet.broker import Broker, BrokerError, Listening, Passwords, syncs_always
from cyxnet.bus import Bus, BusError, NotTrusted
from cyxnet.cli import main
from cyxnet.solana import Settlement
from cyxnet.watchdog import HEALTHY, probe


@pytest.fixture
def files(tmp_path):
    return tls.make(tmp_path / "tls")


@pytest.fixture
def encrypted(tmp_path, files):
    running = Broker.start(tmp_path / "broker", Passwords.fresh(), listening=Listening(certificates=files))
    yield running
    running.stop()


# -- certificates ----------------------------------------------------------------------------------------------


def names_of(files):
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(each.value) for each in found}


def test_certificates_are_made_once_and_their_keys_are_private(tmp_path, files):
    before = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    assert tls.make(tmp_path / "tls") == files
    assert {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == before
    for name in ("ca.key", "server.key"):
        assert (tmp_path / "tls" / name).stat().st_mode & 0o777 == 0o600
    assert names_of(files) == {"localhost", "127.0.0.1", "::1"}


@pytest.mark.parametrize(
    "url", ["nats://127.0.0.1:99999", "tls://u:p@h.example:0", "localhost:65536/x", "tls://[::1]:70000"]
)
def test_a_port_that_is_none_is_said_before_anything_is_asked(url):
    with pytest.raises(tls.TlsError, match=r"the broker \S+: expected a port from 1 to 65535, got [0-9]+$"):
        tls.refuse_plain_text(f"tls://good.example:4222,{url}", "the broker")
    tls.refuse_plain_text("tls://[::1]:4222,nats://127.0.0.1:65535,tls://h.example,unix:///run/x:0", "the broker")


def test_what_is_no_certificate_or_not_its_key_is_named(tmp_path, files):
    other = tls.make(tmp_path / "other")
    damaged = tmp_path / "damaged.pem"
    damaged.write_bytes(files.certificate.read_bytes()[:200])
    empty = tmp_path / "empty.pem"
    empty.touch()
    tls.server_context(files.certificate, files.key)
    for pair, said in {
        (empty, files.key): "empty.pem: expected a certificate in PEM, got an empty file",
        (files.key, files.key): "server.key: expected a certificate in PEM, got another file",
        (files.certificate, files.certificate): "server.pem: expected a private key in PEM, got another file",
        (files.certificate, tmp_path): "expected a private key in PEM: Is a directory",
        (files.certificate, other.key): "server.key: is the key of another certificate than",
        (damaged, files.key): "one of the two is damaged",
    }.items():
        with pytest.raises(tls.TlsError, match=said):
            tls.server_context(*pair)


def test_other_names_make_another_certificate_of_the_same_authority(tmp_path, files):
    ca, key = files.ca.read_bytes(), files.key.read_bytes()
    tls.make(tmp_path / "tls", ["nats.example", "10.0.0.7"])
    assert names_of(files) == {"localhost", "127.0.0.1", "::1", "nats.example", "10.0.0.7"}
    assert (files.ca.read_bytes(), files.key.read_bytes() != key) == (ca, True)


def test_a_certificate_that_ends_soon_is_made_again(tmp_path, files, monkeypatch):
    before = files.certificate.read_bytes()
    monkeypatch.setattr(tls, "RENEW_DAYS", tls.SERVER_DAYS + 1)
    tls.make(tmp_path / "tls")
    assert files.certificate.read_bytes() != before


@pytest.mark.parametrize("name", ["", "a b", "x.", "-x", "x" * 64, "nats://x", "ä.example"])
def test_what_is_no_host_name_is_refused(tmp_path, name):
    with pytest.raises(tls.TlsError, match="expected a host name or an address"):
        tls.make(tmp_path / "tls", [name])


def test_a_key_that_others_may_read_is_refused_with_the_mend(tmp_path, files):
    files.key.chmod(0o644)
    with pytest.raises(tls.TlsError, match="chmod 600"):
        tls.make(tmp_path / "tls")


def test_a_damaged_certificate_is_one_clear_error(tmp_path, files):
    files.certificate.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    with pytest.raises(tls.TlsError, match="no certificate"):
        tls.make(tmp_path / "tls")


# -- connections -----------------------------------------------------------------------------------------------


async def test_who_has_the_authority_comes_in_encrypted(encrypted, files):
    bus = await Bus.connect(encrypted.url("core"), name="test", tls_ca=files.ca.read_text())
    connection = bus._nc._transport._io_writer.get_extra_info("ssl_object")
    assert connection.version() == "TLSv1.3"
    await bus.round_trip()
    await bus.close()


async def test_a_link_that_broke_comes_again_encrypted(encrypted, files, caplog):
    bus = await Bus.connect(encrypted.url("core"), name="test", tls_ca=files.ca.read_text())
    for _ in range(3):
        await bus._nc.force_reconnect()
        async with asyncio.timeout(60):
            while not bus.connected:
                await asyncio.sleep(0)
        await bus.round_trip()
        assert bus._nc._transport._io_writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    await bus.close()
    assert "eof_received" not in caplog.text


@pytest.mark.parametrize("url", ["tls", "nats"])
async def test_a_client_with_another_authority_is_refused_in_one_line(encrypted, tmp_path, url):
    others = tls.make(tmp_path / "others").ca.read_text() if url == "tls" else ""
    with pytest.raises(NotTrusted, match="its certificate is not trusted .* is network.json that of this network"):
        await Bus.connect(encrypted.url("core").replace("tls:", f"{url}:"), name="test", tls_ca=others)


async def test_a_certificate_for_another_host_is_refused(tmp_path, files):
    strange = replace(Listening(certificates=files), address="127.0.0.2")
    broker = await asyncio.to_thread(Broker.start, tmp_path / "broker", Passwords.fresh(), listening=strange)
    try:
        with pytest.raises(NotTrusted, match="mismatch"):
            await Bus.connect(broker.url("core"), name="test", tls_ca=files.ca.read_text())
    finally:
        await asyncio.to_thread(broker.stop)


def test_plain_text_to_the_port_is_refused(encrypted):
    with socket.create_connection(("127.0.0.1", encrypted.port), timeout=10) as link:
        assert link.recv(4096).startswith(b"INFO ")
        link.sendall(b'CONNECT {"verbose":true,"user":"central","pass":"x"}\r\nPING\r\n')
        said = b""
        while more := link.recv(4096):
            said += more
    assert b"PONG" not in said and b"+OK" not in said


def test_an_older_tls_is_refused(encrypted, files):
    old = ssl.create_default_context(cafile=files.ca)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", encrypted.port), timeout=10) as link:
        link.recv(4096)
        with pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(link, server_hostname="127.0.0.1")


async def test_who_expects_tls_says_nothing_to_a_broker_that_speaks_plain_text(broker, files):
    url = broker.url("core").replace("nats:", "tls:")
    with pytest.raises(BusError, match="it speaks plain text, and TLS was expected"):
        await Bus.connect(url, name="test", tls_ca=files.ca.read_text())


async def test_an_authority_that_is_none_is_one_clear_error(encrypted):
    with pytest.raises(tls.TlsError, match="tls_ca of network.json is no certificate"):
        await Bus.connect(encrypted.url("core"), name="test", tls_ca="-----BEGIN CERTIFICATE-----\nx")


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_a_broker_is_started_and_seen_to_be_well_whatever_proxy_the_environment_names(tmp_path, monkeypatch, name):
    # a watchdog that asked the proxy killed a broker that was well
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    for usual in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(usual, raising=False)
    broker = Broker.start(tmp_path / "broker", Passwords.fresh())
    try:
        assert probe(broker.monitor_url).state == HEALTHY
        assert syncs_always(broker.monitor_url)
    finally:
        broker.stop()


# -- nothing in plain text to other machines ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("nats://central:secret@10.0.0.7:4222", "nats://10.0.0.7:4222"),
        ("nats://127.0.0.1:1,nats://nats.example:4222", "nats://nats.example:4222"),
        ("http://nats.example:8222", "http://nats.example:8222"),
        ("redis://:secret@10.0.0.7/0", "redis://10.0.0.7/0".rsplit("/", 1)[0]),
        ("nats://localhost.example:1", "nats://localhost.example:1"),
        ("nats://0.0.0.0:1", "nats://0.0.0.0:1"),
        ("nats://user:p@127.0.0.1:4222,nats://[::1]:4222,nats://localhost:1,http://127.0.0.9:80", ""),
        ("tls://nats.example:4222,https://nats.example,rediss://x", ""),
        ("unix:///run/redis.sock", ""),
        ("", ""),
        # what nats-py and others read as plain text all the same
        ("10.0.0.7:4222", "10.0.0.7:4222"),
        ("central:secret@10.0.0.7:4222", "10.0.0.7:4222"),
        ("127.0.0.1:4222", "127.0.0.1:4222"),
        ("nats.example", "nats.example"),
        ("tls://a:1,nats.example", "nats.example"),
        ("tls://a:1, nats://nats.example:1", "nats.example:1"),
        ("ws://user:secret@nats.example:80", "ws://nats.example:80"),
        ("NATS://nats.example:1", "NATS://nats.example:1"),
        ("TLS://nats.example:1", "TLS://nats.example:1"),
        ("nats://[::1", "nats://[::1"),
        ("nats://127.0.0.1:1@nats.example:1", "nats://nats.example:1"),
        ("https://nats.example/?next=http://x", ""),
    ],
)
def test_plain_text_is_for_loopback_only(url, exposed):
    assert tls.in_plain_text(url) == exposed


async def test_nobody_connects_to_another_machine_in_plain_text():
    with pytest.raises(tls.TlsError, match=r"nats://10\.9\.8\.7:4222 would send plain text .* write tls://"):
        await Bus.connect("nats://central:secret@10.9.8.7:4222", name="test")
    with pytest.raises(tls.TlsError, match="the broker 10.9.8.7:4222: expected an address that begins with tls://"):
        await Bus.connect("central:secret@10.9.8.7:4222", name="test")
    with pytest.raises(tls.TlsError, match="write https://"):
        Settlement("http://10.9.8.7:8899")


def test_a_broker_that_others_could_reach_in_plain_text_does_not_start(tmp_path):
    with pytest.raises(tls.TlsError, match=r"the broker at 0\.0\.0\.0 would listen to other machines in plain text"):
        Broker.start(tmp_path / "broker", Passwords.fresh(), listening=Listening(address="0.0.0.0"))
    assert not (tmp_path / "broker").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "0.0.0.0"], "would listen to other machines in plain text: use --tls"),
        (["--host", "nats.example"], "use them with --tls"),
        (["--tls", "--host", "a b"], "expected a host name or an address"),
    ],
)
def test_cyx_up_refuses_what_would_not_be_safe(tmp_path, capsys, options, said):
    assert main(["up", "--dir", str(tmp_path / "net"), *options]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint and complaint.count("\n") == 1
    assert not (tmp_path / "net" / "network.json").exists()


def test_a_cluster_asks_for_certificates_on_its_routes_too(tmp_path, files):
    from cyxnet.broker import Member, configuration

    member = Member(name="cyx-1", route_port=1, peer_ports=(2, 3))
    written = configuration(tmp_path, Passwords.fresh(), 1, 2, member, Listening(certificates=files))
    assert written.count("tls {") == 2 and "verify: true" in written.partition("cluster {")[2]


def test_a_broker_whose_certificate_is_gone_says_so(tmp_path, files):
    files.certificate.unlink()
    with pytest.raises(BrokerError, match="nats-server did not start"):
        Broker.start(tmp_path / "broker", Passwords.fresh(), listening=Listening(certificates=files))
