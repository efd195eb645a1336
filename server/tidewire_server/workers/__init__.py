"""
Worker processes: connections, TLS and frames off the process that owns the engine.

With ``server.workers = N`` the listeners of stream wires (tcp, tls, ws, wss) run in N processes
that share each port by SO_REUSEPORT. A worker takes connections and hands each call, its bytes
unread, to the engine's process over a Unix socket that only this user can reach; with each call
goes who called. A worker that dies takes its connections with it and is started again.

What it gives: a descriptor table and an event loop for each worker (100,000 idle connections held
by six), and TLS on other processors than the engine's. What it costs: each call passes two
processes more, about 200 us and twice the CPU of a small one. On two processors that clients share
it loses for small calls (state get, 64 in flight: 0.52 times as many a second on tcp, 0.68 on tls)
and wins for encrypted streams (live events of 128 bytes on tls: 1.4 times as many). Use it where
there are processors to spare, or more connections than one process may have.
"""

from tidewire_server.workers.supervisor import WORKER_SCHEMES, Workers, WorkerWire

__all__ = ["WORKER_SCHEMES", "WorkerWire", "Workers"]
