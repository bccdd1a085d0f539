import re

from tools.pages.page import bullets, figure, grid, legend, section, sheet, tiles


def test_a_sheet_fetches_nothing_and_escapes_what_it_is_told():
    body = section("<S>", "<t>", grid([figure("<f>", "<c>", "<svg></svg>")]), legend(["<l>"]), bullets(["<b>"]),
                   tiles([("<v>", "<n>")]))
    page = sheet("<title>", "<under>", [body])
    for name in ("S", "t", "f", "c", "l", "b", "v", "n", "under"):
        assert f"&lt;{name}&gt;" in page
    assert not re.search(r"https?:|src=|href=|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page


def test_no_notes_are_no_list():
    assert bullets([]) == ""
