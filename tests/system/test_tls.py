"""The whole small job over TLS, on brokers that ask each other for certificates."""

import asyncio
import sys

import pytest
from msgspec.structs import replace

from cyxnet import jobfile, tls
from cyxnet.bus import NotTrusted
from cyxnet.client import AsyncClient
from cyxnet.config import read_network, write_network
from cyxnet.local import LocalNetwork
from tests.system.conftest import EXAMPLES, assert_money_is_conserved


@pytest.mark.parametrize("brokers", [1, 3])
async def test_a_job_goes_through_a_network_of_tls(tmp_path, brokers):
    folder = tmp_path / "net"
    options = {"cluster": brokers, "heartbeat_ms": 500, "lease_ms": 4_000, "listen": "127.0.0.1"}
    async with LocalNetwork(folder, encrypt=True, hosts=["localhost"], **options) as network:
        assert network.file.client_url.startswith("tls://localhost:")
        assert network.file.core_url.count("tls://") == brokers and "nats://" not in network.file.core_url
        async with await AsyncClient.connect(folder) as client:
            await client.faucet(50_000_000_000)
            submitted = await client.submit(jobfile.load(EXAMPLES / "digits.toml"))
            assert (await client.wait(submitted.job_id)).status == "completed"
            assert await client.download(submitted.job_id, tmp_path / "digits.cyxmodel")
            await assert_money_is_conserved(client, network)
        passwords = [
            getattr(network.file, f"{account}_url").split("@")[0].split(":")[-1] for account in ("core", "edge")
        ]
        for_others = (folder / "join" / "network.json").read_text()
        assert not any(password in for_others for password in passwords)
        async with await AsyncClient.connect(folder / "join") as other:
            assert (await other.job(submitted.job_id)).status == "completed"
        script = [sys.executable, "-I", str(EXAMPLES / "plain_nats.py"), str(folder / "network.json")]
        plain = await asyncio.create_subprocess_exec(*script, str(EXAMPLES / "digits.csv"), cwd=tmp_path)
        assert await plain.wait() == 0
        stranger = tmp_path / "stranger"
        others = tls.make(tmp_path / "others").ca.read_text()
        write_network(stranger, replace(read_network(folder), tls_ca=others))
        with pytest.raises(NotTrusted):
            await AsyncClient.connect(stranger)
