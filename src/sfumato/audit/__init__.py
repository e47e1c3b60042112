"""Attacks on Sfumato's own guarantee: what they find is a lower bound, to be held against the upper bound claimed."""
