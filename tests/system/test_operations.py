"""docs/operations.md, done: the configuration, network.json and commands it shows, on three addresses of loopback."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cyxnet import tls
from cyxnet.broker import binary, free_ports
from cyxnet.client import AsyncClient
from cyxnet.config import without_passwords
from cyxnet.credentials import broker_nkeys
from cyxnet.identity import load_or_create
from cyxnet.parts import Part

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
HOSTS = {f"nats-{n}.example": f"127.0.0.{10 + n}" for n in (1, 2, 3)}


def block(language, containing):
    found = [text for kind, text in re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S) if kind == language]
    return next(text for text in found if containing in text)


def on_this_machine(text, ports, folder):
    """The page's hosts, ports and folders, as there are here."""
    for host, address in HOSTS.items():
        text = text.replace(host, address)
    for port, here in zip(("4222", "6222", "8222"), ports, strict=True):
        text = text.replace(f":{port}", f":{here}")
    return text.replace("/var/lib/nats", str(folder)).replace("/etc/cyx/tls", str(folder.parents[1] / "tls"))


class Hosts:
    """Three nats-servers as the page configures them, one per address."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = free_ports(3)
        self.ca = tls.make(folder / "tls", list(HOSTS.values())).ca.read_text()
        self.processes = {}

    def start(self, number):
        folder = self.folder / f"nats-{number}"
        folder.mkdir(exist_ok=True)
        text = on_this_machine(block("", "server_name"), self.ports, folder / "store")
        for setting in ("server_name", "listen", "https"):  # what the page says differs from host to host
            text = re.sub(rf'^( *{setting}: ")(cyx-|127.0.0.1)1', rf"\g<1>\g<2>{number}", text, flags=re.M)
        central = load_or_create(self.folder / "cyx" / "central.key")
        for placeholder, nkey in zip(("ISSUER_NKEY", "SYSTEM_NKEY"), broker_nkeys(central), strict=True):
            text = text.replace(placeholder, nkey)
        config = folder / "nats.conf"
        config.write_text(text)
        with (folder / "log").open("ab") as log:
            self.processes[number] = subprocess.Popen([binary(), "--config", str(config)], stderr=log)

    def stop(self, number):
        self.processes[number].send_signal(signal.SIGTERM)
        self.processes[number].wait()

    async def healthy(self):
        async with asyncio.timeout(60):
            for number in self.processes:
                while not await asyncio.to_thread(self._is_healthy, number):
                    pass

    def _is_healthy(self, number):
        address = f"https://127.0.0.1{number}:{self.ports[2]}/healthz"
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), tls.get(address, self.ca, 1.0) as answer:
                return answer.status == 200
        return False


@pytest.fixture
def hosts(tmp_path):
    running = Hosts(tmp_path)
    for number in (1, 2, 3):
        running.start(number)
    yield running
    for process in running.processes.values():
        process.kill()
        process.wait()


def command_of(unit, folder):
    """What a unit of the page starts, with this interpreter and folder."""
    line = re.search(r"^ExecStart=(.*)$", block("ini", unit), re.M)[1]
    words = shlex.split(line.replace("/var/lib/cyx", str(folder)).replace("/opt/cyx/bin/python", sys.executable))
    return [*words, "--guard-stdin"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one address of loopback only")
async def test_the_network_of_the_page_works_and_its_backup_restores_it(hosts, tmp_path):
    folder = tmp_path / "cyx"  # with the key of central, whom the brokers ask
    chain = Part("chain", [sys.executable, "-m", "cyxcentral", "chain", "--dir", str(tmp_path / "chain")], folder / "c")
    await chain.start()
    text = on_this_machine(block("json", "network_id"), hosts.ports, folder)
    text = text.replace("PLATFORM_KEY", load_or_create(folder / "central.key").public_key)
    network = json.loads(text.replace("CHAIN_URL", chain.said["url"]).replace("REDIS_URL", ""))
    url = without_passwords(network["edge_url"])
    assert network["tls_ca"] == "CA_PEM"
    network |= {"tls_ca": hosts.ca, "node_url": url, "client_url": url, "faucet": True}
    (folder / "network.json").write_text(json.dumps(network))
    await hosts.healthy()
    central = Part("central", command_of("Central", folder), folder / "central.log")
    node = Part("node", command_of("Node", folder), folder / "node.log")
    try:
        await central.start()
        await node.start()
        async with await AsyncClient.connect(folder) as client:
            assert (await client.info()).network_id == "cyx-production"
            await client.faucet(7_000_000_000)
        await node.stop()
        await central.stop()
        for number in (1, 2, 3):  # the page's backup, its loss and its restore
            store = tmp_path / f"nats-{number}" / "store"
            hosts.stop(number)
            shutil.copytree(store, tmp_path / f"copy-{number}")
            hosts.start(number)
            await hosts.healthy()
        for number in (1, 2, 3):
            hosts.stop(number)
            shutil.rmtree(tmp_path / f"nats-{number}" / "store")
            shutil.copytree(tmp_path / f"copy-{number}", tmp_path / f"nats-{number}" / "store")
        for number in (1, 2, 3):
            hosts.start(number)
        await hosts.healthy()
        (folder / "central" / "ledger.duckdb").unlink()
        await central.start()
        async with await AsyncClient.connect(folder) as client:
            minted = await client.ledger("select count(*) from events where kind = 'Minted'")
            assert minted.rows == [[1]]
    finally:
        for part in (node, central, chain):
            await part.stop()
    assert os.stat(folder / "central.key").st_mode & 0o077 == 0
