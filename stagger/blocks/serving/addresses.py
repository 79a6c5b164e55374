"""The address at which a server can be reached: of the interface that is named, or of the route to where others are."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from stagger.errors import StaggerError

#: ioctl(2) that returns the IPv4 address of an interface, netdevice(7).
SIOCGIFADDR = 0x8915

#: An address of TEST-NET-1 (RFC 5737), which nobody has: the route there is the default route. Nothing is sent to it.
FAR_AWAY = "192.0.2.1"


def own_address(interface: str | None = None, towards: str | None = None) -> str:
    """The IPv4 address of `interface`, or the one that packets to the host `towards`, or far away, leave from.

    A machine without a route has the address of its own name. Raises StaggerError when there is no such interface, or
    it has no address.
    """
    if interface is not None:
        return address_of(interface)
    return _route(towards or FAR_AWAY) or _route(FAR_AWAY) or _of_name()


def address_of(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        request = struct.pack("256s", os.fsencode(interface)[:15])
        try:
            answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, request)
        except OSError as error:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise StaggerError(
                f"the interface {interface} has no IPv4 address here ({error.strerror}). This machine has the "
                f"interfaces {names}."
            ) from None
    return socket.inet_ntoa(answer[20:24])


def _route(host: str) -> str | None:
    """The address that packets to `host` leave from. Connecting a datagram socket sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((host, 9))
            return str(asking.getsockname()[0])
    except OSError:
        return None


def _of_name() -> str:
    try:
        return socket.gethostbyname(os.uname().nodename)
    except OSError:
        return "127.0.0.1"
