"""Range coding in whole numbers: a sequence of choices is an interval of [0, 1), and any number in it tells them all.

The number is written in digits of base 256, as many as it takes: nothing is rounded but the widths, by less than
2**-39 of each, and by both sides alike. Martin, "Range encoding", 1979.
"""

from fractions import Fraction

BITS = 96  # of the interval's width, in units of the last digit considered
RENEWED_AT = 1 << (BITS - 8)
ESCAPE_TOTAL = 1 << 32


class RangeEncoder:
    """Narrows the interval [0, 1) choice by choice."""

    def __init__(self):
        self.digits = bytearray()
        self.low = 0
        self.width = 1 << BITS

    def narrow(self, start: int, size: int, total: int) -> None:
        """Keeps the part from `start` to `start + size` of `total` equal parts; the last takes what is left over."""
        unit = self.width // total
        self.low += unit * start
        self.width = self.width - unit * start if start + size == total else unit * size
        while self.width < RENEWED_AT:
            self.write_digits(self.low, 1)
            self.low = (self.low << 8) & ((1 << BITS) - 1)
            self.width <<= 8

    def escape(self, wanted: bool) -> None:
        """A choice that is made before each other one, and almost never wanted: it costs 3e-10 bits, or 32."""
        self.narrow(ESCAPE_TOTAL - 1 if wanted else 0, 1 if wanted else ESCAPE_TOTAL - 1, ESCAPE_TOTAL)

    def write_digits(self, value: int, count: int) -> None:
        """Appends the first digits of a value of `BITS` bits, and carries what exceeds them."""
        if value >> BITS:
            place = len(self.digits) - 1
            while self.digits[place] == 255:
                self.digits[place] = 0
                place -= 1
            self.digits[place] += 1
        self.digits += (value >> (BITS - 8 * count) & ((1 << 8 * count) - 1)).to_bytes(count, "big")

    def finish(self) -> bytes:
        """The fewest further digits whose number, followed by zeros, lies in the interval."""
        finished = RangeEncoder()  # this one may go on
        finished.digits = bytearray(self.digits)
        for count in range(BITS // 8 + 1):
            step = 1 << (BITS - 8 * count)
            value = -(-self.low // step) * step
            if value < self.low + self.width:
                finished.write_digits(value, count)
                break
        return bytes(finished.digits)

    def interval(self) -> tuple[Fraction, Fraction]:
        """Its lower end and its width, exactly."""
        one = 1 << (BITS + 8 * len(self.digits))
        return Fraction((int.from_bytes(self.digits, "big") << BITS) + self.low, one), Fraction(self.width, one)


class RangeDecoder:
    """Finds the choices that a number was made of; digits that are not given are zeros."""

    def __init__(self, digits: bytes):
        self.digits = digits
        self.read = BITS // 8
        self.code = int.from_bytes(digits[: self.read].ljust(self.read, b"\0"), "big")  # from the interval's lower end
        self.width = 1 << BITS

    @property
    def is_exhausted(self) -> bool:
        """Whether no encoder that wrote these digits made so many choices."""
        return self.read > len(self.digits) + BITS // 8

    def place(self, total: int) -> int:
        """In which of `total` equal parts the number lies."""
        return min(self.code // (self.width // total), total - 1)

    def narrow(self, start: int, size: int, total: int) -> None:
        """See `RangeEncoder.narrow`."""
        unit = self.width // total
        self.code -= unit * start
        self.width = self.width - unit * start if start + size == total else unit * size
        while self.width < RENEWED_AT:
            self.code = self.code << 8 | (self.digits[self.read] if self.read < len(self.digits) else 0)
            self.read += 1
            self.width <<= 8

    def escape(self) -> bool:
        """See `RangeEncoder.escape`."""
        wanted = self.place(ESCAPE_TOTAL) == ESCAPE_TOTAL - 1
        self.narrow(ESCAPE_TOTAL - 1 if wanted else 0, 1 if wanted else ESCAPE_TOTAL - 1, ESCAPE_TOTAL)
        return wanted

    def uniform(self, total: int) -> int:
        """One of `total` choices that are equally likely."""
        chosen = self.place(total)
        self.narrow(chosen, 1, total)
        return chosen
