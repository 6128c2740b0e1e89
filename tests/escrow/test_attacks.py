"""What somebody could try against an escrow, one thing each, on the real virtual machine."""

import pytest
from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import ID as SYSTEM
from solders.system_program import TransferParams, transfer
from solders.token import ID as TOKEN

from tests.escrow.machine import TOKEN_RENT_LAMPORTS, Refused, mint_bytes, token_account
from tests.escrow.scene import AMOUNT, DAY_S, RICH_BASE_UNITS, Scene, open_data, settle_data

BAD_DATA, BAD_ACCOUNTS, NOT_SIGNED, BAD_PROGRAM, BAD_ADDRESS, BAD_MINT, BAD_TERMS, BAD_DEADLINE = range(1000, 1008)
NOT_OPEN, BAD_DESTINATION, BAD_NODES, BAD_PAY, NOT_ALLOWED, TOO_EARLY, TOO_LITTLE = range(1008, 1015)
STATE_RENT_LAMPORTS = (128 + 376) * 6_960


@pytest.fixture(scope="module")
def deployed() -> Scene:
    return Scene()


@pytest.fixture
def scene(deployed: Scene) -> Scene:
    """Other people and another token on the same machine, whose clock is set back."""
    deployed.machine.set_time(1_700_000_000)
    return Scene(deployed.machine, deployed.program)


def refused(scene: Scene, *instructions: Instruction) -> int | None:
    """The number of the error, after a look that nothing moved."""
    before = [scene.held(name) for name in ("client", "node", "platform", "stranger", "vault")], scene.state()
    with pytest.raises(Refused) as error:
        scene.send(*instructions)
    assert before == ([scene.held(name) for name in ("client", "node", "platform", "stranger", "vault")], scene.state())
    return error.value.code


def as_role(scene: Scene, role: str, who: str) -> dict[str, Pubkey]:
    return {role: scene.places[who]}


# Who may.


@pytest.mark.parametrize("thief", ["stranger", "client", "node", "platform", "assigner"])
def test_only_the_authority_settles(scene: Scene, thief: str) -> None:
    scene.opened(assigned=1)
    assert refused(scene, scene.settling(AMOUNT, swap=as_role(scene, "authority", thief))) == NOT_ALLOWED


def test_naming_the_authority_is_not_its_signature(scene: Scene) -> None:
    scene.opened(assigned=1)
    assert refused(scene, scene.settling(AMOUNT, unsigned=["authority"])) == NOT_SIGNED


@pytest.mark.parametrize("thief", ["stranger", "authority", "node"])
def test_only_the_client_releases(scene: Scene, thief: str) -> None:
    scene.opened(assigned=1)
    assert refused(scene, scene.releasing(swap=as_role(scene, "client", thief))) == NOT_ALLOWED


@pytest.mark.parametrize("thief", ["stranger", "authority", "client", "node"])
def test_only_the_assigner_names_nodes(scene: Scene, thief: str) -> None:
    scene.opened()
    thieves = scene.instruction("assign", nodes=[scene.places["node"]], swap=as_role(scene, "assigner", thief))
    assert refused(scene, thieves) == NOT_ALLOWED


def test_nobody_names_nodes_when_the_client_allowed_nobody(scene: Scene) -> None:
    scene.opened(swap={"assigner": SYSTEM})
    nobody = scene.instruction("assign", nodes=[scene.places["node"]], swap={"assigner": SYSTEM}, unsigned=["assigner"])
    assert refused(scene, nobody) == NOT_SIGNED


@pytest.mark.parametrize("role", ["client", "payer"])
def test_nobody_opens_an_escrow_with_the_money_of_another(scene: Scene, role: str) -> None:
    sponsored = {"payer": scene.places["stranger"]}
    assert refused(scene, scene.opening(swap=sponsored, unsigned=[role])) == NOT_SIGNED


def test_a_stranger_cannot_take_the_address_of_a_clients_job(scene: Scene) -> None:
    theirs = {"client": scene.places["stranger"], "client_token": scene.token(scene.places["stranger"])}
    assert refused(scene, scene.opening(swap=theirs)) == BAD_ADDRESS


