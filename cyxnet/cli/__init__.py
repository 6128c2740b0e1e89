"""The `cyx` command. This file only reads the command line: `cyx --help` imports nothing else.

Exit codes: 0 done, 1 the world failed (no broker, a job failed), 2 wrong usage or bad input, 130 stopped by Ctrl-C.
"""

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cyxnet.cli.exits import BAD_INPUT, DONE, INTERRUPTED

DEFAULT_FOLDER = ".cyx"  # cyxnet.config.DEFAULT_FOLDER, which costs an import
STATUSES = ["funding", "queued", "leased", "paused", "settling", "completed", "failed", "cancelled"]


class Command(NamedTuple):
    name: str
    about: str
    example: str
    run: str  # "module:function" in cyxnet.cli: async (args, screen) -> exit code
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def _job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", type=_job_id, metavar="JOB", help="the job's id, or a beginning of it that no other job has"
    )


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where the model goes: NAME.safetensors, NAME.onnx, or NAME.cyxmodel for the archive as the node signed it"
        " (default: NAME.safetensors here, or NAME-2 and so on when that exists)",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE when it exists")


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a job file (TOML), or a graph file that is a job")


def _up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=_count, default=1, metavar="N", help="how many nodes (default 1)")
    parser.add_argument("--centrals", type=_count, default=1, metavar="N", help="how many centrals (default 1)")
    parser.add_argument(
        "--cluster",
        type=int,
        choices=(1, 3, 5),
        metavar="N",
        help="how many brokers, each holding everything: 3 outlive the loss of one, 5 of two"
        " (default: as many as the folder has, 1 in a new one)",
    )
    parser.add_argument(
        "--port", type=_port, default=0, metavar="P", help="the (first) broker's port (default: a free one)"
    )
    parser.add_argument(
        "--tls", action="store_true", help="encrypt every connection, with certificates made here (in DIR/tls)"
    )
    parser.add_argument(
        "--listen",
        type=_ip_address,
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where the brokers listen (default 127.0.0.1); another than loopback needs --tls",
    )
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="with --tls: a name or address for the certificates; the first is what network.json tells others",
    )
    parser.add_argument(
        "--http",
        type=_port,
        nargs="?",
        const=0,
        metavar="P",
        help="serve HTTP too, at this port (without one: a free port), where the brokers listen; with --tls HTTPS",
    )
    parser.add_argument("--http-cert", type=Path, metavar="FILE", help="certificate chain (PEM): HTTP over TLS")
    parser.add_argument("--http-key", type=Path, metavar="FILE", help="the key of the certificate (PEM)")


