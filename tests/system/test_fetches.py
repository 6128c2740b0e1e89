"""What one client cannot have of another, who knows every digest of his: on a whole network."""

import pytest
from msgspec.structs import replace

from cyxcore.errors import CyxError
from cyxnet import artifacts, jobfile
from cyxnet.bus import ApiError
from cyxnet.client import AsyncClient
from tests.system.conftest import EXAMPLES

PATH = EXAMPLES / "digits.toml"


async def test_data_and_model_of_a_job_are_for_its_client_and_for_operators(client, network, tmp_path):
    """`client` is the operator of this network."""
    async with (
        await AsyncClient.connect(tmp_path / "owner", url=network.file.client_url) as owner,
        await AsyncClient.connect(tmp_path / "thief", url=network.file.client_url) as thief,
    ):
        for each in (owner, thief):
            await each.faucet()
        job = jobfile.load(PATH)
        job = replace(job, training=replace(job.training, epochs=2))
        view = await owner.wait((await owner.submit(job)).job_id)
        data = artifacts.describe(job.data_path)
        for reader in (owner, client):
            await reader.download(view.job_id, tmp_path / "model")
            await reader.fetch(data.sha256, tmp_path / "data")
            assert (tmp_path / "data").read_bytes() == job.data_path.read_bytes()
        for sha256 in (view.model.sha256, data.sha256):
            with pytest.raises(ApiError, match=f"no artifact {sha256} is stored here") as refused:
                await thief.fetch(sha256, tmp_path / "stolen")
            assert refused.value.status == 404
            with pytest.raises(ApiError, match="is stored here"):
                await artifacts.get(thief.bus, thief.caller, sha256, tmp_path / "stolen", as_operator=True)

        async def nothing_sent(path, on_upload=None):
            found = artifacts.describe(path)
            return artifacts.ArtifactRef(sha256=found.sha256, size=found.size)

        sends, thief.upload = thief.upload, nothing_sent  # a job of his own over data that he only knows the name of
        with pytest.raises(CyxError, match=f"no artifact {data.sha256} is stored here"):
            await thief.submit(job)
        thief.upload = sends
        same = await thief.wait((await thief.submit(job)).job_id)  # who has the data may use it, and has his own result
        assert same.model == view.model
        await thief.download(same.job_id, tmp_path / "his")
