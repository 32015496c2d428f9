"""An app that uses every join, limit and timer, and all its results by brute force."""

from collections import defaultdict

START = 1_700_000_000_000

APP = """
    import os
    import streamproc as faust
    from streamproc.sinks import RedisHash, redis_lookup

    class Left(faust.Record):
        id: int
        name: str = ""

    class Right(faust.Record):
        id: int

    app = faust.App(
        os.environ["APP_ID"],
        broker="kafka://" + os.environ["BOOTSTRAP"],
        redis=os.environ["REDIS_URL"],
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        broker_commit_interval=0.3,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        dead_letter_topic=os.environ["APP_ID"] + "-dead",
    )
    LEFT, RIGHT = os.environ["LEFT"], os.environ["RIGHT"]
    results = app.topic(LEFT + "-results", key_type=str, value_serializer="json")
    left = app.stream(app.topic(LEFT, key_type=str, value_type=Left)).flow()
    right = app.stream(app.topic(RIGHT, key_type=str, value_type=Right)).flow()

    def pair(kind):
        def of(one, other):
            return [kind, one and one.id, other and other.id]
        return of
"""

EVERYTHING = """
    left.interval_join(
        right, before="1s", after="2s", how="outer", fn=pair("interval"), idle_timeout="5s"
    ).to(results)
    left.asof_join(right, tolerance="3s", fn=pair("asof"), idle_timeout="5s").to(results)
    left.join_updates(right, how="left", name="latest")
    left.deduplicate(within="2s").map(lambda one: ["first", one.id]).to(results)
    left.throttle(2, per="10s").map(lambda one: ["passed", one.id]).to(results)

    GAP = 3000

    class Session(faust.Record):
        ids: list[int] = []
        last: int = 0

    def end(context):
        context.emit(["session", *context.state.ids])
        context.state = Session()

    def collect(key, one, context):
        session = context.state
        if session.ids and context.time - session.last > GAP:
            end(context)
            session = context.state
        session.ids.append(one.id)
        session.last = context.time
        context.cancel_timer()
        context.set_timer(context.time + GAP)

    def expire(key, tag, context):
        end(context)
        context.state = None

    left.stateful(collect, on_timer=expire, state=Session, idle_timeout="5s").to(results)
"""


def records(first, last, begin, offset):
    """Return records in order of time, a tenth of a second apart, of keys in turns."""
    return [
        (f"k{n * n % 13}", {"id": n}, START + begin + n * 100 + offset + n * 7 % 50)
        for n in range(first, last)
    ]


def expected(lefts, rights):
    """Compute all results from the records, one by one."""
    results = set()
    by_key = defaultdict(lambda: ([], []))
    for side, side_records in enumerate((lefts, rights)):
        for key, value, time in side_records:
            by_key[key][side].append((time, value["id"]))
    for mine, others in by_key.values():
        matched = set()
        for time, one in mine:
            near = [(at, other) for at, other in others if time - 1000 <= at <= time + 2000]
            matched.update(other for _, other in near)
            results.update(("interval", one, other) for _, other in near or [(0, None)])
            before = [other for at, other in others if time - 3000 <= at <= time]
            results.add(("asof", one, before[-1] if before else None))
        results.update(("interval", None, other) for _, other in others if other not in matched)
        passed, periods, session, last = None, defaultdict(int), [], None
        for time, one in mine:
            if passed is None or time - passed >= 2000:
                passed = time
                results.add(("first", one))
            periods[time // 10_000] += 1
            if periods[time // 10_000] <= 2:
                results.add(("passed", one))
            if session and time - last > 3000:
                results.add(("session", *session))
                session = []
            session.append(one)
            last = time
        if session:
            results.add(("session", *session))
    return results
