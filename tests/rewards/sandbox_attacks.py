"""Hostile programs, for the tests of the code sandbox.

An *escape* returns True if it works, and True is what its (hidden) test expects: one that worked would be paid.
A *forgery* tries to pass a test whose expected value it cannot know. An *excess* takes what it must not have.
System call numbers are those of x86_64.
"""

from __future__ import annotations

import os

SECRET = "sekret:" + os.urandom(8).hex()
"""What the tests of forgeries expect."""

HELPERS = '''
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    """True if the kernel did it, or would with other arguments."""
    result = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return result != -1 or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM)
def readable(path):
    try:
        return bool(open(path, "rb").read(1))
    except OSError:
        return False
def writable(path):
    try:
        open(path, "ab").write(b"x")
        return True
    except OSError:
        return False
'''

ESCAPES = {
    "connect to the host": """
        import socket
        def f():
            with socket.socket() as s:
                s.connect(("127.0.0.1", PORT))
                return True""",
    "connect outside": """
        import socket
        def f():
            return bool(socket.create_connection(("1.1.1.1", 53), 0.5))""",
    "resolve a name": """
        import socket
        def f(): return bool(socket.getaddrinfo("example.org", 443))""",
    "other socket families": """
        def f():
            return any(syscall(41, family, kind, 0) for family in (1, 2, 10, 16, 17, 21, 38, 40, 44)
                       for kind in (1, 2, 3, 5))""",
    "socket pairs of other families": """
        def f(): return any(syscall(53, family, 1, 0, (ctypes.c_int * 2)()) for family in (2, 10, 16, 30, 40))""",
    "read /etc/passwd": """
        def f(): return readable("/etc/passwd") or readable("/etc/shadow") or readable("/etc/hostname")""",
    "read a file of the host": """
        def f(): return readable(CANARY) or readable("/proc/1/root" + CANARY) or readable("/oldroot" + CANARY)""",
    "read the host's environment": """
        import glob
        def f():
            seen = "".join(os.environ) + "".join(os.environ.values())
            for path in glob.glob("/proc/*/environ"):
                if readable(path):
                    seen += open(path).read()
            return "CANARY" in seen""",
    "read the memory of other processes": """
        def f(): return any(readable(f"/proc/{pid}/{file}") for pid in [os.getppid(), *range(10), "self"]
                            for file in ("mem", "maps", "environ", "cmdline", "fd/0", "stack"))""",
    "process_vm_readv": """
        class Vector(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
        def f():
            buffer = ctypes.create_string_buffer(8)
            v = Vector(ctypes.addressof(buffer), 8)
            pids = (0, 1, 2, os.getppid())
            return any(syscall(310, pid, ctypes.byref(v), 1, ctypes.byref(v), 1, 0) for pid in pids)""",
    "ptrace": """
        def f(): return any(syscall(101, request, pid, 0, 0) for request in (0, 16, 0x4206) for pid in (0, 1, 2, 3))""",
    "signal the sandbox's own processes": """
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        def f():
            reached = []
            for pid in (0, -1, 2, 3, 4, 5, os.getppid(), os.getpgid(0)):
                if pid in (1, os.getpid()):
                    continue
                try:
                    os.kill(pid, signal.SIGTERM)
                    reached.append(pid)
                except OSError:
                    pass
            return reached not in ([], [0], [0, 0], [0, -1], [0, -1, 0])""",
    "kill everything": """
        import signal
        def f():
            for pid in (-1, 0, -2, 2, 3, 4, 5):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            return os.getppid() != 0""",
    "run another program": """
        import subprocess
        def f():
            for program in ("/bin/sh", "/usr/bin/env", "/python/bin/python3.11", sys.executable,
                            "/lib64/ld-linux-x86-64.so.2"):
                try:
                    subprocess.run([program, "-c", "0"])
                    return True
                except OSError:
                    pass
            return os.system("true") == 0""",
    "a set-uid program": """
        def f():
            for program in ("/usr/bin/su", "/usr/bin/sudo", "/usr/lib/dbus-1.0/dbus-daemon-launch-helper",
                            "/usr/lib/openssh/ssh-keysign"):
                try:
                    os.execv(program, [program])
                except OSError:
                    pass
            return False""",
    "new namespaces": """
        def f():
            flags = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
            if any(syscall(272, flag) for flag in flags):
                return True
            for flag in flags[1:]:
                pid = libc.syscall(56, ctypes.c_long(flag | 17), 0, 0, 0, 0)
                if pid == 0:
                    os._exit(0)
                if pid > 0:
                    return True
            return syscall(435, ctypes.create_string_buffer(88), 88) or syscall(308, 0, 0)""",
    "mounts": """
        def f():
            return (syscall(165, b"tmpfs", b"/tmp", b"tmpfs", 0, 0) or syscall(165, b"proc", b"/proc", b"proc", 0, 0)
                    or syscall(166, b"/proc", 2) or syscall(155, b"/", b"/tmp") or syscall(428, 0, b"/", 0)
                    or syscall(430, b"tmpfs", 0) or syscall(429, 0, b"", 0, b"", 0))""",
    "leave by chroot": """
        def f():
            try:
                os.mkdir("/tmp/in")
                os.chroot("/tmp/in")
            except OSError:
                pass
            for _ in range(64):
                os.chdir("..")
            return readable("etc/passwd") or "home" in os.listdir(".")""",
    "devices": """
        import stat
        def f():
            for name in ("mem", "kmem", "kmsg", "sda", "vda", "kvm", "fuse", "tty", "ptmx", "net/tun"):
                if readable("/dev/" + name) or writable("/dev/" + name):
                    return True
            try:
                os.mknod("/tmp/disk", 0o600 | stat.S_IFBLK, os.makedev(254, 0))
                return True
            except OSError:
                return False""",
    "settings of the kernel": """
        import glob
        def f():
            paths = ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/oom_score_adj",
                     "/sys/kernel/uevent_helper", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/hostname",
                     "/sys/fs/cgroup/cgroup.procs"]
            return any(map(writable, paths + glob.glob("/proc/sys/*/*"))) or bool(glob.glob("/proc/*"))""",
    "write outside of /tmp": """
        def f():
            paths = ("/x", "/python/lib/x", os.__file__, "/sandbox/x", "/dev/x", "/empty/x", "/usr/lib/x", "/etc/x")
            return any(map(writable, paths))""",
    "links out of /tmp": """
        def f():
            os.symlink("/etc/shadow", "/tmp/a")
            os.symlink("/proc/1/root", "/tmp/b")
            os.symlink("../../../../../../" + CANARY, "/tmp/c")
            try:
                os.link("/dev/null", "/tmp/d")
                os.link(os.__file__, "/tmp/e")
                return True
            except OSError:
                return readable("/tmp/a") or readable("/tmp/b" + CANARY) or readable("/tmp/c")""",
    "io_uring": """
        def f():
            parameters = ctypes.create_string_buffer(120)
            return syscall(425, 8, parameters) or syscall(426, 3, 1, 0, 0, 0) or syscall(427, 3, 0, 0, 0)""",
    "userfaultfd": """
        def f(): return syscall(323, 0) or syscall(323, 1)""",
    "calls that nobody needs": """
        # memfd_create, memfd_secret, bpf, perf_event_open, add_key, request_key, keyctl, kexec_load, kexec_file_load,
        # init_module, finit_module, open_by_handle_at, name_to_handle_at, pidfd_open, pidfd_getfd, pidfd_send_signal,
        # quotactl, swapon, reboot, settimeofday, adjtimex, personality, fanotify_init, inotify_init, modify_ldt,
        # ioperm, iopl, vmsplice, tee, splice, acct, syslog, kcmp, process_madvise, process_mrelease, seccomp,
        # landlock_create_ruleset, setxattr, mbind, migrate_pages, move_pages, mlock2, remap_file_pages, uselib, sysfs,
        # ustat, vhangup, clock_settime, sethostname, setdomainname, chown, cachestat, and some of the future
        FORBIDDEN = (319, 447, 321, 298, 248, 249, 250, 246, 320, 175, 313, 304, 303, 434, 438, 424, 179, 167, 169,
                     164, 159, 135, 300, 253, 154, 173, 172, 278, 276, 275, 163, 103, 312, 440, 448, 317, 444, 188,
                     237, 256, 279, 325, 216, 134, 139, 136, 153, 227, 170, 171, 92, 451, 457, 462, 500, 1000)
        def f(): return [number for number in FORBIDDEN if syscall(number, 0, 0, 0, 0, 0)] != []""",
    "system calls of another architecture": """
        import mmap
        def f():
            if libc.syscall(ctypes.c_long(0x40000000 + 39)) > 0:   # x32
                return True
            code = bytes.fromhex("b814000000" "cd80" "c3")            # getpid, as a 32-bit program asks for it
            page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
            page.write(code)
            return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))() > 0""",
    "shared memory that outlives a job": """
        def f():
            return (syscall(29, 1234, 4096, 0o1666) or syscall(64, 1234, 1, 0o1666) or syscall(68, 1234, 0o1666)
                    or syscall(240, b"q", 0o102, 0o600, 0))""",
    "memory that no process shows": """
        import mmap
        def f():
            try:
                mmap.mmap(-1, 4096)   # shared and anonymous
                return True
            except OSError:
                return any(readable("/dev/" + name) for name in ("zero", "full", "shm/x", "hugepages/x"))""",
    "higher limits": """
        import resource
        def f():
            for name in ("AS", "NPROC", "FSIZE", "NOFILE", "CPU", "CORE", "MEMLOCK"):
                number = getattr(resource, "RLIMIT_" + name)
                hard = resource.getrlimit(number)[1]
                if hard == resource.RLIM_INFINITY:
                    return True
                try:
                    resource.setrlimit(number, (hard + 1, hard + 1))
                    return True
                except (OSError, ValueError):
                    pass
            return False""",
    "another user, more capabilities": """
        def f():
            ids = [call for call in (105, 106, 113, 114, 117, 119, 116, 122, 123) if syscall(call, 0, 0, 0)]
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)
            return bool(ids) or syscall(126, header, (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)) or os.getuid() == 0""",
    "less seccomp": """
        OPTIONS = (4, 8, 15, 22, 23, 24, 28, 35, 38, 47, 0x59616D61)
        def f(): return any(syscall(157, option, 0, 0, 0, 0) for option in OPTIONS)""",
    "privileges of the scheduler": """
        def f():
            return (syscall(203, 0, 8, ctypes.create_string_buffer(b"\\xff" * 8)) or syscall(141, 0, 0, -20)
                    or syscall(144, 0, 1, ctypes.c_void_p(0)) or syscall(314, 0, 0, 0) or syscall(251, 1, 0, 0))""",
    "type into a terminal": """
        COMMANDS = (0x5412, 0x541C, 0x1_0000_5412)
        def f(): return any(syscall(16, fd, command, b"x") for fd in range(3) for command in COMMANDS)""",
    "find open descriptors": """
        import fcntl
        def f():
            found = []
            for fd in range(4, 5000):
                try:
                    found.append(fcntl.fcntl(fd, fcntl.F_GETFD))
                except OSError:
                    pass
            return bool(found)""",
}
"""Attack -> a program whose `f()` is True if it got out."""

