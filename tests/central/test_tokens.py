"""Token vectors: credentials that are not good, each refused at every place that is served."""

import asyncio
import base64
import hashlib
import hmac
import json
import time

import jwt
import msgspec
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from msgspec.structs import replace

from cyxcentral.http.clock import LOOKED_MS, BrokerClock
from cyxcentral.http.routes import ROUTES
from cyxcentral.http.tokens import LEEWAY_S, TOKEN_S
from cyxcentral.machine import MACHINE, Machine
from cyxnet.broker import Broker, Passwords
from cyxnet.credentials import as_client, session_request
from cyxnet.outcomes import BusError
from cyxnet.subjects import VERBS, may_ask
from tests.central.http_central import ALICE, BOB, OPERATOR, PLATFORM, HttpCentral, bearer
from tests.doorkeeper import CENTRAL

pytestmark = pytest.mark.asyncio(loop_scope="module")
KEY = Ed25519PrivateKey.from_private_bytes(PLATFORM.child("http-token"))
PUBLIC = KEY.public_key()
PUBLIC_PEM = PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def b64(raw):
    return base64.urlsafe_b64encode(raw if isinstance(raw, bytes) else json.dumps(raw, separators=(",", ":")).encode())


def parts_of(token):
    return [json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2]]


def signed(header, claims, key=KEY):
    """A token with exactly this header and these claims (as bytes, if they are bytes), signed with the right key."""
    said = b64(header).rstrip(b"=") + b"." + b64(claims).rstrip(b"=")
    return (said + b"." + b64(key.sign(said)).rstrip(b"=")).decode()


def with_header(**changes):
    return lambda good: signed({**parts_of(good)[0], **changes}, parts_of(good)[1])


def without_header(name):
    return lambda good: signed({k: v for k, v in parts_of(good)[0].items() if k != name}, parts_of(good)[1])


def with_claims(**changes):
    return lambda good: signed(parts_of(good)[0], {**parts_of(good)[1], **changes})


def without_claim(name):
    return lambda good: signed(parts_of(good)[0], {k: v for k, v in parts_of(good)[1].items() if k != name})


def at(**offsets_s):
    """Times of the claims, in seconds from now."""
    return lambda good: with_claims(**{name: int(time.time()) + s for name, s in offsets_s.items()})(good)


def by_hmac(secret):
    """HS256 with something public as the secret: what an RS/HS confusion would take for a signature."""

    def spoil(good):
        header, claims = parts_of(good)
        said = b64({**header, "alg": "HS256"}).rstrip(b"=") + b"." + b64(claims).rstrip(b"=")
        return (said + b"." + b64(hmac.new(secret, said, hashlib.sha256).digest()).rstrip(b"=")).decode()

    return spoil


def unsigned(algorithm, signature=""):
    def spoil(good):
        header, claims = parts_of(good)
        return f"{b64({**header, 'alg': algorithm}).decode().rstrip('=')}.{good.split('.')[1]}.{signature}"

    return spoil


def by_rsa(good):
    header, claims = parts_of(good)
    pem = STRANGER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return jwt.encode(claims, pem, "RS256", header | {"alg": "RS256"})


def claims_bytes(change):
    """The claims in other bytes that mean, or might mean, the same; rightly signed."""

    def spoil(good):
        header, claims = parts_of(good)
        return signed(header, change(json.dumps(claims, separators=(",", ":"))).encode())

    return spoil


def cut(part, change):
    def spoil(good):
        parts = good.split(".")
        parts[part] = change(parts[part])
        return ".".join(parts)

    return spoil


