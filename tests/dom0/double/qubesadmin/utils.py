import re


def encode_for_vmexec(args):
    def encode(part):
        if part[0] == b"-":
            return b"--"
        return b"-%02X" % ord(part[0])

    return b"+".join(
        re.sub(rb"[^a-zA-Z0-9_.]", encode, arg.encode()) for arg in args
    ).decode("ascii")
