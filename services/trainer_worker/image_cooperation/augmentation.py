"""Flips and shifts of training pictures, a pure function of the generator they are drawn from."""

import numpy as np

from services.trainer_worker.image_cooperation.images import Pixels


def flipped_and_shifted(pixels_NHWC: Pixels, rng: np.random.Generator, *, share: float = 1 / 16) -> Pixels:
    """Each picture mirrored with even odds and cut out anew of itself with a border of `share` of its side."""
    num_images = len(pixels_NHWC)
    height, width = pixels_NHWC.shape[1:3]
    pad_y, pad_x = int(height * share), int(width * share)
    padded_NHWC = np.pad(pixels_NHWC, ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="reflect")
    tops_N = rng.integers(0, 2 * pad_y + 1, size=(num_images,))
    lefts_N = rng.integers(0, 2 * pad_x + 1, size=(num_images,))
    mirrored_N = rng.integers(0, 2, size=(num_images,))
    cut_NHWC = np.empty_like(pixels_NHWC)
    for row in range(num_images):
        top, left = tops_N[row], lefts_N[row]
        cut_HWC = padded_NHWC[row, top : top + height, left : left + width]
        cut_NHWC[row] = cut_HWC[:, ::-1] if mirrored_N[row] else cut_HWC
    return cut_NHWC
