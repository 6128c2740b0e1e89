"""The escrow program as it is built and deployed, and one whole life of an escrow of each kind."""

import hashlib

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from cyxcentral.program import FOLDER, SHA256, ProgramError, program
from cyxcentral.program.__main__ import build, find_clang, main
from cyxcentral.program.link import LinkError, link
from cyxnet.escrow import PROGRAM_SIZE_BYTES
from tests.escrow.machine import LOADER, TOKEN_RENT_LAMPORTS, Machine, Refused
from tests.escrow.scene import AMOUNT, RICH_BASE_UNITS, Scene

STATE_RENT_LAMPORTS = (128 + 376) * 6_960


def clang() -> str | None:
    try:
        return find_clang()
    except ProgramError:
        return None


needs_clang = pytest.mark.skipif(clang() is None, reason="the compiler whose output is pinned, clang 14, is not here")


@pytest.fixture
def scene() -> Scene:
    return Scene()


# The build.


def test_the_program_that_ships_is_the_one_that_is_pinned() -> None:
    shipped = (FOLDER / "escrow.so").read_bytes()
    assert (hashlib.sha256(shipped).hexdigest(), len(shipped)) == (SHA256, PROGRAM_SIZE_BYTES)


@needs_clang
def test_the_source_gives_the_program_that_ships_to_the_byte() -> None:
    assert build(FOLDER / "escrow.c") == program()


@needs_clang
def test_the_command_says_that_the_build_is_what_is_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == f"{SHA256}  {len(program())} bytes\n"


@needs_clang
@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("unsigned long long entrypoint(void) { return", "clang refused it"),
        ("unsigned long long other(void) { return 0; }", "expected a function entrypoint"),
        ("int count; unsigned long long entrypoint(void) { return count++; }", "expected no variables"),
        ("int count = 1; unsigned long long entrypoint(void) { return count++; }", "writable section"),
        ("void *malloc(int); unsigned long long entrypoint(void) { return !malloc(1); }", "there is no C library"),
    ],
)
def test_what_cannot_be_linked_is_one_clear_error(tmp_path, source: str, complaint: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "other.c").write_text(source)
    with pytest.raises((ProgramError, LinkError), match=complaint):
        build(tmp_path / "other.c")


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"hello" * 30])
def test_what_is_no_object_file_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(LinkError, match="expected an ELF object file"):
        link(data)


# The deployment.


def test_the_program_that_is_deployed_can_never_be_replaced() -> None:
    machine, payer, deployed, buffer = Machine(), Keypair(), Keypair(), Pubkey.new_unique()
    machine.give(payer.pubkey(), 10**12)
    machine.deploy(program(), payer, deployed)
    data_address = Pubkey.find_program_address([bytes(deployed.pubkey())], LOADER)[0]
    account = machine.svm.get_account(data_address)
    assert account is not None and account.owner == LOADER
    assert bytes(account.data)[12] == 0  # no authority
    assert bytes(account.data)[45:] == program()
    metas = [AccountMeta(data_address, False, True), AccountMeta(payer.pubkey(), True, False)]
    metas.append(AccountMeta(buffer, False, False))
    with pytest.raises(Refused, match="Immutable"):
        machine.run(payer, [Instruction(LOADER, b"\x04\0\0\0", metas)])


# Lives of an escrow.


def test_a_settlement_pays_the_node_and_the_platform_and_gives_back_the_rest(scene: Scene) -> None:
    scene.opened(assigned=1)
    scene.send(scene.settling(12_345_678_901))
    assert [scene.held(name) for name in ("node", "platform", "client")] == [
        11_111_111_011,
        1_234_567_890,
        RICH_BASE_UNITS - 12_345_678_901,
    ]


def test_a_settlement_pays_four_nodes_each_less_its_own_fee(scene: Scene) -> None:
    scene.opened(assigned=4)
    scene.send(scene.settling(9, 19, 29, 10**10))
    assert [scene.node_held(at) for at in range(4)] == [9, 18, 27, 9 * 10**9]
    assert scene.held("platform") == 0 + 1 + 2 + 10**9


def test_nodes_can_be_assigned_in_the_transaction_that_settles(scene: Scene) -> None:
    scene.opened()
    scene.send(scene.assigning(*scene.nodes[:2]), scene.settling(10, 20))
    assert [scene.node_held(0), scene.node_held(1), scene.held("platform")] == [9, 18, 3]


def test_nothing_is_left_of_a_settled_escrow_and_the_rent_is_with_who_paid_it(scene: Scene) -> None:
    before = scene.lamports("client")
    scene.opened(assigned=1)
    assert before - scene.lamports("client") == STATE_RENT_LAMPORTS + TOKEN_RENT_LAMPORTS
    scene.send(scene.settling(AMOUNT))
    assert scene.lamports("client") == before
    assert scene.machine.svm.get_account(scene.places["state"]) is None
    assert scene.machine.svm.get_account(scene.places["vault"]) is None


def test_a_sponsor_who_paid_the_rent_gets_it_back(scene: Scene) -> None:
    sponsor = {"payer": scene.sponsor.pubkey()}
    scene.opened(assigned=1, swap=sponsor)
    before, client = scene.lamports("client"), scene.machine.svm.get_balance(scene.sponsor.pubkey())
    scene.send(scene.settling(AMOUNT, swap=sponsor))
    after = scene.machine.svm.get_balance(scene.sponsor.pubkey())
    assert after is not None and client is not None
    assert after - client == STATE_RENT_LAMPORTS + TOKEN_RENT_LAMPORTS - 2 * 5_000  # the fee of two signatures
    assert scene.lamports("client") == before


def test_the_client_can_release_everything_to_the_node(scene: Scene) -> None:
    scene.opened(assigned=1)
    scene.send(scene.releasing())
    assert [scene.held("node"), scene.held("platform")] == [AMOUNT * 9 // 10, AMOUNT // 10]


def test_anybody_can_refund_after_the_deadline_without_any_signature_of_a_party(scene: Scene) -> None:
    scene.opened(assigned=1)
    scene.machine.set_time(scene.deadline_s)
    scene.send(scene.instruction("refund"))
    assert scene.held("client") == RICH_BASE_UNITS


def test_a_node_that_gives_up_makes_room_for_another(scene: Scene) -> None:
    scene.opened(assigned=4)
    scene.send(scene.instruction("give_up"))
    scene.send(scene.assigning(scene.nodes[4]))
    nodes = [scene.token(scene.nodes[at].pubkey()) for at in (1, 2, 3, 4)]
    pays = bytes([2]) + b"".join(pay.to_bytes(8, "little") for pay in (0, 0, 0, 10))
    scene.send(scene.instruction("settle", pays, nodes))
    assert [scene.node_held(at) for at in range(5)] == [0, 0, 0, 0, 9]


def test_when_the_only_nodes_there_can_be_have_given_up_the_refund_need_not_wait(scene: Scene) -> None:
    scene.opened(nodes=scene.nodes[:1], swap={"assigner": scene.places["system_program"]})
    with pytest.raises(Refused) as early:
        scene.send(scene.instruction("refund"))
    assert early.value.code == 1013
    scene.send(scene.instruction("give_up"))
    scene.send(scene.instruction("refund"))
    assert scene.held("client") == RICH_BASE_UNITS
