"""How a compression child locks itself in before it reads anything that a user sent."""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

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
_WRITABLE = ("/dev/null", "/dev/shm")  # noqa: S108 - shared memory of OpenMP, not a temporary file


def confine(taskdir: Path) -> list[str]:
    """Give up the network, new programs, and every file but the task's folder; say what really confines now.

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
    done = []
    if _landlock(taskdir):
        done.append("landlock")
    if _seccomp():
        done.append("seccomp")
    return done


def _landlock(taskdir: Path) -> bool:
    try:
        import landlock
    except ImportError:
        return False
    try:
        rules = landlock.Ruleset()
        readable = {sys.prefix, sys.base_prefix, *_READABLE, *_package_folders(taskdir)}
        read = landlock.FSAccess.READ_FILE | landlock.FSAccess.READ_DIR | landlock.FSAccess.EXECUTE
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
        rules.apply()
    except (OSError, RuntimeError, AttributeError, ValueError):
        return False
    return True


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
    *("socket", "socketpair", "connect", "bind", "io_uring_setup", "io_uring_enter", "io_uring_register"),
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


def _seccomp() -> bool:
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError):
        return False
    try:
        rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
        refuse = pyseccomp.ERRNO(errno.EACCES)
        for call in _REFUSED:
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
        # Reading a limit passes no new one.
        rules.add_rule(refuse, "prlimit64", pyseccomp.Arg(2, pyseccomp.NE, 0))
        rules.load()
    except (OSError, RuntimeError, ValueError):
        return False
    return True
