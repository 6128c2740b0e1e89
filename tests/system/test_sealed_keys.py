"""A network whose keys are sealed with a passphrase: every part opens its own."""

import pytest

from cyxnet import identity, jobfile, sealing
from cyxnet.client import AsyncClient
from cyxnet.identity import Identity
from cyxnet.local import LocalNetwork
from cyxnet.parts import StartError
from tests.system.conftest import EXAMPLES


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("client.key", "central.key", "nodes/node-1/key")):
        identity.keep(tmp_path / "net" / name, Identity(bytes([number]) * 32), "correct horse")
    return tmp_path / "net"


async def test_a_job_goes_through_a_network_of_sealed_keys(folder, monkeypatch):
    monkeypatch.setenv(sealing.PASSPHRASE, "correct horse")
    async with LocalNetwork(folder, heartbeat_ms=500, lease_ms=4_000), await AsyncClient.connect(folder) as client:
        await client.faucet(50_000_000_000)
        submitted = await client.submit(jobfile.load(EXAMPLES / "digits.toml"))
        assert (await client.wait(submitted.job_id)).status == "completed"


async def test_a_part_that_cannot_open_its_key_says_so(folder, monkeypatch, tmp_path):
    identity.keep(folder / "nodes" / "node-1" / "key", Identity(bytes(32)), "another one", replace=True)
    monkeypatch.setenv(sealing.PASSPHRASE, "correct horse")
    with pytest.raises(StartError, match="node-1 did not start: .*this passphrase does not open it"):
        async with LocalNetwork(folder):
            raise AssertionError("it came up")
