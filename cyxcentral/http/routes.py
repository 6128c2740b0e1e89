"""Where each verb of cyxnet.subjects is over HTTP. Pure data: what is served, documented and tested is this table."""

import re

from msgspec import Struct

from cyxnet.messages import HttpSessionRequest, NonceReply, RefreshRequest, SessionTokens
from cyxnet.subjects import VERBS, Verb

# Requests about HTTP itself. They have no subject: who is on the broker has no use for them.
OPEN_VERBS = {
    verb.name: verb
    for verb in [
        Verb("session.nonce", type(None), NonceReply, "something to sign, good for a minute"),
        Verb("session.open", HttpSessionRequest, SessionTokens, "open a session with a signature"),
        Verb("session.refresh", RefreshRequest, SessionTokens, "the next access token, for a refresh token"),
    ]
}


class Route(Struct, frozen=True):
    """One verb at one place. Its request is made of the path, and of the query (GET, DELETE) or the body (POST)."""

    method: str
    path: str
    verb: str
    status: int = 200

    @property
    def asks(self) -> Verb:
        return OPEN_VERBS.get(self.verb) or VERBS[self.verb]

    @property
    def is_open(self) -> bool:
        """Whether anybody may ask: these are how one becomes somebody."""
        return self.verb in OPEN_VERBS

    @property
    def in_path(self) -> list[str]:
        """Fields of the request that stand in the path."""
        return re.findall(r"{(\w+)}", self.path)


_TABLE = [
    Route("POST", "/v1/sessions/nonce", "session.nonce"),
    Route("POST", "/v1/sessions", "session.open", 201),
    Route("POST", "/v1/sessions/refresh", "session.refresh"),
    Route("DELETE", "/v1/sessions/{id}", "key.revoke"),
    Route("GET", "/v1/network", "network.info"),
    Route("POST", "/v1/quotes", "job.quote"),
    Route("POST", "/v1/jobs", "job.submit", 201),
    Route("GET", "/v1/jobs", "job.list"),
    Route("GET", "/v1/jobs/{job_id}", "job.status"),
    Route("GET", "/v1/jobs/{job_id}/updates", "job.updates"),
    Route("POST", "/v1/jobs/{job_id}/cancel", "job.cancel"),
    Route("POST", "/v1/jobs/{job_id}/pause", "job.pause"),
    Route("POST", "/v1/jobs/{job_id}/resume", "job.resume"),
    Route("POST", "/v1/jobs/{job_id}/priority", "job.priority"),
    Route("GET", "/v1/jobs/{job_id}/explain", "job.explain"),
    Route("GET", "/v1/deployments", "deployment.list"),
    Route("GET", "/v1/nodes", "node.list"),
    Route("POST", "/v1/nodes/{node_id}/ban", "node.ban"),
    Route("POST", "/v1/nodes/{node_id}/pardon", "node.pardon"),
    Route("GET", "/v1/clients", "client.list"),
    Route("POST", "/v1/clients/{client_id}/ban", "client.ban"),
    Route("POST", "/v1/clients/{client_id}/pardon", "client.pardon"),
    Route("GET", "/v1/wallet", "wallet.balance"),
    Route("POST", "/v1/wallet/faucet", "wallet.faucet"),
    Route("POST", "/v1/ledger/query", "ledger.query"),
    Route("POST", "/v1/artifacts/stat", "artifact.stat"),
    Route("POST", "/v1/artifacts/chunks", "artifact.put", 201),
    Route("GET", "/v1/artifacts/chunks/{sha256}", "artifact.chunk"),
    Route("POST", "/v1/artifacts", "artifact.commit", 201),
    Route("GET", "/v1/artifacts/{sha256}", "artifact.manifest"),
    Route("POST", "/v1/keys", "key.new", 201),
    Route("GET", "/v1/keys", "key.list"),
    Route("DELETE", "/v1/keys/{id}", "key.revoke"),
]
_placed = {route.verb for route in _TABLE}
# A verb that nobody has found a better place for is at its own name.
ROUTES = _TABLE + [Route("POST", f"/v1/{name.replace('.', '/')}", name) for name in VERBS if name not in _placed]
EVENT_STREAM = "/v1/jobs/{job_id}/updates"  # also as server-sent events
