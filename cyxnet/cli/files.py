"""`cyx convert` and `cyx inspect`: model files from one format to another, and what is in one."""

import argparse
import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

from cyxcore.errors import FormatError
from cyxcore.paths import check_file
from cyxnet.cli.exits import DONE
from cyxnet.cli.models import CONVERTED, output_path
from cyxnet.cli.options import GGUF_KINDS
from cyxnet.cli.screen import Screen
from cyxnet.display import human_bytes

TENSORS_SHOWN, EPOCHS_SHOWN = 40, 5
EPOCH_KEYS = ("epoch_loss", "epoch_accuracy", "validation_loss", "validation_accuracy", "validation_r2")


async def convert(args: argparse.Namespace, screen: Screen) -> int:
    """Read one model file, write another; the endings say the formats."""
    source, target = args.source, output_path(args.target, args.source.stem, force=args.force, suffixes=CONVERTED)
    check_file(source)
    if source.resolve() == target.resolve():
        raise FormatError(f"{target}: is the file that is read; give the copy another name")
    if ".gguf" in (source.suffix.lower(), target.suffix.lower()):
        return await _rewrite(args, source, target, screen)
    if args.quantize in GGUF_KINDS:
        raise FormatError(f"--quantize {args.quantize}: is a way to store matrices in a .gguf file; here int8 or fp16")
    done = await asyncio.to_thread(_convert, args, source, target, _advancing(screen))
    for line in done.pop("said", []):
        screen.say("quantised", line)
    screen.result(
        f"{source} → {target}: {done['tensors']} tensors, {human_bytes(done['bytes'])}, "
        f"model {done['graph_sha256'][:12]}",
        {"path": str(target), **done},
    )
    return DONE


async def _rewrite(args: argparse.Namespace, source: Path, target: Path, screen: Screen) -> int:
    """A language model, which has no graph."""
    for name in ("calibrate", "input", "take", "opset"):
        if getattr(args, name) is not None:
            raise FormatError(f"--{name}: says nothing about a .gguf file; leave it out")
    kind = {"fp16": "F16"}.get(args.quantize, args.quantize)
    if kind == "int8":
        raise FormatError(f"--quantize int8: expected a kind that a .gguf file has: {', '.join(GGUF_KINDS)}")
    done = await asyncio.to_thread(_rewritten, source, target, kind, _advancing(screen))
    in_kind = f", {done['changed']} of them now {kind}" if kind else ""
    size = human_bytes(done["bytes"])
    screen.result(f"{source} → {target}: {done['tensors']} tensors{in_kind}, {size}", {"path": str(target), **done})
    return DONE


def _rewritten(source: Path, target: Path, kind: str | None, advancing: Any) -> dict[str, Any]:
    import cyxcore

    done: dict[str, Any] = cyxcore.rewrite_gguf(
        source, target, kind, advancing(f"writing {target.name}", _size(source))
    )
    return done


def _convert(args: argparse.Namespace, source: Path, target: Path, advancing: Any) -> dict[str, Any]:
    import cyxcore

    if args.calibrate is not None and not args.quantize:
        raise FormatError("--calibrate: says what --quantize costs; give --quantize int8 or fp16, or leave it out")
    options = {"external_data": args.external_data or None, "input_shape": args.input, "output": args.take}
    model = cyxcore.load_model(source, advance=advancing(f"reading {source.name}", _size(source)), **options)
    total = sum(array.nbytes for array in model.weights.values())
    report = None
    if args.quantize:
        rows, labels = (None, None) if args.calibrate is None else _calibration(args.calibrate)
        model, report = cyxcore.quantize(model, args.quantize, rows, labels)
    model.save(target, advance=advancing(f"writing {target.name}", total), opset=args.opset)
    done = {"bytes": _size(target), "tensors": len(model.weights), "graph_sha256": model.graph.sha256}
    return done if report is None else {**done, "quantisation": report._asdict(), "said": str(report).splitlines()}


