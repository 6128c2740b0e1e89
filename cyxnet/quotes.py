"""A quote that is good for more than one job: who submits a sweep over the same data asks for terms once.

What central offers is the same for all jobs but for their id, their amount, and the escrow's address, which anybody can
compute. So a quote's terms are used again as long as its blockhash is fresh and what the wallet held is enough, less
what was promised since. It spares a question, no check: central looks at a job and its deposit as closely as at any.
"""

from msgspec.structs import replace

from cyxnet import messages as m


class Quotes:
    """The newest quote of one wallet. fresh_s: how long it is good."""

    def __init__(self, fresh_s: float):
        self._fresh_s = fresh_s
        self._newest: m.Quote | None = None  # less what was promised since
        self._at_s = 0.0

    def keep(self, quote: m.Quote, now_s: float) -> None:
        """Remember a quote, whose terms were checked and which a job is paid by, for those that follow."""
        self._newest, self._at_s = _less(quote, quote.terms.amount_base_units), now_s

    def again(self, job: m.JobRequest, job_id: str, now_s: float) -> tuple[m.Quote, float] | None:
        """Terms as central would quote them for one more job, and when they were given; None: it has to be asked.

        What a quote says of the one job that it was for (price, memory, operations) is not for this one.
        """
        from cyxnet.escrow import DEPOSIT_LAMPORTS, escrow_address

        quote, amount = self._newest, job.amount_base_units
        if quote is None or not quote.blockhash or now_s - self._at_s >= self._fresh_s:
            return None
        if not 0 < amount <= quote.balance_base_units or quote.lamports < DEPOSIT_LAMPORTS:
            return None
        self._newest = _less(quote, amount)
        escrow = escrow_address(quote.terms.client, job_id, quote.terms.program)
        terms = replace(quote.terms, job_id=job_id, amount_base_units=amount, escrow=escrow)
        return replace(quote, job_id=job_id, terms=terms, price=None, prices=[]), self._at_s

    def forget(self) -> None:
        """Something was refused: what the network asks for may have changed."""
        self._newest = None


def _less(quote: m.Quote, amount_base_units: int) -> m.Quote:
    """A quote after one more deposit, as far as the wallet is concerned."""
    from cyxnet.escrow import DEPOSIT_LAMPORTS

    return replace(
        quote,
        balance_base_units=quote.balance_base_units - amount_base_units,
        lamports=quote.lamports - DEPOSIT_LAMPORTS,
    )
