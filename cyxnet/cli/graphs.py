"""Commands about graph files: graph check, graph schema, graph kinds, patterns. They need no network."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import msgspec

from cyxcore.errors import SpecError
from cyxcore.nodekinds import KINDS, described
from cyxcore.patterns import Pattern, describe, get, names
from cyxcore.recipe import Recipe, load_graph
from cyxnet.cli.exits import DONE
from cyxnet.cli.screen import Screen


async def graph(args: argparse.Namespace, screen: Screen) -> int:
    ACTIONS[args.action](args, screen)
    return DONE


def _check(args: argparse.Namespace, screen: Screen) -> None:
    import cyxcore

    recipe = load_graph(args.file, args.input)
    summary = cyxcore.summary(recipe.graph, batch_size=args.batch_size)
    said = {name: getattr(recipe, name) for name in ("training", "data", "data_path")}
    shapes = {"graph_sha256": recipe.graph.sha256, "output_shape": list(recipe.graph.output_shape)}
    _lines(f"{summary}\n{_in_words(recipe)}", {**shapes, **said, "summary": summary}, screen)


def _lines(text: str, data: Any, screen: Screen) -> None:
    """Text as it is, line by line."""
    screen.table([""], [[line] for line in text.splitlines()], data)


def _in_words(recipe: Recipe) -> str:
    training = recipe.training
    schedule = "" if training.schedule.name == "constant" else f", {training.schedule.name}"
    warmup = f", {training.schedule.warmup_steps} steps of warm-up" if training.schedule.warmup_steps else ""
    return (
        f"trained by {training.optimizer.name} at {training.optimizer.learning_rate:g}{schedule}{warmup} on"
        f" {training.loss}, {training.epochs} epochs in batches of {training.batch_size};"
        f" {recipe.data.validation:.0%} of the rows held out"
    )


def _schema(args: argparse.Namespace, screen: Screen) -> None:
    from cyxcore.graphfile import schema

    found = schema()
    _lines(json.dumps(found, indent=2), found, screen)


def _kinds(args: argparse.Namespace, screen: Screen) -> None:
    columns = ["number", "kind", "in", "out", "parameters"]
    rows = [(name, *described(name)) for name in KINDS]
    screen.table(
        columns,
        [[number, name, pins, outputs, options] for name, number, pins, outputs, options in rows],
        [dict(zip(columns, (number, name, *rest), strict=True)) for name, number, *rest in rows],
    )


ACTIONS = {"check": _check, "schema": _schema, "kinds": _kinds}


async def patterns(args: argparse.Namespace, screen: Screen) -> int:
    """The list; with a name its parameters; with -o the file made of it."""
    if args.pattern is None:
        rows = [describe(name) for name in names()]
        screen.table(
            ["pattern", "category", "description"], [[one.name, one.category, one.description] for one in rows], rows
        )
        return DONE
    pattern = describe(args.pattern)
    if args.output is None and not args.set:
        _tell_parameters(pattern, screen)
        return DONE
    file = get(args.pattern, **dict(args.set))
    load_graph(file)
    if args.output is None:
        _lines(json.dumps(msgspec.to_builtins(file), indent=2), file, screen)
        return DONE
    _write(args.output, file.to_bytes(), args.force)
    screen.result(
        f"{args.output} is written; look at it with: cyx graph check {args.output}", {"path": str(args.output)}
    )
    return DONE


def _tell_parameters(pattern: Pattern, screen: Screen) -> None:
    rows = [[one.name, str(one.default), f"{one.min} to {one.max}", one.description] for one in pattern.parameters]
    screen.remark(pattern.name, pattern.description)
    screen.table(["parameter", "default", "range", "what it is"], rows, pattern)


def _write(path: Path, raw: bytes, force: bool) -> None:
    if path.suffix != ".cyxgraph":
        raise SpecError(f"{path}: expected a name that ends in .cyxgraph, got {path.suffix!r}")
    if os.path.lexists(path) and not force:
        raise SpecError(f"{path}: there is such a file already; choose another name or add --force")
    try:
        path.write_bytes(raw)
    except OSError as error:
        raise SpecError(f"{path}: cannot be written ({error.strerror})") from None
