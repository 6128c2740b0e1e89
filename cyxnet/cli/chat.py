"""`cyx chat`: a conversation with a model in a terminal, or from a pipe, a line for each message."""

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cyxcore.errors import FormatError
from cyxcore.paths import check_file, shown
from cyxnet.chatting import ChatError, Server, Unusable
from cyxnet.cli.exits import DONE
from cyxnet.cli.screen import Screen

KEY_VARIABLE = "CYX_API_KEY"
ENDS_WITHIN_S = 5.0
HELP = """/reset          begin a new conversation
/system TEXT    begin a new one with this instruction; without TEXT: with none
/help           this
/exit           leave (or Ctrl-D; Ctrl-C stops an answer)"""


async def chat(args: argparse.Namespace, screen: Screen) -> int:
    # Ctrl-C is to end an answer, not this command: as a KeyboardInterrupt it arrives where the answer is read
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
    with server_of(args.model) as server:
        names = server.models()
        name = args.name or (names[0] if names else "")
        if not name:
            raise Unusable(f"{server.url} serves no model; name one with --name")
        Conversation(server, name, args, screen).run()
    return DONE


@contextlib.contextmanager
def server_of(model: str) -> Iterator[Server]:
    """The server at an address, or one of our own for a file, which ends with this command."""
    if "://" in model:
        yield Server(model, os.environ.get(KEY_VARIABLE, ""))
        return
    if not os.path.exists(model):
        where = "expected one, or an address such as http://127.0.0.1:8000"
        raise FormatError(f"{shown(model)}: there is no such file; {where}")
    if Path(model).is_file() and Path(model).suffix.lower() != ".gguf":
        raise FormatError(f"{model}: expected a language model (.gguf); cyx serve answers with a model of another kind")
    check_file(model, "a language model (.gguf)")
    command = [sys.executable, "-m", "cyxnode.serving", model, "--port=0", "--json", "--guard-stdin"]
    # in a session of its own, so that Ctrl-C is not its end
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    assert process.stdin and process.stdout
    try:
        complaints = Complaints(process)
        line = process.stdout.readline()
        said: dict[str, Any] = msgspec.json.decode(line) if line else {"kind": "error"}
        if said["kind"] == "error":
            raise complaints.last(model)
        complaints.let_through()
        if why_not := said["data"].get("why_no_chat"):
            raise FormatError(f"{model}: {why_not}")
        yield Server(said["data"]["url"], os.environ.get(KEY_VARIABLE, ""))
    finally:
        process.stdin.close()
        try:
            process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:  # it reads its model, and hears nothing meanwhile
            process.kill()
            process.wait()


class Complaints:
    """What a process says on stderr: kept until it serves, so that why it does not is one line, and ours to say."""

    def __init__(self, process: "subprocess.Popen[bytes]"):
        self._process, self._kept, self._serves = process, list[bytes](), False
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            with self._lock:
                if self._serves:
                    self._say([line])
                else:
                    self._kept.append(line)

    def let_through(self) -> None:
        with self._lock:
            self._serves = True
            self._say(self._kept)

    @staticmethod
    def _say(lines: list[bytes]) -> None:
        sys.stderr.write(b"".join(lines).decode(errors="replace"))

    def last(self, model: str) -> ChatError | FormatError:
        """Why it ended before it served. What it said before that is said now."""
        status = self._process.wait()
        self._reader.join()
        *others, last = self._kept or [b"it said nothing"]
        self._say(others)
        why = last.decode(errors="replace").removeprefix("cyx: ").strip()
        return FormatError(why) if status == 2 else ChatError(f"{model} is not served: {why}")


class Conversation:
    """Reads a line, answers it, until the end. What was said so far goes with each request."""

    def __init__(self, server: Server, name: str, args: argparse.Namespace, screen: Screen):
        self._server, self._args, self._screen = server, args, screen
        options = {key: getattr(args, key) for key in ("temperature", "top_p", "max_tokens", "seed")}
        self._options = {"model": name} | {key: value for key, value in options.items() if value is not None}
        self._system: str = args.system or ""
        self._said: list[dict[str, str]] = []
        self._is_live = sys.stdin.isatty() and sys.stdout.isatty() and not args.json

    def run(self) -> None:
        if self._is_live and not self._args.quiet:
            self._tell(f"{self._options['model']} at {self._server.url}; /help says what else there is")
        while (line := self._read()) is not None:
            word, _, rest = line.strip().partition(" ")
            if word in ("/exit", "/quit"):
                return
            if word == "/reset" or word == "/system":
                self._said = []
                self._system = rest.strip() if word == "/system" else self._system
                self._tell("a new conversation")
            elif word.startswith("/"):
                self._tell(HELP if word == "/help" else f"there is no {word}\n{HELP}")
            elif word:
                self._ask(line.strip())

    def _read(self) -> str | None:
        """The next line; None at the end of them."""
        try:
            if self._is_live:
                return input("\n> ")
            line = sys.stdin.readline()
            return line if line else None
        except EOFError:
            return None

    def _ask(self, text: str) -> None:
        system = [{"role": "system", "content": self._system}] if self._system else []
        asked = {"role": "user", "content": text}
        pieces: list[str] = []
        stopped = False
        try:
            with contextlib.closing(
                self._server.answer(self._options | {"messages": [*system, *self._said, asked]})  # type: ignore[type-var]
            ) as answer:
                for piece in answer:
                    pieces.append(piece)
                    self._write(piece)
        except KeyboardInterrupt:
            stopped = True
        except ChatError as error:
            if not self._is_live:
                raise
            self._tell(str(error))  # the conversation goes on without this message
            return
        self._said += [asked, {"role": "assistant", "content": "".join(pieces)}]
        if self._args.json:
            self._screen.result("", {"answer": "".join(pieces), "stopped": stopped})
        else:
            self._write(" [stopped]\n" if stopped else "\n")

    def _write(self, text: str) -> None:
        if not self._args.json:
            sys.stdout.write(harmless(text))
            sys.stdout.flush()

    def _tell(self, text: str) -> None:
        if self._is_live:
            from rich.console import Console
            from rich.text import Text

            Console(stderr=True, no_color=self._args.no_color).print(Text(harmless(text), style="dim"))
        elif not self._args.quiet:
            print(harmless(text), file=sys.stderr)


def harmless(text: str) -> str:
    """Text of a stranger for a terminal: no control codes but line ends and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
