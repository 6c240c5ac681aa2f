"""A client of a Reseen server, for programs and for `reseen query`."""

from serve.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
