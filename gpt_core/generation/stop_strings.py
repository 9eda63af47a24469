"""Bytes of tokens to text as they come, cut before the first stop string.

Used by the engine, one object a sample. Invariant: the pieces handed out add up to the same
text whether they are shown one by one or joined at the end.
"""

import codecs


class TextStream:
    """Decodes UTF-8 over token borders and holds back what may yet become a stop string.

    Bytes that are not UTF-8 become U+FFFD, as in ``bytes.decode(errors="replace")``.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        """True once a stop string was found; nothing follows then."""
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, data: bytes) -> str:
        """Take the bytes of one token and return the text that is now certain; none after a stop string."""
        if self.stopped:
            return ""
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """Return the text still held back, with U+FFFD for an unfinished character."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = ("" if self.stopped else self._held), ""
        return text + rest

    def _release(self, new: str) -> str:
        if not self._stop:
            return new
        self._held += new
        found = [start for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        certain = len(self._held) - self._undecided_characters()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _undecided_characters(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
