"""Runs on the device, alone: installs an agent from wheels that a fleetfit server keeps, and takes it away again.

The line that `fleetfit devices enroll` prints fetches this file, compares its SHA-256 with the one in the line, and only then
runs it; every wheel is compared with the digest that stands here. So nothing else needs to be trusted on the way, and the
device needs no internet, no pip and no package but python3.

    DIR/venv -> venv-KEY    the agent's own Python environment
    DIR/state               identity, cache and results: the only folder that the agent itself writes
    DIR/fleetfit            the command line, for this agent
    DIR/install.py          this file; `python3 DIR/install.py --uninstall` removes what it made

Only the standard library, in words that Python 3.6 can read: an older one must be able to say that it is too old.
"""

import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import pwd
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Dict, List, Optional

MANIFEST = {}  # type: Dict[str, Any]

SERVICE = "fleetfit-agent"
USER = "fleetfit"
OLDEST, NEWEST = (3, 10), (3, 14)
UNITS = "/etc/systemd/system"
SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@:,="
# A device far away on a bad link: as long as something arrives between two breaks, it goes on.
TRIES = 8
TIMEOUT_S = 60
# A runtime that hangs when it is imported must not hold the installation up for ever.
COMPILE_S = 300
# gRPC's wheel and the runtimes' ask for it, and the smallest images come without.
CPP_LIBRARY = "libstdc++.so.6"

# How the agent's Python runs: with nothing of the user's and nothing from where it is called, and compiling nothing by the way.
SETTINGS = "PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1"

UNIT = """\
[Unit]
Description=fleetfit agent
Documentation=file://{folder}/install.py
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
ExecStart={folder}/venv/bin/python -m fleetfit agent --state {folder}/state
User={user}
Restart=always
RestartSec=30
KillMode=mixed
# A measurement that the kernel kills for its memory is a result; the agent lives on.
OOMPolicy=continue
Environment={settings} HOME={folder}/state
UMask=0077
LimitCORE=0
# What it may see and do: read the machine, write its own folder, speak to its server. MemoryDenyWriteExecute is left out:
# inference runtimes generate code. Devices stay visible: accelerators are devices.
ProtectSystem=strict
ReadWritePaths={folder}/state -/run/lock
ProtectHome={home}
PrivateTmp=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


class Failed(Exception):
    """Something that stops the installation; the message is one sentence that says what to do."""


def main(arguments: Optional[List[str]] = None) -> int:
    """Install or uninstall; the exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        found = uninstall(options.dir) if options.uninstall else install(options)
    except Failed as error:
        return failed(str(error), options.json)
    except OSError as error:
        where = "{}: ".format(error.filename) if error.filename else ""
        return failed("{}{}".format(where, error.strerror or error), options.json)
    except KeyboardInterrupt:
        say("interrupted; the same line goes on where it stopped")
        return 130
    if options.json:
        print(json.dumps(found))
    return 0


def failed(sentence: str, as_json: bool) -> int:
    """Say why it ended."""
    if as_json:
        print(json.dumps({"error": {"code": "INSTALL_FAILED", "message": sentence, "field": ""}}))
    say("fleetfit: " + sentence)
    return 1


def say(sentence: str) -> None:
    """Progress and results, for people."""
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()


def parse(arguments: List[str]) -> Any:
    """The options."""
    parser = argparse.ArgumentParser(prog="fleetfit-install", description="Install a fleetfit agent, or take it away.")
    parser.add_argument("url", nargs="?", default="", help="where this file came from")
    parser.add_argument("digest", nargs="?", default="", help="its SHA-256")
    parser.add_argument("--server", default="", help="the server's address, for enrolment")
    parser.add_argument("--token", default="", help="one-time token")
    parser.add_argument("--name", default="", help="a name for this device")
    parser.add_argument("--dir", default="", help="the one folder to write to")
    parser.add_argument("--runtime", action="append", help="only these inference runtimes; 'none' for none")
    parser.add_argument("--user", default="", help="who the service runs as; else a user of its own, fleetfit")
    parser.add_argument("--no-service", action="store_true", help="no systemd unit")
    parser.add_argument("--uninstall", action="store_true", help="remove what this installer made")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    options = parser.parse_args(arguments)
    options.dir = os.path.abspath(options.dir or default_folder())
    return options


