"""Pages say which of their rows were made with other statistics of batch norms."""

from scripts.results_page import PAIRED, unpaired


def test_rows_of_before_are_counted_and_said():
    rows = [{"origin": {"commit": "a"}}, {"origin": {"statistics": PAIRED}}, {"taken": 1, "searched": {}}]
    (sentence,) = unpaired(rows, ", and otherwise, too")
    assert sentence.startswith("2 rows were made") and "(../tried.md), and otherwise, too." in sentence


def test_nothing_is_said_where_all_rows_are_of_today():
    assert unpaired([{"origin": {"statistics": PAIRED}}]) == []
