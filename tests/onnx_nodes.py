"""ONNX's own node tests, against our operator table.

    python -m tests.onnx_nodes             every case of the installed onnx package: a table of what passed
    python -m tests.onnx_nodes FOLDER      the cases of a folder (onnx/backend/test/data/node of an older release);
                                           an answer that onnxruntime gives too is no failure
    python -m tests.onnx_nodes --write     docs/onnx.md anew, from the operator table and these cases

A case counts for the operators its graph names. It is run op by op on tensors, and once more as a graph of ours through
a Plan, where a graph can hold it.
"""

import argparse
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cyxcore.errors import CyxError, FormatError
from cyxcore.kernels.bfloat16 import BFLOAT16, widened
from cyxcore.onnx import OPERATORS, OnnxModel, load_bytes
from cyxcore.onnx.tensors import DTYPES
from cyxcore.plan import Plan

ROOT = Path(__file__).parents[1]


# Errors by which an operator refuses a part of itself that docs/onnx.md says is left out.
LIMITS = ("in training mode", "is not one Cyx knows of", "which is not supported", "other than two axes")


# What a refusal to read a case says: an operator or a type that is not in the table.
REFUSALS = (
    "is none Cyx runs",
    "which Cyx has not",
    "types Cyx has not",
    "sparse",
    "Cyx runs",
    "which Cyx does not read",
)
REFUSALS += ("expected an ONNX model of opset",)  # the case is of another domain alone
# Operators that onnx has no node tests of; tests/core/test_onnx.py compares them with onnxruntime.
WITHOUT_CASES = {"GlobalLpPool", "SequenceErase", "ConcatFromSequence", "MaxRoiPool"}


BFLOAT16_CODE = 16  # TensorProto.BFLOAT16


class Case(NamedTuple):
    name: str
    model: bytes
    sets: list[tuple[list[Any], list[Any]]]  # (inputs, outputs) of each run
    rtol: float
    atol: float


def installed() -> Iterator[Case]:
    """The cases that the onnx package makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        for case in collect_testcases(None):
            sets = [(list(inputs), list(outputs)) for inputs, outputs in case.data_sets]
            yield Case(case.name, case.model.SerializeToString(), sets, case.rtol, case.atol)


def stored(folder: Path) -> Iterator[Case]:
    """The cases of a release's folder: model.onnx and test_data_set_*/{input,output}_*.pb."""
    import onnx
    from onnx import helper, numpy_helper

    def read(path: Path, kind: Any) -> Any:
        data = path.read_bytes()
        if kind.HasField("sequence_type"):
            return [numpy_helper.to_array(t) for t in onnx.SequenceProto.FromString(data).tensor_values]
        if kind.HasField("optional_type"):
            held = onnx.OptionalProto.FromString(data)
            if held.HasField("tensor_value"):
                return numpy_helper.to_array(held.tensor_value)
            found = [numpy_helper.to_array(t) for t in held.sequence_value.tensor_values]
            return found if held.HasField("sequence_value") else None
        array, declared = numpy_helper.to_array(onnx.TensorProto.FromString(data)), kind.tensor_type.elem_type
        # releases before 1.19 stored the bits of bfloat16 as whole numbers
        return array.view(helper.tensor_dtype_to_np_dtype(declared)) if declared == BFLOAT16_CODE else array

    for path in sorted(folder.glob("*/model.onnx")):
        raw = path.read_bytes()
        graph = onnx.ModelProto.FromString(raw).graph
        sets = []
        try:
            for part in sorted(path.parent.glob("test_data_set_*")):
                kinds = (("input", graph.input), ("output", graph.output))
                found = [
                    [read(part / f"{what}_{n}.pb", value.type) for n, value in enumerate(values)]
                    for what, values in kinds
                ]
                sets.append((found[0], found[1]))
        except Exception as error:  # a type this onnx cannot read any more
            print(f"skipped {path.parent.name}: {error}", file=sys.stderr)
            continue
        yield Case(path.parent.name, raw, sets, 1e-3, 1e-7)


