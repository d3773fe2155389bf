"""Benchmarks: our client against OpenVPN's, with the same server and lab."""
