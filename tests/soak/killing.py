"""Run a function in a process of its own that is killed right before one of its system calls.

A filter (seccomp) makes the kernel stop each system call of a list, before it does anything, and tell of it through a
file descriptor. Whoever holds the descriptor reads which call it is, and either lets it go on or kills the process;
a call of a killed process never happens. The filter holds for all threads that the process starts from then on, needs
no rights, and goes with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import platform
import select
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 120
"""A run that takes longer is taken to hang, and ended."""

CALLS = {
    "open": (2, "p"),
    "truncate": (76, "p"),
    "rename": (82, "pp"),
    "mkdir": (83, "p"),
    "rmdir": (84, "p"),
    "creat": (85, "p"),
    "link": (86, "pp"),
    "unlink": (87, "p"),
    "chmod": (90, "p"),
    "openat": (257, "dp"),
    "mkdirat": (258, "dp"),
    "unlinkat": (263, "dp"),
    "renameat": (264, "dpdp"),
    "linkat": (265, "dpdp"),
    "fchmodat": (268, "dp"),
    "renameat2": (316, "dpdp"),
    "write": (1, "f"),
    "pwrite64": (18, "f"),
    "writev": (20, "f"),
    "sendfile": (40, "f"),
    "fsync": (74, "f"),
    "fdatasync": (75, "f"),
    "ftruncate": (77, "f"),
    "fchmod": (91, "f"),
    "fallocate": (285, "f"),
}
"""System calls that change files: their numbers on x86-64, and what their first arguments are: a file (f), a folder (d)
or the path (p) of a file in that folder, else in the current one."""

_NAMES = {number: name for name, (number, _) in CALLS.items()}
_FLAGS = {"open": 1, "openat": 2}  # which argument says whether a file is opened to be changed
_LONGEST_PATH = 4096
_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, thread, flags; number of the call, architecture, address, arguments
_ANSWER = struct.Struct("=QqiI")  # id, value, error, flags
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
_GO_ON = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


@dataclass(frozen=True)
class Call:
    """A system call: its name, and the paths it concerns, seen from the watched folder."""

    name: str
    paths: tuple[str, ...]


@dataclass
class Run:
    """What became of a run: its calls, whether it was killed, else what its function returned or raised."""

    calls: list[Call] = field(default_factory=list)
    killed: bool = False
    value: Any = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


def why_not() -> str | None:
    """Say why nothing can be watched on this machine, if so."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "system calls are watched on Linux on x86-64 only"
    error = run(lambda: None, Path.cwd()).error
    return f"system calls cannot be watched here: {error.splitlines()[-1]}" if error else None


def run(work: Callable[[], Any], folder: Path, *, kill_at: int | None = None, half: bool = False) -> Run:
    """Run a function in a copy of this process, until it ends or is killed at a certain system call.

    Only calls that change something in `folder` count. The process is killed before the call that `kill_at` counts,
    from 0; a ``write`` that is `half` has been done by half by then, as a kill within a long one can leave it. The
    calling process must have one thread only: a copy has no other.
    """
    ours, theirs = socket.socketpair()
    process = os.fork()
    if not process:
        ours.close()
        _run_in_child(work, theirs)
    theirs.close()
    found = Run()
    with ours, contextlib.ExitStack() as stack:
        try:
            _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
        except ValueError:  # no filter, hence no calls to wait for
            pass
        else:
            stack.callback(os.close, listener)
            _watch(process, listener, folder, found, kill_at, half)
        with ours.makefile("rb") as answer:
            data = answer.read()
        os.waitpid(process, 0)
    if data:
        found.value, found.error, found.warnings = pickle.loads(data)
    elif not found.killed and not found.error:
        found.error = "the process ended without an answer"
    return found


