"""Promises of gpt_core.generation.stop_strings."""

from hypothesis import example, given
from hypothesis import strategies as st

from gpt_core.generation.stop_strings import TextStream


def cut(data, sizes):
    """Split bytes into pieces of the given sizes, over and over."""
    pieces, start = [], 0
    while start < len(data):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[start : start + size])
        start += size
    return pieces


def show(stream, pieces):
    shown = []
    for piece in pieces:
        shown.append(stream.push(piece))
        if stream.stopped:
            break
    return [*shown, stream.finish()]


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(data=st.binary(max_size=60), sizes=sizes)
@example(data="€🎉".encode() + b"\xf0\x9f", sizes=[1])
def test_the_pieces_add_up_to_the_text_of_all_bytes(data, sizes):
    assert "".join(show(TextStream(), cut(data, sizes))) == data.decode(errors="replace")


@given(
    text=st.text("ab€\n", max_size=40),
    stops=st.lists(st.text("ab€\n", min_size=1, max_size=4), max_size=3).map(tuple),
    sizes=st.just([1]),
)
def test_the_text_ends_before_the_first_stop_string(text, stops, sizes):
    stream = TextStream(stops)
    found = "".join(show(stream, cut(text.encode(), sizes)))
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    assert stream.stopped == bool(ends)
    if ends:
        end, length = min(ends)  # byte by byte, the stop string that ends first is met first; of those the longest
        assert found == text[: end + length]
    else:
        assert found == text


@given(text=st.text("abc", max_size=30), sizes=sizes)
def test_nothing_shown_is_ever_taken_back(text, sizes):
    stream = TextStream(("abc", "bca"))
    shown = ""
    for piece in cut(text.encode(), sizes):
        shown += stream.push(piece)
        assert "abc" not in shown
        assert "bca" not in shown
        assert text.startswith(shown)


def test_text_that_cannot_become_a_stop_string_is_shown_at_once():
    stream = TextStream(("STOP",))
    assert [stream.push(piece) for piece in (b"on", b"e S", b"T", b"AR")] == ["on", "e ", "", "STAR"]
