"""A short round of the fuzz, and that it would find a program that breaks a rule."""

import inspect

import pytest

from tests.escrow import model
from tests.escrow.__main__ import main
from tests.escrow.fuzz import Arena, Divergence, Life

SHORT_ROUND = 1_500


@pytest.fixture(scope="module")
def arena() -> Arena:
    return Arena()


def test_the_program_does_what_the_model_does(arena: Arena) -> None:
    for seed in range(SHORT_ROUND):
        Life(arena, seed).play()
    reached = set(arena.outcomes)
    assert {"open", "assign", "settle", "release", "refund", "give up"} <= reached
    # Every refusal but "too little", which nothing can bring about: only the program takes from a vault.
    assert {f"refused {code}" for why, code in model.CODES.items() if why != "too little"} <= reached


# A rule of the model, and what a program without it would do. The machine then differs, and the fuzz must notice.
RULES = [
    ('require({payer, client} <= call.signers, "not signed")', ""),
    ('require(chain.now_s < deadline_s <= chain.now_s + LONGEST_S, "deadline")', ""),
    ('require(mine not in nodes, "nodes")', ""),
    ('require(assigner == state.assigner, "not allowed")', ""),
    ('require(call.keys[0] == state.authority, "not allowed")', ""),
    ('require(call.keys[0] == state.client, "not allowed")', ""),
    ('require(len(nodes) == 1, "nodes")', ""),
    ('require(nobody_left or call.chain.now_s >= state.deadline_s, "too early")', ""),
    ("nobody_left or call.chain.now_s >= state.deadline_s", "call.chain.now_s > state.deadline_s"),
    ('require(destinations == pinned, "destination")', ""),
    ('require(sum(pays) <= state.amount, "pay")', ""),
    ("pay * state.fee_basis_points // 10_000", "-(-pay * state.fee_basis_points // 10_000)"),
    ("vault.amount - sum(pays)", "state.amount - sum(pays)"),
    ("vault.lamports + state.lamports", "vault.lamports"),
    ("max(0, rent(size) - lamports)", "rent(size)"),
    ("tuple(each for each in state.nodes if each != mine)", "state.nodes"),
]


@pytest.mark.parametrize(("rule", "broken"), RULES)
def test_a_program_that_broke_this_rule_would_be_found(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, rule: str, broken: str
) -> None:
    source = inspect.getsource(model)
    assert source.count(rule) == 1
    namespace = {"__name__": model.__name__}
    exec(compile(source.replace(rule, broken or "pass"), "a broken model", "exec"), namespace)
    for name in ("Wallet", "Mint", "Token", "State", "Refusal", "Meta", "Chain"):
        namespace[name] = getattr(model, name)
    monkeypatch.setattr(model, "transact", namespace["transact"])
    with pytest.raises((Divergence, AssertionError, KeyError, OverflowError)):
        for seed in range(SHORT_ROUND):
            Life(arena, seed).play()


def test_the_command_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sequences", "3", "--json"]) == 0
    assert '"sequences": 3' in capsys.readouterr().out
    assert main(["--replay", "7"]) == 0
    assert ": 0 divergences" in capsys.readouterr().out
