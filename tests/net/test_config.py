"""What network.json may say: a setting that makes no sense is one error that names it."""

import json

import msgspec
import pytest

from cyxnet.config import (
    ConfigError,
    NetworkFile,
    network_path,
    read_network,
    told_to_others,
    unknown_settings,
    write_network,
)

URLS = dict.fromkeys(("client_url", "node_url", "edge_url", "core_url", "monitor_url", "chain_url"), "")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("requests_per_s", 0, "float` > 0"),  # what limits who asks has no word for "any number"
        ("node_messages_per_s", -1.5, "float` > 0"),
        ("http_requests_per_s", 0, "float` > 0"),
        ("newcomers_per_s", -1, "float` >= 0"),
        ("upload_bytes_per_day", -1, "int` >= 0"),  # was taken as: any number
        ("checkpoints_kept_s", -1, "int` >= 0"),  # all of them would have been swept
        ("spend_per_hour_base_units", -1, "int` >= 0"),  # was taken as: no limit
        ("fee_basis_points", 10_001, "int` <= 10000"),
        ("heartbeat_ms", 0, "int` >= 1"),
        ("lease_ms", -5, "int` >= 1"),
        ("command_key", 0, "int` >= 1"),
        ("platform_key", "Ab" * 32, "expected platform_key as `cyx id show --central` shows its public key"),
        ("session_s", 0, "int` >= 1"),
        ("connections", 0, "int` >= 1"),
        ("replicas", 0, "int` >= 1"),
        ("replicas", 2, "expected replicas 1, 3 or 5, got 2"),  # two hold no majority when one is away
        ("lease_ms", 10_000, "expected lease_ms above heartbeat_ms (10000;"),  # all nodes were lost at once
        ("lease_ms", 200, "got 200: all nodes would be lost between two heartbeats"),
        ("bans", "no", "Expected `bool`, got `str`"),
        ("operators", ["node-1"], "expected in operators ids of clients as `cyx id show` shows them"),
        ("vouched", ["node-1"], "ids of nodes as `cyx nodes` shows them (desk-6d3543ec4e), not names, got 'node-1'"),
        ("checkers", ["node-2"], "expected in checkers ids of nodes"),  # nothing would have been checked
        ("http_origins", ["https://app.example/"], "no path and no / at the end"),  # no browser sends that
    ],
)
def test_a_setting_that_makes_no_sense_is_named_and_nobody_is_told_to_remove_the_file(tmp_path, field, value, expected):
    write_network(tmp_path, NetworkFile(network_id="n", **URLS))
    said = msgspec.json.decode(network_path(tmp_path).read_bytes()) | {field: value}
    network_path(tmp_path).write_bytes(msgspec.json.encode(said))
    with pytest.raises(ConfigError) as refused:
        read_network(tmp_path)
    text = str(refused.value)
    assert expected in text and field in text and "correct it" in text and "remove" not in text


def test_what_is_no_json_is_no_network_file(tmp_path):
    network_path(tmp_path).write_text("{")
    with pytest.raises(ConfigError, match="not a network file .*; correct it, or, of a `cyx up`: stop that, remove it"):
        read_network(tmp_path)


def test_ids_and_origins_as_they_are_shown_are_taken(tmp_path):
    said = {
        "operators": ["c-" + "0a" * 16],
        "vouched": ["desk-6d3543ec4e"],
        "checkers": ["node-1-0123456789"],
        "http_origins": ["https://app.example", "http://localhost:5173", "capacitor://localhost", "*"],
    }
    write_network(tmp_path, NetworkFile(network_id="n", **URLS, **said))
    assert all(getattr(read_network(tmp_path), name) == value for name, value in said.items())


def test_a_name_that_no_setting_has_is_said_with_the_nearest(tmp_path):
    write_network(tmp_path, NetworkFile(network_id="n", **URLS))
    assert unknown_settings(tmp_path) == []
    said = msgspec.json.decode(network_path(tmp_path).read_bytes()) | {"chek_share": 1.0, "zzz": 1}
    network_path(tmp_path).write_bytes(msgspec.json.encode(said))
    read_network(tmp_path)
    first, second = unknown_settings(tmp_path)
    assert "no setting is called 'chek_share', so it changes nothing; did you mean check_share?" in first
    assert second.endswith("'zzz', so it changes nothing")


def test_who_has_a_nodes_or_a_centrals_file_asks_the_same_brokers_as_a_client(tmp_path):
    here = "tls://a:4222,tls://b:4222"
    for urls in (
        {"node_url": here},
        {"client_url": here},
        {"edge_url": "tls://central:secret@a:4222,tls://x:y@b:4222"},
    ):
        network_path(tmp_path).write_text(json.dumps({"network_id": "n"} | urls))
        network = read_network(tmp_path)
        assert (network.client_url, network.node_url) == (here, here), urls


def test_passwords_that_others_may_read_are_told(tmp_path):
    secret = NetworkFile(network_id="n", **URLS | {"core_url": "tls://central:secret@a:4222"})
    write_network(tmp_path, secret)
    assert told_to_others(tmp_path) == []
    network_path(tmp_path).chmod(0o640)
    [line] = told_to_others(tmp_path)
    assert "chmod 600" in line and "secret" not in line
    for urls in ({"core_url": "tls://a:4222"}, {"core_url": ""}):
        write_network(tmp_path, NetworkFile(network_id="n", **URLS | urls))
        network_path(tmp_path).chmod(0o644)
        assert told_to_others(tmp_path) == []


def test_a_file_that_an_editor_has_marked_is_read(tmp_path):
    write_network(tmp_path, NetworkFile(network_id="n", **URLS))
    network_path(tmp_path).write_bytes(b"\xef\xbb\xbf" + network_path(tmp_path).read_bytes())
    assert read_network(tmp_path).network_id == "n" and unknown_settings(tmp_path) == []
