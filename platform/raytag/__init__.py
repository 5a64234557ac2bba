"""Raytag: named entity recognition with LoRA+ adapters, trained, run and served on Ray."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raytag.client import AsyncClient as AsyncClient
    from raytag.client import Client as Client
    from raytag.client import ServiceError as ServiceError

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """The clients and their error, read when first asked for: importing the package stays light."""
    if name not in {"AsyncClient", "Client", "ServiceError"}:
        raise AttributeError(f"module 'raytag' has no attribute {name!r}")
    from raytag import client

    return getattr(client, name)
