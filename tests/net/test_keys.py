"""Keys at rest: sealed files, backups in words, and `cyx id`."""

import io
import json
from pathlib import Path

import nats
import pytest

from cyxnet import backup, credentials, identity, sealing
from cyxnet.broker import Broker
from cyxnet.cli import main
from cyxnet.config import NetworkFile, write_network
from cyxnet.identity import Identity

SEED = bytes(range(32))
WORDS = (  # by another implementation of BIP-39, of the same 32 bytes
    "abandon amount liar amount expire adjust cage candy arch gather drum bullet "
    "absurd math era live bid rhythm alien crouch range attend journey unaware"
)
PASSPHRASE = "correct horse"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in (sealing.PASSPHRASE, sealing.PASSPHRASE_FILE, sealing.NEW_PASSPHRASE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal
    return tmp_path / "network"


@pytest.fixture
def cyx(folder, capsys):
    """cyx("id", "show") is (exit code, what it printed, what it complained of)."""

    def run(*words):
        code = main([*words, "--dir", str(folder)])
        return code, *capsys.readouterr()

    return run


# -- backups -------------------------------------------------------------------------------------------------


def test_the_words_are_those_of_bip_39():
    assert backup.to_words(SEED) == WORDS
    assert backup.from_words(WORDS) == SEED


def test_words_are_understood_however_they_were_written_down():
    listed = WORDS.upper().split()
    assert backup.from_words("\n".join(f"{n}. {word}" for n, word in enumerate(listed, 1))) == SEED
    assert backup.from_words(", ".join(word[:4] for word in listed)) == SEED
    assert backup.from_words(f" {SEED.hex().upper()}\n") == SEED


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "expected 24 words, got 0"),
        (WORDS.replace("liar ", ""), "expected 24 words, got 23"),
        (WORDS.replace("liar", "liarr"), "word 3, 'liarr', .* did you mean 'liar'"),
        (WORDS.replace("amount liar", "liar amount"), "checksum"),
        (WORDS.replace("unaware", "zoo"), "checksum"),
        (SEED.hex()[:-1], "expected 24 words, got 1"),
    ],
)
def test_a_backup_with_a_mistake_is_refused_and_says_where(typed, said):
    with pytest.raises(backup.BackupError, match=said):
        backup.from_words(typed)


# -- sealed files ----------------------------------------------------------------------------------------------


def test_a_sealed_key_opens_with_its_passphrase_only(folder, monkeypatch):
    path = folder / "client.key"
    identity.keep(path, Identity(SEED), PASSPHRASE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SEED.hex() not in path.read_text()
    with pytest.raises(sealing.WrongPassphrase, match="set CYX_PASSPHRASE"):
        identity.load(path)
    monkeypatch.setenv(sealing.PASSPHRASE, "another one")
    with pytest.raises(sealing.WrongPassphrase, match="does not open it"):
        identity.load(path)
    monkeypatch.setenv(sealing.PASSPHRASE, PASSPHRASE)
    assert identity.load_or_create(path).seed == SEED


def test_a_passphrase_may_lie_in_a_file(folder, monkeypatch, tmp_path):
    identity.keep(path := folder / "client.key", Identity(SEED), PASSPHRASE)
    (secret := tmp_path / "secret").write_text(f"{PASSPHRASE}\n")
    monkeypatch.setenv(sealing.PASSPHRASE_FILE, str(secret))
    assert identity.load(path).seed == SEED
    secret.unlink()
    with pytest.raises(sealing.WrongPassphrase, match="cannot be read"):
        identity.load(path)


def test_one_letter_written_in_two_ways_is_one_passphrase(folder, monkeypatch):
    identity.keep(path := folder / "client.key", Identity(SEED), "caf\u00e9 au lait")
    monkeypatch.setenv(sealing.PASSPHRASE, "cafe\u0301 au lait")
    assert identity.load(path).seed == SEED


def changed(**fields):
    return json.dumps(json.loads(sealing.written(SEED, PASSPHRASE)) | fields)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[" * 10_000,
        changed(n=2**40),
        changed(n=2**15 + 1),
        changed(salt="x"),
        changed(sealed=""),
        changed(x=1),
    ],
)
def test_a_damaged_sealed_file_is_one_error_and_costs_nothing(folder, monkeypatch, text):
    monkeypatch.setenv(sealing.PASSPHRASE, PASSPHRASE)
    folder.mkdir()
    (path := folder / "client.key").write_text(text)
    path.chmod(0o600)
    with pytest.raises(identity.IdentityError, match=str(path)):
        identity.load(path)


