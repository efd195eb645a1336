"""The stubs of EventFlux's contract beside everybody else's."""

import subprocess
import sys

from google.protobuf import descriptor_pb2

from tidewire.eventflux import transport_pb2

BESIDE = """
from google.protobuf import descriptor_pb2, descriptor_pool
from tidewire.eventflux import transport_pb2
file = descriptor_pb2.FileDescriptorProto()
transport_pb2.DESCRIPTOR.CopyToProto(file)
pool = descriptor_pool.Default()
file.name = "transport.proto"
pool.AddSerializedFile(file.SerializeToString())
assert "eventflux" not in __import__("sys").modules
try:
    file.name = "again.proto"
    pool.AddSerializedFile(file.SerializeToString())
except TypeError:
    print("one pool takes one file of them")
"""
FIELDS = {
    "TransportMessage": (
        "id message_type payload headers timestamp source_node target_node priority compression"
    ),
    "EventRequest": "node_id filter batch_size",
    "EventFilter": "stream_names message_types start_timestamp end_timestamp",
    "HeartbeatRequest": "node_id timestamp status",
    "HeartbeatResponse": "server_timestamp server_node_id server_status cluster_info",
    "NodeStatus": (
        "health cpu_usage memory_usage active_connections events_per_second version metadata"
    ),
    "ClusterInfo": "cluster_id total_nodes healthy_nodes leader_node cluster_version",
    "ConnectionConfig": (
        "connection_timeout_ms request_timeout_ms keep_alive_interval_secs max_message_size"
        " enable_compression preferred_compression tls_config"
    ),
    "TlsConfig": "enabled cert_file key_file ca_file server_name insecure_skip_verify",
}
ENUMS = {
    "MessageType": "UNSPECIFIED EVENT QUERY STATE CONTROL HEARTBEAT CHECKPOINT METADATA"
    " ACKNOWLEDGMENT",
    "CompressionType": "NONE LZ4 SNAPPY ZSTD",
    "NodeHealth": "UNKNOWN HEALTHY DEGRADED UNHEALTHY OFFLINE",
}


def test_they_load_beside_stubs_of_the_same_contract() -> None:
    """
    Somebody who generated EventFlux's file under another name can use both in one process; control:
    the default pool does refuse a second file of the same messages.
    """
    done = subprocess.run(
        [sys.executable, "-c", BESIDE], capture_output=True, text=True, check=True
    )

    assert "one pool takes one file of them" == done.stdout.strip()


def test_names_and_numbers_are_eventflux_s() -> None:
    """The contract is not ours to change: fields count from 1 in this order, values from 0."""
    file = descriptor_pb2.FileDescriptorProto()
    transport_pb2.DESCRIPTOR.CopyToProto(file)
    fields = {
        message.name: {field.number: field.name for field in message.field}
        for message in file.message_type
    }
    enums = {
        enum.name: {v.number: v.name.partition("_")[2] for v in enum.value}
        for enum in file.enum_type
    }
    (service,) = file.service

    assert "eventflux.transport" == file.package
    assert {name: dict(enumerate(f.split(), 1)) for name, f in FIELDS.items()} == fields
    assert ENUMS.keys() == enums.keys()
    for name, words in ENUMS.items():
        assert words.split() == [word.rpartition("_")[2] for _, word in sorted(enums[name].items())]
    assert [
        ("SendMessage", False, False),
        ("StreamMessages", True, True),
        ("StreamEvents", False, True),
        ("Heartbeat", False, False),
    ] == [(m.name, m.client_streaming, m.server_streaming) for m in service.method]