def test_a_node_cannot_give_up_for_another(scene: Scene) -> None:
    scene.opened(assigned=1)
    assert refused(scene, scene.instruction("give_up", swap=as_role(scene, "node", "stranger"))) == BAD_NODES
    assert refused(scene, scene.instruction("give_up", unsigned=["node"])) == NOT_SIGNED


# Where to.


@pytest.mark.parametrize("role", ["platform_token", "client_token", "payer"])
def test_money_goes_nowhere_but_where_the_client_said(scene: Scene, role: str) -> None:
    scene.opened(assigned=1)
    thief = scene.places["stranger"] if role == "payer" else scene.token(scene.places["stranger"])
    assert refused(scene, scene.settling(10, swap={role: thief})) == BAD_DESTINATION


def test_a_node_that_was_not_assigned_is_not_paid(scene: Scene) -> None:
    scene.opened(assigned=1)
    thief = scene.token(scene.places["stranger"])
    assert refused(scene, scene.instruction("settle", settle_data(10), [thief])) == BAD_DESTINATION


def test_two_nodes_are_not_paid_in_each_others_place(scene: Scene) -> None:
    scene.opened(assigned=2)
    turned = [scene.token(node.pubkey()) for node in (scene.nodes[1], scene.nodes[0])]
    assert refused(scene, scene.instruction("settle", settle_data(10, 20), turned)) == BAD_DESTINATION


def test_an_account_of_the_nodes_that_is_not_its_associated_one_is_not_paid(scene: Scene) -> None:
    scene.opened(assigned=1)
    other = Pubkey.new_unique()
    scene.machine.svm.set_account(other, token_account(scene.mint, scene.places["node"], 0))
    assert refused(scene, scene.instruction("settle", settle_data(10), [other])) == BAD_DESTINATION


def test_a_token_account_of_another_mint_is_not_paid(scene: Scene) -> None:
    scene.opened(assigned=1)
    worthless = other_mint(scene)
    theirs = scene.set_token(scene.places["node"], 0, worthless)
    assert refused(scene, scene.instruction("settle", settle_data(10), [theirs])) == BAD_DESTINATION


def test_a_settlement_in_another_mint_is_refused(scene: Scene) -> None:
    scene.opened(assigned=1)
    assert refused(scene, scene.settling(10, swap={"mint": other_mint(scene)})) == BAD_MINT


def test_the_vault_of_another_escrow_is_not_emptied(scene: Scene) -> None:
    scene.opened(assigned=1)
    mine = scene.places["vault"]
    scene.job = b"2" * 32
    scene.find_places()
    scene.opened(assigned=1)
    assert refused(scene, scene.settling(10, swap={"vault": mine})) == BAD_ADDRESS


def test_the_state_of_another_escrow_does_not_open_this_vault(scene: Scene) -> None:
    scene.opened(assigned=1)
    mine = scene.places["state"]
    scene.job = b"2" * 32
    scene.find_places()
    scene.opened(assigned=1)
    assert refused(scene, scene.settling(10, swap={"state": mine})) == BAD_ADDRESS


def other_mint(scene: Scene) -> Pubkey:
    mint = Pubkey.new_unique()
    scene.machine.svm.set_account(mint, Account(1_461_600, mint_bytes(), TOKEN, False, 0))
    return mint


# How much.


@pytest.mark.parametrize("pays", [(AMOUNT + 1,), (2**64 - 1,), (AMOUNT, 1), (2**63, 2**63), (2**64 - 1, 2, AMOUNT)])
def test_no_more_is_paid_than_the_amount_and_no_sum_overflows(scene: Scene, pays: tuple[int, ...]) -> None:
    scene.opened(assigned=len(pays))
    scene.set_vault(AMOUNT + 10)  # dust is the client's, and not there to be paid out
    assert refused(scene, scene.settling(*pays)) == BAD_PAY


