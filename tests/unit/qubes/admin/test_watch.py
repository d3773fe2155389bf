"""`qvm-vpn watch`: real events from the socket, and what follows."""

import asyncio

import pytest
import qubesadmin

from qubes_vpn.qubes.admin.watch import Watcher, watch


class Running:
    """A watcher in a loop of its own, with what it said so far."""

    def __init__(self, host, *, restore):
        self.host = host
        self.lines = asyncio.Queue()
        self.watcher = Watcher(
            qubesadmin.app.QubesLocal(), self.lines.put_nowait, restore=restore
        )

    async def __aenter__(self):
        self.task = asyncio.create_task(watch(self.watcher))
        return self

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def line(self):
        async with asyncio.timeout(20):
            return await self.lines.get()

    async def call(self, *call):
        return await asyncio.to_thread(self.host.model._answer, *call)


def set_netvm(name, value):
    return "admin.vm.property.Set", "netvm", name, value.encode()


@pytest.fixture
def watched(vpn):
    vpn.run("assign", "sys-vpn", "work")
    return vpn


def test_a_qube_that_leaves_is_reported(watched):
    async def scene():
        async with Running(watched, restore=False) as running:
            assert await running.line() == "work: behind sys-vpn"
            await running.call(*set_netvm("work", "sys-firewall"))
            assert (
                await running.line()
                == "work: LEFT THE VPN, behind sys-firewall now"
            )
            assert "qvm-vpn assign sys-vpn work" in await running.line()
        assert watched.model.vms["work"].values["netvm"] == "sys-firewall"

    asyncio.run(scene())


def test_a_qube_that_leaves_is_put_back(watched):
    async def scene():
        async with Running(watched, restore=True) as running:
            await running.line()
            await running.call(*set_netvm("work", "sys-firewall"))
            await running.line()
            assert await running.line() == "    put back behind sys-vpn"
        assert watched.model.vms["work"].values["netvm"] == "sys-vpn"

    asyncio.run(scene())


def test_a_reset_to_the_default_is_seen_too(watched):
    async def scene():
        async with Running(watched, restore=True) as running:
            await running.line()
            await running.call("admin.vm.property.Reset", "netvm", "work", b"")
            assert "LEFT THE VPN" in await running.line()
            assert "put back" in await running.line()

    asyncio.run(scene())


def test_no_network_and_other_qubes_are_no_alarm(watched):
    async def scene():
        async with Running(watched, restore=True) as running:
            await running.line()
            await running.call(*set_netvm("personal", "sys-net"))
            await running.call(*set_netvm("work", ""))
            assert await running.line() == "work: has no network now"

    asyncio.run(scene())


def test_the_lock_being_turned_off_is_reported(watched):
    async def scene():
        async with Running(watched, restore=False) as running:
            await running.line()
            name = "service.qubes-vpn"
            await running.call("admin.vm.feature.Remove", name, "sys-vpn", b"")
            assert "turned off" in await running.line()
            rules = b"action=accept\n"
            await running.call("admin.vm.firewall.Set", "", "sys-vpn", rules)
            assert "firewall rules changed" in await running.line()

    asyncio.run(scene())


def test_a_qube_that_had_left_before_is_not_put_back_by_guessing(watched):
    watched.model.vms["work"].values["netvm"] = "sys-firewall"

    async def scene():
        async with Running(watched, restore=True) as running:
            assert "LEFT THE VPN" in await running.line()
            assert "not put back" in await running.line()

    asyncio.run(scene())
