"""Submit a job and follow it with nothing but a NATS client: no Cyx import, only JSON.

    cyx up                                                   # in another terminal
    python examples/plain_nats.py .cyx/network.json examples/digits.csv

Whoever connects is known by an nkey, which this program makes for itself once and keeps in plain_nats.nk. The id of the
caller, which stands in every subject and in the inbox, follows from the public key.

A local network keeps a wallet for a caller that brings none, so the faucet is asked for test money first.
"""

import asyncio
import hashlib
import json
import os
import secrets
import ssl
import sys
from pathlib import Path

import nats
import nkeys

CHUNK_BYTES = 512 * 1024


def kept_seed(path: Path) -> bytes:
    """The seed of our nkey; it is made at the first time, readable by nobody else."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER))
    return path.read_bytes().strip()


def content_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read ({error.strerror})") from None


async def main(network_file: str, data_file: str) -> None:
    network, data = json.loads(content_of(network_file)), content_of(data_file)
    seed = kept_seed(Path("plain_nats.nk"))
    public_key = nkeys.from_seed(bytearray(seed)).public_key
    caller = "c-" + hashlib.sha256(public_key).hexdigest()[:32]
    connection = await nats.connect(
        network["client_url"].split(","),
        nkeys_seed_str=seed.decode(),
        inbox_prefix=f"_INBOX_{caller}",
        tls=ssl.create_default_context(cadata=network.get("tls_ca") or None),  # used where the broker asks for TLS
    )

    async def ask(verb: str, payload: object) -> dict:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        reply = await connection.request(f"cyx.v1.api.{caller}.{verb}", body, timeout=10)
        answer = json.loads(reply.data)
        if (reply.headers or {}).get("Nats-Service-Error-Code"):
            raise SystemExit(f"{verb}: {answer['err_code']}: {answer['message']}")
        return answer

    discovered = json.loads((await connection.request("$SRV.INFO.cyx", b"")).data)
    print("verbs:", ", ".join(endpoint["name"] for endpoint in discovered["endpoints"]))

    await ask("wallet.faucet", {"amount_base_units": 5_000_000_000})

    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    for chunk in chunks:
        await ask("artifact.put", chunk)
    digests = [hashlib.sha256(chunk).hexdigest() for chunk in chunks]
    manifest = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "chunks": digests}
    dataset = await ask("artifact.commit", manifest)

    job = {
        "name": "digits by hand",
        "amount_base_units": 2_500_000_000,
        "dataset": dataset,
        "data": {"format": "csv", "target": "label"},
        "model": {
            "input": [64],
            "layers": [
                {"kind": "Linear", "out_features": 64},
                {"kind": "ReLU"},
                {"kind": "Linear", "out_features": 10},
            ],
        },
        "training": {"epochs": 5, "batch_size": 32, "loss": "cross_entropy"},
    }
    submitted = await ask("job.submit", {"job": job})
    job_id = submitted["job_id"]
    print("submitted:", job_id)

    live = await connection.subscribe(f"cyx.v1.update.{job_id}")  # first listen, then ask what was before
    seen: set[tuple[str, int]] = set()

    def show(update: dict) -> None:
        if (update["source"], update["seq"]) in seen:
            return
        seen.add((update["source"], update["seq"]))
        if update["kind"] == "epoch":
            epoch = update["data"]
            print(f"epoch {epoch['epoch']}: validation accuracy {epoch['validation_accuracy']:.4f}")
        elif update["source"] == "event":
            print(update["kind"])

    for update in (await ask("job.updates", {"job_id": job_id}))["updates"]:
        show(update)
    while (status := await ask("job.status", {"job_id": job_id}))["status"] not in ("completed", "failed", "cancelled"):
        try:
            show(json.loads((await live.next_msg(timeout=1)).data))
        except TimeoutError:
            continue
    for update in (await ask("job.updates", {"job_id": job_id}))["updates"]:
        show(update)
    print("status:", status["status"], "model:", status["model"]["sha256"])
    await connection.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python examples/plain_nats.py NETWORK_JSON DATA_CSV")
    asyncio.run(main(*sys.argv[1:]))
