"""A Qubes network on one Linux machine, in network namespaces."""