def last_bits(text):
    """Base 64 whose last letter has other unused bits: the same bytes, another text."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return text[:-1] + letters[letters.index(text[-1]) ^ 1]


# name -> the token, made of a good one. All that are signed are signed by the right key unless they say otherwise.
VECTORS = {
    "alg none": unsigned("none"),
    "alg None": unsigned("None"),
    "alg NONE with the good signature": lambda good: unsigned("NONE", good.split(".")[2])(good),
    "alg absent": without_header("alg"),
    "alg eddsa": with_header(alg="eddsa"),
    "alg EDDSA": with_header(alg="EDDSA"),
    "alg Ed25519": with_header(alg="Ed25519"),
    "alg a list": with_header(alg=["EdDSA"]),
    "HS256 with the public key's bytes": by_hmac(PUBLIC.public_bytes_raw()),
    "HS256 with the public key's PEM": by_hmac(PUBLIC_PEM),
    "HS256 with the public key's hex": by_hmac(PUBLIC.public_bytes_raw().hex().encode()),
    "HS256 with an empty secret": by_hmac(b""),
    "RS256 of a stranger": by_rsa,
    "kid a path": with_header(kid="../../../../dev/null"),
    "kid SQL": with_header(kid="x' UNION SELECT 'key' --"),
    "kid a command": with_header(kid="|cat /etc/passwd"),
    "kid unknown": with_header(kid="0" * 16),
    "kid absent": without_header("kid"),
    "kid a number": with_header(kid=1),
    "jku of a stranger": with_header(jku="https://evil.example/keys.json"),
    "jwk in the header": with_header(jwk={"kty": "OKP", "crv": "Ed25519", "x": "AA"}),
    "x5u of a stranger": with_header(x5u="https://evil.example/chain.pem"),
    "crit unknown": with_header(crit=["exp"]),
    "b64 false": with_header(b64=False, crit=["b64"]),
    "typ of another token": with_header(typ="JWT"),
    "header not JSON": lambda good: signed(b"nonsense", parts_of(good)[1]),
    "header a list": lambda good: signed([], parts_of(good)[1]),
    "header nested deep": lambda good: signed(b"[" * 900 + b"]" * 900, parts_of(good)[1]),
    "no exp": without_claim("exp"),
    "no nbf": without_claim("nbf"),
    "no iat": without_claim("iat"),
    "no aud": without_claim("aud"),
    "no iss": without_claim("iss"),
    "no sub": without_claim("sub"),
    "no session": without_claim("sid"),
    "no role": without_claim("role"),
    "aud of another network": with_claims(aud="cyx-http/another"),
    "aud a list with ours": lambda good: with_claims(aud=[parts_of(good)[1]["aud"], "x"])(good),
    "aud empty": with_claims(aud=""),
    "iss of another": with_claims(iss="cyx/another"),
    "iss with a line end": lambda good: with_claims(iss=parts_of(good)[1]["iss"] + "\n")(good),
    "expired": at(iat=-TOKEN_S - 60, nbf=-TOKEN_S - 60, exp=-60),
    "expired by a second more than clocks may differ": at(iat=-60, nbf=-60, exp=-LEEWAY_S - 1),
    "nbf in the future": at(nbf=60),
    "iat in the future": at(iat=60, nbf=0, exp=TOKEN_S),
    "exp too far away": at(exp=TOKEN_S + 60),
    "exp for ever": with_claims(exp=2**53),
    "exp before iat": at(iat=4, nbf=-10, exp=1),
    "exp a text": with_claims(exp="9999999999"),
    "exp a float": lambda good: with_claims(exp=parts_of(good)[1]["exp"] + 0.5)(good),
    "exp 1e400": claims_bytes(lambda text: text.replace('"jti"', '"x":1e400,"jti"')),
    "exp null": with_claims(exp=None),
    "iat true": with_claims(iat=True),
    "sub another's": with_claims(sub=as_client(BOB).id),
    "sub an operator's": with_claims(sub=as_client(OPERATOR).id, role="operator"),
    "sub a number": with_claims(sub=7),
    "sub a list": with_claims(sub=["c-0"]),
    "role operator": with_claims(role="operator"),
    "role unknown": with_claims(role="root"),
    "session of nobody": with_claims(sid="0" * 32),
    "session a path": with_claims(sid="../opened"),
    "session with a wildcard": with_claims(sid="*"),
    "a claim more": with_claims(admin=True),
    "claims twice": claims_bytes(lambda text: text[:-1] + f',"sub":"{as_client(ALICE).id}"}}'),
    "role twice": claims_bytes(lambda text: text.replace('"role":', '"role":"operator","role":')),
    "claims with spaces": claims_bytes(lambda text: text.replace(":", ": ")),
    "claims escaped": claims_bytes(lambda text: text.replace('"sub"', '"s\\u0075b"')),
    "claims in another order": claims_bytes(lambda text: json.dumps(dict(reversed(json.loads(text).items())))),
    "claims not JSON": claims_bytes(lambda text: "nonsense"),
    "claims a list": claims_bytes(lambda text: "[]"),
    "claims nested deep": claims_bytes(lambda text: "[" * 1000 + "]" * 1000),
    "claims not UTF-8": lambda good: signed(parts_of(good)[0], b'{"sub":"\xff"}'),
    "claims empty": lambda good: signed(parts_of(good)[0], b""),
    "signed by another key": lambda good: signed(*parts_of(good), OTHER_KEY),
    "signature of other claims": lambda good: (
        f"{good.rsplit('.', 1)[0]}.{with_claims(jti='0' * 32)(good).rsplit('.', 1)[1]}"
    ),
    "claims changed under the signature": cut(1, lambda part: b64({"role": "operator"}).decode().rstrip("=")),
    "signature empty": lambda good: good.rsplit(".", 1)[0] + ".",
    "signature of zeros": cut(2, lambda part: "A" * len(part)),
    "signature cut short": cut(2, lambda part: part[:-4]),
    "signature with unused bits": cut(2, last_bits),
    "signature padded": cut(2, lambda part: part + "=="),
    "signature not base 64": cut(2, lambda part: "!" * len(part)),
    "header not base 64": cut(0, lambda part: "!" + part[1:]),
    "claims not base 64": cut(1, lambda part: part[:-1] + "*"),
    "claims padded": cut(1, lambda part: part + "=" * (-len(part) % 4) + "=="),
    "truncated": lambda good: good[: len(good) // 2],
    "two segments": lambda good: good.rsplit(".", 1)[0],
    "four segments": lambda good: good + ".AAAA",
    "a JWE": lambda good: f"{b64({'alg': 'dir', 'enc': 'A256GCM'}).decode()}..AA.AA.AA",
    "a JWS in JSON": lambda good: json.dumps({"payload": good.split(".")[1], "signature": good.split(".")[2]}),
    "only dots": lambda good: "..",
    "oversized": lambda good: with_claims(jti="a" * 4096)(good),
    "oversized junk": lambda good: "A" * 9000,
    "not ASCII": lambda good: good + "\xe9",
    "a tab behind it": lambda good: good[:20] + "\t" + good[20:],
    "two tokens": lambda good: f"{good},{good}",
    "a NATS token's header": lambda good: signed({"typ": "JWT", "alg": "ed25519-nkey"}, parts_of(good)[1]),
    "an unknown API key": lambda good: f"cyxk_{'0' * 12}_{'0' * 64}",
    "an API key that is a path": lambda good: "cyxk_../../x_" + "0" * 64,
    "a session's id as API key": lambda good: f"cyxk_{parts_of(good)[1]['sid'][:12]}_{'0' * 64}",
    "a refresh token": lambda good: f"cyxr_{parts_of(good)[1]['sid']}_1_{'0' * 64}",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def central(tmp_path_factory):
    """One for all: what is refused leaves nothing behind."""
    broker = await asyncio.to_thread(Broker.start, tmp_path_factory.mktemp("broker"), Passwords.fresh(CENTRAL))
    async with HttpCentral.open(broker) as running:
        yield running
    await asyncio.to_thread(broker.stop)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def good(central):
    return (await central.log_in())["access_token"]


@pytest.fixture
def operators(central):
    """Who may be operator: as before when the test is over."""
    before = list(central.settings.network.operators)
    yield central.settings.network.operators
    central.settings.network.operators[:] = before


def filled(route):
    """Its path, with something in each hole."""
    holes = {"job_id": "job-1", "node_id": "node-1", "client_id": f"c-{'0' * 32}", "sha256": "0" * 64}
    return route.path.format(id="0" * 12, **holes)


def places():
    """(method, path) of all that is served, with something in each hole; the open ones too."""
    for route in ROUTES:
        yield route.method, filled(route)
    for probe in ("/livez", "/readyz", "/metrics", "/openapi.json", "/nowhere"):
        yield "GET", probe


async def refused_everywhere(central, headers, name):
    """Every place answers 401, in the one shape."""
    for method, path in places():
        answer = await central.http.request(method, path, headers=headers)
        assert answer.status_code == 401, (name, method, path, answer.status_code, answer.text)
        assert set(answer.json()) == {"err_code", "message"} and answer.json()["err_code"] == "unauthorized"
        assert answer.headers["www-authenticate"] == 'Bearer realm="cyx"'


async def test_the_token_that_the_vectors_are_made_of_is_good(central, good):
    assert signed(*parts_of(good)) == good
    for token in (good, with_claims()(good), with_header()(good)):
        assert (await central.http.get("/v1/nodes", headers=bearer(token))).status_code == 200


@pytest.mark.parametrize("name", VECTORS)
async def test_a_token_that_is_not_good_is_refused_everywhere(central, good, name, caplog):
    spoiled = VECTORS[name](good)
    assert spoiled != good
    await refused_everywhere(central, {"Authorization": b"Bearer " + spoiled.encode("latin-1")}, name)
    assert "Traceback" not in caplog.text
    assert (await central.http.get("/v1/nodes", headers=bearer(good))).status_code == 200


HEADERS = {
    "no scheme": lambda good: [("Authorization", good)],
    "another scheme": lambda good: [("Authorization", f"Basic {good}")],
    "twice": lambda good: [("Authorization", f"Bearer {good}")] * 2,
    "scheme only": lambda good: [("Authorization", "Bearer")],
}


@pytest.mark.parametrize("name", HEADERS)
async def test_a_header_that_is_not_good_is_refused_everywhere(central, good, name):
    await refused_everywhere(central, HEADERS[name](good), name)


async def revoked_session(central):
    tokens = await central.log_in()
    await central.access.revoke(tokens["session_id"], "")
    return tokens["access_token"]


async def reused_refresh_token(central):
    tokens = await central.log_in()
    used = {"refresh_token": tokens["refresh_token"]}
    first = await central.http.post("/v1/sessions/refresh", json=used)
    assert first.status_code == 200
    second = await central.http.post("/v1/sessions/refresh", json=used)
    assert second.status_code == 401
    newest = {"refresh_token": first.json()["refresh_token"]}
    assert (await central.http.post("/v1/sessions/refresh", json=newest)).status_code == 401
    return first.json()["access_token"]


async def revoked_key(central):
    made = await central.key()
    await central.access.revoke(made.view.id, "")
    return made.key


async def key_of_a_former_operator(central):
    made = await central.key(OPERATOR, role="operator")
    central.settings.network.operators.clear()
    return made.key


async def session_of_a_former_operator(central):
    tokens = await central.log_in(OPERATOR, "operator")
    central.settings.network.operators.clear()
    return tokens["access_token"]


async def key_that_is_over(central):
    made = await central.key(days=1)
    held = central.access._held[made.view.id]
    central.access._held[made.view.id] = (held[0], replace(held[1], ends_at_ms=central.events.machine.wall_ms()))
    return made.key


async def session_that_is_over(central):
    tokens = await central.log_in()
    held = central.access._held[tokens["session_id"]]
    central.access._held[tokens["session_id"]] = (
        held[0],
        replace(held[1], ends_at_ms=central.events.machine.wall_ms()),
    )
    return tokens["access_token"]


async def session_that_its_owner_ended(central):
    tokens = await central.log_in()
    path = f"/v1/sessions/{tokens['session_id']}"
    ended = await central.http.delete(path, headers=bearer(tokens["access_token"]))
    assert ended.status_code == 200, ended.text
    return tokens["access_token"]


STATES = [
    revoked_session,
    session_that_is_over,
    session_that_its_owner_ended,
    reused_refresh_token,
    revoked_key,
    key_that_is_over,
    key_of_a_former_operator,
    session_of_a_former_operator,
]


@pytest.mark.parametrize("state", STATES)
async def test_what_was_good_and_is_no_more_is_refused_everywhere(central, operators, state):
    await refused_everywhere(central, bearer(await state(central)), state.__name__)


@pytest.mark.parametrize("left_s", [0, 10, TOKEN_S + 60])
async def test_a_token_is_good_no_longer_than_its_session(central, left_s):
    tokens = await central.log_in()
    session = central.access._held[tokens["session_id"]][1]
    token, lasts_s = central.tokens.issue(replace(session, ends_at_ms=central.events.machine.wall_ms() + 1000 * left_s))
    claims = parts_of(token)[1]
    assert lasts_s == claims["exp"] - claims["iat"] <= min(left_s, TOKEN_S)
    assert lasts_s >= min(left_s, TOKEN_S) - 1


@pytest.mark.parametrize("hours", [-1, 1])
async def test_what_one_central_gives_is_good_at_another_whose_clock_is_hours_off(central, hours):
    # by its own clock each would refuse what the other gives, as not good yet or as over
    wrong = Machine(wall_ms=lambda: MACHINE.wall_ms() + hours * 3_600_000)
    async with HttpCentral.open(central.broker, machine=wrong) as other:
        for giving, asked in ((central, other), (other, central)):
            tokens = await giving.log_in(BOB)
            for one in (giving, asked):
                answer = await one.http.get("/v1/nodes", headers=bearer(tokens["access_token"]))
                assert answer.status_code == 200, answer.text
            drawn = (await giving.http.post("/v1/sessions/nonce")).json()
            ask = msgspec.to_builtins(session_request(BOB, drawn["network_id"], drawn["nonce"]))
            assert (await asked.http.post("/v1/sessions", json=ask)).status_code == 201
            used = {"refresh_token": tokens["refresh_token"]}
            assert (await asked.http.post("/v1/sessions/refresh", json=used)).status_code == 200


async def test_the_clock_of_the_broker_is_heard_once_a_minute_and_goes_on_while_it_is_not():
    here_ms, heard = [0.0], iter([5_000, BusError("no answer"), 9_000_000])

    async def ask():
        if isinstance(said := next(heard), BusError):
            raise said
        return said

    clock, told = BrokerClock(ask, Machine(monotonic_ms=lambda: here_ms[0], wall_ms=lambda: 0)), []
    for here_ms[0] in (0.0, 1.0, LOOKED_MS - 1.0, LOOKED_MS, 2 * LOOKED_MS - 1.0, 2 * LOOKED_MS):
        await clock.look()
        told.append(clock.now_ms())
    assert told == [5_000, 5_001, 64_999, 65_000, 124_999, 9_000_000]


async def test_while_one_asks_for_the_clock_again_the_others_go_by_what_was_heard():
    here_ms, answer = [0.0], asyncio.get_running_loop().create_future()
    answer.set_result(5_000)

    async def ask():
        return await answer

    clock = BrokerClock(ask, Machine(monotonic_ms=lambda: here_ms[0], wall_ms=lambda: 0))
    await clock.look()
    here_ms[0], answer = float(LOOKED_MS), asyncio.get_running_loop().create_future()
    asks = asyncio.create_task(clock.look())
    await asyncio.sleep(0)
    await asyncio.wait_for(clock.look(), 60.0)
    assert not asks.done() and clock.now_ms() == 65_000
    answer.set_result(66_000)
    await asks
    assert clock.now_ms() == 66_000


async def test_a_clock_that_was_never_heard_is_none(central):
    async def ask():
        return await central.small.core.clock_ms("NO_SUCH_STREAM")

    with pytest.raises(BusError, match="cannot read the clock of NO_SUCH_STREAM: stream not found"):
        await BrokerClock(ask, MACHINE).look()


async def test_nobody_is_answered_without_a_credential_but_where_one_gets_it(central):
    for method, path in places():
        answer = await central.http.request(method, path)
        is_open = path.startswith("/v1/sessions") and method == "POST"
        probe = path in ("/livez", "/readyz", "/openapi.json")
        expected = {200, 400, 401} if is_open else {200} if probe else {404} if path == "/nowhere" else {401}
        assert answer.status_code in expected, (method, path, answer.text)


@pytest.mark.parametrize("role", ["client", "node"])
async def test_a_credential_of_another_role_does_not_open_what_is_not_its_own(central, role):
    node_id = f"node-a-{ALICE.short_id}"
    tokens = await central.log_in(role=role, node_id=node_id if role == "node" else "")
    mine = bearer(tokens["access_token"])
    made = await central.http.post("/v1/keys", json={"role": role}, headers=mine)
    for headers in (mine, bearer(made.json()["key"])):
        for route in ROUTES:
            if route.verb in VERBS and not may_ask(role, VERBS[route.verb]):
                path = filled(route)
                assert (await central.http.request(route.method, path, headers=headers)).status_code == 403, path
        assert (await central.http.get("/metrics", headers=headers)).status_code == 403
        raised = await central.http.post("/v1/keys", json={"role": "operator"}, headers=headers)
        assert raised.status_code == 403
