"""One Flax network per file, written against `tap`."""
