"""How a compression child locks itself in before it reads anything that a user sent."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfit.compress.cuda import device_files

if TYPE_CHECKING:
    import landlock

# What the dynamic loader, Python and the numeric libraries read. Of /etc and /proc only what concerns nobody: keys of
# services lie in the one, other processes in the other.
_READABLE = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/opt",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/passwd",
    "/etc/nsswitch.conf",
    "/dev/urandom",
    "/dev/random",
)
# The name of a program's loader lies among its first bytes.
_HEADER_BYTES = 4096
_WRITABLE = ("/dev/null", "/dev/shm")  # noqa: S108 - shared memory of OpenMP, not a temporary file


# What CUDA reads besides: /proc/driver/* of the driver's modules (nolabs-ai/nono, pull request 673), which devices there are
# (canonical/snapd, interfaces/builtin/opengl.go; google/gvisor, g3doc/proposals/nvidia_driver_proxy.md).
_CUDA_READABLE = (
    "/proc/driver/nvidia",
    "/proc/driver/nvidia-uvm",
    "/proc/driver/nvidia-caps",
    "/proc/devices",
    "/proc/modules",
    "/sys/bus/pci/devices",
)


def confine(taskdir: Path, *, cuda: bool = False, programs: Sequence[Path] = ()) -> list[str]:
    """Give up the network, new programs, and every file but the task's folder; say what really confines now.

    With `cuda`, NVIDIA's device files and what else CUDA needs are left, and nothing is promised of what the driver does with them.

    Where `programs` are named, these may be started, and are confined as the caller is; that needs Landlock, which alone can
    tell one program from another, and without it no program may be started either.

    Uses Landlock for files and seccomp for system calls. Where the kernel or the packages lack one, the other is still done
    and the answer does not name it. To be called before threads are started (both hold for the calling thread and its
    children), and after the host's lock was taken: its file cannot be opened any more.
    """
    # Scratch files go into the task's folder: nothing else can be written from here on.
    scratch = taskdir / "scratch"
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    os.environ["TMPDIR"] = str(scratch)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch)
    # Caches elsewhere would be refused, with a warning each.
    os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = str(scratch)
    sys.dont_write_bytecode = True
    with contextlib.suppress(ImportError, RuntimeError, OSError):
        # It starts a program to find its library, which Landlock would refuse.
        import pyseccomp  # noqa: F401
    done = []
    if _landlock(taskdir, cuda, programs):
        done.append("landlock")
    if _seccomp(cuda, may_start=bool(programs) and bool(done)):
        done.append("seccomp")
    return done


def _landlock(taskdir: Path, cuda: bool, programs: Sequence[Path]) -> bool:
    try:
        import landlock
    except ImportError:
        return False
    try:
        rules = landlock.Ruleset()
        readable = {sys.prefix, sys.base_prefix, *_READABLE, *_package_folders(taskdir)}
        read = landlock.FSAccess.READ_FILE | landlock.FSAccess.READ_DIR
        for name in sorted(readable):
            if os.path.isdir(name):
                rules.allow(name, rules=read)
            elif os.path.exists(name):
                rules.allow(name, rules=landlock.FSAccess.READ_FILE)
        # Files and folders only: a link or a pipe in what the task made would lead its reader elsewhere.
        made = landlock.FSAccess.all()
        for kind in ("EXECUTE", "MAKE_SYM", "MAKE_FIFO", "MAKE_SOCK", "MAKE_CHAR", "MAKE_BLOCK", "IOCTL_DEV"):
            made &= ~getattr(landlock.FSAccess, kind, 0)
        for name in (str(taskdir), *_WRITABLE):
            if os.path.isdir(name):
                rules.allow(name, rules=made)
            elif os.path.exists(name):
                rules.allow(name, rules=landlock.FSAccess.READ_FILE | landlock.FSAccess.WRITE_FILE)
        if cuda:
            _allow_cuda(rules)
        for path in {*programs, *(loader for program in programs for loader in _loader(program))}:
            rules.allow(str(path), rules=landlock.FSAccess.READ_FILE | landlock.FSAccess.EXECUTE)
        rules.apply()
    except (OSError, RuntimeError, AttributeError, ValueError):
        return False
    return True


def _allow_cuda(rules: landlock.Ruleset) -> None:
    import landlock

    read = landlock.FSAccess.READ_FILE | landlock.FSAccess.READ_DIR
    # Entries in /sys/bus are links to where the devices really are.
    gpus = Path("/proc/driver/nvidia/gpus")
    real = [Path("/sys/bus/pci/devices", gpu.name).resolve() for gpu in gpus.iterdir()] if gpus.is_dir() else []
    for path in (*map(Path, _CUDA_READABLE), *real):
        if path.exists():
            rules.allow(str(path), rules=read if path.is_dir() else landlock.FSAccess.READ_FILE)
    # Kernels before 6.10 know no right for ioctl, and do not ask for it.
    used = landlock.FSAccess.READ_FILE | landlock.FSAccess.WRITE_FILE | landlock.FSAccess.IOCTL_DEV
    for path in device_files():
        rules.allow(str(path), rules=(used | read if path.is_dir() else used) & landlock.FSAccess.all())
    # CUDA names its threads in /proc/self/task/*/comm, and gives up with error 304 where it may not (NVIDIA/OpenShell, pull request
    # 710). The rule holds for the folder that is found now; open, it is not forgotten and found again as another one.
    os.open("/proc/self/task", os.O_PATH | os.O_CLOEXEC)
    named = read | landlock.FSAccess.WRITE_FILE | landlock.FSAccess.TRUNCATE
    rules.allow("/proc/self/task", rules=named & landlock.FSAccess.all())


def _loader(program: Path) -> list[Path]:
    """What the kernel starts a program with: the dynamic loader that its ELF header names."""
    with program.open("rb") as file:
        found = re.search(rb"\0(/[\x21-\x7e]*/ld[\x21-\x7e]*)\0", file.read(_HEADER_BYTES))
    return [Path(os.fsdecode(found[1]))] if found else []


def _package_folders(taskdir: Path) -> set[str]:
    """Where Python packages lie, ours among them: an editable install reads the checkout."""
    import fleetfit

    here = Path(fleetfit.__file__).resolve().parent
    folders = {str(here)} | {str(link.resolve()) for link in here.iterdir() if link.is_symlink()}
    folders |= {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    # `python -m` puts the working directory there, which may hold anything: the server's state, for example.
    too_much = {Path.cwd(), Path(os.path.expanduser("~")), *taskdir.parents}
    return folders | {path for path in sys.path if path and Path(path).resolve() not in too_much}


# No network, by sockets or around them; no other program; no hand on other processes or on own limits; no kernel doors.
_REFUSED = (
    *("socket", "socketpair", "connect", "bind", "accept", "accept4"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd"),
    *(
        "pidfd_send_signal",
        "setrlimit",
        "mount",
        "umount2",
        "move_mount",
        "open_tree",
        "fsopen",
        "pivot_root",
        "chroot",
    ),
    *("unshare", "setns", "keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd"),
    *("init_module", "finit_module", "kexec_load", "open_by_handle_at", "swapon", "reboot", "settimeofday"),
)


# CUDA offers its memory to other processes on a local socket of this kind (snapd, as above: `unix (bind,listen) type=seqpacket
# addr="@cuda-uvmfd-*"`), and gives up where it cannot. Nobody is let in: `accept` stays refused, and without `connect` a socket of
# that kind reaches nobody. Landlock lets none be made in a folder.
_CUDA_CALLS = ("socket", "bind")
_SOCKET_KINDS = 0xF


def _seccomp(cuda: bool, *, may_start: bool) -> bool:
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError):
        return False
    try:
        rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
        refuse = pyseccomp.ERRNO(errno.EACCES)
        for call in _REFUSED:
            if (cuda and call in _CUDA_CALLS) or (may_start and call == "execve"):
                continue
            try:
                number = pyseccomp.resolve_syscall(pyseccomp.system_arch(), call)
            except (OSError, ValueError, RuntimeError):
                continue  # An older libseccomp does not know it by name.
            if number is None or (isinstance(number, int) and number < 0):
                continue
            rules.add_rule(refuse, call)
        me = os.getpid()
        for call in ("kill", "tgkill", "tkill"):
            # A process may end itself (`abort` does), nobody else; `tkill` names threads, and there is but one here.
            rules.add_rule(refuse, call, pyseccomp.Arg(0, pyseccomp.NE, me))
        if cuda:
            rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.NE, socket.AF_UNIX))
            for kind in range(_SOCKET_KINDS + 1):
                if kind != socket.SOCK_SEQPACKET:
                    of_kind = pyseccomp.Arg(1, pyseccomp.MASKED_EQ, _SOCKET_KINDS, kind)
                    rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, socket.AF_UNIX), of_kind)
        # Reading a limit passes no new one.
        rules.add_rule(refuse, "prlimit64", pyseccomp.Arg(2, pyseccomp.NE, 0))
        rules.load()
    except (OSError, RuntimeError, ValueError):
        return False
    return True
