"""A server that answers at once: what a client measures against it is the client's own time. Runs as a script, without
any package, so that it starts in a moment: prints its port, and ends with its standard input."""

import os
import socket
import sys
import threading


def answer_of(tokens: int) -> bytes:
    """A whole response of so many tokens, one event each, in one write."""
    events = [b'data: {"choices":[{"text":"a"}]}\n\n'] * (tokens - 1)
    events.append(b'data: {"choices":[{"text":"a","finish_reason":"length"}]}\n\n')
    events.append(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\n' % tokens)
    body = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in [*events, b"data: [DONE]\n\n"])
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        + body
        + b"0\r\n\r\n"
    )


def serve(connection: socket.socket, answer: bytes) -> None:
    """Every request of a connection: its head, then as many bytes as it says, then the answer."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as lines:
        while lines.readline():
            length = 0
            while (line := lines.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            lines.read(length)
            connection.sendall(answer)


def end_with_input() -> None:
    """End the process when whoever started it is gone."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Listen on a free port of this machine alone, and say which."""
    answer = answer_of(int(sys.argv[1]))
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listening.getsockname()[1], flush=True)
    threading.Thread(target=end_with_input, daemon=True).start()
    while True:
        threading.Thread(target=serve, args=(listening.accept()[0], answer), daemon=True).start()


if __name__ == "__main__":
    main()
