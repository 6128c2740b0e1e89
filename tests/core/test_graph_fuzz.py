"""Damaged graph files compile or are refused in a line. `python -m tests.core.test_graph_fuzz SEED N` tries more."""

import json
import random
import sys
from typing import Any

import msgspec
import pytest

import cyxcore as cx
from cyxcore import patterns
from cyxcore.errors import CyxError
from cyxcore.nodekinds import KINDS

SMALL: dict[str, dict[str, Any]] = {
    "alexnet": {"size": 63, "width": 2, "hidden": 4, "classes": 3},
    "vgg16": {"size": 32, "width": 2, "hidden": 4, "classes": 3},
    "mobilenet": {"size": 32, "width": 2},
    "unet": {"size": 16, "filters": 2},
}
VALUES: list[Any] = [
    *(None, 0, 1, 2, 3, -1, 8, 64, 1.5, 0.5, True, "same", "x", "", "relu", "LSTM", "mean", "standard", "$x"),
    *([], {}, [1], [1, 2], [0, 2, 1], [2, 2, 2], [-1, 2], [[1, 2], [3, 4]], [None], {"a": 1}),
    *(2**31, 10**18, 1e300, -5),
]
PINS: list[Any] = [0, 0, 0, 1, 2, "labels", "state", -1, "x", None]


def damaged(dice: random.Random, file: dict[str, Any]) -> dict[str, Any]:
    """A copy with one to four changes."""
    file = json.loads(json.dumps(file))
    nodes, links = file["nodes"], file["links"]
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        node, link = dice.choice(nodes), dice.choice(links)
        kind = node.get("type")
        match dice.randrange(9):
            case 0:
                node["type"] = dice.choice(list(KINDS))
            case 1 if isinstance(kind, str) and kind in KINDS and KINDS[kind].options:
                if isinstance(node.setdefault("params", {}), dict):
                    node["params"][dice.choice(list(KINDS[kind].options))] = dice.choice(VALUES)
            case 2 if len(links) > 1:
                links.remove(link)
            case 3:
                ends = {"from": node["id"], "to": dice.choice(nodes)["id"]}
                links.append({**ends, "from_pin": dice.choice(PINS), "to_pin": dice.choice(PINS)})
            case 4 if len(nodes) > 1:
                nodes.remove(node)
            case 5:
                link[dice.choice(["from", "to"])] = node["id"]
            case 6:  # a node within a link
                nodes.append({"id": f"new{len(nodes)}", "type": dice.choice(list(KINDS))})
                links.append({"from": link["from"], "to": nodes[-1]["id"]})
                link["from"] = nodes[-1]["id"]
            case 7:
                node["shares"] = dice.choice(nodes)["id"]
            case 8:
                node[dice.choice(["id", "type", "params", "name", "pos", "unknown"])] = dice.choice(VALUES)
    return file


def tried(seed: int, count: int) -> int:
    """How many of `count` damaged files still compile. Whatever is not an answer is raised."""
    files = [msgspec.to_builtins(patterns.get(name, **SMALL.get(name, {}))) for name in patterns.names()]
    dice, compiled = random.Random(seed), 0
    for _ in range(count):
        file = damaged(dice, dice.choice(files))
        try:
            cx.load_graph(file, dice.choice([None, None, [64], [1, 28, 28]]))
            compiled += 1
        except CyxError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500, str(error)
    return compiled


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_file_compiles_or_is_refused_in_a_line(seed: int) -> None:
    assert 0 < tried(seed, 2000) < 2000


if __name__ == "__main__":
    print(tried(int(sys.argv[1]), int(sys.argv[2])), "of", sys.argv[2], "compiled, none crashed")
