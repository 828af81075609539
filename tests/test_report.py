"""What a report says: the table and the captions."""
from judging import report


def test_the_table_is_aligned_and_leaves_out_columns_without_a_figure():
    rows = {"a": {"frechet": 1.0}, "long name": {"frechet": 123.456, "class_accuracy": 0.5}}
    lines = report.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split() for line in lines] == [["Fréchet", "class"], ["a", "1.00", "-"],
                                                ["long", "name", "123.46", "50.0%"]]


def test_a_caption_names_the_most_telling_measures():
    measures = {"mse": 0.1, "distinct": 1.0, "bits_per_image": 12.34}
    assert report.caption("a prior", measures) == "a prior\nbits/image 12.3, distinct 100.0%"


def test_rows_are_made_in_order_once_each():
    made = []
    rows = report.make_rows({name: lambda name=name: made.append(name) or name.upper() for name in ("b", "a")})
    assert made == ["b", "a"] and rows == {"b": "B", "a": "A"}
