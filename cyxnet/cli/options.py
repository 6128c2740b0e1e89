"""The options of each command of `cyx`: a function for each that adds them to its parser."""

import argparse
import difflib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cyxnet.cli import values
from cyxnet.cli.exits import BAD_INPUT
from cyxnet.serveoptions import add_options, milliseconds, size, whole

DEFAULT_FOLDER = ".cyx"  # cyxnet.config.DEFAULT_FOLDER, which costs an import
STATUSES = "funding waiting queued leased paused checking settling completed failed cancelled".split()
NUMERICS = ["exact", "fast", "fast16", "bf16"]  # cyxcore.spec.NumericsName, which costs an import

GGUF_KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")  # cyxcore.gguf's, for matrices


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line, with the nearest word for one that is not known."""

    for_programs = False
    _is_mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an argument that may be left out is not taken as left out where an option precedes it:
        cyx ask ID --route PATH JSON.
        """
        if self._is_mixing:
            return super().parse_known_args(args, namespace)
        if not any(action.nargs == "?" for action in self._get_positional_actions()):
            found, unknown = super().parse_known_args(args, namespace)
        else:
            self._check_options(args or [])
            self._is_mixing = True
            try:
                found, unknown = self.parse_known_intermixed_args(args, namespace)
            finally:
                self._is_mixing = False
        if unknown:  # said by the command's own parser: it knows the options that were meant
            behind = itertools.dropwhile(lambda word: word != "--", args or [])  # there are arguments only
            self.error(self._too_many(unknown) if unknown[0] in behind else self._not_known(unknown))
        return found, unknown

    def _check_options(self, words: Sequence[str]) -> None:
        """An option that is not known is told as such: what stands behind it is else taken for the argument that may be
        left out (cyx wallet --facet 3), and complained of first.
        """
        for word in itertools.takewhile(lambda word: word != "--", words):
            said = word.partition("=")[0]
            if said.startswith("--") and not any(option.startswith(said) for option in self._option_string_actions):
                self.error(self._not_known([word]))

    def _too_many(self, unknown: list[str]) -> str:
        return f"unrecognized arguments: {' '.join(unknown)}"

    def _not_known(self, unknown: list[str]) -> str:
        if not unknown[0].startswith("--"):
            return self._too_many(unknown)
        said = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(said, self._option_string_actions, 1)
        return f"unknown option {said}" + (f"; did you mean {near[0]}?" if near else "")

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"argument (COMMAND|ACTION): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if unknown:
            kind, said, choices = unknown.groups()
            near = difflib.get_close_matches(said, re.findall(r"[\w-]+", choices), 1)
            message = f"unknown {kind.lower()} {said!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        said = f"{message} (see {self.prog} --help)"
        if self.for_programs:
            print(json.dumps({"kind": "error", "data": {"code": "bad_usage", "message": said}}), flush=True)
        self.exit(BAD_INPUT, f"{self.prog}: {said}\n")


class ParserForPrograms(Parser):
    """With --json: the complaint is a line of JSON too. Parsers of sub-commands are of their parser's class."""

    for_programs = True


def add_globals(parser: argparse.ArgumentParser, before: bool) -> None:
    """The options of every command; `before`: the parser is the one that stands before the commands."""

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


def job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "job", type=values.job_id, metavar="JOB", help="the job's id, or a beginning of it that no other job has"
    )


def output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where the model goes: NAME.safetensors, NAME.onnx, or NAME.cyxmodel for the archive as the node signed it"
        " (default: NAME.safetensors here, or NAME-2 and so on when that exists)",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE when it exists")


def job_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a job file (TOML), or a graph file that is a job")


def up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=values.count, default=1, metavar="N", help="how many nodes (default 1)")
    parser.add_argument(
        "--checkers",
        type=values.count_or_none,
        default=0,
        metavar="N",
        help="so many of the nodes, the last ones, train a part of what others deliver again before it is paid",
    )
    parser.add_argument("--centrals", type=values.count, default=1, metavar="N", help="how many centrals (default 1)")
    parser.add_argument(
        "--cluster",
        type=int,
        choices=(1, 3, 5),
        metavar="N",
        help="how many brokers, each holding everything: 3 outlive the loss of one, 5 of two"
        " (default: as many as the folder has, 1 in a new one)",
    )
    parser.add_argument(
        "--port", type=values.port, default=0, metavar="P", help="the (first) broker's port (default: a free one)"
    )
    parser.add_argument(
        "--tls", action="store_true", help="encrypt every connection, with certificates made here (in DIR/tls)"
    )
    parser.add_argument(
        "--listen",
        type=values.ip_address,
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
        type=values.port,
        nargs="?",
        const=0,
        metavar="P",
        help="serve HTTP too, at this port (without one: a free port), where the brokers listen; with --tls HTTPS",
    )
    parser.add_argument("--http-cert", type=Path, metavar="FILE", help="certificate chain (PEM): HTTP over TLS")
    parser.add_argument("--http-key", type=Path, metavar="FILE", help="the key of the certificate (PEM)")


