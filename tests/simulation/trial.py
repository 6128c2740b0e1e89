"""One seed: a network of two centrals, five nodes and some clients, everything that goes wrong with it, and its end."""

import contextlib
import gc
import hashlib
import logging
import random
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet import subjects
from cyxnet.identity import Identity
from cyxnet.wallet import Wallet
from cyxnode import events as e
from tests.simulation import wire
from tests.simulation.answers import Answers
from tests.simulation.centrals import CENTRAL_SEED, HEARTBEAT_MS, VOUCHED, CentralProcess, shrink
from tests.simulation.chain import Chain
from tests.simulation.cheats import Cheats
from tests.simulation.checks import Checks
from tests.simulation.clients import DATASET, Client
from tests.simulation.faults import FAR_CLOCK_MS, HOUR_MS, Faults
from tests.simulation.followers import Followers
from tests.simulation.intruder import Intruder
from tests.simulation.loop import ProcessLoop, Scheduler
from tests.simulation.nodes import Node, digest, wallet
from tests.simulation.replicas import Wishes
from tests.simulation.strange import Strange
from tests.simulation.wire import Core, Edge, Process

CENTRALS, NODES, CLIENTS = 2, 5, 4
CLOCK_JUMPS_MS = (-HOUR_MS, HOUR_MS, -30_000, 30_000)  # somebody sets it
CLOCK_SLEW_MS, CLOCK_SLEW_STEPS = 2_500, 5  # or it is put right in steps, each too small to look like a pause
FAULTS_UNTIL_S = 20.0
ENDS_WITHIN_S = 300.0  # after the last fault every job must have ended
MONEY = 10**10


class Result(Struct, kw_only=True):
    """What one seed came to."""

    seed: int
    failure: str | None
    trace_hash: str
    steps: int
    virtual_s: float
    faults: dict[str, int]
    events: dict[str, int]
    trace: list[str]
    ends: dict[str, int] = {}