def test_the_largest_amount_there_can_be_is_divided_to_the_last_unit(scene: Scene) -> None:
    most = 2**64 - 1
    scene.set_token(scene.places["client"], most)
    scene.opened(assigned=1, amount=most, fee=9_999)
    scene.send(scene.settling(most))
    fee = most * 9_999 // 10_000
    assert [scene.held("node"), scene.held("platform")] == [most - fee, fee]


@pytest.mark.parametrize(("fee", "node"), [(0, 7), (10_000, 0)])
def test_a_share_of_nothing_needs_no_account_to_go_to(scene: Scene, fee: int, node: int) -> None:
    scene.opened(assigned=1, amount=7, fee=fee)
    unpaid = scene.token(scene.places["node" if fee else "platform"])
    scene.machine.svm.set_account(unpaid, Account(0, b"", SYSTEM, False, 0))
    scene.send(scene.settling(7))
    assert [scene.held("node"), scene.held("platform")] == [node, 7 - node]


@pytest.mark.parametrize("wrong", [{"amount": 0}, {"fee": 10_001}, {"fee": 65_535}])
def test_terms_that_cannot_be_are_refused(scene: Scene, wrong: dict[str, int]) -> None:
    assert refused(scene, scene.opening(**wrong)) == BAD_TERMS


def test_an_amount_that_the_client_does_not_have_is_refused(scene: Scene) -> None:
    assert refused(scene, scene.opening(amount=RICH_BASE_UNITS + 1)) == 1  # the token program: insufficient funds


# When.


@pytest.mark.parametrize("seconds", [0, -1, -(2**62), 400 * DAY_S + 1, 2**62])
def test_a_deadline_that_is_past_or_in_another_unit_is_refused(scene: Scene, seconds: int) -> None:
    scene.deadline_s = scene.machine.now_s + seconds
    assert refused(scene, scene.opening()) == BAD_DEADLINE


def test_no_refund_before_the_deadline(scene: Scene) -> None:
    scene.opened(assigned=1)
    scene.machine.set_time(scene.deadline_s - 1)
    assert refused(scene, scene.instruction("refund")) == TOO_EARLY


def test_no_refund_before_the_deadline_while_a_node_can_still_be_named(scene: Scene) -> None:
    scene.opened()
    assert refused(scene, scene.instruction("refund")) == TOO_EARLY


def test_a_settlement_after_the_deadline_works_until_somebody_refunds(scene: Scene) -> None:
    scene.opened(assigned=1)
    scene.machine.set_time(scene.deadline_s + 1)
    scene.send(scene.settling(10))
    assert scene.held("node") == 9


# Once.


def test_an_open_escrow_is_not_opened_again(scene: Scene) -> None:
    scene.opened(assigned=1)
    assert refused(scene, scene.opening(amount=1, fee=0)) == 0  # the system program: the account is in use


def test_an_escrow_is_settled_once(scene: Scene) -> None:
    scene.opened(assigned=1)
    scene.send(scene.settling(10))
    assert refused(scene, scene.settling(10)) == NOT_OPEN


def test_a_second_settlement_in_the_same_transaction_takes_the_first_back(scene: Scene) -> None:
    scene.opened(assigned=1)
    assert refused(scene, scene.settling(10), scene.settling(10)) == NOT_OPEN


def test_a_state_that_gets_lamports_as_it_closes_is_not_revived(scene: Scene) -> None:
    scene.opened(assigned=1)
    revive = transfer(
        TransferParams(from_pubkey=scene.places["stranger"], to_pubkey=scene.places["state"], lamports=10**8)
    )
    scene.send(scene.settling(10), revive)
    account = scene.machine.svm.get_account(scene.places["state"])
    assert account is not None and (account.owner, bytes(account.data)) == (SYSTEM, b"")
    assert refused(scene, scene.settling(10)) == NOT_OPEN


def test_opened_and_settled_in_one_transaction_pays_once(scene: Scene) -> None:
    scene.send(scene.opening(), scene.assigning(scene.nodes[0]), scene.settling(10))
    assert [scene.held("node"), scene.held("client")] == [9, RICH_BASE_UNITS - 10]


