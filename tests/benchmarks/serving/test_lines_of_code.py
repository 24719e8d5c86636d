"""Lines that a user of a rival writes."""

from __future__ import annotations

from benchmarks.serving.lines_of_code import count


def test_lines_to_write_are_neither_blank_nor_comment_nor_docstring():
    text = (
        '"""What.\n\nMore.\n"""\n\n# why\nx = 1  # this\n\n\n'
        'def f():\n    """Doc."""\n    return """a\nb"""\n'
    )
    assert count(text, ".py") == 4
    assert count('{\n\n"a": 1}\n', ".json") == 2