class Network:
    """Everything of one seed. The centrals are production's; the rest is what they have to live with."""

    def __init__(self, seed: int, keep_trace: bool = False):
        dice = random.Random(seed)
        random.seed(seed)  # production's back-offs to the chain draw from the common dice
        self.scheduler = Scheduler(dice)
        wire.open_broker(self.scheduler)
        self.faults = Faults(dice, self.scheduler, FAULTS_UNTIL_S)
        self.wishes = Wishes(seed)
        self.answers = Answers(seed)
        self.followers = Followers(seed)
        self.cheats = Cheats(seed)
        if self.faults.weeks_pass_at_s is not None:  # a ban would be over by itself
            self.cheats.cheater = None
        if self.wishes.any and self.answers.lies:  # replicas that hang there are what is looked for
            self.faults.halt_ignored = 0.0
        self.hash = hashlib.blake2b(digest_size=8)
        self.lines: list[str] | None = [] if keep_trace else None
        self.edge = Edge(self.scheduler, self.faults)
        self.core = Core(self.scheduler, self.faults)
        self.chain = Chain(self.scheduler, self.faults, AUTHORITY)
        self.checks = Checks(self)
        self.core.stored = self.checks.stored
        self.edge.heard, self.edge.came = self.checks.heard, self.checks.came
        self.edge.asked, self.edge.answered = self.checks.asked, self.checks.replica_answered
        self.intruder = Intruder(seed, self)
        self.edge.commanded = self.intruder.saw
        self.strange = Strange(seed, self)
        self.chain.received, self.chain.executed = self.checks.received, self.checks.executed
        self.wallets = [wallet(200 + number).address for number in range(NODES)]
        self.centrals: dict[str, CentralProcess] = {}
        self.nodes: dict[int, Node] = {}
        self.lives = 0
        self.graveyard: list[Process] = []
        self.given: dict[str, int] = {}
        self._store_dataset()
        for number in range(CENTRALS):
            self.start_central(f"central-{'ab'[number]}")
        for number in range(NODES):
            self.start_node(number)
        self.clients = [Client(self._loop(f"client-{number}"), self, number) for number in range(CLIENTS)]
        for client in self.clients:
            address = client.client.purse.address
            self.given[address] = MONEY
            self.chain.give(address, MONEY)
            self._begin(client, client.main())
        self.chaos = ProcessLoop(self.scheduler, "chaos")
        self.scheduler.at(self.chaos, dice.uniform(1, 4), self._misfortune)
        self.intruder.begin()
        self.strange.begin()

    def trace(self, kind: str, text: str, payload: bytes = b"") -> None:
        line = f"{self.scheduler.now_s:10.4f} {kind:6} {text} {wire.fingerprint(payload):08x}"
        self.hash.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    # -- processes -----------------------------------------------------------------------------------

    def _loop(self, name: str) -> ProcessLoop:
        dice = self.scheduler.dice
        return ProcessLoop(self.scheduler, name, dice.uniform(0.995, 1.005), dice.uniform(0, 1e6))

    def _begin(self, process: Process, main: Any) -> None:
        async def watched() -> None:
            try:
                await main
            except Exception as error:
                self.scheduler.fail(f"{process.name}: {type(error).__name__}: {error}")

        self.scheduler.at(process.loop, self.scheduler.now_s, process.loop.create_task, watched())

    def start_central(self, name: str) -> None:
        central = CentralProcess(self._loop(name), self)
        self.centrals[name] = central
        self.graveyard.append(central)
        self._begin(central, central.main())

    def restart_central(self, name: str) -> None:
        wait_s = 0.2 + self.scheduler.dice.expovariate(1 / 3)
        self.scheduler.at(self.chaos, self.scheduler.now_s + wait_s, self.start_central, name)

    def start_node(self, number: int) -> None:
        self.lives += 1
        session = f"{number:02x}{self.lives:030x}"
        node = Node(self._loop(f"node-{number}"), self, number, 1 + number % 2, session)
        self.nodes[number] = node
        self.graveyard.append(node)
        self._begin(node, node.main())

    def node_ended(self, node: Node) -> None:
        """It left by itself: its operator starts it again."""
        self.trace("exit", node.name)
        self.scheduler.at(self.chaos, self.scheduler.now_s + 1.0, self._node_again, node)

    def _node_again(self, node: Node) -> None:
        if node.loop.alive:
            node.loop.kill()
            self.start_node(node.number)

    def live_centrals(self) -> list[CentralProcess]:
        return [each for each in self.centrals.values() if each.loop.alive and each.ready]

    def central_called(self, central_id: str) -> CentralProcess | None:
        for each in self.centrals.values():
            if each.central is not None and each.central.central_id == central_id and each.loop.alive:
                return each
        return None

    def _store_dataset(self) -> None:
        manifest = m.ArtifactManifest(sha256=digest(DATASET), size=len(DATASET), chunks=[digest(DATASET)])
        self.core.store([(subjects.chunk(digest(DATASET)), DATASET, 0)])
        self.core.store([(subjects.manifest(digest(DATASET)), msgspec.json.encode(manifest), 0)])

    # -- misfortune ----------------------------------------------------------------------------------

    def _misfortune(self) -> None:
        dice, faults = self.scheduler.dice, self.faults
        if not faults.active:
            for process in (*self.centrals.values(), *self.nodes.values()):
                process.deaf = process.mute = False
            return
        kind = dice.choices(list(MISFORTUNES), [weight for weight, _ in MISFORTUNES.values()])[0]
        faults.count(kind)
        self.trace("chaos", kind)
        MISFORTUNES[kind][1](self)
        self.scheduler.at(self.chaos, self.scheduler.now_s + dice.expovariate(1 / 2), self._misfortune)

    def _some_central(self) -> CentralProcess:
        return self.scheduler.dice.choice(list(self.centrals.values()))

    def _some_node(self) -> Node:
        return self.scheduler.dice.choice(list(self.nodes.values()))

    def _kill_node(self) -> None:
        self._kill(self._some_node())

    def kill_after(self, node: Node, wait_s: float) -> None:
        self.faults.count("kill_holder")
        self.scheduler.at(self.chaos, self.scheduler.now_s + wait_s, self._kill, node)

    def _kill(self, node: Node) -> None:
        if node.loop.alive:
            node.loop.kill()
            wait_s = 0.5 + self.scheduler.dice.expovariate(1 / 4)
            self.scheduler.at(self.chaos, self.scheduler.now_s + wait_s, self.start_node, node.number)

    def _cut_off(self) -> None:
        """A partition between one process and the broker, in one direction or both."""
        process: Process = self.scheduler.dice.choice([self._some_central(), self._some_node()])
        kind = self.scheduler.dice.randrange(3)
        process.deaf, process.mute = kind != 0, kind != 1
        heals_s = self.scheduler.now_s + self.scheduler.dice.expovariate(1 / 6)
        self.scheduler.at(self.chaos, heals_s, self._heal, process)

    @staticmethod
    def _heal(process: Process) -> None:
        process.deaf = process.mute = False

    def _stop_for_a_while(self) -> None:
        process: Process = self.scheduler.dice.choice([self._some_central(), self._some_node()])
        process.loop.pause(self.scheduler.dice.expovariate(1 / 4))

    def _elect(self) -> None:
        self.core.away_until_s = self.scheduler.now_s + self.scheduler.dice.expovariate(1 / 1.5)

    def _jump_clock(self) -> None:
        central = self._some_central()
        if self.wishes.clocks_agree:
            return
        if self.scheduler.dice.random() < 0.5:
            self._slew(central, CLOCK_SLEW_STEPS)
        else:
            central.wall_error_ms += self.scheduler.dice.choice(CLOCK_JUMPS_MS)

    def _slew(self, central: CentralProcess, steps: int) -> None:
        central.wall_error_ms += CLOCK_SLEW_MS
        if steps > 1:
            self.scheduler.at(self.chaos, self.scheduler.now_s + 1.3, self._slew, central, steps - 1)

    def _ban(self) -> None:
        """An operator bans a node, for longer than any clock is ahead; at most two: somebody is left to work."""
        central, node = self._some_central(), self._some_node()
        if self.wishes.limit_base_units and node.node_id in VOUCHED:  # somebody is left to work on what is worth much
            return
        if self.faults.weeks_pass_at_s is not None:  # it would be over by itself
            return
        if not central.ready or central.central is None or len(self.checks.banned_at_s) >= 2:
            return
        until_ms = central.wall_ms() + FAR_CLOCK_MS + 24 * HOUR_MS
        event = m.NodeBanned(until_ms=until_ms, reason="the operator bans it")
        log, node_id = central.central.events, node.node_id

        async def say() -> None:
            with contextlib.suppress(CyxError):  # an operator asks again, or does not
                await log.record(subjects.node_event(node_id), lambda: event if node_id in log.world.nodes else None)

        self.scheduler.at(central.loop, self.scheduler.now_s, lambda: central.loop.create_task(say()))

    def _drain_node(self) -> None:
        """An operator looks after a node for a while, or for the rest of its life."""
        node = self._some_node()
        if not node.loop.alive:
            return
        self.scheduler.at(node.loop, self.scheduler.now_s, node.tell, e.DrainAsked(True))
        if self.scheduler.dice.random() < 0.8 or node.number == 0:  # somebody is left to work
            back_s = self.scheduler.now_s + self.scheduler.dice.expovariate(1 / 8)
            self.scheduler.at(node.loop, back_s, node.tell, e.DrainAsked(False))

    def _stop_node_gracefully(self) -> None:
        node = self._some_node()
        if node.loop.alive and node.state.heartbeat_ms:
            self.scheduler.at(node.loop, self.scheduler.now_s, node.tell, e.ShutdownAsked("the operator stops it"))

    # -- life ----------------------------------------------------------------------------------------

    def quiet(self) -> bool:
        """Everything has ended that was acknowledged, and everybody has read it."""
        events = len(self.core.streams[subjects.EVENTS].messages)
        return (
            self.scheduler.now_s > FAULTS_UNTIL_S + HEARTBEAT_MS / 1000
            and all(client.done or self._watches_a_replica(client) for client in self.clients)
            and not self.checks.open_jobs()
            and not self.checks.not_banned()
            and len(self.live_centrals()) == CENTRALS
            and all(each.central and each.central.world.seq == events for each in self.live_centrals())
        )

    def _watches_a_replica(self, client: Client) -> bool:
        """Who watches what is to go on for an hour is not waited for."""
        return client.wish == "watch" and self.checks.goes_on(client.job_id)

    def _stop_when_quiet(self) -> None:
        self.checks.silent_replicas()
        self.checks.halting_runs()
        self.scheduler.stopped |= self.quiet()
        self.scheduler.at(self.chaos, self.scheduler.now_s + 0.25, self._stop_when_quiet)

    def run(self) -> None:
        self.scheduler.at(self.chaos, FAULTS_UNTIL_S, self._stop_when_quiet)
        self.scheduler.run_until(FAULTS_UNTIL_S + ENDS_WITHIN_S)
        if self.scheduler.failure is None and (left := self.checks.not_banned()):
            self.scheduler.fail(f"I21: {left} were found false, and nobody has banned them when all is over")
        if self.scheduler.failure is None and not self.quiet():
            self.scheduler.fail(f"I5: {self._stuck()}")
        if self.scheduler.failure is None:
            self.checks.at_the_end()

    def _stuck(self) -> str:
        """Who waits, and for what, when the time for everything to end is over."""
        found = self.checks.open_jobs()
        states = set()
        for process in self.live_centrals():
            assert process.central is not None
            world = process.central.world
            states |= {f"{job_id} is {world.jobs[job_id].status}" for job_id in found if job_id in world.jobs}
        waiting = [client.job_id for client in self.clients if not client.done]
        centrals = [process.name for process in self.live_centrals()]
        return (
            f"not everything ended within {ENDS_WITHIN_S:g} s after the last fault: open jobs {found} "
            f"({sorted(states)}), clients that wait {waiting}, centrals {centrals}"
        )

    def close(self) -> None:
        for process in (*self.graveyard, *self.clients):
            process.loop.bury()
        self.scheduler.forget()


