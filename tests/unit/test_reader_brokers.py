"""Addresses of brokers, as people write them."""

import pytest

from streamproc.errors import ConfigurationError
from streamproc.sources.brokers import brokers


@pytest.mark.parametrize(
    ("written", "bootstrap"),
    [
        ("a:9092", "a:9092"),
        ("a", "a:9092"),
        ("a:1,b:2", "a:1,b:2"),
        ("a:1;b:2", "a:1,b:2"),
        (" a:1 , b:2, ", "a:1,b:2"),
        (["a:1", "b"], "a:1,b:9092"),
        (("kafka://a:1/", "kafka://b"), "a:1,b:9092"),
        ("kafka://a:1;kafka://b:2", "a:1,b:2"),
        ("aiokafka://a", "a:9092"),
        ("[::1]:9093", "[::1]:9093"),
        ("kafka://[::1]", "[::1]:9092"),
    ],
)
def test_every_form_of_a_broker_list(written, bootstrap):
    assert brokers(written) == (bootstrap, {})


def test_a_login_goes_into_settings_and_not_into_the_address():
    bootstrap, login = brokers("kafka://ann:s%40cret@a:9092,b:9092")
    assert bootstrap == "a:9092,b:9092"
    assert login["sasl_plain_username"] == "ann"
    assert login["sasl_plain_password"] == "s@cret"
    assert login["security_protocol"] == "SASL_PLAINTEXT"


def test_arguments_win_over_the_url():
    _, login = brokers("kafka://ann:secret@a", "bob", "word")
    assert (login["sasl_plain_username"], login["sasl_plain_password"]) == ("bob", "word")


@pytest.mark.parametrize("written", ["", [], " , ", "kafka://", "a:x", "http://a:1", ":9092"])
def test_what_is_no_broker_list(written):
    with pytest.raises(ConfigurationError):
        brokers(written)


def test_errors_do_not_show_the_login():
    with pytest.raises(ConfigurationError) as caught:
        brokers("redis://ann:secret@a:1")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        brokers("kafka://ann:secret@a:port")
    assert "secret" not in str(caught.value)
