"""Records against faust.Record on the same definitions, and inside real Faust objects."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import faust
import pytest
from faust.agents.models import ReqRepRequest
from faust.exceptions import KeyDecodeError, ValidationError, ValueDecodeError
from faust.models import maybe_model, registry
from faust.models.fields import FieldDescriptor, StringField
from faust.serializers.registry import Registry as FaustRegistry
from faust.tables.wrappers import WindowWrapper
from faust.types import ModelT
from faust.types.models import FieldDescriptorT
from faust.types.tuples import Message
from faust.utils import json as faust_json
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.errors import ConfigurationError, DecodeError
from streamproc.records import Record, batch_decoder, get_codec
from streamproc.records.registry import Registry

BASES = (faust.Record, Record)


def define(base: Any, name: str, fields: dict[str, Any], body: Any = None, **options: Any) -> Any:
    """Define the same model on faust.Record and on ours."""
    namespace = {"__annotations__": dict(fields), "__module__": __name__, **(body or {})}
    return type(base)(name, (base,), namespace, **options)


def pair(name: str, fields: dict[str, Any], body: Any = None, **options: Any) -> Any:
    return [define(base, name, fields, body, **options) for base in BASES]


def message(key: bytes | None, value: bytes | None) -> Message:
    return Message("t", 0, 0, 0.0, 0, {}, key, value, None)


class Account(Record):
    id: str


class Withdrawal(Record, namespace="test.Withdrawal"):
    account_id: str
    amount: float
    account: Account | None = None
    at: datetime | None = None


class Animal(Record, abstract=True, polymorphic_fields=True):
    name: str


class Cat(Animal, namespace="test.Cat"):
    lives: int = 9


class Dog(Animal, namespace="test.Dog"):
    barks: bool = True


class Order(faust.Record):
    account: Account
    lines: list[Account]


@pytest.fixture
def app() -> faust.App:
    return faust.App("records", broker="kafka://127.0.0.1:1", store="memory://")


# -- the same definitions on both bases


@pytest.mark.parametrize("model", pair("Point", {"x": int, "y": int, "z": int}, {"z": 7}))
def test_construction(model: Any) -> None:
    assert model(1, 2).asdict() == model(y=2, x=1).asdict() == {"x": 1, "y": 2, "z": 7}
    assert model(1, 2, 3) == model(1, 2, z=3) != model(1, 2)
    assert hash(model(1, 2)) == hash(model(1, 2)) == hash((1, 2, 7))
    assert repr(model(1, 2)) == "<Point: x=1, y=2, z=7>"
    assert model(1, 2) < model(1, 3)
    assert model(1, 2).derive(y=5) == model(1, 5)
    assert model(1, 2).derive(model(3, 4), z=1) == model(3, 4, 1)
    point = model(1, 2)
    point.x = 9
    assert point.asdict()["x"] == 9
    for wrong in ((), (1,), (1, 2, 3, 4)):
        with pytest.raises(TypeError):
            model(*wrong)
    with pytest.raises(TypeError):
        model(1, 2, nope=3)


@pytest.mark.parametrize("model", pair("Point", {"x": int, "y": int}, {"y": 7}))
def test_descriptors(model: Any) -> None:
    assert isinstance(model.x, FieldDescriptorT)
    assert isinstance(model.x, FieldDescriptor)
    assert (model.x.field, model.x.ident, model.x.type) == ("x", "Point.x", int)
    assert (model.x.required, model.y.required, model.y.default) == (True, False, 7)
    assert model.x.getattr(model(3)) == 3
    assert model.x.model is model
    assert model.x is model.x
    assert repr(model.y) == "<IntegerField: Point.y: int = 7>"


@pytest.mark.parametrize(
    "model", pair("Named", {"x": int}, namespace="com.x.Named", serializer="json")
)
def test_options(model: Any) -> None:
    options = model._options
    assert (options.namespace, options.serializer) == ("com.x.Named", "json")
    assert options.fields == {"x": int}
    assert options.fieldset == {"x"}
    assert options.fieldpos == {0: "x"}
    assert options.optionalset == set()
    assert options.defaults == {}
    assert list(options.descriptors) == ["x"]
    assert model(1).__is_model__


@pytest.mark.parametrize("base", BASES)
def test_options_are_inherited_but_the_namespace(base: Any) -> None:
    parent = define(base, "Parent", {"x": int}, serializer="json", coerce=True, isodates=True)
    child = define(parent, "Child", {"y": int})
    assert child._options.serializer == "json"
    assert child._options.coerce
    assert child._options.isodates
    assert child._options.namespace != parent._options.namespace
    assert child._options.namespace.endswith(".Child")


@pytest.mark.parametrize("base", BASES)
def test_options_in_the_class_body(base: Any) -> None:
    inner = type("Options", (), {"serializer": "json", "coerce": True})
    model = define(base, "Inner", {"x": int}, {"Options": inner})
    assert model._options.serializer == "json"
    assert model(x="5").x == 5


@pytest.mark.parametrize(
    "options",
    [
        {"serializer": "json"},
        {"isodates": True},
        {"coerce": True},
        {"validation": True},
        {"include_metadata": True},
        {"include_metadata": False},
        {"allow_blessed_key": True},
        {"polymorphic_fields": True},
        {"decimals": True},
        {"lazy_creation": False},
        {"date_parser": datetime.fromisoformat, "isodates": True},
    ],
)
def test_class_options_are_taken(options: dict[str, Any]) -> None:
    for model in pair("Model", {"x": int}, **options):
        data = {"x": 1, "unknown": 2, "__faust": {"ns": "not.registered"}}
        assert model.from_data(data, preferred_type=model).asdict() == {"x": 1}


@pytest.mark.parametrize("base", BASES)
def test_metadata(base: Any) -> None:
    model = define(base, "Meta", {"x": int}, include_metadata=True, namespace="com.x.Meta")
    expected = {"x": 1, "__faust": {"ns": "com.x.Meta"}}
    assert model(1).to_representation() == expected
    assert faust_json.loads(model(1).dumps(serializer="json")) == expected
    assert model.loads(model(1).dumps(serializer="json"), serializer="json") == model(1)


@pytest.mark.parametrize("field", [int, float, str, bool, Decimal])
@settings(deadline=None)  # the machine may be busy
@given(value=st.sampled_from(["5", "-1", 5, 0, True, False, 2.0, "abc", ""]))
def test_coercion(field: Any, value: Any) -> None:
    if field is Decimal and isinstance(value, bool):
        return  # true is no number to msgspec
    theirs, ours = pair("Coerced", {"x": field}, coerce=True)
    try:
        expected = theirs(x=value).x
    except (ValueError, TypeError, ArithmeticError):
        return  # Faust raises something or other; ours says so when it validates
    assert ours(x=value).x == expected
    if field is bool and isinstance(value, str):
        # JSON "0" and "false" are false to msgspec; Faust takes any text for true.
        return
    decoded = ours.from_data({"x": value}).x
    assert decoded == theirs.from_data({"x": value}).x == expected
    assert type(decoded) is field


@pytest.mark.parametrize("model", pair("Dated", {"at": datetime}, isodates=True))
@pytest.mark.parametrize(
    "text", ["2024-01-02T03:04:05", "2024-01-02T03:04:05Z", "2024-01-02 03:04", "2024-01-02"]
)
def test_dates(model: Any, text: str) -> None:
    expected = datetime.fromisoformat(text.replace("Z", "+00:00"))
    assert model.from_data({"at": text}).at == expected


@pytest.mark.parametrize(
    "model",
    pair(
        "Parsed",
        {"at": datetime},
        isodates=True,
        coerce=True,
        date_parser=lambda text: datetime.strptime(text, "%d.%m.%Y"),
    ),
)
def test_date_parser(model: Any) -> None:
    assert model.from_data({"at": "24.12.2024"}).at == datetime(2024, 12, 24)


def test_a_date_parser_is_used_in_columns_and_its_errors_are_decode_errors() -> None:
    _, model = pair(
        "ParsedColumn", {"at": datetime}, date_parser=lambda text: datetime(int(text), 1, 1)
    )
    decoded, errors = batch_decoder(get_codec("json"), model)([b'{"at": "2024"}', b'{"at": "x"}'])
    assert decoded[0].at == datetime(2024, 1, 1)
    assert errors[0][0] == 1
    assert "at: invalid literal" in str(errors[0][1])


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


@pytest.mark.parametrize(
    "model", pair("Warm", {"t": Celsius}, coerce=True, coercions={Celsius: Celsius})
)
def test_coercions(model: Any) -> None:
    assert model.from_data({"t": 5}).t.degrees == 5


@pytest.mark.parametrize("model", pair("Valid", {"x": int, "s": str}, validation=True))
def test_validation(model: Any) -> None:
    assert model(1, "a").is_valid()
    assert model(1, "a").validation_errors == []
    with pytest.raises((ValidationError, ValueError)):
        model("x", "a")


@pytest.mark.parametrize("model", pair("Unchecked", {"x": int}))
def test_validation_on_request(model: Any) -> None:
    record = model("x")
    assert not record.is_valid()
    (error,) = record.validate()
    assert isinstance(error, ValidationError)
    assert error.field is model.x
    with pytest.raises(ValidationError):
        record.validate_or_raise()


def test_an_own_validate_is_called_with_validation() -> None:
    class Checked(Record, validation=True):
        x: int

        def validate(self) -> list[ValidationError]:
            return [ValidationError("odd", field=Checked.x)] if self.x % 2 else []

    assert Checked.loads(b'{"x": 2}').x == 2
    with pytest.raises(DecodeError, match="odd"):
        Checked.loads(b'{"x": 1}')
    with pytest.raises(ValidationError):
        Checked(1)


@pytest.mark.parametrize("base", BASES)
def test_abstract(base: Any) -> None:
    parent = define(base, "AbstractParent", {"x": int}, abstract=True)
    child = define(parent, "ConcreteChild", {"y": int})
    assert child(1, 2).asdict() == {"x": 1, "y": 2}
    assert parent._options.namespace not in registry
    assert registry[child._options.namespace] is child
    with pytest.raises(NotImplementedError, match="abstract"):
        parent()


@pytest.mark.parametrize(
    "model",
    pair(
        "FieldObjects",
        {"a": str, "b": str},
        {
            "a": StringField(input_name="A", required=True),
            "b": StringField(default="x", required=False),
        },
    ),
)
def test_field_objects(model: Any) -> None:
    assert model.from_data({"A": "1"}).asdict() in ({"a": "1", "b": "x"}, {"A": "1", "b": "x"})


def test_field_objects_that_are_not_supported() -> None:
    with pytest.raises(ConfigurationError, match="exclude"):
        define(Record, "Excluded", {"a": str}, {"a": StringField(exclude=True)})


# -- polymorphism


def test_data_may_name_a_subclass() -> None:
    for payload, expected in (
        (Cat("Tom", 7).dumps(), Cat("Tom", 7)),
        (Dog("Rex").dumps(), Dog("Rex")),
    ):
        assert Animal.loads(payload) == expected
        assert Record.loads(payload) == expected
        assert maybe_model(faust_json.loads(payload)) == expected
        assert get_codec("json").decoder(None)(payload) == expected
        decoded, errors = batch_decoder(get_codec("json"), Animal)([payload, b'{"name": "?"}'])
        assert decoded == [expected, None]
        assert "abstract" in str(errors[0][1])


def test_data_may_not_name_just_any_class() -> None:
    payload = b'{"id": "a", "__faust": {"ns": "test.Withdrawal"}}'
    assert Account.loads(payload) == Account("a")
    for metadata in (b"5", b'{"ns": 5}', b'{"ns": []}', b'{"ns": "nobody"}', b"{}"):
        assert Account.loads(b'{"id": "a", "__faust": %s}' % metadata) == Account("a")
        with pytest.raises(DecodeError, match="abstract"):
            Animal.loads(b'{"name": "a", "__faust": %s}' % metadata)


def test_a_named_model_must_be_a_subclass_of_the_declared_one() -> None:
    with pytest.raises(DecodeError, match="account_id"):
        Withdrawal.loads(Cat("Tom").dumps())
    with pytest.raises(DecodeError, match="lives"):
        Cat.loads(b'{"name": "a", "lives": "x", "__faust": {"ns": "test.Dog"}}')


class Lax(Record):
    value: Any = None


@pytest.mark.parametrize("model", [Account, Withdrawal, Lax])
def test_the_envelope_of_ask_is_read_whatever_is_declared(model: Any) -> None:
    request = ReqRepRequest(value=1, reply_to="r", correlation_id="c")
    payload = request.dumps()
    assert model.loads(payload) == request
    assert batch_decoder(get_codec("json"), model)([payload]) == ([request], [])
    assert Registry("raw", "json").loads_value(model, payload) == request


# -- inside Faust


def test_instances_are_models() -> None:
    assert isinstance(Account("a"), ModelT)
    assert issubclass(Withdrawal, ModelT)
    assert maybe_model({"__faust": {"ns": "test.Withdrawal"}, "account_id": "a", "amount": 1}) == (
        Withdrawal("a", 1.0)
    )


def test_nested_descriptors() -> None:
    class Payment(Record):
        account: Account

    assert Payment.account.id.ident == "Account.id"
    assert Payment.account.id.getattr(Payment(Account("a"))) == "a"


def test_records_inside_faust_models() -> None:
    order = Order.from_data({"account": {"id": "a"}, "lines": [{"id": "b"}]})
    assert order.account == Account("a")
    assert order.lines == [Account("b")]
    again = Order.loads(order.dumps(serializer="json"), serializer="json")
    assert again.account == Account("a")


def test_json_of_the_web_views() -> None:
    value = {"all": [Withdrawal("a", 1.0, Account("b"), datetime(2024, 1, 1, tzinfo=timezone.utc))]}
    assert faust_json.loads(faust_json.dumps(value)) == {
        "all": [
            {
                "account_id": "a",
                "amount": 1.0,
                "account": {"id": "b"},
                "at": "2024-01-01T00:00:00Z",
            }
        ]
    }


@pytest.mark.parametrize("serializers", [FaustRegistry, Registry])
async def test_topics_and_schemas(app: faust.App, serializers: Any) -> None:
    app.serializers = serializers(key_serializer="raw", value_serializer="json")
    topic = app.topic("t", key_type=Account, value_type=Withdrawal, key_serializer="json")
    value = Withdrawal("a", 1.5, Account("b"))
    key_bytes, _ = topic.schema.dumps_key(app, Account("k"), headers={})
    value_bytes, _ = topic.schema.dumps_value(app, value, headers={})
    event = await topic.schema.decode(app, message(key_bytes, value_bytes))
    assert (event.key, event.value) == (Account("k"), value)
    with pytest.raises(ValueDecodeError, match="account_id"):
        await topic.schema.decode(app, message(key_bytes, b"{}"), propagate=True)
    with pytest.raises(KeyDecodeError):
        await topic.schema.decode(app, message(b"x", value_bytes), propagate=True)
    future = topic.as_future_message(key=Account("k"), value=value)
    assert topic.prepare_value(future.message.value, None, topic.schema, {})[0] == value_bytes


async def test_tombstones(app: faust.App) -> None:
    app.serializers = Registry(key_serializer="raw", value_serializer="json")
    topic = app.topic("t", key_type=str, value_type=Withdrawal)
    event = await topic.schema.decode(app, message(b"k", None), propagate=True)
    assert (event.key, event.value) == ("k", None)


@pytest.mark.parametrize("serializer", ["json", "raw"])
@pytest.mark.parametrize("declared", [None, str, int, float, Decimal])
@pytest.mark.parametrize("payload", [b"5", b'"5"', b"1.5", b"abc", b'{"a": 1}', b"", b"\xff", None])
def test_plain_types_read_as_in_faust(serializer: str, declared: Any, payload: Any) -> None:
    theirs = FaustRegistry("raw", "json")
    try:
        expected = theirs.loads_value(declared, payload, serializer=serializer)
    except ValueDecodeError:
        expected = ValueDecodeError
    (decoded,), errors = batch_decoder(get_codec(serializer), declared)([payload])
    if serializer == "json" and declared is str and isinstance(expected, dict | int | float):
        expected = str(expected)  # declared a str, so it is one
    if serializer == "json" and declared is int and payload == b"1.5":
        expected = ValueDecodeError  # Faust cuts it to 1
    if expected is ValueDecodeError:
        assert errors
    else:
        assert (decoded, errors) == (expected, [])


@pytest.mark.parametrize("part", ["key", "value"])
@pytest.mark.parametrize("declared", [None, str, bytes])
@pytest.mark.parametrize("payload", ["a", b"a", None])
def test_plain_types_are_written_as_in_faust(part: str, declared: Any, payload: Any) -> None:
    theirs = FaustRegistry("raw", "json")
    dumps = theirs.dumps_key if part == "key" else theirs.dumps_value
    serializer = "raw" if part == "key" else "json"
    written = get_codec(serializer).encoder(declared)(payload)
    if payload is None and part == "value":
        assert written is None  # a tombstone; Faust writes the text null
    else:
        assert written == dumps(declared, payload)


def test_windows_relative_to_a_field(app: faust.App) -> None:
    table = app.Table("t", default=int).tumbling(10)
    assert isinstance(table, WindowWrapper)
    table = table.relative_to_field(Withdrawal.at)
    event = app.create_event(
        None,
        Withdrawal("a", 1.0, at=datetime(2024, 1, 1, tzinfo=timezone.utc)),
        {},
        message(None, None),
    )
    assert table.get_relative_timestamp(event) == event.value.at


def test_group_by_a_field(app: faust.App) -> None:
    topic = app.topic("t", value_type=Withdrawal)
    stream = app.stream(topic).group_by(Withdrawal.account_id)
    assert "Withdrawal.account_id" in stream.channel.get_topic_name()


def test_requests_and_replies_carry_records(app: faust.App) -> None:
    @app.agent(app.topic("t", value_type=Withdrawal))
    async def agent(stream: Any) -> None: ...

    assert agent._request_class(Account("a")).__name__ == "ModelReqRepRequest"
    response = agent._response_class(Cat("Tom"))(key=None, value=Cat("Tom"), correlation_id="1")
    data = faust_json.loads(response.dumps(serializer="json"))
    assert maybe_model(data["value"]) == Cat("Tom")


# -- faust.Record models, decoded by us


class Inner(faust.Record):
    n: int


class Stored(faust.Record):
    a: str
    b: int
    c: str = "c"
    child: Inner | None = None
    many: list[Inner] | None = None


class Dated(faust.Record, isodates=True):
    at: datetime


class Exact(faust.Record, coerce=True, decimals=True):
    price: Decimal


class Hooked(faust.Record):
    n: int

    def __post_init__(self) -> None:
        self.double = self.n * 2


class Sub(Stored, polymorphic_fields=True, namespace="test.Sub"):
    extra: int = 1


MODELS = [Stored, Inner, Dated, Exact, Hooked, Sub]
values = st.sampled_from([None, 1, "x", 1.5, {"n": 1}, [{"n": 2}], "2024-01-02T03:04:05", []])
names = st.sampled_from(["a", "b", "c", "child", "many", "n", "at", "price", "extra", "other"])
metadata = st.sampled_from([None, {"ns": "test.Sub"}, {"ns": "nobody"}, {}, 5, []])
complete = st.fixed_dictionaries(
    {
        "a": values,
        "b": values,
        "c": values,
        "child": st.sampled_from([None, {"n": 1}]),
        "many": st.sampled_from([None, [{"n": 2}]]),
    }
)


@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None)  # the machine may be busy
@given(
    data=complete | st.dictionaries(names, values, max_size=6),
    metadata=metadata,
    named=st.booleans(),
)
def test_faust_models_decode_as_faust_does(
    model: Any, data: dict[str, Any], metadata: Any, named: bool
) -> None:
    if named:
        data = {**data, "__faust": metadata or {"ns": model._options.namespace}}
    payload = faust_json.dumps(data)
    theirs = FaustRegistry("raw", "json")
    try:
        expected = theirs.loads_value(model, payload, serializer="json")
    except ValueDecodeError:
        expected = None
    (decoded,), errors = batch_decoder(get_codec("json"), model)([payload])
    assert bool(errors) == (expected is None)
    if expected is not None:
        assert type(decoded) is type(expected)
        # As stored: Faust looks into nested values, and fails at them, when they are read.
        assert vars(decoded) == vars(expected)


def test_nested_fields_of_faust_models_are_read_when_asked_for() -> None:
    data = {"a": "a", "b": 1, "c": None, "child": {"n": 1}, "many": [{"n": 2}]}
    (decoded,), _ = batch_decoder(get_codec("json"), Stored)([faust_json.dumps(data)])
    expected = Stored.from_data(data, preferred_type=Stored)
    assert decoded == expected == Stored("a", 1, "c", Inner(1), [Inner(2)])
    assert decoded.dumps(serializer="json") == expected.dumps(serializer="json")