def _train(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    _output(parser)
    parser.add_argument("--keep-up", action="store_true", help="leave the network up at the end, until Ctrl-C")


def _submit(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    parser.add_argument("--wait", action="store_true", help="follow the job until it has ended")
    parser.add_argument(
        "--quote", type=Path, metavar="PRICE", help="a file of cyx quote -o: be charged no more than that"
    )
    parser.add_argument(
        "--priority",
        type=_priority,
        metavar="0-9",
        help="instead of the file's: each level counts like ten minutes of waiting",
    )


def _jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--status", choices=STATUSES, help="only jobs that are in this state")
    parser.add_argument("--name", metavar="TEXT", help="only jobs whose name contains this text")
    parser.add_argument("--node", type=_job_id, metavar="NODE", help="only jobs whose last attempt was on this node")
    parser.add_argument("--mine", action="store_true", help="only jobs that were submitted from this folder")
    parser.add_argument("--limit", type=_count, default=50, metavar="N", help="how many (default 50)")


def _get(parser: argparse.ArgumentParser) -> None:
    _job(parser)
    _output(parser)


def _verify(parser: argparse.ArgumentParser) -> None:
    _job(parser)
    parser.add_argument("--tail", action="store_true", help="only from the newest checkpoint that is still stored")
    parser.add_argument("--threads", type=_count, metavar="N", help="to train with (default: all cores)")


def _job_priority(parser: argparse.ArgumentParser) -> None:
    _job(parser)
    parser.add_argument("priority", type=_priority, metavar="0-9", help="each level counts like ten minutes of waiting")


def _cancel(parser: argparse.ArgumentParser) -> None:
    _job(parser)
    parser.add_argument("--reason", type=_reason, default="cancelled by the client", help="kept in the job's history")


def _quote(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PRICE", help="write the signed price there, for cyx submit"
    )


def _earnings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", nargs="?", type=_job_id, metavar="NODE", help="its name or id (default: all nodes)")
    parser.add_argument("--explain", type=_job_id, metavar="JOB", help="one job, from the work to the transaction")
    parser.add_argument("--limit", type=_count, default=1000, metavar="N", help="look at the newest N (default 1000)")


def _refund(parser: argparse.ArgumentParser) -> None:
    _job(parser)
    parser.add_argument("--client", type=_address, metavar="ADDRESS", help="who paid for it (default: this wallet)")
    parser.add_argument("--chain", metavar="URL", help="ask the chain there, and no central")
    parser.add_argument("--program", type=_address, metavar="ADDRESS", help="the escrow program (the network's)")


def _outbox(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--send", action="store_true", help="submit them now, the oldest first")
    parser.add_argument("--forget", type=_job_id, metavar="JOB", help="do not submit this one any more")


def _nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--online", action="store_true", help="only those that are online and not banned")
    parser.add_argument("--idle", action="store_true", help="only those that would take a job now")
    parser.add_argument("--gpu", action="store_true", help="only those with a GPU")
    parser.add_argument(
        "--region", action="append", default=[], metavar="R", help="only there (more than once: or there)"
    )
    parser.add_argument("--not-region", action="append", default=[], metavar="R", help="not there")
    parser.add_argument("--max-price", metavar="CYX", help="that an hour costs at most")
    parser.add_argument("--min-memory", type=_bytes, default=0, metavar="SIZE", help="free there, such as 4GB")
    parser.add_argument("--min-reputation", type=_reputation, default=0.0, metavar="N", help="from 0 to 100")
    parser.add_argument(
        "--sort",
        choices=["online", "price", "speed", "reputation", "memory", "queue"],
        default="online",
        help="the best first (default: those online)",
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="how many (default: all)")


def _node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "node",
        type=_job_id,
        metavar="NODE",
        help="a node (its id, or a beginning that no other has), or a client (c-…)",
    )


def _ban(parser: argparse.ArgumentParser) -> None:
    _node(parser)
    parser.add_argument("--reason", type=_said, required=True, help="kept in the log")
    parser.add_argument(
        "--for",
        type=_duration,
        dest="for_s",
        metavar="TIME",
        help="how long: 30m, 12h, 7d, 2w (default: 24h, then 48h, then a week)",
    )


def _pardon(parser: argparse.ArgumentParser) -> None:
    _node(parser)
    parser.add_argument("--reason", type=_said, default="pardoned by an operator", help="kept in the log")


def _wallet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", nargs="?", type=_address, metavar="ADDRESS", help="another wallet to look at")
    parser.add_argument("--faucet", metavar="AMOUNT", help="take this much test CYX (local networks only)")


ID_ACTIONS = {  # what stands behind `cyx id`: in words, and with which options
    "show": ("print ids, addresses and where the key lies", ()),
    "new": ("make a key, and show its backup once", ("--force", "--passphrase")),
    "export": ("print the backup of a key: 24 words to write down", ()),
    "import": ("make the key of a backup, typed here or read from standard input", ("--force", "--passphrase")),
    "passphrase": ("seal the key with a passphrase, or with another one", ("--remove",)),
    "nats": ("write a context with which the `nats` tool connects as this client", ("--name", "--force")),
}
ID_OPTIONS: dict[str, dict[str, Any]] = {
    "--force": {"action": "store_true", "help": "though there is one already: a key is kept beside it, as NAME.old-1"},
    "--passphrase": {
        "action": "store_true",
        "help": "seal it with a passphrase: typed, or in CYX_PASSPHRASE, or in the file that CYX_PASSPHRASE_FILE names",
    },
    "--remove": {"action": "store_true", "help": "keep it without a passphrase from now on"},
    "--name": {"metavar": "NAME", "help": "of the context (default cyx)", "default": "cyx"},
}


def _id(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    for name, (about, options) in ID_ACTIONS.items():
        sub = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        whose = sub.add_mutually_exclusive_group()
        whose.add_argument("--node", type=_job_id, metavar="NAME", help="the node of this name in the network's folder")
        whose.add_argument("--central", action="store_true", help="the platform")
        for option in options:
            sub.add_argument(option, **ID_OPTIONS[option])
        _add_globals(sub, before=False)


def _payouts(parser: argparse.ArgumentParser) -> None:
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--freeze", type=_reason, metavar="REASON", help="pay nothing from now on")
    either.add_argument("--release", type=_reason, metavar="REASON", help="pay again, and accept what was found")


def _key(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    new = actions.add_parser("new", help="make a key and show it, this once")
    new.add_argument("--name", default="", type=_name, help="what it is for")
    new.add_argument("--role", choices=("client", "operator"), default="client", help="what it may do (default client)")
    new.add_argument("--rate", type=_rate, default=0.0, metavar="N", help="at most N requests a second")
    new.add_argument("--days", type=_days, default=0, metavar="N", help="for so long (default: until it is revoked)")
    everybody = "as an operator of the network: everybody's"
    listed = actions.add_parser("list", help="the keys and HTTP sessions")
    listed.add_argument("--all", action="store_true", help=everybody)
    revoke = actions.add_parser("revoke", help="have a key or session refused from now on")
    revoke.add_argument("id", type=_grant_id, metavar="ID", help="as `cyx key list` shows it")
    revoke.add_argument("--all", action="store_true", help=everybody)
    for action in (new, listed, revoke):
        _add_globals(action, before=False)


def _serve(parser: argparse.ArgumentParser) -> None:
    from cyxnet.serveoptions import add_options

    add_options(parser)


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="a .cyxmodel, .safetensors or .onnx file")
    parser.add_argument("target", type=Path, metavar="OUT", help="a name that ends in .cyxmodel, .safetensors or .onnx")
    parser.add_argument("--force", action="store_true", help="replace OUT when it exists")
    parser.add_argument("--opset", type=_count, metavar="N", help="of an .onnx file that is written (default 18)")
    parser.add_argument(
        "--input",
        type=_shape,
        metavar="SHAPE",
        help="of one sample, such as 3,32,32, where an .onnx file is open",
    )
    parser.add_argument("--quantize", choices=("int8", "fp16"), help="make the weights small: int8 or fp16")
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="NPZ",
        help="with --quantize: rows x (and labels y), to say what it costs in accuracy",
    )
    parser.add_argument("--take", metavar="NAME", help="which output of an .onnx file that has several")
    _external(parser)


def _external(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--external-data",
        action="store_true",
        help="read the values of an .onnx file that lie in another file of its folder",
    )


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a .cyxmodel, .safetensors, .onnx or .gguf file")
    parser.add_argument("--all", action="store_true", help="every tensor, however many there are")
    _external(parser)


def _graph(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    check = actions.add_parser("check", help="show the layers of a graph file and how it trains")
    check.add_argument("file", type=Path, metavar="FILE", help="a graph file (.cyxgraph)")
    check.add_argument("--input", type=_shape, metavar="SHAPE", help="of one sample, such as 64 or 3,32,32")
    check.add_argument("--batch-size", type=_count, default=1, metavar="N", help="rows for the figures (default 1)")
    schema = actions.add_parser("schema", help="print the format as JSON Schema")
    kinds = actions.add_parser("kinds", help="list the kinds of nodes with their pins and parameters")
    for action in (check, schema, kinds):
        _add_globals(action, before=False)


def _patterns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", metavar="NAME", help="one of them: shows its parameters")
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=N", help="a parameter, as often as needed"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there, as a graph file (.cyxgraph)")
    parser.add_argument("--force", action="store_true", help="replace FILE when it exists")


def _chat(parser: argparse.ArgumentParser) -> None:
    number: dict[str, Any] = {"metavar": "N"}
    parser.add_argument("model", metavar="MODEL", help="a model file, or the address of a server: http://host:port")
    parser.add_argument("--name", metavar="NAME", help="which model of the server (default: its first)")
    parser.add_argument("--system", metavar="TEXT", help="an instruction that stands before the conversation")
    parser.add_argument("--temperature", type=float, help="how freely words are chosen; 0: the likeliest", **number)
    parser.add_argument("--top-p", type=float, help="only of the likeliest that reach this probability", **number)
    parser.add_argument("--max-tokens", type=int, help="the longest answer", **number)
    parser.add_argument("--seed", type=int, help="the same seed, the same answers", **number)


def _ledger(parser: argparse.ArgumentParser) -> None:
    about = 'one SELECT over nodes, jobs, events, metrics, entries; or "verify", or "at"'
    parser.add_argument("question", type=_sql, metavar="SQL", help=about)
    parser.add_argument("time", nargs="?", metavar="TIME", help='with "at": 2026-11-26 or 2026-11-26T14:30')
    parser.add_argument("--limit", type=_count, default=1000, metavar="N", help="at most N rows (default 1000)")


COMMANDS = [
    Command(
        "up",
        "start a network here: broker, chain, central and nodes, until Ctrl-C",
        "cyx up --nodes 2",
        "network:up",
        _up,
    ),
    Command(
        "train",
        "train a job file from start to finish, and bring the model here",
        "cyx train examples/digits.toml",
        "train:train",
        _train,
    ),
    Command(
        "serve",
        "answer with a model file over HTTP, until Ctrl-C; no network takes part",
        "cyx serve digits.safetensors --port 8000",
        "serving:serve",
        _serve,
    ),
    Command(
        "chat",
        "talk with a language model: a file, or a server that speaks the OpenAI API",
        "cyx chat http://127.0.0.1:8000",
        "chat:chat",
        _chat,
    ),
    Command(
        "convert",
        "write a model file in another format, by the endings of the names",
        "cyx convert digits.cyxmodel digits.onnx",
        "files:convert",
        _convert,
    ),
    Command(
        "inspect",
        "show what a model file holds: graph, shapes, sizes, hashes, history",
        "cyx inspect digits.onnx",
        "files:inspect",
        _inspect,
    ),
    Command("quote", "what a job costs at most, signed", "cyx quote digits.toml -o price.json", "money:quote", _quote),
    Command("submit", "check, pay and submit a job file", "cyx submit digits.toml --wait", "jobs:submit", _submit),
    Command("watch", "follow a job from its first event to its end", "cyx watch digits-3f", "jobs:watch", _job),
    Command("jobs", "list the jobs, newest first", "cyx jobs --status completed", "jobs:jobs", _jobs),
    Command("job", "show one job", "cyx job digits-3f", "jobs:job", _job),
    Command("get", "fetch the model of a job", "cyx get digits-3f -o digits.safetensors", "jobs:get", _get),
    Command(
        "verify",
        "train a finished job again, here, and compare the model byte by byte",
        "cyx verify digits-3f",
        "serving:verify",
        _verify,
    ),
    Command("cancel", "stop a job; what was not earned comes back", "cyx cancel digits-3f", "jobs:cancel", _cancel),
    Command(
        "refund",
        "have an escrow sent back whose deadline is past, with or without a central",
        "cyx refund digits-3f",
        "money:refund",
        _refund,
    ),
    Command(
        "pause", "store a checkpoint and stop; the job waits to be resumed", "cyx pause digits-3f", "jobs:pause", _job
    ),
    Command("resume", "let a paused job go on from its checkpoint", "cyx resume digits-3f", "jobs:resume", _job),
    Command(
        "priority",
        "give a job another place in the line, 0 to 9",
        "cyx priority digits-3f 9",
        "jobs:priority",
        _job_priority,
    ),
    Command(
        "outbox",
        "the jobs that could not be submitted, because nobody answered",
        "cyx outbox --send",
        "jobs:sent_later",
        _outbox,
    ),
    Command("explain", "why a job is where it is", "cyx explain digits-3f", "jobs:explain", _job),
    Command("nodes", "list or find nodes", "cyx nodes --idle --sort price", "network:nodes", _nodes),
    Command(
        "ban",
        "shut a node or a client out at once (operators only)",
        'cyx ban node-1 --reason "wrong models" --for 7d',
        "network:ban",
        _ban,
    ),
    Command("pardon", "end a node's or client's ban (operators only)", "cyx pardon node-1", "network:pardon", _pardon),
    Command("clients", "list the clients that are or were banned (operators only)", "cyx clients", "network:clients"),
    Command("earnings", "what nodes were paid", "cyx earnings node-1 --explain digits-3f", "money:earnings", _earnings),
    Command("wallet", "show the wallet, or take test money", "cyx wallet --faucet 100", "network:wallet", _wallet),
    Command(
        "ledger",
        "ask the ledger in SQL, verify it, or read the balances of a time",
        'cyx ledger "select job_id, status from jobs"; cyx ledger verify; cyx ledger at 2026-11-26T14:30',
        "money:ledger",
        _ledger,
    ),
    Command(
        "payouts",
        "whether the platform pays; operators freeze and release",
        'cyx payouts --release "looked at it"',
        "money:payouts",
        _payouts,
    ),
    Command("id", "make, show, back up and bring back keys", "cyx id show", "keys:keys", _id),
    Command("key", "the API keys for HTTP: make, list and revoke them", "cyx key new", "access:keys", _key),
    Command("graph", "check and describe graph files", "cyx graph check model.cyxgraph", "graphs:graph", _graph),
    Command(
        "patterns",
        "the bundled models to start from: list them, or make one",
        "cyx patterns unet --set size=64 -o unet.cyxgraph",
        "graphs:patterns",
        _patterns,
    ),
    Command("version", "print the version", "cyx version", "network:version"),
]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        words = message.split("'")
        if message.startswith("argument COMMAND: invalid choice") and len(words) > 1:
            near = difflib.get_close_matches(words[1], [command.name for command in COMMANDS], 1)
            message = f"unknown command {words[1]!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line. Global options may stand before or behind the command."""
    top = Parser(
        prog="cyx",
        description="Train machine-learning models on a network of nodes.",
        epilog="example: cyx train examples/digits.toml",
    )
    _add_globals(top, before=True)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.about,
            description=command.about[0].upper() + command.about[1:] + ".",
            epilog=f"example: {command.example}",
        )
        command.arguments(sub)
        _add_globals(sub, before=False)
        sub.set_defaults(run=command.run)
    return top


def _add_globals(parser: argparse.ArgumentParser, before: bool) -> None:
    def default(value: object) -> object:  # a sub-command must not overwrite what stood before it
        return value if before else argparse.SUPPRESS

    group = parser.add_argument_group("everywhere")
    group.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        default=default(Path(DEFAULT_FOLDER)),
        help=f"the network's folder (default {DEFAULT_FOLDER})",
    )
    for flag, about in [
        ("--json", "JSON lines for programs"),
        ("--quiet", "only the result"),
        ("--no-color", "no colours (also: the variable NO_COLOR)"),
        ("--debug", "show the traceback of an error"),
    ]:
        group.add_argument(flag, action="store_true", default=default(False), help=about)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 10000, got {text[:40]!r}")
    return int(text)