def numerics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--numerics",
        choices=NUMERICS,
        help="instead of the file's: how products on a CPU are made; only exact can be verified by training again",
    )


def on_node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--node",
        type=values.job_id,
        metavar="NODE",
        help="instead of the file's: on this node (its name, its id, or how that begins) and no other",
    )


def train(parser: argparse.ArgumentParser) -> None:
    job_file(parser)
    output(parser)
    numerics(parser)
    on_node(parser)
    parser.add_argument("--keep-up", action="store_true", help="leave the network up at the end, until Ctrl-C")


def submit(parser: argparse.ArgumentParser) -> None:
    job_file(parser)
    numerics(parser)
    on_node(parser)
    parser.add_argument("--wait", action="store_true", help="follow the job until it has ended")
    either = parser.add_mutually_exclusive_group()  # a price is of the job in plain text, and of no other bytes
    either.add_argument(
        "--seal",
        type=values.sealing_key,
        metavar="NODE=KEY",
        help="for this node alone to read, by the key that cyx id show --node showed its operator",
    )
    either.add_argument(
        "--quote", type=Path, metavar="PRICE", help="a file of cyx quote -o: be charged no more than that"
    )
    parser.add_argument(
        "--priority",
        type=values.priority,
        metavar="0-9",
        help="instead of the file's: each level counts like ten minutes of waiting",
    )
    parser.add_argument(
        "--after",
        type=values.dependency,
        action="append",
        default=[],
        metavar="JOB",
        help="begin only when this job is completed; with JOB.validation_accuracy>=0.9 only if its model is so good",
    )
    parser.add_argument(
        "--weights", type=values.job_id, metavar="JOB", help="begin with the model of this job, after it"
    )


def run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a workflow file (TOML)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="a folder for the models, each as JOB.safetensors"
    )
    parser.add_argument("--force", action="store_true", help="replace models in DIR that exist")
    parser.add_argument("--no-wait", action="store_true", help="only submit them: they run without this command")
    parser.add_argument("--show", action="store_true", help="only check the file, and list its jobs")
    parser.add_argument(
        "--again",
        type=values.run_id,
        metavar="RUN",
        help="go on with a run that was broken off: what it has submitted is followed, the rest is submitted",
    )


def job_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--status", choices=STATUSES, help="only jobs that are in this state")
    parser.add_argument("--name", metavar="TEXT", help="only jobs whose name contains this text")
    parser.add_argument(
        "--node",
        type=values.job_id,
        metavar="NODE",
        help="only jobs whose last attempt was on this node (its name, its id, or how that begins)",
    )
    parser.add_argument("--mine", action="store_true", help="only jobs that were submitted from this folder")
    parser.add_argument(
        "--run", type=values.run_id, dest="run_id", metavar="RUN", help="only jobs of this run of a workflow"
    )
    parser.add_argument(
        "--sort",
        choices=["submitted", "accuracy", "r2", "loss", "time"],
        default="submitted",
        help="the best of those that are listed first: by what the model is worth on held-out rows, or by the time that"
        " its training took (default: newest first)",
    )
    parser.add_argument("--limit", type=values.count, default=50, metavar="N", help="how many (default 50)")


def curves(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "jobs", type=values.job_id, nargs="+", metavar="JOB", help="jobs, by their ids or how those begin; 8 at most"
    )
    parser.add_argument(
        "--of",
        metavar="METRIC",
        help="what is drawn: validation_loss, accuracy, … (default: the loss of held-out rows)",
    )
    parser.add_argument(
        "--log", action="store_true", help="by factors: a loss that falls from 2 to 0.01 is seen to its end"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="draw into FILE.svg, .png or .pdf, in place of what it holds (needs matplotlib: pip install 'cyx[plot]')",
    )


def get(parser: argparse.ArgumentParser) -> None:
    job(parser)
    output(parser)


