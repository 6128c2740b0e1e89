"""Commands about money: refund."""

import argparse
import time
from datetime import datetime

from cyxcore.errors import CyxError
from cyxnet import identity
from cyxnet.bus import BusError
from cyxnet.cli.exits import DONE
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.config import ConfigError, read_network
from cyxnet.display import cyx, human_duration
from cyxnet.escrow import LOCAL_PROGRAM
from cyxnet.instructions import SettlementError
from cyxnet.solana import Settlement
from cyxnet.wallet import Wallet

SOON_S = (0.5, 1.0)  # pauses of who asks a platform that may be gone for ever


class NoChain(CyxError):
    """Nobody says where the chain is."""

    code = "no_chain"


async def refund(args: argparse.Namespace, screen: Screen) -> int:
    """By a transaction of our own: it works without a central, and for anybody's escrow."""
    wallet = Wallet(identity.load_or_create(args.dir / "client.key").child("wallet"))
    client, job_id, program, chain_url = await _place(args, wallet.address, screen)
    async with Settlement(chain_url) as settlement:
        escrow = await settlement.open_escrow(client, job_id, program)
        left_s = escrow.deadline_s - int(time.time())
        if left_s > 0:
            raise SettlementError(
                "too_early",
                f"the escrow of {job_id} can be refunded from {_date(escrow.deadline_s)} on, in "
                f"{human_duration(left_s)}; until then: cyx cancel {job_id}, which gives back what was not earned",
            )
        signed = await settlement.refund_transaction(wallet, escrow)
        await settlement.succeed(signed, "refund")
    what = f"{cyx(escrow.amount_base_units)} of {job_id} are back at {escrow.client}; {signed.signature}"
    screen.result(what, {"job_id": job_id, "escrow": escrow, "signature": signed.signature})
    return DONE


async def _place(args: argparse.Namespace, wallet: str, screen: Screen) -> tuple[str, str, str, str]:
    """(client, job id, program, chain's URL) of the escrow: as central knows it, or by what is known here."""
    if args.chain is None:
        try:
            async with connected(args) as caller:
                caller.retry_delays_s = SOON_S
                view, info = await caller.job(args.job), await caller.info()
            if view.terms is not None:
                return view.terms.client, view.job_id, view.terms.program, info.chain_url
        except BusError as error:
            screen.say("network", f"{error}; asking the chain alone", kind="no_central")
    try:
        network = read_network(args.dir)
        chain_url, program = network.chain_url, network.escrow_program
    except ConfigError:
        chain_url = program = ""
    chain_url = args.chain or chain_url
    if not chain_url:
        raise NoChain(f"nobody answers, and {args.dir} does not say where the chain is; name it with --chain URL")
    return args.client or wallet, args.job, args.program or program or LOCAL_PROGRAM, chain_url


def _date(at_s: int) -> str:
    return f"{datetime.fromtimestamp(at_s).astimezone():%Y-%m-%d %H:%M %Z}"