class Outcome(NamedTuple):
    """What became of a case: refused before it ran (why), or failed (why), or passed; as a graph too, or why not."""

    operators: list[str]
    opset: int
    refused: str = ""
    failed: str = ""
    in_graph: bool = False
    not_in_graph: str = ""


def bfloat16(array: Any) -> Any:
    """What ml_dtypes calls bfloat16, as ours."""
    return np.array(array, order="C").view(np.uint16).view(BFLOAT16) if str(array.dtype) == "bfloat16" else array


def ours(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [ours(entry) for entry in value]
    return None if value is None else bfloat16(np.asarray(value))


def differs(expected: Any, got: Any, case: Case) -> str:
    """Why two outputs are not the same; empty if they are."""
    if expected is None or got is None:
        return "" if expected is None and got is None else "one is absent"
    if isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            return f"expected a sequence of {len(expected)}"
        return next((why for pair in zip(expected, got, strict=True) if (why := differs(*pair, case))), "")
    rtol = case.rtol
    if expected.dtype == BFLOAT16:  # outputs of this type come as float32; a unit in the last place is 1/128
        expected, rtol = widened(expected), 2 / 128
    if expected.dtype != got.dtype or expected.shape != got.shape:
        return f"expected {expected.dtype} {expected.shape}, got {got.dtype} {got.shape}"
    try:
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=max(case.atol, 1e-6))
    except AssertionError as error:
        return " ".join(str(error).split())[:200]
    return ""


def attempt(case: Case) -> Outcome:
    try:
        model = load_bytes(case.model)
    except FormatError as error:
        return Outcome([], 0, refused=str(error))
    operators, opset = model.operators, model.opset
    for given, expected in case.sets:
        names = [signature.name for signature in model.inputs]
        feeds = dict(zip(names, map(ours, given), strict=False))
        if any(foreign(value) for value in [*given, *expected]):
            return Outcome(operators, opset, refused="types Cyx has not")
        try:
            got = model.run(feeds)
        except CyxError as error:
            kind = "refused" if any(why in str(error) for why in LIMITS) else "failed"
            return Outcome(operators, opset, **{kind: f"{type(error).__name__}: {error}"})
        for number, (wanted, one) in enumerate(zip(expected, got, strict=True)):
            why = differs(ours(wanted), one, case)
            if why:
                return Outcome(operators, opset, failed=f"output {number}: {why}")
    why = ""
    for given, expected in case.sets:
        why = why or as_graph(model, given, expected, case)
    return Outcome(operators, opset, in_graph=not why, not_in_graph=why)


def foreign(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(foreign, value))
    return value is not None and np.asarray(value).dtype.name not in DTYPES.values()


def as_graph(model: OnnxModel, given: list[Any], expected: list[Any], case: Case) -> str:
    """Why a case does not run as a graph of ours, empty if it does. Inputs that say shapes and axes are known."""
    names = [signature.name for signature in model.inputs]
    feeds = dict(zip(names, map(ours, given), strict=False))
    if any(not isinstance(value, np.ndarray) for value in [*feeds.values(), *map(ours, expected)]):
        return "sequences and optional values"
    told = {
        name
        for node in model.proto["graph"]["node"]
        for place, name in enumerate(node["input"])
        if place in OPERATORS[node["op_type"]].known
    }
    computed = {name: (value.shape, value.dtype.name) for name, value in feeds.items() if name not in told}
    if not computed:
        return "nothing to compute"
    try:
        graph, weights = model.graph_at(computed, {name: value for name, value in feeds.items() if name in told})
        if not any(node.op == "input" for node in graph.nodes):
            return "nothing to compute"
        plan = Plan(graph, weights)
    except CyxError as error:
        return str(error)
    for name in plan.inputs:
        plan.inputs[name][...] = feeds[name]
    plan.run()
    for wanted, one in zip(expected, plan.outputs, strict=True):
        why = differs(ours(wanted), np.asarray(one), case)
        if why:
            return f"WRONG: {why}"
    return ""


