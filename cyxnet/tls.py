"""TLS: which addresses may do without, whom a connection trusts, and the certificates of a development network.

Plain text is for loopback only. A network of `cyx up --tls` has a certificate authority of its own, whose certificate
travels in network.json; nobody else's is trusted there. Without one, the system's authorities are.
"""

import contextlib
import datetime
import ipaddress
import os
import re
import ssl
import urllib.request
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet.config import write_atomically

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
CA_DAYS, SERVER_DAYS, RENEW_DAYS = 3650, 397, 30  # a server's certificate is made again this long before its end
SECURE = ("tls", "https", "rediss", "unix")  # schemes that go anywhere; unix stays on this machine
PLAIN = {"nats": "tls", "http": "https", "redis": "rediss"}  # those for loopback only, and what to write instead


class TlsError(CyxError, ValueError):
    """A connection or listener would not be safe, or certificates cannot be used. The message says what to do."""

    code = "bad_tls"


class Files(Struct, frozen=True, kw_only=True):
    """Where the certificates of a network lie. The keys are mode 0600."""

    ca: Path
    certificate: Path
    key: Path


def is_loopback(host: str) -> bool:
    """Whether only this machine can be there. A name is looked up nowhere: whoever answers could be lying."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host.lower() == "localhost"


def in_plain_text(urls: str) -> str:
    """The first of some URLs (with commas between) that may go to another machine in plain text, without its password.

    What is not known to be safe counts as exposed: nats-py reads an address without a scheme as plain text.
    """
    for url in filter(None, urls.split(",")):
        scheme, rest = url.split("://", 1) if "://" in url else ("", url)
        if scheme in SECURE or (scheme in PLAIN and is_loopback(_host(url))):
            continue
        shown = rest.rpartition("@")[2].partition("/")[0]
        return f"{scheme}://{shown}" if scheme.isalnum() else shown
    return ""


def _host(url: str) -> str:
    with contextlib.suppress(ValueError):
        return urlsplit(url).hostname or ""
    return ""


def refuse_plain_text(urls: str, what: str) -> None:
    """Raises TlsError when one of these URLs goes to another machine in plain text, or says not how it goes there.

    Also for a port that is none.
    """
    for url in urls.split(","):
        place = url.rpartition("@")[2].rpartition("://")[2].partition("/")[0]
        port = re.search(r":([0-9]+)$", place)
        if port and not 0 < int(port[1][:6]) < 2**16:
            raise TlsError(f"{what} {place[:200]}: expected a port from 1 to 65535, got {port[1][:20]}")
    if not (exposed := in_plain_text(urls)):
        return
    if secure := PLAIN.get(exposed.partition("://")[0]):
        raise TlsError(
            f"{what} {exposed} would send plain text to another machine: write {secure}:// and give the server a "
            "certificate (plain text is for loopback only)"
        )
    raise TlsError(
        f"{what} {exposed[:200]}: expected an address that begins with {'://, '.join(SECURE)}:// or, on this machine "
        f"only, {'://, '.join(PLAIN)}://"
    )


def refuse_open_listener(address: str, what: str) -> None:
    """Raises TlsError when a listener without TLS could be reached from another machine."""
    if not is_loopback(address):
        raise TlsError(
            f"{what} at {address} would listen to other machines in plain text: use --tls, or listen on 127.0.0.1"
        )


def context(ca: str) -> ssl.SSLContext:
    """What a connection trusts: this authority (PEM) and no other; the system's when it is empty.

    Raises TlsError when it is no certificate.
    """
    try:
        trusting = ssl.create_default_context(cadata=ca or None)
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"tls_ca of network.json is no certificate in PEM ({error}); copy it again") from None
    if ca:
        trusting.minimum_version = ssl.TLSVersion.TLSv1_3
    return trusting


class _AsTheyCome(urllib.request.HTTPErrorProcessor):
    """Answers of every status are answers. As exceptions, nothing would close those of 400 and more."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def get(url: str, ca: str, timeout_s: float) -> Any:
    """GET over HTTP or HTTPS, trusting this authority. Raises OSError where no answer came, of whatever `status`.

    The answer closes as a context manager. A proxy of the environment is not asked: it could not reach this machine's
    own servers, and they would seem dead.
    """
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _AsTheyCome()]
    if url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=context(ca)))
    return urllib.request.build_opener(*handlers).open(url, timeout=timeout_s)


