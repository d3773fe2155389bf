"""Steps that change the host: shown as qvm-* commands, done, or undone.

A plan is an iterator of steps. Each step is compared with what is there
before it is made, so a plan that has been done is empty when made again. If a
step fails, those before it are undone in reverse.
"""

import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from qubes_vpn.errors import VpnError

# qubesadmin comes with Qubes only, and has no type information there.
App: TypeAlias = Any
Qube: TypeAlias = Any
Say: TypeAlias = Callable[[str], None]
Command: TypeAlias = tuple[str, ...]

TAG_VPN = "qubes-vpn"
TAG_CLIENT = "qubes-vpn-client"
SERVICE_FEATURE = "service.qubes-vpn"
SUPPORTED_FEATURE = "supported-service.qubes-vpn"
PROFILE_FEATURE = "vm-config.vpn-profile"

EX_OK = 0
EX_FOUND = 1
EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_OSERR = 71
EX_NOPERM = 77


class AdminError(VpnError):
    """A command cannot go on. Names the qube, and what would help.

    code: the exit status.
    """

    def __init__(
        self, qube: str, problem: str, fix: str = "", code: int = EX_UNAVAILABLE
    ) -> None:
        super().__init__(f"{qube}: {problem}" if qube else problem)
        self.qube = qube
        self.fix = fix
        self.code = code


@dataclass(frozen=True, slots=True)
class Step:
    """One change.

    commands: the same change by Qubes' own tools, in their order.
    do: makes it. undo: takes it back; None when an earlier step's does.
    """

    commands: tuple[Command, ...]
    do: Callable[[], object]
    undo: Callable[[], object] | None = None


Plan: TypeAlias = Iterator[Step]


def show(step: Step) -> str:
    """Return the step as shell commands, one a line."""
    return "\n".join(shlex.join(command) for command in step.commands)


def perform(plan: Iterable[Step], say: Say, *, dry_run: bool) -> int:
    """Do the steps, or only show them. Returns how many there were.

    Whatever ends a plan early, the steps that were done are undone, last
    first, and the cause goes on to the caller.
    """
    done: list[Step] = []
    count = 0
    try:
        for step in plan:
            count += 1
            if dry_run:
                say(show(step))
                continue
            _do(step)
            done.append(step)
    except BaseException:
        _roll_back(done, say)
        raise
    return count


def _do(step: Step) -> None:
    try:
        step.do()
    except AdminError:
        raise
    except Exception as error:
        # the command names the qube, which qubesd's own words may not
        error.add_note(f"while: {show(step)}")
        raise


def _roll_back(done: list[Step], say: Say) -> None:
    for step in reversed(done):
        if step.undo is None:
            continue
        try:
            step.undo()
        except Exception as error:  # noqa: BLE001  the rest must be undone too
            say(f"could not undo `{show(step)}`: {error}")


class Host:
    """The host's state, and the steps from it to another.

    made: names of qubes that an earlier step of this plan makes; there is
    nothing to compare with yet, and removing them undoes everything.
    dry_run: the steps will only be shown, so nothing may be asked of a qube
    that they would have started.
    """

    def __init__(self, app: App, *, dry_run: bool = False) -> None:
        self.app = app
        self.dry_run = dry_run
        self.made: set[str] = set()

    def exists(self, name: str) -> bool:
        """Tell if there is such a qube now."""
        return name in self.app.domains

    def qube(self, name: str) -> Qube:
        """Return a qube. Raises AdminError when there is none."""
        if not self.exists(name):
            raise AdminError(
                name, "there is no such qube", "see `qvm-ls` for their names"
            )
        return self.app.domains[name]

    def vpn_qube(self, name: str) -> Qube:
        """Return a qube that is one of ours. Raises AdminError if not."""
        qube = self.qube(name)
        if TAG_VPN not in qube.tags:
            raise AdminError(
                name,
                "is not a VPN qube",
                f"`qvm-vpn create {name} ...` makes it one",
            )
        return qube

    def vpn_qubes(self) -> list[Qube]:
        """Return all VPN qubes, by name."""
        return [
            qube
            for qube in self.app.domains
            # a management qube may not ask about dom0
            if qube.klass != "AdminVM" and TAG_VPN in qube.tags
        ]

    def clients(self, name: str) -> list[Qube]:
        """Return the qubes whose net qube is `name`, by name."""
        return [
            qube
            for qube in self.app.domains
            if qube.klass != "AdminVM" and net_qube_name(qube) == name
        ]

    def set_property(self, name: str, key: str, value: object) -> Plan:
        """Set a property. value None: no qube."""
        text = "" if value is None else str(value)
        command = ("qvm-prefs", "--", name, key, text)
        if name in self.made:
            yield Step((command,), lambda: self._set(name, key, value))
            return
        qube = self.qube(name)
        before = getattr(qube, key, None)
        if ("" if before is None else str(before)) == text:
            return
        was_default = qube.property_is_default(key)

        def undo() -> None:
            if was_default:
                delattr(self.app.domains[name], key)
            else:
                self._set(name, key, before)

        yield Step((command,), lambda: self._set(name, key, value), undo)

    def _set(self, name: str, key: str, value: object) -> None:
        setattr(self.app.domains[name], key, value)

    def set_feature(self, name: str, feature: str, value: str | None) -> Plan:
        """Set a feature; None removes it."""
        before = (
            None
            if name in self.made
            else self.qube(name).features.get(feature, None)
        )
        if before == value:
            return
        command: Command = (
            ("qvm-features", name, feature, value)
            if value is not None
            else ("qvm-features", "--unset", name, feature)
        )
        yield Step(
            (command,),
            lambda: self._feature(name, feature, value),
            None
            if name in self.made
            else lambda: self._feature(name, feature, before),
        )

    def _feature(self, name: str, feature: str, value: str | None) -> None:
        features = self.app.domains[name].features
        if value is None:
            del features[feature]
        else:
            features[feature] = value

    def set_tag(self, name: str, tag: str, *, present: bool = True) -> Plan:
        """Add a tag, or take it away."""
        fresh = name in self.made
        before = not fresh and tag in self.qube(name).tags
        if before == present:
            return
        verb = "add" if present else "del"
        yield Step(
            (("qvm-tags", name, verb, tag),),
            lambda: self._tag(name, tag, present=present),
            None
            if name in self.made
            else lambda: self._tag(name, tag, present=not present),
        )

    def _tag(self, name: str, tag: str, *, present: bool) -> None:
        tags = self.app.domains[name].tags
        if present:
            tags.add(tag)
        else:
            tags.discard(tag)

    def start(self, name: str) -> Plan:
        """Start a qube that does not run."""
        if self.exists(name) and self.app.domains[name].is_running():
            return
        yield Step(
            (("qvm-start", "--skip-if-running", name),),
            lambda: self._start(name),
            lambda: self._kill(name),
        )

    def kill(self, name: str) -> Plan:
        """Stop a qube that runs, at once."""
        if not self.qube(name).is_running():
            return
        yield Step((("qvm-kill", name),), lambda: self._kill(name))

    def _start(self, name: str) -> None:
        # a name becomes a qube only when the step that makes it was done
        self.app.domains[name].start()

    def _kill(self, name: str) -> None:
        self.app.domains[name].kill()


def net_qube_name(qube: Qube) -> str:
    """Return the name of a qube's net qube, or nothing."""
    netvm = getattr(qube, "netvm", None)
    return "" if netvm is None else str(netvm)
