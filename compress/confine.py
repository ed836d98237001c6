"""How a compression child locks itself in before it reads anything that a user sent."""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

# What the dynamic loader, Python and the numeric libraries read.
_READABLE = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/opt", "/dev/urandom", "/dev/random")
_WRITABLE = ("/dev/null", "/dev/shm")  # noqa: S108 - shared memory of OpenMP, not a temporary file


def confine(taskdir: Path, writable: tuple[Path, ...] = ()) -> list[str]:
    """Give up the network, new programs, and every file but the task's folder; say what really confines now.

    Uses Landlock for files and seccomp for system calls. Where the kernel or the packages lack one, the rest is still done
    and the answer does not name it. To be called before threads are started and after the host's lock was opened.
    """
    # Scratch files go into the task's folder: nothing else can be written from here on.
    scratch = taskdir / "scratch"
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    os.environ["TMPDIR"] = str(scratch)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch)
    done = []
    if _landlock(taskdir, writable):
        done.append("landlock")
    if _seccomp():
        done.append("seccomp")
    return done


def _landlock(taskdir: Path, writable: tuple[Path, ...]) -> bool:
    try:
        import landlock
    except ImportError:
        return False
    try:
        rules = landlock.Ruleset()
        readable = {sys.prefix, sys.base_prefix, *_READABLE, *_package_folders()}
        read = landlock.FSAccess.READ_FILE | landlock.FSAccess.READ_DIR | landlock.FSAccess.EXECUTE
        for name in sorted(readable):
            if os.path.isdir(name):
                rules.allow(name, rules=read)
            elif os.path.exists(name):
                rules.allow(name, rules=landlock.FSAccess.READ_FILE)
        for path in (taskdir, *writable):
            if path.is_dir():
                rules.allow(str(path), rules=landlock.FSAccess.all())
            elif path.exists():
                rules.allow(str(path), rules=landlock.FSAccess.READ_FILE | landlock.FSAccess.WRITE_FILE)
        for name in _WRITABLE:
            if os.path.isdir(name):
                rules.allow(name, rules=landlock.FSAccess.all())
            elif os.path.exists(name):
                rules.allow(name, rules=landlock.FSAccess.READ_FILE | landlock.FSAccess.WRITE_FILE)
        rules.apply()
    except (OSError, RuntimeError, AttributeError, ValueError):
        return False
    return True


def _package_folders() -> set[str]:
    """Where our own packages lie: an editable install reads the checkout."""
    import fleetfit

    here = Path(fleetfit.__file__).resolve().parent
    folders = {str(here)} | {str(link.resolve()) for link in here.iterdir() if link.is_symlink()}
    return (
        folders | {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")} | {p for p in sys.path if p}
    )


def _seccomp() -> bool:
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError):
        return False
    try:
        rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
        refuse = pyseccomp.ERRNO(13)
        for call in (
            "socket",
            "socketpair",
            "connect",
            "bind",
            "execve",
            "execveat",
            "ptrace",
            "mount",
            "keyctl",
            "bpf",
        ):
            rules.add_rule(refuse, call)
        rules.load()
    except (OSError, RuntimeError, ValueError):
        return False
    return True
