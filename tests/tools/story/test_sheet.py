import pytest

from tests.tools.run_folders import sample, write_run
from tools.story.folder import RunStory
from tools.story.sheet import chosen_samples, run_sheet


@pytest.mark.parametrize("whole", [True, False])
def test_a_page_holds_everything_that_is_there(tmp_path, whole):
    page = run_sheet(RunStory.read(write_run(tmp_path / "run", whole=whole)))
    for part in ("Timeline", "Held-out accuracy", "Staleness", "carried loss", "masked: zero advantage", "v0.1",
                 "Generated against trained", "1 + &lt;1&gt;?"):
        assert part in page, part
    assert ("was cut off" in page) is not whole


def test_samples_come_from_the_whole_run_right_and_wrong():
    rows = [sample(key) for key in range(100)]
    chosen = chosen_samples(rows, 10)
    assert len(chosen) == 10
    assert [row["trajectory"] // 10 for row in chosen] == list(range(10))
    assert [row["correct"] for row in chosen] == [True, False] * 5
    assert chosen_samples([]) == []
