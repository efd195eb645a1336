"""Transactions on State: comparisons, and operations that are done all or not at all."""

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tidewire.client.entries import Entry, read_entry
from tidewire.client.naming import Durability, durability_of, level_of
from tidewire.client.session import Session
from tidewire.client.times import to_duration
from tidewire.v1 import common_pb2, state_pb2
from tidewire.v1.state_pb2_grpc import StateServiceStub
from tidewire.wire.codec import CodecName
from tidewire.wire.payload import Value, encode_payload

if TYPE_CHECKING:
    from tidewire.client.membership import Membership


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """
    What a transaction did.

    Attributes:
        succeeded: All comparisons held, and the operations were done.
        results: One for each operation that was done: the entry written or read, whether a key
            was deleted; ``None`` for a read of a key that is not there.
        revision: Store revision.
        actual: The compared keys as they are, when not all comparisons held.
        durability: Level reached; it prints as its word.
    """

    succeeded: bool
    results: tuple[Entry | bool | None, ...]
    revision: int
    actual: tuple[Entry, ...]
    durability: common_pb2.Durability.ValueType


class Operations:
    """A list of operations; each method adds one and returns the list."""

    def __init__(self, session: Session | None = None) -> None:
        self._codec = common_pb2.CODEC_NONE if session is None else session.codec
        self.items: list[state_pb2.StateOperation] = []

    def put(
        self,
        key: str,
        value: Value,
        *,
        expected_revision: int | None = None,
        ttl_s: float | None = None,
        lease: "Membership | None" = None,
    ) -> Self:
        """Write a key; see `State.put`."""
        request = put_request(
            key,
            value,
            expected_revision=expected_revision,
            ttl_s=ttl_s,
            lease=lease,
            codec=self._codec,
        )
        self.items.append(state_pb2.StateOperation(put=request))
        return self

    def delete(self, key: str, *, expected_revision: int | None = None) -> Self:
        """Delete a key; see `State.delete`."""
        request = state_pb2.DeleteRequest(key=key)
        if expected_revision is not None:
            request.expected_revision = expected_revision
        self.items.append(state_pb2.StateOperation(delete=request))
        return self

    def get(self, key: str) -> Self:
        """Read a key, as it is after the operations before."""
        self.items.append(state_pb2.StateOperation(get=state_pb2.GetRequest(key=key)))
        return self


class Transaction(Operations):
    """
    Comparisons and operations; `put`, `delete` and `get` add to what is done when all hold.

    ::

        result = await (
            client.state.transact().if_revision("a", 7).put("a", b"8").delete("b").commit()
        )

    Attributes:
        compare: The comparisons.
        otherwise: Operations done when a comparison does not hold.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._session = session
        self.compare: list[state_pb2.Compare] = []
        self.otherwise = Operations(session)

    def if_revision(self, key: str, revision: int) -> Self:
        """Only when the key's revision is this; 0: when it is not there."""
        self.compare.append(state_pb2.Compare(key=key, revision=revision))
        return self

    def if_version(self, key: str, version: int) -> Self:
        """Only when the key's version is this; 0: when it is not there."""
        self.compare.append(state_pb2.Compare(key=key, version=version))
        return self

    def if_exists(self, key: str) -> Self:
        """Only when the key is there."""
        self.compare.append(state_pb2.Compare(key=key, exists=True))
        return self

    def if_absent(self, key: str) -> Self:
        """Only when the key is not there."""
        self.compare.append(state_pb2.Compare(key=key, exists=False))
        return self

    async def commit(
        self, *, durability: Durability | None = None, timeout_s: float | None = None
    ) -> TransactionResult:
        """
        Send it. A comparison that does not hold is not an error: see `TransactionResult.succeeded`.

        Raises:
            RevisionMismatch: The `expected_revision` of an operation did not hold.
            InvalidArgument: Too many operations, or a key is written twice.
        """
        request = state_pb2.TransactRequest(
            compare=self.compare,
            then=self.items,
            otherwise=self.otherwise.items,
            request_id=uuid.uuid4().hex,
            durability=durability_of(durability),
        )
        stub = StateServiceStub(self._session.channel)
        response: state_pb2.TransactResponse = await self._session.unary(
            stub.Transact, request, timeout_s=timeout_s
        )
        return TransactionResult(
            succeeded=response.succeeded,
            results=tuple(_result(item, response.durability) for item in response.results),
            revision=response.revision,
            actual=tuple(map(read_entry, response.actual)),
            durability=level_of(response.durability),
        )


def put_request(
    key: str,
    value: Value,
    *,
    expected_revision: int | None,
    ttl_s: float | None,
    lease: "Membership | None",
    codec: CodecName,
    content_type: str = "",
) -> state_pb2.PutRequest:
    """Build the request of a write."""
    payload = encode_payload(value, codec=codec, content_type=content_type)
    request = state_pb2.PutRequest(key=key, value=payload)
    if expected_revision is not None:
        request.expected_revision = expected_revision
    if ttl_s is not None:
        request.ttl.CopyFrom(to_duration(ttl_s))
    if lease is not None:
        request.lease.CopyFrom(lease.lease_ref())
    return request


def _result(
    result: state_pb2.StateOperationResult, durability: common_pb2.Durability.ValueType
) -> Entry | bool | None:
    kind = result.WhichOneof("kind")
    if kind == "put":
        return read_entry(result.put.entry, durability)
    if kind == "get":
        return read_entry(result.get.entry) if result.get.HasField("entry") else None
    return bool(result.delete.deleted)
