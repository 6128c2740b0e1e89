"""The options of `cyx serve`, for the command line and for the process that serves."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def size(text: str) -> int:
    """A size as people write it ("4GB", "512 MiB") in bytes."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] == "i" or not (found := int(float(match[1]) * UNITS[match[2]])):
        raise argparse.ArgumentTypeError(f"expected a size such as 4GB or 512MiB, got {text[:40]!r}")
    return found


def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text[:40]!r}")
        return int(text)

    return parse


def milliseconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 10_000:
        raise argparse.ArgumentTypeError(f"expected 0 to 10000 milliseconds, got {text[:40]!r}")
    return found


def add_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Every option, added to the parser."""
    add = parser.add_argument
    return [
        add("file", type=Path, metavar="FILE", help="a model: .cyxmodel, .safetensors, .onnx or .gguf"),
        add("--name", metavar="NAME", help="what the model is called (default: the file's name)"),
        add("--host", default="127.0.0.1", metavar="H", help="where to listen (default 127.0.0.1)"),
        add("--port", type=whole(0, 65_535), default=8000, metavar="P", help="0: a free one (default 8000)"),
        add(
            "--api-key-file",
            type=Path,
            metavar="KEYS",
            help="who may ask: a line KEY [NAME [REQUESTS_A_MINUTE]] each; the variable CYX_API_KEY is one more key",
        ),
        add("--cert", type=Path, metavar="FILE", help="certificate chain (PEM), for HTTPS"),
        add("--key", type=Path, metavar="FILE", help="the key of the certificate (PEM)"),
        add("--behind-proxy", action="store_true", help="all connections are a proxy's: only their sum is limited"),
        add("--max-batch", type=whole(1, 4096), default=64, metavar="N", help="samples in one run (default 64)"),
        add(
            "--max-wait-ms",
            type=milliseconds,
            default=0.0,
            metavar="MS",
            help="how long a run waits for more samples (default 0: it takes those that came while the last one ran)",
        ),
        add("--max-queue", type=whole(1, 10**6), default=1024, metavar="N", help="samples that wait (default 1024)"),
        add("--max-body", type=size, default=32 * 2**20, metavar="SIZE", help="of a request (default 32MiB)"),
        add("--memory", type=size, metavar="SIZE", help="of weights and plans; of a language model's keys and values"),
        add("--context", type=whole(1, 2**24), metavar="N", help="tokens of prompt and answer (default: as trained)"),
        add("--threads", type=whole(1, 256), metavar="N", help="of the kernels (default: all cores)"),
        add("--drain-s", type=whole(0, 3600), default=30, metavar="S", help="for answers under way at the end (30)"),
    ]


def words(args: argparse.Namespace) -> list[str]:
    """The options of a namespace as a command line, less those that are as they are without a word."""
    said = []
    for action in add_options(argparse.ArgumentParser()):
        value = getattr(args, action.dest)
        if not action.option_strings:
            said.append(str(value))
        elif value != action.default:
            said += [action.option_strings[0]] if action.nargs == 0 else [f"{action.option_strings[0]}={value}"]
    return said
