"""Payloads that the database does not see: a serializer that encrypts them. It needs the extra ``crypto``.

It owns the form of what is stored: ``sap1.<key>.<nonce and ciphertext>``, AES-256-GCM over the JSON text, with the job's id,
queue and type as associated data. So a ciphertext is worth nothing in another job's row. It refuses to say of one that it
cannot read more than that: neither keys nor payloads are in its errors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from typing import Any, NoReturn

from . import serializers
from .errors import DecryptionFailed
from .serializers import JSON, Binding, JSONSerializer, Serializer

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError("EncryptedSerializer needs the extra crypto: pip install sa-proletarian[crypto]") from _missing

VERSION = "sap1"
KEY_BYTES, NONCE_BYTES = 32, 12

_UNREADABLE = "the payload cannot be decrypted: it was changed, or belongs to another job, or its key is not among ours"


class EncryptedSerializer:
    """Encrypts payloads, each for its own job: whoever reads the tables does not see them, whoever moves them breaks them.

    :param keys: 32 bytes each, or their base64 text, as :meth:`generate_key` gives it. The first one encrypts, all decrypt.
        To change keys: put the new one last, everywhere; then first; then leave out the old one when no job has it any more.
    :param inner: what makes JSON of payloads and back; default: :class:`JSONSerializer`.

    The id of a job must be made before its payload: not with ids that the database makes. The size of a payload is not
    hidden. With one key, encrypt no more than 2**32 payloads.

    ``DecryptionFailed`` for what cannot be read; for a running job, that is a failure like any other.
    """

    def __init__(self, *keys: bytes | str, inner: Serializer | None = None) -> None:
        if not keys:
            raise TypeError("EncryptedSerializer takes at least one key: EncryptedSerializer.generate_key() makes one")
        self._inner: Serializer = JSONSerializer() if inner is None else inner
        if hasattr(self._inner, "encode_for"):
            raise TypeError("inner must be a plain serializer")
        raw = [_key_bytes(key) for key in keys]
        self._ciphers = {_name_of(key): AESGCM(key) for key in raw}
        if len(self._ciphers) < len(raw):
            raise ValueError("a key is given twice")
        self._current = _name_of(raw[0])

    @staticmethod
    def generate_key() -> str:
        """Make a key, as base64 text; keep it where you keep passwords."""
        return base64.b64encode(os.urandom(KEY_BYTES)).decode()

    def encode_for(self, payload: Any, binding: Binding) -> JSON:
        """Give what to store for ``payload`` in the job that ``binding`` is about."""
        if binding.job_id is None:
            raise TypeError(
                "an encrypted payload is bound to its job's id, which must be known before: "
                "EncryptedSerializer does not go with ids that the database makes"
            )
        text = serializers.encoded(self._inner, payload)[1]
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._ciphers[self._current].encrypt(nonce, text.encode(), _associated(binding))
        return f"{VERSION}.{self._current}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def decode_for(self, value: JSON, binding: Binding) -> Any:
        """Give the payload that was encrypted for exactly this job."""
        return self._inner.decode(serializers.loads(self._opened(value, binding)))

    def encode(self, payload: Any) -> NoReturn:
        """Refuse: without its job there is no encrypting a payload."""
        raise TypeError("an encrypted payload is bound to a job: call encode_for(payload, Binding(job_id, queue, job_type))")

    def decode(self, value: JSON) -> NoReturn:
        """Refuse: without its job there is no decrypting a payload."""
        raise TypeError("an encrypted payload is bound to a job: call decode_for(row.payload, Binding.of(row))")

    def _opened(self, value: JSON, binding: Binding) -> str:
        try:
            version, key, sealed = value.split(".")
            data = base64.b64decode(sealed, altchars=b"-_", validate=True)
            if version != VERSION or base64.urlsafe_b64encode(data).decode() != sealed:
                raise DecryptionFailed(_UNREADABLE)
            plain = self._ciphers[key].decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], _associated(binding))
            return plain.decode()
        except (AttributeError, KeyError, ValueError, binascii.Error, InvalidTag):
            raise DecryptionFailed(_UNREADABLE) from None


def _key_bytes(key: object) -> bytes:
    if isinstance(key, str):
        try:
            key = base64.b64decode(key, altchars=b"-_" if {"-", "_"} & {*key} else None, validate=True)
        except ValueError:
            raise ValueError("a key must be 32 bytes, or their base64 text; this text is not base64") from None
    if not isinstance(key, bytes):
        raise TypeError(f"a key must be bytes or text, got a {type(key).__name__}")
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key must be {KEY_BYTES} bytes, got {len(key)}")
    return key


def _name_of(key: bytes) -> str:
    """Give the name under which a key stands in what it has encrypted; nothing about the key follows from it."""
    return hashlib.sha256(b"sa_proletarian key " + key).hexdigest()[:12]


def _associated(binding: Binding) -> bytes:
    return json.dumps([VERSION, str(binding.job_id), binding.queue, binding.job_type]).encode()
