"""CIE L*a*b*, in which some TIFFs are, to sRGB."""

import numpy as np

D50 = (0.3457, 0.3585)  # chromaticities
_D65 = (0.3127, 0.3290)
_SRGB = np.array([[0.64, 0.33], [0.30, 0.60], [0.15, 0.06]])
# Bradford's, as in ICC.1:2022, annex E.
_CONES = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def lab_to_rgb(lab: np.ndarray, *, white: tuple[float, float] = D50) -> np.ndarray:
    """L*a*b* as sRGB, what is outside of its colours clipped.

    X, Y, Z = white * f^-1((L* + 16) / 116 + (a* / 500, 0, -b* / 200)), with f^-1(t) = t^3 above
    6/29 and 3 (6/29)^2 (t - 4/29) below (CIE 15); then to D65 by Bradford's matrix.

    Args:
      lab: ``[H, W, 3]``, L* in [0, 100].
      white: chromaticities x and y of the white.

    Returns:
      ``[H, W, 3]`` float32 in [0, 1].

    Raises:
      ValueError: for a white that is none.

    >>> lab_to_rgb(np.array([[[100.0, 0, 0], [0, 0, 0]]])).round(3).tolist()
    [[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]]
    """
    if not (0 < white[0] < 1 and 0 < white[1] < 1):
        raise ValueError(f"its white point is {white}: expected chromaticities")
    lab = np.asarray(lab, np.float32)
    root = (lab[..., :1] + 16) / 116 + lab[..., 1:2] * np.array([1 / 500, 0, 0], np.float32)
    root = root - lab[..., 2:] * np.array([0, 0, 1 / 200], np.float32)
    xyz = np.where(root > 6 / 29, root**3, 3 * (6 / 29) ** 2 * (root - 4 / 29))
    primaries = np.stack([_xyz(chromaticity) for chromaticity in _SRGB], axis=-1)
    primaries = primaries * np.linalg.solve(primaries, _xyz(_D65))
    scale = (_CONES @ _xyz(_D65)) / (_CONES @ _xyz(white))
    adapted = np.linalg.solve(_CONES, scale[:, None] * _CONES)
    change = np.linalg.solve(primaries, adapted * _xyz(white))
    linear = np.clip(xyz @ change.T.astype(np.float32), 0, 1)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return encoded.astype(np.float32)


def _xyz(chromaticity) -> np.ndarray:
    x, y = chromaticity
    return np.array([x / y, 1, (1 - x - y) / y])
