"""Names of layers as names of files: those of foreign models are anything, "../.." too."""

import hashlib
import re


def file_name(text: str) -> str:
    """A file name that is the text itself where that is safe, and unique where it is not."""
    safe = re.sub(r"[^\w.-]", "_", text, flags=re.ASCII)
    if safe == text and not text.startswith("."):
        return text
    return f"{safe[:40].lstrip('.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
