"""A node's folder: name, lock, key."""

from pathlib import Path

import pytest

from cyxnet.commands import Trust
from cyxnet.identity import Identity
from cyxnet.wallet import Wallet
from cyxnode.errors import NodeError
from cyxnode.home import open_home, slug


def test_without_a_name_the_first_free_number_is_taken(tmp_path: Path) -> None:
    homes = [open_home(tmp_path, None) for _ in range(3)]
    homes[1].close()
    assert open_home(tmp_path, None).name == "node-2"
    assert [home.name for home in homes] == ["node-1", "node-2", "node-3"]


def test_a_name_in_use_is_refused_with_the_process_that_uses_it(tmp_path: Path) -> None:
    home = open_home(tmp_path, "desk")
    with pytest.raises(NodeError, match=r"'desk' runs already \(process [0-9]+\); choose another --name"):
        open_home(tmp_path, "desk")
    home.close()


def test_the_node_id_is_the_name_and_the_key_and_stays(tmp_path: Path) -> None:
    home = open_home(tmp_path, "Big Desk")
    home.close()
    again = open_home(tmp_path, "Big Desk")
    assert home.node_id == again.node_id == f"big-desk-{again.key.short_id}"


def test_the_wallet_is_a_key_of_its_own_from_the_same_seed(tmp_path: Path) -> None:
    home = open_home(tmp_path, "desk")
    seed = bytes.fromhex((tmp_path / "nodes" / "desk" / "key").read_text().strip())
    assert home.wallet_address == Wallet(Identity(seed).child("wallet")).address
    assert Wallet(Identity(seed).child("wallet")).public_key.hex() != home.key.public_key


def test_what_a_killed_node_left_in_its_work_folder_is_gone(tmp_path: Path) -> None:
    left = tmp_path / "nodes" / "desk" / "work" / "0123"
    left.mkdir(parents=True)
    open_home(tmp_path, "desk")
    assert not left.exists()


@pytest.mark.parametrize("name", ["../../etc", "a/b", "Ünï", "x" * 200, "-a-"])
def test_a_name_never_leaves_the_folder_of_nodes(tmp_path: Path, name: str) -> None:
    home = open_home(tmp_path, name)
    assert home.folder.parent == tmp_path / "nodes"


@pytest.mark.parametrize("name", ["", "…", "///", "日本"])
def test_a_name_without_a_letter_or_digit_is_refused(name: str) -> None:
    with pytest.raises(NodeError, match="expected a name"):
        slug(name)


def test_sessions_are_counted_whatever_the_clock_says_and_whatever_happened_to_the_file(tmp_path: Path) -> None:
    home = open_home(tmp_path, "desk")
    numbers = [home.next_session_ms() for _ in range(3)]
    assert numbers == sorted(set(numbers))
    kept = home.folder / "session"
    kept.write_text(str(2**53))  # the clock was years ahead
    assert home.next_session_ms() == 2**53 + 1
    kept.write_text("garbage")
    assert home.next_session_ms() >= numbers[0]  # the clock's: the others may be a few milliseconds ahead of it
    kept.unlink()
    kept.mkdir()
    with pytest.raises(NodeError, match="cannot be written"):
        home.next_session_ms()


def test_whom_a_node_trusts_is_kept_and_what_its_networks_file_says_comes_before_it(tmp_path: Path) -> None:
    home = open_home(tmp_path, "desk")
    assert home.trust("", "") == Trust()
    learned = Trust(network_id="net-1", platform_key="ab" * 32, key_number=3)
    home.keep_trust(learned)
    assert home.trust("", "") == home.trust("net-1", "") == home.trust("net-1", "ab" * 32) == learned
    assert home.trust("net-2", "") == Trust(network_id="net-2")
    assert home.trust("net-1", "cd" * 32) == Trust(network_id="net-1", platform_key="cd" * 32)
    home.trust_path.write_text("{")
    with pytest.raises(NodeError, match="delete it to have it learned anew"):
        home.trust("", "")


def test_a_trust_that_cannot_be_kept_is_said_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = open_home(tmp_path, "desk")
    home.trust_path.mkdir()
    home.keep_trust(Trust(network_id="net-1"))
    assert "cannot be written" in caplog.text
