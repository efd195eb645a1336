"""Makers of connections over aioquic: what a server admits, and how a client begins."""

import os
import ssl
from dataclasses import replace
from typing import Any, Final

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicNetworkPath
from aioquic.quic.packet import (
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from cryptography import x509

from tidewire.errors import TlsFailed
from tidewire.transport.quic import identity
from tidewire.transport.quic.backend import (
    CONNECTION_ID_BYTES,
    DATAGRAM_BYTES_LEAST,
    Address,
    QuicSettings,
    SessionMemory,
)
from tidewire.transport.quic.identity import CertificateRefused
from tidewire.transport.quic.over_aioquic.connection import AioquicConnection
from tidewire.transport.quic.over_aioquic.handshake import Credentials
from tidewire.transport.quic.over_aioquic.session import CRYPTO_ERROR, AioquicSession
from tidewire.transport.quic.tokens import (
    TICKET_LIFETIME_S,
    TICKETS_MAX,
    AddressTokens,
    Bounded,
    ResetKey,
    Session,
    TokenRefused,
)
from tidewire.transport.tls import ALPN, TlsFiles

SELF_TEST_TURNS: Final = 8


class AioquicServer:
    """A ``QuicServer``."""

    def __init__(self, settings: QuicSettings) -> None:
        self._tokens = AddressTokens()
        self._sessions: Bounded[Session]
        self._versions = _configuration(settings, is_client=False).supported_versions
        self.reload(settings)

    def reload(self, settings: QuicSettings) -> None:
        """See ``QuicServer``."""
        credentials = Credentials(settings)
        if not credentials.certificates:
            raise TlsFailed("a QUIC server needs a certificate and a key")
        if settings.require_certificate:
            _refuse_to_let_strangers_in(self, settings, credentials)
        self._settings = settings
        self._credentials = credentials
        self._reset_key = ResetKey(settings.files.key or b"")
        # Who resumes is not shown the certificate: with a new one everybody has to look at it.
        self._sessions = Bounded(TICKETS_MAX)

    def begin(self, data: bytes, address: Address, now_s: float) -> AioquicSession | bytes | None:
        """See ``QuicServer``."""
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_BYTES)
        except ValueError:
            return None
        if header.packet_type == QuicPacketType.ONE_RTT:
            return self._reset_key.answer(data)
        if len(data) < DATAGRAM_BYTES_LEAST:
            return None
        if header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            return None
        if header.version not in self._versions:
            negotiation: bytes = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=self._versions,
            )
            return negotiation
        used: bytes = header.destination_cid
        if header.packet_type != QuicPacketType.INITIAL or len(used) < CONNECTION_ID_BYTES:
            return None
        try:
            proof = self._tokens.open(header.token, address, used, now_s)
        except TokenRefused:
            return None
        if proof is None:
            return self._retry(header, address, now_s)
        original, retried = proof
        quic = self._make(self._settings, self._credentials, original, retried, now_s)
        quic._network_paths = [QuicNetworkPath(address, is_validated=True)]
        quic.new_token = self._tokens.for_later(address, now_s)
        return AioquicSession(quic)

    def _retry(self, header: Any, address: Address, now_s: float) -> bytes:
        chosen = os.urandom(CONNECTION_ID_BYTES)
        retry: bytes = encode_quic_retry(
            version=header.version,
            source_cid=chosen,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=self._tokens.for_retry(address, header.destination_cid, chosen, now_s),
        )
        return retry

    def _make(
        self,
        settings: QuicSettings,
        credentials: Credentials,
        original: bytes,
        retried: bytes | None,
        now_s: float,
    ) -> AioquicConnection:
        configuration = _configuration(settings, is_client=False)
        configuration.certificate, *configuration.certificate_chain = credentials.certificates
        configuration.private_key = credentials.key
        quic: AioquicConnection = AioquicConnection(
            settings,
            credentials,
            configuration=configuration,
            original_destination_connection_id=original,
            retry_source_connection_id=retried,
            session_ticket_fetcher=lambda ticket: self._resume(quic, ticket, now_s),
            session_ticket_handler=lambda ticket: self._remember(quic, ticket, now_s),
        )
        quic.reset_key = ResetKey(settings.files.key or b"")
        quic._host_cids[0].stateless_reset_token = quic.reset_key.token(quic.host_cid)
        return quic

    def _resume(self, quic: AioquicConnection, name: bytes, now_s: float) -> Any:
        """
        Return the session of a ticket, once, if its client would get in today.

        A ticket is for one use, so that what comes with it first cannot be sent again by others.
        """
        if quic.tls.alpn_negotiated != ALPN:
            return None  # what comes first of another protocol is more than HELLO
        session = self._sessions.take(name)
        if session is None or now_s - session.shown_s > TICKET_LIFETIME_S:
            return None
        context = quic.tls
        if context.trust is not None and (context.required or session.chain):
            if not session.chain:
                return None
            try:
                context.trust.verify(session.chain, identity.CLIENT)
            except CertificateRefused:
                return None
        context.verified = session.chain
        context.shown_s = session.shown_s
        context.judged = True
        return session.ticket

    def _remember(self, quic: AioquicConnection, ticket: Any, now_s: float) -> None:
        context = quic.tls
        if context.judged and context.alpn_negotiated == ALPN:
            shown_s = context.shown_s or now_s
            self._sessions.put(ticket.ticket, Session(ticket, context.verified, shown_s))


