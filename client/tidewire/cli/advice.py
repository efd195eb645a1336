"""What to say when something went wrong: the error's own sentence, and what to do next."""

from typing import Final

from tidewire import errors
from tidewire.cli.settings import Settings

ADVICE: Final[dict[type[errors.TidewireError], str]] = {
    errors.TlsFailed: "Check --ca, --cert, --key and the host in --url.",
    errors.Draining: "The server is going; try another one, or again when it is back.",
    errors.NoResponders: "`tidewire answer SUBJECT` starts a responder.",
    errors.StreamNotFound: "`tidewire stream list` shows the streams.",
    errors.NoStream: "`tidewire stream add NAME SUBJECT` makes a stream for it.",
    errors.ConsumerNotFound: "`tidewire consumer list STREAM` shows the consumers.",
    errors.StreamExists: "`tidewire stream info NAME` shows the one that is there.",
    errors.ConsumerExists: "`tidewire consumer info STREAM NAME` shows the one that is there.",
    errors.KeyNotFound: "`tidewire state list` shows the keys.",
    errors.NoTargets: "`tidewire members` shows the nodes.",
    errors.CheckpointNotFound: "`tidewire checkpoint list` shows the checkpoints.",
    errors.RevisionMismatch: "Read the key again and decide again.",
    errors.Unauthenticated: "Give a certificate with --cert and --key.",
    errors.PermissionDenied: "`tidewire info` shows who the server thinks you are.",
    errors.DeadlineExceeded: "Try again, or allow more time with --timeout.",
    errors.Unavailable: "Is a server running there? `tidewire serve` starts one; --url names it.",
}

ENCRYPTED: Final = ("tls://", "wss://", "grpcs://", "quic://", "dtls://")


def explain(error: Exception, settings: Settings) -> str:
    """One or two sentences without a traceback; the most particular advice that fits."""
    if isinstance(error, errors.TidewireError):
        kinds = type(error).__mro__
        advice = next((ADVICE[kind] for kind in kinds if kind in ADVICE), "")
        unnamed = isinstance(error, errors.Unavailable) and settings.url not in error.message
        if advice == ADVICE[errors.Unavailable] and settings.url.startswith(ENCRYPTED):
            # In TLS 1.3 a server refuses a certificate by closing: after it, nothing says why.
            advice = f"{advice} Or it refuses the certificate: check --cert and --key."
        where = f" ({settings.url})" if unnamed else ""
        return f"{sentence(error.message or type(error).__name__)}{where} {advice}".rstrip()
    if isinstance(error, ModuleNotFoundError) and not f"{error.name}".startswith("tidewire."):
        return missing(error)
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{sentence(error.strerror)}"
    again = "" if settings.debug else " Run it again with --debug to see where, and report it."
    return f"internal error: {type(error).__name__}: {sentence(str(error))}{again}"


def missing(error: ModuleNotFoundError) -> str:
    """Which extra brings a module that is not installed."""
    extra = "certs" if (error.name or "").partition(".")[0] == "cryptography" else "server"
    return f"the package {error.name!r} is missing. Install it: pip install 'tidewire[{extra}]'"


def sentence(text: str) -> str:
    """The text with a full stop."""
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."
