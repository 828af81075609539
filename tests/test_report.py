"""What a report says: the table and the captions."""
from judging import report


def test_the_table_is_aligned_and_leaves_out_columns_without_a_figure():
    rows = {"a": {"frechet": 1.0}, "long name": {"frechet": 123.456, "class_accuracy": 0.5}}
    lines = report.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split() for line in lines] == [["Frechet", "class"], ["a", "1.00", "-"],
                                                ["long", "name", "123.46", "50.0%"]]


def test_a_caption_names_the_most_telling_measures():
    measures = {"mse": 0.1, "distinct": 1.0, "bits_per_image": 12.34}
    assert report.caption("a prior", measures) == "a prior\nbits/image 12.3, distinct 100.0%"


def test_parts_are_done_in_order_once_each_and_the_line_says_which(monkeypatch):
    class Bar:
        """In the place of tqdm's, which keeps nothing where there is no terminal."""

        def __init__(self, total, **_):
            self.total, self.n, self.said = total, 0, []

        def set_description_str(self, text):
            self.said.append((text, self.n))

        def update(self, n):
            self.n += n

        def close(self):
            self.n = None

    monkeypatch.setattr(report, "tqdm", Bar)
    made = []
    with report.Progress({"b": 1, "a": 3.5, "search": 5}) as progress:
        rows = progress.rows({name: lambda name=name: made.append(name) or name.upper() for name in ("b", "a")})
        assert progress.run("search", lambda: made.append("search") or 7) == 7
        assert progress.bar.n == progress.bar.total == 9.5
    assert made == ["b", "a", "search"] and rows == {"b": "B", "a": "A"} and progress.bar.n is None
    assert progress.bar.said == [("1 of 3, b", 0), ("2 of 3, a", 1), ("3 of 3, search", 4.5)]
