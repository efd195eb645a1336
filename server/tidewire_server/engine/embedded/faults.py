"""What the database reports, and what callers are told of it; its own text stays here."""

import logging

import apsw

from tidewire import errors

_LOG = logging.getLogger(__name__)


def is_fatal(error: BaseException) -> bool:
    """Whether nothing may be written any more after this."""
    return isinstance(
        error, apsw.IOError | apsw.NoMemError | apsw.ReadOnlyError | apsw.CantOpenError
    )


def translate(error: BaseException) -> errors.TidewireError:
    """What the caller is told of an error of the database; its own text stays here."""
    if isinstance(error, errors.TidewireError):
        return error
    if isinstance(error, apsw.FullError):
        return errors.StoreFull(
            "the disk is full: nothing more is stored until there is space; reading goes on, and "
            "purging frees space",
            retry_after_s=1.0,
        )
    if isinstance(error, apsw.CorruptError | apsw.NotADBError | UnicodeDecodeError):
        return errors.DataCorrupt(
            "a part of the store that this needs is damaged; restore it from a backup"
        )
    if isinstance(error, apsw.IOError | apsw.CantOpenError | apsw.ReadOnlyError):
        return errors.Unavailable("the store cannot be read or written: the disk reports an error")
    _LOG.error("a mistake of the engine", exc_info=error)
    if isinstance(error, apsw.Error):
        return errors.Internal("the store refused an operation it should know")
    return errors.Internal(f"a mistake of the engine: {type(error).__name__}")


def outcome_unknown() -> errors.OutcomeUnknown:
    """The error for writes that were under way when the disk failed."""
    return errors.OutcomeUnknown(
        "the disk failed while this was written: it is stored or not, never in part; "
        "look when the server is back, or repeat it if it carries an id"
    )


def unavailable() -> errors.Unavailable:
    """The error for every write after the engine has failed."""
    return errors.Unavailable(
        "the disk failed while writing: nothing is stored any more, and the server ends. What was "
        "acknowledged is safe"
    )
