from tests.tools.run_folders import sample
from tools.pages.response import response


def test_each_piece_names_the_version_that_wrote_it(texts):
    assert texts(response(sample(1))) == [
        "1 + <1>?", "correct", ", reward 1.00, 7 tokens, ended by stop", "It", "v0.0", "is 2", "v0.1"]


def test_without_pieces_the_text_is_whole(texts):
    row = {key: value for key, value in sample(0).items() if key != "pieces"}
    assert texts(response(row))[-2:] == ["It is 2", "v0.0, 0.1"]
    assert "not judged: timeout" in texts(response({**row, "outcome": "timeout"}))