def check_pem(certificate: Path, key: Path) -> None:
    """Raises TlsError, which names the file, where one of the two is none. What can be read once only is not read."""
    for path, mark, what in ((certificate, b"BEGIN CERTIFICATE", "certificate"), (key, b"PRIVATE KEY", "private key")):
        try:
            if path.is_fifo():
                continue
            held = path.read_bytes()
        except OSError as error:
            raise TlsError(f"{path}: expected a {what} in PEM: {error.strerror or error}") from None
        if mark not in held:
            raise TlsError(f"{path}: expected a {what} in PEM, got {'another file' if held else 'an empty file'}")


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """What a listener says TLS 1.2 and 1.3 with. Both files are PEM. Raises TlsError."""
    check_pem(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{key}: is the key of another certificate than {certificate}") from None
        why = f" ({error.reason})" if error.reason else ""
        said = f"one of the two is damaged, or the key is sealed with a passphrase{why}"
        raise TlsError(f"{certificate}, {key}: {said}") from None
    return context


# -- a development network's certificates --------------------------------------------------------------------


def make(folder: Path, names: Sequence[str] = ()) -> Files:
    """The certificates in `folder`: made on first use; the server's again when it ends soon or has other names.

    names: hosts and addresses beside those of loopback. The authority stays the same: clients have it.
    Raises TlsError for a name that is none, and for files that cannot be used.
    """
    from cryptography import x509

    files = Files(ca=folder / "ca.pem", certificate=folder / "server.pem", key=folder / "server.key")
    ca_key_path = folder / "ca.key"
    wanted = _subjects([*LOCAL_NAMES, *names])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (files.ca.exists() and ca_key_path.exists()):
        _make_authority(files.ca, ca_key_path)
    for path in (ca_key_path, files.key):
        if path.exists() and path.stat().st_mode & 0o077:
            raise TlsError(f"{path}: others may read this key; run: chmod 600 {path}")
    try:
        present = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        of = set(present.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        good = of == set(wanted) and present.not_valid_after_utc > _in_days(RENEW_DAYS) and files.key.exists()
        good = good and present.issuer == x509.load_pem_x509_certificate(files.ca.read_bytes()).subject
    except FileNotFoundError:
        good = False
    except (ValueError, x509.ExtensionNotFound) as error:
        raise TlsError(f"{files.certificate}: no certificate ({error}); remove it, and it is made again") from None
    if not good:
        _make_server(files, ca_key_path, wanted)
    return files


def _subjects(names: Collection[str]):  # type: ignore[no-untyped-def]
    from cryptography import x509

    found: dict[object, None] = {}
    for name in names:
        try:
            found[x509.IPAddress(ipaddress.ip_address(name.strip("[]")))] = None
        except ValueError:
            labels = name.split(".")
            if not all(re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", each) for each in labels):
                raise TlsError(f"expected a host name or an address for a certificate, got {name[:80]!r}") from None
            found[x509.DNSName(name.lower())] = None
    return list(found)


def _in_days(days: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def _make_authority(path: Path, key_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Cyx development CA {os.urandom(4).hex()}")])
    certificate = (
        _builder(key, name, name, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_key(key_path, key)
    _write_certificate(path, certificate)


def _make_server(files: Files, ca_key_path: Path, names) -> None:  # type: ignore[no-untyped-def]
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        ca_key = serialization.load_pem_private_key(ca_key_path.read_bytes(), None)
        ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    except (ValueError, TypeError) as error:
        raise TlsError(f"{ca_key_path.parent}: no usable authority ({error}); remove the folder to make one") from None
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Cyx broker")])
    both = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]  # brokers call each other
    certificate = (
        _builder(key, name, ca.subject, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _write_key(files.key, key)
    _write_certificate(files.certificate, certificate)


def _builder(key, subject, issuer, days):  # type: ignore[no-untyped-def]
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_in_days(-1))  # for clocks that are late
        .not_valid_after(_in_days(days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(signs_certificates: bool):  # type: ignore[no-untyped-def]
    from cryptography import x509

    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
        **dict.fromkeys(unused, False),
    )


def _write_key(path: Path, key) -> None:  # type: ignore[no-untyped-def]
    from cryptography.hazmat.primitives import serialization

    kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    write_atomically(path, key.private_bytes(serialization.Encoding.PEM, kind, plain), 0o600)


def _write_certificate(path: Path, certificate) -> None:  # type: ignore[no-untyped-def]
    from cryptography.hazmat.primitives import serialization

    write_atomically(path, certificate.public_bytes(serialization.Encoding.PEM))
