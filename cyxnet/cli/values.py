"""What stands behind an option, as a value: each function takes the text and says what it expected instead."""

import argparse
import re
from collections.abc import Callable

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
MOST = 10_000  # of what can be counted in an option


def count(text: str, least: int = 1) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"expected a number from {least} to {MOST}, got {text[:40]!r}")
    return int(text)


def count_or_none(text: str) -> int:
    return count(text, least=0)


def segment(text: str) -> str:
    """A part of a job's training: the step at which it ends, or `model`, or `any`."""
    step = text.isascii() and text.isdigit() and 1 <= int(text) <= 2**53
    if not step and text not in ("model", "any"):
        raise argparse.ArgumentTypeError(f"expected the step at which it ends, model or any, got {text[:40]!r}")
    return text


def sealing_key(text: str) -> tuple[str, str]:
    """A node's id and the key to seal to, as `cyx id show --node NAME` shows them."""
    found = re.fullmatch(r"([a-z0-9][a-z0-9-]{2,62})=([0-9a-f]{64})", text)
    if not found:
        what = "expected NODE=KEY, the sealing key that cyx id show --node NAME shows to the node's operator"
        raise argparse.ArgumentTypeError(f"{what}, got {text[:90]!r}")
    return found[1], found[2]


def replicas(text: str) -> tuple[int, int]:
    """How many at least and at most: one number for both, or MIN:MAX."""
    found = re.fullmatch(r"([0-9]{1,4})(?::([0-9]{1,4}))?", text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most <= 1000:
        what = "expected a number of replicas from 1 to 1000, or MIN:MAX such as 2:5"
        raise argparse.ArgumentTypeError(f"{what}, got {text[:40]!r}")
    return least, most


def between(least: float, most: float) -> Callable[[str], float]:
    """The type of a number from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = float("nan")
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {text[:40]!r}")
        return found

    return parse


def shape(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8}){0,7}", text):
        raise argparse.ArgumentTypeError(f"expected sizes such as 64 or 3,32,32, got {text[:40]!r}")
    return [int(size) for size in text.split(",")]


def setting(text: str) -> tuple[str, int | float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value) if re.search(r"[.eEn]", value) else int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, got {text[:40]!r}") from None


def priority(text: str) -> int:
    if not re.fullmatch(r"[0-9]", text):
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 9, got {text[:40]!r}")
    return int(text)


def rate(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.001 <= found <= 1e6:  # what a KeyNewRequest takes
        raise argparse.ArgumentTypeError(f"expected requests a second, from 0.001 to a million, got {text[:40]!r}")
    return found


def days(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 3650:
        raise argparse.ArgumentTypeError(f"expected 1 to 3650 days, got {text[:40]!r}")
    return int(text)


def name(text: str) -> str:
    if len(text) > 100:
        raise argparse.ArgumentTypeError(f"expected at most 100 letters, got {len(text)}")
    return text


def grant_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{12}([0-9a-f]{20})?", text):
        raise argparse.ArgumentTypeError(f"expected the 12 or 32 hex digits of an id, got {text[:40]!r}")
    return text


def job_id(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", text):
        raise argparse.ArgumentTypeError(f"expected an id of letters a-z, digits and dashes, got {text[:40]!r}")
    return text


def run_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{10}", text):
        raise argparse.ArgumentTypeError(f"expected the 10 hex digits of a run, got {text[:40]!r}")
    return text


def dependency(text: str) -> str:
    """A job, or what its model has to be worth: JOB.METRIC>=NUMBER. Read by cyxnet.workflow, which costs an import."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}(\.\w+\s*(>=|<=)\s*[-+.\deE]+)?", text):
        example = "a job's id, or such as digits-3f.validation_accuracy>=0.9"
        raise argparse.ArgumentTypeError(f"expected {example}, got {text[:60]!r}")
    return text


def address(text: str) -> str:
    if not re.fullmatch(r"[1-9A-HJ-NP-Za-km-z]{32,44}", text):
        raise argparse.ArgumentTypeError(f"expected a Solana address of 32 to 44 base58 letters, got {text[:50]!r}")
    return text


def reason(text: str) -> str:
    if len(text) > 2000:
        raise argparse.ArgumentTypeError(f"expected at most 2000 letters, got {len(text)}")
    return text


def said(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected words, got nothing")
    return reason(text)


def duration(text: str) -> int:
    """Seconds in a time as people write it."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhdw])", text)
    if match is None or (seconds := int(match[1]) * SECONDS[match[2]]) > 10 * 366 * 86_400:
        raise argparse.ArgumentTypeError(f"expected a time up to ten years, such as 12h or 7d, got {text[:40]!r}")
    return seconds


def sql(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a SELECT statement, got nothing")
    return text


def ip_address(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an IP address such as 0.0.0.0, got {text[:60]!r}") from None


def port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text[:40]!r}")
    return int(text)