MISFORTUNES: dict[str, tuple[int, Any]] = {
    "kill_central": (4, lambda network: network._some_central().crash("by misfortune")),
    "kill_node": (4, Network._kill_node),
    "cut_off": (4, Network._cut_off),
    "stop_for_a_while": (3, Network._stop_for_a_while),
    "leader_change": (2, Network._elect),
    "clock_jump": (3, Network._jump_clock),
    "graceful_stop": (1, Network._stop_node_gracefully),
    "drain": (2, Network._drain_node),
    "ban": (1, Network._ban),
}


def _authority() -> str:
    return Wallet(Identity(CENTRAL_SEED).child("wallet")).address


AUTHORITY = _authority()


def trial(seed: int, keep_trace: bool = False) -> Result:
    """Run one seed. The same seed gives the same trace_hash, in any process."""
    was_collecting = gc.isenabled()
    gc.disable()  # what dead processes leave is collected between seeds, not at some point within one
    try:
        with silence():
            return _trial(seed, keep_trace)
    finally:
        gc.collect(0)  # all that this seed made is young, and nobody has it any more
        if was_collecting:
            gc.enable()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without production's log. To say so costs as much as a hundred steps: who runs many seeds says it once."""
    before = logging.root.manager.disable
    if before >= logging.CRITICAL:
        yield
        return
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _trial(seed: int, keep_trace: bool) -> Result:
    with shrink():
        network = Network(seed, keep_trace)
        try:
            network.run()
        finally:
            network.close()
    ends: dict[str, int] = {}
    for central in list(network.centrals.values())[:1]:
        if central.central:
            for job in central.central.world.jobs.values():
                ends[job.status] = ends.get(job.status, 0) + 1
    return Result(
        seed=seed,
        failure=network.scheduler.failure,
        trace_hash=network.hash.hexdigest(),
        steps=network.scheduler.steps,
        virtual_s=network.scheduler.now_s,
        faults=dict(network.faults.counts),
        events=network.checks.kinds,
        trace=network.lines or [],
        ends=ends,
    )
