"""Quotes that are good for more than one job: who submits the same work again and again asks for its price once.

What central offers depends on what a job is, not on its id, but for the escrow's address, which anybody can compute. So
a quote is used again for an equal job, as long as its blockhash is fresh and what the wallet held is enough, less what
was promised since. It spares a question, no check: central looks at a deposit as closely as at any other.
"""

import hashlib

from msgspec import Struct
from msgspec.structs import replace

from cyxnet import messages as m
from cyxnet.codec import MSGPACK, encode

MOST_KEPT = 64


class Kept(Struct):
    quote: m.Quote  # less what was promised since
    at_s: float  # when it was given


class Quotes:
    """The newest quotes of one wallet, by what they are for. fresh_s: how long they are good."""

    def __init__(self, fresh_s: float):
        self._fresh_s = fresh_s
        self._kept: dict[bytes, Kept] = {}  # the oldest first

    def keep(self, job: m.JobRequest, quote: m.Quote, now_s: float) -> None:
        """Remember a quote, whose terms were checked and which this job is paid by, for jobs equal to it."""
        if not quote.blockhash:
            return  # only the chain could say what to sign
        key = _key(job)
        self._kept.pop(key, None)
        self._kept[key] = Kept(quote=_less(quote, job.amount_base_units), at_s=now_s)
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]

    def again(self, job: m.JobRequest, job_id: str, now_s: float) -> Kept | None:
        """A quote as central would give it for a job equal to one before; None when it has to be asked."""
        from cyxnet.escrow import DEPOSIT_LAMPORTS, escrow_address

        key = _key(job)
        kept = self._kept.get(key)
        if kept is None:
            return None
        quote, amount = kept.quote, job.amount_base_units
        enough = quote.balance_base_units >= amount and quote.lamports >= DEPOSIT_LAMPORTS
        if not enough or now_s - kept.at_s >= self._fresh_s:
            del self._kept[key]
            return None
        for each in self._kept.values():  # they are of the same wallet
            each.quote = _less(each.quote, amount)
        terms = replace(
            quote.terms, job_id=job_id, escrow=escrow_address(quote.terms.client, job_id, quote.terms.program)
        )
        return Kept(quote=replace(quote, job_id=job_id, terms=terms), at_s=kept.at_s)

    def forget(self) -> None:
        """Something was refused: what the network asks for may have changed."""
        self._kept.clear()


def _less(quote: m.Quote, amount_base_units: int) -> m.Quote:
    """A quote after one more deposit, as far as the wallet is concerned."""
    from cyxnet.escrow import DEPOSIT_LAMPORTS

    return replace(
        quote,
        balance_base_units=quote.balance_base_units - amount_base_units,
        lamports=quote.lamports - DEPOSIT_LAMPORTS,
    )


def _key(job: m.JobRequest) -> bytes:
    return hashlib.sha256(encode(job, MSGPACK)).digest()
