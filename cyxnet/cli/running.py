"""Run a command: its event loop, its signals, and its errors as one line and an exit code."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import ModuleType

from cyxcore.errors import CyxError, MissingExtra
from cyxcore.paths import OF_THE_NAME, shown
from cyxnet.bus import ApiError, BusError, NotAdmitted, NotTrusted
from cyxnet.cli.exits import BAD_INPUT, INTERRUPTED, TERMINATED, WORLD_FAILED
from cyxnet.cli.screen import Screen, open_screen
from cyxnet.client import AsyncClient, InsufficientFunds, NoModel

Run = Callable[[argparse.Namespace, Screen], Awaitable[int]]


def run(command: Run, args: argparse.Namespace) -> int:
    """The exit code of `command`. No error of a user or of the world shows a traceback without --debug."""
    color = not (args.no_color or os.environ.get("NO_COLOR"))
    screen = open_screen(as_json=args.json, quiet=args.quiet, color=color)
    stopped_by = INTERRUPTED

    async def work() -> int:
        task = asyncio.current_task()
        assert task is not None

        def stop(code: int, task: asyncio.Task[int] = task) -> None:
            nonlocal stopped_by
            stopped_by = code
            task.cancel()

        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # no signals off the main thread
            for number, code in ((signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)):
                asyncio.get_running_loop().add_signal_handler(number, stop, code)
        return await command(args, screen)

    try:
        return asyncio.run(work())
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.close()
        if args.json:
            with contextlib.suppress(BrokenPipeError):
                screen.say("error", "stopped", code="stopped", message="stopped")
        print("cyx: stopped", file=sys.stderr)
        return stopped_by
    except BrokenPipeError:
        raise
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        screen.close()
        return complain(error, screen, as_json=args.json)
    finally:
        with contextlib.suppress(BrokenPipeError):
            screen.close()


def complain(error: Exception, screen: Screen, *, as_json: bool) -> int:
    """Say what went wrong in one line on stderr (and as a JSON line when asked for); return the exit code."""
    known = isinstance(error, CyxError)
    text = " ".join(str(error).split()) if known else ""
    if isinstance(error, OSError) and not known:
        name = error.filename if isinstance(error.filename, str | os.PathLike) else None
        text = ": ".join(str(part) for part in (name and shown(name), error.strerror or error) if part)
    if _is_of_older_kernels(error):
        text = f"the compiled kernels are older than these sources ({error}); build them: pip install -e ."
    text = text or f"unexpected {type(error).__name__}: {error}; run it again with --debug and report this"
    code = error.code if isinstance(error, CyxError) else "internal"
    if as_json:
        screen.say("error", text, code=code, message=text)
    print(f"cyx: {text}", file=sys.stderr)
    return exit_code(error)


def _is_of_older_kernels(error: Exception) -> bool:
    """Whether a name is missing in an extension module of cyxcore: its sources were changed and it was not built."""
    if isinstance(error, AttributeError):
        module = getattr(error.obj, "__name__", "") if isinstance(error.obj, ModuleType) else ""
    else:
        module = (error.name or "") if isinstance(error, ImportError) else ""
    return module.startswith("cyxcore.kernels.") and not isinstance(error, CyxError)


def exit_code(error: Exception) -> int:
    """2 when other input would have helped, 1 when the world failed."""
    if isinstance(error, ApiError):
        return BAD_INPUT if 400 <= error.status < 500 and error.status != 429 else WORLD_FAILED
    if isinstance(error, InsufficientFunds | NoModel | MissingExtra):
        return BAD_INPUT
    if isinstance(error, CyxError) and isinstance(error, ValueError | TypeError):  # as cyxcore/errors.py says
        return BAD_INPUT
    if isinstance(error, OSError) and not isinstance(error, CyxError) and error.errno in OF_THE_NAME:
        return BAD_INPUT
    return WORLD_FAILED


@contextlib.asynccontextmanager
async def connected(args: argparse.Namespace, delays_s: Sequence[float] = ()) -> AsyncIterator[AsyncClient]:
    """The client of the network in --dir; tells on stderr when it has to wait for an answer.

    delays_s: pauses before each further try while nobody answers at all.
    """

    def tell_wait(why: str, pause_s: float) -> None:
        if not args.quiet:
            print(f"cyx: {why}; trying again in {pause_s:g} s", file=sys.stderr)

    async def connect() -> AsyncClient:
        for delay_s in delays_s:
            try:
                return await AsyncClient.connect(args.dir)
            except BusError as error:
                if isinstance(error, NotTrusted | NotAdmitted):
                    raise
                tell_wait(str(error), delay_s)
                await asyncio.sleep(delay_s)
        return await AsyncClient.connect(args.dir)

    client = await connect()
    client.on_retry = tell_wait
    async with client:
        yield client
