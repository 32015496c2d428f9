"""Windows by brute force, for tests: over all records one by one, keeping every one of them."""

from hypothesis import strategies as st

IDLE = 10_000


class Listing:
    """A program: count, sum and all values in order."""

    def new(self):
        return [0, 0, []]

    def update(self, states, keys, values, timestamps, missing):
        for key, value, _ in zip(keys, values, timestamps, strict=True):
            acc = states.get(key)
            if acc is None:
                acc = states[key] = missing(key)
            acc[0] += 1
            acc[1] += value
            acc[2].append(value)

    def merge(self, left, right):
        return [left[0] + right[0], left[1] + right[1], left[2] + right[2]]


def summary(values):
    return [len(values), sum(values), values]


class Time:
    """The watermark of one input, record by record."""

    def __init__(self, spec):
        self.spec = spec
        self.highest = None
        self.silent = 0
        self.now = float("-inf")

    def record(self, time):
        self.silent = 0
        self.highest = time if self.highest is None else max(self.highest, time)
        self.now = max(self.now, self.highest - self.spec.out_of_orderness)

    def silence(self, milliseconds):
        self.silent += milliseconds
        if self.silent >= self.spec.idle_timeout and self.highest is not None:
            self.now = max(self.now, self.highest - self.spec.out_of_orderness + self.silent)


def judged(spec, segments, place):
    """Call ``place(key, value, time, watermark)`` for all records; return the late values."""
    clock, late = Time(spec), []
    for records, silence in segments:
        for key, value, time in records:
            if not place(key, value, time, clock.now):
                late.append(value)
            clock.record(time)
        clock.silence(silence)
    return late


def aligned_oracle(spec, segments):
    windows, partly = {}, []

    def place(key, value, time, watermark):
        step = getattr(spec, "step", spec.size)
        of_time = [
            start
            for start in range(time - spec.size + 1, time + 1)
            if (start - spec.offset) % step == 0
        ]
        taken = [start for start in of_time if start + spec.size + spec.grace > watermark]
        for start in taken:
            windows.setdefault((key, start, start + spec.size), []).append(value)
        if taken and len(taken) < len(of_time):
            partly.append(value)
        return taken

    late = judged(spec, segments, place)
    return {window: summary(values) for window, values in windows.items()}, late, partly


def sliding_oracle(spec, segments):
    taken = []

    def place(key, value, time, watermark):
        if time + 1 + spec.grace <= watermark:
            return False
        taken.append((key, time, value))
        return True

    late = judged(spec, segments, place)
    windows = {}
    for key, end, _ in taken:
        inside = [one for one in taken if one[0] == key and end - spec.size < one[1] <= end]
        inside.sort(key=lambda one: one[1])
        windows[key, end - spec.size + 1, end + 1] = summary([one[2] for one in inside])
    return windows, late, []


def session_oracle(spec, segments):
    sessions = []

    def place(key, value, time, watermark):
        near = [
            one
            for one in sessions
            if one["key"] == key
            and any(abs(time - other) < spec.gap for other in one["times"])
            and max(one["times"]) + spec.gap + spec.grace > watermark
        ]
        near.sort(key=lambda one: (min(one["times"]), max(one["times"])))
        mine = {"key": key, "times": [time], "values": []}
        joined = []
        for one in near:
            times = mine["times"] + one["times"]
            length = max(times) - min(times) + spec.gap
            if spec.max_length is None or length <= spec.max_length:
                joined.append(one)
                mine["times"] = times
                mine["values"] = mine["values"] + one["values"]
        if not joined and time + spec.gap + spec.grace <= watermark:
            return False
        mine["values"].append(value)
        sessions[:] = [one for one in sessions if one not in joined] + [mine]
        return True

    late = judged(spec, segments, place)
    windows = [
        (one["key"], min(one["times"]), max(one["times"]) + spec.gap, summary(one["values"]))
        for one in sessions
    ]
    return windows, late, []


def as_list(windows):
    if isinstance(windows, dict):
        windows = [(*window, acc) for window, acc in windows.items()]
    return sorted(windows, key=repr)


@st.composite
def cases(draw, spans=60, keys="abc"):
    base = draw(st.sampled_from([0, -30, 10**15, -(10**15)]))
    time = st.integers(0, spans) | st.just(0)
    numbers = iter(range(10**6))
    drawn = draw(
        st.lists(
            st.tuples(
                st.lists(st.tuples(st.sampled_from(keys), time), max_size=25),
                st.sampled_from([0, 5000, IDLE, IDLE + 7]),
            ),
            max_size=3,
        )
    )
    shifted, elapsed, segments = draw(st.booleans()), 0, []
    for records, silence in drawn:
        segments.append(
            (
                [(key, next(numbers), base + time + elapsed) for key, time in records],
                silence,
            )
        )
        # Event time went on in the silence, or (a replay) it did not.
        elapsed += silence if shifted else 0
    return segments


OPTIONS = {
    "grace": st.integers(0, 15),
    "out_of_orderness": st.integers(0, 15),
    "emit": st.sampled_from(["final", "updates"]),
    "idle_timeout": st.just(IDLE),
}
