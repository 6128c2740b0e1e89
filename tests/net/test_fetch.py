"""Data from an https address: from public ones only, whatever a job file says; a trap inside is never reached."""

import contextlib
import http.server
import os
import socket
import ssl
import threading
from urllib.parse import urlsplit

import pytest

from cyxcore.errors import CyxError, DataError
from cyxnet import fetch, jobfile, tls
from cyxnet.fetch import FetchError, is_public

PUBLIC = "93.184.216.34"
NAMES = {  # what a name server might say; whatever else is asked for is a number in some form
    "inside.test": ["127.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "both.test": [PUBLIC, "127.0.0.1"],
    "both6.test": [PUBLIC, "::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "nowhere.test": [],
    "data.test": [PUBLIC],
    "other.test": [PUBLIC],
}


def resolve(host, port):
    return NAMES[host] if host in NAMES else fetch.resolved(host, port)


@pytest.fixture
def trap():
    """(port, connections) of a server on every loopback address."""
    reached, listening = [], socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                link, whence = listening.accept()
                reached.append(whence)
                link.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()[1], reached
    with socket.create_connection(("127.0.0.1", listening.getsockname()[1])) as link:
        assert link.recv(1) == b""  # it is a trap that works
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()
    assert len(reached) == 1, reached


HOSTILE = [
    "https://127.0.0.1:{port}/data.csv", "https://127.0.0.2:{port}/",
    "https://127.1:{port}/", "https://127.0.1:{port}/",
    "https://2130706433:{port}/", "https://0x7f000001:{port}/",
    "https://0x7f.0.0.1:{port}/", "https://0177.0.0.1:{port}/",
    "https://017700000001:{port}/", "https://0:{port}/", "https://0.0.0.0:{port}/", "https://localhost:{port}/",
    "https://LOCALHOST:{port}/", "https://[::1]:{port}/", "https://[::]:{port}/", "https://[0:0:0:0:0:0:0:1]:{port}/",
    "https://[::ffff:127.0.0.1]:{port}/", "https://[::ffff:7f00:1]:{port}/", "https://[::127.0.0.1]:{port}/",
    "https://[64:ff9b::7f00:1]:{port}/", "https://[64:ff9b:1::7f00:1]:{port}/", "https://[2002:7f00:1::]:{port}/",
    "https://[2001:0:4136:e378:8000:63bf:3fff:fdd2]:{port}/", "https://[fe80::1]:{port}/", "https://[fc00::1]:{port}/",
    "https://[fd00:ec2::254]:{port}/", "https://[fec0::1]:{port}/", "https://[ff02::1]:{port}/",
    "https://[2001:db8::1]:{port}/", "https://169.254.169.254:{port}/latest/meta-data/", "https://10.0.0.1:{port}/",
    "https://172.16.0.1:{port}/", "https://192.168.0.1:{port}/",
    "https://100.64.0.1:{port}/", "https://198.18.0.1:{port}/",
    "https://192.0.0.192:{port}/", "https://224.0.0.1:{port}/",
    "https://168.63.129.16:{port}/", "https://240.0.0.1:{port}/", "https://255.255.255.255:{port}/",
    "https://inside.test:{port}/", "https://metadata.test:{port}/",
    "https://both.test:{port}/", "https://both6.test:{port}/",
    "https://mapped.test:{port}/", "https://nowhere.test:{port}/",
    "https://data.test@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}@data.test/", "https://user:secret@data.test:{port}/",
    "https://data.test\\@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}\\@data.test/", "https://data.test:{port}\r\nHost: x/",
    "https://①②⑦.⓪.⓪.①:{port}/", "https://１２７.0.0.1:{port}/", "https://127。0。0。1:{port}/",
    "https://:{port}/", "https://data.test:99999/", "https://data.test:0/", "https://[::1/", "https://",
    "http://127.0.0.1:{port}/", "HTTP://data.test:{port}/", "//127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/", "file:///etc/passwd", "dict://127.0.0.1:{port}/",
    "data:text/csv,a", "s3://bucket/key", "",
]  # fmt: skip


@pytest.mark.parametrize("url", HOSTILE)
def test_an_address_inside_or_of_another_kind_is_refused_before_anything_is_sent(url, trap, tmp_path):
    port, reached = trap
    with pytest.raises(FetchError):
        fetch.fetch(url.format(port=port), tmp_path, resolve=resolve, timeout_s=60)
    assert (reached, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "2606:4700:4700::1111", "2a00:1450:4001::200e"])
def test_public_addresses_are(address):
    assert is_public(address)


class Site:
    """What an https server that says it is at a public address answers, by path."""

    def __init__(self, folder):
        self.asked, self.connected = [], []
        files = tls.make(folder, ["data.test", "other.test"])
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append((self.headers["Host"], self.path))
                PAGES[self.path.split("?")[0]](self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.trust = tls.context(files.ca.read_text())
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def connect(self, address, port, timeout_s):
        self.connected.append(address)
        return socket.create_connection(self.server.server_address, timeout_s)

    def fetch(self, url, folder, names=resolve, **options):
        return fetch.fetch(url, folder, resolve=names, connect=self.connect, trust=self.trust, **options)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def give(content, **headers):
    def page(handler):
        handler.send_response(200)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(content)

    return page


def redirect(where):
    def page(handler):
        handler.send_response(302)
        handler.send_header("Location", where)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return page


def endless(pause):
    def page(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"x" * (1 if pause else 65_536))
                if pause:
                    threading.Event().wait(pause)

    return page


def status(code):
    return lambda handler: handler.send_error(code)


PAGES = {
    "/data.csv": give(b"a,label\n1,2\n"),
    "/.hidden": give(b"x"),
    "/once": redirect("https://other.test/data.csv"),
    "/relative": redirect("/data.csv"),
    "/thrice": redirect("/twice"),
    "/twice": redirect("/once"),
    "/for-ever": redirect("/for-ever"),
    "/inside": redirect("https://127.0.0.1/data.csv"),
    "/metadata": redirect("https://metadata.test/"),
    "/plain": redirect("http://data.test/data.csv"),
    "/file": redirect("file:///etc/passwd"),
    "/nowhere": redirect(""),
    "/no-address": redirect("https://[::1"),
    "/square": give(b"x", **{"Content-Length": "\u00b2"}),
    "/digits": give(b"x", **{"Content-Length": "9" * 5_000}),
    "/endless": endless(0),
    "/slow": endless(0.05),
    "/announced": give(b"", **{"Content-Length": str(10**12)}),
    "/cut": give(b"half", **{"Content-Length": "8"}),
    "/missing": status(404),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    running = Site(tmp_path_factory.mktemp("site"))
    yield running
    running.close()


@pytest.mark.parametrize("path", ["/data.csv", "/data.csv?token=1", "/once", "/relative", "/twice"])
def test_what_is_at_a_public_address_is_stored_whole(path, site, tmp_path):
    found = site.fetch(f"https://data.test{path}", tmp_path)
    assert found == tmp_path / "data.csv"
    assert found.read_bytes() == b"a,label\n1,2\n"
    assert list(tmp_path.iterdir()) == [found]


def test_the_name_of_a_file_is_no_path_and_hides_nothing(site, tmp_path):
    assert site.fetch("https://data.test/.hidden", tmp_path).name == "hidden"


@pytest.mark.parametrize(
    "path, why",
    [
        ("/for-ever", "more than 3 redirects"),
        ("/inside", "no public address"),
        ("/metadata", "no public address"),
        ("/plain", "expected an https address"),
        ("/file", "expected an https address"),
        ("/nowhere", "more than 3 redirects"),
        ("/endless", "at most 100000 bytes, got more"),
        ("/slow", "data.test/slow"),  # in the middle of whatever it was at when its time was over
        ("/announced", "1000000000000 are announced"),
        ("/cut", "broke off"),
        ("/missing", "status 200, got 404"),
        ("/missing?X-Amz-Signature=secret", "missing: expected an answer with status 200, got 404"),
        ("/no-address", "leads to 'https://\\[::1', which is no address"),
        ("/square", "expected at most 100000 bytes"),
        ("/digits", "expected at most 100000 bytes"),
    ],
)
def test_what_leads_inside_or_never_ends_is_one_error_and_leaves_nothing(path, why, site, tmp_path):
    timeout_s = 1 if path == "/slow" else 60
    with pytest.raises(FetchError, match=why) as refused:
        site.fetch(f"https://data.test{path}", tmp_path, max_bytes=100_000, timeout_s=timeout_s)
    assert "secret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_stands_for_another_address_a_moment_later_is_connected_to_where_it_was_checked(site, tmp_path):
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    site.connected.clear()
    site.fetch("https://data.test/data.csv", tmp_path, names=lambda host, port: next(answers))
    assert site.connected == [PUBLIC]
    with pytest.raises(FetchError, match="no public address"):
        site.fetch("https://data.test/data.csv", tmp_path, names=lambda host, port: next(answers))
    assert site.connected == [PUBLIC]


def test_a_name_server_that_does_not_answer_is_one_error_in_time(tmp_path):
    over, trust = threading.Event(), ssl.create_default_context()  # which may itself take that long

    def never(host, port):
        over.wait()
        return [PUBLIC]

    with pytest.raises(FetchError, match="too long to find out"):
        fetch.fetch("https://data.test/data.csv", tmp_path, resolve=never, timeout_s=0.1, trust=trust)
    over.set()


def test_a_server_without_a_certificate_for_the_name_is_refused(site, tmp_path):
    with pytest.raises(FetchError, match="certificate"):
        site.fetch("https://third.test/data.csv", tmp_path, names=lambda host, port: [PUBLIC])


# -- job files ------------------------------------------------------------------------------------------------------


JOB = """
name = "x"
amount = "1"
[data]
path = "{path}"
[model]
layers = [{{ kind = "Linear", out_features = 2 }}]
"""


def load(tmp_path, path, work_folder=None):
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(path=path))
    return jobfile.load(job, work_folder)


def test_a_job_file_has_nothing_fetched_unless_its_submitter_allows_it(tmp_path, monkeypatch):
    monkeypatch.delenv("CYX_REMOTE_DATA", raising=False)
    with pytest.raises(DataError, match="set CYX_REMOTE_DATA=https"):
        load(tmp_path, "https://data.test/data.csv")
    monkeypatch.setenv("CYX_REMOTE_DATA", "https")
    with pytest.raises(DataError, match="no public address"):
        load(tmp_path, "https://127.0.0.1/data.csv")


def test_an_object_of_s3_is_fetched_as_any_other_address(tmp_path, monkeypatch):
    # signed at home, and then under the same rules: an endpoint inside is refused, and no message has the signature
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("CYX_REMOTE_DATA", raising=False)
    with pytest.raises(DataError, match="set CYX_REMOTE_DATA=s3"):
        load(tmp_path, "s3://bucket/data.csv")
    monkeypatch.setenv("CYX_REMOTE_DATA", "https,s3")
    assert fetch.signed("s3://bucket/a/data.csv") == "https://s3.amazonaws.com/bucket/a/data.csv"  # a public object
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    parts = urlsplit(fetch.signed("s3://bucket/a/data.csv"))
    assert (parts.scheme, parts.hostname, parts.path) == ("https", "s3.eu-west-1.amazonaws.com", "/bucket/a/data.csv")
    assert "X-Amz-Signature=" in parts.query and "X-Amz-Expires=600" in parts.query
    for endpoint, why in [
        ("https://127.0.0.1:9", "no public address"),
        ("http://127.0.0.1:9", "expected an https address"),
    ]:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(DataError, match=why) as refused:
            load(tmp_path, "s3://bucket/data.csv", tmp_path / "packed")
        assert "AKID" not in str(refused.value) and "Signature" not in str(refused.value)
    assert list((tmp_path / "packed").iterdir()) == []
    for url in ("s3://", "s3://bucket", "s3://bucket/", "s3:///key", "s3://a b/key"):
        with pytest.raises(DataError, match="s3://"):
            load(tmp_path, url)


def fetched(rows):
    """In place of fetch(): the last part of the address names the file, as it does there."""

    def give(url, folder):
        path = folder / "data.csv"
        path.write_text("a,label\n" + "".join(f"{n},{n % 2}\n" for n in range(rows[url])))
        return path

    return give


def test_a_job_file_gets_what_was_fetched_for_it_and_no_other(tmp_path, monkeypatch):
    # two jobs whose addresses end in the same name could send each other's data
    monkeypatch.setenv("CYX_REMOTE_DATA", "https")
    urls = {"https://data.test/data.csv": 20, "https://other.test/data.csv": 30}
    monkeypatch.setattr(fetch, "fetch", fetched(urls))
    jobs = [load(tmp_path, url, tmp_path / "packed") for url in urls]
    assert [job.data_path.name for job in jobs] == ["data.csv"] * 2
    assert [len(job.data_path.read_text().splitlines()) for job in jobs] == [21, 31]
    for job in jobs:
        assert job.fetched
        jobfile.discard(job.data_path)
    assert list((tmp_path / "packed").iterdir()) == []


def test_what_was_fetched_and_is_no_data_or_did_not_come_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CYX_REMOTE_DATA", "https")
    with pytest.raises(DataError):
        load(tmp_path, "https://127.0.0.1/data.csv", tmp_path / "packed")
    monkeypatch.setattr(fetch, "fetch", fetched({"https://data.test/data.csv": 0}))
    with pytest.raises(CyxError):
        load(tmp_path, "https://data.test/data.csv", tmp_path / "packed")
    assert list((tmp_path / "packed").iterdir()) == []


def test_a_file_uri_is_for_the_folders_of_the_job_and_of_who_works(tmp_path, monkeypatch):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "data.csv").write_text("a,label\n" + "".join(f"{n},{n % 2}\n" for n in range(20)))
    (tmp_path / "secret.csv").write_text("a,label\n1,0\n2,1\n")
    (tmp_path / "job" / "link.csv").symlink_to(tmp_path / "secret.csv")
    monkeypatch.chdir(tmp_path / "job")
    assert load(tmp_path / "job", f"file://{tmp_path}/job/data.csv").data_path == tmp_path / "job" / "data.csv"
    for uri in (
        f"file://{tmp_path}/secret.csv",
        f"file://{tmp_path}/job/../secret.csv",
        f"file://{tmp_path}/job/%2e%2e/secret.csv",
        f"file://{tmp_path}/job/link.csv",
        f"file://elsewhere{tmp_path}/job/data.csv",
        "file:data.csv",
        "file:///etc/passwd",
        "s3://bucket/key",
        "http://127.0.0.1/data.csv",
    ):
        with pytest.raises(DataError):
            load(tmp_path / "job", uri)
