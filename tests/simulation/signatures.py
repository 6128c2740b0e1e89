"""Ed25519 where nothing is worked out twice: to sign is a pure function, and what was signed here is known to be good.

Any other signature is looked at by production's own code.
"""

import contextlib
from typing import Any
from unittest import mock

from cyxcentral import verifier
from cyxnet import escrow, identity, solana, wallet
from cyxnet.identity import Identity
from cyxnet.wallet import Wallet

MOST = 1 << 16  # that are remembered, of all seeds together
_good: dict[tuple[bytes, bytes], bytes] = {}  # public key, message -> signature


def remembered() -> contextlib.ExitStack:
    """Production signs and checks by what is remembered here."""
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Identity, "sign", _sign_hex))
    stack.enter_context(mock.patch.object(Wallet, "sign", _sign))
    stack.enter_context(mock.patch.object(identity, "ed25519_key", _Key))
    stack.enter_context(mock.patch.object(wallet, "ed25519_key", _Key))
    stack.enter_context(mock.patch.object(solana, "signed_by", _signed_by))
    stack.enter_context(mock.patch.object(verifier, "signed_by", _signed_by))
    return stack


class _Key:
    """A public key that is asked whether it signed something."""

    def __init__(self, public_key: bytes):
        self._public_key = public_key

    def verify(self, signature: bytes, message: bytes) -> None:
        if _good.get((self._public_key, message)) != signature:
            ED25519_KEY(self._public_key).verify(signature, message)
            _remember(self._public_key, message, signature)


def _signed_by(key: bytes, signature: bytes, message: bytes) -> bool:
    return _good.get((key, message)) == signature or SIGNED_BY(key, signature, message)


def _sign_hex(who: Identity, message: bytes) -> str:
    return _signature(bytes.fromhex(who.public_key), who._signing, message).hex()


def _sign(who: Wallet, message: bytes) -> bytes:
    return _signature(who.public_key, who._key, message)


def _signature(public_key: bytes, key: Any, message: bytes) -> bytes:
    signature = _good.get((public_key, message))
    if signature is None:
        signature = key.sign(message)
        _remember(public_key, message, signature)
    return signature


def _remember(public_key: bytes, message: bytes, signature: bytes) -> None:
    if len(_good) >= MOST:
        _good.clear()
    _good[public_key, message] = signature


ED25519_KEY, SIGNED_BY = identity.ed25519_key, escrow.signed_by
