"""`python -m cyxnode.serving FILE`, which `cyx serve FILE` becomes: read the model, listen, answer until stopped."""

import signal

if __name__ == "__main__":
    # until it can stop in order there is nothing to put in order
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cyxcore.errors import CyxError, MissingExtra, SpecError
from cyxnet import tls
from cyxnet.serveoptions import add_options
from cyxnode.serving import loop


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cyx serve: {message} (see cyx serve --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="cyx serve", description="Answer with a model over HTTP; no network takes part.")
    add_options(parser)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--guard-stdin", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="cyx serve: %(message)s")
    try:
        with loop.runner() as runner:
            return runner.run(serve(args))
    except KeyboardInterrupt:
        return 130
    except (CyxError, OSError) as error:
        if args.debug:
            raise
        if args.json:
            code = error.code if isinstance(error, CyxError) else "internal"
            print(json.dumps({"kind": "error", "data": {"code": code, "message": str(error)}}), flush=True)
        print(f"cyx: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | TypeError | MissingExtra | OSError) else 1


async def serve(args: argparse.Namespace) -> int:
    """Until SIGINT or SIGTERM; what is being answered then is answered. Returns the exit status."""
    begun_s = time.perf_counter()
    app, httpserver = _http()
    from cyxnode.serving import loading
    from cyxnode.serving.asgi import Limits
    from cyxnode.serving.gate import Gate, read_keys

    if certificate := _certificate(args):
        tls.check_pem(*certificate)  # before a model is read
    httpserver.refuse_plain_text(args.host, certificate)
    gate = Gate(read_keys(args.api_key_file))
    if gate.is_open and not httpserver.is_loopback(args.host):
        raise SpecError(f"--host {args.host}: others reach this; name those who may ask with --api-key-file")
    served = loading.load(args)
    loop.settle()
    stopped = asyncio.Event()
    try:
        await served.start()
        front = app.Front(served, gate, Limits(body_bytes=args.max_body), args.behind_proxy)
        server = await httpserver.Server.start(front, args.host, args.port, certificate, close_s=args.drain_s)
        running = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            running.add_signal_handler(number, _stop, stopped)
        if args.guard_stdin:
            running.add_reader(0, _stdin, stopped)
        _say_ready(args, served, server.url, time.perf_counter() - begun_s)
        await stopped.wait()
        await server.close()
    finally:
        await served.close()
    return 0


def _http() -> tuple[Any, Any]:
    """The application and the server under it. Raises MissingExtra."""
    try:
        return importlib.import_module("cyxnode.serving.app"), importlib.import_module("cyxnet.httpserver")
    except ModuleNotFoundError as error:
        raise MissingExtra(f"cyx serve needs {error.name}; run: pip install 'cyx[http]'") from None


def _stop(stopped: asyncio.Event) -> None:
    if stopped.is_set():
        os._exit(130)  # asked twice
    stopped.set()


def _stdin(stopped: asyncio.Event) -> None:
    if not os.read(0, 4096):
        asyncio.get_running_loop().remove_reader(0)
        stopped.set()


def _certificate(args: argparse.Namespace) -> tuple[Path, Path] | None:
    if bool(args.cert) != bool(args.key):
        raise SpecError("--cert and --key belong together")
    return (args.cert, args.key) if args.cert else None


def _say_ready(args: argparse.Namespace, served: Any, url: str, took_s: float) -> None:
    if args.json:
        data = {"url": url, "model": served.name, "ready_ms": round(took_s * 1000)}
        if why_no_chat := getattr(served, "why_no_chat", ""):
            data["why_no_chat"] = why_no_chat
        said = {"kind": "ready", "data": data}
        print(json.dumps(said), flush=True)
    elif not args.quiet:
        print(f"{served.name} answers at {url} after {took_s * 1000:.0f} ms; stop it with Ctrl-C", flush=True)
        print(f"try  curl {url}/v1/model", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
