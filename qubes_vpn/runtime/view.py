"""What the agent knows of keeper and engine, and how it is told to others."""

import math
from dataclasses import dataclass, field
from typing import Any, Final

from qubes_vpn.keeper.messages import KeeperStatus
from qubes_vpn.runtime.messages import Candidate, Prompt, Report

CONNECTING: Final = ("reach", "tls", "authenticate", "configure")


@dataclass(slots=True)
class View:
    """The state that is shown: the keeper's words, and the engine's.

    prompt_until: the monotonic second at which nobody waits any more.
    """

    profile: str
    phase: str = "blocked"
    report: Report = field(default_factory=lambda: Report("wait"))
    candidates: tuple[Candidate, ...] = ()
    prompt: Prompt | None = None
    prompt_until: float = 0.0
    repairs: int = 0
    culprit: str = ""
    stopped: str = ""
    resumes_in: int = 0

    def take(self, status: KeeperStatus) -> None:
        """Take over what the keeper says of itself."""
        self.repairs, self.culprit = status.repairs, status.culprit
        self.stopped, self.resumes_in = status.stopped, status.resumes_in

    @property
    def connected(self) -> bool:
        """Whether both the keeper and the engine say so."""
        return self.phase == self.report.stage == "connected"

    def ask(self, prompt: Prompt, now: float) -> None:
        """Remember what is asked, until its time is over."""
        self.prompt, self.prompt_until = prompt, now + prompt.timeout

    def answered(self) -> Prompt | None:
        """Give what was asked, once."""
        prompt, self.prompt = self.prompt, None
        return prompt

    def remote(self) -> dict[str, Any]:
        """Give the server that is tried or used; {} for none."""
        report = self.report
        if not 0 <= report.candidate < len(self.candidates):
            return {}
        candidate = self.candidates[report.candidate]
        return {
            "host": candidate.host,
            "address": str(candidate.endpoint.address),
            "port": candidate.endpoint.port,
            "proto": str(candidate.endpoint.transport),
        }

    def line(self) -> str:
        """Say to a person how far we are; "" when there is nothing to say."""
        report, remote = self.report, self.remote()
        if report.stage in CONNECTING:
            return f"{report.stage} {remote.get('address', '')}".strip()
        if not self.connected:
            return ""
        return (
            f"connected {remote.get('address', '?')} port"
            f" {remote.get('port', '?')}/{remote.get('proto', '?')}"
            f" {report.cipher} {report.device} {' '.join(report.addresses)}"
        )

    def status(self, now: float) -> dict[str, Any]:
        """Give the status, schema version 1."""
        if now > self.prompt_until:
            self.prompt = None
        report, prompt = self.report, self.prompt
        return {
            "ok": True,
            "phase": self.phase,
            "stage": report.stage,
            "reason": {"code": report.code, "text": report.reason},
            "profile": self.profile,
            "remote": self.remote(),
            "cipher": report.cipher,
            "tls": report.tls,
            "server_name": report.server_name,
            "device": report.device,
            "plane": {"name": report.plane, "why": report.plane_reason},
            "addresses": list(report.addresses),
            "dns": list(report.dns),
            "routes": list(report.routes),
            "mtu": report.mtu,
            "connected_for": round(max(now - report.connected_at, 0.0))
            if report.connected_at
            else 0,
            "attempt": report.attempt,
            "rekeys": report.rekeys,
            "counters": {
                "rx_packets": report.rx_packets,
                "rx_bytes": report.rx_bytes,
                "tx_packets": report.tx_packets,
                "tx_bytes": report.tx_bytes,
            },
            "drops": dict(report.drops),
            "refused": [list(item) for item in report.refused],
            "prompt": prompt
            and {
                "kind": prompt.kind,
                "text": prompt.prompt,
                "seconds": math.ceil(self.prompt_until - now),
            },
            "repairs": self.repairs,
            "culprit": self.culprit,
            "stopped": self.stopped,
            "resumes_in": self.resumes_in,
        }