def _calibration(path: Path) -> tuple[Any, Any]:
    """Rows and labels of an NPZ file: arrays x and, for loss and accuracy, y. No pickle in it is opened."""
    import numpy as np

    check_file(path, "an NPZ file with an array x")
    try:
        if not is_zipfile(path):  # NumPy would speak of pickles, and how they may be opened all the same
            raise FormatError(f"{path}: expected an NPZ file with an array x, got a file of another kind")
        with np.load(path, allow_pickle=False) as held:
            if "x" not in held:
                raise FormatError(f"{path}: expected an array x, rows of the model's input; got {', '.join(held)[:80]}")
            return held["x"], held["y"] if "y" in held else None
    except (OSError, ValueError, EOFError, BadZipFile, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: expected an NPZ file with an array x: {str(error)[:200]}") from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _advancing(screen: Screen) -> Callable[[str, int], Callable[[int], None]]:
    """Progress of the work in a thread, shown by the screen of the loop."""
    loop = asyncio.get_running_loop()

    def of(what: str, total: int) -> Callable[[int], None]:
        def advance(done: int) -> None:
            loop.call_soon_threadsafe(screen.advance, what, min(done, total), total or 1)

        return advance

    return of


async def inspect(args: argparse.Namespace, screen: Screen) -> int:
    """Show graph, shapes, sizes, hashes and history of a model file."""
    check_file(args.file)
    advance = _advancing(screen)(f"reading {args.file.name}", _size(args.file))
    found = await asyncio.to_thread(_describe, args, advance)
    if args.json:
        screen.table([], [], found)
        return DONE
    screen.table(["", ""], [[label, text] for label, text in _lines(found)], found)
    for columns, rows in _tables(found, None if args.all else TENSORS_SHOWN):
        screen.table(columns, rows, found)
    return DONE


def _tables(found: dict[str, Any], most: int | None) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Layers, tensors, the last epochs: (columns, rows) of each that there is."""
    layers, tensors, history = (found.get(key, []) for key in ("layers", "tensors", "history"))
    if layers:
        rows = [[row["layer"] or "-", _sizes(row["output"]), f"{row['parameters']:,}"] for row in layers]
        yield ["layer", "output", "parameters"], rows
    if tensors:
        rows = [
            [row["name"], row["dtype"], _sizes(row["shape"]), human_bytes(row["bytes"]), row["sha256"][:12]]
            for row in tensors[:most]
        ]
        if len(rows) < len(tensors):
            rows.append([f"and {len(tensors) - len(rows)} more (--all)", "", "", "", ""])
        yield ["tensor", "dtype", "shape", "size", "SHA-256"], rows
    if history:
        kept = [key for key in EPOCH_KEYS if history[-1].get(key) is not None]
        rows = [
            [str(epoch["epoch"]), *(f"{epoch.get(key, float('nan')):.4f}" for key in kept)]
            for epoch in history[-EPOCHS_SHOWN:]
        ]
        yield ["epoch", *(key.replace("_", " ") for key in kept)], rows


def _sizes(shape: list[int]) -> str:
    return "×".join(map(str, shape)) or "1"


def _describe(args: argparse.Namespace, advance: Callable[[int], None]) -> dict[str, Any]:
    import cyxcore

    found: dict[str, Any] = cyxcore.describe_model(args.file, advance, external_data=args.external_data or None)
    return found


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts that are one line each."""
    graph = found.get("graph")
    kind = found.get("version", found["format"])
    lines = [("file", f"{found['path']}: {kind}, {human_bytes(found.get('bytes', 0))}")]
    if "sha256" in found:
        lines.append(("SHA-256", found["sha256"]))
    if "opset" in found:
        lines.append(("ONNX", f"opset {found['opset']}, by {found['producer'] or 'nobody named'}"))
        lines.append(("operators", ", ".join(found["operators"])))
    if graph:
        sizes = [_sizes(graph[key]) for key in ("input", "output")]
        lines.append(("model", graph["sha256"]))
        lines.append(("graph", f"{sizes[0]} ({graph['input_dtype']}) → {sizes[1]}, {graph['nodes']} nodes"))
        lines.append(
            ("costs", f"{graph['parameters']:,} parameters, {graph['flops_per_sample']:,} operations a sample")
        )
    elif found.get("model"):
        lines.append(("model", f"none: {found['model']}"))
    facts = found.get("facts", {})
    if facts.get("classes"):
        lines.append(("classes", ", ".join(facts["classes"])))
    for key, value in sorted(facts.get("about", {}).items()):
        lines.append((key, value))
    if facts.get("summary"):
        summary = facts["summary"]
        steps, rows, epoch = (summary[key] for key in ("steps", "train_rows", "delivered_epoch"))
        lines.append(("trained", f"{steps} steps on {rows} rows, epoch {epoch} kept"))
    if found.get("numerics"):
        lines.append(("numerics", found["numerics"]))
    if found.get("training_state_bytes"):
        lines.append(("resumes", f"from {human_bytes(found['training_state_bytes'])} of training state"))
    return lines
