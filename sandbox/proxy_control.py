"""A fault proxy as a process of its own, told its faults over a loopback socket: one JSON line asked, one answered."""

from __future__ import annotations

import argparse
import json
import socket
import socketserver
from typing import Any

from sandbox.fault_proxy import FaultProxy
from sandbox.process import LOOPBACK, SandboxError

ANSWER_SECONDS = 10.0
FAULTS = ("stall", "cut", "refuse", "slow", "corrupt", "status", "clear", "counters")


def apply_fault(proxy: FaultProxy, order: list[str]) -> dict[str, Any]:
    """Switch one fault, written as on the command line (`slow 100000`), and return the proxy's counters."""
    match order:
        case ["stall" | "cut" | "refuse" | "clear" as name]:
            getattr(proxy, name)()
        case ["slow", bytes_per_second]:
            proxy.slow(float(bytes_per_second))
        case ["corrupt", "to_target" | "to_client" as direction, after_bytes]:
            proxy.corrupt(direction, int(after_bytes))
        case ["status", code, *rest] if len(rest) <= 2:
            proxy.http_status(int(code), int(rest[0]) if rest else 1, rest[1] if len(rest) == 2 else "")
        case ["counters"]:
            pass
        case _:
            raise SandboxError(
                f"No such fault: {' '.join(order)}",
                "One of: stall | cut | refuse | clear | counters | slow BYTES_PER_SECOND | "
                "corrupt to_target|to_client AFTER_BYTES | status CODE [COUNT [MATCH]]",
            )
    return {"requests": len(proxy.requests), "connections": proxy.connections, "bytes": dict(proxy.bytes_moved)}


def tell_proxy(control_port: int, order: list[str]) -> dict[str, Any]:
    """Send one order to a proxy process and return its counters."""
    try:
        with socket.create_connection((LOOPBACK, control_port), timeout=ANSWER_SECONDS) as line:
            line.sendall(json.dumps(order).encode() + b"\n")
            answer = json.loads(line.makefile().readline())
    except OSError as error:
        raise SandboxError(f"The S3 proxy does not answer on its control port {control_port}: {error}") from error
    if "error" in answer:
        raise SandboxError(*answer["error"])
    return dict(answer)


def serve_control(proxy: FaultProxy, control_port: int) -> None:
    """Take orders until the process is ended."""

    class Order(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            if not line.strip():  # somebody only looked whether we answer
                return
            try:
                answer = apply_fault(proxy, json.loads(line))
            except SandboxError as error:
                answer = {"error": [error.message, error.remedy]}
            except ValueError as error:
                answer = {"error": [f"Not a number: {error}", None]}
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    class Control(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Control((LOOPBACK, control_port), Order) as server:
        server.serve_forever()


def main() -> None:
    """Run one proxy and its control port: python -m sandbox.proxy_control PORT TARGET_PORT CONTROL_PORT."""
    parser = argparse.ArgumentParser(description="A fault proxy with a control port.")
    for name in ("port", "target_port", "control_port"):
        parser.add_argument(name, type=int)
    given = parser.parse_args()
    with FaultProxy((LOOPBACK, given.target_port), given.port) as proxy:
        serve_control(proxy, given.control_port)


if __name__ == "__main__":
    main()
