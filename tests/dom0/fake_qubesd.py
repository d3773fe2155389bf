"""A stand-in for qubesd: its wire protocol on a unix socket, and its rules.

Request: `METHOD+ARG SRC name DEST\\0PAYLOAD`, then end of file. Response:
`0\\0DATA`; `2\\0TYPE\\0TRACEBACK\\0MESSAGE\\0`; for events, repeated,
`1\\0SUBJECT\\0EVENT\\0(KEY\\0VALUE\\0)*\\0`; and no bytes at all when the
call is not permitted, malformed or unknown. An unknown call is also noted in
`unknown`, which the tests require to be empty. Source: qubes-core-admin,
qubes/api/__init__.py and admin.py; captured from the real server.
"""

import ipaddress
import queue
import re
import socketserver
import threading
import uuid
from dataclasses import dataclass, field

SIZE_MAX = 65536
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}")
FEATURE = re.compile(r"[a-zA-Z0-9_.-]+")
TAG = re.compile(r"[A-Za-z0-9_-]+")
LABELS = ("red", "orange", "yellow", "green", "gray", "blue", "purple", "black")
TYPES = {
    "netvm": "vm",
    "template": "vm",
    "default_dispvm": "vm",
    "label": "label",
    "provides_network": "bool",
    "autostart": "bool",
    "template_for_dispvms": "bool",
    "memory": "int",
    "ip": "str",
    "name": "str",
    "klass": "str",
    "qrexec_timeout": "int",
}
GLOBAL_TYPES = dict.fromkeys(
    ("default_netvm", "default_dispvm", "updatevm", "clockvm"), "vm"
)
RULE_WORDS = (
    *("dst4", "dst6", "dsthost", "proto", "dstports", "icmptype"),
    *("specialtarget", "expire"),
)
READ_ONLY = ("ip", "klass", "name")


class DeniedError(Exception):
    """Answered with no bytes."""


class QubesError(Exception):
    """Answered with the exception `kind`."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


@dataclass
class Vm:
    name: str
    klass: str = "AppVM"
    label: str = "red"
    template: str = ""
    state: str = "Halted"
    values: dict = field(default_factory=dict)
    features: dict = field(default_factory=dict)
    tags: set = field(default_factory=set)
    firewall: list = field(default_factory=lambda: ["action=accept"])
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))


def firewall_rule(line):
    """Check one rule and put its words in the server's order."""
    line, comma, comment = line.partition(" comment=")
    words = dict(word.split("=", 1) for word in line.split(" "))
    if words.pop("action", None) not in ("accept", "drop"):
        raise DeniedError
    action = line.split(" ")[0]
    if not action.startswith("action="):
        raise DeniedError
    out = [action]
    out.extend(
        f"{key}={_rule_word(key, words.pop(key), line)}"
        for key in RULE_WORDS
        if key in words
    )
    if words:
        raise DeniedError
    return " ".join(out) + (comma + comment)


def _rule_word(key, value, line):
    if key in ("dst4", "dst6"):
        network = ipaddress.ip_network(value)
        if network.version != int(key[-1]):
            raise DeniedError
        return str(network)
    if key == "dstports":
        first, _, last = value.partition("-")
        if "proto=" not in line or not 0 < int(first) <= int(last) < 65536:
            raise DeniedError
    elif (
        (key == "proto" and value not in ("tcp", "udp", "icmp"))
        or (key == "specialtarget" and value != "dns")
        or (key == "expire" and not value.isdigit())
    ):
        raise DeniedError
    return value