def _shape(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8}){0,7}", text):
        raise argparse.ArgumentTypeError(f"expected sizes such as 64 or 3,32,32, got {text[:40]!r}")
    return [int(size) for size in text.split(",")]


def _setting(text: str) -> tuple[str, int | float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value) if re.search(r"[.eEn]", value) else int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, got {text[:40]!r}") from None


def _priority(text: str) -> int:
    if not re.fullmatch(r"[0-9]", text):
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 9, got {text[:40]!r}")
    return int(text)


def _bytes(text: str) -> int:
    from cyxnet.serveoptions import size

    return size(text)


def _reputation(text: str) -> float:
    try:
        reputation = float(text)
    except ValueError:
        reputation = -1.0
    if not 0 <= reputation <= 100:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 100, got {text[:40]!r}")
    return reputation


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.001 <= rate <= 1e6:  # what a KeyNewRequest takes
        raise argparse.ArgumentTypeError(f"expected requests a second, from 0.001 to a million, got {text[:40]!r}")
    return rate


def _days(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 3650:
        raise argparse.ArgumentTypeError(f"expected 1 to 3650 days, got {text[:40]!r}")
    return int(text)


def _name(text: str) -> str:
    if len(text) > 100:
        raise argparse.ArgumentTypeError(f"expected at most 100 letters, got {len(text)}")
    return text


def _grant_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{12}([0-9a-f]{20})?", text):
        raise argparse.ArgumentTypeError(f"expected the 12 or 32 hex digits of an id, got {text[:40]!r}")
    return text


def _job_id(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise argparse.ArgumentTypeError(f"expected an id of letters a-z, digits and dashes, got {text[:40]!r}")
    return text


def _address(text: str) -> str:
    if not re.fullmatch(r"[1-9A-HJ-NP-Za-km-z]{32,44}", text):
        raise argparse.ArgumentTypeError(f"expected a Solana address of 32 to 44 base58 letters, got {text[:50]!r}")
    return text


def _reason(text: str) -> str:
    if len(text) > 2000:
        raise argparse.ArgumentTypeError(f"expected at most 2000 letters, got {len(text)}")
    return text


def _said(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected words, got nothing")
    return _reason(text)


SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def _duration(text: str) -> int:
    """Seconds in a time as people write it."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhdw])", text)
    if match is None or (seconds := int(match[1]) * SECONDS[match[2]]) > 10 * 366 * 86_400:
        raise argparse.ArgumentTypeError(f"expected a time up to ten years, such as 12h or 7d, got {text[:40]!r}")
    return seconds


def _sql(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a SELECT statement, got nothing")
    return text


def _ip_address(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an IP address such as 0.0.0.0, got {text[:60]!r}") from None


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text[:40]!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = parser().parse_args(argv)
    try:
        from cyxnet.cli import running  # after parsing: --help stays fast

        module, function = args.run.split(":")
        return running.run(getattr(importlib.import_module(f"cyxnet.cli.{module}"), function), args)
    except KeyboardInterrupt:  # while modules were read
        print("cyx: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough: `cyx jobs | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
