"""One central: wires the log, the world, the loops and the API together, and takes them apart again."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from cyxcentral import admission, clients, jobs, readahead, reconciliation, schedule, segments, snapshot
from cyxcentral.access import Access
from cyxcentral.api import Api
from cyxcentral.audit import Audit
from cyxcentral.blobs import Blobs
from cyxcentral.cache import MemoryCache, job_status, open_cache
from cyxcentral.dispatch import Dispatch
from cyxcentral.door import Door
from cyxcentral.eventlog import EventLog
from cyxcentral.keys import Keys
from cyxcentral.ledger import Ledger
from cyxcentral.machine import MACHINE, Machine
from cyxcentral.payments import Payments
from cyxcentral.projection import note, project
from cyxcentral.recent import Recent
from cyxcentral.runreports import RunReports
from cyxcentral.sweeper import SHORTEST_KEPT_S, Sweeper
from cyxcentral.telemetry import Telemetry, broadcast
from cyxcentral.verifier import Verifier
from cyxcentral.world import SAID_ON, World
from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects, tls, watchdog
from cyxnet.broker import BrokerError, syncs_always
from cyxnet.bus import Bus
from cyxnet.commands import Commander
from cyxnet.config import NetworkFile, without_passwords
from cyxnet.credentials import as_system, replica_id
from cyxnet.escrow import LOCAL_PROGRAM
from cyxnet.outcomes import Stored
from cyxnet.ratelimit import Newcomers, Rate
from cyxnet.solana import Settlement

log = logging.getLogger(__name__)
MANY_REQUESTS = 16  # in flight: then payments let callers go first, and signatures are checked beside
PREPARED_AFTER_S = 1.0
CHECK_BROKERS_EVERY_S = 60.0
# what may end a run from outside
STOPPING = frozenset({m.CancelRequested, m.FundFailed, m.Refunded, m.DeadlineNear, m.TimeUsed})
STOPS_WITHIN_S = 5.0  # a replica hears by its next heartbeat, or before, that it is not wanted any more


class StartError(CyxError):
    """Central will not start like this. The message says what is wrong and what to do."""

    code = "cannot_start"


class Settings(Struct, frozen=True, kw_only=True):
    """How one central runs. keys: folder of the platform's key, which its signer reads. state: its ledger."""

    network: NetworkFile
    keys: Path
    state: Path


def configured_weights(network: NetworkFile) -> schedule.Weights:
    """The weights of network.json. Raises StartError when they cannot be used."""
    try:
        return schedule.weights_of(network.weights)
    except schedule.WeightsError as error:
        raise StartError(f"network.json: {error}; correct it and start again") from None


def configured_checks(network: NetworkFile, keys: Keys) -> segments.Policy:
    """Which results are checked before they are paid. Raises StartError where the signer gives no secret for it."""
    if not network.checkers:
        return segments.Policy()
    try:
        secret = keys.child("checks")
    except KeyError:
        raise StartError(
            "network.json names checkers, and the signer is of a version without a key for checks: upgrade "
            "it first, and start again"
        ) from None
    return segments.Policy(
        secret=secret,
        checkers=frozenset(network.checkers),
        share=network.check_share,
        longest_s=network.longest_check_s,
        within_s=network.check_within_s,
    )


