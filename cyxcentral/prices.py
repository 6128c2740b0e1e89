"""What a job costs at most: counted work, measured speed, asked price. Pure.

A node needs, for so many operations and bytes moved, at least max(flops / flops_per_s, bytes / bytes_per_s) (the
roofline model: Williams, Waterman and Patterson 2009). No training runs at the roof: the quote allows ALLOWANCE times
that, and START_S for data and plan; the node's asking price per hour makes a sum of it. Any node that fits may get the
job, so the quote is the largest of theirs, and never more than the amount that the client offers. Of a job that serves
the time is known: it is bought.
"""

import hashlib
import math
from collections.abc import Iterable

import msgspec

from cyxcentral.nodes import Node
from cyxnet import messages as m
from cyxnet.bus import ApiError
from cyxnet.wallet import verify

ALLOWANCE = 4.0  # how far below its roof a training run may stay
START_S = 10.0  # from the lease to the first step: fetching data, reading it, planning
VALID_MS = 600_000
CLOCKS_APART_MS = 7_200_000  # at most, those of two centrals: each may be an hour off
HOUR_S = 3600
LONGEST_S = 10 * 365 * 24 * HOUR_S  # a node so slow has measured nothing; from a speed near zero comes infinity


def price_at(node: Node, flops: int, bytes_moved: int) -> m.NodePrice:
    """What a node asks for the work, before the amount limits it.

    seconds 0: its speed is not known, or it would need years; or the work is not (a job that says nothing of its data).
    """
    speed, bandwidth = node.hardware.flops_per_s, node.hardware.bytes_per_s
    known = [work / rate for work, rate in ((flops, speed), (bytes_moved, bandwidth)) if rate > 0]
    needed_s = START_S + ALLOWANCE * max(known, default=0.0)
    seconds = needed_s if speed > 0 and (flops or bytes_moved) and needed_s <= LONGEST_S else 0.0
    asked = node.price_per_hour_base_units
    return m.NodePrice(
        node_id=node.node_id,
        name=node.name,
        seconds=seconds,
        price_per_hour_base_units=asked,
        base_units=min(math.ceil(seconds * asked / HOUR_S), 2**63 - 1),
    )


def price_for(node: Node, seconds: int) -> m.NodePrice:
    """What a node asks for serving so long."""
    asked = node.price_per_hour_base_units
    return m.NodePrice(
        node_id=node.node_id,
        name=node.name,
        seconds=float(seconds),
        price_per_hour_base_units=asked,
        base_units=min(-(-seconds * asked // HOUR_S), 2**63 - 1),
    )


def highest(prices: Iterable[m.NodePrice], amount_base_units: int) -> int:
    """The most that is charged: the whole amount where a node asks for something and how long it needs is not known,
    and where none asks for anything: then the amount is the client's own offer."""
    prices = list(prices)
    if any(each.price_per_hour_base_units and not each.seconds for each in prices):
        return amount_base_units
    found = max((each.base_units for each in prices), default=0)
    return min(found or amount_base_units, amount_base_units)


def job_sha256(job: m.JobRequest) -> str:
    """What a price is for: the job with every part of it, its data and its amount included."""
    return hashlib.sha256(msgspec.msgpack.encode(job, order="deterministic")).hexdigest()


def check(price: m.Price, job: m.JobRequest, client: str, public_key: str, now_ms: int) -> None:
    """Raises ApiError unless the price is ours, for this job and this payer, and still good.

    One that may still be good by the clock of another central is no plain no (503): that one may have taken the job.
    """
    if not verify(public_key, m.price_bytes(price), bytes.fromhex(price.signature)):
        raise ApiError("bad_price", "the price is not signed by this network; ask for a new quote", 409)
    if (price.job_sha256, price.client) != (job_sha256(job), client):
        raise ApiError(
            "bad_price",
            "the price is for another job or another payer: the job file, its data or its amount changed since the "
            "quote; ask for a new one",
            409,
        )
    if (late_ms := now_ms - price.expires_ms) > 0:
        status = 503 if late_ms <= CLOCKS_APART_MS else 409
        raise ApiError("price_expired", f"the price expired {late_ms // 1000} s ago; ask for a new one", status)
