import json
import logging

import pytest

from engine.config.prompts import PromptsConfig, PromptSource
from engine.errors import ConfigError, PromptError
from engine.prompts.prompt_set import PromptSet, load_prompts
from engine.records.prompt import Message, Prompt

TWO_TERMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 200 questions
WIDE = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}


def task_config(num_train, num_heldout, options=None, **others):
    return PromptsConfig(
        task_options=WIDE if options is None else options,
        num_train=num_train,
        num_heldout=num_heldout,
        **others,
    )


def file_config(path, **others):
    return PromptsConfig(source=PromptSource.file, path=str(path), **others)


def write_questions(path, numbers, prefix=""):
    rows = [
        {"question": f"{prefix}What is {n} + {n}?", "answer": str(2 * n), "id": str(n)} for n in numbers
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def ids(prompts):
    return [prompt.prompt_id for prompt in prompts]


def digests(prompts):
    return {prompt.question_digest() for prompt in prompts}


def dotted_prompts(config):
    return [Prompt.ask(f"d/{n}", f"question {n}", str(n)) for n in range(config.num_train)]


def dotted_numbers(config):
    return [1, 2]


def test_task_split_is_whole_disjoint_and_repeatable():
    config = task_config(100, 30)
    prompts = load_prompts(config)
    assert (len(prompts.train), len(prompts.heldout)) == (100, 30)
    assert not digests(prompts.train) & digests(prompts.heldout)
    assert load_prompts(config) == prompts
    assert load_prompts(task_config(100, 30, seed=1)).heldout != prompts.heldout


def test_heldout_does_not_depend_on_the_number_of_training_prompts():
    few, many = load_prompts(task_config(5, 20)), load_prompts(task_config(400, 20))
    assert few.heldout == many.heldout
    assert few.train == many.train[:5]
    assert load_prompts(task_config(5, 10)).heldout == few.heldout[:10]


def test_no_question_changes_sides_when_the_space_runs_out(caplog):
    few = load_prompts(task_config(10, 60, TWO_TERMS))
    with caplog.at_level(logging.WARNING):
        all_of_it = load_prompts(task_config(1000, 60, TWO_TERMS))
    assert few.heldout == all_of_it.heldout
    assert len(all_of_it.train) == 140
    assert "200 different questions: 60 held out, 140 left to train on (asked for 1000)" in caplog.text


def test_a_space_too_small_for_the_heldout_set_is_an_error():
    load_prompts(task_config(10, 199, TWO_TERMS))
    with pytest.raises(PromptError, match=r"200 different questions.*needs at least 201"):
        load_prompts(task_config(10, 200, TWO_TERMS))


def test_must_match_reaches_the_task():
    prompts = load_prompts(task_config(20, 5, must_match="^[^-]*$"))
    assert all("-" not in prompt.messages[0].content for prompt in prompts.by_id.values())
    with pytest.raises(ConfigError, match=r"prompts\.must_match.*not a regular expression"):
        task_config(20, 5, must_match="(")


def test_instruction_and_system_frame_every_prompt():
    plain = load_prompts(task_config(5, 3))
    framed = load_prompts(task_config(5, 3, instruction="Think first.", system="You add."))
    for before, after in zip(plain.train + plain.heldout, framed.train + framed.heldout, strict=True):
        assert after.messages == (
            Message("system", "You add."),
            Message("user", before.messages[0].content + "\n\nThink first."),
        )
        assert after.prompt_id == before.prompt_id


def test_a_system_message_of_the_row_is_joined(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "1!"},
        {"role": "user", "content": "2?"},
    ]
    rows = [
        {"messages": [*turns[:3], {"role": "user", "content": f"{n}?"}], "answer": "1"} for n in range(2)
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    prompts = load_prompts(file_config(path, num_heldout=1, instruction="Go.", system="You add."))
    for prompt in prompts.by_id.values():
        assert prompt.messages[0] == Message("system", "You add.\n\nBe brief.")
        assert [m.content.endswith("\n\nGo.") for m in prompt.messages] == [False, True, False, True]
        assert [m.role for m in prompt.messages].count("system") == 1


def test_file_split_holds_out_by_question_text(tmp_path):
    first = load_prompts(file_config(write_questions(tmp_path / "a.jsonl", range(50)), num_heldout=10))
    assert (len(first.train), len(first.heldout)) == (40, 10)
    assert ids(first.train) == sorted(ids(first.train), key=int)
    reordered = write_questions(tmp_path / "b.jsonl", range(49, -1, -1))
    second = load_prompts(file_config(reordered, num_heldout=10))
    assert digests(first.heldout) == digests(second.heldout)
    grown = load_prompts(file_config(write_questions(tmp_path / "c.jsonl", range(55)), num_heldout=10))
    assert len(digests(first.heldout) & digests(grown.heldout)) >= 5


def test_a_second_file_is_the_heldout_set(tmp_path):
    path = write_questions(tmp_path / "a.jsonl", range(5))
    heldout = write_questions(tmp_path / "b.jsonl", range(5, 8))
    prompts = load_prompts(file_config(path, heldout_path=str(heldout)))
    assert ids(prompts.train) == list("01234")
    assert ids(prompts.heldout) == list("567")


def test_overlapping_files_name_a_pair(tmp_path):
    path = write_questions(tmp_path / "a.jsonl", range(5))
    heldout = write_questions(tmp_path / "b.jsonl", [9, 3], prefix="  ")
    with pytest.raises(
        PromptError, match="training prompt '3' and held-out prompt '3' ask the same question"
    ):
        load_prompts(file_config(path, heldout_path=str(heldout)))


def test_repeated_questions_are_left_out_and_counted(tmp_path, caplog):
    path = write_questions(tmp_path / "a.jsonl", [1, 2, 3, 2, 1])
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(file_config(path, num_heldout=1))
    assert sorted(prompts.by_id) == ["1", "2", "3"]
    assert "2 prompts of" in caplog.text


def test_too_few_rows_and_no_rows_are_errors(tmp_path):
    path = write_questions(tmp_path / "a.jsonl", range(3))
    with pytest.raises(PromptError, match=r"3 different questions.*needs at least 4"):
        load_prompts(file_config(path, num_heldout=3))
    path.write_text("")
    with pytest.raises(PromptError, match="no training prompts"):
        load_prompts(file_config(path, heldout_path=str(path)))


def test_dotted_source():
    config = PromptsConfig(
        source=PromptSource.dotted, dotted_path=f"{__name__}.dotted_prompts", num_train=9, num_heldout=2
    )
    prompts = load_prompts(config)
    assert (len(prompts.train), len(prompts.heldout)) == (7, 2)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("no_such_module.x", ConfigError, "cannot be imported"),
        (f"{__name__}.no_such_function", ConfigError, "cannot be imported"),
        (f"{__name__}.WIDE", ConfigError, "names a dict, not a function"),
        (f"{__name__}.dotted_numbers", PromptError, r"list of Prompt, it returned \['int'\]"),
    ],
)
def test_dotted_source_errors(path, error, message):
    with pytest.raises(error, match=message):
        load_prompts(PromptsConfig(source=PromptSource.dotted, dotted_path=path))


