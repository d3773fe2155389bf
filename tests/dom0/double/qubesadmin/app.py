import contextlib
import socket
import subprocess

from qubesadmin import config, exc, vm


class Domains:
    def __init__(self, app):
        self.app = app
        self._klass = None

    def clear_cache(self):
        self._klass = None

    def _known(self):
        if self._klass is None:
            text = self.app.qubesd_call("dom0", "admin.vm.List").decode()
            lines = (line.split(" ") for line in text.splitlines())
            self._klass = {
                words[0]: words[1].removeprefix("class=") for words in lines
            }
        return self._klass

    def __contains__(self, name):
        return str(name) in self._known()

    def __getitem__(self, name):
        if str(name) not in self:
            raise KeyError(name)
        return self.get_blind(str(name))

    def get_blind(self, name):
        return vm.QubesVM(self.app, name, (self._klass or {}).get(name))

    def __iter__(self):
        return iter([self.get_blind(name) for name in sorted(self._known())])

    def __delitem__(self, name):
        self.app.qubesd_call(name, "admin.vm.Remove")
        self.clear_cache()


class QubesLocal(vm.Holder):
    qubesd_connection_type = "socket"

    def __init__(self):
        super().__init__(self, "admin.property.", "dom0")
        object.__setattr__(self, "domains", Domains(self))

    def qubesd_call(self, dest, method, arg=None, payload=None):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            try:
                client.connect(config.QUBESD_SOCKET)
            except OSError as error:
                raise exc.QubesDaemonCommunicationError(
                    "Failed to connect to qubesd service: %s", error
                ) from error
            header = f"{method}+{arg or ''} dom0 name {dest}\0"
            client.sendall(header.encode("ascii") + (payload or b""))
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                return self._parse(stream.read())

    @staticmethod
    def _parse(answer):
        if not answer:
            raise exc.QubesDaemonAccessError("Got empty response from qubesd")
        if answer.startswith(b"0\0"):
            return answer[2:]
        _, kind, _traceback, text, args = answer.decode().split("\0", 4)
        failure = getattr(exc, kind, exc.QubesException)
        raise failure(text, *args.split("\0")[:-1])

    def add_new_vm(self, cls, name, label, template=None):
        payload = f"name={name} label={label}"
        self.qubesd_call(
            "dom0", f"admin.vm.Create.{cls}", str(template), payload.encode()
        )
        self.domains.clear_cache()
        return self.domains[name]

    def run_service(self, dest, service, user=None, **kwargs):
        with contextlib.suppress(exc.QubesVMNotHaltedError):
            self.qubesd_call(dest, "admin.vm.Start")
        for stream in ("stdin", "stdout", "stderr"):
            kwargs.setdefault(stream, subprocess.PIPE)
        call = f"{user or 'DEFAULT'}:QUBESRPC {service} dom0"
        return subprocess.Popen(
            [config.QREXEC_CLIENT, "-d", dest, call], **kwargs
        )
