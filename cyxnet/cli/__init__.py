"""The `cyx` command: its sub-commands, and how one is run. `cyx --help` imports none of what they need.

Exit codes: 0 done, 1 the world failed (no broker, a job failed), 2 wrong usage or bad input, 130 stopped by Ctrl-C.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cyxnet.cli import options
from cyxnet.cli.exits import DONE, INTERRUPTED


class Command(NamedTuple):
    name: str
    about: str
    example: str
    run: str  # "module:function" in cyxnet.cli: async (args, screen) -> exit code
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


COMMANDS = [
    Command(
        "up",
        "start a network here: broker, chain, central and nodes, until Ctrl-C",
        "cyx up --nodes 2",
        "network:up",
        options.up,
    ),
    Command(
        "train",
        "train a job file from start to finish, and bring the model here",
        "cyx train examples/digits.toml",
        "train:train",
        options.train,
    ),
    Command(
        "serve",
        "answer with a model file over HTTP, until Ctrl-C; no network takes part",
        "cyx serve digits.safetensors --port 8000",
        "serving:serve",
        options.serve,
    ),
    Command(
        "chat",
        "talk with a language model: a file, or a server that speaks the OpenAI API",
        "cyx chat http://127.0.0.1:8000",
        "chat:chat",
        options.chat,
    ),
    Command(
        "convert",
        "write a model file in another format, by the endings of the names",
        "cyx convert digits.cyxmodel digits.onnx",
        "files:convert",
        options.convert,
    ),
    Command(
        "inspect",
        "show what a model file holds: graph, shapes, sizes, hashes, history",
        "cyx inspect digits.onnx",
        "files:inspect",
        options.inspect,
    ),
    Command(
        "quote", "what a job costs at most, signed", "cyx quote digits.toml -o price.json", "money:quote", options.quote
    ),
    Command(
        "submit",
        "check, pay and submit a job file",
        "cyx submit digits.toml --wait",
        "submitting:submit",
        options.submit,
    ),
    Command(
        "run",
        "submit the jobs of a workflow file, each to begin after those that it names",
        "cyx run examples/workflow.toml",
        "workflows:run",
        options.run,
    ),
    Command(
        "deploy",
        "have nodes serve a model: a file, or the model of a completed job",
        "cyx deploy digits-3f --replicas 2 --hours 8",
        "deployments:deploy",
        options.deploy,
    ),
    Command(
        "deployments",
        "list the deployments, with the state of each replica",
        "cyx deployments",
        "deployments:deployments",
        options.deployment_list,
    ),
    Command(
        "scale",
        "bring a deployment to another number of replicas",
        "cyx scale digits 3",
        "deployments:scale",
        options.scale,
    ),
    Command(
        "extend",
        "buy a deployment more time, at the price it has",
        "cyx extend digits --hours 8",
        "deployments:extend",
        options.extend,
    ),
    Command(
        "undeploy",
        "end a deployment; time that was not used comes back",
        "cyx undeploy digits",
        "deployments:undeploy",
        options.deployment,
    ),
    Command(
        "gateway",
        "a deployment at an address of this machine, with the OpenAI API, until Ctrl-C",
        "cyx gateway digits --port 8000",
        "gateway:gateway",
        options.gateway,
    ),
    Command(
        "ask",
        "ask a deployed model over the network",
        "cyx ask digits '{\"input\": [0.1, 0.2]}'",
        "deployments:ask",
        options.ask,
    ),
    Command(
        "check",
        "whether a deployment serves its model: ask, compute here, compare the bits",
        "cyx check digits",
        "serving:check",
        options.check,
    ),
    Command("watch", "follow a job from its first event to its end", "cyx watch digits-3f", "jobs:watch", options.job),
    Command("jobs", "list the jobs, newest first", "cyx jobs --status completed", "jobs:jobs", options.job_list),
    Command(
        "curves",
        "draw how the trainings of jobs went, epoch by epoch",
        "cyx curves digits-3f digits-a1 --of validation_accuracy",
        "curves:curves",
        options.curves,
    ),
    Command("job", "show one job", "cyx job digits-3f", "jobs:job", options.job),
    Command("get", "fetch the model of a job", "cyx get digits-3f -o digits.safetensors", "jobs:get", options.get),
    Command(
        "verify",
        "train a finished job again, here, and compare the model byte by byte",
        "cyx verify digits-3f",
        "serving:verify",
        options.verify,
    ),
    Command(
        "cancel",
        "stop jobs, or a run of a workflow; what was not earned comes back",
        "cyx cancel digits-3f",
        "jobs:cancel",
        options.cancel,
    ),
    Command(
        "refund",
        "have an escrow sent back whose deadline is past, with or without a central",
        "cyx refund digits-3f",
        "money:refund",
        options.refund,
    ),
    Command(
        "pause",
        "store a checkpoint and stop; the job waits to be resumed",
        "cyx pause digits-3f",
        "jobs:pause",
        options.job,
    ),
    Command("resume", "let a paused job go on from its checkpoint", "cyx resume digits-3f", "jobs:resume", options.job),
    Command(
        "priority",
        "give a job another place in the line, 0 to 9",
        "cyx priority digits-3f 9",
        "jobs:priority",
        options.job_priority,
    ),
    Command(
        "outbox",
        "the jobs that could not be submitted, because nobody answered",
        "cyx outbox --send",
        "submitting:sent_later",
        options.outbox,
    ),
    Command("explain", "why a job is where it is", "cyx explain digits-3f", "jobs:explain", options.job),
    Command("nodes", "list or find nodes", "cyx nodes --idle --sort price", "network:nodes", options.node_list),
    Command(
        "ban",
        "shut a node or a client out at once (operators only)",
        'cyx ban node-1 --reason "wrong models" --for 7d',
        "network:ban",
        options.ban,
    ),
    Command(
        "pardon", "end a node's or client's ban (operators only)", "cyx pardon node-1", "network:pardon", options.pardon
    ),
    Command("clients", "list the clients that are or were banned (operators only)", "cyx clients", "network:clients"),
    Command(
        "earnings",
        "what nodes were paid",
        "cyx earnings node-1 --explain digits-3f",
        "money:earnings",
        options.earnings,
    ),
    Command(
        "wallet", "show the wallet, or take test money", "cyx wallet --faucet 100", "network:wallet", options.wallet
    ),
    Command(
        "send",
        "send CYX from the wallet of this client, a node or the platform to another",
        "cyx send 7cHeo7vk7mJA7AdhSkU9hoYZy1xVWJCrTMhE1wM2Bip3 all --node node-1",
        "money:send",
        options.send,
    ),
    Command(
        "ledger",
        "ask the ledger in SQL, verify it, or read the balances of a time",
        'cyx ledger "select job_id, status from jobs"; cyx ledger verify; cyx ledger at 2026-11-26T14:30',
        "money:ledger",
        options.ledger,
    ),
    Command(
        "payouts",
        "whether the platform pays; operators freeze and release",
        'cyx payouts --release "looked at it"',
        "money:payouts",
        options.payouts,
    ),
    Command("id", "make, show, back up and bring back keys", "cyx id show", "keys:keys", options.identity),
    Command("key", "the API keys for HTTP: make, list and revoke them", "cyx key new", "access:keys", options.key),
    Command("graph", "check and describe graph files", "cyx graph check model.cyxgraph", "graphs:graph", options.graph),
    Command(
        "patterns",
        "the bundled models to start from: list them, or make one",
        "cyx patterns unet --set size=64 -o unet.cyxgraph",
        "graphs:patterns",
        options.patterns,
    ),
    Command("version", "print the version", "cyx version", "network:version"),
]


def parser(kind: type[options.Parser] = options.Parser) -> argparse.ArgumentParser:
    """The whole command line. Global options may stand before or behind the command."""
    top = kind(
        prog="cyx",
        description="Train machine-learning models on a network of nodes.",
        epilog="example: cyx train examples/digits.toml",
    )
    options.add_globals(top, before=True)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.about,
            description=command.about[0].upper() + command.about[1:] + ".",
            epilog=f"example: {command.example}",
        )
        command.arguments(sub)
        options.add_globals(sub, before=False)
        sub.set_defaults(run=command.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    args = parser(options.ParserForPrograms if "--json" in words else options.Parser).parse_args(words)
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
