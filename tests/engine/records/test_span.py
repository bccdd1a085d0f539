from engine.records.codec import decode, encode
from engine.records.span import Span


def test_a_span_knows_how_long_it_took_and_travels():
    one = Span("decode", 2.0, 2.5, {"steps": 4})
    assert one.seconds == 0.5
    assert decode(encode(one)) == one
