"""`cyx train`: a whole job in one command, on the network that is up or on one of its own."""

import argparse
import asyncio
import contextlib
from typing import Any

import msgspec

from cyxcore.errors import CyxError
from cyxnet import messages as m
from cyxnet.cli.exits import WORLD_FAILED
from cyxnet.cli.jobs import first_money, tell_job, tell_model, tell_quote, watched
from cyxnet.cli.models import fetch_model, output_path
from cyxnet.cli.network import joined
from cyxnet.cli.running import connected
from cyxnet.cli.screen import Screen
from cyxnet.cli.submitting import loaded
from cyxnet.client import AsyncClient, Prepared
from cyxnet.display import cyx, validation
from cyxnet.jobfile import LoadedJob

CANCEL_WAIT_S = 30.0


async def train(args: argparse.Namespace, screen: Screen) -> int:
    """Everything that the user could have got wrong is checked before a network is started."""
    if args.output is not None:
        output_path(args.output, "model", force=args.force)
    async with loaded(args) as job:
        return await _train_here(job, args, screen)


async def _train_here(job: LoadedJob, args: argparse.Namespace, screen: Screen) -> int:
    """On the network that is up, or on one of its own."""
    out_path = output_path(args.output, job.name, force=args.force)
    tell_job(job, screen)
    async with joined(args.dir, screen) as network:
        async with connected(args) as client:
            await first_money(client, screen)
            prepared = await client.prepare(job)
            view, money = await _train(client, prepared, screen)
            if view.status == "completed":
                model = await fetch_model(
                    client, view.job_id, out_path, lambda done, total: screen.advance("model", done, total)
                )
                screen.say("model", tell_model(model), **model)
            else:
                model = None
            await money.tell(view)
        if network is not None and args.keep_up:
            screen.say("up", "the network stays up until Ctrl-C; in another terminal: cyx jobs", kind="hint")
            await network.wait()
    return _tell_result(view, model, money, screen)


async def _train(client: AsyncClient, prepared: Prepared, screen: Screen) -> tuple[m.JobView, "Money"]:
    """Pay, submit and follow to the end. Ctrl-C on the way cancels the job and waits for the refund."""
    money = Money(client, screen)
    await money.look("client", client.purse.address)
    await money.look("platform", prepared.quote.terms.platform)
    screen.say("job", prepared.job_id, kind="job", job_id=prepared.job_id)
    tell_quote(prepared, screen)
    try:
        await client.place(prepared, lambda done, total: screen.advance("upload", done, total))
        _tell_deposit(prepared, screen)
        async with contextlib.aclosing(watched(client, prepared.job_id, screen)) as updates:
            async for update in updates:
                screen.update(update)
                if update.kind == "Leased":
                    await money.look("node", update.data["wallet"])
    except asyncio.CancelledError:
        if prepared.payment is not None:  # signed: central may have it, whether or not it could answer
            await _cancel(client, prepared.job_id, screen)
        raise
    return await client.job(prepared.job_id), money


def _tell_deposit(prepared: Prepared, screen: Screen) -> None:
    terms, payment = prepared.quote.terms, prepared.payment
    assert payment is not None
    screen.say(
        "escrow",
        f"{cyx(terms.amount_base_units)} to {terms.escrow}; deposit {payment.deposit.signature}",
        escrow=terms.escrow,
        amount_base_units=terms.amount_base_units,
        signature=payment.deposit.signature,
    )


async def _cancel(client: AsyncClient, job_id: str, screen: Screen) -> None:
    screen.close()
    screen.say("cancel", f"stopping {job_id}; Ctrl-C again leaves without waiting for the refund", kind="cancel")
    try:
        await client.cancel(job_id, "stopped with Ctrl-C")
        async with asyncio.timeout(CANCEL_WAIT_S):
            view = await client.wait(job_id)
    except TimeoutError:
        screen.say("cancel", f"no refund within {CANCEL_WAIT_S:g} s; see it later with: cyx watch {job_id}")
        return
    except CyxError as error:
        later = f"; with the network up, see it with: cyx job {job_id}, and fetch a model with: cyx get {job_id}"
        screen.say("cancel", f"could not cancel: {error}{later}", kind="cancel_failed", job_id=job_id)
        return
    back = cyx(view.client_base_units or 0)
    signature = f"; {view.settle_signature}" if view.settle_signature else ""
    screen.say(
        "refund",
        f"{job_id} is {view.status}; {back} came back{signature}",
        job_id=job_id,
        status=view.status,
        client_base_units=view.client_base_units or 0,
        signature=view.settle_signature,
    )


class Money:
    """Balances of the client, the platform and the node, before the job and after it."""

    def __init__(self, client: AsyncClient, screen: Screen):
        self._client = client
        self._screen = screen
        self._addresses: dict[str, str] = {}
        self.before: dict[str, int] = {}
        self.after: dict[str, int] = {}

    async def look(self, who: str, address: str) -> None:
        """Remember what `who` holds now. A job that moves to another node is looked at there."""
        self._addresses[who] = address
        self.before[who] = (await self._client.wallet(address)).token_base_units

    async def tell(self, view: m.JobView) -> None:
        for who, address in self._addresses.items():
            self.after[who] = (await self._client.wallet(address)).token_base_units
            before, after = self.before[who], self.after[who]
            self._screen.say(
                "balance",
                f"{who:<8}  {cyx(before)} → {cyx(after)}",
                who=who,
                address=address,
                before_base_units=before,
                after_base_units=after,
            )


def _tell_result(view: m.JobView, model: dict[str, Any] | None, money: Money, screen: Screen) -> int:
    data = {
        "job": view,
        "model": model,
        "balances": {who: [money.before[who], money.after[who]] for who in money.after},
    }
    if view.status == "completed" and model is not None:
        metrics = ", ".join(validation(msgspec.to_builtins(view.summary))) if view.summary else ""
        screen.result(f"{model['path']} is ready{f': {metrics}' if metrics else ''}", data)
        return 0
    back = f"; {cyx(view.client_base_units)} came back" if view.client_base_units else ""
    screen.result(f"{view.job_id} is {view.status}{f': {view.error}' if view.error else ''}{back}", data)
    return WORLD_FAILED
