"""The benchmark's charts, its page, its profiles' parsers, and what a soak calls growth."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from chart import Bars, Lines, chart, nice_ceiling
from figures import Measure, Spread
from links import Clock
from pictures import core_chart, saturation_chart
from profiles import parse_perf, parse_stacks
from publish import BEGIN, END, replaced, section
from records import Result, Table, once
from soak import KEY_SETS, KEYS_PER_SET, Growth, growth_table, growths, key_set

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bars_of(svg: str, colour: str) -> list[float]:
    """Heights, without the legend's square."""
    found = [each for each in ElementTree.fromstring(svg).iter(f"{SVG}rect") if each.get("fill") == colour]
    return [float(each.get("height", "0")) for each in found[1:]]


def measure(system: str, cell: str, rate: float, number: int = 0) -> Measure:
    return Measure(system, cell, number, 1000, 0, rate, 1.0, 2.0, 3.0, {"a": 10.0}, 5.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (1.1, 2), (23, 25), (26, 50), (99_000, 100_000), (0.3, 0.5)]
)
def test_an_axis_ends_at_a_round_number(value: float, top: float):
    assert nice_ceiling(value) == pytest.approx(top)


def test_bars_are_as_high_as_their_values_and_missing_ones_are_left_out():
    panel = Bars("ops", ["a", "b"], {"one": [Spread(50, 40, 100), None], "two": [Spread(25, 25, 25), once(100)]})
    svg = chart("Title <x>", "note", [panel])
    one, two = bars_of(svg, "#2f6f9f"), bars_of(svg, "#d9822b")
    assert (len(one), len(two)) == (1, 2)
    assert two[1] / one[0] == pytest.approx(2.0)
    assert one[0] / two[0] == pytest.approx(2.0)
    assert {"Title <x>", "note", "ops", "a", "b", "one", "two"} <= set(texts(svg))


def test_lines_stand_on_a_logarithmic_axis():
    svg = chart("t", "n", [Lines("p99", "ops/s", {"one": [(0, 1.0), (50, 10.0), (100, 100.0)]})])
    line = next(ElementTree.fromstring(svg).iter(f"{SVG}polyline"))
    heights = [float(point.split(",")[1]) for point in line.get("points", "").split()]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])


def test_charts_are_made_of_what_was_measured():
    measures = [measure(s, c, r) for s, r in (("flotta", 10.0), ("etcd", 20.0)) for c in ("put c=1 conn=1", "put 40/s")]
    result = Result("core", [], {}, measures, when="2026-11-21T00:00:00", machine={"cores": 2})
    assert "Put c=1" in texts(core_chart(result))
    assert saturation_chart(result).count("<circle") == 2


def test_a_part_without_a_record_keeps_what_the_page_has_of_it():
    table = Table("Speed", ["system"], [["flotta"]])
    machine = {"cores": 2, "model": "m", "kernel": "k"}
    fact = "put c=50 conn=8: rate flotta ÷ etcd"
    core = Result("core", [table], {fact: once(1.5)}, when="2026-01-01T00:00:00", machine=machine)
    soak = Result("soak", [replace(table, title="Flat")], {}, when="2026-02-01T00:00:00", machine=machine)
    page = f"before\n\n{BEGIN}\n{END}\n\nafter\n"
    both = replaced(page, {"core": core, "soak": soak})
    assert replaced(both, {}) == both
    newer = replace(soak, tables=[replace(table, title="Growing")], when="2026-03-01T00:00:00")
    later = replaced(both, {"soak": newer})
    assert later == both.replace("Flat", "Growing").replace("2026-02-01", "2026-03-01")
    assert "| 1.50 | aim met | 2026-01-01 |" in later and "**Speed**" in later and later.endswith("after\n")
    with pytest.raises(ValueError, match="lacks"):
        replaced("no marks", {})


def test_the_section_has_whole_parts_only():
    machine = {"cores": 2, "model": "m", "kernel": "k"}
    idle = Result("idle", [Table("Idle", ["a"], [["1"]])], {}, when="2026-11-21T00:00:00", machine=machine)
    text = section({"idle": idle, "quick": replace(idle, part="quick", tables=[Table("Quick", ["a"], [])])})
    assert "### Idle" in text
    assert "Quick" not in text
    assert section({}) == "Nothing measured yet."


def test_perf_reports_become_rows():
    text = "    22.70%|[kernel.kallsyms]|[k] finish_task_switch\n     1.04%|libc.so.6|[.] _int_free\n\n# x\n"
    rows = [["22.7 %", "[kernel.kallsyms]", "finish_task_switch"], ["1.0 %", "libc.so.6", "_int_free"]]
    assert parse_perf(text, 10) == rows
    assert parse_perf(text, 1) == rows[:1]


def test_stacks_are_ranked_by_own_time_and_recursion_counts_once():
    text = "process 1:x;run (/a/b/c.py:1);work (/a/b/d.py:2) 30\nrun (/a/b/c.py:9);run (/a/b/c.py:7) 10\n"
    rows = [["75.0%", "75.0%", "work (b/d.py)"], ["25.0%", "100.0%", "run (b/c.py)"]]
    assert parse_stacks(text, 10) == rows


def test_growth_is_judged_after_the_warm_up():
    ramp_then_flat = [(float(n), min(n, 25) * 10.0) for n in range(100)]
    steady_climb = [(float(n), 100.0 + n) for n in range(100)]
    found = growths({("node-1", "memory MB"): ramp_then_flat, ("gateway", "memory MB"): steady_climb})
    by_process = {each.process: each for each in found}
    assert not by_process["node-1"].too_much
    assert by_process["gateway"].too_much
    assert by_process["gateway"].per_hour == pytest.approx(3600.0)
    assert [row[-1] for row in growth_table(found, "t", "n").rows] == ["GROWS", "flat"]


@pytest.mark.parametrize(
    ("figure", "first", "last", "too_much"),
    [
        ("memory MB", 50.0, 66.0, False),
        ("memory MB", 50.0, 66.1, True),
        ("memory MB", 1000.0, 1100.0, False),
        ("open files", 40.0, 51.0, True),
        ("threads", 8.0, 10.0, False),
        ("asyncio tasks", 25.0, 46.0, True),
    ],
)
def test_the_bounds_of_a_soak(figure: str, first: float, last: float, too_much: bool):
    assert Growth("p", figure, first, last, 0.0).too_much is too_much


def test_a_soak_writes_every_key_before_it_comes_back_to_one():
    keys = [key for number in range(KEY_SETS) for key in key_set(number)]
    assert len(set(keys)) == KEY_SETS * KEYS_PER_SET
    assert key_set(KEY_SETS) == key_set(0)


@pytest.mark.parametrize("last", ["answer", "next frame"])
def test_the_time_of_a_link_may_end_between_an_answer_and_the_next_frame(
    last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("links.time.perf_counter", lambda: now)
    clock = Clock(1, 2.0)
    assert clock.sends() and not clock.done.is_set()
    if last == "answer":
        now = 103.0
    clock.answered()
    now = 103.0
    assert clock.done.is_set() == (last == "answer")
    assert not clock.sends() and clock.done.is_set()


def test_a_link_is_not_done_while_a_frame_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("links.time.perf_counter", lambda: now)
    clock = Clock(2, 2.0)
    assert clock.sends() and clock.sends()
    now = 103.0
    clock.answered()
    assert not clock.sends() and not clock.done.is_set()
    clock.answered()
    assert clock.done.is_set() and len(clock.trips_us) == 2