def default_folder() -> str:
    """Beside this file where it was installed; else the system's place, or the user's."""
    own = os.path.dirname(os.path.abspath(str(globals().get("__file__", "/"))))
    if os.path.exists(os.path.join(own, "installed.json")):
        return own
    if os.geteuid() == 0:
        return "/opt/fleetfit-agent"
    share = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(share, "fleetfit-agent")


def install(options: Any) -> Dict[str, Any]:
    """Make or renew everything in the folder, enrol, and start the service. Again changes nothing but what is old."""
    if not options.url or not options.digest:
        raise Failed("this needs the whole line that `fleetfit devices enroll` prints; paste it again")
    folder = options.dir
    if not set(folder) <= set(SAFE):
        raise Failed("systemd and Python cannot use a folder named {!r}; name another with --dir".format(folder))
    own = own_source(options.digest)
    go_on = find_python()
    record = prepare(folder)
    write(os.path.join(folder, "install.py"), own, 0o644)
    if go_on != sys.executable:
        os.execv(go_on, [go_on, os.path.join(folder, "install.py"), *sys.argv[1:]])
    target = MANIFEST["targets"][target_name()]
    runtimes = wanted_runtimes(target, options.runtime)
    names = sorted(set(target["agent"]) | {name for runtime in runtimes for name in target["runtimes"][runtime]})
    renewed = make_environment(folder, options.url, names)
    write(os.path.join(folder, "fleetfit"), launcher(folder), 0o755)
    service = not options.no_service and can_serve()
    user = service_user(options.user, record, folder) if service else ""
    own_state(folder, user)
    enrolled = enrol(folder, user, options)
    say("")
    findings = doctor(folder, user)
    if service:
        start_service(folder, user, record)
        say("\nThe agent runs as the service {} (journalctl -u {}).".format(SERVICE, SERVICE))
    else:
        say("\nThe agent is installed and enrolled. Start it with\n  {}/fleetfit agent".format(folder))
        if not options.no_service:
            say("(no service was made: {})".format(why_no_service()))
    say("Remove all of it with\n  python3 {}/install.py --uninstall".format(folder))
    facts = {"dir": folder, "target": target_name(), "runtimes": runtimes, "renewed": renewed}
    return dict(facts, service=SERVICE if service else None, user=user, findings=findings, **enrolled)


def own_source(digest: str) -> bytes:
    """The bytes of this file: what the line has checked and left in `b`, or the file."""
    own = globals().get("b")
    if own is None:
        with open(globals()["__file__"], "rb") as file:
            own = file.read()
    if hashlib.sha256(own).hexdigest() != digest:
        raise Failed("this installer is not the one of the line; make a new line with `fleetfit devices enroll`")
    return bytes(own)


def find_python() -> str:
    """A Python that the server has wheels for: this one, or another one on the PATH. Checks what wheels ask for."""
    if platform.system() != "Linux":
        raise Failed("agents run on Linux; this is {}".format(platform.system()))
    if sys.maxsize < 2**32:
        raise Failed(
            "this system is a 32-bit one, for which inference runtimes have no wheels; install its 64-bit version"
        )
    if not platform.libc_ver()[0]:
        raise Failed(
            "this system has no glibc (Alpine?), which the wheels need; use Debian 12 or Ubuntu 22.04, or newer"
        )
    try:
        ctypes.CDLL(CPP_LIBRARY)
    except OSError:
        raise Failed(
            "this system has no {}, which gRPC needs; install it (`sudo apt install libstdc++6`) and paste the line "
            "again".format(CPP_LIBRARY)
        ) from None
    if target_name() in MANIFEST["targets"]:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        other = shutil.which("python3.{}".format(minor))
        if other and target_name((3, minor)) in MANIFEST["targets"]:
            return other
    have = ", ".join(sorted(MANIFEST["targets"]))
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise Failed(
            "this system's Python is {}, and the agent needs {}.{} to {}.{}: install such a python3 beside it, or "
            "run the agent in a container".format(platform.python_version(), *(OLDEST + NEWEST))
        )
    raise Failed(
        "the server has no wheels for {} (it has {}); run `fleetfit server wheels fetch --python {}.{} --machine {}` there "
        "and make a new line".format(target_name(), have, sys.version_info[0], sys.version_info[1], platform.machine())
    )


