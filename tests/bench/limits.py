"""What the machine itself can do: one TCP stream of iperf3, a copy of memory."""

import json
import shutil
import socket
import subprocess
import time
from typing import Any, Final

LISTEN_TIMEOUT_S: Final = 30.0
COPY_BUFFERS_BYTES: Final = 64 << 20
"""Copies go around in buffers larger than the caches, as messages that nobody has touched do."""


def iperf_missing() -> str | None:
    """Why iperf3 cannot run here; ``None`` when it can."""
    return None if shutil.which("iperf3") else "iperf3 is not installed (Debian: apt install it)"


def iperf(seconds: float, block_bytes: int = 128 << 10) -> dict[str, Any]:
    """
    One stream of iperf3 over loopback, written in blocks of this size.

    Returns:
        ``bytes_per_s`` as the receiver counted them, ``bytes``, and ``cpu_s`` of both processes.

    Raises:
        OSError: iperf3 did not work; the message is its own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = ["iperf3", "-s", "-1", "-p", port, "--forceflush"]
    client = ["iperf3", "-c", "127.0.0.1", "-p", port, "-J"]
    client += ["-t", str(max(round(seconds), 1)), "-l", str(block_bytes)]
    limit_s = seconds + LISTEN_TIMEOUT_S
    with subprocess.Popen(
        server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "listening" in line:
                    break
            done = subprocess.run(
                client, capture_output=True, text=True, check=False, timeout=limit_s
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"iperf3 did not end in {limit_s:g} s") from error
        finally:
            process.terminate()
            process.communicate()
    said = json.loads(done.stdout or "{}")
    if done.returncode or "error" in said:
        raise OSError(f"iperf3: {said.get('error') or done.stderr.strip() or done.returncode}")
    received, used = said["end"]["sum_received"], said["end"]["cpu_utilization_percent"]
    return {
        "bytes_per_s": received["bits_per_second"] / 8,
        "bytes": received["bytes"],
        "cpu_s": (used["host_total"] + used["remote_total"]) / 100 * received["seconds"],
    }


def memory_copy(seconds: float, block_bytes: int) -> dict[str, Any]:
    """
    Copy blocks of this size from one place to another, on one core, as fast as it goes.

    Returns:
        ``bytes_per_s``, ``bytes`` and ``cpu_s``.
    """
    blocks = max(COPY_BUFFERS_BYTES // block_bytes, 1)
    source = memoryview(bytes(range(256)) * (blocks * block_bytes // 256))
    target = memoryview(bytearray(len(source)))
    spans = [slice(at * block_bytes, (at + 1) * block_bytes) for at in range(blocks)]
    target[:] = source  # the kernel gives the pages now
    done = 0
    began, cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        for span in spans:
            target[span] = source[span]
        done += len(source)
    took = time.perf_counter() - began
    return {"bytes_per_s": done / took, "bytes": done, "cpu_s": time.process_time() - cpu_s}
