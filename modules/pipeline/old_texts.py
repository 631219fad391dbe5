"""Texts of old versions: their keys as today's, and the behaviour that they had by name."""
from __future__ import annotations

import re
from collections.abc import Mapping


def modernised(old: Mapping[str, str], prompt: str) -> tuple[dict[str, str], str]:
    """(labels and values, prompt): a hypernetwork becomes a tag, the first-pass size the size, old versions name the behaviour they had."""
    fields = dict(old)
    if "Hypernet" in fields:
        prompt += f"<hypernet:{fields['Hypernet']}:{fields.get('Hypernet strength', '1.0')}>"
    first = (fields.pop("First pass size-1", ""), fields.pop("First pass size-2", ""))
    size = (fields.get("Size-1", ""), fields.get("Size-2", ""))
    if all(first) and all(size):
        fields |= {"Hires resize-1": size[0], "Hires resize-2": size[1]}
        fields["Size-1"], fields["Size-2"] = first if first != ("0", "0") else _old_first_pass(*size)
    made_by = _version(fields.get("Version", ""))
    if made_by is not None:
        if made_by < _v(1, 6) and "[" in prompt:
            fields["Old prompt editing timelines"] = "True"
        if made_by < _v(1, 6) and fields.get("Sampler") in ("DDIM", "PLMS"):
            fields["Pad conds v0"] = "True"
        if made_by < _v(1, 7, 0, post=225):
            fields["Downcast alphas_cumprod"] = "True"
        if made_by < _v(1, 8) and "Refiner" in fields:
            fields["Refiner switch by sampling steps"] = "True"
    return fields, prompt


def _old_first_pass(width: str, height: str) -> tuple[str, str]:
    """The first pass that was meant by 0x0: the area of 512 x 512 in the picture's shape, each side up to a multiple of 64."""
    wide, high = int(width[:9]), int(height[:9])
    scale = (512 * 512 / max(wide * high, 1)) ** 0.5
    return str(-int(-wide * scale // 64) * 64), str(-int(-high * scale // 64) * 64)


VERSION_TEXT = re.compile(r"v?([0-9]{1,6})\.([0-9]{1,6})(?:\.([0-9]{1,6}))?(?:-(?:(RC)|([0-9]{1,6}))(?:-|$)|$)", re.IGNORECASE)


def _v(major: int, minor: int, patch: int = 0, *, post: int = 0) -> tuple[int, int, int, int]:
    return major, minor, patch, post


def _version(text: str) -> tuple[int, int, int, int] | None:
    """`v1.7.0-225-gabc` as (1, 7, 0, 225), a release candidate as -1 after its release; None for what is no such version."""
    found = VERSION_TEXT.match(text)
    if not found:
        return None
    return _v(int(found[1]), int(found[2]), int(found[3] or 0), post=-1 if found[4] else int(found[5] or 0))
