"""System calls that a program in the sandbox may make: an allowlist, as a classic BPF filter (seccomp(2), filter mode).

Everything that is not named here fails with ENOSYS: no exec, no sockets but socket pairs, no ptrace, no mounts, no
namespaces, no bpf, perf, keyrings, io_uring, userfaultfd, memfd, System V or POSIX message IPC; nor anything that
future kernels add. Memory that no process's resident set shows (shared anonymous mappings, memfds, System V segments)
would escape the memory watchdog, so it cannot be had either.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

ALLOWED = """
read 0 63; write 1 64; open 2 -; close 3 57; stat 4 -; fstat 5 80; lstat 6 -; poll 7 -; lseek 8 62; mprotect 10 226;
munmap 11 215; brk 12 214; rt_sigaction 13 134; rt_sigprocmask 14 135; rt_sigreturn 15 139; pread64 17 67;
pwrite64 18 68; readv 19 65; writev 20 66; access 21 -; pipe 22 -; select 23 -; sched_yield 24 124; mremap 25 216;
msync 26 227; madvise 28 233; dup 32 23; dup2 33 -; pause 34 -; nanosleep 35 101; getitimer 36 102; alarm 37 -;
setitimer 38 103; getpid 39 172; sendfile 40 71; sendto 44 206; recvfrom 45 207; shutdown 48 210; getsockname 51 204;
getpeername 52 205; getsockopt 55 209; fork 57 -; vfork 58 -; exit 60 93; wait4 61 260; kill 62 129;
uname 63 160; fcntl 72 25; flock 73 32; fsync 74 82; fdatasync 75 83; truncate 76 45; ftruncate 77 46; getcwd 79 17;
chdir 80 49; fchdir 81 50; rename 82 -; mkdir 83 -; rmdir 84 -; creat 85 -; link 86 -; unlink 87 -; symlink 88 -;
readlink 89 -; chmod 90 -; fchmod 91 52; umask 95 166; gettimeofday 96 169; getrlimit 97 163; getrusage 98 165;
sysinfo 99 179; times 100 153; getuid 102 174; getgid 104 176; geteuid 107 175; getegid 108 177; setpgid 109 154;
getppid 110 173; getpgrp 111 -; setsid 112 157; getgroups 115 158; getresuid 118 148; getresgid 120 150;
getpgid 121 155; getsid 124 156; rt_sigpending 127 136; rt_sigtimedwait 128 137; rt_sigqueueinfo 129 138;
rt_sigsuspend 130 133; sigaltstack 131 132; utime 132 -; statfs 137 43; fstatfs 138 44; getpriority 140 141;
sched_getparam 143 121; sched_getscheduler 145 120; sched_get_priority_max 146 125; sched_get_priority_min 147 126;
sched_rr_get_interval 148 127; arch_prctl 158 -; gettid 186 178; tkill 200 130; time 201 -; futex 202 98;
sched_getaffinity 204 123; epoll_create 213 -; getdents64 217 61; set_tid_address 218 96; restart_syscall 219 128;
fadvise64 221 223; timer_create 222 107; timer_settime 223 110; timer_gettime 224 108; timer_getoverrun 225 109;
timer_delete 226 111; clock_gettime 228 113; clock_getres 229 114; clock_nanosleep 230 115; exit_group 231 94;
epoll_wait 232 -; epoll_ctl 233 21; tgkill 234 131; utimes 235 -; waitid 247 95; openat 257 56; mkdirat 258 34;
newfstatat 262 79; unlinkat 263 35; renameat 264 38; linkat 265 37; symlinkat 266 36; readlinkat 267 78;
fchmodat 268 53; faccessat 269 48; pselect6 270 72; ppoll 271 73; set_robust_list 273 99; utimensat 280 88;
epoll_pwait 281 22; timerfd_create 283 85; eventfd 284 -; fallocate 285 47; timerfd_settime 286 86;
timerfd_gettime 287 87; signalfd4 289 74; eventfd2 290 19; epoll_create1 291 20; dup3 292 24; pipe2 293 59;
preadv 295 69; pwritev 296 70; prlimit64 302 261; getcpu 309 168; renameat2 316 276; getrandom 318 278;
membarrier 324 283; statx 332 291; rseq 334 293; close_range 436 436; faccessat2 439 439; epoll_pwait2 441 441
"""
"""Calls that are always harmless here: name, number on x86_64, number on aarch64 (`-`: it has no such call)."""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (column of `ALLOWED`, AUDIT_ARCH value of linux/audit.h)."""

CLONE, MMAP, IOCTL, SOCKETPAIR = (56, 220), (9, 222), (16, 29), (53, 199)
"""Calls whose arguments decide."""

NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWTIME | NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET, as clone(2) takes them."""
SHARED_ANONYMOUS = 0x21
"""MAP_SHARED | MAP_ANONYMOUS: such pages live on when no resident set counts them."""
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: what file objects and event loops ask for."""
AF_UNIX = 1

_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARCH, _ARGS = 0, 4, 16
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 38, 22, 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def build(machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Raises:
        OSError: no table for this machine; a filter for another one would let everything through.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"no system call table for {machine}; the sandbox knows {', '.join(MACHINES)}")
    column, arch = MACHINES[machine]
    numbers = [entry.split()[1 + column] for entry in ALLOWED.replace("\n", " ").split(";")]
    deny, refuse = _op(_RETURN, _ERRNO | errno.ENOSYS), _op(_RETURN, _ERRNO | errno.EPERM)
    program = [_op(_LOAD, _ARCH), _op(_EQUAL, arch, 1, 0), deny, _op(_LOAD, _NR)]
    for number in numbers:
        if number != "-":
            program += [_op(_EQUAL, int(number), 0, 1), _op(_RETURN, _ALLOW)]
    program += _when(CLONE[column], [_argument(0), _op(_AND, NEW_NAMESPACES), _op(_EQUAL, 0, 0, 1)], refuse)
    shared = [_argument(3), _op(_AND, SHARED_ANONYMOUS), _op(_EQUAL, SHARED_ANONYMOUS, 1, 0)]
    program += _when(MMAP[column], shared, refuse)
    program += _when(SOCKETPAIR[column], [_argument(0), _op(_EQUAL, AF_UNIX, 0, 1)], refuse)
    ioctls = [_op(_EQUAL, command, len(IOCTLS) - 1 - i, i == len(IOCTLS) - 1) for i, command in enumerate(IOCTLS)]
    program += _when(IOCTL[column], [_argument(1), *ioctls], refuse)
    return b"".join([*program, deny])


def install(program: bytes) -> None:
    """Put the filter on this process and all its children, for good.

    Raises:
        OSError: the kernel refused it.
    """
    filters = _Program(len(program) // 8, program)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(filters), 0, 0),
    ):
        if _libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _op(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k)


def _argument(index: int) -> bytes:
    """Load the low half of an argument; the kernel ignores the upper half of those looked at here (int, flags)."""
    return _op(_LOAD, _ARGS + 8 * index)


def _when(number: int, test: list[bytes], refuse: bytes) -> list[bytes]:
    """Code for one call: `test` falls through to allow it, and skips one to refuse it."""
    body = [*test, _op(_RETURN, _ALLOW), refuse]
    return [_op(_EQUAL, number, 0, len(body)), *body]
