"""A proxy in front of one node's gRPC that lets no large message through and is busy at times, as balancers are."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self
from urllib.parse import urlsplit

import grpc

from sandbox.process import LOOPBACK

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class LimitingProxy(grpc.GenericRpcHandler):
    """Passes calls on as bytes; enter it to start, leave it to end.

    Messages over ``most_bytes`` are refused in gRPC's own words, in both directions. Of the calls of ``busy_method``
    every second one of the first ``busy_calls`` is answered 429, with a second to wait.
    """

    def __init__(self, target: str, most_bytes: int, busy_method: str = "", busy_calls: int = 0) -> None:
        self.most_bytes, self.largest_bytes = most_bytes, 0
        self.refused: dict[str, int] = {"request": 0, "answer": 0, "busy": 0}
        self._busy_method, self._busy_left = busy_method, busy_calls
        self._lock = threading.Lock()
        self._channel = grpc.insecure_channel(urlsplit(target).netloc, _UNLIMITED)
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self], options=_UNLIMITED)
        self.url = f"http://{LOOPBACK}:{self._server.add_insecure_port(f'{LOOPBACK}:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def service(self, handler_call_details: Any) -> Any:
        """The handler of any method."""
        method = handler_call_details.method

        def passed_on(request: bytes, context: Any) -> bytes:
            if self._is_busy(method):
                context.set_trailing_metadata((("retry-after", "1"),))
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many requests")
            self._require_small(request, "request", context)
            ask: Any = self._channel.unary_unary(method)
            try:
                answer: bytes = ask(request, timeout=context.time_remaining(), metadata=context.invocation_metadata())
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())
            self._require_small(answer, "answer", context)
            return answer

        return grpc.unary_unary_rpc_method_handler(passed_on)

    def _is_busy(self, method: str) -> bool:
        with self._lock:
            if not method.endswith(self._busy_method) or not self._busy_left:
                return False
            self._busy_left -= 1
            busy = self._busy_left % 2 == 0
            self.refused["busy"] += busy
            return busy

    def _require_small(self, message: bytes, which: str, context: Any) -> None:
        if len(message) > self.most_bytes:
            self.refused[which] += 1
            said = f"Received message larger than max ({len(message)} vs. {self.most_bytes})"
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, said)
        self.largest_bytes = max(self.largest_bytes, len(message))
