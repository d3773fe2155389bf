"""The process that holds the privileges and parses no network data."""
