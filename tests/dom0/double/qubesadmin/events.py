import asyncio
import fnmatch

from qubesadmin import config


class EventsDispatcher:
    def __init__(self, app, api_method="admin.Events", enable_cache=True):
        self.app = app
        self._method = api_method
        self._handlers = []

    def add_handler(self, event, handler):
        self._handlers.append((event, handler))

    async def listen_for_events(self):
        reader, writer = await asyncio.open_unix_connection(
            config.QUBESD_SOCKET
        )
        writer.write(f"{self._method}+ dom0 name dom0\0".encode())
        writer.write_eof()
        try:
            while await reader.readuntil(b"\0") == b"1\0":
                await self._one(reader)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def _one(self, reader):
        async def word():
            return (await reader.readuntil(b"\0"))[:-1].decode()

        subject, event, values = await word(), await word(), {}
        while key := await word():
            values[key] = await word()
        vm = self.app.domains.get_blind(subject) if subject else None
        if event in ("domain-add", "domain-delete", "connection-established"):
            self.app.domains.clear_cache()
        for pattern, handler in self._handlers:
            if fnmatch.fnmatch(event, pattern):
                handler(vm, event, **values)
