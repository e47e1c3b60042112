"""Public image sets, one file each: where a set comes from, and how its pictures, labels and captions are read."""
