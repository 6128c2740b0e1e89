"""What a node signs, so that it is worth something on one network, once, and for a while.

The expiry is by central's clock, which a node is told with every answer: its own may be hours off. Of several centrals
the latest time counts, so that none of them finds it too late.
"""

from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from cyxnet import messages as m

VALID_MS = 600_000  # from when it is signed; a report that is said again is signed again
BYTES_OF: dict[type, Callable[..., bytes]] = {
    m.Register: m.registration_bytes,
    m.RunCheckpoint: m.checkpoint_bytes,
    m.RunCompleted: m.completion_bytes,
    m.SegmentTrained: m.segment_bytes,
    m.Goodbye: m.goodbye_bytes,
}
T = TypeVar("T", bound=Struct)


class Signing:
    """sign: a signature over bytes, in hex. network_id: "" when only the broker's address is known.

    wall_ms, monotonic_ms: clocks of this machine.
    """

    def __init__(
        self,
        sign: Callable[[bytes], str],
        network_id: str,
        wall_ms: Callable[[], int],
        monotonic_ms: Callable[[], int],
    ):
        self._sign = sign
        self.network_id = network_id
        self._wall_ms = wall_ms
        self._monotonic_ms = monotonic_ms
        self._ahead_ms: int | None = None  # central's time, less that of the clock that only runs forward
        self._own_clock = True  # it counts where it is ahead of what centrals say
        self._sequence = 0

    def told(self, now_ms: int, network_id: str = "") -> None:
        """What a central said of its clock, and of its network to a node that did not know it; 0 and "" say nothing."""
        self.network_id = self.network_id or network_id
        if now_ms:
            ahead_ms = now_ms - self._monotonic_ms()
            self._ahead_ms = ahead_ms if self._ahead_ms is None else max(ahead_ms, self._ahead_ms)

    def refused(self, code: str, now_ms: int | None) -> bool:
        """A refusal of a central, with its clock if it told that. Returns whether what was signed anew may be taken.

        What is good for too long was signed by a clock that is days ahead, here or at another central: this one counts.
        """
        if code == "good_too_long" and now_ms:
            self._own_clock, self._ahead_ms = False, now_ms - self._monotonic_ms()
        else:
            self.told(now_ms or 0)
        return code in ("expired", "good_too_long")

    def signed(self, said: T) -> T:
        """The same, signed now; what is nothing to be signed as it is."""
        bytes_of = BYTES_OF.get(type(said))
        if bytes_of is None:
            return said
        self._sequence += 1
        expires_ms = self._now_ms() + VALID_MS
        dated = replace(said, network_id=self.network_id, sequence=self._sequence, expires_ms=expires_ms)
        return replace(dated, signature=self._sign(bytes_of(dated)))

    def _now_ms(self) -> int:
        told_ms = None if self._ahead_ms is None else self._monotonic_ms() + self._ahead_ms
        if told_ms is None:
            return self._wall_ms()
        return max(self._wall_ms(), told_ms) if self._own_clock else told_ms
