"""Which names are this machine's alone: what is sent to them, or listens on them, stays on it."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host name or address (an IPv6 one without brackets) is loopback; names are not looked up."""
    name = host.lower().rstrip(".")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")  # RFC 6761
