"""Layers with factors: schemes against their numbers, and the text that names them."""

from fractions import Fraction

import pytest

from nst_jax.config import Config, as_layers
from nst_jax.config.factors import SCHEMES, STYLE_LAYERS, parse_layers, weigh_layers
from nst_jax.errors import InputError

FIVE = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
FACTORS = {
    "equal": (1, 1, 1, 1, 1),
    "1/C2": tuple(Fraction(1, n) for n in (4096, 16384, 65536, 262144, 262144)),
    "geometric": tuple(Fraction(n, 341) for n in (256, 64, 16, 4, 1)),
    "course": (Fraction(1, 5),) * 5,
}


def pairs(names, factors):
    return tuple((name, float(factor)) for name, factor in zip(names, factors, strict=True))


def test_every_scheme_has_its_numbers():
    assert set(FACTORS) == set(SCHEMES)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_five_layers(scheme):
    expected = pairs(FIVE, FACTORS[scheme])
    assert weigh_layers(FIVE, scheme=scheme) == expected
    assert parse_layers(scheme) == expected
    assert parse_layers(f"{scheme}, {', '.join(FIVE)}") == expected
    # What a config and a run's record hold.
    assert Config.of(style_layers=parse_layers(scheme)).loss.style_layers == expected


@pytest.mark.parametrize(
    "scheme, names, factors",
    [
        ("equal", ("conv4_2",), (1,)),
        ("1/C2", ("conv1_2", "relu3_4", "conv5_1"), (1 / 4096, 1 / 65536, 1 / 262144)),
        ("geometric", ("relu3_1", "relu4_1", "relu4_3"), (16 / 21, 4 / 21, 1 / 21)),
        ("geometric", ("relu5_1",), (1,)),
        # In the order in which they are named.
        ("geometric", ("relu2_1", "relu1_1"), (0.8, 0.2)),
        ("course", ("relu3_1", "relu4_1", "relu5_1"), (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_other_layers(scheme, names, factors):
    assert weigh_layers(names, scheme=scheme) == pairs(names, factors)
    assert parse_layers(",".join((scheme, *names))) == pairs(names, factors)


def test_no_layers_have_no_factors():
    for scheme in SCHEMES:
        assert weigh_layers((), scheme=scheme) == ()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("relu1_1", (("relu1_1", 1.0),)),
        ("relu1_1=0.25, conv4_2", (("relu1_1", 0.25), ("conv4_2", 1.0))),
        (" relu3_1=2e-3 ,", (("relu3_1", 0.002),)),
        ("", ()),
        ("equal", STYLE_LAYERS),
    ],
)
def test_text(text, expected):
    assert parse_layers(text) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("geometric,relu1_1=2", "'relu1_1=2' contradicts the scheme geometric: leave one of them"),
        ("1/C2,relu1_1,relu2_1=1", "'relu2_1=1' contradicts the scheme 1/C2"),
        ("linear,relu1_1", "unknown layer 'linear'"),
        ("relu1_1,course", "unknown layer 'course'"),
        ("Geometric", "unknown layer 'Geometric'"),
        ("course,relu9_9", "unknown layer 'relu9_9'"),
        ("relu6_1=1", "unknown layer 'relu6_1'"),
        ("course,relu1_1,relu1_1", "relu1_1 is given twice"),
        ("relu1_1=much", "'relu1_1=much' is not a number: expected NAME or NAME=FACTOR"),
        ("relu1_1=", "'relu1_1=' is not a number"),
        ("relu1_1=-1", "factor of layer relu1_1 is -1.0"),
        ("relu1_1=nan", "factor of layer relu1_1 is nan"),
    ],
)
def test_unfit_text_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_layers(text)


def test_unfit_arguments_are_refused():
    with pytest.raises(InputError, match="unknown scheme 'linear': expected one of equal, 1/C2"):
        weigh_layers(FIVE, scheme="linear")
    with pytest.raises(InputError, match="unknown layer 'relu3_5'"):
        weigh_layers(["relu3_5"], scheme="equal")
    with pytest.raises(InputError, match="relu1_1 is given twice"):
        weigh_layers(["relu1_1", "relu1_1"], scheme="course")


def test_a_scheme_is_a_mapping_s_equal():
    mapping = {name: 0.2 for name in FIVE}
    assert as_layers(mapping) == weigh_layers(FIVE, scheme="course")
