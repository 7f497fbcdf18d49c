"""The journal of finished work."""

from __future__ import annotations

from gcvideo.journal import Journal


def test_rows_come_back_in_the_next_run(tmp_path):
    journal = Journal(tmp_path / "new folder" / "journal", {"size": 256})
    assert not journal.fits
    journal.add("a", {"ok": 1})
    journal.add("b", {"ok": 2}, stamp=[7, 8])
    again = Journal(tmp_path / "new folder" / "journal", {"size": 256})
    assert again.fits
    assert again.rows() == [{"ok": 1}, {"ok": 2}]
    assert (again.find("a"), again.find("b", [7, 8]), again.find("c")) == ({"ok": 1}, {"ok": 2}, None)
    assert again.find("b", [7, 9]) is None  # the item has changed
    again.forget("a")
    assert again.find("a") is None


def test_a_journal_of_other_work_starts_over(tmp_path):
    journal = Journal(tmp_path / "journal", {"size": 256})
    journal.add("a", {})
    other = Journal(tmp_path / "journal", {"size": 320})
    assert (other.fits, other.rows()) == (False, [])
    other.add("b", {"x": 1})
    assert Journal(tmp_path / "journal", {"size": 320}).rows() == [{"x": 1}]
    (tmp_path / "journal").write_bytes(b"\xff\x00")
    assert Journal(tmp_path / "journal", {"size": 320}).rows() == []


def test_a_line_cut_short_by_a_kill_is_lost_alone(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, {})
    journal.add("a", {"x": 1})
    with path.open("a") as file:
        file.write('\n{"path": "torn')
    journal = Journal(path, {})
    journal.add("b", {"x": 2})
    assert Journal(path, {}).rows() == [{"x": 1}, {"x": 2}]


def test_processes_share_a_journal_and_any_number_of_them_resumes(tmp_path):
    path = tmp_path / "jour[n]al"
    for rank in range(3):
        journal = Journal(path, {}, rank=rank)
        journal.add(str(rank), {"rank": rank})
    assert [row["rank"] for row in Journal(path, {}).rows()] == [0, 1, 2]
    journal = Journal(path, {}, rank=1)
    journal.add("3", {"rank": 1})
    assert len(Journal(path, {}, rank=9).rows()) == 4
    Journal(path, {}).remove()
    assert list(tmp_path.iterdir()) == []
