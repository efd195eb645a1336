"""
Worker processes: connections, TLS and frames off the process that owns the engine.

With ``server.workers = N`` the listeners of stream wires (tcp, tls, ws, wss) run in N processes
that share each port by SO_REUSEPORT. A worker takes connections and hands each call, its bytes
unread, to the engine's process over a Unix socket that only this user can reach; with each call
goes who called. A worker that dies takes its connections with it and is started again.
"""

from tidewire_server.workers.supervisor import WORKER_SCHEMES, Workers, WorkerWire

__all__ = ["WORKER_SCHEMES", "WorkerWire", "Workers"]
