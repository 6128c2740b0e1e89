"""Central's side of the signer: the platform's wallets, whose keys are in another process (cyxcentral/signer.py).

A signer that ends, or does not answer, is started again or connected to again with the next question. Until then
nothing is signed, and whoever asked tries again: nothing of it is lost.
"""

import asyncio
import contextlib
import itertools
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

from cyxcentral.signer import ANSWERED, LENGTH_BYTES, Address, Ask, Custody, Hello, No, Signed, Welcome, frame
from cyxcore.errors import CyxError
from cyxnet.commands import Commander
from cyxnet.instructions import SettlementError
from cyxnet.messages import SignedTransaction
from cyxnet.shapes import Deposit, Shape

END_WITHIN_S = 2.0
WALLETS_REMEMBERED = 10_000  # of callers
ANSWER_WITHIN_S = 15.0  # of a process that first has to load its packages


class SignerError(CyxError):
    """The signer cannot be had. The message says why, and what to do."""

    code = "cannot_start"


class RemoteWallet:
    """A wallet of the platform, or of a caller, that signs over there. caller: whose it is; "" for the platform."""

    def __init__(self, keys: "Keys", address: str, caller: str = ""):
        self._keys = keys
        self.address = address
        self._caller = caller

    async def signed(self, shape: Shape) -> SignedTransaction:
        if isinstance(shape, Deposit) and shape.caller != self._caller:
            raise SettlementError("signer_refused", "deposit: it is of another caller than the wallet")
        answer = await self._keys.ask(shape)
        assert isinstance(answer, Signed)
        return answer.signed


class Keys:
    """The keys of one platform: `await Keys.open(folder, "")` starts a signer, a path connects to one."""

    def __init__(self, folder: Path, socket: str):
        self._folder = folder
        self._socket = socket
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._child: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._refusal = ""  # why a signer did not start
        self._mute = self._cannot_write = False  # the signer, the last time that would have shown it
        self._custody: OrderedDict[str, RemoteWallet] = OrderedDict()  # that used longest ago first
        self.wallet: RemoteWallet
        self.platform: str
        self.commander: Commander
        self._handed: dict[str, bytes]

    @classmethod
    async def open(cls, folder: Path, socket: str = "") -> "Keys":
        """Raises SignerError."""
        keys = cls(folder, socket)
        try:
            welcome = await keys.ask(Hello())
        except BaseException as error:  # a cancel too: nobody else would end the child
            await keys.close()
            if isinstance(error, SettlementError):
                raise SignerError(str(error)) from None
            raise
        assert isinstance(welcome, Welcome)
        if welcome.commanding is None:
            await keys.close()
            raise SignerError("the signer is of a version that gives no key for commands: upgrade it first")
        keys.commander = Commander(welcome.commanding)
        keys.wallet, keys.platform = RemoteWallet(keys, welcome.address), welcome.platform
        keys._handed = welcome.keys
        return keys

    def child(self, purpose: str) -> bytes:
        """The key for one of the purposes that own no money, as Identity.child() gives it. Raises KeyError."""
        return self._handed[purpose]

    async def custody(self, caller: str) -> RemoteWallet:
        """The wallet that a local network keeps for a caller."""
        if caller not in self._custody:
            answer = await self.ask(Custody(caller))
            assert isinstance(answer, Address)
            self._custody[caller] = RemoteWallet(self, answer.address, caller)
            if len(self._custody) > WALLETS_REMEMBERED:
                self._custody.popitem(last=False)  # it is derived anew when it is asked for
        self._custody.move_to_end(caller)
        return self._custody[caller]

    @property
    def failing(self) -> bool:
        """Whether payments wait for the signer: it does not answer, or cannot write down what it signs."""
        return self._mute or self._cannot_write

    async def ask(self, what: Hello | Custody | Shape) -> Welcome | Address | Signed:
        """Raises SettlementError: what the signer said no to, or signer_gone when it does not answer."""
        try:
            found = await self._answer(what)
        except SettlementError:
            self._mute = True
            raise
        self._mute = False
        if isinstance(found, No):
            self._cannot_write = self._cannot_write or found.code == "signer_gone"
            raise SettlementError(found.code, found.message)  # type: ignore[arg-type]
        if isinstance(found, Signed):
            self._cannot_write = False
        return found

    async def _answer(self, what: Hello | Custody | Shape) -> Welcome | Address | Signed | No:
        """Raises SettlementError (signer_gone) when there is none."""
        writer = await self._connected()
        question = next(self._ids)
        answer = self._asked[question] = asyncio.get_running_loop().create_future()
        try:
            writer.write(frame(Ask(question, what)))
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await answer
        except (TimeoutError, ConnectionError, EOFError) as error:
            if isinstance(error, TimeoutError) and self._writer is writer and self._listening is not None:
                self._listening.cancel()  # the next question gets another link, or another child
                await asyncio.wait({self._listening})
            why = self._refusal or f"it did not answer ({type(error).__name__})"
            raise SettlementError("signer_gone", f"the signer of the platform's keys: {why}") from None
        finally:
            self._asked.pop(question, None)

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                self._refusal = ""
                try:
                    reader, self._writer = await self._connect()
                except OSError as error:
                    raise SettlementError(
                        "signer_gone",
                        f"the signer at {self._socket or sys.executable} cannot be reached ({error}); start it: "
                        f"python -m cyxcentral.signer --dir DIR --socket {self._socket or 'PATH'}",
                    ) from None
                self._listening = asyncio.get_running_loop().create_task(self._listen(reader))
            return self._writer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._socket:
            return await asyncio.open_unix_connection(self._socket)
        self._child = child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "cyxcentral.signer", "--dir", str(self._folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal reaches central only
        )
        assert child.stdin is not None and child.stdout is not None
        return child.stdout, child.stdin

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hand out answers until the signer is gone."""
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
                answer = ANSWERED.decode(await reader.readexactly(size))
                if answer.id == 0 and isinstance(answer.what, No):
                    self._refusal = answer.what.message
                elif (waiting := self._asked.get(answer.id)) is not None and not waiting.done():
                    waiting.set_result(answer.what)
        except (EOFError, OSError):
            pass
        finally:
            await self._drop()

    async def _drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and not writer.is_closing():
            writer.transport.abort()  # what nobody reads is not waited for
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(EOFError())
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def close(self) -> None:
        """A child ends when its input does; what does not is killed."""
        if self._writer is not None:
            self._writer.close()
        if self._listening is None:
            return
        await asyncio.wait({self._listening}, timeout=END_WITHIN_S)
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()
            await asyncio.wait({self._listening})
