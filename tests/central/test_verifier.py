"""Deposits looked at in a process beside central: the same answers, whatever becomes of that process."""

import asyncio
import io
import os
import signal

import pytest

from cyxcentral import verifier
from cyxcentral.verifier import FEWEST, Verifier, frame, serve
from cyxnet import escrow
from cyxnet.wallet import Wallet, base58_encode

SIGNERS = [Wallet(bytes([n]) * 32) for n in range(4)]


def checks(count):
    """(check, whether it is good): every third is of another message, every fifth by somebody else."""
    from cyxnet.escrow import public_key, solders

    lib, made = solders(), []
    for number in range(count):
        signer, other = SIGNERS[number % 4], SIGNERS[(number + 1) % 4]
        message = b"message %d " % number * 20
        signed = bytes(lib.Keypair.from_seed(signer.seed).sign_message(message))
        good = number % 3 != 0 and number % 5 != 0
        shown = message if number % 3 else message + b"!"
        key = bytes(public_key((other if number % 5 == 0 else signer).address))
        made.append(((key, signed, shown), good))
    return made


@pytest.fixture
async def beside():
    made = Verifier(lambda: True)
    yield made
    await made.close()


def question(check, number):
    return (*check, escrow.job_key(f"job-{number}"), bytes(escrow.public_key(escrow.LOCAL_PROGRAM)))


async def asked(made, those):
    """Look ahead at deposits with these signatures; whether all answers are what they should be."""
    escrow._ACCOUNTS.clear()
    deposits = [
        (base58_encode(key), f"job-{number}", escrow.LOCAL_PROGRAM, b"\x01" + signature + message)
        for number, ((key, signature, message), _) in enumerate(those)
    ]
    await asyncio.gather(*(made.look_ahead(*deposit) for deposit in deposits))
    answers = [await made.signed_by(*check) for check, _ in those]
    addresses = [escrow.escrow_account(*deposit[:3]) for deposit in deposits]
    escrow._ACCOUNTS.clear()
    here = [escrow.escrow_account(*deposit[:3]) for deposit in deposits]
    return answers == [good for _, good in those] and addresses == here


async def until_it_runs(made):
    """Ask until the process is there: before that, the checks are made here."""
    async with asyncio.timeout(60):
        while made._child is None:
            assert await asked(made, checks(FEWEST))


async def test_many_are_answered_by_the_process_each_with_its_own_answer(beside):
    await until_it_runs(beside)
    many = asyncio.ensure_future(asked(beside, checks(100)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(map(len, beside._asked)) == 100  # they went to the process
    assert await many


async def test_it_can_be_there_before_anybody_asks():
    made = Verifier(lambda: False)
    made.begin()
    made.begin()
    async with asyncio.timeout(60):
        while made._child is None:
            await asyncio.sleep(0)
    await made.close()


async def test_few_are_checked_here_and_start_nothing():
    made = Verifier(lambda: False)
    assert await asked(made, checks(10))
    assert made._task is None


async def test_what_is_no_deposit_at_all_is_left_to_who_says_what_is_wrong_with_it(beside):
    await beside.look_ahead("no address", "job-1", escrow.LOCAL_PROGRAM, b"\x01" * 200)
    await beside.look_ahead(SIGNERS[0].address, "job-1", escrow.LOCAL_PROGRAM, b"")
    assert not beside._checked and beside._task is None


async def test_a_good_signature_is_good_for_its_own_message_and_key_only(beside):
    [(key, signature, message), good] = checks(2)[1]
    assert good
    await beside.look_ahead(base58_encode(key), "job-1", escrow.LOCAL_PROGRAM, b"\x01" + signature + message)
    assert not await beside.signed_by(key, signature, message + b"!")
    assert await beside.signed_by(key, signature, message)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_dies_or_stands_still_leaves_no_question_open(beside, monkeypatch, number):
    monkeypatch.setattr(verifier, "ANSWER_WITHIN_S", 0.2)
    await until_it_runs(beside)
    os.kill(beside._child.pid, number)
    async with asyncio.timeout(60):
        assert await asked(beside, checks(100))
        while beside._child is not None:
            assert await asked(beside, checks(FEWEST))
        assert await asked(beside, checks(100))


def test_the_process_answers_frame_by_frame_until_its_input_ends():
    those = [question(check, number) for number, (check, _) in enumerate(checks(40))]
    answers = io.BytesIO()
    serve(io.BytesIO(frame(those[:25]) + frame(those[25:])), answers)
    assert answers.getvalue() == b"\x01" + b"".join(verifier._ANSWER.pack(*verifier.look_at(*each)) for each in those)
