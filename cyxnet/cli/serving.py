"""Commands that become a process of a node: what a model is run with is not the network's to know."""

import argparse
import os
import sys
from typing import NoReturn

from cyxnet.cli.screen import Screen
from cyxnet.serveoptions import words


async def serve(args: argparse.Namespace, screen: Screen) -> int:
    flags = [f"--{name}" for name in ("json", "quiet", "debug") if getattr(args, name)]
    become("cyxnode.serving", *words(args), *flags)


async def verify(args: argparse.Namespace, screen: Screen) -> int:
    flags = [
        f"--{name}" for name in ("json", "quiet", "no-color", "debug", "tail") if getattr(args, name.replace("-", "_"))
    ]
    threads = ["--threads", str(args.threads)] if args.threads else []
    segment = ["--segment", args.segment] if args.segment else []
    become("cyxnode.verify", "--dir", str(args.dir), *threads, *segment, *flags, args.job)


async def check(args: argparse.Namespace, screen: Screen) -> int:
    flags = [f"--{name}" for name in ("json", "quiet", "no-color", "debug") if getattr(args, name.replace("-", "_"))]
    given = [(f"--{name}", str(getattr(args, name))) for name in ("file", "rows", "questions") if getattr(args, name)]
    become(
        "cyxnode.checking", "--dir", str(args.dir), *(word for pair in given for word in pair), *flags, args.deployment
    )


def become(module: str, *words: str) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *words])