def verify(parser: argparse.ArgumentParser) -> None:
    job(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--tail", action="store_true", help="only from the newest checkpoint that is still stored")
    part.add_argument(
        "--segment",
        type=values.segment,
        metavar="STEP",
        help="only from the checkpoint before this one to it; or model: to the model; or any: one of them by chance",
    )
    parser.add_argument("--threads", type=values.count, metavar="N", help="to train with (default: all cores)")


def job_priority(parser: argparse.ArgumentParser) -> None:
    job(parser)
    parser.add_argument(
        "priority", type=values.priority, metavar="0-9", help="each level counts like ten minutes of waiting"
    )


def cancel(parser: argparse.ArgumentParser) -> None:
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "jobs", type=values.job_id, nargs="*", default=[], metavar="JOB", help="jobs, by their ids or how those begin"
    )
    either.add_argument(
        "--run", type=values.run_id, dest="run_id", metavar="RUN", help="all that is left of this run of a workflow"
    )
    parser.add_argument(
        "--reason", type=values.reason, default="cancelled by the client", help="kept in the job's history"
    )


def quote(parser: argparse.ArgumentParser) -> None:
    job_file(parser)
    on_node(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PRICE", help="write the signed price there, for cyx submit"
    )


def earnings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "node", nargs="?", type=values.job_id, metavar="NODE", help="its name or id (default: all nodes)"
    )
    parser.add_argument(
        "--explain", type=values.job_id, metavar="JOB", help="one job, from the work to the transaction"
    )
    parser.add_argument(
        "--limit", type=values.count, default=1000, metavar="N", help="look at the newest N (default 1000)"
    )


def refund(parser: argparse.ArgumentParser) -> None:
    job(parser)
    parser.add_argument(
        "--client", type=values.address, metavar="ADDRESS", help="who paid for it (default: this wallet)"
    )
    parser.add_argument("--chain", metavar="URL", help="ask the chain there, and no central")
    parser.add_argument("--program", type=values.address, metavar="ADDRESS", help="the escrow program (the network's)")


