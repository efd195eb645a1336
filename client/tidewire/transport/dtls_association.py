"""
DTLS of one peer, over memory: datagrams of the network on one side, plaintext on the other.

OpenSSL's memory BIOs are streams of bytes and lose where datagrams end; records are put into
datagrams again here, each whole and as many as fit.
"""

from collections.abc import Callable
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL

from tidewire.errors import TlsFailed
from tidewire.transport.tls import ALPN, TlsConfig

DTLS_1_2: Final = 0xFEFD
CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_OPTIONS: Final[tuple[int | None, ...]] = (
    SSL.OP_NO_QUERY_MTU,
    SSL.OP_NO_TICKET,
    SSL.OP_NO_COMPRESSION,
    SSL.OP_NO_RENEGOTIATION,
)
VERIFY_ERRORS: Final = {
    9: "certificate is not yet valid",
    10: "certificate has expired",
    18: "self-signed certificate",
    19: "self-signed certificate in certificate chain",
    20: "unable to get local issuer certificate",
    21: "unable to verify the first certificate",
    23: "certificate revoked",
    24: "invalid CA certificate",
    26: "unsuitable certificate purpose",
}
"""Numbers of X509_V_ERR and their words, as ``ssl`` has them."""
PATH_BYTES: Final = 1_200
"""Datagrams of a handshake are no longer than this."""
RECORD_HEADER_BYTES: Final = 13
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23
CLIENT_HELLO: Final = 1
_BIO_BYTES: Final = 64 * 1024


def is_client_hello(data: bytes) -> bool:
    """Whether a datagram begins a handshake: epoch 0, ClientHello."""
    return (
        len(data) > RECORD_HEADER_BYTES
        and data[0] == HANDSHAKE
        and data[3:5] == b"\0\0"
        and data[RECORD_HEADER_BYTES] == CLIENT_HELLO
    )


def make_context(
    config: TlsConfig, *, server: bool, cookies: "CookieCallbacks | None" = None
) -> SSL.Context:
    """
    Return a context that demands and verifies the peer's chain, dates and purpose.

    Raises:
        TlsFailed: A file cannot be used.
    """
    files = config.read()
    context = SSL.Context(SSL.DTLS_SERVER_METHOD if server else SSL.DTLS_CLIENT_METHOD)
    context.set_min_proto_version(DTLS_1_2)
    context.set_cipher_list(CIPHERS)
    for option in _OPTIONS:
        context.set_options(option or 0)  # None where OpenSSL does not know it
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    mode = SSL.VERIFY_PEER
    if server and config.require_client_certificate:
        mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
    if server and config.ca is None:
        mode = SSL.VERIFY_NONE
    context.set_verify(mode, _note_verdict)
    try:
        if config.certificate is not None and config.key is not None:
            context.use_certificate_chain_file(str(config.certificate))
            context.use_privatekey(_private_key(files.key or b""))
            context.check_privatekey()
        if config.ca is not None:
            context.load_verify_locations(str(config.ca))
        elif not server:
            context.set_default_verify_paths()
    except (SSL.Error, ValueError) as error:
        named = ", ".join(str(path) for path in config.files())
        reason = reason_of(error) if isinstance(error, SSL.Error) else error
        raise TlsFailed(f"the TLS files {named} cannot be used: {reason}") from error
    if cookies is not None:
        context.set_options(SSL.OP_COOKIE_EXCHANGE or 0)
        context.set_cookie_generate_callback(cookies.make)
        context.set_cookie_verify_callback(cookies.check)
        context.set_alpn_select_callback(_select)
    else:
        context.set_alpn_protos([ALPN.encode()])
    return context


def _private_key(pem: bytes) -> Any:
    """Return a key; OpenSSL itself would ask for its password at the terminal, and wait."""
    try:
        return load_pem_private_key(pem, None)
    except TypeError as error:
        raise ValueError(
            "the private key is encrypted; tidewire takes keys without a password"
        ) from error


def _note_verdict(
    connection: SSL.Connection, _certificate: Any, number: int, _depth: int, verdict: int
) -> bool:
    """Let OpenSSL's verdict stand, and keep why it refuses."""
    if not verdict:
        connection.get_app_data().failure = VERIFY_ERRORS.get(number, f"verify error {number}")
    return bool(verdict)


def _select(_: SSL.Connection, offered: list[bytes]) -> Any:
    return ALPN.encode() if ALPN.encode() in offered else SSL.NO_OVERLAPPING_PROTOCOLS