class Central:
    """Start with `await Central.start(settings)`, end with `await close()`."""

    def __init__(
        self,
        settings: Settings,
        core: Bus,
        edge: Bus,
        ledger: Ledger,
        settlement: Settlement,
        keys: Keys,
        machine: Machine = MACHINE,
    ):
        self.settings = settings
        self.central_id = f"central-{machine.token_hex(4)}"
        network = settings.network
        self.keys = keys
        self._core = core
        self._edge = edge
        self._system: Bus | None = None
        self._newcomers = Newcomers(network.newcomers_per_s)
        self.door: Door | None = None  # without one, nobody is let in by this central
        self.ledger = ledger
        self.settlement = settlement
        self.verifier = Verifier(self._many_ask)
        settlement.verify = self.verifier.signed_by
        ledger.busy = self._many_ask
        self.cache = open_cache(network.redis_url)
        unproven = schedule.Unproven(
            limit_base_units=network.unproven_limit_base_units,
            vouched=frozenset((*network.vouched, *network.checkers)),  # these are the operator's own
            checkers=frozenset(network.checkers),
        )
        self.world = World(configured_weights(network), unproven)
        self.events = EventLog(core, self.central_id, self.world, machine)
        self.events.read_ahead = functools.partial(readahead.blocks, network.core_url, tls_ca=network.tls_ca)
        if network.monitor_url:
            self.events.why_silent = functools.partial(
                asyncio.to_thread, watchdog.full, network.monitor_url, network.tls_ca
            )
        self.blobs = Blobs(core, machine)
        policy = configured_checks(network, keys)
        self.access = Access(core, machine, keys.child("http-refresh"), self.roles, network.replicas, self.is_known)
        self.dispatch = Dispatch(
            self.events,
            edge,
            network.heartbeat_ms,
            network.lease_ms,
            network.progress_ms,
            keys.commander,
            network.bans,
            network.network_id,
            policy,
        )
        self.reports = RunReports(self.events, self.dispatch, self.blobs, network.network_id, policy)
        self.recent = Recent()
        self.telemetry = Telemetry(core, edge, self.dispatch, ledger, self.cache, machine, self.recent)
        self.payments: Payments | None = None
        self.keeper: snapshot.Keeper | None = None
        blocks = functools.partial(readahead.blocks, network.core_url, tls_ca=network.tls_ca)
        self.audit = Audit(self.world, ledger, settlement, blocks)
        self.handlers: dict[str, Callable[[str, Any], Awaitable[Any]]] = {}  # of the verbs, when it is open
        self._unsafe: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._background: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(cls, settings: Settings) -> "Central":
        """Connect, check that the broker is safe to trust, rebuild the world, begin to work.

        Raises StartError, BusError, LedgerError, LogError or SettlementError: one line each, nothing half-started.
        """
        network = settings.network
        _refuse_missing(network)
        _refuse_plain_text(network)
        if 0 < network.checkpoints_kept_s < SHORTEST_KEPT_S:
            raise StartError(
                f"network.json: checkpoints_kept_s is {network.checkpoints_kept_s}; expected {SHORTEST_KEPT_S} (four "
                "hours) or more, or 0 to keep them for ever"
            )
        await _check_brokers(network)
        ledger = Ledger(settings.state / "ledger.duckdb")
        core = edge = central = keys = None
        settlement = Settlement(network.chain_url)
        try:
            keys = await Keys.open(settings.keys, network.signer)
            _refuse_other_platform(network, keys.commander)
            core = await Bus.connect(network.core_url, name="cyx-central-core", tls_ca=network.tls_ca)
            edge = await Bus.connect(network.edge_url, name="cyx-central-edge", tls_ca=network.tls_ca)
            central = cls(settings, core, edge, ledger, settlement, keys)
            await central._build_door()
            await central._open()
            central._later(central._prepare())
            if kept_s := network.checkpoints_kept_s:
                central._later(Sweeper(core, central.events, ledger, kept_s).run())
            return central
        except BaseException:
            if central:
                await central.close()
            else:
                for each in (core, edge, keys):
                    if each:
                        await each.close()
                await settlement.close()
                await ledger.close()
            raise

    async def _open(self) -> None:
        network = self.settings.network
        known_seq, known_sha256 = self.ledger.place(subjects.EVENTS)
        self.events.applied.append(functools.partial(project, self.world, self.ledger, known_seq))
        self.events.quarantined.append(functools.partial(note, self.ledger, known_seq))
        self.events.room = self.ledger.room
        mint = await self._chain_ready()
        self.payments = Payments(
            self.events,
            self.settlement,
            self.keys.wallet,
            self.keys.platform,
            mint,
            network.escrow_program or LOCAL_PROGRAM,
            busy=self._many_ask,
        )
        path = self.settings.state / "world.snapshot"
        kept = await asyncio.to_thread(snapshot.read, path, known_seq) if known_seq else None
        self.keeper = snapshot.Keeper(path, self.world, self.ledger.flush)
        with self.ledger.filled():
            self.keeper.kept_seq = await self.events.open(known_seq, known_sha256, network.replicas, kept)
        self.keeper.look()
        self.events.applied.insert(0, self._react)  # before the ledger: somebody may wait for the word of it
        if self.door:
            self.door.open()  # it is known who is banned; who comes in now finds the rest ready in a moment
        await self.blobs.open(network.replicas)
        await self.telemetry.start(*self.ledger.place(subjects.TELEMETRY), network.replicas)
        rates = {"api": network.requests_per_s, "node": network.node_messages_per_s}
        self._edge.limit(
            {family: Rate(per_s=rate, burst=max(1.0, rate)) for family, rate in rates.items()}, self._flooded
        )
        await self.reports.start(self._edge)
        await self.dispatch.start()
        self.payments.resume()
        self.audit.begin()
        self._later(reconciliation.keep(self.events, self.audit))
        self._later(self.payments.keep_deadlines())
        self._later(self._keep_checking_brokers())
        self.handlers = Api(self).handlers()
        await self._edge.serve("0.1.0", "Cyx: train and serve models on other people's machines", self.handlers)

    async def _prepare(self) -> None:
        """What is needed soon, but not at once: a central that has just opened has something better to do."""
        await asyncio.sleep(PREPARED_AFTER_S)
        self.verifier.begin()

    def _many_ask(self) -> bool:
        return self._edge.requests_in_flight > MANY_REQUESTS

    async def _chain_ready(self) -> str:
        """The mint of this network; on a local chain it is made, and central gets lamports for fees."""
        network = self.settings.network
        if not await self.settlement.is_local():
            if not (network.mint and network.escrow_program):
                raise StartError(
                    f"{network.chain_url} is a public chain: name its token as mint, and where it has the escrow "
                    "program as escrow_program, in network.json"
                )
            await self.settlement.verify_program(network.escrow_program)
            return network.mint
        await self.settlement.fill(self.keys.wallet.address)
        return await self.settlement.create_mint(self.keys.wallet)

    async def _build_door(self) -> None:
        """Hear from now on who wants to come in: they are answered once the log has been read."""
        urls = without_passwords(self.settings.network.core_url)
        self._system = await Bus.connect(
            urls, name="cyx-central-door", credentials=as_system(self.keys), tls_ca=self.settings.network.tls_ca
        )
        network = self.settings.network
        self.door = Door(
            self._system,
            self.keys,
            self._admit,
            connections=network.connections,
            session_s=network.session_s,
        )
        await self.door.start()

    def _admit(self, proof: admission.Proof) -> admission.Admitted | admission.Refused:
        network, now_ms = self.settings.network, self.events.machine.wall_ms()
        banned = functools.partial(clients.banned_until_ms, self.world.clients, now_ms=now_ms)
        who = admission.decide(
            proof, self.world.nodes.get, network.operators, network.session_s, now_ms, banned, self.world.serves
        )
        if isinstance(who, admission.Refused):
            return who
        if self._edge.shut_out(who.identity):
            return admission.Refused(reason=f"{who.identity} has flooded this central a moment ago")
        registers = who.role == "node" and not who.deployment
        if registers and who.identity not in self.world.nodes:  # its registration stays in the log
            now_s = self.events.machine.monotonic_ms() / 1000
            if wait_ms := self._newcomers.wait_ms(proof.host, now_s):
                return admission.Refused(reason=f"too many new nodes come from {proof.host}; again in {wait_ms} ms")
        return who

    def _flooded(self, identity: str) -> None:
        """The broker passes on whatever it is sent: to be rid of a flood, its sender has to go."""
        if self.door:
            self._later(self.door.throw_out(identity))

    def roles(self, identity: str) -> frozenset[m.Role]:
        """What an identity may be now."""
        operators, now_ms = self.settings.network.operators, self.events.machine.wall_ms()
        banned = functools.partial(clients.banned_until_ms, self.world.clients, now_ms=now_ms)
        return admission.roles(identity, self.world.nodes.get, operators, now_ms, banned)

    def is_known(self, identity: str) -> bool:
        """Whether an identity is worth something: it paid for a job, completed one as a node, or is an operator."""
        world = self.world
        node = world.nodes.get(identity)
        if identity in world.payers or identity in self.settings.network.operators:
            return True
        return node is not None and node.jobs_completed > 0

    def _react(self, stored: Stored, record: m.Record) -> None:
        """New records only: tell watchers, wake whoever has something to do now."""
        about, event, kind = subjects.last_token(stored.subject), record.event, type(record.event)
        by_another = record.by != self.central_id
        if kind in SAID_ON["job"]:
            self._say(stored, record)
        our_turn = not by_another and kind is not m.Leased  # to give the room that this may have made
        if kind is not m.Submitted or cast("m.Submitted", event).job.serve:
            self.dispatch.happened(stored.subject, our_turn)
        elif our_turn:
            self.dispatch.waits()
        assert self.payments and self.keeper
        self.keeper.look()
        if kind not in SAID_ON["job"]:
            if kind is m.MintSigned:
                self.payments.reconcile_mint(about, by_another)
            elif kind is m.PayoutsReleased:
                self.payments.resume()
            elif kind is m.ClientBanned and self.door and about not in self.settings.network.operators:
                self._later(self.door.throw_out(about))
            elif kind is m.NodeBanned and self.door:
                self._later(self._shut_out(self.door, about))
            return
        if kind is m.Settled or kind is m.Refunded:
            self.audit.ended(about)
        if kind is m.Rejected or kind is m.CheckGivenUp:
            level = logging.INFO if isinstance(event, m.CheckGivenUp) and not event.drawn else logging.ERROR
            log.log(level, "check of %s: %s", about, segments.in_words(self.world.jobs[about]))
        self.payments.reconcile(about, by_another)
        job = self.world.jobs[about]
        if kind in STOPPING and job.attempts and not job.current:
            self._later(self.dispatch.stop_run(about, job.attempts[-1], job.error or ""))
        if job.job.serve and job.attempts and not job.current and self.door and kind in (*STOPPING, m.LeaseLost):
            grace_s = 0 if kind is m.LeaseLost else job.job.serve.drain_s + STOPS_WITHIN_S
            self._later(self._no_more_answers(self.door, job.attempts[-1], job.job_id, grace_s))

    def _say(self, stored: Stored, record: m.Record) -> None:
        """Tell who watches a job what happened to it.

        Its first event is only kept for who asks: nobody watches a job before it is there, and who does then asks for
        what was before. With the whole job in it, telling it took a tenth of what a submission costs central.
        """
        about, kind = subjects.last_token(stored.subject), type(record.event)
        update = m.Update(
            job_id=about,
            source="event",
            seq=stored.seq,
            at_ms=record.at_ms,
            kind=kind.__name__,
            data=cast("dict[str, Any]", record.event),  # encoded, it is the same
        )
        if kind is m.Submitted:  # nobody has anything of this job in a cache yet
            self.recent.begin(update, len(stored.payload))
        else:
            self.recent.add(update)
            if isinstance(self.cache, MemoryCache):
                self.cache.forget(job_status(about))
                broadcast(self._edge, update)
            else:
                self._later(self._tell(update))

    async def _shut_out(self, door: Door, node_id: str) -> None:
        await door.throw_out(node_id)
        with contextlib.suppress(CyxError):  # else its leases end when it has been silent for long
            await self.dispatch.shut_out(node_id)

    async def _no_more_answers(self, door: Door, last: jobs.Attempt, job_id: str, grace_s: float) -> None:
        """The lease of a replica is over: it may answer what it has taken, and then its connection ends."""
        await asyncio.sleep(grace_s)
        await door.throw_out(replica_id(last.node_id, job_id, last.number))

    async def _tell(self, update: m.Update) -> None:
        await self.cache.delete(job_status(update.job_id))
        broadcast(self._edge, update)

    def _later(self, work) -> None:  # type: ignore[no-untyped-def]
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _keep_checking_brokers(self) -> None:
        """One that was away at the start, or came back with another configuration, is found too."""
        while True:
            await asyncio.sleep(CHECK_BROKERS_EVERY_S)
            try:
                await _check_brokers(self.settings.network)
            except StartError as error:
                self._unsafe.set_result(str(error))
                return
            except BrokerError as error:
                log.warning("%s", error)

    def over_limit_ms(self, identity: str, cost: float = 1.0) -> int:
        """0 when who asks may go on (and is charged for it), else how long to wait; one count for NATS and HTTP."""
        return self._edge.over_limit_ms("api", identity, cost)

    def unwell(self) -> str:
        """Why this central cannot do its work now; empty when it can."""
        links = {"the event log": self._core, "clients and nodes": self._edge}
        if lost := [name for name, bus in links.items() if not bus.connected]:
            return f"no link to the broker, for {' and '.join(lost)}"
        ends = (self.events.broken, self.ledger.broken, self._unsafe)
        return next((end.result() for end in ends if end.done()), "")

    async def failed(self) -> None:
        """Wait until this central cannot go on. Raises StartError: a new start reads the log afresh."""
        ends = {self.events.broken, self.ledger.broken, self._unsafe}
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        raise StartError(f"{done.pop().result()}; this central ends")

    async def close(self) -> None:
        """Stop hearing, deciding and writing, in this order."""
        if self._system:
            await self._system.close()
        await self._edge.close()
        await self.dispatch.close()
        if self.payments:
            await self.payments.close()
        if self.keeper:
            await self.keeper.close()
        await self.verifier.close()
        for task in self._background:
            task.cancel()
        await self._core.close()
        await self.ledger.close()
        await self.cache.close()
        await self.settlement.close()
        await self.keys.close()