def _configuration(settings: QuicSettings, *, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=list(settings.alpn),
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=settings.idle_timeout_s,
        is_client=is_client,
        max_data=settings.connection_window_bytes,
        max_datagram_size=DATAGRAM_BYTES_LEAST,
        max_stream_data=settings.stream_window_bytes,
        server_name=settings.server_name or None,
        verify_mode=ssl.CERT_REQUIRED if is_client else ssl.CERT_NONE,
    )


class AioquicBackend:
    """A ``QuicBackend``."""

    def server(self, settings: QuicSettings) -> AioquicServer:
        """See ``QuicBackend``."""
        return AioquicServer(settings)

    def connect(
        self, settings: QuicSettings, address: Address, now_s: float, memory: SessionMemory
    ) -> AioquicSession:
        """See ``QuicBackend``."""
        credentials = Credentials(settings)
        configuration = _configuration(settings, is_client=True)
        configuration.cadata = settings.files.ca
        if settings.files.ca is None:
            paths = ssl.get_default_verify_paths()
            configuration.cafile, configuration.capath = paths.cafile, paths.capath
        if credentials.certificates:
            configuration.certificate, *configuration.certificate_chain = credentials.certificates
            configuration.private_key = credentials.key
        remembered, memory.ticket = memory.ticket, None
        configuration.token, memory.address_token = memory.address_token, b""
        chain: tuple[x509.Certificate, ...] = ()
        if remembered is not None:
            ticket, chain = remembered
            if _still_trusted(credentials, chain):
                configuration.session_ticket = ticket

        def remember_token(token: bytes) -> None:
            memory.address_token = token

        def remember_ticket(given: Any) -> None:
            memory.ticket = (given, quic.tls.verified or chain)

        quic = AioquicConnection(
            settings,
            credentials,
            configuration=configuration,
            session_ticket_handler=remember_ticket,
            token_handler=remember_token,
        )
        if configuration.session_ticket is not None:
            quic.remembered = chain
        quic.connect(address, now=now_s)
        return AioquicSession(quic)


def _still_trusted(credentials: Credentials, chain: tuple[x509.Certificate, ...]) -> bool:
    if credentials.trust is None or not chain:
        return False
    try:
        credentials.trust.verify(chain, identity.SERVER)
    except CertificateRefused:
        return False
    return True


def _refuse_to_let_strangers_in(
    server: AioquicServer, settings: QuicSettings, credentials: Credentials
) -> None:
    """
    Try to get in without a certificate, in memory; raise unless exactly that is what fails.

    Raises:
        TlsFailed: The client got in, or was stopped by something else.
    """
    nobody = Credentials(replace(settings, files=TlsFiles(None, None, None), server_name=""))
    configuration = _configuration(settings, is_client=True)
    configuration.verify_mode = ssl.CERT_NONE
    stranger = AioquicConnection(settings, nobody, configuration=configuration)
    stranger.connect(("127.0.0.1", 1), now=0.0)
    original = stranger.original_destination_connection_id
    quic = server._make(settings, credentials, original, None, 0.0)
    why: events.ConnectionTerminated | None = None
    for turn in range(SELF_TEST_TURNS):
        now_s = turn / 100
        for data, _ in stranger.datagrams_to_send(now=now_s):
            quic.receive_datagram(data, ("127.0.0.1", 2), now=now_s)
        for data, _ in quic.datagrams_to_send(now=now_s):
            stranger.receive_datagram(data, ("127.0.0.1", 1), now=now_s)
        if quic._handshake_complete or quic._close_event is not None:
            why = quic._close_event
            break
    expected = CRYPTO_ERROR + tls.AlertDescription.certificate_required
    if why is None or why.error_code != expected:
        raise TlsFailed(
            "the self-test of quic:// failed: a client without a certificate was not refused for "
            f"that reason, but {why.reason_phrase if why else 'got in'}; this server does not serve"
        )