class Qubesd:
    """The model, and the server around it."""

    def __init__(self):
        self.vms = {"dom0": Vm("dom0", klass="AdminVM", state="Running")}
        self.values = {}
        self.calls = []
        self.unknown = []
        self.deny = set()
        # permit(method, arg, dest) -> bool: the policy for another caller
        self.permit = lambda *_: True
        self.creator = "dom0"
        self.fail = {}
        self.listeners = []
        self.lock = threading.RLock()
        self.disposables = 0

    def add(self, name, **values):
        vm = Vm(name, **values)
        self.vms[name] = vm
        return vm

    # --- the protocol -----------------------------------------------------

    def answer(self, request):
        header, zero, payload = request.partition(b"\0")
        if not zero or len(request) > SIZE_MAX:
            return b""
        call, _source, kind, dest = header.decode("ascii").split(" ")
        method, _, arg = call.partition("+")
        if kind not in ("name", "keyword"):
            return b""
        with self.lock:
            return self._answer(method, arg, dest, payload)

    def _answer(self, method, arg, dest, payload):
        self.calls.append((dest, method, arg, payload))
        if {(method, dest), (method, arg), (method, "*")} & self.deny:
            return b""
        if not self.permit(method, arg, dest):
            return b""
        failure = self.fail.get((method, dest)) or self.fail.get((method, arg))
        handler = getattr(self, "_" + method.replace(".", "_"), None)
        if handler is None and method.startswith("admin.vm.Create."):
            handler = self._create
            arg = f"{method.rpartition('.')[2]}+{arg}"
        if handler is None:
            self.unknown.append((dest, method, arg, payload))
            return b""
        try:
            if failure:
                raise QubesError(*failure)
            return b"0\0" + handler(dest, arg, payload)
        except QubesError as error:
            text = f"2\0{error.kind}\0\0{str(error).replace('%', '%%')}\0"
            return text.encode()
        except (DeniedError, ValueError):
            return b""

    def fire(self, subject, event, **values):
        parts = ["1", subject, event]
        for key, value in values.items():
            parts += [key, str(value)]
        message = "\0".join([*parts, "", ""]).encode()
        for listener in list(self.listeners):
            listener.put(message)

    def _vm(self, name):
        try:
            return self.vms[name]
        except KeyError:
            raise QubesError(
                "QubesVMNotFoundError", f"No such domain: '{name}'"
            ) from None

    # --- calls about all --------------------------------------------------

    def _admin_vm_List(self, dest, arg, payload):  # noqa: N802
        if arg or payload:
            raise DeniedError
        names = self.vms if dest == "dom0" else [self._vm(dest).name]
        return "".join(
            f"{vm.name} class={vm.klass} state={vm.state} uuid={vm.uuid}\n"
            for vm in (self.vms[name] for name in sorted(names))
        ).encode()

    def _create(self, dest, arg, payload):
        klass, _, template = arg.partition("+")
        words = dict(w.split("=", 1) for w in payload.decode().split(" "))
        name, label = words.pop("name"), words.pop("label")
        if dest != "dom0" or words or not NAME.fullmatch(name):
            raise DeniedError
        if klass not in ("AppVM", "DispVM") or label not in LABELS:
            raise DeniedError
        if name in self.vms:
            raise QubesError("QubesValueError", f"VM {name} already exists")
        wanted = "TemplateVM" if klass == "AppVM" else "AppVM"
        if self._vm(template).klass != wanted:
            raise QubesError("QubesValueError", "wrong template")
        self.add(name, klass=klass, label=label, template=template)
        self.vms[name].tags.add(f"created-by-{self.creator}")
        self.fire("", "domain-add", vm=name)
        return b""

    def _admin_vm_CreateDisposable(self, dest, arg, payload):  # noqa: N802
        template = self.values.get("default_dispvm") if dest == "dom0" else dest
        if not template:
            raise QubesError("QubesValueError", "no default disposable")
        self.disposables += 1
        name = f"disp{self.disposables}"
        self.add(name, klass="DispVM", template=template)
        return name.encode()

    def _admin_vm_Remove(self, dest, arg, payload):  # noqa: N802
        vm = self._vm(dest)
        if vm.state != "Halted":
            raise QubesError("QubesVMNotHaltedError", f"{dest} is running")
        users = [v.name for v in self.vms.values() if self._netvm(v) == dest]
        if users:
            raise QubesError("QubesVMInUseError", f"used by {users}")
        del self.vms[dest]
        self.fire("", "domain-delete", vm=dest)
        return b""

    def _admin_label_List(self, dest, arg, payload):  # noqa: N802
        return "".join(f"{label}\n" for label in LABELS).encode()

    def _admin_label_Get(self, dest, arg, payload):  # noqa: N802
        return b"0xcc0000"

    # --- power ------------------------------------------------------------

    def _admin_vm_Start(self, dest, arg, payload):  # noqa: N802
        vm = self._vm(dest)
        if vm.state != "Halted":
            raise QubesError("QubesVMNotHaltedError", f"{dest} is running")
        vm.state = "Running"
        self.fire(dest, "domain-start", start_guid="True")
        return b""

    def _admin_vm_Shutdown(self, dest, arg, payload):  # noqa: N802
        return self._admin_vm_Kill(dest, arg, payload)

    def _admin_vm_Kill(self, dest, arg, payload):  # noqa: N802
        vm = self._vm(dest)
        if vm.state == "Halted":
            raise QubesError("QubesVMNotStartedError", f"{dest} is halted")
        vm.state = "Halted"
        if vm.name.startswith("disp") and vm.name[4:].isdigit():
            del self.vms[dest]
        return b""

    def _admin_vm_CurrentState(self, dest, arg, payload):  # noqa: N802
        state = self._vm(dest).state
        return f"mem=0 mem_static_max=0 cputime=0 power_state={state}".encode()

    # --- properties -------------------------------------------------------

    def _netvm(self, vm):
        if vm.klass in ("AdminVM", "TemplateVM"):
            return vm.values.get("netvm", "")
        if "netvm" in vm.values:
            return vm.values["netvm"]
        if vm.klass == "DispVM":
            return self._netvm(self.vms[vm.template])
        return self.values.get("default_netvm", "")

    def _value(self, vm, key):
        """Return (is default, value as text)."""
        if key == "netvm":
            return "netvm" not in vm.values, self._netvm(vm)
        fixed = {"template": vm.template, "label": vm.label, "name": vm.name}
        if key in fixed:
            if not fixed[key]:
                raise self._no_property(key, vm.name)
            return False, fixed[key]
        if key in vm.values:
            return False, vm.values[key]
        if key == "default_dispvm":
            return True, self.values.get("default_dispvm", "")
        defaults = {
            "memory": "400",
            "ip": "10.137.0.9",
            "klass": vm.klass,
            "qrexec_timeout": "60",
        }
        return True, defaults.get(key, "False")

    @staticmethod
    def _no_property(key, where):
        return QubesError(
            "QubesNoSuchPropertyError", f"Invalid property '{key}' of {where}"
        )

    def _admin_vm_property_List(self, dest, arg, payload):  # noqa: N802
        return "".join(f"{key}\n" for key in TYPES).encode()

    def _admin_vm_property_Get(self, dest, arg, payload):  # noqa: N802
        vm = self._vm(dest)
        if arg not in TYPES or vm.klass == "AdminVM":
            raise self._no_property(arg, dest)
        default, value = self._value(vm, arg)
        return f"default={default} type={TYPES[arg]} {value}".encode()

    def _admin_vm_property_Set(self, dest, arg, payload):  # noqa: N802
        vm, value = self._vm(dest), payload.decode("ascii")
        if arg not in TYPES or vm.klass == "AdminVM":
            raise self._no_property(arg, dest)
        if arg in READ_ONLY:
            raise QubesError("QubesPropertyValueError", "read only")
        self._check(vm, arg, value)
        old = self._value(vm, arg)[1]
        if arg == "label":
            vm.label = value
        else:
            vm.values[arg] = value
        self.fire(
            dest, f"property-set:{arg}", name=arg, newvalue=value, oldvalue=old
        )
        return b""

    def _check(self, vm, key, value):
        kind = TYPES[key]
        if kind == "bool" and value not in ("True", "False"):
            raise DeniedError
        if kind == "int" and not value.isdigit():
            raise DeniedError
        if kind == "label" and value not in LABELS:
            raise DeniedError
        if kind == "vm" and value and value not in self.vms:
            raise QubesError("QubesVMNotFoundError", value)
        if key == "netvm" and value:
            self._check_netvm(vm, value)
        if key == "provides_network" and value == "False":
            users = [
                v.name for v in self.vms.values() if self._netvm(v) == vm.name
            ]
            if users:
                raise QubesError("QubesValueError", f"used by {users}")

    def _check_netvm(self, vm, value):
        if self._value(self.vms[value], "provides_network")[1] != "True":
            raise QubesError(
                "QubesValueError", f"{value} does not provide network"
            )
        above = value
        while above:
            if above == vm.name:
                raise QubesError("QubesValueError", "Loops in network")
            above = self._netvm(self.vms[above])

    def _admin_vm_property_Reset(self, dest, arg, payload):  # noqa: N802
        vm = self._vm(dest)
        if arg not in TYPES:
            raise self._no_property(arg, dest)
        old = self._value(vm, arg)[1]
        vm.values.pop(arg, None)
        self.fire(dest, f"property-reset:{arg}", name=arg, oldvalue=old)
        return b""

    def _admin_property_Get(self, dest, arg, payload):  # noqa: N802
        if dest != "dom0":
            raise DeniedError
        if arg not in GLOBAL_TYPES:
            raise self._no_property(arg, "dom0")
        value = self.values.get(arg, "")
        return f"default={arg not in self.values} type=vm {value}".encode()

    def _admin_property_Set(self, dest, arg, payload):  # noqa: N802
        if arg not in GLOBAL_TYPES:
            raise self._no_property(arg, "dom0")
        self.values[arg] = payload.decode()
        return b""

    def _admin_property_Reset(self, dest, arg, payload):  # noqa: N802
        self.values.pop(arg, None)
        return b""

    # --- features, tags, firewall -----------------------------------------

    def _admin_vm_feature_List(self, dest, arg, payload):  # noqa: N802
        return "".join(f"{key}\n" for key in self._vm(dest).features).encode()

    def _admin_vm_feature_Get(self, dest, arg, payload):  # noqa: N802
        return self._feature(self._vm(dest), arg).encode()

    def _feature(self, vm, key):
        try:
            return vm.features[key]
        except KeyError:
            raise QubesError("QubesFeatureNotFoundError", key) from None

    def _admin_vm_feature_CheckWithTemplate(  # noqa: N802
        self, dest, arg, payload
    ):
        vm = self._vm(dest)
        while arg not in vm.features and vm.template:
            vm = self.vms[vm.template]
        return self._feature(vm, arg).encode()

    def _admin_vm_feature_Set(self, dest, arg, payload):  # noqa: N802
        vm, value = self._vm(dest), payload.decode("ascii")
        if not FEATURE.fullmatch(arg):
            raise DeniedError
        if arg.startswith("service.") and len(arg) > 48 + len("service."):
            raise QubesError("QubesValueError", "service name too long")
        vm.features[arg] = value
        self.fire(dest, f"domain-feature-set:{arg}", feature=arg, value=value)
        return b""

    def _admin_vm_feature_Remove(self, dest, arg, payload):  # noqa: N802
        vm = self._vm(dest)
        self._feature(vm, arg)
        del vm.features[arg]
        self.fire(dest, f"domain-feature-delete:{arg}", feature=arg)
        return b""

    def _admin_vm_tag_List(self, dest, arg, payload):  # noqa: N802
        return "".join(f"{t}\n" for t in sorted(self._vm(dest).tags)).encode()

    def _admin_vm_tag_Get(self, dest, arg, payload):  # noqa: N802
        return b"1" if arg in self._vm(dest).tags else b"0"

    def _admin_vm_tag_Set(self, dest, arg, payload):  # noqa: N802
        if not TAG.fullmatch(arg):
            raise DeniedError
        self._vm(dest).tags.add(arg)
        self.fire(dest, f"domain-tag-add:{arg}", tag=arg)
        return b""

    def _admin_vm_tag_Remove(self, dest, arg, payload):  # noqa: N802
        try:
            self._vm(dest).tags.remove(arg)
        except KeyError:
            raise QubesError("QubesTagNotFoundError", arg) from None
        return b""

    def _admin_vm_firewall_Get(self, dest, arg, payload):  # noqa: N802
        return "".join(f"{r}\n" for r in self._vm(dest).firewall).encode()

    def _admin_vm_firewall_Set(self, dest, arg, payload):  # noqa: N802
        lines = payload.decode("ascii").splitlines()
        self._vm(dest).firewall = [firewall_rule(line) for line in lines]
        self.fire(dest, "firewall-changed")
        return b""

    def _admin_vm_firewall_Reload(self, dest, arg, payload):  # noqa: N802
        self._vm(dest)
        return b""


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        model = self.server.model
        request = self.rfile.read()
        if request.startswith(b"admin.Events+ "):
            self._events(model)
        else:
            self.wfile.write(model.answer(request))

    def _events(self, model):
        mine = queue.SimpleQueue()
        model.listeners.append(mine)
        self.wfile.write(b"1\0\0connection-established\0\0")
        self.wfile.flush()
        try:
            while (message := mine.get()) is not None:
                self.wfile.write(message)
                self.wfile.flush()
        except OSError:
            pass  # the listener went away
        finally:
            model.listeners.remove(mine)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


def serve(model, path):
    """Serve until the returned function is called."""
    server = _Server(str(path), _Handler)
    server.model = model
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}
    )
    thread.start()

    def stop():
        for listener in list(model.listeners):
            listener.put(None)
        server.shutdown()
        thread.join()
        server.server_close()

    return stop