def test_a_sealed_file_with_one_digit_changed_does_not_open(folder, monkeypatch):
    monkeypatch.setenv(sealing.PASSPHRASE, PASSPHRASE)
    sealed = json.loads(sealing.written(SEED, PASSPHRASE))
    flipped = ("0" if sealed["sealed"][0] != "0" else "1") + sealed["sealed"][1:]
    with pytest.raises(sealing.WrongPassphrase):
        sealing.read(json.dumps(sealed | {"sealed": flipped}), Path("x"))


# -- cyx id ------------------------------------------------------------------------------------------------------


def told(cyx, *words):
    code, out, _ = cyx("id", *words, "--json")
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def test_a_new_key_is_shown_with_its_backup_and_comes_back_from_it(cyx, folder, monkeypatch):
    facts, words, hint = told(cyx, "new")
    assert facts["file"] == str((folder / "client.key").resolve())
    assert "write the words down" in hint["data"]["text"]
    assert told(cyx, "show") == [facts]
    assert told(cyx, "export") == [words]
    (folder / "client.key").unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO(words["words"]))
    assert told(cyx, "import") == [facts]


def test_show_tells_what_others_know_one_by(cyx, folder):
    identity.keep(folder / "client.key", Identity(SEED))
    identity.keep(folder / "nodes" / "desk" / "key", Identity(SEED))
    identity.keep(folder / "central.key", Identity(SEED))
    (client,), (node,), (central,) = (
        told(cyx, "show"),
        told(cyx, "show", "--node", "desk"),
        told(cyx, "show", "--central"),
    )
    assert client["id"] == credentials.as_client(Identity(SEED)).id
    assert node["id"] == f"desk-{Identity(SEED).short_id}"
    assert (central["issuer_nkey"], central["system_nkey"]) == credentials.broker_nkeys(Identity(SEED))
    for shown in (client, node, central):
        assert SEED.hex() not in json.dumps(shown) and "abandon" not in json.dumps(shown)


def test_without_a_key_there_is_nothing_to_show_or_export(cyx):
    for action in ("show", "export", "passphrase"):
        code, out, complaint = cyx("id", action)
        assert (code, out) == (2, "") and "cyx id new" in complaint and complaint.count("\n") == 1


@pytest.mark.parametrize("action", ["new", "import"])
def test_a_key_that_is_there_is_replaced_only_by_force_and_kept_beside(cyx, folder, monkeypatch, action):
    identity.keep(folder / "client.key", Identity(SEED))
    other = backup.to_words(bytes(32))
    monkeypatch.setattr("sys.stdin", io.StringIO(other))
    code, _, complaint = cyx("id", action)
    assert code == 2 and "holds a key already" in complaint
    assert identity.load(folder / "client.key").seed == SEED
    assert cyx("id", action, "--force")[0] == 0
    assert identity.load(folder / "client.key").seed != SEED
    assert identity.load(folder / "client.key.old-1").seed == SEED


def test_import_of_a_wrong_backup_changes_nothing(cyx, folder, monkeypatch):
    identity.keep(folder / "client.key", Identity(SEED))
    monkeypatch.setattr("sys.stdin", io.StringIO("one two three"))
    code, _, complaint = cyx("id", "import", "--force")
    assert code == 2 and "expected 24 words, got 3" in complaint
    assert sorted(each.name for each in folder.iterdir()) == ["client.key"]