FORGERIES = {
    "leave well before the tests": "import sys; sys.exit(0)",
    "leave at once before the tests": "import os; os._exit(0)",
    "leave in the call": "import os\ndef f(): os._exit(0)",
    "an object that equals everything": """
        class Yes:
            def __eq__(self, other): return True
            __hash__ = None
        def f(): return Yes()""",
    "text that equals everything": """
        class Yes(str):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return hash(other)
        def f(): return Yes("x")""",
    "an object that claims to be text": """
        class Yes:
            __class__ = str
            def __eq__(self, other): return True
        def f(): return Yes()""",
    "a list of them": """
        class Yes(list):
            def __eq__(self, other): return True
            def __iter__(self): return iter(())
            def __len__(self): return 1
        def f(): return [Yes([1])]""",
    "other built-ins": """
        import builtins, json
        builtins.type = lambda x: str
        builtins.isinstance = lambda *a: True
        builtins.compile = lambda *a, **k: (lambda: True).__code__
        json.dumps = lambda *a, **k: '{"passed":true,"value":true,"ready":true}'
        def f(): return object()""",
    "another encoder": """
        import sys
        values = sys.modules["rewards.sandbox.inside.values"]
        values.encode = lambda *a: {"$any": True}
        def f(): return 0""",
    "another report": """
        import sys
        def f():
            frame = sys._getframe(1)
            while frame:
                if "report" in frame.f_locals:
                    report = frame.f_locals["report"]
                    report({"passed": True}); report({"value": True}); report({"value": ["t"]})
                frame = frame.f_back
            return 0""",
    "look for the expected value in frames, modules, garbage": """
        import gc, sys
        def f():
            seen, todo = set(), [*sys.modules.values(), *gc.get_objects()]
            frame = sys._getframe()
            while frame:
                todo += [frame.f_locals, frame.f_globals]
                frame = frame.f_back
            gc.freeze(); gc.unfreeze()
            todo += gc.get_objects()
            while todo and len(seen) < 300000:
                o = todo.pop()
                if id(o) in seen: continue
                seen.add(id(o))
                if type(o) is str and o.startswith("sek" + "ret:"): return o
                todo += gc.get_referents(o)""",
    "look for the expected value in raw memory": """
        import ctypes, gc, os, re
        libc = ctypes.CDLL(None, use_errno=True)
        libc.sbrk.restype = ctypes.c_void_p
        libc.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
        def f():
            r, w = os.pipe()
            bases = {id(o) >> 20 << 20 for o in gc.get_objects()} | {id(o) >> 20 << 20 for o in range(1000, 3000)}
            top = libc.sbrk(0)
            bases |= set(range(top - (8 << 20) >> 20 << 20, top, 1 << 20))
            for base in bases:
                for page in range(base, base + (1 << 20), 4096):
                    if libc.write(w, page, 4096) == 4096:
                        found = re.search(b"sek" + b"ret:[0-9a-f]{16}", os.read(r, 4096))
                        if found: return found[0].decode()""",
    "write to the channel of results": """
        import os
        def f():
            for fd in range(3, 8):
                try: os.write(fd, b'{"value":true}\\n{"passed":true}\\n')
                except OSError: pass
            return 0""",
    "rewrite the channel of results": """
        import os
        def f():
            os.lseek(3, 0, 0); os.write(3, b"x" * 4096); os.lseek(3, 0, 0)
            return 0""",
    "empty the channel of results": """
        import os
        def f():
            try: os.ftruncate(3, 0)
            except OSError: pass
            os._exit(0)""",
    "close and swap descriptors": """
        import os
        def f():
            os.dup2(1, 3); os.closerange(0, 64)
            return 0""",
    "write when all seems over": """
        import atexit, os, threading, time
        class Late:
            def __del__(self): os.write(3, b"late\\n")
        late = Late()
        atexit.register(os.write, 3, b"late\\n")
        def f():
            threading.Thread(target=lambda: [os.write(3, b"x") for _ in range(1000)]).start()
            return late and 0""",
    "an endless generator": """
        import itertools
        def f(): return itertools.count()""",
    "a list within itself": "def f():\n    x = []\n    x.append(x)\n    return x",
    "a result of great depth": "def f():\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "a huge integer": "def f(): return 1 << 3_000_000",
    "not a number": "def f(): return float('nan')",
    "a result of many megabytes": "def f(): return ['x' * 1000] * 5_000",
    "elements of one hash": "def f(): return {i * (2**61 - 1) for i in range(1, 3000)}",
    "lone surrogates": "def f(): return chr(0xD800) + chr(0)",
    "an exception that cannot be printed": """
        class E(BaseException):
            def __str__(self): raise E
        def f(): raise E""",
    "overflow of the C stack": """
        import ctypes
        def f(): ctypes.string_at(1)""",
    "nesting that breaks compilers": "f = " + "(" * 50_000 + ")" * 50_000,
    "no Python at all": "\0\0\0 f(",
}
"""Attack -> a program that tries to pass without knowing what is expected."""

