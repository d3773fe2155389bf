"""The job that the agent gives an engine: a profile with all its files.

Layout: one JSON object, {"name", "text", "files": {path: base64},
"username", "password", "dns": {...}, "problems": {path: text}}, in a memfd
sealed against every change. The engine parses the text again, out of the
files that the agent read: it opens none.
"""

import base64
import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from qubes_vpn.errors import LocalStateError
from qubes_vpn.qubes.qubesdb import DnsChoice

JOB_MAX: Final = 16 * 1024 * 1024
_SEALS: Final = (
    fcntl.F_SEAL_SHRINK
    | fcntl.F_SEAL_GROW
    | fcntl.F_SEAL_WRITE
    | fcntl.F_SEAL_SEAL
)


@dataclass(frozen=True, slots=True)
class Job:
    """A profile's text, the files that it names, and who logs in.

    dns: where the queries of the qubes go, if the user chose. problems: why
    a file that the profile names cannot be read any more.
    """

    name: str
    text: str = field(repr=False)
    files: dict[str, bytes] = field(repr=False, default_factory=dict)
    username: str | None = None
    password: str | None = field(repr=False, default=None)
    dns: DnsChoice = field(default_factory=DnsChoice)
    problems: dict[str, str] = field(default_factory=dict)

    def reread(self, path: str, read: Callable[[str], bytes]) -> "Job":
        """Give the job with this file as it is now."""
        files = {name: self.files[name] for name in self.files if name != path}
        try:
            return replace(self, files={**files, path: read(path)}, problems={})
        except OSError as error:
            problems = {path: error.strerror or str(error)}
            return replace(self, files=files, problems=problems)

    def read_file(self, path: str) -> bytes:
        """Give a file that the agent read; it read all that are named."""
        if path in self.problems:
            raise OSError(self.problems[path])
        try:
            return self.files[path]
        except KeyError:
            raise FileNotFoundError(path) from None


@dataclass(slots=True)
class RecordingReader:
    """Reads files for the parser, and keeps what it read for the job."""

    read: Callable[[str], bytes]
    files: dict[str, bytes] = field(repr=False, default_factory=dict)

    def __call__(self, path: str) -> bytes:
        """Read `path`, once."""
        if path not in self.files:
            self.files[path] = self.read(path)
        return self.files[path]


def pack(job: Job) -> int:
    """Give a sealed memfd with the job; the caller closes it."""
    record = {
        "name": job.name,
        "text": job.text,
        "files": {
            path: base64.b64encode(data).decode()
            for path, data in job.files.items()
        },
        "username": job.username,
        "password": job.password,
        "dns": asdict(job.dns),
        "problems": job.problems,
    }
    descriptor = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        stream.write(json.dumps(record).encode())
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


def unpack(descriptor: int) -> Job:
    """Read the job and close the descriptor."""
    with os.fdopen(descriptor, "rb") as stream:
        stream.seek(0)
        data = stream.read(JOB_MAX + 1)
    if len(data) > JOB_MAX:
        raise LocalStateError("the job is too long")
    record = json.loads(data)
    return Job(
        name=record["name"],
        text=record["text"],
        files={
            path: base64.b64decode(text)
            for path, text in record["files"].items()
        },
        username=record["username"],
        password=record["password"],
        dns=DnsChoice(**record["dns"]),
        problems=record["problems"],
    )
