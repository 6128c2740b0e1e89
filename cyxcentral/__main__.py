"""python -m cyxcentral: run one central, or (`chain`) the embedded Solana chain of a local network."""

import argparse
import asyncio
import gc
import json
import logging
import sys
import time
from pathlib import Path

from cyxcore.errors import CyxError
from cyxnet import lifetime
from cyxnet.config import DEFAULT_FOLDER, read_network

# Python looks for cycles of garbage after so many new objects; by default 700, 10, 10, which takes a fifth of the time
# of a busy central, because what it keeps (the world) grows all the while and holds no cycles.
COLLECT_AFTER = (50_000, 5, 50)
SWITCH_INTERVAL_S = 0.0005  # so long the loop waits while the ledger's thread makes rows; by default 5 ms
EXAMPLE = """examples:
  python -m cyxcentral --dir .cyx          a central for the network of this folder
  python -m cyxcentral chain --dir chain   only the embedded chain
"""


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["chain"]:
        from cyxcentral import localchain

        return localchain.main(arguments[1:])
    parser = argparse.ArgumentParser(
        "python -m cyxcentral",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="folder of the network (default .cyx)")
    parser.add_argument("--state", type=Path, help="folder of this central's own ledger (default DIR/central)")
    parser.add_argument("--redis", metavar="URL", help="redis:// server for the cache (default: in memory)")
    parser.add_argument("--guard-stdin", action="store_true", help="end when standard input closes")
    parser.add_argument("--verbose", action="store_true", help="log what is decided")
    options = parser.parse_args(arguments)
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

    started = time.monotonic()
    network = read_network(options.dir)
    if options.redis:
        network.redis_url = options.redis
    central = await Central.start(
        Settings(network=network, keys=options.dir, state=options.state or options.dir / "central")
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # from here on: while a long log is read, nobody waits for the loop
    gc.freeze()  # what the log told stays for ever: no use in looking through it again and again
    ready_ms = round((time.monotonic() - started) * 1000, 1)
    said = {
        "ready": True,
        "central_id": central.central_id,
        "events": central.world.seq,
        "ready_ms": ready_ms,
        "loop": type(asyncio.get_running_loop()).__module__.split(".")[0],
    }
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
        await central.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