def _refuse_missing(network: NetworkFile) -> None:
    needed = ("core_url", "edge_url", "monitor_url", "chain_url")
    if missing := [name for name in needed if not getattr(network, name)]:
        raise StartError(f"network.json: central needs {', '.join(needed)}; missing: {', '.join(missing)}")


def _refuse_plain_text(network: NetworkFile) -> None:
    """Every address in network.json, before any of them hears a password. Raises TlsError."""
    for name in ("core_url", "edge_url", "node_url", "client_url", "monitor_url", "chain_url", "redis_url"):
        tls.refuse_plain_text(getattr(network, name), f"network.json: {name}")


def _refuse_other_platform(network: NetworkFile, commander: Commander) -> None:
    """Nodes would take no command from here."""
    key = commander.platform_key
    if network.platform_key not in ("", key):
        raise StartError(
            f"network.json: platform_key is {network.platform_key}, but the public key of central.key is {key}; "
            "use the central.key of this network, or correct the setting here and for its nodes"
        )
    if network.network_id != commander.network_id:
        raise StartError(
            f"network.json: network_id is {network.network_id!r}, but the signer's is {commander.network_id!r}; "
            "give both the same"
        )


async def _check_brokers(network: NetworkFile) -> None:
    """Every broker that answers must write to disk before it acknowledges.

    Raises StartError naming one that does not, BrokerError when none answers. Of a cluster, some may be away.
    """
    urls, ca = network.monitor_url.split(","), network.tls_ca
    found = await asyncio.gather(*(asyncio.to_thread(syncs_always, url, ca) for url in urls), return_exceptions=True)
    for url, answer in zip(urls, found, strict=True):
        if answer is False:
            raise StartError(
                f"the broker at {url} acknowledges before it writes to disk: "
                "set jetstream.sync_interval to always and restart it"
            )
    silent = [answer for answer in found if isinstance(answer, BaseException)]
    if len(silent) == len(urls):
        raise silent[0]
    for error in silent:
        log.warning("%s; it is checked when it is back", error)
