"""The algebra of one site: laws, by hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lineas import AffineMap, LineasError
from lineas.intervention.gate import Gate
from lineas.intervention.maps import affine, mix

WIDTH = 5
numbers = st.floats(-3, 3, width=32)
nonzero = st.floats(0.25, 3, width=32).flatmap(lambda x: st.sampled_from([x, -x]))
strengths = st.floats(0, 1)


def tensors(elements: st.SearchStrategy[float]) -> st.SearchStrategy[torch.Tensor]:
    return st.lists(elements, min_size=WIDTH, max_size=WIDTH).map(torch.tensor)


maps = st.builds(AffineMap, tensors(numbers), tensors(numbers))
invertible = st.builds(AffineMap, tensors(nonzero), tensors(numbers))
activations = st.lists(tensors(numbers), min_size=1, max_size=4).map(torch.stack)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@given(maps, activations)
def test_the_map_is_scale_times_z_plus_shift(t: AffineMap, z: torch.Tensor) -> None:
    close(t(z), z * t.scale + t.shift)


@given(maps, strengths, activations)
def test_strength_interpolates_between_identity_and_map(t: AffineMap, s: float, z: torch.Tensor) -> None:
    close(t.at(s)(z), (1 - s) * z + s * t(z))


@given(maps, activations)
def test_strength_zero_is_bit_exact_identity_and_one_is_the_map(t: AffineMap, z: torch.Tensor) -> None:
    assert torch.equal(t.at(0.0)(z), z)
    close(t.at(1.0)(z), t(z))


@given(maps, strengths, strengths)
def test_strengths_multiply(t: AffineMap, a: float, b: float) -> None:
    close(t.at(a).at(b).scale, t.at(a * b).scale)
    close(t.at(a).at(b).shift, t.at(a * b).shift)


@given(maps, maps, activations)
def test_then_is_composition_in_reading_order(first: AffineMap, second: AffineMap, z: torch.Tensor) -> None:
    close(first.then(second)(z), second(first(z)))


@given(maps, maps, maps)
def test_then_is_associative(a: AffineMap, b: AffineMap, c: AffineMap) -> None:
    close(a.then(b).then(c).shift, a.then(b.then(c)).shift)
    close(a.then(b).then(c).scale, a.then(b.then(c)).scale)


@given(invertible, activations)
def test_inverse_undoes_the_map_from_both_sides(t: AffineMap, z: torch.Tensor) -> None:
    close(t.inverse()(t(z)), z)
    close(t(t.inverse()(z)), z)


@given(maps, maps, strengths, strengths, activations)
def test_mix_adds_weighted_changes_in_any_order(
    a: AffineMap, b: AffineMap, s: float, t: float, z: torch.Tensor
) -> None:
    close(mix([(a, s), (b, t)])(z), z + s * (a(z) - z) + t * (b(z) - z))
    close(mix([(a, s), (b, t)]).shift, mix([(b, t), (a, s)]).shift)


@given(maps)
def test_mixing_one_map_at_a_strength_is_at(t: AffineMap) -> None:
    close(mix([(t, 0.3)]).scale, t.at(0.3).scale)


def test_support_counts_neurons_beyond_the_tolerance() -> None:
    t = AffineMap(torch.tensor([1.0, 1.1, 1.0, 1 + 5e-6]), torch.tensor([0.0, 0.0, -1e-3, 5e-6]))
    assert t.support().tolist() == [False, True, True, False]
    assert not t.is_identity()
    assert AffineMap.identity(3).is_identity()


def test_neurons_may_lie_on_any_axis() -> None:
    t = AffineMap(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 10.0]))
    image = torch.ones(3, 2, 4, 4)
    out = t(image, axis=1)
    assert torch.equal(out[:, 0], image[:, 0])
    assert (out[:, 1] == 12).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_computes_in_float32_or_wider_and_keeps_the_type(dtype: torch.dtype) -> None:
    t = AffineMap(torch.tensor([1.001]), torch.tensor([0.001]))
    z = torch.tensor([[1.0]], dtype=dtype)
    expected = (z.double() * t.scale.double() + t.shift.double()).to(dtype)
    assert t(z).dtype == dtype
    torch.testing.assert_close(t(z), expected, atol=1e-7, rtol=0)


def test_affine_per_row_gives_each_row_its_own_map() -> None:
    z = torch.ones(2, 3, 1)
    out = affine(z, torch.tensor([[1.0], [5.0]]), torch.tensor([[0.0], [1.0]]))
    assert out[0].unique().tolist() == [1.0]
    assert out[1].unique().tolist() == [6.0]


def test_errors_name_what_was_given() -> None:
    with pytest.raises(LineasError, match=r"\[2\] and \[3\]"):
        AffineMap(torch.ones(2), torch.zeros(3))
    with pytest.raises(LineasError, match="1 of 2 neurons have scale 0"):
        AffineMap(torch.tensor([0.0, 1.0]), torch.zeros(2)).inverse()
    with pytest.raises(LineasError, match="2 neurons cannot act on"):
        AffineMap.identity(2)(torch.zeros(1, 3))
    with pytest.raises(LineasError, match="cannot be followed"):
        AffineMap.identity(2).then(AffineMap.identity(3))
    with pytest.raises(LineasError, match="different widths"):
        mix([(AffineMap.identity(2), 1.0), (AffineMap.identity(3), 1.0)])
    with pytest.raises(LineasError, match="at least one"):
        mix([])


ONES = torch.ones(2)
NOT_NUMBERS = {
    "list": ([1.0, 1.0], "not a list"),
    "array": (ONES.numpy(), "not a ndarray"),
    "nothing": (None, "not None"),
    "text": ("1, 1", "not '1, 1'"),
    "whole": (ONES.long(), "not of int64"),
    "bool": (ONES.bool(), "not of bool"),
    "complex": (ONES.to(torch.complex64), "not of complex64"),
    "float8": (ONES.to(torch.float8_e4m3fn), "not of float8_e4m3fn"),
    "meta": (ONES.to("meta"), "not a meta one"),
    "sparse": (ONES.to_sparse(), "not a sparse one"),
    "nan": (torch.tensor([1.0, torch.nan]), "not finite at 1 of 2 places"),
    "inf": (torch.tensor([-torch.inf, torch.inf]), "not finite at 2 of 2 places"),
    "wide": (torch.tensor([1.0, 1e300], dtype=torch.float64), "once it is float32"),
    "shape": (torch.ones(2, 1), r"\[2, 1\]"),
    "empty": (torch.ones(0), r"\[0\]"),
}


@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_maps_and_gates_refuse_what_is_no_finite_numbers(name: str) -> None:
    given, sentence = NOT_NUMBERS[name]
    for made in (
        lambda: AffineMap(given, torch.zeros(2)),
        lambda: AffineMap(ONES, given),
        lambda: Gate(given, torch.tensor(0.0)),
    ):
        with pytest.raises(LineasError, match=sentence if name != "empty" else "."):
            made()
    with pytest.raises(LineasError, match="gate"):
        Gate(ONES, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_and_gates_are_float32_whatever_they_are_made_of(dtype: torch.dtype) -> None:
    map_, gate = AffineMap(ONES.to(dtype), ONES.to(dtype)), Gate(ONES.to(dtype), torch.tensor(1.0, dtype=dtype))
    assert {x.dtype for x in (map_.scale, map_.shift, gate.weight, gate.bias)} == {torch.float32}


@pytest.mark.parametrize("strength", ["0.5", True, None, [1.0], torch.ones(2), torch.nan, 10**400, 1 + 2j])
def test_strengths_and_weights_are_finite_numbers(strength) -> None:
    for made in (AffineMap(ONES, ONES).at, lambda s: mix([(AffineMap(ONES, ONES), s)])):
        with pytest.raises(LineasError, match="must be a finite number"):
            made(strength)
    assert torch.equal(AffineMap(ONES, ONES).at(torch.tensor(0.5)).shift, 0.5 * ONES)  # pyright: ignore[reportArgumentType]


def test_what_overflows_is_refused_and_said() -> None:
    big = AffineMap(1e38 * ONES, torch.zeros(2))
    with pytest.raises(LineasError, match=r"2 of 2 neurons exceed float32 at strength 1e\+39"):
        AffineMap(2 * ONES, ONES).at(1e39)
    with pytest.raises(LineasError, match="exceed float32 when one map follows the other"):
        big.then(big)
    with pytest.raises(LineasError, match="exceed float32 in this mix"):
        mix([(big, 1e3), (big, 1e3)])
    with pytest.raises(LineasError, match="exceed float32 in the inverse"):
        AffineMap(1e-45 * ONES, ONES).inverse()


def test_what_is_no_map_or_activation_is_refused() -> None:
    for other in (None, 2.0, "map"):
        with pytest.raises(LineasError, match="followed by another map"):
            AffineMap(ONES, ONES).then(other)  # pyright: ignore[reportArgumentType]
        with pytest.raises(LineasError, match="pairs of a map and a weight"):
            mix([(other, 1.0)])  # pyright: ignore[reportArgumentType]
    for z in ([[1.0, 2.0]], torch.ones(1, 2).long()):
        with pytest.raises(LineasError, match="floating point numbers"):
            AffineMap(ONES, ONES)(z)  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match="has no axis 3"):
        AffineMap(ONES, ONES)(torch.ones(1, 2), axis=3)
    for width in (0, -1, 2.0, True, 10**400):
        with pytest.raises(LineasError, match="whole number from 1 on"):
            AffineMap.identity(width)  # pyright: ignore[reportArgumentType]


def test_an_empty_map_takes_no_memory_whatever_becomes_of_it() -> None:
    one = AffineMap.empty(10**12)
    same = mix([(one.at(0.5).then(one), 2.0)]).inverse()
    assert same.is_identity()
    assert not same.support()[:1].any()
    few = AffineMap(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))
    assert torch.equal(AffineMap.empty(2).then(few).scale, few.scale)
    assert torch.equal(mix([(few, 1.0), (AffineMap.empty(2), 1.0)]).shift, few.shift)
