"""Ask a deployment what is known here, and compare: whether its replicas serve the model that was deployed.

    cyx check DEPLOYMENT                     random rows
    cyx check DEPLOYMENT --rows data.npz     rows of one's own, which no replica can know to be a check

The model is fetched from the network by its digest (or is the --file that was deployed), and computed here. One that
computes on a CPU gives the same bits wherever it runs (the numeric class cyx-exact/1), so one number that differs
proves that another model answered, or another program. The questions are those that anybody asks, on the same subject:
a replica cannot tell them from others.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np
from msgspec import Struct

from cyxcore.errors import CyxError, FormatError
from cyxcore.model import load_model
from cyxcore.paths import check_file
from cyxnet.artifacts import describe
from cyxnet.cli.exits import DONE, WORLD_FAILED
from cyxnet.cli.running import connected, run
from cyxnet.cli.screen import Screen
from cyxnet.client import AsyncClient

QUESTIONS = 64


class NotChecked(CyxError):
    """It cannot be told whether the right model answers."""

    code = "not_checked"


class Checked(Struct, kw_only=True):
    """questions: how many were asked, of so many replicas; differ: answers that are not the model's, in words."""

    deployment: str
    model_sha256: str
    questions: int
    replicas: int
    differ: list[str]


async def check(args: argparse.Namespace, screen: Screen) -> int:
    async with connected(args) as client:
        with tempfile.TemporaryDirectory(prefix="cyx-check-") as folder:
            found = await checked(client, args.deployment, args.file, args.rows, args.questions, Path(folder), screen)
    screen.result(in_words(found), found)
    return WORLD_FAILED if found.differ else DONE


async def checked(
    client: AsyncClient, name: str, file: Path | None, rows: Path | None, count: int, folder: Path, screen: Screen
) -> Checked:
    """Raises ApiError for a deployment that is not there, NotChecked, and what reading the model raises."""
    for path, what in ((file, "the model file that was deployed"), (rows, "an NPZ file with an array x")):
        if path:
            check_file(path, what)
    view = await client.deployments.find(name)
    ref, serve = (view.newest.dataset, view.newest.serve) if view.newest else (None, None)
    if (serve and serve.format == "gguf") or (file and file.suffix == ".gguf"):
        raise NotChecked(
            f"{view.deployment} serves a language model, whose answers are drawn: only tensors are compared"
        )
    if file is None:
        if serve is None or ref is None:
            raise NotChecked(f"{view.deployment} is somebody else's: name the file that it should serve, with --file")
        file = folder / f"model.{serve.format}"
        await client.fetch(ref.sha256, file, lambda done, total: screen.advance("model", done, total))
    sha256 = (await asyncio.to_thread(describe, file)).sha256
    if ref is not None and sha256 != ref.sha256:
        raise NotChecked(f"{file}: is another file than the one that was deployed (SHA-256 {ref.sha256[:12]}…)")
    model = await asyncio.to_thread(load_model, file)
    inputs = await asyncio.to_thread(_rows, rows, count, model)
    expected = await asyncio.to_thread(model.predict, inputs)
    differ = []
    for number, (row, right) in enumerate(zip(inputs, expected, strict=True), start=1):
        answer = (await client.deployments.predict(view.deployment, row)).output
        screen.advance("questions", number, len(inputs))
        if why := _difference(answer, right):
            differ.append(f"question {number}: {why}")
    return Checked(
        deployment=view.deployment, model_sha256=sha256, questions=len(inputs), replicas=view.ready, differ=differ
    )


def _rows(path: Path | None, count: int, model: Any) -> Any:
    """Rows of the model's input: those of a file (array x of an NPZ file), or drawn anew each time."""
    shape = tuple(model.graph.input_shape)
    if path is not None:
        if not is_zipfile(path):  # NumPy would speak of pickles, and how they may be opened all the same
            raise FormatError(f"{path}: expected an NPZ file with an array x, got a file of another kind")
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                rows = held["x"][:count]
        except (OSError, ValueError, LookupError, EOFError, AttributeError, TypeError, BadZipFile) as error:
            raise FormatError(f"{path}: expected an NPZ file with an array x: {str(error)[:200]}") from None
        if rows.dtype.kind not in "biuf":
            raise FormatError(f"{path}: expected numbers, got x of {rows.dtype.name}")
        if rows.shape[1:] != shape or not len(rows):
            raise FormatError(f"{path}: expected rows of shape {list(shape)}, got x of shape {list(rows.shape)}")
        return rows
    dice, dtype = np.random.default_rng(), np.dtype(model.graph.nodes[model.graph.input].attrs["dtype"])
    drawn = dice.standard_normal((count, *shape)) if dtype.kind == "f" else dice.integers(0, 2, (count, *shape))
    return drawn.astype(dtype)


def _difference(answer: Any, right: Any) -> str | None:
    """What is wrong with an answer: any JSON that a replica came up with."""
    try:
        given = np.asarray(answer)
    except ValueError:  # lists of different lengths
        given = np.asarray(None)
    if given.dtype.kind not in {"f": "iuf", "i": "iu", "u": "iu"}.get(right.dtype.kind, right.dtype.kind):
        return f"expected numbers ({right.dtype.name}), got something else"
    if given.shape != right.shape:
        return f"expected numbers of shape {list(right.shape)}, got {list(given.shape)}"
    with np.errstate(all="ignore"):  # too large for its dtype, infinities
        got = given.astype(right.dtype)
        if np.array_equal(got, right, equal_nan=True):
            return None
        apart = np.abs(got.astype(np.float64) - right.astype(np.float64))
    return f"{int((got != right).sum())} of {right.size} numbers are others, by up to {np.max(apart):.3g}"


def in_words(found: Checked) -> str:
    of = f"{found.replicas} {'replica' if found.replicas == 1 else 'replicas'}"
    if not found.differ:
        return f"{found.deployment} serves its model: {found.questions} answers of {of} have its bits"
    first = "; ".join(found.differ[:3])
    return (
        f"{found.deployment} does NOT serve its model: {len(found.differ)} of {found.questions} answers of {of} are "
        f"others ({first}); end it: cyx undeploy {found.deployment}"
    )


def main() -> int:
    """What `cyx check` starts: it has read the command line, and passes on what was said."""
    parser = argparse.ArgumentParser(prog="cyx check", description="Ask a deployment what is known here, and compare.")
    parser.add_argument("deployment")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    for flag in ("--json", "--quiet", "--no-color", "--debug"):
        parser.add_argument(flag, action="store_true")
    return run(check, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
