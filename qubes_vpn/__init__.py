"""A Qubes OS net qube whose traffic goes through the VPN, or nowhere."""

__version__ = "0.1.0"
