from tools.pages.table import Cell, html_table, markdown_table

HEADER = ["", "a|b"]
ROWS = [["x & y", Cell("1.5", "1 to 2")], ["z", "-"]]


def test_html_and_markdown_say_the_same(texts):
    assert texts(html_table(HEADER, ROWS)) == ["a|b", "x & y", "1.5", "1 to 2", "z", "-"]
    assert markdown_table(HEADER, ROWS).splitlines() == [
        "| | a\\|b |", "|---|---|", "| x & y | 1.5 (1 to 2) |", "| z | - |"]