def peer_agrees(case: Case) -> bool:
    """Whether onnxruntime answers as we do, so that what a release stored of this case is what is wrong."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        session, model = onnxruntime.InferenceSession(case.model), load_bytes(case.model)
        for given, _ in case.sets:
            feeds = {put.name: value for put, value in zip(session.get_inputs(), given, strict=False)}
            theirs = session.run(None, {name: value for name, value in feeds.items() if value is not None})
            names = [signature.name for signature in model.inputs]
            mine = model.run(dict(zip(names, map(ours, given), strict=False)))
            if any(differs(ours(one), ours(other), case) for one, other in zip(theirs, mine, strict=True)):
                return False
    except Exception:  # it has exceptions of its own, for what it does not run
        return False
    return True


class Row(NamedTuple):
    cases: int = 0
    graphs: int = 0


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """The lines of docs/onnx.md's table: a row for each operator, with the cases that passed."""
    rows = {name: Row() for name in OPERATORS}
    for found in outcomes:
        for name in found.operators:
            if not found.refused and not found.failed:
                rows[name] = Row(rows[name].cases + 1, rows[name].graphs + found.in_graph)
    lines = ["| operator | from opset | in a graph | left out |", "|---|---|---|---|"]
    for name, row in sorted(rows.items()):
        graph = "yes" if row.graphs else "folded" if name in FOLDED else "no"
        lines.append(f"| {name} | {OPERATORS[name].since} | {graph} | {left_out(OPERATORS[name].limits)} |")
    return lines


# Made of what is known when a graph is read, so no node of it is left.
FOLDED = {
    "Constant",
    "ConstantOfShape",
    "Range",
    "Shape",
    "Size",
    "If",
    "Loop",
    "Scan",
    "Optional",
    "OptionalGetElement",
}
FOLDED |= {"OptionalHasElement", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "SequenceAt"}
FOLDED |= {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap"}
FOLDED |= {"SplitToSequence", "ConcatFromSequence", "EyeLike", "GlobalLpPool"}


def left_out(limits: str) -> str:
    return limits.replace("; in a graph (runs on tensors)", "").replace("in a graph (runs on tensors)", "").strip("; ")


HEAD, TAIL = "<!-- the table is written by python -m tests.onnx_nodes --write -->", "<!-- end of the table -->"


def write(outcomes: list[Outcome]) -> None:
    path = ROOT / "docs" / "onnx.md"
    text = path.read_text()
    before, after = text[: text.index(HEAD) + len(HEAD)], text[text.index(TAIL) :]
    path.write_text("\n".join([before, "", *table(outcomes), "", after]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("-v", action="store_true")
    args = parser.parse_args()
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    totals = [0, 0, 0, 0]
    refusals: dict[str, int] = defaultdict(int)
    outcomes, corrected = [], []
    for case in stored(args.folder) if args.folder else installed():
        if args.only not in case.name:
            continue
        found = attempt(case)
        outcomes.append(found)
        wrong = found.failed or (found.not_in_graph if found.not_in_graph.startswith("WRONG") else "")
        if wrong and args.folder and peer_agrees(case):
            corrected.append(case.name)
            continue
        row = 0 if found.refused else 1 if wrong else 3 if found.in_graph else 2
        totals[row] += 1
        for name in found.operators:
            counts[name][row] += 1
        if wrong:
            print(f"FAILED {case.name}: {wrong}")
        elif args.v:
            print(f"{case.name}: {found.refused or found.not_in_graph or 'passed, as a graph too'}")
        if found.refused:
            refusals[found.refused.split("(opset")[0][-60:]] += 1
    print(
        f"{sum(totals)} cases: {totals[0]} refused, {totals[1]} failed, {totals[2]} passed, {totals[3]} as a graph too"
    )
    if corrected:
        print(f"{len(corrected)} more hold another answer than ours and onnxruntime's: {', '.join(corrected)}")
    never = [name for name in OPERATORS if not counts[name][2] + counts[name][3]]
    print(f"{len(OPERATORS)} operators; without a case that passed: {', '.join(never) or 'none'}")
    if args.v:
        for why, count in sorted(refusals.items(), key=lambda item: -item[1])[:60]:
            print(f"  {count:4} {why}")

    if args.write:
        write(outcomes)
    return 1 if totals[1] else 0


if __name__ == "__main__":
    sys.exit(main())