EXCESSES = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": """
        import threading, time
        threads = []
        def f():
            while True:
                try: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                except RuntimeError: pass""",
    "memory of one process": "x = [bytearray(1 << 20) for _ in range(10**6)]\ndef f(): pass",
    "memory of many processes": """
        import os, time
        def f():
            for _ in range(20):
                if os.fork() == 0:
                    x = b"x" * (30 << 20)
                    time.sleep(60)
            time.sleep(60)""",
    "memory at once": "x = 'x' * 10**11",
    "full disk": """
        import os
        for i in range(10**6):
            with open(f"/tmp/{i}", "wb") as file: file.write(bytes(1 << 20))""",
    "one file of a terabyte": "import os\nwith open('/tmp/x', 'wb') as file: os.truncate('/tmp/x', 1 << 40)",
    "too many files": "for i in range(10**6): open(f'/tmp/{i}', 'w').close()",
    "too many descriptors": "import os\nwhile True: os.dup(0)",
    "endless output": "while True: print('x' * 1000)",
    "endless loop that ignores signals": """
        import signal
        for s in range(1, 65):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: pass""",
    "arithmetic without end": "x = 9 ** 9 ** 9 ** 9",
    "sleep": "import time\ntime.sleep(1000)",
    "wait for a pipe": "import os\nr, w = os.pipe()\nos.read(r, 1)",
    "a daemon that lives on": """
        import os, signal, time
        def f():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    while True:
                        try: open("/tmp/daemon", "a").write("x")
                        except OSError: pass
                        time.sleep(0.001)
                os._exit(0)
            os.wait()""",
    "a regular expression": "import re\nre.match('(a*)*b', 'a' * 60)",
    "what the next job may find": """
        import builtins, os, random, sys, threading
        builtins.len = lambda x: 7
        sys.modules["json"] = sys.modules["math"] = None
        random.seed(1)
        os.environ["LEFT"] = "1"
        for path in ("/tmp/left", "/dev/shm/left"):
            with open(path, "w") as file: file.write("left")
        from multiprocessing import Semaphore
        semaphore = Semaphore()
        sys.setrecursionlimit(60)
        def f(): pass""",
    "signals for the next job": """
        import signal, os, threading
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.01)
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        def f(): pass""",
}
"""Attack -> a program that takes too much, or leaves something behind; no test of it can pass."""

HONEST = """
import builtins, json, math, os, sys, threading
def f():
    assert os.listdir("/tmp") == [] and os.listdir("/dev/shm") == []
    assert "LEFT" not in os.environ and len([1, 2]) == 2 and math.pi > 3 and sys.getrecursionlimit() > 100
    assert threading.active_count() == 1
    alive = []
    for pid in range(1, 300):
        try:
            os.kill(pid, 0)
            alive.append(pid)
        except OSError:
            pass
    assert alive == [1] == [os.getpid()]
    return "honest"
"""


ANSWERS_AHEAD = """
import os, sys
def f():
    values = sys.modules["rewards.sandbox.inside.values"]
    line = (values.dumps([True, None]) + chr(10)).encode()
    for fd in range(4, 8):
        try: os.write(fd, line * 100)
        except OSError: pass
    return {reply}
"""
"""A solution that answers questions before they are asked."""

CONTROLS = (
    "connect to the host",
    "read /etc/passwd",
    "read a file of the host",
    "read the host's environment",
    "higher limits",
)
