"""When a broker that lives is started again."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cyxnet import tls
from cyxnet.watchdog import (
    CANNOT_WRITE,
    HEALTHY,
    NOT_READY,
    PATIENCE_S,
    ROOM_TO_WRITE_BYTES,
    SILENT,
    Health,
    Watchdog,
    judge,
    probe,
)

ROOM = ROOM_TO_WRITE_BYTES


def test_a_healthy_broker_is_left_alone():
    dog = Watchdog()
    assert not any(judge(dog, Health(HEALTHY), ROOM, now_s).restart for now_s in range(1000))


@pytest.mark.parametrize("state", sorted(PATIENCE_S))
def test_a_stuck_broker_is_started_again_when_patience_ends_and_not_before(state):
    dog, ends_s = Watchdog(), 100 + PATIENCE_S[state]
    assert not judge(dog, Health(state), ROOM, 100.0).restart
    assert not judge(dog, Health(state), ROOM, ends_s - 0.1).restart
    assert judge(dog, Health(state, "its words"), ROOM, ends_s).restart


def test_after_a_restart_patience_begins_anew():
    dog = Watchdog()
    judge(dog, Health(SILENT), ROOM, 0.0)
    assert judge(dog, Health(SILENT), ROOM, 5.0).restart
    assert not judge(dog, Health(SILENT), ROOM, 6.0).restart


def test_a_moment_of_health_ends_the_count():
    dog = Watchdog()
    judge(dog, Health(SILENT), ROOM, 0.0)
    judge(dog, Health(HEALTHY), ROOM, 4.0)
    judge(dog, Health(SILENT), ROOM, 4.5)
    assert not judge(dog, Health(SILENT), ROOM, 6.0).restart


def test_another_trouble_has_a_patience_of_its_own():
    dog = Watchdog()
    judge(dog, Health(NOT_READY), ROOM, 0.0)
    assert not judge(dog, Health(SILENT), ROOM, 60.0).restart


def test_on_a_full_disk_it_says_so_once_and_waits_for_room():
    dog, full = Watchdog(), ROOM - 1
    verdicts = [judge(dog, Health(CANNOT_WRITE), full, now_s) for now_s in range(100)]
    assert not any(verdict.restart for verdict in verdicts)
    assert [verdict.note for verdict in verdicts if verdict.note] == [
        "cannot write, the disk is full; free some space, and it is started again by itself"
    ]
    assert judge(dog, Health(CANNOT_WRITE), ROOM, 100.0).restart


def test_a_running_broker_is_healthy(broker):
    assert probe(broker.monitor_url).state == HEALTHY


def test_a_monitor_that_does_not_answer_is_silent(broker):
    broker.stop()
    assert probe(broker.monitor_url).state == SILENT


class Sick(BaseHTTPRequestHandler):
    """Answers 503, with these words in JSON."""

    words = ""

    def do_GET(self):
        body = b'{"error": "%s"}' % self.words.encode()
        self.send_response(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said):
        pass


@pytest.fixture
def sick(monkeypatch):
    """sick(words): the URL of a monitor that answers one question so."""
    with HTTPServer(("127.0.0.1", 0), Sick) as server:

        def serve(words):
            monkeypatch.setattr(Sick, "words", words)
            threading.Thread(target=server.handle_request).start()
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


@pytest.mark.parametrize(
    "words, health",
    [
        ("JetStream stream write error: no space", Health(CANNOT_WRITE, "JetStream stream write error: no space")),
        ("looking for the others", Health(NOT_READY, "looking for the others")),
        ("x" * 20_000, Health(NOT_READY)),
    ],
)
def test_a_broker_that_says_that_it_is_not_well_is_heard(sick, words, health):
    assert probe(sick(words)) == health


def test_the_answer_of_who_is_not_well_is_one_that_closes(sick):
    # as an exception it was left to the collector, of which Python 3.14 warns
    with tls.get(sick("x" * 20_000), "", 5.0) as answer:
        assert answer.status == 503
    assert answer.closed
