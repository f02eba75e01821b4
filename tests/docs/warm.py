"""The `peftkit` command without the seconds that each process takes to import its libraries.

`warm.py serve SOCKET` imports them once; `warm.py ask SOCKET ARGUMENT…` has a fork of it run the command line, in the
asker's folder, environment and streams. Beside that, nothing is other than in a process of its own.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import sys
from pathlib import Path
from typing import NoReturn

STREAMS = (0, 1, 2)
"""Standard input, output and error, which the fork takes over from the asker."""


def serve(path: str) -> None:
    """Answer one asker after the other, each by a fork, until standard input is closed."""
    import importlib
    import pkgutil

    import peftkit

    for module in pkgutil.walk_packages(peftkit.__path__, "peftkit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("bitsandbytes", "datasets", "peft", "transformers.trainer", "transformers.models.gpt2.modeling_gpt2"):
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while sys.stdin not in select.select([server, sys.stdin], [], [])[0]:
            asker, _ = server.accept()
            if os.fork() == 0:
                _answer(asker)
            asker.close()
            while _reaped():
                pass


def _answer(asker: socket.socket) -> NoReturn:
    message, streams, *_ = socket.recv_fds(asker, 1 << 20, len(STREAMS))
    folder, environment, arguments = json.loads(message)
    for number, stream in zip(STREAMS, streams, strict=True):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["peftkit", *arguments]
    sys.executable = shutil.which("python") or sys.executable  # which has this command's own processes come here, too
    status = 1
    try:
        from peftkit.cli import main

        main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        asker.send(bytes([status]))
        os._exit(status)


def _reaped() -> bool:
    """Whether a fork that has ended was cleared away."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def ask(path: str, arguments: list[str]) -> int:
    """Have a command run, and give its exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        message = json.dumps([str(Path.cwd()), dict(os.environ), arguments]).encode()
        socket.send_fds(server, [message], STREAMS)
        return server.recv(1)[0]


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
    serve(sys.argv[2])