def target_name(version: Any = None) -> str:
    """The target that wheels are chosen by."""
    major, minor = (version or sys.version_info)[:2]
    return "cp{}{}-{}".format(
        major, minor, {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine(), platform.machine())
    )


def wanted_runtimes(target: Dict[str, Any], asked: Optional[List[str]]) -> List[str]:
    """The runtimes to install: all that the server has for this target, or those asked for."""
    there = sorted(target["runtimes"])
    if not asked:
        return there
    wanted = sorted({name for text in asked for name in text.split(",") if name and name != "none"})
    missing = [name for name in wanted if name not in there]
    if missing:
        raise Failed(
            "the server has no wheels of {} for this device (it has {}); fetch them there with `fleetfit server wheels "
            "fetch --runtime {}`".format(", ".join(missing), ", ".join(there) or "none", missing[0])
        )
    return wanted


def prepare(folder: str) -> Dict[str, Any]:
    """Make the folder and the record of what is made. The record is written before what it speaks of."""
    made = []
    above = folder
    while not os.path.isdir(above):
        made.append(above)
        above = os.path.dirname(above)
    if not os.access(above, os.W_OK):
        raise Failed("{} cannot be written by this user; put sudo in front, or name a folder with --dir".format(above))
    os.makedirs(folder, exist_ok=True)
    record = read_record(folder)
    if record is None:
        if os.listdir(folder):
            raise Failed("{} holds other things; name a new or empty folder with --dir".format(folder))
        record = {"made_folders": made, "unit": "", "user": ""}
        write_record(folder, record)
    return record


def read_record(folder: str) -> Optional[Dict[str, Any]]:
    """What an earlier run made; None where there was none."""
    try:
        with open(os.path.join(folder, "installed.json")) as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return None
    except ValueError:
        raise Failed("{}/installed.json is damaged; remove it and install again".format(folder)) from None


def write_record(folder: str, record: Dict[str, Any]) -> None:
    """Keep the record."""
    write(os.path.join(folder, "installed.json"), json.dumps(record, indent=2).encode() + b"\n", 0o644)


