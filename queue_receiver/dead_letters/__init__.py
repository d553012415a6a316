"""Dead letters: shown, tried out, sent back and discarded by a person."""