def send(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", type=values.address, metavar="ADDRESS", help="the wallet that gets it")
    parser.add_argument("amount", metavar="AMOUNT", help='CYX, such as 2.5; or "all"')
    _whose(parser, "the platform: its fees")


def outbox(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--send", action="store_true", help="submit them now, the oldest first")
    parser.add_argument("--forget", type=values.job_id, metavar="JOB", help="do not submit this one any more")


def node_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--online", action="store_true", help="only those that are online and not banned")
    parser.add_argument("--idle", action="store_true", help="only those that would take a job now")
    parser.add_argument("--gpu", action="store_true", help="only those with a GPU")
    parser.add_argument(
        "--region", action="append", default=[], metavar="R", help="only there (more than once: or there)"
    )
    parser.add_argument("--not-region", action="append", default=[], metavar="R", help="not there")
    parser.add_argument("--max-price", metavar="CYX", help="that an hour costs at most")
    parser.add_argument("--min-memory", type=size, default=0, metavar="SIZE", help="free there, such as 4GB")
    parser.add_argument("--min-reputation", type=values.between(0, 100), default=0.0, metavar="N", help="from 0 to 100")
    parser.add_argument(
        "--sort",
        choices=["online", "price", "speed", "reputation", "memory", "queue"],
        default="online",
        help="the best first (default: those online)",
    )
    parser.add_argument("--limit", type=values.count, metavar="N", help="how many (default: all)")


def node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "node",
        type=values.job_id,
        metavar="NODE",
        help="a node (its id, or a beginning that no other has), or a client (c-…)",
    )


def ban(parser: argparse.ArgumentParser) -> None:
    node(parser)
    parser.add_argument("--reason", type=values.said, required=True, help="kept in the log")
    parser.add_argument(
        "--for",
        type=values.duration,
        dest="for_s",
        metavar="TIME",
        help="how long: 30m, 12h, 7d, 2w (default: 24h, then 48h, then a week)",
    )


def pardon(parser: argparse.ArgumentParser) -> None:
    node(parser)
    parser.add_argument("--reason", type=values.said, default="pardoned by an operator", help="kept in the log")


def wallet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", nargs="?", type=values.address, metavar="ADDRESS", help="another wallet to look at")
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


def identity(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (about, options) in ID_ACTIONS.items():
        sub = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        _whose(sub, "the platform")
        for option in options:
            sub.add_argument(option, **ID_OPTIONS[option])
        add_globals(sub, before=False)


def _whose(parser: argparse.ArgumentParser, platform: str) -> None:
    """Another key than this client's."""
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument(
        "--node", type=values.job_id, metavar="NAME", help="the node of this name in the network's folder"
    )
    whose.add_argument("--central", action="store_true", help=platform)


def payouts(parser: argparse.ArgumentParser) -> None:
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--freeze", type=values.reason, metavar="REASON", help="pay nothing from now on")
    either.add_argument("--release", type=values.reason, metavar="REASON", help="pay again, and accept what was found")


def key(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser("new", help="make a key and show it, this once")
    new.add_argument("--name", default="", type=values.name, help="what it is for")
    new.add_argument("--role", choices=("client", "operator"), default="client", help="what it may do (default client)")
    new.add_argument("--rate", type=values.rate, default=0.0, metavar="N", help="at most N requests a second")
    new.add_argument(
        "--days", type=values.days, default=0, metavar="N", help="for so long (default: until it is revoked)"
    )
    everybody = "as an operator of the network: everybody's"
    listed = actions.add_parser("list", help="the keys and HTTP sessions")
    listed.add_argument("--all", action="store_true", help=everybody)
    revoke = actions.add_parser("revoke", help="have a key or session refused from now on")
    revoke.add_argument("id", type=values.grant_id, metavar="ID", help="as `cyx key list` shows it")
    revoke.add_argument("--all", action="store_true", help=everybody)
    for action in (new, listed, revoke):
        add_globals(action, before=False)


def serve(parser: argparse.ArgumentParser) -> None:
    add_options(parser)


def deployment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "deployment", type=values.job_id, metavar="ID", help="a deployment, or a beginning that no other has"
    )


def deploy(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL|JOB", help="a model file (.cyxmodel, .safetensors, .onnx, .gguf), or a completed job")
    add("--name", metavar="NAME", help="what it is called: the beginning of its id (default: as the model)")
    add("--replicas", type=values.replicas, metavar="N|MIN:MAX", help="how many (default 1; with --replace as before)")
    add("--hours", type=values.between(0.01, 672), default=1.0, metavar="H", help="of each replica (default 1)")
    add("--renew", type=values.count, default=0, metavar="N", help="buy the hours N times more, to go on after them")
    add("--concurrency", type=whole(1, 10**6), default=0, metavar="N", help="questions at once for one replica (8)")
    add("--idle-s", type=whole(1, 86_400), default=0, metavar="S", help="before one that is not needed ends (120)")
    cost = parser.add_mutually_exclusive_group()
    cost.add_argument("--price", metavar="CYX", help="of an hour of one replica (default: the most that a node asks)")
    cost.add_argument("--amount", metavar="CYX", help="of all the hours of one replica")
    add("--node", type=values.job_id, metavar="NODE", help="on this node and no other")
    add("--device", choices=("any", "cpu"), default="any", help="what computes it: so far always the CPU (default any)")
    add("--region", default="", metavar="R", help="where it should run")
    add("--public", action="store_true", help="anybody on the network may ask it, not only this client")
    add("--replace", type=values.job_id, metavar="ID", help="this deployment serves MODEL from now on, without a gap")
    add("--no-wait", dest="wait", action="store_false", help="do not wait until it is ready")
    add("--max-batch", type=whole(1, 4096), default=0, metavar="N", help="samples in one run (default 64)")
    add("--max-wait-ms", type=milliseconds, default=0.0, metavar="MS", help="how long a run waits for more (default 0)")
    add("--max-queue", type=whole(1, 10**6), default=0, metavar="N", help="samples that wait (default 1024)")
    add("--memory", type=size, default=0, metavar="SIZE", help="of plans, or of a language model's keys and values")
    add("--context", type=whole(1, 2**24), default=0, metavar="N", help="tokens of prompt and answer (as trained)")
    add("--threads", type=whole(1, 256), default=0, metavar="N", help="of the kernels (default: all cores)")
    add("--drain-s", type=whole(0, 600), default=30, metavar="S", help="for answers under way at the end (30)")


def gateway(parser: argparse.ArgumentParser) -> None:
    deployment(parser)
    add = parser.add_argument
    add("--port", type=whole(0, 65_535), default=8000, metavar="P", help="0: a free one (default 8000)")
    add("--patience", type=whole(1, 3600), default=60, metavar="S", help="how long to try each request (default 60)")


def deployment_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("deployment", nargs="?", type=values.job_id, metavar="ID", help="only those that begin so")
    parser.add_argument("--ended", action="store_true", help="also replicas and deployments that have ended")


def extend(parser: argparse.ArgumentParser) -> None:
    deployment(parser)
    add = parser.add_argument
    add("--hours", type=values.between(0.01, 672), required=True, metavar="H", help="how many more for each replica")
    add("--replicas", type=values.count, metavar="N", help="for so many (default: as many as are always at work)")


def scale(parser: argparse.ArgumentParser) -> None:
    deployment(parser)
    parser.add_argument("replicas", type=whole(0, 1000), metavar="N", help="how many replicas it shall have")


def ask(parser: argparse.ArgumentParser) -> None:
    deployment(parser)
    parser.add_argument(
        "body", nargs="?", metavar="JSON", help="the body, as over HTTP (default: standard input; @FILE: a file)"
    )
    parser.add_argument("--route", default="/v1/predict", metavar="PATH", help="what is asked (default /v1/predict)")
    parser.add_argument("--get", action="store_true", help="without a body, as GET: --route /v1/model")
    parser.add_argument("--patience", type=whole(1, 3600), default=60, metavar="S", help="how long to try (default 60)")


def check(parser: argparse.ArgumentParser) -> None:
    deployment(parser)
    add = parser.add_argument
    add("--file", type=Path, metavar="FILE", help="the model that was deployed (default: fetched from the network)")
    add("--rows", type=Path, metavar="NPZ", help="what to ask: rows x (default: random numbers)")
    add("--questions", type=values.count, metavar="N", help="how many (default 64)")


def convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="a .cyxmodel, .safetensors, .onnx or .gguf file")
    parser.add_argument("target", type=Path, metavar="OUT", help="a name with one of these endings")
    parser.add_argument("--force", action="store_true", help="replace OUT when it exists")
    parser.add_argument("--opset", type=values.count, metavar="N", help="of an .onnx file that is written (default 18)")
    parser.add_argument(
        "--input",
        type=values.shape,
        metavar="SHAPE",
        help="of one sample, such as 3,32,32, where an .onnx file is open",
    )
    parser.add_argument(
        "--quantize",
        choices=("int8", "fp16", *GGUF_KINDS),
        metavar="KIND",
        help=f"make the weights small: int8 or fp16; in a .gguf file {', '.join(GGUF_KINDS[:-1])} or {GGUF_KINDS[-1]}",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="NPZ",
        help="with --quantize: rows x (and labels y), to say what it costs in accuracy",
    )
    parser.add_argument("--take", metavar="NAME", help="which output of an .onnx file that has several")
    external_data(parser)


def external_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--external-data",
        action="store_true",
        help="read the values of an .onnx file that lie in another file of its folder",
    )


def inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a .cyxmodel, .safetensors, .onnx or .gguf file")
    parser.add_argument("--all", action="store_true", help="every tensor, however many there are")
    external_data(parser)


def graph(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser("check", help="show the layers of a graph file and how it trains")
    check.add_argument("file", type=Path, metavar="FILE", help="a graph file (.cyxgraph)")
    check.add_argument("--input", type=values.shape, metavar="SHAPE", help="of one sample, such as 64 or 3,32,32")
    check.add_argument(
        "--batch-size", type=values.count, default=1, metavar="N", help="rows for the figures (default 1)"
    )
    schema = actions.add_parser("schema", help="print the format as JSON Schema")
    kinds = actions.add_parser("kinds", help="list the kinds of nodes with their pins and parameters")
    for action in (check, schema, kinds):
        add_globals(action, before=False)


def patterns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", metavar="NAME", help="one of them: shows its parameters")
    parser.add_argument(
        "--set",
        type=values.setting,
        action="append",
        default=[],
        metavar="NAME=N",
        help="a parameter, as often as needed",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there, as a graph file (.cyxgraph)")
    parser.add_argument("--force", action="store_true", help="replace FILE when it exists")


def chat(parser: argparse.ArgumentParser) -> None:
    number: dict[str, Any] = {"metavar": "N"}
    parser.add_argument(
        "model", metavar="MODEL", help="a language model (.gguf), or the address of a server: http://host:port"
    )
    parser.add_argument("--name", metavar="NAME", help="which model of the server (default: its first)")
    parser.add_argument("--system", metavar="TEXT", help="an instruction that stands before the conversation")
    parser.add_argument(
        "--temperature",
        type=values.between(0, 2),
        help="how freely words are chosen, from 0 (the likeliest) to 2",
        **number,
    )
    parser.add_argument(
        "--top-p", type=values.between(0, 1), help="only of the likeliest that reach this probability", **number
    )
    parser.add_argument("--max-tokens", type=whole(1, 2**31), help="the longest answer", **number)
    parser.add_argument("--seed", type=int, help="the same seed, the same answers", **number)


def ledger(parser: argparse.ArgumentParser) -> None:
    about = 'one SELECT over nodes, jobs, events, metrics, entries; or "verify", or "at"'
    parser.add_argument("question", type=values.sql, metavar="SQL", help=about)
    parser.add_argument("time", nargs="?", metavar="TIME", help='with "at": 2026-11-26 or 2026-11-26T14:30')
    parser.add_argument("--limit", type=values.count, default=1000, metavar="N", help="at most N rows (default 1000)")
