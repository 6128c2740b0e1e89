"""python -m cyxcentral: run one central, or (`chain`) the embedded Solana chain of a local network."""

import argparse
import asyncio
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cyxcore.errors import CyxError, MissingExtra
from cyxnet import lifetime
from cyxnet.config import DEFAULT_FOLDER, NetworkFile, read_network, told_to_others, unknown_settings

if TYPE_CHECKING:
    from cyxcentral.central import Central
    from cyxnet.httpserver import Server

# Python looks for cycles of garbage after so many new objects; by default 700, 10, 10, which takes a fifth of the time
# of a busy central, because what it keeps (the world) grows all the while and holds no cycles.
COLLECT_AFTER = (50_000, 5, 50)
SWITCH_INTERVAL_S = 0.0005  # so long the loop waits while the ledger's thread makes rows; by default 5 ms
REDIS_VARIABLE = "CYX_REDIS_URL"  # of the environment: what stands in a command line, everybody on the machine reads
EXAMPLE = """examples:
  python -m cyxcentral --dir .cyx          a central for the network of this folder
  python -m cyxcentral --http 127.0.0.1:8080
  python -m cyxcentral chain --dir chain   only the embedded chain
"""


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["chain"]:
        from cyxcentral import localchain

        return localchain.main(arguments[1:])
    parser = argparse.ArgumentParser(
        "python -m cyxcentral",
        usage="python -m cyxcentral [OPTION …]",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="folder of the network (default .cyx)")
    parser.add_argument("--state", type=Path, help="folder of this central's own ledger (default DIR/central)")
    parser.add_argument("--redis", metavar="URL", help=f"server for the cache; with a password: {REDIS_VARIABLE}")
    parser.add_argument("--http", type=_address, metavar="HOST:PORT", help="serve HTTP there too; port 0: a free one")
    parser.add_argument("--http-cert", type=Path, metavar="FILE", help="certificate chain (PEM): HTTP over TLS")
    parser.add_argument("--http-key", type=Path, metavar="FILE", help="the key of the certificate (PEM)")
    parser.add_argument("--guard-stdin", action="store_true", help="end when standard input closes")
    parser.add_argument("--verbose", action="store_true", help="log what is decided")
    options = parser.parse_args(arguments)
    if bool(options.http_cert) != bool(options.http_key) or options.http_cert and not options.http:
        parser.error("--http, --http-cert and --http-key belong together")
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    gc.set_threshold(*COLLECT_AFTER)
    try:
        return lifetime.run(run(options))
    except CyxError as error:
        print(f"cyxcentral: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def run(options: argparse.Namespace) -> int:
    """Serve until a signal, or until standard input closes when it is guarded."""
    from cyxcentral.central import Central, Settings

    serve_http = http_front(options) if options.http else None
    started = time.monotonic()
    network = read_network(options.dir)
    for line in [*unknown_settings(options.dir), *told_to_others(options.dir)]:
        logging.getLogger(__name__).warning("%s", line)
    network.redis_url = redis_url(options.redis, network)
    central = await Central.start(
        Settings(network=network, keys=options.dir, state=options.state or options.dir / "central")
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # from here on: while a long log is read, nobody waits for the loop
    try:
        serving = await serve_http(central) if serve_http else None
    except BaseException:
        await central.close()
        raise
    gc.freeze()  # what the log told stays for ever: no use in looking through it again and again
    ready_ms = round((time.monotonic() - started) * 1000, 1)
    said = {
        "ready": True,
        "central_id": central.central_id,
        "events": central.world.seq,
        "ready_ms": ready_ms,
        "loop": type(asyncio.get_running_loop()).__module__.split(".")[0],
    }
    if serving:
        said["http_url"] = serving.url
    print(json.dumps(said), flush=True)
    stopped, failed = (
        asyncio.create_task(lifetime.until_stopped(options.guard_stdin)),
        asyncio.create_task(central.failed()),
    )
    try:
        done, _ = await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        stopped.cancel()
        failed.cancel()
        if serving:
            await serving.close()
        await central.close()
    return 0


def redis_url(option: str | None, network: NetworkFile) -> str:
    """Where the cache is: as the option says, else the environment, else network.json; empty for in memory."""
    return option or os.environ.get(REDIS_VARIABLE) or network.redis_url


def http_front(options: argparse.Namespace) -> "Callable[[Central], Awaitable[Server]]":
    """What serves HTTP as the options say, once there is a central. Raises MissingExtra, HttpError."""
    try:
        from cyxcentral.http.app import Front
        from cyxnet.httpserver import Server, refuse_plain_text
    except ImportError as error:
        raise MissingExtra(f"--http needs {error.name}; run: pip install 'cyx[http]'") from None
    host, port = options.http
    certificate = (options.http_cert, options.http_key) if options.http_cert else None
    refuse_plain_text(host, certificate)

    async def serve(central: "Central") -> "Server":
        await central.access.open()
        return await Server.start(Front(central), host, port, certificate)

    return serve


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, as 127.0.0.1:8080, got {text[:60]!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


if __name__ == "__main__":
    sys.exit(main())