def _watch(process: int, listener: int, folder: Path, found: Run, kill_at: int | None, half: bool) -> None:
    """Note a process's calls until it ends or is to be killed."""
    import fcntl  # other systems than Unix have none

    poll, end = select.poll(), time.monotonic() + SECONDS
    poll.register(listener, select.POLLIN)
    while True:
        events = poll.poll(max(0, end - time.monotonic()) * 1000)
        if not events:
            os.kill(process, signal.SIGKILL)
            found.error = f"no end after {SECONDS} seconds; the last calls were {found.calls[-3:]}"
            return
        if not events[0][1] & select.POLLIN:  # no process has the filter any more
            return
        notification = bytearray(_NOTIFICATION.size)
        with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile
            fcntl.ioctl(listener, _RECEIVE, notification)
        key, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
        call = _call(_NAMES[number], thread, arguments, folder.resolve()) if key else None
        if call and len(found.calls) == kill_at:
            if half and call.name == "write":
                _write_half(thread, *arguments[:3])
            os.kill(process, signal.SIGKILL)
            found.killed = True
        found.calls += [call] if call else []
        if found.killed:
            return
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(key, 0, 0, _GO_ON)))


def _call(name: str, thread: int, arguments: list[int], folder: Path) -> Call | None:
    """Return a call if it can change something in a folder."""
    if name in _FLAGS and not arguments[_FLAGS[name]] & _CHANGING:
        return None
    try:
        paths, base = [], Path(os.readlink(f"/proc/{thread}/cwd"))
        for kind, argument in zip(CALLS[name][1], arguments, strict=False):
            if kind == "p":
                paths.append(base / os.fsdecode(_read(thread, argument, _LONGEST_PATH).split(b"\0")[0]))
            elif argument < 2**31:  # else the current folder
                base = Path(os.readlink(f"/proc/{thread}/fd/{argument}"))
                paths += [base] if kind == "f" else []
    except OSError:  # a descriptor or an address that there is none of: the call fails
        return None
    if not any(path.is_relative_to(folder) for path in paths):
        return None
    return Call(name, tuple(os.path.relpath(path, folder) for path in paths))


def _read(thread: int, address: int, count: int) -> bytes:
    """Read a process's memory: up to so many bytes."""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        return os.pread(memory.fileno(), count, address)


def _write_half(thread: int, file: int, address: int, count: int) -> None:
    """Do the first half of a write where the process would have done it."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{thread}/fdinfo/{file}").read_text().splitlines())
    with open(f"/proc/{thread}/fd/{file}", "r+b", buffering=0) as copy:
        os.pwrite(copy.fileno(), _read(thread, address, count // 2), int(fields["pos"]))


def _run_in_child(work: Callable[[], Any], answer: socket.socket) -> NoReturn:
    value, error, caught = None, None, []
    try:
        listener = _filter()
        socket.send_fds(answer, [b"."], [listener])
        os.close(listener)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = work()
    except BaseException:
        error = traceback.format_exc()
    answer.sendall(pickle.dumps((value, error, [str(warning.message) for warning in caught])))
    os._exit(0)


def _filter() -> int:
    """Have this thread and those that it starts ask before each of `CALLS`; return whom they ask."""
    numbers = [number for number, _ in CALLS.values()]
    load, equal, give = 0x20, 0x15, 0x06  # instructions of a filter: code, jump if so, jump if not, operand
    # Calls of other architectures (offset 4) are let through, as are those (offset 0) of no number in the list.
    program = [(load, 0, 0, 4), (equal, 0, len(numbers) + 1, 0xC000003E), (load, 0, 0, 0)]
    program += [(equal, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    program += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x7FC00000)]  # SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    argument = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    library = ctypes.CDLL(None, use_errno=True)
    listener = -1
    if library.prctl(38, 1, 0, 0, 0) == 0:  # PR_SET_NO_NEW_PRIVS, without which a filter needs rights
        listener = library.syscall(317, 1, 8, argument)  # seccomp: SECCOMP_SET_MODE_FILTER, ..._NEW_LISTENER
    if listener < 0:
        raise OSError(ctypes.get_errno(), f"no seccomp listener: {os.strerror(ctypes.get_errno())}")
    return listener
