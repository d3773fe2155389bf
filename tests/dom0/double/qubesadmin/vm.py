import contextlib
import subprocess

from qubesadmin import exc, firewall, utils


class Holder:
    """Properties are attributes that are asked for each time."""

    def __init__(self, app, prefix, dest):
        object.__setattr__(self, "app", app)
        object.__setattr__(self, "_prefix", prefix)
        object.__setattr__(self, "_dest", dest)

    def qubesd_call(self, dest, method, arg=None, payload=None):
        return self.app.qubesd_call(dest or self._dest, method, arg, payload)

    def _get(self, name):
        answer = self.qubesd_call(self._dest, f"{self._prefix}Get", name)
        default, kind, value = answer.decode().split(" ", 2)
        return default == "default=True", kind, value

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            _default, kind, value = self._get(name)
        except exc.QubesVMNotFoundError as error:
            raise exc.QubesPropertyAccessError(name) from error
        if kind == "type=vm":
            return self.app.domains.get_blind(value) if value else None
        if kind == "type=bool":
            return value == "True"
        return int(value) if kind == "type=int" else value

    def property_is_default(self, name):
        return self._get(name)[0]

    def __setattr__(self, name, value):
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        text = "" if value is None else str(value)
        method = f"{self._prefix}Set"
        self.qubesd_call(self._dest, method, name, text.encode())

    def __delattr__(self, name):
        self.qubesd_call(self._dest, f"{self._prefix}Reset", name)


class Features:
    def __init__(self, vm):
        self.vm = vm

    def __getitem__(self, key):
        return self.vm.qubesd_call(None, "admin.vm.feature.Get", key).decode()

    def __setitem__(self, key, value):
        text = ("1" if value else "") if isinstance(value, bool) else str(value)
        self.vm.qubesd_call(None, "admin.vm.feature.Set", key, text.encode())

    def __delitem__(self, key):
        self.vm.qubesd_call(None, "admin.vm.feature.Remove", key)

    def get(self, key, default=None):
        try:
            return self[key]
        except KeyError:
            return default


class Tags:
    def __init__(self, vm):
        self.vm = vm

    def __contains__(self, tag):
        return self.vm.qubesd_call(None, "admin.vm.tag.Get", tag) == b"1"

    def add(self, tag):
        self.vm.qubesd_call(None, "admin.vm.tag.Set", tag)

    def discard(self, tag):
        with contextlib.suppress(KeyError):
            self.vm.qubesd_call(None, "admin.vm.tag.Remove", tag)


class QubesVM(Holder):
    def __init__(self, app, name, klass=None):
        super().__init__(app, "admin.vm.property.", name)
        self._klass = klass
        for key, value in (
            ("features", Features(self)),
            ("tags", Tags(self)),
            ("firewall", firewall.Firewall(self)),
        ):
            object.__setattr__(self, key, value)

    @property
    def name(self):
        return self._dest

    @property
    def klass(self):
        if self._klass is None:
            line = self.qubesd_call(None, "admin.vm.List").decode()
            self._klass = line.split(" ")[1].removeprefix("class=")
        return self._klass

    def __str__(self):
        return self._dest

    def __eq__(self, other):
        return str(self) == str(other)

    def __hash__(self):
        return hash(self._dest)

    def start(self):
        self.qubesd_call(None, "admin.vm.Start")

    def kill(self):
        self.qubesd_call(None, "admin.vm.Kill")

    def is_running(self):
        answer = self.qubesd_call(None, "admin.vm.CurrentState").decode()
        state = dict(part.split("=", 1) for part in answer.split())
        return state["power_state"] not in ("Halted", "NA")

    def run_service(self, service, **kwargs):
        return self.app.run_service(self._dest, service, **kwargs)

    def run_service_for_stdio(self, service, input=None, **kwargs):  # noqa: A002
        with self.run_service(service, **kwargs) as process:
            out, err = process.communicate(input)
        if process.returncode:
            raise subprocess.CalledProcessError(
                process.returncode, service, out, err
            )
        return out, err

    def run_with_args(self, *args, **kwargs):
        service = f"qubes.VMExec+{utils.encode_for_vmexec(args)}"
        return self.run_service_for_stdio(service, **kwargs)


class DispVM(QubesVM):
    @classmethod
    def from_appvm(cls, app, appvm):
        return cls(app, f"@dispvm:{appvm}" if appvm else "@dispvm")

    def create_disposable(self):
        template = self._dest.removeprefix("@dispvm").lstrip(":")
        answer = self.app.qubesd_call(
            template or "dom0", "admin.vm.CreateDisposable"
        )
        self._dest = answer.decode("ascii")
        self.app.domains.clear_cache()
        return self

    def cleanup(self):
        if not self._dest.startswith("@dispvm"):
            with contextlib.suppress(exc.QubesVMNotStartedError):
                self.kill()
