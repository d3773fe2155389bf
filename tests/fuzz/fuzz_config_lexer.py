"""Any text is words and blocks, or problems; what is quoted is read back."""

import contextlib

from qubes_vpn.config.lexer import Lexer, LineError, decode_text, split_line
from qubes_vpn.config.write import quoted

SEEDS = (
    b"client\nremote host 1194 udp # x\n<ca>\nA\n</ca>\n",
    b"\xef\xbb\xbfa \"b c\" 'd' \\\\e \\ f\r\n;\n",
    b"\xff\xfec\x00l\x00",
    b"<a>\n<b>\n</a>\n</b>",
)


def one_input(data: bytes) -> None:
    """Lex, and write the words again."""
    text = decode_text(data)
    lexer = Lexer(text, "f")
    for statement in lexer.statements():
        assert statement.line >= 1
        assert len(statement.columns) == len(statement.words)
        again = " ".join(map(quoted, statement.words))
        assert [word for word, _ in split_line(again)] == [*statement.words]
    for problem in lexer.problems:
        assert 1 <= problem.line <= text.count("\n") + 1
        assert str(problem).isprintable()
    with contextlib.suppress(LineError):
        split_line(text)
