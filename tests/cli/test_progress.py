from __future__ import annotations

from kvtool.cli.progress import Told


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_what_is_left_follows_from_what_is_done() -> None:
    clock = Clock()
    told = Told(clock)
    clock.now_s = 20
    assert told.left(0.01) == told.left(1.0) == ""
    assert told.left(1 / 3) == "about 40 s left"
    assert told.left(0.05) == "about 6 min left"


def test_a_line_a_minute() -> None:
    clock = Clock()
    told = Told(clock)
    lines = []
    for second in range(0, 200, 10):
        clock.now_s = second
        lines.append(told.line("3 of 10: latency/512x1", 0.2))
    assert [line for line in lines if line] == [
        f"kvtool: 3 of 10: latency/512x1, 20% done, about {left} min left" for left in (4, 8, 12)
    ]