# What was prepared.


def test_lamports_sent_ahead_to_state_and_vault_do_not_prevent_the_opening(scene: Scene) -> None:
    before = scene.lamports("client")
    for place in ("state", "vault"):
        scene.machine.give(scene.places[place], 10**7)
    scene.opened(assigned=1)
    scene.send(scene.settling(10))
    assert scene.lamports("client") == before + 2 * 10**7


@pytest.mark.parametrize("ahead", [1, 890_880, STATE_RENT_LAMPORTS - 1])
def test_lamports_sent_ahead_count_as_rent(scene: Scene, ahead: int) -> None:
    before = scene.lamports("client")
    scene.machine.give(scene.places["state"], ahead)
    scene.opened()
    assert before - scene.lamports("client") == STATE_RENT_LAMPORTS + TOKEN_RENT_LAMPORTS - ahead


def test_one_unit_sent_to_the_vault_goes_to_the_client(scene: Scene) -> None:
    scene.opened(assigned=1)
    scene.set_vault(AMOUNT + 1)
    scene.send(scene.settling(AMOUNT))
    assert [scene.held("node"), scene.held("client")] == [AMOUNT * 9 // 10, RICH_BASE_UNITS - AMOUNT + 1]


def test_an_account_that_a_stranger_made_for_the_program_is_no_state(scene: Scene) -> None:
    forged = Pubkey.new_unique()
    scene.opened(assigned=1)
    scene.machine.svm.set_account(forged, Account(10**9, bytes(376), scene.program, False, 0))
    assert refused(scene, scene.settling(10, swap={"state": forged})) == NOT_OPEN


def test_a_copy_of_a_state_under_another_program_is_no_state(scene: Scene) -> None:
    forged = Pubkey.new_unique()
    scene.opened(assigned=1)
    scene.machine.svm.set_account(forged, Account(10**9, scene.state(), TOKEN, False, 0))
    assert refused(scene, scene.settling(10, swap={"state": forged})) == NOT_OPEN


@pytest.mark.parametrize("at", ["state", "vault"])
def test_an_escrow_opens_at_no_other_address(scene: Scene, at: str) -> None:
    assert refused(scene, scene.opening(swap={at: Pubkey.new_unique()})) == BAD_ADDRESS


@pytest.mark.parametrize("role", ["token_program", "system_program"])
def test_no_other_program_stands_in(scene: Scene, role: str) -> None:
    assert refused(scene, scene.opening(swap={role: Pubkey.new_unique()})) == BAD_PROGRAM


def test_what_is_no_mint_is_none(scene: Scene) -> None:
    assert refused(scene, scene.opening(swap={"mint": scene.places["client_token"]})) == BAD_MINT


def test_a_mint_of_another_token_program_is_none(scene: Scene) -> None:
    theirs = Pubkey.new_unique()
    scene.machine.svm.set_account(theirs, Account(1_461_600, mint_bytes(), scene.program, False, 0))
    assert refused(scene, scene.opening(swap={"mint": theirs})) == BAD_MINT


# Nodes.


def test_a_fifth_node_is_refused(scene: Scene) -> None:
    scene.opened(assigned=4)
    assert refused(scene, scene.assigning(scene.nodes[4])) == BAD_NODES


def test_a_node_is_assigned_once(scene: Scene) -> None:
    scene.opened(assigned=1)
    assert refused(scene, scene.assigning(scene.nodes[0])) == BAD_NODES
    assert refused(scene, scene.assigning(scene.nodes[1], scene.nodes[1])) == BAD_NODES


def test_a_node_that_gave_up_is_not_paid(scene: Scene) -> None:
    scene.opened(assigned=2)
    scene.send(scene.instruction("give_up"))
    assert refused(scene, scene.instruction("settle", settle_data(10), [scene.token(scene.places["node"])])) == (
        BAD_DESTINATION
    )


def test_the_client_cannot_release_the_pay_of_two_nodes_to_one(scene: Scene) -> None:
    scene.opened(assigned=2)
    both = [scene.token(node.pubkey()) for node in scene.nodes[:2]]
    assert refused(scene, scene.instruction("release", nodes=both)) == BAD_NODES
    assert refused(scene, scene.releasing()) == BAD_ACCOUNTS


def test_nothing_is_released_to_nobody(scene: Scene) -> None:
    scene.opened()
    assert refused(scene, scene.instruction("release")) == BAD_NODES


def test_a_client_that_is_also_the_node_and_the_platform_gets_everything_back(scene: Scene) -> None:
    alone = {"platform": scene.places["client"], "platform_token": scene.places["client_token"]}
    scene.send(scene.opening(swap=alone))
    scene.send(scene.assigning(scene.keys["client"]))
    scene.send(scene.instruction("settle", settle_data(10), [scene.places["client_token"]], swap=alone))
    assert scene.held("client") == RICH_BASE_UNITS


# Recipients.


def test_a_recipient_that_closed_its_account_blocks_until_anybody_opens_it_again(scene: Scene) -> None:
    scene.opened(assigned=1)
    account = scene.token(scene.places["node"])
    scene.machine.svm.set_account(account, Account(0, b"", SYSTEM, False, 0))
    with pytest.raises(Refused):
        scene.send(scene.settling(10))
    roles = ((scene.sponsor.pubkey(), "sw"), (account, "w"), (scene.places["node"], ""), (scene.mint, ""))
    metas = [AccountMeta(key, "s" in flags, "w" in flags) for key, flags in (*roles, (SYSTEM, ""), (TOKEN, ""))]
    associated = Pubkey.from_string("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL")
    scene.send(Instruction(associated, b"\x01", metas), scene.settling(10))
    assert scene.held("node") == 9


def test_a_recipient_that_gave_its_account_away_is_paid_as_it_is(scene: Scene) -> None:
    scene.opened(assigned=1)
    account = scene.token(scene.places["node"])
    scene.machine.svm.set_account(account, token_account(scene.mint, scene.places["stranger"], 0))
    scene.send(scene.settling(10))
    assert scene.held("node") == 9


# Shapes.


@pytest.mark.parametrize("name", ["open", "assign", "settle", "release", "refund", "give_up"])
def test_an_account_too_few_is_refused(scene: Scene, name: str) -> None:
    if name != "open":
        scene.opened(assigned=1)
    good = {"open": scene.opening, "settle": lambda: scene.settling(10), "release": scene.releasing}.get(
        name, lambda: scene.instruction(name)
    )()
    short = Instruction(good.program_id, bytes(good.data), good.accounts[:-1])
    assert refused(scene, short) == BAD_ACCOUNTS


@pytest.mark.parametrize("data", [b"", b"\x06", b"\xff", b"\x00", b"\x00" * 50, b"\x00" * 52])
def test_data_that_is_no_instruction_is_refused(scene: Scene, data: bytes) -> None:
    assert refused(scene, scene.instruction("open", data)) == BAD_DATA


@pytest.mark.parametrize("data", [settle_data(), settle_data(10)[:-1], settle_data(10, 20), b"\x02" + bytes(9)])
def test_a_settlement_names_a_pay_for_each_node(scene: Scene, data: bytes) -> None:
    scene.opened(assigned=1)
    assert refused(scene, scene.instruction("settle", data, [scene.token(scene.places["node"])])) == BAD_DATA


def test_a_job_of_other_bytes_has_another_address(scene: Scene) -> None:
    other = open_data(1000, AMOUNT, scene.deadline_s, b"2" * 32)
    assert refused(scene, scene.instruction("open", other)) == BAD_ADDRESS


def test_more_accounts_than_an_instruction_can_have_are_refused(scene: Scene) -> None:
    keys = [Keypair().pubkey() for _ in range(9)]
    assert refused(scene, scene.instruction("open", open_data(0, 1, scene.deadline_s, scene.job), keys)) == BAD_ACCOUNTS
