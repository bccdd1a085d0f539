from tools.pages.table import Cell, html_table, markdown_table

HEADER = ["", "a|b"]
ROWS = [["x & y", Cell("1.5", "1 to 2")], ["z", "-"]]


def test_html_and_markdown_say_the_same(texts):
    assert texts(html_table(HEADER, ROWS)) == ["a|b", "x & y", "1.5", "1 to 2", "z", "-"]
    assert markdown_table(HEADER, ROWS).splitlines() == [
        "| | a\\|b |", "|---|---|", "| x & y | 1.5 (1 to 2) |", "| z | - |"]


def test_a_cell_that_stands_out_carries_a_sign_in_both():
    rows = [[Cell("1.5", "1.2 to 2", marked=True), Cell("1")]]
    assert '<td class="marked">1.5 \N{DAGGER}<small>1.2 to 2</small></td><td>1</td>' in html_table(HEADER, rows)
    assert markdown_table(HEADER, rows).splitlines()[2] == "| 1.5 \N{DAGGER} (1.2 to 2) | 1 |"
