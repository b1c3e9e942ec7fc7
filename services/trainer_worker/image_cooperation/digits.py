"""scikit-learn's handwritten digits: real pictures that need no download."""

from typing import Final

import numpy as np

from services.trainer_worker.image_cooperation.images import ImageData, ImageSet

_LARGEST: Final = 16
_NUM_TEST: Final = 360


def digits_images() -> ImageData:
    """1,437 pictures to train on and 360 to test on, 8x8 with one channel; always the same split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels_NHWC = np.round(digits.images * (255 / _LARGEST)).astype(np.uint8)[..., None]
    order_N = np.random.default_rng(0).permutation(len(pixels_NHWC))
    images = ImageSet(pixels_NHWC[order_N], digits.target[order_N].astype(np.int64))
    train = ImageSet(images.pixels_NHWC[_NUM_TEST:], images.labels_N[_NUM_TEST:])
    test = ImageSet(images.pixels_NHWC[:_NUM_TEST], images.labels_N[:_NUM_TEST])
    return ImageData(train, test, "scikit-learn's digits")
