"""The OpenVPN protocol, without input or output."""
