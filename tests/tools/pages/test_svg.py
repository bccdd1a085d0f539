from tools.pages.svg import number, path, shortened, tag, text


def test_numbers_are_short():
    assert [number(value) for value in (3, 3.0, 3.14159, 0.1, -2.5)] == ["3", "3", "3.14", "0.1", "-2.5"]


def test_what_a_user_wrote_is_no_markup(texts):
    assert texts(text("<b>&", 1, 2) + tag("g", title='"<')) == ["<b>&"]


def test_a_path_goes_through_its_points():
    assert path([(0, 1), (2, 3.5)], class_="axis") == '<path d="M0 1L2 3.5" class="axis"></path>'


def test_long_words_are_cut_and_say_so():
    assert shortened("abcdef", 4) == "abc\u2026"
    assert shortened("abcd", 4) == "abcd"