def test_a_key_is_sealed_resealed_and_opened_again(cyx, folder, monkeypatch):
    identity.keep(folder / "client.key", Identity(SEED))
    monkeypatch.setenv(sealing.PASSPHRASE, PASSPHRASE)
    assert "sealed" in told(cyx, "passphrase")[0]["kept"]
    assert sorted(each.name for each in folder.iterdir()) == ["client.key"]  # no copy that is not sealed
    monkeypatch.setenv(sealing.NEW_PASSPHRASE, "battery staple")
    told(cyx, "passphrase")
    code, _, complaint = cyx("id", "show")
    assert code == 2 and "does not open it" in complaint
    monkeypatch.setenv(sealing.PASSPHRASE, "battery staple")
    told(cyx, "passphrase", "--remove")
    monkeypatch.delenv(sealing.PASSPHRASE)
    assert identity.load(folder / "client.key").seed == SEED


def test_a_short_passphrase_and_no_terminal_are_refused(cyx, folder, monkeypatch):
    identity.keep(folder / "client.key", Identity(SEED))
    assert "no terminal" in cyx("id", "passphrase")[2]
    monkeypatch.setenv(sealing.PASSPHRASE, "short")
    assert "at least 8 letters, got 5" in cyx("id", "passphrase")[2]
    assert identity.load(folder / "client.key").seed == SEED


def test_who_types_a_passphrase_types_it_twice(folder, monkeypatch):
    monkeypatch.setattr(sealing, "_somebody_is_there", lambda: True)
    typed = iter(["battery staple", "battery stable", "battery staple", "battery staple", "battery staple"])
    monkeypatch.setattr("getpass.getpass", lambda words: next(typed))
    path = folder / "client.key"
    with pytest.raises(sealing.WrongPassphrase, match="differ"):
        sealing.new_passphrase(path)
    identity.keep(path, Identity(SEED), sealing.new_passphrase(path))
    assert identity.load(path).seed == SEED


def test_who_has_typed_a_passphrase_is_not_asked_again(folder, monkeypatch):
    identity.keep(path := folder / "client.key", Identity(SEED), PASSPHRASE)
    monkeypatch.setattr(sealing, "_somebody_is_there", lambda: True)
    typed = iter(["a wrong one", PASSPHRASE])
    monkeypatch.setattr("getpass.getpass", lambda words: next(typed))
    with pytest.raises(sealing.WrongPassphrase):
        identity.load(path)
    assert [identity.load(path).seed for _ in range(3)] == [SEED] * 3


# -- the `nats` tool ---------------------------------------------------------------------------------------------


async def test_a_context_of_the_nats_tool_lets_one_in(folder, monkeypatch, tmp_path, broker: Broker):
    from cyxnet.cli import parser
    from cyxnet.cli.keys import keys
    from cyxnet.cli.screen import PlainScreen

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    urls = {role: broker.url(role) for role in ("client", "node", "edge", "core")}
    write_network(
        folder,
        NetworkFile(
            network_id="test",
            client_url=urls["client"],
            node_url=urls["node"],
            edge_url=urls["edge"],
            core_url=urls["core"],
            monitor_url=broker.monitor_url,
            chain_url="",
        ),
    )
    mine = identity.load_or_create(folder / "client.key")
    args = parser().parse_args(["id", "nats", "--name", "desk", "--dir", str(folder)])
    assert await keys(args, PlainScreen(io.StringIO())) == 0
    context = json.loads((tmp_path / "config/nats/context/desk.json").read_text())
    assert Path(context["nkey"]).stat().st_mode & 0o777 == 0o600
    link = await nats.connect(context["url"], nkeys_seed=context["nkey"], inbox_prefix=context["inbox_prefix"])
    await link.subscribe(f"_INBOX_{credentials.as_client(mine).id}.x")
    await link.flush()
    assert link.is_connected
    await link.close()
    with pytest.raises(ValueError, match="is there already"):
        await keys(args, PlainScreen(io.StringIO()))