def write(path: str, content: bytes, mode: int) -> None:
    """Write a file whole or not at all."""
    with open(path + ".new", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(path + ".new", mode)
    os.replace(path + ".new", path)


def launcher(folder: str) -> bytes:
    """The command line for this agent."""
    return (
        "#!/bin/sh\n# Runtimes leave files in HOME. What lies in the folder from where it is called is not for Python to import.\n"
        "export {1}\n"
        "export HOME={0}/state FLEETFIT_AGENT_STATE={0}/state\n"
        '[ -w "${{TMPDIR:-/tmp}}" ] || export TMPDIR={0}/state\n'
        'exec {0}/venv/bin/python -m fleetfit "$@"\n'.format(folder, SETTINGS).encode()
    )


def make_environment(folder: str, url: str, names: List[str]) -> bool:
    """The environment with exactly these wheels; whether it had to be made. The old one works until this one does."""
    facts = json.dumps([target_name(), [MANIFEST["files"][name] for name in names]])
    fresh = "venv-" + hashlib.sha256(facts.encode()).hexdigest()[:12]
    path, link = os.path.join(folder, fresh), os.path.join(folder, "venv")
    done = os.path.join(path, "complete")
    if os.path.exists(done) and os.path.islink(link) and os.readlink(link) == fresh:
        say("the environment in {} is up to date".format(folder))
        return False
    if not os.path.exists(done):
        shutil.rmtree(path, ignore_errors=True)
        check_room(folder, names)
        for name in ("wheels", "tmp"):
            os.makedirs(os.path.join(folder, name), exist_ok=True)
        fetch_all(url, names, os.path.join(folder, "wheels"))
        say("installing {} packages ...".format(len(names)))
        build_environment(folder, path, names)
        write(done, b"", 0o644)
    temporary = link + ".new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(fresh, temporary)
    os.replace(temporary, link)
    for name in os.listdir(folder):
        if name.startswith("venv-") and name != fresh:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    for name in ("wheels", "tmp"):
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    return True


def check_room(folder: str, names: List[str]) -> None:
    """Before a slow link has brought what the disk cannot hold."""
    files = MANIFEST["files"]
    # Compiled modules come on top of what is unpacked.
    needed = sum(files[name][0] + files[name][2] * 1.2 for name in names)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Failed(
            "{} has {:.0f} MB free and {:.0f} MB are needed; make room, or name a folder on a larger disk with "
            "--dir".format(folder, free / 1e6, needed / 1e6)
        )


def build_environment(folder: str, path: str, names: List[str]) -> None:
    """Make the environment with the pip that was fetched: the system's may be missing, and Debian's refuses."""
    wheels = os.path.join(folder, "wheels")
    scratch = os.path.join(folder, "tmp")
    clean = dict(clean_environment(), PIP_CONFIG_FILE=os.devnull, TMPDIR=scratch, HOME=scratch)
    run([sys.executable, "-m", "venv", "--without-pip", path], clean, "the environment cannot be made")
    python = os.path.join(path, "bin", "python")
    pip = next(name for name in names if name.startswith("pip-"))
    command = [
        python,
        os.path.join(wheels, pip, "pip"),
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--quiet",
    ]
    command += ["--no-index", "--no-deps", "--no-cache-dir", "--no-warn-script-location", "--root-user-action=ignore"]
    command += ["--no-compile"]
    # Without itself: who keeps the environment is this installer.
    command += [os.path.join(wheels, name) for name in names if name != pip]
    run(command, clean, "the wheels cannot be installed")
    run([python, "-m", "fleetfit", "--version"], clean, "what was installed does not run")
    compile_used(python, clean)


def clean_environment() -> Dict[str, str]:
    """Ours without the user's settings of Python and pip: they may name other indexes, or other places."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}
    for setting in SETTINGS.split():
        name, _, value = setting.partition("=")
        clean[name] = value
    return clean


def compile_used(python: str, environment: Dict[str, str]) -> None:
    """Let Python compile what the agent imports, and no more: all that was installed would take up a third more room."""
    writing = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # Whatever fails here only costs time later: a runtime that cannot be imported is the doctor's to report.
    try:
        subprocess.run(
            [python, "-m", "fleetfit.agent.precompile"],
            env=writing,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=COMPILE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        say("compiling what is used took too long; the agent starts more slowly")


def run(command: List[str], environment: Dict[str, str], what: str) -> None:
    """Run a step; its last words where it fails."""
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = done.stdout.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise Failed("{}: {}".format(what, lines[-1]))


def fetch_all(url: str, names: List[str], folder: str) -> None:
    """Fetch the wheels that are not there yet, each compared with its digest."""
    total = sum(MANIFEST["files"][name][0] for name in names)
    say("fetching {} wheels, {:.0f} MB, from {}".format(len(names), total / 1e6, url))
    progress = Progress(total)
    for name in names:
        size, digest = MANIFEST["files"][name][:2]
        path = os.path.join(folder, name)
        if not (os.path.exists(path) and file_digest(path) == digest):
            fetch(url.rstrip("/") + "/wheels/" + urllib.parse.quote(name), path, size, digest, progress)
        progress.file_done(size)


class Progress:
    """Says now and then how much of all files is here."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.said = total, 0, time.monotonic()

    def at(self, arrived: int) -> None:
        """So much of the present file is here."""
        if time.monotonic() - self.said >= 5:
            self.said = time.monotonic()
            say("  {:.0f} of {:.0f} MB".format((self.done + arrived) / 1e6, self.total / 1e6))

    def file_done(self, size: int) -> None:
        """A file is complete."""
        self.done += size


def fetch(address: str, path: str, size: int, digest: str, progress: Progress) -> None:
    """Fetch one file, and go on where a broken connection stopped."""
    part = path + ".part"
    tries = 0
    while True:
        have = os.path.getsize(part) if os.path.exists(part) else 0
        if have > size:
            os.unlink(part)
            have = 0
        if have == size:
            break
        try:
            fetch_rest(address, part, have, size, progress)
        except (urllib.error.URLError, socket.timeout, ConnectionError, EOFError, OSError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise Failed(
                    "the server does not have {} any more; make a new line with `fleetfit devices enroll`".format(
                        address
                    )
                ) from None
            if isinstance(error, OSError) and error.filename:
                raise
            arrived = (os.path.getsize(part) if os.path.exists(part) else 0) > have
            tries = 1 if arrived else tries + 1
            if tries == TRIES:
                raise Failed(
                    "{} cannot be fetched ({}); check the network and paste the line again, it goes on where it "
                    "stopped".format(address, getattr(error, "reason", None) or error)
                ) from None
            time.sleep(min(2**tries, 30))
    if file_digest(part) != digest:
        os.unlink(part)
        raise Failed(
            "{} is not what the line promises (its digest is another): something between here and the server changes "
            "it, or the server's wheels have changed; make a new line with `fleetfit devices enroll`".format(address)
        )
    os.replace(part, path)


def fetch_rest(address: str, part: str, have: int, size: int, progress: Progress) -> None:
    """Append what is missing of a file. Raises EOFError where the connection ends early."""
    request = urllib.request.Request(address, headers={"Range": "bytes={}-".format(have)} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        # A proxy that knows no ranges sends all of it.
        have = have if answer.status == 206 else 0
        with open(part, "ab" if have else "wb") as file:
            while have < size:
                chunk = answer.read(min(65536, size - have))
                if not chunk:
                    raise EOFError("the connection ended early")
                file.write(chunk)
                have += len(chunk)
                progress.at(have)


def file_digest(path: str) -> str:
    """SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def why_no_service() -> str:
    """Why there can be no service here; empty where there can."""
    if os.geteuid() != 0:
        return "that takes root; put sudo in front of the line for one that starts with the device"
    if not os.path.isdir("/run/systemd/system"):
        return "systemd does not run here; let your init start that command"
    if not os.access(UNITS, os.W_OK):
        return "{} cannot be written; let something that starts with the device start that command".format(UNITS)
    return ""


def can_serve() -> bool:
    """Whether a service can be made."""
    return not why_no_service()


def service_user(asked: str, record: Dict[str, Any], folder: str) -> str:
    """Who the service runs as, made if it is our own."""
    name = asked or USER
    try:
        pwd.getpwnam(name)
    except KeyError:
        if asked or not shutil.which("useradd"):
            raise Failed("there is no user {} here; name one with --user".format(name)) from None
        # First the record: a user that nobody remembers would stay.
        record["user"] = name
        write_record(folder, record)
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", folder + "/state"]
        run(
            [*command, "--shell", "/usr/sbin/nologin", name],
            dict(os.environ),
            "the user {} cannot be made".format(name),
        )
    else:
        return name
    # Where accelerators are: a group that this system does not know is none that guards them.
    for group in ("video", "render"):
        subprocess.run(["usermod", "-aG", group, name], stderr=subprocess.DEVNULL, check=False)
    return name


def own_state(folder: str, user: str) -> None:
    """Make the agent's own folder, and all in it the service's."""
    state = os.path.join(folder, "state")
    os.makedirs(state, exist_ok=True)
    os.chmod(state, 0o700)
    if user:
        entry = pwd.getpwnam(user)
        for below, folders, files in os.walk(state):
            for name in [".", *folders, *files]:
                os.lchown(os.path.join(below, name), entry.pw_uid, entry.pw_gid)


def as_user(folder: str, user: str, arguments: List[str]) -> Dict[str, Any]:
    """What our command line answers, run as the service's user. Raises Failed with its sentence, or its last words."""
    state = folder + "/state"
    environment = dict(clean_environment(), HOME=state, FLEETFIT_AGENT_STATE=state)
    more = {}  # type: Dict[str, Any]
    if user:
        entry = pwd.getpwnam(user)
        more = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid)}
    command = [
        os.path.join(folder, "venv", "bin", "python"),
        "-m",
        "fleetfit",
        "agent",
        "--state",
        state,
        *arguments,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=folder, check=False, **more)
    last = (done.stderr.decode(errors="replace").strip().splitlines() or ["exit code {}".format(done.returncode)])[-1]
    try:
        answer = dict(json.loads(done.stdout.decode().strip().splitlines()[-1]))
    except (IndexError, ValueError):
        raise Failed("`fleetfit agent {}` gave no answer ({})".format(arguments[0], last)) from None
    if "error" in answer:
        raise Failed(answer["error"]["message"])
    return answer


def enrol(folder: str, user: str, options: Any) -> Dict[str, Any]:
    """Turn the token into an identity, once."""
    arguments = ["enroll"]
    for option, value in (("--server", options.server), ("--token", options.token), ("--name", options.name)):
        arguments += [option, value] if value else []
    try:
        said = as_user(folder, user, arguments)
    except Failed as error:
        raise Failed("it is installed, but {}".format(error)) from None
    say(said["message"])
    return {"device": said["device"], "device_id": said["device_id"]}


def doctor(folder: str, user: str) -> List[Any]:
    """What the device has and lacks, shown to people as well."""
    try:
        findings = list(as_user(folder, user, ["doctor"])["findings"])
    except Failed as error:
        # All else is done, and the agent says the same when it starts.
        advice = "Run {}/fleetfit agent doctor when that is mended.".format(folder)
        findings = [{"what": "doctor", "verdict": "missing", "found": str(error), "advice": advice}]
    for one in findings:
        advice = "\n         " + one["advice"] if one["advice"] else ""
        say("{:8} {}: {}{}".format(one["verdict"], one["what"], one["found"], advice))
    return findings


def start_service(folder: str, user: str, record: Dict[str, Any]) -> None:
    """Write the unit and start it, or start it again."""
    path = os.path.join(UNITS, SERVICE + ".service")
    if os.path.exists(path) and record["unit"] != path:
        with open(path) as file:
            if "ExecStart={}/".format(folder) not in file.read():
                raise Failed("{} belongs to another installation; remove that first, or use --no-service".format(path))
    record["unit"] = path
    write_record(folder, record)
    home = "read-only" if folder.startswith(("/home/", "/root/", "/run/user/")) else "yes"
    write(path, unit(folder, user, home), 0o644)
    for arguments in (["daemon-reload"], ["enable", "--quiet", SERVICE], ["restart", SERVICE]):
        run(["systemctl", *arguments], dict(os.environ), "the service cannot be started")


def unit(folder: str, user: str, home: str) -> bytes:
    """What systemd is told."""
    return UNIT.format(folder=folder, user=user, home=home, settings=SETTINGS).encode()


def uninstall(folder: str) -> Dict[str, Any]:
    """Remove what was made, by its record, and nothing else."""
    record = read_record(folder)
    if record is None:
        raise Failed("nothing was installed in {}; name the folder with --dir".format(folder))
    if record["unit"]:
        if os.path.isdir("/run/systemd/system"):
            subprocess.run(["systemctl", "disable", "--now", "--quiet", SERVICE], check=False)
        if os.path.exists(record["unit"]):
            os.unlink(record["unit"])
        if os.path.isdir("/run/systemd/system"):
            subprocess.run(["systemctl", "daemon-reload"], check=False)
    refuse_while_running(folder)
    if record["user"]:
        subprocess.run(["userdel", record["user"]], stderr=subprocess.DEVNULL, check=False)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name in ("wheels", "tmp", "state") or (name.startswith("venv-") and not os.path.islink(path)):
            shutil.rmtree(path)
        elif (name[:-4] if name.endswith(".new") else name) in ("venv", "fleetfit", "install.py"):
            os.unlink(path)
    # Last: until then it can be tried again.
    os.unlink(os.path.join(folder, "installed.json"))
    left = os.listdir(folder)
    for made in record["made_folders"]:
        if os.path.isdir(made) and not os.listdir(made):
            os.rmdir(made)
    say("removed what was installed in {}{}".format(folder, "; others' files stay" if left else ""))
    say("The server still lists this device.")
    return {"dir": folder, "removed": True, "left": left}


def refuse_while_running(folder: str) -> None:
    """Raise Failed where an agent that was started by hand works in the folder."""
    path = os.path.join(folder, "state", "agent.lock")
    if os.path.exists(path):
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Failed("an agent works in {}/state; stop it first".format(folder)) from None


if __name__ == "__main__":
    sys.exit(main())
