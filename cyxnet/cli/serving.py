"""Commands about models that answer: serve."""

import argparse
import os
import sys

from cyxnet.cli.screen import Screen
from cyxnet.serveoptions import words


async def serve(args: argparse.Namespace, screen: Screen) -> int:
    """This process becomes the one that serves: what a model is run with is not the network's to know."""
    flags = [f"--{name}" for name in ("json", "quiet", "debug") if getattr(args, name)]
    os.execv(sys.executable, [sys.executable, "-m", "cyxnode.serving", *words(args), *flags])
