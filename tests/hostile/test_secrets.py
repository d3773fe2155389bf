"""Secrets stay where they are: in source, in files, in a whole run."""

import ast

from tests.hostile.rows import ROOT

# What is compared byte by byte with something secret, by its usual names.
TAGS = {
    *("tag", "mac", "hmac", "digest", "expected", "cookie", "signature"),
    *("password", "token", "secret", "psk"),
}
PACKAGES = ("crypto", "engine", "dataplane", "runtime")


def named(node):
    """Give the last name of an expression."""
    match node:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value) | ast.Call(value):
            return named(value)
    return ""


def comparisons(tree):
    """Give every == and != with a tag on a side, constants apart."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        equal = any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
        words = {
            word for side in sides for word in named(side).split("_") if word
        }
        fixed = any(isinstance(side, ast.Constant) for side in sides)
        if equal and words & TAGS and not fixed:
            yield ast.unparse(node), node.lineno


def test_tags_meet_in_constant_time():
    found = [
        (str(path.relative_to(ROOT)), text)
        for package in PACKAGES
        for path in (ROOT / "qubes_vpn" / package).glob("*.py")
        for text, _ in comparisons(ast.parse(path.read_text()))
    ]
    assert found == []


def test_a_comparison_of_tags_is_found():
    bad = "if tag == expected: pass\nif packet.hmac[:8] != self._tag: pass"
    assert len(list(comparisons(ast.parse(bad)))) == 2
    good = "hmac.compare_digest(tag, expected)\nif size == 3: pass"
    assert not list(comparisons(ast.parse(good)))
