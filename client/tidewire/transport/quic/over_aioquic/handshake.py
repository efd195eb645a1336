"""The TLS handshake of aioquic, with the certificates judged that a stock server lets pass."""

from typing import Any, Final

from aioquic import tls
from aioquic._buffer import Buffer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tidewire.errors import TlsFailed
from tidewire.transport.quic import identity
from tidewire.transport.quic.backend import QuicSettings
from tidewire.transport.quic.identity import CertificateRefused, Trust


class _CertificateRequired(tls.Alert):
    description = tls.AlertDescription.certificate_required


class _UnknownAuthority(tls.Alert):
    description = tls.AlertDescription.unknown_ca


_ALERTS: Final = {
    "expired": tls.AlertCertificateExpired,
    "unknown_ca": _UnknownAuthority,
    "unsupported": tls.AlertUnsupportedCertificate,
    "bad": tls.AlertBadCertificate,
}


class Credentials:
    """The files of one side, read and parsed."""

    def __init__(self, settings: QuicSettings) -> None:
        files = settings.files
        self.trust = None if files.ca is None and settings.server_name == "" else Trust(files.ca)
        self.certificates: list[x509.Certificate] = []
        self.key: Any = None
        try:
            if files.certificate is not None and files.key is not None:
                self.certificates = x509.load_pem_x509_certificates(files.certificate)
                self.key = load_pem_private_key(files.key, None)
        except (ValueError, TypeError) as error:
            raise TlsFailed(f"the TLS files cannot be used: {error}") from error


class Handshaking(tls.Context):
    """The handshake, with the peer's certificate judged. An instance is made from a parent's."""

    trust: Trust | None
    required: bool
    judged: bool
    """The peer is who the rules want; without this no stream is looked at."""
    verified: tuple[x509.Certificate, ...]
    shown_s: float

    def _client_handle_certificate(self, input_buf: Buffer) -> None:
        super()._client_handle_certificate(input_buf)
        if self.trust is not None:
            self._judge(identity.SERVER)

    def _server_handle_hello(
        self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer
    ) -> None:
        super()._server_handle_hello(input_buf, initial_buf, handshake_buf)
        if self._session_resumed and self._request_client_certificate:
            # No certificate is asked for with a ticket: ``_resume`` has verified the one it is of.
            self._server_expect_finished()

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate(input_buf)
        if self._peer_certificate is not None:
            self._judge(identity.CLIENT)
        elif self.required:
            raise _CertificateRequired("a client certificate is required")
        else:
            self.judged = True

    def _judge(self, purpose: x509.ObjectIdentifier) -> None:
        if self.trust is None:
            raise _UnknownAuthority("nobody is trusted here")
        assert self._peer_certificate is not None
        chain = (self._peer_certificate, *self._peer_certificate_chain)
        try:
            self.trust.verify(chain, purpose)
        except CertificateRefused as error:
            raise _ALERTS[error.kind](str(error)) from error
        self.verified = chain
        self.judged = True
