"""`python -m cyxnode`: read the network's folder, measure the machine, join, work until stopped."""

import signal

if __name__ == "__main__":
    # until it can stop in order there is nothing to put in order: Ctrl-C ends it without a word, not with the
    # traceback of whatever module is just being read
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import NoReturn

from cyxcore.errors import CyxError
from cyxnet import amounts, config, lifetime, tls
from cyxnet.bus import Bus, NotAdmitted
from cyxnet.credentials import Credentials, as_node
from cyxnet.identity import ed25519_key
from cyxnode import hardware
from cyxnode.agent import ROOM_AGAIN_BYTES, Agent, Settings
from cyxnode.devicepool import POLICIES, Device, chosen
from cyxnode.errors import NodeError
from cyxnode.home import Home, open_home, running, slug
from cyxnode.process import Launch, Pool

EXAMPLE = """example:
  cyx up                                           a network on this machine, with one node
  python -m cyxnode --name desk --memory 8GB       one more, that lends it 8 GB of memory
  python -m cyxnode why --name desk                why it gets the jobs that it gets, and no others
"""
DRAIN, UNDRAIN = signal.SIGUSR1, signal.SIGUSR2
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
SMALLEST_MEMORY_BYTES = 64 * 10**6


def parse_bytes(text: str) -> int:
    """A size as people write it ("4GB", "512 MiB") in bytes."""
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,6})?)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] == "i":
        raise argparse.ArgumentTypeError(f"expected a size such as 4GB or 512MiB, got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def parse_memory(text: str) -> int:
    size = parse_bytes(text)
    if size < SMALLEST_MEMORY_BYTES:
        raise argparse.ArgumentTypeError(f"expected at least 64MB, got {text!r}")
    return size


def parse_price(text: str) -> int:
    """CYX an hour in base units; 0 is a price too."""
    if re.fullmatch(r"0+(\.0+)?", text):
        return 0
    try:
        return amounts.parse(text, "price per hour")
    except amounts.AmountError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_name(text: str) -> str:
    try:
        slug(text)
    except CyxError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text[:100]


def parse_key(text: str) -> str:
    """A public key that signatures prove something for."""
    try:
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise ValueError(f"got {text[:80]!r}")
        ed25519_key(bytes.fromhex(text))
    except ValueError as error:
        what = "expected a platform's public key, 64 hex digits, as cyx id show --central shows it"
        raise argparse.ArgumentTypeError(f"{what}: {error}") from None
    return text


def parse_runs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1024, got {text!r}")
    return int(text)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cyxnode: error: {message} (see python -m cyxnode --help)\n")


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="cyxnode",
        description="Lend this machine to a Cyx network: take training runs, train them, be paid for the models.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "say why this machine's node (--name) gets the jobs that it gets, and end"
    made.add_argument("command", nargs="?", choices=["why"], metavar="why", help=what)
    made.add_argument("--dir", type=Path, default=config.DEFAULT_FOLDER, help="the network's folder (.cyx)")
    made.add_argument("--name", type=parse_name, help="of this node; default: the first free of node-1, node-2, …")
    made.add_argument("--url", help="tls://host:port of the broker, instead of the folder's")
    made.add_argument("--ca", type=Path, metavar="FILE", help="who signed the broker's certificate (PEM)")
    made.add_argument(
        "--platform-key", type=parse_key, metavar="HEX", help="whose commands it takes; else the folder's"
    )
    made.add_argument("--max-runs", type=parse_runs, metavar="N", help="runs at a time (one for each GPU; 1 without)")
    made.add_argument(
        "--gpus", metavar="LIST", help="to lend, as nvidia-smi numbers them: 0,2 or their uuids; none (all)"
    )
    made.add_argument(
        "--gpu-policy", choices=list(POLICIES), default="least-utilized", help="which free GPU a job gets"
    )
    made.add_argument("--region", default="", help="where this machine is, e.g. eu-west")
    made.add_argument("--price-per-hour", "--price", type=parse_price, default=0, metavar="CYX", help="asked for (0)")
    made.add_argument("--memory", type=parse_memory, metavar="SIZE", help="lend at most this much, e.g. 4GB")
    made.add_argument("--cache", type=parse_bytes, default=10 * 10**9, metavar="SIZE", help="of data (10GB)")
    made.add_argument("--nice", type=int, default=0, choices=range(20), metavar="0-19", help="of training (0)")
    made.add_argument("--guard-stdin", action="store_true", help="end when standard input ends")
    drains = made.add_mutually_exclusive_group()
    drains.add_argument("--drain", action="store_true", help="have the running node (--name) take no new runs, and end")
    drains.add_argument("--undrain", action="store_true", help="have it take runs again, and end")
    made.add_argument("--json", action="store_true", help="say it in JSON, on a terminal too")
    made.add_argument("--verbose", action="store_true", help="log what training processes write to stderr")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.command and (args.drain or args.undrain):
        parser().error("why only asks: it goes with neither --drain nor --undrain")
    if args.drain or args.undrain:
        return drain(args)
    if args.command == "why":
        return tell_why(args)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if args.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # the agent says itself when the broker is away
    begun_s = time.perf_counter()
    for number in (DRAIN, UNDRAIN):
        signal.signal(number, signal.SIG_IGN)  # until there is something to drain, it must not end the node
    try:
        home = open_home(args.dir, args.name)
        try:
            return lifetime.run(serve(args, home, begun_s))
        except NotAdmitted as error:
            raise NodeError(f"{error}; which, and until when: python -m cyxnode why --name {home.name}") from None
        finally:
            home.close()
    except CyxError as error:
        print(f"cyxnode: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the handlers stood
        return 130


def drain(args: argparse.Namespace) -> int:
    """Tell a running node of this machine to drain, or to take runs again. Returns the exit status."""
    try:
        name, pid = running(args.dir, args.name)
        os.kill(pid, DRAIN if args.drain else UNDRAIN)
    except (CyxError, OSError) as error:
        print(f"cyxnode: error: {error}", file=sys.stderr)
        return 1
    what = "takes no new runs; what it runs goes on to its end" if args.drain else "takes runs again"
    print(f"{name} (process {pid}) {what}")
    return 0


def tell_why(args: argparse.Namespace) -> int:
    """Say why a node of this machine gets the jobs that it gets. Returns the exit status."""
    from cyxnode import why  # a node that starts need not read what only this uses

    logging.getLogger("nats").setLevel(logging.CRITICAL)
    try:
        network = config.read_network(args.dir) if args.url is None else None
        url = network.client_url if network else args.url
        ca = read_ca(args.ca) or (network.tls_ca if network else "")
        session_s = network.session_s if network else config.SESSION_S
        reply, here = asyncio.run(why.ask(args.dir, args.name, url, ca, session_s, ROOM_AGAIN_BYTES))
    except CyxError as error:
        print(f"cyxnode: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(why.as_json(reply, here) if args.json else why.in_words(reply, here, time.time_ns() // 1_000_000))
    return 0


class Stopper:
    """Ends the node on request: in order once the agent works, by giving up before that."""

    def __init__(self) -> None:
        self.agent: Agent | None = None
        self.drain_first = False  # asked for before the agent works
        self._starting = asyncio.current_task()

    def stop(self, reason: str) -> None:
        if self.agent:
            self.agent.stop(reason)
        elif self._starting:
            self._starting.cancel(reason)

    def drain(self, drain: bool) -> None:
        if self.agent:
            self.agent.drain(drain)
        else:
            self.drain_first = drain


async def serve(args: argparse.Namespace, home: Home, begun_s: float) -> int:
    """Work until a signal, or the end of stdin when that is guarded. Returns the exit status."""
    loop, stopper = asyncio.get_running_loop(), Stopper()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopper.stop, f"the node got {number.name}")
    loop.add_signal_handler(DRAIN, stopper.drain, True)
    loop.add_signal_handler(UNDRAIN, stopper.drain, False)
    if args.guard_stdin:
        threading.Thread(target=guard_stdin, args=(loop, stopper), daemon=True).start()
    try:
        return await join(args, home, stopper, begun_s)
    except asyncio.CancelledError:
        logging.info("stopped before it was ready")
        return 0


async def join(args: argparse.Namespace, home: Home, stopper: Stopper, begun_s: float) -> int:
    """Join the network and work. Connecting, measuring and warming up go on at the same time."""
    url, session_s, ca, network_id, platform_key = args.url, config.SESSION_S, read_ca(args.ca), "", ""
    if url is None:
        network = config.read_network(args.dir)
        url, session_s, ca = network.node_url, network.session_s, ca or network.tls_ca
        network_id, platform_key = network.network_id, network.platform_key
    platform_key = args.platform_key or platform_key
    pool = Pool(Launch(work_folder=home.work_folder, niceness=args.nice))
    try:
        pool.warm_up()
        bus = await Bus.connect(
            url,
            name=home.node_id,
            credentials=as_node(home.key, home.node_id),
            tls_ca=ca,
            session_s=session_s,
            patience_s=math.inf,  # a node has nothing to do but wait for a central
        )
        try:
            if home.key_is_new:
                key = home.folder / "key"
                logging.info("the key in %s is new: back it up with `cyx id export --node %s`", key, home.folder.name)
            devices = await asyncio.to_thread(offered, args.gpus)
            offer_gpus = [device.index for device in devices]
            facts = await asyncio.to_thread(hardware.measure, args.memory, offer_gpus)
            ready = (await pool.wait_warm()).ready
            pool.keep_full()  # not before: the machine was measured by BLAS
            logging.info(
                "training process warm in %.0f ms, isolated: %s, kernels: %s",
                ready.warm_ms,
                str(ready.isolated).lower(),
                ready.isa,
            )
            settings = Settings(
                max_runs=args.max_runs or max(1, len(devices)),
                region=args.region[:64],
                price_per_hour_base_units=args.price_per_hour,
                offer_bytes=args.memory,
                cache_bytes=args.cache,
                devices=devices,
                gpu_policy=args.gpu_policy,
            )

            def said_ready() -> None:
                say_ready(args.json, home, begun_s)

            def connect(replica: Credentials) -> Awaitable[Bus]:
                return Bus.connect(
                    url, name=replica.id, credentials=replica, tls_ca=ca, session_s=session_s, renews=False
                )

            agent = Agent(home, bus, pool, facts, settings, said_ready, network_id, connect, platform_key)
            stopper.agent = agent
            agent.drain(stopper.drain_first)
            return await agent.run()
        finally:
            await bus.close()
    finally:
        await pool.close()


def offered(said: str | None) -> tuple[Device, ...]:
    """The NVIDIA devices that jobs get: what --gpus says, else what CUDA_VISIBLE_DEVICES leaves of them, else all."""
    found = hardware.devices()
    if said is None and found:  # without a driver, a variable that somebody set means nothing
        said = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen(found, said)


def read_ca(path: Path | None) -> str:
    """The authority to trust, in PEM; nothing where none is named. Raises ConfigError."""
    if path is None:
        return ""
    try:
        text = path.read_text()
    except OSError as error:
        raise config.ConfigError(f"--ca {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    try:  # an empty file would be the system's authorities, which nobody named
        tls.context(text or "nothing")
    except tls.TlsError:
        raise config.ConfigError(
            f"--ca {path}: expected a certificate in PEM; ask for it where the network is"
        ) from None
    return text


def say_ready(as_json: bool, home: Home, begun_s: float) -> None:
    """One line on stdout: a program waits for it, or a person reads it."""
    ready_ms = round((time.perf_counter() - begun_s) * 1000)
    if as_json or not sys.stdout.isatty():
        said = {"ready": True, "node_id": home.node_id, "name": home.name, "ready_ms": ready_ms}
        print(json.dumps(said), flush=True)
    else:
        print(f"{home.name} is ready as {home.node_id} after {ready_ms} ms; stop it with Ctrl-C", flush=True)


def guard_stdin(loop: asyncio.AbstractEventLoop, stopper: Stopper) -> None:
    """Ends the node when the process that started it is gone: its end of our stdin closes then."""
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stopper.stop, "standard input ended")


if __name__ == "__main__":
    sys.exit(main())