def test_the_set_refuses_overlap_twin_ids_and_empty_sides():
    a, b = Prompt.ask("a", "What is 1?", "1"), Prompt.ask("b", "What is 2?", "2")
    assert PromptSet((a,), (b,)).by_id == {"a": a, "b": b}
    with pytest.raises(PromptError, match="'a' and held-out prompt 'c' ask the same question"):
        PromptSet((a,), (b, Prompt.ask("c", "what is  1?", "1")))
    with pytest.raises(PromptError, match="two prompts have the id 'a'"):
        PromptSet((a,), (Prompt.ask("a", "What is 3?", "3"),))
    with pytest.raises(PromptError, match="no held-out prompts"):
        PromptSet((a,), ())
    with pytest.raises(PromptError, match="no training prompts"):
        PromptSet((), (a,))


def test_the_digest_is_of_what_is_asked_whatever_options_led_there(tmp_path):
    asked, again = ([Prompt.ask(str(n), f"What is {n}?", str(n)) for n in range(4)] for _ in range(2))
    digest = PromptSet(tuple(asked[:3]), (asked[3],)).digest()
    assert len(digest) == 32
    assert PromptSet(tuple(again[:3]), (again[3],)).digest() == digest
    others = [Prompt.ask("0", "What is 0 ?", "0"), Prompt.ask("00", "What is 0?", "0"),
              Prompt.ask("0", "What is 0?", "1")]
    sets = [PromptSet((other, *asked[1:3]), (asked[3],)) for other in others]
    sets += [PromptSet(tuple(asked[:2]), tuple(asked[2:])), PromptSet((asked[1], asked[0], asked[2]), (asked[3],))]
    assert len({digest, *(one.digest() for one in sets)}) == 6, "text, id, answer, side and order"
    file = write_questions(tmp_path / "q.jsonl", range(9))
    before = load_prompts(file_config(file, num_heldout=2)).digest()
    write_questions(tmp_path / "q.jsonl", range(10))
    assert load_prompts(file_config(file, num_heldout=2)).digest() != before, "equal options, another file"
