"""A small central that serves HTTP: real broker, log, keys and sessions, real server on a free port."""

import asyncio
import contextlib
import functools
from types import SimpleNamespace

import httpx
import msgspec

from cyxcentral.access import Access
from cyxcentral.admission import roles
from cyxcentral.api import Api
from cyxcentral.cache import MemoryCache
from cyxcentral.clients import banned_until_ms
from cyxcentral.http.app import Front, Limits
from cyxcentral.http.tokens import Tokens
from cyxcentral.machine import MACHINE
from cyxcentral.recent import Recent
from cyxnet import messages as m
from cyxnet.config import NetworkFile
from cyxnet.credentials import as_client, session_request
from cyxnet.httpserver import Server
from cyxnet.identity import Identity
from cyxnet.ratelimit import Rate
from tests.central.centrals import SmallCentral

PLATFORM = Identity(b"the platform of tests, 32 bytes.")
ALICE, BOB, OPERATOR = (Identity(name.encode().ljust(32)) for name in ("alice", "bob", "operator"))
NETWORK_ID = "test-network"


def network_file(**changes):
    urls = dict.fromkeys(("client_url", "node_url", "edge_url", "core_url", "monitor_url", "chain_url"), "")
    return NetworkFile(
        network_id=NETWORK_ID,
        operators=[as_client(OPERATOR).id],
        **urls | {"http_requests_per_s": 100_000.0, "requests_per_s": 100_000.0} | changes,
    )


class HttpCentral:
    """`async with HttpCentral.open(broker) as central`: `central.http` asks it, without a credential."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, broker, limits=None, head_s=60.0, certificate=None, machine=MACHINE, **network):
        self = cls()
        small = self.small = await SmallCentral.start(broker, "central-http")
        self.broker, small.log.machine = broker, machine
        file = network_file(**network)
        self.world, self.events, self.dispatch, self.blobs = small.world, small.log, small.dispatch, small.blobs
        self.cache, self.recent = MemoryCache(), Recent()
        self.settings = SimpleNamespace(network=file)
        self.keys = SimpleNamespace(child=PLATFORM.child, failing=False)
        self.access = Access(small.core, machine, PLATFORM.child("http-refresh"), self.roles)
        self.ledger = SimpleNamespace(updates=self._no_updates, failing=False)
        self.sick = ""
        rate = file.requests_per_s
        small.edge.limit({"api": Rate(per_s=rate, burst=max(1.0, rate))})
        self.over_limit_ms = functools.partial(small.edge.over_limit_ms, "api")
        self.is_known = lambda identity: identity in self.world.payers
        self.handlers = Api(self).handlers()
        self.tokens = Tokens(PLATFORM, NETWORK_ID, MACHINE.wall_ms, machine.token_hex)
        try:
            await self.access.open()
            self.front = Front(self, limits or Limits())
            self.server = await Server.start(self.front, "127.0.0.1", 0, certificate, head_s)
            try:
                async with httpx.AsyncClient(base_url=self.server.url, timeout=30) as self.http:
                    yield self
            finally:
                await self.server.close()
        finally:
            await small.close()

    def roles(self, identity):
        now_ms = MACHINE.wall_ms()
        banned = functools.partial(banned_until_ms, self.world.clients, now_ms=now_ms)
        return roles(identity, self.world.nodes.get, self.settings.network.operators, now_ms, banned)

    def unwell(self):
        return self.sick

    async def _no_updates(self, *_):
        return [], False

    async def log_in(self, keys=ALICE, role="client", node_id=""):
        """The SessionTokens of somebody who proves his key."""
        drawn = (await self.http.post("/v1/sessions/nonce")).json()
        ask = session_request(keys, drawn["network_id"], drawn["nonce"], role, node_id)
        answer = await self.http.post("/v1/sessions", json=builtins(ask))
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def key(self, keys=ALICE, **wanted):
        return await self.access._key_new(as_client(keys).id, m.KeyNewRequest(**wanted))


def builtins(ask):
    return msgspec.to_builtins(ask)


def bearer(credential):
    return {"Authorization": f"Bearer {credential}"}


async def soon(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)