class CookieCallbacks:
    """What OpenSSL asks for cookies; the address is the connection's application data."""

    def __init__(
        self, make: Callable[[bytes], bytes], check: Callable[[bytes, bytes], bool]
    ) -> None:
        self._make = make
        self._check = check

    def make(self, connection: SSL.Connection) -> bytes:
        """Return the cookie of the address a ClientHello came from."""
        return self._make(connection.get_app_data().address)

    def check(self, connection: SSL.Connection, cookie: bytes) -> bool:
        """Whether a cookie is that of the address."""
        return self._check(cookie, connection.get_app_data().address)


def reason_of(error: SSL.Error) -> str:
    """Return OpenSSL's words for an error."""
    entries = error.args[0] if error.args else ()
    if isinstance(entries, list) and entries:
        return str(entries[-1][-1])
    return "the peer closed" if isinstance(error, SSL.ZeroReturnError) else str(error)


class _Remembered:
    """What OpenSSL's callbacks need to know of an association, and tell it."""

    __slots__ = ("address", "failure")

    def __init__(self) -> None:
        self.address = b""
        self.failure = ""


class Association:
    """
    One DTLS connection.

    Attributes:
        established: The handshake is done, and the peer's certificate verified.
        closed: The peer has said that it is done.
    """

    def __init__(self, context: SSL.Context, *, server_name: str | None = None) -> None:
        self.established = False
        self.closed = False
        self._remembered = _Remembered()
        self._ssl = SSL.Connection(context, None)
        self._ssl.set_app_data(self._remembered)
        self._ssl.set_ciphertext_mtu(PATH_BYTES)
        if server_name is not None:
            self._ssl.set_connect_state()
            self._ssl.set_tlsext_host_name(server_name.encode("idna"))
        else:
            self._ssl.set_accept_state()

    @property
    def ssl(self) -> SSL.Connection:
        """OpenSSL's object."""
        return self._ssl

    @property
    def failure(self) -> str:
        """Why the peer's certificate was refused; empty when it was not."""
        return self._remembered.failure

    def listen(self, data: bytes, address: bytes) -> bool:
        """
        Take the first datagram of an address; whether it shows the cookie we gave it.

        When not, :meth:`output` has what asks for it, and this association is of no more use.
        """
        self._remembered.address = address
        self._ssl.bio_write(data)
        try:
            self._ssl.DTLSv1_listen()
        except SSL.Error:
            return False
        return True

    def handshake(self) -> None:
        """Go on as far as what has come allows; raise ``SSL.Error`` when it fails."""
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            return
        self.established = True

    def receive(self, data: bytes) -> list[bytes]:
        """
        Take a datagram of the network; return what the peer has sent in it.

        Raises:
            SSL.Error: The handshake failed. Records that are wrong later are dropped by OpenSSL.
        """
        self._ssl.bio_write(data)
        if not self.established:
            self.handshake()
            if not self.established:
                return []
        messages: list[bytes] = []
        try:
            while True:
                messages.append(self._ssl.recv(_BIO_BYTES))
        except SSL.WantReadError:
            return messages
        except SSL.ZeroReturnError:
            self.closed = True
            return messages

    def send(self, data: bytes) -> None:
        """Encrypt a message; :meth:`output` has it then."""
        self._ssl.send(data)

    def timeout_s(self) -> float | None:
        """Return when the handshake must send again, in seconds from now."""
        return self._ssl.DTLSv1_get_timeout()

    def handle_timeout(self) -> None:
        """Send again what the handshake has lost; raise ``SSL.Error`` when it was too often."""
        self._ssl.DTLSv1_handle_timeout()

    def shutdown(self) -> None:
        """Tell the peer that we are done."""
        if self.established and not self.closed:
            self.closed = True
            try:
                self._ssl.shutdown()
            except SSL.Error:
                self.closed = True  # it cannot be told any more

    def output(self) -> list[bytes]:
        """Return what is to be sent, cut where datagrams end."""
        try:
            data = self._ssl.bio_read(_BIO_BYTES)
        except SSL.WantReadError:
            return []
        if len(data) <= PATH_BYTES:
            return [data]
        out: list[bytes] = []
        begin = position = 0
        while position < len(data):
            size = RECORD_HEADER_BYTES + int.from_bytes(data[position + 11 : position + 13], "big")
            if position > begin and position + size - begin > PATH_BYTES:
                out.append(data[begin:position])
                begin = position
            position += size
        out.append(data[begin:])
        return out

    def chain(self) -> tuple[x509.Certificate, ...]:
        """Return the peer's certificates, its own first; none when it showed none."""
        leaf = self._ssl.get_peer_certificate(as_cryptography=True)
        if leaf is None:
            return ()
        # At a server OpenSSL leaves the peer's own certificate out of the chain.
        chain = self._ssl.get_peer_cert_chain(as_cryptography=True) or []
        return (leaf, *(each for each in chain if each != leaf))
