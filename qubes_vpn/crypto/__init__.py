"""Bytes to bytes under keys; the only importer of OpenSSL."""
