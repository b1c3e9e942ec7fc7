"""From a gap, or a wish, to a released expert: data, training, gate row, evaluation, release."""
