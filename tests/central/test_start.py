"""Central trusts brokers that write to disk before they acknowledge, each of them."""

import json
import subprocess
import sys

import pytest
from msgspec.structs import replace

from cyxcentral.central import Central, Settings, StartError
from cyxnet.broker import BrokerError, Passwords, binary, configuration
from cyxnet.bus import BusError
from cyxnet.config import NetworkFile, network_path, write_network
from cyxnet.watchdog import HEALTHY, probe

NOWHERE = "nats://central:x@127.0.0.1:1"


@pytest.fixture
def lax(tmp_path):
    """The monitor of a real nats-server that acknowledges before it writes to disk."""
    folder = tmp_path / "lax"
    folder.mkdir()
    text = configuration(folder, Passwords.fresh(), -1, -1).replace("sync_interval: always", "sync_interval: 2m")
    (folder / "nats.conf").write_text(text)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary(), "--config", str(folder / "nats.conf")], stderr=log)
    said = folder / f"nats-server_{process.pid}.ports"
    while not (said.exists() and said.read_text().endswith("}")):
        assert process.poll() is None
    url = json.loads(said.read_text())["monitoring"][0]
    while probe(url).state != HEALTHY:
        assert process.poll() is None
    yield url
    process.kill()
    process.wait()


def network_of(monitor_url):
    return NetworkFile(
        network_id="test",
        client_url="",
        node_url="",
        edge_url=NOWHERE,
        core_url=NOWHERE,
        monitor_url=monitor_url,
        chain_url="http://127.0.0.1:1",
    )


async def start(monitor_url, folder):
    network = network_of(monitor_url)
    write_network(folder, network)
    await Central.start(Settings(network=network, keys=folder, state=folder / "state"))


async def test_a_central_names_the_addresses_that_it_lacks(tmp_path):
    lacking = replace(network_of(""), core_url="")
    with pytest.raises(StartError, match="missing: core_url, monitor_url$"):
        await Central.start(Settings(network=lacking, keys=tmp_path, state=tmp_path / "state"))


async def test_one_broker_of_several_that_does_not_sync_is_refused_by_its_address(broker, lax, tmp_path):
    with pytest.raises(StartError, match=f"the broker at {lax} acknowledges before it writes to disk: set jetstream"):
        await start(f"{broker.monitor_url},{lax}", tmp_path)


async def test_a_broker_that_is_away_keeps_no_central_from_starting(broker, tmp_path, caplog):
    with pytest.raises(BusError, match="no Cyx broker answers"):  # that is: the check was passed
        await start(f"{broker.monitor_url},http://127.0.0.1:1", tmp_path)
    assert "http://127.0.0.1:1 does not answer" in caplog.text


async def test_when_no_broker_answers_central_says_so(tmp_path):
    with pytest.raises(BrokerError, match="monitor at http://127.0.0.1:1 does not answer"):
        await start("http://127.0.0.1:1", tmp_path)


def test_central_warns_of_a_name_that_no_setting_has_and_of_passwords_that_others_may_read(tmp_path):
    write_network(tmp_path, network_of("http://127.0.0.1:1"))
    said = json.loads(network_path(tmp_path).read_bytes()) | {"vouchd": [], "redis_url": "redis://:secret@localhost/0"}
    network_path(tmp_path).write_text(json.dumps(said))
    network_path(tmp_path).chmod(0o644)
    ended = subprocess.run(
        [sys.executable, "-m", "cyxcentral", "--dir", tmp_path], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and "did you mean vouched?" in ended.stderr and "does not answer" in ended.stderr
    assert "run: chmod 600" in ended.stderr and "secret" not in ended.stderr
